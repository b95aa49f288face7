"""Plateau: a monitored metric decides when the next phase begins. Pure functions of values."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from lstm_freeze._checks import as_bool, as_integer, as_number, as_one_of


@dataclass(frozen=True)
class Plateau:
    """Begin the next phase when a metric of the validation has stopped improving.

    The next phase begins at the start of the epoch after `patience` validations in a row without
    improvement. The best value and the count start anew in each phase. A NaN is no improvement.

    Args:
        monitor: The name of a logged metric.
        mode: `"min"` or `"max"`: which direction is better.
        patience: After how many validations without improvement a phase ends, at least 1.
        min_delta: How much better the metric must be to count as improved.
        max_epochs_per_phase: A phase ends after this many epochs at the latest; None: no limit.
        restore_best: Go back to the phase's best weights before the next begins.

    Raises:
        ValueError: A value is out of its range.
        TypeError: A name, number or flag is of another type.

    Examples:
        >>> Plateau(monitor="val_acc", mode="max", patience=3).patience
        3
    """

    monitor: str = "val_loss"
    mode: str = "min"
    patience: int = 2
    min_delta: float = 0.0
    max_epochs_per_phase: int | None = None
    restore_best: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if not isinstance(self.monitor, str):
            raise TypeError(f"`monitor` must be a metric's name (a string), got {self.monitor!r}")
        as_one_of(self.mode, "mode", ("min", "max"))
        as_integer(self.patience, "patience", least=1)
        if self.max_epochs_per_phase is not None:
            as_integer(self.max_epochs_per_phase, "max_epochs_per_phase", least=1)
        as_number(self.min_delta, "min_delta", least=0)
        as_bool(self.restore_best, "restore_best")

    def improves(self, value: float, best: float | None) -> bool:
        """Whether a value is better than the best of the phase so far."""
        if math.isnan(value):
            return False
        if best is None:
            return True
        gain = best - value if self.mode == "min" else value - best
        return gain > self.min_delta

    def is_due(self, state: PlateauState, epoch: int) -> bool:
        """Whether the next phase is to begin with this epoch."""
        limit = self.max_epochs_per_phase
        too_long = limit is not None and state.began is not None and epoch - state.began >= limit
        return state.waited >= self.patience or too_long


@dataclass(frozen=True)
class PlateauState:
    """The present phase, and how the metric has developed in it.

    Attributes:
        phase: The index of the present phase.
        began: The epoch in which it began; None before training.
        best: The best value of the metric in this phase.
        waited: How many validations there were since the best value.
        seen: The optimizer step of the last validation. A validation that is run again after a
            resume has the same step, and is not counted again.
        awaits: Whether a validation still has to follow the last batch.
        decided: The last epoch at whose start it was decided whether the next phase begins.
    """

    phase: int = 0
    began: int | None = None
    best: float | None = None
    waited: int = 0
    seen: int | None = None
    awaits: bool = False
    decided: int | None = None

    def after(self, value: float, improved: bool, step: int) -> PlateauState:
        """The state after a validation."""
        if improved:
            return replace(self, best=value, waited=0, seen=step, awaits=False)
        return replace(self, waited=self.waited + 1, seen=step, awaits=False)

    def next(self, epoch: int) -> PlateauState:
        """The state at the start of the next phase."""
        return PlateauState(self.phase + 1, began=epoch, seen=self.seen)

    def as_dict(self) -> dict[str, Any]:
        """The state as plain types, for a checkpoint."""
        return asdict(self)
