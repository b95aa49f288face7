"""The time loop of an LSTM layer in C, for float32 on the CPU.

The reverse direction writes the output, and reads its gradient, where they are; what a layer keeps
for its backward pass is in the reverse direction's own order of time.

Shapes are written as in `layer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..cell import GATES, gates_size
from ..rows import Run, backwards, blocks_of, bounds, last_rows, lengths_of, runs_of
from ..weights import Inputs, State, Weights
from . import memory, products
from .extension import (
    address,
    alias_of,
    call,
    check_kind,
    in_memory,
    operand,
    order_of_rows,
    packed_job,
    panels,
    pointer,
)
from .sums import NO_SUMS, Sums

# From this many rows of a step and thread on, the loop computes the input's part of the gates
# itself: they are used while they are in cache, and weight_ih is read for enough rows at once.
_ROWS_OF_A_STEP = 24
# Up to so many weights of a direction, which are read from a cache at each step.
_WEIGHTS_OF_A_STEP = 3 * 2**19

_Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


class Steps(NamedTuple):
    """Which rows belong to which step.

    Attributes:
        rows: N.
        steps: T.
        batch: B.
        sizes: (T,) the rows of each step; None where all are B.
        reverse: (N,) the row of the input that each row of the reverse direction is; None where
            rows are dense, or where there is no such direction.
    """

    rows: int
    steps: int
    batch: int
    sizes: Tensor | None = None
    reverse: Tensor | None = None

    @classmethod
    def of(cls, inputs: Inputs) -> Steps:
        """Those of a layer's inputs."""
        _, sizes, reverse, *_ = inputs
        rows = inputs.data.shape[:-1].numel()
        if reverse is not None:
            reverse = order_of_rows("reverse", reverse, rows)
        sizes = None if sizes is None else sizes.contiguous()
        return cls(rows, inputs.steps, inputs.batch, sizes, reverse)

    def part(self, first: int, steps: int) -> tuple[int, int, int, int]:
        """A range of steps as the extension's struct Steps."""
        return first, steps, self.batch, pointer(self.sizes)


def computes_input(directions: Sequence[Weights], rows: int, steps: int) -> bool:
    """Whether the loop computes the input's part of the gates; no bit depends on it."""
    D = len(directions)
    parts = -(-torch.get_num_threads() // D)
    weights = directions[0].weight_ih.numel() + directions[0].weight_hh.numel()
    pays = rows >= steps * parts * _ROWS_OF_A_STEP and weights <= _WEIGHTS_OF_A_STEP
    return pays and all(products.pays(w.weight_ih, rows) for w in directions)


def forward(
    inputs: Inputs, directions: Sequence[Weights], keep: bool, block_bytes: int
) -> tuple[Tensor, Tensor, Tensor, State | None]:
    """As `layer.forward`, given the weights with their updates and the size of a block of gates."""
    data, batch_sizes, reverse, h0, c0, _ = inputs
    D, H, P = len(directions), directions[0].hidden_size, directions[0].state_size
    steps, G = Steps.of(inputs), gates_size(directions[0].hidden_size)
    N, B = steps.rows, steps.batch
    hidden = memory.empty(data, D, B + N if keep else 2 * B, P)
    hidden[:, :B] = 0 if h0 is None else h0
    cells = memory.empty(data, D, B + N if keep else B, H)
    cells[:, :B] = 0 if c0 is None else c0
    state = State(memory.empty(data, D, N if keep else 0, G), hidden, cells)
    output = data.new_empty(*data.shape[:-1], D * P)
    walk = NativeForward(directions, state, steps, keep, output)
    rows, runs = data.flatten(0, -2), runs_of(steps.steps, B, batch_sizes)
    whole = computes_input(directions, N, steps.steps)
    weights = [products.right(w.weight_ih.t(), N) for w in directions if not whole]
    # With `keep` the input's part of the gates is made where the activations will be, in the
    # reverse direction's order. Without it the input is read as it is, but only where a product's
    # bits do not depend on the order of its rows.
    own = whole or (not keep and all(weight.panels is not None for weight in weights))
    mirrored = batch_sizes is None and own
    sides = [rows] * D
    if D == 2 and not mirrored:
        sides[1] = memory.picked(data, backwards(data, reverse)).flatten(0, -2)
    if whole:
        walk.read(sides, [w.weight_ih for w in directions])
        walk.run(runs, None, mirrored)
    else:
        blocks = blocks_of(runs, max(1, block_bytes // (D * G * data.element_size())))
        most = max(last - first for first, last in map(bounds, blocks))
        scratch = state.gates if keep else memory.empty(data, D, most, G)
        for block in blocks:
            first, last = bounds(block)
            projected = scratch[:, first:last] if keep else scratch[:, : last - first]
            for d in range(D):
                part = slice(N - last, N - first) if d and mirrored else slice(first, last)
                products.multiply(sides[d][part], weights[d], projected[d])
            walk.run(block, projected, mirrored)
    h_n, c_n = walk.final_states()
    return output, h_n, c_n, state if keep else None


class NativeForward:
    """Walks through the steps of a layer and writes its output.

    It adds the biases itself: they are not in the input's part of the gates.
    """

    def __init__(
        self,
        directions: Sequence[Weights],
        state: State,
        steps: Steps,
        keep: bool,
        output: Tensor | None = None,
    ) -> None:
        """Pack the weights.

        Args:
            directions: The weights.
            state: It begins with the initial state. Without `keep` there are no gates; `cells`,
                (D, B, H), is one state, updated in place; and `hidden`, (D, 2 * B, P), holds the
                states before and after a step in turns, the initial one first.
            steps: The steps.
            keep: Whether a backward pass follows.
            output: (N, D * P) or (T, B, D * P), which is written.
        """
        D, H, P = state.cells.shape[0], state.cells.shape[2], state.hidden.shape[2]
        weight_hr = [w.weight_hr for w in directions if w.weight_hr is not None]
        self._state, self._steps, self._keep, self._output = state, steps, keep, output
        weight_hh = [w.weight_hh for w in directions]
        self._weight_hh = panels("weight_hh", weight_hh, H, P, gates=len(GATES))
        self._weight_hr = panels("weight_hr", weight_hr, P, H) if weight_hr else None
        self._squashed = state.cells.new_empty(D, steps.batch, H) if weight_hr else None
        self._biases = [_bias_of(w) for w in directions]
        self._walked = 0
        self._input: tuple[int, ...] = (0,) * 5
        self._input_owners: tuple[object, ...] = ()

    def read(self, sides: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        """Compute the input's part of the gates in the loop, from the rows of each direction."""
        units, depth = self._state.cells.shape[2], sides[0].shape[1]
        sides = [in_memory(side.contiguous()) for side in sides]
        weight_ih = panels("weight_ih", weights, units, depth, gates=len(GATES))
        for side in sides:
            check_kind("input", side)
        self._input = *address(weight_ih), depth, *_two(sides)
        self._input_owners = sides, weight_ih

    def run(self, block: list[Run], projected: Tensor | None, mirrored: bool = False) -> None:
        """Walk through one block, given the input's part of its gates, (D, rows, 4H).

        With `mirrored`, the rows that the reverse direction reads begin with its last step.
        """
        gates, hidden, cells = self._state
        D, H, P = cells.shape[0], cells.shape[2], hidden.shape[2]
        steps, row = sum(run.steps for run in block), block[0].row
        before = self._steps.batch + row - block[0].before if row else 0
        job = packed_job(
            (D, H, P, *self._steps.part(self._walked, steps), row, before, self._keep),
            operand("gates", gates, D, gates_size(H)) if self._keep else (0, 0),
            operand("hidden", hidden, D, P),
            operand("cells", cells, D, H),
            (0, 0) if self._squashed is None else operand("squashed", self._squashed, D, H),
            address(self._weight_hh),
            address(self._weight_hr),
            (0, 0) if projected is None else operand("projected", projected, D, gates_size(H)),
            self._input,
            (mirrored, *_two(self._biases), self._steps.rows, D - 1 if D == 2 else -1),
            (pointer(self._steps.reverse), pointer(self._output), D * P),
        )
        weights = (self._weight_hh, self._weight_hr, self._biases, self._input_owners)
        owners = (self._state, self._squashed, self._steps, projected, self._output)
        call("forward", job, (weights, owners))
        self._walked += steps

    def final_states(self) -> tuple[Tensor, Tensor]:
        """The states after each sequence's last step, (D, B, P) and (D, B, H)."""
        _, hidden, cells = self._state
        N, T, B, sizes, _ = self._steps
        if self._keep:
            ended = last_rows(N, B, sizes, hidden.device) + B
            return hidden.index_select(1, ended), cells.index_select(1, ended)
        in_turns = hidden.view(len(hidden), 2, B, -1)
        if sizes is None:
            return in_turns[:, T % 2].clone(), cells.clone()
        odd = lengths_of(sizes, B) % 2 == 1
        return torch.where(odd.unsqueeze(1), in_turns[:, 1], in_turns[:, 0]), cells.clone()


class Walked(NamedTuple):
    """What a walk back through time finds.

    Attributes:
        dgates: (D, N, 4H) the gradients of the pre-activations, where the direction was walked.
        dc0: (D, B, H) those of the initial cell states.
        dh: (D, N, P) with a projection, those of the projected hidden states.
    """

    dgates: Tensor
    dc0: Tensor
    dh: Tensor


def walk_back(
    directions: Sequence[Weights],
    state: State,
    steps: Steps,
    grads: _Grads,
    active: range,
    sums: Sums | None = None,
) -> Walked:
    """Walks the active directions of a layer back in time; makes the `sums` on the way.

    `grads` are those of the output, as `NativeForward` writes it, and of both final states.
    """
    here = slice(active[0], active[-1] + 1)
    (N, T, B, _, reverse), D = steps, len(active)
    all_directions, H, P = len(state.cells), state.cells.shape[2], state.hidden.shape[2]
    found = Walked(
        memory.empty(state.gates, *state.gates.shape),
        _start(grads[2], state.gates.new_empty(all_directions, B, H)),
        memory.empty(
            state.gates, all_directions, N if directions[0].weight_hr is not None else B, P
        ),
    )
    dh_n = _start(grads[1], state.gates.new_empty(all_directions, B, P))
    hh = [directions[d].weight_hh.t() for d in active]
    weight_hh = panels("weight_hh", hh, P, gates_size(H))
    hr = [w.t() for d in active if (w := directions[d].weight_hr) is not None]
    weight_hr = panels("weight_hr", hr, H, P) if hr else None
    output = None if grads[0] is None else in_memory(grads[0])
    job = packed_job(
        (D, H, P, *steps.part(0, T), N),
        operand("gates", state.gates[here], D, gates_size(H)),
        operand("cells", state.cells[here], D, H),
        (active.index(1) if 1 in active else -1, pointer(reverse)),
        (0,) * 4 if output is None else _output_gradient(output, active[0] * P),
        operand("dh", found.dh[here], D, P),
        operand("dh_n", dh_n[here], D, P),
        operand("dc", found.dc0[here], D, H),
        operand("dgates", found.dgates[here], D, gates_size(H)),
        address(weight_hh),
        address(weight_hr),
        NO_SUMS if sums is None else sums.numbers(),
    )
    call("backward", job, (state, found, output, dh_n, weight_hh, weight_hr, steps, sums))
    return found


def _start(grad: Tensor | None, out: Tensor) -> Tensor:
    return out.zero_() if grad is None else out.copy_(grad)


def _output_gradient(grad: Tensor, begins: int) -> tuple[int, int, int, int]:
    """Address and strides, from a unit on, as the extension's struct Backward holds them."""
    check_kind("the output's gradient", grad)
    of_step, *of_sequence, of_unit = grad.stride()
    first = grad.data_ptr() + begins * of_unit * grad.element_size()
    return first, of_step, of_sequence[0] if of_sequence else 0, of_unit


def _bias_of(weights: Weights) -> Tensor | None:
    bias = weights.added_biases()
    shape = (gates_size(weights.hidden_size),)
    return None if bias is None else alias_of("bias", bias.contiguous(), shape)


def _two(tensors: Sequence[Tensor | None]) -> tuple[int, int]:
    """The pointers of two directions; 0 for one that is not there."""
    first, second = [*map(pointer, tensors), 0][:2]
    return first, second
