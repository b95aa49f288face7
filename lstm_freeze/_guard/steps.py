"""Optimizer steps of this process: every one of torch's is told to whoever watches.

Torch's global step hook is used, and not the hooks of one optimizer: it also hears of optimizers
inside a wrapper and of those that are built later, and nothing is left on an optimizer.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from .._torch_internals import steps_around


class Watcher(Protocol):
    """What wants to hear of optimizer steps."""

    def after_step(self, optimizer: Optimizer, around: Sequence[object]) -> None:
        """Called after a step; `around` are the optimizers whose own step made it, if any."""


_watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()
_hooks: list[RemovableHandle] = []  # one while somebody watches


def watch_steps(watcher: Watcher) -> None:
    """Tell this one of every step from now on, as long as it lives."""
    _watchers.add(watcher)
    if not _hooks:
        _hooks.append(register_optimizer_step_post_hook(_tell))


def stop_watching_steps(watcher: Watcher) -> None:
    """Tell this one no more; one that does not watch is left as it is."""
    _watchers.discard(watcher)
    if not _watchers:
        while _hooks:
            _hooks.pop().remove()


def _tell(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    around = tuple(steps_around(sys._getframe(1)))
    first_error: Exception | None = None
    for watcher in tuple(_watchers):
        try:
            watcher.after_step(optimizer, around)
        except Exception as error:  # the others hear of the step, too
            first_error = first_error or error
    if first_error is not None:
        raise first_error
