"""The C extension: whether it is there and switched on, and how its functions are called.

It applies to float32 on the CPU when it was built with the package and is not switched off
(`LSTM_FREEZE_NATIVE=0` in the environment, read at import, or `enable(False)`). Everything else
goes through torch operations; the two agree to rounding. Which one a layer takes depends on dtype,
device and this switch alone, never on what is frozen or on grad mode.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from ..._extensions import ready
from ..._warn import warn
from ..agreement import is_there
from . import memory

_NAME = f"{__package__}._timeloop"
_INTERFACE = 7  # the version of the extension's functions that this file calls

try:
    from . import _timeloop
except ImportError:  # no compiler at install time, or a platform the extension refuses
    built: ModuleType | None = None
else:
    built = ready(_timeloop, _INTERFACE)

# The rows that the extension computes at a time.
CHUNK: int = 0 if built is None else built.CHUNK


def _wanted(setting: str, module: ModuleType | None) -> bool:
    """Whether the environment variable asks for the native loop.

    Unset or empty asks for it where it is known to be faster. On processors without AVX2 torch's
    products may be faster: other libraries make them.
    """
    if setting not in ("", "0", "1"):
        raise ValueError(
            f"LSTM_FREEZE_NATIVE must be 0 (torch operations only) or 1 (the native loop where "
            f"it applies), got {setting!r}"
        )
    if setting == "1" and module is None:
        warn(
            f"LSTM_FREEZE_NATIVE=1 asks for the native loop, but its extension {_NAME} was not "
            "built for this version of the package, so torch operations do its work; install a C "
            "compiler and then lstm-freeze again, or unset LSTM_FREEZE_NATIVE",
            RuntimeWarning,
        )
    return module is not None and (setting == "1" or (not setting and _is_measured(module)))


def _is_measured(module: ModuleType) -> bool:
    return bool(module.levels()[-1].startswith("avx"))


_enabled = _wanted(os.environ.get("LSTM_FREEZE_NATIVE", ""), built)
memory.use(built if _enabled else None)


def enable(on: bool) -> bool:
    """Switch the native loop on or off for the whole process; returns what it was before.

    Raises:
        RuntimeError: Switching on an extension that is not there.
    """
    global _enabled
    if on and built is None:
        raise RuntimeError(
            f"the native loop cannot be switched on: its extension {_NAME} was not built for this "
            "version of the package; install a C compiler and then lstm-freeze again"
        )
    before, _enabled = _enabled, bool(on)
    return before


@contextmanager
def switched(on: bool) -> Iterator[None]:
    """Switch the native loop on or off within a `with` block."""
    before = enable(on)
    try:
        yield
    finally:
        enable(before)


def which_loop() -> str:
    """Which loop float32 layers on the CPU use, in words: `native (avx2)`, `torch (...)`."""
    if built is None:
        return f"torch (the extension {_NAME} is not built)"
    if not _enabled:
        if not _is_measured(built):
            return "torch (no AVX2 here; LSTM_FREEZE_NATIVE=1 asks for the native loop)"
        return "torch (the native loop is switched off)"
    return f"native ({_timeloop.levels()[-1]})"


def is_on() -> bool:
    """Whether it is there and switched on."""
    return _enabled


def applies(tensor: Tensor) -> bool:
    """Whether layers over tensors of this dtype and device go through the native loop."""
    return _enabled and tensor.dtype == torch.float32 and tensor.is_cpu


def panels(name: str, weights: Sequence[Tensor], units: int, depth: int, gates: int = 1) -> Tensor:
    """The weights of each direction, (gates * units, depth), in panels of units: (D, size)."""
    packed = memory.empty(weights[0], len(weights), gates * whole_panels(units) * depth)
    for weight, out in zip(weights, packed, strict=True):
        alias = alias_of(name, weight, (gates * units, depth))
        numbers = (gates, units, depth, *alias.stride(), alias.data_ptr(), out.data_ptr())
        call("pack", packed_job(numbers), (alias, out))
    return packed


def whole_panels(units: int) -> int:
    """The columns of so many panels as units need."""
    lanes: int = _timeloop.lanes()
    return -(-units // lanes) * lanes


def alias_of(name: str, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The weight by another name, checked before its memory is read by address.

    It keeps that memory alive if another thread replaces the weight's meanwhile.
    """
    alias = weight.detach()
    if alias.shape != shape or not is_there(alias):
        raise does_not_fit(name, alias, f"{shape}, all of it in memory")
    check_kind(name, alias)
    return in_memory(alias)


def order_of_rows(name: str, order: Tensor, rows: int) -> Tensor:
    """Numbers of rows as the extension reads them, which checks that they name rows."""
    if (order.dtype, order.shape) != (torch.int64, (rows,)) or not is_there(order):
        raise ValueError(
            f"`{name}` must be int64 of size ({rows},), all of it in memory; got {order.dtype} of "
            f"{tuple(order.shape)}"
        )
    return in_memory(order.contiguous())


def in_memory(tensor: Tensor) -> Tensor:
    """The tensor with its numbers as they are in memory, which `is_there`.

    Torch negates those of some tensors as it reads them, and has tensors of zeros without memory.
    """
    if tensor.data_ptr() == 0 and tensor.numel():
        return tensor.new_zeros(tensor.shape)
    return tensor.resolve_neg()


def call(name: str, job: bytes, owners: object) -> None:
    """Calls one of the extension's functions; the owners' memory stays alive meanwhile."""
    getattr(_timeloop, name)(torch.get_num_threads(), job, owners)


def operand(name: str, tensor: Tensor, directions: int, size: int) -> tuple[int, int]:
    """Address and stride of directions, as the extension's `Operand` holds them."""
    fits = tensor.dim() == 3 and tensor.shape[::2] == (directions, size)
    dense = fits and (tensor.shape[1] == 0 or tensor[0].is_contiguous())
    if not dense:
        raise does_not_fit(name, tensor, f"({directions}, rows, {size}) with dense rows")
    check_kind(name, tensor)
    return tensor.data_ptr(), tensor.stride(0)


def address(panels: Tensor | None) -> tuple[int, int]:
    """The same of packed weights, (D, size); zeros for what is absent."""
    return (0, 0) if panels is None else (panels.data_ptr(), panels.stride(0))


def pointer(tensor: Tensor | None) -> int:
    """The address of a tensor's memory; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def check_kind(name: str, tensor: Tensor) -> None:
    """Raises a ValueError unless the tensor is one that the extension computes with."""
    if tensor.dtype != torch.float32 or not tensor.is_cpu:
        raise does_not_fit(name, tensor, "float32 on the CPU")


def does_not_fit(name: str, tensor: Tensor, must: str) -> ValueError:
    """The error that names a tensor, what it must be, and what it is."""
    return ValueError(
        f"`{name}` must be {must}; got {tensor.dtype} on {tensor.device}, {tuple(tensor.shape)} "
        f"with strides {tensor.stride()}"
    )


def packed_job(*numbers: tuple[int, ...]) -> bytes:
    """Numbers as the extension's structs hold them."""
    flat = [number for several in numbers for number in several]
    return struct.pack(f"={len(flat)}q", *flat)
