"""The statistics of compare: against SciPy, published numbers, and by counting false alarms."""

import math
from functools import partial

import numpy as np
import pytest
from _scores import planted, quietly
from false_alarms import compared, few_labelled, folds, random_splits
from scipy import stats
from sklearn.datasets import make_moons
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import RepeatedStratifiedKFold
from sklearn.svm import SVC

from lstm_freeze._comparing.paired import (
    among_all,
    corrected_error,
    holm,
    mean_interval,
    paired_difference,
)

RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.normal(0.85, 0.03, 10).tolist(), RNG.normal(0.83, 0.03, 10).tolist()


def test_without_overlap_it_is_scipys_paired_t_test():
    ours = paired_difference(FIRST, SECOND, share=0.0)
    theirs = stats.ttest_rel(FIRST, SECOND)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-12)
    assert ours.mean == pytest.approx(np.mean(FIRST) - np.mean(SECOND), rel=1e-12)
    assert ours.mean / ours.error == pytest.approx(theirs.statistic, rel=1e-12)
    pair = among_all({"a": FIRST, "b": SECOND}, share=0.0)["a", "b"]
    assert (pair.low, pair.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    one = stats.ttest_1samp(FIRST, 0).confidence_interval(0.95)
    assert mean_interval(FIRST, 0.0) == pytest.approx(tuple(one))


@pytest.mark.parametrize("folds", [2, 5, 10])
def test_for_folds_the_variance_is_nadeau_and_bengios(folds):
    # Bouckaert and Frank (2004): (1 / J + n_test / n_train) * variance.
    expected = math.sqrt((1 / 10 + 1 / (folds - 1)) * np.var(FIRST, ddof=1))
    assert corrected_error(FIRST, share=1 / folds) == pytest.approx(expected, rel=1e-12)


def test_published_numbers_of_the_corrected_test():
    """scikit-learn's example "Statistical comparison of models using grid search".

    It prints a corrected t of 0.750 and a one-sided p of 0.227 for the kernels rbf and linear; a
    plain t-test over the same hundred scores gives 2.611 and 0.005.
    """
    x, y = make_moons(noise=0.352, random_state=1, n_samples=100)

    def score(train, test, seed, kernel):
        model = SVC(kernel=kernel, random_state=0).fit(x[train], y[train])
        return roc_auc_score(y[test], model.decision_function(x[test]))

    folds = RepeatedStratifiedKFold(n_splits=10, n_repeats=10, random_state=0).split(x, y)
    found = quietly(score, {"linear": {"kernel": "linear"}, "rbf": {"kernel": "rbf"}}, folds)
    linear = found.table["linear"]
    assert linear.p / 2 == pytest.approx(0.227, abs=5e-4)
    assert stats.t.isf(linear.p / 2, 99) == pytest.approx(0.750, abs=1e-3)
    assert not linear.told
    plain = stats.ttest_rel(found.scores["rbf"], found.scores["linear"])
    assert (plain.statistic, plain.pvalue / 2) == pytest.approx((2.611, 0.005), abs=5e-4)


@pytest.mark.parametrize(
    ("raw", "corrected"),
    [  # the first two as R's p.adjust(p, "holm") has them
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.04, 0.01, 0.005, 0.03], [0.06, 0.03, 0.02, 0.06]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm(raw, corrected):
    assert [p for p, _ in holm(raw)] == pytest.approx(corrected)


def test_an_interval_leaves_zero_out_exactly_where_the_difference_is_told():
    told = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scores = {str(k): rng.normal(0.8 + 0.02 * k, 0.03, 10).tolist() for k in range(4)}
        for difference in among_all(scores, share=0.1).values():
            assert difference.told == (not difference.low <= 0 <= difference.high)
            told += difference.told
    assert 50 < told < 60 * 12 - 50


def test_the_best_row_is_compared_in_both_directions_alike():
    pairs = among_all({"a": FIRST, "b": SECOND, "c": FIRST[::-1]}, share=0.1)
    assert len(pairs) == 6
    there, back = pairs["a", "c"], pairs["c", "a"]
    assert (there.mean, there.low, there.high) == (-back.mean, -back.high, -back.low)
    assert there.p == back.p


# ---- where a t-test has no answer


def test_one_split_tells_nothing():
    difference = paired_difference([0.9], [0.1], share=0.5)
    assert difference.mean == pytest.approx(0.8)
    assert difference.p == 1.0
    assert math.isnan(difference.error)
    assert not difference.told


@pytest.mark.parametrize(("splits", "told"), [(2, False), (5, False), (6, True), (10, True)])
def test_the_same_difference_everywhere_is_as_good_as_the_sign_test(splits, told):
    low = [0.1 * k for k in range(splits)]
    high = [score + 0.1 for score in low]  # equal differences but for rounding
    difference = paired_difference(high, low, share=0.1)
    assert difference.p == stats.binomtest(splits, splits).pvalue == 2.0 ** (1 - splits)
    assert difference.told == told
    assert difference.error == 0.0


@pytest.mark.parametrize("scores", [[0.5, 0.5, 0.5], [0.1, 0.7, 0.4], [0.0, 0.0, 0.0]])
def test_ties_are_no_difference(scores):
    again = [score * (1 + 1e-16) for score in scores]
    difference = paired_difference(scores, again, share=0.2)
    assert (difference.mean, difference.error, difference.p) == (0.0, 0.0, 1.0)


def test_differences_that_cancel_are_no_difference_and_have_a_spread():
    difference = paired_difference([0.1, 0.3], [0.3, 0.1], share=0.5)
    assert difference.error > 0.1
    assert difference.p == pytest.approx(1.0)


# ---- false alarms and finds, counted


TEN_FOLDS, TWENTY_RANDOM = partial(folds, 10), partial(random_splits, 20)


@pytest.mark.parametrize("splits_of", [TEN_FOLDS, TWENTY_RANDOM, few_labelled])
def test_pure_noise_shows_no_difference(splits_of):
    reasons = [compared(seed, splits_of, 3, signal=0.0).reason for seed in range(100)]
    assert sum("no difference can be told" in reason for reason in reasons) >= 90


@pytest.mark.parametrize("splits_of", [TEN_FOLDS, TWENTY_RANDOM, few_labelled])
def test_equally_good_methods_show_no_difference(splits_of):
    found = [compared(seed, splits_of, 6, signal=0.25) for seed in range(40)]
    assert sum(any(row.told for row in one.table) for one in found) <= 4
    assert np.mean([row.mean for one in found for row in one.table]) > 0.6


def test_a_plain_t_test_over_repeated_splits_would_find_what_is_not_there():
    alarms = 0
    for seed in range(60):
        first, second = compared(seed, TWENTY_RANDOM, 2, signal=0.0).scores.values()
        alarms += stats.ttest_rel(first, second).pvalue <= 0.05
    assert alarms >= 12


def test_a_difference_of_two_standard_deviations_is_found():
    found = 0
    for seed in range(100):
        methods = {"good": {"mean": 0.86}, "bad": {"mean": 0.80}}  # sd 0.03 each
        comparison = quietly(planted, methods, 10, seed=1000 * seed)
        found += comparison.table["bad"].told and comparison.choice == "good"
    # Of the paired difference two such standard deviations are 1.4; most are found all the same.
    assert found >= 70


@pytest.mark.parametrize("splits", [5, 10])
def test_a_difference_of_two_of_its_own_standard_deviations_is_found(splits):
    spread = np.linspace(-1, 1, splits)
    worse = (0.8 + 0.03 * spread / spread.std(ddof=1)).tolist()
    difference = paired_difference([0.86] * splits, worse, share=1 / splits)
    assert difference.told
