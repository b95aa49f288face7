"""Reads and writes a schedule's YAML file; one error lists all mistakes with line and key."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .._checks import did_you_mean
from .._model import as_targets
from .phase import PHASE_KEYS, Phase, phase_as_dict, wrong_starts
from .recipe_definition import as_rest, definition_of

try:
    import yaml
    from yaml.nodes import MappingNode, Node, SequenceNode
except ImportError as error:
    raise ImportError(
        'schedules in YAML files need PyYAML; pip install "lstm-freeze[yaml]"'
    ) from error

KEYS = ("phases", "unit", "scope", "exclude", "rest", "recipe")


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The description of a schedule, as `FreezeSchedule.describe` gives it.

    Raises:
        ValueError: The file is not YAML or says something wrong.
    """
    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{line}: not YAML: {error.problem or error.context}") from error
    if root is None:
        raise ValueError(f"{path}: the file is empty; it needs the key phases, or recipe")
    reader = _Reader(path)
    found = reader.schedule(root)
    if reader.mistakes:
        raise ValueError("\n".join(text for _, text in sorted(reader.mistakes)))
    return found


def write(description: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a description so that `read` gives an equal one."""
    found = dict(description)
    if all(phase.keys() == {"start", "train"} for phase in found.get("phases", [{}])):
        found["phases"] = {phase["start"]: phase["train"] for phase in found["phases"]}
    text = yaml.safe_dump(found, sort_keys=False, default_flow_style=None, width=100)
    Path(path).write_text(text, encoding="utf-8")


class _Reader:
    """Reads nodes into plain values, and collects the mistakes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Begin without mistakes."""
        self.path = path
        self.mistakes: list[tuple[int, str]] = []

    def schedule(self, root: Node) -> dict[str, Any]:
        """The whole file."""
        items = self.mapping(root, "")
        if self.mistakes and not items:
            return {}
        if "recipe" in items:
            return self.recipe(root, items)
        known = {key: items[key] for key in KEYS if key in items}
        for key in items.keys() - known.keys():
            self.unknown(items[key], str(key), key, KEYS)
        found: dict[str, Any] = {}
        if "phases" in known:
            found["phases"] = self.phases(known.pop("phases"))
        else:
            self.wrong(root, "phases", "is missing; it maps starts to targets")
        for key, node in known.items():
            found[key] = self.checked(
                node, key, _CHECKS.get(key, partial(as_targets, argument=key))
            )
        return found

    def recipe(self, root: Node, items: dict[Any, Node]) -> dict[str, Any]:
        """A recipe and its arguments."""
        node = items.pop("recipe")
        name = self.value(node)
        try:
            kind = definition_of(name)
            allowed = (*kind.checks, *kind.found)
            for key in KEYS:
                if key in items and key not in allowed:
                    self.wrong(items.pop(key), key, "cannot stand beside recipe, which says it all")
        except ValueError as error:
            self.wrong(node, "recipe", str(error))
            return {}
        arguments: dict[str, Any] = {}
        for key, value in items.items():
            if key in kind.checks:
                arguments[key] = self.checked(value, key, partial(kind.check, key))
            elif key in kind.found:
                arguments[key] = self.value(value)
            else:
                self.unknown(value, str(key), key, tuple(kind.checks))
        for key in kind.required:
            if key not in items:
                self.wrong(root, key, f"is missing; {name} needs it")
        return {"recipe": name, **arguments}

    def phases(self, node: Node) -> list[dict[str, Any]]:
        """The phases, in either form."""
        before = len(self.mistakes)
        found: list[Phase | None] = []
        if isinstance(node, SequenceNode):
            found = [self.phase(item, f"phases[{i}]") for i, item in enumerate(node.value)]
        elif isinstance(node, MappingNode):
            for start, train in self.mapping(node, "phases").items():
                key = f"phases.{start}"
                found.append(self.checked(train, key, partial(Phase, start)))
        else:
            self.wrong(node, "phases", "must map starts to targets, or list start, train, ...")
        phases = [phase for phase in found if phase is not None]
        if len(self.mistakes) == before:
            for mistake in wrong_starts(phases):
                self.wrong(node, "phases", mistake)
        return [phase_as_dict(phase) for phase in sorted(phases, key=lambda p: p.start)]

    def phase(self, node: Node, key: str) -> Phase | None:
        """One phase of a list."""
        items = self.mapping(node, key)
        for name in items.keys() - {*PHASE_KEYS}:
            self.unknown(items[name], f"{key}.{name}", name, PHASE_KEYS)
        missing = [name for name in ("start", "train") if name not in items]
        for name in missing:
            self.wrong(node, f"{key}.{name}", "is missing")
        before = len(self.mistakes)
        for name in (n for n in PHASE_KEYS if n in items):
            self.checked(items[name], f"{key}.{name}", partial(_with_one_key, name))
        if missing or len(self.mistakes) > before:
            return None
        return Phase(**{name: self.value(items[name]) for name in PHASE_KEYS if name in items})

    def mapping(self, node: Node, key: str) -> dict[Any, Node]:
        """Key -> value node; a key that is there twice is a mistake."""
        if not isinstance(node, MappingNode):
            self.wrong(node, key, "must be a mapping (key: value)")
            return {}
        found: dict[Any, Node] = {}
        for key_node, value in node.value:
            name = self.value(key_node)
            if name in found:
                self.wrong(key_node, f"{key}.{name}" if key else str(name), "stands twice")
            found[name] = value
        return found

    def checked(self, node: Node, key: str, check: Callable[[Any], Any]) -> Any:
        """The value of a node after a check; None where it fails."""
        try:
            return check(self.value(node))
        except (ValueError, TypeError) as error:
            self.wrong(node, key, str(error))
            return None

    def value(self, node: Node) -> Any:
        """A node as a plain value; 1e-3, which YAML takes for a string, is a number."""
        loader = yaml.SafeLoader("")
        try:
            return _with_numbers(loader.construct_object(node, deep=True))
        except yaml.YAMLError as error:
            self.wrong(node, "", str(error))
            return None
        finally:
            loader.dispose()

    def unknown(self, node: Node, key: str, name: Any, known: tuple[str, ...]) -> None:
        """Note an unknown key as a mistake."""
        hint = did_you_mean(str(name), known)
        self.wrong(node, key, f"is not known; the keys here: {', '.join(known)}{hint}")

    def wrong(self, node: Node, key: str, what: str) -> None:
        """Note a mistake at a node."""
        at = f', key "{key}"' if key else ""
        line = node.start_mark.line + 1
        self.mistakes.append((line, f"{self.path}, line {line}{at}: {what}"))


def _with_one_key(name: str, value: Any) -> Phase:
    """A phase with one given key and valid others: a mistake then belongs to that key's line."""
    return Phase(**{"start": 0, "train": "*", name: value})


def _with_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, str) and value[:1].isdigit() and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _as_unit(value: Any) -> str:
    if value not in ("epoch", "step"):
        raise ValueError(f'must be "epoch" or "step", got {value!r}')
    return str(value)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "unit": _as_unit,
    "rest": partial(as_rest, argument="rest"),
}
