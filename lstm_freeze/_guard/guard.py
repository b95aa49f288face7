"""FrozenGuard: proof, bit for bit, that what is frozen has not moved."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from .._checks import as_integer, as_module, as_one_of
from .._freezing import listeners
from .._model import Tree, unwrap
from .._optimizers import as_optimizers
from .._warn import users_line, warn
from .attached import attached_to, keep_with, let_go
from .change import Change
from .error import FrozenWeightsChanged, message_of
from .followed import FollowedOptimizers
from .frozen_tensors import FrozenTensors
from .idle import IdleCounts
from .remembered import Key
from .steps import stop_watching_steps, watch_steps

MODES = ("exact", "fingerprint")


class FrozenGuard:
    """Remembers the bits of all that is frozen, and raises when a single one of them changes.

    The guard follows `freeze`, `unfreeze`, `.undo()` and context exits on any module that shares
    the parameters: what is frozen later is remembered then, what is unfrozen is released. Before
    its release it is compared: an attached guard raises from the call that unfreezes, before
    anything is changed; any other guard raises at its next `check()`. It does not follow
    `requires_grad` set by other means: a weight that moves after that is reported.

    Buffers of normalisation layers (batch norm's statistics, spectral norm's vectors) belong to
    what is frozen when the parameters of their layer are. +0.0 and -0.0 differ, a NaN equals
    itself. Parameters that are lazy or on the meta device are remembered once they have values;
    of a DTensor, each process compares its own shard. A copy or a pickle of a guard is not
    attached, and belongs to the copy of the module that was made with it.

    Args:
        module: Any module; wrappers (DDP, torch.compile's) are looked through.
        mode: `"exact"` keeps a copy of what is frozen and can say how many elements moved and
            how far; `"fingerprint"` keeps 8 bytes per parameter and still sees swapped elements and
            changes that cancel.
        idle_after: Warn of each trainable parameter that is idle for this many optimizer steps in a
            row: it got no gradient, or is in no optimizer that made a step. Steps of several
            optimizers count together. None: do not look.

    Attributes:
        step: Optimizer steps since `attach`; may be set, to count on from elsewhere.
        checks: How often everything was compared and found unchanged. The comparison at the end
            counts if there were steps after the last one.

    Raises:
        ValueError: `mode` is neither `"exact"` nor `"fingerprint"`, or `idle_after` less than 1.
        TypeError: `module` is not a module, or `idle_after` not an integer.

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

    def __init__(
        self, module: nn.Module, mode: str = "exact", *, idle_after: int | None = None
    ) -> None:
        """Remember all that is frozen now."""
        as_module(module)
        self._mode = as_one_of(mode, "mode", MODES)
        if idle_after is not None:
            idle_after = as_integer(idle_after, "idle_after", least=1)
        self._idle_after = idle_after
        # Without its wrappers: torch.compile's cannot be copied within the module that it wraps.
        self._module = unwrap(module)
        self._made_at = users_line()
        self.step = 0
        self.checks = 0
        self._tensors = FrozenTensors(self._module, exact=mode == "exact")
        self._begin()
        self.remember()

    def _begin(self) -> None:
        """Set all attributes that copies do not take over."""
        self._every_n_steps = 1
        self._uncompared_steps = 0
        self._seen_steps = 0
        self._in_block = False
        self._followed: FollowedOptimizers | None = None  # None while not attached
        self._idle: IdleCounts | None = None
        self._reported: set[Key] = set()
        self._missed: FrozenWeightsChanged | None = None  # found before a release, not raised yet
        listeners.add(self)

    def __getstate__(self) -> dict[str, Any]:
        taken = ("_mode", "_idle_after", "_module", "_made_at", "step", "checks", "_tensors")
        return {name: vars(self)[name] for name in taken}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def remember(self) -> None:
        """Accept the present values of what is frozen, after they were overwritten on purpose.

        For example after `load_state_dict`.
        """
        self._tensors.take_all()
        self._uncompared_steps = 0
        self._reported, self._missed = set(), None
        if self._idle is not None:
            self._idle.read_module()

    def check(self, *, step: int | None = None) -> None:
        """Compare everything frozen with what is remembered.

        Args:
            step: The step to name; None means the steps counted since `attach`.

        Raises:
            FrozenWeightsChanged: Something differs in at least one bit, or did before its release.
            TypeError: `step` is not an integer.
        """
        if step is not None and (isinstance(step, bool) or not isinstance(step, int)):
            raise TypeError(f"`step` must be an int or None (the steps counted), got {step!r}")
        if self._missed is not None:
            missed, self._missed = self._missed, None
            raise missed
        if changes := self._tensors.changes():
            raise self._error(changes, step)
        self.checks += 1
        self._uncompared_steps = 0
        self._reported.clear()

    def attach(self, optimizer: Any = None, every_n_steps: int = 1) -> FrozenGuard:
        """Check after each `every_n_steps`-th optimizer step, in any training loop.

        Steps count from here; those of several optimizers are counted together. The guard follows
        the given optimizers, and every other one that has a parameter of the module in common with
        them: the inner optimizer of a wrapper, or one that is built later. The step of a wrapper
        and the step that it makes inside are one step.

        An attached guard lives as long as its module, and replaces an older one that is attached to
        the same module and optimizers. A guard of a `with` block ends with the block, and is not
        replaced. At the block's exit, and in `detach`, everything is compared once more, unless an
        exception ends the block.

        Args:
            optimizer: One or several; Lightning's wrapper is looked through. None: every optimizer
                of this process, whichever parameters it holds.
            every_n_steps: The number of steps from one comparison to the next.

        Returns:
            The guard itself.

        Raises:
            TypeError: `optimizer` or `every_n_steps` is of the wrong type.
            ValueError: `every_n_steps` is less than 1, or `optimizer` is empty.

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
        optimizers = as_optimizers(optimizer)
        if optimizer is not None and not optimizers:
            raise ValueError(f"`optimizer` must be at least one optimizer, got {optimizer!r}")
        followed = self._followed or FollowedOptimizers(self._module)
        if optimizer is None:
            followed.add_all()
        followed.add(optimizers)
        self._followed = followed
        self._every_n_steps = every_n_steps
        self.step = self._uncompared_steps = self._seen_steps = 0
        if self._idle_after is not None and self._idle is None:
            self._idle = IdleCounts(self._module, self._idle_after)
        self._take_place()
        keep_with(self._module, self)
        watch_steps(self)
        return self

    def detach(self) -> None:
        """Compare once more and stop following the optimizers; a second time does nothing.

        `check()` goes on working.

        Raises:
            FrozenWeightsChanged: Something unreported changed. The guard is detached.

        Warns:
            UserWarning: No optimizer step was seen since `attach`.
        """
        attached = self._followed is not None
        try:
            if attached:
                self._compare_at_the_end()
        finally:
            self._leave()
        if attached and not self._seen_steps:
            warn(
                "this FrozenGuard was attached and saw no optimizer step: what is frozen was "
                "compared at the end, and not after steps. Nothing trained, or another optimizer "
                "did, or one that calls no step hooks of torch; attach() without an argument sees "
                "every torch optimizer, and guard.check() in the loop needs none"
            )

    def __enter__(self) -> FrozenGuard:
        self._in_block = True
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._in_block = False
        if exc is not None:
            self._leave()
        elif self._followed is not None:
            self.detach()
        else:
            self._compare_at_the_end()

    def __repr__(self) -> str:
        return (
            f"FrozenGuard(mode={self._mode!r}: {len(self._tensors)} frozen tensors, "
            f"attached to {self._followed or 'nothing'}, {self.checks} checks passed)"
        )

    # Called by `freeze`, `unfreeze` and undo, and after every optimizer step

    def before_unfreezing(self, parameters: Sequence[nn.Parameter]) -> None:
        """Compare what is about to be released; an attached guard raises, and nothing changes."""
        leaving = self._tensors.leaving(parameters)
        if not leaving or not (changes := self._unreported(leaving)):
            return
        error = self._error(changes, None, seen="as it was about to be unfrozen")
        if self._followed is not None or self._in_block:
            raise error
        self._missed = self._missed or error

    def frozen_changed(self, parameters: Sequence[nn.Parameter]) -> None:
        """Remember those of the parameters that are frozen now, and release the others."""
        self._tensors.follow(parameters)

    def statistics_recomputed(self, module: nn.Module) -> None:
        """Accept a frozen layer's statistics once they are recomputed (update_bn)."""
        self._tensors.take_anew(module)

    def idle_steps(self) -> Mapping[int, int]:
        """Id of each parameter idle for `idle_after` steps or more -> for how many steps."""
        return {} if self._idle is None else self._idle.idle

    def after_step(self, optimizer: Optimizer, around: Sequence[object]) -> None:
        """Count a step of a followed optimizer, and compare if it is time."""
        followed = self._followed
        if followed is None or optimizer not in followed or any(o in followed for o in around):
            return
        self.step += 1
        self._seen_steps += 1
        self._uncompared_steps += 1
        message = "" if self._idle is None else self._idle.after_step(optimizer)
        if not self.step % self._every_n_steps or self._uncompared_steps >= self._every_n_steps:
            self.check()
        if message:
            warn(message)

    def _leave(self) -> None:
        """Stop following the optimizers, without comparing."""
        stop_watching_steps(self)
        let_go(self._module, self)
        self._followed = None
        if self._idle is not None:
            self._idle.stop()

    def _take_place(self) -> None:
        """Detach the module's older guards whose optimizers this one follows, too."""
        for other in attached_to(self._module):
            if other is self or other._in_block or self._in_block:
                continue
            if self._followed and other._followed and self._followed.covers(other._followed):
                other._leave()

    def _compare_at_the_end(self) -> None:
        if self._missed is not None:
            self.check()
        if self._unreported():
            raise self._error(self._tensors.changes(), None, seen="at the end")
        if self._uncompared_steps or not self._seen_steps:
            self.checks += 1
        self._uncompared_steps = 0

    def _unreported(self, keys: Collection[Key] | None = None) -> list[Change]:
        return [c for c in self._tensors.changes(keys) if c.key not in self._reported]

    def _error(
        self, changes: Sequence[Change], step: int | None, seen: str = ""
    ) -> FrozenWeightsChanged:
        """The error for these changes, which then count as reported."""
        self._reported |= {change.key for change in changes}
        counted = self._followed is not None
        step = self.step if counted and step is None else step
        after = "" if step is None else f"after step {step}"
        when = f", seen {seen} {after}".rstrip().replace("  ", " ") if seen or after else ""
        if counted and step == self.step:
            when += f" (unchanged up to step {self.step - self._uncompared_steps})"
        others = [other for other in attached_to(self._module) if other is not self]
        text = message_of(
            changes,
            when,
            Tree(self._module),
            tuple(self._followed or ()),
            f"; this is the FrozenGuard made at {self._made_at}" if others else "",
        )
        return FrozenWeightsChanged(text, tuple(change.name for change in changes), step)
