"""compare with an executor: the same scores, made in other processes or threads."""

import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from _scores import Recording, planted, quietly

from lstm_freeze import Choice

METHODS = {
    "a": {"mean": 0.8},
    "b": {"mean": Choice([0.85, 0.7])},
    "tried in vain": {"mean": Choice([0.5, 0.9]), "fails": Choice([0.0, 1.0])},
    "fails": {"mean": 0.9, "fails": 1.0},
}


def score(train, test, seed, mean, fails=0.0):
    if fails and (seed == 2 or len(train) < 60):
        raise ArithmeticError(f"with seed {seed} and mean {mean}")
    return planted(train, test, seed, mean)


def says_a_word(train, test, seed):
    return "good"


@pytest.fixture(scope="module")
def processes():
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture
def threads():
    with ThreadPoolExecutor(3) as pool:
        yield pool


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_an_executor_changes_no_score(kind, request):
    alone = quietly(score, METHODS, 4)
    found = quietly(score, METHODS, 4, executor=request.getfixturevalue(kind))
    np.testing.assert_equal(found.scores, alone.scores)
    assert found.settings == alone.settings
    assert found.failures == alone.failures
    assert {failure.choosing for failure in found.failures} == {True, False}
    assert {r.method: r.p for r in found.table if r.failed == 0} == {
        r.method: r.p for r in alone.table if r.failed == 0
    }
    assert all(second > 0 for second in found.seconds["b"])


def test_a_folder_keeps_each_score_once(threads, tmp_path):
    methods = {name: METHODS[name] for name in ("a", "b")}
    first = Recording()
    found = quietly(first, methods, 4, folder=tmp_path, executor=threads)
    assert len(first.calls) == len(list(tmp_path.glob("split*.json"))) == 4 * 8
    again = Recording()
    more = {**methods, "c": {"mean": 0.9}}
    rest = quietly(again, more, 4, folder=tmp_path, executor=threads)
    assert [call[3] for call in again.calls] == [{"mean": 0.9}] * 4
    assert rest.scores["b"] == found.scores["b"] == quietly(planted, methods, 4).scores["b"]


class Interrupted(ThreadPoolExecutor):
    """Hands out futures, of which the third is interrupted."""

    def __init__(self):
        super().__init__(1)
        self.futures = []

    def submit(self, call, *args):
        future = Future()
        self.futures.append(future)
        if len(self.futures) < 3:
            future.set_result(call(*args))
        if len(self.futures) == 3:
            future.set_exception(KeyboardInterrupt())
        return future


def test_an_interrupt_cancels_what_waits(tmp_path):
    executor = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        quietly(planted, {"a": METHODS["a"]}, 5, folder=tmp_path, executor=executor)
    assert [future.cancelled() for future in executor.futures] == [False] * 3 + [True] * 2
    kept, rest = len(list(tmp_path.glob("split*.json"))), Recording()
    quietly(rest, {"a": METHODS["a"]}, 5, folder=tmp_path)
    assert len(rest.calls) == 5 - kept


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda train, test, seed: 0.5, r"`executor` has other processes, and `score` .* cannot"),
        (says_a_word, "`score` must return a number, got str 'good'"),
    ],
)
def test_what_processes_cannot_take_ends_the_comparison(wrong, message, processes):
    with pytest.raises(TypeError, match=message):
        quietly(wrong, {"a": {}}, 4, executor=processes)


def test_what_is_no_executor_is_refused():
    with pytest.raises(TypeError, match=r"`executor` must be a concurrent.futures.Executor .* 2"):
        quietly(planted, {"a": METHODS["a"]}, 4, executor=2)
