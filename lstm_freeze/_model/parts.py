"""Part: what is frozen, listed and given a learning rate as one, and its depth in the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from .._names import DIRECTIONS
from .cells import mirror_of, stacks_of
from .serving import join, within

if TYPE_CHECKING:
    from .tree import Tree


@dataclass(frozen=True)
class Part:
    """A piece of a model that is frozen, listed and given a learning rate as one.

    For example one direction of an RNN layer, or an embedding.

    Attributes:
        name: `encoder.lstm[0].forward`, `encoder.embedding`, ...
        depth: 0 for the last registered part (the head), rising towards the input. The two
            directions of an RNN layer have the same depth, and so do all parts of one layer of
            a stack.
        parameters: Name to parameter; every parameter of a model is in exactly one part.
    """

    name: str
    depth: int
    parameters: Mapping[str, nn.Parameter]


@dataclass(frozen=True)
class _Piece:
    """A part before depths are counted; pieces of one level get the same depth."""

    name: str
    level: str
    names: list[str]


def parts_of(tree: Tree) -> tuple[Part, ...]:
    """The parts, input side first; tied parameters belong to the first that has them."""
    splitter = _Splitter(tree)
    left = tree.distinct()
    found: list[tuple[str, str, dict[str, nn.Parameter]]] = []
    for piece in splitter.split(""):
        if own := {n: left.pop(n) for n in piece.names if n in left}:
            found.append((piece.name, splitter.shared(piece.level), own))
    levels = {level: i for i, level in enumerate(dict.fromkeys(level for _, level, _ in found))}
    found.sort(key=lambda item: levels[item[1]])
    return tuple(Part(name, len(levels) - 1 - levels[level], own) for name, level, own in found)


class _Splitter:
    """Splits a tree: RNNs into layers and directions, modules around an RNN into their children."""

    def __init__(self, tree: Tree) -> None:
        """Read which modules are recurrent, and which stand in stacks."""
        self._tree = tree
        self._recurrent = {**tree.rnns, **tree.cells}
        self._layers = _layers_of_stacks(tree, self._recurrent)
        self._by_module = _by_module(tree.parameters)
        self._around = {above for path in self._recurrent for above in _above(path)}
        self._around_or_in = {*self._around, *self._recurrent}

    def split(self, path: str) -> Iterator[_Piece]:
        """The pieces of a module, in registration order."""
        if path in self._tree.rnns:
            yield from self._split_rnn(path)
            return
        module = self._tree.modules[path]
        below = (join(path, name) for name in module._modules)
        children = [child for child in below if child in self._tree.modules]
        if path in self._tree.cells or not children:
            yield _Piece(path or type(module).__name__, path, self._own(path))
            return
        for name in (join(path, own) for own in module._parameters):
            if name in self._tree.parameters and self._tree.rnn_of(name) is None:
                yield _Piece(name, join(path, "*"), [name])
        for child in children:
            if child in self._recurrent or child in self._around:
                yield from self.split(child)
            else:
                yield _Piece(child, child, self._own(child))

    def shared(self, level: str) -> str:
        """The level that counts for a path: the layer of the stack around it, if there is one."""
        module, bracket, rest = level.partition("[")
        modules = self._tree.modules
        for path in (module, *_above(module)):
            if path in self._layers:
                module, bracket, rest = path, "", ""
            other = mirror_of(path, modules) if path in self._around_or_in else None
            if other in self._around_or_in and within(module, path):
                first = min(path, str(other), key=[*modules].index)
                module = first + module[len(path) :]
        return module + bracket + rest

    def _own(self, path: str) -> list[str]:
        """The parameter names below a path, without those that serve an RNN elsewhere."""
        rnn_of = self._tree.rnn_of
        names = self._by_module.get(path, [])
        return [n for n in names if (rnn := rnn_of(n)) is None or within(rnn, path)]

    def _split_rnn(self, path: str) -> Iterator[_Piece]:
        places = self._tree.places(path)
        for layer, direction in sorted(
            {(p.layer, DIRECTIONS.index(p.direction)) for p in places.values()}
        ):
            side = (layer, DIRECTIONS[direction])
            yield _Piece(
                f"{path}[{layer}].{DIRECTIONS[direction]}",
                f"{path}[{layer}]",
                [name for name, place in places.items() if place[:2] == side],
            )
        others = [name for name in self._own(path) if name not in places]
        if others:
            yield _Piece(path or type(self._tree.root).__name__, path, others)


def _layers_of_stacks(tree: Tree, recurrent: Iterable[str]) -> set[str]:
    """The paths of layers of a stack that count as one level, whatever is in them.

    Each holds recurrent modules of one layer, and no other stack but that of its two directions.
    """
    stacked = stacks_of(tree.modules)
    inside: dict[str, list[str]] = {}
    for path in recurrent:
        for above in _above(path):
            if above in stacked:
                inside.setdefault(above, []).append(path)
    return {
        path
        for path, held in inside.items()
        if not any(_is_deep(tree, rnn) for rnn in held)
        and (_is_pair(tree.modules[path], held) or not _holds_stack(path, held, stacked))
    }


def _is_deep(tree: Tree, path: str) -> bool:
    """Whether an RNN has more than one layer."""
    return path in tree.rnns and len({p.layer for p in tree.places(path).values()}) > 1


def _is_pair(module: nn.Module, held: list[str]) -> bool:
    """Whether a layer holds two recurrent modules, and its name says that it is bidirectional."""
    name = type(module).__name__
    return len(held) == 2 and (name.startswith("Bi") or "idirectional" in name)


def _holds_stack(path: str, held: list[str], stacked: set[str]) -> bool:
    """Whether there is another stack between a layer and the recurrent modules in it."""
    below = {p for rnn in held for p in (rnn, *_above(rnn)) if p != path and within(p, path)}
    return bool(below & stacked)


def _by_module(names: Iterable[str]) -> dict[str, list[str]]:
    """The names below each module path, in order."""
    found: dict[str, list[str]] = {}
    for name in names:
        for path in _above(name):
            found.setdefault(path, []).append(name)
    return found


def _above(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition(".")[0]
        yield path
