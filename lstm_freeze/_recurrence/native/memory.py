"""Memory on the CPU that layers use again from one training step to the next.

The C library returns large free blocks of memory to the system at once, and getting their pages
again costs up to a tenth of the next step's time. So a free block is kept here, for some passes of
layers, until a tensor needs one of its size. Outputs, final states and gradients are never in such
a block: only what a layer keeps for its backward pass, and its scratch memory. The blocks are the
extension's (see `_blocks.h`). Without the extension, every tensor has memory of torch.
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
    """Takes memory from this extension from now on; None takes it from torch."""
    global _blocks
    _blocks = extension
    if extension is not None and sys.platform != "win32":
        os.register_at_fork(after_in_child=extension.after_fork)


def empty(like: Tensor, *shape: int) -> Tensor:
    """An uninitialized tensor as of `like.new_empty(shape)`, where possible in a kept block."""
    count, size = math.prod(shape), like.element_size()
    if _blocks is None or count * size < _SMALLEST or like.device.type != "cpu":
        return like.new_empty(shape)
    if like.dtype not in (torch.float32, torch.float64):
        return like.new_empty(shape)
    try:
        block = _blocks.lend(count, size)
    except MemoryError:  # if torch finds none either, it says so in its own words
        return like.new_empty(shape)
    kept: Tensor = from_dlpack(block)
    return kept.view(shape)


def picked(data: Tensor, order: Tensor) -> Tensor:
    """The entries of the first dimension in an order, (len(order), ...), in such memory."""
    out = empty(data, order.shape[0], *data.shape[1:])
    return torch.index_select(data, 0, order, out=out)


def pass_by() -> None:
    """Counts one more pass of a layer; frees the blocks that were not used for many passes."""
    if _blocks is not None:
        _blocks.pass_by()


def waiting_memory() -> int:
    """The bytes in blocks that are kept for later."""
    return 0 if _blocks is None else int(_blocks.waiting())


def release_memory() -> int:
    """Gives the memory back that is kept for the next call of a BiLSTM.

    On the CPU a BiLSTM keeps the working memory of its last calls for the next one, which is
    faster. Memory that 64 passes of layers have not used is given back by itself. Call this before
    something else needs the memory; the next call of a BiLSTM takes new memory.

    Examples:
        >>> from lstm_freeze import release_memory
        >>> _ = release_memory()
        >>> release_memory()
        0

    Returns:
        The bytes that were given back.
    """
    return 0 if _blocks is None else int(_blocks.release())
