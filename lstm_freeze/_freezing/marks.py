"""Marks: notes on a module that say which parameters trained at first, and which were constant.

A mark is a plain string in the module's own `__dict__`, by the parameter's name. So marks are part
of deep copies, of pickles (which can be read without this library), and of the BiLSTM that replaces
an nn.LSTM.
"""

from __future__ import annotations

from torch import nn

ATTRIBUTE = "_lstm_freeze_at_first"
TRAINABLE, CONSTANT = "trainable", "constant"
NAMED = "named"  # constant at first, and named since


def mark_of(owner: nn.Module, name: str, part: str) -> str | None:
    """The mark of a parameter: `"trainable"`, `"constant"`, `"named"`, or None where none is set.

    A tensor and the parameters that a parametrization keeps for it have the same mark.
    """
    marks: dict[str, str] = vars(owner).get(ATTRIBUTE, {})
    found = marks.get(part or name) or marks.get(name)
    if found or part:
        return found
    inside = [mark for key, mark in marks.items() if key.startswith(f"parametrizations.{name}.")]
    return max(inside, default=None)  # the last in the alphabet is "trainable", which wins


def set_mark(owner: nn.Module, name: str, part: str, mark: str) -> None:
    """Set the mark of a parameter."""
    vars(owner).setdefault(ATTRIBUTE, {})[part or name] = mark


def note(owner: nn.Module, name: str, part: str, requires_grad: bool) -> None:
    """Mark a parameter that trains now as trainable, and one without a mark as constant."""
    mark = mark_of(owner, name, part)
    if requires_grad and mark != NAMED:
        set_mark(owner, name, part, TRAINABLE)
    elif mark is None:
        set_mark(owner, name, part, CONSTANT)
