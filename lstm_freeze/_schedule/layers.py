"""Layers: a model as recipes see it, the head and the other layers in their order."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .._checks import as_module
from .._freezing import unnamed
from .._model import (
    Groups,
    Tree,
    as_groups,
    names_of_groups,
    quote,
    resolve,
    rnns_there_are,
    within,
)

Layer = tuple[str, ...]  # the targets that name it


@dataclass(frozen=True)
class Layers:
    """The layers of a model, each as the targets that name it.

    Attributes:
        below: The layers below the head, input side first; an RNN layer's directions are one.
        head: The head.
        whole: Everything.
    """

    below: tuple[Layer, ...]
    head: Layer
    whole: Layer


def layers_of(model: nn.Module, encoder: str, head: str, groups: Groups = None) -> Layers:
    """The model's layers: those of encoder and head, or the user's own groups.

    Raises:
        ValueError: Something names nothing, the head holds all of the encoder, or groups are given
            beside encoder and head.
        TypeError: `model` is no module.
    """
    tree = Tree(as_module(model, "model"))
    if groups is None:
        inside = _encoder_of(tree, encoder, head)
        return Layers(tuple(_layers_in(tree, inside)), (head,), (head, encoder))
    if (encoder, head) != ("encoder", "head"):
        raise ValueError(
            "`groups` names all layers, the head last, so encoder= and head= cannot stand beside "
            "it; leave them out"
        )
    *below, top = _own_layers(tree, as_groups(groups))
    return Layers(tuple(below), top, tuple(t for layer in (top, *below) for t in layer))


def _own_layers(tree: Tree, groups: tuple[Layer, ...]) -> list[Layer]:
    """The user's groups; where some overlap, what each has for itself."""
    if len(groups) < 2:
        raise ValueError(
            f"`groups` must be at least two, the head last, got {[list(g) for g in groups]}"
        )
    found = []
    for targets, names in zip(groups, names_of_groups(tree, groups), strict=True):
        named = set().union(*(resolve(tree, target) for target in targets))
        found.append(targets if named == names else _targets_of(tree, names))
    return found


def _encoder_of(tree: Tree, encoder: str, head: str) -> set[str]:
    """The names of the encoder's parameters without the head's."""
    mistakes, names = [], []
    for argument, target in (("encoder", encoder), ("head", head)):
        try:
            names.append(set(tree.all_names(resolve(tree, target, f"{argument}="))))
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ValueError("; and ".join(mistakes) + _proposal(tree))
    if not (inside := names[0] - names[1]):
        raise ValueError(
            f"head={quote(head)} holds all of encoder={quote(encoder)}; name two different parts"
        )
    return inside


def _proposal(tree: Tree) -> str:
    """The names that exist, and a line to copy."""
    last = {name for part in tree.parts if part.depth == 0 for name in part.parameters}
    if not tree.parts or tree.parts[0].depth == 0:
        return f"; {rnns_there_are(tree)}, and there is no part above or below to be the other"
    targets = _targets_of(tree, last)
    listed = ", ".join(map(quote, targets))
    found = f"; {rnns_there_are(tree)}; the last part that was registered: {listed}"
    if len(targets) > 1 or any(tree.rnn_of(name) is not None for name in last):
        return f"{found}; the head comes before it here, so name both yourself, or give groups="
    return f'{found}; to copy: encoder="*", head={listed}'


def _layers_in(tree: Tree, inside: set[str]) -> list[Layer]:
    """The targets of each layer of the encoder, input first; an RNN layer's directions together."""
    # A constant (an embedding made with freeze=True) is no layer to train; an RNN's layer is named.
    constants = {*unnamed(tree, [{name: tree.parameters[name] for name in inside}])}
    constants = {name for name in constants if tree.rnn_of(name) is None}
    by_depth: dict[int, set[str]] = {}
    for part in tree.parts:
        if names := ({*part.parameters} & inside) - constants:
            by_depth.setdefault(part.depth, set()).update(names)
    return [_targets_of(tree, names) for names in by_depth.values()]


def _rnn_layer_of(tree: Tree, name: str) -> tuple[str, set[str]] | None:
    """(target, names) of the RNN layer that a parameter serves."""
    path, place = tree.rnn_of(name), tree.place_of(name)
    if path is None or place is None:
        return None
    names = {n for n, other in tree.places(path).items() if other.layer == place.layer}
    return f"{path}[{place.layer}]", names


def _targets_of(tree: Tree, names: set[str]) -> Layer:
    """The fewest targets that match these parameters and no others."""
    first = next((n for n in tree.parameters if n in names), "")
    if (alone := _rnn_layer_of(tree, first)) and names <= alone[1]:
        return (alone[0],)
    wanted = set(tree.all_names(names))
    whole = [p for p in tree.modules if p and _below(tree, p) and _below(tree, p) <= wanted]
    targets: dict[str, None] = {}
    for name in (n for n in tree.parameters if n in wanted):
        target = min((p for p in whole if within(name, p)), key=len, default=name)
        if target == name and (layer := _rnn_layer_of(tree, name)) and layer[1] <= wanted:
            target = layer[0]
        targets[target] = None
    return tuple(targets)


def _below(tree: Tree, path: str) -> set[str]:
    return {name for name in tree.parameters if within(name, path)}
