"""BiLSTM beside nn.LSTM: times, memory, growth, and whether the results are the same.

    python benchmarks/speed.py                  # everything, 13 minutes; writes benchmarks/results
    python benchmarks/speed.py --quick          # tiny shapes, seconds; writes out/benchmarks
    python benchmarks/speed.py --cases "forward only" "biases only" --shapes 32,128,256,256,2
    python benchmarks/speed.py --sample 24 --seed 7   # shapes nobody tuned for, drawn by the seed
    python benchmarks/speed.py --device cuda    # beside cuDNN; writes benchmarks/results/cuda

Both sides run in turn in this process, on the same random input, with equal weights and equal
requires_grad flags; the input needs no gradient. Beside each time stands the GEMM floor: the matrix
products that must be done, at the rate measured in this run (see gemm_floor.py). The exit status is
1 if any results differ by more than the tolerances.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import figures
import torch
from cases import (
    CASES,
    EVERY,
    FLOOR_CASE,
    FORMS,
    FORWARD,
    QUICK_SHAPES,
    SAMPLE_CASES,
    SHAPES,
    SMALL_SHAPES,
    Shape,
    applies,
    batch_sizes_of,
    input_of,
    sample_of_grid,
    twins,
)
from console_tables import all_tables, console
from gemm_floor import Gemm, operations, products
from machine import machine
from peak_memory import SIDES, peak_megabytes
from rich.progress import Progress
from side_by_side import compare, sides, time_pairs
from summary import Row, all_rows, different
from tracing import LENGTHS, QUICK_LENGTHS, traces

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SCRATCH = ROOT / "out" / "benchmarks"
DEVICE_FOLDERS = {"cpu": ".", "cuda": "cuda"}

GROWTH = {
    "T": [Shape(16, t, 128, 128, 2) for t in (16, 32, 64, 128, 256, 512)],
    "B": [Shape(b, 64, 128, 128, 2) for b in (1, 4, 16, 64, 128)],
    "H": [Shape(16, 64, 128, h, 2) for h in (32, 64, 128, 256, 512)],
    "L": [Shape(16, 64, 128, 128, layers) for layers in (1, 2, 4, 8)],
}
QUICK_GROWTH = {
    size: [Shape(2, 4, 8, 8, 1), Shape(2, 4, 8, 8, 1)._replace(**{size: 12})] for size in GROWTH
}
_ROW_SECONDS = 3.0
_GROWTH_SECONDS = 0.7


def measure(shape: Shape, form: str, case: str, gemm: Gemm, seconds: float) -> Row:
    """One row: both times, how they compare, the floor, and the differences of the results."""
    modules = twins(shape, case, gemm.device)
    input = input_of(shape, form, gemm.device)
    first, second = sides(modules, input, train=case != FORWARD)
    difference = compare(first, second)
    timing = time_pairs(first, second, seconds)
    needed = products(modules[1], batch_sizes_of(shape, form), training=case != FORWARD)
    floor = gemm.seconds(needed)
    return {
        "shape": list(shape),
        "form": form,
        "case": case,
        "nn_ms": timing.first * 1e3,
        "bilstm_ms": timing.second * 1e3,
        "ratio": timing.ratio,
        "ratio_lower": timing.lower,
        "ratio_upper": timing.upper,
        "pairs": timing.pairs,
        "gflop": operations(needed) / 1e9,
        "floor_ms": floor * 1e3,
        "nn_over_floor": timing.first / floor,
        "over_floor": timing.second / floor,
        "output_difference": difference.output,
        "gradient_difference": difference.gradient,
        "equal": difference.equal,
    }


def measure_memory(shape: Shape, form: str) -> Row | None:
    """Peak memory of a forward call and of a training step, on the CPU."""
    peaks = [peak_megabytes(shape, form, side) for side in SIDES]
    if None in peaks:
        return None
    return {"shape": list(shape), "form": form, "nn": peaks[0], "bilstm": peaks[1]}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures all that was asked for."""
    gemm = Gemm(args.device)
    seconds = 0.02 if args.quick else _ROW_SECONDS
    steps = [(f, c, s) for f in FORMS for c in args.cases for s in args.shapes if applies(c, s)]
    growth = QUICK_GROWTH if args.quick else GROWTH
    grown = [(k, s, f) for k, shapes in growth.items() for s in shapes for f in FORMS]
    grown = grown if "growth" in args.parts else []
    held = args.shapes[:1] if args.quick else args.shapes
    held = [(s, f) for s in held for f in FORMS] if "memory" in args.parts else []
    results: dict[str, Any] = {"machine": machine(args.device), "quick": args.quick}
    results["seed"] = args.seed
    with Progress(transient=True) as progress:
        if "times" in args.parts:
            track = progress.track(steps, description="times")
            results["rows"] = [measure(s, f, c, gemm, seconds) for f, c, s in track]
        small = [(f, c, s) for f in FORMS for c in SAMPLE_CASES for s in SMALL_SHAPES]
        track = progress.track(small if "small" in args.parts else [], description="small calls")
        results["small"] = [
            measure(s, f, c, gemm, min(seconds, _GROWTH_SECONDS)) for f, c, s in track
        ]
        track = progress.track(grown, description="growth")
        results["growth"] = [
            {"varied": size, **measure(s, f, FLOOR_CASE, gemm, min(seconds, _GROWTH_SECONDS))}
            for size, s, f in track
        ]
        track = progress.track(held, description="memory")
        measured = [measure_memory(s, f) for s, f in track]
    results.setdefault("rows", [])
    results["memory"] = [row for row in measured if row is not None]
    lengths = QUICK_LENGTHS if args.quick else LENGTHS
    results["tracing"] = traces(lengths) if "tracing" in args.parts else []
    results["gemm_peak_gflops"] = gemm.peak / 1e9
    return results


def save(results: dict[str, Any], out: Path) -> list[Path]:
    """Writes the results, and a figure of each part that was measured."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "speed.json"]
    paths[0].write_text(json.dumps(results, indent=1) + "\n")
    if results["rows"]:
        paths.append(out / "speed.png")
        figures.save_ratios(results["rows"], paths[-1], sampled=results["seed"] is not None)
    if results["growth"]:
        paths.append(out / "growth.png")
        figures.save_growth(results["growth"], paths[-1])
    return paths


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; anything less than everything is saved apart from the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny shapes and few repetitions")
    parser.add_argument("--shapes", nargs="+", type=_shape, metavar="B,T,I,H,L")
    parser.add_argument("--sample", type=int, metavar="N", help="N random shapes of the grid")
    parser.add_argument("--seed", type=int, help="the seed that draws them; needed with --sample")
    parser.add_argument("--cases", nargs="+", choices=EVERY, metavar="CASE", help=", ".join(EVERY))
    parts = ("times", "small", "growth", "memory", "tracing")
    parser.add_argument("--parts", nargs="+", choices=parts, default=None)
    parser.add_argument(
        "--device", default="cpu", choices=DEVICE_FOLDERS, help="memory is the CPU's only"
    )
    parser.add_argument("--out", type=Path, help="folder for speed.json and the figures")
    args = parser.parse_args(argv)
    if (args.sample is None) != (args.seed is None) or (args.sample and args.shapes):
        parser.error("--sample and --seed go together, without --shapes")
    partial = args.quick or args.shapes or args.cases or args.parts
    args.out = args.out or (SCRATCH if partial else RESULTS / _folder_of(args))
    if args.sample:
        args.shapes = sample_of_grid(args.sample, args.seed)
        args.cases, args.parts = args.cases or SAMPLE_CASES, args.parts or ["times"]
    args.shapes = args.shapes or (QUICK_SHAPES if args.quick else SHAPES)
    args.cases = args.cases or (CASES if args.device == "cpu" else EVERY)
    args.parts = args.parts or [part for part in parts if args.device == "cpu" or part != "memory"]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and saves; returns the exit status."""
    args = parse(argv)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    results = run(args)
    screen = console()
    screen.print(all_tables(results))
    for path in save(results, args.out):
        screen.print(f"wrote {path}")
    return 1 if different(all_rows(results)) else 0


def _folder_of(args: argparse.Namespace) -> str:
    return "sample" if args.sample else DEVICE_FOLDERS[args.device]


def _shape(text: str) -> Shape:
    try:
        return Shape(*map(int, text.split(",")))
    except (ValueError, TypeError):
        message = f"needs five whole numbers B,T,I,H,L, got {text!r}"
        raise argparse.ArgumentTypeError(message) from None


if __name__ == "__main__":
    sys.exit(main())
