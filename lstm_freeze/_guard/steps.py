"""Watchers: the objects that are told of every step of torch's optimizers in this process.

Torch's global step hook is used, and not the hooks of one optimizer. So optimizers inside a wrapper
and those that are built later are included, and optimizers are not changed.
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
    """An object that is told of optimizer steps."""

    def after_step(self, optimizer: Optimizer, around: Sequence[object]) -> None:
        """Called after a step; `around` are the optimizers whose own step made it, if any."""


_watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()
_hooks: list[RemovableHandle] = []  # one while somebody watches


def watch_steps(watcher: Watcher) -> None:
    """Tell a watcher of every step from now on, as long as it lives."""
    _watchers.add(watcher)
    if not _hooks:
        _hooks.append(register_optimizer_step_post_hook(_tell))


def stop_watching_steps(watcher: Watcher) -> None:
    """Tell a watcher no more; nothing happens if it was not told before."""
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
        except Exception as error:  # the other watchers must be told, too
            first_error = first_error or error
    if first_error is not None:
        raise first_error
