"""The LSTM cell: its gates, one step of it, and the shapes that follow from them.

Its derivative and the loops over time are in `loop_torch` and, in C, behind `native/loop`.
"""

from __future__ import annotations

import torch
from torch import Tensor

GATES = ("input", "forget", "cell", "output")  # in the order of a weight's rows


def gates_size(hidden_size: int) -> int:
    """The number of pre-activations of a cell, 4H.

    >>> gates_size(8)
    32
    """
    return len(GATES) * hidden_size


def hidden_size_of(weight: Tensor) -> int:
    """H, from a weight that has a row for each pre-activation."""
    return weight.shape[0] // len(GATES)


def gate_views(gates: Tensor) -> tuple[Tensor, ...]:
    """Views of gates (..., 4H): input and forget together, then each of the four."""
    hidden = gates.shape[-1] // len(GATES)
    return (gates[..., : 2 * hidden], *torch.split(gates, hidden, -1))


def step(pre_activations: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step by the definition: (B, 4H) and the cell state (B, H) give the next h and c."""
    i, f, g, o = pre_activations.chunk(len(GATES), -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def parameter_shapes(
    input_size: int, hidden_size: int, state_size: int
) -> tuple[tuple[int, ...], ...]:
    """The shapes of one direction's parameters in the order of KINDS, absent ones too.

    >>> parameter_shapes(3, 8, 2)
    ((32, 3), (32, 2), (32,), (32,), (2, 8))
    """
    gates = gates_size(hidden_size)
    return (gates, input_size), (gates, state_size), (gates,), (gates,), (state_size, hidden_size)
