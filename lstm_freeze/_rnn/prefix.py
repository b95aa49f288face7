"""What BiLSTM asks of the cache that may serve its frozen prefix."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from .rows import Rows

RunLayers = Callable[[Rows, int, int], tuple[Rows, list[tuple[Tensor, Tensor]]]]
"""Runs layers [first, last) over rows: the output rows and each layer's final states."""


@runtime_checkable
class CachesPrefix(Protocol):
    """Keeps the outputs of frozen layers; `lstm_freeze.PrefixCache` is one."""

    def serve(
        self,
        rows: Rows,
        prefix: Sequence[Sequence[Tensor]],
        form: tuple[Hashable, ...],
        run: RunLayers,
    ) -> tuple[Rows, Tensor, Tensor]:
        """The output rows and final states of the layers whose weights are `prefix`."""

    def warn_of_dropout(self) -> None:
        """Say once that dropout makes the prefix random, so that nothing can be kept."""
