"""The result of a comparison as a table, for terminals and notebooks."""

from __future__ import annotations

import html
import math
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WIDTH = 88
_HEAD = ("method", "mean", "sd", "difference to the best", "p", "seconds")


@dataclass(frozen=True)
class MethodRow:
    """One method of a comparison.

    Attributes:
        method: Its name.
        mean: The mean of its scores over the splits; NaN where one of them failed.
        spread: Their standard deviation; NaN from one split.
        mean_interval: The 95% interval of the mean, low and high, corrected for the overlap of
            the splits. Two methods are compared by `difference` and not by these.
        difference: Its mean less that of the best method, split by split.
        interval: The 95% interval of `difference`, low and high: corrected for the overlap of the
            splits and for the number of methods. NaN where the scores give none.
        p: The p of `difference`, corrected in the same way; 1 for the best method itself.
        told: Whether the difference can be told from noise.
        seconds: The mean seconds of a split, with the time for choosing settings.
        failed: How many of its scores raised or were not finite.
        best: Whether its mean is the best.
    """

    method: str
    mean: float = math.nan
    spread: float = math.nan
    mean_interval: tuple[float, float] = (math.nan, math.nan)
    difference: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    p: float = math.nan
    told: bool = False
    seconds: float = math.nan
    failed: int = 0
    best: bool = False


@dataclass(frozen=True)
class Table:
    """The methods of a comparison, the best first; prints aligned, in a notebook as HTML.

    Iterates over its rows; `table["full"]` is the row of a method.

    Attributes:
        rows: One row a method.
        notes: Remarks on the whole table.
        choice: The method that is chosen, marked in print.
    """

    rows: tuple[MethodRow, ...]
    notes: tuple[str, ...] = ()
    choice: str | None = None

    def __iter__(self) -> Iterator[MethodRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, method: str) -> MethodRow:
        for row in self.rows:
            if row.method == method:
                return row
        raise KeyError(
            f"{method!r}: no such method; there are {', '.join(r.method for r in self.rows)}"
        )

    def __str__(self) -> str:
        table = [list(_HEAD), *(self._cells(row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i in (0, 3) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()
            for cells in table
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join([*lines, *(textwrap.fill(n, WIDTH) for n in self._footnotes)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        # No colours of its own: the notebook's suit light and dark pages.
        text = ["<table>", _html_row("th", _HEAD)]
        for row in self.rows:
            text.append(_html_row("td", self._cells(row), bold=row.method == self.choice))
        text.append("</table>")
        text += [f"<div><em>{html.escape(note)}</em></div>" for note in self._footnotes]
        return "\n".join(text)

    @property
    def decimals(self) -> int:
        """How many decimals show the scores: two digits of the typical standard deviation."""
        spreads = [row.spread for row in self.rows if row.spread > 0]
        if not spreads:
            return 4
        return min(8, max(0, 1 - math.floor(math.log10(statistics.median(spreads)))))

    @property
    def _footnotes(self) -> list[str]:
        starred = any(row.method == self.choice for row in self.rows)
        return [*(["* chosen"] if starred else []), *self.notes]

    def _cells(self, row: MethodRow) -> list[str]:
        n = self.decimals
        name = row.method + (" *" if row.method == self.choice else "")
        if math.isnan(row.mean):
            return [name, "-", "-", f"{row.failed} failed", "-", _seconds(row.seconds)]
        difference, p = "best", ""
        if not row.best:
            difference = f"{row.difference:+.{n}f}"
            if not math.isnan(row.interval[0]):
                difference += f" ({row.interval[0]:+.{n}f} to {row.interval[1]:+.{n}f})"
            p = "<0.001" if row.p < 0.001 else f"{row.p:.3f}"
        spread = "-" if math.isnan(row.spread) else f"{row.spread:.{n}f}"
        return [name, f"{row.mean:.{n}f}", spread, difference, p, _seconds(row.seconds)]


def _seconds(value: float) -> str:
    """Seconds with about three digits."""
    if math.isnan(value):
        return "-"
    return f"{value:.{3 if value < 0.1 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def _html_row(tag: str, cells: Sequence[str], bold: bool = False) -> str:
    weight = ";font-weight:bold" if bold else ""
    return (
        "<tr>"
        + "".join(
            f'<{tag} style="text-align:{"left" if i in (0, 3) else "right"}{weight}">'
            f"{html.escape(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        )
        + "</tr>"
    )
