"""The samples of a batch: where their rows lie, copies of them, and their hashes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._hashing import column_hashes, row_hashes
from .._recurrence import Rows, check_packed, reverse_rows


class SampleRows(NamedTuple):
    """Where the samples of a batch lie among its rows.

    Attributes:
        lengths: (B,) steps of each sample.
        runs: (T, B) whether a sample has a step; None where dense.
        order: (N,) the packed rows of one sample after another, by step; None where dense.
    """

    lengths: list[int]
    runs: Tensor | None = None
    order: Tensor | None = None


def sample_rows(rows: Rows) -> SampleRows:
    """Where the samples of dense or packed rows lie."""
    if rows.batch_sizes is None:
        return SampleRows([rows.data.shape[0]] * rows.data.shape[1])
    check_packed(rows.data, rows.batch_sizes)
    return _packed_sample_rows(rows.batch_sizes, rows.data.device)


def _packed_sample_rows(sizes: Tensor, device: torch.device) -> SampleRows:
    sample = torch.arange(int(sizes[0]), device="cpu")
    runs = sample < sizes[:, None]
    row = sample + (sizes.cumsum(0) - sizes)[:, None]
    places = row.t()[runs.t()].to(device, non_blocking=True)
    return SampleRows(runs.sum(0).tolist(), runs.to(device, non_blocking=True), places)


def copies(data: Tensor, where: SampleRows) -> list[functools.partial[Tensor]]:
    """For each sample, a function that copies its rows, (len, F), to memory of their own."""
    if where.order is None:
        form = torch.contiguous_format
        return [functools.partial(torch.clone, x, memory_format=form) for x in data.unbind(1)]
    of_each = torch.split(where.order, where.lengths)
    return [functools.partial(torch.index_select, data, 0, rows) for rows in of_each]


def joined(samples: Sequence[Tensor], where: SampleRows) -> Tensor:
    """Samples, (len, F) each, as the data of a batch in which they lie as `where` says."""
    if where.order is None:
        return torch.stack(list(samples), 1)
    # No concatenation: to use so much memory for the first time costs more than the copies.
    data = samples[0].new_empty(len(where.order), *samples[0].shape[1:])
    for sample, rows in zip(samples, torch.split(where.order, where.lengths), strict=True):
        data.index_copy_(0, rows, sample)
    return data


def rows_of(samples: Sequence[Tensor], like: Rows) -> tuple[Rows, SampleRows]:
    """Samples, (len, F) each, as rows in the form of `like`; packed rows by falling length."""
    if like.batch_sizes is None:
        rows = Rows(torch.stack(list(samples), 1))
        return rows, sample_rows(rows)
    lengths = torch.tensor([len(x) for x in samples], device="cpu")
    sizes = (lengths > torch.arange(len(samples[0]), device="cpu")[:, None]).sum(1)
    where = _packed_sample_rows(sizes, like.data.device)
    data = joined(samples, where)
    return Rows(data, sizes, None if like.reverse is None else reverse_rows(data, sizes)), where


def contents(rows: Rows, where: SampleRows) -> list[tuple[int, int]]:
    """A 128-bit hash of each sample's rows."""
    hashes = row_hashes(rows.data.flatten(0, -2))
    if where.runs is None:
        hashes = hashes.view(2, -1, len(where.lengths))
    else:
        # Steps that a sample does not have are zeros, which add nothing.
        hashes = hashes.new_zeros(2, *where.runs.shape).masked_scatter_(where.runs, hashes)
    first, second = column_hashes(hashes).tolist()
    return list(zip(first, second, strict=True))
