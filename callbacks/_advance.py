"""Plateau: a monitored metric decides when the next phase begins. Pure functions of values."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from lstm_freeze._checks import as_bool, as_number, as_one_of

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


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
        for name in ("patience", "max_epochs_per_phase"):
            value = getattr(self, name)
            optional = name != "patience" and value is None
            if not optional and (type(value) is bool or not isinstance(value, int) or value < 1):
                raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}")
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


def monitored(trainer: Trainer, name: str) -> float:
    """The present value of a logged metric, the mean of all ranks.

    Raises:
        ValueError: No such metric was logged.
    """
    metrics = trainer.callback_metrics
    if name not in metrics:
        known = ", ".join(sorted(metrics)) or "none"
        raise ValueError(
            f"`monitor` {name!r} was not logged by the end of the validation; logged: {known}"
        )
    value = metrics[name].detach().clone().float().to(trainer.strategy.root_device)
    return float(trainer.strategy.reduce(value, reduce_op="mean"))


def validation_follows(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this train batch."""
    every, interval = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if every is not None and (trainer.current_epoch + 1) % every:
        return False
    if interval is None or interval == math.inf:
        return trainer.is_last_batch
    done = trainer.fit_loop.total_batch_idx if every is None else batch_idx
    return (done + 1) % interval == 0


def validate(trainer: Trainer) -> None:
    """Run the validation that Lightning leaves out when it resumes at the end of a train batch.

    The checkpoint was written before that validation.
    """
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True
