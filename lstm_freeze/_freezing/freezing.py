"""freeze, unfreeze, freeze_up_to: what trains from now on, and the handle that undoes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

from torch import nn

from .._checks import as_bool, as_module
from .._model import (
    Groups,
    Layers,
    Names,
    Target,
    Tree,
    as_groups,
    as_targets,
    can_train,
    names_of_groups,
    reshard,
    resolve,
    select_in,
    select_layer,
)
from .._optimizers import (
    as_optimizers,
    drop_state,
    prepare_fused_momentum,
    refuse_lbfgs,
    require_held,
)
from .._warn import warn
from .constants import note_all, unnamed
from .ddp import (
    align_buffers,
    ddp_of,
    reduces_all,
    remember_trainable,
    require_reducible,
    warn_unused,
)
from .handle import Freeze, turn
from .listeners import announce_unfreezing
from .request import Request
from .switches import ModeSwitch

Named = Mapping[str, nn.Parameter]


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
    others = _others(tree, chosen, only)
    left = unnamed(tree, _covered(tree, targets, chosen))
    return set_trainable(
        module,
        tree,
        frozen=chosen,
        trainable=_without(unnamed(tree, [others]), others),
        named=_without(left, chosen),
        optimizer=optimizer,
        dropout=dropout,
        warns=any(named is not None for named in (*targets, layers, directions, kinds, exclude)),
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

    Parameters that cannot train (integer ones) are skipped. So is what was requires_grad=False
    before this library first touched the module, unless a target names it: a target that covers
    nothing but such parameters, like the parameter's own path, or the path of an encoder that was
    frozen by hand. `"*"`, no target at all, and a target that also covers other parameters leave it
    frozen, because it may be a constant. `status` lists such parameters.

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
        trainable=_without(unnamed(tree, _covered(tree, targets, chosen)), chosen),
        optimizer=optimizer,
        warns=only or any(named is not None for named in (*targets, layers, directions, kinds)),
    )


def freeze_up_to(
    module: nn.Module, layer_or_target: SupportsIndex | Target, *, groups: Groups = None
) -> Freeze:
    """Freeze everything registered up to and including a layer or target: the frozen prefix.

    The frozen prefix is the input-side part of a model below the lowest trainable layer; where
    its input needs no gradient, its whole backward pass can be skipped. What is registered after
    it is left as it is.

    Args:
        module: Any module; wrappers (DDP, torch.compile's) are looked through.
        layer_or_target: A layer of the one RNN in `module` (`0`, `-1`), or a target as in
            `select`; of several, the last registered counts.
        groups: The model's layers in your own order, input side first, as in `param_groups`: all
            groups up to the last one that holds something of the target are frozen. None takes
            the order of registration.

    Returns:
        A handle with `.changed` and `.undo()`, also a context manager.

    Raises:
        ValueError: There is no such layer or target, or a group is wrong. Nothing was changed.
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
        last = select_layer(tree, layer_or_target, "layer_or_target").distinct
    else:
        remedy = "name a layer or a target"
        last = select_in(tree, as_targets(layer_or_target, "layer_or_target", remedy)).distinct
    if groups is None:
        in_order = [name for part in tree.parts for name in part.parameters]
        end = max(in_order.index(name) for name in last) + 1
        prefix = {name: tree.parameters[name] for name in in_order[:end]}
    else:
        prefix = _groups_up_to(tree, groups, last)
    return set_trainable(module, tree, frozen=prefix, trainable={}, warns=True)


def set_trainable(
    module: nn.Module,
    tree: Tree,
    *,
    frozen: Named,
    trainable: Named,
    named: Named | None = None,
    optimizer: Any = None,
    dropout: str = "keep",
    warns: bool = False,
) -> Freeze:
    """Freeze some parameters and unfreeze others: all checks, then all changes.

    Args:
        module: What the user gave, with its wrappers.
        tree: The tree of that module.
        frozen: First name -> parameter to freeze.
        trainable: First name -> parameter to make trainable, constants only where they are named.
        named: Further parameters that a target names, so that they are no constants any more.
        optimizer: One or several, whose state for what is frozen is dropped.
        dropout: `"keep"` or `"off"`.
        warns: Whether to warn if nothing is left that trains.
    """
    reshard(module)  # the tree may be older than a forward pass that left gathered weights
    optimizers = as_optimizers(optimizer)
    request = Request(
        tree, frozen, {n: p for n, p in trainable.items() if can_train(p)}, named or {}
    )
    request.refuse_unswitchable()
    refuse_lbfgs(optimizers, request.frozen_afterwards)
    require_held(optimizers, request.trainable)
    ddp = ddp_of(module)
    if ddp is not None:
        require_reducible(ddp, tree, request.trainable)
    decisions = request.decisions(dropout)
    handle = Freeze(module, request.changed)

    announce_unfreezing(list(request.trainable.values()))
    if warns and not request.leaves_trainable:
        warn(
            "nothing in this module is trainable any more, so a backward pass through it alone "
            "will fail; unfreeze(module, ...) what should train, or freeze less"
        )
    if request.changed and (free := request.free_norms):
        paths = ", ".join(map(repr, free))
        warn(
            f"TorchScript runs no hooks, so the running statistics of {paths} cannot be held as "
            "those of other frozen layers are: they move in train(); keep it in .eval()"
        )
    if ddp is not None and request.changed:
        warn_unused(ddp)
        remember_trainable(ddp, [p for p in frozen.values() if p.requires_grad])
        align_buffers(ddp, [s.owner for s, on in decisions if on and isinstance(s, ModeSwitch)])
    newcomers = [p for p in request.trainable.values() if not p.requires_grad]
    note_all(tree)
    turn(handle, decisions)
    drop_state(optimizers, frozen.values())
    prepare_fused_momentum(optimizers, newcomers)
    return handle


def _read(module: nn.Module) -> Tree:
    tree = Tree(as_module(module))
    ddp = ddp_of(module)
    if ddp is not None and reduces_all(ddp, tree):
        note_all(tree, tree.distinct())  # DDP has wrapped it when all of it trained
    return tree


def _groups_up_to(
    tree: Tree, groups: Groups, last: Mapping[str, object]
) -> dict[str, nn.Parameter]:
    """The parameters of the groups up to the last one that holds something of `last`."""
    names = names_of_groups(tree, as_groups(groups))
    ends = [i for i, group in enumerate(names) if group & tree.all_names(last).keys()]
    if not ends:
        raise ValueError(
            f"`layer_or_target` lies in none of the `groups`: it is {', '.join([*last][:3])}; name "
            "it in a group"
        )
    return tree.distinct(set().union(*names[: ends[-1] + 1]))


def _others(tree: Tree, chosen: Named, only: bool) -> dict[str, nn.Parameter]:
    # `only="head"` would read as a selection, and choose everything.
    as_bool(only, "only", "what to choose are the targets")
    if not only:
        return {}
    return {name: p for name, p in tree.distinct().items() if name not in chosen}


def _covered(tree: Tree, targets: Iterable[Target], chosen: Named) -> list[Named]:
    """For each target the chosen parameters it covers; without targets all chosen, once."""
    found: list[Named] = []
    for target in (t for several in targets for t in as_targets(several, "targets")):
        names = tree.all_names(resolve(tree, target))
        found.append({name: p for name, p in chosen.items() if name in names})
    return found or [chosen]


def _without(left: Named, chosen: Named) -> Named:
    return {name: p for name, p in chosen.items() if name not in left}
