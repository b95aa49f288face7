"""The tensors that make up a module's state, by name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .._hashing import has_bits
from .._model import Tree, join


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter or buffer, as `state_dict` lists them, without the names of wrappers.

    A tied tensor stands under each of its names, as the same object.

    Raises:
        ValueError: A tensor has no values yet, is sharded or sparse; each is named.
    """
    found: dict[str, Tensor] = {}
    for path, owner in Tree(module).modules.items():
        persistent = {
            name: buffer
            for name, buffer in owner._buffers.items()
            if name not in owner._non_persistent_buffers_set
        }
        for name, tensor in (*owner._parameters.items(), *persistent.items()):
            if tensor is not None:
                found[join(path, name)] = tensor
    _refuse_unreadable(found)
    return found


def with_names(names: Iterable[str], several: str = "") -> str:
    """Names as a message lists them: all of them, in quotes."""
    return ", ".join(repr(name) for name in names) + several


def _refuse_unreadable(state: dict[str, Tensor]) -> None:
    empty = [name for name, tensor in state.items() if not has_bits(tensor)]
    if empty:
        raise ValueError(
            f"{with_names(empty)}: no values yet (lazy, or on the meta device); run the module "
            "once, or load its weights"
        )
    sharded = [name for name, tensor in state.items() if hasattr(tensor, "to_local")]
    if sharded:
        raise ValueError(
            f"{with_names(sharded)}: sharded over several processes; gather the weights in one "
            "module first"
        )
    sparse = [name for name, tensor in state.items() if tensor.layout != torch.strided]
    if sparse:
        raise ValueError(f"{with_names(sparse)}: sparse; make it dense first")
