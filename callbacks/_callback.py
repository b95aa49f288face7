"""Callback: a base class for the Trainers of every Lightning that is installed.

`pytorch_lightning.Callback` and `lightning.pytorch.Callback` are unrelated classes, and
LightningCLI accepts only its own; a subclass of both is accepted everywhere.
"""

from __future__ import annotations

import importlib
import weakref
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from lightning.pytorch import Callback as Callback
else:

    def _installed() -> tuple[type, ...]:
        found = []
        for name in ("lightning.pytorch", "pytorch_lightning"):
            try:
                found.append(importlib.import_module(name).Callback)
            except ModuleNotFoundError as error:
                if error.name != name.partition(".")[0]:
                    raise
        if not found:
            raise ImportError(
                "lstm_freeze.callbacks needs pytorch_lightning or lightning, and neither is "
                'installed; pip install "lstm-freeze[lightning]"'
            )
        return tuple(found)

    class Callback(*_installed()):
        """A subclass of the Callback of every Lightning that is installed."""


def stage_is_fit(trainer: Any) -> bool:
    """Whether the trainer is in `fit`, not in `validate`, `test` or `predict`."""
    return bool(trainer.state.fn == "fit")


def goes_on(trainer: Any, before: weakref.ref[nn.Module] | None, module: nn.Module) -> bool:
    """Whether the Trainer goes on with the module of the callback's last fit."""
    return bool(trainer.global_step > 0 and before is not None and before() is module)


def without_fit(callback: Callback, **of_one_fit: Any) -> dict[str, Any]:
    """The attributes of a callback for a copy or pickle, without what belongs to one fit.

    Lightning gives each callback its module's `log` and `log_dict`, which refer to the module.

    Args:
        callback: The callback.
        of_one_fit: Further attributes that belong to one fit, with the values for the copy.
    """
    given = ("log", "log_dict")
    return {**{k: v for k, v in vars(callback).items() if k not in given}, **of_one_fit}
