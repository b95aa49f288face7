"""One LSTM layer over time, without autograd: forward, and backward for what is wanted.

Before the time loop, one product per time block makes the input projection. After the loop of the
backward pass, one product each makes the gradients of weights and input. The loop is that of
`native` where it applies, else of `loop_torch`.

Shapes: T time, B batch, N rows (T * B, or fewer when packed), I input size, H hidden size,
P projected size (H without projection), D directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import factors, loop_torch
from .cell import gate_views, gates_size
from .native import extension, loop, memory, products, small
from .native.sums import Sums
from .rows import Run, blocks_of, bounds, last_rows, previous_rows, runs_of
from .weights import Gradients, Inputs, State, Wanted, Weights

# A block's gates should stay in cache between the input projection and the steps that read them.
# The size of a block may change bits of the result (a product over a block may round otherwise than
# one over all rows), so it depends on shapes alone.
_BLOCK_BYTES = 8 * 2**20


def _blocks(inputs: Inputs, batch: int, row_size: int) -> list[list[Run]]:
    """The time blocks of a layer with `row_size` gates a row, both directions together."""
    runs = runs_of(inputs.steps, batch, inputs.batch_sizes)
    return blocks_of(runs, max(1, _BLOCK_BYTES // (row_size * inputs.data.element_size())))


def forward(inputs: Inputs, keep: bool) -> tuple[Tensor, Tensor, Tensor, State | None]:
    """One layer over time; with `keep`, also what the backward pass needs.

    `keep` must not change a bit of the result.
    """
    memory.pass_by()
    data, batch_sizes, reverse, h0, c0, given = inputs
    directions = [weights.merged(_added) for weights in given]
    if small.applies(inputs):
        return small.forward(inputs, directions, keep)
    D, H, P = len(directions), directions[0].hidden_size, directions[0].state_size
    batch = inputs.batch
    rows = data.flatten(0, -2)
    N = rows.shape[0]
    back = _backwards(data, reverse)
    sides = [rows, _picked(data, back).flatten(0, -2)] if D == 2 else [rows]
    native = extension.applies(data)
    # Whether the loop computes the input's part of the gates, so that nothing is done in blocks.
    whole = native and loop.computes_input(directions, N, inputs.steps)
    if whole:
        blocks = [runs_of(inputs.steps, batch, batch_sizes)]
        gates_rows = N if keep else 0
    else:
        blocks = _blocks(inputs, batch, D * gates_size(H))
        gates_rows = N if keep else max(last - first for first, last in map(bounds, blocks))
    gates = memory.empty(data, D, gates_rows, gates_size(H))
    hidden = memory.empty(data, D, batch + N, P)
    hidden[:, :batch] = 0 if h0 is None else h0
    cells = memory.empty(data, D, batch + (N if keep else 1), H)
    cells[:, :batch] = 0 if c0 is None else c0
    state = State(gates, hidden, cells)
    walk: loop.NativeForward | loop_torch.TorchForward
    if native:
        walk = loop.NativeForward(directions, state, batch, batch_sizes, keep)
        if whole:
            walk.read(sides, [w.weight_ih for w in directions])
    else:
        walk = loop_torch.TorchForward(directions, state, batch, batch_sizes, keep)
    weights = [] if whole else [products.right(w.weight_ih.t(), N) for w in directions]
    biases = [None if native else w.added_biases() for w in directions]
    for block in blocks:
        first, last = bounds(block)
        base = 0 if keep else first
        for side, bias, weight, gates_of in zip(sides, biases, weights, gates, strict=False):
            rows, part = side[first:last], gates_of[first - base : last - base]
            if bias is None:
                products.multiply(rows, weight, part)
            else:
                torch.addmm(bias, rows, weight.matrix, out=part)
        walk.run(block, base)
    ended = last_rows(N, batch, batch_sizes, data.device)
    h_n = hidden.index_select(1, ended + batch)
    c_n = cells.index_select(1, ended + batch) if keep else cells[:, :batch].clone()
    output = data.new_empty(*data.shape[:-1], D * P)
    for d in range(D):
        side, out = hidden[d, batch:].view(*data.shape[:-1], P), output[..., d * P : (d + 1) * P]
        _picked(side, back, out) if d else out.copy_(side)
    return output, h_n, c_n, state if keep else None


def _added(weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The sum weight + up @ down with the weight's dtype, and its strides: bits depend on them."""
    plain = weight.is_contiguous()
    out = memory.empty(weight, *weight.shape) if plain else torch.empty_like(weight)
    return torch.addmm(weight, up, down, out=out)  # autocast changes no dtype of an `out`


def _backwards(data: Tensor, reverse: Tensor | None) -> Tensor:
    """For each step or packed row, the one it swaps with when sequences are read from their end."""
    if reverse is not None:
        return reverse
    return torch.arange(data.shape[0] - 1, -1, -1, device=data.device)


def _picked(data: Tensor, steps: Tensor, out: Tensor | None = None) -> Tensor:
    """The entries `steps` of the first dimension, in `out` or else in the workspace."""
    if out is None:
        out = memory.empty(data, steps.shape[0], *data.shape[1:])
    return torch.index_select(data, 0, steps, out=out)


def _gradients_to_fill(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    state: State,
    back: Tensor,
    batch: int,
    active: range,
) -> Gradients:
    """What a walk through the active directions reads and writes, in their order of time."""
    D, N, P = state.gates.shape[0], state.gates.shape[1], state.hidden.shape[2]
    new = state.gates.new_empty
    dh_n, dc = (
        new(D, batch, size).zero_() if grad is None else new(D, batch, size).copy_(grad)
        for size, grad in ((P, grads[1]), (state.cells.shape[2], grads[2]))
    )
    dh = _sides_of(grads[0], back, active, memory.empty(state.gates, D, N, P))
    return Gradients(dh, dh_n, dc, memory.empty(state.gates, *state.gates.shape))


def _walk_back(
    found: Gradients,
    inputs: Inputs,
    state: State,
    back: Tensor,
    directions: Sequence[Weights],
    wanted: Wanted,
) -> list[tuple[Tensor | None, list[Tensor | None]]]:
    """Walk the directions back in time that must be; their results in `found` have a meaning.

    Returns for each direction the gradient of a bias, (4H,), and those of down_ih, up_ih, down_hh
    and up_hh, where they are wanted.
    """
    batch, sizes, active = inputs.batch, inputs.batch_sizes, wanted.directions()
    if extension.applies(state.gates):
        sums = Sums(inputs, state, back, wanted)
        loop.walk_back(directions, state, batch, sizes, found, active, inputs.steps, sums)
        return [(sums.of_bias(d), sums.of_factors(d)) for d in range(len(directions))]
    blocks = _blocks(inputs, batch, len(directions) * state.gates.shape[2])
    loop_torch.walk_back(directions, state, batch, sizes, found, active, blocks)
    updates: list[list[Tensor | None]] = [[None] * 4 for _ in directions]
    if asked := wanted.factors():
        updates = factors.of_gates(inputs, state, back, found.dgates, asked)
    biases = [found.dgates[d].sum(0) if wanted.bias(d) else None for d in range(len(directions))]
    return list(zip(biases, updates, strict=True))


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
    inputs: Inputs,
    state: State,
    wanted: Wanted,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[list[Tensor | None]]]:
    """The gradients that are wanted, None for all others: data, h0, c0, and per direction."""
    data, _, reverse, _, _, given = inputs
    # The gradient of the input alone reads weight_ih.
    used = given if wanted.data else [w._replace(down_ih=None, up_ih=None) for w in given]
    directions = [weights.merged(_added) for weights in used]
    if not wanted.factors() and small.applies(inputs):
        return small.backward(grads, inputs, directions, state, wanted)
    active = wanted.directions()
    N = state.gates.shape[1]
    batch = state.hidden.shape[1] - N
    back = _backwards(data, reverse)
    found = _gradients_to_fill(grads, state, back, batch, active)
    dhidden, _, dc0, dgates = found
    weights: list[list[Tensor | None]] = [[None] * len(w) for w in given]
    summed = _walk_back(found, inputs, state, back, directions, wanted)
    for d in active:
        read = _Read(inputs, state, back, d)
        weights[d] = _weight_gradients(read, dhidden[d], dgates[d], wanted.weights[d], *summed[d])
    ddata = None
    if wanted.data:
        ddata = products.product(dgates[0], directions[0].weight_ih).view(data.shape)
        for d, w in enumerate(directions[1:], start=1):
            part = memory.empty(data, *data.shape)
            products.multiply(dgates[d], products.right(w.weight_ih, N), part.view(N, -1))
            ddata.add_(_picked(part, back))
    dh0 = None
    if wanted.h0:
        dh0 = torch.bmm(dgates[:, :batch], torch.stack([w.weight_hh for w in directions]))
    return ddata, dh0, dc0 if wanted.c0 else None, weights


class _Read(NamedTuple):
    """The rows that each weight of one direction was multiplied with, made when asked for."""

    inputs: Inputs
    state: State
    back: Tensor
    direction: int

    def by_weight_ih(self) -> Tensor:
        """(N, I) in this direction's order of time."""
        data = self.inputs.data
        return (_picked(data, self.back) if self.direction else data).flatten(0, -2)

    def by_weight_hh(self) -> Tensor:
        """(N, P) the hidden states before each row."""
        hidden, N = self.state.hidden[self.direction], self.state.gates.shape[1]
        if self.inputs.batch_sizes is None:
            return hidden[:N]
        return _picked(hidden, previous_rows(self.inputs.batch_sizes, N, hidden.device))

    def by_weight_hr(self) -> Tensor:
        """(N, H) the hidden states before the projection."""
        gates, cells = self.state.gates[self.direction], self.state.cells[self.direction]
        return cells[-len(gates) :].tanh().mul_(gate_views(gates)[4])


def _weight_gradients(
    read: _Read,
    dh: Tensor,
    dgates: Tensor,
    wanted: Sequence[bool],
    bias: Tensor | None,
    factors_of_gates: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of one direction in Weights' order: from those of its rows, (N, P) and (N, 4H).

    Each weight has multiplied some rows, so its gradient is a product of two matrices with N rows.
    """
    ih, hh, bias_ih, bias_hh, hr, *updates = wanted
    of_hr = updates[4:]
    *_, down_hr, up_hr = read.inputs.directions[read.direction]
    m = read.by_weight_hr() if hr or any(of_hr) else None
    return [
        products.product(dgates.t(), read.by_weight_ih()) if ih else None,
        products.product(dgates.t(), read.by_weight_hh()) if hh else None,
        bias if bias_ih else None,
        None if bias is None or not bias_hh else bias.clone() if bias_ih else bias,
        None if m is None or not hr else products.product(dh.t(), m),
        *factors_of_gates,
        *([None] * 2 if m is None else factors.of_projection(m, down_hr, up_hr, dh, of_hr)),
    ]
