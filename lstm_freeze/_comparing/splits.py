"""Split: the samples a score trains on and tests on; inner splits, within a train set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import (
    BaseCrossValidator,
    GroupKFold,
    KFold,
    StratifiedGroupKFold,
    StratifiedKFold,
)

from .._checks import as_integer

Indices = NDArray[np.int64]


class Split(NamedTuple):
    """Indices of the samples to train on and of those to test on."""

    train: Indices
    test: Indices


class Samples(NamedTuple):
    """The class and the group of each sample, where they are given."""

    labels: NDArray[Any] | None
    groups: NDArray[Any] | None


def as_samples(labels: Any, groups: Any) -> Samples:
    """Labels and groups as one-dimensional arrays of equal length."""
    found = Samples(_as_classes(labels), _as_vector(groups, "groups"))
    lengths = [len(values) for values in found if values is not None]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"`labels` and `groups` must be equally long, got {lengths[0]} and {lengths[1]}"
        )
    return found


def as_splits(splits: Any, samples: Samples, seed: int) -> list[Split]:
    """The splits, checked: the given pairs, or the given number of stratified folds."""
    if isinstance(splits, (int, np.integer)) and not isinstance(splits, bool):
        return _folds_of_all(as_integer(splits, "splits", least=2), samples, seed)
    if hasattr(splits, "get_n_splits"):
        raise TypeError(
            "`splits` must be pairs of index arrays, got a splitter; give what it makes: "
            f"splits={type(splits).__name__}(...).split(X, y)"
        )
    if isinstance(splits, (str, bytes)) or not isinstance(splits, Iterable):
        raise TypeError(
            "`splits` must be pairs (train, test) of index arrays, or a number of folds, "
            f"got {splits!r}"
        )
    found = [_as_split(pair, number) for number, pair in enumerate(splits)]
    if not found:
        raise ValueError("`splits` must hold at least one pair, got none (a used-up generator?)")
    for number, split in enumerate(found):
        _check_against(split, number, samples)
    return found


def inner_splits(train: Indices, folds: int, samples: Samples, seed: int) -> list[Split]:
    """Folds within a train set: stratified where labels are known, groups kept whole.

    There are fewer folds than asked for where a class or the groups have fewer members.

    Raises:
        ValueError: The train set cannot be split in two.
    """
    labels = None if samples.labels is None else samples.labels[train]
    groups = None if samples.groups is None else samples.groups[train]
    units = len(train) if groups is None else len(set(groups.tolist()))
    if units < 2:
        what = "sample" if groups is None else "group"
        raise ValueError(f"a train set of one {what} cannot be split to choose a setting")
    rarest = 1 if labels is None else min(_spread(labels, groups).values())
    stratified = rarest >= 2  # a class that is in one unit only cannot be in two folds
    count = min(folds, units, rarest if stratified else units)
    splitter = _splitter(count, stratified, groups is not None, seed)
    pairs = splitter.split(train, labels, groups)
    # Groups of very different sizes may leave a fold with nothing in it.
    found = [Split(train[a], train[b]) for a, b in pairs if len(a) and len(b)]
    if not found:
        raise ValueError("the groups of a train set cannot be split to choose a setting")
    return found


def tested_share(splits: Sequence[Split]) -> float:
    """The mean share of the samples that a split tests on, among all that some split uses."""
    everything = np.unique(np.concatenate([part for split in splits for part in split]))
    return float(np.mean([len(split.test) for split in splits])) / len(everything)


def all_test_the_same(splits: Sequence[Split]) -> bool:
    """Whether every split tests on the same samples."""
    first, *others = (set(split.test.tolist()) for split in splits)
    return all(other == first for other in others)


def _folds_of_all(folds: int, samples: Samples, seed: int) -> list[Split]:
    labels, groups = samples
    if labels is None:
        raise ValueError(
            f"splits={folds} makes stratified folds and needs `labels=`, the class of each sample; "
            "without classes give the output of a splitter, for example "
            f"splits=KFold({folds}, shuffle=True, random_state=0).split(X)"
        )
    units = "samples" if groups is None else "groups"
    for label, count in _spread(labels, groups).items():
        if count < folds:
            raise ValueError(
                f"splits={folds}: label {label!r} has only {count} {units}, so some folds would "
                f"test without it; splits must be at most {count}"
            )
    if len(set(labels.tolist())) < 2:
        raise ValueError(
            f"`labels` must hold at least two classes, got only {labels.tolist()[0]!r}"
        )
    splitter = _splitter(folds, True, groups is not None, seed)
    pairs = splitter.split(np.zeros(len(labels)), labels, groups)
    found = [Split(train.astype(np.int64), test.astype(np.int64)) for train, test in pairs]
    if not all(len(part) for split in found for part in split):
        raise ValueError(
            f"splits={folds}: the groups are too unequal, a fold has no samples; ask for fewer"
        )
    return found


def _splitter(folds: int, stratified: bool, grouped: bool, seed: int) -> BaseCrossValidator:
    kinds = {
        (False, False): KFold,
        (False, True): GroupKFold,
        (True, False): StratifiedKFold,
        (True, True): StratifiedGroupKFold,
    }
    return kinds[stratified, grouped](folds, shuffle=True, random_state=seed)


def _spread(labels: NDArray[Any], groups: NDArray[Any] | None) -> Counter[Any]:
    """Class -> number of its samples, or of the groups that hold some of it."""
    if groups is None:
        return Counter(labels.tolist())
    pairs = dict.fromkeys(zip(labels.tolist(), groups.tolist(), strict=True))
    return Counter(label for label, _ in pairs)


def _as_vector(values: Any, argument: str) -> NDArray[Any] | None:
    if values is None:
        return None
    vector = np.asarray(values)
    if vector.ndim != 1 or not len(vector):
        raise ValueError(
            f"`{argument}` must be one-dimensional with one value a sample, got shape "
            f"{tuple(vector.shape)}"
        )
    if vector.dtype.kind == "f" and np.isnan(vector).any():
        raise ValueError(f"`{argument}` must not hold NaN, got it at {np.isnan(vector).argmax()}")
    return vector


def _as_classes(labels: Any) -> NDArray[Any] | None:
    vector = _as_vector(labels, "labels")
    if vector is None or vector.dtype.kind != "f":
        return vector
    if (odd := vector[vector != np.round(vector)]).size:
        raise ValueError(
            f"`labels` must be classes, got {odd[0]}; with a number to predict leave labels= "
            "out and give splits=KFold(...).split(X)"
        )
    return vector


def _as_split(pair: Any, number: int) -> Split:
    try:
        train, test = pair
    except (TypeError, ValueError):
        raise TypeError(
            f"splits[{number}] must be a pair (train, test) of index arrays, got {pair!r:.80}"
        ) from None
    split = Split(
        _as_indices(train, f"splits[{number}], train"), _as_indices(test, f"splits[{number}], test")
    )
    if len(both := np.intersect1d(split.train, split.test)):
        raise ValueError(
            f"splits[{number}]: {len(both)} samples are in train and in test, for example {both[0]}"
        )
    return split


def _as_indices(values: Any, where: str) -> Indices:
    array = np.asarray(values)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{where}: must be a list of at least one index, got {values!r:.80}")
    if array.dtype.kind not in "iu":
        remedy = "; np.flatnonzero(mask) gives indices" if array.dtype.kind == "b" else ""
        raise TypeError(f"{where}: must be integers, got {array.dtype}{remedy}")
    if (array < 0).any():
        raise ValueError(f"{where}: an index must not be negative, got {array.min()}")
    indices, counts = np.unique(array, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"{where}: names sample {indices[counts.argmax()]} {counts.max()} times; weigh or "
            "repeat samples within `score`"
        )
    return array.astype(np.int64)


def _check_against(split: Split, number: int, samples: Samples) -> None:
    """Raise ValueError for an index beyond labels or groups, or a group on both sides."""
    last = max(split.train.max(), split.test.max())
    for argument, values in zip(("labels", "groups"), samples, strict=True):
        if values is not None and last >= len(values):
            raise ValueError(
                f"splits[{number}] names sample {last}, but `{argument}` has only {len(values)}"
            )
    if samples.groups is not None:
        both = set(samples.groups[split.train].tolist()) & set(samples.groups[split.test].tolist())
        if both:
            raise ValueError(
                f"splits[{number}]: {len(both)} groups are in train and in test, for example "
                f"{sorted(both, key=repr)[0]!r}; make the splits with GroupKFold or "
                "StratifiedGroupKFold"
            )
