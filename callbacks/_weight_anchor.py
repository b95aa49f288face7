"""WeightAnchor: draws weights towards their values at the start, in a Lightning fit."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lstm_freeze import Anchor, anchor
from lstm_freeze._checks import as_number
from lstm_freeze._model import as_targets

from ._callback import Callback, goes_on, without_fit

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class WeightAnchor(Callback):
    """Draw weights towards what they were at the start of the first fit.

    After each optimizer step `w -= lr * strength * (w - w0)` for every chosen weight that is
    trainable then, with the learning rate of its param group; see `lstm_freeze.anchor`. w0 is in
    the checkpoint, so a resumed run is drawn towards the same weights.

    Args:
        targets: What to anchor; see `select`. None: everything.
        strength: How strongly, at least 0.

    Raises:
        ValueError: `strength` is out of range; when the fit starts: a target names nothing, or a
            trainable weight is in no optimizer.
        TypeError: An argument is of another type than named above.

    Examples:
        >>> WeightAnchor("encoder", strength=0.01).strength
        0.01
    """

    def __init__(self, targets: str | list[str] | None, strength: float) -> None:
        """Check the arguments."""
        self.targets = tuple(as_targets(targets, "targets"))
        self.strength = as_number(strength, "strength", least=0)
        self._anchor: Anchor | None = None
        self._start: dict[str, Tensor] = {}
        self._module: weakref.ref[nn.Module] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The state for copies and pickles: of the module only the weights at the start."""
        start = self._start if self._anchor is None else self._anchor.state_dict()
        return without_fit(self, _anchor=None, _module=None, _start=start)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget earlier fits, unless the same Trainer goes on with the same module."""
        if stage == "fit":
            if not goes_on(trainer, self._module, pl_module):
                self._start = {}
            self._module = weakref.ref(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The weights at the start of the first fit."""
        start = self._start if self._anchor is None else self._anchor.state_dict()
        return {"start": {name: w.cpu() for name, w in start.items()}} if start else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Draw towards the weights at the start of the run that made the checkpoint."""
        self._start = dict(state_dict.get("start", {}))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Anchor the weights at their present values, or at those of a checkpoint."""
        known = self._start
        self._detach()
        held = anchor(pl_module, trainer.optimizers, *self.targets, strength=self.strength)
        self._anchor = held
        if known:
            held.load_state_dict(known)
        self._start = held.state_dict()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop following the optimizers."""
        self._detach()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop following the optimizers."""
        self._detach()

    def _detach(self) -> None:
        if self._anchor is not None:
            self._anchor.detach()
            self._start, self._anchor = self._anchor.state_dict(), None
