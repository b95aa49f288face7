"""One LSTM layer over time, without autograd: forward, and backward for what is wanted.

The input projection is one product per time block before the time loop, the gradients of weights
and input one product each after it; the loop does the rest for both directions at once. The
pointwise arithmetic of a step is native where `_native` applies, else torch operations.

Shapes: T time, B batch, N rows (T * B, or fewer when packed), I input size, H hidden size,
P projected size (H without projection), D directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _native
from ._packing import Run, blocks_of, flipped, previous_rows, runs_of

# A block's gates should stay in cache between the input projection and the steps that read them.
# The value enters the numbers (a product over a block may differ in bits from one over all rows),
# so it depends on shapes alone.
_BLOCK_BYTES = 4 * 2**20
# From this many multiplications on, a step's product per direction is no slower than one for both.
_SEPARATE_PRODUCTS = 2**20


class Weights(NamedTuple):
    """One direction of one layer; the biases and `weight_hr` may be absent."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    weight_hr: Tensor | None = None


class State(NamedTuple):
    """What a forward pass keeps for its backward pass; the first B rows are the initial state."""

    gates: Tensor
    hidden: Tensor
    cells: Tensor


def _gate_views(gates: Tensor) -> tuple[Tensor, ...]:
    """Views of gates (..., 4H): input and forget together, then each of the four."""
    hidden = gates.shape[-1] // 4
    return (gates[..., : 2 * hidden], *torch.split(gates, hidden, -1))


def _blocks(data: Tensor, batch: int, batch_sizes: Tensor | None, row_size: int) -> list[list[Run]]:
    """The time blocks of a layer with `row_size` gates a row, both directions together."""
    runs = runs_of(data.shape[0], batch, batch_sizes)
    return blocks_of(runs, max(1, _BLOCK_BYTES // (row_size * data.element_size())))


def _bounds(block: list[Run]) -> tuple[int, int]:
    """The first row of a block and the one after its last."""
    return block[0].row, block[-1].row + block[-1].steps * block[-1].batch


def _steps(tensor: Tensor, run: Run, first: int = 0) -> tuple[Tensor, ...]:
    """Views (D, B, F) of the steps of a run in (D, rows, F) whose row 0 is row `first`."""
    start = run.row - first
    rows = tensor[:, start : start + run.steps * run.batch]
    return torch.unbind(rows.view(rows.shape[0], run.steps, run.batch, rows.shape[2]), 1)


class _Cells(NamedTuple):
    """The buffers of a forward pass that the pointwise part of its steps works on.

    `gates` is None where nothing is kept; `cells` then holds one state, updated in place. `out`
    receives o * tanh(c): the rows of all steps, or with projection those of one step.
    """

    gates: Tensor | None
    cells: Tensor
    out: Tensor
    squashed: Tensor
    batch: int

    def run(self, run: Run, before: int, pre: Tensor, projects: bool) -> Callable[[int], None]:
        """One step of a run at each call, from the pre-activations in `pre`, (D, B, 4H).

        The state before the run's first step is in row `before` of `cells`.
        """
        if _native.applies(pre):
            return self._native_run(run, before, pre, projects)
        return self._torch_run(run, before, pre, projects)

    def _native_run(
        self, run: Run, before: int, pre: Tensor, projects: bool
    ) -> Callable[[int], None]:
        step = _native.forward_step(pre, self.gates, self.cells, self.cells, self.out)
        keep, size = self.gates is not None, run.batch

        def cell(s: int) -> None:
            row = run.row + s * size
            c = self.batch + row if keep else 0
            c_before = (c - size if s else before) if keep else 0
            step(size, 0, row if keep else 0, c_before, c, 0 if projects else self.batch + row)

        return cell

    def _torch_run(
        self, run: Run, before: int, pre: Tensor, projects: bool
    ) -> Callable[[int], None]:
        views, size = _gate_views(pre), run.batch
        squashed = self.squashed[:, :size]
        out = (
            [self.out[:, :size]] * run.steps if projects else _steps(self.out[:, self.batch :], run)
        )
        if self.gates is None:
            gates: Sequence[Sequence[Tensor]] = [views] * run.steps
            c = [self.cells[:, :size]] * (run.steps + 1)
        else:
            kept = (_steps(view, run) for view in _gate_views(self.gates))
            gates = list(zip(*kept, strict=True))
            c_first = self.cells[:, before : before + size]
            c = [c_first, *_steps(self.cells[:, self.batch :], run)]

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

    `keep` must not change a bit of the result. Transcendental functions treat the tail of a row
    of memory apart from its body, so both ways use buffers whose rows break at the same places.
    """
    D, P = len(directions), directions[0].weight_hh.shape[1]
    H = directions[0].weight_hh.shape[0] // 4
    batch = data.shape[1] if batch_sizes is None else int(batch_sizes[0])
    rows = data.flatten(0, -2)
    N = rows.shape[0]
    sides = [rows, flipped(data, reverse).flatten(0, -2)] if D == 2 else [rows]
    blocks = _blocks(data, batch, batch_sizes, D * 4 * H)
    weight_hh = torch.stack([w.weight_hh.t() for w in directions])
    weight_hr = [w.weight_hr.t() for w in directions if w.weight_hr is not None]

    hidden = data.new_empty(D, batch + N, P)
    hidden[:, :batch] = 0 if h0 is None else h0
    cells = data.new_empty(D, batch + (N if keep else 1), H)
    cells[:, :batch] = 0 if c0 is None else c0
    gates_rows = N if keep else max(last - first for first, last in map(_bounds, blocks))
    gates = data.new_empty(D, gates_rows, 4 * H)
    scratch = data.new_empty(D * batch * 4 * H)
    squashed = data.new_empty(2 if weight_hr else 1, D, batch + 1, H)
    out = squashed[-1] if weight_hr else hidden
    pointwise = _Cells(gates if keep else None, cells, out, squashed[0], batch)
    h_n, c_n = data.new_empty(D, batch, P), data.new_empty(D, batch, H)

    h, before, size = hidden[:, :batch], 0, batch
    for block in blocks:
        first, last = _bounds(block)
        base = 0 if keep else first
        for side, w, into in zip(sides, directions, gates, strict=True):
            _project(side[first:last], w, into[first - base : last - base])
        for run in block:
            if run.batch < size:
                state = before if keep else 0
                h_n[:, run.batch : size] = h[:, run.batch :]
                c_n[:, run.batch : size] = cells[:, state + run.batch : state + size]
                h, size = h[:, : run.batch], run.batch
            pre = scratch[: D * size * 4 * H].view(D, size, 4 * H)
            cell = pointwise.run(run, before, pre, bool(weight_hr))
            projected, outputs = _steps(gates, run, base), _steps(hidden[:, batch:], run)
            for s in range(run.steps):
                torch.baddbmm(projected[s], h, weight_hh, out=pre)
                cell(s)
                h = outputs[s]
                for d, weight in enumerate(weight_hr):
                    torch.mm(pointwise.out[d, :size], weight, out=h[d])
            before = batch + run.row + (run.steps - 1) * size
    state = before if keep else 0
    h_n[:, :size], c_n[:, :size] = h, cells[:, state : state + size]
    output = data.new_empty(*data.shape[:-1], D * P)
    for d in range(D):
        side = hidden[d, batch:].view(*data.shape[:-1], P)
        output[..., d * P : (d + 1) * P] = flipped(side, reverse) if d else side
    return output, h_n, c_n, State(gates, hidden, cells)


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
    reverse: Tensor | None,
    blocks: list[list[Run]],
    state: State,
    directions: Sequence[Weights],
    active: range,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Walk the active directions back in time.

    Returns:
        The gradients of the pre-activations (D, N, 4H), of the initial states (D, B, P) and
        (D, B, H), and of the outputs after projection (D, N, P; meaningless without).
    """
    # Matrix products may differ in bits with the alignment of their operands and with what else is
    # in their batch. So the buffers hold all directions, those not walked as zeros, and a batched
    # product always multiplies all; where one is large enough, each direction has its own.
    here = slice(active[0], active[-1] + 1)
    D, N, H = state.gates.shape[0], state.gates.shape[1], state.gates.shape[2] // 4
    P, batch = state.hidden.shape[2], state.hidden.shape[1] - N
    gates, cells = state.gates[here], state.cells[here]
    weight_hh = torch.stack([w.weight_hh for w in directions])
    weight_hr = [(d, w) for d in active if (w := directions[d].weight_hr) is not None]
    grad_out = _sides_of(grads[0], reverse, active, gates.new_empty(D, N, P))
    hn = gates.new_zeros(D, batch, P) if grads[1] is None else grads[1]
    dc = gates.new_zeros(D, batch, H)[here]  # dense whatever the layout of the given gradient
    if grads[2] is not None:
        dc.copy_(grads[2][here])
    index = None if batch_sizes is None else previous_rows(batch_sizes, N).to(gates.device)

    dgates = torch.empty_like(state.gates)
    for d in set(range(D)) - set(active):
        dgates[d] = 0
    carried, wide = gates.new_empty(D * batch * P), gates.new_empty(D * batch * H)
    size, dgate, ended = 0, dgates[:, :0], None
    for block in reversed(blocks):
        pointwise = _CellGradients.of(gates, cells, dgates[here], dc, index, _bounds(block))
        for run in reversed(block):
            if run.batch > size:
                ended = hn[:, : run.batch].clone()
                if size:
                    known = carried[: D * size * P].view(D, size, P)
                    ended[:, :size] = torch.bmm(dgate, weight_hh, out=known)
            size = run.batch
            dh = carried[: D * size * P].view(D, size, P)
            dm = wide[: D * size * H].view(D, size, H) if weight_hr else dh
            outs, slots = _steps(grad_out, run), _steps(dgates, run)
            cell = pointwise.run(run, dm[here])
            separate = size * 4 * H * P >= _SEPARATE_PRODUCTS
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
    return dgates, torch.bmm(dgate, weight_hh), dc, grad_out


class _CellGradients(NamedTuple):
    """The pointwise part of the steps of a block, walked back.

    `dc` holds the gradient of the cell state, replaced step by step. In torch operations the
    factors that need no gradient are computed for the whole block at once.
    """

    gates: Tensor
    cells: Tensor
    dgates: Tensor
    dc: Tensor
    first: int
    decay: Tensor | None

    @classmethod
    def of(
        cls,
        gates: Tensor,
        cells: Tensor,
        dgates: Tensor,
        dc: Tensor,
        index: Tensor | None,
        bounds: tuple[int, int],
    ) -> _CellGradients:
        """Prepares the rows within `bounds`; `index` says where their previous states are."""
        first, last = bounds
        if _native.applies(gates):
            return cls(gates, cells, dgates, dc, first, None)
        before = cells[:, first:last] if index is None else cells.index_select(1, index[first:last])
        decay = _factors(gates, cells[:, dc.shape[1] :], before, dgates, first, last)
        return cls(gates, cells, dgates, dc, first, decay)

    def run(self, run: Run, dm: Tensor) -> Callable[[int], None]:
        """One step of a run at each call, given o * tanh(c)'s gradient in `dm`, (D, B, H)."""
        if self.decay is None:
            return self._native_run(run, dm)
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

    def _native_run(self, run: Run, dm: Tensor) -> Callable[[int], None]:
        step = _native.backward_step(dm, self.dc, self.gates, self.cells, self.cells, self.dgates)
        size, batch = run.batch, self.dc.shape[1]

        def cell(s: int) -> None:
            row = run.row + s * size
            c_before = batch + row - (size if s else run.before)
            step(size, 0, 0, row, c_before, batch + row, row)

        return cell


def _sides_of(grad: Tensor | None, reverse: Tensor | None, active: range, out: Tensor) -> Tensor:
    """The output's gradient per direction, each in its own order of time: (D, N, P) into `out`."""
    if grad is None or len(active) < len(out):
        out.zero_()
    if grad is None:
        return out
    P = out.shape[2]
    for d in active:
        side = grad[..., d * P : (d + 1) * P]
        out[d].copy_((flipped(side, reverse) if d else side).flatten(0, -2))
    return out


def _factors(
    gates: Tensor, cells: Tensor, before: Tensor, dgates: Tensor, first: int, last: int
) -> Tensor:
    """The factors of the gradients of rows [first, last) that are known without any gradient.

    Those of the pre-activations are written to `dgates` (of i, f, g for the cell's gradient, of o
    for the hidden state's); returned is that of the cell for the hidden state's gradient.
    """
    _, i, f, g, o = _gate_views(gates[:, first:last])
    _, di, df, dg, do = _gate_views(dgates[:, first:last])
    squashed = torch.empty_like(o, memory_format=torch.contiguous_format)
    for d in range(gates.shape[0]):  # one direction at a time: its bits must not depend on others
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
    dgates, dh0, dc0, dhidden = _gate_gradients(
        grads, batch_sizes, reverse, blocks, state, directions, active
    )
    rows = data.flatten(0, -2)
    weights: list[list[Tensor | None]] = [[None] * 5 for _ in directions]
    for d in active:
        ih, hh, bias_ih, bias_hh, hr = wanted.weights[d]
        grad, out = dgates[d].t(), weights[d]
        if ih:
            out[0] = grad @ (flipped(data, reverse).flatten(0, -2) if d else rows)
        if hh:
            hidden = state.hidden[d]
            if batch_sizes is not None:
                hidden = hidden.index_select(0, previous_rows(batch_sizes, N).to(hidden.device))
            out[1] = grad @ hidden[:N]
        if bias_ih or bias_hh:
            bias = dgates[d].sum(0)
            out[2] = bias if bias_ih else None
            out[3] = (bias.clone() if bias_ih else bias) if bias_hh else None
        if hr:
            squashed = state.cells[d, batch:].tanh().mul_(_gate_views(state.gates[d])[4])
            out[4] = dhidden[d].t() @ squashed
    ddata = None
    if wanted.data:
        parts = [(dgates[d] @ w.weight_ih).view(data.shape) for d, w in enumerate(directions)]
        ddata = parts[0]
        if len(parts) == 2:
            ddata = ddata.add_(flipped(parts[1], reverse))
    return ddata, dh0 if wanted.h0 else None, dc0 if wanted.c0 else None, weights
