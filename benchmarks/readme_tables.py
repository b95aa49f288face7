"""Writes the tables of README.md and of guides from the saved results, between their markers.

    python benchmarks/readme_tables.py           # rewrites them
    python benchmarks/readme_tables.py --check   # exit status 1 if one of them says something else

The markers are `<!-- benchmarks:speed -->` and `<!-- /benchmarks:speed -->`, and the same with the
other names in PAGES. Every row that was measured is printed, the slower ones too.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cases import EVERY, FLOOR_CASE, FORMS, FORWARD
from console_tables import milliseconds
from machine import in_words
from others import MODES
from run_summary import run_verdicts, totals
from speed import RESULTS, ROOT
from summary import Row, all_rows, equality, shape_of, verdicts
from whole_runs import BASELINE

README, DOCS = ROOT / "README.md", ROOT / "docs"


def speed_means(results: dict[str, Any]) -> str:
    """Where it was measured, and means over the shapes against targets."""
    rows = results["rows"]
    measured = equality(all_rows(results))
    where = f"{in_words(results['machine'])}. {measured}"
    return f"{where}\n\n{_targets(rows, results.get('seed'))}"


def speed_tables(results: dict[str, Any]) -> str:
    """Means against targets, then every shape and case, then memory."""
    rows = results["rows"]
    parts = [speed_means(results)]
    for form in FORMS:
        parts += [
            f"Each shape, {form}: nn.LSTM's time / BiLSTM's, the median over pairs of calls (in "
            f"brackets the median milliseconds of each, which need not have just that ratio); the "
            f"last column is training ({FLOOR_CASE}): nn.LSTM's and BiLSTM's time / GEMM floor.",
            _shapes([row for row in rows if row["form"] == form]),
        ]
    if results["small"]:
        parts += [
            "Small calls, where the fixed cost of a call is nearly all: the same numbers.",
            _small(results["small"]),
        ]
    if results["memory"]:
        parts += ["Peak memory of a call, MB, nn.LSTM / BiLSTM.", _memory(results["memory"])]
    if results["tracing"]:
        parts += ["Compiling and exporting BiLSTM.", _tracing(results["tracing"])]
    return "\n\n".join(parts)


def run_seconds(results: dict[str, Any]) -> str:
    """Whole runs: how and where they were measured, and seconds of each arm."""
    runs, sizes = results["runs"], results["sizes"]
    peaks = {row["arm"]: f"{row['peak_mb']:.0f}" for row in results["memory"]}
    by_arm = {run["arm"]: run for run in runs}
    seconds = totals(runs)
    epochs = {run["plan"]: len(run["epoch_s"]) for run in runs}
    header = [f"{plan} ({count} epochs)" for plan, count in epochs.items()]
    lines = []
    for arm in by_arm:
        cells = [
            f"{of[arm]:.1f} s ({of[BASELINE] / of[arm]:.2f}x)" if arm in of else ""
            for of in seconds.values()
        ]
        lines.append([arm, *cells, peaks.get(arm, "")])
    size = ", ".join(f"{name}={value}" for name, value in list(sizes.items())[:4])
    return "\n\n".join(
        [
            f"3-layer encoder, {size}, {sizes['batches']} batches an epoch. "
            f"Runs of each kind: {results['runs'][0]['repeats']}, of each epoch their median. "
            f"{in_words(results['machine'])}.",
            _markdown(["", *header, "peak MB"], lines),
        ]
    )


def run_tables(results: dict[str, Any]) -> str:
    """Whole runs: seconds of each arm; then against the targets; then how they ended."""
    runs = results["runs"]
    by_arm = {run["arm"]: run for run in runs}
    targets = [
        [v.name, v.arm, f"{v.ratio:.2f}", f">= {v.target:g}", v.word] for v in run_verdicts(runs)
    ]
    ends = [
        [
            plan,
            *(f"{run['loss']:.5f}, {run['accuracy']:.3f}" for run in runs if run["plan"] == plan),
        ]
        for plan in totals(runs)
    ]
    return "\n\n".join(
        [
            run_seconds(results),
            _markdown(["", "arm", f"{BASELINE}'s time / this", "target", ""], targets),
            "Loss and accuracy on held-out data at the end.",
            _markdown(["", *by_arm], ends),
        ]
    )


def replaced(text: str, name: str, body: str) -> str:
    """The text with `body` between the markers of `name`.

    Raises:
        ValueError: The markers are not there, once each and in order.
    """
    begin, end = f"<!-- benchmarks:{name} -->", f"<!-- /benchmarks:{name} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the text must hold {begin} and then {end}, once each")
    pattern = re.compile(re.escape(begin) + ".*" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n\n{body}\n\n{end}", text)


def peer_table(results: dict[str, Any]) -> str:
    """One row a question, one column a library."""
    header = ["", *(f"{name} {version}" for name, version in results["versions"].items())]
    lines = []
    for row in results["rows"]:
        answers = row["answers"].values()
        cells = [f"**{'yes' if a['right'] else 'no'}**: {a['seen']}" for a in answers]
        lines.append([row["question"], *cells])
    return _markdown(header, lines, numbers=False)


def communication_table(results: dict[str, Any]) -> str:
    """Bytes sent by phase; then times and our shares."""
    sent = [
        [
            f"{row['phase']}",
            f"{row['trainable']:,}",
            f"{row['alone_bytes'] / 1e3:,.1f}",
            f"{row['bytes'] / 1e3:,.1f}",
            f"**{1 - row['bytes'] / row['alone_bytes']:.2%}**",
        ]
        for row in results["rows"]
    ]
    times = [
        [
            f"{row['phase']}",
            f"{row['alone_ms']:.0f}",
            f"{row['ms']:.0f}",
            _share(row["scheduler"]),
            _share(row["guard"]),
        ]
        for row in results["rows"]
    ]
    size = ", ".join(f"{name}={value}" for name, value in list(results["sizes"].items())[:5])
    caption = f"{results['ranks']} processes, {size}. {in_words(results['machine'])}."
    of_bytes = ["phase", "parameters that train", "kB, DDP alone", "kB, with the schedule", "saved"]
    of_times = ["phase", "ms a step, DDP alone", "with the schedule", "scheduler", "guard"]
    return "\n\n".join([caption, _markdown(of_bytes, sent), _markdown(of_times, times)])


def sample_tables(results: dict[str, Any] | None) -> str:
    """Means over random shapes of the grid, then each of them; or that there are none yet."""
    if results is None:
        return "Not measured yet: `python benchmarks/speed.py --sample 24 --seed 7` makes it."
    drawn = f"{len({shape_of(row) for row in results['rows']})} shapes, seed {results['seed']}."
    return f"{drawn}\n\n{speed_tables(results)}"


def others_table(results: dict[str, Any] | None) -> str:
    """One row a shape and system: milliseconds of both calls."""
    if results is None:
        return "Not measured yet: `python benchmarks/others.py` makes it."
    rows = results["rows"]
    lines = [
        [
            shape_of(row) if row["system"] == rows[0]["system"] else "",
            row["system"],
            *(milliseconds(row["ms"][mode]) if mode in row["ms"] else "n/a" for mode in MODES),
            row.get("missing") or f"{row['difference']:.0e}",
        ]
        for row in rows
    ]
    versions = dict.fromkeys(row["version"] for row in rows if "version" in row)
    where = f"{in_words(results['machine'])}; {', '.join(versions)}. Rounds: {results['rounds']}."
    header = ["B, T, I, H, L", "", *(f"{mode}, ms" for mode in MODES), "from nn.LSTM's output"]
    return f"{where}\n\n{_markdown(header, lines)}"


def cuda_tables(results: dict[str, Any] | None) -> str:
    """The table beside cuDNN, or that there is none yet."""
    if results is None:
        return "No table beside cuDNN has been measured: no GPU could be had. `make gpu` makes it."
    return speed_tables(results)


def lora_tables(results: dict[str, Any]) -> str:
    """What LoRA costs beside training everything and the biases only."""
    rows = results["rows"]
    ways = list(rows[0]["ms"])
    lines = [
        [
            ", ".join(map(str, row["shape"])),
            " / ".join(f"{row['ms'][way]:.0f}" for way in ways),
            *(f"{found['median']:.2f}" for found in row["lora_over_biases"].values()),
            " / ".join("" if (mb := row["peak_mb"][way]) is None else f"{mb:.0f}" for way in ways),
            " / ".join(f"{row['optimizer_mb'][way]:.2f}" for way in ways),
        ]
        for row in rows
    ]
    each = " / ".join(ways)
    header = ["B, T, I, H, L", "ms a step", "LoRA / biases, dense", "packed", "peak MB"]
    return "\n\n".join(
        [
            f"Each cell with three numbers: {each}. {in_words(results['machine'])}.",
            _markdown([*header, "AdamW keeps, MB"], lines),
        ]
    )


Page = tuple[tuple[str, str, Callable[[Any], str]], ...]
"""What a page has between markers: the name of the marker, the saved results, and the tables."""

PAGES: dict[Path, Page] = {
    README: (
        ("speed", "speed.json", speed_means),
        ("runs", "gradual_run.json", run_seconds),
    ),
    DOCS / "performance.md": (
        ("speed", "speed.json", speed_tables),
        ("runs", "gradual_run.json", run_tables),
        ("sample", "sample/speed.json", sample_tables),
        ("others", "others.json", others_table),
        ("cuda", "cuda/speed.json", cuda_tables),
    ),
    DOCS / "between.md": (("lora", "between.json", lora_tables),),
    DOCS / "distributed.md": (
        ("peers", "peers.json", peer_table),
        ("communication", "communication.json", communication_table),
    ),
}


def generated(text: str, page: Path = README, results: Path = RESULTS) -> str:
    """The text of a page with the tables of the saved results."""
    for name, file, tables in PAGES[page]:
        path = results / file
        found = json.loads(path.read_text()) if path.exists() else None
        text = replaced(text, name, tables(found))
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrites, or checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args(argv).check
    differs = False
    for page in PAGES:
        before = page.read_text()
        after = generated(before, page)
        differs = differs or before != after
        if not check:
            page.write_text(after)
    return int(check and differs)


def _targets(rows: Sequence[Row], seed: int | None = None) -> str:
    lines = [
        [
            v.case,
            f"**{v.value:.2f}**",
            f"{v.least:.2f} to {v.most:.2f}",
            v.target,
            v.word,
        ]
        for v in verdicts(rows, sampled=seed is not None)
    ]
    return _markdown(["", "geometric mean", "over the shapes", "target", ""], lines)


def _shapes(rows: Sequence[Row]) -> str:
    found = {(shape_of(row), row["case"]): row for row in rows}
    cases = [case for case in EVERY if any(case == row["case"] for row in rows)]
    lines = []
    for shape in dict.fromkeys(shape_of(row) for row in rows):
        cells = [_cell(found.get((shape, case))) for case in cases]
        trained = found.get((shape, FLOOR_CASE))
        floor = f"{trained['nn_over_floor']:.2f}, {trained['over_floor']:.2f}" if trained else ""
        lines.append([shape, *cells, floor])
    return _markdown(["B, T, I, H, L", *cases, "/ floor"], lines)


def _small(rows: Sequence[Row]) -> str:
    found = {(shape_of(row), row["form"], row["case"]): row for row in rows}
    columns = list(dict.fromkeys((row["form"], row["case"]) for row in rows))
    shapes = dict.fromkeys(shape_of(row) for row in rows)
    lines = [[shape, *(_cell(found[shape, f, c]) for f, c in columns)] for shape in shapes]
    return _markdown(["B, T, I, H, L", *(", ".join(column) for column in columns)], lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return "n/a"
    times = " / ".join(milliseconds(row[key]) for key in ("nn_ms", "bilstm_ms"))
    return f"**{row['ratio']:.2f}** ({times})"


def _memory(rows: Iterable[Row]) -> str:
    found = {(shape_of(row), row["form"]): row for row in rows}
    lines = []
    for shape in dict.fromkeys(shape for shape, _ in found):
        cells = [
            f"{found[shape, form]['nn'][mode]:.0f} / {found[shape, form]['bilstm'][mode]:.0f}"
            for form in FORMS
            for mode in ("forward", "training")
        ]
        lines.append([shape, *cells])
    modes = [f"{form}, {mode}" for form in FORMS for mode in (FORWARD, "training")]
    return _markdown(["B, T, I, H, L", *modes], lines)


def _tracing(rows: Sequence[Row]) -> str:
    lines = [
        ["torch.compile (aot_eager), s", *(f"{row['compile_s']:.2f}" for row in rows)],
        ["torch.export, s", *(f"{row['export_s']:.2f}" for row in rows)],
        ["nodes of the exported graph", *(str(row["nodes"]) for row in rows)],
    ]
    return _markdown(["", *(f"T={row['T']}" for row in rows)], lines)


def _share(share: float) -> str:
    return f"{share:.2%}" if share >= 1e-4 else "< 0.01%"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    aligned = ["---", *["---:" if numbers else "---"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, aligned, *rows))


if __name__ == "__main__":
    sys.exit(main())
