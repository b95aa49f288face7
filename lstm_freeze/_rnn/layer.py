"""One LSTM layer over time, without autograd: forward, and backward for what is wanted.

The input projection is one product per time block before the time loop, the gradients of weights
and input one product each after it; the loop itself is `loop_native` where that applies, else
`loop_torch`.

Shapes: T time, B batch, N rows (T * B, or fewer when packed), I input size, H hidden size,
P projected size (H without projection), D directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import loop_native, loop_torch, memory
from .rows import Run, blocks_of, bounds, last_rows, previous_rows, runs_of
from .weights import Gradients, State, Weights, gate_views

# A block's gates should stay in cache between the input projection and the steps that read them.
# The value enters the numbers (a product over a block may differ in bits from one over all rows),
# so it depends on shapes alone.
_BLOCK_BYTES = 8 * 2**20


def _blocks(data: Tensor, batch: int, batch_sizes: Tensor | None, row_size: int) -> list[list[Run]]:
    """The time blocks of a layer with `row_size` gates a row, both directions together."""
    runs = runs_of(data.shape[0], batch, batch_sizes)
    return blocks_of(runs, max(1, _BLOCK_BYTES // (row_size * data.element_size())))


def forward(
    data: Tensor,
    batch_sizes: Tensor | None,
    reverse: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    directions: Sequence[Weights],
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, State]:
    """One layer over time; with `keep`, also what the backward pass needs.

    `keep` must not change a bit of the result.
    """
    D, P = len(directions), directions[0].weight_hh.shape[1]
    H = directions[0].weight_hh.shape[0] // 4
    batch = data.shape[1] if batch_sizes is None else int(batch_sizes[0])
    rows = data.flatten(0, -2)
    N = rows.shape[0]
    back = _backwards(data, reverse)
    sides = [rows, _picked(data, back).flatten(0, -2)] if D == 2 else [rows]
    blocks = _blocks(data, batch, batch_sizes, D * 4 * H)
    gates_rows = N if keep else max(last - first for first, last in map(bounds, blocks))
    gates = memory.empty(data, D, gates_rows, 4 * H)
    hidden = memory.empty(data, D, batch + N, P)
    hidden[:, :batch] = 0 if h0 is None else h0
    cells = memory.empty(data, D, batch + (N if keep else 1), H)
    cells[:, :batch] = 0 if c0 is None else c0
    state = State(gates, hidden, cells)
    engine = loop_native if loop_native.applies(data) else loop_torch
    loop = engine.Forward(directions, state, batch, batch_sizes, keep)
    for block in blocks:
        first, last = bounds(block)
        base = 0 if keep else first
        for side, w, into in zip(sides, directions, gates, strict=True):
            _project(side[first:last], w, into[first - base : last - base])
        loop.run(block, base)
    ended = last_rows(N, batch, batch_sizes).to(data.device)
    h_n = hidden.index_select(1, ended + batch)
    c_n = cells.index_select(1, ended + batch) if keep else cells[:, :batch].clone()
    output = data.new_empty(*data.shape[:-1], D * P)
    for d in range(D):
        side, out = hidden[d, batch:].view(*data.shape[:-1], P), output[..., d * P : (d + 1) * P]
        _picked(side, back, out) if d else out.copy_(side)
    return output, h_n, c_n, state


def _backwards(data: Tensor, reverse: Tensor | None) -> Tensor:
    """The step or packed row that each one swaps with when sequences are read from their end."""
    if reverse is not None:
        return reverse
    return torch.arange(data.shape[0] - 1, -1, -1, device=data.device)


def _picked(data: Tensor, steps: Tensor, out: Tensor | None = None) -> Tensor:
    """The entries `steps` of the first dimension, in `out` or else in the workspace."""
    if out is None:
        out = memory.empty(data, steps.shape[0], *data.shape[1:])
    return torch.index_select(data, 0, steps, out=out)


def _project(rows: Tensor, w: Weights, out: Tensor) -> None:
    """The input's part of the pre-activations, biases included: (rows, 4H) into `out`."""
    if w.bias_ih is None or w.bias_hh is None:
        torch.mm(rows, w.weight_ih.t(), out=out)
    else:
        torch.addmm(w.bias_ih + w.bias_hh, rows, w.weight_ih.t(), out=out)


class Wanted(NamedTuple):
    """Which gradients of one layer are asked for; `weights` per direction, in Weights' order."""

    data: bool
    h0: bool
    c0: bool
    weights: tuple[tuple[bool, ...], ...]

    def directions(self) -> range:
        """The directions whose time loop must be walked back."""
        if self.data or self.h0 or self.c0:
            return range(len(self.weights))
        asked = [d for d, kinds in enumerate(self.weights) if any(kinds)]
        return range(asked[0], asked[-1] + 1)


def _gate_gradients(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    batch_sizes: Tensor | None,
    back: Tensor,
    state: State,
    batch: int,
    directions: Sequence[Weights],
    active: range,
    blocks: list[list[Run]],
) -> Gradients:
    """Walk the active directions back in time; what is returned of others means nothing."""
    D, N, P = state.gates.shape[0], state.gates.shape[1], state.hidden.shape[2]
    new = state.gates.new_empty
    dh_n, dc = (
        new(D, batch, size).zero_() if grad is None else new(D, batch, size).copy_(grad)
        for size, grad in ((P, grads[1]), (state.cells.shape[2], grads[2]))
    )
    dh = _sides_of(grads[0], back, active, memory.empty(state.gates, D, N, P))
    found = Gradients(dh, dh_n, dc, memory.empty(state.gates, *state.gates.shape))
    engine = loop_native if loop_native.applies(state.gates) else loop_torch
    engine.walk_back(directions, state, batch, batch_sizes, found, active, blocks)
    return found


def _sides_of(grad: Tensor | None, back: Tensor, active: range, out: Tensor) -> Tensor:
    """The output's gradient per direction, each in its own order of time: (D, N, P) into `out`."""
    if grad is None:
        return out.zero_()
    P = out.shape[2]
    for d in active:
        side = grad[..., d * P : (d + 1) * P]
        into = out[d].view(side.shape)
        _picked(side, back, into) if d else into.copy_(side)
    return out


def backward(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    data: Tensor,
    batch_sizes: Tensor | None,
    reverse: Tensor | None,
    state: State,
    directions: Sequence[Weights],
    wanted: Wanted,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[list[Tensor | None]]]:
    """The gradients that are wanted, None for all others: data, h0, c0, and per direction."""
    active = wanted.directions()
    N = state.gates.shape[1]
    batch = state.hidden.shape[1] - N
    blocks = _blocks(data, batch, batch_sizes, len(directions) * state.gates.shape[2])
    back = _backwards(data, reverse)
    dhidden, _, dc0, dgates = _gate_gradients(
        grads, batch_sizes, back, state, batch, directions, active, blocks
    )
    rows = data.flatten(0, -2)
    weights: list[list[Tensor | None]] = [[None] * 5 for _ in directions]
    for d in active:
        ih, hh, bias_ih, bias_hh, hr = wanted.weights[d]
        grad, out = dgates[d].t(), weights[d]
        if ih:
            out[0] = grad @ (_picked(data, back).flatten(0, -2) if d else rows)
        if hh:
            hidden = state.hidden[d]
            if batch_sizes is not None:
                hidden = _picked(hidden, previous_rows(batch_sizes, N).to(hidden.device))
            out[1] = grad @ hidden[:N]
        if bias_ih or bias_hh:
            bias = dgates[d].sum(0)
            out[2] = bias if bias_ih else None
            out[3] = (bias.clone() if bias_ih else bias) if bias_hh else None
        if hr:
            squashed = state.cells[d, batch:].tanh().mul_(gate_views(state.gates[d])[4])
            out[4] = dhidden[d].t() @ squashed
    ddata = None
    if wanted.data:
        ddata = (dgates[0] @ directions[0].weight_ih).view(data.shape)
        for d, w in enumerate(directions[1:], start=1):
            part = memory.empty(data, *data.shape)
            torch.mm(dgates[d], w.weight_ih, out=part.view(N, -1))
            ddata.add_(_picked(part, back))
    dh0 = None
    if wanted.h0:
        dh0 = torch.bmm(dgates[:, :batch], torch.stack([w.weight_hh for w in directions]))
    return ddata, dh0, dc0 if wanted.c0 else None, weights
