"""BiLSTM beside other systems: the same weights and input, each system in a process of its own.

    pip install "lstm-freeze[others]"       # TensorFlow, JAX, ONNX Runtime, OpenVINO; Python 3.11
    python benchmarks/others.py             # writes benchmarks/results/others.json
    python benchmarks/others.py --quick     # tiny shapes, only to see that it runs

The processes take turns, one call each in every round, so that what slows the machine slows all;
while one works the others wait. Each first gives its output, which must be nn.LSTM's to rounding.
ONNX Runtime and OpenVINO only infer. A system that is not installed is a row that says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import multiprocessing
import statistics
import sys
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import Shape, twins
from console_tables import console, milliseconds
from machine import in_words, machine
from other_systems import NEEDS, SYSTEMS
from rich import box
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
SHAPES = (
    Shape(16, 200, 64, 64, 2),
    Shape(32, 64, 128, 128, 2),
    Shape(64, 40, 300, 300, 1),
    Shape(32, 128, 256, 256, 2),
    Shape(8, 512, 256, 512, 2),
)
QUICK_SHAPES = (Shape(3, 5, 4, 6, 2),)
MODES = ("forward", "training step")
TOLERANCE = 1e-4  # of outputs, which lie within 1; other systems' tanh and sigmoid are their own


def serve(connection: Connection, system: str, shape: Shape, threads: int) -> None:
    """Build one system's LSTM, give its output, and then a call's seconds at each request."""
    warnings.simplefilter("ignore")  # of the exporters of this process
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        torch.set_num_threads(threads)
        lstm, bilstm = twins(shape, "everything trainable")
        side = SYSTEMS[system](lstm, bilstm, input_of(shape), threads)
        modes = [mode for mode in MODES if mode in side.calls]
        connection.send((side.version, side.output(), modes))
    except Exception as error:  # reported as a row by the parent
        connection.send((f"{type(error).__name__}: {error}", None, []))
        return
    for mode in MODES:
        if mode in side.calls:
            side.timed(mode), side.timed(mode)  # the first compiles
    while (mode := _received(connection)) is not None:
        connection.send(side.timed(mode))


def input_of(shape: Shape) -> np.ndarray:
    """Random numbers, (T, B, I)."""
    draw = np.random.default_rng(2)
    return draw.standard_normal((shape.T, shape.B, shape.I), dtype=np.float32)


def measure(shape: Shape, rounds: int, threads: int) -> list[dict[str, Any]]:
    """One row a system: medians in milliseconds, and how far its output is from nn.LSTM's."""
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    rows: dict[str, dict[str, Any]] = {}
    expected: np.ndarray | None = None
    for system in SYSTEMS:
        row: dict[str, Any] = {"shape": list(shape), "system": system, "ms": {}}
        rows[system] = row
        if missing := [name for name in NEEDS[system] if importlib.util.find_spec(name) is None]:
            row["missing"] = f"not installed: {', '.join(missing)}"
            continue
        ours, theirs = context.Pipe()
        arguments = (theirs, system, shape, threads)
        context.Process(target=serve, args=arguments, daemon=True).start()
        theirs.close()
        row["version"], output, modes = ours.recv()
        if output is None:
            row["missing"] = row.pop("version")
            continue
        expected = output if expected is None else expected  # nn.LSTM is the first
        row["difference"] = float(np.abs(output - expected).max())
        row["ms"] = {mode: [] for mode in modes}
        connections[system] = ours
    for _ in range(rounds):
        for system, connection in connections.items():
            for mode, found in rows[system]["ms"].items():
                connection.send(mode)
                found.append(1e3 * connection.recv())
    for row in rows.values():
        row["ms"] = {mode: statistics.median(found) for mode, found in row["ms"].items()}
    for connection in connections.values():
        connection.close()
    return list(rows.values())


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line a shape and system."""
    made = Table(title="ms a call", box=box.SIMPLE)
    for name in ("B, T, I, H, L", "system", *MODES, "from nn.LSTM's output"):
        made.add_column(name, justify="left" if name in ("B, T, I, H, L", "system") else "right")
    shape = None
    for row in rows:
        first = row["shape"] != shape
        shape = row["shape"]
        cells = [milliseconds(row["ms"][mode]) if mode in row["ms"] else "" for mode in MODES]
        last = row.get("missing") or f"{row['difference']:.0e}"
        made.add_row(", ".join(map(str, shape)) if first else "", row["system"], *cells, last)
    return made


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny shapes and few rounds")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    folder = ROOT / ("out/benchmarks" if args.quick else "benchmarks/results")
    args.out = args.out or folder / "others.json"
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and saves; 1 if a system's output is not nn.LSTM's."""
    args = parse(argv)
    threads = torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    with Progress(transient=True) as progress:
        shapes = QUICK_SHAPES if args.quick else SHAPES
        for shape in progress.track(shapes, description="shapes"):
            rows += measure(shape, 2 if args.quick else args.rounds, threads)
    results = {"machine": machine(), "rounds": args.rounds, "rows": rows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    screen = console()
    screen.print(in_words(results["machine"]), table(rows), f"wrote {args.out}")
    return int(any(row.get("difference", 0.0) > TOLERANCE for row in rows))


def _received(connection: Connection) -> str | None:
    try:
        found: str = connection.recv()
    except EOFError:  # nobody asks any more
        return None
    return found


if __name__ == "__main__":
    sys.exit(main())
