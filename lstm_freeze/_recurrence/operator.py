"""One LSTM layer over time as one operator, with a hand-derived backward.

`run_layer` is one operator to autograd, torch.compile and torch.export. Its forward never depends
on what is trainable; its backward computes only what is asked for. `equations` computes the same
in plain differentiable operations.

Shapes are written as in `run_layer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .._torch_internals import dispatch_is_watched, is_batched_gradient, is_fake
from . import onnx, tracing
from .agreement import check_gradients, check_inputs, check_state
from .cell import gates_size
from .equations import equations, masked_equations
from .flops import backward_flops, forward_flops
from .layer import backward, forward
from .weights import Inputs, State, Wanted, Weights

Seeds = tuple[Tensor | None, Tensor | None, Tensor | None]
"""The gradients of output, h_n and c_n that backward starts from."""

_PLAIN = {Tensor, torch.nn.Parameter, type(None)}

# An operator takes a flat list of tensors. Only this and the next three functions know its order.
_BEFORE_WEIGHTS = Inputs._fields[:-1]
_TENSORS = (
    *_BEFORE_WEIGHTS,
    *Weights._fields,
    *(f"{name}_reverse" for name in Weights._fields),
)
_REQUIRED = {"data", *Weights._fields[:2]}
_PROJECTIONS = [name.removesuffix("_reverse").endswith("_hr") for name in _TENSORS]
_SCHEMA = ", ".join(f"Tensor{'' if name in _REQUIRED else '?'} {name}" for name in _TENSORS)


def _flat(
    before: Sequence[Tensor | None], weights: Sequence[Sequence[Tensor | None]]
) -> list[Tensor | None]:
    """The flat list: the tensors before the weights, then each direction's; None where absent."""
    return _filled([*before, *(w for side in weights for w in side)], None)


def _filled(values: Iterable[Any], absent: Any) -> list[Any]:
    """One value for each of `_TENSORS`; `absent` for those at the end that are not given."""
    found = list(values)
    return found + [absent] * (len(_TENSORS) - len(found))


def _inputs(flat: Sequence[Any]) -> Inputs:
    """The inputs of a layer from its tensors in the order of `_TENSORS`."""
    before, sides = _split(flat)
    return Inputs._make([*before, [Weights(*side) for side in sides if side[0] is not None]])


def _split(flat: Sequence[Any]) -> tuple[Sequence[Any], tuple[Sequence[Any], Sequence[Any]]]:
    """The tensors before the weights, and the weights of either direction."""
    first, size = len(_BEFORE_WEIGHTS), len(Weights._fields)
    weights = flat[first:]
    return flat[:first], (weights[:size], weights[size:])


def _wanted(flags: Sequence[bool], directions: int) -> Wanted:
    """The wanted gradients, from a flag for each of `_TENSORS`."""
    (data, _, _, h0, c0), sides = _split(flags)
    return Wanted(data, h0, c0, tuple(map(tuple, sides[:directions])))


@torch.library.custom_op(
    "lstm_freeze::layer",
    mutates_args=(),
    schema=f"({_SCHEMA}, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _layer(*arguments: Any) -> tuple[Tensor, ...]:
    """Output, final states, and with `keep` the State; else three empty tensors."""
    *flat, keep = arguments
    inputs = _inputs(flat)
    check_inputs(inputs)
    output, h_n, c_n, state = _forward(inputs, keep)
    return output, h_n, c_n, *(state or [output.new_empty(0) for _ in State._fields])


def _forward(inputs: Inputs, keep: bool) -> tuple[Tensor, Tensor, Tensor, State | None]:
    """As `layer.forward`, also for data without any number."""
    if inputs.data.numel():
        return forward(inputs, keep)
    flat = _flat(inputs[:-1], inputs.directions)
    output, h_n, c_n, *state = (x.zero_() for x in _layer_like(*flat, keep))
    return output, h_n, c_n, State(*state)


@_layer.register_fake
def _layer_like(*arguments: Any) -> tuple[Tensor, ...]:
    *flat, keep = arguments
    data, sizes, _, h0, c0, directions = _inputs(flat)
    D, H, P = len(directions), directions[0].hidden_size, directions[0].state_size
    N = data.flatten(0, -2).shape[0]
    given = c0 if h0 is None else h0
    batch: int | torch.SymInt
    if sizes is None:
        batch = data.shape[1]
    elif given is not None:
        batch = given.shape[1]
    elif sizes.is_meta or is_fake(sizes):
        batch = torch.library.get_ctx().new_dynamic_size()
    else:
        batch = int(sizes[0])
    results = [(*data.shape[:-1], D * P), (D, batch, P), (D, batch, H)]
    state = [(D, N, gates_size(H)), (D, batch + N, P), (D, batch + N, H)]
    kept = state if keep else [(0,) for _ in state]
    return tuple(data.new_empty(shape) for shape in (*results, *kept))


@torch.library.custom_op(
    "lstm_freeze::layer_backward",
    mutates_args=(),
    schema=f"(Tensor? grad_output, Tensor? grad_h, Tensor? grad_c, {_SCHEMA}, "
    f"{', '.join(f'Tensor {name}' for name in State._fields)}, bool[] wanted) -> Tensor[]",
)
def _layer_backward(
    grad_output: Tensor | None, grad_h: Tensor | None, grad_c: Tensor | None, *others: Any
) -> list[Tensor]:
    """The gradients of those of `_TENSORS` whose flag in `wanted` is set."""
    return _gradients((grad_output, grad_h, grad_c), *others)


def _gradients(seeds: Seeds, *others: Any) -> list[Tensor]:
    *flat, gates, hidden, cells, flags = others
    inputs = _inputs(flat)
    check_inputs(inputs)  # again: they may have changed since the forward pass
    check_gradients(inputs, seeds)
    if inputs.data.numel() == 0:
        return [x.zero_() for x in _layer_backward_like(*seeds, *others)]
    state: State | None = State(gates, hidden, cells)
    if gates.numel() == 0:
        *_, state = forward(inputs, keep=True)
    assert state is not None
    check_state(inputs, state)
    # Hooks on saved tensors may have changed their strides.
    state = State(*(x.contiguous() for x in state))
    wanted = _wanted(flags, len(inputs.directions))
    grad_data, grad_h0, grad_c0, weights = backward(seeds, inputs, state, wanted)
    found = _flat((grad_data, None, None, grad_h0, grad_c0), weights)
    return [grad for grad in found if grad is not None]


@_layer_backward.register_fake
def _layer_backward_like(*arguments: Any) -> list[Tensor]:
    _, _, _, *flat, _, _, _, flags = arguments
    return [
        torch.empty_like(x, memory_format=torch.contiguous_format)
        for x, flag in zip(flat, flags, strict=True)
        if flag
    ]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *flat, _ = inputs
    _, _, _, *state = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*state)
    ctx.save_for_backward(*flat, *state)


def _layer_gradients(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_output, grad_h, grad_c, *_ = grads
    # Saved tensors once: under activation checkpointing a second read is an error.
    *given, gates, hidden, cells = ctx.saved_tensors
    flat, seeds = _filled(given, None), (grad_output, grad_h, grad_c)
    flags = _filled(map(bool, ctx.needs_input_grad[: len(given)]), False)
    if grad_output is None and grad_h is None and _inputs(flat).steps == 1:
        # The final cell state of a single step lies before the projection.
        flags = [f and not late for f, late in zip(flags, _PROJECTIONS, strict=True)]
    found: Sequence[Tensor | None] = ()
    if not any(flags):
        pass
    elif (
        torch.is_grad_enabled() or tracing.is_transformed() or any(map(is_batched_gradient, seeds))
    ):
        found = _differentiable_gradients(seeds, flat, flags)
    elif _runs_plainly((*seeds, *flat), flat[0]):
        found = _gradients(seeds, *flat, gates, hidden, cells, flags)
    else:
        found = _layer_backward(*seeds, *flat, gates, hidden, cells, flags)
    wanted = iter(found)
    gradients = [next(wanted) if flag else None for flag in flags]
    return *gradients[: len(given)], *[None] * (len(ctx.needs_input_grad) - len(given))


def _differentiable_gradients(
    grads: Sequence[Tensor | None], flat: Sequence[Tensor | None], flags: Sequence[bool]
) -> Sequence[Tensor | None]:
    """The wanted gradients as functions that can be differentiated or batched."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: a weight used at two places must get a gradient for each of them.
        places = [None if x is None else x.view_as(x) for x in flat]
        outputs = equations(*_inputs(places))
    pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None]
    asked = [x for x, flag in zip(places, flags, strict=True) if flag and x is not None]
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        [y for y, _ in pairs],
        asked,
        [g for _, g in pairs],
        create_graph=again,
        allow_unused=True,
    )
    return found


_layer.register_autograd(_layer_gradients, setup_context=_keep_for_backward)


class _PlainLayer(torch.autograd.Function):
    """The operator with its gradients for calls that nothing but autograd looks at."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        output, h_n, c_n, state = _forward(_inputs(_filled(given, None)), keep=True)
        assert state is not None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*given, *state)
        return output, h_n, c_n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _layer_gradients(ctx, *grads)


def _runs_plainly(tensors: Sequence[Tensor | None], data: Tensor) -> bool:
    """Whether torch's dispatcher would do nothing but call the operator's function.

    Going through it takes longer than a layer of a few units and steps.
    """
    plain = _PLAIN.issuperset(map(type, tensors))
    return plain and not tracing.is_traced(data) and not dispatch_is_watched()


@register_flop_formula(torch.ops.lstm_freeze.layer, get_raw=True)
def _layer_flops(*arguments: Any, **_: Any) -> int:
    *flat, _keep = arguments
    return forward_flops(_inputs(flat))


@register_flop_formula(torch.ops.lstm_freeze.layer_backward, get_raw=True)
def _layer_backward_flops(*arguments: Any, **_: Any) -> int:
    _, _, _, *flat, gates, hidden, cells, flags = arguments
    inputs = _inputs(flat)
    wanted = _wanted(flags, len(inputs.directions))
    return backward_flops(inputs, State(gates, hidden, cells), wanted)


def run_layer(
    data: Tensor,
    batch_sizes: Tensor | None,
    reverse: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    directions: Sequence[Weights],
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer over time, as `equations` defines it, with the hand-derived backward.

    Data and weights have one dtype and device. Complex numbers go through `equations`: the
    hand-derived backward does not cover them. `lengths` are those of padded dense data; they are
    given only where `tracing.is_written_out`.
    """
    inputs = Inputs(data, batch_sizes, reverse, h0, c0, directions)
    flat = _flat(inputs[:-1], directions)
    plainly = _runs_plainly(flat, data)
    if data.is_complex() or (not plainly and tracing.is_written_out(data)):
        if tracing.is_recorded_for_onnx(data) and onnx.takes(data, batch_sizes, directions):
            return onnx.layer(data, lengths, h0, c0, directions)
        if lengths is not None:
            return masked_equations(data, lengths, h0, c0, directions)
        return equations(*inputs)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in flat)
    if plainly and not keep:
        output, h_n, c_n, _ = _forward(inputs, keep)
    elif plainly:
        given = [*inputs[:-1], *(w for side in directions for w in side)]
        output, h_n, c_n = _PlainLayer.apply(*given)  # type: ignore[no-untyped-call]
    else:
        # A traced program may or may not run backward; if it does, it runs forward again.
        keep = keep and not (tracing.is_exporting() or tracing.is_jit_tracing())
        output, h_n, c_n, *_ = _layer(*flat, keep)
    if keep and directions[0].weight_hr is not None and inputs.steps == 1:
        earlier = [x for x, late in zip(flat, _PROJECTIONS, strict=True) if not late]
        trains = any(x is not None and x.requires_grad for x in earlier)
        return output, h_n, c_n if trains else c_n.detach()
    return output, h_n, c_n
