"""The samples of a batch: where their rows lie, taking them out and together, and their keys."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ._bits import row_sums
from ._packing import Rows, check_packed, reverse_rows


class Seats(NamedTuple):
    """Where the samples of a batch lie among its rows.

    Attributes:
        lengths: (B,) steps of each sample.
        step: (N,) the step of each packed row; None where dense.
        sample: (N,) the sample of each packed row; None where dense.
        place: (N,) the packed row's place when the samples stand one after another.
    """

    lengths: list[int]
    step: Tensor | None = None
    sample: Tensor | None = None
    place: Tensor | None = None


def seats_of(rows: Rows) -> Seats:
    """The seats of dense or packed rows."""
    if rows.batch_sizes is None:
        return Seats([rows.data.shape[0]] * rows.data.shape[1])
    check_packed(rows.data, rows.batch_sizes)
    return _packed_seats(rows.batch_sizes, rows.data.shape[0], rows.data.device)


def _packed_seats(sizes: Tensor, count: int, device: torch.device) -> Seats:
    step = torch.repeat_interleave(torch.arange(len(sizes), device="cpu"), sizes, output_size=count)
    sample = torch.arange(count, device="cpu") - (sizes.cumsum(0) - sizes)[step]
    lengths = torch.bincount(sample, minlength=int(sizes[0]))
    place = (lengths.cumsum(0) - lengths)[sample] + step
    return Seats(lengths.tolist(), step.to(device), sample.to(device), place.to(device))


def copies(data: Tensor, seats: Seats) -> list[functools.partial[Tensor]]:
    """For each sample, what makes a copy of its rows, (len, F), in memory of its own."""
    if seats.place is None:
        form = torch.contiguous_format
        return [functools.partial(torch.clone, x, memory_format=form) for x in data.unbind(1)]
    return [functools.partial(torch.index_select, data, 0, rows) for rows in _rows_of_each(seats)]


def joined(samples: Sequence[Tensor], seats: Seats) -> Tensor:
    """Samples, (len, F) each, as the data of rows with these seats."""
    if seats.place is None:
        return torch.stack(list(samples), 1)
    # Not through their concatenation: first use of so much memory costs more than the copies.
    data = samples[0].new_empty(len(seats.place), *samples[0].shape[1:])
    for sample, rows in zip(samples, _rows_of_each(seats), strict=True):
        data.index_copy_(0, rows, sample)
    return data


def _rows_of_each(seats: Seats) -> tuple[Tensor, ...]:
    """The packed rows of each sample, by step."""
    assert seats.place is not None
    order = torch.empty_like(seats.place)
    order[seats.place] = torch.arange(len(order), device=order.device)
    return torch.split(order, seats.lengths)


def rows_of(samples: Sequence[Tensor], like: Rows) -> tuple[Rows, Seats]:
    """Samples, (len, F) each, as rows of the kind of `like`; packed ones by falling length."""
    if like.batch_sizes is None:
        rows = Rows(torch.stack(list(samples), 1))
        return rows, seats_of(rows)
    lengths = torch.tensor([len(x) for x in samples], device="cpu")
    sizes = (lengths > torch.arange(len(samples[0]), device="cpu")[:, None]).sum(1)
    seats = _packed_seats(sizes, int(lengths.sum()), like.data.device)
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
    low, high = _weights(max(seats.lengths), words.device, salt=1)
    batch = len(seats.lengths)
    if seats.step is None or seats.sample is None:
        weighed = _weighted(sums.view(2, -1, batch), low[..., None], high[..., None])
        total = weighed.sum(1)
    else:
        weighed = _weighted(sums, low[:, seats.step], high[:, seats.step])
        # Of one dimension: index_add_ is slow in others.
        sample = torch.cat((seats.sample, seats.sample + batch))
        total = sums.new_zeros(2 * batch).index_add_(0, sample, weighed.view(-1)).view(2, -1)
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
