"""What a schedule is made of: phases, and the rates of progressive freezing. Plain data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

from .._checks import as_bool, as_integer, as_number
from .._model import as_targets

SHAPES = {"linear": 1, "squared": 2, "cubic": 3}


@dataclass(frozen=True, init=False)
class Phase:
    """What trains from an epoch (or step) on, until the next phase; the rest is frozen.

    Args:
        start: The first epoch (or optimizer step) of the phase.
        train: Targets as in `select`; None is everything.
        lr: The learning rate of what the phase trains, or rates by target, of which the first
            that matches wins. They are set once, at the start of the phase; None leaves the
            rates alone. The rates are those of the optimizer's param groups, so each group must
            be named wholly.
        warmup: The number of optimizer steps in which the rate of the groups that begin to train
            in this phase rises linearly from `lr / warmup` to `lr`.

    Raises:
        ValueError: A value is out of its range, or a list is empty.
        TypeError: An argument is of another type than named above.

    Examples:
        >>> Phase(3, ["head", "encoder"], lr={"head": 1e-4, "*": 1e-5}, warmup=100)
        Phase(3, ['head', 'encoder'], lr={'head': 0.0001, '*': 1e-05}, warmup=100)
    """

    start: int
    train: tuple[str, ...]
    lr: float | Mapping[str, float] | None = field(default=None, kw_only=True, hash=False)
    warmup: int = field(default=0, kw_only=True)

    def __init__(
        self,
        start: SupportsIndex,
        train: str | Iterable[str] | None,
        *,
        lr: float | Mapping[str, float] | None = None,
        warmup: int = 0,
    ) -> None:
        """Check the arguments, and copy them."""
        object.__setattr__(self, "start", as_integer(start, "start", least=0))
        object.__setattr__(self, "train", tuple(as_targets(train, "train")))
        object.__setattr__(self, "lr", as_rates(lr))
        object.__setattr__(self, "warmup", as_integer(warmup, "warmup", least=0))

    @property
    def sets_rates(self) -> bool:
        """Whether the phase has anything to do with learning rates."""
        return self.lr is not None or self.warmup > 0

    def __repr__(self) -> str:
        lr = "" if self.lr is None else f", lr={self.lr!r}"
        warmup = f", warmup={self.warmup}" if self.warmup else ""
        return f"Phase({self.start}, {list(self.train)}{lr}{warmup})"


@dataclass(frozen=True)
class Annealing:
    """The rates of progressive freezing: each group's own cosine, which ends where it freezes.

    Attributes:
        groups: The targets of each group, input side first, the head last.
        total: The length of the training in epochs.
        t0: Where the first group freezes, as a fraction of the training, before the shape.
        how: The shape of the freezing times: linear, squared or cubic.
        scaled: Whether a group that freezes early learns the faster.
    """

    groups: tuple[tuple[str, ...], ...]
    total: int
    t0: float
    how: str
    scaled: bool

    def __post_init__(self) -> None:
        """Check the values."""
        as_integer(self.total, "total", least=1)
        if not 0 < as_number(self.t0, "t0") <= 1:
            raise ValueError(f"`t0` must be above 0 and at most 1, got {self.t0!r}")
        if self.how not in tuple(SHAPES):  # a list would have no hash
            raise ValueError(f"`how` must be one of {', '.join(SHAPES)}, got {self.how!r}")
        as_bool(self.scaled, "scaled")

    def end_of(self, group: int) -> float:
        """The fraction of the training after which a group is frozen for good."""
        last = len(self.groups) - 1
        fraction = self.t0 + (1 - self.t0) * (group / last if last else 1.0)
        return float(fraction ** SHAPES[self.how])

    def rate(self, group: int, initial: float, epoch: float) -> float:
        """The rate of a group at an epoch, which may be a fraction of one."""
        end = self.end_of(group)
        part = min(epoch / (end * self.total), 1.0)
        return (initial / end if self.scaled else initial) * (1 + math.cos(math.pi * part)) / 2

    def phases(self) -> tuple[Phase, ...]:
        """The phases: a group is frozen from the first epoch that begins at or after its end."""
        ends = [math.ceil(self.end_of(i) * self.total - 1e-9) for i in range(len(self.groups))]
        starts = sorted({0, *(end for end in ends if end < self.total)})
        return tuple(
            Phase(
                start, [t for g, e in zip(self.groups, ends, strict=True) if e > start for t in g]
            )
            for start in starts
        )


def as_phases(phases: Any) -> tuple[Phase, ...]:
    """Phases by start, each checked; all mistakes are said at once."""
    found: list[Phase] = []
    mistakes: list[str] = []
    if isinstance(phases, Mapping):
        for start, train in phases.items():
            try:
                found.append(Phase(start, train))
            except (ValueError, TypeError) as error:
                mistakes.append(f"phase {start!r}: {error}")
    elif isinstance(phases, Iterable) and not isinstance(phases, (str, bytes)):
        for item in phases:
            if not isinstance(item, Phase):
                raise TypeError(f"`phases` must hold Phase objects, got {item!r}")
            found.append(item)
    else:
        raise TypeError(
            "`phases` must be a mapping start -> targets or a list of Phase, "
            f"got {type(phases).__name__}"
        )
    found.sort(key=lambda phase: phase.start)
    raise_all([*mistakes, *([] if mistakes else wrong_starts(found))])
    return tuple(found)


def wrong_starts(phases: Sequence[Phase]) -> list[str]:
    """What is wrong with the starts of phases, in words."""
    starts = [phase.start for phase in phases]
    wrong = [
        f"`phases` has two phases that start at {start}; name all that trains in one"
        for start in sorted({s for s in starts if starts.count(s) > 1})
    ]
    if 0 not in starts:
        first = f"the first starts at {starts[0]}" if starts else "it is empty"
        wrong.append(f"`phases` must have a phase that starts at 0, but {first}")
    return wrong


def described(phase: Phase) -> dict[str, Any]:
    """A phase as plain types."""
    found: dict[str, Any] = {"start": phase.start, "train": list(phase.train)}
    if phase.lr is not None:
        found["lr"] = dict(phase.lr) if isinstance(phase.lr, Mapping) else phase.lr
    if phase.warmup:
        found["warmup"] = phase.warmup
    return found


def raise_all(mistakes: Sequence[str]) -> None:
    """Raise one ValueError that says every mistake, if there is any."""
    if len(mistakes) == 1:
        raise ValueError(mistakes[0])
    if mistakes:
        lines = "".join(f"\n  - {mistake}" for mistake in mistakes)
        raise ValueError(f"the schedule cannot be followed, for {len(mistakes)} reasons:{lines}")


def _as_rate(value: Any, argument: str) -> float:
    if (rate := as_number(value, argument)) <= 0:
        raise ValueError(
            f"`{argument}` must be above 0, got {value!r}; to freeze a target, leave it out of "
            "`train`"
        )
    return rate


def as_rates(value: Any) -> float | dict[str, float] | None:
    """A learning rate, or rates by target, checked."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        return _as_rate(value, "lr")
    if not value:
        raise ValueError("`lr` got an empty mapping, which sets nothing; None leaves rates alone")
    for target in value:
        if not isinstance(target, str):
            raise TypeError(f"`lr` must map targets (strings) to numbers, got {target!r}")
    return {target: _as_rate(rate, f"lr[{target!r}]") for target, rate in value.items()}
