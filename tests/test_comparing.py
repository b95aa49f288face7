"""compare: what the score function is given, what is chosen, and what is said about it."""

# ruff: noqa: E501  (a row of the table is a line)

import math
import pickle
import sys
import warnings
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from _scores import LABELS, Recording, planted, quietly
from sklearn.model_selection import KFold, StratifiedKFold

from lstm_freeze import Choice, Comparison, compare

matplotlib.use("Agg")
NAN = float("nan")


# ---- planted answers


def representation(kind):
    """Samples of 30 numbers; class in one direction. An encoder keeps one direction of them."""
    rng = np.random.default_rng(7)
    y = np.array(LABELS * 5)
    x = rng.standard_normal((len(y), 30))
    x[:, :5] += 0.5 * (2 * y[:, None] - 1)
    direction = np.zeros(30)
    direction[slice(0, 5) if kind == "holds" else slice(5, 10)] = 1.0
    if kind == "noise":
        y = rng.permutation(y)
    return x, y, direction


def planted_task(kind):
    x, y, direction = representation(kind)

    def score(train, test, seed, encoder):
        features = (x @ direction)[:, None] if encoder else x
        ones, zeros = (features[train][y[train] == label].mean(0) for label in (1, 0))
        weights = ones - zeros
        said = features[test] @ weights > (ones + zeros) @ weights / 2
        return float((said == y[test]).mean())

    rng = np.random.default_rng(0)
    few = [(rng.permutation(a)[:16], b) for a, b in StratifiedKFold(10).split(x, y)]
    return quietly(score, {"frozen": {"encoder": True}, "scratch": {"encoder": False}}, few)


@pytest.mark.parametrize(("kind", "winner"), [("holds", "frozen"), ("misleads", "scratch")])
def test_the_method_that_fits_the_task_wins(kind, winner):
    found = planted_task(kind)
    (loser,) = {"frozen", "scratch"} - {winner}
    assert found.choice == winner
    assert found.table[loser].told
    assert f"it is better than `{loser}` by" in found.reason
    assert "no difference can be told" not in found.reason


def test_where_there_is_nothing_to_learn_no_difference_can_be_told():
    found = planted_task("noise")
    assert "no difference can be told" in found.reason
    assert not any(row.told for row in found.table)
    assert found.choice in ("frozen", "scratch")


# ---- what the score function is given


METHODS = {"a": {"mean": 0.8}, "b": {"mean": Choice([0.5, 0.9, 0.7])}, "c": {"mean": 0.81}}


def test_every_method_sees_the_same_splits_and_seeds():
    score = Recording()
    splits = list(StratifiedKFold(5).split(LABELS, LABELS))
    quietly(score, {"a": {"mean": 0.8}, "b": {"mean": 0.7}, "c": {"mean": 0.6}}, splits, seed=30)
    expected = [(a.tolist(), b.tolist(), 30 + k) for k, (a, b) in enumerate(splits)]
    for mean in (0.8, 0.7, 0.6):
        assert [call[:3] for call in score.calls if call[3] == {"mean": mean}] == expected


@pytest.mark.parametrize("known", [{}, {"labels": LABELS}, {"groups": np.arange(100) // 4}])
def test_a_choice_never_sees_test_indices(known):
    score = Recording()
    splits = [(a, b) for a, b in KFold(5).split(LABELS)]
    found = quietly(score, METHODS, splits, **known)
    for (train, test), seed in zip(splits, range(5), strict=True):
        of_split = [call for call in score.calls if call[2] == seed]
        inner = [call for call in of_split if set(call[1]) != set(test.tolist())]
        assert len(of_split) - len(inner) == len(METHODS)
        assert len(inner) == 3 * 3  # values, inner folds
        for inner_train, inner_test, _, settings in inner:
            seen = set(inner_train) | set(inner_test)
            assert seen <= set(train.tolist())
            assert not seen & set(test.tolist())
            assert not set(inner_train) & set(inner_test)
            assert settings["mean"] in (0.5, 0.9, 0.7)
        for value in (0.5, 0.9, 0.7):  # the folds of a train set leave none of it untested
            tested = [i for call in inner if call[3] == {"mean": value} for i in call[1]]
            assert sorted(tested) == sorted(train.tolist())
    assert [settings["mean"] for settings in found.settings["b"]] == [0.9] * 5


def test_inner_folds_are_stratified_and_keep_groups_whole():
    groups = np.arange(100) // 2  # neighbours belong together, one of each class
    score = Recording()
    quietly(score, {"b": {"mean": Choice([0.1, 0.2])}}, 5, groups=groups, inner=4)
    inner = [call for call in score.calls if len(call[0]) < 80]
    assert len(inner) == 5 * 2 * 4
    for train, test, *_ in score.calls:
        assert not set(groups[train]) & set(groups[test])
        assert np.mean(np.array(LABELS)[test]) == pytest.approx(0.5)


def test_folds_are_stratified_disjoint_complete_and_follow_the_seed():
    score = Recording()
    labels = ["yes"] * 30 + ["no"] * 70
    quietly(score, {"a": {"mean": 0.8}}, 10, labels=labels)
    tests = [call[1] for call in score.calls]
    assert sorted(i for test in tests for i in test) == list(range(100))
    assert all(sum(i < 30 for i in test) == 3 for test in tests)
    again, other = Recording(), Recording()
    quietly(again, {"a": {"mean": 0.8}}, 10, labels=labels)
    quietly(other, {"a": {"mean": 0.8}}, 10, labels=labels, seed=1)
    assert again.calls == score.calls
    assert [call[1] for call in other.calls] != tests


def test_all_combinations_of_choices_are_tried_and_the_first_of_equals_wins():
    score = Recording(lambda train, test, seed, lr, epochs, fixed: lr * (epochs != 3))
    methods = {"m": {"lr": Choice([1, 2]), "epochs": Choice([3, 4, 5]), "fixed": [1]}}
    found = quietly(score, methods, 2)
    tried = {(call[3]["lr"], call[3]["epochs"]) for call in score.calls}
    assert tried == {(lr, epochs) for lr in (1, 2) for epochs in (3, 4, 5)}
    assert found.settings["m"] == ({"lr": 2, "epochs": 4, "fixed": [1]},) * 2


@pytest.mark.parametrize(("minimize", "chosen"), [(False, 0.9), (True, 0.5)])
def test_minimize_holds_for_choices_too(minimize, chosen):
    found = quietly(planted, METHODS, 4, minimize=minimize)
    assert {settings["mean"] for settings in found.settings["b"]} == {chosen}


def test_a_choice_of_one_value_is_not_tried_out():
    score = Recording()
    quietly(score, {"a": {"mean": Choice([0.5])}}, 4)
    assert len(score.calls) == 4


def test_what_a_score_function_does_to_its_arguments_stays_there():
    def score(train, test, seed, weights):
        before = (sorted(train) == train.tolist(), float(weights.sum()))
        train[:] = train[::-1].copy()
        weights += 1.0
        return float(before == (True, 0.0))

    weights = torch.zeros(3)
    splits = list(KFold(4).split(LABELS))
    found = quietly(score, {"a": {"weights": weights}, "b": {"weights": weights}}, splits)
    assert found.scores == {"a": (1.0,) * 4, "b": (1.0,) * 4}
    assert weights.sum() == 0


@pytest.mark.parametrize("kind", [float, np.float32, torch.tensor, lambda x: np.array(x), round])
def test_a_score_may_be_any_number(kind):
    found = quietly(lambda train, test, seed: kind(0.5), {"a": {}}, 2)
    assert found.scores["a"] == (float(kind(0.5)),) * 2
    assert all(type(score) is float for score in found.scores["a"])


# ---- the choice and its reason


class Clock:
    """The seconds that compare measures: set, not waited for."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        measured = SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr("lstm_freeze._comparing.running.time", measured)


class Slow(Clock):
    """Scores with a mean each, at a price each."""

    def __init__(self, monkeypatch, methods):
        super().__init__(monkeypatch)
        self.methods = methods

    def __call__(self, train, test, seed, name):
        mean, seconds = self.methods[name]
        self.now += seconds
        if isinstance(mean, Exception):
            raise mean
        return planted(train, test, seed, mean, sd=0.01)


def with_prices(monkeypatch, methods, **options):
    score = Slow(monkeypatch, methods)
    return quietly(score, {name: {"name": name} for name in methods}, **options)


def test_the_choice_is_the_cheapest_within_one_standard_error(monkeypatch):
    found = with_prices(
        monkeypatch,
        {"dear": (0.85, 9), "fair": (0.851, 3), "cheap": (0.83, 1), "bad": (0.6, 0.5)},
    )
    best = found.table.rows[0].method
    assert best in ("dear", "fair")
    assert found.choice == "fair"
    assert found.table["bad"].told
    assert [row.seconds for row in found.table] == [
        pytest.approx({"dear": 9, "fair": 3, "cheap": 1, "bad": 0.5}[row.method])
        for row in found.table
    ]
    assert f"`{best}` has the highest mean" in found.reason


@pytest.mark.parametrize(("below", "choice"), [(0.01, "cheap"), (0.015, "dear")])
def test_one_standard_error_is_the_corrected_one(below, choice, monkeypatch):
    # The differences have a corrected error of 0.0138 over 10 folds; the plain one is 0.0095.
    noise = np.tile([1.0, -1.0], 5)
    noise *= 0.03 / noise.std(ddof=1)
    clock = Clock(monkeypatch)

    def score(train, test, seed, cheap):
        clock.now += 1 if cheap else 2
        return 0.9 - cheap * (below + noise[seed])

    found = quietly(score, {"dear": {"cheap": False}, "cheap": {"cheap": True}})
    assert found.table["cheap"].difference == pytest.approx(-below)
    assert found.choice == choice


def test_a_low_score_is_good_with_minimize(monkeypatch):
    found = with_prices(monkeypatch, {"low": (0.2, 5), "high": (0.6, 1)}, minimize=True)
    assert found.choice == "low"
    assert [row.method for row in found.table] == ["low", "high"]
    high = found.table["high"]
    assert high.told
    assert 0 < high.interval[0] < high.difference < high.interval[1]
    assert "`low` has the lowest mean" in found.reason


def test_the_cost_of_choosing_counts(monkeypatch):
    clock = Clock(monkeypatch)

    def score(train, test, seed, value):
        clock.now += 1.0
        return planted(train, test, 0, 0.5, sd=0.0)

    found = quietly(score, {"one": {"value": 1}, "two": {"value": Choice([1, 2])}}, 4)
    assert found.choice == "one"  # equal scores, a seventh of the calls
    assert found.seconds == {"one": (1.0,) * 4, "two": (7.0,) * 4}
    assert found.table["two"].seconds == 7.0


def test_equal_scores_everywhere_are_no_difference():
    found = quietly(lambda train, test, seed, x: 0.5, {"a": {"x": 1}, "b": {"x": 2}})
    assert "Between the two methods no difference can be told over 10 splits" in found.reason
    assert all(row.difference == 0 for row in found.table)
    assert found.choice in ("a", "b")


def test_one_split_is_scored_and_tells_nothing():
    found = quietly(planted, {"a": {"mean": 0.9}, "b": {"mean": 0.1}}, [([0, 1], [2, 3])])
    assert found.choice == "a"
    assert "no difference can be told from one split" in found.reason
    assert math.isnan(found.table["a"].spread)
    assert not found.table["b"].told


def test_one_method_is_scored_and_has_no_other():
    found = quietly(planted, {"a": {"mean": 0.9}}, 3)
    assert found.choice == "a"
    assert found.reason == "`a` is chosen: there is no other method to compare it with."


def test_a_common_test_set_is_said():
    splits = [(range(k, 60 + k), range(80, 100)) for k in range(5)]
    found = quietly(planted, {"a": {"mean": 0.9}, "b": {"mean": 0.1}}, splits)
    assert "every split tests on the same 20 samples" in str(found.table)
    other = quietly(planted, {"a": {"mean": 0.9}, "b": {"mean": 0.1}}, 5)
    assert "every split" not in str(other)


# ---- scores that fail


def failing(train, test, seed, mean, how=None, where=(0, 1, 2, 3)):
    if seed in where and isinstance(how, Exception):
        raise how
    return how if seed in where and how is not None else planted(train, test, seed, mean)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
        (NAN, "the score is nan"),
        (math.inf, "the score is inf"),
        (-math.inf, "the score is -inf"),
        (AssertionError(), "AssertionError"),
    ],
)
@pytest.mark.parametrize("minimize", [False, True])
def test_a_score_that_fails_is_reported_and_its_method_not_chosen(how, said, minimize):
    methods = {"good": {"mean": 0.8}, "broken": {"mean": 0.9, "how": how, "where": (2,)}}
    methods["other"] = {"mean": 0.81}
    found = quietly(failing, methods, 4, minimize=minimize)
    assert found.choice in ("good", "other")
    assert "Scores that raised or were not finite rule out `broken` (1)." in found.reason
    assert f"! broken, on split 2: {said}" in str(found)
    row = found.table["broken"]
    assert (row.failed, row.told, row.best) == (1, False, False)
    assert [math.isfinite(score) for score in found.scores["broken"]] == [True, True, False, True]
    (failure,) = found.failures
    assert (failure.method, failure.split, failure.seed, failure.choosing) == (
        "broken",
        2,
        2,
        False,
    )
    assert failure.error.startswith(said)
    assert "1 failed" in found._repr_html_()


def test_if_all_fail_nothing_is_chosen():
    methods = {"a": {"mean": 1, "how": NAN}, "b": {"mean": 1, "how": ValueError("no")}}
    found = quietly(failing, methods, 4)
    assert found.choice is None
    assert "No method can be chosen" in found.reason
    assert "! and 5 more; see .failures" in str(found)
    assert len(found.failures) == 8
    assert found.plot() is not None


def test_settings_that_fail_within_a_train_set_lose_and_their_method_stays():
    def score(train, test, seed, lr):
        if lr == 3:
            raise OverflowError("diverged")
        return NAN if lr == 2 else 0.5

    found = quietly(score, {"a": {"lr": Choice([3, 2, 1])}, "b": {"lr": 1}}, 4)
    assert found.settings["a"] == ({"lr": 1},) * 4
    assert found.table["a"].failed == 0
    assert len(found.failures) == 4 * 2 * 3
    assert all(failure.choosing for failure in found.failures)
    assert "a, choosing within the train set of split 0: OverflowError" in str(found)


def test_if_all_settings_fail_the_method_fails():
    found = quietly(failing, {"a": {"mean": Choice([1, 2]), "how": NAN}, "b": {"mean": 1}}, 4)
    assert found.choice == "b"
    assert found.settings["a"] == (None,) * 4
    assert found.table["a"].failed == 4


def test_failures_warn_of_nothing_that_could_stop_the_rest():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert quietly(failing, {"a": {"mean": 1, "how": NAN}, "b": {"mean": 1}}, 4).choice == "b"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_no_score(stop):
    def score(train, test, seed):
        raise stop

    with pytest.raises(stop):
        quietly(score, {"a": {}}, 4)


# ---- how it prints


def test_the_table_prints_what_it_promises():
    text = str(quietly(planted, {"good": {"mean": 0.9}, "bad": {"mean": 0.7}}, 10))
    lines = text.splitlines()
    assert lines[0].split() == [
        "method",
        "mean",
        "sd",
        "difference",
        "to",
        "the",
        "best",
        "p",
        "seconds",
    ]
    assert lines[2].startswith("good *  0.")
    assert " best " in lines[2]
    assert lines[3].startswith("bad     0.")
    assert " to -0." in lines[3]
    assert "<0.001" in lines[3]
    assert lines[4] == "* chosen"
    assert "`good` is chosen" in text
    assert max(map(len, lines)) <= 88


def test_html_escapes_names():
    found = quietly(planted, {"<b>": {"mean": 0.9}, "a&b": {"mean": 0.1}}, 5)
    html = found._repr_html_()
    assert "&lt;b&gt;" in html
    assert "a&amp;b" in html
    assert "<b>" not in html


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4, 0.0])
def test_numbers_are_shown_to_two_digits_of_their_spread(scale):
    score = Recording(lambda train, test, seed, x: scale * planted(train, test, seed, x))
    found = quietly(score, {"a": {"x": 0.8}, "b": {"x": 0.9}}, 5)
    assert found.table.decimals == {1e-4: 7, 1.0: 3, 1e4: 0, 0.0: 4}[scale]
    assert "nan" not in str(found)


def test_the_table_is_read_by_method():
    table = quietly(planted, {"a": {"mean": 0.9}, "b": {"mean": 0.1}}, 5).table
    assert [row.method for row in table] == ["a", "b"]
    assert len(table) == 2
    assert table["b"].difference < -0.7
    with pytest.raises(KeyError, match="'c': no such method; there are a, b"):
        table["c"]


def test_a_comparison_can_be_pickled():
    found = quietly(planted, METHODS, 4)
    again = pickle.loads(pickle.dumps(found))
    assert isinstance(again, Comparison)
    assert str(again) == str(found)
    assert again.scores == found.scores


def test_plot_shows_scores_means_and_intervals(monkeypatch):
    found = quietly(planted, {"a": {"mean": 0.9}, "b": {"mean": 0.7}, "c": {"mean": 0.71}})
    axes = found.plot()
    assert [label.get_text() for label in axes.get_yticklabels()] == [r.method for r in found.table]
    drawn = [line for line in axes.get_lines() if len(line.get_xdata()) == 2]
    low, high = (found.table.rows[0].mean + end for end in found.table.rows[1].interval)
    assert any(line.get_xdata() == pytest.approx([low, high]) for line in drawn)
    assert sum(len(line.get_xdata()) == 10 for line in axes.get_lines()) == 3
    assert found.plot(ax=axes) is axes
    with pytest.raises(TypeError, match="`ax` must be a matplotlib Axes or None, got 3"):
        found.plot(ax=3)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'pip install "lstm-freeze\[plot\]"'):
        found.plot()


def test_progress_counts_every_score(capsys, monkeypatch):
    seen = []
    compare(planted, METHODS, 4, labels=LABELS, progress=lambda *pair: seen.append(pair))
    assert seen == [(k, 4 * (3 + 9)) for k in range(1, 49)]
    compare(planted, METHODS, 4, labels=LABELS)
    assert "48/48 scores" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "rich.console", None)
    compare(planted, METHODS, 4, labels=LABELS)
    printed = capsys.readouterr()
    assert "48 of 48 scores" in printed.err
    assert printed.out == ""
    compare(planted, METHODS, 4, labels=LABELS, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("package", ["scipy.stats", "sklearn.model_selection"])
def test_without_the_extra_it_says_what_to_install(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "lstm-freeze\[compare\]"'):
        compare(planted, METHODS, 4, labels=LABELS)


# ---- wrong arguments


def never(train, test, seed, **settings):
    raise AssertionError("a score was made in spite of a wrong argument")


def narrow(train, test, seed, lr=0.1, epochs=3):
    return never(train, test, seed)


OK = {"a": {}}
SPLITS = [([0, 1, 2], [3]), ([1, 2, 3], [0])]
# fmt: off
WRONG = [
    (lambda: quietly(3, OK), TypeError, "`score` must be a function score(train, test, seed, **settings) -> float, got int"),
    (lambda: quietly(never, ["a"]), TypeError, "`methods` must be a mapping of names to settings, got list"),
    (lambda: quietly(never, {}), ValueError, "`methods` must name at least one method, got an empty mapping"),
    (lambda: quietly(never, {3: {}}), TypeError, "a method's name must be a string that is not empty, got 3"),
    (lambda: quietly(never, {" ": {}}), TypeError, "a method's name must be a string that is not empty, got ' '"),
    (lambda: quietly(never, {"a": 0.1}), TypeError, "methods['a'] must be a mapping of settings, for example {'lr': 0.01}, got 0.1"),
    (lambda: quietly(never, {"a": {3: 1}}), TypeError, "methods['a']: a setting's name must be a string, got 3"),
    (lambda: quietly(never, {"a": {"seed": 1}}), ValueError, "methods['a']: 'seed' is no setting, `compare` itself passes it to `score`"),
    (lambda: quietly(never, {"a": {"lr": [Choice([1])]}}), ValueError, "methods['a']: a Choice must be the whole value of 'lr', got it inside [Choice([1])]"),
    (lambda: quietly(never, {"a": {"lr": {"b": (Choice([1]),)}}}), ValueError, "a Choice must be the whole value of 'lr'"),
    (lambda: quietly(never, {"a": {"lines": (i for i in "ab")}}), TypeError, "methods['a']: 'lines' cannot be copied"),
    (lambda: quietly(narrow, {"a": {}, "b": {"lrr": 1}}), TypeError, "methods['b'] does not fit score(train, test, seed, lr=0.1, epochs=3), which is called as score(train, test, seed, **settings): got an unexpected keyword argument 'lrr'; did you mean \"lr\"?"),
    (lambda: quietly(lambda train, test: 0, OK), TypeError, "methods['a'] does not fit score(train, test), which is called as score(train, test, seed, **settings): too many positional arguments"),
    (lambda: quietly(lambda train, test, seed, lr: 0, {"a": {}}), TypeError, "missing a required argument: 'lr'"),
    (lambda: quietly(never, OK, "five"), TypeError, "`splits` must be pairs (train, test) of index arrays, or a number of folds, got 'five'"),
    (lambda: quietly(never, OK, 2.5), TypeError, "`splits` must be pairs (train, test) of index arrays, or a number of folds, got 2.5"),
    (lambda: quietly(never, OK, True), TypeError, "`splits` must be pairs (train, test) of index arrays, or a number of folds, got True"),
    (lambda: quietly(never, OK, 1), ValueError, "`splits` must be at least 2, got 1"),
    (lambda: quietly(never, OK, KFold(3)), TypeError, "got a splitter; give what it makes: splits=KFold(...).split(X, y)"),
    (lambda: quietly(never, OK, []), ValueError, "`splits` must hold at least one pair, got none (a used-up generator?)"),
    (lambda: quietly(never, OK, [3]), TypeError, "splits[0] must be a pair (train, test) of index arrays, got 3"),
    (lambda: quietly(never, OK, [*SPLITS, ([0], [1], [2])]), TypeError, "splits[2] must be a pair (train, test)"),
    (lambda: quietly(never, OK, [([0, 1], [])]), ValueError, "splits[0], test: must be a list of at least one index, got []"),
    (lambda: quietly(never, OK, [([[0, 1]], [2])]), ValueError, "splits[0], train: must be a list of at least one index, got [[0, 1]]"),
    (lambda: quietly(never, OK, [([0.0, 1.0], [2])]), TypeError, "splits[0], train: must be integers, got float64"),
    (lambda: quietly(never, OK, [([True, False], [1])]), TypeError, "splits[0], train: must be integers, got bool; np.flatnonzero(mask) gives indices"),
    (lambda: quietly(never, OK, [([0, -1], [2])]), ValueError, "splits[0], train: an index must not be negative, got -1"),
    (lambda: quietly(never, OK, [([0, 1, 1], [2])]), ValueError, "splits[0], train: names sample 1 2 times; weigh or repeat samples within `score`"),
    (lambda: quietly(never, OK, [*SPLITS, ([0, 1, 2], [2, 3, 1])]), ValueError, "splits[2]: 2 samples are in train and in test, for example 1"),
    (lambda: quietly(never, OK, SPLITS, labels=[0, 1, 0]), ValueError, "splits[0] names sample 3, but `labels` has only 3"),
    (lambda: quietly(never, OK, SPLITS, groups=[0, 0, 1]), ValueError, "splits[0] names sample 3, but `groups` has only 3"),
    (lambda: quietly(never, OK, SPLITS, groups=["p", "q", "q", "p"]), ValueError, "splits[0]: 1 groups are in train and in test, for example 'p'; make the splits with GroupKFold or StratifiedGroupKFold"),
    (lambda: quietly(never, OK, 5, labels=None), ValueError, "splits=5 makes stratified folds and needs `labels=`, the class of each sample"),
    (lambda: quietly(never, OK, 5, labels=[[0], [1]]), ValueError, "`labels` must be one-dimensional with one value a sample, got shape (2, 1)"),
    (lambda: quietly(never, OK, 2, labels=[0.5, 1.0, 0.5, 1.0]), ValueError, "`labels` must be classes, got 0.5; with a number to predict leave labels= out"),
    (lambda: quietly(never, OK, 2, labels=[0.0, NAN]), ValueError, "`labels` must not hold NaN, got it at 1"),
    (lambda: quietly(never, OK, 5, labels=["a"] * 9 + ["b"] * 4), ValueError, "splits=5: label 'b' has only 4 samples, so some folds would test without it; splits must be at most 4"),
    (lambda: quietly(never, OK, 5, groups=[0] * 50 + [1] * 50), ValueError, "splits=5: label 0 has only 2 groups, so some folds would test without it; splits must be at most 2"),
    (lambda: quietly(never, OK, 5, labels=["a"] * 9), ValueError, "`labels` must hold at least two classes, got only 'a'"),
    (lambda: quietly(never, OK, 5, groups=[0, 1]), ValueError, "`labels` and `groups` must be equally long, got 100 and 2"),
    (lambda: quietly(never, {"a": {"x": Choice([1, 2])}}, [([0], [1])]), ValueError, "splits[0]: a train set of one sample cannot be split to choose a setting"),
    (lambda: quietly(never, {"a": {"x": Choice([1, 2])}}, [([0, 1], [2])], groups=[5, 5, 6]), ValueError, "splits[0]: a train set of one group cannot be split to choose a setting"),
    (lambda: quietly(never, OK, minimize="yes"), TypeError, "`minimize` must be a bool, got 'yes'"),
    (lambda: quietly(never, OK, folder=3), TypeError, "`folder` must be a path or None, got 3"),
    (lambda: quietly(never, OK, seed=-1), ValueError, "`seed` must not be negative, got -1"),
    (lambda: quietly(never, OK, seed=0.5), TypeError, "`seed` must be an integer, got 0.5"),
    (lambda: quietly(never, OK, inner=1), ValueError, "`inner` must be at least 2, got 1"),
    (lambda: compare(never, OK, SPLITS, progress="bar"), TypeError, "`progress` must be a bool or a function progress(done, total), got 'bar'"),
    (lambda: quietly(lambda train, test, seed: None, OK), TypeError, "`score` must return a number, got NoneType None; is there a `return`?"),
    (lambda: quietly(lambda train, test, seed: "0.5", OK), TypeError, "`score` must return a number, got str '0.5'"),
    (lambda: quietly(lambda train, test, seed: True, OK), TypeError, "`score` must return a number, got bool True"),
    (lambda: quietly(lambda train, test, seed: torch.zeros(2), OK), TypeError, "`score` must return a number, got Tensor"),
    (lambda: quietly(lambda train, test, seed: np.zeros(2), OK), TypeError, "`score` must return a number, got ndarray"),
    (lambda: Choice("abc"), TypeError, "Choice takes a list of values, got 'abc'"),
    (lambda: Choice(3), TypeError, "Choice takes a list of values, got 3"),
    (lambda: Choice([]), ValueError, "Choice needs at least one value, got an empty list"),
    (lambda: Choice([Choice([1])]), TypeError, "a value of a Choice must not be a Choice, got Choice([1])"),
]
# fmt: on


@pytest.mark.parametrize(("call", "kind", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_arguments(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value)


def test_wrong_arguments_leave_no_folder(tmp_path):
    folder = tmp_path / "new"
    for methods, splits in [({"a": {"x": lambda: 0}}, 5), (OK, [([0], [0])]), ({"a": 3}, 5)]:
        with pytest.raises((TypeError, ValueError)):
            quietly(never, methods, splits, folder=folder)
    assert not folder.exists()


def test_labels_may_be_tensors_and_whole_floats():
    for labels in (torch.tensor(LABELS), np.array(LABELS, dtype=float), [bool(x) for x in LABELS]):
        assert quietly(planted, {"a": {"mean": 1}}, 5, labels=labels).choice == "a"
