"""Finished scores in a folder, so that an interrupted comparison goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_PLAN = "comparison.json"
_FORMAT = 1


class ScoreCall(NamedTuple):
    """One call of the score function.

    Attributes:
        method: The method's name.
        split: The number of the split.
        candidate: Which combination of settings is tried on an inner split; -1 for the whole train
            set.
        fold: The number of the inner split; -1 for the whole train set.
    """

    method: str
    split: int
    candidate: int = -1
    fold: int = -1


class Outcome(NamedTuple):
    """The result of a call: a score with its seconds, or an error."""

    score: float
    seconds: float
    error: str = ""


class Finished:
    """The finished calls of a comparison; with a folder they are kept there, a file each.

    A call that raised is not finished, and is repeated in the next run.
    """

    def __init__(self, folder: Path | None = None, plan: Mapping[str, Any] | None = None) -> None:
        """Read the finished calls in the folder.

        Raises:
            ValueError: The folder holds another comparison, or a file that cannot be read.
        """
        self._folder = folder
        self._known: dict[ScoreCall, Outcome] = {}
        if folder is not None:
            self._take_up(folder, dict(plan or {}))

    def get(self, call: ScoreCall) -> Outcome | None:
        """The outcome of this call; None where it is not finished."""
        return self._known.get(call)

    def add(self, call: ScoreCall, outcome: Outcome) -> None:
        """Keep the outcome of a call."""
        self._known[call] = outcome
        if self._folder is not None:
            # As text: JSON has no NaN, and the text keeps every bit of a float.
            content = {
                **call._asdict(),
                "score": repr(outcome.score),
                "seconds": outcome.seconds,
            }
            _write(self._folder / _file_name(call), content)

    def _take_up(self, folder: Path, plan: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        known = _read(folder / _PLAN) if (folder / _PLAN).exists() else None
        if known is not None:
            _compare_plans(known, plan, folder)
        for path in sorted(folder.glob("split*.json")):
            content = _read(path)
            try:
                call = ScoreCall(*(content[name] for name in ScoreCall._fields))
                outcome = Outcome(float(content["score"]), float(content["seconds"]))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(_unreadable(path, error)) from error
            if known is None or call.method not in known["methods"]:
                raise ValueError(
                    f"`folder` {folder} holds a score of {call.method!r}, but its {_PLAN} does "
                    "not name this method; take another folder"
                )
            self._known[call] = outcome
        if known != {"format": _FORMAT, **plan}:
            _write(folder / _PLAN, {"format": _FORMAT, **plan})


def _compare_plans(known: Any, plan: Mapping[str, Any], folder: Path) -> None:
    """Raise ValueError that says how the comparison in the folder differs from this one."""
    if not isinstance(known, dict) or known.get("format") != _FORMAT or "methods" not in known:
        raise ValueError(
            f"`folder` {folder}: its {_PLAN} was not written by this version of compare; take "
            "another folder"
        )
    differ = []
    for name, settings in known["methods"].items():
        if name not in plan["methods"]:
            differ.append(f"method {name!r} is in the folder and not in `methods`")
        elif plan["methods"][name] != settings:
            now = plan["methods"][name]
            differ.append(f"method {name!r} had the settings {settings} and now has {now}")
    if len(known["splits"]) != len(plan["splits"]):
        differ.append(f"there were {len(known['splits'])} splits, now {len(plan['splits'])}")
    else:
        pairs = zip(known["splits"], plan["splits"], strict=True)
        if other := [number for number, (before, now) in enumerate(pairs) if before != now]:
            differ.append(f"the splits differ, first splits[{other[0]}]")
    for key, now in plan.items():
        if key not in ("methods", "splits") and known.get(key) != now:
            differ.append(f"{key} was {known.get(key)} and is now {now}")
    if differ:
        raise ValueError(
            f"`folder` {folder} holds another comparison: {'; '.join(differ)}. Take another "
            "folder, or call compare as before"
        )


def digest(*parts: bytes) -> str:
    """16 hex digits of these bytes."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()[:16]


def _file_name(call: ScoreCall) -> str:
    # The digest tells names apart that have the same readable part.
    method = re.sub(r"[^A-Za-z0-9]+", "-", call.method)[:40]
    inner = "" if call.candidate < 0 else f".candidate{call.candidate}.fold{call.fold}"
    return f"split{call.split:04}.{method}.{digest(call.method.encode())}{inner}.json"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path} cannot be read ({type(error).__name__}: {error}); delete it to score it again"
