"""What the rows of `gradual_run.py` come to: speed-ups, targets met or not, losses that differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from whole_runs import BASELINE, CACHED, CLASSES, FIVE, LP_FT, ULMFIT, UNCACHED

Run = dict[str, Any]

# A share of the loss of guessing. Two ways to round drift apart over hundreds of steps of Adam:
# initial weights that were moved by one part in 1e7 moved the losses at the end of LP-FT and of
# the 20 epochs by less than 2e-6. That each step computes the same is shown by
# `speed.py`, not here.
LOSS_TOLERANCE = 0.001

TARGETS = {ULMFIT.name: (UNCACHED, 3.5), FIVE.name: (CACHED, 4.0), LP_FT.name: (CACHED, 5.0)}
FROZEN_EPOCH_TARGET = 40.0


class RunVerdict(NamedTuple):
    """How many times faster than the baseline, against the target."""

    name: str
    arm: str
    ratio: float
    target: float

    @property
    def word(self) -> str:
        """In words."""
        return "met" if self.ratio >= self.target else "not met"


def totals(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Plan -> arm -> seconds of all epochs."""
    found: dict[str, dict[str, float]] = {}
    for run in runs:
        found.setdefault(run["plan"], {})[run["arm"]] = sum(run["epoch_s"])
    return found


def run_verdicts(runs: Sequence[Run]) -> list[RunVerdict]:
    """The whole runs, and an epoch of LP-FT with the encoder frozen, after the first."""
    found = []
    for plan, seconds in totals(runs).items():
        arm, target = TARGETS[plan]
        found.append(RunVerdict(plan, arm, seconds[BASELINE] / seconds[arm], target))
    probing = {run["arm"]: _probing_epoch(run) for run in runs if run["plan"] == LP_FT.name}
    if probing:
        ratio = probing[BASELINE] / probing[CACHED]
        name = "a probing epoch after the first"
        found.append(RunVerdict(name, CACHED, ratio, FROZEN_EPOCH_TARGET))
    return found


def different(runs: Sequence[Run]) -> list[Run]:
    """The runs that did not end with the loss of the same plan's baseline."""
    expected = {run["plan"]: run["loss"] for run in runs if run["arm"] == BASELINE}
    most = LOSS_TOLERANCE * math.log(CLASSES)
    return [run for run in runs if not abs(run["loss"] - expected[run["plan"]]) <= most]


def _probing_epoch(run: Run) -> float:
    """The median of the epochs after the first that train the head alone."""
    return statistics.median(run["epoch_s"][1 : run["starts"][1]])
