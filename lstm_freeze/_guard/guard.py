"""FrozenGuard: proof, bit for bit, that what is frozen has not moved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .._checks import as_integer, as_module
from .._freezing import decider_of, is_normalization, listeners
from .._hashing import bits_of, fingerprints, has_bits, same_bits
from .._model import Tree, join
from .._optimizers import as_optimizers
from .changes import Change, Held, Memory, gather, likely_cause

MODES = ("exact", "fingerprint")


class FrozenWeightsChanged(RuntimeError):
    """Frozen weights are not, bit for bit, what they were.

    Attributes:
        names: Names of the parameters and buffers that changed, each once.
        step: Optimizer steps since `attach` (or as given to `check`); None where none are counted.
    """

    def __init__(self, message: str, names: tuple[str, ...] = (), step: int | None = None) -> None:
        """Say what changed, with the names and the step for programs."""
        super().__init__(message)
        self.names = names
        self.step = step

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.names, self.step)


class FrozenGuard:
    """Remembers the bits of all that is frozen, and raises when a single one of them changes.

    The guard follows `freeze`, `unfreeze`, `.undo()` and context exits on any module that shares
    the parameters: what is frozen later is remembered then, what is unfrozen is let go. It does
    not follow `requires_grad` set by other means: a weight that moves after that is reported.
    Buffers of normalisation layers (batch norm's statistics, spectral norm's vectors) belong to
    what is frozen when the parameters of their layer are. +0.0 and -0.0 differ, a NaN equals
    itself. Parameters that are lazy or on the meta device are remembered once they have values;
    of a DTensor, each process compares its own shard.

    Args:
        module: Any module; wrappers (DDP, torch.compile's) are looked through.
        mode: `"exact"` keeps a copy of what is frozen and can say how many elements moved and
            how far; `"fingerprint"` keeps 8 bytes per parameter and still sees swapped elements and
            changes that cancel (see `tensors.py` for the odds).

    Attributes:
        step: Optimizer steps since `attach`; may be set, to count on from elsewhere.
        checks: How often everything was compared and found unchanged.

    Raises:
        ValueError: `mode` is neither `"exact"` nor `"fingerprint"`.
        TypeError: `module` is not a module.

    Examples:
        >>> import torch
        >>> lstm = nn.LSTM(4, 8)
        >>> _ = lstm.requires_grad_(False)
        >>> guard = FrozenGuard(lstm)
        >>> guard.check()
        >>> lstm.bias_hh_l0.data[3] += 1
        >>> try:
        ...     guard.check()
        ... except FrozenWeightsChanged as error:
        ...     error.names
        ('bias_hh_l0',)
    """

    def __init__(self, module: nn.Module, mode: str = "exact") -> None:
        """Remember all that is frozen now."""
        as_module(module)
        if mode not in MODES:
            raise ValueError(f'`mode` must be "exact" or "fingerprint", got {mode!r}')
        self.step = 0
        self.checks = 0
        self._module = module
        self._mode = mode
        self._every_n_steps = 1
        self._unseen_steps = 0
        self._hooks: dict[Optimizer, RemovableHandle] = {}
        self.remember()
        listeners.add(self)

    def remember(self) -> None:
        """Take what is frozen now as right, after a deliberate overwrite (load_state_dict)."""
        tree = Tree(self._module)
        self._held: dict[tuple[int, str], Held] = {}
        self._hold(tree, [p for p in tree.distinct().values() if not p.requires_grad])
        self._unseen_steps = 0

    def check(self, *, step: int | None = None) -> None:
        """Compare everything frozen with what is remembered.

        Args:
            step: The step to name; None means the steps counted since `attach`.

        Raises:
            FrozenWeightsChanged: Something differs in at least one bit.
            TypeError: `step` is not an integer.
        """
        if step is not None and (isinstance(step, bool) or not isinstance(step, int)):
            raise TypeError(f"`step` must be an int or None (the steps counted), got {step!r}")
        if step is None and self._hooks:
            step = self.step
        replaced, changed = self._replaced(), self._different()
        if replaced or changed:
            raise self._error(replaced, changed, step)
        self.checks += 1
        self._unseen_steps = 0

    def attach(self, optimizer: Any, every_n_steps: int = 1) -> FrozenGuard:
        """Check after each `every_n_steps`-th step of an optimizer, in any training loop.

        Steps count from here; those of several optimizers are counted together. As a context
        manager the guard detaches at the exit, after comparing once more if there were steps since
        the last comparison and no exception is on its way.

        Args:
            optimizer: One or several; Lightning's wrapper is looked through.
            every_n_steps: Compare after every so many steps.

        Returns:
            The guard itself.

        Raises:
            TypeError: `optimizer` or `every_n_steps` is of the wrong type.
            ValueError: `every_n_steps` is less than 1, or there is no optimizer.

        Examples:
            >>> import torch
            >>> model = nn.Linear(2, 1)
            >>> _ = model.weight.requires_grad_(False)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            >>> with FrozenGuard(model).attach(optimizer) as guard:
            ...     model(torch.ones(1, 2)).sum().backward()
            ...     optimizer.step()
            >>> guard.step, guard.checks
            (1, 1)
        """
        every_n_steps = as_integer(every_n_steps, "every_n_steps", least=1)
        if not (optimizers := as_optimizers(optimizer)):
            raise ValueError(f"`optimizer` must be at least one optimizer, got {optimizer!r}")
        self._every_n_steps = every_n_steps
        self.step = self._unseen_steps = 0
        for one in optimizers:
            if one not in self._hooks:
                self._hooks[one] = one.register_step_post_hook(self._after_step)
        return self

    def detach(self) -> None:
        """Leave all optimizers; a second time does nothing. `check()` goes on working."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()

    def __enter__(self) -> FrozenGuard:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc is None and self._hooks and self._unseen_steps:
                self.check()
        finally:
            self.detach()

    def __repr__(self) -> str:
        watching = ", ".join(type(optimizer).__name__ for optimizer in self._hooks) or "nothing"
        return (
            f"FrozenGuard(mode={self._mode!r}: {len(self._held)} frozen tensors, "
            f"attached to {watching}, {self.checks} checks passed)"
        )

    def frozen_changed(self, parameters: Sequence[nn.Parameter]) -> None:
        """Hear of a freeze, unfreeze or undo: remember what is newly frozen, let go the rest."""
        known = ((id(p), "") in self._held for p in parameters)
        settled = (held is not p.requires_grad for held, p in zip(known, parameters, strict=True))
        if all(settled) and self._linked():
            return
        tree = Tree(self._module)
        own = {id(p) for p in tree.parameters.values()}
        freed = {id(p) for p in parameters if p.requires_grad}
        names = {name for name, p in tree.parameters.items() if id(p) in freed}
        # A Parameter that was replaced is let go with its successor.
        gone = {
            key
            for key, held in self._held.items()
            if held.buffer is None
            and (key[0] in freed or (key[0] not in own and names.intersection(held.names)))
        }
        self._held = {key: held for key, held in self._held.items() if key not in gone}
        newly = [p for p in parameters if not p.requires_grad and id(p) in own]
        self._hold(tree, [p for p in newly if (id(p), "") not in self._held])

    def statistics_recomputed(self, module: nn.Module) -> None:
        """Take a held layer's statistics as right again once they are recomputed (update_bn)."""
        for held in self._held.values():
            if held.owner is module:
                held.memory = None

    def _hold(self, tree: Tree, parameters: Sequence[nn.Parameter]) -> None:
        """Remember these parameters, and bring the buffers into line with what is then held."""
        names: dict[int, list[str]] = {}
        for name, parameter in tree.parameters.items():
            names.setdefault(id(parameter), []).append(name)
        fresh = {(id(p), ""): Held(tuple(names[id(p)]), p) for p in parameters}
        self._held |= fresh
        buffers = dict(self._buffers(tree))
        self._held = {
            key: held for key, held in self._held.items() if held.buffer is None or key in buffers
        }
        fresh |= {key: held for key, held in buffers.items() if key not in self._held}
        self._held |= fresh
        self._memorise(fresh.values())
        self._links = list(self._path_links())

    def _buffers(self, tree: Tree) -> Iterator[tuple[tuple[int, str], Held]]:
        for path, module in tree.modules.items():
            if not is_normalization(module) or (decider := decider_of(tree, path)) is None:
                continue
            if all((id(p), "") in self._held for p in decider.parameters()):
                for name in module._buffers:
                    yield (id(module), name), Held((join(path, name),), module, name)

    def _memorise(self, several: Iterable[Held]) -> None:
        """Keep the bits of those that have some; the others wait."""
        here = [(h, t) for h in several if (t := h.tensor) is not None and has_bits(t)]
        if self._mode == "exact":
            for held, tensor in here:
                held.memory = Memory.of(tensor, bits_of(tensor, copy=True))
        else:
            for (held, tensor), value in zip(here, fingerprints(t for _, t in here), strict=True):
                held.memory = Memory.of(tensor, value)

    def _different(self) -> list[Change]:
        """What has other bits than those remembered, each under its first name."""
        known = [(held, memory) for held in self._held.values() if (memory := held.memory)]
        if len(known) < len(self._held):
            self._memorise(held for held in self._held.values() if held.memory is None)
        there = [(m, t) for h, m in known if (t := h.tensor) is not None and has_bits(t)]
        if self._mode == "exact":
            now = ((memory, bits_of(tensor)) for memory, tensor in there)
            same = same_bits((bits, memory.on(bits.words.device)) for memory, bits in now)
        else:
            found = fingerprints(tensor for _, tensor in there)
            same = [memory.content == f for (memory, _), f in zip(there, found, strict=True)]
        unchanged = {id(memory) for (memory, _), yes in zip(there, same, strict=True) if yes}
        return [
            Change(held.names[0], held, memory, held.tensor)
            for held, memory in known
            if id(memory) not in unchanged
        ]

    def _error(
        self, replaced: Sequence[Change], changed: Sequence[Change], step: int | None
    ) -> FrozenWeightsChanged:
        tree = Tree(self._module)
        changes = {change.name: change for change in (*changed, *replaced)}
        by_cause: dict[str, list[Change]] = {}
        for change in changes.values():
            evidence = gather(change, tuple(self._hooks), tree, several=len(changes) > 1)
            by_cause.setdefault(likely_cause(evidence), []).append(change)
        when = "" if step is None else f", seen after step {step}"
        if self._hooks and step == self.step:
            when += f" (unchanged up to step {self.step - self._unseen_steps})"
        noun = "tensor" if len(changes) == 1 else "tensors"
        lines = [f"{len(changes)} frozen {noun} changed{when}"]
        for cause, members in by_cause.items():
            lines += [*(f"  {change}" for change in members), f"    likely cause: {cause}"]
        lines.append("if this was meant, call guard.remember() after it")
        return FrozenWeightsChanged("\n".join(lines), tuple(changes), step)

    def _path_links(self) -> Iterator[tuple[Mapping[str, Any], str, Any]]:
        """What leads from the module to each held parameter, for a quick look at each check."""
        for module in self._module.modules():
            for name, child in module._modules.items():
                yield module._modules, name, child
            for name, parameter in module._parameters.items():
                if (id(parameter), "") in self._held:
                    yield module._parameters, name, parameter

    def _linked(self) -> bool:
        return all(holder.get(name) is thing for holder, name, thing in self._links)

    def _replaced(self) -> list[Change]:
        """Where a name holds another object than the Parameter that was held, or nothing."""
        if self._linked():
            return []
        tree = Tree(self._module)
        own = {id(p) for p in tree.parameters.values()}
        found = []
        for key, held in list(self._held.items()):
            for name in held.names if held.buffer is None else ():
                now = tree.parameters.get(name)
                if now is held.owner or (now is None and key[0] in own):
                    continue
                if held.memory is not None:
                    found.append(Change(name, held, held.memory, now, replaced=True))
                elif now is not None:
                    # It had no values yet (meta device) and was replaced to get some.
                    self._held.pop(key, None)
                    self._hold(tree, [] if now.requires_grad else [now])
        if not found:
            self._links = list(self._path_links())
        return found

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.step += 1
        self._unseen_steps += 1
        if self.step % self._every_n_steps == 0:
            self.check()
