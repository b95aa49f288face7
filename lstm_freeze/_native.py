"""The native gate step: the pointwise arithmetic of one time step in C, where it applies.

It serves float32 on the CPU when the extension was built with the package and is not switched off
(`LSTM_FREEZE_NATIVE=0` in the environment, read at import, or `enable(False)`). Everything else
goes through torch operations; the two agree to rounding. Which of the two a layer takes follows
from dtype, device and this switch alone, never from what is frozen or from grad mode.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

_INTERFACE = 1  # the version of the extension's calls that this file makes

try:
    from . import _gates
except ImportError:  # no compiler at install time, or a platform the extension refuses
    _extension: ModuleType | None = None
else:
    # An extension left over from another version of the package would read the wrong memory.
    _extension = _gates if getattr(_gates, "INTERFACE", None) == _INTERFACE else None


def _wanted(setting: str) -> bool:
    """What the environment variable says; unset or empty is yes."""
    if setting not in ("", "0", "1"):
        raise ValueError(
            f"LSTM_FREEZE_NATIVE must be 0 (torch operations only) or 1 (the native step where "
            f"it applies), got {setting!r}"
        )
    return setting != "0"


_enabled = _wanted(os.environ.get("LSTM_FREEZE_NATIVE", "")) and _extension is not None


def enable(on: bool) -> bool:
    """Switch the native step on or off for the whole process; returns what it was before.

    Raises:
        RuntimeError: Switching on an extension that is not there.
    """
    global _enabled
    if on and _extension is None:
        raise RuntimeError(
            "the native step cannot be switched on: its extension lstm_freeze._gates was not "
            "built for this version of the package; install a C compiler and then lstm-freeze "
            "again"
        )
    before, _enabled = _enabled, bool(on)
    return before


@contextmanager
def switched(on: bool) -> Iterator[None]:
    """Switch the native step on or off within a `with` block."""
    before = enable(on)
    try:
        yield
    finally:
        enable(before)


def in_use() -> str:
    """Which arithmetic float32 layers on the CPU use, in words: `native (avx2)`, `torch (...)`."""
    if _extension is None:
        return "torch (the extension lstm_freeze._gates is not built)"
    if not _enabled:
        return "torch (the native step is switched off)"
    return f"native ({_gates.levels()[-1]})"


def applies(tensor: Tensor) -> bool:
    """Whether steps over tensors of this dtype and device go through the native step."""
    return _enabled and tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def forward_step(
    pre: Tensor, gates: Tensor | None, c_before: Tensor, c: Tensor, h: Tensor
) -> Callable[..., None]:
    """Prepare the forward steps of a layer, the pointwise part: c = f c' + i g, h = o tanh(c).

    Each operand is a buffer (D, any number of rows, 4H or H) whose last axis is dense. One call of
    the result does one step: `step(rows, pre_row, gates_row, c_before_row, c_row, h_row)` reads
    and writes `rows` rows of each direction from those first rows on. `pre` and `gates` may be the
    same rows of the same buffer, and so may `c_before` and `c`; apart from that, nothing may
    overlap. The rows are not checked.

    Args:
        pre: (D, ..., 4H) pre-activations, gates in the order i, f, g, o.
        gates: (D, ..., 4H) receives the activations; None where they are not kept.
        c_before: (D, ..., H) the cell state before the step.
        c: (D, ..., H) receives the cell state after it.
        h: (D, ..., H) receives the hidden state.
    """
    D, H = c.shape[0], c.shape[2]
    kept = (0, 0, 0) if gates is None else _operand("gates", gates, D, 4 * H)
    step = _packed(
        D,
        H,
        _operand("pre", pre, D, 4 * H),
        kept,
        _operand("c_before", c_before, D, H),
        _operand("c", c, D, H),
        _operand("h", h, D, H),
    )
    return partial(_gates.forward, step, (pre, gates, c_before, c, h))


def backward_step(
    dh: Tensor, dc: Tensor, gates: Tensor, c_before: Tensor, c: Tensor, dgates: Tensor
) -> Callable[..., None]:
    """Prepare the backward steps of a layer, as `forward_step` does the forward ones.

    One call: `step(rows, dh_row, dc_row, gates_row, c_before_row, c_row, dgates_row)`. `dgates`
    and `gates` may be the same rows of the same buffer.

    Args:
        dh: (D, ..., H) the gradient of the hidden state after the step, from all its uses.
        dc: (D, ..., H) the gradient of the cell state after the step, from its later use; replaced
            by the gradient of the cell state before it.
        gates: (D, ..., 4H) the activations that the forward step kept.
        c_before: (D, ..., H) the cell state before the step.
        c: (D, ..., H) the cell state after it.
        dgates: (D, ..., 4H) receives the gradient of the pre-activations.
    """
    D, H = c.shape[0], c.shape[2]
    step = _packed(
        D,
        H,
        _operand("dh", dh, D, H),
        _operand("dc", dc, D, H),
        _operand("gates", gates, D, 4 * H),
        _operand("c_before", c_before, D, H),
        _operand("c", c, D, H),
        _operand("dgates", dgates, D, 4 * H),
    )
    return partial(_gates.backward, step, (dh, dc, gates, c_before, c, dgates))


def _operand(name: str, tensor: Tensor, directions: int, size: int) -> tuple[int, int, int]:
    """Address and strides, as the extension's `Operand` holds them."""
    fits = tensor.dim() == 3 and tensor.shape[::2] == (directions, size)
    dense = fits and (size == 1 or tensor.stride(2) == 1)
    if not dense or tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise ValueError(
            f"`{name}` must be float32 on the CPU, ({directions}, rows, {size}) with a dense last "
            f"axis; got {tensor.dtype} on {tensor.device}, {tuple(tensor.shape)} with strides "
            f"{tensor.stride()}"
        )
    return tensor.data_ptr(), tensor.stride(0), tensor.stride(1)


def _packed(directions: int, hidden: int, *operands: tuple[int, int, int]) -> bytes:
    numbers = (directions, hidden, *(number for operand in operands for number in operand))
    return struct.pack(f"={len(numbers)}q", *numbers)
