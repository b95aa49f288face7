"""Scores kept in a folder: an interrupted comparison goes on, and nothing is mixed up."""

# ruff: noqa: E501  (a row of the table is a line)

import functools
import json
import multiprocessing
import os
import time

import numpy as np
import pytest
import torch
from _scores import LABELS, Recording, planted, quietly
from sklearn.model_selection import KFold

from lstm_freeze import Choice
from lstm_freeze._comparing.finished import Finished, Outcome, ScoreCall
from lstm_freeze._comparing.identity import described

METHODS = {"a": {"mean": 0.8}, "b": {"mean": Choice([0.85, 0.7])}}
CALLS = 4 * (1 + 2 * 3 + 1)


class Stops(Recording):
    """Is interrupted at its n-th call."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def __call__(self, *args, **settings):
        if len(self.calls) == self.after:
            raise KeyboardInterrupt
        return super().__call__(*args, **settings)


def same(one, other):
    """Everything but the seconds."""
    rows = [
        [(r.method, r.mean, r.spread, r.difference, r.interval, r.p, r.failed) for r in x.table]
        for x in (one, other)
    ]
    return rows[0] == rows[1] and one.scores == other.scores and one.settings == other.settings


@pytest.mark.parametrize("after", [0, 1, 5, CALLS - 1])
def test_an_interrupted_comparison_goes_on_where_it_stopped(after, tmp_path):
    whole = quietly(planted, METHODS, 4)
    with pytest.raises(KeyboardInterrupt):
        quietly(Stops(after), METHODS, 4, folder=tmp_path)
    rest = Recording()
    found = quietly(rest, METHODS, 4, folder=tmp_path)
    assert len(rest.calls) == CALLS - after
    assert same(found, whole)


def test_a_finished_comparison_is_read_with_its_seconds(tmp_path):
    first = quietly(planted, METHODS, 4, folder=str(tmp_path))
    again = quietly(Stops(0), METHODS, 4, folder=tmp_path)
    assert again == first
    assert str(again) == str(first)
    assert again.seconds == first.seconds
    assert not list(tmp_path.glob("*.part"))


def slowly(train, test, seed, mean):
    time.sleep(0.02)
    return planted(train, test, seed, mean)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_killed_comparison_ends_with_the_same_table(tmp_path):
    process = multiprocessing.get_context("fork").Process(
        target=quietly, args=(slowly, METHODS, 4), kwargs={"folder": tmp_path}
    )
    process.start()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("split*.json"))) < 5:
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.005)
    process.kill()
    process.join()
    kept = len(list(tmp_path.glob("split*.json")))
    assert 5 <= kept < CALLS
    rest = Recording()
    found = quietly(rest, METHODS, 4, folder=tmp_path)
    assert len(rest.calls) == CALLS - kept
    assert same(found, quietly(planted, METHODS, 4))


def test_methods_may_be_added(tmp_path):
    quietly(planted, METHODS, 4, folder=tmp_path)
    more = Recording()
    found = quietly(more, {"new": {"mean": 0.5}, **METHODS}, 4, folder=tmp_path)
    assert [call[3] for call in more.calls] == [{"mean": 0.5}] * 4
    assert same(found, quietly(planted, {"new": {"mean": 0.5}, **METHODS}, 4))


OTHER_LABELS = [1, 0, *LABELS[2:]]


@pytest.mark.parametrize(
    ("methods", "splits", "options", "message"),
    [
        ({"a": {"mean": 0.8}}, 4, {}, "method 'b' is in the folder and not in `methods`"),
        ({**METHODS, "a": {"mean": 0.81}}, 4, {}, "method 'a' had the settings {'mean': 0.8} and now has {'mean': 0.81}"),
        ({**METHODS, "b": {"mean": Choice([0.85])}}, 4, {}, "method 'b' had the settings {'mean': Choice([0.85, 0.7])}"),
        ({**METHODS, "b": {"mean": [0.85, 0.7]}}, 4, {}, "method 'b' had"),
        (METHODS, 5, {}, "there were 4 splits, now 5"),
        (METHODS, 4, {"seed": 1}, "the splits differ, first splits[0]"),
        (METHODS, list(KFold(4).split(LABELS)), {"labels": LABELS}, "the splits differ, first splits[0]"),
        (METHODS, 4, {"minimize": True}, "minimize was False and is now True"),
        (METHODS, 4, {"inner": 2}, "inner was 3 and is now 2"),
        (METHODS, 4, {"labels": OTHER_LABELS}, "labels was"),
        (METHODS, 4, {"groups": range(100)}, "groups was None and is now"),
    ],
)  # fmt: skip
def test_another_method_split_or_seed_is_an_error(methods, splits, options, message, tmp_path):
    quietly(planted, METHODS, 4, folder=tmp_path)
    before = {path: path.read_text() for path in tmp_path.iterdir()}
    with pytest.raises(
        ValueError, match=r"holds another comparison: .*Take another folder"
    ) as error:
        quietly(Stops(0), methods, splits, folder=tmp_path, **options)
    assert message in str(error.value)
    assert {path: path.read_text() for path in tmp_path.iterdir()} == before


def test_the_same_folds_with_other_seeds_are_another_comparison(tmp_path):
    splits = list(KFold(4).split(LABELS))
    quietly(planted, METHODS, splits, folder=tmp_path)
    with pytest.raises(ValueError, match="the splits differ"):
        quietly(planted, METHODS, splits, folder=tmp_path, seed=1)


def test_what_raised_is_tried_again_and_nan_is_kept(tmp_path):
    def score(train, test, seed, how):
        calls.append(how)
        if how == "raises" and broken:
            raise OSError("disk full")
        return float("nan") if how == "nan" else 0.5

    calls, broken = [], True
    methods = {how: {"how": how} for how in ("good", "raises", "nan")}
    first = quietly(score, methods, 4, folder=tmp_path)
    assert {failure.method for failure in first.failures} == {"raises", "nan"}
    calls, broken = [], False
    again = quietly(score, methods, 4, folder=tmp_path)
    assert calls == ["raises"] * 4
    assert {failure.method for failure in again.failures} == {"nan"}
    assert again.scores["raises"] == (0.5,) * 4


def test_names_that_look_alike_are_kept_apart(tmp_path):
    methods = {
        "a/b": {"mean": 0.8},
        "a b": {"mean": 0.7},
        "a\\b": {"mean": 0.6},
        "../x": {"mean": 0.5},
    }
    found = quietly(planted, methods, 3, folder=tmp_path)
    assert quietly(Stops(0), methods, 3, folder=tmp_path) == found
    assert len(list(tmp_path.glob("split*.json"))) == 12
    assert list(tmp_path.parent.glob("*.json")) == []


def test_scores_keep_every_bit(tmp_path):
    values = [0.1 + 0.2, 1e-320, -0.0, float("inf"), 123456789.123456789]
    finished = Finished(tmp_path, {"methods": {"a": ""}, "splits": []})
    for number, value in enumerate(values):
        finished.add(ScoreCall("a", number), Outcome(value, 0.1 * number))
    again = Finished(tmp_path, {"methods": {"a": ""}, "splits": []})
    for number, value in enumerate(values):
        kept = again.get(ScoreCall("a", number))
        assert repr(kept.score) == repr(value)
        assert kept.seconds == 0.1 * number


@pytest.mark.parametrize("text", ["", "{", "[]", '{"method": "a"}', '{"method": "a", "split": 0, "candidate": -1, "fold": -1, "score": "x", "seconds": 1}'])  # fmt: skip
def test_a_file_that_cannot_be_read_is_named(text, tmp_path):
    quietly(planted, METHODS, 2, folder=tmp_path)
    (path, *_) = sorted(tmp_path.glob("split*.json"))
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{path.name} cannot be read .* delete it to score it"):
        quietly(planted, METHODS, 2, folder=tmp_path)
    path.unlink()
    once = Recording()
    quietly(once, METHODS, 2, folder=tmp_path)
    assert len(once.calls) == 1


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "comparison.json").write_text(json.dumps({"mine": 1}))
    with pytest.raises(ValueError, match="was not written by this version of compare"):
        quietly(planted, METHODS, 2, folder=tmp_path)


# ---- settings in words


class Named:
    def method(self):
        return 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.1, "0.1"),
        ("0.1", "'0.1'"),
        (True, "True"),
        ((1, [2, None]), "(1, [2, None])"),
        ({"b": {2, 1}}, "{'b': {1, 2}}"),
        (Choice([1, dict]), "Choice([1, builtins.dict])"),
        (torch.optim.SGD, "torch.optim.sgd.SGD"),
        (functools.partial(dict, a=1), "partial([builtins.dict, (), {'a': 1}])"),
        (torch.float16, "torch.torch.float16"),
    ],
)
def test_settings_are_told_apart_in_words(value, words):
    assert described(value) == words


@pytest.mark.parametrize(
    "value", [lambda: 0, object(), torch.zeros(2000), Named().method, np.zeros(5000), Named()]
)
def test_settings_that_cannot_be_told_apart_are_refused(value, tmp_path):
    score = Recording(lambda train, test, seed, x: 0.5)
    with pytest.raises(TypeError, match=r"methods\['a'\], with `folder=`: .* give plain values"):
        quietly(score, {"a": {"x": value}}, 2, folder=tmp_path / "new")
    assert score.calls == []
    assert not (tmp_path / "new").exists()
    assert quietly(score, {"a": {"x": value}}, 2).choice == "a"
