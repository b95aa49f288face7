"""status: what trains and what is frozen now, read from the live state."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from .._checks import as_module, as_one_of
from .._model import Tree, can_train, numel, runs_fused
from .._optimizers import as_optimizers
from . import table
from .constants import constants, sentence_about_constants
from .fixed_modes import decider_of, fixed_mode_of, is_normalization
from .listeners import idle_steps


@dataclass(frozen=True)
class Row:
    """One line of a status: an RNN layer's direction, another part of a model, or a parameter.

    Attributes:
        name: A target that names it (`encoder.lstm[0].forward`, `head`, `head.weight`).
        state: `"trainable"`, `"frozen"` or `"mixed"`.
        trainable: Number of trainable elements.
        total: Number of elements.
        ties: Other names of its parameters.
        stale: Names of its parameters that are frozen and still have a gradient.
        groups: The optimizer groups that hold its parameters: an index, with the name if it has
            one; with several optimizers, `optimizer:group`.
        lrs: The learning rates of these groups, each once.
        notes: Remarks on this row.
    """

    name: str
    state: str
    trainable: int
    total: int
    ties: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    lrs: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Status:
    """The state of a module; prints as an aligned table, in a notebook as HTML.

    Attributes:
        rows: One row a part or parameter, input side first.
        trainable: Number of trainable elements, tied ones counted once.
        total: Number of elements, tied ones counted once.
        notes: Remarks on the whole module.
        by: `"layer"` or `"parameter"`.
        with_optimizer: Whether groups and learning rates were asked for.
    """

    rows: tuple[Row, ...]
    trainable: int
    total: int
    notes: tuple[str, ...] = ()
    by: str = "layer"
    with_optimizer: bool = False

    def __str__(self) -> str:
        return table.as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return table.as_html(self)


def status(module: nn.Module, optimizer: Any = None, by: str = "layer") -> Status:
    """Show what trains and what is frozen now, per layer and direction or per parameter.

    Args:
        module: Any module; wrappers (DDP, torch.compile's) are looked through.
        optimizer: One or several, for the columns `group` and `lr` and the note "trainable but in
            no optimizer"; Lightning's wrapper is looked through.
        by: `"layer"`: a row for each direction of an RNN layer and each other part;
            `"parameter"`: a row for each parameter, under its first name.

    Returns:
        A table with `.rows`, `.trainable` and `.total`. Tied parameters are counted once, lazy
        ones that have no shape yet as 0.

    Raises:
        ValueError: `by` is neither `"layer"` nor `"parameter"`.
        TypeError: `module` or `optimizer` is of the wrong type.

    Examples:
        >>> model = nn.Sequential(nn.LSTM(4, 8), nn.Linear(8, 2))
        >>> _ = model[0].requires_grad_(False)
        >>> print(status(model))
        part          state      trainable/all params
        ---------------------------------------------
        0[0].forward  frozen                  0 / 448
        1             trainable              18 /  18
        trainable params: 18 || all params: 466 || trainable%: 3.8627
    """
    as_module(module)
    as_one_of(by, "by", ("layer", "parameter"))
    optimizers = as_optimizers(optimizer)
    tree = Tree(module)
    parts = (
        {part.name: part.parameters for part in tree.parts}
        if by == "layer"
        else {name: {name: p} for name, p in tree.distinct().items()}
    )
    grouped = _groups_of(optimizers)
    checked = optimizer is not None
    resting = idle_steps()
    rows = tuple(_row(tree, name, held, grouped, resting, checked) for name, held in parts.items())
    return Status(
        rows,
        trainable=sum(row.trainable for row in rows),
        total=sum(row.total for row in rows),
        notes=tuple(_notes(tree, optimizers, rows, grouped)),
        by=by,
        with_optimizer=checked,
    )


_Grouped = Mapping[int, Sequence[tuple[str, float]]]  # id of a parameter -> (group's label, lr)


def _groups_of(optimizers: Sequence[Optimizer]) -> _Grouped:
    found: dict[int, list[tuple[str, float]]] = {}
    for i, optimizer in enumerate(optimizers):
        for j, group in enumerate(optimizer.param_groups):
            label = f"{i}:{j}" if len(optimizers) > 1 else f"{j}"
            named = f"{label} {group['name']}" if group.get("name") else label
            for parameter in group["params"]:
                found.setdefault(id(parameter), []).append((named, float(group["lr"])))
    return found


def _row(
    tree: Tree,
    name: str,
    parameters: Mapping[str, nn.Parameter],
    grouped: _Grouped,
    resting: Mapping[int, int],
    checked: bool,
) -> Row:
    trains = {n: p.requires_grad for n, p in parameters.items()}
    # A parameter that can never train (integers) does not make a part mixed.
    could = [t for n, t in trains.items() if t or can_train(parameters[n])] or [False]
    state = "mixed" if any(could) and not all(could) else ("frozen", "trainable")[any(could)]
    ties = tuple(n for n in tree.all_names(parameters) if n not in parameters)
    stale = tuple(n for n, p in parameters.items() if not trains[n] and p.grad is not None)
    homeless = [n for n, p in parameters.items() if trains[n] and checked and id(p) not in grouped]
    lazy = [n for n, p in parameters.items() if nn.parameter.is_lazy(p)]
    whole = len(parameters)
    notes = []
    if state == "mixed":
        off = [n for n in parameters if not trains[n] and can_train(parameters[n])]
        notes.append(f"frozen here: {_short(tree, off, name)}")
    if ties:
        notes.append(f"tied: also {_some(ties)}")
    if stale:
        notes.append(f"frozen with a stale gradient{_which(tree, stale, whole, name)}")
    if homeless:
        notes.append(f"trainable but in no optimizer{_which(tree, homeless, whole, name)}")
    if idle := [n for n, p in parameters.items() if id(p) in resting]:
        steps = min(resting[id(parameters[n])] for n in idle)
        which = _which(tree, idle, whole, name)
        notes.append(f"trainable but idle in the last {steps:,} optimizer steps{which}")
    if lazy:
        notes.append(f"not initialised yet (lazy), counted as 0{_which(tree, lazy, whole, name)}")
    held = [one for p in parameters.values() for one in grouped.get(id(p), ())]
    return Row(
        name,
        state,
        trainable=sum(numel(p) for n, p in parameters.items() if trains[n]),
        total=sum(map(numel, parameters.values())),
        ties=ties,
        stale=stale,
        groups=tuple(dict.fromkeys(label for label, _ in held)),
        lrs=tuple(dict.fromkeys(lr for _, lr in held)),
        notes=tuple(notes),
    )


def _notes(
    tree: Tree, optimizers: Sequence[Optimizer], rows: Sequence[Row], grouped: _Grouped
) -> Iterator[str]:
    own = {id(p) for p in tree.parameters.values()}
    if any(row.stale for row in rows):
        yield (
            "a stale gradient moves a frozen weight at the next optimizer step; freeze(...) "
            "clears it, requires_grad = False alone does not"
        )
    if any("in no optimizer" in note for row in rows for note in row.notes):
        strangers = len(grouped.keys() - own)
        yield "what is in no optimizer never trains; build the optimizer over all parameters" + (
            f". It holds {strangers} that this module does not have: was a Parameter replaced "
            "after it was built?"
            if strangers
            else ""
        )
    for i, optimizer in enumerate(optimizers):
        held = [p for group in optimizer.param_groups for p in group["params"]]
        if not any(p.requires_grad for p in held):
            yield f"optimizer {i} holds only frozen parameters; a GradScaler's step of it raises"
    if not rows:
        yield "this module has no parameters"
    elif not any(row.trainable or row.state != "frozen" for row in rows):
        yield "nothing here is trainable"
    if found := constants(tree, noted=True):
        yield sentence_about_constants(tree, found)
    for path, module in tree.modules.items():
        yield from _module_notes(tree, path or type(module).__name__, path, module)
    for name, parameter in tree.distinct().items():
        if "require_grad" in vars(parameter):
            yield f"{name}.require_grad means nothing to torch; the attribute is requires_grad"


def _module_notes(tree: Tree, shown: str, path: str, module: nn.Module) -> Iterator[str]:
    for word in {"requires_grad", "require_grad"} & vars(module).keys():
        yield f"{shown}.{word} = {vars(module)[word]} freezes nothing; call freeze(...)"
    frozen = [not p.requires_grad for p in module.parameters()]
    if is_normalization(module) and module.training and fixed_mode_of(module) is None:
        decider = decider_of(tree, path)
        if decider is not None and not any(p.requires_grad for p in decider.parameters()):
            yield f"{shown} is frozen, but its statistics move in train(); freeze(...) holds them"
    if frozen and all(frozen) and getattr(module, "max_norm", None) is not None:
        yield f"{shown} is frozen, but max_norm rewrites its rows in the forward pass"
    if path in tree.rnns and _random_though_frozen(tree, path, module):
        yield (
            f"{shown}: dropout between frozen layers is random in train(); "
            'freeze(..., dropout="off") stops it'
        )
    if hasattr(module, "prefix_cache") and frozen and not any(frozen) and runs_fused(module):
        yield (
            f"{shown} is a BiLSTM on CUDA and all of it trains: nn.LSTM on cuDNN is faster there, "
            f"so {shown}.to_lstm() may pay; BiLSTM pays with a cached frozen prefix or a frozen "
            "direction"
        )
    stats = getattr(getattr(module, "prefix_cache", None), "stats", None)
    if callable(stats):
        yield f"prefix cache of {shown}: " + ", ".join(f"{k} {v:,}" for k, v in stats().items())


def _random_though_frozen(tree: Tree, path: str, rnn: Any) -> bool:
    """Whether dropout is active between two frozen layers, in train mode."""
    if not (rnn.training and rnn.dropout) or fixed_mode_of(rnn) is not None:
        return False
    trains = {p.layer for n, p in tree.places(path).items() if tree.parameters[n].requires_grad}
    still = trains | set(getattr(rnn, "dropout_off_layers", ()))
    gaps = itertools.pairwise(range(rnn.num_layers))
    return any(not {a, b} & trains and not {a, b} <= still for a, b in gaps)


def _which(tree: Tree, names: Sequence[str], whole: int, part: str) -> str:
    return "" if len(names) == whole else f": {_short(tree, names, part)}"


def _short(tree: Tree, names: Iterable[str], part: str) -> str:
    """Names of parameters within their part: kinds in an RNN, else paths below the part."""
    words = []
    for name in names:
        place = tree.place_of(name) if "[" in part else None
        words.append(place.kind if place else name.removeprefix(f"{part}."))
    return _some(tuple(dict.fromkeys(words)))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more
