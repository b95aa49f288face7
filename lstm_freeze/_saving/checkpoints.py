"""Strips a state_dict of the tensors that are as in a base, and fills it again."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .fingerprints import prints_of
from .tensors import state_of, with_names

# A key of the state_dict itself, so that torch raises where it is loaded without being filled.
_KEY = "lstm_freeze.base"


class Base(NamedTuple):
    """The base, as a stripped state_dict describes it.

    Attributes:
        fingerprints: Name to fingerprint, of the whole base.
        keys: Key in the whole state_dict to name; they differ by the names of wrappers.
    """

    fingerprints: dict[str, str]
    keys: dict[str, str]


def stripped(
    state_dict: Mapping[str, Any], module: nn.Module, base: Mapping[str, str]
) -> OrderedDict[str, Any]:
    """A state_dict of the module without the tensors that are, bit for bit, as in the base."""
    keys = _keys(module)
    now = prints_of({k: v for k, v in state_dict.items() if k in keys and isinstance(v, Tensor)})
    left: OrderedDict[str, Any] = OrderedDict(
        (key, value)
        for key, value in state_dict.items()
        if key not in now or now[key] != base.get(keys[key])
    )
    if (metadata := getattr(state_dict, "_metadata", None)) is not None:
        left._metadata = metadata  # type: ignore[attr-defined]
    note = json.dumps({"fingerprints": dict(base), "keys": {k: keys[k] for k in now}})
    left[_KEY] = torch.frombuffer(bytearray(note.encode()), dtype=torch.uint8)
    return left


def base_in(state_dict: Mapping[str, Any], prefix: str = "") -> Base | None:
    """The base in a state_dict; None where it was not stripped."""
    note = state_dict.get(prefix + _KEY)
    if not isinstance(note, Tensor):
        return None
    return Base(**json.loads(bytes(note.tolist()).decode()))


def filled(
    state_dict: Mapping[str, Any],
    prefix: str,
    base: Base,
    sources: tuple[Mapping[str, Tensor], ...],
) -> dict[str, Tensor]:
    """Key -> each tensor that was stripped, from the first source that has its bits.

    Raises:
        ValueError: No source has the bits of the base; each such tensor is named.
    """
    lacking = [key for key in base.keys if prefix + key not in state_dict]
    found: dict[str, Tensor] = {}
    prints = [prints_of(source) for source in sources]
    for key in lacking:
        name = base.keys[key]
        for source, have in zip(sources, prints, strict=True):
            if have.get(name) == base.fingerprints[name]:
                found[prefix + key] = source[name].detach()
                break
    if lost := [base.keys[key] for key in lacking if prefix + key not in found]:
        raise ValueError(
            "the checkpoint holds only what differs from its base, and this module does not hold "
            f"the base: {with_names(lost)} differ from it or are missing; build the module with "
            "the weights it began with, or leave what cannot be restored out of SaveChanges(base)"
        )
    return found


def without_note(state_dict: dict[str, Any], prefix: str) -> None:
    """Take the description of the base out of a stripped state_dict."""
    state_dict.pop(prefix + _KEY, None)


def _keys(module: nn.Module) -> dict[str, str]:
    """Key of the module's state_dict -> name in it, for parameters and buffers."""
    names = {id(tensor): name for name, tensor in reversed(state_of(module).items())}
    kept = module.state_dict(keep_vars=True)
    return {key: names[id(value)] for key, value in kept.items() if id(value) in names}
