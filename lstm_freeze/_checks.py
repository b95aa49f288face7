"""Checks of arguments, and their messages: argument, requirement, value given.

Every room and the callbacks use these; an error of one kind reads the same everywhere.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Real
from typing import Any, SupportsIndex

from torch import nn


def as_module(value: Any, argument: str = "module") -> nn.Module:
    """The value, where it is a module; else TypeError."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"`{argument}` must be a torch.nn.Module, got {type(value).__name__}")
    return value


def as_integer(value: Any, argument: str, least: int | None = None) -> int:
    """The value as an int of at least `least`; bools are no integers.

    >>> as_integer(3, "every", least=1)
    3
    """
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"`{argument}` must be an integer, got {value!r}")
    number = value.__index__()
    if least is not None and number < least:
        bound = "not be negative" if least == 0 else f"be at least {least}"
        raise ValueError(f"`{argument}` must {bound}, got {number}")
    return number


def as_number(value: Any, argument: str, least: float = -math.inf, most: float = math.inf) -> float:
    """The value as a finite float between `least` and `most`, both allowed.

    >>> as_number(1, "lr", least=0)
    1.0
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{argument}` must be a number, got {value!r}")
    number = float(value)
    if math.isfinite(number) and least <= number <= most:
        return number
    if not math.isinf(most):
        bounds = f" and between {least} and {most}"
    else:
        bounds = "" if math.isinf(least) else f" and at least {least}"
    raise ValueError(f"`{argument}` must be finite{bounds}, got {value!r}")


def as_bool(value: Any, argument: str, remedy: str = "") -> bool:
    """The value, where it is True or False; `remedy` ends the message of the TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"`{argument}` must be a bool, got {value!r}" + (remedy and f"; {remedy}"))
    return value


def as_one_of(value: Any, argument: str, options: Iterable[Any]) -> Any:
    """The value, where it is one of the options; else ValueError that lists them.

    >>> as_one_of("exact", "mode", ("exact", "fingerprint"))
    'exact'
    """
    options = list(options)
    if value not in options:
        *most, last = [f'"{x}"' if isinstance(x, str) else repr(x) for x in options]
        listed = f"{', '.join(most)} or {last}" if most else last
        raise ValueError(f"`{argument}` must be {listed}, got {value!r}")
    return value


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message that suggests the nearest known word, or nothing.

    >>> did_you_mean("encodr", ["encoder", "head"])
    '; did you mean "encoder"?'
    """
    near = difflib.get_close_matches(word, list(known), n=1)
    return f'; did you mean "{near[0]}"?' if near else ""
