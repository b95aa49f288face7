"""What recipes see of a model: encoder and head, and the encoder's layers in their order."""

from __future__ import annotations

from torch import nn

from .._checks import as_module
from .._freezing import unnamed
from .._model import Tree, quote, resolve, within

Layer = tuple[str, ...]  # the targets that name it


def encoder_of(model: nn.Module, encoder: str, head: str) -> tuple[Tree, set[str]]:
    """The model's tree, and the names of the encoder's parameters without the head's.

    Raises:
        ValueError: One of the two names nothing, or the head holds all of the encoder.
        TypeError: `model` is no module.
    """
    tree = Tree(as_module(model, "model"))
    mistakes, names = [], []
    for argument, target in (("encoder", encoder), ("head", head)):
        try:
            names.append(set(tree.all_names(resolve(tree, target, f"{argument}="))))
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ValueError("; and ".join(mistakes))
    if not (inside := names[0] - names[1]):
        raise ValueError(
            f"head={quote(head)} holds all of encoder={quote(encoder)}; name two different parts"
        )
    return tree, inside


def rnn_layers(tree: Tree, inside: set[str]) -> list[tuple[str, set[str]]]:
    """(target, names) of every RNN layer that is at least partly in the encoder, input first."""
    found = []
    for path in tree.rnns:
        places = tree.places(path)
        for layer in sorted({place.layer for place in places.values()}):
            names = {name for name, place in places.items() if place.layer == layer}
            if names & inside:
                found.append((f"{path}[{layer}]", names))
    return found


def all_layers(tree: Tree, inside: set[str]) -> list[Layer]:
    """The targets of each layer of the encoder, input first; an RNN layer's directions together."""
    of_rnns = rnn_layers(tree, inside)
    # A constant (an embedding made with freeze=True) is no layer to train; an RNN's layer is named.
    constants = {*unnamed(tree, [{name: tree.parameters[name] for name in inside}])}
    constants -= {name for _, layer in of_rnns for name in layer}
    by_depth: dict[int, set[str]] = {}
    for part in tree.parts:
        if names := ({*part.parameters} & inside) - constants:
            by_depth.setdefault(part.depth, set()).update(names)
    layers: list[Layer] = []
    for names in by_depth.values():
        targets = [target for target, layer in of_rnns if names <= layer]
        layers.append(tuple(targets) or _fewest_targets(tree, names))
    return layers


def _fewest_targets(tree: Tree, names: set[str]) -> Layer:
    """The topmost modules and the parameters that hold these names and nothing else."""
    wanted = set(tree.all_names(names))
    owners: dict[str, None] = {}
    for name in (n for n in tree.parameters if n in wanted):
        paths = (p for p in tree.modules if p and within(name, p))
        whole = (p for p in paths if {n for n in tree.parameters if within(n, p)} <= wanted)
        owners[min(whole, key=len, default=name)] = None
    return tuple(owners)
