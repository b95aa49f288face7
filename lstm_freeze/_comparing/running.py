"""Runner: calls the score function for each method and split, after choosing settings."""

from __future__ import annotations

import copy
import math
import pickle
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from typing import Any, NamedTuple, SupportsFloat

from .choice import candidates
from .comparison import Failure
from .finished import Finished, Outcome, ScoreCall
from .methods import Score
from .plan import Plan
from .progress import Advance
from .splits import Split


class Result(NamedTuple):
    """The result of one method on one split."""

    method: str
    score: float
    seconds: float
    settings: Mapping[str, Any] | None


class Runner:
    """Makes the calls of a plan, and remembers their outcomes."""

    def __init__(
        self,
        score: Score,
        plan: Plan,
        finished: Finished,
        advance: Advance,
        executor: Executor | None = None,
    ) -> None:
        """Prepare the calls, and make none yet."""
        self._score = score
        self._plan = plan
        self._finished = finished
        self._advance = advance
        self._executor = executor
        self._options = {name: candidates(settings) for name, settings in plan.methods.items()}
        self._outcomes: dict[ScoreCall, Outcome] = {}

    @property
    def failures(self) -> list[Failure]:
        """What raised or was not finite, split by split and method by method."""
        names = list(self._options)

        def place(call: ScoreCall) -> tuple[int, ...]:
            whole = call.candidate < 0
            return call.split, names.index(call.method), whole, call.candidate, call.fold

        found = []
        for call in sorted(self._outcomes, key=place):
            score, _, error = self._outcomes[call]
            if not math.isfinite(score):
                seed, settings = self._plan.seeds[call.split], self._settings(call)
                error = error or f"the score is {score}"
                choosing = call.candidate >= 0
                found.append(Failure(call.method, call.split, seed, settings, choosing, error))
        return found

    def run(self) -> Iterator[Result]:
        """The results split by split: so a change of the machine's speed affects all methods."""
        pairs = [(name, k) for k in range(len(self._plan.splits)) for name in self._options]
        if self._executor is not None:
            trials = [call for pair in pairs for calls in self._trials(*pair) for call in calls]
            self._make_all(trials, self._executor)
            whole = [ScoreCall(*pair) for pair in pairs if self._chosen(*pair) is not None]
            self._make_all(whole, self._executor)
        for name, number in pairs:
            yield self._result(name, number)

    def _result(self, name: str, number: int) -> Result:
        chosen = self._chosen(name, number)
        trials = [call for calls in self._trials(name, number) for call in calls]
        seconds = sum(self._outcome(call).seconds for call in trials)
        if chosen is None:
            self._advance(name)
            return Result(name, math.nan, seconds, None)
        outcome = self._outcome(ScoreCall(name, number))
        settings = self._options[name][chosen]
        return Result(name, outcome.score, seconds + outcome.seconds, settings)

    def _trials(self, name: str, number: int) -> list[list[ScoreCall]]:
        """The calls within a train set, for each settings of a method; none where it has one."""
        options, folds = self._options[name], len(self._plan.inner[number])
        if len(options) == 1:
            return []
        return [
            [ScoreCall(name, number, candidate, fold) for fold in range(folds)]
            for candidate in range(len(options))
        ]

    def _chosen(self, name: str, number: int) -> int | None:
        """Which settings have the best mean score within the train set; None where all failed."""
        trials = self._trials(name, number)
        if not trials:
            return 0
        minimize, best = self._plan.minimize, None
        best_mean = math.inf if minimize else -math.inf
        for candidate, calls in enumerate(trials):
            mean = statistics.fmean(self._outcome(call).score for call in calls)
            # A mean that is not finite is never better.
            if math.isfinite(mean) and (mean < best_mean if minimize else mean > best_mean):
                best, best_mean = candidate, mean
        return best

    def _settings(self, call: ScoreCall) -> dict[str, Any]:
        chosen = call.candidate
        if chosen < 0:
            # A call with the whole train set is made only after something was chosen.
            chosen = self._chosen(call.method, call.split) or 0
        return self._options[call.method][chosen]

    def _outcome(self, call: ScoreCall) -> Outcome:
        """The outcome of a call, which is made now if it was not made before."""
        if call not in self._outcomes:
            known = self._finished.get(call)
            self._keep(call, known or _measured(self._score, *self._arguments(call)))
        return self._outcomes[call]

    def _make_all(self, calls: Sequence[ScoreCall], executor: Executor) -> None:
        """Make calls in any order, those that are finished excepted."""
        waiting = {
            executor.submit(_measured, self._score, *self._arguments(call)): call
            for call in calls
            if self._finished.get(call) is None
        }
        try:
            for future in as_completed(waiting):
                self._keep(waiting[future], _received(future))
        finally:
            for future in waiting:
                future.cancel()

    def _arguments(self, call: ScoreCall) -> tuple[Split, int, dict[str, Any]]:
        inner, number = self._plan.inner, call.split
        split = inner[number][call.fold] if call.fold >= 0 else self._plan.splits[number]
        return split, self._plan.seeds[number], self._settings(call)

    def _keep(self, call: ScoreCall, outcome: Outcome) -> None:
        self._outcomes[call] = outcome
        if not outcome.error and self._finished.get(call) is None:
            self._finished.add(call, outcome)
        self._advance(call.method)


def _measured(score: Score, split: Split, seed: int, settings: Mapping[str, Any]) -> Outcome:
    """Call the score function; an executor does so in another process."""
    # Copies, so that the next call does not see what a score function does to its arguments.
    train, test, own = split.train.copy(), split.test.copy(), copy.deepcopy(settings)
    began = time.perf_counter()
    try:
        value = score(train, test, seed, **own)
    except Exception as error:  # whatever a score function raises is a failure of its method
        return Outcome(math.nan, 0.0, f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - began
    return Outcome(_as_score(value), seconds)


def _received(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if "pickle" not in str(error):
            raise
        raise TypeError(
            "`executor` has other processes, and `score` or a setting cannot be sent there "
            f"({error}); define functions and classes at the top level of a module"
        ) from error


def _as_score(value: Any) -> float:
    """The value as a float; TypeError, which ends the comparison, where it is no number."""
    if not isinstance(value, (bool, str, bytes)) and isinstance(value, SupportsFloat):
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):  # an array or tensor of several numbers
            pass
    raise TypeError(
        f"`score` must return a number, got {type(value).__name__} {value!r:.60}"
        + ("; is there a `return`?" if value is None else "")
    )
