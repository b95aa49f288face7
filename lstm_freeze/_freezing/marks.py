"""What a module notes about its parameters: which trained, and which were constant, at first.

The notes are plain strings in the module's own `__dict__`, by the parameter's name. So they go
where the module goes: into deep copies, into pickles that can be read without this library, and
into the BiLSTM that takes the place of an nn.LSTM.
"""

from __future__ import annotations

from torch import nn

ATTRIBUTE = "_lstm_freeze_at_first"
TRAINABLE, CONSTANT = "trainable", "constant"


def mark_of(owner: nn.Module, name: str, part: str) -> str | None:
    """What is noted of a parameter: `"trainable"`, `"constant"` or nothing yet.

    What a parametrization has made of a tensor is what the tensor was, and the other way round.
    """
    marks: dict[str, str] = vars(owner).get(ATTRIBUTE, {})
    found = marks.get(part or name) or marks.get(name)
    if found or part:
        return found
    inside = [mark for key, mark in marks.items() if key.startswith(f"parametrizations.{name}.")]
    return max(inside, default=None)  # "trainable" comes after "constant"


def note(owner: nn.Module, name: str, part: str, requires_grad: bool) -> None:
    """Note what trains now, and of what does not only what it was when first seen."""
    if requires_grad or mark_of(owner, name, part) is None:
        set_constant(owner, name, part, not requires_grad)


def is_constant(owner: nn.Module, name: str, part: str) -> bool:
    """Whether a parameter is noted as constant."""
    return mark_of(owner, name, part) == CONSTANT


def set_constant(owner: nn.Module, name: str, part: str, value: bool) -> None:
    """Note a parameter as constant, or as one that trains."""
    vars(owner).setdefault(ATTRIBUTE, {})[part or name] = CONSTANT if value else TRAINABLE
