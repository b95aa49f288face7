"""What a layer's passes work on: weights, what the forward pass keeps, gradients.

Shapes are written as in `layer`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """One direction of one layer; the biases and `weight_hr` may be absent."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    weight_hr: Tensor | None = None


class State(NamedTuple):
    """What a forward pass keeps for its backward pass.

    Attributes:
        gates: (D, N, 4H) the activations.
        hidden: (D, B + N, P) the initial hidden state, then that of each row.
        cells: (D, B + N, H) the same of the cell state.
    """

    gates: Tensor
    hidden: Tensor
    cells: Tensor


class Gradients(NamedTuple):
    """What a backward pass through time reads and writes.

    Attributes:
        dh: (D, N, P) of the outputs; with a projection, receives that of the hidden states.
        dh_n: (D, B, P) of the final hidden states.
        dc: (D, B, H) of the final cell states; receives that of the initial ones.
        dgates: (D, N, 4H) receives that of the pre-activations.
    """

    dh: Tensor
    dh_n: Tensor
    dc: Tensor
    dgates: Tensor


def gate_views(gates: Tensor) -> tuple[Tensor, ...]:
    """Views of gates (..., 4H): input and forget together, then each of the four."""
    hidden = gates.shape[-1] // 4
    return (gates[..., : 2 * hidden], *torch.split(gates, hidden, -1))
