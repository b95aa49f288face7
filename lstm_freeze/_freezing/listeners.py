"""Who hears of every freeze, unfreeze and undo."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import nn


class Listener(Protocol):
    """What wants to hear of every freeze, unfreeze and undo."""

    def before_unfreezing(self, parameters: Sequence[nn.Parameter]) -> None:
        """Called before these may become trainable; an error stops it, and nothing is changed."""

    def frozen_changed(self, parameters: Sequence[nn.Parameter]) -> None:
        """Called after the state of these parameters was decided anew."""

    def statistics_recomputed(self, module: nn.Module) -> None:
        """Called when a held normalisation layer's statistics are recomputed on purpose."""

    def idle_steps(self) -> Mapping[int, int]:
        """Id of each trainable parameter that does not train -> for how many optimizer steps."""


listeners: weakref.WeakSet[Listener] = weakref.WeakSet()


def announce_unfreezing(parameters: Sequence[nn.Parameter]) -> None:
    """Tell all listeners what may become trainable now."""
    for listener in tuple(listeners):
        listener.before_unfreezing(parameters)


def announce_change(parameters: Sequence[nn.Parameter]) -> None:
    """Tell all listeners whose state was decided anew."""
    for listener in tuple(listeners):
        listener.frozen_changed(parameters)


def announce_recompute(module: nn.Module) -> None:
    """Tell all listeners of a held normalisation layer whose statistics somebody recomputes."""
    for listener in tuple(listeners):
        listener.statistics_recomputed(module)


def idle_steps() -> dict[int, int]:
    """What is known of trainable parameters that do not train; see `Listener.idle_steps`."""
    found: dict[int, int] = {}
    for listener in tuple(listeners):
        found.update(listener.idle_steps())
    return found
