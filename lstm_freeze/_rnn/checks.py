"""Checks of BiLSTM's arguments and inputs: nn.LSTM's rules and exception types."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .._recurrence import Weights, check_is_there, unpermuted
from .._warn import warn
from .precision import autocast_dtype

_AUTOCAST_CONVERTS = (torch.float32, torch.bfloat16, torch.float16)
_MISREAD = (AttributeError, IndexError, KeyError, TypeError)


def check_options(
    *,
    input_size: Any,
    hidden_size: Any,
    num_layers: Any,
    bias: Any,
    batch_first: Any,
    dropout: Any,
    bidirectional: Any,
    proj_size: Any,
) -> None:
    """Raises, and warns of dropout that has no effect, as nn.LSTM's constructor does."""
    required = "dropout should be a number in range [0, 1]"
    try:
        float(dropout)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{required}, got {dropout!r}: {error}") from None
    if (
        isinstance(dropout, bool)
        or not isinstance(dropout, numbers.Number)
        or not 0 <= dropout <= 1  # type: ignore[operator]
    ):
        raise ValueError(
            f"{required} representing the probability of an element being zeroed, got {dropout!r}"
        )
    if not isinstance(num_layers, int):
        raise TypeError(f"num_layers should be of type int, got: {type(num_layers).__name__}")
    if dropout > 0 and num_layers == 1:  # type: ignore[operator]
        warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout "
            f"expects num_layers greater than 1, but got dropout={dropout} and "
            f"num_layers={num_layers}",
        )
    for name, value, kind in (
        ("bias", bias, bool),
        ("batch_first", batch_first, bool),
        ("input_size", input_size, int),
        ("hidden_size", hidden_size, int),
    ):
        if not isinstance(value, kind):
            given = type(value).__name__
            raise TypeError(f"{name} should be of type {kind.__name__}, got: {given}")
        if kind is int and value <= 0:
            raise ValueError(f"{name} must be greater than zero, got {value}")
    # Any integer, as nn.LSTM takes them.
    for name, value in (("bidirectional", bidirectional), ("proj_size", proj_size)):
        if not isinstance(value, SupportsIndex):
            wanted = "bool" if name == "bidirectional" else "int"
            raise TypeError(f"{name} should be of type {wanted}, got: {type(value).__name__}")
    if num_layers <= 0:
        raise ValueError(f"num_layers must be greater than zero, got {num_layers}")
    if proj_size < 0:
        raise ValueError(
            f"proj_size should be a positive integer or zero to disable projections, "
            f"got {proj_size}"
        )
    if proj_size >= hidden_size:
        raise ValueError(
            "proj_size has to be smaller than hidden_size, got "
            f"proj_size={proj_size} and hidden_size={hidden_size}"
        )


def check_is_tensor(input: Any) -> None:
    """Raises where the input is neither a PackedSequence nor a dense tensor."""
    if not isinstance(input, Tensor):
        raise AttributeError(
            f"input must be a Tensor or a PackedSequence, got {type(input).__name__}"
        )
    if input.layout is not torch.strided:
        raise RuntimeError(
            f"input must be dense, got a sparse tensor ({input.layout}): pass input.to_dense()"
        )


def check_is_padded(input: Tensor | PackedSequence, lengths: Any) -> None:
    """Raises where lengths are given and the input is not a padded batch."""
    if lengths is None or (isinstance(input, Tensor) and input.dim() == 3):
        return
    if isinstance(input, Tensor):
        raise ValueError(
            f"`lengths` need a padded batch (T, B, I) or, with batch_first, (B, T, I), got "
            f"{input.dim()}-D input: leave lengths out, or unsqueeze it"
        )
    raise ValueError(
        "`lengths` need a padded batch, got a PackedSequence, which has its own: leave lengths out"
    )


def dense_states(hx: Any, is_batched: bool) -> tuple[Tensor, Tensor]:
    """The initial states for dense input, as 3-D tensors."""
    kind, rank = ("batched 3-D", 3) if is_batched else ("unbatched 2-D", 2)
    try:
        ranks = hx[0].dim(), hx[1].dim()
    except _MISREAD as error:
        raise _with_requirement(error, hx) from None
    if ranks != (rank, rank):
        raise RuntimeError(
            f"For {kind} input, hx and cx should also be {rank}-D but got "
            f"({ranks[0]}-D, {ranks[1]}-D) tensors"
        )
    return hx if is_batched else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))


def packed_states(
    hx: Any, sizes: tuple[tuple[int, int, int], ...], permutation: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The initial states for packed input, in the order of its sequences."""
    if permutation is None:
        return _packed_pair(hx, sizes)
    try:
        pair = hx[0], hx[1]
        pair[0].index_select, pair[1].index_select
    except _MISREAD as error:
        raise _with_requirement(error, hx) from None
    return unpermuted(_packed_pair(pair, sizes), permutation)


def _packed_pair(hx: Any, sizes: tuple[tuple[int, int, int], ...]) -> tuple[Tensor, Tensor]:
    pair = two_states(hx)
    for k, (state, size) in enumerate(zip(pair, sizes, strict=True)):
        if state.dim() != 3:
            raise IndexError(
                f"hx must hold 3-D tensors for packed input: expected hidden[{k}] size {size}, "
                f"got {list(state.shape)}"
            )
        check_state_size(state, size, f"Expected hidden[{k}] size {{}}, got {{}}")
    return pair


def two_states(hx: Any) -> tuple[Tensor, Tensor]:
    """`hx` where it is a tuple or list of two tensors."""
    if not isinstance(hx, (tuple, list)) or not all(isinstance(x, Tensor) for x in hx):
        raise TypeError(f"hx must be a tuple of two Tensors (h_0, c_0), got {_described(hx)}")
    if len(hx) != 2:
        raise RuntimeError(f"lstm expects two hidden states, hx = (h_0, c_0), got {len(hx)}")
    return hx  # type: ignore[return-value]


def check_state_size(state: Tensor, expected: tuple[int, int, int], message: str) -> None:
    """Raises where a state does not have the expected size."""
    if state.size() != expected:
        raise RuntimeError(message.format(expected, list(state.size())))


def check_dtype(input: Tensor, weight: Tensor, error: type[Exception]) -> None:
    """Raises where the input does not have the weights' dtype, unless autocast converts it."""
    if input.dtype != weight.dtype and not autocast_dtype(weight):
        raise error(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
        )


def check_input_size(input: Tensor, dimensions: int, input_size: int, weight: Tensor) -> None:
    """Raises where the input does not have the dimensions, the features or the weights' device."""
    if input.dim() != dimensions:
        raise RuntimeError(f"input must have {dimensions} dimensions, got {input.dim()}")
    if input.size(-1) != input_size:
        raise RuntimeError(
            "input.size(-1) must be equal to input_size. "
            f"Expected {input_size}, got {input.size(-1)}"
        )
    if input.device != weight.device:
        raise _on_two_devices("Input", input.device, "parameter", weight.device)


def check_are_there(input: Tensor, hx: Any) -> None:
    """Raises where the storage of the input or of a state has become too small for it."""
    check_is_there("input", input)
    for k, state in enumerate(hx if isinstance(hx, (tuple, list)) else ()):
        if isinstance(state, Tensor) and state.layout is torch.strided:
            check_is_there(f"hx[{k}]", state)


def check_states(input: Tensor, states: tuple[Tensor, Tensor], weight: Tensor) -> None:
    """Raises where a state has another dtype than the weights or another device than the input."""
    for k, state in enumerate(states):
        if state.dtype != weight.dtype and not autocast_dtype(weight):
            raise RuntimeError(
                f"hx must have the weights' dtype. Expected {weight.dtype}, got {state.dtype} "
                f"for hx[{k}]: convert it with hx[{k}].to({weight.dtype})"
            )
        if state.device != input.device:
            raise _on_two_devices("Input", input.device, "hidden", state.device)


def check_weight(
    name: str, weight: Tensor, shape: tuple[int, ...], first: Tensor, device: torch.device
) -> None:
    """Raises where a weight was replaced by one of another size, dtype or device than the first."""
    if weight.shape != shape or weight.device != device:
        raise RuntimeError(
            f"{name} must have size {shape} on {device}, got {tuple(weight.shape)} on "
            f"{weight.device}: set it to one that fits"
        )
    if weight.dtype != first.dtype and not _autocast_converts(weight, first):
        raise RuntimeError(
            f"all weights must have one dtype, that of weight_ih_l0, which is {first.dtype}; got "
            f"{weight.dtype} for {name}: convert it with {name}.to({first.dtype})"
        )


def _autocast_converts(*weights: Tensor) -> bool:
    return all(w.dtype in _AUTOCAST_CONVERTS and autocast_dtype(w) for w in weights)


def check_factors(
    weights: Weights, shapes: Sequence[tuple[int, ...]], where: str, device: torch.device
) -> None:
    """Raises where LoRA factors do not fit their weights, or each other."""
    for field, shape in (("ih", shapes[0]), ("hh", shapes[1]), ("hr", shapes[4])):
        down, up = getattr(weights, f"down_{field}"), getattr(weights, f"up_{field}")
        if down is None or up is None:
            continue
        for factor, expected in ((down, (up.shape[-1], shape[1])), (up, (shape[0], len(down)))):
            if factor.shape != expected or factor.device != device:
                raise RuntimeError(
                    f"the LoRA factors of {where.replace('weight', f'weight_{field}')} must fit "
                    f"its size {shape} on {device}, got B {tuple(up.shape)} on {up.device} and "
                    f"A {tuple(down.shape)} on {down.device}: set them to ones that fit"
                )


def _on_two_devices(
    what: str, given: torch.device, other: str, expected: torch.device
) -> RuntimeError:
    return RuntimeError(
        f"{what} and {other} tensors are not at the same device, found {what.lower()} tensor at "
        f"{given} and {other} tensor at {expected}: move one of them"
    )


def _with_requirement(error: Exception, hx: Any) -> Exception:
    return type(error)(
        f"hx must be a tuple of two tensors (h_0, c_0), got {_described(hx)}: {error}"
    )


def _described(hx: Any) -> str:
    kind = type(hx).__name__
    if not isinstance(hx, (tuple, list)):
        return kind
    return f"{kind} of ({', '.join(type(x).__name__ for x in hx)})"
