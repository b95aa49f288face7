"""Freeze: the handle that undoes a call."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import nn

from .._model import Tree, reshard, rewrite, unwrap
from .listeners import announce_change, announce_unfreezing
from .status import status
from .switches import RequiresGrad, Switch
from .undo import Call, Entry, arrive, decide, withdraw


class Freeze:
    """What `freeze`, `unfreeze` and `freeze_up_to` return: a handle that can undo the call.

    Prints as the status table of the module. Works as a context manager that undoes at the exit.
    Dropping it undoes nothing. While several handles are live (not undone), the youngest that
    selected a parameter decides about it; undoing all of them, in any order, restores exactly what
    was before: requires_grad, the mode of normalisation layers and dropout. Gradients and
    optimizer state are not brought back, and edits of requires_grad by hand are overridden.

    A handle refers to names, and undoes on the parameters that have these names at that time. After
    `load_state_dict(assign=True)`, `.to_empty()`, a parametrization or a replaced module these are
    the new Parameters; names that are gone are skipped. A module that keeps its handle may be
    copied or pickled: the copy's handle undoes on the copy.

    Attributes:
        changed: Names of the parameters whose requires_grad the call changed, each parameter once.

    Examples:
        >>> from lstm_freeze import freeze
        >>> lstm = nn.LSTM(4, 8)
        >>> with freeze(lstm, kinds="weight_hh") as frozen:
        ...     frozen.changed, lstm.weight_hh_l0.requires_grad
        (('weight_hh_l0',), False)
        >>> lstm.weight_hh_l0.requires_grad
        True
    """

    def __init__(self, module: nn.Module, changed: tuple[str, ...]) -> None:
        """Decide nothing yet. Only the functions above make handles."""
        self.changed = changed
        # Without its wrappers: torch.compile's cannot be copied within the module that it wraps.
        self._module = unwrap(module)
        self._call = Call()
        self._entries: tuple[Entry, ...] = ()

    def undo(self) -> None:
        """Take the call back; a second time does nothing.

        Raises:
            FrozenWeightsChanged: An attached FrozenGuard finds that something that may become
                trainable has changed. Nothing was undone; a second call undoes.
        """
        reshard(self._module)
        self._tell_before()
        self._undo()

    def _tell_before(self) -> None:
        announce_unfreezing(_parameters(entry.switch for entry in self._entries))

    def _undo(self) -> None:
        entries, self._entries = self._entries, ()
        if entries:
            _tell(self._module, withdraw(self._call, entries, Tree(self._module)))

    def __enter__(self) -> Freeze:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc is None:
                self._tell_before()
        finally:
            self._undo()

    def __repr__(self) -> str:
        return repr(status(self._module))

    def _repr_html_(self) -> str:
        return status(self._module)._repr_html_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        arrive(self._entries)


def turn(handle: Freeze, decisions: Iterable[tuple[Switch, bool]]) -> None:
    """Turn switches on behalf of a handle."""
    entries = tuple(decide(handle._call, switch, value) for switch, value in decisions)
    handle._entries = entries
    _tell(handle._module, [entry.switch for entry in entries])


def _tell(module: nn.Module, switches: Iterable[Switch]) -> None:
    parameters = _parameters(switches)
    if torch.__version__ < "2.13":
        rewrite(module, parameters)
    announce_change(parameters)


def _parameters(switches: Iterable[Switch]) -> list[nn.Parameter]:
    parameters = (s.parameter for s in switches if isinstance(s, RequiresGrad))
    return [p for p in parameters if p is not None]
