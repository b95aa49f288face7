"""Warnings that blame the line of the user's own code, however many calls lie between."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

# Packages whose lines a user cannot change: this one, and those that call it on the user's behalf.
_PASSED_OVER = frozenset(
    (
        *("lstm_freeze", "torch", "lightning", "lightning_fabric", "pytorch_lightning"),
        *("contextlib", "typing_extensions", "warnings"),  # whose decorators wrap functions
        "importlib",  # whose frames stand between an import statement and the imported file
    )
)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, and blame the innermost line of code that belongs to none of `_PASSED_OVER`."""
    frame = _users_frame(sys._getframe(1))
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__", "<unknown>"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def users_line() -> str:
    """The file and line of the user's code that led to this call, as `file:line`."""
    frame = _users_frame(sys._getframe(1))
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _users_frame(innermost: FrameType) -> FrameType:
    frame: FrameType | None = innermost
    while frame is not None:
        if _package(frame) not in _PASSED_OVER:
            return frame
        innermost, frame = frame, frame.f_back
    return innermost


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
