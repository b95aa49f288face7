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
_RECIPE = "model, encoder='encoder', head='head', every=1, lr=None, *, groups=None, rest='leave'"

# Names, order and defaults of the arguments are a promise to users.
CORE_SIGNATURES = {
    "Anchor.detach": "",
    "Anchor.distance": "",
    "Anchor.remember": "",
    "BiLSTM": (
        "input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, "
        "bidirectional=True, proj_size=0, device=None, dtype=None"
    ),
    "BiLSTM.forward": "input, hx=None, *, lengths=None",
    "BiLSTM.from_lstm": "lstm",
    "BiLSTM.to_lstm": "",
    "Choice": "values",
    "Freeze.undo": "",
    "FreezeSchedule": "phases, *, unit='epoch', scope='*', exclude=None, rest='leave'",
    "FreezeSchedule.apply": "module, epoch, optimizer=None",
    "FreezeSchedule.chain_thaw": _RECIPE,
    "FreezeSchedule.from_yaml": "path",
    "FreezeSchedule.gradual_unfreezing": _RECIPE,
    "FreezeSchedule.linear_probing": _RECIPE,
    "FreezeSchedule.preview": "model, epochs",
    "FreezeSchedule.progressive_freezing": (
        "model, total, encoder='encoder', head='head', t0=0.8, how='cubic', scaled=True, *, "
        "groups=None, rest='leave'"
    ),
    "FreezeSchedule.to_yaml": "path",
    "FreezeSchedule.trainable_at": "epoch",
    "FrozenGuard": "module, mode='exact', *, idle_after=None",
    "FrozenGuard.attach": "optimizer=None, every_n_steps=1",
    "FrozenGuard.detach": "",
    "FrozenGuard.remember": "",
    "Phase": "start, train, *, lr=None, warmup=0",
    "LoRA.load_state_dict": "state_dict",
    "LoRA.merge": "",
    "LoRA.remove": "",
    "LoRA.state_dict": "",
    "PrefixCache": f"max_bytes={2 * 2**30}, keep_levels=()",
    "PrefixCache.stats": "",
    "add_lora": (
        "module, *targets, layers=None, directions=None, kinds='weight', exclude=None, rank=8, "
        "alpha=None, optimizer=None"
    ),
    "anchor": "module, optimizer, *targets, strength, exclude=None",
    "fingerprints": "module",
    "freeze": f"module, *targets, {_CHOICE}, only=False, optimizer=None, dropout='keep'",
    "freeze_up_to": "module, layer_or_target, *, groups=None",
    "interpolate": "module, start, share",
    "load_changes": "module, path",
    "param_groups": (
        "module, lr, *, layer_decay=1.0, weight_decay=0.0, no_decay='*bias*', groups=None"
    ),
    "release_memory": "",
    "replace_lstm": "model, *, subclasses=False",
    "save_changes": "module, path, base",
    "select": f"module, *targets, {_CHOICE}",
    "show_config": "",
    "slanted_triangular": "optimizer, total_steps, cut_frac=0.1, ratio=32",
    "status": "module, optimizer=None, by='layer'",
    "unfreeze": f"module, *targets, {_CHOICE}, only=False, optimizer=None",
}
CALLBACK_SIGNATURES = {
    "FreezeScheduler": "schedule, *, check='step', advance=None",
    "FrozenWeightsCheck": "every_n_steps=1, mode='exact', idle_after=None",
    "GradualUnfreezing": (
        "encoder='encoder', head='head', every_n_epochs=1, *, check='step', advance=None, "
        "groups=None, rest='leave'"
    ),
    "Plateau": (
        "monitor='val_loss', mode='min', patience=2, min_delta=0.0, max_epochs_per_phase=None, "
        "restore_best=False"
    ),
    "SaveChanges": "base=None",
    "WeightAnchor": "targets, strength",
    "WeightDrift": "every_n_steps=50",
}
# Arguments beyond the promised ones: optional, and behind them.
ADDED = {
    "Comparison.plot": "ax=None",
    "FreezeSchedule.plot": "model, epochs, ax=None",
    "FrozenGuard.check": "*, step=None",
    "compare": (
        "score, methods, splits, *, minimize=False, folder=None, progress=True, labels=None, "
        "groups=None, inner=3, seed=0, executor=None"
    ),
}
# Public, but made by the library and not by users.
RESULTS = {
    "Anchor",
    "Comparison",
    "Freeze",
    "FrozenWeightsChanged",
    "LoRA",
    "ParameterGroup",
    "Recipe",
    "Selection",
    "Status",
}


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
        (lstm_freeze, {name.partition(".")[0] for name in {**CORE_SIGNATURES, **ADDED}} | RESULTS),
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

OPTIONAL = (
    *("lightning", "pytorch_lightning", "torchmetrics", "matplotlib", "yaml"),
    *("scipy", "sklearn", "rich"),
)
# They are not found, whether they are imported or, as torch does, only looked for.
WITHOUT_OPTIONAL = f"""
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {OPTIONAL}:
            return super().find_spec(name, path, target)

sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
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

# A room imports only the doors of rooms before it. `docs/architecture.md` says what each holds.
# fmt: off
ROOMS = [
    "_names", "_checks", "_warn", "_torch_internals", "_extensions",
    "_hashing", "_model", "_recurrence", "_rnn", "_cache", "_optimizers", "_freezing", "_guard",
    "_saving", "_between", "_schedule", "_comparing",
    "_config", "__init__",
]
CALLBACKS_ORDER = [
    "_callback", "_ddp", "_refusals", "_advance", "_fit_plateau", "_fit_guard", "_frozen_check",
    "_weight_drift", "_neighbours", "_save_changes",
    "_weight_anchor", "_given", "_logged", "_scheduler", "_gradual", "__init__",
]
# fmt: on
EXTENSIONS = {"_timeloop", "_words"}


def is_for_types_only(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(source):
    """The modules imported anywhere in a file but for type checkers; relative ones with dots."""
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


def sources_in(folder):
    """Path without ending -> source, for every file at any depth; a door is `room/__init__`."""
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path.read_text()
        for path in sorted(folder.rglob("*.py"))
    }


def target_of(name, imported):
    """What a relative import in the file `name` speaks of: (room, file within the room)."""
    here = name.split("/")[:-1]
    dots = len(imported) - len(imported.lstrip("."))
    path = [*here[: len(here) - dots + 1], *imported.lstrip(".").split(".")]
    return path[0], "/".join(path[1:])


def out_of_order(sources, rooms):
    """The imports "importer -> imported" of a later room, or of more of a room than its door."""
    place = {name: index for index, name in enumerate(rooms)}
    wrong = []
    for name, source in sources.items():
        room = name.split("/")[0]
        for imported in sorted(found for found in imports(source) if found.startswith(".")):
            other, inside = target_of(name, imported)
            if other == room and "/" in name:
                continue
            if place[other] >= place[room] or inside:
                wrong.append(f"{name} -> {imported}")
    return wrong


def in_a_circle(sources):
    """The files of a room that import each other in a circle."""
    edges = {
        name: {
            f"{room}/{inside}"
            for imported in imports(source)
            if imported.startswith(".")
            for room, inside in [target_of(name, imported)]
            if inside and room == name.split("/")[0] and inside not in EXTENSIONS
        }
        for name, source in sources.items()
        if "/" in name
    }
    while free := [name for name, needs in edges.items() if not needs & edges.keys()]:
        for name in free:
            del edges[name]
    return sorted(edges)


def test_rooms_import_one_way_and_by_their_doors():
    sources = sources_in(CORE)
    assert {name.split("/")[0] for name in sources} <= set(ROOMS), "a new room has no place"
    assert out_of_order(sources, ROOMS) == []
    assert in_a_circle(sources) == []


def test_callbacks_import_one_way():
    sources = sources_in(CALLBACKS)
    assert set(sources) <= set(CALLBACKS_ORDER), "a new file has no place in the order"
    assert out_of_order(sources, CALLBACKS_ORDER) == []


def test_an_import_that_runs_the_other_way_is_noticed():
    low = "def f():\n    from .._high import g"
    assert out_of_order({"_low/a": low}, ["_low", "_high"]) == ["_low/a -> .._high"]
    assert out_of_order({"_low": "from . import _high"}, ["_low", "_high"]) == ["_low -> ._high"]
    past_the_door = {"_high/b": "from .._low.a import g"}
    assert out_of_order(past_the_door, ["_low", "_high"]) == ["_high/b -> .._low.a"]
    assert out_of_order({"_high/b": "from .._low import a"}, ["_low", "_high"]) == []
    circle = {"_room/a": "from .b import x", "_room/b": "from . import a", "_room/c": ""}
    assert in_a_circle(circle) == ["_room/a", "_room/b"]


@pytest.mark.parametrize("name", [path.stem for path in sorted(CALLBACKS.glob("*.py"))])
def test_callbacks_import_only_doors(name):
    found = imports((CALLBACKS / f"{name}.py").read_text())
    # The doors of rooms are open to them too, the files behind the doors are not.
    used = {module for module in found if module.startswith("lstm_freeze.")}
    assert {module.split(".")[1] for module in used} <= set(ROOMS)
    assert {module for module in used if module.count(".") > 1} == set()


def test_names_are_free_of_torch():
    assert {name for name in imports((CORE / "_names.py").read_text()) if "torch" in name} == set()


def test_freezing_does_not_know_bilstm():
    sources, waiting, reached = sources_in(CORE), ["_freezing", "_guard"], set()
    while waiting:
        room = waiting.pop()
        reached.add(room)
        for name, source in sources.items():
            if name.split("/")[0] == room:
                found = {target_of(name, i)[0] for i in imports(source) if i.startswith(".")}
                waiting += found - reached - EXTENSIONS
    assert "_model" in reached
    assert "_rnn" not in reached
