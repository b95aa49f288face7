"""A comparison drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .comparison import Comparison


def plot(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """The scores as dots, the means as diamonds, the differences to the best as bars."""
    try:
        import matplotlib.pyplot as plt
        from matplotlib.axes import Axes
    except ImportError as error:
        raise ImportError(
            'comparison.plot needs matplotlib; pip install "lstm-freeze[plot]"'
        ) from error
    if ax is not None and not isinstance(ax, Axes):
        raise TypeError(f"`ax` must be a matplotlib Axes or None, got {ax!r}")
    rows = comparison.table.rows
    if ax is None:
        _, ax = plt.subplots(figsize=(7, 0.45 * len(rows) + 1.3), layout="constrained")
    best = rows[0].mean
    for y, row in enumerate(rows):
        shown = [score for score in comparison.scores[row.method] if math.isfinite(score)]
        ax.plot(shown, [y] * len(shown), "o", color="0.6", markersize=3, zorder=2)
        if math.isnan(row.mean):
            note = f"{row.failed} failed"
            ax.annotate(note, (0.01, y), xycoords=ax.get_yaxis_transform(), va="center")
            continue
        if not math.isnan(row.interval[0]) and not row.best:
            low, high = (best + end for end in row.interval)
            ax.plot([low, high], [y, y], "|-", color="black", linewidth=2, markersize=9, zorder=3)
        filled = "black" if row.method == comparison.choice else "white"
        ax.plot(row.mean, y, "D", color="black", markerfacecolor=filled, markersize=7, zorder=4)
    if not math.isnan(best):
        ax.axvline(best, color="black", linewidth=1, linestyle="--", zorder=1)
    ax.set_yticks(range(len(rows)), [row.method for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel("score (low is good)" if comparison.minimize else "score")
    ax.set_title(
        "dots: splits   diamonds: means, black: chosen   bars: 95%, difference to the best",
        fontsize="small",
        loc="left",
    )
    ax.spines[["top", "right"]].set_visible(False)
    return ax
