"""The two doors: what they offer, how it is called, and what importing them needs."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import lstm_freeze
import lstm_freeze.callbacks

ROOT = Path(__file__).parent.parent
CORE = ROOT / "lstm_freeze"
CALLBACKS = ROOT / "callbacks"

_CHOICE = "layers=None, directions=None, kinds=None, exclude=None"
_RECIPE = "model, encoder='encoder', head='head', every=1, lr=None"

# Names, order and defaults of the arguments are a promise to users.
CORE_SIGNATURES = {
    "BiLSTM": (
        "input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, "
        "bidirectional=True, proj_size=0, device=None, dtype=None"
    ),
    "BiLSTM.forward": "input, hx=None",
    "BiLSTM.from_lstm": "lstm",
    "BiLSTM.to_lstm": "",
    "Freeze.undo": "",
    "FreezeSchedule": "phases, *, unit='epoch', scope='*', exclude=None",
    "FreezeSchedule.apply": "module, epoch, optimizer=None",
    "FreezeSchedule.chain_thaw": _RECIPE,
    "FreezeSchedule.from_yaml": "path",
    "FreezeSchedule.gradual_unfreezing": _RECIPE,
    "FreezeSchedule.linear_probing": _RECIPE,
    "FreezeSchedule.preview": "model, epochs",
    "FreezeSchedule.progressive_freezing": (
        "model, total, encoder='encoder', head='head', t0=0.8, how='cubic', scaled=True"
    ),
    "FreezeSchedule.to_yaml": "path",
    "FreezeSchedule.trainable_at": "epoch",
    "FrozenGuard": "module, mode='exact'",
    "FrozenGuard.attach": "optimizer, every_n_steps=1",
    "FrozenGuard.detach": "",
    "FrozenGuard.remember": "",
    "Phase": "start, train, *, lr=None, warmup=0",
    "PrefixCache": f"max_bytes={2 * 2**30}, keep_levels=()",
    "PrefixCache.stats": "",
    "freeze": f"module, *targets, {_CHOICE}, only=False, optimizer=None, dropout='keep'",
    "freeze_up_to": "module, layer_or_target",
    "param_groups": "module, lr, *, layer_decay=1.0, weight_decay=0.0, no_decay='*bias*'",
    "replace_lstm": "model",
    "select": f"module, *targets, {_CHOICE}",
    "slanted_triangular": "optimizer, total_steps, cut_frac=0.1, ratio=32",
    "status": "module, optimizer=None, by='layer'",
    "unfreeze": f"module, *targets, {_CHOICE}, only=False, optimizer=None",
}
CALLBACK_SIGNATURES = {
    "FreezeScheduler": "schedule, *, check='step', advance=None",
    "FrozenWeightsCheck": "every_n_steps=1, mode='exact'",
    "GradualUnfreezing": (
        "encoder='encoder', head='head', every_n_epochs=1, *, check='step', advance=None"
    ),
    "Plateau": (
        "monitor='val_loss', mode='min', patience=2, min_delta=0.0, max_epochs_per_phase=None, "
        "restore_best=False"
    ),
    "WeightDrift": "every_n_steps=50",
}
# Arguments beyond the promised ones: optional, and behind them.
ADDED = {"FreezeSchedule.plot": "model, epochs, ax=None", "FrozenGuard.check": "*, step=None"}
# Public, but made by the library and not by users.
RESULTS = {"Freeze", "FrozenWeightsChanged", "ParameterGroup", "Selection", "Status"}


def written(signature):
    """The arguments as in a call's documentation: without self, types and result."""
    parameters = [
        parameter.replace(annotation=parameter.empty)
        for name, parameter in signature.parameters.items()
        if name != "self"
    ]
    return str(inspect.Signature(parameters))[1:-1]


def look_up(door, dotted):
    for name in dotted.split("."):
        door = getattr(door, name)
    return door


@pytest.mark.parametrize(("name", "expected"), [*CORE_SIGNATURES.items(), *ADDED.items()])
def test_signature(name, expected):
    assert written(inspect.signature(look_up(lstm_freeze, name))) == expected


@pytest.mark.parametrize(("name", "expected"), CALLBACK_SIGNATURES.items())
def test_signature_of_callback(name, expected):
    assert written(inspect.signature(look_up(lstm_freeze.callbacks, name))) == expected


@pytest.mark.parametrize(
    ("door", "names"),
    [
        (lstm_freeze, {name.partition(".")[0] for name in CORE_SIGNATURES} | RESULTS),
        (lstm_freeze.callbacks, set(CALLBACK_SIGNATURES)),
    ],
)
def test_door_offers_exactly_the_documented_names_sorted(door, names):
    assert door.__all__ == sorted(names)
    for name in names:
        assert hasattr(door, name)


@pytest.mark.parametrize("door", [lstm_freeze, lstm_freeze.callbacks])
def test_every_other_module_is_private(door):
    for folder in door.__path__:
        modules = {path.stem for path in Path(folder).glob("*.py")} - {"__init__"}
        assert modules
        assert {name for name in modules if not name.startswith("_")} == set()


@pytest.mark.parametrize("door", [lstm_freeze, lstm_freeze.callbacks])
def test_public_docstrings_have_an_example(door):
    for name in set(door.__all__) - RESULTS:
        thing = getattr(door, name)
        docs = [thing.__doc__ or ""]
        if inspect.isclass(thing):
            docs += [inspect.getdoc(member) or "" for _, member in inspect.getmembers(thing)]
        assert any(">>> " in doc for doc in docs), f"{name} has no example"


# ---- what importing the core needs

OPTIONAL = ("lightning", "pytorch_lightning", "torchmetrics", "matplotlib", "yaml")
WITHOUT_OPTIONAL = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
"""
USE = """
import torch
import lstm_freeze as lf

model = torch.nn.ModuleDict({"encoder": lf.BiLSTM(3, 4, 2), "head": torch.nn.Linear(8, 1)})
optimizer = torch.optim.AdamW(lf.param_groups(model, 0.1))
schedule = lf.FreezeSchedule.gradual_unfreezing(model)
with lf.FrozenGuard(model).attach(optimizer):
    print(schedule.apply(model, 0, optimizer))
    model["head"](model["encoder"](torch.randn(5, 2, 3))[0]).sum().backward()
    optimizer.step()
"""


def run_python(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )


def test_core_works_without_any_optional_package():
    done = run_python(WITHOUT_OPTIONAL + USE)
    assert done.returncode == 0, done.stderr
    assert "trainable params" in done.stdout


@pytest.mark.parametrize("package", OPTIONAL)
def test_the_check_above_notices_an_optional_package(package):
    done = run_python(f"{WITHOUT_OPTIONAL}\nimport {package}\n")
    assert done.returncode != 0
    assert f"No module named '{package}'" in done.stderr


def test_callbacks_say_what_is_missing_without_lightning():
    done = run_python(f"{WITHOUT_OPTIONAL}\nimport lstm_freeze.callbacks\n")
    assert done.returncode != 0
    assert 'pip install "lstm-freeze[lightning]"' in done.stderr


# ---- who imports whom

# A file imports only files above it. A new file is put where it belongs.
# fmt: off
CORE_ORDER = [
    "_layout", "_packing", "_arguments", "_extensions", "_bits", "_weights", "_onnx",
    "_workspace", "_native", "_stepping",
    "_unrolling", "_precision", "_recurrence", "_table", "_samples", "_prefix_cache",
    "_parts", "_conversion", "_bilstm",
    "_targets", "_selection", "_optimizers", "_holding", "_distributed", "_ledger", "_plan",
    "_status",
    "_freezing", "_changes", "_guard", "_groups",
    "_phases", "_rates", "_recipes", "_prefix_levels", "_resolving", "_schedule_view",
    "_schedule_yaml", "_schedule", "__init__",
]
CALLBACKS_ORDER = [
    "_both", "_ddp", "_weights", "_refusals", "_advance", "_frozen_check", "_weight_drift",
    "_logged", "_scheduler", "_gradual", "__init__",
]
# fmt: on
EXTENSIONS = {"_timeloop", "_words"}


def is_for_types_only(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(source):
    """The modules imported anywhere in a file but for type checkers; relative ones with a dot."""
    waiting, found = [ast.parse(source)], set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add("." * node.level + node.module)
        elif isinstance(node, ast.ImportFrom):
            found |= {"." * node.level + alias.name for alias in node.names}
        waiting += node.orelse if is_for_types_only(node) else ast.iter_child_nodes(node)
    return found


def out_of_order(sources, order):
    """The imports of siblings, "importer -> imported", that point to the same or a later place."""
    place = {name: index for index, name in enumerate(order)}
    return [
        f"{name} -> {imported}"
        for name, source in sources.items()
        for imported in (found[1:] for found in imports(source) if found.startswith("."))
        if imported not in EXTENSIONS and place[imported] >= place[name]
    ]


def sources_in(folder):
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.py"))}


@pytest.mark.parametrize(
    ("folder", "order"),
    [(CORE, CORE_ORDER), (CALLBACKS, CALLBACKS_ORDER)],
    ids=["core", "callbacks"],
)
def test_imports_run_one_way(folder, order):
    sources = sources_in(folder)
    assert set(sources) <= set(order), "a new file has no place in the order"
    assert out_of_order(sources, order) == []


def test_an_import_that_runs_the_other_way_is_noticed():
    sources = {"_low": "def f():\n    from ._high import g", "_high": "from . import _low"}
    assert out_of_order(sources, ["_low", "_high"]) == ["_low -> _high"]
    assert out_of_order({"_a": "from ._a import b"}, ["_a"]) == ["_a -> _a"]


@pytest.mark.parametrize("name", [path.stem for path in sorted(CALLBACKS.glob("*.py"))])
def test_callbacks_import_only_the_door(name):
    found = imports((CALLBACKS / f"{name}.py").read_text())
    assert {module for module in found if module.startswith("lstm_freeze.")} == set()


def test_layout_is_free_of_torch():
    assert {name for name in imports((CORE / "_layout.py").read_text()) if "torch" in name} == set()


def test_freezing_does_not_know_bilstm():
    sources, waiting, reached = sources_in(CORE), ["_schedule", "_guard", "_freezing"], set()
    while waiting:
        name = waiting.pop()
        reached.add(name)
        siblings = {found[1:] for found in imports(sources[name]) if found.startswith(".")}
        waiting += siblings - reached - EXTENSIONS
    assert "_parts" in reached
    assert "_bilstm" not in reached
