"""Warnings that blame the user's own line, whatever path led to them."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

# Packages whose lines a user cannot change: this one, and those that call it on the user's behalf.
_PASSED_OVER = frozenset(
    ("lstm_freeze", "torch", "lightning", "lightning_fabric", "pytorch_lightning")
)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, and blame the innermost line that lies in none of the packages above."""
    frame = _to_blame(sys._getframe(1))
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__", "<unknown>"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _to_blame(innermost: FrameType) -> FrameType:
    frame: FrameType | None = innermost
    while frame is not None:
        if _package(frame) not in _PASSED_OVER:
            return frame
        innermost, frame = frame, frame.f_back
    return innermost


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
