"""compare: several methods on the same splits and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from importlib import import_module
from pathlib import Path
from typing import Any

from .._checks import as_bool, as_integer
from .comparison import Comparison, Failure
from .finished import Finished
from .methods import Score, as_methods
from .progress import as_progress, shown

_MOST_NOTES = 3


def compare(
    score: Score,
    methods: Mapping[str, Mapping[str, Any]],
    splits: int | Iterable[tuple[Any, Any]],
    *,
    minimize: bool = False,
    folder: str | Path | None = None,
    progress: bool | Callable[[int, int], None] = True,
    labels: Sequence[Any] | None = None,
    groups: Sequence[Any] | None = None,
    inner: int = 3,
    seed: int = 0,
    executor: Executor | None = None,
) -> Comparison:
    """Compare methods on the same splits and seeds, and say which is worth its cost.

    Works with any training loop. Every method gets each split with the same seed (`seed` plus the
    number of the split). Differences are judged by the corrected
    resampled t-test over paired splits (Nadeau and Bengio 2003), corrected for the number of
    methods (Holm 1979).

    Args:
        score: Your own few lines, called as `score(train, test, seed, **settings)`: train on the
            samples with the indices `train`, return a metric on those with the indices `test`.
            Seed everything random in it by `seed`.
        methods: Name -> settings that `score` takes. A setting given as `Choice([...])` is chosen
            within each train set.
        splits: Pairs of index arrays (train, test), as scikit-learn's splitters make them; or a
            number of folds, stratified by `labels`.
        minimize: Whether a low score is good.
        folder: Keeps each finished score, with its seconds; calling again goes on from there.
            Methods may be added; other settings, splits or seeds are an error. What `score` does
            is not recorded: take a new folder when you change it.
        progress: Whether to show progress (on stderr); or a function called with the number
            of finished scores and of all.
        labels: The class of each sample; also stratifies the splits within train sets.
        groups: The group of each sample (a patient, a protein family): a group is never in train
            and in test, also within train sets.
        inner: How many folds of a train set a `Choice` is judged on.
        seed: Makes the folds, and is the seed of the first split.
        executor: Calls `score` in its processes, several at a time, for example a
            `ProcessPoolExecutor` of `concurrent.futures`. Scores are the same where `score` seeds
            everything. Threads will do where it draws nothing from global generators, which they
            share. None calls it here, one split after the other.

    Returns:
        The table, the scores, the choice and the reason for it.

    Raises:
        ImportError: The extra `compare` (scikit-learn and SciPy) is missing.
        TypeError: An argument is of the wrong type; `score` does not take a method's settings; or
            `score` returned no number.
        ValueError: Splits, labels and groups do not fit; or the folder holds another comparison.

    Examples:
        >>> from lstm_freeze import Choice, compare
        >>> def score(train, test, seed, strength):
        ...     return strength + 0.01 * (len(test) + seed % 3)
        >>> methods = {"weak": {"strength": 0.1}, "strong": {"strength": Choice([0.2, 0.3])}}
        >>> found = compare(score, methods, 10, labels=[0, 1] * 50, progress=False)
        >>> found.choice
        'strong'
        >>> [round(value, 2) for value in found.scores["strong"]][:3]
        [0.4, 0.41, 0.42]
    """
    checked = as_methods(methods, score)
    as_bool(minimize, "minimize")
    as_progress(progress)
    inner, seed = as_integer(inner, "inner", least=2), as_integer(seed, "seed", least=0)
    if folder is not None and not isinstance(folder, (str, Path)):
        raise TypeError(f"`folder` must be a path or None, got {folder!r}")
    if executor is not None and not isinstance(executor, Executor):
        raise TypeError(
            f"`executor` must be a concurrent.futures.Executor or None, got {executor!r}"
        )
    _need_extra()
    from .judging import judge
    from .plan import planned
    from .running import Runner
    from .splits import all_test_the_same, tested_share

    plan = planned(checked, splits, labels, groups, minimize, inner, seed)
    finished = Finished() if folder is None else Finished(Path(folder), plan.record())
    with shown(progress, plan.calls) as advance:
        runner = Runner(score, plan, finished, advance, executor)
        results = list(runner.run())
    of_method = {name: [r for r in results if r.method == name] for name in checked}
    scores = {name: tuple(r.score for r in found) for name, found in of_method.items()}
    seconds = {name: tuple(r.seconds for r in found) for name, found in of_method.items()}
    settings = {name: tuple(r.settings for r in found) for name, found in of_method.items()}
    failures = tuple(runner.failures)
    notes = _failures_in_words(failures)
    if len(plan.splits) > 1 and all_test_the_same(plan.splits):
        notes.append(
            f"every split tests on the same {len(plan.splits[0].test)} samples: what is told "
            "holds for these samples, not for others"
        )
    table, choice, reason = judge(scores, seconds, tested_share(plan.splits), minimize, notes)
    return Comparison(table, scores, choice, reason, settings, seconds, failures, minimize)


def _need_extra() -> None:
    try:
        import_module("scipy.stats")
        import_module("sklearn.model_selection")
    except ImportError as error:
        raise ImportError(
            'compare needs scikit-learn and SciPy; pip install "lstm-freeze[compare]"'
        ) from error


def _failures_in_words(failures: Sequence[Failure]) -> list[str]:
    """The first few failures in words."""
    notes = []
    for failure in failures[:_MOST_NOTES]:
        where = "choosing within the train set of" if failure.choosing else "on"
        notes.append(f"! {failure.method}, {where} split {failure.split}: {failure.error}")
    if (more := len(failures) - _MOST_NOTES) > 0:
        notes.append(f"! and {more} more; see .failures")
    return notes
