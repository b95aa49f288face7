"""Tensors as bits: comparison bit for bit, and fingerprints of 8 bytes.

A fingerprint is a multilinear hash modulo 2**64 with fixed random odd weights, one for each half of
each 8-byte word: sum(w * word + v * (word >> 32)). Without the second term the top bits of a word
would hardly count, and two changed signs could cancel. A change within one half of one word always
changes the sum of its row; that two or more changes cancel has a chance of about 2**-32 for the
worst pattern (two signs flipped or swapped) and 2**-64 for others. It is made to see accidents, not
to resist someone who knows the weights.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._extensions import ready

try:
    from . import _words
except ImportError:
    _extension: ModuleType | None = None  # torch operations give the same numbers
else:
    _extension = ready(_words, 1)

_ROW = 2048  # words to a row, each of which becomes one word of the next level
_BLOCK = 16  # rows: 256 KiB, which stay in a core's cache and need no second thread
_PIECE = 1 << 23  # elements or words compared at a time where that makes a temporary
_MASK = 2**64 - 1


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
    """What this process stores of a tensor: itself, or the local shard of a DTensor."""
    tensor = tensor.detach()
    if (local := getattr(tensor, "to_local", None)) is not None:
        tensor = local()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return (tensor.resolve_conj() if tensor.is_complex() else tensor).resolve_neg()


def bits_of(tensor: Tensor, copy: bool = False) -> Bits:
    """The bits of a tensor, in its own memory if it is contiguous and no copy is asked for."""
    tensor = stored(tensor)
    if copy:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    whole = len(flat) & ~7
    body = flat[:whole]
    if body.storage_offset() % 8:
        body = body.clone()
    return Bits(tensor.dtype, tensor.shape, body.view(torch.int64), flat[whole:])


def tensor_of(bits: Bits) -> Tensor:
    """The tensor that has these bits."""
    flat = torch.cat([bits.words.view(torch.uint8), bits.rest])
    return flat.view(bits.dtype).view(bits.shape)


def same_bits(pairs: Iterable[tuple[Bits, Bits]]) -> list[bool]:
    """For each pair on one device: whether dtype, shape and all bits agree."""
    return [bool(same) for same in _on_host([_same(a, b) for a, b in pairs])]


def fingerprints(tensors: Iterable[Tensor]) -> list[int]:
    """A 64-bit fingerprint of each tensor's bits, dtype and shape; order matters.

    >>> one, two = fingerprints([torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])])
    >>> one == two
    False
    """
    held = list(tensors)
    plain = [i for i, tensor in enumerate(held) if _is_plain(tensor)]
    hashes: list[Any] = [None] * len(held)
    for i, found in zip(plain, _native_hashes([held[i] for i in plain]), strict=True):
        hashes[i] = found
    forms = []
    for i, tensor in enumerate(held):
        if hashes[i] is not None:
            forms.append(_form(tensor.dtype, tensor.shape))
            continue
        bits = bits_of(tensor)
        forms.append(_form(bits.dtype, bits.shape))
        hashes[i] = _hash(bits.words, bits.rest)
    return [(h + f) & _MASK for h, f in zip(_on_host(hashes), forms, strict=True)]


def difference(new: Tensor, old: Tensor) -> tuple[int, float]:
    """How many elements of two like tensors differ in bits, and the largest change (may be NaN)."""
    moved, largest = 0, 0.0
    number = torch.complex128 if old.is_complex() else torch.float64
    pieces = (torch.split(t.reshape(-1), _PIECE) for t in (new, old))
    for a, b in zip(*pieces, strict=True):
        if not a.numel():
            continue
        differs = (a.view(torch.uint8) != b.view(torch.uint8)).view(len(a), -1).any(1)
        moved += int(differs.sum())
        changes = (a.to(number) - b.to(number)).abs()[differs]
        if len(changes):
            # Unlike Python's, torch's maximum keeps a NaN.
            largest = float(changes.new_tensor([largest, changes.max().item()]).max())
    return moved, largest


def _same(a: Bits, b: Bits) -> bool | Tensor:
    if a[:2] != b[:2]:
        return False
    if a.words.device.type == "cpu":
        return torch.equal(a.words, b.words) and (not len(a.rest) or torch.equal(a.rest, b.rest))
    # Elsewhere a comparison makes a temporary, which is kept small, and nothing is waited for.
    pieces = zip(torch.split(a.words, _PIECE), torch.split(b.words, _PIECE), strict=True)
    return torch.stack([(x == y).all() for x, y in (*pieces, (a.rest, b.rest))]).all()


def _hash(words: Tensor, rest: Tensor) -> Tensor:
    sums = _row_sums(words, 0)
    if over := rest.numel():
        sums = torch.cat([sums, nn.functional.pad(rest, (0, 8 - over)).view(torch.int64)])
    level = 1
    while sums.numel() > 1:
        sums = _row_sums(sums, level)
        level += 1
    return sums.view(()) if sums.numel() else sums.new_zeros(())


def _row_sums(words: Tensor, level: int) -> Tensor:
    low, high = _weights(level, words.device)
    if words.device.type == "cpu" and _extension is not None:
        out = words.new_empty(-(-len(words) // _ROW))
        tables = _tables(words.data_ptr(), len(words), out.data_ptr())
        _sum_rows(tables, (low, high), (words, out))
        return out
    whole = len(words) // _ROW * _ROW
    sums = [row_sums(words[:whole].view(-1, _ROW), low, high)] if whole else []
    if whole < len(words):
        n = len(words) - whole
        sums.append(row_sums(words[whole:].view(1, -1), low[:n], high[:n]))
    return sums[0] if len(sums) == 1 else torch.cat(sums) if sums else words


def _is_plain(tensor: Tensor) -> bool:
    """Whether the extension can read the tensor's bits where they lie, as whole words."""
    return (
        _extension is not None
        and type(tensor) in (Tensor, nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not (tensor.is_conj() or tensor.is_neg())
        and tensor.nbytes % 8 == 0
        and tensor.data_ptr() % 8 == 0
    )


def _native_hashes(tensors: Sequence[Tensor]) -> list[int]:
    """What `_hash` makes of plain tensors, all of them with one call a level."""
    hashes = [0] * len(tensors)
    owners: Sequence[Tensor] = tensors
    left = {i: (t.data_ptr(), t.nbytes // 8) for i, t in enumerate(tensors) if t.numel()}
    level = 0
    while left:
        sums = torch.empty(
            sum(-(-count // _ROW) for _, count in left.values()), dtype=torch.int64, device="cpu"
        )
        tables, end = [], sums.data_ptr()
        for i, (start, count) in left.items():
            made = _tables(start, count, end)
            tables += made
            left[i] = (end, -(-count // _ROW))
            end += 8 * left[i][1]
        _sum_rows(tables, _weights(level, sums.device), (owners, sums))
        values, place = sums.tolist(), 0
        for i, (_, count) in list(left.items()):
            if count == 1:
                hashes[i] = values[place]
                del left[i]
            place += count
        owners, level = (sums,), level + 1
    return hashes


def _tables(start: int, words: int, out: int) -> list[tuple[int, int, int, int]]:
    """Words at an address as tables for the extension: (address, rows, length, address of sums)."""
    rows, left = divmod(words, _ROW)
    tables = [(start, rows, _ROW, out)] if rows else []
    if left:
        tables.append((start + 8 * rows * _ROW, 1, left, out + 8 * rows))
    return tables


def _sum_rows(
    tables: Sequence[tuple[int, int, int, int]], weights: tuple[Tensor, Tensor], owners: object
) -> None:
    """Have the extension sum the rows of all tables with the same weights."""
    low, high = weights[0].data_ptr(), weights[1].data_ptr()
    flat = [x for start, rows, length, out in tables for x in (start, rows, length, low, high, out)]
    packed = struct.pack(f"={len(flat)}q", *flat)
    _words.row_sums(torch.get_num_threads(), packed, (weights, owners))


def row_sums(table: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """sum(low * word + high * (word >> 32)) of each row of words (R, W), modulo 2**64: (R,)."""
    if table.device.type == "cpu" and _extension is not None:
        table, low, high = table.contiguous(), low.contiguous(), high.contiguous()
        out = table.new_empty(len(table))
        _sum_rows([(table.data_ptr(), *table.shape, out.data_ptr())], (low, high), (table, out))
        return out
    # In blocks, so that the scratch room of a block stays in cache.
    room = torch.empty_like(table[:_BLOCK])
    sums = [_weighted(block, low, high, room) for block in torch.split(table, _BLOCK)]
    return torch.cat(sums) if sums else table.new_empty(0)


def _weighted(rows: Tensor, low: Tensor, high: Tensor, room: Tensor) -> Tensor:
    upper = torch.bitwise_right_shift(rows, 32, out=room[: len(rows)])
    if rows.device.type == "cpu":
        return torch.mv(rows, low).add_(torch.mv(upper, high))
    # Elsewhere there is no mv of integers.
    return upper.mul_(high).addcmul_(rows, low).sum(1)


@functools.lru_cache(maxsize=64)
def _weights(level: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Odd random words for both halves; other ones at each level, so that no two places agree."""
    generator = torch.Generator().manual_seed(0x5EED + level)
    drawn = torch.randint(
        0, 256, (2, _ROW * 8), dtype=torch.uint8, generator=generator, device="cpu"
    )
    low, high = (drawn.view(torch.int64) | 1).to(device)
    return low, high


@functools.lru_cache(maxsize=4096)
def _form(dtype: torch.dtype, shape: torch.Size) -> int:
    return zlib.crc32(f"{dtype}{tuple(shape)}".encode()) * 0x9E3779B97F4A7C15 & _MASK


def _on_host(values: Sequence[Any]) -> list[int]:
    """Zero-dimensional tensors as integers, with one transfer from each device; the rest as is."""
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
