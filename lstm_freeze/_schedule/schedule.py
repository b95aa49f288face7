"""FreezeSchedule: epoch (or step) -> what trains. Pure data, and pure functions of it."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from .._checks import as_integer, as_module, as_number, did_you_mean
from .._freezing import Freeze
from .._model import Target, as_exclusion, as_targets
from .._optimizers import as_optimizers
from . import recipes as recipes  # it fills RECIPES
from .annealing import Annealing
from .lr_schedulers import schedulers_of
from .phase import Phase, as_phases, phase_as_dict, phase_of, raise_all
from .recipe import Recipe
from .recipe_definition import RECIPES, Outline, RecipeMethod, as_rest, definition_of
from .recipes.chain_thaw import chain_thaw
from .recipes.gradual_unfreezing import gradual_unfreezing
from .recipes.linear_probing import linear_probing
from .recipes.progressive_freezing import progressive_freezing
from .resolved import ResolvedSchedule
from .resolving import resolve_schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNITS = ("epoch", "step")
KEYS = ("phases", "unit", "scope", "exclude", "rest")
"""What the description of a schedule may say."""


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
        rest: What is outside the scope: `"leave"` it as the user set it, or `"freeze"` it in all
            phases. What is in `exclude` is left alone in either case.

    Raises:
        ValueError: A phase is wrong, no phase starts at 0 or two start together, or `unit` or
            `rest` is unknown. One error lists all mistakes.
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
        rest: str = "leave",
    ) -> None:
        """Check the arguments, and copy them."""
        if unit not in UNITS:
            raise ValueError(f'`unit` must be "epoch" or "step", got {unit!r}')
        self.unit = unit
        self.scope = tuple(as_targets(scope, "scope"))
        self.exclude = tuple(as_exclusion(exclude))
        self.rest = as_rest(rest, "rest")
        self.annealing: Annealing | None = None
        self._phases = as_phases(phases)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases, by start."""
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
                the groups, and so a checkpoint, note that it was done. An earlier
                epoch than in the last call, or another phase, sets rates again. A warm-up then
                follows their steps by itself. LR schedulers of torch that were made for them and
                would overwrite the rates are refused.

        Returns:
            A handle with `.changed` and `.undo()`; dropping it undoes nothing.

        Raises:
            ValueError: A target of any phase, the scope or an optimizer is wrong; one error
                lists all mistakes, and nothing was changed.

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
        index = resolved.index_at(when)
        if optimizers:
            begins = resolved.begins(index, optimizers, when)
            running = schedulers_of(optimizers) if begins else ()
            raise_all(resolved.mistakes(optimizers, running))
        handle = resolved.enter(index, optimizers, when=when)
        resolved.anneal(optimizers, when)
        return handle

    def resolve(self, module: nn.Module) -> ResolvedSchedule:
        """Find every phase's parameters in a module; what the callbacks are built on.

        Raises:
            ValueError: A target matches nothing, lies outside the scope, or a phase has nothing
                that can train; one error lists all mistakes.

        Examples:
            >>> model = nn.ModuleDict({"encoder": nn.LSTM(4, 8), "head": nn.Linear(8, 2)})
            >>> list(FreezeSchedule({0: "head"}).resolve(model).phases[0].train)
            ['head.weight', 'head.bias']
        """
        resolved, mistakes = self.try_resolve(module)
        raise_all(mistakes)
        return resolved

    def try_resolve(self, module: nn.Module) -> tuple[ResolvedSchedule, list[str]]:
        """Like `resolve`, but return the mistakes, so that an error can list them with others."""
        as_module(module)
        return resolve_schedule(self, module)

    def for_model(self, model: nn.Module) -> FreezeSchedule:
        """The schedule itself; of a `Recipe`, its phases for the model."""
        return self

    # A recipe without a line here works too; the lines are for type checkers.
    gradual_unfreezing = RecipeMethod(gradual_unfreezing)
    chain_thaw = RecipeMethod(chain_thaw)
    linear_probing = RecipeMethod(linear_probing)
    progressive_freezing = RecipeMethod(progressive_freezing)

    @classmethod
    def recipe(cls, name: str, **arguments: Any) -> Recipe:
        """Name a recipe and its arguments; its phases are found when a model is given.

        Args:
            name: `"gradual_unfreezing"`, `"chain_thaw"`, `"linear_probing"` or
                `"progressive_freezing"`.
            arguments: Those of the method of that name, without the model.

        Raises:
            ValueError: There is no such recipe or argument, or a value is out of its range.
            TypeError: An argument is of another type than the method says.

        Examples:
            >>> model = nn.ModuleDict({"encoder": nn.LSTM(4, 8), "head": nn.Linear(8, 2)})
            >>> recipe = FreezeSchedule.recipe("linear_probing", every=5)
            >>> recipe.for_model(model).trainable_at(5)
            ('head', 'encoder')
        """
        return Recipe(name, arguments, cls)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> FreezeSchedule | Recipe:
        """Read a schedule from a YAML file.

        Keys: `phases` (start: targets; or a list of start, train, lr, warmup), `unit`, `scope`,
        `exclude`, `rest`. Or `recipe` (`gradual_unfreezing`, `chain_thaw`, `linear_probing`,
        `progressive_freezing`) and its arguments; then a `Recipe` comes back, whose phases are
        found when a model is given.

        Raises:
            ValueError: Something in the file is wrong; each mistake is listed with line and key.
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
        if self.annealing is not None:
            rest = {} if self.rest == "leave" else {"rest": self.rest}
            return {**self.annealing.description(self.scope), **rest}
        found: dict[str, Any] = {"phases": [phase_as_dict(phase) for phase in self._phases]}
        if self.unit != "epoch":
            found["unit"] = self.unit
        if self.scope != ("*",):
            found["scope"] = list(self.scope)
        if self.exclude:
            found["exclude"] = list(self.exclude)
        if self.rest != "leave":
            found["rest"] = self.rest
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FreezeSchedule):
            return NotImplemented
        return self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        if self.annealing is not None:
            (_, name), *arguments = self.describe().items()
            shown = ", ".join(f"{k}={v!r}" for k, v in arguments if k != "groups")
            return f"FreezeSchedule.{name}({shown})"
        plain = not any(phase.sets_rates for phase in self._phases)
        phases: Any = {p.start: list(p.train) for p in self._phases} if plain else [*self._phases]
        rest = {k: v for k, v in self.describe().items() if k != "phases"}
        return f"FreezeSchedule({phases!r}{''.join(f', {k}={v!r}' for k, v in rest.items())})"

    @classmethod
    def from_outline(
        cls, outline: Outline, scope: tuple[str, ...], rest: str = "leave"
    ) -> FreezeSchedule:
        """The schedule from the outline that a recipe has made for a model."""
        if not isinstance(outline, Annealing):
            return cls(outline, scope=scope, rest=rest)
        schedule = cls(outline.phases(), scope=scope, rest=rest)
        schedule.annealing = outline
        return schedule

    @classmethod
    def from_description(cls, found: Mapping[str, Any]) -> FreezeSchedule | Recipe:
        """Make a schedule or recipe from plain types, as `describe` gives them.

        Examples:
            >>> FreezeSchedule.from_description({"phases": {0: "head"}, "unit": "step"})
            FreezeSchedule({0: ['head']}, unit='step')
        """
        arguments = dict(found)
        recipe = arguments.pop("recipe", None)
        if recipe is None:
            if unknown := [key for key in arguments if key not in KEYS]:
                raise ValueError(
                    f"a schedule has no {unknown[0]!r}; its keys: {', '.join(KEYS)}"
                    + did_you_mean(str(unknown[0]), KEYS)
                )
            phases = arguments.pop("phases", None)
            if isinstance(phases, Iterable) and not isinstance(phases, (Mapping, str)):
                phases = [phase_of(item, f"phases[{i}]") for i, item in enumerate(phases)]
            return cls(phases, **arguments)
        found_in = definition_of(recipe).found
        if not found_in or not {"groups", *found_in} <= arguments.keys():
            return cls.recipe(recipe, **arguments)
        scope, rest = tuple(arguments.pop("scope")), arguments.pop("rest", "leave")
        return cls.from_outline(Annealing.from_description(**arguments), scope, rest)


for _name, _definition in RECIPES.items():
    if _name not in vars(FreezeSchedule):
        setattr(FreezeSchedule, _name, RecipeMethod(_definition.outline))


def _as_time(epoch: Any) -> float:
    if (when := as_number(epoch, "epoch")) < 0:
        raise ValueError(f"`epoch` must not be negative, got {epoch!r}")
    return when
