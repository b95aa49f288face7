"""What a training loop has around it, on another device: undo, warm-ups, groups, guards."""

import copy
import warnings

import pytest
import torch
from torch import nn

from lstm_freeze import (
    BiLSTM,
    FreezeSchedule,
    FrozenGuard,
    FrozenWeightsChanged,
    Phase,
    add_lora,
    freeze,
    freeze_up_to,
    param_groups,
    unfreeze,
)


@pytest.fixture
def here():
    torch.manual_seed(0)
    parts = {"encoder": BiLSTM(4, 5, 2), "norm": nn.BatchNorm1d(10), "head": nn.Linear(10, 2)}
    return nn.ModuleDict(parts)


@pytest.fixture
def model(here, device):
    return copy.deepcopy(here).to(device)


def adamw(model, **options):
    return torch.optim.AdamW(param_groups(model, 0.1, **options), foreach=False)


def train(model, optimizer):
    place = model["head"].weight.device
    x = torch.ones(3, 2, 4).cumsum(1).to(place)
    optimizer.zero_grad()
    model["head"](model["norm"](model["encoder"](x)[0].mean(0))).square().sum().backward()
    optimizer.step()


def trains(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def moved(model, block):
    before = {name: p.detach().cpu().clone() for name, p in model.named_parameters()}
    block()
    return {n for n, p in model.named_parameters() if not torch.equal(p.detach().cpu(), before[n])}


# ---- handles of a module that has moved


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["oldest first", "youngest first"])
def test_undoing_after_a_move_restores_what_was(model, device, order):
    model["head"].bias.requires_grad_(False)
    before, statistics = trains(model), model["norm"].training
    handles = [freeze(model, "encoder", "norm")]
    model.cpu()
    handles.append(unfreeze(model, "encoder[1]", "head.bias"))
    model.to(device)
    assert "encoder.weight_hh_l0" not in trains(model)
    assert {"head.bias", "encoder.weight_hh_l1"} <= trains(model)
    for index in order:
        handles[index].undo()
    assert trains(model) == before
    running = model["norm"].running_mean.cpu().clone()
    assert moved(model, lambda: train(model, adamw(model))) == before
    assert not torch.equal(model["norm"].running_mean.cpu(), running)
    assert model["norm"].training == statistics


def test_a_block_ends_on_the_other_device(model, device):
    before = trains(model)
    with freeze(model, "encoder"):
        model.cpu()
        running = model["norm"].running_mean.clone()
        assert trains(model) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
        assert moved(model, lambda: train(model, adamw(model))) == trains(model)
        assert not torch.equal(model["norm"].running_mean, running)
    model.to(device)
    assert trains(model) == before


def test_factors_move_with_their_module(model, device):
    model.cpu()
    lora = add_lora(model, "encoder[1]", rank=2)
    model.to(device)
    names = moved(model, lambda: train(model, adamw(model)))
    assert {n for n in names if "lora" in n} == {n for n in lora.parameters if n.endswith("_B")}
    model.cpu()
    lora.remove()
    assert "encoder.weight_hh_l1" in trains(model)
    assert not any("lora" in name for name, _ in model.named_parameters())


# ---- rates and groups


def test_a_warm_up_has_the_cpus_rates_and_reads_nothing(here, model, reads):
    schedule = FreezeSchedule([Phase(0, "*", lr=0.2, warmup=4)])
    found = []
    for one in (here, model):
        optimizer = adamw(one)
        schedule.apply(one, 0, optimizer)
        rates = []
        for _ in range(5):
            rates.append(optimizer.param_groups[0]["lr"])
            train(one, optimizer)
        found.append(rates)
    assert found[0] == found[1]
    assert found[0][3:] == [0.2, 0.2] != found[0][:2]
    optimizer = adamw(model)
    schedule.apply(model, 0, optimizer)
    train(model, optimizer)
    assert reads(lambda: train(model, optimizer)) == []


def test_groups_of_the_users_own(here, model):
    groups = ["encoder[0]", ["encoder[1]", "norm"], "head"]
    optimizer = adamw(model, layer_decay=0.5, groups=groups, weight_decay=0.1)
    same = adamw(here, layer_decay=0.5, groups=groups, weight_decay=0.1)
    assert [(g["name"], g["lr"]) for g in optimizer.param_groups] == [
        (g["name"], g["lr"]) for g in same.param_groups
    ]
    assert {g["lr"] for g in optimizer.param_groups} == {0.1, 0.05, 0.025}
    freeze_up_to(model, 0, groups=groups)
    assert {n for n, _ in model.named_parameters()} - trains(model) == {
        n for n, _ in model.named_parameters() if "_l0" in n
    }
    assert moved(model, lambda: train(model, optimizer)) == trains(model)


# ---- guards


@pytest.mark.parametrize("mode", ["exact", "fingerprint"])
def test_a_guard_of_all_optimizers_reads_one_value_a_step(model, reads, mode):
    freeze(model, "encoder")
    with FrozenGuard(model, mode=mode).attach() as guard:
        optimizer = adamw(model)  # built later
        train(model, optimizer)
        assert guard.checks == 1
        assert len(reads(lambda: train(model, optimizer))) == 1
        assert guard.checks == 2
        with torch.no_grad():
            model["encoder"].bias_ih_l0[1] += 1
        with pytest.raises(FrozenWeightsChanged, match="bias_ih_l0") as caught:
            train(model, optimizer)
        assert caught.value.step == 3
        guard.remember()


def test_a_parameter_that_idles_is_named_and_counting_reads_nothing_more(model, reads):
    freeze(model, "encoder")
    model["spare"] = nn.Linear(2, 2).to(model["head"].weight.device)
    optimizer = adamw(model)
    with FrozenGuard(model, idle_after=3).attach(optimizer):
        train(model, optimizer)
        assert len(reads(lambda: train(model, optimizer))) == 1
        with pytest.warns(UserWarning, match=r"spare\.weight, spare\.bias got no gradient"):
            train(model, optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(model, optimizer)
