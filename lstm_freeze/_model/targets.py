"""Parameter names from one target, or from layers, directions and kinds of one RNN."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

from .._checks import did_you_mean
from .._names import DIRECTIONS, KIND_GROUPS, KINDS, is_factor
from .serving import without_base_layers
from .tree import ADAPTED_AS, WRAPPED_AS, Tree, within

Layers = SupportsIndex | slice | Iterable[SupportsIndex | slice] | None
"""One or several layers of an RNN, as one would index a sequence."""

Names = str | Iterable[str] | None
"""One or several directions or kinds."""

_BRACKETS = re.compile(r"(?P<path>[^\[\]]*)\[(?P<index>[^\[\]]*)\](?:\.(?P<rest>[^\[\]]*))?")
_SLICE = re.compile(r"\s*(-?\d+)?\s*:\s*(-?\d+)?\s*")
_ALIASES = {"backward": "reverse"}
LORA = "lora"
_KINDS = (*KINDS, LORA)
_GROUPS: dict[str, Mapping[str, tuple[str, ...]]] = {"directions": {}, "kinds": KIND_GROUPS}


def resolve(tree: Tree, target: str, argument: str = "") -> set[str]:
    """The parameter names that a target matches; ValueError when it matches none."""
    for spelling in _spellings(tree, target):
        if found := _match(tree, spelling, f"{argument}{quote(target)}"):
            return found
    raise _unknown(tree, target, f"{argument}{quote(target)}")


def in_rnn(
    tree: Tree, path: str, layers: Layers, directions: Names, kinds: Names, shown: str = ""
) -> set[str]:
    """The names at these layers, directions and kinds of one RNN; None is all."""
    places = tree.places(path)
    label = str(tree.rnns[path].mode).split("_")[0]
    rows = _choose_layers(layers, len({p.layer for p in places.values()}), label, shown)
    sides_there = {p.direction for p in places.values()}
    sides = _choose(directions, "directions", DIRECTIONS, sides_there, label, shown)
    sorts_there = {sort for n, p in places.items() for sort in _sorts(n, p.kind)}
    sorts = _choose(kinds, "kinds", _KINDS, sorts_there, label, shown)
    return {
        n
        for n, p in places.items()
        if p.layer in rows and p.direction in sides and sorts.intersection(_sorts(n, p.kind))
    }


def _sorts(name: str, kind: str) -> tuple[str, ...]:
    """The kinds that a parameter counts as: a LoRA factor also counts as its weight."""
    return (kind, LORA) if is_factor(name) else (kind,)


def rnns_there_are(tree: Tree) -> str:
    """The RNNs of a tree, in words for a message."""
    if not tree.rnns:
        return "this module has no RNN (BiLSTM, nn.LSTM, nn.GRU, nn.RNN)"
    return "the RNNs here: " + ", ".join(quote(p) if p else "the module itself" for p in tree.rnns)


def quote(text: str) -> str:
    """The text in double quotes, as messages show paths."""
    return f'"{text}"'


def _spellings(tree: Tree, target: str) -> Iterator[str]:
    """The target as given, then without the prefixes of wrappers.

    In this order, because a child of the model itself may be called `module`.
    """
    if not target:
        return
    yield target
    spellings = [_without(target, "|".join(WRAPPED_AS))]
    spellings += [s for s in (_without(spellings[0], ADAPTED_AS),) if s != spellings[0]]
    while (shorter := _without(spellings[-1], "module", count=1)) != spellings[-1]:
        spellings.append(shorter)
    yield from (s for s in spellings if s or tree.wrapped)


def _without(target: str, wrapper: str, count: int = 0) -> str:
    return re.sub(rf"(^|\.)(?:{wrapper})(?=[.\[]|$)", "", target, count=count).lstrip(".")


def _match(tree: Tree, target: str, shown: str) -> set[str]:
    if target in tree.parameters or target in tree.modules:
        if found := {n for n in tree.parameters if within(n, target) or _serves(tree, n, target)}:
            return found
        raise ValueError(f"{shown}: this module has no parameters; nothing to select")
    if factors := _factors(tree, target):
        return factors
    if brackets := _BRACKETS.fullmatch(target):
        return _by_brackets(tree, brackets, shown)
    if "*" in target:
        glob = _glob(target)
        return {n for n in tree.parameters if any(map(glob.fullmatch, _paths_to(tree, n)))}
    return {name for name, base in tree.tensors_served.items() if base == target}


def _factors(tree: Tree, target: str) -> set[str]:
    """The LoRA factors that `lora` (of the whole module) or `path.lora` (below a path) names."""
    path, _, last = target.rpartition(".")
    if last != LORA or (path and path not in tree.modules):
        return set()
    return {name for name in tree.parameters if is_factor(name) and within(name, path)}


def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))))


def _paths_to(tree: Tree, name: str) -> Iterator[str]:
    """A parameter's modules and its own name, and those of the tensor it serves."""
    for path in dict.fromkeys((name, tree.tensors_served.get(name, name))):
        pieces = path.split(".")
        yield from (".".join(pieces[: i + 1]) for i in range(len(pieces)))


def _serves(tree: Tree, name: str, path: str) -> bool:
    """Whether a parameter outside of a subtree serves an RNN inside of it."""
    rnn = tree.rnn_of(name)
    return rnn is not None and within(rnn, path)


def _by_brackets(tree: Tree, match: re.Match[str], shown: str) -> set[str]:
    path, words = match["path"], match["rest"].split(".") if match["rest"] is not None else []
    rnns = [p for p in tree.rnns if path in (p, without_base_layers(p))] or [
        *filter(_glob(path).fullmatch, tree.rnns)
    ]
    if path in tree.modules and not rnns:
        where = f"{quote(path)} is" if path else "the module itself is"
        raise ValueError(
            f"{shown}: {where} a {type(tree.modules[path]).__name__}, and brackets belong to "
            f"RNNs; {rnns_there_are(tree)}"
        )
    direction = words.pop(0) if words and words[0] in (*DIRECTIONS, *_ALIASES) else None
    kind = words.pop(0) if words and words[0] in (*_KINDS, *KIND_GROUPS) else None
    if words:
        known = (*DIRECTIONS, *_KINDS, *KIND_GROUPS)
        raise ValueError(
            f"{shown}: after the brackets may stand a direction ({_listed(DIRECTIONS)}) and a "
            f"kind ({_listed((*KINDS, *KIND_GROUPS, LORA))}), got {quote('.'.join(words))}"
            + did_you_mean(words[0], known)
        )
    index = _parse_index(match["index"], shown)
    found: set[str] = set()
    missing = None
    for rnn in rnns:
        try:
            found |= in_rnn(tree, rnn, index, direction, kind, shown)
        except ValueError as error:
            missing = missing or error
    if missing and not found:
        raise missing
    return found


def _parse_index(text: str, shown: str) -> int | slice:
    if re.fullmatch(r"\s*-?\d+\s*", text):
        return int(text)
    if match := _SLICE.fullmatch(text):
        return slice(*(int(g) if g else None for g in match.groups()))
    raise ValueError(
        f"{shown}: between brackets stands a layer (0, -1) or a slice (0:2), got {text!r}"
    )


def _choose_layers(layers: Layers, count: int, label: str, shown: str) -> set[int]:
    if layers is None:
        return set(range(count))
    chosen: set[int] = set()
    for item in _as_items(layers, "layers"):
        if isinstance(item, slice):
            found = range(count)[item]
        elif isinstance(item, bool) or not isinstance(item, SupportsIndex):
            raise TypeError(f"`layers` must be integers or slices, got {item!r}")
        else:
            index = operator.index(item)
            found = range(count)[index:][:1] if -count <= index < count else range(0)
        if not found:
            at = shown or (f"layers={item}" if isinstance(item, slice) else f"layers=[{item}]")
            plural = "layer" if count == 1 else "layers"
            raise ValueError(f"{at}: this {label} has {count} {plural}; valid: {_indices(count)}")
        chosen.update(found)
    return chosen


def _choose(
    value: Names,
    argument: str,
    known: tuple[str, ...],
    there: set[str],
    label: str,
    shown: str,
) -> set[str]:
    """The directions or kinds that are asked for; ValueError where this RNN lacks one."""
    if value is None:
        return there
    groups = _GROUPS[argument]
    valid = [n for n in (*known, *groups) if there.intersection(groups.get(n, (n,)))]
    chosen: set[str] = set()
    for item in _as_items(value, argument):
        if not isinstance(item, str):
            raise TypeError(f"`{argument}` must be strings, got {item!r}")
        name = _ALIASES.get(item, item) if argument == "directions" else item
        if name not in valid:
            raise ValueError(
                f"{shown or f'{argument}={quote(name)}'}: this {label} has no {quote(name)}; "
                f"valid: {_listed(valid)}{did_you_mean(name, valid)}"
            )
        chosen.update(groups.get(name, (name,)))
    return chosen


def _as_items(value: Any, argument: str) -> list[Any]:
    alone = isinstance(value, (str, slice)) or not isinstance(value, Iterable)
    if alone or getattr(value, "ndim", 1) == 0:  # a tensor or array that holds one layer
        return [value]
    if not (items := list(value)):
        raise ValueError(f"`{argument}` got an empty list, which names nothing; None means all")
    return items


def _unknown(tree: Tree, target: str, shown: str) -> ValueError:
    if brackets := _BRACKETS.fullmatch(target):
        where = quote(brackets["path"])
        near = did_you_mean(brackets["path"], [p for p in tree.rnns if p])
        return ValueError(f"{shown}: no RNN at {where}; {rnns_there_are(tree)}{near}")
    if "[" in target or "]" in target:
        return ValueError(
            f"{shown}: brackets stand once, after the path of an RNN, as in "
            f'"lstm[0].forward.weight_hh" or "lstm[0:2]"; {rnns_there_are(tree)}'
        )
    if "*" in target:
        return ValueError(f"{shown}: matches no module and no parameter; {_valid(tree, '')}")
    what = "no such module" if "." not in target else "no such module or parameter"
    hint = did_you_mean(target, [*filter(None, tree.modules), *tree.parameters])
    return ValueError(f"{shown}: {what}{hint or f'; {_valid(tree, target)}'}")


def _valid(tree: Tree, target: str) -> str:
    """What there is below the longest existing path of a target, in words."""
    while target not in tree.modules:
        target = target.rpartition(".")[0]
    names = [n for n in (*tree.modules, *tree.parameters) if n and n.rpartition(".")[0] == target]
    return f"valid: {_listed(names)}, or a path below" if names else "this module is empty"


def _indices(count: int) -> str:
    if count > 4:
        return f"0 to {count - 1}, or -{count} to -1"
    return f"{', '.join(map(str, range(count)))}, or {', '.join(map(str, range(-count, 0)))}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(quote, names))
