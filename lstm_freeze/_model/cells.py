"""Recurrent layers that are not nn.RNNBase: cells, and the user's own layers in a stack."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from .serving import within

_RECURRENT = re.compile(r"(?i)lstm|gru|rnn|sru|cell|recurrent")
_STATE = re.compile(r"h|hx|hc|h_?0|h_?t|hidden|states?|hidden_states?|(h|prev)_\w+")
# Names of the two directions of one layer; each pair belongs together.
MIRRORED = (
    ("forward", "backward"),
    ("forward", "reverse"),
    ("fwd", "bwd"),
    ("fwd", "rev"),
    ("fw", "bw"),
    ("f", "b"),
    ("l2r", "r2l"),
    ("ltr", "rtl"),
    ("left", "right"),
)


def mirror_of(path: str, modules: Mapping[str, nn.Module]) -> str | None:
    """The path of the other direction, if of the same class: `layer_0.bwd` for `layer_0.fwd`."""
    pieces = re.split(r"([._])", path)
    for i, piece in enumerate(pieces):
        for pair in MIRRORED:
            if piece.lower() not in pair:
                continue
            word = pair[1 - pair.index(piece.lower())]
            word = word.capitalize() if piece[:1].isupper() else word
            other = "".join([*pieces[:i], word, *pieces[i + 1 :]])
            if other in modules and type(modules[other]) is type(modules[path]):
                return other
    return None


def stacks_of(modules: Mapping[str, nn.Module]) -> set[str]:
    """The paths of modules in a stack: siblings of one class whose names differ in a number."""
    keys = {path: _stack_key(path, module) for path, module in modules.items() if path}
    counts = Counter(keys.values())
    return {path for path, key in keys.items() if key and counts[key] > 1}


def cells_of(
    modules: Mapping[str, nn.Module], rnns: Iterable[str], stacked: set[str]
) -> dict[str, nn.Module]:
    """Path -> module that runs one step or layer of a recurrence, outside of nn.RNNBase.

    These are nn.LSTMCell and the like, and the user's own recurrent modules: the innermost ones
    that are in a stack, or one of two directions, and whose class or arguments say that they are
    recurrent.
    """
    around = set(_above(rnns))
    found: dict[str, nn.Module] = {
        path: module for path, module in modules.items() if isinstance(module, nn.RNNCellBase)
    }
    around |= set(_above(found))
    own = {
        path: module
        for path, module in modules.items()
        if path
        and path not in around
        and (path in stacked or mirror_of(path, modules) is not None)
        and _is_recurrent(module)
        and not any(within(path, inside) for inside in (*rnns, *found))
    }
    around = set(_above(own))
    found.update((path, module) for path, module in own.items() if path not in around)
    return {path: module for path, module in modules.items() if path in found}


def _stack_key(path: str, module: nn.Module) -> tuple[str, type[nn.Module]] | None:
    parent, _, name = path.rpartition(".")
    pattern = re.sub(r"\d+", "#", name)
    return (f"{parent}.{pattern}", type(module)) if pattern != name else None


def _is_recurrent(module: nn.Module) -> bool:
    if next(module.parameters(), None) is None:
        return False
    if _RECURRENT.search(type(module).__name__):
        return True
    try:
        arguments = list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        return False
    return any(_STATE.fullmatch(argument) for argument in arguments[1:])


def _above(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        while path:
            path = path.rpartition(".")[0]
            yield path
