"""FreezeSchedule: epoch (or step) -> what trains. Pure data; the functions of it have no memory."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from .._checks import as_integer, as_module, as_number
from .._freezing import Freeze
from .._model import Target, Tree, as_targets
from .._optimizers import as_optimizers
from . import recipes
from .phase import Annealing, Phase, as_phases, described
from .resolved import ResolvedSchedule, resolve_schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNITS = ("epoch", "step")


class FreezeSchedule:
    """Say what trains when: in each phase exactly the named targets; the rest of `scope` is frozen.

    A pure function of the epoch (or optimizer step), so the state after resuming at epoch 7 is the
    state of epoch 7. Phases may freeze again what they trained. What is outside `scope` or in
    `exclude` stays as the user set it.

    Args:
        phases: Start -> targets (as in `select`), or a list of `Phase`; one must start at 0.
        unit: `"epoch"` or `"step"` (optimizer steps): what the starts count.
        scope: Targets the schedule decides about; None is the whole module. Targets of a phase
            count as far as they lie in it.
        exclude: Targets within the scope to leave alone.

    Raises:
        ValueError: A phase is wrong, no phase starts at 0 or two start together, or `unit` is
            unknown. All such mistakes are said at once.
        TypeError: An argument is of another type than named above.

    Examples:
        >>> model = nn.ModuleDict({"encoder": nn.LSTM(4, 8, 2), "head": nn.Linear(8, 2)})
        >>> schedule = FreezeSchedule({0: ["head"], 1: ["head", "encoder[-1]"], 3: ["*"]})
        >>> schedule.trainable_at(2)
        ('head', 'encoder[-1]')
        >>> schedule.apply(model, 0).changed[:2]
        ('encoder.weight_ih_l0', 'encoder.weight_hh_l0')
        >>> model.encoder.weight_ih_l1.requires_grad
        False
    """

    def __init__(
        self,
        phases: Mapping[int, Target] | Iterable[Phase],
        *,
        unit: str = "epoch",
        scope: Target = "*",
        exclude: Target = None,
    ) -> None:
        """Check the arguments, and copy them."""
        if unit not in UNITS:
            raise ValueError(f'`unit` must be "epoch" or "step", got {unit!r}')
        self.unit = unit
        self.scope = tuple(as_targets(scope, "scope"))
        self.exclude = () if exclude is None else tuple(as_targets(exclude, "exclude"))
        self.annealing: Annealing | None = None
        self._recipe: tuple[str, dict[str, Any]] | None = None
        self._phases = as_phases(phases)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases, by start.

        Raises:
            ValueError: The schedule was read as a recipe, whose phases follow from a model.
        """
        if self._recipe is not None:
            raise ValueError(
                f"the phases of the recipe {self._recipe[0]} follow from a model; take them from "
                "schedule.for_model(model).phases"
            )
        return self._phases

    def trainable_at(self, epoch: float) -> tuple[str, ...]:
        """Name the targets that train at an epoch (or step).

        Examples:
            >>> FreezeSchedule({0: "head", 2: "*"}).trainable_at(7)
            ('*',)
        """
        starts = [phase.start for phase in self.phases]
        return self.phases[bisect.bisect_right(starts, _as_time(epoch)) - 1].train

    def apply(self, module: nn.Module, epoch: float, optimizer: Any = None) -> Freeze:
        """Bring a module into the state of an epoch; call it at each epoch (or step).

        Args:
            module: The module to freeze and unfreeze in.
            epoch: The epoch, or the optimizer step where the unit is the step. Progressive
                freezing takes fractions of an epoch, for the rates in between.
            optimizer: One or several that train the module. They drop the state of what is
                frozen, and their param groups get the rates of the phase, once, at its first call;
                that it was done is kept in the groups, and with them in a checkpoint. A warm-up
                then follows their steps by itself.

        Returns:
            A handle with `.changed` and `.undo()`; dropping it undoes nothing.

        Raises:
            ValueError: A target of any phase, the scope or an optimizer is wrong; all mistakes
                are said at once, and nothing was changed.

        Examples:
            >>> model = nn.ModuleDict({"encoder": nn.LSTM(4, 8), "head": nn.Linear(8, 2)})
            >>> schedule = FreezeSchedule({0: "head", 2: "*"})
            >>> for epoch in range(4):
            ...     handle = schedule.apply(model, epoch)
            ...     print(epoch, len(handle.changed), model.encoder.weight_ih_l0.requires_grad)
            0 4 False
            1 0 False
            2 4 True
            3 0 True
        """
        when = _as_time(epoch)
        resolved = self.resolve(module)
        optimizers = as_optimizers(optimizer)
        if optimizers:
            resolved.refuse(resolved.mistakes(optimizers))
        index = resolved.index_at(when)
        handle = resolved.freeze(index, optimizers)
        resolved.enter(index, optimizers)
        resolved.anneal(optimizers, when)
        return handle

    def resolve(self, module: nn.Module) -> ResolvedSchedule:
        """Find every phase's parameters in a module; what the callbacks are built on.

        Raises:
            ValueError: A target matches nothing, lies outside the scope, or a phase has nothing
                that can train; all mistakes are said at once.

        Examples:
            >>> model = nn.ModuleDict({"encoder": nn.LSTM(4, 8), "head": nn.Linear(8, 2)})
            >>> list(FreezeSchedule({0: "head"}).resolve(model).phases[0].train)
            ['head.weight', 'head.bias']
        """
        resolved, mistakes = self.try_resolve(module)
        resolved.refuse(mistakes)
        return resolved

    def try_resolve(self, module: nn.Module) -> tuple[ResolvedSchedule, list[str]]:
        """As `resolve`, but return the mistakes, so that they can be said with others."""
        as_module(module)
        return resolve_schedule(self.for_model(module), module)

    def for_model(self, model: nn.Module) -> FreezeSchedule:
        """Work out the phases of a recipe that was read from YAML; any other schedule as it is."""
        if self._recipe is None:
            return self
        name, arguments = self._recipe
        schedule: FreezeSchedule = getattr(FreezeSchedule, name)(model, **arguments)
        return schedule

    @classmethod
    def gradual_unfreezing(
        cls,
        model: nn.Module,
        encoder: str = "encoder",
        head: str = "head",
        every: int = 1,
        lr: float | Mapping[str, float] | None = None,
    ) -> FreezeSchedule:
        """Train the head first, and every `every` epochs the next lower group too (ULMFiT).

        The groups: the head; the RNN layers from the top, both directions together (several RNNs
        in order from the output); then all that remains of the encoder. The paper's
        discriminative rates are those of `param_groups(model, lr, layer_decay=1 / 2.6)`, its
        slanted triangular rate is `slanted_triangular`; both go with `lr=None`.
        Howard & Ruder 2018, arXiv 1801.06146.

        Args:
            model: The model, for its layers.
            encoder: A target: what is unfrozen step by step.
            head: A target: what trains from the beginning.
            every: The length of a phase in epochs.
            lr: As in `Phase`, for every phase.

        Examples:
            >>> model = nn.ModuleDict({"encoder": nn.LSTM(4, 8, 2), "head": nn.Linear(8, 2)})
            >>> for phase in FreezeSchedule.gradual_unfreezing(model).phases:
            ...     print(phase)
            Phase(0, ['head'])
            Phase(1, ['head', 'encoder[1]'])
            Phase(2, ['head', 'encoder[1]', 'encoder[0]'])
        """
        return cls._phased("gradual_unfreezing", model, encoder, head, every, lr)

    @classmethod
    def chain_thaw(
        cls,
        model: nn.Module,
        encoder: str = "encoder",
        head: str = "head",
        every: int = 1,
        lr: float | Mapping[str, float] | None = None,
    ) -> FreezeSchedule:
        """Train the head, then each other layer alone from the first to the last, then all.

        In the paper every stage lasts until a metric stops improving and begins from the best
        weights with fresh optimizer state; in Lightning that is
        `FreezeScheduler(..., advance=Plateau(patience=5, restore_best=True))`.
        Felbo et al. 2017 (DeepMoji), arXiv 1708.00524.

        Args:
            model: The model, for its layers.
            encoder: A target: the other layers.
            head: A target: the new, output layer.
            every: The length of a stage in epochs.
            lr: The rate of the head's stage; the stages after it have a tenth of it (in the
                paper 1e-3 and 1e-4). A mapping is as in `Phase`, for every stage.

        Examples:
            >>> model = nn.ModuleDict({"encoder": nn.LSTM(4, 8, 2), "head": nn.Linear(8, 2)})
            >>> [phase.train for phase in FreezeSchedule.chain_thaw(model).phases]
            [('head',), ('encoder[0]',), ('encoder[1]',), ('head', 'encoder')]
        """
        return cls._phased("chain_thaw", model, encoder, head, every, lr)

    @classmethod
    def linear_probing(
        cls,
        model: nn.Module,
        encoder: str = "encoder",
        head: str = "head",
        every: int = 1,
        lr: float | Mapping[str, float] | None = None,
    ) -> FreezeSchedule:
        """Train the head on a frozen encoder for `every` epochs, then both (LP-FT).

        Kumar et al. 2022, arXiv 2202.10054.

        Args:
            model: The model, to check the targets.
            encoder: A target: what is frozen first.
            head: A target: what trains from the beginning.
            every: The length of the linear probing in epochs.
            lr: As in `Phase`, for both phases.

        Examples:
            >>> model = nn.ModuleDict({"encoder": nn.LSTM(4, 8), "head": nn.Linear(8, 2)})
            >>> FreezeSchedule.linear_probing(model, every=5).phases
            (Phase(0, ['head']), Phase(5, ['head', 'encoder']))
        """
        return cls._phased("linear_probing", model, encoder, head, every, lr)

    @classmethod
    def progressive_freezing(
        cls,
        model: nn.Module,
        total: int,
        encoder: str = "encoder",
        head: str = "head",
        t0: float = 0.8,
        how: str = "cubic",
        scaled: bool = True,
    ) -> FreezeSchedule:
        """Freeze layer after layer for good, input side first (FreezeOut).

        Layer i of L (0 is the input-most layer of the encoder, L the head) trains for the fraction
        r_i = s(t0 + (1 - t0) i / L) of the training. Its rate falls along its own cosine from the
        rate the param group began with to 0 at that time, and it is frozen at the next epoch's
        start. The rates are set in each step, so each layer needs its own param group, and an LR
        scheduler is refused. Brock et al. 2017, arXiv 1706.04983.

        Args:
            model: The model, for its layers.
            total: The length of the training in epochs.
            encoder: A target: the layers that freeze.
            head: A target: the layer that trains to the end.
            t0: Where the first layer freezes, before the shape.
            how: The shape s: `"linear"`, `"squared"` or `"cubic"`.
            scaled: Divide each layer's initial rate by r_i, so that each travels as far.

        Examples:
            >>> model = nn.ModuleDict({"encoder": nn.LSTM(4, 8, 2), "head": nn.Linear(8, 2)})
            >>> FreezeSchedule.progressive_freezing(model, 10, t0=0.5, how="linear").phases[1:]
            (Phase(5, ['encoder[1]', 'head']), Phase(8, ['head']))
        """
        tree = _as_tree(model)
        rule = recipes.progressive_freezing(tree, total, encoder, head, t0, how, scaled)
        return cls._annealed(rule, encoder, head)

    @classmethod
    def recipe(cls, name: str, **arguments: Any) -> FreezeSchedule:
        """Name a recipe and its arguments; its phases are found when a model is given.

        Args:
            name: `"gradual_unfreezing"`, `"chain_thaw"`, `"linear_probing"` or
                `"progressive_freezing"`.
            arguments: Those of the method of that name, without the model.

        Raises:
            ValueError: There is no such recipe or argument.

        Examples:
            >>> model = nn.ModuleDict({"encoder": nn.LSTM(4, 8), "head": nn.Linear(8, 2)})
            >>> schedule = FreezeSchedule.recipe("linear_probing", every=5)
            >>> schedule.for_model(model).trainable_at(5)
            ('head', 'encoder')
        """
        recipes.check_arguments(name, arguments)
        scope = (arguments.get("encoder", "encoder"), arguments.get("head", "head"))
        schedule = cls({0: scope[1]}, scope=scope)
        schedule._recipe = (name, dict(arguments))
        return schedule

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> FreezeSchedule:
        """Read a schedule from a YAML file.

        Keys: `phases` (start: targets; or a list of start, train, lr, warmup), `unit`, `scope`,
        `exclude`. Or `recipe` (`gradual_unfreezing`, `chain_thaw`, `linear_probing`,
        `progressive_freezing`) and its arguments; its phases are found when a model is given.

        Raises:
            ValueError: Something in the file is wrong; every mistake is said, with line and key.
            ImportError: PyYAML is not installed.

        Examples:
            >>> import pathlib, tempfile
            >>> path = pathlib.Path(tempfile.mkdtemp()) / "schedule.yaml"
            >>> _ = path.write_text("phases: {0: head, 3: ['*']}")
            >>> FreezeSchedule.from_yaml(path)
            FreezeSchedule({0: ['head'], 3: ['*']})
        """
        from .yaml import read

        return cls.from_description(read(path))

    def to_yaml(self, path: str | os.PathLike[str]) -> None:
        """Write the schedule to a YAML file that `from_yaml` reads as an equal schedule.

        Raises:
            ImportError: PyYAML is not installed.
        """
        from .yaml import write

        write(self.describe(), path)

    def preview(self, model: nn.Module, epochs: int) -> str:
        """Draw, as a text table, who trains when, at which rates, and how many parameters.

        Args:
            model: The model the schedule is for; nothing in it is changed.
            epochs: How many epochs (or steps) to show.
        """
        from .view import preview

        return preview(
            self.resolve(as_module(model, "model")), as_integer(epochs, "epochs", least=1)
        )

    def plot(self, model: nn.Module, epochs: int, ax: Axes | None = None) -> Axes:
        """Draw who trains when, at which rates, and how many parameters, with matplotlib.

        Args:
            model: The model the schedule is for; nothing in it is changed.
            epochs: How many epochs (or steps) to show.
            ax: Where to draw; None makes a figure of a fitting size.

        Raises:
            ImportError: matplotlib is not installed.
            TypeError: `ax` is not an Axes of matplotlib.
        """
        from .view import plot

        return plot(
            self.resolve(as_module(model, "model")), as_integer(epochs, "epochs", least=1), ax
        )

    def describe(self) -> dict[str, Any]:
        """The schedule as plain types (dicts, lists, strings, numbers): what its YAML file says."""
        if self._recipe is not None:
            return {"recipe": self._recipe[0], **self._recipe[1]}
        if self.annealing is not None:
            rule = self.annealing
            return {
                "recipe": "progressive_freezing",
                "total": rule.total,
                "encoder": self.scope[0],
                "head": self.scope[1],
                "t0": rule.t0,
                "how": rule.how,
                "scaled": rule.scaled,
                "groups": [list(group) for group in rule.groups],
            }
        found: dict[str, Any] = {"phases": [described(phase) for phase in self._phases]}
        if self.unit != "epoch":
            found["unit"] = self.unit
        if self.scope != ("*",):
            found["scope"] = list(self.scope)
        if self.exclude:
            found["exclude"] = list(self.exclude)
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FreezeSchedule):
            return NotImplemented
        return self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        if self._recipe is not None or self.annealing is not None:
            (_, name), *arguments = self.describe().items()
            shown = ", ".join(f"{k}={v!r}" for k, v in arguments if k != "groups")
            return f"FreezeSchedule.{name}({shown})"
        plain = not any(phase.sets_rates for phase in self._phases)
        phases: Any = {p.start: list(p.train) for p in self._phases} if plain else [*self._phases]
        rest = {k: v for k, v in self.describe().items() if k != "phases"}
        return f"FreezeSchedule({phases!r}{''.join(f', {k}={v!r}' for k, v in rest.items())})"

    @classmethod
    def _phased(
        cls, name: str, model: nn.Module, encoder: str, head: str, every: int, lr: Any
    ) -> FreezeSchedule:
        phases = recipes.PHASED[name](_as_tree(model), encoder, head, every, lr)
        return cls(phases, scope=(encoder, head))

    @classmethod
    def _annealed(cls, rule: Annealing, encoder: str, head: str) -> FreezeSchedule:
        schedule = cls(rule.phases(), scope=(encoder, head))
        schedule.annealing = rule
        return schedule

    @classmethod
    def from_description(cls, found: Mapping[str, Any]) -> FreezeSchedule:
        """Make a schedule from plain types, as `describe` gives them.

        Examples:
            >>> FreezeSchedule.from_description({"phases": {0: "head"}, "unit": "step"})
            FreezeSchedule({0: ['head']}, unit='step')
        """
        arguments = dict(found)
        recipe = arguments.pop("recipe", None)
        if recipe is None:
            phases = arguments.pop("phases")
            if not isinstance(phases, Mapping):
                phases = [Phase(**phase) for phase in phases]
            return cls(phases, **arguments)
        if (groups := arguments.pop("groups", None)) is None:
            return cls.recipe(recipe, **arguments)
        encoder, head = arguments.pop("encoder"), arguments.pop("head")
        rule = Annealing(groups=tuple(map(tuple, groups)), **arguments)
        return cls._annealed(rule, encoder, head)


def _as_time(epoch: Any) -> float:
    if (when := as_number(epoch, "epoch")) < 0:
        raise ValueError(f"`epoch` must not be negative, got {epoch!r}")
    return when


def _as_tree(model: Any) -> Tree:
    return Tree(as_module(model, "model"))
