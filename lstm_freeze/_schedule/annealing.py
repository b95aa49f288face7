"""Annealing: the rates of progressive freezing, a cosine per layer that ends when it freezes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .._checks import as_bool, as_integer, as_number, as_one_of
from .phase import Phase

SHAPES = {"linear": 1, "squared": 2, "cubic": 3}


def as_start(value: Any, argument: str) -> float:
    """Where the first layer freezes: a fraction of the training, above 0."""
    if not 0 < as_number(value, argument) <= 1:
        raise ValueError(f"`{argument}` must be above 0 and at most 1, got {value!r}")
    return float(value)


def as_shape(value: Any, argument: str) -> str:
    """The name of a shape of the freezing times."""
    return str(as_one_of(value, argument, SHAPES))


@dataclass(frozen=True)
class Annealing:
    """The rule of progressive freezing: when each layer freezes, and its rate until then.

    Attributes:
        groups: The targets of each layer, input side first, the head last.
        total: The length of the training in epochs.
        t0: Where the first layer freezes, as a fraction of the training, before the shape.
        how: The shape of the freezing times: linear, squared or cubic.
        scaled: Whether a layer that freezes early has a higher rate.
    """

    groups: tuple[tuple[str, ...], ...]
    total: int
    t0: float
    how: str
    scaled: bool

    def __post_init__(self) -> None:
        """Check the values."""
        as_integer(self.total, "total", least=1)
        as_start(self.t0, "t0")
        as_shape(self.how, "how")
        as_bool(self.scaled, "scaled")

    @classmethod
    def from_description(cls, groups: Iterable[Iterable[str]], **rule: Any) -> Annealing:
        """The rule that `description` described."""
        return cls(groups=tuple(map(tuple, groups)), **rule)

    def description(self, scope: tuple[str, ...]) -> dict[str, Any]:
        """The rule as plain types: the recipe's arguments, and the layers that were found."""
        return {
            "recipe": "progressive_freezing",
            "total": self.total,
            "scope": list(scope),
            "t0": self.t0,
            "how": self.how,
            "scaled": self.scaled,
            "groups": [list(group) for group in self.groups],
        }

    def end_of(self, group: int) -> float:
        """The fraction of the training after which a layer is frozen for good."""
        last = len(self.groups) - 1
        fraction = self.t0 + (1 - self.t0) * (group / last if last else 1.0)
        return float(fraction ** SHAPES[self.how])

    def rate(self, group: int, initial: float, epoch: float) -> float:
        """The rate of a layer at an epoch, which may be a fraction of one."""
        end = self.end_of(group)
        part = min(epoch / (end * self.total), 1.0)
        return (initial / end if self.scaled else initial) * (1 + math.cos(math.pi * part)) / 2

    def phases(self) -> tuple[Phase, ...]:
        """The phases: a layer is frozen from the first epoch that begins at or after its end."""
        ends = [math.ceil(self.end_of(i) * self.total - 1e-9) for i in range(len(self.groups))]
        starts = sorted({0, *(end for end in ends if end < self.total)})
        layers = list(zip(self.groups, ends, strict=True))
        return tuple(
            Phase(start, [target for group, end in layers if end > start for target in group])
            for start in starts
        )
