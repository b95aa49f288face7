"""as_optimizers: the optimizers in what users give: one, several, or wrappers around some."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import (
    CellType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any, TypeGuard

from torch import Tensor, nn
from torch.optim import Optimizer

_LIGHTNINGS = {"LightningOptimizer", "_FabricOptimizer"}
_OTHERS = re.compile(r"^(state|param_groups|defaults|step)$|_hooks$")  # no place of an inner one
_DEEPEST, _MOST = 4, 10_000  # how deep, and among how many things, a wrapper hides another one


def as_optimizers(optimizer: Any) -> tuple[Optimizer, ...]:
    """One or several optimizers as a tuple, each taken out of Lightning's wrapper.

    A wrapper without param groups of its own (fastai's OptimWrapper) gives the optimizer inside.
    Other wrappers (Lookahead, SAM, accelerate's) are kept, since they may have state of their own;
    `with_inner` lists the optimizers inside.

    Raises:
        TypeError: Something in it is not an optimizer.
        ValueError: It is empty.
    """
    if optimizer is None:
        return ()
    several = isinstance(optimizer, Iterable) and not is_optimizer(optimizer)
    found: list[Optimizer] = []
    for item in optimizer if several else (optimizer,):
        inner = _out_of_lightning(item)
        # A wrapper without param groups of its own gives the optimizer inside.
        inside = [inner] if is_optimizer(inner) else [*_inside(inner)]
        if not inside:
            raise TypeError(
                "`optimizer` must be a torch.optim.Optimizer or several of them, "
                f"got {_described(item)}"
            )
        found += inside
    if not found:
        raise ValueError(f"`optimizer` must be at least one optimizer, got {optimizer!r}")
    return tuple(found)


def is_optimizer(value: object) -> TypeGuard[Optimizer]:
    """Whether this is an optimizer, or a wrapper that has param groups and steps like one."""
    if isinstance(value, Optimizer):
        return True
    if isinstance(value, type) or not callable(getattr(value, "step", None)):
        return False
    groups, again = (getattr(value, "param_groups", ()) for _ in range(2))
    # Groups that are made anew at each access (fastai's own optimizer) cannot be given a rate.
    return isinstance(groups, list) and all(a is b for a, b in zip(groups, again, strict=True))


def with_inner(optimizers: Iterable[Optimizer]) -> tuple[Optimizer, ...]:
    """These optimizers and all that they wrap, at any depth, the outer ones first."""
    found: dict[int, Optimizer] = {}
    waiting = list(optimizers)
    while waiting:
        optimizer = waiting.pop(0)
        if found.setdefault(id(optimizer), optimizer) is optimizer:
            waiting += [one for one in _inside(optimizer) if id(one) not in found]
    return tuple(found.values())


def innermost(optimizers: Iterable[Optimizer]) -> tuple[Optimizer, ...]:
    """The optimizers that wrap no other; their steps write to parameters."""
    several = with_inner(optimizers)
    outer = {id(one): index for index, one in enumerate(several)}
    return tuple(
        one
        for index, one in enumerate(several)
        # One that leads back to what is around it wraps nothing by that.
        if not any(outer[id(inner)] > index for inner in _inside(one))
    )


def attributes(value: object) -> dict[str, Any]:
    """All attributes of an object, those in slots too."""
    in_slots = {
        name: member.__get__(value)
        for kind in type(value).__mro__
        for name, member in vars(kind).items()
        if isinstance(member, MemberDescriptorType) and hasattr(value, member.__name__)
    }
    return {**in_slots, **getattr(value, "__dict__", {})}


def _inside(optimizer: object) -> Iterator[Optimizer]:
    """The optimizers that an object keeps, at any depth of what it keeps things in.

    Its attributes, containers, functions and plain objects are looked through. Of several
    optimizers in an object that trains something itself, those count that train some of that.
    """
    own = {id(p) for group in _groups_of(optimizer) for p in group["params"]}
    waiting, seen = [(optimizer, 0)], {id(optimizer)}
    while waiting:
        holder, depth = waiting.pop(0)
        for value in _kept_in(holder):
            if id(value) in seen or depth > _DEEPEST or len(seen) > _MOST:
                continue
            seen.add(id(value))
            if is_optimizer(value):
                found = _out_of_lightning(value)
                held = {id(p) for group in _groups_of(found) for p in group["params"]}
                if found is not optimizer and (not own or not held or own & held):
                    yield found
            elif _may_keep_more(value):
                waiting.append((value, depth + 1))


def _kept_in(holder: Any) -> list[Any]:
    """What an object keeps; of an optimizer neither its state nor its hooks."""
    if isinstance(holder, Mapping):
        return [*holder.values()]
    if isinstance(holder, (list, tuple, set, frozenset, deque)):
        return [*holder]
    if isinstance(holder, partial):
        return [holder.func, *holder.args, *holder.keywords.values()]
    if isinstance(holder, MethodType):
        return [holder.__self__, holder.__func__]
    if isinstance(holder, FunctionType):
        return [cell.cell_contents for cell in holder.__closure__ or () if _is_filled(cell)]
    return [v for name, v in attributes(holder).items() if not _OTHERS.search(name)]


def _is_filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is cell.cell_contents
    except ValueError:
        return False


def _may_keep_more(value: object) -> bool:
    """Whether an optimizer may be found in it: no number, tensor, module or class."""
    if isinstance(value, (Tensor, nn.Module, type, ModuleType, str, bytes, int, float)):
        return False
    known = (Mapping, list, tuple, set, frozenset, deque, partial, MethodType, FunctionType)
    return isinstance(value, known) or bool(attributes(value))


def _groups_of(optimizer: object) -> Iterable[Any]:
    groups = getattr(optimizer, "param_groups", ())
    return groups if isinstance(groups, list) else ()


def _steps(item: Any) -> bool:
    """Whether an object can be used as an optimizer is used."""
    return all(callable(getattr(item, name, None)) for name in ("step", "zero_grad"))


def _described(item: Any) -> str:
    """An object in words, by module and name, with the remedy where it is an optimizer."""
    kind = type(item)
    if kind.__module__ == "builtins":
        return kind.__name__
    found = f"{kind.__module__}.{kind.__qualname__}"
    if not _steps(item):
        return found
    return (
        f"{found}, which is not torch's and holds none of torch's; train with one of torch.optim "
        "(in fastai: OptimWrapper), or leave optimizer= out and clear its state yourself"
    )


def _out_of_lightning(item: Any) -> Any:
    names = {kind.__name__ for kind in type(item).__mro__}
    return item.optimizer if names & _LIGHTNINGS else item
