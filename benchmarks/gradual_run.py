"""Whole fine-tuning runs: nn.LSTM with Lightning's BaseFinetuning, and what this library has.

    python benchmarks/gradual_run.py            # all runs; writes benchmarks/results
    python benchmarks/gradual_run.py --quick    # tiny, seconds; writes out/benchmarks

A 3-layer bidirectional encoder (B=32, T<=96, I=128, H=256) on packed sequences of varying length:
ULMFiT's gradual unfreezing (one epoch a phase, then five of everything: 8 epochs), the same with
five epochs a phase (20), and linear probing for 10 epochs, then fine-tuning for 2 (LP-FT). Each arm
begins with the same weights, reads the same batches in the same order and must end with the same
loss on held-out data; the arms take turns, an epoch each. The seconds are those of the training
epochs, all callbacks included; the scheduler runs as users get it, with its check of the frozen
weights after every step. The batches are packed beforehand, so loading them costs nothing. The exit
status is 1 if losses differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import figures
import torch
from console_tables import console, run_table, run_targets
from machine import in_words, machine
from peak_memory import PeakMemory
from rich.progress import Progress, track
from run_summary import different, run_verdicts
from speed import RESULTS, SCRATCH
from turns import Arms, quieten
from whole_runs import ARMS, PLANS, QUICK_SIZES, ULMFIT, Plan, Sizes, model_of, train


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All runs: in each plan the arms take turns, after a short run of each to warm up."""
    sizes = QUICK_SIZES if args.quick else Sizes()
    plans = [_shortened(plan) if args.quick else plan for plan in PLANS if plan.name in args.plans]
    arms = Arms()
    runs: list[dict[str, Any]] = []
    with Progress(transient=True) as progress:
        epochs = args.repeats * len(ARMS) * sum(plan.epochs for plan in plans)
        task = progress.add_task("epochs", total=epochs)
        for plan in plans * args.repeats:
            runs += arms.train(plan, sizes, lambda: progress.advance(task))
    peaks = [
        {"arm": arm, "peak_mb": peak_megabytes(arm, args.quick)}
        for arm in track(ARMS, "memory", transient=True)
    ]
    return {
        "machine": machine(),
        "quick": args.quick,
        "sizes": sizes._asdict(),
        "runs": merged(runs),
        "memory": [peak for peak in peaks if peak["peak_mb"] is not None],
    }


def merged(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Repeats of the same run as one, with the median of each epoch's seconds."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in runs:
        found.setdefault((each["plan"], each["arm"]), []).append(each)
    return [
        repeats[0]
        | {
            "epoch_s": list(
                map(statistics.median, zip(*(r["epoch_s"] for r in repeats), strict=True))
            ),
            "repeats": len(repeats),
        }
        for repeats in found.values()
    ]


def peak_megabytes(arm: str, quick: bool) -> float | None:
    """MB above what was resident before, in a fresh process: one epoch a phase, then all of it."""
    if not PeakMemory.available():
        return None
    threads = ["--threads", str(torch.get_num_threads())]
    command = [sys.executable, __file__, "--peak-of", arm, *threads]
    command += ["--quick"] if quick else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def _print_peak(arm: str, sizes: Sizes) -> None:
    plan = ULMFIT._replace(epochs=4)
    train(arm, plan, QUICK_SIZES)
    model = model_of(arm, sizes)
    peak = PeakMemory()
    train(arm, plan, sizes, model)
    print(peak.megabytes())


def save(results: dict[str, Any], out: Path) -> list[Path]:
    """Writes the results and the figure."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "gradual_run.json", out / "gradual_run.png"]
    paths[0].write_text(json.dumps(results, indent=1) + "\n")
    figures.save_runs(results["runs"], paths[1])
    return paths


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; anything less than everything is saved apart from the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [plan.name for plan in PLANS]
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few epochs")
    parser.add_argument("--plans", nargs="+", choices=names, default=names, metavar="PLAN")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each kind")
    parser.add_argument("--out", type=Path, help="folder for gradual_run.json and the figure")
    parser.add_argument("--peak-of", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.out = args.out or (SCRATCH if args.quick or args.plans != names else RESULTS)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, prints and saves; returns the exit status."""
    args = parse(argv)
    with warnings.catch_warnings():
        quieten()
        if args.peak_of:
            torch.set_num_threads(args.threads)
            _print_peak(args.peak_of, QUICK_SIZES if args.quick else Sizes())
            return 0
        results = run(args)
    screen = console()
    screen.print(in_words(results["machine"]))
    screen.print(run_table(results))
    screen.print(run_targets(run_verdicts(results["runs"])))
    for path in save(results, args.out):
        screen.print(f"wrote {path}")
    wrong = different(results["runs"])
    for each in wrong:
        screen.print(f"[bold red]LOSS DIFFERS[/]: {each['plan']}, {each['arm']}: {each['loss']}")
    return 1 if wrong else 0


def _shortened(plan: Plan) -> Plan:
    return plan._replace(epochs=max(plan.phases) + 1)


if __name__ == "__main__":
    sys.exit(main())
