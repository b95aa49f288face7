"""The time loop of an LSTM layer in C, where it applies.

It applies to float32 on the CPU when the extension was built with the package and is not switched
off (`LSTM_FREEZE_NATIVE=0` in the environment, read at import, or `enable(False)`). Everything else
goes through the torch operations of `loop_torch`; the two agree to rounding. Which one a layer
takes depends on dtype, device and this switch alone, never on what is frozen or on grad mode.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from .._extensions import ready
from .._warn import warn
from . import memory
from .agreement import is_there
from .cell import GATES, gates_size
from .rows import Run
from .weights import Gradients, State, Weights

_INTERFACE = 2  # the version of the extension's functions that this file calls

try:
    from . import _timeloop
except ImportError:  # no compiler at install time, or a platform the extension refuses
    _extension: ModuleType | None = None
else:
    _extension = ready(_timeloop, _INTERFACE)


def _wanted(setting: str, extension: ModuleType | None) -> bool:
    """Whether the environment variable asks for the native loop.

    Unset or empty asks for it where it is known to be faster. On processors without AVX2 torch's
    products may be faster: other libraries make them.
    """
    if setting not in ("", "0", "1"):
        raise ValueError(
            f"LSTM_FREEZE_NATIVE must be 0 (torch operations only) or 1 (the native loop where "
            f"it applies), got {setting!r}"
        )
    if setting == "1" and extension is None:
        warn(
            "LSTM_FREEZE_NATIVE=1 asks for the native loop, but its extension "
            "lstm_freeze._recurrence._timeloop was not built for this version of the package, so "
            "torch operations do its work; install a C compiler and then lstm-freeze again, or "
            "unset LSTM_FREEZE_NATIVE",
            RuntimeWarning,
        )
    return extension is not None and (setting == "1" or (not setting and _is_measured(extension)))


def _is_measured(extension: ModuleType) -> bool:
    return bool(extension.levels()[-1].startswith("avx"))


_enabled = _wanted(os.environ.get("LSTM_FREEZE_NATIVE", ""), _extension)
memory.use(_extension if _enabled else None)


def enable(on: bool) -> bool:
    """Switch the native loop on or off for the whole process; returns what it was before.

    Raises:
        RuntimeError: Switching on an extension that is not there.
    """
    global _enabled
    if on and _extension is None:
        raise RuntimeError(
            f"the native loop cannot be switched on: its extension {__package__}._timeloop was not "
            "built for this version of the package; install a C compiler and then lstm-freeze "
            "again"
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
    if _extension is None:
        return "torch (the extension lstm_freeze._recurrence._timeloop is not built)"
    if not _enabled:
        if not _is_measured(_extension):
            return "torch (no AVX2 here; LSTM_FREEZE_NATIVE=1 asks for the native loop)"
        return "torch (the native loop is switched off)"
    return f"native ({_timeloop.levels()[-1]})"


def applies(tensor: Tensor) -> bool:
    """Whether layers over tensors of this dtype and device go through the native loop."""
    return _enabled and tensor.dtype == torch.float32 and tensor.device.type == "cpu"


class NativeForward:
    """Walks through the time blocks of a layer, as `loop_torch.TorchForward` does."""

    def __init__(
        self,
        directions: Sequence[Weights],
        state: State,
        batch: int,
        batch_sizes: Tensor | None,
        keep: bool,
    ) -> None:
        """Pack the weights."""
        D, H, P = state.cells.shape[0], state.cells.shape[2], state.hidden.shape[2]
        weight_hr = [w.weight_hr for w in directions if w.weight_hr is not None]
        self._state, self._keep = state, keep
        self._steps, self._batch = _Steps(batch, batch_sizes), batch
        weight_hh = [w.weight_hh for w in directions]
        self._weight_hh = _panels("weight_hh", weight_hh, H, P, gates=len(GATES))
        self._weight_hr = _panels("weight_hr", weight_hr, P, H) if weight_hr else None
        self._squashed = state.cells.new_empty(D, batch, H) if weight_hr else None
        self._walked = 0

    def run(self, block: list[Run], base: int) -> None:
        """Walk through one block; the first row of `gates` is row `base`."""
        gates, hidden, cells = self._state
        D, H, P = cells.shape[0], cells.shape[2], hidden.shape[2]
        steps, row = sum(run.steps for run in block), block[0].row
        job = _packed(
            (D, H, P, *self._steps.part(self._walked, steps), row),
            (self._batch + row - block[0].before if row else 0, base, self._keep),
            _operand("gates", gates, D, gates_size(H)),
            _operand("hidden", hidden, D, P),
            _operand("cells", cells, D, H),
            (0, 0) if self._squashed is None else _operand("squashed", self._squashed, D, H),
            *_operands(self._weight_hh, self._weight_hr),
        )
        owners = (self._state, self._squashed, self._weight_hh, self._weight_hr, self._steps)
        _timeloop.forward(torch.get_num_threads(), job, owners)
        self._walked += steps


def walk_back(
    directions: Sequence[Weights],
    state: State,
    batch: int,
    batch_sizes: Tensor | None,
    grads: Gradients,
    active: range,
    blocks: list[list[Run]],
) -> None:
    """Walks the active directions of a layer back in time, as `loop_torch.walk_back` does."""
    here = slice(active[0], active[-1] + 1)
    H, P, N = state.cells.shape[2], state.hidden.shape[2], state.gates.shape[1]
    D = len(active)
    steps = _Steps(batch, batch_sizes)
    hh = [directions[d].weight_hh.t() for d in active]
    weight_hh = _panels("weight_hh", hh, P, gates_size(H))
    hr = [w.t() for d in active if (w := directions[d].weight_hr) is not None]
    weight_hr = _panels("weight_hr", hr, H, P) if hr else None
    job = _packed(
        (D, H, P, *steps.part(0, sum(run.steps for block in blocks for run in block)), N),
        _operand("gates", state.gates[here], D, gates_size(H)),
        _operand("cells", state.cells[here], D, H),
        _operand("dh", grads.dh[here], D, P),
        _operand("dh_n", grads.dh_n[here], D, P),
        _operand("dc", grads.dc[here], D, H),
        _operand("dgates", grads.dgates[here], D, gates_size(H)),
        *_operands(weight_hh, weight_hr),
    )
    owners = (state, grads, weight_hh, weight_hr, steps)
    _timeloop.backward(torch.get_num_threads(), job, owners)


class _Steps:
    """How many rows each step has, as the extension reads it."""

    def __init__(self, batch: int, batch_sizes: Tensor | None) -> None:
        self.batch = batch
        self.sizes = None if batch_sizes is None else batch_sizes.contiguous()

    def part(self, first: int, steps: int) -> tuple[int, int, int, int]:
        """A range of steps in the form of the extension's `Steps`."""
        return first, steps, self.batch, 0 if self.sizes is None else self.sizes.data_ptr()


def _panels(name: str, weights: Sequence[Tensor], units: int, depth: int, gates: int = 1) -> Tensor:
    """The weights of each direction, (gates * units, depth), in panels of units: (D, size)."""
    lanes = _timeloop.lanes()
    width = -(-units // lanes) * lanes
    panels = memory.empty(weights[0], len(weights), gates * width * depth)
    for weight, out in zip(weights, panels, strict=True):
        # An alias: it keeps the memory alive if another thread replaces the weight's meanwhile.
        alias = weight.detach()
        if alias.shape != (gates * units, depth) or not is_there(alias):
            raise _does_not_fit(name, alias, f"({gates * units}, {depth}), all of it in memory")
        _check_kind(name, alias)
        numbers = (gates, units, depth, *alias.stride(), alias.data_ptr(), out.data_ptr())
        _timeloop.pack(torch.get_num_threads(), _packed(numbers), (alias, out))
    return panels


def _operands(hh: Tensor, hr: Tensor | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """The packed weights as the extension's operands; (0, 0) for an absent projection."""
    return (hh.data_ptr(), hh.stride(0)), (0, 0) if hr is None else (hr.data_ptr(), hr.stride(0))


def _operand(name: str, tensor: Tensor, directions: int, size: int) -> tuple[int, int]:
    """Address and stride of directions, as the extension's `Operand` holds them."""
    fits = tensor.dim() == 3 and tensor.shape[::2] == (directions, size)
    dense = fits and (tensor.shape[1] == 0 or tensor[0].is_contiguous())
    if not dense:
        raise _does_not_fit(name, tensor, f"({directions}, rows, {size}) with dense rows")
    _check_kind(name, tensor)
    return tensor.data_ptr(), tensor.stride(0)


def _check_kind(name: str, tensor: Tensor) -> None:
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise _does_not_fit(name, tensor, "float32 on the CPU")


def _does_not_fit(name: str, tensor: Tensor, must: str) -> ValueError:
    return ValueError(
        f"`{name}` must be {must}; got {tensor.dtype} on {tensor.device}, {tuple(tensor.shape)} "
        f"with strides {tensor.stride()}"
    )


def _packed(*numbers: tuple[int, ...]) -> bytes:
    flat = [number for several in numbers for number in several]
    return struct.pack(f"={len(flat)}q", *flat)
