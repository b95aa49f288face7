"""What the rows of `speed.py` come to: means, targets met or not, and results that differ."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cases import EVERY, FLOOR_CASE, FLOOR_TARGETS, FORMS, SAMPLE_TARGETS, TARGETS, Target
from side_by_side import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE

Row = dict[str, Any]


class Verdict(NamedTuple):
    """One line of the table of targets."""

    case: str
    value: float
    least: float
    most: float
    shapes: int
    target: str
    met: bool | None

    @property
    def word(self) -> str:
        """In words; nothing where no target is set."""
        return {True: "met", False: "not met", None: ""}[self.met]


def geometric_mean(values: Sequence[float]) -> float:
    """The n-th root of the product."""
    return math.exp(sum(map(math.log, values)) / len(values))


def verdicts(rows: Sequence[Row], sampled: bool = False) -> list[Verdict]:
    """How many times faster than nn.LSTM in each form and case, and the ratio to the floor."""
    found = []
    targets = SAMPLE_TARGETS if sampled else TARGETS
    for form in FORMS:
        for case in EVERY:
            ratios = [r["ratio"] for r in rows if (r["form"], r["case"]) == (form, case)]
            if ratios:
                found.append(_against_target(form, case, ratios, targets))
    for form, (least, most) in itertools.product(FORMS, FLOOR_TARGETS.items()):
        over = [r["over_floor"] for r in rows if r["form"] == form and _has_floor(r, least)]
        if over:
            met = max(over) <= most
            name = f"{form}, training, H >= {least}: time / GEMM floor"
            extremes = (min(over), max(over), len(over))
            found.append(Verdict(name, geometric_mean(over), *extremes, f"each <= {most}", met))
    return found


def all_rows(results: dict[str, Any]) -> list[Row]:
    """The rows of every part of a run, each of which compares the results, too."""
    return [*results["rows"], *results["small"], *results["growth"]]


def different(rows: Iterable[Row]) -> list[Row]:
    """The rows whose two sides did not give the same results."""
    return [row for row in rows if not row["equal"]]


def equality(rows: Sequence[Row]) -> str:
    """One sentence: whether all results were equal, and the largest differences."""
    output, gradient = (
        max((row[f"{which}_difference"] for row in rows), default=0.0)
        for which in ("output", "gradient")
    )
    largest = (
        f"largest difference of outputs {output:.1e} (at most {OUTPUT_TOLERANCE:.0e}), of "
        f"gradients {gradient:.1e} of a tensor's largest (at most {GRADIENT_TOLERANCE:.0e})"
    )
    if not (wrong := different(rows)):
        return f"Results equal in all {len(rows)} rows: {largest}."
    names = "; ".join(f"{row['form']}, {row['case']}, {shape_of(row)}" for row in wrong)
    return f"RESULTS DIFFER in {len(wrong)} of {len(rows)} rows: {largest}: {names}."


def shape_of(row: Row) -> str:
    """B, T, I, H, L."""
    return ", ".join(map(str, row["shape"]))


def _has_floor(row: Row, least_hidden: int) -> bool:
    return bool(row["case"] == FLOOR_CASE and row["shape"][3] >= least_hidden)


def _against_target(
    form: str, case: str, ratios: Sequence[float], targets: Mapping[tuple[str, str], Target]
) -> Verdict:
    mean, extremes = geometric_mean(ratios), (min(ratios), max(ratios), len(ratios))
    if (target := targets.get((form, case))) is None:
        return Verdict(f"{form}, {case}", mean, *extremes, "", None)
    words = f">= {target.mean}" + (f", each >= {target.each}" if target.each else "")
    met = mean >= target.mean and min(ratios) >= target.each
    return Verdict(f"{form}, {case}", mean, *extremes, words, met)
