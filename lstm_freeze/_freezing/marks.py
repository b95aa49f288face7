"""What a module notes about its parameters: which trained at first, and which were constant.

The notes are plain strings in the module's own `__dict__`, by the parameter's name. So they go
where the module goes: into deep copies, into pickles that can be read without this library, and
into the BiLSTM that takes the place of an nn.LSTM.
"""

from __future__ import annotations

from torch import nn

ATTRIBUTE = "_lstm_freeze_at_first"
TRAINABLE, CONSTANT = "trainable", "constant"
NAMED = "named"  # constant at first, and named since


def mark_of(owner: nn.Module, name: str, part: str) -> str | None:
    """What is noted of a parameter: `"trainable"`, `"constant"`, `"named"` or nothing yet.

    What a parametrization has made of a tensor is what the tensor was, and the other way round.
    """
    marks: dict[str, str] = vars(owner).get(ATTRIBUTE, {})
    found = marks.get(part or name) or marks.get(name)
    if found or part:
        return found
    inside = [mark for key, mark in marks.items() if key.startswith(f"parametrizations.{name}.")]
    return max(inside, default=None)  # in the alphabet "trainable" is the last


def set_mark(owner: nn.Module, name: str, part: str, mark: str) -> None:
    """Note something of a parameter."""
    vars(owner).setdefault(ATTRIBUTE, {})[part or name] = mark


def note(owner: nn.Module, name: str, part: str, requires_grad: bool) -> None:
    """Note what trains now, and of what does not only what it was when first seen."""
    mark = mark_of(owner, name, part)
    if requires_grad and mark != NAMED:
        set_mark(owner, name, part, TRAINABLE)
    elif mark is None:
        set_mark(owner, name, part, CONSTANT)
