"""as_optimizers: the optimizers in what users give: one, several, or wrappers around some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard

from torch.optim import Optimizer

_LIGHTNINGS = {"LightningOptimizer", "_FabricOptimizer"}


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
    return tuple(one for one in with_inner(optimizers) if not any(True for _ in _inside(one)))


def attributes(value: object) -> dict[str, Any]:
    """All attributes of an object, those in slots too."""
    slots = (name for kind in type(value).__mro__ for name in vars(kind).get("__slots__", ()))
    in_slots = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return {**in_slots, **getattr(value, "__dict__", {})}


def _inside(optimizer: object) -> Iterator[Optimizer]:
    for value in attributes(optimizer).values():
        if isinstance(value, Mapping):
            several = [*value.values()]
        else:
            several = [*value] if isinstance(value, (list, tuple, set)) else [value]
        yield from (_out_of_lightning(one) for one in several if is_optimizer(one))


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
