"""One LSTM layer over time: the readable equations, and a hand-derived backward.

`layer` is the fast path, one operator to autograd, torch.compile and torch.export. Its forward
never depends on what is trainable; its backward computes only what is asked for. `equations` says
the same in plain differentiable operations: the oracle of the tests, and the path of everything
that differentiates twice or transforms functions.

Shapes: T time, B batch, N rows (T * B, or fewer when packed), I input size, H hidden size,
P projected size (H without projection), D directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._packing import Run, blocks_of, flipped, previous_rows, runs_of

# A block's gates should stay in cache between the input projection and the steps that read them.
# The value enters the numbers (a product over a block may differ in bits from one over all rows),
# so it depends on shapes alone.
_BLOCK_BYTES = 4 * 2**20


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


def equations(
    data: Tensor,
    batch_sizes: Tensor | None,
    reverse: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    directions: Sequence[Weights],
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer by the definition, differentiable in every way torch knows.

    Args:
        data: (T, B, I), or packed rows (N, I).
        batch_sizes: (T,) for packed rows.
        reverse: (N,) the order of the reverse direction, for packed rows.
        h0: (D, B, P); zeros where absent.
        c0: (D, B, H); zeros where absent.
        directions: The weights of the forward and, where present, the reverse direction.

    Returns:
        The output, (T, B, D * P) or (N, D * P), and the final states (D, B, P) and (D, B, H).
    """
    sizes = [data.shape[1]] * data.shape[0] if batch_sizes is None else batch_sizes.tolist()
    outputs, h_n, c_n = [], [], []
    for d, w in enumerate(directions):
        x = flipped(data, reverse) if d else data
        projected = torch.nn.functional.linear(x, w.weight_ih, w.bias_ih)
        steps = projected.unbind(0) if batch_sizes is None else torch.split(projected, sizes)
        real_hidden = w.weight_hh.shape[1]
        h = data.new_zeros(sizes[0], real_hidden) if h0 is None else h0[d]
        c = data.new_zeros(sizes[0], w.weight_hh.shape[0] // 4) if c0 is None else c0[d]
        hidden, ended = [], []
        for step, size in zip(steps, sizes, strict=True):
            if size < h.shape[0]:
                ended.append((h[size:], c[size:]))
                h, c = h[:size], c[:size]
            gates = step + torch.nn.functional.linear(h, w.weight_hh, w.bias_hh)
            i, f, g, o = gates.chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            if w.weight_hr is not None:
                h = torch.nn.functional.linear(h, w.weight_hr)
            hidden.append(h)
        ended.append((h, c))
        h_n.append(torch.cat([h for h, _ in reversed(ended)]))
        c_n.append(torch.cat([c for _, c in reversed(ended)]))
        output = torch.stack(hidden) if batch_sizes is None else torch.cat(hidden)
        outputs.append(flipped(output, reverse) if d else output)
    return torch.cat(outputs, -1), torch.stack(h_n), torch.stack(c_n)


def _cell_step(
    pre: Sequence[Tensor],
    gates: Sequence[Tensor],
    c: Tensor,
    c_next: Tensor,
    squashed: Tensor,
    out: Tensor,
) -> None:
    """The pointwise arithmetic of one step: pre-activations in, gates, cell and hidden out.

    `pre` and `gates` are views (input and forget together, input, forget, cell, output); they may
    be the same memory, and so may `c` and `c_next`. All is written in place.
    """
    torch.sigmoid(pre[0], out=gates[0])
    torch.tanh(pre[3], out=gates[3])
    torch.sigmoid(pre[4], out=gates[4])
    torch.mul(gates[2], c, out=c_next)
    c_next.addcmul_(gates[1], gates[3])
    torch.tanh(c_next, out=squashed)
    torch.mul(gates[4], squashed, out=out)


def _gate_views(gates: Tensor) -> tuple[Tensor, ...]:
    """Views of gates (..., 4H): input and forget together, then each of the four."""
    hidden = gates.shape[-1] // 4
    return (gates[..., : 2 * hidden], *torch.split(gates, hidden, -1))


def _blocks(data: Tensor, batch: int, batch_sizes: Tensor | None, row_size: int) -> list[list[Run]]:
    """The time blocks of a layer with `row_size` gates a row, both directions together."""
    runs = runs_of(data.shape[0], batch, batch_sizes)
    return blocks_of(runs, max(1, _BLOCK_BYTES // (row_size * data.element_size())))


def _steps(tensor: Tensor, run: Run, first: int = 0) -> tuple[Tensor, ...]:
    """Views (D, B, F) of the steps of a run in (D, rows, F) whose row 0 is row `first`."""
    start = run.row - first
    rows = tensor[:, start : start + run.steps * run.batch]
    return rows.unflatten(1, (run.steps, run.batch)).unbind(1)


def _forward(
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
    sides = [rows, flipped(data, reverse).flatten(0, -2)][:D]
    blocks = _blocks(data, batch, batch_sizes, D * 4 * H)
    block_rows = max(sum(run.steps * run.batch for run in block) for block in blocks)
    weight_ih = [w.weight_ih.t() for w in directions]
    weight_hh = torch.stack([w.weight_hh.t() for w in directions])
    weight_hr = [w.weight_hr.t() for w in directions if w.weight_hr is not None]
    bias = [_bias(w) for w in directions]

    hidden = data.new_empty(D, batch + N, P)
    hidden[:, :batch] = 0 if h0 is None else h0
    cells = data.new_empty(D, batch + (N if keep else 1), H)
    cells[:, :batch] = 0 if c0 is None else c0
    gates = data.new_empty(D, N if keep else block_rows, 4 * H)
    scratch = data.new_empty(D * batch * 4 * H)
    squashed = data.new_empty(D, batch + 1, H)
    h_n, c_n = data.new_empty(D, batch, P), data.new_empty(D, batch, H)

    h, c, size = hidden[:, :batch], cells[:, :batch], batch
    for block in blocks:
        first, last = block[0].row, block[-1].row + block[-1].steps * block[-1].batch
        base = 0 if keep else first
        for d in range(D):
            out = gates[d, first - base : last - base]
            if bias[d] is None:
                torch.mm(sides[d][first:last], weight_ih[d], out=out)
            else:
                torch.addmm(bias[d], sides[d][first:last], weight_ih[d], out=out)
        for run in block:
            if run.batch < size:
                h_n[:, run.batch : size] = h[:, run.batch :]
                c_n[:, run.batch : size] = c[:, run.batch :]
                h, c, size = h[:, : run.batch], c[:, : run.batch], run.batch
            pre = scratch[: D * size * 4 * H].view(D, size, 4 * H)
            pre_views, tanh_c = _gate_views(pre), squashed[:, :size]
            projected = _steps(gates, run, base)
            outputs = _steps(hidden[:, batch:], run)
            if keep:
                gate_steps = list(zip(*(_steps(v, run) for v in _gate_views(gates)), strict=True))
                cell_steps = _steps(cells[:, batch:], run)
            for s in range(run.steps):
                torch.baddbmm(projected[s], h, weight_hh, out=pre)
                c_next = cell_steps[s] if keep else c
                gate = gate_steps[s] if keep else pre_views
                h = outputs[s]
                if weight_hr:
                    _cell_step(pre_views, gate, c, c_next, tanh_c, tanh_c)
                    for d in range(D):
                        torch.mm(tanh_c[d], weight_hr[d], out=h[d])
                else:
                    _cell_step(pre_views, gate, c, c_next, tanh_c, h)
                c = c_next
    h_n[:, :size], c_n[:, :size] = h, c
    output = data.new_empty(*data.shape[:-1], D * P)
    for d in range(D):
        side = hidden[d, batch:].view(*data.shape[:-1], P)
        output[..., d * P : (d + 1) * P] = flipped(side, reverse) if d else side
    return output, h_n, c_n, State(gates, hidden, cells)


def _bias(w: Weights) -> Tensor | None:
    return None if w.bias_ih is None or w.bias_hh is None else w.bias_ih + w.bias_hh


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
        (D, B, H), and of the projected outputs (D, N, P; without projection meaningless).
    """
    lo, hi = active[0], active[-1] + 1
    gates, cells = state.gates[lo:hi], state.cells[lo:hi]
    D, N, H = gates.shape[0], gates.shape[1], gates.shape[2] // 4
    P, batch = state.hidden.shape[2], state.hidden.shape[1] - N
    weight_hh = torch.stack([directions[d].weight_hh for d in active])
    weight_hr = [w.weight_hr for w in directions[lo:hi] if w.weight_hr is not None]
    grad_out = _sides_of(grads[0], reverse, active, gates.new_empty(D, N, P))
    hn = gates.new_zeros(D, batch, P) if grads[1] is None else grads[1][lo:hi]
    dc_all = gates.new_zeros(D, batch, H) if grads[2] is None else grads[2][lo:hi].clone()
    index = None if batch_sizes is None else previous_rows(batch_sizes, N).to(gates.device)

    dgates = torch.empty_like(gates)
    carried = gates.new_empty(D * batch * P)
    size, dgate = 0, dgates[:, :0]
    for block in reversed(blocks):
        first, last = block[0].row, block[-1].row + block[-1].steps * block[-1].batch
        before = cells[:, first:last] if index is None else cells.index_select(1, index[first:last])
        decay = _factors(gates, cells[:, batch:], before, dgates, first, last)
        for run in reversed(block):
            if run.batch > size:
                dh_seed = hn[:, : run.batch].clone()
                if size:
                    dh_seed[:, :size] = torch.bmm(dgate, weight_hh)
                fresh = True
            else:
                fresh = False
            size = run.batch
            dh, dc = carried[: D * size * P].view(D, size, P), dc_all[:, :size]
            outs, slots = _steps(grad_out, run), _steps(dgates, run)
            lower = [slot[..., : 3 * H].unflatten(-1, (3, H)) for slot in slots]
            forget = _steps(gates[..., H : 2 * H], run)
            decays = _steps(decay, run, first)
            dcs = dc.unsqueeze(2)
            for s in reversed(range(run.steps)):
                if fresh:
                    torch.add(outs[s], dh_seed, out=dh)
                    fresh = False
                else:
                    torch.baddbmm(outs[s], dgate, weight_hh, out=dh)
                dm = dh
                if weight_hr:
                    outs[s].copy_(dh)
                    dm = torch.stack([torch.mm(dh[d], weight_hr[d]) for d in range(D)])
                dgate = slots[s]
                dc.addcmul_(dm, decays[s])
                lower[s].mul_(dcs)
                dgate[..., 3 * H :].mul_(dm)
                dc.mul_(forget[s])
    return dgates, torch.bmm(dgate, weight_hh), dc_all, grad_out


def _sides_of(grad: Tensor | None, reverse: Tensor | None, active: range, out: Tensor) -> Tensor:
    """The output's gradient per direction, each in its own order of time: (D, N, P) into `out`."""
    if grad is None:
        return out.zero_()
    P = out.shape[2]
    for slot, d in zip(out, active, strict=True):
        side = grad[..., d * P : (d + 1) * P]
        slot.copy_((flipped(side, reverse) if d else side).flatten(0, -2))
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


def _backward(
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
    for slot, d in enumerate(active):
        ih, hh, bias_ih, bias_hh, hr = wanted.weights[d]
        grad, out = dgates[slot].t(), weights[d]
        if ih:
            out[0] = grad @ (flipped(data, reverse).flatten(0, -2) if d else rows)
        if hh:
            hidden = state.hidden[d]
            if batch_sizes is not None:
                hidden = hidden.index_select(0, previous_rows(batch_sizes, N).to(hidden.device))
            out[1] = grad @ hidden[:N]
        if bias_ih or bias_hh:
            bias = dgates[slot].sum(0)
            out[2] = bias if bias_ih else None
            out[3] = (bias.clone() if bias_ih else bias) if bias_hh else None
        if hr:
            squashed = state.cells[d, batch:].tanh().mul_(_gate_views(state.gates[d])[4])
            out[4] = dhidden[slot].t() @ squashed
    ddata = None
    if wanted.data:
        parts = [(dgates[d] @ w.weight_ih).view(data.shape) for d, w in enumerate(directions)]
        ddata = parts[0]
        if len(parts) == 2:
            ddata = ddata.add_(flipped(parts[1], reverse))
    return ddata, dh0 if wanted.h0 else None, dc0 if wanted.c0 else None, weights


_TENSORS = (
    "Tensor data, Tensor? sizes, Tensor? reverse, Tensor? h0, Tensor? c0, "
    "Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, "
    "Tensor? w_ih_r, Tensor? w_hh_r, Tensor? b_ih_r, Tensor? b_hh_r, Tensor? w_hr_r"
)


def _directions(weights: Sequence[Tensor | None]) -> list[Weights]:
    return [
        Weights(w_ih, w_hh, *rest)
        for w_ih, w_hh, *rest in (weights[:5], weights[5:])
        if w_ih is not None and w_hh is not None
    ]


@torch.library.custom_op(
    "lstm_freeze::layer",
    mutates_args=(),
    schema=f"({_TENSORS}, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _layer(*args: Any) -> tuple[Tensor, ...]:
    data, sizes, reverse, h0, c0, *weights, keep = args
    directions = _directions(weights)
    if data.shape[0] == 0 and sizes is None:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN, got 0")
    if data.numel() == 0:
        return tuple(x.zero_() for x in _layer_like(*args))
    output, h_n, c_n, state = _forward(data, sizes, reverse, h0, c0, directions, keep)
    return output, h_n, c_n, *(state if keep else (data.new_empty(0) for _ in state))


@_layer.register_fake
def _layer_like(*args: Any) -> tuple[Tensor, ...]:
    data, sizes, _, h0, c0, *weights, keep = args
    D, P = len(_directions(weights)), weights[1].shape[1]
    H = weights[1].shape[0] // 4
    N = data.flatten(0, -2).shape[0]
    if sizes is None:
        batch = data.shape[1]
    elif h0 is not None or c0 is not None:
        batch = (c0 if h0 is None else h0).shape[1]
    elif sizes.is_meta or isinstance(sizes, torch._subclasses.FakeTensor):
        batch = torch.library.get_ctx().new_dynamic_size()
    else:
        batch = int(sizes[0])
    kept = [(D, N, 4 * H), (D, batch + N, P), (D, batch + N, H)] if keep else [(0,)] * 3
    shapes = [(*data.shape[:-1], D * P), (D, batch, P), (D, batch, H), *kept]
    return tuple(data.new_empty(shape) for shape in shapes)


@torch.library.custom_op(
    "lstm_freeze::layer_backward",
    mutates_args=(),
    schema=f"(Tensor? grad_output, Tensor? grad_h, Tensor? grad_c, {_TENSORS}, "
    f"Tensor gates, Tensor hidden, Tensor cells, bool[] wanted) -> Tensor[]",
)
def _layer_backward(*args: Any) -> list[Tensor]:
    """The wanted gradients in the order of the tensor arguments, empty where not wanted."""
    grads, (data, sizes, reverse, h0, c0), weights = args[:3], args[3:8], args[8:18]
    state, flags = State(*args[18:21]), args[21]
    directions = _directions(weights)
    if data.numel() == 0:
        return [x.zero_() for x in _layer_backward_like(*args)]
    if state.gates.numel() == 0:
        state = _forward(data, sizes, reverse, h0, c0, directions, True)[3]
    kinds = (tuple(flags[3:8]), tuple(flags[8:13]))[: len(directions)]
    wanted = Wanted(*flags[:3], kinds)
    ddata, dh0, dc0, dweights = _backward(grads, data, sizes, reverse, state, directions, wanted)
    flat = [ddata, dh0, dc0, *(g for side in dweights for g in side)]
    flat += [None] * (13 - len(flat))
    return [data.new_empty(0) if g is None else g for g in flat]


@_layer_backward.register_fake
def _layer_backward_like(*args: Any) -> list[Tensor]:
    data, h0, c0, weights, flags = args[3], args[6], args[7], args[8:18], args[21]
    return [
        torch.empty_like(x, memory_format=torch.contiguous_format) if flag else data.new_empty(0)
        for x, flag in zip((data, h0, c0, *weights), flags, strict=True)
    ]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[3:])
    ctx.save_for_backward(*inputs[:-1], *output[3:])


def _layer_gradients(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: under activation checkpointing a second read is an error
    inputs, state = saved[:15], saved[15:]
    needs = ctx.needs_input_grad
    flags = [bool(needs[k]) for k in (0, *range(3, 15))]
    if torch.is_grad_enabled() or _transformed() or any(map(_is_batched, grads)):
        found = _differentiable_gradients(grads[:3], inputs, flags)
    else:
        found = _layer_backward(*grads[:3], *inputs, *state, flags)
    data, *rest = (g if flag else None for g, flag in zip(found, flags, strict=True))
    return data, None, None, *rest, None


def _is_batched(grad: Tensor | None) -> bool:
    """Whether `torch.autograd.grad(..., is_grads_batched=True)` is at work."""
    return grad is not None and bool(torch._C._functorch.is_legacy_batchedtensor(grad))


def _differentiable_gradients(
    grads: Sequence[Tensor | None], inputs: Sequence[Tensor | None], flags: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients as functions of inputs and `grads` that can be differentiated or batched."""
    again = torch.is_grad_enabled()
    data, sizes, reverse, *rest = inputs
    with torch.enable_grad():
        # Aliases: a weight that stands in two places must get each place's own gradient.
        places = [None if x is None else x.view_as(x) for x in (data, *rest)]
        x, h0, c0, *weights = places
        assert x is not None
        outputs = equations(x, sizes, reverse, h0, c0, _directions(weights))
    pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None]
    asked = [x for x, flag in zip(places, flags, strict=True) if flag and x is not None]
    found = iter(
        torch.autograd.grad(
            [y for y, _ in pairs],
            asked,
            [g for _, g in pairs],
            create_graph=again,
            allow_unused=True,
        )
    )
    return [next(found) if flag else None for flag in flags]


_layer.register_autograd(_layer_gradients, setup_context=_keep_for_backward)


def layer(
    data: Tensor,
    batch_sizes: Tensor | None,
    reverse: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    directions: Sequence[Weights],
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer over time, as `equations` says it, with the hand-derived backward.

    Data and weights are float32 or float64, all of one dtype and device.
    """
    args = (data, batch_sizes, reverse, h0, c0, directions)
    if _transformed():
        return equations(*args)
    absent = (None,) * (5 * (2 - len(directions)))
    weights = [x for w in directions for x in w]
    tensors = (data, h0, c0, *weights)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    # Whether a traced program will ever run backward is not known: it then runs forward again.
    keep = keep and not (torch.compiler.is_exporting() or torch.jit.is_tracing())
    output: tuple[Tensor, Tensor, Tensor] = _layer(*args[:-1], *weights, *absent, keep)[:3]
    return output


def is_traced(data: Tensor) -> bool:
    """Whether the call is recorded or transformed rather than simply run."""
    compiling = torch.compiler.is_compiling() or torch.compiler.is_exporting()
    fake = data.is_meta or isinstance(data, torch._subclasses.FakeTensor)
    return compiling or fake or torch.jit.is_tracing() or _transformed()


def _transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work, which the operator has no rules for."""
    if torch.compiler.is_compiling():
        return False
    if torch.onnx.is_in_onnx_export():
        return True
    forward_mode: int = torch.autograd.forward_ad._current_level
    return forward_mode >= 0 or bool(torch._C._are_functorch_transforms_active())
