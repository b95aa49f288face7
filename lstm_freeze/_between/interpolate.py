"""interpolate: mixes the weights before fine-tuning with those after it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import as_module, as_number, did_you_mean
from .._hashing import has_bits
from .._saving import state_of, with_names

# In this order, because a child of the model itself may be called `module`.
_WRAPPERS = (
    r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.",
    r"^(?:module\.)+",
)


def interpolate(module: nn.Module, start: Mapping[str, Tensor], share: float) -> None:
    """Set the weights to a mixture: (1 - share) * start + share * present, in place.

    WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903): after fine-tuning, weights between the
    pretrained and the fine-tuned ones are often more robust, and cost nothing more to run. At share
    0 and 1 the values are copied, not computed; and where `start` and the present weight are equal,
    as in all that stayed frozen, the weight is left as it is, bit for bit. Buffers that are
    floating point are mixed, too; those of integers are present ones, at share 0 those of `start`.

    The weights are written into the module's own tensors, frozen or not. A FrozenGuard accepts
    the values after `guard.remember()`.

    Args:
        module: The fine-tuned module; wrappers (DDP, torch.compile's) are looked through.
        start: The `state_dict` from before fine-tuning, with copies of its tensors
            (`copy.deepcopy(model.state_dict())`): those of `state_dict()` follow the module.
        share: Between 0 (all `start`) and 1 (all present).

    Raises:
        ValueError: `share` is out of range; `start` lacks a tensor, has one more, or one of
            another shape; or its tensors are the module's own. Nothing was changed.
        TypeError: An argument is of another type than named above. Nothing was changed.

    Examples:
        >>> import copy
        >>> model = nn.Linear(1, 1)
        >>> _ = nn.init.constant_(model.weight, 1.0)
        >>> start = copy.deepcopy(model.state_dict())
        >>> _ = nn.init.constant_(model.weight, 3.0)  # stands for fine-tuning
        >>> interpolate(model, start, share=0.5)
        >>> model.weight.item()
        2.0
    """
    state = state_of(as_module(module))
    share = as_number(share, "share", 0, 1)
    named = _named(start, state)
    _refuse_misfits(named, state)
    pairs = _once(named, state)
    if share == 1:
        return
    fresh = [(own, _mixture(own.detach(), before, share)) for own, before in pairs]
    with torch.no_grad():
        for own, value in fresh:
            own.copy_(value)


def _named(start: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state_dict by the names that the module has for them."""
    if not isinstance(start, Mapping):
        raise TypeError(
            f"`start` must be a state_dict from before fine-tuning, got {type(start).__name__}"
        )
    found: dict[str, Tensor] = {}
    for key, value in start.items():
        if isinstance(key, str) and key.endswith("_extra_state"):
            continue
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise TypeError(
                f"`start` must map names to tensors, got {key!r}: {type(value).__name__}"
            )
        found[_name_of(key, state)] = value
    return found


def _name_of(key: str, state: Mapping[str, Tensor]) -> str:
    if key in state:
        return key
    inner = re.sub(_WRAPPERS[0], "", key)
    return inner if inner in state else re.sub(_WRAPPERS[1], "", inner)


def _refuse_misfits(named: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    mistakes = []
    if missing := [name for name in state if name not in named]:
        mistakes.append(f"`start` lacks {with_names(missing)}")
    if more := [name for name in named if name not in state]:
        near = did_you_mean(more[0], state) if len(more) == 1 else ""
        mistakes.append(f"`start` has {with_names(more)}, which the module has not{near}")
    shared = [name for name in named if name in state]
    mistakes += [
        f"{name!r} is {tuple(named[name].shape)} in `start` and {tuple(state[name].shape)} in the "
        "module"
        for name in shared
        if has_bits(named[name]) and named[name].shape != state[name].shape
    ]
    if empty := [name for name in shared if not has_bits(named[name])]:
        mistakes.append(f"`start` has no values (meta device) for {with_names(empty)}")
    if other := [n for n in shared if named[n].is_complex() != state[n].is_complex()]:
        mistakes.append(f"of {with_names(other)}, one is complex and the other is not")
    if fixed := [name for name, own in state.items() if own.is_inference()]:
        mistakes.append(f"{with_names(fixed)} were made under torch.inference_mode()")
    if mistakes:
        raise ValueError("; ".join(mistakes) + "; nothing was changed")
    if shared and all(_is_same_memory(named[name], state[name]) for name in shared):
        raise ValueError(
            "`start` holds the module's own tensors, which have changed with it; take copies "
            "before fine-tuning: copy.deepcopy(model.state_dict())"
        )


def _is_same_memory(a: Tensor, b: Tensor) -> bool:
    return a.device == b.device and a.numel() > 0 and a.data_ptr() == b.data_ptr()


def _once(
    named: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> Iterable[tuple[Tensor, Tensor]]:
    """Each distinct tensor of the module with its start; ValueError where a tie has two."""
    first: dict[int, str] = {}
    for name, own in state.items():
        other = first.setdefault(id(own), name)
        a, b = named[other], named[name]
        if a is not b and not torch.equal(a, b):
            raise ValueError(
                f"{other!r} and {name!r} are one tensor in the module and differ in `start`; "
                "nothing was changed"
            )
    return [(state[name], named[name]) for name in first.values()]


def _mixture(present: Tensor, start: Tensor, share: float) -> Tensor:
    start = start.detach().to(present.device)
    if share == 0:
        return start
    if not (present.is_floating_point() or present.is_complex()):
        return present
    wide = torch.promote_types(present.dtype, torch.float32)
    a, b = start.to(wide), present.to(wide)
    mixed = (a * (1 - share) + b * share).to(present.dtype)
    return torch.where(start == present, present, mixed)
