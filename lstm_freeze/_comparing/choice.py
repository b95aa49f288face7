"""Choice: a setting that is picked within each train set."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True, init=False)
class Choice:
    """A setting of `compare` that is chosen within each train set, never by looking at test.

    Each value is tried on inner splits of the train set; the one with the best mean score is used
    for the whole train set. Of equal means the first value wins. With several choices in a method
    all combinations are tried.

    Attributes:
        values: The values to try, in the order given.

    Raises:
        ValueError: There is no value.
        TypeError: The values are not a list or another iterable; or a value is a `Choice`.

    Examples:
        >>> Choice([0.01, 0.03])
        Choice([0.01, 0.03])
    """

    values: tuple[Any, ...]

    def __init__(self, values: Iterable[Any]) -> None:
        if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
            raise TypeError(f"Choice takes a list of values, got {values!r}")
        listed = tuple(values)
        if not listed:
            raise ValueError("Choice needs at least one value, got an empty list")
        for value in listed:
            if isinstance(value, Choice):
                raise TypeError(f"a value of a Choice must not be a Choice, got {value!r}")
        object.__setattr__(self, "values", listed)

    def __repr__(self) -> str:
        return f"Choice({list(self.values)!r})"


def candidates(settings: Settings) -> list[dict[str, Any]]:
    """Every combination of the values of the choices; the settings themselves if there is none.

    >>> candidates({"lr": Choice([1, 2]), "epochs": 3})
    [{'lr': 1, 'epochs': 3}, {'lr': 2, 'epochs': 3}]
    """
    values = [v.values if isinstance(v, Choice) else (v,) for v in settings.values()]
    return [dict(zip(settings, chosen, strict=True)) for chosen in itertools.product(*values)]
