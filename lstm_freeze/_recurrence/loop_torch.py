"""The time loop of an LSTM layer in torch operations: any dtype, any device.

`native/loop` has the same for float32 on the CPU. Shapes are written as in `layer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .cell import gate_views, gates_size
from .native import memory
from .rows import Run, backwards, blocks_of, bounds, last_rows, previous_rows, runs_of
from .weights import Gradients, Inputs, State, Weights

# From this many multiplications on, a product for each direction is as fast as one for both.
_SEPARATE_PRODUCTS = 2**20


def _steps(tensor: Tensor, run: Run, first: int = 0) -> tuple[Tensor, ...]:
    """Views (D, B, F) of the steps of a run in (D, rows, F) whose row 0 is row `first`."""
    start = run.row - first
    rows = tensor[:, start : start + run.steps * run.batch]
    return torch.unbind(rows.view(rows.shape[0], run.steps, run.batch, rows.shape[2]), 1)


def forward(
    inputs: Inputs, directions: Sequence[Weights], keep: bool, block_bytes: int
) -> tuple[Tensor, Tensor, Tensor, State | None]:
    """As `layer.forward`, given the weights with their updates and the size of a block of gates."""
    data, batch_sizes, reverse, h0, c0, _ = inputs
    D, H, P = len(directions), directions[0].hidden_size, directions[0].state_size
    batch = inputs.batch
    rows = data.flatten(0, -2)
    N = rows.shape[0]
    back = backwards(data, reverse)
    sides = [rows, memory.picked(data, back).flatten(0, -2)] if D == 2 else [rows]
    blocks = _blocks(inputs, D * gates_size(H), block_bytes)
    most = max(last - first for first, last in map(bounds, blocks))
    gates = memory.empty(data, D, N if keep else most, gates_size(H))
    hidden = memory.empty(data, D, batch + N, P)
    hidden[:, :batch] = 0 if h0 is None else h0
    cells = memory.empty(data, D, batch + (N if keep else 1), H)
    cells[:, :batch] = 0 if c0 is None else c0
    state = State(gates, hidden, cells)
    loop = TorchForward(directions, state, batch, keep)
    biases = [w.added_biases() for w in directions]
    for block in blocks:
        first, last = bounds(block)
        base = 0 if keep else first
        for side, bias, w, gates_of in zip(sides, biases, directions, gates, strict=True):
            part = gates_of[first - base : last - base]
            if bias is None:
                torch.mm(side[first:last], w.weight_ih.t(), out=part)
            else:
                torch.addmm(bias, side[first:last], w.weight_ih.t(), out=part)
        loop.run(block, base)
    ended = last_rows(N, batch, batch_sizes, data.device) + batch
    h_n = hidden.index_select(1, ended)
    c_n = cells.index_select(1, ended) if keep else cells[:, :batch].clone()
    output = data.new_empty(*data.shape[:-1], D * P)
    for d in range(D):
        side, out = hidden[d, batch:].view(*data.shape[:-1], P), output[..., d * P : (d + 1) * P]
        torch.index_select(side, 0, back, out=out) if d else out.copy_(side)
    return output, h_n, c_n, state if keep else None


def _blocks(inputs: Inputs, row_size: int, block_bytes: int) -> list[list[Run]]:
    """The time blocks of a layer with `row_size` gates a row, both directions together."""
    runs = runs_of(inputs.steps, inputs.batch, inputs.batch_sizes)
    return blocks_of(runs, max(1, block_bytes // (row_size * inputs.data.element_size())))


class TorchForward:
    """Walks through the time blocks of a layer, all directions at once.

    Args:
        directions: The weights.
        state: `gates` holds the input's part of the pre-activations, of all rows or of one block,
            and receives the activations with `keep`; `hidden` and `cells` begin with the initial
            state. Without `keep`, `cells` is one state, updated in place.
        batch: B.
        keep: Whether a backward pass follows.
    """

    def __init__(
        self,
        directions: Sequence[Weights],
        state: State,
        batch: int,
        keep: bool,
    ) -> None:
        """Prepare the weights and the scratch memory."""
        gates, hidden, cells = state
        D, H = cells.shape[0], cells.shape[2]
        self._state, self._batch, self._keep = state, batch, keep
        self._weight_hh = torch.stack([w.weight_hh.t() for w in directions])
        self._weight_hr = [w.weight_hr.t() for w in directions if w.weight_hr is not None]
        self._scratch = gates.new_empty(D * batch * gates.shape[2])
        # Transcendental functions compute the end of a memory row in another way than its body.
        # So rows have the same length with and without `keep`.
        squashed = gates.new_empty(2 if self._weight_hr else 1, D, self._batch + 1, H)
        self._squashed, self._out = squashed[0], squashed[-1] if self._weight_hr else hidden

    def run(self, block: list[Run], base: int) -> None:
        """Walk through one block; the first row of `gates` is row `base`."""
        gates, hidden, cells = self._state
        D, batch = cells.shape[0], self._batch
        for run in block:
            size, row = run.batch, run.row
            before = batch + row - run.before if row else 0
            h = hidden[:, before : before + size]
            pre = self._scratch[: D * size * gates.shape[2]].view(D, size, -1)
            cell = self._pointwise(run, before, pre)
            projected, outputs = _steps(gates, run, base), _steps(hidden[:, batch:], run)
            for s in range(run.steps):
                torch.baddbmm(projected[s], h, self._weight_hh, out=pre)
                cell(s)
                h = outputs[s]
                for d, weight in enumerate(self._weight_hr):
                    torch.mm(self._out[d, :size], weight, out=h[d])

    def _pointwise(self, run: Run, before: int, pre: Tensor) -> Callable[[int], None]:
        """One step of a run at each call, from the pre-activations in `pre`, (D, B, 4H)."""
        kept, _, cells = self._state
        views, size = gate_views(pre), run.batch
        squashed = self._squashed[:, :size]
        if self._weight_hr:
            out: Sequence[Tensor] = [self._out[:, :size]] * run.steps
        else:
            out = _steps(self._out[:, self._batch :], run)
        if self._keep:
            gates: Sequence[Sequence[Tensor]] = list(
                zip(*(_steps(view, run) for view in gate_views(kept)), strict=True)
            )
            c = [cells[:, before : before + size], *_steps(cells[:, self._batch :], run)]
        else:
            gates, c = [views] * run.steps, [cells[:, :size]] * (run.steps + 1)

        def cell(s: int) -> None:
            both, i, f, g, o = gates[s]
            torch.sigmoid(views[0], out=both)
            torch.tanh(views[3], out=g)
            torch.sigmoid(views[4], out=o)
            torch.mul(f, c[s], out=c[s + 1])
            c[s + 1].addcmul_(i, g)
            torch.tanh(c[s + 1], out=squashed)
            torch.mul(o, squashed, out=out[s])

        return cell


def walk_back(
    inputs: Inputs,
    directions: Sequence[Weights],
    state: State,
    back: Tensor,
    given: tuple[Tensor | None, Tensor | None, Tensor | None],
    active: range,
    block_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Walks the active directions of a layer back in time.

    Returns the gradients of the pre-activations, (D, N, 4H), of the initial cell states, (D, B, H),
    and, with a projection, of the hidden states, (D, N, P).
    """
    grads = _gradients_to_fill(given, state, back, active)
    blocks = _blocks(inputs, state.gates.shape[0] * state.gates.shape[2], block_bytes)
    _walk_back(directions, state, inputs.batch_sizes, grads, active, blocks)
    return grads.dgates, grads.dc, grads.dh


def _gradients_to_fill(
    given: tuple[Tensor | None, Tensor | None, Tensor | None],
    state: State,
    back: Tensor,
    active: range,
) -> Gradients:
    """What a walk through the active directions reads and writes, in their order of time."""
    D, N, P = state.gates.shape[0], state.gates.shape[1], state.hidden.shape[2]
    batch, new = state.hidden.shape[1] - N, state.gates.new_empty
    dh_n, dc = (
        new(D, batch, size).zero_() if grad is None else new(D, batch, size).copy_(grad)
        for size, grad in ((P, given[1]), (state.cells.shape[2], given[2]))
    )
    dh = _sides_of(given[0], back, active, memory.empty(state.gates, D, N, P))
    return Gradients(dh, dh_n, dc, memory.empty(state.gates, *state.gates.shape))


def _sides_of(grad: Tensor | None, back: Tensor, active: range, out: Tensor) -> Tensor:
    """The output's gradient per direction, each in its own order of time: (D, N, P) into `out`."""
    if grad is None:
        return out.zero_()
    P = out.shape[2]
    for d in active:
        side = grad[..., d * P : (d + 1) * P]
        into = out[d].view(side.shape)
        torch.index_select(side, 0, back, out=into) if d else into.copy_(side)
    return out


def _walk_back(
    directions: Sequence[Weights],
    state: State,
    batch_sizes: Tensor | None,
    grads: Gradients,
    active: range,
    blocks: list[list[Run]],
) -> None:
    """Walks the active directions of a layer back in time; fills `grads`."""
    # The bits of a matrix product may depend on the alignment of its operands and on the rest of
    # its batch. So the buffers hold all directions, with zeros for those not walked, and a batched
    # product always multiplies all of them. Where products are large, each direction has its own.
    here = slice(active[0], active[-1] + 1)
    gates, cells = state.gates[here], state.cells[here]
    D, N, H = state.gates.shape[0], state.gates.shape[1], cells.shape[2]
    P, batch = state.hidden.shape[2], state.hidden.shape[1] - N
    weight_hh = torch.stack([w.weight_hh for w in directions])
    weight_hr = [(d, w) for d in active if (w := directions[d].weight_hr) is not None]
    index = None if batch_sizes is None else previous_rows(batch_sizes, N, gates.device)
    for d in set(range(D)) - set(active):
        grads.dgates[d] = 0
        grads.dh[d] = 0
    carried, wide = gates.new_empty(D * batch * P), gates.new_empty(D * batch * H)
    size, dgate, ended = 0, grads.dgates[:, :0], None
    for block in reversed(blocks):
        pointwise = _CellGradients.of(gates, cells, grads, here, index, bounds(block))
        for run in reversed(block):
            if run.batch > size:
                ended = grads.dh_n[:, : run.batch].clone()
                if size:
                    known = carried[: D * size * P].view(D, size, P)
                    ended[:, :size] = torch.bmm(dgate, weight_hh, out=known)
            size = run.batch
            dh = carried[: D * size * P].view(D, size, P)
            dm = wide[: D * size * H].view(D, size, H) if weight_hr else dh
            outs, slots = _steps(grads.dh, run), _steps(grads.dgates, run)
            cell = pointwise.run(run, dm[here])
            separate = size * weight_hh[0].numel() >= _SEPARATE_PRODUCTS
            for s in reversed(range(run.steps)):
                if ended is not None:
                    torch.add(outs[s], ended, out=dh)
                    ended = None
                elif separate:
                    for d in active:
                        torch.addmm(outs[s][d], dgate[d], weight_hh[d], out=dh[d])
                else:
                    torch.baddbmm(outs[s], dgate, weight_hh, out=dh)
                if weight_hr:
                    outs[s].copy_(dh)
                for d, weight in weight_hr:
                    torch.mm(dh[d], weight, out=dm[d])
                cell(s)
                dgate = slots[s]


class _CellGradients(NamedTuple):
    """The pointwise part of the steps of a block, walked back.

    `dc` holds the gradient of the cell state, replaced step by step. The factors that do
    not depend on a gradient are computed for the whole block at once.
    """

    gates: Tensor
    dgates: Tensor
    dc: Tensor
    first: int
    decay: Tensor

    @classmethod
    def of(
        cls,
        gates: Tensor,
        cells: Tensor,
        grads: Gradients,
        here: slice,
        index: Tensor | None,
        bounds: tuple[int, int],
    ) -> _CellGradients:
        """Prepares the rows within `bounds`; `index` says where their previous states are."""
        first, last = bounds
        dgates, dc = grads.dgates[here], grads.dc[here]
        before = cells[:, first:last] if index is None else cells.index_select(1, index[first:last])
        decay = _factors(gates, cells[:, dc.shape[1] :], before, dgates, first, last)
        return cls(gates, dgates, dc, first, decay)

    def run(self, run: Run, dm: Tensor) -> Callable[[int], None]:
        """One step of a run at each call, given o * tanh(c)'s gradient in `dm`, (D, B, H)."""
        H, size = self.dc.shape[2], run.batch
        dc = self.dc[:, :size]
        by_gate = dc.unsqueeze(2)
        forget, decay = _steps(self.gates[..., H : 2 * H], run), _steps(self.decay, run, self.first)
        lower = [
            slot.view(*slot.shape[:2], 3, H) for slot in _steps(self.dgates[..., : 3 * H], run)
        ]
        upper = _steps(self.dgates[..., 3 * H :], run)

        def cell(s: int) -> None:
            dc.addcmul_(dm, decay[s])
            lower[s].mul_(by_gate)
            upper[s].mul_(dm)
            dc.mul_(forget[s])

        return cell


def _factors(
    gates: Tensor, cells: Tensor, before: Tensor, dgates: Tensor, first: int, last: int
) -> Tensor:
    """The factors by which the gradients of rows [first, last) will be multiplied.

    The factors of the pre-activations are written to `dgates`: those of i, f, g will multiply the
    gradient of the cell state, those of o that of the hidden state. Returned are the factors that
    lead from the gradient of the hidden state to that of the cell state.
    """
    _, i, f, g, o = gate_views(gates[:, first:last])
    _, di, df, dg, do = gate_views(dgates[:, first:last])
    squashed = torch.empty_like(o, memory_format=torch.contiguous_format)
    for d in range(gates.shape[0]):  # one by one: bits must not depend on the other one
        torch.tanh(cells[d, first:last], out=squashed[d])
    torch.addcmul(i, i, i, value=-1, out=di)
    di.mul_(g)
    torch.addcmul(f, f, f, value=-1, out=df)
    df.mul_(before)
    torch.mul(g, g, out=dg)
    torch.addcmul(i, i, dg, value=-1, out=dg)
    torch.addcmul(o, o, o, value=-1, out=do)
    do.mul_(squashed)
    squashed.mul_(squashed)
    return torch.addcmul(o, o, squashed, value=-1, out=squashed)
