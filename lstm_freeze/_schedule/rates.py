"""The learning rates of a schedule: set once a phase, warmed up by steps, or annealed.

All that was done is written into the optimizer's param groups, so that it is in the checkpoint of
whoever saves the optimizer, and the same call after a resume does nothing a second time.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler

from .annealing import Annealing

PHASE = "freeze_phase"  # the index of the phase that set the group's rate
TARGET = "warmup_lr"  # where the warm-up of the group ends
LENGTH = "warmup_steps"
DONE = "warmup_done"  # optimizer steps

# They compute the next rate from the present one, so a rate that a phase has set stays set.
_GO_ON = (
    lr_scheduler.ConstantLR,
    lr_scheduler.CosineAnnealingLR,
    lr_scheduler.ExponentialLR,
    lr_scheduler.LinearLR,
    lr_scheduler.MultiStepLR,
    lr_scheduler.MultiplicativeLR,
    lr_scheduler.PolynomialLR,
    lr_scheduler.ReduceLROnPlateau,
    lr_scheduler.StepLR,
)
# A hook cannot be removed while it runs; one that finds nothing to do costs nothing.
_warming: weakref.WeakSet[Optimizer] = weakref.WeakSet()

Group = dict[str, Any]


def label(group: Group, index: int) -> str:
    """How a message calls a param group."""
    return f"group {group['name']!r}" if "name" in group else f"group {index}"


def groups_of(optimizers: Iterable[Optimizer]) -> Iterator[tuple[str, Group]]:
    """Every (label, group) of several optimizers."""
    for optimizer in optimizers:
        for index, group in enumerate(optimizer.param_groups):
            yield label(group, index), group


def unkept(schedulers: Iterable[Any], *, any_kind: bool = False) -> Iterator[str]:
    """What is wrong with running LR schedulers beside rates that a schedule sets."""
    for scheduler in schedulers:
        kind = type(scheduler).__name__
        if any_kind:
            yield (
                f"progressive_freezing sets the learning rates in each step, and so does {kind}; "
                "use no LR scheduler beside it"
            )
        elif isinstance(scheduler, lr_scheduler.ChainedScheduler):
            yield from unkept(scheduler._schedulers)
        elif type(scheduler) not in _GO_ON:
            kept = ", ".join(sorted(k.__name__ for k in _GO_ON))
            yield (
                f"the schedule sets learning rates, and {kind} may overwrite them: it computes "
                "them from its own base rates, or cannot be judged; use one that goes on from the "
                f"present rate ({kept}), or leave lr= and warmup= out of the phases"
            )


def begin(
    optimizers: Iterable[Optimizer],
    index: int,
    rates: Mapping[int, float],
    trained: set[int],
    newcomers: set[int],
    warmup: int,
) -> None:
    """Set the rates of a phase, unless that was done before, and begin its warm-up.

    Args:
        optimizers: Whose groups are wholly or not at all in `trained`, where rates are set.
        index: Which phase.
        rates: The rate of each parameter, by id.
        trained: The ids of what the phase trains.
        newcomers: The ids of what it trains and the phase before did not.
        warmup: The length of the warm-up in optimizer steps.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            ids = {id(p) for p in group["params"]}
            if not ids & trained:
                _end_warm_up(group)
            elif (ids & rates.keys() or warmup) and group.get(PHASE) != index:
                group[PHASE] = index
                if found := ids & rates.keys():
                    _end_warm_up(group)
                    _set_rate(group, rates[next(iter(found))])
                if warmup and ids & newcomers:
                    _end_warm_up(group)
                    group.update({TARGET: float(group["lr"]), LENGTH: warmup, DONE: 0})
                    _set_rate(group, _warm(group))
        if optimizer not in _warming and any(TARGET in g for g in optimizer.param_groups):
            optimizer.register_step_post_hook(_after_step)
            _warming.add(optimizer)


def anneal(
    optimizers: Iterable[Optimizer],
    annealing: Annealing,
    group_of: Mapping[int, int],
    epoch: float,
) -> None:
    """Set the rates of progressive freezing, from the initial rate of each group.

    Args:
        optimizers: Whose groups are set.
        annealing: The rule.
        group_of: Which group of the rule a parameter belongs to, by id.
        epoch: How much of the training is done, in epochs.
    """
    for _, group in groups_of(optimizers):
        found = {group_of[id(p)] for p in group["params"] if id(p) in group_of}
        if found:
            initial = float(group.setdefault("initial_lr", float(group["lr"])))
            _set_rate(group, annealing.rate(found.pop(), initial, epoch))


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Give each group that warms up the rate of its next step."""
    for group in optimizer.param_groups:
        if TARGET not in group:
            continue
        expected = _as_kept(group, _warm(group))
        if (present := float(group["lr"])) != expected:  # an LR scheduler scaled it meanwhile
            group[TARGET] *= present / expected
        group[DONE] += 1
        if group[DONE] < group[LENGTH]:
            _set_rate(group, _warm(group))
        else:
            _end_warm_up(group)


def _warm(group: Group) -> float:
    """The rate of the next step of a warm-up; exactly the target in the last."""
    step, target = group[DONE] + 1, float(group[TARGET])
    return target * step / group[LENGTH] if step < group[LENGTH] else target


def _end_warm_up(group: Group) -> None:
    if TARGET in group:
        _set_rate(group, group[TARGET])
        for key in (TARGET, LENGTH, DONE):
            del group[key]


def _set_rate(group: Group, rate: float) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _as_kept(group: Group, rate: float) -> float:
    """A rate with the rounding of a tensor that keeps it."""
    lr = group["lr"]
    return float(torch.full_like(lr, rate)) if isinstance(lr, torch.Tensor) else rate
