"""The time loop of an LSTM layer in C, for float32 on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cell import GATES, gates_size
from ..rows import Run
from ..weights import Gradients, State, Weights
from . import products
from .extension import address, alias_of, call, check_kind, in_memory, operand, packed_job, panels
from .sums import NO_SUMS, Sums

# From this many rows of a step and thread on, the loop computes the input's part of the gates
# itself: they are used while they are in cache, and weight_ih is read for enough rows at once.
_ROWS_OF_A_STEP = 24
# Up to so many weights of a direction, which are read from a cache at each step.
_WEIGHTS_OF_A_STEP = 3 * 2**19


def computes_input(directions: Sequence[Weights], rows: int, steps: int) -> bool:
    """Whether the loop computes the input's part of the gates; no bit depends on it."""
    D = len(directions)
    parts = -(-torch.get_num_threads() // D)
    weights = directions[0].weight_ih.numel() + directions[0].weight_hh.numel()
    pays = rows >= steps * parts * _ROWS_OF_A_STEP and weights <= _WEIGHTS_OF_A_STEP
    return pays and all(products.pays(w.weight_ih, rows) for w in directions)


class NativeForward:
    """Walks through the time blocks of a layer, as `loop_torch.TorchForward` does.

    It adds the biases itself: they are not in the input's part of the gates.
    """

    def __init__(
        self,
        directions: Sequence[Weights],
        state: State,
        batch: int,
        batch_sizes: Tensor | None,
        keep: bool,
    ) -> None:
        """Pack the weights."""
        D, H, P = state.cells.shape[0], state.cells.shape[2], state.hidden.shape[2]
        weight_hr = [w.weight_hr for w in directions if w.weight_hr is not None]
        self._state, self._keep = state, keep
        self._steps, self._batch = _Steps(batch, batch_sizes), batch
        weight_hh = [w.weight_hh for w in directions]
        self._weight_hh = panels("weight_hh", weight_hh, H, P, gates=len(GATES))
        self._weight_hr = panels("weight_hr", weight_hr, P, H) if weight_hr else None
        self._squashed = state.cells.new_empty(D, batch, H) if weight_hr else None
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
        addresses = [side.data_ptr() for side in sides] + [0]
        self._input = *address(weight_ih), depth, addresses[0], addresses[1]
        self._input_owners = sides, weight_ih

    def run(self, block: list[Run], base: int) -> None:
        """Walk through one block; the first row of `gates` is row `base`."""
        gates, hidden, cells = self._state
        D, H, P = cells.shape[0], cells.shape[2], hidden.shape[2]
        steps, row = sum(run.steps for run in block), block[0].row
        job = packed_job(
            (D, H, P, *self._steps.part(self._walked, steps), row),
            (self._batch + row - block[0].before if row else 0, base, self._keep),
            operand("gates", gates, D, gates_size(H)) if gates.numel() else (0, 0),
            operand("hidden", hidden, D, P),
            operand("cells", cells, D, H),
            (0, 0) if self._squashed is None else operand("squashed", self._squashed, D, H),
            address(self._weight_hh),
            address(self._weight_hr),
            self._input,
            tuple(0 if b is None else b.data_ptr() for b in [*self._biases, None][:2]),
        )
        weights = (self._weight_hh, self._weight_hr, self._biases, self._input_owners)
        owners = (self._state, self._squashed, self._steps, *weights)
        call("forward", job, owners)
        self._walked += steps


def walk_back(
    directions: Sequence[Weights],
    state: State,
    batch: int,
    batch_sizes: Tensor | None,
    grads: Gradients,
    active: range,
    steps: int,
    sums: Sums | None = None,
) -> None:
    """Walks the active directions of a layer back in time, as `loop_torch.walk_back` does.

    On the way it makes the `sums`.
    """
    here = slice(active[0], active[-1] + 1)
    H, P, N = state.cells.shape[2], state.hidden.shape[2], state.gates.shape[1]
    D = len(active)
    sizes = _Steps(batch, batch_sizes)
    hh = [directions[d].weight_hh.t() for d in active]
    weight_hh = panels("weight_hh", hh, P, gates_size(H))
    hr = [w.t() for d in active if (w := directions[d].weight_hr) is not None]
    weight_hr = panels("weight_hr", hr, H, P) if hr else None
    job = packed_job(
        (D, H, P, *sizes.part(0, steps), N),
        operand("gates", state.gates[here], D, gates_size(H)),
        operand("cells", state.cells[here], D, H),
        operand("dh", grads.dh[here], D, P),
        operand("dh_n", grads.dh_n[here], D, P),
        operand("dc", grads.dc[here], D, H),
        operand("dgates", grads.dgates[here], D, gates_size(H)),
        address(weight_hh),
        address(weight_hr),
        NO_SUMS if sums is None else sums.numbers(),
    )
    owners = (state, grads, weight_hh, weight_hr, sizes, sums)
    call("backward", job, owners)


def _bias_of(weights: Weights) -> Tensor | None:
    bias = weights.added_biases()
    shape = (gates_size(weights.hidden_size),)
    return None if bias is None else alias_of("bias", bias.contiguous(), shape)


class _Steps:
    """How many rows each step has, as the extension reads it."""

    def __init__(self, batch: int, batch_sizes: Tensor | None) -> None:
        self.batch = batch
        self.sizes = None if batch_sizes is None else batch_sizes.contiguous()

    def part(self, first: int, steps: int) -> tuple[int, int, int, int]:
        """A range of steps in the form of the extension's `Steps`."""
        return first, steps, self.batch, 0 if self.sizes is None else self.sizes.data_ptr()
