"""drop_state: sets the optimizer state of parameters to what it was before any step."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adagrad, Optimizer

from .wrappers import attributes, is_optimizer, with_inner

# Names under which optimizers and wrappers keep copies of weights, and not of gradients.
_COPY = re.compile(
    r"slow|fast|weight|param|copy|backup|shadow|anchor|center|ema|old|initial|^[xz]0?$"
)
_ACCUMULATOR = re.compile(r"grad|momentum|avg|_sq|var")


@torch.no_grad()
def drop_state(optimizers: Iterable[Optimizer], parameters: Iterable[nn.Parameter]) -> None:
    """Drop the momentum and other state of parameters, so that a later unfreeze begins without it.

    Also in the optimizers that these wrap. State that a first step makes is removed. State that
    the constructor makes is set to what the constructor would make now. What a wrapper keeps of a
    parameter elsewhere (in its state, its attributes or its param groups) is reset in place: copies
    of weights (slow weights) to the present weight, all else to zero.
    """
    ids = {id(parameter): parameter for parameter in parameters}
    for optimizer in with_inner(optimizers):
        for parameter in _in_state(optimizer, ids):
            _forget(optimizer, parameter)
        for name, tensor, parameter in _kept_besides(optimizer):
            if id(parameter) in ids:
                _reset(name, tensor, parameter)


def _in_state(optimizer: Optimizer, ids: Mapping[int, nn.Parameter]) -> list[nn.Parameter]:
    state = getattr(optimizer, "state", {})
    keys = list(state) if isinstance(state, Mapping) else []
    return [key for key in keys if id(key) in ids]


def _forget(optimizer: Optimizer, parameter: nn.Parameter) -> None:
    initial = _initial_state(optimizer, parameter)
    if initial is None:
        state = optimizer.state[parameter]
        for name, value in list(state.items()):
            state[name] = _reset(name, value, parameter)
    elif initial:
        optimizer.state[parameter] = initial
    else:
        del optimizer.state[parameter]


def _initial_state(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Any] | None:
    """The state that the constructor makes for a parameter; None where that is not known."""
    kind = type(optimizer)
    if kind.__module__.startswith("torch.optim") and not isinstance(optimizer, Adagrad):
        return {}
    group = next((g for g in optimizer.param_groups if _has(g["params"], parameter)), None)
    if group is None or any(map(is_optimizer, attributes(optimizer).values())):
        return None
    # A copy, since a constructor may leave hooks on the parameter.
    stand_in = nn.Parameter(parameter.detach().clone())
    options = {key: value for key, value in group.items() if key != "params"}
    defaults = {**getattr(optimizer, "defaults", {}), **options}
    accepted = inspect.signature(kind).parameters
    arguments = {key: value for key, value in defaults.items() if key in accepted}
    try:
        fresh = kind([{"params": [stand_in], **options}], **arguments)
        return dict(fresh.state.get(stand_in, {}))
    except Exception:
        # Any constructor may be called here, in a way that its author did not expect. Whatever it
        # raises, the state is not known.
        return None


def _reset(name: str, value: Any, parameter: nn.Parameter) -> Any:
    """A value as it was before any step; tensors are written to in place."""
    if isinstance(value, Tensor):
        if _is_copy(name, value, parameter):
            return value.copy_(parameter)
        return value.zero_()
    if isinstance(value, (bool, int, float)):
        return type(value)(0)
    if isinstance(value, dict):
        return {key: _reset(str(key), item, parameter) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_reset(name, item, parameter) for item in value)
    return value


def _is_copy(name: str, value: Tensor, parameter: nn.Parameter) -> bool:
    """Whether a tensor is a copy of the weight: its name says so, or its values are near."""
    if value.shape != parameter.shape or _ACCUMULATOR.search(name):
        return False
    if _COPY.search(name):
        return True
    distance = torch.linalg.vector_norm(value.to(parameter) - parameter)
    return bool(distance <= 0.5 * torch.linalg.vector_norm(parameter))


def _kept_besides(optimizer: Optimizer) -> Iterator[tuple[str, Any, nn.Parameter]]:
    """(name, value, parameter) for all that an optimizer keeps of parameters outside its state."""
    groups = [list(group["params"]) for group in optimizer.param_groups]
    for group, members in zip(optimizer.param_groups, groups, strict=True):
        for name, value in group.items():
            if name != "params":
                yield from _matched(name, value, [members])
    for name, value in attributes(optimizer).items():
        if name not in ("state", "param_groups", "defaults"):
            yield from _matched(name, value, groups)


def _matched(
    name: str, value: Any, groups: Sequence[Sequence[nn.Parameter]]
) -> Iterator[tuple[str, Any, nn.Parameter]]:
    """The members of a container that is ordered like the parameters in the groups."""
    flat = [parameter for group in groups for parameter in group]
    if isinstance(value, Mapping):
        by_key = {id(p): p for p in flat}
        for key, item in value.items():
            parameter = by_key.get(key) if isinstance(key, int) else by_key.get(id(key))
            if parameter is not None:
                yield name, item, parameter
            elif isinstance(key, str):
                yield from _matched(f"{name} {key}", item, groups)
    elif isinstance(value, (list, tuple)) and len(value) > 0:
        if _lie_alike(value, flat):
            yield from ((name, v, p) for v, p in zip(value, flat, strict=True))
        elif len(value) == len(groups) and all(map(_lie_alike, value, groups)):
            for items, members in zip(value, groups, strict=True):
                yield from ((name, v, p) for v, p in zip(items, members, strict=True))


def _lie_alike(values: Any, parameters: Sequence[nn.Parameter]) -> bool:
    """Whether these are tensors of the parameters' shapes, and not the parameters themselves."""
    if not isinstance(values, (list, tuple)) or len(values) != len(parameters):
        return False
    pairs = list(zip(values, parameters, strict=True))
    return all(isinstance(v, Tensor) and v is not p and v.shape == p.shape for v, p in pairs)


def _has(several: Iterable[object], parameter: nn.Parameter) -> bool:
    return any(one is parameter for one in several)
