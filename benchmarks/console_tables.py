"""The tables that `speed.py` prints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cases import FORMS
from machine import in_words
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from run_summary import RunVerdict, totals
from summary import Row, all_rows, different, equality, shape_of, verdicts

WIDTH = 100


def console() -> Console:
    """A console of at least the tables' width, also where the output is no terminal."""
    found = Console()
    return found if found.width >= WIDTH else Console(width=WIDTH)


def milliseconds(value: float) -> str:
    """About three digits."""
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def all_tables(results: dict[str, Any]) -> Group:
    """Everything that was measured."""
    parts: list[Any] = [in_words(results["machine"])]
    for form in FORMS:
        if rows := [row for row in results["rows"] if row["form"] == form]:
            parts.append(times(rows, form))
        if rows := [row for row in results["small"] if row["form"] == form]:
            parts.append(times(rows, f"{form}, small calls"))
    if results["memory"]:
        parts.append(memory(results["memory"]))
    if results["growth"]:
        parts.append(growth(results["growth"]))
    if results["tracing"]:
        parts.append(tracing(results["tracing"]))
    measured = all_rows(results)
    style = "bold red" if different(measured) else ""
    parts += [targets(results["rows"], results.get("seed")), Text(equality(measured), style)]
    return Group(*parts)


def times(rows: Iterable[Row], form: str) -> Table:
    """One line a case and shape."""
    table = _table(
        f"{form}: ms a call; x: nn.LSTM's time / BiLSTM's, median and quartiles of pairs; "
        "diff: largest, output and gradient",
        "B, T, I, H, L",
        *("nn.LSTM", "BiLSTM", "x", "quartiles", "floor", "nn/fl", "Bi/fl", "diff"),
    )
    case = None
    for row in rows:
        if row["case"] != case:
            case = row["case"]
            table.add_section()
            table.add_row(f"[bold]{case}")
        mark = "" if row["equal"] else "[bold red]DIFFERS "
        table.add_row(
            shape_of(row),
            *(milliseconds(row[key]) for key in ("nn_ms", "bilstm_ms")),
            f"[bold]{row['ratio']:.2f}",
            f"{row['ratio_lower']:.2f}-{row['ratio_upper']:.2f}",
            milliseconds(row["floor_ms"]),
            *(f"{row[key]:.2f}" for key in ("nn_over_floor", "over_floor")),
            f"{mark}{row['output_difference']:.0e} {row['gradient_difference']:.0e}",
        )
    return table


def memory(rows: Iterable[Row]) -> Table:
    """Peak resident memory of a call, above what was there before."""
    table = _table(
        "peak memory of a call, MB (resident set, a fresh process each)",
        "B, T, I, H, L",
        *("form", "forward: nn.LSTM", "BiLSTM", "training: nn.LSTM", "BiLSTM"),
    )
    for row in rows:
        numbers = [row[side][mode] for mode in ("forward", "training") for side in ("nn", "bilstm")]
        table.add_row(shape_of(row), row["form"], *(f"{number:.0f}" for number in numbers))
    return table


def growth(rows: Iterable[Row]) -> Table:
    """How the training time grows along each size."""
    table = _table(
        "growth: training, everything trainable, ms",
        "varied",
        *("B, T, I, H, L", "form", "nn.LSTM", "BiLSTM", "x"),
    )
    varied = None
    for row in rows:
        if row["varied"] != varied:
            varied = row["varied"]
            table.add_section()
        table.add_row(
            varied,
            shape_of(row),
            row["form"],
            *(milliseconds(row[key]) for key in ("nn_ms", "bilstm_ms")),
            f"{row['ratio']:.2f}",
        )
    return table


def tracing(rows: Iterable[Row]) -> Table:
    """What tracing costs at each length."""
    table = _table(
        "BiLSTM under torch.compile (aot_eager) and torch.export",
        "T",
        *("compile, s", "export, s", "nodes of the exported graph"),
    )
    for row in rows:
        numbers = (f"{row['compile_s']:.2f}", f"{row['export_s']:.2f}", str(row["nodes"]))
        table.add_row(str(row["T"]), *numbers)
    return table


def targets(rows: list[Row], seed: int | None = None) -> Table:
    """Geometric means over the shapes, beside what is aimed at."""
    table = _table(
        "geometric means over the shapes: nn.LSTM's time / BiLSTM's, unless said otherwise",
        "case",
        *("mean", "least", "most", "shapes", "target", ""),
    )
    colours = {"met": "green", "not met": "bold red", "": ""}
    for v in verdicts(rows, sampled=seed is not None):
        word = f"[{colours[v.word]}]{v.word}" if v.word else ""
        numbers = (f"{v.value:.2f}", f"{v.least:.2f}", f"{v.most:.2f}", str(v.shapes))
        table.add_row(v.case, *numbers, v.target, word)
    return table


def run_table(results: dict[str, Any]) -> Table:
    """Whole runs: seconds, and how each ended."""
    table = _table(
        "whole runs: seconds of all training epochs; x: the first arm's time / this one's",
        "run",
        *("seconds", "x", "loss", "accuracy", "cache MB", "peak MB"),
    )
    peaks = {row["arm"]: f"{row['peak_mb']:.0f}" for row in results["memory"]}
    plan, seconds = None, totals(results["runs"])
    for run in results["runs"]:
        if run["plan"] != plan:
            plan = run["plan"]
            first = seconds[plan][run["arm"]]
            table.add_section()
            table.add_row(f"[bold]{plan}, {len(run['epoch_s'])} epochs")
        own = seconds[plan][run["arm"]]
        table.add_row(
            run["arm"],
            f"{own:.2f}",
            f"[bold]{first / own:.2f}",
            f"{run['loss']:.5f}",
            f"{run['accuracy']:.3f}",
            f"{run['cache']['bytes'] / 1e6:.0f}" if run["cache"] else "",
            peaks.get(run["arm"], ""),
        )
    return table


def run_targets(found: Iterable[RunVerdict]) -> Table:
    """Whole runs against what is aimed at."""
    title = "nn.LSTM + BaseFinetuning's time / this arm's"
    table = _table(title, "run", *("arm", "x", "target", ""))
    for v in found:
        word = f"[{'green' if v.word == 'met' else 'bold red'}]{v.word}"
        table.add_row(v.name, v.arm, f"{v.ratio:.2f}", f">= {v.target:g}", word)
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    style = {"title_justify": "left", "title_style": "bold", "box": box.SIMPLE_HEAD}
    table = Table(title=title, pad_edge=False, **style)
    table.add_column(first)  # what does not fit wraps; numbers stay whole
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table
