"""The gradients of the factors of weight_ih and weight_hh, by one call of the extension.

Rows are read in blocks: the gradients of their gates, and what each weight was multiplied with. All
products of a block are made while it is in cache. The sums of the blocks are added in their order,
so no bit depends on the number of threads.

Shapes are written as in `factors` of the room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..rows import previous_rows
from ..weights import Inputs, State
from . import memory
from .extension import CHUNK, call, check_kind, in_memory, packed_job, panels, whole_panels

# It enters the numbers.
_ROWS_OF_A_BLOCK = 192

Found = list[Tensor | None]


class _Side(NamedTuple):
    """The factors of one weight, and the rows (count, F) that it was multiplied with.

    They were in this `order`, (N,), or as they lie where there is none.
    """

    down: Tensor | None
    up: Tensor | None
    rows: Tensor
    order: Tensor | None

    @property
    def rank(self) -> int:
        return 0 if self.down is None else self.down.shape[0]


def of_gates(
    inputs: Inputs, state: State, back: Tensor, dgates: Tensor, asked: Sequence[Sequence[bool]]
) -> list[Found]:
    """What `factors.of_gates` of the room gives, for tensors that the extension `applies` to."""
    N, G = dgates.shape[1:]
    blocks = -(-N // _ROWS_OF_A_BLOCK)
    rows = -(-N // max(1, blocks))
    work = {
        d: _Work(_sides(inputs, state, back, d), dgates[d], flags, blocks)
        for d, flags in enumerate(asked)
        if any(flags)
    }
    gathered = max(side.rows.shape[1] for one in work.values() for side in one.sides)
    narrow = max(one.narrow for one in work.values())
    scratch = memory.empty(dgates, len(work), blocks, CHUNK * (gathered + narrow))
    numbers = [one.numbers() for one in work.values()]
    numbers += [(0,) * len(numbers[0])] * (2 - len(numbers))
    head = len(work), N, G, rows, blocks, gathered, scratch.stride(1), scratch.data_ptr()
    call("factors", packed_job(head, *numbers), (work, scratch))
    return [work[d].gradients() if d in work else [None] * 4 for d in range(len(asked))]


def _sides(inputs: Inputs, state: State, back: Tensor, direction: int) -> tuple[_Side, _Side]:
    """Of weight_ih and of weight_hh."""
    data, batch_sizes, w = inputs.data, inputs.batch_sizes, inputs.directions[direction]
    N, order, before = state.gates.shape[1], None, None
    if direction and batch_sizes is not None:
        order = back
    elif direction:
        B = data.shape[1]
        order = (back.unsqueeze(1) * B + torch.arange(B)).flatten()
    if batch_sizes is not None:
        before = previous_rows(batch_sizes, N, data.device)
    hidden = state.hidden[direction]
    return (
        _Side(w.down_ih, w.up_ih, data.flatten(0, -2), order),
        _Side(w.down_hh, w.up_hh, hidden, before),
    )


class _Work:
    """What the extension reads and writes for one direction."""

    def __init__(
        self, sides: Sequence[_Side], dgates: Tensor, flags: Sequence[bool], blocks: int
    ) -> None:
        """Pack the factors that are multiplied with."""
        for_down, for_up = any(flags[::2]), any(flags[1::2])
        self._flags, G = flags, dgates.shape[1]
        self.sides = [side._replace(rows=in_memory(side.rows.contiguous())) for side in sides]
        self._dgates = in_memory(dgates)
        for name, tensor in (("dgates", dgates), *(("rows", side.rows) for side in sides)):
            check_kind(name, tensor)
        ranks = [side.rank for side in sides]
        self.narrow = whole_panels(sum(ranks)) + whole_panels(max(ranks))
        ups = torch.cat([side.up for side in sides if side.up is not None], 1)
        self._up = panels("up", [ups.t()], sum(ranks), G) if for_down else None
        self._downs = [
            panels("down", [side.down], side.rank, side.rows.shape[1])
            if side.down is not None and for_up
            else None
            for side in sides
        ]
        self._sizes = [
            *(rank * G for rank in ranks),
            *(side.rank * side.rows.shape[1] for side in sides),
        ]
        self._out = memory.empty(dgates, blocks, sum(self._sizes))

    def numbers(self) -> tuple[int, ...]:
        """The extension's struct FactorsOf."""
        sides: list[int] = []
        for side, down in zip(self.sides, self._downs, strict=True):
            sides += side.rank, *side.rows.shape
            sides += (0 if x is None else x.data_ptr() for x in (side.rows, side.order, down))
        up = 0 if self._up is None else self._up.data_ptr()
        return self._dgates.data_ptr(), up, *sides, self._out.data_ptr(), sum(self._sizes)

    def gradients(self) -> Found:
        """Of down_ih, up_ih, down_hh and up_hh, each in memory of its own."""
        up_ih, up_hh, down_ih, down_hh = torch.split(self._out.sum(0), self._sizes)
        found: Found = []
        for side, down, up in zip(self.sides, (down_ih, down_hh), (up_ih, up_hh), strict=True):
            found += [None, None]
            if side.rank:
                found[-2:] = down.view(side.rank, -1), up.view(side.rank, -1).t()
        return [
            grad.clone(memory_format=torch.contiguous_format) if flag and grad is not None else None
            for grad, flag in zip(found, self._flags, strict=True)
        ]
