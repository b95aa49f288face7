"""Who hears of every freeze, unfreeze and undo: the guards."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from .._model import rewrite


class Listener(Protocol):
    """What wants to hear of every freeze, unfreeze and undo."""

    def frozen_changed(self, parameters: Sequence[nn.Parameter]) -> None:
        """Called after the state of these parameters was decided anew."""

    def statistics_recomputed(self, module: nn.Module) -> None:
        """Called when a held normalisation layer's statistics are recomputed on purpose."""


listeners: weakref.WeakSet[Listener] = weakref.WeakSet()


def tell_changed(module: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Say that the state of these parameters of a module was decided anew."""
    if torch.__version__ < "2.13":
        rewrite(module, parameters)
    for listener in tuple(listeners):
        listener.frozen_changed(parameters)


def tell_recomputed(module: nn.Module) -> None:
    """Say that a held normalisation layer's statistics are recomputed on purpose."""
    for listener in tuple(listeners):
        listener.statistics_recomputed(module)
