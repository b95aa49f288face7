"""Recipe: the name of a schedule with arguments; its phases are made for a given model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from .phase import raise_all
from .recipe_definition import RecipeDefinition, definition_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .._freezing import Freeze
    from .schedule import FreezeSchedule


class Recipe:
    """Name a recipe and its arguments; its phases are found when a model is given.

    Made by `FreezeSchedule.recipe`, and by `FreezeSchedule.from_yaml` from a file that names a
    recipe. Whatever takes a schedule takes a recipe too; its phases are made for each model.

    Attributes:
        name: The recipe's name.
        arguments: Its arguments but the model, as they were given.

    Examples:
        >>> from lstm_freeze import FreezeSchedule
        >>> recipe = FreezeSchedule.recipe("linear_probing", every=5)
        >>> recipe
        FreezeSchedule.recipe('linear_probing', every=5)
        >>> model = nn.ModuleDict({"encoder": nn.LSTM(4, 8), "head": nn.Linear(8, 2)})
        >>> recipe.for_model(model).trainable_at(5)
        ('head', 'encoder')
    """

    def __init__(
        self, name: str, arguments: Mapping[str, Any], schedule_class: type[FreezeSchedule]
    ) -> None:
        """Check the name and the arguments; all mistakes are said at once."""
        self.name = definition_of(name).name
        mistakes = self.kind.mistakes(arguments)
        if len(mistakes) == 1:
            raise mistakes[0]
        raise_all([str(mistake) for mistake in mistakes])
        self.arguments = {key: self.kind.check(key, value) for key, value in arguments.items()}
        self._schedule_class = schedule_class

    @property
    def kind(self) -> RecipeDefinition:
        """The definition of the recipe: its function, and the checks of its arguments."""
        return definition_of(self.name)

    @property
    def scope(self) -> tuple[str, ...]:
        """The targets that the schedule will decide about."""
        return self.kind.scope(self.arguments)

    @property
    def rest(self) -> str:
        """What is done with what is outside the scope: "leave" or "freeze"."""
        return self.kind.rest(self.arguments)

    @property
    def exclude(self) -> tuple[str, ...]:
        """The targets in the scope that it will leave alone."""
        return ()

    def for_model(self, model: nn.Module) -> FreezeSchedule:
        """The schedule for a model.

        Raises:
            ValueError: An argument names nothing in the model.
            TypeError: `model` is no module.
        """
        outline = self.kind.outline(model, **self.arguments)
        return self._schedule_class.from_outline(outline, self.scope, self.rest)

    def apply(self, module: nn.Module, epoch: float, optimizer: Any = None) -> Freeze:
        """As `FreezeSchedule.apply`, with the phases that follow from the module."""
        return self.for_model(module).apply(module, epoch, optimizer)

    def preview(self, model: nn.Module, epochs: int) -> str:
        """As `FreezeSchedule.preview`, with the phases that follow from the model."""
        return self.for_model(model).preview(model, epochs)

    def plot(self, model: nn.Module, epochs: int, ax: Axes | None = None) -> Axes:
        """As `FreezeSchedule.plot`, with the phases that follow from the model."""
        return self.for_model(model).plot(model, epochs, ax)

    def to_yaml(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe to a YAML file that `FreezeSchedule.from_yaml` reads as an equal one.

        Raises:
            ImportError: PyYAML is not installed.
        """
        from .yaml import write

        write(self.describe(), path)

    def describe(self) -> dict[str, Any]:
        """The recipe as plain types: what its YAML file says."""
        return {"recipe": self.name, **self.arguments}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Recipe):
            return NotImplemented
        return self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        arguments = "".join(f", {key}={value!r}" for key, value in self.arguments.items())
        return f"FreezeSchedule.recipe({self.name!r}{arguments})"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Raise an error that says how to get a schedule with phases."""
            hint = ""
            if name in ("phases", "trainable_at"):
                hint = (
                    f": the phases of the recipe {self.__dict__.get('name')} follow from a model; "
                    f"take them from recipe.for_model(model).{name}"
                )
            raise AttributeError(f"'Recipe' object has no attribute {name!r}{hint}")
