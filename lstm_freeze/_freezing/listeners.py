"""Listeners: the objects that are told of every freeze, unfreeze and undo."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import nn


class Listener(Protocol):
    """An object that is told of every freeze, unfreeze and undo."""

    def before_unfreezing(self, parameters: Sequence[nn.Parameter]) -> None:
        """Called before these may become trainable; an error stops it, and nothing is changed."""

    def frozen_changed(self, parameters: Sequence[nn.Parameter]) -> None:
        """Called after a call has decided whether these parameters train."""

    def statistics_recomputed(self, module: nn.Module) -> None:
        """Called when somebody recomputes the statistics of a frozen normalisation layer."""

    def idle_steps(self) -> Mapping[int, int]:
        """Id of each trainable parameter that does not train -> for how many optimizer steps."""


listeners: weakref.WeakSet[Listener] = weakref.WeakSet()


def announce_unfreezing(parameters: Sequence[nn.Parameter]) -> None:
    """Tell all listeners which parameters may become trainable now."""
    for listener in tuple(listeners):
        listener.before_unfreezing(parameters)


def announce_change(parameters: Sequence[nn.Parameter]) -> None:
    """Tell all listeners which parameters a call has decided about."""
    for listener in tuple(listeners):
        listener.frozen_changed(parameters)


def announce_recompute(module: nn.Module) -> None:
    """Tell all listeners that somebody recomputes the statistics of a frozen layer."""
    for listener in tuple(listeners):
        listener.statistics_recomputed(module)


def idle_steps() -> dict[int, int]:
    """`Listener.idle_steps` of all listeners together."""
    found: dict[int, int] = {}
    for listener in tuple(listeners):
        found.update(listener.idle_steps())
    return found
