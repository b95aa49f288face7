"""The gradients of low-rank factors, from those of a layer's rows: none is as large as a weight.

A factor takes part in two products over N rows, as wide as its rank, whose time is mostly that of
reading their large operand. So the gradient of the gates is read once for all factors of a
direction, in blocks that stay in cache from one product to the next, and the layer's input once for
both directions. A product is as wide as all factors that are there, whichever of them train: so
freezing one changes no bit of the others' gradients.

Shapes are written as in `layer`; r is a factor's rank, R the sum of the ranks in a product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .rows import previous_rows
from .weights import Inputs, State

# Of the rows' gradient. It enters the numbers, so it depends on shapes alone.
_BLOCK_BYTES = 2**21

Found = list[Tensor | None]
Maybe = Sequence[Tensor | None]


def of_gates(
    inputs: Inputs, state: State, back: Tensor, dgates: Tensor, asked: Sequence[Sequence[bool]]
) -> list[Found]:
    """The gradients of down_ih, up_ih, down_hh and up_hh of each direction; None if not asked for.

    From `dgates`, (D, N, 4H), those of the pre-activations, in directions that are asked for.
    `back` is the order in which the reverse direction reads the input.
    """
    narrow: Maybe = [None] * len(asked)
    if any(any(flags[1::2]) for flags in asked):
        narrow = _input_by_downs(inputs, back)
    low: Found = [None] * len(asked)
    found: list[Found] = [[None] * 4 for _ in asked]
    for d, (w, flags) in enumerate(zip(inputs.directions, asked, strict=True)):
        if not any(flags):
            continue
        for_downs, for_ups = any(flags[::2]), any(flags[1::2])
        beside = [narrow[d], _hidden_by_down(inputs, state, d, w.down_hh)] if for_ups else ()
        ups = (w.up_ih, w.up_hh)
        (low[d], low_hh), highs = _products(dgates[d], ups, beside, for_downs)
        found[d][1::2] = highs
        if flags[2] and low_hh is not None:
            found[d][2] = _hidden_by_low(inputs, state, d, low_hh)
    if any(flags[0] for flags in asked):
        for of_direction, grad in zip(found, _input_by_lows(inputs, back, low), strict=True):
            of_direction[0] = grad
    return [_only(*both) for both in zip(found, asked, strict=True)]


def of_projection(
    rows: Tensor, down: Tensor | None, up: Tensor | None, dh: Tensor, asked: Sequence[bool]
) -> Found:
    """The gradients of down_hr and up_hr of a direction; None if not asked for.

    From the rows that weight_hr was multiplied with, (N, H), and the gradient `dh` of what that
    gave, (N, P).
    """
    if down is None or up is None:
        return [None, None]
    beside = (rows @ down.t(),) if asked[1] else ()
    (low,), (high,) = _products(dh, (up,), beside, asked[0])
    return _only([None if low is None else low.t() @ rows, high], asked)


def _only(found: Found, asked: Sequence[bool]) -> Found:
    """What is asked for, each in memory of its own."""
    return [
        grad.clone(memory_format=torch.contiguous_format) if flag and grad is not None else None
        for grad, flag in zip(found, asked, strict=True)
    ]


def _products(grad: Tensor, ups: Maybe, beside: Maybe, for_downs: bool) -> tuple[Found, Found]:
    """For each `up`, grad @ up, (N, r), and grad.t() @ the rows beside it, (out, r).

    The first ones only `for_downs`, the second ones only where rows are given.
    """
    present = [up for up in ups if up is not None]
    N, out = grad.shape
    R = sum(up.shape[1] for up in present)
    low = grad.new_empty(N, R) if for_downs else None
    high = grad.new_zeros(R, out) if beside else None
    wide = torch.cat(present, 1)
    thin = torch.cat([rows for rows in beside if rows is not None], 1) if beside else None
    for part in _blocks(grad):
        if low is not None:
            torch.mm(grad[part], wide, out=low[part])
        if high is not None and thin is not None:
            high.addmm_(thin[part].t(), grad[part])
    return _parts(low, ups), _parts(None if high is None else high.t(), ups)


def _blocks(grad: Tensor) -> list[slice]:
    """Rows that stay in cache; all at once where sums over blocks would be rounded coarsely."""
    N = grad.shape[0]
    rows = max(1, N)
    if grad.device.type == "cpu" and grad.dtype in (torch.float32, torch.float64):
        rows = max(1, _BLOCK_BYTES // max(1, grad.shape[1] * grad.element_size()))
    return [slice(first, first + rows) for first in range(0, N, rows)]


def _parts(columns: Tensor | None, ups: Maybe) -> Found:
    """The columns of each factor; None where there is none."""
    if columns is None:
        return [None] * len(ups)
    parts = iter(torch.split(columns, [up.shape[1] for up in ups if up is not None], 1))
    return [None if up is None else next(parts) for up in ups]


def _input_by_downs(inputs: Inputs, back: Tensor) -> Found:
    """The input times each direction's down_ih, (N, r) in that direction's order of time."""
    downs = [w.down_ih for w in inputs.directions]
    present = [down for down in downs if down is not None]
    if not present:
        return [None] * len(downs)
    columns = inputs.data.flatten(0, -2) @ torch.cat(present).t()
    found = _parts(columns, [None if down is None else down.t() for down in downs])
    return [_in_order(x, inputs, back, d) for d, x in enumerate(found)]


def _input_by_lows(inputs: Inputs, back: Tensor, lows: Maybe) -> Found:
    """The gradients of each direction's down_ih, (r, I), from (N, r) in its order of time."""
    rows = inputs.data.flatten(0, -2)
    columns, downs = [], [w.down_ih for w in inputs.directions]
    for d, (down, low) in enumerate(zip(downs, lows, strict=True)):
        if down is not None:
            mine = _in_order(low, inputs, back, d)
            columns.append(rows.new_zeros(len(rows), len(down)) if mine is None else mine)
    if not columns:
        return [None] * len(downs)
    found = torch.cat(columns, 1).t() @ rows
    return [
        None if x is None else x.t()
        for x in _parts(found.t(), [None if down is None else down.t() for down in downs])
    ]


def _in_order(x: Tensor | None, inputs: Inputs, back: Tensor, direction: int) -> Tensor | None:
    """Rows (N, r) from the input's order to the direction's, or the other way round."""
    if x is None or not direction:
        return x
    steps = x.view(*inputs.data.shape[:-1], x.shape[1])
    return steps.index_select(0, back).view(x.shape)


def _hidden_by_down(
    inputs: Inputs, state: State, direction: int, down: Tensor | None
) -> Tensor | None:
    """The hidden states before each row times down_hh, (N, r)."""
    if down is None:
        return None
    hidden, N = state.hidden[direction], state.gates.shape[1]
    if inputs.batch_sizes is None:
        return hidden[:N] @ down.t()
    before = previous_rows(inputs.batch_sizes, N, hidden.device)
    return (hidden @ down.t()).index_select(0, before)


def _hidden_by_low(inputs: Inputs, state: State, direction: int, low: Tensor) -> Tensor:
    """The gradient of down_hh, (r, P), from (N, r)."""
    hidden, N = state.hidden[direction], state.gates.shape[1]
    if inputs.batch_sizes is None:
        return low.t() @ hidden[:N]
    before = previous_rows(inputs.batch_sizes, N, hidden.device)
    return low.new_zeros(len(hidden), low.shape[1]).index_copy_(0, before, low).t() @ hidden
