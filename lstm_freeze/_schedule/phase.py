"""Phase: what trains from an epoch on. Plain data, checked when it is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

from .._checks import as_integer, as_number, did_you_mean
from .._model import as_targets

PHASE_KEYS = ("start", "train", "lr", "warmup")
"""What a description of a phase may say, the first two always."""


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
        if isinstance(train, dict):
            raise TypeError(
                f"`train` must be targets, got {train!r}; a phase that says more stands in a list, "
                "with start, train, lr and warmup"
            )
        object.__setattr__(self, "start", as_integer(start, "start", least=0))
        object.__setattr__(self, "train", tuple(as_targets(train, "train")))
        object.__setattr__(self, "lr", as_rates(lr))
        object.__setattr__(self, "warmup", as_integer(warmup, "warmup", least=0))

    @property
    def sets_rates(self) -> bool:
        """Whether the phase sets or warms up learning rates."""
        return self.lr is not None or self.warmup > 0

    def __repr__(self) -> str:
        lr = "" if self.lr is None else f", lr={self.lr!r}"
        warmup = f", warmup={self.warmup}" if self.warmup else ""
        return f"Phase({self.start}, {list(self.train)}{lr}{warmup})"


def as_phases(phases: object) -> tuple[Phase, ...]:
    """The phases in order of their starts; one error lists all mistakes."""
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
                raise TypeError(
                    f"`phases` must hold Phase objects, got {item!r}; write Phase(start, train), "
                    'for example Phase(0, ["head"])'
                )
            found.append(item)
    else:
        raise TypeError(
            "`phases` must be a mapping start -> targets or a list of Phase, "
            f"got {type(phases).__name__}; for example {{0: ['head'], 2: ['*']}}"
        )
    found.sort(key=lambda phase: phase.start)
    raise_all([*mistakes, *([] if mistakes else wrong_starts(found))])
    return tuple(found)


def wrong_starts(phases: Sequence[Phase]) -> list[str]:
    """The mistakes in the starts of phases, in words."""
    starts = [phase.start for phase in phases]
    wrong = [
        f"`phases` has two phases that start at {start}; name all that trains in one"
        for start in sorted({s for s in starts if starts.count(s) > 1})
    ]
    if 0 not in starts:
        first = f"the first starts at {starts[0]}" if starts else "it is empty"
        wrong.append(f"`phases` must have a phase that starts at 0, but {first}")
    return wrong


def in_turn(
    stages: Iterable[Iterable[str]], every: int, lr: float | Mapping[str, float] | None
) -> tuple[Phase, ...]:
    """A phase for each stage's targets, `every` epochs apart, all with the same rates."""
    return tuple(Phase(i * every, stage, lr=lr) for i, stage in enumerate(stages))


def phase_of(description: object, argument: str) -> Phase:
    """The phase that `phase_as_dict` described; a Phase is taken as it is."""
    if isinstance(description, Phase):
        return description
    example = "for example {'start': 0, 'train': ['head']}"
    if not isinstance(description, Mapping):
        raise TypeError(
            f"`{argument}` must be a mapping with start and train, got {description!r}; {example}"
        )
    if unknown := [key for key in description if key not in PHASE_KEYS]:
        raise ValueError(
            f"`{argument}` has the key {unknown[0]!r}, and a phase has {', '.join(PHASE_KEYS)}"
            + did_you_mean(str(unknown[0]), PHASE_KEYS)
        )
    if missing := [key for key in PHASE_KEYS[:2] if key not in description]:
        raise ValueError(
            f"`{argument}` must have start and train, got {dict(description)!r} without "
            f"{' and '.join(missing)}; {example}"
        )
    return Phase(**description)


def phase_as_dict(phase: Phase) -> dict[str, Any]:
    """A phase as plain types."""
    found: dict[str, Any] = {"start": phase.start, "train": list(phase.train)}
    if phase.lr is not None:
        found["lr"] = dict(phase.lr) if isinstance(phase.lr, Mapping) else phase.lr
    if phase.warmup:
        found["warmup"] = phase.warmup
    return found


def raise_all(mistakes: Sequence[str]) -> None:
    """Raise one ValueError that lists all mistakes, if there are any."""
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


def as_rates(value: Any, argument: str = "lr") -> float | dict[str, float] | None:
    """A learning rate, or rates by target, checked."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        return _as_rate(value, argument)
    if not value:
        raise ValueError(
            f"`{argument}` got an empty mapping, which sets nothing; None leaves rates alone"
        )
    for target in value:
        if not isinstance(target, str):
            raise TypeError(f"`{argument}` must map targets (strings) to numbers, got {target!r}")
    return {target: _as_rate(rate, f"{argument}[{target!r}]") for target, rate in value.items()}
