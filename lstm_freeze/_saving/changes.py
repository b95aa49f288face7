"""save_changes and load_changes: a file with the tensors that differ from a base."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn

from .._checks import as_module
from .._hashing import stored
from .files import Changes, read, write
from .fingerprints import as_base, prints_of
from .tensors import state_of, with_names


def save_changes(module: nn.Module, path: str | os.PathLike[str], base: Mapping[str, str]) -> None:
    """Save only the tensors that differ from a base, and the fingerprints of the whole base.

    The file is safetensors where `path` ends in `.safetensors`, else one of torch.save that
    `torch.load(path, weights_only=True)` reads. It is written beside an old file and then replaces
    it in one step, so an old file stays whole if the process is killed. A tied tensor is saved
    once.

    A tensor that `base` does not name is saved whole and never checked: LoRA factors that came
    after `fingerprints(module)`, or a new head whose first values nobody could restore, when its
    names are left out of `base`.

    Args:
        module: Any module; wrappers (DDP, torch.compile's) are looked through.
        path: The file. Under DDP let one process write it.
        base: What `fingerprints(module)` gave before training.

    Raises:
        ValueError: `base` names a tensor that the module has not, or holds no fingerprints.
        TypeError: An argument is of another type than named above.
        ImportError: The name ends in `.safetensors` and the package is not installed.

    Examples:
        >>> import tempfile
        >>> from lstm_freeze import fingerprints
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> base = fingerprints(model)
        >>> _ = nn.init.zeros_(model[1].bias)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_changes(model, f"{folder}/changes.pt", base)
        ...     list(torch.load(f"{folder}/changes.pt", weights_only=True)["tensors"])
        ['1.bias']
    """
    state, base = state_of(as_module(module)), as_base(base)
    if missing := [name for name in base if name not in state]:
        raise ValueError(
            f"`base` names what the module has not: {with_names(missing)}; take "
            "fingerprints(module) of this very model before it is trained"
        )
    write(path, _changes(state, base))


def load_changes(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load what `save_changes` saved into a module that holds the base.

    First every tensor is checked: the module must have the bits of the base in all that `base`
    named, and the names and shapes of all that the file holds. Then the values are written into
    the module's own tensors, so optimizers and ties stay valid. All or nothing: an error changes
    nothing. A FrozenGuard accepts the new values of frozen tensors after
    `guard.remember()`.

    Also reads the checkpoints that the callback `SaveChanges` has stripped.

    Args:
        module: Any module; wrappers (DDP, torch.compile's) are looked through.
        path: The file.

    Raises:
        ValueError: The module holds another base, or lacks a tensor, or has one more, or one of
            another shape or dtype; each is named. Or the file was not made by `save_changes`.
        TypeError: An argument is of another type than named above.
        FileNotFoundError: There is no such file.
        ImportError: The name ends in `.safetensors` and the package is not installed.

    Examples:
        >>> import copy, tempfile
        >>> from lstm_freeze import fingerprints
        >>> model = nn.Linear(4, 2)
        >>> pretrained, base = copy.deepcopy(model), fingerprints(model)
        >>> _ = nn.init.ones_(model.bias)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_changes(model, f"{folder}/changes.pt", base)
        ...     load_changes(pretrained, f"{folder}/changes.pt")
        >>> pretrained.bias.tolist()
        [1.0, 1.0]
    """
    state, changes = state_of(as_module(module)), read(path)
    mistakes = list(_mistakes(state, changes))
    if mistakes:
        raise ValueError(
            f"{os.fspath(path)!r} does not fit this module, nothing was changed:\n  "
            + "\n  ".join(mistakes)
        )
    written = {id(state[name]): (state[name], new) for name, new in changes.named().items()}
    _write_all(written.values())


def _changes(state: Mapping[str, Tensor], base: Mapping[str, str]) -> Changes:
    now = prints_of(state)
    changed = {id(tensor) for name, tensor in state.items() if now[name] != base.get(name)}
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    for name, tensor in state.items():
        if id(tensor) not in changed:
            continue
        if id(tensor) in first:
            ties[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        # A copy: with a view, its whole storage would be saved.
        copied = stored(tensor).to("cpu", copy=True, memory_format=torch.contiguous_format)
        tensors[name] = copied
    return Changes(dict(base), tensors, ties)


def _mistakes(state: Mapping[str, Tensor], changes: Changes) -> Iterable[str]:
    """The reasons why the changes cannot be loaded, in words, with the name of each tensor."""
    named = changes.named()
    known = {*changes.base, *named}
    if missing := [name for name in (*changes.base, *named) if name not in state]:
        yield f"the module has no {with_names(dict.fromkeys(missing))}, which the file knows of"
    if more := [name for name in state if name not in known]:
        yield f"the file knows nothing of {with_names(more)}, which the module has"
    other_form = [
        f"{name!r} is {_form(state[name])} in the module and {_form(new)} in the file"
        for name, new in named.items()
        if name in state and _form(state[name]) != _form(new)
    ]
    yield from other_form
    formed = {name for name in named if name in state and _form(state[name]) == _form(named[name])}
    now = prints_of({n: t for n, t in state.items() if n in changes.base})
    differs = {name for name in now if now[name] != changes.base[name]}
    if others := [n for n in now if n in differs and (n in formed or n not in named)]:
        yield (
            f"the module holds another base: {with_names(others)} differ from it; load the "
            "weights that the changes were saved against first"
        )
    yield from _conflicts(state, named)
    if unwritable := [n for n in named if n in state and state[n].is_inference()]:
        yield f"{with_names(unwritable)} were made under torch.inference_mode() and cannot change"


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _conflicts(state: Mapping[str, Tensor], named: Mapping[str, Tensor]) -> Iterable[str]:
    """Tensors that are tied in the module and have different values in the file."""
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    for tied in names.values():
        values = [named.get(name) for name in tied]
        if any(value is not values[0] for value in values) and not _all_same(values):
            yield f"{with_names(tied)} are one tensor in the module and differ in the file"


def _all_same(values: list[Tensor | None]) -> bool:
    if any(value is None for value in values):
        return False
    found = prints_of({str(i): value for i, value in enumerate(values) if value is not None})
    return len(set(found.values())) == 1


@torch.no_grad()
def _write_all(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Write new values into tensors; if one write fails, all are set back."""
    undo: list[Callable[[], object]] = []
    try:
        for tensor, new in pairs:
            undo.append(_restorer(tensor))
            tensor.copy_(new)
    except BaseException:
        for restore in reversed(undo):
            with suppress(RuntimeError):  # what could not be written did not change either
                restore()
        raise


def _restorer(tensor: Tensor) -> Callable[[], object]:
    kept = tensor.detach().clone()
    return lambda: tensor.copy_(kept)
