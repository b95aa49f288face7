"""A schedule and a module together: which parameters train in which phase, checked."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from .._cache import PrefixLevels
from .._freezing import Freeze, can_train, set_trainable
from .._model import Part, Tree, numel, quote, resolve
from .._optimizers import as_optimizers, drop_state, refuse_lbfgs, require_held
from . import rates
from .phase import Phase, raise_all

Named = dict[str, nn.Parameter]


@dataclass(frozen=True)
class ResolvedPhase:
    """One phase over the parameters of a module, each once.

    Attributes:
        phase: The phase.
        train: Name -> parameter that trains.
        frozen: Name -> parameter of the scope that does not.
        rates: The learning rates that the phase sets, by the parameter's id.
    """

    phase: Phase
    train: Named
    frozen: Named
    rates: Mapping[int, float]

    @property
    def ids(self) -> set[int]:
        """The ids of what trains."""
        return {id(p) for p in self.train.values()}

    def leaves_trainable(self) -> Callable[[nn.Parameter], bool]:
        """A function: whether a parameter trains in the phase; outside the scope, as it is now."""
        on, off = self.ids, {id(p) for p in self.frozen.values()}
        return lambda p: id(p) in on or (p.requires_grad and id(p) not in off)


class ResolvedSchedule:
    """What `FreezeSchedule.resolve` returns: the schedule's phases over one module's parameters.

    Nothing in it changes; it holds until the module's structure does.

    Attributes:
        schedule: The schedule.
        phases: Its phases, with parameters.
        prefixes: The module's prefix caches, and the levels that the phases need in them.
    """

    def __init__(
        self,
        module: nn.Module,
        tree: Tree,
        schedule: Any,
        phases: Sequence[ResolvedPhase],
        group_of: Mapping[int, int],
    ) -> None:
        """Made by `resolve_schedule` only."""
        self.schedule = schedule
        self.phases = tuple(phases)
        self.prefixes = PrefixLevels(tree, [phase.leaves_trainable() for phase in phases])
        self._module = module
        self._tree = tree
        self._group_of = group_of
        self._starts = [p.phase.start for p in phases]
        self._entered: int | None = None

    @property
    def ever_trained(self) -> Named:
        """Name -> parameter that some phase trains."""
        return {name: p for phase in self.phases[::-1] for name, p in phase.train.items()}

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the module, input side first."""
        return self._tree.parts

    @property
    def trainable(self) -> int:
        """How many elements of parameters train in the module now, outside the scope too."""
        return sum(numel(p) for p in self._tree.distinct().values() if p.requires_grad)

    def index_at(self, when: float) -> int:
        """The index of the phase at an epoch or step."""
        return bisect.bisect_right(self._starts, when) - 1

    def mistakes(
        self, optimizers: Any, lr_schedulers: Iterable[Any] = (), *, scaled: bool = False
    ) -> list[str]:
        """All that is wrong with these optimizers for this schedule, in words.

        Args:
            optimizers: One or several.
            lr_schedulers: The LR schedulers that run beside the schedule.
            scaled: Whether gradients are scaled (16-bit AMP), which needs something trainable in
                each optimizer in each phase.
        """
        optimizers = _each(optimizers)
        return list(
            dict.fromkeys(
                [
                    *_caught(partial(require_held, optimizers, self.ever_trained)),
                    *self._moved_by_lbfgs(optimizers),
                    *self._badly_grouped(optimizers),
                    *self._overwritten(lr_schedulers),
                    *(self._idle_under_amp(optimizers) if scaled else ()),
                ]
            )
        )

    def prepare(self) -> None:
        """Make trainable what some phase trains, and freeze what none does."""
        ever = self.ever_trained
        ids = {id(p) for p in ever.values()}
        never = {n: p for n, p in self.phases[0].frozen.items() if id(p) not in ids}
        self._entered = None
        set_trainable(self._module, self._tree, frozen=never, trainable=ever)

    def enter(self, index: int, optimizers: Any = None) -> Freeze | None:
        """Bring the module and its optimizers into a phase; None if they were in it already."""
        optimizers = _each(optimizers)
        phase = self.phases[index]
        handle = None
        if self._entered != index or not self._holds(phase):
            handle = self.freeze(index, optimizers)
        # A checkpoint that was loaded since may have brought the state of what is frozen back.
        drop_state(optimizers, phase.frozen.values())
        if phase.phase.sets_rates or any(p.phase.warmup for p in self.phases):
            before = self.phases[index - 1].ids if index else set()
            newcomers, warmup = phase.ids - before, phase.phase.warmup
            rates.begin(optimizers, index, phase.rates, phase.ids, newcomers, warmup)
        return handle

    def freeze(self, index: int, optimizers: Any = None) -> Freeze:
        """Freeze and unfreeze for a phase, whatever the state is."""
        phase = self.phases[index]
        optimizers = _each(optimizers) or None
        handle = set_trainable(
            self._module,
            self._tree,
            frozen=phase.frozen,
            trainable=phase.train,
            optimizer=optimizers,
            stacklevel=5,
        )
        self._entered = index
        return handle

    def anneal(self, optimizers: Any, epoch: float) -> None:
        """Set the rates of progressive freezing at an epoch, which may be a fraction of one."""
        if self.schedule.annealing is not None:
            rates.anneal(_each(optimizers), self.schedule.annealing, self._group_of, epoch)

    def rates(self, optimizers: Any, prefix: str = "") -> dict[str, float]:
        """The present learning rate of every param group, by its name or its number."""
        found: dict[str, float] = {}
        for optimizer_index, optimizer in enumerate(_each(optimizers)):
            for index, group in enumerate(optimizer.param_groups):
                name = str(group.get("name", index))
                if f"{prefix}{name}" in found:
                    name = f"{optimizer_index}/{name}"
                found[f"{prefix}{name}"] = float(group["lr"])
        return found

    def first_factor(self, parameter_id: int) -> float:
        """By what progressive freezing multiplies a parameter's initial rate at the beginning."""
        rule = self.schedule.annealing
        return float(rule.rate(self._group_of[parameter_id], 1.0, 0.0))

    def refuse(self, mistakes: Sequence[str]) -> None:
        """Raise one ValueError that says all of these mistakes, if there are any."""
        raise_all(mistakes)

    def _holds(self, phase: ResolvedPhase) -> bool:
        return all(p.requires_grad for p in phase.train.values()) and not any(
            p.requires_grad or p.grad is not None for p in phase.frozen.values()
        )

    def _moved_by_lbfgs(self, optimizers: Sequence[Optimizer]) -> Iterator[str]:
        for phase in self.phases:
            yield from _caught(partial(refuse_lbfgs, optimizers, phase.frozen.values()))

    def _badly_grouped(self, optimizers: Sequence[Optimizer]) -> Iterator[str]:
        remedy = "give each its own param group, as param_groups(module, lr) does"
        for _, phase in self._setting_rates():
            for label, group in rates.groups_of(optimizers):
                ids = {id(p) for p in group["params"]}
                if not ids & phase.ids:
                    continue
                at = f"phase at {phase.phase.start}"
                if ids - phase.ids:
                    yield (
                        f"{at} sets the learning rate of what it trains, which is only a part of "
                        f"the optimizer's {label}; {remedy}"
                    )
                elif len({phase.rates.get(i) for i in ids}) > 1:
                    yield (
                        f"{at}: lr={phase.phase.lr} gives parameters of the optimizer's {label} "
                        f"different rates; {remedy}"
                    )
        if self.schedule.annealing is not None:
            for label, group in rates.groups_of(optimizers):
                if len({self._group_of.get(id(p)) for p in group["params"]}) > 1:
                    yield (
                        "progressive_freezing gives each layer its own learning rate, and the "
                        f"optimizer's {label} holds more than one layer; {remedy}"
                    )

    def _setting_rates(self) -> Iterator[tuple[int, ResolvedPhase]]:
        return ((i, p) for i, p in enumerate(self.phases) if p.phase.sets_rates)

    def _overwritten(self, lr_schedulers: Iterable[Any]) -> Iterator[str]:
        if self.schedule.annealing is not None:
            yield from rates.unkept(lr_schedulers, any_kind=True)
        elif any(True for _ in self._setting_rates()):
            yield from rates.unkept(lr_schedulers)

    def _idle_under_amp(self, optimizers: Sequence[Optimizer]) -> Iterator[str]:
        for phase in self.phases:
            frozen = {id(p) for p in phase.frozen.values()}
            for index, optimizer in enumerate(optimizers):
                held = [p for group in optimizer.param_groups for p in group["params"]]
                idle = (
                    id(p) in frozen or not (id(p) in phase.ids or p.requires_grad) for p in held
                )
                if all(idle):
                    yield (
                        f"phase at {phase.phase.start} leaves optimizer {index} "
                        f"({type(optimizer).__name__}) nothing that trains, which gradient scaling "
                        '(precision="16-mixed") cannot bear; use "bf16-mixed", or one optimizer'
                    )


def resolve_schedule(schedule: Any, module: nn.Module) -> tuple[ResolvedSchedule, list[str]]:
    """Find the parameters of every phase; also everything that is wrong, in words."""
    tree = Tree(module)
    names, mistakes = _scope(tree, schedule)
    inside = tree.distinct(names)
    phases = []
    for phase in schedule.phases:
        resolved, wrong = _resolve_phase(tree, phase, names, inside, schedule.unit)
        phases.append(resolved)
        mistakes += wrong
    group_of: dict[int, int] = {}
    if schedule.annealing is not None:
        for index, targets in reversed(list(enumerate(schedule.annealing.groups))):
            for name in _union(tree, targets, "groups=", mistakes) & names:
                group_of.setdefault(id(tree.parameters[name]), index)
    return ResolvedSchedule(module, tree, schedule, phases, group_of), list(dict.fromkeys(mistakes))


def _scope(tree: Tree, schedule: Any) -> tuple[set[str], list[str]]:
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
    tree: Tree, phase: Phase, names: set[str], inside: Named, unit: str
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
    train = {n: p for n, p in tree.distinct(chosen).items() if can_train(p)}
    ids = {id(p) for p in tree.distinct(chosen).values()}
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


def _caught(check: Callable[[], None]) -> Iterator[str]:
    try:
        check()
    except ValueError as error:
        yield str(error)


def _each(optimizers: Any) -> tuple[Optimizer, ...]:
    """One, several or no optimizers as a tuple."""
    return as_optimizers(optimizers) if optimizers else ()
