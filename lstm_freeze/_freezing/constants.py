"""Constants: parameters that a model's author made constant, and when they train nevertheless.

A parameter is constant if its requires_grad was False before this library first touched its module.
Examples are quantile levels kept as an `nn.Parameter`, and an embedding built with
`from_pretrained(freeze=True)`. A constant trains only when a target names it. A target names the
constants that it covers if it covers nothing else: the path of a constant, or of a module or an
RNN's layer in which nothing trained (an encoder frozen by hand). A target that also covers other
parameters, as `"*"` does, names no constant, and neither does a call without targets. Once
`freeze`, `unfreeze` or a schedule has named a constant, it counts as trainable; undoing the call
takes that back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from .._model import Tree, can_train
from .marks import CONSTANT, TRAINABLE, mark_of, note
from .switches import Slot

Named = Mapping[str, nn.Parameter]


def slots_of(tree: Tree) -> dict[int, tuple[Slot, ...]]:
    """The id of each parameter -> where it is kept, tied ones in several places."""
    found: dict[int, list[Slot]] = {}
    for name, parameter in tree.parameters.items():
        path, _, own = tree.parametrized.get(name, name).rpartition(".")
        relative = name[len(path) + 1 :] if path else name
        part = "" if relative == own else relative
        found.setdefault(id(parameter), []).append(Slot(tree.modules[path], path, own, part))
    return {key: tuple(slots) for key, slots in found.items()}


def constants(tree: Tree, noted: bool = False) -> dict[str, nn.Parameter]:
    """First name -> parameter, for the constants that no call has named yet.

    Args:
        tree: The module.
        noted: Only parameters that are noted as constant, in modules this library has touched.
    """
    still = {CONSTANT} if noted else {CONSTANT, None}
    return {
        name: p for name, (p, mark) in _marks(tree).items() if mark in still and not p.requires_grad
    }


def unnamed(tree: Tree, targets: Iterable[Named]) -> dict[str, nn.Parameter]:
    """The constants that none of these targets names.

    Earlier calls do not change what a target names: the phases of a schedule name the same,
    whatever was called before.

    Args:
        tree: The module.
        targets: The parameters that each target covers.
    """
    marks = _marks(tree).values()
    trained = {id(p) for p, mark in marks if mark == TRAINABLE or (p.requires_grad and not mark)}
    named: set[int] = set()
    for covered in targets:
        could = {id(p) for p in covered.values() if can_train(p)}
        if not could & trained:
            named |= could
    return {name: p for name, p in constants(tree).items() if id(p) not in named}


def _marks(tree: Tree) -> dict[str, tuple[nn.Parameter, str | None]]:
    """First name -> parameter and its mark, which may be noted under any of its names."""
    slots = slots_of(tree)
    found: dict[str, tuple[nn.Parameter, str | None]] = {}
    for name, parameter in tree.distinct().items():
        if can_train(parameter):
            marks = (mark_of(s.owner, s.name, s.part) for s in slots[id(parameter)])
            found[name] = parameter, max((mark for mark in marks if mark), default=None)
    return found


def note_all(tree: Tree, trained: Named | None = None) -> None:
    """Note in the modules which of their parameters train and which are constant.

    Args:
        tree: The module.
        trained: The parameters known to have trained before; None: those that train now.
    """
    known = tree.parameters if trained is None else trained
    trains = {id(p) for p in known.values() if trained is not None or p.requires_grad}
    for key, slots in slots_of(tree).items():
        for slot in slots:
            note(slot.owner, slot.name, slot.part, key in trains)


def sentence_about_constants(tree: Tree, found: Named) -> str:
    """A sentence that says which parameters are constant, and how to train them."""
    names = list(dict.fromkeys(_topmost(tree, found)))
    some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return (
        f'{some}: requires_grad was False before lstm_freeze first saw it, so "*" and '
        f'unfreeze(module) leave it frozen; naming it trains it: unfreeze(module, "{names[0]}")'
    )


def _topmost(tree: Tree, found: Named) -> Iterator[str]:
    """The topmost modules that hold only these parameters, and names of the other ones."""
    could = Counter(p for n, x in tree.parameters.items() if can_train(x) for p in _above(n))
    names = tree.all_names(found)
    constant = Counter(path for name in names for path in _above(name))
    for name in found:
        yield next((path for path in _above(name) if could[path] == constant[path]), name)


def _above(name: str) -> Iterator[str]:
    """The paths of the modules that hold a parameter, from the top, without the root."""
    pieces = name.split(".")[:-1]
    return (".".join(pieces[: i + 1]) for i in range(len(pieces)))
