"""Sums over a layer's rows that the loop makes on its way back: of biases and of low-rank factors.

Rows are read in chunks, while the gradients of their gates are in cache. Which rows are summed in
which order depends on their number alone: no bit depends on the number of threads.

Shapes are written as in `layer` and `factors` of the room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..rows import previous_rows
from ..weights import Inputs, State, Wanted
from . import memory
from .extension import CHUNK, check_kind, in_memory, panels, pointer, whole_panels

# Spans of consecutive chunks, of which each has its own sums. It enters the numbers.
_MOST_SPANS = 8

Found = list[Tensor | None]

# The extension's structs Factors and Sums, empty.
_NO_FACTORS = (0,) * 15
NO_SUMS = (0,) * 7 + 2 * _NO_FACTORS


class Sums:
    """The sums that are wanted of the directions walked back, and what they are made of."""

    def __init__(self, inputs: Inputs, state: State, back: Tensor, wanted: Wanted) -> None:
        """Take memory for the sums, and pack the factors that are multiplied with.

        `back` is the order in which the reverse direction reads the input.
        """
        N, G = state.gates.shape[1:]
        self._chunks = -(-N // CHUNK)
        self._of_span = -(-self._chunks // _MOST_SPANS)
        self._spans = -(-self._chunks // self._of_span)
        self._walked = wanted.directions()
        self._biases = {
            d: state.gates.new_empty(self._spans, G) for d in self._walked if wanted.bias(d)
        }
        self._factors = {
            d: _Factors(_sides(inputs, state, back, d), flags, G, self._spans)
            for d, flags in enumerate(wanted.factors())
            if any(flags)
        }
        widest = max((factors.width for factors in self._factors.values()), default=0)
        self._of_scratch = CHUNK * widest
        scratch = self._spans * self._of_scratch
        self._scratch = memory.empty(state.gates, len(self._walked), scratch)

    def numbers(self) -> tuple[int, ...]:
        """The extension's struct Sums."""
        if not self._biases and not self._factors:
            return NO_SUMS
        biases = [pointer(self._biases.get(d)) for d in self._walked]
        found = [self._chunks, self._of_span, self._spans, *[*biases, 0][:2]]
        found += self._of_scratch, self._scratch.data_ptr()
        for d in self._walked:
            factors = self._factors.get(d)
            found += _NO_FACTORS if factors is None else factors.numbers()
        return tuple(found + [0] * (len(NO_SUMS) - len(found)))

    def of_bias(self, direction: int) -> Tensor | None:
        """The gradient of a bias, (4H,); None if it is not wanted."""
        bias = self._biases.get(direction)
        return None if bias is None else bias.sum(0)

    def of_factors(self, direction: int) -> Found:
        """The gradients of down_ih, up_ih, down_hh and up_hh; None for those not wanted."""
        factors = self._factors.get(direction)
        return [None] * 4 if factors is None else factors.gradients()


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


def _sides(inputs: Inputs, state: State, back: Tensor, direction: int) -> tuple[_Side, _Side]:
    """Of weight_ih and of weight_hh."""
    data, batch_sizes, w = inputs.data, inputs.batch_sizes, inputs.directions[direction]
    order, before = back.contiguous() if direction else None, None
    if batch_sizes is not None:
        before = previous_rows(batch_sizes, state.gates.shape[1], data.device)
    elif order is not None:
        B = data.shape[1]
        order = (order.unsqueeze(1) * B + torch.arange(B, device=data.device)).flatten()
    return (
        _Side(w.down_ih, w.up_ih, data.flatten(0, -2), order),
        _Side(w.down_hh, w.up_hh, state.hidden[direction], before),
    )


class _Factors:
    """What the extension reads and writes for the factors of one direction."""

    def __init__(
        self, sides: Sequence[_Side], flags: Sequence[bool], gates: int, spans: int
    ) -> None:
        """Pack the factors; the flags say which of down_ih, up_ih, down_hh and up_hh train."""
        for_down, for_up = any(flags[::2]), any(flags[1::2])
        self._flags = flags
        self._sides = [side._replace(rows=in_memory(side.rows.contiguous())) for side in sides]
        for side in self._sides:
            check_kind("rows", side.rows)
        ranks = [side.rank for side in sides]
        self.width = 2 * whole_panels(sum(ranks)) + max(side.rows.shape[1] for side in sides)
        ups = torch.cat([side.up for side in sides if side.up is not None], 1)
        self._up = panels("up", [ups.t()], sum(ranks), gates) if for_down else None
        self._downs = [
            panels("down", [side.down], side.rank, side.rows.shape[1])
            if side.down is not None and for_up
            else None
            for side in sides
        ]
        self._sizes = [rank * gates for rank in ranks]
        self._sizes += [side.rank * side.rows.shape[1] for side in sides]
        self._out = memory.empty(ups, spans, sum(self._sizes))

    def numbers(self) -> tuple[int, ...]:
        """The extension's struct Factors."""
        sides: list[int] = []
        for side, down in zip(self._sides, self._downs, strict=True):
            sides += side.rank, *side.rows.shape
            sides += (pointer(x) for x in (side.rows, side.order, down))
        return pointer(self._up), *sides, self._out.data_ptr(), sum(self._sizes)

    def gradients(self) -> Found:
        """Of down_ih, up_ih, down_hh and up_hh, each in its own memory; None where not wanted."""
        up_ih, up_hh, down_ih, down_hh = torch.split(self._out.sum(0), self._sizes)
        found: Found = []
        for side, down, up in zip(self._sides, (down_ih, down_hh), (up_ih, up_hh), strict=True):
            found += [None, None]
            if side.rank:
                found[-2:] = down.view(side.rank, -1), up.view(side.rank, -1).t()
        return [
            grad.clone(memory_format=torch.contiguous_format) if flag and grad is not None else None
            for grad, flag in zip(found, self._flags, strict=True)
        ]
