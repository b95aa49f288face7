"""FrozenTensors: all that a guard remembers of a module, compared with what is there now."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from .._freezing import decider_of, is_normalization, is_scripted_normalization
from .._hashing import bits_of, has_bits, same_bits, tensor_hashes
from .._model import Tree, join
from .change import Change
from .remembered import Key, Remembered, entry
from .snapshot import Snapshot


class FrozenTensors:
    """The frozen tensors of a module, remembered with their snapshots.

    A copy or a pickle belongs to the copy of the module that is made with it.
    """

    def __init__(self, module: nn.Module, exact: bool) -> None:
        """Remember no tensor yet; `exact` keeps bits, else a fingerprint of 8 bytes a tensor."""
        self._module = module
        self._exact = exact
        self._remembered: dict[Key, Remembered] = {}
        self._links: list[tuple[Mapping[str, Any], str, Any]] | None = []

    def __len__(self) -> int:
        return len(self._remembered)

    def __getstate__(self) -> dict[str, Any]:
        several = list(self._remembered.values())
        return {"_module": self._module, "_exact": self._exact, "_remembered": several}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._remembered = {one.key: one for one in state["_remembered"]}
        self._links = None  # not known yet: a module that keeps its guard is not complete now

    def take_all(self) -> None:
        """Remember what is frozen now, and nothing else."""
        tree = Tree(self._module)
        self._remembered = {}
        self._add(tree, [p for p in tree.distinct().values() if not p.requires_grad])

    def leaving(self, parameters: Sequence[nn.Parameter]) -> set[Key]:
        """The keys of all that is released once these parameters are trainable."""
        if self._linked() and not any((id(p), "") in self._remembered for p in parameters):
            return set()
        tree = Tree(self._module)
        gone = self._leaving_parameters(tree, {id(p) for p in parameters})
        left = {key for key in self._remembered if key not in gone}
        staying = {one.key for one in _buffers(tree, left)}
        return gone | {key for key, one in self._remembered.items() if one.buffer} - staying

    def follow(self, parameters: Sequence[nn.Parameter]) -> None:
        """Remember those of the parameters that are frozen now, and release the trainable ones."""
        known = ((id(p), "") in self._remembered for p in parameters)
        settled = (held is not p.requires_grad for held, p in zip(known, parameters, strict=True))
        if all(settled) and self._linked():
            return
        tree = Tree(self._module)
        own = {id(p) for p in tree.parameters.values()}
        gone = self._leaving_parameters(tree, {id(p) for p in parameters if p.requires_grad})
        self._remembered = {k: one for k, one in self._remembered.items() if k not in gone}
        newly = [p for p in parameters if not p.requires_grad and id(p) in own]
        self._add(tree, [p for p in newly if (id(p), "") not in self._remembered])

    def take_anew(self, module: nn.Module) -> None:
        """At the next comparison, accept the module's buffers as they are then."""
        for one in self._remembered.values():
            if one.owner is module:
                one.snapshot = None

    def changes(self, keys: Collection[Key] | None = None) -> list[Change]:
        """The changes of all tensors, or of those with these keys; each name once."""
        replaced = self._replaced()
        if keys is None:
            keys = self._remembered.keys()
        changed = self._different([self._remembered[key] for key in keys])
        by_name = {change.name: change for change in (*changed, *replaced) if change.key in keys}
        return list(by_name.values())

    def _leaving_parameters(self, tree: Tree, freed: set[int]) -> set[Key]:
        """The keys of these parameters; one that was replaced is released with its successor."""
        own = {id(p) for p in tree.parameters.values()}
        names = {name for name, p in tree.parameters.items() if id(p) in freed}
        return {
            key
            for key, one in self._remembered.items()
            if not one.buffer
            and (key[0] in freed or (key[0] not in own and names.intersection(one.names)))
        }

    def _add(self, tree: Tree, parameters: Sequence[nn.Parameter]) -> None:
        """Remember these parameters, and exactly the buffers that go with what is frozen then."""
        names: dict[int, list[str]] = {}
        for name, parameter in tree.parameters.items():
            names.setdefault(id(parameter), []).append(name)
        fresh = [Remembered(tuple(names[id(p)]), p) for p in parameters]
        self._remembered |= {one.key: one for one in fresh}
        buffers = {one.key: one for one in _buffers(tree, self._remembered.keys())}
        self._remembered = {
            key: one for key, one in self._remembered.items() if not one.buffer or key in buffers
        }
        fresh += [one for key, one in buffers.items() if key not in self._remembered]
        self._remembered |= {one.key: one for one in fresh}
        self._take(fresh)
        self._links = list(self._path_links())

    def _take(self, several: Iterable[Remembered]) -> None:
        """Take snapshots of the tensors that have values; the others get theirs later."""
        here = [(one, t) for one in several if (t := one.tensor) is not None and has_bits(t)]
        if self._exact:
            for one, tensor in here:
                one.snapshot = Snapshot.of(tensor, bits_of(tensor, copy=True))
        else:
            for (one, tensor), value in zip(here, tensor_hashes(t for _, t in here), strict=True):
                one.snapshot = Snapshot.of(tensor, value)

    def _different(self, several: Sequence[Remembered]) -> list[Change]:
        """The changes of those whose bits differ, each under its first name."""
        known = [(one, was) for one in several if (was := one.snapshot)]
        if len(known) < len(several):
            self._take(one for one in several if one.snapshot is None)
        there = [(was, t) for one, was in known if (t := one.tensor) is not None and has_bits(t)]
        if self._exact:
            now = ((was, bits_of(tensor)) for was, tensor in there)
            same = same_bits((bits, was.bits_on(bits.words.device)) for was, bits in now)
        else:
            found = tensor_hashes(tensor for _, tensor in there)
            same = [was.content == f for (was, _), f in zip(there, found, strict=True)]
        unchanged = {id(was) for (was, _), yes in zip(there, same, strict=True) if yes}
        return [
            Change(one.names[0], one, was, one.tensor)
            for one, was in known
            if id(was) not in unchanged
        ]

    def _replaced(self) -> list[Change]:
        """The changes of names that refer to another Parameter than the remembered, or to none."""
        if self._linked():
            return []
        tree = Tree(self._module)
        self._adopt_moved(tree)
        own = {id(p) for p in tree.parameters.values()}
        found = []
        for key, one in list(self._remembered.items()):
            for name in () if one.buffer else one.names:
                now = tree.parameters.get(name)
                if now is one.owner or (now is None and key[0] in own):
                    continue
                if one.snapshot is not None:
                    found.append(Change(name, one, one.snapshot, now, replaced=True))
                elif now is not None:
                    # It had no values yet (meta device) and was replaced to get some.
                    self._remembered.pop(key, None)
                    self._add(tree, [] if now.requires_grad else [now])
        if not found:
            self._links = list(self._path_links())
        return found

    def _adopt_moved(self, tree: Tree) -> None:
        """Follow new Parameters: some devices make them when a module is moved there."""
        for one in list(self._remembered.values()):
            now = {id(p): p for name in one.names if (p := tree.parameters.get(name)) is not None}
            if one.buffer or one.snapshot is None or len(now) != 1:
                continue
            (successor,) = now.values()
            if successor.requires_grad or successor.device == one.owner.device:
                continue
            heir = Remembered(one.names, successor, snapshot=one.snapshot)
            if not self._different([heir]):
                del self._remembered[one.key]
                self._remembered[heir.key] = heir

    def _path_links(self) -> Iterator[tuple[Mapping[str, Any], str, Any]]:
        """The dict entries that lead from the module to each remembered parameter."""
        for module in self._module.modules():
            for name, child in module._modules.items():
                yield module._modules, name, child
            for name, parameter in module._parameters.items():
                if (id(parameter), "") in self._remembered:
                    yield module._parameters, name, parameter

    def _linked(self) -> bool:
        """Whether every remembered parameter is still found where it was."""
        return self._links is not None and all(
            entry(holder, name) is thing for holder, name, thing in self._links
        )


def _buffers(tree: Tree, frozen: Collection[Key]) -> Iterator[Remembered]:
    """The buffers of normalisation layers whose parameters are all among these.

    Of a layer without parameters, those of the nearest module around it count.
    """
    for path, module in tree.modules.items():
        if not (is_normalization(module) or is_scripted_normalization(module)):
            continue
        if (decider := decider_of(tree, path)) is None:
            continue
        if all((id(p), "") in frozen for p in decider.parameters()):
            for name, _ in module._buffers.items():
                yield Remembered((join(path, name),), module, name)
