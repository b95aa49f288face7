"""Memory on the CPU that layers use again: a training step takes what the last one gave back.

The C library returns large blocks to the system as soon as they are free, and the next step pays
for each of their pages anew, up to a tenth of its time. Here a block waits for the next tensor that
fits. No output, state or gradient lies in such a block, only what a layer keeps for its backward
pass and what it works with in between.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import sys
import weakref
from typing import Any

import torch
from torch import Tensor

_SMALLEST = 2**20  # bytes; the C library keeps smaller blocks itself
_WAITS = 1024  # a block that so many others were lent or came back after is let go
_SPARE = 1.5  # all blocks together take at most so many times what was most lent at once

# By id, and changed in single steps only: other threads, and the garbage collector at any
# allocation, change them too.
_free: dict[int, tuple[mmap.mmap, int]] = {}  # the block, and when it came back
_lent: dict[int, int] = {}  # its size
_owners: set[object] = set()  # a token for each living module
_clock = itertools.count()
_most_lent = 0

if sys.platform != "win32":
    # Else each page that the parent writes to would be copied, and the old one stay with the child.
    os.register_at_fork(after_in_child=_free.clear)


def empty(like: Tensor, *shape: int) -> Tensor:
    """An uninitialized tensor as `like.new_empty(shape)` makes it, maybe in memory used before."""
    count = math.prod(shape)
    size = count * like.element_size()
    if size < _SMALLEST or like.device.type != "cpu":
        return like.new_empty(shape)
    try:
        memory = _lend(size)
    except OSError:  # there is no more: if torch finds none either, it says so in its own words
        _free.clear()
        return like.new_empty(shape)
    return torch.frombuffer(memory, dtype=like.dtype, count=count).view(shape)


def keep_for(owner: Any) -> None:
    """Let blocks wait while `owner` lives; when it goes, all that wait go."""
    token = object()
    _owners.add(token)
    weakref.finalize(owner, _let_go, token).atexit = False


def waiting() -> int:
    """The bytes held for later."""
    return sum(len(found[0]) for key in list(_free) if (found := _free.get(key)))


def _lend(size: int) -> memoryview:
    """At least `size` bytes; their block waits again once nobody holds the view."""
    block = _found(size) or _new(size)
    view = memoryview(block)
    _lent[id(view)] = len(block)
    weakref.finalize(view, _come_back, id(view), block).atexit = False
    return view


def _come_back(key: int, block: mmap.mmap) -> None:
    _lent.pop(key, None)
    if _owners:  # an output, or its graph, may outlive the last module
        _free[id(block)] = block, next(_clock)


def _let_go(token: object) -> None:
    _owners.discard(token)
    _free.clear()


def _found(size: int) -> mmap.mmap | None:
    """The smallest waiting block that fits, of equal ones the last to come back."""
    now, fits = next(_clock), []
    for key in list(_free):
        block, since = _free.get(key, (None, now))
        if now - since > _WAITS:
            _free.pop(key, None)
        elif block is not None and size <= len(block) <= 2 * size:
            fits.append((len(block), -since, key, block))
    for *_, key, block in sorted(fits):
        if _free.pop(key, None) is not None:  # else another thread was faster
            return block
    return None


def _new(size: int) -> mmap.mmap:
    """A new block, with an eighth to spare for batches that are somewhat longer."""
    size = math.ceil(size * 9 / 8 / _SMALLEST) * _SMALLEST
    _make_room(size)
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    # Python's default would share the memory with forked processes.
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _make_room(size: int) -> None:
    """Let the oldest go where lengths vary so much that blocks pile up which fit nothing."""
    global _most_lent
    lent = sum(_lent.get(key, 0) for key in list(_lent)) + size
    _most_lent = max(_most_lent, lent)
    held = lent + waiting()
    for key in list(_free):
        if held <= _SPARE * _most_lent:
            break
        if (found := _free.pop(key, None)) is not None:
            held -= len(found[0])
