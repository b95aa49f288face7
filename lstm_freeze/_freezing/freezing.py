"""freeze, unfreeze, freeze_up_to: what trains from now on, and the handle that undoes it."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, SupportsIndex

import torch
from torch import nn

from .._checks import as_bool, as_module
from .._model import Layers, Names, Target, Tree, rewrite, select_in
from .._optimizers import (
    as_optimizers,
    drop_state,
    prepare_fused_momentum,
    refuse_lbfgs,
    require_held,
)
from .ddp import align_buffers, ddp_of, remember_trainable, require_reducible, warn_unused
from .modes import Held
from .plan import Plan, RequiresGrad
from .plan import can_train as can_train
from .status import status
from .undo import Switch, decide, withdraw


class Listener(Protocol):
    """What wants to hear of every freeze, unfreeze and undo."""

    def frozen_changed(self, parameters: Sequence[nn.Parameter]) -> None:
        """Called after the state of these parameters was decided anew."""


listeners: weakref.WeakSet[Listener] = weakref.WeakSet()


class Freeze:
    """What `freeze`, `unfreeze` and `freeze_up_to` return: a handle that can undo the call.

    Prints as the status table of the module. Works as a context manager that undoes at the exit.
    Dropping it undoes nothing. While several handles are live (not undone), the youngest that
    selected a parameter decides about it; undoing all of them, in any order, restores exactly what
    was before: requires_grad, the mode of normalisation layers and dropout. Gradients and
    optimizer state are not brought back, and edits of requires_grad by hand are overridden.

    Attributes:
        changed: Names of the parameters whose requires_grad the call changed, each parameter once.

    Examples:
        >>> lstm = nn.LSTM(4, 8)
        >>> with freeze(lstm, kinds="weight_hh") as frozen:
        ...     frozen.changed, lstm.weight_hh_l0.requires_grad
        (('weight_hh_l0',), False)
        >>> lstm.weight_hh_l0.requires_grad
        True
    """

    def __init__(self, module: nn.Module, changed: tuple[str, ...], switches: list[Switch]) -> None:
        """Hold what the call decided; made by the functions above only."""
        self.changed = changed
        self._module = module
        self._switches = switches

    def undo(self) -> None:
        """Take the call back; a second time does nothing."""
        switches, self._switches = self._switches, []
        for switch in switches:
            withdraw(self, switch)
        _notify(self._module, switches)

    def __enter__(self) -> Freeze:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return repr(status(self._module))

    def _repr_html_(self) -> str:
        return status(self._module)._repr_html_()


def freeze(
    module: nn.Module,
    *targets: Target,
    layers: Layers = None,
    directions: Names = None,
    kinds: Names = None,
    exclude: Target = None,
    only: bool = False,
    optimizer: Any = None,
    dropout: str = "keep",
) -> Freeze:
    """Freeze the chosen parameters: from now on no optimizer of torch.optim moves them.

    Sets requires_grad=False and grad=None, so that neither a stale gradient nor momentum nor
    weight decay reaches them; normalisation layers whose parameters are all frozen use their
    running statistics and stop updating them. Parameters are chosen as in `select`.

    Args:
        module: Any module; wrappers (DDP, torch.compile's) are looked through.
        targets: What to freeze; see `select`. None and no keyword: everything.
        layers: Layers of the one RNN in `module`.
        directions: Directions of the one RNN in `module`.
        kinds: Kinds of parameters of the one RNN in `module`.
        exclude: Targets to leave as they are.
        only: Also unfreeze everything else.
        optimizer: One or several whose state for the frozen parameters is dropped, so that a
            later unfreeze begins without stale momentum.
        dropout: `"off"` also stops the dropout between two frozen layers and the nn.Dropout
            modules within what is frozen, so that a frozen encoder is deterministic.

    Returns:
        A handle with `.changed` and `.undo()`, also a context manager.

    Raises:
        ValueError: The selection is wrong (see `select`), `dropout` is neither `"keep"` nor
            `"off"` or cannot be done, or the optimizer is LBFGS. Nothing was changed.
        TypeError: An argument is of the wrong type. Nothing was changed.

    Warns:
        UserWarning: The call named something, and nothing is left that trains.

    Examples:
        >>> lstm = nn.LSTM(4, 8, num_layers=2)
        >>> freeze(lstm, layers=[0]).changed
        ('weight_ih_l0', 'weight_hh_l0', 'bias_ih_l0', 'bias_hh_l0')
    """
    tree = _read(module)
    chosen = select_in(tree, targets, layers, directions, kinds, exclude).distinct
    return set_trainable(
        module,
        tree,
        frozen=chosen,
        trainable=_others(tree, chosen, only),
        optimizer=optimizer,
        dropout=dropout,
        warn=any(named is not None for named in (*targets, layers, directions, kinds, exclude)),
    )


def unfreeze(
    module: nn.Module,
    *targets: Target,
    layers: Layers = None,
    directions: Names = None,
    kinds: Names = None,
    exclude: Target = None,
    only: bool = False,
    optimizer: Any = None,
) -> Freeze:
    """Make the chosen parameters trainable, beginning without an old gradient.

    Parameters that cannot train (integer ones) are skipped.

    Args:
        module: Any module; wrappers (DDP, torch.compile's) are looked through.
        targets: What to unfreeze; see `select`. None and no keyword: everything.
        layers: Layers of the one RNN in `module`.
        directions: Directions of the one RNN in `module`.
        kinds: Kinds of parameters of the one RNN in `module`.
        exclude: Targets to leave as they are.
        only: Also freeze everything else.
        optimizer: One or several that must hold what is unfrozen.

    Returns:
        A handle with `.changed` and `.undo()`, also a context manager.

    Raises:
        ValueError: The selection is wrong (see `select`); an unfrozen parameter is in no group of
            `optimizer` and would never train; or it was frozen when DDP wrapped the module.
            Nothing was changed.
        TypeError: An argument is of the wrong type. Nothing was changed.

    Examples:
        >>> lstm = nn.LSTM(4, 8, num_layers=2)
        >>> unfreeze(lstm, layers=-1, only=True).changed
        ('weight_ih_l0', 'weight_hh_l0', 'bias_ih_l0', 'bias_hh_l0')
    """
    tree = _read(module)
    chosen = select_in(tree, targets, layers, directions, kinds, exclude).distinct
    return set_trainable(
        module,
        tree,
        frozen=_others(tree, chosen, only),
        trainable=chosen,
        optimizer=optimizer,
        warn=only or any(named is not None for named in (*targets, layers, directions, kinds)),
    )


def freeze_up_to(module: nn.Module, layer_or_target: SupportsIndex | Target) -> Freeze:
    """Freeze the frozen prefix: everything registered up to and including a layer or target.

    The frozen prefix is the input-side part of a model below the lowest trainable layer; where
    its input needs no gradient, its whole backward pass can be skipped. What is registered after
    it is left as it is.

    Args:
        module: Any module; wrappers (DDP, torch.compile's) are looked through.
        layer_or_target: A layer of the one RNN in `module` (`0`, `-1`), or a target as in
            `select`; of several, the last registered counts.

    Returns:
        A handle with `.changed` and `.undo()`, also a context manager.

    Raises:
        ValueError: There is no such layer or target. Nothing was changed.
        TypeError: `layer_or_target` is neither a layer nor a target. Nothing was changed.

    Examples:
        >>> model = nn.ModuleDict({"emb": nn.Embedding(9, 4), "lstm": nn.LSTM(4, 8, 2)})
        >>> freeze_up_to(model, 0).changed[:3]
        ('emb.weight', 'lstm.weight_ih_l0', 'lstm.weight_hh_l0')
    """
    tree = _read(module)
    if isinstance(layer_or_target, bool) or not isinstance(
        layer_or_target, (SupportsIndex, Iterable)
    ):
        raise TypeError(
            "`layer_or_target` must be a layer (an int) or a target (a string), "
            f"got {layer_or_target!r}"
        )
    if isinstance(layer_or_target, SupportsIndex):
        last = select_in(tree, layers=layer_or_target).distinct
    else:
        last = select_in(tree, (layer_or_target,)).distinct
    in_order = [name for part in tree.parts for name in part.parameters]
    end = max(in_order.index(name) for name in last) + 1
    prefix = {name: tree.parameters[name] for name in in_order[:end]}
    return set_trainable(module, tree, frozen=prefix, trainable={}, warn=True)


def set_trainable(
    module: nn.Module,
    tree: Tree,
    *,
    frozen: Mapping[str, nn.Parameter],
    trainable: Mapping[str, nn.Parameter],
    optimizer: Any = None,
    dropout: str = "keep",
    warn: bool = False,
    stacklevel: int = 3,
) -> Freeze:
    """Freeze some parameters and unfreeze others: all checks, then all changes."""
    optimizers = as_optimizers(optimizer)
    plan = Plan(tree, frozen, {n: p for n, p in trainable.items() if can_train(p)})
    plan.refuse_unswitchable()
    refuse_lbfgs(optimizers, plan.frozen_afterwards)
    require_held(optimizers, plan.trainable)
    ddp = ddp_of(module)
    if ddp is not None:
        require_reducible(ddp, tree, plan.trainable)
    decisions = plan.decisions(dropout)
    handle = Freeze(module, plan.changed, [switch for switch, _ in decisions])

    if warn and not plan.leaves_trainable:
        warnings.warn(
            "nothing in this module is trainable any more, so a backward pass through it alone "
            "will fail; unfreeze(module, ...) what should train, or freeze less",
            stacklevel=stacklevel,
        )
    if ddp is not None and plan.changed:
        warn_unused(ddp, stacklevel)
        remember_trainable(ddp, [p for p in frozen.values() if p.requires_grad])
        align_buffers(ddp, [s.owner for s, held in decisions if held and isinstance(s, Held)])
    newcomers = [p for p in plan.trainable.values() if not p.requires_grad]
    for switch, value in decisions:
        decide(handle, switch, value)
    drop_state(optimizers, frozen.values())
    prepare_fused_momentum(optimizers, newcomers)
    _notify(module, [switch for switch, _ in decisions])
    return handle


def _read(module: nn.Module) -> Tree:
    as_module(module)
    return Tree(module)


def _others(tree: Tree, chosen: Mapping[str, nn.Parameter], only: bool) -> dict[str, nn.Parameter]:
    # `only="head"` would read as a selection, and choose everything.
    as_bool(only, "only", "what to choose are the targets")
    if not only:
        return {}
    return {name: p for name, p in tree.distinct().items() if name not in chosen}


def _notify(module: nn.Module, switches: Sequence[Switch]) -> None:
    parameters = [switch.owner for switch in switches if isinstance(switch, RequiresGrad)]
    if torch.__version__ < "2.13":
        rewrite(module, parameters)
    for listener in tuple(listeners):
        listener.frozen_changed(parameters)
