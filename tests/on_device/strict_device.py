"""A pretend accelerator, `torch.device("strict")`, for machines that have none.

Tensors on it compute on the CPU, and yet:

- they refuse to be mixed with CPU tensors, as CUDA's do;
- code that asks for `tensor.device.type == "cpu"` does not take them for its own;
- each transfer of a value to the host is noted in `host_reads`.

What it cannot show: streams, cuDNN, speed, memory, the bits of a real accelerator's kernels.

It stands on torch's experimental hooks for backends written in Python, renames a backend for the
whole process, and belongs in tests only, in a process of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

OWN_OPERATORS = "lstm_freeze::"  # their Python body runs on strict tensors
# They take lengths on the host beside data on the device, and return lengths there, on CUDA too.
PACKING = ("aten::_pack_padded_sequence", "aten::_pad_packed_sequence")
host_reads: list[str] = []
"""What brought a value to the host, in order."""
blocking_copies: list[str] = []
"""What brought a value to the device while the host waited for it, in order."""


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return True

    def has_primary_context(self, index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class _Module:
    """What torch looks for in `torch.strict`."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("strict", _Module(), _Hooks(), _Guard())
DEVICE = torch.device("strict", 0)


class StrictTensor(torch.Tensor):
    """A tensor on the pretend device; `raw` holds its numbers on the CPU."""

    raw: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor, requires_grad: bool = False) -> StrictTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied: torch.Tensor = StrictTensor(self.raw.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        return memo.setdefault(id(self), copied)

    def __repr__(self) -> str:
        return f"strict({self.raw})"

    @property
    def data(self) -> torch.Tensor:
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        torch.Tensor.data.__set__(self, value)
        if isinstance(value, StrictTensor):  # as in module.half(): the wrapper has new numbers
            self.raw = value.raw

    def tolist(self) -> Any:
        host_reads.append("tolist")
        return self.raw.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert a strict tensor to numpy; use .cpu() first")

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(DEVICE)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Files hold it as a tensor of the CPU; so they can be read in other processes."""
        host_reads.append("pickle")
        reduced = torch.nn.Parameter(self.raw, self.requires_grad)
        return (reduced if isinstance(self, torch.nn.Parameter) else self.raw).__reduce_ex__(
            protocol
        )

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def untyped_storage(self) -> Any:
        return self.raw.untyped_storage()


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name
    if name.startswith(OWN_OPERATORS):
        return OPDEFS[name]._init_fn(*args, **kwargs)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    if name not in ("aten::copy_", "aten::_to_copy", *PACKING):
        _refuse_mixed(name, tensors)
    if name == "aten::_local_scalar_dense":
        host_reads.append(name)
    if name == "aten::copy_" and not isinstance(args[0], StrictTensor):
        host_reads.append(name)
    if _brings_and_blocks(name, args, kwargs):
        blocking_copies.append(name)
    there = {**kwargs}
    if "device" in there:
        there["device"] = torch.device("cpu")
    if there.get("pin_memory"):
        there["pin_memory"] = False
    found = func(*tree_map(_raw, args), **tree_map(_raw, there))
    to = kwargs.get("device")
    if name == "aten::_to_copy" and to is not None and torch.device(to).type == "cpu":
        host_reads.append(name)
        return found
    if name in PACKING:
        return StrictTensor(found[0]), found[1]
    if name == "aten::copy_":
        return args[0]
    # What an operation changes in place it returns as it was given.
    given = {id(x.raw): x for x in tensors if isinstance(x, StrictTensor)}
    return tree_map(lambda x: _wrapped(x, given), found)


def _brings_and_blocks(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    if name == "aten::copy_":
        comes = isinstance(args[0], StrictTensor) and not isinstance(args[1], StrictTensor)
        return comes and not kwargs.get("non_blocking", len(args) > 2 and args[2])
    comes = name == "aten::_to_copy" and not isinstance(args[0], StrictTensor)
    return comes and not kwargs.get("non_blocking", False)


def _refuse_mixed(name: str, tensors: list[torch.Tensor]) -> None:
    for tensor in tensors:
        if not isinstance(tensor, StrictTensor) and tensor.dim() > 0:
            raise RuntimeError(
                f"{name}: expected all tensors to be on the same device, but got a CPU tensor of "
                f"shape {tuple(tensor.shape)} beside tensors on {DEVICE}"
            )


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, StrictTensor) else value


def _wrapped(value: Any, given: dict[int, StrictTensor]) -> Any:
    if not isinstance(value, torch.Tensor) or isinstance(value, StrictTensor):
        return value
    return given[id(value)] if id(value) in given else StrictTensor(value)


_library = torch.library.Library("_", "IMPL")
_library.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), dispatch_key="PrivateUse1")
# No operation is cast by autocast here; what asks for its dtype, as BiLSTM does, is told it.
_library.fallback(torch.library.fallthrough_kernel, dispatch_key="AutocastPrivateUse1")

_tensor = torch.tensor


def _tensor_there(data: Any, *, device: Any = None, **kwargs: Any) -> torch.Tensor:
    """torch.tensor, which cannot reach a backend written in Python."""
    strict = device is not None and torch.device(device).type == DEVICE.type
    made = _tensor(data, device=None if strict else device, **kwargs)
    return made.to(DEVICE) if strict else made


torch.tensor = _tensor_there
