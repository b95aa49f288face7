"""_torch_internals: without any one of torch's private names the package still works."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lstm_freeze import _torch_internals as internals

ROOT = Path(__file__).parent.parent
TAKEN = [
    "nn.modules.batchnorm._NormBase",
    "nn.modules.dropout._DropoutNd",
    "nn.utils.parametrizations._SpectralNorm",
    "nn.utils.spectral_norm.SpectralNorm",
    "_C._functorch.is_legacy_batchedtensor",
    "nn.parallel.DistributedDataParallel._get_ddp_logging_data",
]
# Torch's own calls need these; they are hidden from this package alone.
HIDDEN = [
    "_subclasses.FakeTensor",
    "autograd.forward_ad._current_level",
    "_C._are_functorch_transforms_active",
    "_C._len_torch_dispatch_stack",
]
TAKE = """
place, _, name = "torch.{name}".rpartition(".")
owner = sys.modules.get(place) or eval(place)
assert hasattr(owner, name)
delattr(owner, name)
"""
HIDE = """
from lstm_freeze import _torch_internals

look_up = _torch_internals._look_up
assert look_up("{name}") is not None
_torch_internals._look_up = lambda dotted: None if dotted == "{name}" else look_up(dotted)
"""
USE = """
import sys, torch
import torch.nn.utils.parametrizations, torch.nn.utils.spectral_norm, torch._subclasses

head = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(8, 1))
{took}
import lstm_freeze as lf

block = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))
model = torch.nn.ModuleDict({{"encoder": lf.BiLSTM(3, 4, 2), "block": block, "head": head}})
plain = model["encoder"].to_lstm()
x = torch.randn(5, 2, 3)
lf.freeze(model, "encoder[0]", "block", "head", dropout="off")
before = block[0].running_mean.clone()
with lf.FrozenGuard(model):
    output = model["encoder"](x)[0]
    rest = block(output.flatten(0, 1))
    torch.testing.assert_close(output, plain(x)[0])
    model["head"](rest).sum().backward()
assert torch.equal(before, block[0].running_mean)
assert torch.equal(rest, block(output.flatten(0, 1)))
layers = {{p.grad is None for p in model["encoder"].groups[0].parameters}}
assert layers == {{True}}, layers
assert model["encoder"].weight_hh_l1.grad.abs().sum() > 0
print("works")
"""


def run(name, take):
    code = USE.format(took=take.format(name=name))
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("name", "take"), [*((n, TAKE) for n in TAKEN), *((n, HIDE) for n in HIDDEN)]
)
def test_without_a_private_name_the_package_works(name, take):
    done = run(name, take)
    assert done.stdout == "works\n", done.stderr


class TestCompiled:
    """What tells that a module is compiled, and what is said where torch has other names."""

    @staticmethod
    def compiled():
        model = torch.nn.Sequential(torch.nn.Linear(2, 2))
        model[0] = torch.compile(model[0], backend="eager")
        return model

    def test_every_way_of_compiling_is_seen(self):
        inside = torch.nn.Sequential(torch.nn.Linear(2, 2))
        assert not internals.is_compiled(inside)
        inside[0].compile(backend="eager")
        assert internals.is_compiled(inside)
        assert internals.is_compiled(self.compiled())
        assert internals.recompile_limit() > 1

    def test_without_the_names(self, monkeypatch):
        model = self.compiled()
        monkeypatch.setattr(internals, "_look_up", lambda dotted: None)
        assert not internals.is_compiled(model)
        assert internals.recompile_limit() is None


def test_private_names_of_torch_stand_in_one_file():
    private = re.compile(
        r"\btorch(?:\.\w+)*\._[a-z]\w*(?<!__)|from torch[\w.]* import .*\b_[A-Za-z]"
    )
    files = [*ROOT.glob("lstm_freeze/**/*.py"), *ROOT.glob("callbacks/*.py")]
    found = {
        f"{path.name}: {line.strip()}"
        for path in files
        if path.name != "_torch_internals.py"
        for line in path.read_text().splitlines()
        if private.search(line.split('f"torch._dynamo.config.recompile_limit = ')[0])
    }
    assert found == set()
    assert private.search("x = torch._C._functorch")
    assert private.search("from torch.nn.modules.batchnorm import _NormBase")


def test_steps_around_a_step_are_found_by_torchs_own_frames():
    seen = []

    class Outer(torch.optim.SGD):
        def step(self, closure=None):
            inner.step()

    def look(optimizer, args, kwargs):
        seen.append((optimizer, list(internals.steps_around(sys._getframe(1)))))

    inner = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    outer = Outer([torch.zeros(1)], lr=0.1)
    for one in (inner, outer):
        one.register_step_post_hook(look)
    outer.step()
    assert seen == [(inner, [outer]), (outer, [])]


def test_without_the_local_of_torchs_wrapper_no_step_is_within_another():
    def wrapper(depth):
        return wrapper(depth - 1) if depth else list(internals.steps_around(sys._getframe()))

    assert wrapper(3) == []
