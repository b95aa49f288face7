"""The weights of a BiLSTM as they are at a call: read once, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._names import DIRECTIONS, KINDS, factor_name, kinds_of, name_of
from .._recurrence import Weights, check_is_there, is_traced
from . import checks

if TYPE_CHECKING:
    from .base import LSTMBase


def read_weights(lstm: LSTMBase) -> list[list[Weights]]:
    """The weights of each layer and direction as they are now, each read once.

    So a parametrised, pruned or replaced weight is used from the next call on.
    """
    kinds = kinds_of(lstm.bias, lstm.proj_size > 0)
    directions = DIRECTIONS[: lstm.num_directions]
    return [
        [
            Weights(
                **{kind: weight_of(lstm, name_of(layer, direction, kind)) for kind in kinds},
                **_factors(lstm, layer, direction, kinds),
            )
            for direction in directions
        ]
        for layer in range(lstm.num_layers)
    ]


def weight_of(lstm: nn.Module, name: str) -> Tensor:
    """The weight of this name as it is now."""
    weight: Tensor | None = getattr(lstm, name)
    if weight is None:
        raise TypeError(f"{name} must be a Tensor, got None: set it to a Parameter")
    return weight


def check_weights(
    lstm: LSTMBase, weights: Sequence[Sequence[Weights]], device: torch.device, traced: bool
) -> None:
    """Raises where a weight was replaced by one that does not fit the others or the data.

    In a traced call a weight may have no memory.
    """
    first = weights[0][0].weight_ih
    if not (first.is_floating_point() or first.is_complex()):
        raise RuntimeError(f"weights must be of a floating dtype, got {first.dtype}")
    for layer, directions in enumerate(weights):
        shapes = lstm.weight_shapes(layer)
        for direction, found in zip(DIRECTIONS, directions, strict=False):
            for kind, weight, shape in zip(KINDS, found, shapes, strict=False):
                if weight is not None:
                    name = name_of(layer, direction, kind)
                    checks.check_weight(name, weight, shape, first, device)
                    if not traced:
                        check_is_there(name, weight)
            if lstm.__dict__.get("lora_scales"):
                where = name_of(layer, direction, "weight")
                checks.check_factors(found, shapes, where, device)


def _factors(lstm: LSTMBase, layer: int, direction: str, kinds: Sequence[str]) -> dict[str, Tensor]:
    """The LoRA factors of one layer and direction, by field of Weights; empty without any."""
    scales: dict[str, float] = lstm.__dict__.get("lora_scales", {})
    found: dict[str, Tensor] = {}
    for kind in kinds if scales else ():
        if (scale := scales.get(name := name_of(layer, direction, kind))) is not None:
            side = kind.removeprefix("weight_")
            found[f"down_{side}"] = _factor(lstm, factor_name(name, "A"))
            found[f"up_{side}"] = _factor(lstm, factor_name(name, "B")) * scale
    return found


def _factor(lstm: LSTMBase, name: str) -> Tensor:
    factor = weight_of(lstm, name)
    if not is_traced(factor):
        check_is_there(name, factor)
    return factor
