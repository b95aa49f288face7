"""Memory on the CPU that layers use again: a training step takes what the last one gave back.

The C library returns large blocks to the system as soon as they are free, and the next step pays
for each of their pages anew, up to a tenth of its time. Here a block waits for the next tensor that
fits. Nothing that a user can hold lies in such a block, only what a layer keeps for its backward
pass and what it works with in between.
"""

from __future__ import annotations

import itertools
import math
import mmap
import sys
import weakref
from typing import Any

import torch
from torch import Tensor

_SMALLEST = 2**20  # bytes; the C library keeps smaller blocks itself
_WAITS = 256  # a block that so many others were lent before is let go

# Both by id, and changed in single steps only: other threads, and the garbage collector at any
# allocation, change them too.
_free: dict[int, tuple[mmap.mmap, int]] = {}  # the block, and when it came back
_lent: dict[int, weakref.ref[memoryview]] = {}
_clock = itertools.count()


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


def release_with(owner: Any) -> None:
    """Let all waiting blocks go when `owner` goes."""
    weakref.finalize(owner, _free.clear).atexit = False


def waiting() -> int:
    """The bytes held for later."""
    return sum(len(found[0]) for key in list(_free) if (found := _free.get(key)))


def _lend(size: int) -> memoryview:
    """At least `size` bytes; their block waits again once nobody holds the view."""
    block = _found(size) or _new(size)
    view = memoryview(block)

    def come_back(ref: weakref.ref[memoryview]) -> None:
        del _lent[id(ref)]
        _free[id(block)] = block, next(_clock)

    ref = weakref.ref(view, come_back)
    _lent[id(ref)] = ref
    return view


def _found(size: int) -> mmap.mmap | None:
    """The smallest waiting block that fits, of equal ones the last to come back."""
    now, fits = next(_clock), []
    for key in list(_free):
        block, since = _free.get(key, (None, now))
        if now - since > _WAITS:
            _free.pop(key, None)
        elif block is not None and size <= len(block) <= 2 * size:
            fits.append((len(block), -since, key))
    for *_, key in sorted(fits):
        taken = _free.pop(key, None)
        if taken is not None:  # else another thread was faster
            return taken[0]
    return None


def _new(size: int) -> mmap.mmap:
    """A new block, with an eighth to spare for batches that are somewhat longer."""
    size = math.ceil(size * 9 / 8 / _SMALLEST) * _SMALLEST
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    # Python's default would share the memory with forked processes.
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
