"""Checks that the tensors of a layer fit together, made before any of them is read.

The native loop reads memory by addresses and sizes, and torch reads beyond a storage that was made
smaller. Between a forward pass and its backward a weight may change (`module.half()`, a `.data` of
another shape, a storage that was freed), so the backward pass checks again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from .cell import gates_size, parameter_shapes
from .rows import check_packed
from .weights import Inputs, State, Weights

Shape = tuple[int, ...]


def check_inputs(inputs: Inputs) -> None:
    """Raises where the inputs of a layer do not fit each other."""
    data, batch_sizes = inputs.data, inputs.batch_sizes
    if data.dim() != (3 if batch_sizes is None else 2):
        raise RuntimeError(
            f"`data` must be (T, B, I), or (N, I) with `batch_sizes`, got {tuple(data.shape)}"
        )
    if batch_sizes is not None:
        check_packed(data, batch_sizes)
    else:
        check_steps(data)
    _check(inputs, _inputs_and_shapes(inputs))


def check_steps(data: Tensor) -> None:
    """Raises where dense data (T, B, I) have no step."""
    if data.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN, got 0")


def check_state(inputs: Inputs, state: State) -> None:
    """Raises where the inputs no longer fit the `state` that a forward pass made of them."""
    _check(inputs, _state_and_shapes(inputs, state))


def check_gradients(
    inputs: Inputs, grads: tuple[Tensor | None, Tensor | None, Tensor | None]
) -> None:
    """Raises where a gradient of the output or a final state does not have its shape."""
    first, D, B = inputs.directions[0], len(inputs.directions), inputs.batch
    H, P = first.hidden_size, first.state_size
    shapes: tuple[Shape, ...] = ((*inputs.data.shape[:-1], D * P), (D, B, P), (D, B, H))
    names = ("grad_output", "grad_h", "grad_c")
    _check(inputs, zip(names, grads, shapes, strict=True))


def check_is_there(name: str, tensor: Tensor) -> None:
    """Raises where a tensor's storage has become too small for the tensor."""
    if not is_there(tensor):
        raise RuntimeError(
            f"{name} has lost its memory: its storage holds {tensor.untyped_storage().nbytes()} "
            f"bytes, too few for size {tuple(tensor.shape)}; give it its memory back before it is "
            "used"
        )


def is_there(tensor: Tensor) -> bool:
    """Whether a tensor's storage still holds all elements of the tensor.

    True for tensor subclasses that wrap others and have no memory of their own.
    """
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return True
    if tensor.is_contiguous():
        last = tensor.numel() - 1
    else:
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        last = sum((size - 1) * stride for size, stride in steps)
    if last < 0:
        return True
    end = (tensor.storage_offset() + last + 1) * tensor.element_size()
    return end <= tensor.untyped_storage().nbytes()


def _check(inputs: Inputs, expected: Iterator[tuple[str, Tensor | None, Shape]]) -> None:
    dtype, device = inputs.data.dtype, inputs.data.device
    for name, tensor, shape in expected:
        if tensor is None:
            continue
        if tensor.dtype != dtype or tensor.device != device or tensor.shape != shape:
            raise RuntimeError(
                f"`{name}` must be {dtype} on {device} of size {shape}, like the rest of what this "
                f"layer's forward pass was given, but is {tensor.dtype} on {tensor.device} of size "
                f"{tuple(tensor.shape)}: change a module or an input after backward(), not before"
            )
        check_is_there(name, tensor)


def _inputs_and_shapes(inputs: Inputs) -> Iterator[tuple[str, Tensor | None, Shape]]:
    """Name, tensor and required shape of each input but the batch sizes."""
    data, first = inputs.data, inputs.directions[0]
    yield "data", data, tuple(data.shape)
    D, H, P, B = len(inputs.directions), first.hidden_size, first.state_size, inputs.batch
    yield "h0", inputs.h0, (D, B, P)
    yield "c0", inputs.c0, (D, B, H)
    shapes = parameter_shapes(data.shape[-1], H, P)
    for weights, suffix in zip(inputs.directions, ("", "_reverse"), strict=False):
        expected = (*shapes, *_factor_shapes(weights, shapes))
        for field, weight, shape in zip(Weights._fields, weights, expected, strict=True):
            yield f"{field}{suffix}", weight, shape


def _factor_shapes(weights: Weights, shapes: Sequence[Shape]) -> Iterator[Shape]:
    """The shapes of `down` and `up` of each weight of these shapes, of the rank of `down`."""
    (out_ih, in_ih), (out_hh, in_hh), _, _, (out_hr, in_hr) = shapes
    for down, rows, columns in (
        (weights.down_ih, out_ih, in_ih),
        (weights.down_hh, out_hh, in_hh),
        (weights.down_hr, out_hr, in_hr),
    ):
        rank = 0 if down is None else down.shape[0]
        yield from ((rank, columns), (rows, rank))


def _state_and_shapes(inputs: Inputs, state: State) -> Iterator[tuple[str, Tensor | None, Shape]]:
    first, D, B = inputs.directions[0], len(inputs.directions), inputs.batch
    N = inputs.data.shape[:-1].numel()
    yield "gates", state.gates, (D, N, gates_size(first.hidden_size))
    yield "hidden", state.hidden, (D, B + N, first.state_size)
    yield "cells", state.cells, (D, B + N, first.hidden_size)
