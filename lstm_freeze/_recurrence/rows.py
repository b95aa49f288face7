"""Rows: the one internal form of unbatched, batch-first and packed input.

The internal form is time-major rows. Dense input is (T, B, I). Packed input keeps the packed rows
(N, I), where step t holds the rows of the `batch_sizes[t]` sequences that are still running.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

# Up to so many packed rows, Python finds their order sooner than torch's operations can be called.
_FEW_ROWS = 256


class Rows(NamedTuple):
    """A batch of sequences in the internal form.

    Attributes:
        data: (T, B, I) time-major, or (N, I) packed rows.
        batch_sizes: (T,) sequences still running at each step, on the CPU; None for dense rows.
        reverse: (N,) the packed row that each row swaps with when every sequence is read from its
            end; None for dense rows and where only one direction is read.
        lengths: (B,) the lengths of dense rows that are padded; None elsewhere.
    """

    data: Tensor
    batch_sizes: Tensor | None = None
    reverse: Tensor | None = None
    lengths: Tensor | None = None

    @property
    def is_dense(self) -> bool:
        """Whether the rows are dense: every step has every sequence."""
        return self.batch_sizes is None and self.lengths is None

    def with_data(self, data: Tensor) -> Rows:
        """The same sequences with other features: (..., F)."""
        return self._replace(data=data)


class Run(NamedTuple):
    """Consecutive steps with the same number of running sequences.

    Attributes:
        row: The first row.
        steps: The number of steps.
        batch: The rows of each step.
        before: The number of rows of the step before the first one, or of the initial state.
    """

    row: int
    steps: int
    batch: int
    before: int


def dense_rows(input: Tensor, batch_first: bool) -> Rows:
    """Batched input, (T, B, I) or with `batch_first` (B, T, I), as contiguous time-major rows."""
    if batch_first:
        input = input.transpose(0, 1)
    return Rows(input.contiguous())


def packed_rows(input: PackedSequence, both_directions: bool, traced: bool) -> Rows:
    """A PackedSequence's rows, with the order the reverse direction reads them in."""
    # A copy: the caller may share the sizes' memory with others, and write to it before backward.
    data, batch_sizes = input.data.contiguous(), input.batch_sizes.clone()
    if not traced:
        check_packed(data, batch_sizes)
    if not both_directions:
        return Rows(data, batch_sizes)
    reverse = reverse_rows if traced else _reverse_rows
    return Rows(data, batch_sizes, reverse(data, batch_sizes))


def flipped(rows: Tensor, reverse: Tensor | None) -> Tensor:
    """The rows with every sequence reversed; a second call restores them."""
    return rows.flip(0) if reverse is None else rows.index_select(0, reverse)


def backwards(data: Tensor, reverse: Tensor | None) -> Tensor:
    """For each step or packed row, the one it swaps with when sequences are read from their end.

    >>> backwards(torch.zeros(3, 2, 1), None)
    tensor([2, 1, 0])
    """
    if reverse is not None:
        return reverse
    return torch.arange(data.shape[0] - 1, -1, -1, device=data.device)


def unpermuted(state: tuple[Tensor, Tensor], permutation: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both states, (L * D, B, H), with their sequences picked in the order of `permutation`."""
    if permutation is None:
        return state
    return state[0].index_select(1, permutation), state[1].index_select(1, permutation)


def runs_of(steps: int, batch: int, batch_sizes: Tensor | None) -> list[Run]:
    """The runs of equal batch size, in order of time.

    >>> runs_of(3, 2, torch.tensor([2, 2, 1]))
    [Run(row=0, steps=2, batch=2, before=2), Run(row=4, steps=1, batch=1, before=2)]
    >>> runs_of(3, 2, None)
    [Run(row=0, steps=3, batch=2, before=2)]
    """
    if batch_sizes is None:
        return [Run(0, steps, batch, batch)]
    sizes, counts = torch.unique_consecutive(batch_sizes, return_counts=True)
    runs: list[Run] = []
    row = 0
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        if not size:
            break  # nn.LSTM, too, accepts steps at the end without any sequence
        runs.append(Run(row, count, size, runs[-1].batch if runs else size))
        row += size * count
    return runs


def blocks_of(runs: list[Run], rows: int) -> list[list[Run]]:
    """The same steps in blocks of at most `rows` rows (at least one step each).

    >>> blocks = blocks_of([Run(0, 3, 2, 2), Run(6, 2, 1, 2)], 4)
    >>> [[(run.row, run.steps) for run in block] for block in blocks]
    [[(0, 2)], [(4, 1), (6, 2)]]
    """
    blocks: list[list[Run]] = [[]]
    room = rows
    for run in runs:
        row, left, before = run.row, run.steps, run.before
        while left:
            if room < run.batch and blocks[-1]:
                blocks.append([])
                room = rows
            steps = min(left, max(1, room // run.batch))
            blocks[-1].append(Run(row, steps, run.batch, before))
            before = run.batch
            row += steps * run.batch
            left -= steps
            room -= steps * run.batch
    return blocks


def bounds(block: list[Run]) -> tuple[int, int]:
    """The first row of a block and the one after its last.

    >>> bounds([Run(4, 1, 2, 2), Run(6, 2, 1, 2)])
    (4, 8)
    """
    return block[0].row, block[-1].row + block[-1].steps * block[-1].batch


def moved(rows: Tensor, device: torch.device) -> Tensor:
    """Places that were found on the host, on the device; the host does not wait for the copy."""
    return rows.to(device, non_blocking=True)


def last_rows(rows: int, batch: int, batch_sizes: Tensor | None, device: torch.device) -> Tensor:
    """The row of each sequence's last step, on the device of the data: (B,).

    >>> last_rows(5, 2, torch.tensor([2, 2, 1]), torch.device("cpu"))
    tensor([4, 3])
    >>> last_rows(6, 2, None, torch.device("cpu"))
    tensor([4, 5])
    """
    if batch_sizes is None:
        return torch.arange(rows - batch, rows, device=device)
    starts = batch_sizes.cumsum(0) - batch_sizes
    sequences = torch.arange(batch, device=batch_sizes.device)
    return moved(starts[lengths_of(batch_sizes, batch) - 1] + sequences, device)


def lengths_of(batch_sizes: Tensor, batch: int) -> Tensor:
    """The number of steps of each sequence: (B,).

    >>> lengths_of(torch.tensor([2, 2, 1]), 2)
    tensor([3, 2])
    """
    return (batch_sizes.unsqueeze(1) > torch.arange(batch, device=batch_sizes.device)).sum(0)


def previous_rows(batch_sizes: Tensor, rows: int, device: torch.device) -> Tensor:
    """For each packed row, the index of the same sequence's previous row.

    The indices count B rows of initial states before the packed rows.

    >>> previous_rows(torch.tensor([2, 2, 1]), 5, torch.device("cpu"))
    tensor([0, 1, 2, 3, 4])
    >>> previous_rows(torch.tensor([3, 1, 1]), 5, torch.device("cpu"))
    tensor([0, 1, 2, 3, 6])
    """
    before = torch.cat((batch_sizes[:1], batch_sizes[:-1]))
    shift = torch.repeat_interleave(before, batch_sizes, output_size=rows)
    places = torch.arange(rows, device=batch_sizes.device) + batch_sizes[0] - shift
    return moved(places, device)


def check_packed(data: Tensor, batch_sizes: Tensor) -> None:
    """Raises where the rows of a PackedSequence do not fit its batch sizes."""
    # The native loop reads memory by these numbers.
    form = (batch_sizes.dtype, batch_sizes.device.type, batch_sizes.dim())
    if form != (torch.int64, "cpu", 1):
        raise RuntimeError(
            "input.batch_sizes must be a 1-D int64 tensor on the CPU. Got "
            f"{batch_sizes.dim()}-D {batch_sizes.dtype} on {batch_sizes.device}: make it with "
            "pack_padded_sequence or pack_sequence"
        )
    rows, sizes = data.shape[0], batch_sizes.tolist()  # Python's integers do not wrap around
    if not sizes:
        raise RuntimeError("input.batch_sizes must have at least one step, got none")
    if sizes != sorted(sizes, reverse=True) or sizes[-1] < 0:
        raise RuntimeError(
            "input.batch_sizes must not increase from step to step, nor be negative. "
            f"Got {sizes}: make it with pack_padded_sequence or pack_sequence"
        )
    if sum(sizes) != rows:
        raise RuntimeError(
            "input.data must have one row for each step of each sequence. "
            f"Expected {sum(sizes)} (the sum of input.batch_sizes), got {rows}"
        )


@torch.library.custom_op(
    "lstm_freeze::reverse_rows", mutates_args=(), schema="(Tensor data, Tensor sizes) -> Tensor"
)
def reverse_rows(data: Tensor, batch_sizes: Tensor) -> Tensor:
    """The packed row that each row swaps with when every sequence is reversed: (N,).

    >>> reverse_rows(torch.zeros(5, 1), torch.tensor([2, 2, 1]))
    tensor([4, 3, 2, 1, 0])
    """
    check_packed(data, batch_sizes)
    return _reverse_rows(data, batch_sizes)


def _reverse_rows(data: Tensor, batch_sizes: Tensor) -> Tensor:
    rows, host = data.shape[0], batch_sizes.device
    if rows <= _FEW_ROWS:
        few = torch.tensor(_reverse_of_few(batch_sizes.tolist()), dtype=torch.long, device=host)
        return moved(few, data.device)
    steps = torch.arange(len(batch_sizes), device=host)
    starts = batch_sizes.cumsum(0) - batch_sizes
    step = torch.repeat_interleave(steps, batch_sizes, output_size=rows)
    sequence = torch.arange(rows, device=host) - starts[step]
    last = torch.zeros(int(batch_sizes[0]), dtype=torch.long, device=host)
    last.scatter_reduce_(0, sequence, step, "amax")
    return moved(starts[last[sequence] - step] + sequence, data.device)


def _reverse_of_few(sizes: Sequence[int]) -> list[int]:
    starts, last = list(accumulate(sizes, initial=0)), [0] * sizes[0]
    for step, size in enumerate(sizes):
        last[:size] = [step] * size
    return [
        starts[last[sequence] - step] + sequence
        for step, size in enumerate(sizes)
        for sequence in range(size)
    ]


@reverse_rows.register_fake
def _(data: Tensor, batch_sizes: Tensor) -> Tensor:
    return data.new_empty(data.shape[0], dtype=torch.long)
