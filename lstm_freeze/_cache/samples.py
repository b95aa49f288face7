"""The samples of a batch: where their rows lie, taking them out and together, and their keys."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._hashing import column_hashes, row_hashes
from .._recurrence import Rows, check_packed, reverse_rows


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
    """A 128-bit hash of each sample's rows."""
    hashes = row_hashes(rows.data.flatten(0, -2))
    if seats.runs is None:
        hashes = hashes.view(2, -1, len(seats.lengths))
    else:
        # Steps that a sample does not have are zeros, which add nothing.
        hashes = hashes.new_zeros(2, *seats.runs.shape).masked_scatter_(seats.runs, hashes)
    first, second = column_hashes(hashes).tolist()
    return list(zip(first, second, strict=True))
