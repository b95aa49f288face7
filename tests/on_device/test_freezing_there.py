"""Freezing, optimizers, schedules and the guard on another device; saved and moved between."""

import copy

import pytest
import torch
from torch import nn

from lstm_freeze import (
    BiLSTM,
    FreezeSchedule,
    FrozenGuard,
    FrozenWeightsChanged,
    Phase,
    freeze,
    param_groups,
    slanted_triangular,
    status,
    unfreeze,
)

HALF = (torch.float16, torch.bfloat16)


@pytest.fixture
def model(device):
    torch.manual_seed(0)
    model = nn.ModuleDict({"encoder": BiLSTM(4, 6, 2), "head": nn.Linear(12, 2)})
    return model.to(device)


def adamw(model, **options):
    groups = param_groups(model, lr=0.1, weight_decay=0.1)
    return torch.optim.AdamW(groups, foreach=False, **options)


def train(model, optimizer, device, steps=1):
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=False)
        x = torch.randn(5, 3, 4).to(device)
        model["head"](model["encoder"](x)[0]).square().sum().backward()
        optimizer.step()


def bits(model):
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters()}


def moved(before, model):
    now = bits(model)
    return {name for name in before if not torch.equal(before[name], now[name])}


OPTIMIZERS = {
    "SGD": lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9, weight_decay=0.1, foreach=False),
    "AdamW": lambda ps: torch.optim.AdamW(ps, 0.1, weight_decay=0.1, foreach=False),
    "RMSprop": lambda ps: torch.optim.RMSprop(ps, 0.1, momentum=0.9, foreach=False),
    "Adagrad": lambda ps: torch.optim.Adagrad(ps, 0.1, weight_decay=0.1, foreach=False),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_frozen_bits_stay_and_the_rest_moves(model, device, make):
    optimizer = make(list(model.parameters()))
    train(model, optimizer, device, steps=2)
    handle = freeze(model, "encoder[0]", "encoder[1].reverse", optimizer=optimizer)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    before = bits(model)
    train(model, optimizer, device, steps=2)
    assert moved(before, model) == before.keys() - frozen
    handle.undo()
    before = bits(model)
    train(model, optimizer, device)
    assert moved(before, model) == before.keys()


def test_optimizer_state_of_what_is_frozen_goes(model, device):
    optimizer = adamw(model)
    train(model, optimizer, device)
    weight = model["encoder"].weight_hh_l0
    assert weight in optimizer.state
    freeze(model, "encoder", optimizer=optimizer)
    assert weight not in optimizer.state
    unfreeze(model, "encoder", optimizer=optimizer)
    before = bits(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    optimizer.step()
    assert {name for name in moved(before, model) if "encoder" in name} == set()


def test_status_and_freezing_read_nothing_back(model, reads):
    optimizer = adamw(model)
    assert reads(lambda: str(status(model, optimizer))) == []
    assert reads(lambda: freeze(model, "encoder", optimizer=optimizer).undo()) == []
    assert reads(lambda: FreezeSchedule({0: ["head"]}).apply(model, 0, optimizer)) == []


def test_a_batch_norm_that_is_frozen_keeps_its_statistics(device):
    block = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).to(device)
    freeze(block, "1")
    before = block[1].running_mean.cpu().clone()
    block(torch.randn(8, 4).to(device))
    assert torch.equal(before, block[1].running_mean.cpu())
    unfreeze(block, "1")
    block(torch.randn(8, 4).to(device))
    assert not torch.equal(before, block[1].running_mean.cpu())


def test_a_schedule_sets_what_trains_and_its_rates(model, device):
    schedule = FreezeSchedule(
        [Phase(0, ["head"], lr=0.1), Phase(1, ["*"], lr={"head": 0.05, "*": 0.01}, warmup=2)]
    )
    optimizer = adamw(model)
    with FrozenGuard(model).attach(optimizer) as guard:
        for epoch in range(3):
            schedule.apply(model, epoch, optimizer)
            before = bits(model)
            train(model, optimizer, device)
            expected = {n for n in before if epoch or n.startswith("head")}
            assert moved(before, model) == expected
    assert guard.checks == 3
    assert {g["name"]: g["lr"] for g in optimizer.param_groups if "head" in g["name"]} == {
        "head": 0.05,
        "head (no decay)": 0.05,
    }


def test_slanted_triangular(model, device):
    optimizer = adamw(model)
    scheduler = slanted_triangular(optimizer, total_steps=20)
    for _ in range(3):
        train(model, optimizer, device)
        scheduler.step()
    assert optimizer.param_groups[-1]["lr"] > 0.09


def test_status_says_where_nn_lstm_is_faster(model, fused):
    faster = "encoder is a BiLSTM on CUDA and all of it trains: nn.LSTM on cuDNN is faster"
    assert faster in " ".join(str(status(model)).split())
    freeze(model, "encoder[0]")
    assert "cuDNN" not in str(status(model))
    unfreeze(model)
    assert "cuDNN" not in str(status(model.cpu()))


# ---- the guard


@pytest.mark.parametrize("mode", ["exact", "fingerprint"])
def test_the_guard_reports_what_moved(model, mode):
    freeze(model, "encoder[0]")
    guard = FrozenGuard(model, mode=mode)
    guard.check()
    with torch.no_grad():
        model["encoder"].weight_hh_l0[3, 2] += 1e-3
        model["head"].weight[0, 0] += 1
    with pytest.raises(FrozenWeightsChanged) as caught:
        guard.check()
    assert caught.value.names == ("encoder.weight_hh_l0",)


@pytest.mark.parametrize("mode", ["exact", "fingerprint"])
@pytest.mark.parametrize("check", ["by hand", "attached"])
def test_a_check_reads_one_value_back(model, device, reads, mode, check):
    freeze(model, "encoder")
    optimizer = adamw(model)
    guard = FrozenGuard(model, mode=mode)
    if check == "by hand":
        assert len(reads(guard.check)) == 1
        return
    with guard.attach(optimizer):
        train(model, optimizer, device)
        assert len(reads(lambda: train(model, optimizer, device))) == 1
        assert guard.checks == 2


@pytest.mark.parametrize("mode", ["exact", "fingerprint"])
def test_a_guard_follows_the_module_between_devices(model, device, mode):
    freeze(model, "encoder")
    guard = FrozenGuard(model, mode=mode)
    for place in ("cpu", device, "cpu"):
        model.to(place)
        guard.check()
        assert not model["encoder"].weight_hh_l0.requires_grad
    with torch.no_grad():
        model["encoder"].bias_hh_l0[1] += 1
    with pytest.raises(FrozenWeightsChanged, match="bias_hh_l0"):
        guard.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF, torch.int8, torch.bool])
def test_fingerprints_are_those_of_the_cpu(device, dtype):
    from lstm_freeze._hashing import tensor_hashes as fingerprints

    gen = torch.Generator().manual_seed(0)
    shapes = [(), (1,), (3, 5), (0, 2), (1000,), (130, 17)]
    here = [torch.randn(s, generator=gen).mul(9).to(dtype) for s in shapes]
    here += [here[-1].t(), here[-1][1:, 2:5]]
    assert list(fingerprints(t.to(device) for t in here)) == list(fingerprints(here))


def test_weights_saved_there_load_here(model):
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    here = nn.ModuleDict({"encoder": BiLSTM(4, 6, 2), "head": nn.Linear(12, 2)})
    here.load_state_dict(state, strict=True)
    assert moved(bits(model), here) == set()


def test_a_copy_there_is_frozen_alike(model, device):
    freeze(model, "encoder")
    copied = copy.deepcopy(model)
    assert not any(p.requires_grad for p in copied["encoder"].parameters())
    optimizer = adamw(copied)
    before = bits(copied)
    train(copied, optimizer, device)
    assert moved(before, copied) == {"head.weight", "head.bias"}
