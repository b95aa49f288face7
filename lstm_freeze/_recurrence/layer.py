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
from .cell import gate_views
from .native import extension, loop, memory, products, small
from .native.sums import Sums
from .rows import backwards, previous_rows
from .weights import Inputs, State, Wanted, Weights

# A block's gates should stay in cache between the input projection and the steps that read them.
# The size of a block may change bits of the result (a product over a block may round otherwise than
# one over all rows), so it depends on shapes alone.
_BLOCK_BYTES = 8 * 2**20


def forward(inputs: Inputs, keep: bool) -> tuple[Tensor, Tensor, Tensor, State | None]:
    """One layer over time; with `keep`, also what the backward pass needs.

    `keep` must not change a bit of the result.
    """
    memory.pass_by()
    directions = [weights.merged(_added) for weights in inputs.directions]
    if small.applies(inputs):
        return small.forward(inputs, directions, keep)
    if extension.applies(inputs.data):
        return loop.forward(inputs, directions, keep, _BLOCK_BYTES)
    return loop_torch.forward(inputs, directions, keep, _BLOCK_BYTES)


def _added(weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The sum weight + up @ down with the weight's dtype, and its strides: bits depend on them."""
    plain = weight.is_contiguous()
    out = memory.empty(weight, *weight.shape) if plain else torch.empty_like(weight)
    return torch.addmm(weight, up, down, out=out)  # autocast changes no dtype of an `out`


class _WalkedBack(NamedTuple):
    """What the directions' walks back through time find, where it is wanted of them.

    Attributes:
        dgates: (D, N, 4H) the gradients of the pre-activations.
        dc0: (D, B, H) those of the initial cell states.
        dh: (D, N, P) those of the hidden states; only with a projection.
        biases: Of each direction, that of a bias, (4H,).
        factors: Of each direction, those of down_ih, up_ih, down_hh and up_hh.
    """

    dgates: Tensor
    dc0: Tensor
    dh: Tensor
    biases: list[Tensor | None]
    factors: list[list[Tensor | None]]


def _walk_back(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    inputs: Inputs,
    directions: Sequence[Weights],
    state: State,
    back: Tensor,
    wanted: Wanted,
) -> _WalkedBack:
    """Walk those directions back in time that must be."""
    every, active = range(len(directions)), wanted.directions()
    if extension.applies(state.gates):
        sums = Sums(inputs, state, back, wanted)
        found = loop.walk_back(directions, state, loop.Steps.of(inputs), grads, active, sums)
        biases, updates = [sums.of_bias(d) for d in every], [sums.of_factors(d) for d in every]
        return _WalkedBack(*found, biases, updates)
    dgates, dc0, dh = loop_torch.walk_back(
        inputs, directions, state, back, grads, active, _BLOCK_BYTES
    )
    biases = [dgates[d].sum(0) if wanted.bias(d) else None for d in every]
    asked = wanted.factors()
    updates = factors.of_gates(inputs, state, back, dgates, asked) if asked else []
    return _WalkedBack(dgates, dc0, dh, biases, updates or [[None] * 4 for _ in every])


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
    if small.applies(inputs) and not any(w.has_factors() for w in given):
        return small.backward(grads, inputs, directions, state, wanted)
    N = state.gates.shape[1]
    batch = state.hidden.shape[1] - N
    back = backwards(data, reverse)
    dgates, dc0, dh, biases, updates = _walk_back(grads, inputs, directions, state, back, wanted)
    weights: list[list[Tensor | None]] = [[None] * len(w) for w in given]
    for d in wanted.directions():
        read, flags = _Read(inputs, state, back, d), wanted.weights[d]
        weights[d] = _weight_gradients(read, dh[d], dgates[d], flags, biases[d], updates[d])
    ddata = None
    if wanted.data:
        ddata = products.product(dgates[0], directions[0].weight_ih).view(data.shape)
        for d, w in enumerate(directions[1:], start=1):
            part = memory.empty(data, *data.shape)
            products.multiply(dgates[d], products.right(w.weight_ih, N), part.view(N, -1))
            ddata.add_(memory.picked(part, back))
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
        return (memory.picked(data, self.back) if self.direction else data).flatten(0, -2)

    def by_weight_hh(self) -> Tensor:
        """(N, P) the hidden states before each row."""
        hidden, N = self.state.hidden[self.direction], self.state.gates.shape[1]
        if self.inputs.batch_sizes is None:
            return hidden[:N]
        return memory.picked(hidden, previous_rows(self.inputs.batch_sizes, N, hidden.device))

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
