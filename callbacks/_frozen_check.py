"""FrozenWeightsCheck: proof, in a Lightning fit, that what is frozen does not move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lstm_freeze import FrozenGuard
from lstm_freeze._checks import as_integer, as_one_of

from ._both import Callback, without_fit

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class FrozenWeightsCheck(Callback):
    """Compare all that is frozen, bit for bit, after optimizer steps and at the end of the fit.

    Stops the training with FrozenWeightsChanged, which names each parameter, the step and the
    likely cause. Follows freeze and unfreeze during the fit. The last comparison is made in
    `on_fit_end`, after averaging callbacks (SWA, EMA) have written their weights.

    Args:
        every_n_steps: Compare after every so many optimizer steps.
        mode: "exact" keeps a copy of what is frozen and can say how much moved; "fingerprint"
            keeps 8 bytes per parameter.

    Raises:
        ValueError: A value is out of its range.

    Examples:
        >>> FrozenWeightsCheck(every_n_steps=10, mode="fingerprint").every_n_steps
        10
    """

    def __init__(self, every_n_steps: int = 1, mode: str = "exact") -> None:
        """Check the arguments."""
        self.every_n_steps = as_integer(every_n_steps, "every_n_steps", least=1)
        self.mode = as_one_of(mode, "mode", ("exact", "fingerprint"))
        self.guard: FrozenGuard | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: nothing of a module, an optimizer or a guard."""
        return without_fit(self, guard=None)

    @property
    def checks(self) -> int:
        """How often everything was compared and found unchanged, in the present or last fit."""
        return 0 if self.guard is None else self.guard.checks

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what is frozen, and compare after the steps of every optimizer."""
        self.guard = FrozenGuard(pl_module, mode=self.mode)
        self.guard.attach(trainer.optimizers, self.every_n_steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps as the trainer does, also after a resume."""
        if self.guard is not None:
            self.guard.step = trainer.global_step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare once more: averaging callbacks write weights at the end of training."""
        if self.guard is not None:
            self.guard.check()
            self.guard.detach()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the optimizers."""
        if self.guard is not None:
            self.guard.detach()
