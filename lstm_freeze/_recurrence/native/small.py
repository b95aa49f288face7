"""Small layers, forward and backward, in one call of the extension each.

In a layer with little to compute, as of one step of one sequence, every call of torch takes longer
than its numbers. Each direction has a thread. Which layers are small depends on their shapes alone,
never on what is frozen or on grad mode. Such a layer keeps the same State as others, so `layer` can
do from it what is not done here: the gradients of LoRA factors.

Shapes are written as in `layer`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from torch import Tensor

from ..cell import gates_size
from ..weights import Inputs, State, Wanted, Weights
from . import extension, memory

# Beyond so many numbers in the weights of a direction, which are packed for each pass, or
# multiplications of a pass, torch's products on several threads are faster. Each direction has a
# thread: one alone leaves the other threads idle, so that it may have half as many numbers.
_MOST_NUMBERS = 2**19
_MOST_PRODUCTS = {1: 2**23, 2: 2**25}

# The extension's structs LayerForward and LayerBackward.
_FORWARD, _BACKWARD = struct.Struct("=42q"), struct.Struct("=49q")


def applies(inputs: Inputs) -> bool:
    """Whether a layer is small, and is one that the extension computes."""
    data, first, D = inputs.data, inputs.directions[0], len(inputs.directions)
    gates, P = first.weight_hh.shape
    numbers = gates * (data.shape[-1] + P)
    small = numbers <= D * _MOST_NUMBERS and numbers * _rows(data) <= _MOST_PRODUCTS[D]
    return small and first.weight_hr is None and extension.applies(data)


def _rows(data: Tensor) -> int:
    return data.shape[:-1].numel()


def forward(
    inputs: Inputs, directions: Sequence[Weights], keep: bool
) -> tuple[Tensor, Tensor, Tensor, State | None]:
    """As `layer.forward`, given the weights with their updates."""
    data, D, B, H = inputs.data, len(directions), inputs.batch, directions[0].hidden_size
    N, new = _rows(data), data.new_empty
    state = None
    if keep:
        sizes = (N, gates_size(H)), (B + N, H), (B + N, H)
        state = State(*(memory.empty(data, D, *size) for size in sizes))
    results = new((*data.shape[:-1], D * H)), new((D, B, H)), new((D, B, H))
    owners: list[Tensor] = []
    layer = _layer(inputs, directions, state, owners)
    ends = [_address(x, owners) for x in (inputs.h0, inputs.c0, *results)]
    extension.call("layer_forward", _FORWARD.pack(*layer, *ends), owners)
    return *results, state


def backward(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    inputs: Inputs,
    directions: Sequence[Weights],
    state: State,
    wanted: Wanted,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[list[Tensor | None]]]:
    """As `layer.backward`, given the weights with their updates; without gradients of factors."""
    data, D, B, H = inputs.data, len(directions), inputs.batch, directions[0].hidden_size
    new, states = data.new_empty, (D, B, H)
    ddata = new(data.shape) if wanted.data else None
    dh0, dc0 = new(states) if wanted.h0 else None, new(states) if wanted.c0 else None
    owners: list[Tensor] = []
    layer = _layer(inputs, directions, state, owners)
    ends = [_address(x, owners) for x in (*grads, ddata, dh0, dc0)]
    weights: list[list[Tensor | None]] = []
    for w, (ih, hh, bias_ih, bias_hh, *others) in zip(directions, wanted.weights, strict=True):
        d_ih = new(w.weight_ih.shape) if ih else None
        d_hh = new(w.weight_hh.shape) if hh else None
        bias = new((gates_size(H),)) if bias_ih or bias_hh else None
        ends += [_address(x, owners) for x in (d_ih, d_hh, bias)]
        weights.append([d_ih, d_hh, bias if bias_ih else None, bias, *[None] * len(others)])
    ends += [0] * 3 * (2 - D)
    extension.call("layer_backward", _BACKWARD.pack(*layer, *ends), owners)
    for found, (_, _, bias_ih, bias_hh, *_) in zip(weights, wanted.weights, strict=True):
        bias = found[3]
        found[3] = None if bias is None or not bias_hh else bias.clone() if bias_ih else bias
    return ddata, dh0, dc0, weights


def _layer(
    inputs: Inputs, directions: Sequence[Weights], state: State | None, owners: list[Tensor]
) -> list[int]:
    """A layer as the extension's struct Layer; whose memory that is goes to `owners`."""
    data, sizes, reverse, *_ = inputs
    D, H, N, features = len(directions), directions[0].hidden_size, _rows(data), data.shape[-1]
    if reverse is not None:
        reverse = extension.order_of_rows("reverse", reverse, N)
    kept = (None, None, None) if state is None else state
    tensors = [_address(x, owners) for x in (reverse, data, *kept)]
    G = gates_size(H)
    numbers = [D, features, H, N, 0, inputs.steps, inputs.batch, _address(sizes, owners), *tensors]
    for w in directions:
        for name, weight, shape in (
            ("weight_ih", w.weight_ih, (G, features)),
            ("weight_hh", w.weight_hh, (G, H)),
            ("bias_ih", w.bias_ih, (G,)),
            ("bias_hh", w.bias_hh, (G,)),
        ):
            if weight is None:
                numbers += (0, 0, 0)
                continue
            alias = extension.alias_of(name, weight, shape)
            owners.append(alias)
            numbers += (alias.data_ptr(), *alias.stride())
            if len(shape) == 1:
                numbers.append(0)
    numbers += [0] * (12 * (2 - D))
    return numbers


def _address(tensor: Tensor | None, owners: list[Tensor]) -> int:
    if tensor is None:
        return 0
    owners.append(tensor := extension.in_memory(tensor.contiguous()))
    return tensor.data_ptr()
