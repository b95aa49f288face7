"""Who hears of every freeze, unfreeze and undo."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Protocol

from torch import nn


class Listener(Protocol):
    """What wants to hear of every freeze, unfreeze and undo."""

    def frozen_changed(self, parameters: Sequence[nn.Parameter]) -> None:
        """Called after the state of these parameters was decided anew."""

    def statistics_recomputed(self, module: nn.Module) -> None:
        """Called when a held normalisation layer's statistics are recomputed on purpose."""


listeners: weakref.WeakSet[Listener] = weakref.WeakSet()


def announce_change(parameters: Sequence[nn.Parameter]) -> None:
    """Tell all listeners whose state was decided anew."""
    for listener in tuple(listeners):
        listener.frozen_changed(parameters)


def announce_recompute(module: nn.Module) -> None:
    """Tell all listeners of a held normalisation layer whose statistics somebody recomputes."""
    for listener in tuple(listeners):
        listener.statistics_recomputed(module)
