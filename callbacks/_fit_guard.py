"""FitGuard: a FrozenGuard for one fit, also where torch's hooks do not see its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.optim import Optimizer

from lstm_freeze import FrozenGuard

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class FitGuard:
    """Compares frozen weights after optimizer steps and at the end of a fit.

    It follows the trainer's optimizers, also those that are built during the fit. It compares at
    the end of a batch instead where the batch made a step that torch's step hooks did not see, and
    as long as they have seen none.
    """

    def __init__(
        self,
        module: nn.Module,
        mode: str,
        every_n_steps: int | None,
        idle_after: int | None = None,
    ) -> None:
        """Remember what is frozen; `every_n_steps` None compares only when it is told to."""
        # The fit is its `with` block, so no other guard replaces it.
        self.guard = FrozenGuard(module, mode, idle_after=idle_after).__enter__()
        self._module = module
        self._every_n_steps = every_n_steps
        self._optimizers: list[Optimizer] | None = None  # None before the first batch
        self._ever_seen = False
        self._unseen = 0  # batches with a step that no hook saw, since the last comparison
        self._steps = (0, 0)  # step counts of guard and trainer at the batch's start

    def before_batch(self, trainer: Trainer) -> None:
        """Follow new optimizers; after a resume, count on from the trainer's step."""
        optimizers = list(trainer.optimizers)
        if self._optimizers is None or [*map(id, optimizers)] != [*map(id, self._optimizers)]:
            if self._optimizers is not None:
                self.guard.check()
            self._optimizers = optimizers
            if self._every_n_steps is not None:
                step = self.guard.step
                self.guard.attach(self._optimizers_to_follow(optimizers), self._every_n_steps)
                self.guard.step = step
        self.guard.step = max(self.guard.step, trainer.global_step)
        self._steps = self.guard.step, trainer.global_step

    def after_batch(self, trainer: Trainer) -> None:
        """Compare, if it is time, where the batch made a step that the guard has not seen."""
        seen, made = (
            now > then
            for now, then in zip((self.guard.step, trainer.global_step), self._steps, strict=True)
        )
        self._ever_seen |= seen
        if self._every_n_steps is None or seen or (self._ever_seen and not made):
            return
        self._unseen += 1
        if self._unseen >= self._every_n_steps:
            self._unseen = 0
            self.guard.check(step=trainer.global_step)

    def end(self) -> None:
        """Compare once more: averaging callbacks write weights at the end of training."""
        self._optimizers = None
        self.guard.check()
        self.guard.__exit__(None, None, None)

    def abandon(self, exception: BaseException) -> None:
        """Stop following the optimizers, without comparing: an exception ends the fit."""
        self._optimizers = None
        self.guard.__exit__(type(exception), exception, None)

    def _optimizers_to_follow(self, optimizers: list[Optimizer]) -> list[Optimizer] | None:
        """The trainer's optimizers; None (every optimizer) where they hold nothing of the module.

        For a fit without optimizers of its own, Lightning makes one that does nothing.
        """
        own = {id(p) for p in self._module.parameters()}
        held = (p for o in optimizers for group in o.param_groups for p in group["params"])
        return optimizers if any(id(p) in own for p in held) else None
