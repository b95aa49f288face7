"""The number of operations of a layer, as torch's FLOP counter counts: two for each product."""

from __future__ import annotations

from torch import Tensor

from .layer import Wanted
from .weights import Inputs, State, Weights


def forward_flops(inputs: Inputs) -> int:
    """The operations of a forward pass: each weight matrix times each row, and low-rank updates."""
    rows = inputs.data.shape[:-1].numel()
    return 2 * sum(rows * sum(_matrices(w)) + _merging(w) for w in inputs.directions)


def backward_flops(inputs: Inputs, state: State, wanted: Wanted) -> int:
    """The operations of the wanted gradients, with those of the walk back through time."""
    rows, batch = inputs.data.shape[:-1].numel(), _batch(inputs, state)
    active, found = wanted.directions(), 0
    for d, weights in enumerate(inputs.directions):
        ih, hh, hr = _matrices(weights)
        # Only the gradient of the input reads weight_ih.
        merged = weights if wanted.data else weights._replace(down_ih=None, up_ih=None)
        found += _merging(merged) + (rows * ih if wanted.data else 0)
        if d not in active:
            continue
        # The gradient for the step before; at the first step only h0 needs it.
        found += (rows if wanted.h0 else rows - batch) * hh + rows * hr
        asked = dict(zip(Weights._fields, wanted.weights[d], strict=True))
        for kind, size in (("ih", ih), ("hh", hh), ("hr", hr)):
            found += rows * size if asked[f"weight_{kind}"] else 0
            down, up = getattr(weights, f"down_{kind}"), getattr(weights, f"up_{kind}")
            if asked[f"down_{kind}"] or asked[f"up_{kind}"]:
                found += 2 * rows * (_size(down) + _size(up))
    again = forward_flops(inputs) if state.gates.numel() == 0 else 0
    return 2 * found + again


def _matrices(weights: Weights) -> tuple[int, int, int]:
    """The numbers of weight_ih, weight_hh and weight_hr."""
    return _size(weights.weight_ih), _size(weights.weight_hh), _size(weights.weight_hr)


def _merging(weights: Weights) -> int:
    """The products of the updates' factors."""
    pairs = (
        (weights.down_ih, weights.up_ih),
        (weights.down_hh, weights.up_hh),
        (weights.down_hr, weights.up_hr),
    )
    return sum(_size(down) * up.shape[0] for down, up in pairs if up is not None)


def _size(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel()


def _batch(inputs: Inputs, state: State) -> int:
    if state.hidden.numel():
        return state.hidden.shape[1] - state.gates.shape[1]
    return inputs.batch
