"""The forms in which users give a schedule, and how each becomes one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import nn

from lstm_freeze import FreezeSchedule, Phase, Recipe

Made = FreezeSchedule | Recipe | Callable[[nn.Module], FreezeSchedule | Recipe]
"""A schedule, a recipe, or the function that makes one for a module."""
Given = Made | dict[int | str, Any] | list[Phase] | str | os.PathLike[str]
"""The forms in which users give a schedule."""


def as_schedule(schedule: object) -> Made:
    """The schedule, recipe or function that a user has given in one of the forms.

    Mappings and lists may be of any type, like those of configuration frameworks.
    """
    if isinstance(schedule, (FreezeSchedule, Recipe)):
        return schedule
    if isinstance(schedule, (str, os.PathLike)):
        return FreezeSchedule.from_yaml(schedule)
    if isinstance(schedule, Mapping) and schedule.keys() & {"phases", "recipe"}:
        # LightningCLI reads a YAML file at a path itself, and passes the content.
        return FreezeSchedule.from_description(schedule)
    if isinstance(schedule, Sequence) and all(isinstance(item, Mapping) for item in schedule):
        return FreezeSchedule.from_description({"phases": schedule})
    if isinstance(schedule, (Mapping, Sequence)) and not isinstance(schedule, bytes):
        return FreezeSchedule(schedule)
    if callable(schedule):
        return cast("Callable[[nn.Module], FreezeSchedule | Recipe]", schedule)
    raise TypeError(
        "`schedule` must be a FreezeSchedule, a mapping start -> targets, the path of a YAML file "
        f"or a function module -> FreezeSchedule, got {type(schedule).__name__}"
    )


def schedule_for(made: Made, module: nn.Module) -> FreezeSchedule:
    """The schedule for a module.

    Raises:
        TypeError: A function returned something else.
        ValueError: A recipe's argument names nothing in the module.
    """
    if not isinstance(made, (FreezeSchedule, Recipe)):
        made = made(module)
        if not isinstance(made, (FreezeSchedule, Recipe)):
            raise TypeError(f"`schedule` must return a FreezeSchedule, it returned {made!r}")
    return made.for_model(module)
