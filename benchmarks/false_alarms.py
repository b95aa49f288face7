"""How often is a difference told where there is none? Counted for `compare` and for a plain t-test.

Simulated data without any difference between the methods: 100 samples of two classes, and methods
that each read other columns, which all tell the class equally well, or not at all (noise). A false
alarm is a comparison in which some method is said to be worse than the best. Prints a table in
Markdown.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.model_selection import RepeatedStratifiedKFold, ShuffleSplit, StratifiedKFold

from lstm_freeze import Comparison, compare

SAMPLES, COLUMNS = 100, 4
Splits = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


def folds(count: int, y: NDArray[np.int64], seed: int) -> Splits:
    """Stratified folds."""
    return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(y, y))


def few_labelled(y: NDArray[np.int64], seed: int) -> Splits:
    """Ten folds, twice; each trains on 25 of the samples that it does not test on."""
    rng = np.random.default_rng(seed)
    splitter = RepeatedStratifiedKFold(n_splits=10, n_repeats=2, random_state=seed)
    return [(rng.permutation(train)[:25], test) for train, test in splitter.split(y, y)]


def random_splits(count: int, y: NDArray[np.int64], seed: int) -> Splits:
    """Random splits, which test on a fifth of the samples."""
    return list(ShuffleSplit(count, test_size=0.2, random_state=seed).split(y))


SPLITS: dict[str, Callable[[NDArray[np.int64], int], Splits]] = {
    "3 folds": partial(folds, 3),
    "5 folds": partial(folds, 5),
    "10 folds": partial(folds, 10),
    "10 folds twice, 25 labelled": few_labelled,
    "30 random splits": partial(random_splits, 30),
}


def compared(
    seed: int, splits_of: Callable[..., Splits], methods: int, signal: float
) -> Comparison:
    """Compare so many equally good methods on data of this seed; 0 is pure noise."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(SAMPLES) % 2)
    x = rng.standard_normal((SAMPLES, COLUMNS * methods)) + signal * (2 * y[:, None] - 1)

    def score(train: NDArray[np.int64], test: NDArray[np.int64], seed: int, method: int) -> float:
        # The accuracy of the nearest class centre.
        own = x[:, COLUMNS * method : COLUMNS * (method + 1)]
        ones, zeros = (own[train][y[train] == label].mean(0) for label in (1, 0))
        middle = (ones + zeros) @ (ones - zeros) / 2
        return float(((own[test] @ (ones - zeros) > middle) == y[test]).mean())

    named = {str(method): {"method": method} for method in range(methods)}
    return compare(score, named, splits_of(y, seed), progress=False)


def alarms(found: Comparison) -> tuple[bool, bool]:
    """Whether `compare`, and whether plain t-tests, say that a method is worse than the best."""
    best, *others = found.table
    plain = [
        stats.ttest_rel(found.scores[best.method], found.scores[row.method]).pvalue
        for row in others
        if found.scores[best.method] != found.scores[row.method]
    ]
    return any(row.told for row in others), any(p <= 0.05 for p in plain)


def _percent(
    repetitions: int, splits_of: Callable[..., Splits], methods: int, signal: float
) -> tuple[float, float]:
    found = [alarms(compared(seed, splits_of, methods, signal)) for seed in range(repetitions)]
    ours, plain = 100 * np.mean(found, axis=0)
    return ours, plain


def main(arguments: Sequence[str] | None = None) -> None:
    """Count from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--repetitions", type=int, default=1000, help="data sets each (default: 1000)"
    )
    repetitions = parser.parse_args(arguments).repetitions
    began = time.perf_counter()
    print(
        "| splits | classes | `compare`: 2 methods | 6 methods | t-tests: 2 methods | 6 methods |"
    )
    print("|---|---|---|---|---|---|")
    for name, splits_of in SPLITS.items():
        for words, signal in (("noise", 0.0), ("told", 0.25)):
            ours, plain = zip(
                *(_percent(repetitions, splits_of, methods, signal) for methods in (2, 6)),
                strict=True,
            )
            cells = " | ".join(f"{percent:.0f}" for percent in (*ours, *plain))
            print(f"| {name} | {words} | {cells} |", flush=True)
    print(f"\n{repetitions} data sets each, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
