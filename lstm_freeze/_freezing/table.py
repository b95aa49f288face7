"""A status as a table, for terminals and notebooks."""

from __future__ import annotations

import html
import itertools
import re
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .status import Row, Status

_WIDTH = 80
_FOLD_ABOVE = 40  # rows; a longer table shows neighbours that differ only in a number as one line


def as_text(status: Status) -> str:
    """The lines for a terminal, at most 80 columns wide where names allow it."""
    rows = _folded(status.rows)
    table = _cells(status, rows, named=True)
    if len(_aligned(table)[0]) > _WIDTH:
        table = _cells(status, rows, named=False)
    head, *lines = _aligned(table)
    text = [head.rstrip(), "-" * len(head)]
    for row, line in zip(rows, lines, strict=True):
        text += [line.rstrip(), *(_wrapped(f"  ! {note}", "    ") for note in row.notes)]
    text += [_wrapped(f"note: {note}", "      ") for note in status.notes]
    return "\n".join([*text, _summary(status)])


def as_html(status: Status) -> str:
    """The table as HTML, for a notebook."""
    # No colours of its own: the notebook's suit light and dark pages.
    rows = _folded(status.rows)
    head, *lines = _cells(status, rows, named=True)
    text = ["<table>", _html_row("th", head)]
    for row, cells in zip(rows, lines, strict=True):
        text.append(_html_row("td", cells, bold=row.state != "frozen"))
        text += [
            f'<tr><td colspan="{len(head)}" style="text-align:left;padding-left:2em">'
            f"<em>{html.escape(note)}</em></td></tr>"
            for note in row.notes
        ]
    text.append("</table>")
    text += [f"<div><em>note: {html.escape(note)}</em></div>" for note in status.notes]
    return "\n".join([*text, f"<div>{html.escape(_summary(status))}</div>"])


def _summary(status: Status) -> str:
    percent = 100 * status.trainable / status.total if status.total else 0.0
    return (
        f"trainable params: {status.trainable:,} || all params: {status.total:,} || "
        f"trainable%: {percent:.4f}"
    )


def _cells(status: Status, rows: Sequence[Row], named: bool) -> list[list[str]]:
    """The heading and the rows as text; optimizer groups by name or by index."""
    all_in_rnn = rows and all(row.name.startswith("[") for row in rows)
    subject = "[layer].direction" if all_in_rnn else status.by.replace("layer", "part")
    wide = max((len(f"{row.total:,}") for row in rows), default=0)
    numbers = [f"{r.trainable:,} / {r.total:>{wide},}" for r in rows]
    table = [[subject, "state", "trainable/all params"]]
    if status.by == "parameter":
        table, numbers = [[subject, "state", "params"]], [f"{r.total:,}" for r in rows]
    table += [[r.name, r.state, number] for r, number in zip(rows, numbers, strict=True)]
    if status.with_optimizer:
        table[0] += ["group", "lr"]
        for row, cells in zip(rows, table[1:], strict=True):
            cells += [_groups_cell(row, named), ", ".join(f"{lr:.4g}" for lr in row.lrs) or "-"]
    return table


def _folded(rows: Sequence[Row]) -> list[Row]:
    """The rows to print: of a long table, neighbours that differ only in numbers become one."""
    if len(rows) <= _FOLD_ABOVE:
        return list(rows)
    runs = itertools.groupby(rows, lambda r: (re.sub(r"\d+", "#", r.name), r.state, r.notes))
    return [_joined(list(run)) for _, run in runs]


def _joined(run: Sequence[Row]) -> Row:
    if len(run) == 1:
        return run[0]
    labels = list(dict.fromkeys(g.split()[0] for row in run for g in row.groups))
    lrs = [lr for row in run for lr in row.lrs]
    return replace(
        run[0],
        name=f"{run[0].name} ... {run[-1].name} ({len(run)} rows)",
        trainable=sum(row.trainable for row in run),
        total=sum(row.total for row in run),
        groups=tuple([labels[0], "...", labels[-1]] if len(labels) > 2 else labels),
        lrs=tuple(dict.fromkeys((min(lrs), max(lrs)) if lrs else ())),
        ties=(),
        stale=(),
    )


def _groups_cell(row: Row, named: bool) -> str:
    """Indices of the groups, with the names that tell more than the row's own."""
    shown = []
    for label in row.groups:
        index, _, name = label.partition(" ")
        own = name == row.name or name.startswith(f"{row.name} (")
        shown.append(label if named and not own else index)
    return ", ".join(shown) or "-"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, all of one width; the third column holds numbers."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i == 2 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        for cells in table
    ]


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(
        text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _html_row(tag: str, cells: Sequence[str], bold: bool = False) -> str:
    weight = ";font-weight:bold" if bold else ""
    aligned = (f"text-align:{'right' if i == 2 else 'left'}{weight}" for i in range(len(cells)))
    return (
        "<tr>"
        + "".join(
            f'<{tag} style="{style}">{html.escape(cell)}</{tag}>'
            for style, cell in zip(aligned, cells, strict=True)
        )
        + "</tr>"
    )
