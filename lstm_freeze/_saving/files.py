"""Changes and their file: two formats, written whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checkpoints import base_in
from .fingerprints import as_base

_FORMAT = "lstm_freeze changes 1"
_UNREADABLE = (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError)


@dataclass(frozen=True)
class Changes:
    """The content of a file of changes.

    Attributes:
        base: The fingerprints of the whole base.
        tensors: What differs from it, tied tensors under their first name.
        ties: Further name -> first name, of tied tensors.
    """

    base: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    ties: Mapping[str, str]

    def named(self) -> dict[str, Tensor]:
        """The tensors that differ, under all their names."""
        return {**self.tensors, **{name: self.tensors[first] for name, first in self.ties.items()}}


def write(path: str | os.PathLike[str], changes: Changes) -> None:
    """Write a file of changes; on an error, an old file stays as it is."""
    where = _as_path(path)
    if where.endswith(".safetensors"):
        note = json.dumps({"base": dict(changes.base), "ties": dict(changes.ties)})
        package = _safetensors()
        with _replacing(where) as beside:
            try:
                package.save_file(dict(changes.tensors), beside, {"lstm_freeze": note})
            except (KeyError, ValueError) as error:
                raise ValueError(
                    f"safetensors cannot hold these tensors ({error}); give the file another "
                    "ending, such as .pt"
                ) from error
        return
    content = {
        "format": _FORMAT,
        "base": dict(changes.base),
        "tensors": dict(changes.tensors),
        "ties": dict(changes.ties),
    }
    with _replacing(where) as beside:
        torch.save(content, beside)


def read(path: str | os.PathLike[str]) -> Changes:
    """Read a file of changes; ValueError where it is none."""
    where = _as_path(path)
    content = _from_safetensors(where) if where.endswith(".safetensors") else _from_torch(where)
    if content is None:
        raise ValueError(
            f"{where!r} is not a file of save_changes, nor a checkpoint of SaveChanges, or it is "
            "damaged"
        )
    changes = Changes(as_base(content["base"]), content["tensors"], content["ties"])
    if lost := [name for name, first in changes.ties.items() if first not in changes.tensors]:
        raise ValueError(f"{where!r} is damaged: it lacks what {lost} are tied to")
    return changes


def _from_torch(where: str) -> dict[str, Any] | None:
    try:
        content = torch.load(where, map_location="cpu", weights_only=True)
    except _UNREADABLE:
        return None
    if not isinstance(content, dict):
        return None
    state = content.get("state_dict")
    if isinstance(state, dict) and (base := base_in(state)) is not None:
        kept = {n: t for n, t in state.items() if isinstance(t, Tensor) and n in base.keys}
        return {
            "base": base.fingerprints,
            "tensors": {base.keys[key]: tensor for key, tensor in kept.items()},
            "ties": {},
        }
    whole = {"base", "tensors", "ties"} <= content.keys()
    return content if content.get("format") == _FORMAT and whole else None


def _from_safetensors(where: str) -> dict[str, Any] | None:
    if not os.path.exists(where):
        raise FileNotFoundError(f"no such file: {where!r}")
    package = _safetensors()
    try:
        with package.safe_open(where, "pt") as file:
            note = (file.metadata() or {}).get("lstm_freeze")
            if note is None:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except package.error:
        return None
    return {"tensors": tensors, **json.loads(note)}


class _Safetensors(NamedTuple):
    save_file: Callable[..., None]
    safe_open: Callable[..., Any]
    error: type[Exception]


def _safetensors() -> _Safetensors:
    try:
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError(
            'a file that ends in ".safetensors" needs the package safetensors; pip install '
            "safetensors, or give the file another ending, such as .pt"
        ) from error
    return _Safetensors(save_file, safe_open, SafetensorError)


def _as_path(path: Any) -> str:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`path` must be a file's path, got {type(path).__name__}")
    where = os.fspath(path)
    if not isinstance(where, str):
        raise TypeError(f"`path` must be a string, got {where!r}")
    return where


@contextmanager
def _replacing(where: str) -> Iterator[str]:
    """The name of a new file beside `where`, which replaces it in one step at the end."""
    target = os.path.realpath(where)
    folder, name = os.path.split(target)
    if os.path.isdir(target):
        raise IsADirectoryError(f"`path` must be a file's path, got the folder {where!r}")
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"no such folder for the file `path`: {folder!r}")
    beside = os.path.join(folder, f".{name[:100]}.{uuid.uuid4().hex}.part")
    try:
        yield beside
        with open(beside, "r+b") as file:
            os.fsync(file.fileno())
        if os.path.exists(target):
            shutil.copymode(target, beside)
        os.replace(beside, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise
