"""resolve_schedule: the parameters of every phase in a module, and all mistakes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import nn

from .._freezing import unnamed
from .._model import Tree, can_train, quote, resolve
from .phase import Phase
from .resolved import Named, ResolvedPhase, ResolvedSchedule

if TYPE_CHECKING:
    from .schedule import FreezeSchedule


def resolve_schedule(
    schedule: FreezeSchedule, module: nn.Module
) -> tuple[ResolvedSchedule, list[str]]:
    """The schedule with the parameters of every phase, and all mistakes in words."""
    tree = Tree(module)
    names, mistakes = _scope(tree, schedule)
    inside = tree.distinct(names if schedule.rest == "leave" else _all_but_excluded(tree, schedule))
    constants = _constants(tree, schedule, names)
    left = {id(p) for p in constants.values()}
    phases = []
    for phase in schedule.phases:
        resolved, wrong = _resolve_phase(tree, phase, names, inside, schedule.unit, left)
        phases.append(resolved)
        mistakes += wrong
    layer_of: dict[int, int] = {}
    if schedule.annealing is not None:
        for index, targets in reversed(list(enumerate(schedule.annealing.groups))):
            for name in _union(tree, targets, "groups=", mistakes) & names:
                layer_of.setdefault(id(tree.parameters[name]), index)
    found = ResolvedSchedule(module, tree, schedule, phases, inside, layer_of, constants)
    return found, list(dict.fromkeys(mistakes))


def _all_but_excluded(tree: Tree, schedule: FreezeSchedule) -> set[str]:
    return {*tree.parameters} - _union(tree, schedule.exclude, "exclude=", [])


def _constants(tree: Tree, schedule: FreezeSchedule, names: set[str]) -> Named:
    """The constants that no phase names, and so none may train.

    A parameter that one phase names is no constant in any phase. So what a phase trains depends on
    the schedule alone.
    """
    targets = {target for phase in schedule.phases for target in phase.train}
    covered = (_union(tree, (target,), "", []) & names for target in targets)
    found = unnamed(tree, [{name: tree.parameters[name] for name in each} for each in covered])
    return {name: p for name, p in found.items() if name in names}


def _scope(tree: Tree, schedule: FreezeSchedule) -> tuple[set[str], list[str]]:
    mistakes: list[str] = []
    names = _union(tree, schedule.scope, "scope=", mistakes)
    if schedule.exclude:
        names -= _union(tree, schedule.exclude, "exclude=", mistakes)
    if not (names or mistakes):
        mistakes.append(f"exclude={list(schedule.exclude)} leaves nothing in the scope")
    return names, mistakes


def _union(tree: Tree, targets: Iterable[str], argument: str, mistakes: list[str]) -> set[str]:
    names: set[str] = set()
    for target in targets:
        try:
            names |= resolve(tree, target, argument)
        except ValueError as error:
            mistakes.append(str(error))
    return set(tree.all_names(names))


def _resolve_phase(
    tree: Tree, phase: Phase, names: set[str], inside: Named, unit: str, constants: set[int]
) -> tuple[ResolvedPhase, list[str]]:
    wrong: list[str] = []
    chosen: set[str] = set()
    for target in phase.train:
        found = _union(tree, (target,), "", wrong)
        if found and names and not found & names:
            wrong.append(
                f"{quote(target)} lies outside the schedule's scope, so the schedule leaves it "
                "alone; widen scope= or name less in exclude="
            )
        chosen |= found & names
    trainable = {n: p for n, p in tree.distinct(chosen).items() if can_train(p)}
    train = {n: p for n, p in trainable.items() if id(p) not in constants}
    ids = {id(p) for p in tree.distinct(chosen).values()} - constants
    if chosen and not train:
        wrong.append("leaves nothing that can train (integer parameters cannot); name more")
    rates = _resolve_rates(tree, phase, {id(p) for p in train.values()}, wrong)
    frozen = {n: p for n, p in inside.items() if id(p) not in ids}
    at = f"phase at {unit} {phase.start}: "
    return ResolvedPhase(phase, train, frozen, rates), [at + mistake for mistake in wrong]


def _resolve_rates(
    tree: Tree, phase: Phase, trained: set[int], wrong: list[str]
) -> Mapping[int, float]:
    if phase.lr is None:
        return {}
    if not isinstance(phase.lr, Mapping):
        return dict.fromkeys(trained, phase.lr)
    rates: dict[int, float] = {}
    for target, rate in phase.lr.items():
        for name in _union(tree, (target,), "lr=", wrong):
            if (key := id(tree.parameters[name])) in trained:
                rates.setdefault(key, rate)
    return rates
