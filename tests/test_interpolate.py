"""interpolate: (1 - share) * start + share * present, exact at the ends and where they agree."""

import copy

import pytest
import torch
from _models import Tagger, bits, moved, snapshot
from torch import nn

from lstm_freeze import FrozenGuard, freeze, interpolate


def models(seed=0):
    """A model with a batch norm, and the state_dict of another."""
    torch.manual_seed(seed)
    made = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)) for _ in range(2)]
    for k, model in enumerate(made):
        for _ in range(k + 1):
            model(torch.randn(8, 3))
    return made[0], copy.deepcopy(made[1].state_dict())


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_closed_form(share, dtype):
    model, start = models()
    model.to(dtype)
    start = {n: t.to(dtype) if t.is_floating_point() else t for n, t in start.items()}
    present = {n: t.clone() for n, t in model.state_dict().items()}
    interpolate(model, start, share)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            assert torch.equal(tensor, present[name])
            continue
        exact = (1 - share) * start[name].double() + share * present[name].double()
        torch.testing.assert_close(tensor, exact.to(dtype))
        assert not torch.equal(tensor, present[name]) or torch.equal(start[name], present[name])


@pytest.mark.parametrize("share", [0, 1, 0.0, 1.0])
def test_the_ends_are_copies(share):
    model, start = models()
    with torch.no_grad():  # what a computation would spoil
        model[0].weight[0, 0], start["0.weight"][0, 0] = float("inf"), float("nan")
        model[0].bias[0], start["0.bias"][0] = 3e38, -3e38
        model[0].bias[1], start["0.bias"][1] = 0.0, -0.0
    before = snapshot(model)
    parameters = [id(p) for p in model.parameters()]
    interpolate(model, start, share)
    expected = before if share == 1 else dict(zip(start, bits(start.values()), strict=True))
    assert snapshot(model) == expected
    assert [id(p) for p in model.parameters()] == parameters
    assert before != dict(zip(start, bits(start.values()), strict=True))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_what_is_equal_keeps_its_bits(share):
    """All that stayed frozen; (1 - s) w + s w would round."""
    torch.manual_seed(0)
    model = Tagger()
    start = copy.deepcopy(model.state_dict())
    freeze(model, "encoder")
    guard = FrozenGuard(model)
    with torch.no_grad():
        model.head.weight.add_(1)
    before = snapshot(model)
    rounded = [(1 - share) * w + share * w for w in model.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(rounded, model.parameters(), strict=True))
    interpolate(model, start, share)
    assert moved(model, before) == {"head.weight"}
    guard.check()


def test_wrappers_ties_and_extra_state():
    model = Tagger()
    model.head.again = model.head.weight
    start = copy.deepcopy(model.state_dict())
    start["head.weight"] += 1
    start["head.again"] = start["head.weight"]
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    interpolate(wrapped, {f"module._orig_mod.{n}": t for n, t in start.items()}, 0.5)
    torch.testing.assert_close(model.head.weight.detach(), start["head.weight"] - 0.5)
    assert model.head.again is model.head.weight


def misfit(**changes):
    _, start = models()
    return {n: t for n, t in {**start, **changes}.items() if t is not None}


BAD = {
    "share": (misfit(), 1.5, ValueError, "`share` must be finite and between 0 and 1, got 1.5"),
    "negative": (misfit(), -0.1, ValueError, "`share`"),
    "nan": (misfit(), float("nan"), ValueError, "`share`"),
    "a word": (misfit(), "half", TypeError, "`share` must be a number"),
    "a module": (nn.Linear(1, 1), 0.5, TypeError, "`start` must be a state_dict.* got Linear"),
    "values": ({"0.weight": 3}, 0.5, TypeError, "must map names to tensors"),
    "missing": (misfit(**{"0.bias": None, "2.bias": None}), 0.5, ValueError, "'0.bias', '2.bias'"),
    "more": (misfit(**{"0.weigt": torch.ones(1)}), 0.5, ValueError, 'did you mean "0.weight"'),
    "shape": (
        misfit(**{"0.bias": torch.ones(5)}),
        0.5,
        ValueError,
        r"\(5,\) in `start` and \(4,\)",
    ),
    "complex": (misfit(**{"0.bias": torch.ones(4) * 1j}), 0.5, ValueError, "complex"),
    "meta": (misfit(**{"0.bias": torch.ones(4, device="meta")}), 0.5, ValueError, "no values"),
}


@pytest.mark.parametrize(("start", "share", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_change_nothing(start, share, kind, message):
    model, _ = models()
    before = snapshot(model)
    with pytest.raises(kind, match=message):
        interpolate(model, start, share)
    assert snapshot(model) == before


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_state_dict_that_was_not_copied_is_noticed(share):
    model, _ = models()
    with pytest.raises(ValueError, match=r"the module's own tensors.*copy\.deepcopy"):
        interpolate(model, model.state_dict(), share)


def test_a_tie_with_two_starts_is_refused():
    model = Tagger()
    model.head.again = model.head.weight
    start = copy.deepcopy(model.state_dict())
    start["head.again"] = start["head.weight"] + 1
    with pytest.raises(ValueError, match=r"'head\.weight' and 'head\.again' are one tensor"):
        interpolate(model, start, 0.5)
