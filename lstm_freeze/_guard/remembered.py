"""Remembered: one tensor that must not change, and its snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .snapshot import Snapshot

Key = tuple[int, str]  # id of the parameter and "", or of the module and the name of its buffer


@dataclass(eq=False)
class Remembered:
    """A tensor that must not change: a parameter, or a buffer of a frozen normalisation layer.

    Attributes:
        names: All its names.
        owner: The parameter, or the module whose buffer it is.
        buffer: The name of the buffer in its module; empty for a parameter.
        snapshot: Its form and bits when it was remembered; None until it has values.
    """

    names: tuple[str, ...]
    owner: nn.Module | nn.Parameter
    buffer: str = ""
    snapshot: Snapshot | None = None

    @property
    def key(self) -> Key:
        """Its key among all remembered tensors."""
        return id(self.owner), self.buffer

    @property
    def tensor(self) -> Tensor | None:
        """The present tensor; a buffer is looked up, since buffers are often assigned anew."""
        if isinstance(self.owner, nn.Parameter):
            return self.owner
        buffer: Tensor | None = entry(self.owner._buffers, self.buffer)
        return buffer


def entry(holder: Mapping[str, Any], name: str) -> Any:
    """An entry or None; TorchScript's modules hold their parameters in mappings without get."""
    return holder[name] if name in holder else None  # noqa: SIM401
