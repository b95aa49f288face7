"""save_changes and load_changes: what is in the file, what is refused, what a kill leaves."""

import copy
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import safetensors
import torch
from _models import Tagger, moved, snapshot
from torch import nn

from lstm_freeze import BiLSTM, fingerprints, freeze, load_changes, save_changes
from lstm_freeze._saving import changes as changes_file

ENDINGS = ["changes.pt", "changes.safetensors", "changes"]


class Tied(nn.Module):
    """An embedding that is the output, too, a batch norm, and a frozen encoder."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 3)
        self.lstm = BiLSTM(3, 4)
        self.norm = nn.BatchNorm1d(8)
        self.out = nn.Linear(3, 6)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        return self.out(self.norm(self.lstm(self.embedding(x))[0].mean(0))[:, :3])


def train(module, steps=3):
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randint(0, 6, (5, 4))).square().mean().backward()
        optimizer.step()


@pytest.fixture
def trained():
    """A module that holds the base, the same fine-tuned, the base's fingerprints, what changed."""
    torch.manual_seed(0)
    start = Tied()
    module = copy.deepcopy(start)
    freeze(module, "lstm")
    before = snapshot(module)
    train(module)
    changed = moved(module, before)
    assert changed == {
        "embedding.weight",
        "out.weight",
        "out.bias",
        *(f"norm.{n}" for n in ("weight", "bias", "running_mean", "running_var")),
        "norm.num_batches_tracked",
    }
    return start, module, fingerprints(start), changed


def stored_names(path):
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, "pt") as file:
            return set(file.keys())
    return set(torch.load(path, weights_only=True)["tensors"])


@pytest.mark.parametrize("name", ENDINGS)
def test_a_file_holds_what_changed_and_brings_it_back(name, trained, tmp_path):
    start, module, base, changed = trained
    save_changes(module, tmp_path / name, base)
    assert stored_names(tmp_path / name) == changed - {"out.weight"}  # the tie, once
    parameters = {n: id(p) for n, p in start.named_parameters()}
    assert snapshot(start) != snapshot(module)
    load_changes(start, str(tmp_path / name))
    assert snapshot(start) == snapshot(module)
    assert {n: id(p) for n, p in start.named_parameters()} == parameters
    assert start.out.weight is start.embedding.weight
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ENDINGS)
def test_the_file_holds_the_fingerprints_of_the_whole_base(name, trained, tmp_path):
    _, module, base, _ = trained
    save_changes(module, tmp_path / name, base)
    if name.endswith(".safetensors"):
        with safetensors.safe_open(tmp_path / name, "pt") as file:
            found = json.loads(file.metadata()["lstm_freeze"])["base"]
    else:
        found = torch.load(tmp_path / name, weights_only=True)["base"]
    assert found == base


@pytest.mark.parametrize("name", ENDINGS[:2])
@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool],
)
def test_all_dtypes_shapes_and_views(name, dtype, tmp_path):
    def build():
        module = nn.Module()
        module.register_buffer("table", torch.arange(60).view(10, 6).t().to(dtype))
        module.register_buffer("part", torch.arange(1000)[3:5].to(dtype))
        module.register_buffer("one", torch.tensor(1).to(dtype))
        module.register_buffer("none", torch.zeros(0, 3).to(dtype))
        return module

    start, module = build(), build()
    base = fingerprints(start)
    module.table[2, 3] = 0
    module.part = torch.zeros(1000).to(dtype)[3:5]  # a view must not bring its storage
    module.one.fill_(0)
    save_changes(module, tmp_path / name, base)
    assert (tmp_path / name).stat().st_size < 6000
    assert stored_names(tmp_path / name) >= {"table", "part"}
    load_changes(start, tmp_path / name)
    assert snapshot(start) == snapshot(module)


def test_nothing_changed_is_a_file_too(tmp_path):
    module = Tied()
    save_changes(module, tmp_path / "a.safetensors", fingerprints(module))
    before = snapshot(module)
    load_changes(module, tmp_path / "a.safetensors")
    assert snapshot(module) == before


def test_wrappers_are_looked_through(trained, tmp_path):
    start, module, base, _ = trained
    save_changes(nn.DataParallel(module), tmp_path / "a.pt", base)
    load_changes(torch.compile(start, backend="eager"), tmp_path / "a.pt")
    assert snapshot(start) == snapshot(module)


def test_what_the_base_does_not_name_is_saved_whole_and_not_checked(tmp_path):
    """A new head that no other process would build with the same values."""
    module = Tagger()
    base = {n: f for n, f in fingerprints(module).items() if n.startswith("encoder.")}
    save_changes(module, tmp_path / "a.pt", base)
    assert stored_names(tmp_path / "a.pt") == {"head.weight", "head.bias"}
    other = copy.deepcopy(module)
    other.head.reset_parameters()
    assert snapshot(other) != snapshot(module)
    load_changes(other, tmp_path / "a.pt")
    assert snapshot(other) == snapshot(module)


def remove(module, name):
    owner, _, last = name.rpartition(".")
    delattr(module.get_submodule(owner), last)


def touch(module, name, value=1.0):
    with torch.no_grad():
        module.get_parameter(name).view(-1)[0] += value


def with_other_base(m):
    touch(m, "lstm.weight_hh_l0")
    touch(m, "lstm.bias_ih_l0_reverse")
    touch(m, "out.bias")


def with_less(m):
    remove(m, "lstm.bias_ih_l0")
    remove(m, "out.bias")


def with_more(m):
    m.extra = nn.Linear(1, 1)
    m.norm.register_buffer("beside", torch.zeros(1))


def with_other_shape(m):
    m.out.bias = nn.Parameter(torch.zeros(7))
    m.norm.weight = nn.Parameter(torch.zeros(8, dtype=torch.float64))


def untied(m):
    m.out.weight = nn.Parameter(m.out.weight.detach() + 1)


def tied_more(m):
    m.norm.weight = m.norm.bias = nn.Parameter(m.norm.weight.detach().clone())


REFUSED = {
    "other base": (with_other_base, ["lstm.weight_hh_l0", "lstm.bias_ih_l0_reverse", "out.bias"]),
    "missing": (with_less, ["lstm.bias_ih_l0", "out.bias"]),
    "additional": (with_more, ["extra.weight", "extra.bias", "norm.beside"]),
    "other shape": (with_other_shape, ["out.bias", "(7,)", "(6,)", "norm.weight", "float64"]),
    "untied": (untied, ["out.weight"]),
    "tied": (tied_more, ["norm.weight", "norm.bias"]),
}


@pytest.mark.parametrize("name", ENDINGS[:2])
@pytest.mark.parametrize("case", REFUSED)
def test_a_module_that_does_not_fit_is_refused_and_unchanged(case, name, trained, tmp_path):
    start, module, base, changed = trained
    save_changes(module, tmp_path / name, base)
    spoil, named = REFUSED[case]
    spoil(start)
    before = snapshot(start)
    with pytest.raises(ValueError, match="nothing was changed") as caught:
        load_changes(start, tmp_path / name)
    message = str(caught.value)
    assert all(word in message for word in named), message
    unrelated = {"lstm.weight_ih_l0", "lstm.weight_hr", *changed - set(named)} - {"norm.bias"}
    if case not in ("tied", "untied"):
        assert not any(f"'{n}'" in message for n in unrelated), message
    assert snapshot(start) == before


def test_an_untied_module_with_equal_values_gets_both(trained, tmp_path):
    start, module, base, _ = trained
    save_changes(module, tmp_path / "a.pt", base)
    start.out.weight = nn.Parameter(start.out.weight.detach().clone())
    load_changes(start, tmp_path / "a.pt")
    assert snapshot(start) == snapshot(module)


def test_a_write_that_fails_in_the_middle_changes_nothing(trained, tmp_path):
    start, module, base, _ = trained
    start.norm.running_var = torch.ones(1).expand(8)  # cannot be written into
    base = fingerprints(start)
    save_changes(module, tmp_path / "a.pt", base)
    before = snapshot(start)
    with pytest.raises(RuntimeError, match="single memory location"):
        load_changes(start, tmp_path / "a.pt")
    assert snapshot(start) == before


def test_inference_tensors_are_named(trained, tmp_path):
    _, module, _, _ = trained
    with torch.inference_mode():
        start = Tied()
    save_changes(module, tmp_path / "a.pt", fingerprints(start))
    with pytest.raises(ValueError, match=r"'out\.bias'.*inference_mode"):
        load_changes(start, tmp_path / "a.pt")


def test_a_base_with_more_than_the_module_is_refused(trained, tmp_path):
    _, module, base, _ = trained
    base = {**base, "gone.weight": "0" * 16, "gone.bias": "1" * 16}
    with pytest.raises(ValueError, match=r"`base` names .*'gone\.weight', 'gone\.bias'"):
        save_changes(module, tmp_path / "a.pt", base)
    assert os.listdir(tmp_path) == []


BAD_CALLS = [
    (lambda m, f: save_changes({}, f, {}), TypeError, "`module` must be a torch.nn.Module"),
    (lambda m, f: save_changes(m, 3, {}), TypeError, "`path` must be a file's path, got int"),
    (lambda m, f: save_changes(m, b"a", {}), TypeError, "`path` must be a file's path, got bytes"),
    (lambda m, f: save_changes(m, f, None), TypeError, "`base` must be the fingerprints"),
    (lambda m, f: save_changes(m, f, m), TypeError, "fingerprints.* got Linear"),
    (lambda m, f: save_changes(m, f, m.state_dict()), TypeError, "map names to strings"),
    (lambda m, f: save_changes(m, f, {"bias": "xyz"}), ValueError, "16 hex digits, got 'xyz'"),
    (lambda m, f: save_changes(m, f.parent, {}), IsADirectoryError, "the folder"),
    (lambda m, f: save_changes(m, f.parent / "no" / "a.pt", {}), OSError, "no"),
    (lambda m, f: load_changes(m, f), FileNotFoundError, "changes.pt"),
    (lambda m, f: load_changes(m, f"{f}.safetensors"), FileNotFoundError, "no such file"),
    (lambda m, f: load_changes(m, None), TypeError, "`path` must be"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD_CALLS)
def test_bad_arguments(call, kind, message, tmp_path):
    module = nn.Linear(2, 2)
    before = snapshot(module)
    with pytest.raises(kind, match=message):
        call(module, tmp_path / "changes.pt")
    assert snapshot(module) == before
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    [
        lambda f: torch.save(nn.Linear(2, 2).state_dict(), f),
        lambda f: torch.save([1], f),
        lambda f: f.write_bytes(b"not a file of torch"),
        lambda f: f.write_bytes(b""),
        lambda f: torch.save({"format": "lstm_freeze changes 1"}, f),
    ],
)
@pytest.mark.parametrize("name", ENDINGS[:2])
def test_other_files_are_refused(content, name, tmp_path):
    content(tmp_path / name)
    with pytest.raises(ValueError, match="is not a file of save_changes"):
        load_changes(nn.Linear(2, 2), tmp_path / name)


@pytest.mark.parametrize("name", ENDINGS[:2])
def test_half_a_file_is_refused(name, trained, tmp_path):
    start, module, base, _ = trained
    save_changes(module, tmp_path / name, base)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        load_changes(start, tmp_path / name)


def test_safetensors_says_what_it_cannot_hold(tmp_path):
    module = nn.Module()
    module.register_buffer("waves", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(ValueError, match=r"safetensors cannot hold .*another ending"):
        save_changes(module, tmp_path / "a.safetensors", {})
    assert os.listdir(tmp_path) == []


def test_without_the_package_the_error_names_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        save_changes(nn.Linear(1, 1), tmp_path / "a.safetensors", {})
    save_changes(nn.Linear(1, 1), tmp_path / "a.pt", {})


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX links and modes")
def test_links_and_modes_stay(tmp_path):
    module = nn.Linear(1, 1)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "real.pt").write_bytes(b"old")
    (tmp_path / "store" / "real.pt").chmod(0o640)
    (tmp_path / "link.pt").symlink_to(tmp_path / "store" / "real.pt")
    save_changes(module, tmp_path / "link.pt", {})
    assert (tmp_path / "link.pt").is_symlink()
    assert (tmp_path / "store" / "real.pt").stat().st_mode & 0o777 == 0o640
    load_changes(module, tmp_path / "store" / "real.pt")


KILLED = """
    import os, signal, sys
    import torch
    from torch import nn
    from lstm_freeze import fingerprints, save_changes
    import {module} as writer

    real = writer.{function}
    def half(*args, **kwargs):
        real(*args, **kwargs)
        where = args[1]
        with open(where, "r+b") as file:
            file.truncate(os.path.getsize(where) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    writer.{function} = half
    model = nn.Linear(50, 50)
    save_changes(model, sys.argv[1], {{}})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize(
    ("name", "module", "function"),
    [("a.pt", "torch", "save"), ("a.safetensors", "safetensors.torch", "save_file")],
)
def test_killed_in_the_middle_the_old_file_is_whole(name, module, function, tmp_path):
    torch.manual_seed(0)
    old = nn.Linear(50, 50)
    save_changes(old, tmp_path / name, {})
    before = (tmp_path / name).read_bytes()
    code = textwrap.dedent(KILLED).format(module=module, function=function)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / name).read_bytes() == before
    assert len(os.listdir(tmp_path)) == 2  # the half stays beside it
    fresh = nn.Linear(50, 50)
    load_changes(fresh, tmp_path / name)
    assert snapshot(fresh) == snapshot(old)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_the_new_file_takes_the_old_one_s_name_and_not_its_content(name, tmp_path):
    """A second name of the old file still leads to the old content, at every moment."""
    module = nn.Linear(4, 4)
    save_changes(module, tmp_path / name, {})
    before = (tmp_path / name).read_bytes()
    os.link(tmp_path / name, tmp_path / "second name")
    nn.init.zeros_(module.weight)
    save_changes(module, tmp_path / name, {})
    assert (tmp_path / "second name").read_bytes() == before != (tmp_path / name).read_bytes()


def test_an_interrupt_leaves_the_old_file_and_nothing_beside(trained, tmp_path, monkeypatch):
    _, module, base, _ = trained
    save_changes(module, tmp_path / "a.pt", base)
    before = (tmp_path / "a.pt").read_bytes()

    def interrupted(content, where):
        with open(where, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_changes(module, tmp_path / "a.pt", base)
    assert (tmp_path / "a.pt").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pt"]


def test_the_undo_of_a_failed_write_is_what_saves_it(trained, tmp_path, monkeypatch):
    """The test of a write that fails in the middle can fail."""
    start, module, *_ = trained
    start.norm.running_var = torch.ones(1).expand(8)
    save_changes(module, tmp_path / "a.pt", fingerprints(start))
    before = snapshot(start)
    monkeypatch.setattr(changes_file, "_restorer", lambda tensor: lambda: None)
    with pytest.raises(RuntimeError):
        load_changes(start, tmp_path / "a.pt")
    assert snapshot(start) != before
