"""What BiLSTM asks of a prefix cache, and which layers it lets the cache compute."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from .._names import lowest_layer, place_of
from .._recurrence import Rows, Weights

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

    def warn_of_states(self) -> None:
        """Say once that states on an accelerator are not read, so that the cache is bypassed."""


def are_zeros(states: Iterable[Tensor]) -> bool | None:
    """Whether initial states are zeros without gradient; None where asking makes the host wait.

    >>> import torch
    >>> are_zeros([torch.zeros(2, 3)]), are_zeros([torch.zeros(2), torch.ones(2)])
    (True, False)
    """
    for state in states:
        if state.requires_grad:
            return False
        if state.device.type != "cpu":
            return None
        if state.any():
            return False
    return True


def frozen_prefix(
    named: Iterable[tuple[str, nn.Parameter]], weights: Sequence[Sequence[Weights]]
) -> list[list[Tensor]]:
    """The weights of each of the lowest layers that nothing trainable reaches.

    Args:
        named: The RNN's named parameters.
        weights: The weights of each layer and direction as they are now.
    """
    places = [place_of(name) for name, parameter in named if parameter.requires_grad]
    depth = lowest_layer(places, default=len(weights))
    prefix: list[list[Tensor]] = []
    for directions in weights[:depth]:
        present = [w for weights in directions for w in weights if w is not None]
        if any(w.requires_grad for w in present):  # as of no parameter here
            break
        prefix.append(present)
    return prefix
