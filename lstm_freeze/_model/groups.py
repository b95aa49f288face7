"""Groups: the layers of a model as the user lists them, input side first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from .parts import Part
from .selection import Target, as_targets
from .targets import quote, resolve
from .tree import Tree

Groups = Iterable[Target] | None
"""A target or a list of targets for each group, input side first; None: the model's own parts."""


def as_groups(value: Any, argument: str = "groups") -> tuple[tuple[str, ...], ...]:
    """The targets of each group; ValueError or TypeError where the value is no list of groups.

    >>> as_groups([["embedding", "norm"], "lstm[0]"])
    (('embedding', 'norm'), ('lstm[0]',))
    """
    if isinstance(value, (str, nn.Module)) or not isinstance(value, Iterable):
        raise TypeError(
            f"`{argument}` must be a list with the targets of each group, input side first, "
            f'as in [["embedding"], ["lstm"], ["head"]], got {value!r}'
        )
    items = list(value)
    if any(item is None for item in items):
        raise TypeError(f'`{argument}` must hold targets, got None; "*" is all that is left')
    if not items:
        raise ValueError(f"`{argument}` got an empty list; None takes the model's own parts")
    return tuple(
        tuple(as_targets(item, f"{argument}[{i}]", "leave the group out"))
        for i, item in enumerate(items)
    )


def names_of_groups(tree: Tree, groups: Sequence[Sequence[str]]) -> list[set[str]]:
    """The parameter names of each group; a parameter that several groups name is in the first.

    Raises:
        ValueError: A target matches nothing, or a group names only what earlier groups name.
    """
    mistakes: list[str] = []
    found: list[set[str]] = []
    taken: set[str] = set()
    for index, targets in enumerate(groups):
        names: set[str] = set()
        for target in targets:
            try:
                names |= resolve(tree, target, f"groups[{index}]=")
            except ValueError as error:
                mistakes.append(str(error))
        if names and not names - taken:
            mistakes.append(
                f"groups[{index}]={list(targets)} is empty: all that it names is in groups before "
                "it; name each parameter once, the narrower groups first"
            )
        found.append(names - taken)
        taken |= names
    if mistakes:
        raise ValueError("; and ".join(mistakes))
    return found


def grouped_parts(tree: Tree, groups: Any) -> tuple[Part, ...]:
    """The parts of a tree, each with the depth of its group; one part may be in several groups.

    Raises:
        ValueError: A group is wrong, or a parameter is in none.
    """
    names = names_of_groups(tree, as_groups(groups))
    group_of: dict[int, int] = {}
    for name, parameter in tree.parameters.items():
        for index, group in enumerate(names):
            if name in group:
                group_of.setdefault(id(parameter), index)
    if left := [name for name, p in tree.distinct().items() if id(p) not in group_of]:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        listed = ", ".join(map(quote, left[:3]))
        raise ValueError(
            f'`groups` leaves out {listed}{more}; name them in a group, or add a group ["*"] for '
            "all that is left where it belongs in the order"
        )
    found = []
    for index in range(len(names)):
        for part in tree.parts:
            own = {name: p for name, p in part.parameters.items() if group_of[id(p)] == index}
            whole = len(own) == len(part.parameters)
            name = part.name if whole else f"{part.name} (group {index})"
            if own:
                found.append(Part(name, len(names) - 1 - index, own))
    return tuple(found)
