"""Why frozen weights moved: each mistake made for real, and the cause the guard names."""

import pytest
import torch
from torch import nn

from lstm_freeze import FrozenGuard, FrozenWeightsChanged, freeze, unfreeze
from lstm_freeze._guard.causes import Evidence, likely_cause

MODES = pytest.mark.parametrize("mode", ["exact", "fingerprint"])


def lstm():
    torch.manual_seed(0)
    return nn.LSTM(3, 4)


def backward(model):
    model(torch.ones(5, 2, 3))[0].square().sum().backward()


def caught(guard):
    with pytest.raises(FrozenWeightsChanged) as error:
        guard.check()
    return str(error.value)


# A stale gradient


@MODES
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), "SGD()"),
        (
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
            "SGD(momentum=0.9, weight_decay=0.01)",
        ),
        (lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1), "AdamW(weight_decay=0.1)"),
        (lambda p: torch.optim.AdamW(p, weight_decay=0.1, fused=True), "AdamW(weight_decay=0.1)"),
    ],
    ids=["plain", "momentum", "adamw", "fused"],
)
def test_a_stale_gradient_and_its_optimizer_are_named(mode, make, settings):
    model = lstm()
    optimizer = make(model.parameters())
    backward(model)
    model.weight_hh_l0.requires_grad = False
    guard = FrozenGuard(model, mode).attach(optimizer)
    with pytest.raises(FrozenWeightsChanged) as error:
        optimizer.step()
    assert error.value.names == ("weight_hh_l0",)
    assert error.value.step == 1
    assert "likely cause: a stale gradient" in str(error.value)
    assert f"used in a step by {settings} with momentum and weight decay" in str(error.value)
    guard.remember()
    freeze(model, kinds="weight_hh")
    optimizer.step()
    assert guard.checks == 1


def test_a_stale_gradient_of_zeros_is_told_apart():
    model = lstm()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    backward(model)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    model.weight_hh_l0.requires_grad = False
    FrozenGuard(model).attach(optimizer)
    with pytest.raises(
        FrozenWeightsChanged,
        match=r"stale gradient of zeros .* momentum or weight decay went on by SGD\(momentum=0.9\)",
    ):
        optimizer.step()


# Optimizers that do not heed a missing gradient


def test_lbfgs():
    model = lstm()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(5, 2, 3))[0].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    freeze(model, kinds="weight_hh")
    FrozenGuard(model).attach(optimizer)
    with pytest.raises(FrozenWeightsChanged, match="LBFGS moves all it holds by its flat history"):
        optimizer.step(closure)


class Careless(torch.optim.Optimizer):
    """Moves parameters whose gradient is None, as some third-party optimizers do."""

    def __init__(self, parameters, weight_decay=0.0, shift=0.0):
        super().__init__(parameters, {"weight_decay": weight_decay, "shift": shift})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(1 - group["weight_decay"]).add_(group["shift"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"weight_decay": 1e-3}, r"weight decay by Careless\(weight_decay=0.001\): all elements"),
        ({"shift": 1e-3}, r"a step by Careless\(\), which is not of torch.optim"),
    ],
)
def test_an_optimizer_that_ignores_a_missing_gradient(options, match):
    model = lstm()
    freeze(model, kinds="weight_hh")
    optimizer = Careless(model.parameters(), **options)
    FrozenGuard(model).attach(optimizer)
    with pytest.raises(FrozenWeightsChanged, match=match):
        optimizer.step()


# Overwriting


@MODES
def test_load_state_dict(mode):
    model, other = lstm(), nn.LSTM(3, 4)
    freeze(model)
    guard = FrozenGuard(model, mode)
    model.load_state_dict(other.state_dict())
    text = caught(guard)
    assert text.startswith("4 frozen tensors changed\n")
    assert "likely cause: load_state_dict, swapped-in averaged weights (SWA, EMA) or an in" in text
    assert text.count("likely cause") == 1
    assert text.endswith("if this was meant, call guard.remember() after it")
    guard.remember()
    guard.check()


@MODES
def test_swapped_in_averaged_weights(mode):
    model = lstm()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    for p in model.parameters():
        p.data += 0.125
    averaged.update_parameters(model)
    freeze(model, kinds="weight")
    guard = FrozenGuard(model, mode)
    for mine, average in zip(model.parameters(), averaged.module.parameters(), strict=True):
        mine.data.copy_(average.data)
    text = caught(guard)
    assert "likely cause: swapped-in averaged weights (SWA, EMA) or an in-place write" in text
    assert "load_state_dict" not in text


@pytest.mark.parametrize(
    ("write", "cause"),
    [
        (lambda p: p.data[:1].add_(1), "an in-place write that autograd does not see (.data, num"),
        (lambda p: p.detach()[:1].add_(1), "an in-place write\n"),
        (lambda p: p.detach().add_(1), "an in-place write, load_state_dict or swapped-in averaged"),
    ],
)
def test_an_in_place_write(write, cause):
    model = lstm()
    freeze(model, kinds="weight_hh")
    guard = FrozenGuard(model)
    write(model.weight_hh_l0)
    assert f"likely cause: {cause}" in caught(guard)


def test_an_embedding_with_max_norm():
    model = nn.Sequential(nn.Embedding(3, 2, max_norm=0.1), nn.Linear(2, 2))
    freeze(model, "0")
    guard = FrozenGuard(model)
    model(torch.tensor([0, 1]))
    assert "likely cause: max_norm of the embedding rewrites its rows" in caught(guard)


# Ties and flips


def test_tied_weights_are_named_under_every_name():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    freeze(model, "a.weight")
    guard = FrozenGuard(model)
    model["b"].weight.data[0, 0] += 0.5
    text = caught(guard)
    assert "a.weight (tied: also b.weight): 1 of 4 elements moved, largest change 0.5" in text


def test_a_weight_tied_by_its_memory_to_one_that_trains():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    model["b"].weight.data = model["a"].weight.data
    freeze(model, "a.weight")
    guard = FrozenGuard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model["b"](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    text = caught(guard)
    assert "tied weight: it shares its memory with b.weight, which trains; freeze both" in text


def test_neighbours_in_one_storage_are_not_tied():
    # As cuDNN lays out the weights of an RNN.
    model = nn.ParameterList([torch.zeros(2), torch.zeros(2)])
    storage = torch.zeros(4)
    model[0].data, model[1].data = storage[:2], storage[2:]
    freeze(model, "0")
    guard = FrozenGuard(model)
    model[0].data[0] += 1
    assert "in-place write" in caught(guard)


@MODES
def test_requires_grad_switched_on_elsewhere(mode):
    model = lstm()
    freeze(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    FrozenGuard(model, mode).attach(optimizer)
    model.requires_grad_(True)
    backward(model)
    with pytest.raises(
        FrozenWeightsChanged, match="requires_grad switched on elsewhere, not by unfreeze"
    ):
        optimizer.step()


# Amounts


def test_amounts_are_told_where_they_are_known():
    model = nn.ParameterList([torch.zeros(1000), torch.ones(2), torch.ones(2)])
    freeze(model)
    guards = FrozenGuard(model), FrozenGuard(model, mode="fingerprint")
    model[0].data[:1234] += torch.arange(1000.0)
    model[1].data[0] = float("nan")
    model[0].data[0] = -0.0
    exact, fingerprint = map(caught, guards)
    assert "0: 1,000 of 1,000 elements moved, largest change 999;" not in exact
    assert "  0: 1,000 of 1,000 elements moved, largest change 999\n" in exact
    assert "  1: 1 of 2 elements moved, largest change NaN\n" in exact
    assert "  2:" not in exact
    assert '0: how many elements moved and how far is known in mode="exact" only' in fingerprint
    assert fingerprint.startswith("2 frozen tensors changed\n")


def test_a_changed_sign_of_zero_is_told():
    model = nn.ParameterList([torch.zeros(3)])
    freeze(model)
    guard = FrozenGuard(model)
    model[0].data[1] = -0.0
    assert "1 of 3 elements moved, largest change 0 (the sign of a zero)" in caught(guard)


def test_several_causes_are_told_apart():
    model = lstm()
    freeze(model)
    guard = FrozenGuard(model)
    model.weight_hh_l0 = nn.Parameter(torch.zeros(16, 4))
    model.bias_hh_l0.data[0] += 1
    text = caught(guard)
    assert text.count("likely cause") == 2
    assert text.index("bias_hh_l0") < text.index("in-place write")
    assert text.index("weight_hh_l0") < text.index("replaced Parameter")


def test_a_cleared_cause_is_not_blamed():
    model = lstm()
    freeze(model, kinds="weight_hh")
    guard = FrozenGuard(model)
    unfreeze(model)
    freeze(model, kinds="weight_hh")
    model.weight_hh_l0.data[0, 0] += 1
    text = caught(guard)
    assert "requires_grad" not in text
    assert "stale" not in text


# The decision, on plain values


@pytest.mark.parametrize(
    ("stronger", "weaker"),
    [
        ("replaced", "converted"),
        ("converted", "requires_grad"),
        ("requires_grad", "lbfgs"),
        ("lbfgs", "max_norm"),
        ("max_norm", "shrunk"),
        ("shrunk", "foreign"),
    ],
)
def test_the_stronger_evidence_decides(stronger, weaker):
    both, one, other = (
        likely_cause(Evidence(**dict.fromkeys(keys, True)))
        for keys in ((stronger, weaker), (stronger,), (weaker,))
    )
    assert both == one != other


def test_a_gradient_weighs_more_than_a_whole_overwrite():
    cause = likely_cause(Evidence(gradient="stale", whole=True, several=True))
    assert cause.startswith("a stale gradient")
