"""The samples of a batch: where their rows lie, taking them out and together, and their keys."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .._hashing import row_sums
from .._rnn import Rows, check_packed, reverse_rows


class Seats(NamedTuple):
    """Where the samples of a batch lie among its rows.

    Attributes:
        lengths: (B,) steps of each sample.
        runs: (T, B) whether a sample has a step; None where dense.
        order: (N,) the packed rows of one sample after another, by step; None where dense.
    """

    lengths: list[int]
    runs: Tensor | None = None
    order: Tensor | None = None


def seats_of(rows: Rows) -> Seats:
    """The seats of dense or packed rows."""
    if rows.batch_sizes is None:
        return Seats([rows.data.shape[0]] * rows.data.shape[1])
    check_packed(rows.data, rows.batch_sizes)
    return _packed_seats(rows.batch_sizes, rows.data.device)


def _packed_seats(sizes: Tensor, device: torch.device) -> Seats:
    sample = torch.arange(int(sizes[0]), device="cpu")
    runs = sample < sizes[:, None]
    row = sample + (sizes.cumsum(0) - sizes)[:, None]
    return Seats(runs.sum(0).tolist(), runs.to(device), row.t()[runs.t()].to(device))


def copies(data: Tensor, seats: Seats) -> list[functools.partial[Tensor]]:
    """For each sample, what makes a copy of its rows, (len, F), in memory of its own."""
    if seats.order is None:
        form = torch.contiguous_format
        return [functools.partial(torch.clone, x, memory_format=form) for x in data.unbind(1)]
    of_each = torch.split(seats.order, seats.lengths)
    return [functools.partial(torch.index_select, data, 0, rows) for rows in of_each]


def joined(samples: Sequence[Tensor], seats: Seats) -> Tensor:
    """Samples, (len, F) each, as the data of rows with these seats."""
    if seats.order is None:
        return torch.stack(list(samples), 1)
    # Not through their concatenation: first use of so much memory costs more than the copies.
    data = samples[0].new_empty(len(seats.order), *samples[0].shape[1:])
    for sample, rows in zip(samples, torch.split(seats.order, seats.lengths), strict=True):
        data.index_copy_(0, rows, sample)
    return data


def rows_of(samples: Sequence[Tensor], like: Rows) -> tuple[Rows, Seats]:
    """Samples, (len, F) each, as rows of the kind of `like`; packed ones by falling length."""
    if like.batch_sizes is None:
        rows = Rows(torch.stack(list(samples), 1))
        return rows, seats_of(rows)
    lengths = torch.tensor([len(x) for x in samples], device="cpu")
    sizes = (lengths > torch.arange(len(samples[0]), device="cpu")[:, None]).sum(1)
    seats = _packed_seats(sizes, like.data.device)
    data = joined(samples, seats)
    return Rows(data, sizes, None if like.reverse is None else reverse_rows(data, sizes)), seats


def contents(rows: Rows, seats: Seats) -> list[tuple[int, int]]:
    """A 128-bit hash of each sample's rows: two multilinear hashes modulo 2**64.

    Each weighs both halves of every 8-byte word with fixed random numbers, first within a row, then
    over the rows of a sample (compare _bits.py, which says how well this tells inputs apart).
    """
    words = _words(rows.data.flatten(0, -2))
    low, high = _weights(words.shape[1], words.device)
    sums = torch.stack([row_sums(words, low[k], high[k]) for k in range(2)])
    if seats.runs is None:
        sums = sums.view(2, -1, len(seats.lengths))
    else:
        # Steps that a sample does not have are zeros, which add nothing.
        padded = sums.new_zeros(2, *seats.runs.shape)
        sums = padded.masked_scatter_(seats.runs, sums)
    low, high = _weights(sums.shape[1], words.device, salt=1)
    total = _weighted(sums, low[..., None], high[..., None]).sum(1)
    first, second = total.tolist()
    return list(zip(first, second, strict=True))


def _words(rows: Tensor) -> Tensor:
    """The memory of each row as 8-byte words, padded with zeros."""
    memory = rows.detach().contiguous().view(torch.uint8)
    if memory.shape[1] % 8:
        memory = F.pad(memory, (0, -memory.shape[1] % 8))
    elif memory.storage_offset() % 8:
        memory = memory.clone()
    return memory.view(torch.int64)


def _weighted(words: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (words >> 32).mul_(high).addcmul_(words, low)


def _weights(count: int, device: torch.device, salt: int = 0) -> tuple[Tensor, Tensor]:
    """For both hashes, (2, count) each: odd random words for the whole and for the upper half.

    Places and times have words of their own (`salt`): with the same ones, the transpose of a
    sample would have its hash.
    """
    low, high = _drawn(-(-count // 1024), device, salt)
    return low[:, :count], high[:, :count]


@functools.lru_cache(maxsize=64)
def _drawn(chunks: int, device: torch.device, salt: int) -> tuple[Tensor, Tensor]:
    drawn = []
    for chunk in range(chunks):
        generator = torch.Generator().manual_seed(0xF00D + 2 * chunk + salt)
        memory = torch.randint(
            0, 256, (4, 8 * 1024), dtype=torch.uint8, generator=generator, device="cpu"
        )
        drawn.append(memory.view(torch.int64) | 1)
    table = torch.cat(drawn, 1).to(device)
    return table[0::2], table[1::2]
