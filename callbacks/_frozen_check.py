"""FrozenWeightsCheck: proof, in a Lightning fit, that what is frozen does not move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lstm_freeze import FrozenGuard
from lstm_freeze._checks import as_integer, as_one_of

from ._callback import Callback, without_fit
from ._fit_guard import FitGuard

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class FrozenWeightsCheck(Callback):
    """Compare all that is frozen, bit for bit, after optimizer steps and at the end of the fit.

    A change stops the training with FrozenWeightsChanged, which names each parameter, the step and
    the likely cause. The check follows freeze and unfreeze during the fit, the optimizers inside
    wrappers and those that the trainer builds during the fit. Where a step is made that torch's
    step hooks do not see, it compares at the batch's end. The last comparison is made in
    on_fit_end, after averaging callbacks (SWA, EMA) have written their weights.

    Args:
        every_n_steps: The number of optimizer steps from one comparison to the next.
        mode: "exact" keeps a copy of what is frozen and can say how much moved; "fingerprint"
            keeps 8 bytes per parameter.
        idle_after: Warn of each trainable parameter that has not trained for this many optimizer
            steps in a row; see FrozenGuard. None: do not look.

    Raises:
        ValueError: A value is out of its range.
        TypeError: A number is not an integer.

    Examples:
        >>> FrozenWeightsCheck(every_n_steps=10, mode="fingerprint").every_n_steps
        10
    """

    def __init__(
        self, every_n_steps: int = 1, mode: str = "exact", idle_after: int | None = None
    ) -> None:
        """Check the arguments."""
        self.every_n_steps = as_integer(every_n_steps, "every_n_steps", least=1)
        self.mode = as_one_of(mode, "mode", ("exact", "fingerprint"))
        if idle_after is not None:
            idle_after = as_integer(idle_after, "idle_after", least=1)
        self.idle_after = idle_after
        self._fit: FitGuard | None = None

    @property
    def guard(self) -> FrozenGuard | None:
        """The guard of the present or last fit."""
        return None if self._fit is None else self._fit.guard

    def __getstate__(self) -> dict[str, Any]:
        """The state for copies and pickles, without module, optimizers and guard."""
        return without_fit(self, _fit=None)

    @property
    def checks(self) -> int:
        """How often everything was compared and found unchanged, in the present or last fit."""
        return 0 if self.guard is None else self.guard.checks

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what is frozen."""
        self._fit = FitGuard(pl_module, self.mode, self.every_n_steps, self.idle_after)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Follow the trainer's optimizers, also those it has built since."""
        if self._fit is not None:
            self._fit.before_batch(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare where the batch made a step that torch's step hooks did not see."""
        if self._fit is not None:
            self._fit.after_batch(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare once more: averaging callbacks write weights at the end of training."""
        if self._fit is not None:
            self._fit.end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop following the optimizers."""
        if self._fit is not None:
            self._fit.abandon(exception)
