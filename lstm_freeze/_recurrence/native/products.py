"""Products of matrices on the CPU, by the extension or by torch, whichever is faster here.

Which one makes a product depends on its shape and on the processor. The extension's gives a row of
its left side the same bits whatever other rows there are.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..agreement import is_there
from . import extension
from .extension import applies, call, check_kind, does_not_fit, in_memory, packed_job, panels


def _makes_products(module: ModuleType | None) -> bool:
    """Whether the extension's products are faster than torch's on this processor.

    Torch's are MKL's on most x86 machines, which takes AVX-512 on Intel's processors alone.
    """
    if module is None:
        return False
    has_mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return not (module.IS_INTEL and has_mkl)


_own_products = _makes_products(extension.built)


def which_products() -> str:
    """Who makes the large products of float32 layers on the CPU: `the extension` or `torch`."""
    return "the extension" if extension.is_on() and _own_products else "torch"


# Below these, packing the right side of a product costs more than the faster product saves.
_FEWEST_ROWS = 3
_FEWEST_MULTIPLICATIONS = 2**20


class Right(NamedTuple):
    """The right side of products, (K, N), and its panels where the extension makes them."""

    matrix: Tensor
    panels: Tensor | None


def pays(matrix: Tensor, rows: int) -> bool:
    """Whether the extension makes the products with a left side of `rows` rows in all."""
    many = rows >= _FEWEST_ROWS and rows * matrix.numel() >= _FEWEST_MULTIPLICATIONS
    return many and _own_products and applies(matrix)


def right(matrix: Tensor, rows: int) -> Right:
    """Prepares the right side of products with a left side of `rows` rows in all."""
    if not pays(matrix, rows):
        return Right(matrix, None)
    depth, columns = matrix.shape
    return Right(matrix, panels("right", [matrix.t()], columns, depth))


def multiply(left: Tensor, by: Right, out: Tensor) -> Tensor:
    """Writes left @ right into `out`, (M, N) and contiguous."""
    if by.panels is None:
        return torch.mm(left, by.matrix, out=out)
    rows, (depth, columns) = left.shape[0], by.matrix.shape
    left = left if 1 in left.stride() else left.contiguous()
    if out.shape != (rows, columns) or not out.is_contiguous():
        raise does_not_fit("out", out, f"({rows}, {columns}), contiguous")
    if left.shape[1] != depth or not is_there(left):
        raise does_not_fit("left", left, f"({rows}, {depth}), all of it in memory")
    for name, tensor in (("left", left), ("out", out)):
        check_kind(name, tensor)
    left = in_memory(left)
    addresses = (left.data_ptr(), by.panels.data_ptr(), out.data_ptr())
    job = packed_job((rows, depth, columns, *left.stride(), *addresses))
    call("multiply", job, (left, by, out))
    return out


def product(left: Tensor, matrix: Tensor) -> Tensor:
    """A new tensor left @ matrix."""
    out = left.new_empty(left.shape[0], matrix.shape[1])
    return multiply(left, right(matrix, left.shape[0]), out)
