"""Precision: the dtypes in which one call of BiLSTM computes, and those of its results."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._recurrence import Rows, Weights


class Precision(NamedTuple):
    """The dtypes of one call: for rounding inputs, for computing, and for the results."""

    rounded: torch.dtype
    compute: torch.dtype
    output: torch.dtype
    cell: torch.dtype

    @property
    def is_one(self) -> bool:
        """Whether all are one dtype, that of the computation."""
        return self.rounded == self.compute == self.output == self.cell

    def converted(self, tensor: Tensor) -> Tensor:
        """A tensor, rounded and then converted to the dtype of the computation."""
        if tensor.dtype == self.rounded == self.compute:
            return tensor
        return tensor.to(self.rounded).to(self.compute)

    def converted_weights(self, weights: Weights) -> Weights:
        """All weights, converted like `converted`."""
        if self.rounded == self.compute and all(
            w is None or w.dtype == self.compute for w in weights
        ):
            return weights
        ih, hh, *rest = weights
        others = [None if w is None else self.converted(w) for w in rest]
        return Weights(self.converted(ih), self.converted(hh), *others)


def precision_of(
    weight: Tensor, rows: Rows, hx: tuple[Tensor, Tensor] | None, projected: bool
) -> Precision:
    """The dtypes of a call; those of the results are nn.LSTM's, also under autocast.

    With sixteen-bit numbers the computation is in float32, and the results are rounded.
    """
    low = autocast_dtype(weight)
    if low is None or weight.dtype == torch.float64:
        reduced = weight.dtype in (torch.bfloat16, torch.float16)
        compute = torch.float32 if reduced else weight.dtype
        return Precision(weight.dtype, compute, weight.dtype, weight.dtype)
    if rows.data.device.type != "cpu" or (rows.is_dense and not projected):
        return Precision(low, torch.float32, low, low)
    cell = torch.promote_types(low, (rows.data if hx is None else hx[1]).dtype)
    return Precision(low, torch.float32, low if projected else cell, cell)


def autocast_dtype(weight: Tensor) -> torch.dtype | None:
    """The dtype autocast asks for where the weights live, None where it is off."""
    device = weight.device.type
    # Asking whether a device has autocast would break the graph that torch 2.6 compiles.
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)
