"""Fingerprints of tensors: 64-bit numbers that change with any bit.

The words of a tensor are summed in rows of 2,048, then the sums in rows again, until one is left.
Each level has multipliers of its own, so that no two places count alike. `word_sums.py` says how
likely it is that changes cancel.
"""

from __future__ import annotations

import functools
import sys
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .bits import Bits, as_words, bits_of, on_host
from .word_sums import WordRows, has_extension, multipliers, row_sums, sum_tables

ROW = 2048  # words to a row, each of which becomes one word of the next level
_SEED = 0x5EED
_MASK = 2**64 - 1


def tensor_hashes(tensors: Iterable[Tensor]) -> list[int]:
    """A 64-bit fingerprint of each tensor's bits, dtype and shape; order matters.

    The same on every platform, device and version: a value may be written to a file.

    >>> one, two = tensor_hashes([torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])])
    >>> one == two
    False
    """
    several = list(tensors)
    plain = [i for i, tensor in enumerate(several) if _is_plain(tensor)]
    hashes: list[Any] = [None] * len(several)
    for i, found in zip(plain, _native_hashes([several[i] for i in plain]), strict=True):
        hashes[i] = found
    forms = []
    for i, tensor in enumerate(several):
        if hashes[i] is not None:
            forms.append(_form(tensor.dtype, tensor.shape))
            continue
        bits = bits_of(tensor)
        forms.append(_form(bits.dtype, bits.shape))
        hashes[i] = _hash(little_endian(bits) if sys.byteorder == "big" else bits)
    return [(h + f) & _MASK for h, f in zip(on_host(hashes), forms, strict=True)]


def little_endian(bits: Bits) -> Bits:
    """The bits as a little-endian machine has them, from those of a big-endian one."""
    size = bits.dtype.itemsize // (2 if bits.dtype.is_complex else 1)
    memory = torch.cat([bits.words.view(torch.uint8), bits.rest])
    memory = memory.view(-1, size).flip(1).view(-1)
    whole = len(memory) & ~7
    words = memory[:whole].view(-1, 8).flip(1).view(-1)
    return bits._replace(words=as_words(words), rest=memory[whole:])


def _hash(bits: Bits) -> Tensor:
    sums = _level_sums(bits.words, 0)
    if over := bits.rest.numel():
        last = nn.functional.pad(bits.rest, (0, 8 - over))
        if sys.byteorder == "big":
            last = last.flip(0)
        sums = torch.cat([sums, last.view(torch.int64)])
    level = 1
    while sums.numel() > 1:
        sums = _level_sums(sums, level)
        level += 1
    return sums.view(()) if sums.numel() else sums.new_zeros(())


def _level_sums(words: Tensor, level: int) -> Tensor:
    """The sums of the words, row by row; the last row may be short."""
    low, high = _multipliers(level, words.device)
    if words.device.type == "cpu" and has_extension():
        sums = words.new_empty(-(-len(words) // ROW))
        sum_tables(_tables(words.data_ptr(), len(words), sums.data_ptr()), low, high, (words, sums))
        return sums
    whole = len(words) // ROW * ROW
    parts = [row_sums(words[:whole].view(-1, ROW), low, high)] if whole else []
    if whole < len(words):
        n = len(words) - whole
        parts.append(row_sums(words[whole:].view(1, -1), low[:n], high[:n]))
    return torch.cat(parts) if parts else words


def _is_plain(tensor: Tensor) -> bool:
    """Whether the extension can read the tensor's bits where they lie, as whole words."""
    return (
        has_extension()
        and sys.byteorder == "little"
        and type(tensor) in (Tensor, nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not (tensor.is_conj() or tensor.is_neg())
        and tensor.nbytes % 8 == 0
        and tensor.data_ptr() % 8 == 0
    )


def _native_hashes(tensors: Sequence[Tensor]) -> list[int]:
    """The `_hash` of each plain tensor, from one call of the extension per level."""
    hashes = [0] * len(tensors)
    owners: Sequence[Tensor] = tensors
    left = {i: (t.data_ptr(), t.nbytes // 8) for i, t in enumerate(tensors) if t.numel()}
    level = 0
    while left:
        sums = torch.empty(
            sum(-(-count // ROW) for _, count in left.values()), dtype=torch.int64, device="cpu"
        )
        tables, end = [], sums.data_ptr()
        for i, (start, count) in left.items():
            tables += _tables(start, count, end)
            left[i] = (end, -(-count // ROW))
            end += 8 * left[i][1]
        sum_tables(tables, *_multipliers(level, sums.device), (owners, sums))
        values, place = sums.tolist(), 0
        for i, (_, count) in list(left.items()):
            if count == 1:
                hashes[i] = values[place]
                del left[i]
            place += count
        owners, level = (sums,), level + 1
    return hashes


def _tables(start: int, words: int, sums: int) -> list[WordRows]:
    """The words at an address as whole rows, and a last row that may be shorter."""
    rows, left = divmod(words, ROW)
    tables = [WordRows(start, rows, ROW, sums)] if rows else []
    if left:
        tables.append(WordRows(start + 8 * rows * ROW, 1, left, sums + 8 * rows))
    return tables


def _multipliers(level: int, device: torch.device) -> tuple[Tensor, Tensor]:
    low, high = multipliers(_SEED + level, 2, ROW, device)
    return low, high


@functools.lru_cache(maxsize=4096)
def _form(dtype: torch.dtype, shape: torch.Size) -> int:
    return zlib.crc32(f"{dtype}{tuple(shape)}".encode()) * 0x9E3779B97F4A7C15 & _MASK
