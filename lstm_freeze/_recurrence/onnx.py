"""One LSTM layer as ONNX's LSTM operator, recorded while a model is exported to ONNX.

The operator is only recorded here; an ONNX runtime computes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .cell import hidden_size_of
from .weights import Weights


def takes(data: Tensor, batch_sizes: Tensor | None, directions: Sequence[Weights]) -> bool:
    """Whether ONNX's operator can compute this layer, and this torch can record it.

    The operator knows no projection and no packed rows; runtimes have it for float32 only.
    """
    return (
        batch_sizes is None
        and data.dtype == torch.float32
        and all(w.weight_hr is None for w in directions)
        and hasattr(torch.onnx, "ops")
    )


def layer(
    data: Tensor,
    lengths: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    directions: Sequence[Weights],
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer over time; arguments, results and shapes as in `masked_equations`."""
    T, B, _ = data.shape
    directions = [weights.merged() for weights in directions]
    D, H = len(directions), directions[0].hidden_size
    biases = [
        torch.cat([_in_onnx_order(w.bias_ih), _in_onnx_order(w.bias_hh)])
        for w in directions
        if w.bias_ih is not None and w.bias_hh is not None
    ]
    inputs = (
        data,
        torch.stack([_in_onnx_order(w.weight_ih) for w in directions]),
        torch.stack([_in_onnx_order(w.weight_hh) for w in directions]),
        torch.stack(biases) if biases else None,
        None if lengths is None else lengths.to(torch.int32),
        h0,
        c0,
    )
    output, h_n, c_n = torch.onnx.ops.symbolic_multi_out(
        "LSTM",
        inputs,
        {"hidden_size": H, "direction": "forward" if D == 1 else "bidirectional"},
        dtypes=[data.dtype] * 3,
        shapes=[(T, D, B, H), (D, B, H), (D, B, H)],
    )
    # The recorded operator has no device, so its results are on the CPU.
    output, h_n, c_n = (x.to(data.device) for x in (output, h_n, c_n))
    return output.transpose(1, 2).flatten(2), h_n, c_n


def _in_onnx_order(weight: Tensor) -> Tensor:
    """The rows of the input, forget, cell and output gates as input, output, forget, cell."""
    H = hidden_size_of(weight)
    # Slices: the exporter's optimizer computes them beforehand, a split it leaves in the model.
    return torch.cat([weight[:H], weight[3 * H :], weight[H : 3 * H]])
