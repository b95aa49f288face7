"""A schedule drawn: a text table for terminals, a timeline for figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._model import numel
from .resolved import ResolvedPhase, ResolvedSchedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 60  # of the text timeline
_TRAINS, _PARTLY, _FROZEN = "#", "+", "."


@dataclass(frozen=True)
class Bar:
    """A stretch of epochs in which one part trains in the same way.

    Attributes:
        start: The first epoch.
        end: The first epoch after it.
        state: `"trains"`, `"partly"` (some of the part's parameters) or `"frozen"`.
        rates: The learning rates that the schedule sets, as text; empty where it sets none.
    """

    start: int
    end: int
    state: str
    rates: str = ""


@dataclass(frozen=True)
class Timeline:
    """A schedule over the parts of a model.

    Attributes:
        unit: Epoch or step.
        length: How many are shown.
        parts: Name and bars of each part in the scope, input side first.
        phases: Start, end, targets, warm-up and trainable numbers of each phase that is shown.
        total: The numbers of all parameters in the scope.
    """

    unit: str
    length: int
    parts: tuple[tuple[str, tuple[Bar, ...]], ...]
    phases: tuple[tuple[int, int, str, int], ...]
    total: int


def timeline(resolved: ResolvedSchedule, length: int) -> Timeline:
    """The first epochs of a schedule, part by part."""
    starts = [p.phase.start for p in resolved.phases]
    ends = [*starts[1:], length]
    shown = [
        (start, min(end, length), phase)
        for start, end, phase in zip(starts, ends, resolved.phases, strict=True)
        if start < length
    ]
    inside = {id(p) for phase in resolved.phases[:1] for p in phase.train.values()}
    inside |= {id(p) for p in resolved.phases[0].frozen.values()}
    parts = []
    for part in resolved.parts:
        ids = {id(p) for p in part.parameters.values()} & inside
        if ids:
            bars = [_bar(resolved, start, end, phase, ids) for start, end, phase in shown]
            parts.append((part.name, tuple(_merged(bars))))
    first = resolved.phases[0]
    return Timeline(
        resolved.schedule.unit,
        length,
        tuple(parts),
        tuple(
            (start, end, _targets(phase), sum(map(numel, phase.train.values())))
            for start, end, phase in shown
        ),
        sum(map(numel, [*first.train.values(), *first.frozen.values()])),
    )


def preview(resolved: ResolvedSchedule, length: int) -> str:
    """The schedule as a text table."""
    line = timeline(resolved, length)
    step = -(-length // _COLUMNS)
    cells = range(0, length, step)
    wide = max([len(name) for name, _ in line.parts] + [len("part")])
    each = f", {step} {line.unit}s a column" if step > 1 else ""
    ruler = "".join(f"{at:<10}" for at in cells[::10])[: max(len(cells), 1)].rstrip()
    rows = [f"{'part':<{wide}}  {ruler:<{len(cells)}}  trains in {line.unit}s{each}"]
    rows.append("-" * len(rows[0]))
    for name, bars in line.parts:
        marks = "".join(_mark(bars, at) for at in cells)
        rows.append(f"{name:<{wide}}  {marks}  {_spans(bars, length)}".rstrip())
    rows += ["", f"{_TRAINS} trains   {_PARTLY} trains in part   {_FROZEN} frozen", ""]
    head = ("phase", f"{line.unit}s", "trainable params", "%", "trains")
    table = [
        (str(i), _span(start, end, length), f"{n:,}", f"{100 * n / max(line.total, 1):.1f}", train)
        for i, (start, end, train, n) in enumerate(line.phases)
    ]
    widths = [max(len(row[i]) for row in (head, *table)) for i in range(4)]
    for row in (head, *table):
        left = f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}"
        rows.append(f"{left}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  {row[4]}")
    if resolved.constants:
        rows += ["", resolved.about_constants]
    return "\n".join([*rows, *_also_trains(resolved)])


def _also_trains(resolved: ResolvedSchedule) -> list[str]:
    """Lines about what trains without a phase: it is outside of the scope, or excluded."""
    if not (others := resolved.also_trained):
        return []
    names = [p.name for p in resolved.parts if p.parameters.keys() & others.keys()]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    kept = " but for what is in exclude=" if resolved.schedule.exclude else ""
    tensors = f"{len(others)} tensor{'s' if len(others) > 1 else ''}"
    return [
        "",
        f"also trains, outside the schedule: {tensors}, {sum(map(numel, others.values())):,} "
        f'params ({", ".join(names[:3])}{more}); rest="freeze" freezes it{kept}',
    ]


def plot(resolved: ResolvedSchedule, length: int, ax: Axes | None = None) -> Axes:
    """The schedule as a timeline; hatching and words, not colours, show what trains."""
    try:
        import matplotlib.pyplot as plt
        from matplotlib.axes import Axes
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError(
            'schedule.plot needs matplotlib; pip install "lstm-freeze[plot]"'
        ) from error
    if ax is not None and not isinstance(ax, Axes):
        raise TypeError(f"`ax` must be an Axes of matplotlib or None (a new figure), got {ax!r}")
    line = timeline(resolved, length)
    count = len(line.parts)
    if ax is None:
        _, ax = plt.subplots(
            figsize=(9, 1.6 + (0.3 if count <= 20 else 0.2) * count), layout="constrained"
        )
    looks: dict[str, dict[str, Any]] = {
        "trains": {"facecolor": "#0b5394", "edgecolor": "white"},
        "partly": {"facecolor": "#9fc5e8", "edgecolor": "#0b5394", "hatch": "////"},
        "frozen": {"facecolor": "#f2f2f2", "edgecolor": "#bbbbbb"},
    }
    for row, (_, bars) in enumerate(line.parts):
        for bar in bars:
            stretch = [(bar.start, bar.end - bar.start)]
            ax.broken_barh(stretch, (row - 0.42, 0.84), **looks[bar.state])
            text = f"lr {bar.rates}"
            if bar.rates and len(text) * 0.011 < (bar.end - bar.start) / length:
                color = "white" if bar.state == "trains" else "black"
                middle = (bar.start + bar.end) / 2
                look: dict[str, Any] = {
                    "fontsize": 7,
                    "color": color,
                    "ha": "center",
                    "va": "center",
                }
                ax.annotate(text, (middle, row), **look)
    ax.set_yticks(range(count), [name for name, _ in line.parts], fontsize=8)
    ax.set_ylim(-0.6, count - 0.4)
    ax.set_xlim(0, length)
    ax.set_xlabel(line.unit)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _label_phases(ax, line)
    _legend(ax, line, looks)
    return ax


def _label_phases(ax: Axes, line: Timeline) -> None:
    """Write each phase's trainable numbers above its start, as far as there is room."""
    room = line.length / 12
    last = -line.length
    top = ax.secondary_xaxis("top")
    at, labels = [], []
    for start, end, _, n in line.phases:
        ax.axvline(start, color="black", linewidth=0.6, linestyle=":")
        if (middle := (start + end) / 2) - last >= room:
            at.append(middle)
            labels.append(_short(n))
            last = int(middle)
    top.set_xticks(at, labels, fontsize=8)
    top.tick_params(length=0)
    top.set_xlabel(f"trainable parameters of {_short(line.total)}", fontsize=8)


def _legend(ax: Axes, line: Timeline, looks: dict[str, dict[str, Any]]) -> None:
    from matplotlib.patches import Patch

    names = {"trains": "trains", "partly": "trains in part", "frozen": "frozen"}
    used = [s for s in names if any(bar.state == s for _, bars in line.parts for bar in bars)]
    handles = [Patch(**looks[s], label=names[s]) for s in used]
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False
    )


def _bar(
    resolved: ResolvedSchedule, start: int, end: int, phase: ResolvedPhase, ids: set[int]
) -> Bar:
    trained = phase.ids & ids
    state = "frozen" if not trained else "trains" if trained == ids else "partly"
    rates = sorted({phase.rates[i] for i in trained if i in phase.rates}, reverse=True)
    text = "/".join(f"{rate:.3g}" for rate in rates)
    if trained and (rule := resolved.schedule.annealing) is not None:
        factors = sorted({resolved.first_factor(rule, i) for i in trained}, reverse=True)
        text = "/".join(f"x{factor:.3g}" for factor in factors) + " to 0"
    return Bar(start, end, state, text)


def _merged(bars: list[Bar]) -> Iterator[Bar]:
    """The bars, with equal neighbours merged."""
    present = bars[0]
    for bar in bars[1:]:
        if (bar.state, bar.rates) == (present.state, present.rates):
            present = Bar(present.start, bar.end, bar.state, bar.rates)
        else:
            yield present
            present = bar
    yield present


def _mark(bars: tuple[Bar, ...], at: int) -> str:
    state = next(bar.state for bar in bars if bar.start <= at < bar.end)
    return {"trains": _TRAINS, "partly": _PARTLY, "frozen": _FROZEN}[state]


def _spans(bars: tuple[Bar, ...], length: int) -> str:
    trained = [bar for bar in bars if bar.state != "frozen"]
    if not trained:
        return "never"
    return ", ".join(
        _span(bar.start, bar.end, length) + (f" (lr {bar.rates})" if bar.rates else "")
        for bar in trained
    )


def _span(start: int, end: int, length: int) -> str:
    if end == length:
        return f"from {start}"
    return f"{start}" if end == start + 1 else f"{start}-{end - 1}"


def _targets(phase: ResolvedPhase) -> str:
    warmup = f" (warm-up {phase.phase.warmup} steps)" if phase.phase.warmup else ""
    return ", ".join(phase.phase.train) + warmup


def _short(n: int) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g}{letter}"
    return str(n)
