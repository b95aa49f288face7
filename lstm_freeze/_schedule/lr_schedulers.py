"""Finds the LR schedulers beside a schedule, and those that would overwrite its rates."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler

from .._optimizers import with_inner

# They compute the next rate from the present one, so they go on from a rate that a phase set.
GO_ON = (
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

# These multiply the present rate by a factor, so a part of a rate stays the same part of it.
_MULTIPLY = (
    lr_scheduler.ConstantLR,
    lr_scheduler.ExponentialLR,
    lr_scheduler.LinearLR,
    lr_scheduler.MultiStepLR,
    lr_scheduler.MultiplicativeLR,
    lr_scheduler.PolynomialLR,
    lr_scheduler.StepLR,
)


def adding(schedulers: Iterable[Any]) -> bool:
    """Whether one of these does more than multiply the present rate, or may do more."""
    return any(type(scheduler) not in _MULTIPLY for scheduler in schedulers)


def has_scheduler(group: dict[str, Any]) -> bool:
    """Whether an LR scheduler was made for a param group, by the `initial_lr` it leaves there."""
    return "initial_lr" in group


def schedulers_of(optimizers: Sequence[Optimizer], *, marked: bool = True) -> list[Any]:
    """The LR schedulers of these optimizers, and of those inside them, that exist in this process.

    An optimizer has no reference to its schedulers, and a plain loop passes only the optimizer. So
    they are searched among all objects. That takes about a tenth of a second, and is done only at
    the start of a phase.

    Args:
        optimizers: Whose schedulers.
        marked: Look only where a group says that a scheduler was made for it. All schedulers leave
            that mark but ReduceLROnPlateau, which overwrites no rate.
    """
    if marked and not any(has_scheduler(group) for o in optimizers for group in o.param_groups):
        return []
    wanted = {id(optimizer) for optimizer in with_inner(optimizers)}
    return [found for found in _schedulers() if id(getattr(found, "optimizer", None)) in wanted]


def is_followed(group: dict[str, Any]) -> bool:
    """Whether an LR scheduler exists in this process that sets the rate of this very group."""
    groups = (getattr(getattr(s, "optimizer", None), "param_groups", ()) for s in _schedulers())
    return any(one is group for several in groups for one in several)


def set_bases(groups: Sequence[dict[str, Any]], bases: Sequence[float]) -> None:
    """Give each of these param groups another base rate, also in the LR schedulers made for it."""
    base_of = {id(group): base for group, base in zip(groups, bases, strict=True)}
    for scheduler in _schedulers():
        kept = getattr(scheduler, "base_lrs", None)
        groups_there = getattr(getattr(scheduler, "optimizer", None), "param_groups", ())
        if isinstance(kept, list) and len(kept) == len(groups_there):
            for i, group in enumerate(groups_there):
                if id(group) in base_of and kept[i] == group["initial_lr"]:
                    kept[i] = _as_in(kept[i], base_of[id(group)])
    for group, base in zip(groups, bases, strict=True):
        group["initial_lr"] = _as_in(group["initial_lr"], base)


def _as_in(present: Any, rate: float) -> Any:
    """A rate in the form of the present one, which may be a tensor."""
    return torch.full_like(present, rate) if isinstance(present, torch.Tensor) else rate


def _schedulers() -> list[Any]:
    return [found for found in gc.get_objects() if _is_scheduler(type(found))]


def _is_scheduler(kind: type) -> bool:
    return issubclass(kind, lr_scheduler.LRScheduler) or kind.__name__.endswith("Scheduler")


def overwriting(schedulers: Iterable[Any], *, annealed: bool = False) -> Iterator[str]:
    """The mistakes of running these LR schedulers beside rates that a schedule sets.

    Args:
        schedulers: The LR schedulers.
        annealed: Whether the schedule sets the rates in every step (progressive freezing).
    """
    for scheduler in schedulers:
        kind = type(scheduler).__name__
        if annealed:
            yield (
                f"progressive_freezing sets the learning rates in each step, and so does {kind}; "
                "use no LR scheduler beside it"
            )
        elif isinstance(scheduler, lr_scheduler.ChainedScheduler):
            yield from overwriting(scheduler._schedulers)
        elif type(scheduler) not in GO_ON:
            kept = ", ".join(sorted(k.__name__ for k in GO_ON))
            yield (
                f"the schedule sets learning rates, and {kind} may overwrite them: it computes "
                "them from its own base rates, or cannot be judged; use one that goes on from the "
                f"present rate ({kept}), or leave lr= and warmup= out of the phases"
            )
