"""fingerprints: the bits of a module's state as 16 hex digits a tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .._checks import as_module
from .._hashing import tensor_hashes
from .tensors import state_of, with_names

_HEX = re.compile("[0-9a-f]{16}")


def fingerprints(module: nn.Module) -> dict[str, str]:
    """List a fingerprint of every parameter and buffer: 16 hex digits that change with any bit.

    They are the same on every platform and device, for the same dtype, shape and bits. Take them
    of the base, before training, and give them to `save_changes`. They detect accidents,
    and do not resist someone who forges weights. What `state_dict` leaves out (buffers that are not
    persistent) is left out here. A tied tensor stands under each of its names.

    Args:
        module: Any module; wrappers (DDP, torch.compile's) are looked through.

    Returns:
        Name to fingerprint; plain strings, which JSON can hold.

    Raises:
        ValueError: A tensor has no values yet, is sharded or sparse.
        TypeError: `module` is not a module.

    Examples:
        >>> import torch
        >>> head = nn.Linear(2, 1)
        >>> with torch.no_grad():
        ...     for parameter in head.parameters():
        ...         _ = parameter.fill_(0.5)
        >>> fingerprints(head)
        {'weight': '0ccc01b3db3dbc86', 'bias': '9535fdaa2df7b322'}
    """
    return prints_of(state_of(as_module(module)))


def prints_of(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The fingerprint of each tensor; one that has several names is read once."""
    distinct = {id(tensor): tensor for tensor in state.values()}
    found = dict(zip(distinct, tensor_hashes(distinct.values()), strict=True))
    return {name: f"{found[id(tensor)]:016x}" for name, tensor in state.items()}


def as_base(value: Any) -> dict[str, str]:
    """The value as the fingerprints of a base.

    Raises:
        TypeError: It is not a mapping of names to strings.
        ValueError: A fingerprint is not 16 hex digits.
    """
    if not isinstance(value, Mapping):
        raise TypeError(
            "`base` must be the fingerprints of the base, as fingerprints(module) gives them "
            f"before training, got {type(value).__name__}"
        )
    for name, found in value.items():
        if not (isinstance(name, str) and isinstance(found, str)):
            raise TypeError(f"`base` must map names to strings, got {name!r}: {found!r}")
    if wrong := [name for name, found in value.items() if not _HEX.fullmatch(found)]:
        raise ValueError(
            f"`base` must hold fingerprints of 16 hex digits, got {value[wrong[0]]!r} for "
            f"{with_names(wrong)}"
        )
    return dict(value)
