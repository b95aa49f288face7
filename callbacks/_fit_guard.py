"""A FrozenGuard for the length of a fit, however the fit makes its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.optim import Optimizer

from lstm_freeze import FrozenGuard

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class FitGuard:
    """Compares after optimizer steps and at the end of a fit.

    The optimizers are the trainer's, also those it builds in mid-fit. Where a batch made a step
    that torch's step hooks did not see, and as long as none was seen, it compares at the batch's
    end.
    """

    def __init__(
        self,
        module: nn.Module,
        mode: str,
        every_n_steps: int | None,
        idle_after: int | None = None,
    ) -> None:
        """Remember what is frozen; `every_n_steps` None compares only when it is told to."""
        # Inside its `with` block, which is the fit: no other guard takes its place.
        self.guard = FrozenGuard(module, mode, idle_after=idle_after).__enter__()
        self._module = module
        self._every_n_steps = every_n_steps
        self._optimizers: list[Optimizer] | None = None  # None before the first batch
        self._ever_seen = False
        self._unseen = 0  # batches since the last comparison that made a step unseen
        self._steps = (0, 0)  # the guard's and the trainer's, when the batch began

    def before_batch(self, trainer: Trainer) -> None:
        """Follow optimizers that were built since, and count as the trainer does after a resume."""
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
        """Compare, if it is time, where a step was made that the guard has not seen."""
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
        """Leave the optimizers, with an exception on its way."""
        self._optimizers = None
        self.guard.__exit__(type(exception), exception, None)

    def _optimizers_to_follow(self, optimizers: list[Optimizer]) -> list[Optimizer] | None:
        """The trainer's; every one (None) where those hold nothing of the module.

        A fit may have none of its own, for which Lightning puts one that does nothing.
        """
        own = {id(p) for p in self._module.parameters()}
        held = (p for o in optimizers for group in o.param_groups for p in group["params"])
        return optimizers if any(id(p) in own for p in held) else None
