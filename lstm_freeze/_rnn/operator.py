"""One LSTM layer over time: the readable equations, and a hand-derived backward.

`layer` is the fast path, one operator to autograd, torch.compile and torch.export. Its forward
never depends on what is trainable; its backward computes only what is asked for. `equations` says
the same in plain differentiable operations: the oracle of the tests, and the path of everything
that differentiates twice or transforms functions.

Shapes are written as in `layer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._torch_internals import (
    forward_mode_is_on,
    functions_are_transformed,
    is_batched_gradient,
    is_fake,
)
from . import onnx
from .layer import Wanted, backward, forward
from .rows import check_packed, flipped
from .weights import State, Weights


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
    if sizes is not None:
        check_packed(data, sizes)
    elif data.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN, got 0")
    if data.numel() == 0:
        return tuple(x.zero_() for x in _layer_like(*args))
    output, h_n, c_n, state = forward(data, sizes, reverse, h0, c0, directions, keep)
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
    elif sizes.is_meta or is_fake(sizes):
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
    if sizes is not None:
        check_packed(data, sizes)  # again: it may have been written to since
    if data.numel() == 0:
        return [x.zero_() for x in _layer_backward_like(*args)]
    if state.gates.numel() == 0:
        state = forward(data, sizes, reverse, h0, c0, directions, True)[3]
    kinds = (tuple(flags[3:8]), tuple(flags[8:13]))[: len(directions)]
    wanted = Wanted(flags[0], flags[1], flags[2], kinds)
    ddata, dh0, dc0, dweights = backward(grads, data, sizes, reverse, state, directions, wanted)
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
    if torch.is_grad_enabled() or _transformed() or any(map(is_batched_gradient, grads)):
        found = _differentiable_gradients(grads[:3], inputs, flags)
    else:
        found = _layer_backward(*grads[:3], *inputs, *state, flags)
    data, *rest = (g if flag else None for g, flag in zip(found, flags, strict=True))
    return data, None, None, *rest, None


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
    if _is_recorded_for_onnx(data):
        if onnx.takes(data, batch_sizes, directions):
            return onnx.layer(data, h0, c0, directions)
        return equations(*args)
    if _transformed():
        return equations(*args)
    absent = (None,) * (5 * (2 - len(directions)))
    weights = [x for w in directions for x in w]
    tensors = (data, h0, c0, *weights)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    # Whether a traced program will ever run backward is not known: it then runs forward again.
    keep = keep and not (_is_exporting() or _is_jit_tracing())
    output: tuple[Tensor, Tensor, Tensor] = _layer(*args[:-1], *weights, *absent, keep)[:3]
    return output


def is_traced(data: Tensor) -> bool:
    """Whether the call is recorded or transformed rather than simply run."""
    compiling = torch.compiler.is_compiling() or _is_exporting()
    fake = data.is_meta or is_fake(data)
    return compiling or fake or _is_jit_tracing() or _transformed()


def _is_exporting() -> bool:
    # Before torch 2.7 the two could not be told apart.
    told: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return told()


def _is_recorded_for_onnx(data: Tensor) -> bool:
    """Whether `torch.onnx.export`, not in its TorchScript form, records this very call."""
    # Export is said to be under way in all threads; where numbers are wanted, data are real.
    exporting = _is_exporting() and torch.onnx.is_in_onnx_export()
    return exporting and is_fake(data)


def _is_jit_tracing() -> bool:
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def _transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work, which the operator has no rules for."""
    if torch.compiler.is_compiling():
        return False
    if torch.onnx.is_in_onnx_export():
        return True
    return forward_mode_is_on() or functions_are_transformed()
