"""The statistics: which differences between methods can be told from noise.

Scores of different splits are not independent: their train sets overlap, and often their test sets
do, so the variance of their mean is larger than variance / splits, and a plain t-test finds
differences where there are none. Nadeau and Bengio (2003, Machine Learning 52, 239-281) estimate
the correlation of two splits' scores as the share of the data that a split tests on, and correct
the variance of the mean by it.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy import stats

LEVEL = 0.05


class Difference(NamedTuple):
    """A mean paired difference and what is known of it.

    Attributes:
        mean: The mean of the differences, one a split.
        error: Its standard error, corrected for the overlap of the splits; NaN from one split.
        p: The two-sided p; corrected for the number of pairs where `among_all` computed it.
        low: The lower end of its confidence interval; NaN where the scores give none.
        high: The upper end.
    """

    mean: float
    error: float
    p: float
    low: float = math.nan
    high: float = math.nan

    @property
    def told(self) -> bool:
        """Whether it can be told from noise, at 95%."""
        return self.p <= LEVEL


def corrected_error(values: Sequence[float], share: float) -> float:
    """The standard error of the mean of scores (or differences), one a split.

    sqrt((1 / J + n_test / n_train) * variance) for J splits: Nadeau and Bengio's equation, where
    n_test / n_train is share / (1 - share). So for splits that train on less than all that they do
    not test on, n_train counts what they could have trained on: it is the share of the data in a
    test set that makes splits alike, not how small the train sets are.

    Args:
        values: The scores or differences, one a split.
        share: The share of the samples in a test set.
    """
    if len(values) < 2:
        return math.nan
    deviation = statistics.stdev(values)
    if deviation <= 1e-12 * max(map(abs, values)):  # the same number, but for rounding
        return 0.0
    return math.sqrt(1 / len(values) + share / (1 - share)) * deviation


def paired_difference(first: Sequence[float], second: Sequence[float], share: float) -> Difference:
    """The difference first - second over paired splits, by the corrected resampled t-test.

    Where every split shows the same difference, the spread says nothing about noise and t would be
    infinite. Then p is that of the sign test: so many splits could all show one sign by chance.
    """
    values = [a - b for a, b in zip(first, second, strict=True)]
    mean, error, splits = statistics.fmean(values), corrected_error(values, share), len(values)
    scale = max(map(abs, (*first, *second)))
    if abs(mean) <= 1e-12 * scale and not error > 1e-12 * scale:
        return Difference(0.0, 0.0 if splits > 1 else math.nan, 1.0)
    if splits == 1:
        return Difference(mean, math.nan, 1.0)
    if error <= 1e-12 * scale:
        return Difference(mean, 0.0, 2.0 ** (1 - splits))
    return Difference(mean, error, 2 * float(stats.t.sf(abs(mean) / error, splits - 1)))


def among_all(
    scores: Mapping[str, Sequence[float]], share: float
) -> dict[tuple[str, str], Difference]:
    """Every pair's difference, with p corrected for all pairs by Holm's method, and an interval.

    All pairs count, and not only those with the best: which method is the best is itself read from
    these scores. The interval of a pair is taken at the level at which Holm's method decides about
    it, so it leaves zero out exactly where p says that the difference can be told.
    """
    pairs = {
        (a, b): paired_difference(scores[a], scores[b], share)
        for a, b in itertools.combinations(scores, 2)
    }
    splits = len(next(iter(scores.values())))
    corrected = holm([difference.p for difference in pairs.values()])
    found = {}
    for (names, raw), (p, level) in zip(pairs.items(), corrected, strict=True):
        low = high = math.nan
        if raw.error > 0:
            half = float(stats.t.isf(level / 2, splits - 1)) * raw.error
            low, high = raw.mean - half, raw.mean + half
        found[names] = raw._replace(p=p, low=low, high=high)
        found[names[1], names[0]] = Difference(-raw.mean, raw.error, p, -high, -low)
    return found


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[tuple[float, float]]:
    """Holm's corrected p of each, and the level at which the raw p decides about it.

    Examples:
        >>> [(round(p, 2), round(level, 4)) for p, level in holm([0.01, 0.04, 0.03])]
        [(0.03, 0.0167), (0.06, 0.025), (0.06, 0.025)]
    """
    found: dict[int, tuple[float, float]] = {}
    corrected, decides = 0.0, 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        left = len(p_values) - rank
        if corrected <= level:  # after the first that is not told, none is
            decides = level / left
        corrected = max(corrected, min(1.0, left * p_values[index]))
        found[index] = corrected, decides
    return [found[index] for index in range(len(p_values))]


def mean_interval(values: Sequence[float], share: float) -> tuple[float, float]:
    """The 95% interval of one method's mean, corrected for the overlap of the splits."""
    mean, error = statistics.fmean(values), corrected_error(values, share)
    if not error > 0:
        return math.nan, math.nan
    half = float(stats.t.isf(LEVEL / 2, len(values) - 1)) * error
    return mean - half, mean + half
