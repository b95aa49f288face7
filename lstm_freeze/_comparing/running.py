"""Runner: calls the score function for each method and split, after choosing settings."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Iterator, Mapping
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
    """Makes the calls of a plan, and remembers what failed."""

    def __init__(self, score: Score, plan: Plan, finished: Finished, advance: Advance) -> None:
        """Prepare the calls, and make none yet."""
        self.failures: list[Failure] = []
        self._score = score
        self._plan = plan
        self._finished = finished
        self._advance = advance

    def run(self) -> Iterator[Result]:
        """The results split by split: so a change of the machine's speed affects all methods."""
        for number in range(len(self._plan.splits)):
            for name in self._plan.methods:
                yield self._method(name, number)

    def _method(self, name: str, number: int) -> Result:
        options = candidates(self._plan.methods[name])
        chosen, seconds = (0, 0.0) if len(options) == 1 else self._choose(name, number, options)
        if chosen is None:
            self._advance(name)
            return Result(name, math.nan, seconds, None)
        split = self._plan.splits[number]
        outcome = self._call(ScoreCall(name, number), split, options[chosen])
        return Result(name, outcome.score, seconds + outcome.seconds, options[chosen])

    def _choose(
        self, name: str, number: int, options: list[dict[str, Any]]
    ) -> tuple[int | None, float]:
        """The settings with the best mean score within the train set, and the seconds for that."""
        minimize, seconds, best = self._plan.minimize, 0.0, None
        best_mean = math.inf if minimize else -math.inf
        for candidate, settings in enumerate(options):
            outcomes = [
                self._call(ScoreCall(name, number, candidate, fold), split, settings)
                for fold, split in enumerate(self._plan.inner[number])
            ]
            seconds += sum(outcome.seconds for outcome in outcomes)
            mean = statistics.fmean(outcome.score for outcome in outcomes)
            # A mean that is not finite is never better.
            if math.isfinite(mean) and (mean < best_mean if minimize else mean > best_mean):
                best, best_mean = candidate, mean
        return best, seconds

    def _call(self, call: ScoreCall, split: Split, settings: Mapping[str, Any]) -> Outcome:
        outcome = self._finished.get(call)
        if outcome is None:
            outcome = self._measured(split, self._plan.seeds[call.split], settings)
            if not outcome.error:
                self._finished.add(call, outcome)
        if not math.isfinite(outcome.score):
            error = outcome.error or f"the score is {outcome.score}"
            seed = self._plan.seeds[call.split]
            self.failures.append(
                Failure(call.method, call.split, seed, settings, call.candidate >= 0, error)
            )
        self._advance(call.method)
        return outcome

    def _measured(self, split: Split, seed: int, settings: Mapping[str, Any]) -> Outcome:
        # Copies, so that the next call does not see what a score function does to its arguments.
        train, test, own = split.train.copy(), split.test.copy(), copy.deepcopy(settings)
        began = time.perf_counter()
        try:
            value = self._score(train, test, seed, **own)
        except Exception as error:
            return Outcome(math.nan, 0.0, f"{type(error).__name__}: {error}")
        seconds = time.perf_counter() - began
        return Outcome(_as_score(value), seconds)


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
