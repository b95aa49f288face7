"""A plan: everything that decides which scores a comparison needs."""

from __future__ import annotations

from typing import Any, NamedTuple

from .choice import candidates
from .finished import digest
from .identity import described
from .methods import Methods
from .splits import Samples, Split, as_samples, as_splits, inner_splits


class Plan(NamedTuple):
    """What is scored.

    Attributes:
        methods: Name -> settings.
        splits: The splits of all samples.
        seeds: One seed a split.
        inner: For each split the folds of its train set; none where no method has a choice.
        folds: How many such folds were asked for.
        samples: Labels and groups.
        minimize: Whether a low score is good.
    """

    methods: Methods
    splits: list[Split]
    seeds: list[int]
    inner: list[list[Split]]
    folds: int
    samples: Samples
    minimize: bool

    @property
    def calls(self) -> int:
        """How many times the score function is called."""
        options = [len(candidates(settings)) for settings in self.methods.values()]
        return sum(1 + (n > 1) * n * len(inner) for n in options for inner in self.inner)

    def record(self) -> dict[str, Any]:
        """The plan for a file; TypeError where a setting has no text for it."""
        methods = {}
        for name, settings in self.methods.items():
            try:
                methods[name] = described(settings)
            except TypeError as error:
                raise TypeError(f"methods[{name!r}], with `folder=`: {error}") from error
        return {
            "methods": methods,
            "splits": [_split_record(*pair) for pair in zip(self.splits, self.seeds, strict=True)],
            "minimize": self.minimize,
            "inner": self.folds,
            "labels": _values_record(self.samples.labels),
            "groups": _values_record(self.samples.groups),
        }


def planned(
    methods: Methods,
    splits: Any,
    labels: Any,
    groups: Any,
    minimize: bool,
    folds: int,
    seed: int,
) -> Plan:
    """The plan for these arguments, checked."""
    samples = as_samples(labels, groups)
    listed = as_splits(splits, samples, seed)
    seeds = [seed + number for number in range(len(listed))]
    inner: list[list[Split]] = [[] for _ in listed]
    if any(len(candidates(settings)) > 1 for settings in methods.values()):
        for number, split in enumerate(listed):
            try:
                inner[number] = inner_splits(split.train, folds, samples, seeds[number])
            except ValueError as error:
                raise ValueError(f"splits[{number}]: {error}") from error
    return Plan(methods, listed, seeds, inner, folds, samples, minimize)


def _split_record(split: Split, seed: int) -> dict[str, Any]:
    indices = digest(*(part.astype("<i8").tobytes() for part in split))
    return {"train": len(split.train), "test": len(split.test), "seed": seed, "indices": indices}


def _values_record(values: Any) -> str | None:
    return None if values is None else digest(repr(values.tolist()).encode())
