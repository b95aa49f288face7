"""The schedules of the papers: which groups a model has, and which train in which phase."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .._checks import as_integer, did_you_mean
from .._model import Tree, quote, resolve, within
from .phase import Annealing, Phase

Rates = float | Mapping[str, float] | None
Group = tuple[str, ...]


def gradual_unfreezing(
    tree: Tree, encoder: str, head: str, every: int = 1, lr: Rates = None
) -> tuple[Phase, ...]:
    """Head; then RNN layers from the top; then all that remains of the encoder."""
    inside, _ = _sides(tree, encoder, head)
    every = as_integer(every, "every", least=1)
    groups = [head]
    for path, rnn in reversed(_rnn_layers(tree, inside)):
        groups.append(path)
        inside -= rnn
    trained = [groups[: i + 1] for i in range(len(groups))]
    if inside:
        trained.append([head, encoder])
    return _in_turn(trained, every, lr)


def chain_thaw(
    tree: Tree, encoder: str, head: str, every: int = 1, lr: Rates = None
) -> tuple[Phase, ...]:
    """The head; each other layer alone, input side first; then all."""
    inside, _ = _sides(tree, encoder, head)
    every = as_integer(every, "every", least=1)
    stages = [(head,), *_layers(tree, inside), (head, encoder)]
    first, *others = _in_turn(stages, every, lr)
    if isinstance(lr, Mapping) or lr is None:
        return first, *others
    return first, *(Phase(p.start, p.train, lr=lr / 10) for p in others)


def linear_probing(
    tree: Tree, encoder: str, head: str, every: int = 1, lr: Rates = None
) -> tuple[Phase, ...]:
    """The head on a frozen encoder, then both."""
    _sides(tree, encoder, head)
    return _in_turn([[head], [head, encoder]], as_integer(every, "every", least=1), lr)


def progressive_freezing(
    tree: Tree,
    total: int,
    encoder: str,
    head: str,
    t0: float = 0.8,
    how: str = "cubic",
    scaled: bool = True,
) -> Annealing:
    """Each layer of the encoder freezes for good, input side first; the head never."""
    inside, _ = _sides(tree, encoder, head)
    return Annealing((*_layers(tree, inside), (head,)), total, t0, how, scaled)


PHASED: dict[str, Callable[..., tuple[Phase, ...]]] = {
    "gradual_unfreezing": gradual_unfreezing,
    "chain_thaw": chain_thaw,
    "linear_probing": linear_probing,
}


def argument_names(name: Any) -> tuple[str, ...]:
    """The arguments a recipe takes beside the model; ValueError where there is no such recipe."""
    makers: dict[str, Callable[..., Any]] = {
        **PHASED,
        "progressive_freezing": progressive_freezing,
    }
    if name not in makers:
        raise ValueError(
            f"no recipe {name!r}; the recipes: {', '.join(sorted(makers))}"
            + did_you_mean(str(name), makers)
        )
    return tuple(inspect.signature(makers[name]).parameters)[1:]


def check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Raise ValueError for a recipe or an argument that does not exist."""
    known = argument_names(name)
    for argument in arguments:
        if argument not in known:
            raise ValueError(
                f"{name} takes no {argument!r}; its arguments: {', '.join(known)}"
                + did_you_mean(argument, known)
            )
    if "total" in known and "total" not in arguments:
        raise ValueError(f"{name} needs `total`, the length of the training in epochs")


def _in_turn(stages: Iterable[Iterable[str]], every: int, lr: Any) -> tuple[Phase, ...]:
    return tuple(Phase(i * every, stage, lr=lr) for i, stage in enumerate(stages))


def _sides(tree: Tree, encoder: str, head: str) -> tuple[set[str], set[str]]:
    """The parameter names of the encoder without the head, and those of the head."""
    mistakes, names = [], []
    for argument, target in (("encoder", encoder), ("head", head)):
        if not isinstance(target, str):
            raise TypeError(f"`{argument}` must be one target (a string), got {target!r}")
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
    return inside, names[1]


def _rnn_layers(tree: Tree, inside: set[str]) -> list[tuple[str, set[str]]]:
    """(target, names) of every RNN layer that is at least partly in the encoder, input first."""
    found = []
    for path in tree.rnns:
        places = tree.places(path)
        for layer in sorted({place.layer for place in places.values()}):
            names = {name for name, place in places.items() if place.layer == layer}
            if names & inside:
                found.append((f"{path}[{layer}]", names))
    return found


def _layers(tree: Tree, inside: set[str]) -> list[Group]:
    """The targets of each layer of the encoder, input first; an RNN layer's directions together."""
    rnn_layers = _rnn_layers(tree, inside)
    by_depth: dict[int, set[str]] = {}
    for part in tree.parts:
        if names := {*part.parameters} & inside:
            by_depth.setdefault(part.depth, set()).update(names)
    groups: list[Group] = []
    for names in by_depth.values():
        targets = [target for target, layer in rnn_layers if names <= layer]
        groups.append(tuple(targets) or _cover(tree, names))
    return groups


def _cover(tree: Tree, names: set[str]) -> Group:
    """The topmost modules and the parameters that hold these names and nothing else."""
    wanted = set(tree.all_names(names))
    owners: dict[str, None] = {}
    for name in (n for n in tree.parameters if n in wanted):
        paths = (p for p in tree.modules if p and within(name, p))
        whole = (p for p in paths if {n for n in tree.parameters if within(n, p)} <= wanted)
        owners[min(whole, key=len, default=name)] = None
    return tuple(owners)
