"""Other callbacks and the compiler beside a schedule: warnings and mistakes about them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from lstm_freeze._schedule import ResolvedSchedule
from lstm_freeze._torch_internals import is_compiled, recompile_limit
from lstm_freeze._warn import warn

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The Trainer's callbacks, which Lightning sets without declaring the attribute."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def named(trainer: Trainer, name: str) -> list[Callback]:
    """The callbacks whose class, or a base of it, has this name, from either Lightning."""
    return [c for c in callbacks_of(trainer) if name in {b.__name__ for b in type(c).__mro__}]


def warn_of_early_ones(trainer: Trainer, scheduler: Callback) -> None:
    """Warn of callbacks that act before the first phase has begun."""
    callbacks = callbacks_of(trainer)
    if named(trainer, "LearningRateFinder"):
        warn(
            "the learning rate finder runs before the schedule begins, so it trains everything "
            "that some phase trains; to find the rate of one phase, run it in a Trainer without "
            f"{type(scheduler).__name__}, after schedule.apply(module, epoch)",
        )
    for summary in named(trainer, "ModelSummary"):
        if callbacks.index(summary) < callbacks.index(scheduler):
            warn(
                f"{type(summary).__name__} stands before {type(scheduler).__name__} in the "
                "Trainer's callbacks, so it shows as trainable all that some phase trains; list "
                "it after, and it shows the first phase",
            )


def averaging_mistakes(trainer: Trainer, resolved: ResolvedSchedule) -> Iterator[str]:
    """The mistakes of StochasticWeightAveraging, which sets rates too, beside such a schedule."""
    for swa in named(trainer, "StochasticWeightAveraging"):
        start: int = swa.swa_start  # type: ignore[attr-defined]
        late = [
            phase.phase
            for phase in resolved.phases
            if phase.phase.sets_rates
            and (resolved.schedule.unit == "step" or start <= phase.phase.start)
        ]
        if late or resolved.schedule.annealing is not None:
            yield (
                f"StochasticWeightAveraging sets every learning rate from epoch {start} on, and so "
                "does the schedule; let all phases that set rates begin before it "
                "(swa_epoch_start), or leave lr= and warmup= out of those after it"
            )


def warn_if_stopped(trainer: Trainer, index: int, phases: int) -> None:
    """Warn where a run was stopped before the last phase had begun."""
    stoppers = named(trainer, "EarlyStopping")
    if not (stoppers and trainer.should_stop and index + 1 < phases):
        return
    warn(
        f"EarlyStopping ended the run in phase {index} of {phases} (counted from 0), so what only "
        "later phases train was never trained; give it more patience than a phase lasts, or let "
        "advance=Plateau(...) begin the next phase with less patience than EarlyStopping has",
    )


def warn_of_compilations(trainer: Trainer, module: nn.Module, resolved: ResolvedSchedule) -> None:
    """Warn where the phases need more compiled variants of the module than torch.compile makes."""
    limit = recompile_limit()
    if limit is None or not is_compiled(module):
        return
    states = {frozenset(phase.ids) for phase in resolved.phases}
    needed = len(states) * (2 if trainer.enable_validation else 1)
    if needed > limit:
        warn(
            f"the schedule needs about {needed} compiled variants of the module, one for each "
            "phase in training and one in validation, and torch.compile gives up after "
            f"{limit}: it goes on uncompiled, or fails with fullgraph=True; set "
            f"torch._dynamo.config.recompile_limit = {needed} before the fit",
        )
