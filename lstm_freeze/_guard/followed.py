"""FollowedOptimizers: the optimizers given to a guard, and those that replace or wrap them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator

from torch import Tensor, nn
from torch.optim import Optimizer

from .._model import Tree
from .._optimizers import with_inner


class FollowedOptimizers:
    """The optimizers whose steps count for a guard.

    These are the added optimizers, and every other one that has a module's parameter in common with
    one of them: the inner optimizer of a wrapper, or one that was built later. Only weak references
    to optimizers are kept.
    """

    def __init__(self, module: nn.Module) -> None:
        """Follow no optimizer yet."""
        self._module = module
        self._all = False
        self._known: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._others: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._names: set[str] = set()  # parameters of the module in the known optimizers

    def add(self, optimizers: Iterable[Optimizer]) -> None:
        """Follow these optimizers, too.

        Of a wrapper that is no torch.optim.Optimizer only the steps inside it are seen.
        """
        for optimizer in with_inner(optimizers):
            if isinstance(optimizer, Optimizer):
                self._known.add(optimizer)
            self._names |= self._names_in(optimizer)
        self._others.clear()

    def add_all(self) -> None:
        """Follow every optimizer there is."""
        self._all = True

    def __contains__(self, optimizer: object) -> bool:
        if not isinstance(optimizer, Optimizer):
            return False
        if optimizer in self._known:
            return True
        # An unknown optimizer is looked at again only when it has got more parameters.
        size = sum(1 for _ in parameters_in(optimizer))
        if self._others.get(optimizer) == size:
            return self._all
        if self._all or self._names & self._names_in(optimizer):
            self._known.add(optimizer)
            return True
        self._others[optimizer] = size
        return False

    def __iter__(self) -> Iterator[Optimizer]:
        return iter(tuple(self._known))

    def covers(self, other: FollowedOptimizers) -> bool:
        """Whether this follows all that the other follows, for the same module."""
        if self._all:
            return True
        if other._all or not other._names <= self._names:
            return False
        return bool(other._names) or set(other._known) <= set(self._known)

    def __repr__(self) -> str:
        names = sorted({type(optimizer).__name__ for optimizer in self._known})
        return "all optimizers" if self._all else ", ".join(names) or "nothing"

    def _names_in(self, optimizer: Optimizer) -> set[str]:
        held = {id(p) for p in parameters_in(optimizer)}
        return {name for name, p in Tree(self._module).parameters.items() if id(p) in held}


def parameters_in(optimizer: Optimizer) -> Iterator[Tensor]:
    """All parameters of an optimizer; a wrapper that never called torch's __init__ has none."""
    for group in getattr(optimizer, "param_groups", ()):
        yield from group["params"]
