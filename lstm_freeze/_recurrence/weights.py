"""The tensors of a layer's passes: Weights, Inputs, the kept State, and Gradients.

Shapes are written as in `layer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .cell import hidden_size_of


class Weights(NamedTuple):
    """One direction of one layer; the biases and `weight_hr` may be absent.

    A weight (out, in) may have an update of low rank r (LoRA): what the layer computes with is
    weight + up @ down, with `down` (r, in) and `up` (out, r).
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    weight_hr: Tensor | None = None
    down_ih: Tensor | None = None
    up_ih: Tensor | None = None
    down_hh: Tensor | None = None
    up_hh: Tensor | None = None
    down_hr: Tensor | None = None
    up_hr: Tensor | None = None

    def merged(self, add: Callable[[Tensor, Tensor, Tensor], Tensor] = torch.addmm) -> Weights:
        """The weights with their updates, as a layer computes with them.

        `add` computes weight + up @ down; the default is for calls that are recorded.
        """
        if not self.has_factors():
            return self
        ih, hh, bias_ih, bias_hh, hr, *_ = self
        weights = (ih, self.down_ih, self.up_ih), (hh, self.down_hh, self.up_hh)
        new_ih, new_hh = (
            weight if down is None or up is None else add(weight, up, down)
            for weight, down, up in weights
        )
        if hr is not None and self.down_hr is not None and self.up_hr is not None:
            hr = add(hr, self.up_hr, self.down_hr)
        return Weights(new_ih, new_hh, bias_ih, bias_hh, hr)

    def has_factors(self) -> bool:
        """Whether a weight has an update."""
        return any(factor is not None for factor in self[5:])

    def added_biases(self) -> Tensor | None:
        """The sum of both biases, (4H,); None where there are none."""
        if self.bias_ih is None or self.bias_hh is None:
            return None
        return self.bias_ih + self.bias_hh

    @property
    def hidden_size(self) -> int:
        """H."""
        return hidden_size_of(self.weight_hh)

    @property
    def state_size(self) -> int:
        """P, which is H without a projection."""
        return self.weight_hh.shape[1]


class Inputs(NamedTuple):
    """All tensors that one layer is given.

    Attributes:
        data: (T, B, I), or packed rows (N, I).
        batch_sizes: (T,) for packed rows.
        reverse: (N,) the order of the reverse direction, for packed rows.
        h0: (D, B, P); zeros where absent.
        c0: (D, B, H); zeros where absent.
        directions: The weights of the forward and, where present, the reverse direction.
    """

    data: Tensor
    batch_sizes: Tensor | None
    reverse: Tensor | None
    h0: Tensor | None
    c0: Tensor | None
    directions: Sequence[Weights]

    @property
    def steps(self) -> int:
        """T."""
        return (self.data if self.batch_sizes is None else self.batch_sizes).shape[0]

    @property
    def batch(self) -> int:
        """B."""
        return self.data.shape[1] if self.batch_sizes is None else int(self.batch_sizes[0])


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


class Wanted(NamedTuple):
    """Which gradients of one layer are asked for; `weights` per direction, in Weights' order."""

    data: bool
    h0: bool
    c0: bool
    weights: tuple[tuple[bool, ...], ...]

    def directions(self) -> range:
        """The directions whose time loop must be walked back."""
        if self.data or self.h0 or self.c0:
            return range(len(self.weights))
        asked = [d for d, kinds in enumerate(self.weights) if any(kinds)]
        return range(asked[0], asked[-1] + 1)

    def bias(self, direction: int) -> bool:
        """Whether a bias of a direction is among them."""
        return any(self.weights[direction][2:4])

    def factors(self) -> list[tuple[bool, ...]]:
        """Those of down_ih, up_ih, down_hh and up_hh of each direction; empty if there are none."""
        asked = [flags[5:9] for flags in self.weights]
        return asked if any(map(any, asked)) else []
