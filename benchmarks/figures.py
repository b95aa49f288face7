"""The figures of the benchmarks, for the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from cases import EVERY, FORMS, SAMPLE_TARGETS, TARGETS, Target
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from summary import Row, geometric_mean

NN, OURS, GREY = "#8c8c8c", "#1f6fb4", "#444444"
_DPI = 110
_SIZES = {"T": 1, "B": 0, "H": 3, "L": 4}


def save_ratios(rows: Sequence[Row], path: Path, sampled: bool = False) -> None:
    """How many times faster than nn.LSTM: dots are shapes, bars their means, crosses targets."""
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), sharey=True, layout="constrained")
    found = [row["ratio"] for row in rows]
    cases = _cases_of(rows)
    limits = min(0.7, *found) / 1.08, max(1.5, *found) * 1.08
    for ax, form in zip(axes, FORMS, strict=True):
        targets = SAMPLE_TARGETS if sampled else TARGETS
        aimed_at = {case: targets[form, case] for case in cases if (form, case) in targets}
        _ratio_panel(ax, [row for row in rows if row["form"] == form], cases, aimed_at)
        ax.set_title(f"{form} input", fontsize=10)
        ax.set_xlim(*limits)
    axes[0].set_yticks(range(len(cases)), cases)
    axes[0].set_ylim(len(cases) - 0.5, -0.5)
    handles, labels = axes[0].get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    fig.legend(once.values(), once, loc="outside lower center", ncols=3, frameon=False)
    _save(fig, path)


def _cases_of(rows: Sequence[Row]) -> list[str]:
    return [case for case in EVERY if any(row["case"] == case for row in rows)]


def _ratio_panel(
    ax: Axes, rows: Sequence[Row], cases: Sequence[str], targets: Mapping[str, Target]
) -> None:
    ax.axvline(1, color=GREY, lw=1)
    for y, case in enumerate(cases):
        values = [row["ratio"] for row in rows if row["case"] == case]
        if not values:
            continue
        ax.plot(values, [y] * len(values), "o", ms=5, color=OURS, alpha=0.5, mec="none",
                label="one shape")  # fmt: skip
        ax.plot(geometric_mean(values), y, "|", ms=20, mew=2.5, color=OURS,
                label="geometric mean")  # fmt: skip
        if case in targets:
            ax.plot(targets[case].mean, y, "x", ms=7, mew=1.5, color="#c8511b",
                    label="target")  # fmt: skip
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator([0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("nn.LSTM's time / BiLSTM's (right of 1: BiLSTM faster)")
    _plain(ax, "x")


def save_growth(rows: Sequence[Row], path: Path) -> None:
    """Training time along T, B, H and L, both axes logarithmic."""
    fig, axes = plt.subplots(1, 4, figsize=(11, 3.2), sharey=True, layout="constrained")
    for ax, (size, index) in zip(axes, _SIZES.items(), strict=True):
        for form, dashes in zip(FORMS, ("-", "--"), strict=True):
            line = [row for row in rows if row["varied"] == size and row["form"] == form]
            x = [row["shape"][index] for row in line]
            for key, name, colour in (("nn_ms", "nn.LSTM", NN), ("bilstm_ms", "BiLSTM", OURS)):
                y = [row[key] for row in line]
                ax.plot(x, y, dashes, marker="o", ms=3.5, color=colour, label=f"{name}, {form}")
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(x, [str(value) for value in x])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.set_xlabel(size)
        _plain(ax, "both")
    axes[0].set_ylabel("a training step, ms")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    _save(fig, path)


def save_runs(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Seconds of each epoch in whole runs; the phases' beginnings as vertical lines."""
    plans = list(dict.fromkeys(run["plan"] for run in runs))
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    colours = dict(zip(arms, (NN, "#222222", OURS, "#c8511b"), strict=True))
    widths = [len(next(r for r in runs if r["plan"] == plan)["epoch_s"]) + 4 for plan in plans]
    fig, axes = plt.subplots(
        1, len(plans), figsize=(11, 3.4), sharey=True, squeeze=False, layout="constrained",
        width_ratios=widths,
    )  # fmt: skip
    for ax, plan in zip(axes[0], plans, strict=True):
        for run in (run for run in runs if run["plan"] == plan):
            seconds = run["epoch_s"]
            edges = [epoch + 0.5 for epoch in range(len(seconds) + 1)]
            colour = colours[run["arm"]]
            style = ":" if run["arm"] == arms[1] else "-"
            ax.stairs(seconds, edges, baseline=None, color=colour, lw=2, ls=style, label=run["arm"])
            for start in run["starts"][1:]:
                ax.axvline(start + 0.5, color=GREY, lw=0.5, ls=(0, (2, 3)))
        ax.set_title(plan, fontsize=10)
        ax.set_xlabel("epoch")
        ax.set_xticks([1, *range(5, len(seconds) + 1, 5)])
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        _plain(ax, "y")
    axes[0][0].set_ylabel("seconds")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(arms), frameon=False)
    _save(fig, path)


def _plain(ax: Axes, grid: str) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, axis=grid, color="#e6e6e6", lw=0.7)
    ax.set_axisbelow(True)


def _save(fig: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=_DPI)
    plt.close(fig)
