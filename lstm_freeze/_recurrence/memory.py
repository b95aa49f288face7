"""Memory on the CPU that layers use again: a training step takes what the last one gave back.

The C library returns large blocks to the system as soon as they are free, and the next step pays
for each of their pages anew, up to a tenth of its time. Here a block waits for the next tensor that
fits, for some passes of layers. No output, state or gradient lies in such a block, only what a
layer keeps for its backward pass and what it works with in between. The blocks are the extension's
(see `_blocks.h`); without it, every tensor is torch's own.
"""

from __future__ import annotations

import math
import os
import sys
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

_SMALLEST = 2**20  # bytes; the C library keeps smaller blocks itself

_blocks: ModuleType | None = None


def use(extension: ModuleType | None) -> None:
    """Takes memory from the extension from now on, where there is one."""
    global _blocks
    _blocks = extension
    if extension is not None and sys.platform != "win32":
        os.register_at_fork(after_in_child=extension.after_fork)


def empty(like: Tensor, *shape: int) -> Tensor:
    """An uninitialized tensor as `like.new_empty(shape)` makes it, maybe in memory used before."""
    count, size = math.prod(shape), like.element_size()
    if _blocks is None or count * size < _SMALLEST or like.device.type != "cpu":
        return like.new_empty(shape)
    if like.dtype not in (torch.float32, torch.float64):
        return like.new_empty(shape)
    try:
        block = _blocks.lend(count, size)
    except MemoryError:  # if torch finds none either, it says so in its own words
        return like.new_empty(shape)
    lent: Tensor = from_dlpack(block)
    return lent.view(shape)


def pass_by() -> None:
    """One more pass of a layer: what has waited through many is let go."""
    if _blocks is not None:
        _blocks.pass_by()


def waiting_memory() -> int:
    """The bytes held for later."""
    return 0 if _blocks is None else int(_blocks.waiting())


def release_memory() -> int:
    """Gives the memory back that waits for the next call of a BiLSTM.

    On the CPU a BiLSTM keeps the working memory of its last calls for the next one, which is
    faster; what 64 passes of layers have not asked for goes by itself. Call this before something
    else needs the memory; the next call of a BiLSTM takes new memory.

    Examples:
        >>> from lstm_freeze import release_memory
        >>> _ = release_memory()
        >>> release_memory()
        0

    Returns:
        The bytes that were given back.
    """
    return 0 if _blocks is None else int(_blocks.release())
