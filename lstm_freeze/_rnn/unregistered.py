"""Finds modules that a model keeps outside of its submodules: in lists, dicts, bound methods."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from types import MethodType
from typing import Any, TypeVar

from torch import nn

from .._model import join

Module = TypeVar("Module", bound=nn.Module)

_TORCHS_OWN = frozenset(vars(nn.Module()))


def kept_outside(model: nn.Module, kind: type[Module]) -> dict[str, Module]:
    """Path -> module, for each module of a class that torch does not see as a submodule.

    >>> model = nn.Module()
    >>> model.layers = [nn.LSTM(2, 3), nn.Linear(3, 1)]
    >>> list(kept_outside(model, nn.LSTM))
    ['layers[0]']
    """
    found: dict[str, Module] = {}
    registered = {id(module) for module in model.modules()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _TORCHS_OWN and not name.startswith("_forward"):
                for where, item in _modules_in(value, join(path, name), set()):
                    if isinstance(item, kind):
                        found[where] = item
                    elif id(item) not in registered:
                        below = item.named_modules()
                        found |= {join(where, n): m for n, m in below if isinstance(m, kind)}
    return found


def _modules_in(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.Module):
        yield path, value
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        items = [(f"{path}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        items = [(f"{path}[{i}]", item) for i, item in enumerate(value)]
    elif isinstance(value, MethodType):
        items = [(f"{path} (its method {value.__name__})", value.__self__)]
    elif isinstance(value, functools.partial):
        items = [(path, item) for item in (value.func, *value.args, *value.keywords.values())]
    else:
        return
    for where, item in items:
        yield from _modules_in(item, where, seen)
