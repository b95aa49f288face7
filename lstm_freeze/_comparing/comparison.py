"""Comparison: the scores of several methods, their table, and the method to choose."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .table import WIDTH, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Failure:
    """A score that raised or was not finite.

    Attributes:
        method: The method's name.
        split: The number of the split, from 0.
        seed: The seed that was passed.
        settings: The settings that were passed, choices made.
        choosing: Whether it failed on an inner split, where settings are chosen: then only these
            settings lose. Else the method cannot be chosen.
        error: The error's type and message, or the value.
    """

    method: str
    split: int
    seed: int
    settings: Mapping[str, Any]
    choosing: bool
    error: str


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; prints as its table and its verdict, in a notebook as HTML.

    Attributes:
        table: A row for each method, the best first.
        scores: Method -> its scores, one a split; NaN where one failed.
        choice: The method to take: the cheapest, by measured seconds, that is not worse than the
            best by more than one standard error of their paired difference. None where every
            method failed.
        reason: Why, in a few sentences.
        settings: Method -> what was passed to `score` for each split, choices made; None where
            none could be chosen.
        seconds: Method -> seconds, one a split, with the time for choosing settings.
        failures: The scores that raised or were not finite.
        minimize: Whether a low score is good.
    """

    table: Table
    scores: Mapping[str, tuple[float, ...]]
    choice: str | None
    reason: str
    settings: Mapping[str, tuple[Mapping[str, Any] | None, ...]] = field(repr=False)
    seconds: Mapping[str, tuple[float, ...]] = field(repr=False)
    failures: tuple[Failure, ...] = ()
    minimize: bool = False

    def __str__(self) -> str:
        return f"{self.table}\n\n{textwrap.fill(self.reason, WIDTH, break_on_hyphens=False)}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"{self.table._repr_html_()}\n<p>{html.escape(self.reason)}</p>"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw every score, the means, and how far each mean is from the best.

        The bar of a method is the interval of its difference to the best, drawn around its mean:
        where it crosses the vertical line, no difference can be told. Needs the extra `plot`.

        Args:
            ax: Where to draw; None makes a new figure.

        Returns:
            The matplotlib Axes.
        """
        from .view import plot

        return plot(self, ax)
