"""128-bit hashes of rows, and of columns of rows: two multilinear hashes modulo 2**64 each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .bits import as_bytes, as_words
from .word_sums import multipliers, row_sums

_CHUNK = 1024  # places whose multipliers are drawn together
# Two seeds: with one for both, a transpose would keep its hash.
_OF_ROWS, _OF_COLUMNS = 0xF00D, 0xF00E


def row_hashes(rows: Tensor) -> Tensor:
    """Two hashes of the bits of each row (N, F): (2, N) words."""
    words = _row_words(rows)
    low, high = _multipliers(_OF_ROWS, words.shape[1], words.device)
    return torch.stack([row_sums(words, low[k], high[k]) for k in range(2)])


def column_hashes(hashes: Tensor) -> Tensor:
    """Two hashes of each column of hashes (2, T, B): (2, B).

    A zero adds nothing. So a sample with fewer than T rows has zeros for the missing ones, and its
    hash is the same for any T.
    """
    low, high = _multipliers(_OF_COLUMNS, hashes.shape[1], hashes.device)
    upper = (hashes >> 32).mul_(high[..., None])
    return upper.addcmul_(hashes, low[..., None]).sum(1)


def _row_words(rows: Tensor) -> Tensor:
    """The memory of each row as 8-byte words, padded with zeros."""
    memory = as_bytes(rows.detach()).view(len(rows), rows.shape[1] * rows.element_size())
    if memory.shape[1] % 8:
        memory = F.pad(memory, (0, -memory.shape[1] % 8))
    return as_words(memory)


def _multipliers(seed: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(2, count) multipliers for whole words and for their upper halves, of both hashes."""
    chunks = range(max(1, -(-count // _CHUNK)))
    drawn = [multipliers(seed + 2 * chunk, 4, _CHUNK, device) for chunk in chunks]
    table = (drawn[0] if len(drawn) == 1 else torch.cat(drawn, 1))[:, :count]
    return table[0::2], table[1::2]
