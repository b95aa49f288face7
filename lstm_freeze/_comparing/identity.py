"""Settings as text that is the same in every process, to tell methods in a folder apart."""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from .choice import Choice


def described(value: Any) -> str:
    """A value as text: the same for equal values, also in another process.

    Raises:
        TypeError: There is no such text for it.

    Examples:
        >>> described({"lr": 0.1, "optimizer": dict})
        "{'lr': 0.1, 'optimizer': builtins.dict}"
    """
    if isinstance(value, enum.Enum):
        return f"{described(type(value))}.{value.name}"
    if value is None or isinstance(value, (str, bytes, bool, int, float, complex)):
        return repr(value)
    if isinstance(value, Choice):
        return f"Choice({described(list(value.values))})"
    if isinstance(value, (list, tuple)):
        inside = ", ".join(map(described, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(described, value)))}}}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{described(k)}: {described(v)}' for k, v in value.items())}}}"
    if isinstance(value, PurePath):
        return f"Path({str(value)!r})"
    if isinstance(value, functools.partial):
        return f"partial({described([value.func, value.args, value.keywords])})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return f"{described(type(value))}({described(parts)})"
    return _named(value) or _shown(value)


def _named(value: Any) -> str:
    """The path of a class or function; empty where it has none of its own."""
    name = getattr(value, "__qualname__", "")
    if not name or "<" in name or getattr(value, "__closure__", None):
        return ""
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, type) and type(owner).__name__ != "module":
        return ""  # a method of an object, whose state is not in the name
    return f"{value.__module__}.{name}"


def _shown(value: Any) -> str:
    """The repr, where it is written for reading and leaves nothing out."""
    text = repr(value)
    if re.search(r" at 0x|<|\.\.\.", text):
        raise TypeError(
            f"{type(value).__name__} {text:.60} cannot be told from another one of its kind in a "
            "later process; give plain values, or a function or class that is defined in a module"
        )
    return f"{type(value).__module__}.{text}"
