"""Padded batches with lengths: to packed rows and back, and the checks of `lengths`.

The valid rows are gathered once and the outputs scattered once; in between, a padded batch is the
packed rows that pack_padded_sequence makes. Where a program is recorded for ONNX or transformed,
the lengths are not numbers and rows cannot be packed. They then stay dense, and are masked (see
`equations`).
"""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._recurrence import Rows, dense_rows, unpermuted
from .._torch_internals import is_fake

Lengths = Tensor | Iterable[int]
_UNORDERED = (str, bytes, Mapping, Set)  # what would be read as lengths by mistake
States = tuple[Tensor, Tensor]


class Padding(NamedTuple):
    """Where the packed rows of a padded batch lie in the batch.

    Attributes:
        places: (N,) the place of each packed row, the batch's first two axes read as one.
        steps: (T, B), or (B, T) with `batch_first`: whether a sequence has a step; on the CPU.
        order: (B,) the sequences by falling length.
        inverse: (B,) where each sequence stands in `order`.
    """

    places: Tensor
    steps: Tensor
    order: Tensor
    inverse: Tensor

    def sorted(self, states: States | None) -> States | None:
        """States, (L * D, B, F), with their sequences by falling length."""
        return None if states is None else unpermuted(states, self.order)

    def restored(self, rows: Tensor, h_n: Tensor, c_n: Tensor) -> tuple[Tensor, States]:
        """Packed rows (N, F) as a batch, with zeros elsewhere, and states in the batch's order."""
        padded = _scattered(rows, self.places, self.steps)
        return padded, unpermuted((h_n, c_n), self.inverse)


def as_lengths(lengths: Any, batch: int) -> Tensor:
    """`lengths` as a tensor (B,) of integers; how large they are is checked by `padded_rows`.

    >>> as_lengths([3, 1], 2)
    tensor([3, 1])

    Raises:
        ValueError: They are not one integer for each sequence.
    """
    if not isinstance(lengths, Tensor):
        found = _on_host(_integers(lengths))
    elif lengths.dim() != 1:
        raise ValueError(
            f"`lengths` must be 1-D, one integer for each sequence, got {lengths.dim()}-D of shape "
            f"{tuple(lengths.shape)}"
        )
    elif lengths.dtype == torch.bool or lengths.is_floating_point() or lengths.is_complex():
        first = "" if lengths.is_meta or not len(lengths) else f"lengths[0] = {lengths[0].item()}, "
        raise ValueError(
            f"`lengths` must be integers, got {first}{lengths.dtype}: convert with lengths.long()"
        )
    else:
        found = lengths
    count = found.shape[0]
    if count != batch:
        wrong = f"sequence {count}" if count < batch else f"lengths[{batch}]"
        raise ValueError(
            f"`lengths` must have one integer for each of the input's {batch} sequences, got "
            f"{count}: {wrong} has no counterpart"
        )
    return found


def _integers(lengths: Any) -> list[int]:
    """A list, tuple, array or other iterable as Python's integers; bools are none."""
    if hasattr(lengths, "tolist"):
        lengths = lengths.tolist()
    if not isinstance(lengths, Iterable) or isinstance(lengths, _UNORDERED):
        raise ValueError(f"`lengths` must be (B,) integers, got {lengths!r}")
    found = []
    for index, length in enumerate(lengths):
        if isinstance(length, Tensor) and length.dim() == 0:
            length = length.item()
        if isinstance(length, bool) or not isinstance(length, numbers.Integral):
            raise ValueError(f"`lengths` must be integers, got lengths[{index}] = {length!r}")
        found.append(int(length))
        if abs(found[-1]) > torch.iinfo(torch.int64).max:
            raise ValueError(
                "`lengths` must be between 1 and the input's steps, got "
                f"lengths[{index}] = {length}"
            )
    return found


def _check_range(lengths: Sequence[int], steps: int) -> None:
    for index, length in enumerate(lengths):
        if not 1 <= length <= steps:
            raise ValueError(
                f"`lengths` must be between 1 and the input's {steps} steps, got "
                f"lengths[{index}] = {length}"
            )


def _on_host(lengths: Sequence[int]) -> Tensor:
    return torch.tensor(lengths, dtype=torch.int64, device="cpu")


def padded_rows(
    input: Tensor, lengths: Tensor, batch_first: bool, both_directions: bool
) -> tuple[Rows, Padding]:
    """The packed rows of a padded batch, (T, B, I) or with `batch_first` (B, T, I).

    Raises:
        ValueError: A length is less than 1 or more than T, or no number.
    """
    if lengths.is_meta and not (input.is_meta or is_fake(input)):
        raise ValueError(
            "`lengths` must be numbers, got a tensor on the device 'meta', which holds none, for "
            f"an input on {input.device}"
        )
    places, reverse, sizes, order, inverse, steps = _places(input, lengths, batch_first)
    data = _gathered(input, places, steps)
    return (
        Rows(data, sizes, reverse if both_directions else None),
        Padding(places, steps, order, inverse),
    )


def masked_rows(input: Tensor, lengths: Tensor, batch_first: bool) -> Rows:
    """A padded batch as dense rows with zeros beyond each sequence's end.

    Raises:
        ValueError: The lengths can be read, and one is less than 1 or more than T.
    """
    data = dense_rows(input, batch_first).data
    if not is_fake(lengths):
        with contextlib.suppress(RuntimeError):  # torch.func.vmap: each stands for several
            _check_range(lengths.tolist(), data.shape[0])
    lengths = lengths.to(data.device)
    runs = torch.arange(data.shape[0], device=data.device)[:, None] < lengths
    return Rows(data.where(runs[..., None], 0), lengths=lengths)


@torch.library.custom_op(
    "lstm_freeze::padded_places",
    mutates_args=(),
    schema="(Tensor padded, Tensor lengths, bool batch_first)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _places(padded: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, ...]:
    """Of `Padding` and `Rows`: places, reverse, batch_sizes, order, inverse, steps.

    Reads the lengths once, for which the host waits for an accelerator they are on.
    """
    B, T = _sizes(padded, batch_first)
    if T == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN, got 0")
    known = lengths.tolist()
    _check_range(known, T)
    return _on_device(_places_of(_on_host(known), T, B, batch_first), padded.device)


def _sizes(padded: Tensor, batch_first: bool) -> tuple[int, int]:
    """B and T."""
    return padded.shape[1 - batch_first], padded.shape[int(batch_first)]


def _places_of(lengths: Tensor, T: int, B: int, batch_first: bool) -> tuple[Tensor, ...]:
    times, ranks = torch.arange(T, device="cpu"), torch.arange(B, device="cpu")
    falling, order = lengths.sort(descending=True, stable=True)
    inverse = torch.empty_like(order).index_copy_(0, order, ranks)
    runs = times[:, None] < falling
    sizes = runs.sum(1)
    time, rank = runs.nonzero().unbind(1)
    reverse = (sizes.cumsum(0) - sizes)[falling[rank] - 1 - time] + rank
    sequence = order[rank]
    if batch_first:
        places, steps = sequence * T + time, times < lengths[:, None]
    else:
        places, steps = time * B + sequence, times[:, None] < lengths
    return places, reverse, sizes, order, inverse, steps


def _on_device(found: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    """All tensors on the device of the rows, but for the two that the host reads."""
    places, reverse, sizes, order, inverse, steps = found
    places, reverse, order, inverse = (
        x.to(device, non_blocking=True) for x in (places, reverse, order, inverse)
    )
    return places, reverse, sizes, order, inverse, steps


@_places.register_fake
def _(padded: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, ...]:
    B, T = _sizes(padded, batch_first)
    if not is_fake(lengths):
        # Lengths on the device "meta" have no numbers. With all rows the final shapes are the same.
        known = torch.full((B,), T, device="cpu") if lengths.is_meta else lengths
        return _on_device(_places_of(known, T, B, batch_first), padded.device)
    rows = torch.library.get_ctx().new_dynamic_size()
    whole = [padded.new_empty(n, dtype=torch.int64) for n in (rows, rows, B, B)]
    sizes = padded.new_empty(T, dtype=torch.int64, device="cpu")
    steps = padded.new_empty(padded.shape[:2], dtype=torch.bool, device="cpu")
    return whole[0], whole[1], sizes, whole[2], whole[3], steps


@torch.library.custom_op(
    "lstm_freeze::gather_rows",
    mutates_args=(),
    schema="(Tensor padded, Tensor places, Tensor steps) -> Tensor",
)
def _gathered(padded: Tensor, places: Tensor, steps: Tensor) -> Tensor:
    """The rows of a padded batch at some places: (N, F). index_select, with a faster backward."""
    return _select(padded, places)


def _select(padded: Tensor, places: Tensor) -> Tensor:
    major, minor, features = padded.shape
    if _is_transposed(padded):
        padded, places = padded.transpose(0, 1), places % minor * major + places // minor
    return padded.reshape(major * minor, features).index_select(0, places)


def _is_transposed(padded: Tensor) -> bool:
    """Whether the first two axes can be merged without a copy only after swapping them."""
    (major, minor, _), strides = padded.shape, padded.stride()
    return strides[0] != minor * strides[1] and strides[1] == major * strides[0]


@_gathered.register_fake
def _(padded: Tensor, places: Tensor, steps: Tensor) -> Tensor:
    return padded.new_empty(places.shape[0], padded.shape[2])


def _keep_places(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _gathered_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # No place is there twice, so nothing has to be added up.
    return _scattered(grad, *ctx.saved_tensors), None, None


_gathered.register_autograd(_gathered_gradients, setup_context=_keep_places)


def _scattered(rows: Tensor, places: Tensor, steps: Tensor) -> Tensor:
    """The batch that has these rows at these places and zeros elsewhere."""
    major, minor = steps.shape
    flat = rows.new_zeros(major * minor, rows.shape[1])
    return flat.index_copy_(0, places, rows).view(major, minor, rows.shape[1])
