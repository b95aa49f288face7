"""FreezeScheduler: follows a FreezeSchedule in a Lightning fit, through every resume."""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any

from torch import nn

from lstm_freeze import FreezeSchedule, Recipe
from lstm_freeze._freezing import align_buffers
from lstm_freeze._optimizers import drop_state
from lstm_freeze._schedule import ResolvedSchedule, raise_all, show_warm_up

from ._advance import Plateau
from ._callback import Callback, goes_on, stage_is_fit, without_fit
from ._ddp import send_trainable_only
from ._fit_guard import FitGuard
from ._fit_plateau import FitPlateau, validate
from ._given import Given, as_schedule, schedule_for
from ._logged import log_caches, log_phase
from ._neighbours import (
    averaging_mistakes,
    callbacks_of,
    named,
    warn_if_stopped,
    warn_of_compilations,
    warn_of_early_ones,
)
from ._refusals import advance_mistakes, ddp_mistakes, differences, refuse_sharding, refuse_uneven

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

CHECKS = ("step", "epoch", None)


class FreezeScheduler(Callback):
    """Freeze and unfreeze by a schedule, and check that what is frozen does not move.

    What trains follows from the epoch alone (or from the step, or the phase index in the
    checkpoint), so a run can be resumed anywhere. Every mistake in the schedule, the optimizers,
    the LR schedulers or the strategy is raised before the first step. Optimizers drop
    the state of what is frozen. After the fit the last phase's state stays.

    Logs `freeze/phase` (the index), `freeze/trainable` (how many numbers train in the module) and
    `freeze/lr/<group>` (each param group's learning rate at the epoch's start); the progress bar
    shows the phase.

    Where a BiLSTM of the module has a `prefix_cache`, the depths that the schedule's later phases
    will need are kept in the phases before them: they are in the cache's `keep_levels` until the
    fit ends. At each epoch's end its statistics are logged as `freeze/cache/hits`, `misses`,
    `bytes` and `evictions`; with several caches as `freeze/cache/<path of the BiLSTM>/hits` and so
    on; under DDP those of rank 0.

    Args:
        schedule: A FreezeSchedule or Recipe; a mapping of epochs to what trains from then on; the
            path of a YAML file with a schedule or recipe; or a function from the LightningModule
            to a FreezeSchedule or Recipe.
        check: When to compare all that is frozen, bit for bit, by fingerprint: "step" for after
            each optimizer step, "epoch" for each train epoch's end, None for never. Where a
            FrozenWeightsCheck is among the callbacks, that one checks and this one does not.
        advance: A Plateau, to begin the next phase when a metric has stopped improving instead of
            at a fixed epoch; only the order of the phases counts then.

    Raises:
        ValueError: The schedule is wrong, or `check` is unknown.
        TypeError: `schedule` or `advance` is of another type than named above.

    Examples:
        >>> FreezeScheduler({0: ["head"], 1: ["head", "encoder.lstm[-1]"], 3: ["*"]}).state_key
        "FreezeScheduler{'scope': ['*'], 'exclude': []}"
    """

    def __init__(
        self,
        schedule: Given,
        *,
        check: str | None = "step",
        advance: Plateau | None = None,
    ) -> None:
        """Check the arguments."""
        if check not in CHECKS:
            raise ValueError(f'`check` must be "step", "epoch" or None, got {check!r}')
        if advance is not None and not isinstance(advance, Plateau):
            raise TypeError(f"`advance` must be a Plateau or None, got {advance!r}")
        self.check = check
        self.resolved: ResolvedSchedule | None = None
        self._given = as_schedule(schedule)
        self._schedule: FreezeSchedule | None = None
        self._plateau = None if advance is None else FitPlateau(advance)
        self._restored: dict[str, Any] | None = None
        self._resumed_at: tuple[int, int] | None = None
        self._module: weakref.ref[nn.Module] | None = None
        self._guard: FitGuard | None = None
        self._index = 0
        self._logged = False

    @property
    def advance(self) -> Plateau | None:
        """The Plateau that begins the phases; None where the epoch or step does."""
        return None if self._plateau is None else self._plateau.plateau

    @property
    def phase(self) -> int:
        """The index of the present phase."""
        return self._index

    @property
    def state_key(self) -> str:
        """The callback's key in a checkpoint: one scheduler for one scope."""
        schedule = self._given if self._schedule is None else self._schedule
        if not isinstance(schedule, (FreezeSchedule, Recipe)):
            return f"FreezeScheduler{{{id(self)}}}"
        scope, exclude = list(schedule.scope), list(schedule.exclude)
        return f"FreezeScheduler{ {'scope': scope, 'exclude': exclude} }"

    def __getstate__(self) -> dict[str, Any]:
        """The state for copies and pickles, without module, optimizers and guard."""
        return without_fit(self, resolved=None, _module=None, _guard=None)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make trainable what some phase trains, before optimizers and DDP look at the module."""
        if stage != "fit":
            return
        refuse_sharding(trainer, self.advance)
        warn_of_early_ones(trainer, self)
        self._begin_anew(trainer, pl_module)
        try:
            resolved, mistakes = schedule_for(self._given, pl_module).try_resolve(pl_module)
        except ValueError:
            return  # raised in on_fit_start: configure_model may still add the missing modules
        if not mistakes:
            self._use(resolved)
            resolved.prepare()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse a checkpoint whose schedule decides about something else."""
        self._resumed_at = (checkpoint["epoch"], checkpoint["global_step"])
        if self.resolved is None:
            self._use(schedule_for(self._given, pl_module).resolve(pl_module))
        states = checkpoint.get("callbacks", {})
        present = {callback.state_key for callback in callbacks_of(trainer)}
        others = [k for k in states if str(k).startswith("FreezeScheduler{") and k not in present]
        if self.state_key not in states and others:
            raise ValueError(
                f"the checkpoint was made with another schedule: it was {others[0]}, this is "
                f"{self.state_key}; resume with the schedule it was made with"
            )

    def state_dict(self) -> dict[str, Any]:
        """The schedule, the phase and, with `advance`, the state of the metric."""
        if self._schedule is None:
            return {}
        state = {
            "schedule": self._schedule.describe(),
            "phase": self._index,
            "plateau": self._plateau and self._plateau.state.as_dict(),
        }
        best = self._plateau and self._plateau.best
        return {**state, "best": best} if best else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the fit starts, where it is compared with the schedule."""
        self._restored = state_dict

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check everything, then enter the phase."""
        resolved, mistakes = schedule_for(self._given, pl_module).try_resolve(pl_module)
        mistakes += resolved.mistakes(
            trainer.optimizers,
            [config.scheduler for config in trainer.lr_scheduler_configs],
            scaled=getattr(trainer.precision_plugin, "scaler", None) is not None,
        )
        mistakes += ddp_mistakes(trainer.model, resolved)
        mistakes += advance_mistakes(trainer, self.advance, resolved)
        if self._restored is not None:
            mistakes += differences(self._restored, self._description(resolved.schedule))
        raise_all(mistakes)
        self._use(resolved)
        if trainer.global_step == 0:
            resolved.forget_rates(trainer.optimizers)
        send_trainable_only(trainer.model)
        warn_of_compilations(trainer, pl_module, resolved)
        if self._restored is not None and self._plateau is not None:
            self._plateau.restore(self._restored)
        # The trainer still counts from 0 here, and a fit that was finished begins no epoch. So
        # the phase is that of the checkpoint, to which the optimizer states belong.
        begun = self._phase_at(*(self._resumed_at or (0, 0)))
        self._enter(trainer, begun if self._restored is None else self._restored["phase"])
        self._restored = None
        if self.check and not named(trainer, "FrozenWeightsCheck"):
            every = 1 if self.check == "step" else None
            self._guard = FitGuard(pl_module, mode="fingerprint", every_n_steps=every)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enter the phase of the epoch and step that a checkpoint brought."""
        refuse_uneven(trainer)
        raise_all(list(averaging_mistakes(trainer, self._fitted)))
        if self._fitted.schedule.annealing and math.isinf(trainer.num_training_batches):
            raise ValueError(
                "progressive_freezing needs the length of an epoch, and the training data has "
                "none; give the Trainer limit_train_batches"
            )
        if self._plateau is not None:
            self._plateau.begin(trainer.current_epoch)
        # A checkpoint, loaded after on_fit_start, may hold optimizer state of frozen parameters.
        self._follow(trainer, again=self._resumed_at is not None)
        if self._plateau is not None and self._plateau.state.awaits:
            validate(trainer)
        self._advance(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the next phase if it is due, and enter the phase of this epoch."""
        self._advance(trainer, pl_module)
        self._follow(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Enter the phase of this step, and set the rates of progressive freezing."""
        if self._guard is not None:
            self._guard.before_batch(trainer)
        resolved = self._fitted
        if resolved.schedule.unit == "step" and self._plateau is None:
            if (index := resolved.index_at(trainer.global_step)) != self._index:
                self._enter(trainer, index)
        elif resolved.schedule.annealing is not None:
            epoch = trainer.current_epoch + batch_idx / float(trainer.num_training_batches)
            resolved.anneal(trainer.optimizers, epoch)
        if resolved.warms_up:
            show_warm_up(trainer.optimizers, True)
        if not self._logged:
            self._logged = True
            log_phase(trainer, pl_module, resolved, self._index)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note, for a checkpoint made now, that a validation has to follow.

        Between batches the rates are those without warm-up, since LR schedulers step then.
        """
        if self._guard is not None:
            self._guard.after_batch(trainer)
        if self._fitted.warms_up:
            show_warm_up(trainer.optimizers, False)
        if self._plateau is not None:
            self._plateau.after_batch(trainer, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count this validation of the monitored metric."""
        if self._plateau is not None and stage_is_fit(trainer) and not trainer.sanity_checking:
            self._plateau.after_validation(trainer, pl_module, self._fitted.inside.values())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """With `check="epoch"`, compare what is frozen; log the statistics of prefix caches."""
        if self._guard is not None and self.check == "epoch":
            self._guard.guard.check(step=trainer.global_step)
        log_caches(pl_module, self._fitted)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn where EarlyStopping has left out phases."""
        warn_if_stopped(trainer, self._index, len(self._fitted.phases))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare once more: averaging callbacks write weights at the end of training."""
        if self._guard is not None:
            self._guard.end()
        self._detach()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop following the optimizers, and take added levels out of the prefix caches."""
        if self._guard is not None:
            self._guard.abandon(exception)
        self._detach()

    @property
    def _fitted(self) -> ResolvedSchedule:
        """The schedule of the present fit, resolved."""
        assert self.resolved is not None
        return self.resolved

    def _use(self, resolved: ResolvedSchedule) -> None:
        self.resolved, self._schedule = resolved, resolved.schedule

    def _begin_anew(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget earlier fits, unless the same Trainer goes on with the same module."""
        if not goes_on(trainer, self._module, pl_module):
            self._index = 0
            if self._plateau is not None:
                self._plateau.reset()
        self._module = weakref.ref(pl_module)
        self.resolved = self._schedule = self._restored = self._resumed_at = None

    def _phase_at(self, epoch: int, step: int) -> int:
        if self._plateau is not None:
            return self._plateau.state.phase
        by_step = self._fitted.schedule.unit == "step"
        return self._fitted.index_at(step if by_step else epoch)

    def _follow(self, trainer: Trainer, again: bool = False) -> None:
        """Enter the phase of this epoch and step, unless the module is in it already."""
        index = self._phase_at(trainer.current_epoch, trainer.global_step)
        if again or not self._fitted.is_entered(index):
            self._enter(trainer, index)
        self._logged = False

    def _enter(self, trainer: Trainer, index: int) -> None:
        if index != self._index:
            align_buffers(trainer.model)
        self._index = index
        self._fitted.enter(index, trainer.optimizers, show_warm_up=False)
        self._fitted.prefixes.keep_ahead(index)
        self._logged = False

    def _advance(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the next phase if the metric says so.

        Also called on_train_start: after a resume from the end of an epoch's last batch Lightning
        leaves out on_train_epoch_start.
        """
        if self._plateau and self._plateau.advance(trainer, pl_module, len(self._fitted.phases)):
            drop_state(trainer.optimizers, self._fitted.inside.values())
            self._enter(trainer, self._plateau.state.phase)

    def _description(self, schedule: FreezeSchedule) -> dict[str, Any]:
        return {"schedule": schedule.describe(), "plateau": self.advance}

    def _detach(self) -> None:
        if self.resolved is not None:
            self.resolved.prefixes.take_back()
        self._guard = None
