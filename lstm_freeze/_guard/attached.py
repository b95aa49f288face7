"""The guards that are attached to a module, which keeps them alive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from .guard import FrozenGuard

_ATTRIBUTE = "_frozen_guards"


class _Attached:
    """The guards of one module, kept in its `__dict__`; a copy or pickle of the module has none."""

    def __init__(self) -> None:
        self.guards: list[FrozenGuard] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return bool, ()  # False, which can be read where lstm_freeze is not installed


def attached_to(module: nn.Module) -> tuple[FrozenGuard, ...]:
    """The guards that are attached to a module, oldest first."""
    found = vars(module).get(_ATTRIBUTE)
    return tuple(found.guards) if isinstance(found, _Attached) else ()


def keep_with(module: nn.Module, guard: FrozenGuard) -> None:
    """Attach a guard: the module keeps it alive from now on."""
    if not isinstance(vars(module).get(_ATTRIBUTE), _Attached):
        vars(module)[_ATTRIBUTE] = _Attached()
    guards = vars(module)[_ATTRIBUTE].guards
    if guard not in guards:
        guards.append(guard)


def let_go(module: nn.Module, guard: FrozenGuard) -> None:
    """Detach a guard: the module no longer keeps it alive."""
    left = [other for other in attached_to(module) if other is not guard]
    if left:
        vars(module)[_ATTRIBUTE].guards = left
    else:
        vars(module).pop(_ATTRIBUTE, None)
