"""From scores to a verdict: the rows of the table, the choice, and the reason in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from .paired import Difference, among_all, mean_interval
from .table import MethodRow, Table

Scores = Mapping[str, Sequence[float]]
NO_DIFFERENCE = "no difference can be told"


def judge(
    scores: Scores, seconds: Scores, share: float, minimize: bool, notes: Sequence[str] = ()
) -> tuple[Table, str | None, str]:
    """The table of these scores, the method to choose, and why.

    Args:
        scores: Method -> one score a split; a failed score is not finite.
        seconds: Method -> one number a split.
        share: The share of the samples that a split tests on.
        minimize: Whether a low score is good.
        notes: For the table.
    """
    whole = {name: values for name, values in scores.items() if all(map(math.isfinite, values))}
    pairs = among_all(whole, share) if whole else {}
    sign = -1 if minimize else 1
    means = {name: sign * statistics.fmean(values) for name, values in whole.items()}
    ranked = sorted(means, key=lambda name: (-means[name], statistics.fmean(seconds[name])))
    rows = [_row(name, ranked[0], scores, seconds, pairs, share) for name in ranked]
    choice = _cheapest(rows, pairs, sign)
    for name in scores:
        if name not in whole:
            failed = sum(not math.isfinite(score) for score in scores[name])
            mean_seconds = statistics.fmean(seconds[name])
            rows.append(MethodRow(name, failed=failed, seconds=mean_seconds))
    table = Table(tuple(rows), tuple(notes), choice)
    splits = len(next(iter(scores.values())))
    return table, choice, _reason(table, splits, minimize)


def _row(
    name: str,
    best: str,
    scores: Scores,
    seconds: Scores,
    pairs: Mapping[tuple[str, str], Difference],
    share: float,
) -> MethodRow:
    values = scores[name]
    to_best = pairs.get((name, best), Difference(0.0, 0.0, 1.0))
    return MethodRow(
        name,
        mean=statistics.fmean(values),
        spread=statistics.stdev(values) if len(values) > 1 else math.nan,
        mean_interval=mean_interval(values, share),
        difference=to_best.mean,
        interval=(to_best.low, to_best.high),
        p=to_best.p,
        told=to_best.told,
        seconds=statistics.fmean(seconds[name]),
        best=name == best,
    )


def _cheapest(
    rows: Sequence[MethodRow], pairs: Mapping[tuple[str, str], Difference], sign: int
) -> str | None:
    """The cheapest method within one standard error of the best; from one split, the best."""
    near = []
    for row in rows:
        error = 0.0 if row.best else pairs[row.method, rows[0].method].error
        allowed = 0.0 if math.isnan(error) else error
        if row.best or -sign * row.difference <= allowed:
            near.append(row)
    return min(near, key=lambda row: row.seconds).method if near else None


def _reason(table: Table, splits: int, minimize: bool) -> str:
    whole = [row for row in table if not math.isnan(row.mean)]
    said = [_failed([row for row in table if math.isnan(row.mean)])]
    if not whole:
        said.append("No method can be chosen: every one has scores that failed.")
    elif len(whole) == 1:
        said.append(f"`{whole[0].method}` is chosen: there is no other method to compare it with.")
    else:
        said += [_differences(whole, splits, table.decimals, minimize), _chosen(table, splits)]
    return " ".join(sentence for sentence in said if sentence)


def _differences(rows: Sequence[MethodRow], splits: int, decimals: int, minimize: bool) -> str:
    best, others = rows[0], rows[1:]
    over = f"over {splits} splits" if splits > 1 else "from one split"
    mean = f"the {'lowest' if minimize else 'highest'} mean ({best.mean:.{decimals}f})"
    if not (worse := [row for row in others if row.told]):
        between = "the two methods" if len(rows) == 2 else f"the {len(rows)} methods"
        why = "" if splits > 1 else ": one split shows nothing of how scores vary"
        return (
            f"Between {between} {NO_DIFFERENCE} {over}{why}. `{best.method}` has {mean}, "
            "which may be chance."
        )
    said = f"`{best.method}` has {mean} {over}; it is better than " + _listed(
        [_by_how_much(row, decimals) for row in worse]
    )
    if alike := [f"`{row.method}`" for row in others if not row.told]:
        said += f". Between it and {_listed(alike)} {NO_DIFFERENCE}"
    return said + "."


def _by_how_much(row: MethodRow, decimals: int) -> str:
    low, high = sorted(map(abs, row.interval))
    interval = "in every split" if math.isnan(low) else f"{low:.{decimals}f} to {high:.{decimals}f}"
    return f"`{row.method}` by {abs(row.difference):.{decimals}f} ({interval})"


def _chosen(table: Table, splits: int) -> str:
    best = table.rows[0]
    if splits == 1:
        return f"`{table.choice}` is chosen for its score alone."
    if table.choice == best.method:
        return f"`{best.method}` is chosen: no cheaper method is within one standard error of it."
    return (
        f"`{table.choice}` is chosen: it is the cheapest "
        f"({table[str(table.choice)].seconds:.3g} s a split, `{best.method}` {best.seconds:.3g} s) "
        "that is not worse than the best by more than one standard error."
    )


def _failed(rows: Sequence[MethodRow]) -> str:
    if not rows:
        return ""
    listed = _listed([f"`{row.method}` ({row.failed})" for row in rows])
    return f"Scores that raised or were not finite rule out {listed}."


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
