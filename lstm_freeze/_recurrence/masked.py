"""One LSTM layer over padded sequences by masks instead of packing.

For programs that are recorded for ONNX, and for torch.func: there the lengths are not numbers, so
rows cannot be packed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from . import cell
from .weights import Weights


def masked_equations(
    data: Tensor,
    lengths: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    directions: Sequence[Weights],
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer by the definition; beyond its end a sequence's state does not change.

    Args:
        data: (T, B, I), finite beyond each sequence's end.
        lengths: (B,)
        h0: (D, B, P); zeros where absent.
        c0: (D, B, H); zeros where absent.
        directions: The weights of the forward and, where present, the reverse direction.

    Returns:
        The output, (T, B, D * P), zeros beyond each end, and the final states (D, B, P), (D, B, H).
    """
    T, B, _ = data.shape
    outputs, h_n, c_n = [], [], []
    for d, w in enumerate(weights.merged() for weights in directions):
        projected = linear(data, w.weight_ih, w.bias_ih).unbind(0)
        h = data.new_zeros(B, w.state_size) if h0 is None else h0[d]
        c = data.new_zeros(B, w.hidden_size) if c0 is None else c0[d]
        hidden: list[Tensor] = []
        for t in reversed(range(T)) if d else range(T):
            runs = (t < lengths)[:, None]
            next_h, next_c = cell.step(projected[t] + linear(h, w.weight_hh, w.bias_hh), c)
            if w.weight_hr is not None:
                next_h = linear(next_h, w.weight_hr)
            h, c = torch.where(runs, next_h, h), torch.where(runs, next_c, c)
            hidden.append(torch.where(runs, next_h, 0))
        h_n.append(h)
        c_n.append(c)
        outputs.append(torch.stack(hidden[::-1] if d else hidden))
    return torch.cat(outputs, -1), torch.stack(h_n), torch.stack(c_n)
