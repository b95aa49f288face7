"""Tensors as bits: taking them, comparing them bit for bit, and turning them back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_PIECE = 1 << 23  # elements or words compared at a time where that makes a temporary


class Bits(NamedTuple):
    """The bits of a tensor: its memory as 8-byte words, and the up to 7 bytes left over."""

    dtype: torch.dtype
    shape: torch.Size
    words: Tensor
    rest: Tensor


def has_bits(tensor: Tensor) -> bool:
    """Whether there are bits to look at; a lazy or meta tensor has none."""
    return not (nn.parameter.is_lazy(tensor) or tensor.is_meta)


def stored(tensor: Tensor) -> Tensor:
    """The tensor itself; of a DTensor, the shard that this process stores."""
    tensor = tensor.detach()
    if (local := getattr(tensor, "to_local", None)) is not None:
        tensor = local()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return (tensor.resolve_conj() if tensor.is_complex() else tensor).resolve_neg()


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor's elements in logical order: (bytes,).

    A view where the elements lie side by side, else a copy. The strides are set here:
    `view(torch.uint8)` checks the stride of a dimension of size 1, `is_contiguous()` does not.
    """
    tensor = tensor.contiguous()
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def as_words(memory: Tensor) -> Tensor:
    """Bytes, a multiple of 8, as 8-byte words; a copy where they do not begin at a word."""
    if memory.storage_offset() % 8 or memory.data_ptr() % 8:
        memory = memory.clone()
    return memory.view(torch.int64)


def bits_of(tensor: Tensor, copy: bool = False) -> Bits:
    """The bits of a tensor, in its own memory if it is contiguous and no copy is asked for."""
    tensor = stored(tensor)
    if copy:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    memory = as_bytes(tensor)
    whole = len(memory) & ~7
    return Bits(tensor.dtype, tensor.shape, as_words(memory[:whole]), memory[whole:])


def tensor_of(bits: Bits) -> Tensor:
    """The tensor that has these bits."""
    memory = torch.cat([bits.words.view(torch.uint8), bits.rest])
    return memory.view(bits.dtype).view(bits.shape)


def same_bits(pairs: Iterable[tuple[Bits, Bits]]) -> list[bool]:
    """For each pair on one device: whether dtype, shape and all bits agree."""
    return [bool(same) for same in on_host([_same(a, b) for a, b in pairs])]


def difference(new: Tensor, old: Tensor) -> tuple[int, float]:
    """How many elements of two tensors of one form differ in bits, and by how much at most.

    The largest change may be NaN.
    """
    moved, largest = 0, 0.0
    number = torch.complex128 if old.is_complex() else torch.float64
    pieces = (torch.split(t.reshape(-1), _PIECE) for t in (new, old))
    for a, b in zip(*pieces, strict=True):
        if not a.numel():
            continue
        differs = (as_bytes(a) != as_bytes(b)).view(len(a), -1).any(1)
        moved += int(differs.sum())
        changes = (a.to(number) - b.to(number)).abs()[differs]
        if len(changes):
            # Unlike Python's, torch's maximum keeps a NaN.
            largest = float(changes.new_tensor([largest, changes.max().item()]).max())
    return moved, largest


def on_host(values: Sequence[Any]) -> list[int]:
    """The values as integers; tensors of no dimension come with one transfer from each device."""
    there: dict[torch.device, list[int]] = {}
    for i, value in enumerate(values):
        if isinstance(value, Tensor):
            there.setdefault(value.device, []).append(i)
    result = list(values)
    for places in there.values():
        numbers = torch.stack([values[i] for i in places]).tolist()
        for i, number in zip(places, numbers, strict=True):
            result[i] = number
    return result


def _same(a: Bits, b: Bits) -> bool | Tensor:
    if a[:2] != b[:2]:
        return False
    if a.words.device.type == "cpu":
        return torch.equal(a.words, b.words) and (not len(a.rest) or torch.equal(a.rest, b.rest))
    # On other devices a comparison makes a temporary, so small pieces are compared. The host does
    # not wait for the results.
    pieces = zip(torch.split(a.words, _PIECE), torch.split(b.words, _PIECE), strict=True)
    return torch.stack([(x == y).all() for x, y in (*pieces, (a.rest, b.rest))]).all()
