"""A held batch norm whose statistics are recomputed on purpose is let go for that time."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from lstm_freeze import FrozenGuard, FrozenWeightsChanged, freeze
from lstm_freeze._freezing import fixed_mode_of

BATCHES = [torch.randn(8, 3, generator=torch.Generator().manual_seed(i)) * 2 + 1 for i in range(4)]


def model(momentum=0.1):
    torch.manual_seed(0)
    built = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, momentum=momentum), nn.Linear(3, 1))
    for batch in BATCHES:
        built(batch)
    return built


def buffers(m):
    return [b.clone() for b in m.buffers()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def itself(m):
    return m


def averaged(m):
    return AveragedModel(m)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("mode", ["exact", "fingerprint"])
@pytest.mark.parametrize(
    "form", [lambda m: m, averaged, copy.deepcopy], ids=["self", "SWA", "copy"]
)
class TestUpdateBn:
    def test_it_works_as_without_a_freeze_and_the_guard_accepts_it(self, momentum, mode, form):
        plain, held = model(momentum), model(momentum)
        freeze(held, "1")
        with_hold, without = form(held), form(plain)
        guard = FrozenGuard(with_hold, mode=mode)
        before = buffers(with_hold)
        update_bn(BATCHES[:3], with_hold)
        update_bn(BATCHES[:3], without)
        assert same(buffers(with_hold), buffers(without))
        assert not same(buffers(with_hold), before)
        guard.check()

    def test_it_is_held_again_as_soon_as_that_is_done(self, momentum, mode, form):
        held = model(momentum)
        freeze(held, "1")
        held = form(held)
        guard = FrozenGuard(held, mode=mode)
        update_bn(BATCHES[:3], held.train())
        before = buffers(held)
        held(BATCHES[3])
        assert same(buffers(held), before)
        guard.check()

    def test_then_it_is_held_again(self, momentum, mode, form):
        held = model(momentum)
        freeze(held, "1")
        held = form(held)
        guard = FrozenGuard(held, mode=mode)
        update_bn(BATCHES[:3], held)
        held.eval()(BATCHES[3])
        before = buffers(held)
        held.train()(BATCHES[3])
        assert same(buffers(held), before)
        guard.check()
        norm = next(m for m in held.modules() if isinstance(m, nn.BatchNorm1d))
        norm.running_mean.add_(1)
        with pytest.raises(FrozenWeightsChanged, match="running_mean"):
            guard.check()


def test_a_reset_alone_is_a_change():
    held = model()
    freeze(held, "1")
    guard = FrozenGuard(held)
    held[1].reset_running_stats()
    with pytest.raises(FrozenWeightsChanged, match="running_mean"):
        guard.check()


def test_a_hold_in_a_copy_can_be_taken_off():
    held = model()
    held.handle = freeze(held, "1")
    other = copy.deepcopy(held)
    other.handle.undo()
    assert fixed_mode_of(other[1]) is None
    assert fixed_mode_of(held[1]) is not None
    assert not other[1]._forward_hooks_always_called
    before = buffers(other)
    other[1](BATCHES[0])
    assert not same(buffers(other), before)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_a_scripted_batch_norm_cannot_be_held_which_is_said():
    scripted = torch.jit.script(model())
    with pytest.warns(UserWarning, match=r"statistics of '1' cannot be held.*keep it in \.eval"):
        freeze(scripted, "1")
    freeze(scripted, "1")  # what is frozen already warns no more
    guard = FrozenGuard(scripted)
    scripted.eval()(BATCHES[0])
    guard.check()
    scripted.train()(BATCHES[0])
    with pytest.raises(FrozenWeightsChanged, match=r"\.eval\(\) those of TorchScript's"):
        guard.check()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        freeze(scripted, "0")
