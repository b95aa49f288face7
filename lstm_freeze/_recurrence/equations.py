"""One LSTM layer over time by the definition: the oracle of the tests.

Second derivatives and transformed functions (torch.func) are computed by it, too. With lengths,
masks take the place of packing: in programs that are recorded for ONNX, and for torch.func, the
lengths are not numbers, so rows cannot be packed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from . import cell
from .rows import flipped
from .weights import Weights


def equations(
    data: Tensor,
    batch_sizes: Tensor | None,
    reverse: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    directions: Sequence[Weights],
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer in plain operations, differentiable in every way torch knows.

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
    for d, w in enumerate(weights.merged() for weights in directions):
        x = flipped(data, reverse) if d else data
        projected = linear(x, w.weight_ih, w.bias_ih)
        steps = projected.unbind(0) if batch_sizes is None else torch.split(projected, sizes)
        h = data.new_zeros(sizes[0], w.state_size) if h0 is None else h0[d]
        c = data.new_zeros(sizes[0], w.hidden_size) if c0 is None else c0[d]
        hidden, ended = [], []
        for step, size in zip(steps, sizes, strict=True):
            if size < h.shape[0]:
                ended.append((h[size:], c[size:]))
                h, c = h[:size], c[:size]
            h, c = cell.step(step + linear(h, w.weight_hh, w.bias_hh), c)
            if w.weight_hr is not None:
                h = linear(h, w.weight_hr)
            hidden.append(h)
        ended.append((h, c))
        h_n.append(torch.cat([h for h, _ in reversed(ended)]))
        c_n.append(torch.cat([c for _, c in reversed(ended)]))
        output = torch.stack(hidden) if batch_sizes is None else torch.cat(hidden)
        outputs.append(flipped(output, reverse) if d else output)
    return torch.cat(outputs, -1), torch.stack(h_n), torch.stack(c_n)


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
