"""ResolvedSchedule: which parameters of a module train in which phase of a schedule."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from .._cache import PrefixLevels
from .._freezing import Freeze, sentence_about_constants, set_trainable
from .._model import Part, Tree, numel
from .._optimizers import innermost, refuse_lbfgs, require_held
from . import rates
from .annealing import Annealing
from .lr_schedulers import overwriting
from .phase import Phase

if TYPE_CHECKING:
    from .schedule import FreezeSchedule

Named = dict[str, nn.Parameter]


@dataclass(frozen=True)
class ResolvedPhase:
    """One phase over the parameters of a module, each once.

    Attributes:
        phase: The phase.
        train: Name -> parameter that trains.
        frozen: Name -> parameter of the scope that does not train.
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
        """A function that says whether a parameter trains in the phase.

        Outside of the scope it says whether the parameter trains now.
        """
        on, off = self.ids, {id(p) for p in self.frozen.values()}
        return lambda p: id(p) in on or (p.requires_grad and id(p) not in off)


class ResolvedSchedule:
    """What `FreezeSchedule.resolve` returns: the schedule's phases over one module's parameters.

    It does not follow later changes of the module's structure.

    Attributes:
        schedule: The schedule.
        phases: Its phases, with parameters.
        inside: Name -> parameter of the scope, without what is excluded.
        constants: Name -> parameter that was frozen before this library first touched the module,
            and that no target of any phase names; no phase trains it.
        prefixes: The module's prefix caches, and the levels that the phases need in them.
    """

    def __init__(
        self,
        module: nn.Module,
        tree: Tree,
        schedule: FreezeSchedule,
        phases: Sequence[ResolvedPhase],
        inside: Named,
        layer_of: Mapping[int, int],
        constants: Named,
    ) -> None:
        """Made by `resolve_schedule` only."""
        self.schedule = schedule
        self.phases = tuple(phases)
        self.inside = inside
        self.constants = constants
        self.prefixes = PrefixLevels(tree, [phase.leaves_trainable() for phase in phases])
        self._module = module
        self._tree = tree
        self._layer_of = layer_of
        self._inside_ids = {id(p) for p in inside.values()}
        self._starts = [p.phase.start for p in phases]
        self._entered: int | None = None

    @property
    def ever_trained(self) -> Named:
        """Name -> parameter that some phase trains."""
        return {name: p for phase in self.phases[::-1] for name, p in phase.train.items()}

    @property
    def also_trained(self) -> Named:
        """Name -> parameter that trains now and that the schedule leaves alone."""
        inside = {id(p) for p in (*self.phases[0].train.values(), *self.phases[0].frozen.values())}
        distinct = self._tree.distinct()
        return {n: p for n, p in distinct.items() if p.requires_grad and id(p) not in inside}

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the module, input side first."""
        return self._tree.parts

    @property
    def about_constants(self) -> str:
        """A sentence about the parameters that no phase trains because they are constants."""
        return sentence_about_constants(self._tree, self.constants)

    @property
    def trainable(self) -> int:
        """How many elements of parameters train in the module now, outside the scope too."""
        return sum(numel(p) for p in self._tree.distinct().values() if p.requires_grad)

    def index_at(self, when: float) -> int:
        """The index of the phase at an epoch or step."""
        return bisect.bisect_right(self._starts, when) - 1

    def mistakes(
        self,
        optimizers: Sequence[Optimizer],
        lr_schedulers: Iterable[Any] = (),
        *,
        scaled: bool = False,
    ) -> list[str]:
        """All mistakes in these optimizers for this schedule, in words.

        Args:
            optimizers: One or several.
            lr_schedulers: The LR schedulers that run beside the schedule.
            scaled: Whether gradients are scaled (16-bit AMP), which needs something trainable in
                each optimizer in each phase.
        """
        return list(
            dict.fromkeys(
                [
                    *_caught(partial(require_held, tuple(optimizers), self.ever_trained)),
                    *self._moved_by_lbfgs(optimizers),
                    *self._badly_grouped(optimizers),
                    *self._overwritten(lr_schedulers),
                    *self._unheard(optimizers),
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

    def is_entered(self, index: int) -> bool:
        """Whether the module has entered a phase, and is still in its state."""
        phase = self.phases[index]
        return (
            self._entered == index
            and all(p.requires_grad for p in phase.train.values())
            and not any(p.requires_grad or p.grad is not None for p in phase.frozen.values())
        )

    def enter(
        self,
        index: int,
        optimizers: Sequence[Optimizer] = (),
        *,
        when: float | None = None,
        show_warm_up: bool = True,
    ) -> Freeze:
        """Bring the module and its optimizers into a phase, from any state.

        The rates of a phase are set once; the param groups note that it was done.

        Args:
            index: Which phase.
            optimizers: One or several.
            when: The epoch or step, where nothing else shows that a new run begins.
            show_warm_up: Whether the rate between two steps of a warm-up is that of the next step.
        """
        phase = self.phases[index]
        handle = set_trainable(
            self._module,
            self._tree,
            frozen=phase.frozen,
            trainable=phase.train,
            optimizer=optimizers or None,
        )
        self._entered = index
        if self.sets_rates:
            before = self.phases[index - 1].ids if index else set()
            rates.begin_phase(
                optimizers,
                self._mark(index),
                when,
                phase.rates,
                phase.ids,
                self._inside_ids,
                newcomers=phase.ids - before,
                steps=phase.phase.warmup,
                show=show_warm_up,
            )
        return handle

    @property
    def sets_rates(self) -> bool:
        """Whether the schedule sets or warms up learning rates."""
        annealed = self.schedule.annealing is not None
        return annealed or any(phase.phase.sets_rates for phase in self.phases)

    @property
    def warms_up(self) -> bool:
        """Whether some phase has a warm-up."""
        return any(phase.phase.warmup for phase in self.phases)

    def begins(self, index: int, optimizers: Sequence[Optimizer], when: float) -> bool:
        """Whether the schedule sets rates, and this call is the first of a phase."""
        return self.sets_rates and not all(
            rates.is_begun(group, self._mark(index), when)
            for _, group in rates.labelled_groups(optimizers)
            if any(id(p) in self._inside_ids for p in group["params"])
        )

    def forget_rates(self, optimizers: Sequence[Optimizer]) -> None:
        """Forget which phases have set their rates, for a new run."""
        rates.forget(optimizers, self._inside_ids)

    def anneal(self, optimizers: Sequence[Optimizer], epoch: float) -> None:
        """Set the rates of progressive freezing at an epoch, which may be a fraction of one."""
        if self.schedule.annealing is not None:
            rates.anneal(optimizers, self.schedule.annealing, self._layer_of, epoch)

    def first_factor(self, annealing: Annealing, parameter_id: int) -> float:
        """The factor of progressive freezing on a parameter's initial rate, at the beginning."""
        return annealing.rate(self._layer_of[parameter_id], 1.0, 0.0)

    def _moved_by_lbfgs(self, optimizers: Sequence[Optimizer]) -> Iterator[str]:
        for phase in self.phases:
            yield from _caught(partial(refuse_lbfgs, optimizers, phase.frozen.values()))

    def _badly_grouped(self, optimizers: Sequence[Optimizer]) -> Iterator[str]:
        remedy = "give each its own param group, as param_groups(module, lr) does"
        constants = {id(p) for p in self.constants.values()}
        for _, phase in self._setting_rates():
            for label, group in rates.labelled_groups(optimizers):
                ids = {id(p) for p in group["params"]} - constants
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
            for label, group in rates.labelled_groups(optimizers):
                if len({self._layer_of.get(id(p)) for p in group["params"]}) > 1:
                    yield (
                        "progressive_freezing gives each layer its own learning rate, and the "
                        f"optimizer's {label} holds more than one layer; {remedy}"
                    )

    def _setting_rates(self) -> Iterator[tuple[int, ResolvedPhase]]:
        return ((i, p) for i, p in enumerate(self.phases) if p.phase.sets_rates)

    def _overwritten(self, schedulers: Iterable[Any]) -> Iterator[str]:
        if self.sets_rates:
            yield from overwriting(schedulers, annealed=self.schedule.annealing is not None)

    def _unheard(self, optimizers: Sequence[Optimizer]) -> Iterator[str]:
        for optimizer in innermost(optimizers) if self.warms_up else ():
            if not isinstance(optimizer, Optimizer):
                kind = type(optimizer)
                yield (
                    f"warmup= counts optimizer steps, and {kind.__module__}.{kind.__qualname__} "
                    "calls no step hooks of torch; leave warmup= out of the phases, or train with "
                    "a torch.optim.Optimizer"
                )

    def _mark(self, index: int) -> str:
        return rates.phase_mark(self.phases[index].phase, self.schedule.unit)

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


def _caught(check: Callable[[], None]) -> Iterator[str]:
    try:
        check()
    except ValueError as error:
        yield str(error)
