"""FrozenWeightsChanged, and the message that says what changed, how far and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from .._model import Tree
from .causes import gather_evidence, likely_cause
from .change import Change


class FrozenWeightsChanged(RuntimeError):
    """Raised when frozen weights have changed in at least one bit.

    Attributes:
        names: Names of the parameters and buffers that changed, each once.
        step: Optimizer steps since `attach`, or the step given to `check`; None without either.
    """

    def __init__(self, message: str, names: tuple[str, ...] = (), step: int | None = None) -> None:
        """Say what changed, with the names and the step for programs."""
        super().__init__(message)
        self.names = names
        self.step = step

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.names, self.step)


def message_of(
    changes: Sequence[Change], when: str, tree: Tree, optimizers: Sequence[Optimizer], guard: str
) -> str:
    """The message: the changes, and the likely cause below those that have it in common.

    `guard` says which guard raises, where there are several.
    """
    by_cause: dict[str, list[Change]] = {}
    for change in changes:
        evidence = gather_evidence(change, optimizers, tree, several=len(changes) > 1)
        by_cause.setdefault(likely_cause(evidence), []).append(change)
    noun = "tensor" if len(changes) == 1 else "tensors"
    lines = [f"{len(changes)} frozen {noun} changed{when}"]
    for cause, members in by_cause.items():
        lines += [*(f"  {change}" for change in members), f"    likely cause: {cause}"]
    lines.append(f"if this was meant, call guard.remember() after it{guard}")
    return "\n".join(lines)
