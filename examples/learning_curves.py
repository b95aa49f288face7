"""Comparisons at several amounts of labelled data, as one table and one figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from rich import box
from rich.table import Table

from lstm_freeze import Comparison

Found = Mapping[int, Comparison]  # labelled samples -> what was found

# Markers and lines differ as well as Okabe and Ito's colours: readable in print and for every kind
# of colour vision.
LOOKS = [
    ("#000000", ":", "x"),
    ("#009E73", "-.", "s"),
    ("#56B4E9", "--", "o"),
    ("#E69F00", (0, (1, 1)), "^"),
    ("#D55E00", "-", "D"),
    ("#0072B2", (0, (5, 1, 1, 1)), "v"),
]


def as_table(found: Found) -> Table:
    """A row for each method: its mean, the difference to the best with its interval, its cost."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("method\ns a split", no_wrap=True)
    for size in found:
        table.add_column(f"{size} labelled\nto the best", justify="right")
    for name in next(iter(found.values())).scores:
        seconds = " ".join(f"{one.table[name].seconds:.1f}" for one in found.values())
        table.add_row(
            f"[bold]{name}[/bold]\n{seconds}", *(_cell(one, name) for one in found.values())
        )
    return table


def _cell(found: Comparison, name: str) -> str:
    row = found.table[name]
    mean = f"[bold]{100 * row.mean:.1f}[/bold]{'*' if found.choice == name else ' '}"
    if row.best:
        return f"{mean}\nbest "
    low, high = row.interval
    interval = "" if math.isnan(low) else f" ({100 * low:+.1f}, {100 * high:+.1f})"
    return f"{mean}\n{100 * row.difference:+.1f}{interval}"


def draw(found: Found, path: Path, *, of: str) -> None:
    """Write the figure: accuracy over labelled samples, a line for each method.

    Args:
        found: Labelled samples -> what was found.
        path: The file to write.
        of: What is labelled and told, for the axes.
    """
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    names = list(next(iter(found.values())).scores)
    for number, (name, (color, line, marker)) in enumerate(zip(names, LOOKS, strict=False)):
        # Beside each other, so that no interval hides another.
        places = [size * 1.035 ** (number - (len(names) - 1) / 2) for size in found]
        rows = [comparison.table[name] for comparison in found.values()]
        means = [100 * row.mean for row in rows]
        ends = [
            [100 * (row.mean - row.mean_interval[0]) for row in rows],
            [100 * (row.mean_interval[1] - row.mean) for row in rows],
        ]
        axes.errorbar(
            *(places, means, ends),
            color=color,
            linestyle=line,
            marker=marker,
            markerfacecolor="white",
            markersize=7,
            linewidth=1.8,
            elinewidth=1,
            capsize=2,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_xticks(list(found), [str(size) for size in found])
    axes.minorticks_off()
    axes.set_xlabel(f"labelled {of}")
    axes.set_ylabel(f"accuracy on {of} of other families, %")
    axes.set_title("Means and their 95% intervals, corrected for overlapping splits", loc="left")
    axes.grid(axis="y", color="#E4E4E4")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, ncols=3, handlelength=4, loc="outside lower center")
    figure.savefig(path, dpi=150)
    plt.close(figure)
