"""RecipeDefinition: a function from a model to phases, and a check of each argument.

A new recipe is one file in `recipes/` with one decorated function; `FreezeSchedule`, YAML files and
the callbacks find it by its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Generic, ParamSpec

from .._checks import as_integer, as_one_of, did_you_mean
from .._model import as_groups
from .annealing import Annealing
from .phase import Phase

if TYPE_CHECKING:
    from .schedule import FreezeSchedule

Outline = tuple[Phase, ...] | Annealing
"""What a recipe makes of a model: phases, or the rule that they follow from."""
Check = Callable[[Any, str], Any]
"""(value, argument's name) -> the value, where it is right; else ValueError or TypeError."""
P = ParamSpec("P")


@dataclass(frozen=True)
class RecipeDefinition:
    """One recipe: its name, its function and the checks of its arguments.

    Attributes:
        name: Its name in YAML files, and of FreezeSchedule's method.
        outline: The function: model and arguments to phases.
        checks: Argument -> its check.
        defaults: Argument -> its default, for those that may be left out.
        found: Further keys in the description of a schedule it has made, about the model.
    """

    name: str
    outline: Callable[..., Outline]
    checks: Mapping[str, Check]
    defaults: Mapping[str, Any]
    found: tuple[str, ...]

    @property
    def required(self) -> list[str]:
        """The arguments without a default."""
        return [name for name in self.checks if name not in self.defaults]

    def check(self, argument: str, value: Any) -> Any:
        """The value of an argument, where it is right.

        Raises:
            ValueError: The value is out of its range, or there is no such argument.
            TypeError: The value is of another type.
        """
        if argument not in self.checks:
            raise ValueError(
                f"{self.name} takes no {argument!r}; its arguments: {', '.join(self.checks)}"
                + did_you_mean(argument, self.checks)
            )
        return self.checks[argument](value, argument)

    def mistakes(self, arguments: Mapping[str, Any]) -> list[Exception]:
        """All mistakes in the arguments that can be found without a model."""
        mistakes: list[Exception] = []
        for name, value in arguments.items():
            try:
                self.check(name, value)
            except (ValueError, TypeError) as error:
                mistakes.append(error)
        for name in self.required:
            if name not in arguments:
                mistakes.append(ValueError(f"{self.name} needs `{name}`"))
        return mistakes

    def scope(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """The targets that the schedule decides about: encoder and head, or the user's groups."""
        given = {**self.defaults, **arguments}
        if (groups := given.get("groups")) is not None:
            return tuple(target for group in as_groups(groups) for target in group)
        return given["encoder"], given["head"]

    def rest(self, arguments: Mapping[str, Any]) -> str:
        """What to do with everything else: "leave" or "freeze"."""
        return str({**self.defaults, **arguments}.get("rest", "leave"))


RECIPES: dict[str, RecipeDefinition] = {}
"""Name -> recipe; `recipes` fills it."""


def recipe(
    *, found: tuple[str, ...] = (), **checks: Check
) -> Callable[[Callable[P, Outline]], Callable[P, Outline]]:
    """Make a function a recipe: its first argument is the model, and each other one is checked."""

    def register(function: Callable[P, Outline]) -> Callable[P, Outline]:
        signature = inspect.signature(function)
        _, *arguments = signature.parameters.values()

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> Outline:
            bound = signature.bind(*args, **kwargs)
            for name, check in checks.items():
                if name in bound.arguments:
                    bound.arguments[name] = check(bound.arguments[name], name)
            return function(*bound.args, **bound.kwargs)

        assert list(checks) == [a.name for a in arguments], "each argument has its check, in order"
        defaults = {a.name: a.default for a in arguments if a.default is not a.empty}
        name = function.__name__
        RECIPES[name] = RecipeDefinition(name, checked, checks, defaults, found)
        return checked

    return register


def definition_of(name: Any) -> RecipeDefinition:
    """The recipe of a name.

    Raises:
        ValueError: There is none.
    """
    if not isinstance(name, str) or name not in RECIPES:
        raise ValueError(
            f"no recipe {name!r}; the recipes: {', '.join(sorted(RECIPES))}"
            + did_you_mean(str(name), RECIPES)
        )
    return RECIPES[name]


class RecipeMethod(Generic[P]):
    """A recipe as a method of FreezeSchedule: the same arguments, and a schedule for the model."""

    def __init__(self, outline: Callable[P, Outline]) -> None:
        """A method of the function's name."""
        self.outline = outline

    def __get__(self, instance: object, owner: type[FreezeSchedule]) -> Callable[P, FreezeSchedule]:
        """The method, for the class it is called on."""
        outline = self.outline
        signature = inspect.signature(outline)
        kind = RECIPES[outline.__name__]

        @wraps(outline)
        def method(*args: P.args, **kwargs: P.kwargs) -> FreezeSchedule:
            made = outline(*args, **kwargs)
            arguments = signature.bind(*args, **kwargs).arguments
            return owner.from_outline(made, kind.scope(arguments), kind.rest(arguments))

        return method


def as_part(value: Any, argument: str) -> str:
    """One target, that names a part of the model."""
    if not isinstance(value, str):
        raise TypeError(f"`{argument}` must be one target (a string), got {value!r}")
    if not value:
        raise ValueError(f"`{argument}` must name a part of the module, got ''")
    return value


def as_own_layers(value: Any, argument: str) -> list[list[str]] | None:
    """The user's own groups, as plain lists; None where there are none."""
    return None if value is None else [list(group) for group in as_groups(value, argument)]


def as_rest(value: Any, argument: str) -> str:
    """What is done with what is outside the scope."""
    return str(as_one_of(value, argument, ("leave", "freeze")))


def as_length(value: Any, argument: str) -> int:
    """A number of epochs, at least 1."""
    return as_integer(value, argument, least=1)
