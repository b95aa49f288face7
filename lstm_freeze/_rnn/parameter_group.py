"""ParameterGroup: the parameters of one layer and direction of an RNN."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from .._names import DIRECTIONS, place_of


@dataclass(frozen=True, eq=False)
class ParameterGroup:
    """The parameters of one layer and direction of an RNN.

    Examples:
        >>> from lstm_freeze import BiLSTM
        >>> BiLSTM(4, 8).groups[1].names[0]
        'weight_ih_l0_reverse'

    Attributes:
        layer: The layer, counted from the input.
        direction: "forward" or "reverse".
        names: The parameters' names in the module, parametrised names included.
        parameters: The parameters in the order of `names`.
    """

    layer: int
    direction: str
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...] = field(repr=False)


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], num_layers: int, num_directions: int
) -> tuple[ParameterGroup, ...]:
    """Groups, input side first and forward before reverse, of an RNN's named parameters."""
    found: dict[tuple[int, str], dict[str, nn.Parameter]] = {
        (layer, direction): {}
        for layer in range(num_layers)
        for direction in DIRECTIONS[:num_directions]
    }
    for name, parameter in named:
        place = place_of(name)
        if place is not None and place[:2] in found:
            found[place[:2]][name] = parameter
    return tuple(
        ParameterGroup(*where, tuple(members), tuple(members.values()))
        for where, members in found.items()
    )
