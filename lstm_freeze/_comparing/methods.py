"""The methods of a comparison, checked before the first score."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .._checks import did_you_mean
from .choice import Choice, candidates

Score = Callable[..., Any]
Methods = dict[str, dict[str, Any]]
_GIVEN = ("train", "test", "seed")


def as_methods(methods: Any, score: Any) -> Methods:
    """The methods as a dict of dicts, where `score` can be called with the settings of each."""
    if not callable(score):
        raise TypeError(
            "`score` must be a function score(train, test, seed, **settings) -> float, "
            f"got {type(score).__name__}"
        )
    if not isinstance(methods, Mapping):
        raise TypeError(
            f"`methods` must be a mapping of names to settings, got {type(methods).__name__}"
        )
    if not methods:
        raise ValueError("`methods` must name at least one method, got an empty mapping")
    for name, settings in methods.items():
        if not isinstance(name, str) or not name.strip():
            raise TypeError(f"a method's name must be a string that is not empty, got {name!r}")
        _check_settings(name, settings)
    checked = {name: dict(settings) for name, settings in methods.items()}
    for name, settings in checked.items():
        _check_call(score, name, settings)
    return checked


def _check_settings(name: str, settings: Any) -> None:
    if not isinstance(settings, Mapping):
        raise TypeError(
            f"methods[{name!r}] must be a mapping of settings, for example {{'lr': 0.01}}, "
            f"got {settings!r}"
        )
    for key, value in settings.items():
        if not isinstance(key, str):
            raise TypeError(f"methods[{name!r}]: a setting's name must be a string, got {key!r}")
        if key in _GIVEN:
            raise ValueError(
                f"methods[{name!r}]: {key!r} is no setting, `compare` itself passes it to `score`"
            )
        if _holds_choice(value):
            raise ValueError(
                f"methods[{name!r}]: a Choice must be the whole value of {key!r}, got it inside "
                f"{value!r}; put the alternatives into the Choice"
            )
        # Each call gets a copy: a model among the settings, trained by one call, would otherwise
        # bring what it learned from a test set into the next.
        try:
            copy.deepcopy(value)
        except Exception as error:
            raise TypeError(
                f"methods[{name!r}]: {key!r} cannot be copied ({type(error).__name__}: {error}); "
                "each call of `score` gets its own copy, so give a function that makes the value"
            ) from error


def _holds_choice(value: Any) -> bool:
    inside: list[Any] = []
    if isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        inside = list(value)
    return any(isinstance(item, Choice) or _holds_choice(item) for item in inside)


def _check_call(score: Score, name: str, settings: Mapping[str, Any]) -> None:
    """Raise TypeError where `score` cannot be called with these settings."""
    try:
        signature = inspect.signature(score)
    except (TypeError, ValueError):  # some built-in callables have no signature
        return
    try:
        signature.bind(None, None, 0, **candidates(settings)[0])
    except TypeError as error:
        known = [n for n in signature.parameters if n not in _GIVEN]
        unknown = [key for key in settings if key not in known]
        hint = did_you_mean(unknown[0], known) if unknown else ""
        raise TypeError(
            f"methods[{name!r}] does not fit score{signature}, which is called as "
            f"score(train, test, seed, **settings): {error}{hint}"
        ) from None
