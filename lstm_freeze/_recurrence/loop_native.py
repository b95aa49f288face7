"""The time loop of an LSTM layer and the products around it in C, where they apply.

It applies to float32 on the CPU when the extension was built with the package and is not switched
off (`LSTM_FREEZE_NATIVE=0` in the environment, read at import, or `enable(False)`). Everything else
goes through the torch operations of `loop_torch`; the two agree to rounding. Which one a layer
takes depends on dtype, device and this switch alone, never on what is frozen or on grad mode. A
product depends on its shape and on the processor, too. The extension's gives a row of its left side
the same bits whatever other rows there are.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from .._extensions import ready
from .._warn import warn
from . import memory
from .agreement import is_there
from .cell import GATES, gates_size
from .rows import Run
from .weights import Gradients, State, Weights

_NAME = f"{__package__}._timeloop"
_INTERFACE = 6  # the version of the extension's functions that this file calls

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
            f"LSTM_FREEZE_NATIVE=1 asks for the native loop, but its extension {_NAME} was not "
            "built for this version of the package, so torch operations do its work; install a C "
            "compiler and then lstm-freeze again, or unset LSTM_FREEZE_NATIVE",
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
    if _extension is None:
        return f"torch (the extension {_NAME} is not built)"
    if not _enabled:
        if not _is_measured(_extension):
            return "torch (no AVX2 here; LSTM_FREEZE_NATIVE=1 asks for the native loop)"
        return "torch (the native loop is switched off)"
    return f"native ({_timeloop.levels()[-1]})"


def which_products() -> str:
    """Who makes the large products of float32 layers on the CPU: `the extension` or `torch`."""
    return "the extension" if _enabled and _own_products else "torch"


def applies(tensor: Tensor) -> bool:
    """Whether layers over tensors of this dtype and device go through the native loop."""
    return _enabled and tensor.dtype == torch.float32 and tensor.is_cpu


def _makes_products(extension: ModuleType | None) -> bool:
    """Whether the extension's products are faster than torch's on this processor.

    Torch's are MKL's on most x86 machines, which takes AVX-512 on Intel's processors alone.
    """
    if extension is None:
        return False
    has_mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return not (extension.IS_INTEL and has_mkl)


_own_products = _makes_products(_extension)

# Below these, packing the right side of a product costs more than the faster product saves.
_FEWEST_ROWS = 3
_FEWEST_MULTIPLICATIONS = 2**20


class Right(NamedTuple):
    """The right side of products, (K, N), and its panels where the extension makes them."""

    matrix: Tensor
    panels: Tensor | None


def _pays(matrix: Tensor, rows: int) -> bool:
    """Whether the extension makes the products with a left side of `rows` rows in all."""
    many = rows >= _FEWEST_ROWS and rows * matrix.numel() >= _FEWEST_MULTIPLICATIONS
    return many and _own_products and applies(matrix)


def right(matrix: Tensor, rows: int) -> Right:
    """Prepares the right side of products with a left side of `rows` rows in all."""
    if not _pays(matrix, rows):
        return Right(matrix, None)
    depth, columns = matrix.shape
    return Right(matrix, _panels("right", [matrix.t()], columns, depth))


def multiply(left: Tensor, by: Right, out: Tensor) -> Tensor:
    """Writes left @ right into `out`, (M, N) and contiguous."""
    if by.panels is None:
        return torch.mm(left, by.matrix, out=out)
    rows, (depth, columns) = left.shape[0], by.matrix.shape
    left = left if 1 in left.stride() else left.contiguous()
    if out.shape != (rows, columns) or not out.is_contiguous():
        raise _does_not_fit("out", out, f"({rows}, {columns}), contiguous")
    if left.shape[1] != depth or not is_there(left):
        raise _does_not_fit("left", left, f"({rows}, {depth}), all of it in memory")
    for name, tensor in (("left", left), ("out", out)):
        _check_kind(name, tensor)
    left = in_memory(left)
    addresses = (left.data_ptr(), by.panels.data_ptr(), out.data_ptr())
    job = _packed((rows, depth, columns, *left.stride(), *addresses))
    _timeloop.multiply(torch.get_num_threads(), job, (left, by, out))
    return out


def product(left: Tensor, matrix: Tensor) -> Tensor:
    """A new tensor left @ matrix."""
    out = left.new_empty(left.shape[0], matrix.shape[1])
    return multiply(left, right(matrix, left.shape[0]), out)


# From this many rows of a step and thread on, the loop computes the input's part of the gates
# itself: they are used while they are in cache, and weight_ih is read for enough rows at once.
_ROWS_OF_A_STEP = 24
# Up to so many weights of a direction, which are read from a cache at each step.
_WEIGHTS_OF_A_STEP = 3 * 2**19


def computes_input(directions: Sequence[Weights], rows: int, steps: int) -> bool:
    """Whether the loop computes the input's part of the gates; no bit depends on it."""
    D = len(directions)
    parts = -(-torch.get_num_threads() // D)
    weights = directions[0].weight_ih.numel() + directions[0].weight_hh.numel()
    pays = rows >= steps * parts * _ROWS_OF_A_STEP and weights <= _WEIGHTS_OF_A_STEP
    return pays and all(_pays(w.weight_ih, rows) for w in directions)


class NativeForward:
    """Walks through the time blocks of a layer, as `loop_torch.TorchForward` does.

    It adds the biases itself: they are not in the input's part of the gates.
    """

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
        self._biases = [_bias_of(w) for w in directions]
        self._walked = 0
        self._input: tuple[int, ...] = (0,) * 5
        self._input_owners: tuple[object, ...] = ()

    def read(self, sides: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        """Compute the input's part of the gates in the loop, from the rows of each direction."""
        units, depth = self._state.cells.shape[2], sides[0].shape[1]
        sides = [in_memory(side.contiguous()) for side in sides]
        panels = _panels("weight_ih", weights, units, depth, gates=len(GATES))
        for side in sides:
            _check_kind("input", side)
        addresses = [side.data_ptr() for side in sides] + [0]
        self._input = *_address(panels), depth, addresses[0], addresses[1]
        self._input_owners = sides, panels

    def run(self, block: list[Run], base: int) -> None:
        """Walk through one block; the first row of `gates` is row `base`."""
        gates, hidden, cells = self._state
        D, H, P = cells.shape[0], cells.shape[2], hidden.shape[2]
        steps, row = sum(run.steps for run in block), block[0].row
        job = _packed(
            (D, H, P, *self._steps.part(self._walked, steps), row),
            (self._batch + row - block[0].before if row else 0, base, self._keep),
            _operand("gates", gates, D, gates_size(H)) if gates.numel() else (0, 0),
            _operand("hidden", hidden, D, P),
            _operand("cells", cells, D, H),
            (0, 0) if self._squashed is None else _operand("squashed", self._squashed, D, H),
            *_operands(self._weight_hh, self._weight_hr),
            self._input,
            tuple(0 if b is None else b.data_ptr() for b in [*self._biases, None][:2]),
        )
        weights = (self._weight_hh, self._weight_hr, self._biases, self._input_owners)
        owners = (self._state, self._squashed, self._steps, *weights)
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


def _bias_of(weights: Weights) -> Tensor | None:
    bias = weights.added_biases()
    shape = (gates_size(weights.hidden_size),)
    return None if bias is None else alias_of("bias", bias.contiguous(), shape)


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
    packed = memory.empty(weights[0], len(weights), gates * width * depth)
    for weight, out in zip(weights, packed, strict=True):
        alias = alias_of(name, weight, (gates * units, depth))
        numbers = (gates, units, depth, *alias.stride(), alias.data_ptr(), out.data_ptr())
        _timeloop.pack(torch.get_num_threads(), _packed(numbers), (alias, out))
    return packed


def alias_of(name: str, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The weight by another name, checked before its memory is read by address.

    It keeps that memory alive if another thread replaces the weight's meanwhile.
    """
    alias = weight.detach()
    if alias.shape != shape or not is_there(alias):
        raise _does_not_fit(name, alias, f"{shape}, all of it in memory")
    _check_kind(name, alias)
    return in_memory(alias)


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


def _operands(hh: Tensor, hr: Tensor | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """The packed weights as the extension's operands; (0, 0) for an absent projection."""
    return _address(hh), _address(hr)


def _address(panels: Tensor | None) -> tuple[int, int]:
    return (0, 0) if panels is None else (panels.data_ptr(), panels.stride(0))


def _operand(name: str, tensor: Tensor, directions: int, size: int) -> tuple[int, int]:
    """Address and stride of directions, as the extension's `Operand` holds them."""
    fits = tensor.dim() == 3 and tensor.shape[::2] == (directions, size)
    dense = fits and (tensor.shape[1] == 0 or tensor[0].is_contiguous())
    if not dense:
        raise _does_not_fit(name, tensor, f"({directions}, rows, {size}) with dense rows")
    _check_kind(name, tensor)
    return tensor.data_ptr(), tensor.stride(0)


def _check_kind(name: str, tensor: Tensor) -> None:
    if tensor.dtype != torch.float32 or not tensor.is_cpu:
        raise _does_not_fit(name, tensor, "float32 on the CPU")


def _does_not_fit(name: str, tensor: Tensor, must: str) -> ValueError:
    return ValueError(
        f"`{name}` must be {must}; got {tensor.dtype} on {tensor.device}, {tuple(tensor.shape)} "
        f"with strides {tensor.stride()}"
    )


def _packed(*numbers: tuple[int, ...]) -> bytes:
    flat = [number for several in numbers for number in several]
    return struct.pack(f"={len(flat)}q", *flat)
