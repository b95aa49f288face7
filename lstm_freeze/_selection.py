"""Targets and keywords -> named parameters: the one way to choose parameters, everywhere."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NoReturn, SupportsIndex

from torch import nn

from ._layout import DIRECTIONS, KIND_GROUPS, KINDS, Place, base_name
from ._parts import Tree, within

Target = str | Iterable[str] | None
"""A target or several: a module path, a parameter path, a glob, an RNN reference with brackets."""

Layers = SupportsIndex | slice | Iterable[SupportsIndex | slice] | None
"""One or several layers of an RNN, as one would index a sequence."""

Names = str | Iterable[str] | None
"""One or several directions or kinds."""

_BRACKETS = re.compile(r"(?P<path>[^\[\]]*)\[(?P<index>[^\[\]]*)\](?P<rest>(?:\.\w+)*)")
_GROUPS: dict[str, Mapping[str, tuple[str, ...]]] = {
    "directions": {"backward": ("reverse",)},
    "kinds": KIND_GROUPS,
}
_SLICE = re.compile(r"\s*(-?\d+)?\s*:\s*(-?\d+)?\s*")


class Selection(Mapping[str, nn.Parameter]):
    """Chosen parameters by name, in registration order; tied ones under every name they have.

    Attributes:
        parameters: The chosen parameters, each once.
    """

    def __init__(self, tree: Tree, names: Iterable[str]) -> None:
        """Hold the parameters of these names."""
        self._named = tree.all_names(names)
        self._distinct = tree.distinct(self._named)

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The chosen parameters, each once."""
        return tuple(self._distinct.values())

    @property
    def distinct(self) -> Mapping[str, nn.Parameter]:
        """First name -> parameter, each parameter once."""
        return self._distinct

    def __getitem__(self, name: str) -> nn.Parameter:
        return self._named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        rows = [
            f"  {name:<{width}}  {'trainable' if p.requires_grad else 'frozen   '}  {_shape(p)}"
            for name, p in self.items()
        ]
        return "\n".join([f"Selection of {len(self._distinct)} parameters:", *rows])


def select(
    module: nn.Module,
    *targets: Target,
    layers: Layers = None,
    directions: Names = None,
    kinds: Names = None,
    exclude: Target = None,
) -> Selection:
    """List the parameters that these targets and keywords name; changes nothing.

    Targets are OR-ed; keywords are AND-ed with each other and with the targets; several values
    of one keyword are OR-ed. No target and no keyword means every parameter.

    Args:
        module: Any module; wrappers (DDP, torch.compile's) are looked through.
        targets: Strings or lists of strings. A module path covers its subtree (`"encoder"`); `*`
            crosses dots (`"head.*"`); brackets choose within an RNN (`"encoder.lstm[-1].reverse"`,
            `"lstm[0:2].forward.weight_hh"`, `"[0]"` where `module` is the RNN); a parameter's own
            path; `"*"`.
        layers: Layers of the one RNN that `module` is or contains: `0`, `-1`, `[0, 2]`,
            `slice(0, 2)`.
        directions: `"forward"`, `"reverse"` or both; `"backward"` is an alias of `"reverse"`.
        kinds: `"weight_ih"`, `"weight_hh"`, `"bias_ih"`, `"bias_hh"`, `"weight_hr"`, `"bias"`
            (both biases), `"weight"` (all weights), or several.
        exclude: Targets to leave out; a tied parameter is left out under all its names.

    Returns:
        The chosen parameters by name.

    Raises:
        ValueError: A target, value or exclusion matches nothing, a list is empty, keywords are
            used where there is not exactly one RNN, or nothing is left.
        TypeError: An argument is of another type than named above.

    Example:
        >>> lstm = nn.LSTM(4, 8, num_layers=2, bidirectional=True)
        >>> list(select(lstm, layers=-1, directions="reverse", kinds="bias"))
        ['bias_ih_l1_reverse', 'bias_hh_l1_reverse']
        >>> list(select(nn.Sequential(lstm, nn.Linear(16, 2)), "1", "0[0].forward.weight_hh"))
        ['0.weight_hh_l0', '1.weight', '1.bias']
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be a torch.nn.Module, got {type(module).__name__}")
    return select_in(Tree(module), targets, layers, directions, kinds, exclude)


def select_in(
    tree: Tree,
    targets: Sequence[Target] = (),
    layers: Layers = None,
    directions: Names = None,
    kinds: Names = None,
    exclude: Target = None,
) -> Selection:
    """`select` on a tree already read."""
    patterns = [t for target in targets for t in as_targets(target, "targets")]
    names = set().union(*(resolve(tree, t) for t in patterns)) if patterns else {*tree.parameters}
    if not (layers is None and directions is None and kinds is None):
        names &= _by_keyword(tree, layers, directions, kinds)
        if not names:
            raise ValueError(
                f"targets {patterns} and the keywords together select nothing: "
                "keywords choose within the RNN; drop one of the two"
            )
    kept = set(tree.all_names(names))
    for target in as_targets(exclude, "exclude") if exclude is not None else ():
        kept -= set(tree.all_names(resolve(tree, target, "exclude=")))
    if names and not kept:
        raise ValueError(f"exclude={exclude!r} leaves nothing selected; exclude less")
    return Selection(tree, kept)


def as_targets(target: Target, argument: str) -> list[str]:
    """A target or several as a list of strings; None is all."""
    if target is None:
        return ["*"]
    if isinstance(target, str):
        return [target]
    if isinstance(target, (nn.Module, nn.Parameter)) or not isinstance(target, Iterable):
        raise TypeError(
            f"`{argument}` must be strings (module or parameter paths) or lists of them, "
            f"got {type(target).__name__}"
        )
    items = list(target)
    if not items:
        raise ValueError(f"`{argument}` got an empty list, which names nothing; None means all")
    if wrong := [i for i in items if not isinstance(i, str)]:
        raise TypeError(f"`{argument}` must hold strings, got {wrong[0]!r}")
    return items


def resolve(tree: Tree, target: str, argument: str = "") -> set[str]:
    """The names one target speaks of; ValueError when there is none.

    Wrappers' prefixes are dropped only where the target as it stands matches nothing, since a
    model may have a child that is really called `module`.
    """
    compiled = _without(target, "_orig_mod")
    for candidate in dict.fromkeys((target, compiled, _without(compiled, "module"))):
        if candidate and (found := _match(tree, candidate, f"{argument}{quote(target)}")):
            return found
    return _unknown(tree, target, argument)


def _without(target: str, wrapper: str) -> str:
    return re.sub(rf"(^|\.){wrapper}(?=[.\[]|$)", "", target).lstrip(".")


def _match(tree: Tree, target: str, shown: str) -> set[str]:
    if target in tree.modules or target in tree.parameters:
        found = {n for n in tree.parameters if within(n, target)}
        if not found:
            raise ValueError(f"{shown}: this module has no parameters; nothing to select")
        return found
    if match := _BRACKETS.fullmatch(target):
        return _by_brackets(tree, match, shown)
    if "*" in target:
        glob = _glob(target)
        return {
            name
            for name in tree.parameters
            if any(glob.fullmatch(p) for p in (*_prefixes(name), base_name(name)))
        }
    return {name for name in tree.parameters if base_name(name) == target}


def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))))


def _prefixes(name: str) -> Iterator[str]:
    pieces = name.split(".")
    return (".".join(pieces[: i + 1]) for i in range(len(pieces)))


def _by_brackets(tree: Tree, match: re.Match[str], shown: str) -> set[str]:
    path, words = match["path"], match["rest"].split(".")[1:]
    if path in tree.modules and path not in tree.rnns:
        kind = type(tree.modules[path]).__name__
        where = f"{quote(path)} is" if path else "the module itself is"
        raise ValueError(
            f"{shown}: {where} a {kind}, and brackets belong to RNNs; {_rnns_there_are(tree)}"
        )
    rnns = [rnn for rnn in tree.rnns if _glob(path).fullmatch(rnn)]
    if not rnns:
        raise ValueError(f"{shown}: no RNN at {quote(path)}; {_rnns_there_are(tree)}")
    direction = words.pop(0) if words and words[0] in (*DIRECTIONS, "backward") else None
    if len(words) > 1 or (words and words[0] not in (*KINDS, *KIND_GROUPS)):
        raise ValueError(
            f"{shown}: after the brackets may stand a direction ({_listed(DIRECTIONS)}) and a "
            f"kind ({_listed((*KINDS, *KIND_GROUPS))}), got {quote('.'.join(words))}"
        )
    index = _parse_index(match["index"], shown)
    return set().union(
        *(_in_rnn(tree, rnn, index, direction, words[0] if words else None, shown) for rnn in rnns)
    )


def _parse_index(text: str, shown: str) -> int | slice:
    if re.fullmatch(r"\s*-?\d+\s*", text):
        return int(text)
    if match := _SLICE.fullmatch(text):
        return slice(*(int(g) if g else None for g in match.groups()))
    raise ValueError(
        f"{shown}: between brackets stands a layer (0, -1) or a slice (0:2), got {text!r}"
    )


def _by_keyword(tree: Tree, layers: Layers, directions: Names, kinds: Names) -> set[str]:
    given = {"layers": layers, "directions": directions, "kinds": kinds}
    keyword = next(name for name, value in given.items() if value is not None)
    if len(tree.rnns) != 1:
        raise ValueError(
            f"{keyword}= needs a module that is or contains exactly one RNN; "
            f"{_rnns_there_are(tree)}"
            + ('; use targets, like "encoder.lstm[0]"' if tree.rnns else "; use targets")
        )
    return _in_rnn(tree, next(iter(tree.rnns)), layers, directions, kinds)


def _in_rnn(
    tree: Tree, path: str, layers: Layers, directions: Names, kinds: Names, shown: str = ""
) -> set[str]:
    """The names at these layers, directions and kinds of one RNN; None is all."""
    places = tree.places(path)
    label = str(tree.rnns[path].mode).split("_")[0]
    rows = _choose_layers(layers, len({p.layer for p in places.values()}), label, shown)
    sides = _choose(directions, "directions", DIRECTIONS, places, 1, label, shown)
    sorts = _choose(kinds, "kinds", KINDS, places, 2, label, shown)
    return {n for n, p in places.items() if p.layer in rows and p[1] in sides and p[2] in sorts}


def _choose_layers(layers: Layers, count: int, label: str, shown: str) -> set[int]:
    if layers is None:
        return set(range(count))
    chosen: set[int] = set()
    for item in _as_items(layers, "layers"):
        at = shown or f"layers=[{item}]"
        if isinstance(item, slice):
            found = range(count)[item]
        elif isinstance(item, bool) or not isinstance(item, SupportsIndex):
            raise TypeError(f"`layers` must be integers or slices, got {item!r}")
        else:
            index = operator.index(item)
            found = range(count)[index:][:1] if -count <= index < count else range(0)
        if not found:
            plural = "layer" if count == 1 else "layers"
            raise ValueError(f"{at}: this {label} has {count} {plural}; valid: {_indices(count)}")
        chosen.update(found)
    return chosen


def _choose(
    value: Names,
    argument: str,
    known: tuple[str, ...],
    places: Mapping[str, Place],
    field: int,
    label: str,
    shown: str,
) -> set[str]:
    """The directions or kinds asked for, each checked to be there in this RNN."""
    present = [k for k in known if any(p[field] == k for p in places.values())]
    if value is None:
        return set(present)
    groups = _GROUPS[argument]
    chosen: set[str] = set()
    for item in _as_items(value, argument):
        if not isinstance(item, str):
            raise TypeError(f"`{argument}` must be strings, got {item!r}")
        if not (found := {*groups.get(item, (item,))} & {*present}):
            at = shown or f"{argument}={item!r}"
            valid = [*present, *(KIND_GROUPS if argument == "kinds" else ())]
            raise ValueError(
                f"{at}: this {label} has no {quote(item)}; valid: {_listed(valid)}"
                + _did_you_mean(item, valid)
            )
        chosen |= found
    return chosen


def _as_items(value: object, argument: str) -> list[object]:
    if isinstance(value, (str, slice)) or not isinstance(value, Iterable):
        return [value]
    if getattr(value, "ndim", 1) == 0:
        return [value]
    if not (items := list(value)):
        raise ValueError(f"`{argument}` got an empty list, which names nothing; None means all")
    return items


def _unknown(tree: Tree, target: str, argument: str) -> NoReturn:
    shown = f"{argument}{quote(target)}"
    if "*" in target:
        raise ValueError(f"{shown}: matches no module and no parameter; {_valid(tree)}")
    known = [p for p in (*tree.modules, *tree.parameters) if p]
    what = "no such module" if "." not in target else "no such module or parameter"
    hint = _did_you_mean(target, known) or f"; {_valid(tree)}"
    raise ValueError(f"{shown}: {what}{hint}")


def _valid(tree: Tree) -> str:
    children = [p for p in tree.modules if p and "." not in p]
    own = [n for n in tree.parameters if "." not in n]
    return (
        f"valid: {_listed([*children, *own])}, or a path below"
        if children
        else (f"valid: {_listed(own)}")
    )


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {quote(near[0])}?" if near else ""


def _rnns_there_are(tree: Tree) -> str:
    if not tree.rnns:
        return "this module has no RNN (BiLSTM, nn.LSTM, nn.GRU, nn.RNN)"
    return "the RNNs here: " + ", ".join(
        f"{quote(p)}" if p else "the module itself" for p in tree.rnns
    )


def _indices(count: int) -> str:
    if count > 4:
        return f"0 to {count - 1}, or -{count} to -1"
    return f"{_plain(range(count))}, or {_plain(range(-count, 0))}"


def _plain(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(quote, names))


def quote(text: str) -> str:
    """The text in double quotes, as paths stand in messages."""
    return f'"{text}"'


def _shape(parameter: nn.Parameter) -> str:
    lazy = nn.parameter.is_lazy(parameter)
    return "(lazy)" if lazy else str(tuple(parameter.shape))
