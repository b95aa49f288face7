"""Whether a call is simply run, or recorded, exported or transformed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._torch_internals import forward_mode_is_on, functions_are_transformed, is_fake


def is_traced(data: Tensor) -> bool:
    """Whether the call is recorded or transformed rather than simply run."""
    if torch.compiler.is_compiling() or is_exporting():
        return True
    return data.is_meta or is_fake(data) or is_jit_tracing() or is_transformed()


def is_exporting() -> bool:
    """Whether `torch.export` is at work; before torch 2.7, also whether torch.compile is."""
    told: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return told()


def is_recorded_for_onnx(data: Tensor) -> bool:
    """Whether `torch.onnx.export` (not its TorchScript form) records this very call."""
    # All threads see that an export is under way; in the others, data are real tensors.
    exporting = is_exporting() and torch.onnx.is_in_onnx_export()
    return exporting and is_fake(data)


def is_written_out(data: Tensor) -> bool:
    """Whether layers are recorded for ONNX or run in plain operations, not as one operator."""
    return is_recorded_for_onnx(data) or is_transformed()


def is_jit_tracing() -> bool:
    """Whether `torch.jit.trace` is at work."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def is_transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work, which the operator has no rules for."""
    if torch.compiler.is_compiling():
        return False
    if torch.onnx.is_in_onnx_export():
        return True
    return forward_mode_is_on() or functions_are_transformed()
