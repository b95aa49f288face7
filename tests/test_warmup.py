"""Warm-ups: in each step the rate is a part of what it is without the warm-up, whatever sets it."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from lstm_freeze import FreezeSchedule, Phase, param_groups
from lstm_freeze._schedule import warmup

LENGTH = 4


def parts(n):
    """The parts of the rate in the first n steps."""
    return [min(i + 1, LENGTH) / LENGTH for i in range(n)]


def begun(lr=1e-2, optimizer=torch.optim.SGD, phase_lr=None):
    torch.manual_seed(0)
    m = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    made = optimizer(param_groups(m, lr))
    schedule = FreezeSchedule([Phase(0, "*", lr=phase_lr, warmup=LENGTH)])
    schedule.apply(m, 0, made)
    return m, made, schedule


def step(m, optimizer):
    """One step with gradients of 1; gives the rate by which the weights were moved."""
    for p in m.parameters():
        p.grad = torch.ones_like(p)
    before = m["head"].weight.detach().clone()
    optimizer.step()
    return float((before - m["head"].weight.detach()).mean())


def lr(optimizer):
    return float(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("first", [0.0, 1e-2])
def test_a_rate_that_the_loop_writes_itself_is_the_rate_without_it(first):
    m, optimizer, _ = begun()
    wanted = [first, 0.04, 0.0, 0.02, 0.01, 0.03]
    used = []
    for rate in wanted:
        for group in optimizer.param_groups:
            group["lr"] = rate
        used.append(step(m, optimizer))
    expected = [rate * part for rate, part in zip(wanted, parts(6), strict=True)]
    assert used == pytest.approx(expected, abs=1e-7)


def test_a_step_at_rate_0_and_then_any():
    m, optimizer, _ = begun()
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0
    assert step(m, optimizer) == 0
    assert step(m, optimizer) == 0
    assert lr(optimizer) == 0
    for group in optimizer.param_groups:
        group["lr"] = 0.08
    assert step(m, optimizer) == pytest.approx(0.06, abs=1e-7)


def test_a_warm_up_that_begins_at_rate_0():
    m, optimizer, _ = begun(lr=0.0)
    assert [step(m, optimizer) for _ in range(5)] == [0] * 5
    assert "warmup_lr" not in optimizer.param_groups[0]


@pytest.mark.parametrize(
    ("make", "factors"),
    [
        (lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5), [0.5 ** (i // 2) for i in range(8)]),
        (lambda o: lr_scheduler.MultiplicativeLR(o, lambda i: 0.0 if i == 2 else 1.0), [1, 1]),
        (lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, 3), [1, 2 / 3, 1 / 3, 0, 0, 0]),
        (lambda o: lr_scheduler.ExponentialLR(o, 0.5), [0.5**i for i in range(8)]),
    ],
    ids=["Step", "to 0", "Linear to 0", "Exponential"],
)
def test_a_scheduler_that_goes_on_in_a_plain_loop(make, factors):
    m, optimizer, _ = begun(lr=0.1)
    scheduler = make(optimizer)
    used = []
    for _ in range(8):
        used.append(step(m, optimizer))
        scheduler.step()
    factors = [*factors, *[factors[-1] if factors[-1] == 0 else 0] * (8 - len(factors))]
    expected = [0.1 * f * part for f, part in zip(factors, parts(8), strict=True)]
    assert used == pytest.approx(expected, abs=1e-7)


def test_hidden_every_scheduler_sees_the_rate_without_it():
    """As in Lightning: what adds, or writes from its own base, is followed exactly too."""
    for make in (
        lambda o: lr_scheduler.CosineAnnealingLR(o, 2, eta_min=0.02),
        lambda o: lr_scheduler.LambdaLR(o, lambda i: 0.0 if i == 1 else 0.9**i),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 3),
    ):
        m, optimizer, _ = begun(lr=0.1)
        plain = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        warmup.follow([optimizer], show=False)
        schedulers = make(optimizer), make(plain)
        for part in parts(9):
            expected = lr(plain) * part
            assert step(m, optimizer) == pytest.approx(expected, abs=1e-7)
            assert lr(optimizer) == pytest.approx(lr(plain), abs=1e-12)
            plain.step()
            for scheduler in schedulers:
                scheduler.step()


def test_a_state_dict_helper_that_steps_at_rate_0_counts_for_nothing():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    for make in (torch.optim.SGD, torch.optim.AdamW):
        m, optimizer, _ = begun(lr=0.1, optimizer=make)
        before = copy.deepcopy(m.state_dict())
        get_optimizer_state_dict(m, optimizer)
        assert all(torch.equal(before[n], t) for n, t in m.state_dict().items())
        seen = []
        for _ in range(5):
            seen.append(lr(optimizer))
            step(m, optimizer)
        assert seen == pytest.approx([0.1 * part for part in parts(5)])


def test_real_steps_at_rate_0_count():
    m, optimizer, _ = begun(lr=0.1)
    for rate in (0.0, 0.1, 0.1, 0.1, 0.1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        step(m, optimizer)
    assert "warmup_lr" not in optimizer.param_groups[0]
    assert lr(optimizer) == 0.1


@pytest.mark.parametrize("show", [True, False])
def test_a_checkpoint_between_steps_goes_on_with_the_same_bits(show):
    def run(resume_at):
        m, optimizer, schedule = begun(lr=0.1)
        warmup.follow([optimizer], show=show)
        scheduler = lr_scheduler.StepLR(optimizer, 2, gamma=0.7)
        rates = []
        for i in range(7):
            if i == resume_at:
                saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
                optimizer = torch.optim.SGD(param_groups(m, 0.1))
                scheduler = lr_scheduler.StepLR(optimizer, 2, gamma=0.7)
                optimizer.load_state_dict(saved[0])
                scheduler.load_state_dict(saved[1])
                schedule.apply(m, 0, optimizer)
                warmup.follow([optimizer], show=show)
            rates.append(step(m, optimizer))
            scheduler.step()
        return rates, lr(optimizer)

    whole = run(None)
    assert whole[0][-1] > 0
    for at in range(1, 7):
        assert run(at) == whole


def test_a_step_that_a_grad_scaler_leaves_out_counts_for_nothing():
    m, optimizer, _ = begun(lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    for bad in (False, True, False):
        for p in m.parameters():
            p.grad = torch.full_like(p, math.inf if bad else 1.0)
        scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.param_groups[0]["warmup_done"] == 2


def test_hooks_are_registered_once():
    m, optimizer, schedule = begun()
    for _ in range(5):
        schedule.apply(m, 0, optimizer)
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    assert len(optimizer._optimizer_step_post_hooks) == 1


@pytest.mark.parametrize("made", ["before", "after"])
@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.CosineAnnealingLR(o, 6, eta_min=0.05),
        lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0, min_lr=0.04),
    ],
    ids=["Cosine", "ReduceLROnPlateau"],
)
def test_a_plain_loop_s_scheduler_that_does_more_than_multiply(make, made):
    def used(length):
        m = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
        optimizer = torch.optim.SGD(m.parameters(), 0.1)
        scheduler = make(optimizer) if made == "before" else None
        FreezeSchedule([Phase(0, "*", lr=0.1, warmup=length)]).apply(m, 0, optimizer)
        scheduler = scheduler or make(optimizer)
        rates = []
        for _ in range(6):
            rates.append(step(m, optimizer))
            scheduler.step(*[1.0] * isinstance(scheduler, lr_scheduler.ReduceLROnPlateau))
        return rates

    plain, warmed = used(0), used(LENGTH)
    assert plain[0] != plain[-1]
    expected = [rate * part for rate, part in zip(plain, parts(6), strict=True)]
    assert warmed == pytest.approx(expected, abs=1e-7)


LATER = {
    "Cosine, past its minimum": lambda o: lr_scheduler.CosineAnnealingLR(o, 2, eta_min=0.05),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "Lambda": lambda o: lr_scheduler.LambdaLR(o, lambda i: 0.9 ** (i + 1)),
    "Lambda a group": lambda o: lr_scheduler.LambdaLR(o, [lambda i: 1.0, lambda i: 0.5**i]),
    "Linear": lambda o: lr_scheduler.LinearLR(o, 0.5, 1.0, 3),
    "Sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.LambdaLR(o, lambda i: 0.9**i)], [3]
    ),
}


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("make", LATER.values(), ids=LATER)
def test_a_scheduler_that_is_made_while_the_part_is_shown_has_the_whole_rate_for_its_base(
    make, as_tensor
):
    def used(length):
        m = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
        optimizer = torch.optim.SGD(param_groups(m, 0.1), 0.1)
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(0.1, dtype=torch.float64) if as_tensor else 0.1
        schedule = FreezeSchedule([Phase(0, "*", warmup=length)])
        schedule.apply(m, 0, optimizer)
        scheduler = make(optimizer)
        schedule.apply(m, 0, optimizer)
        rates = []
        for _ in range(8):
            rates.append(step(m, optimizer))
            scheduler.step()
        bases = [float(base) for base in getattr(scheduler, "base_lrs", [])]
        return rates, bases, [float(g["initial_lr"]) for g in optimizer.param_groups]

    (plain, *bases), (warmed, *bases_then) = used(0), used(LENGTH)
    expected = [rate * part for rate, part in zip(plain, parts(8), strict=True)]
    assert warmed == pytest.approx(expected, abs=1e-7)
    assert bases_then == bases


def test_a_scheduler_made_in_mid_warm_up_has_the_whole_rate_for_its_base():
    m, optimizer, _ = begun(lr=0.1)
    step(m, optimizer)
    scheduler = lr_scheduler.StepLR(optimizer, 100)
    assert scheduler.base_lrs == [0.1 * 2 / LENGTH] * 2
    step(m, optimizer)
    assert scheduler.base_lrs == [0.1] * 2


def test_a_base_that_the_scheduler_sets_itself_stays():
    m, optimizer, _ = begun(lr=0.1)
    lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=9)
    step(m, optimizer)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.5 / 25] * 2


def test_a_scheduler_made_before_the_warm_up_keeps_its_base():
    """Also where the base equals the part."""
    m = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    optimizer = torch.optim.SGD(param_groups(m, 0.25))
    scheduler = lr_scheduler.StepLR(optimizer, 100)
    FreezeSchedule([Phase(0, "*", lr=1.0, warmup=LENGTH)]).apply(m, 0, optimizer)
    step(m, optimizer)
    assert scheduler.base_lrs == [0.25] * 2


def test_an_optimizer_whose_steps_cannot_be_heard_is_refused():
    class Own:
        def __init__(self, parameters):
            self.param_groups = [{"params": list(parameters), "lr": 0.1}]

        def step(self):
            pass

    m = nn.Linear(2, 2)
    optimizer = Own(m.parameters())
    with pytest.raises(ValueError, match="Own calls no step hooks of torch; leave warmup= out"):
        FreezeSchedule([Phase(0, "*", lr=1e-2, warmup=4)]).apply(m, 0, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.1
    FreezeSchedule([Phase(0, "*", lr=1e-2)]).apply(m, 0, optimizer)
    assert optimizer.param_groups[0]["lr"] == 1e-2


def test_a_scheduler_of_the_optimizer_inside_a_wrapper_is_refused():
    class Wrapper:
        def __init__(self, inner):
            self.kept, self.param_groups, self.step = [inner], inner.param_groups, inner.step

    m = nn.Linear(2, 2)
    inner = torch.optim.SGD(m.parameters(), 0.1)
    scheduler = lr_scheduler.LambdaLR(inner, lambda i: 0.8**i)
    with pytest.raises(ValueError, match=type(scheduler).__name__):
        FreezeSchedule([Phase(0, "*", lr=1e-2)]).apply(m, 0, Wrapper(inner))
