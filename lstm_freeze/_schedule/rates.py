"""The learning rates of a schedule: set once a phase, warmed up by steps, or annealed.

What was done is noted in the optimizer's param groups, and so in a checkpoint with the optimizer's
state. After a resume, the same call does nothing a second time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from . import warmup
from .annealing import Annealing
from .phase import Phase, phase_as_dict

PHASE = "freeze_phase"  # the mark of the phase that began last
TIME = "freeze_time"  # the epoch or step of the last call
INITIAL = "freeze_initial_lr"  # where progressive freezing began

Group = dict[str, Any]


def phase_mark(phase: Phase, unit: str) -> str:
    """The mark of a phase, which differs for different phases: a hash of all its settings."""
    words = repr((unit, phase_as_dict(phase)))
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def is_begun(group: Group, mark: str, when: float | None) -> bool:
    """Whether a phase has begun in a group, in the present run.

    A time before that of the last call means that a new run begins.
    """
    return group.get(PHASE) == mark and (when is None or when >= group.get(TIME, when))


def label(group: Group, index: int) -> str:
    """The name of a param group in messages."""
    return f"group {group['name']!r}" if "name" in group else f"group {index}"


def labelled_groups(optimizers: Iterable[Optimizer]) -> Iterator[tuple[str, Group]]:
    """Every (label, group) of several optimizers."""
    for optimizer in optimizers:
        for index, group in enumerate(optimizer.param_groups):
            yield label(group, index), group


def present_rates(optimizers: Sequence[Optimizer]) -> dict[str, float]:
    """The present learning rate of every param group, by its name or its number."""
    found: dict[str, float] = {}
    for optimizer_index, optimizer in enumerate(optimizers):
        for index, group in enumerate(optimizer.param_groups):
            name = str(group.get("name", index))
            if name in found:
                name = f"{optimizer_index}/{name}"
            found[name] = float(group["lr"])
    return found


def show_warm_up(optimizers: Sequence[Optimizer], shown: bool) -> None:
    """Set the rates of groups in warm-up to those of the next step, or to those without it."""
    for _, group in labelled_groups(optimizers):
        (warmup.show_part if shown else warmup.hide)(group)


def forget(optimizers: Sequence[Optimizer], inside: set[int]) -> None:
    """Remove all marks and warm-ups, for a new run.

    Args:
        optimizers: The optimizers with the groups.
        inside: The ids of the parameters that the schedule decides about.
    """
    for _, group in labelled_groups(optimizers):
        if _holds(group, inside):
            warmup.end(group)
            for key in (PHASE, TIME, INITIAL):
                group.pop(key, None)


def begin_phase(
    optimizers: Sequence[Optimizer],
    mark: str,
    when: float | None,
    rates: Mapping[int, float],
    trained: set[int],
    inside: set[int],
    *,
    newcomers: set[int],
    steps: int,
    show: bool,
) -> None:
    """Set the rates of a phase and begin its warm-up, unless that was done before.

    Args:
        optimizers: The optimizers. Where rates are set, `trained` has all of a group or nothing.
        mark: The mark of the phase.
        when: The epoch or step; None where only the mark counts.
        rates: The rate of each parameter, by id.
        trained: The ids of what the phase trains.
        inside: The ids of what the schedule decides about.
        newcomers: The ids of what the phase trains and the one before did not.
        steps: The length of the warm-up in optimizer steps; 0 for none.
        show: Whether the rate between two steps of a warm-up is that of the next step.
    """
    for _, group in labelled_groups(optimizers):
        if not _holds(group, inside):
            continue
        begun = is_begun(group, mark, when)
        group[PHASE] = mark
        if when is not None:
            group[TIME] = when
        if not _holds(group, trained):
            warmup.end(group)
        elif not begun:
            if found := [rates[id(p)] for p in group["params"] if id(p) in rates]:
                warmup.end(group)
                warmup.set_rate(group, found[0])
            if steps and _holds(group, newcomers):
                warmup.begin(group, steps)
    warmup.follow(optimizers, show=show)


def anneal(
    optimizers: Iterable[Optimizer],
    annealing: Annealing,
    layer_of: Mapping[int, int],
    epoch: float,
) -> None:
    """Set the rates of progressive freezing, from the initial rate of each group.

    Args:
        optimizers: The optimizers with the groups to set.
        annealing: The rule.
        layer_of: Which layer of the rule a parameter belongs to, by id.
        epoch: How much of the training is done, in epochs.
    """
    for _, group in labelled_groups(optimizers):
        layers = {layer_of[id(p)] for p in group["params"] if id(p) in layer_of}
        if layers:
            present = float(group["initial_lr"] if "initial_lr" in group else group["lr"])
            initial = float(group.setdefault(INITIAL, present))
            warmup.set_rate(group, annealing.rate(layers.pop(), initial, epoch))


def _holds(group: Group, ids: set[int]) -> bool:
    return any(id(p) in ids for p in group["params"])
