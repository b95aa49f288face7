"""The number of operations of a layer, as torch's FLOP counter counts: two for each product."""

from __future__ import annotations

from torch import Tensor

from .weights import Inputs, State, Wanted, Weights


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
    found += _of_factors(inputs, rows, batch, wanted)
    again = forward_flops(inputs) if state.gates.numel() == 0 else 0
    return 2 * found + again


def _of_factors(inputs: Inputs, rows: int, batch: int, wanted: Wanted) -> int:
    """The products for the updates' gradients, which `factors` makes for all of a direction."""
    found = 0
    asked = [dict(zip(Weights._fields, flags, strict=True)) for flags in wanted.weights]
    all_hidden = rows if inputs.batch_sizes is None else rows + batch
    for w, flags in zip(inputs.directions, asked, strict=True):
        ups = _size(w.up_ih) + _size(w.up_hh)
        if flags["up_ih"] or flags["up_hh"]:
            found += all_hidden * _size(w.down_hh) + rows * ups
        if flags["down_ih"] or flags["down_hh"]:
            found += rows * ups
        found += all_hidden * _size(w.down_hh) if flags["down_hh"] else 0
        of_hr = flags["down_hr"] + flags["up_hr"]
        found += of_hr * rows * (_size(w.down_hr) + _size(w.up_hr))
    of_input = [flags["down_ih"] for flags in asked], [f["up_ih"] or f["up_hh"] for f in asked]
    return found + sum(map(any, of_input)) * rows * sum(_size(w.down_ih) for w in inputs.directions)


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
