"""Warm-up: for some steps a group's learning rate is a rising part of its whole rate.

The whole rate and the number of steps done are kept in the param group, and so in a checkpoint with
the optimizer's state. Two hooks follow the optimizer's steps. Before a step they set the rate to
the part for this step. After it they set it to the part for the next step in a plain loop, where
the user may read the rate between steps. In Lightning, and beside an LR scheduler that does not
just multiply the rate it finds, they set it to the whole rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch.optim import Optimizer

from .._optimizers import innermost
from .lr_schedulers import adding, has_scheduler, is_followed, schedulers_of, set_bases

RATE = "warmup_lr"  # the whole rate
LENGTH = "warmup_steps"
DONE = "warmup_done"  # optimizer steps
SHOWN = "warmup_shown"  # whether `lr` is the part, and not the whole rate
SCHEDULED = "warmup_scheduled"  # what an LR scheduler was found to do: "adds", "no", "never" (last)
BASED = "warmup_based"  # whether the base rate of LR schedulers was there before, or is corrected

Group = dict[str, Any]

# Whether the rate between two steps is the part. The hooks stay on the optimizer: they cannot be
# removed while they run, and cost nothing where no group warms up.
_shows: WeakKeyDictionary[Optimizer, bool] = WeakKeyDictionary()
_rehearsing: WeakSet[Optimizer] = WeakSet()


def begin(group: Group, steps: int) -> None:
    """Begin the warm-up of a group to the rate it has now."""
    end(group)
    based = has_scheduler(group)
    group.update({RATE: float(group["lr"]), LENGTH: steps, DONE: 0, SHOWN: False, BASED: based})


def end(group: Group) -> None:
    """End the warm-up of a group, if there is one, at the whole rate."""
    if RATE in group:
        hide(group)
        for key in (RATE, LENGTH, DONE, SHOWN, SCHEDULED, BASED):
            group.pop(key, None)


def follow(optimizers: Sequence[Optimizer], *, show: bool) -> None:
    """From now on follow the steps of those optimizers that have something to warm up.

    Of a wrapper, the steps of the inner optimizer are followed.
    """
    for optimizer in innermost(optimizers):
        if not any(RATE in group for group in optimizer.param_groups):
            continue
        if optimizer not in _shows:
            optimizer.register_step_pre_hook(_before_step)
            optimizer.register_step_post_hook(_after_step)
        _shows[optimizer] = show
        _correct_bases(optimizer)
        for group in optimizer.param_groups:
            (show_part if show and group.get(SCHEDULED) != "adds" else hide)(group)


def show_part(group: Group) -> None:
    """Set the rate of a group that warms up to the part for its next step."""
    if RATE in group:
        hide(group)
        set_rate(group, _part(group))
        group[SHOWN] = True


def hide(group: Group) -> None:
    """Set the rate of a group that warms up to the whole rate."""
    if RATE not in group:
        return
    present = float(group["lr"])
    if not group.get(SHOWN, True):
        group[RATE] = present
    elif present != _as_kept(group, _part(group)):
        # Something else has set it since: an LR scheduler, which went on from the part, or the
        # user's loop, which set the whole rate.
        group[RATE] = present / _factor(group) if _has_scheduler(group) else present
    set_rate(group, group[RATE])
    group[SHOWN] = False


def _correct_bases(optimizer: Optimizer) -> None:
    """Make the whole rate the base of LR schedulers that were made while the part was shown.

    An LR scheduler takes the rate that it finds for its base.
    """
    new = [g for g in optimizer.param_groups if not g.get(BASED, True) and has_scheduler(g)]
    for group in new:
        group[BASED] = True
    # OneCycleLR sets a base of its own, which is no part.
    wrong = [g for g in new if g[SHOWN] and g["initial_lr"] == _as_kept(g, _part(g))]
    if wrong:
        set_bases(wrong, [group[RATE] for group in wrong])


def _has_scheduler(group: Group) -> bool:
    """Whether an LR scheduler sets the rate of a group, looking again for one made since."""
    if not has_scheduler(group) and group.get(SCHEDULED) not in ("adds", "never"):
        group[SCHEDULED] = "adds" if is_followed(group) else "never"
    return has_scheduler(group) or group.get(SCHEDULED) == "adds"


def set_rate(group: Group, rate: float) -> None:
    """Set the learning rate of a group; a tensor stays the same tensor."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    warming = [group for group in optimizer.param_groups if RATE in group]
    if warming and _is_rehearsal(optimizer):
        _rehearsing.add(optimizer)
        return
    _correct_bases(optimizer)
    if _shows[optimizer] and any(SCHEDULED not in group for group in warming):
        # At the first step, since a plain loop may make its scheduler after the phase has begun.
        found = "adds" if adding(schedulers_of([optimizer], marked=False)) else "no"
        for group in warming:
            group.setdefault(SCHEDULED, found)
    for group in warming:
        show_part(group)


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if optimizer in _rehearsing:
        _rehearsing.remove(optimizer)
        return
    for group in [group for group in optimizer.param_groups if RATE in group]:
        hide(group)
        group[DONE] += 1
        if group[DONE] >= group[LENGTH]:
            end(group)
        elif _shows[optimizer] and group.get(SCHEDULED) != "adds":
            show_part(group)


def _is_rehearsal(optimizer: Optimizer) -> bool:
    """Whether a step only fills the optimizer's state, with every rate and gradient at 0.

    torch.distributed.checkpoint.state_dict makes such steps; they count for no warm-up.
    """
    groups = optimizer.param_groups
    if any(float(group.get("lr", 1)) != 0 for group in groups):
        return False
    gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    return not any(bool(gradient.any()) for gradient in gradients)


def _factor(group: Group) -> float:
    """The share of the whole rate in the next step; never 0."""
    return min(int(group[DONE] + 1) / int(group[LENGTH]), 1.0)


def _part(group: Group) -> float:
    """The rate of the next step; in the last step exactly the whole rate."""
    step, rate = group[DONE] + 1, float(group[RATE])
    return rate * step / group[LENGTH] if step < group[LENGTH] else rate


def _as_kept(group: Group, rate: float) -> float:
    """A rate, rounded as in the tensor that keeps it."""
    lr = group["lr"]
    return float(torch.full_like(lr, rate)) if isinstance(lr, torch.Tensor) else rate
