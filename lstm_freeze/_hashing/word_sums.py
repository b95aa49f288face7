"""The one hash of this package: sums of 8-byte words times fixed multipliers, modulo 2**64.

A word counts twice, as a whole and by its upper half: low * word + high * (word >> 32). Low and
high are random odd multipliers, fixed for each place. Without the second term the top bits of a
word would hardly count, and two changed signs could cancel. A change within one half of one word
always changes the sum. Two or more changes cancel with a chance of about 2**-32 in the worst case
(two signs flipped or swapped), else of 2**-64. The hash detects accidents; it does not resist
someone who knows the multipliers.

Integer sums do not depend on the order of addition, so the C extension, torch's operations on the
CPU and those on other devices give the same numbers.
"""

from __future__ import annotations

import functools
import random
import struct
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from .._extensions import ready

try:
    from . import _words
except ImportError:
    _extension: ModuleType | None = None  # torch operations give the same numbers
else:
    _extension = ready(_words, 1)

_BLOCK = 16  # rows: 256 KiB, which stay in a core's cache and need no second thread


class WordRows(NamedTuple):
    """Rows of words in memory and the place for their sums, as the extension takes them."""

    words: int  # an address
    rows: int
    length: int  # of a row, in words
    sums: int  # an address


def has_extension() -> bool:
    """Whether the C extension is there; without it torch operations give the same numbers."""
    return _extension is not None


def sum_tables(tables: Sequence[WordRows], low: Tensor, high: Tensor, owners: object) -> None:
    """Have the extension sum the rows of all tables with the same multipliers.

    `owners` keep the memory at the addresses alive.
    """
    weights = low.data_ptr(), high.data_ptr()
    flat = [x for t in tables for x in (*t[:3], *weights, t.sums)]
    packed = struct.pack(f"={len(flat)}q", *flat)
    _words.row_sums(torch.get_num_threads(), packed, (low, high, owners))


def row_sums(words: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """sum(low * word + high * (word >> 32)) of each row of words (R, W), modulo 2**64: (R,)."""
    if words.device.type == "cpu" and _extension is not None:
        words, low, high = words.contiguous(), low.contiguous(), high.contiguous()
        sums = words.new_empty(len(words))
        table = WordRows(words.data_ptr(), len(words), words.shape[1], sums.data_ptr())
        sum_tables([table], low, high, words)
        return sums
    # In blocks, so that the scratch memory of a block stays in cache.
    room = torch.empty_like(words[:_BLOCK])
    blocks = [_block_sums(block, low, high, room) for block in torch.split(words, _BLOCK)]
    return torch.cat(blocks) if blocks else words.new_empty(0)


def _block_sums(words: Tensor, low: Tensor, high: Tensor, room: Tensor) -> Tensor:
    upper = torch.bitwise_right_shift(words, 32, out=room[: len(words)])
    if words.device.type == "cpu":
        return torch.mv(words, low).add_(torch.mv(upper, high))
    # On other devices there is no mv of integers.
    return upper.mul_(high).addcmul_(words, low).sum(1)


@functools.lru_cache(maxsize=256)
def multipliers(seed: int, rows: int, count: int, device: torch.device) -> Tensor:
    """(rows, count) odd random words, the same on every platform and in every version of torch."""
    numbers = _mersenne_twister(seed)
    drawn = bytes(numbers.getrandbits(32) & 0xFF for _ in range(8 * rows * count))
    words = [word | 1 for word in struct.unpack(f"<{rows * count}q", drawn)]
    return torch.tensor(words, dtype=torch.int64, device="cpu").view(rows, count).to(device)


def _mersenne_twister(seed: int) -> random.Random:
    """MT19937 from the reference seeding, as NumPy and torch have it; Python's own differs."""
    state = [seed]
    for i in range(1, 624):
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + i) & 0xFFFFFFFF)
    numbers = random.Random()
    numbers.setstate((3, (*state, 624), None))
    return numbers
