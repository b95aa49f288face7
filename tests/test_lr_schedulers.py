"""LR schedulers beside a schedule's rates, in plain loops: found, and judged."""

import gc

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from lstm_freeze import FreezeSchedule, Phase, param_groups
from lstm_freeze._schedule.lr_schedulers import schedulers_of

RATES = [Phase(0, "head", lr=1e-4), Phase(2, "*", lr=1e-3)]
OVERWRITING = {
    "Lambda": lambda o: lr_scheduler.LambdaLR(o, lambda e: 0.8),
    "OneCycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=99),
    "Cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.2, cycle_momentum=False),
    "Chained": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.LambdaLR(o, lambda e: 1)]),
    "Foreign": lambda o: WarmupScheduler(o),
}


class WarmupScheduler:
    """Of another library: no class of torch's, but it leaves `initial_lr` as all of them do."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])


def made():
    m = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    return m, torch.optim.SGD(param_groups(m, 1e-2))


def lr(optimizer):
    return optimizer.param_groups[-1]["lr"]


@pytest.mark.parametrize("name", OVERWRITING)
def test_one_that_overwrites_is_refused_before_any_change(name):
    m, optimizer = made()
    scheduler = OVERWRITING[name](optimizer)
    before = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(ValueError, match=r"the schedule sets learning rates, and \w+ may ov"):
        FreezeSchedule(RATES).apply(m, 0, optimizer)
    assert [dict(group) for group in optimizer.param_groups] == before
    assert all(p.requires_grad for p in m.parameters())
    del scheduler


def test_one_made_later_is_refused_when_a_phase_begins():
    m, optimizer = made()
    schedule = FreezeSchedule(RATES)
    schedule.apply(m, 0, optimizer)
    scheduler = OVERWRITING["Lambda"](optimizer)
    schedule.apply(m, 1, optimizer)
    with pytest.raises(ValueError, match="LambdaLR may overwrite"):
        schedule.apply(m, 2, optimizer)
    del scheduler


def test_one_that_goes_on_is_kept():
    m, optimizer = made()
    scheduler = lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    seen = []
    for epoch in range(4):
        FreezeSchedule(RATES).apply(m, epoch, optimizer)
        seen.append(lr(optimizer))
        m["head"].weight.grad = torch.ones_like(m["head"].weight)
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([1e-4, 0.5e-4, 1e-3, 0.5e-3])


def test_without_rates_any_may_run():
    m, optimizer = made()
    scheduler = OVERWRITING["Lambda"](optimizer)
    FreezeSchedule({0: "head"}).apply(m, 0, optimizer)
    assert lr(optimizer) == 0.8 * 1e-2
    del scheduler


def test_one_of_another_optimizer_or_one_that_is_gone_does_not_matter():
    m, optimizer = made()
    other = OVERWRITING["Lambda"](made()[1])
    gone = OVERWRITING["Lambda"](optimizer)
    assert schedulers_of([optimizer]) == [gone]
    del gone
    gc.collect()
    FreezeSchedule(RATES).apply(m, 0, optimizer)
    assert lr(optimizer) == 1e-4
    del other


def test_progressive_freezing_refuses_any():
    m, optimizer = made()
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    with pytest.raises(ValueError, match="sets the learning rates in each step, and so does Step"):
        FreezeSchedule.progressive_freezing(m, 10).apply(m, 0, optimizer)
    del scheduler


def test_they_are_looked_for_only_where_a_phase_begins(monkeypatch):
    m, optimizer = made()
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    looked = []
    monkeypatch.setattr(gc, "get_objects", lambda: looked.append(1) or [])
    for epoch in range(5):
        FreezeSchedule(RATES).apply(m, epoch, optimizer)
    assert len(looked) == 2
    del scheduler


class TestDone:
    def test_another_schedule_on_the_same_optimizer_sets_its_rates(self):
        m, optimizer = made()
        FreezeSchedule([Phase(0, "head", lr=0.5)]).apply(m, 0, optimizer)
        FreezeSchedule([Phase(0, "head", lr=0.25)]).apply(m, 0, optimizer)
        assert lr(optimizer) == 0.25
        FreezeSchedule([Phase(0, "head", lr=0.25, warmup=4)]).apply(m, 0, optimizer)
        assert lr(optimizer) == 0.0625

    def test_the_same_run_again_sets_them_again(self):
        m, optimizer = made()
        schedule = FreezeSchedule([Phase(0, "head", lr=0.5), Phase(2, "encoder", lr=0.1)])
        for _ in range(3):
            seen = []
            for epoch in range(4):
                schedule.apply(m, epoch, optimizer)
                seen.append((optimizer.param_groups[0]["lr"], lr(optimizer)))
                for group in optimizer.param_groups:
                    group["lr"] *= 0.5
            assert [head for _, head in seen[:2]] == [0.5, 0.25]
            assert [encoder for encoder, _ in seen[2:]] == [0.1, 0.05]

    def test_one_phase_only_and_again(self):
        m, optimizer = made()
        schedule = FreezeSchedule([Phase(0, "head", lr=0.5, warmup=2)])
        for _ in range(2):
            for epoch in range(3):
                schedule.apply(m, epoch, optimizer)
                if epoch == 0:
                    assert lr(optimizer) == 0.25
                m["head"].weight.grad = torch.ones_like(m["head"].weight)
                optimizer.step()
            assert lr(optimizer) == 0.5
            optimizer.param_groups[-1]["lr"] = 0.01

    def test_progressive_freezing_again_begins_at_the_same_rates(self):
        m, optimizer = made()
        schedule = FreezeSchedule.progressive_freezing(m, 4)
        runs = []
        for _ in range(2):
            runs.append([])
            for epoch in range(4):
                schedule.apply(m, epoch, optimizer)
                runs[-1].append(lr(optimizer))
        assert runs[0] == runs[1]
        assert runs[0][0] > runs[0][3]

    def test_two_schedules_of_two_scopes_share_an_optimizer(self):
        m, optimizer = made()
        one = FreezeSchedule([Phase(0, "head", lr=0.5)], scope="head")
        two = FreezeSchedule([Phase(0, "encoder", lr=0.25)], scope="encoder")
        for epoch in range(3):
            one.apply(m, epoch, optimizer)
            two.apply(m, epoch, optimizer)
            for group in optimizer.param_groups:
                group["lr"] *= 0.5
        assert [group["lr"] for group in optimizer.param_groups] == [0.25 / 8, 0.5 / 8]
