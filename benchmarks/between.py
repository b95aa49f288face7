"""What LoRA costs beside full fine-tuning and biases only: time, memory, optimizer state, files.

    python benchmarks/between.py            # minutes; writes benchmarks/results/between.*
    python benchmarks/between.py --quick    # tiny shapes, seconds; writes out/benchmarks
    python benchmarks/between.py --files    # only the sizes of files, which no load disturbs; the
                                            # times that are there are kept

A pass is forward and backward, as in the speed table; a step is a pass and AdamW. All ways run in
turn in this process, on the same input with equal weights. A pass of LoRA (rank 8 on every weight
of the BiLSTM, biases frozen) is to take at most 1.05 times that of training the biases only, dense
and packed; the exit status is 1 where the geometric mean over the shapes of either is more. Peak
memory is that of a process of its own; see peak_memory.py.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from cases import FORMS, QUICK_SHAPES, SHAPES, Shape, input_of
from machine import in_words, machine
from peak_memory import PeakMemory
from side_by_side import sides
from summary import geometric_mean
from torch import nn

from lstm_freeze import BiLSTM, add_lora, fingerprints, freeze, save_changes, unfreeze

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SCRATCH = ROOT / "out" / "benchmarks"
RANK = 8
TARGET = 1.05
LONG_ROUND = 5.0  # seconds
FULL, BIASES, LORA = "everything", "biases only", f"LoRA, rank {RANK}"


def train_everything(module: nn.Module) -> None:
    """Leave all as it is."""


def train_biases(module: nn.Module) -> None:
    """Freeze the weights."""
    freeze(module, "*weight*")


def train_factors(module: nn.Module) -> None:
    """Freeze all, and train factors beside the weights."""
    freeze(module)
    add_lora(module, rank=RANK)


WAYS: dict[str, Callable[[nn.Module], None]] = {
    FULL: train_everything,
    BIASES: train_biases,
    LORA: train_factors,
}


class Stepper:
    """One way of training a BiLSTM, step by step."""

    def __init__(self, shape: Shape, way: str, form: str = "dense") -> None:
        """Build it; the weights are the same for every way."""
        torch.manual_seed(0)
        self.module = BiLSTM(shape.I, shape.H, shape.L)
        WAYS[way](self.module)
        (self.side,) = sides([self.module], input_of(shape, form), train=True)
        trained = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.numbers = sum(p.numel() for p in trained)

    def timed(self) -> tuple[float, float]:
        """Seconds of a pass and of a whole step."""
        self.module.zero_grad(set_to_none=True)
        start = time.perf_counter()
        self.side.run()
        passed = time.perf_counter() - start
        self.optimizer.step()
        return passed, time.perf_counter() - start

    def state_bytes(self) -> int:
        """What the optimizer keeps."""
        states = self.optimizer.state.values()
        return sum(t.nbytes for state in states for t in state.values() if torch.is_tensor(t))


def measure(shape: Shape, seconds: float) -> dict[str, Any]:
    """All ways on dense input, and on packed input the two that are compared."""
    dense = {way: Stepper(shape, way) for way in WAYS}
    packed = {way: Stepper(shape, way, "packed") for way in (BIASES, LORA)}
    passes, steps, rounds = in_turn(dense, seconds)
    passes_packed, _, _ = in_turn(packed, seconds)
    return {
        "shape": list(shape),
        "rounds": rounds,
        "ms": {way: statistics.median(found) * 1e3 for way, found in steps.items()},
        "lora_over_biases": {
            form: ratios_of(found)
            for form, found in zip(FORMS, (passes, passes_packed), strict=True)
        },
        "lora_over_biases_with_adamw": ratios_of(steps),
        "trainable": {way: stepper.numbers for way, stepper in dense.items()},
        "optimizer_mb": {way: stepper.state_bytes() / 1e6 for way, stepper in dense.items()},
        "peak_mb": {way: peak_megabytes(shape, way) for way in WAYS},
    }


Times = dict[str, list[float]]


def in_turn(steppers: dict[str, Stepper], seconds: float) -> tuple[Times, Times, int]:
    """Times of passes and of steps, in an order that turns round by round, and the rounds."""
    for stepper in steppers.values():
        stepper.timed()
    estimate = sum(stepper.timed()[1] for stepper in steppers.values())
    rounds = max(3 if estimate > LONG_ROUND else 5, min(41, int(seconds / estimate)))
    passes: Times = {way: [] for way in steppers}
    steps: Times = {way: [] for way in steppers}
    order = list(steppers)
    gc.disable()
    try:
        for _ in range(rounds):
            for way in order:
                passed, stepped = steppers[way].timed()
                passes[way].append(passed)
                steps[way].append(stepped)
            order = order[1:] + order[:1]
    finally:
        gc.enable()
    return passes, steps, rounds


def ratios_of(times: Times) -> dict[str, Any]:
    """The median and the quartiles of LoRA's time over that of biases only, round by round."""
    ratios = [a / b for a, b in zip(times[LORA], times[BIASES], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": median, "quartiles": [low, high]}


def peak_megabytes(shape: Shape, way: str) -> float | None:
    """The peak of steps above what was resident before, in a process of its own."""
    if not PeakMemory.available():
        return None
    threads = str(torch.get_num_threads())
    command = [sys.executable, __file__, "--peak", threads, way, *map(str, shape)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def print_peak(threads: str, way: str, *sizes: str) -> None:
    """Measure two steps, after a small one that loads the libraries.

    The first makes what the optimizer keeps, and the memory that BiLSTM keeps for the second.
    """
    torch.set_num_threads(int(threads))
    Stepper(QUICK_SHAPES[0], way).timed()
    stepper = Stepper(Shape(*map(int, sizes)), way)
    peak = PeakMemory()
    stepper.timed()
    stepper.timed()
    print(peak.megabytes())


# ---- files


class Encoder(nn.Module):
    """An encoder of 10 million parameters, and a head."""

    def __init__(self) -> None:
        """Build it; its initial values stand for pretrained ones."""
        super().__init__()
        self.embedding = nn.Embedding(8000, 300)
        self.lstm = BiLSTM(300, 350, num_layers=3)
        self.head = nn.Linear(700, 10)


def only_head(model: Encoder) -> None:
    """Train the head."""
    unfreeze(model, "head", only=True)


def only_top(model: Encoder) -> None:
    """Train the head and the top layer."""
    unfreeze(model, "head", "lstm[-1]", only=True)


def only_lora(model: Encoder) -> None:
    """Train the head, and factors beside all weights of the LSTM."""
    unfreeze(model, "head", only=True)
    add_lora(model, "lstm", rank=RANK)


KINDS: dict[str, Callable[[Encoder], None]] = {
    "full fine-tuning": lambda model: None,
    "head and top layer": only_top,
    f"head and LoRA, rank {RANK}": only_lora,
    "head only": only_head,
}


def file_sizes() -> list[dict[str, Any]]:
    """The file of each kind of fine-tuning; every trainable number has changed."""
    rows = []
    for name, choose in KINDS.items():
        torch.manual_seed(0)
        model = Encoder()
        base = fingerprints(model)
        choose(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        with torch.no_grad():
            for parameter in trained:
                parameter.add_(1e-3)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "changes.safetensors"
            save_changes(model, path, base)
            size = path.stat().st_size
        parameters = sum(p.numel() for p in model.parameters())
        rows.append(
            {
                "way": name,
                "parameters": parameters,
                "trainable": sum(p.numel() for p in trained),
                "file_mb": size / 1e6,
            }
        )
    return rows


# ---- results


def save_figure(
    rows: Sequence[dict[str, Any]], files: Sequence[dict[str, Any]], path: Path
) -> None:
    """Panels: numbers that train, megabytes saved and, where it was measured, a step's time."""
    panels = [
        ("million numbers that train", {r["way"]: r["trainable"] / 1e6 for r in files}),
        ("MB saved, float32", {r["way"]: r["file_mb"] for r in files}),
    ]
    if rows:
        shares = {w: [row["ms"][w] / row["ms"][FULL] for row in rows] for w in WAYS}
        means = {way: geometric_mean(found) for way, found in shares.items()}
        panels.append(("a step of a BiLSTM, full = 1", means))
    fig, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 2.3), layout="constrained")
    for ax, (label, values) in zip(axes, panels, strict=True):
        ax.barh(list(values), list(values.values()), color="#1f6fb4", height=0.6)
        ax.bar_label(ax.containers[0], fmt="{:.3g}", padding=3, fontsize=8)
        ax.set_xlabel(label)
        ax.set_xlim(0, max(values.values()) * 1.2)
        ax.invert_yaxis()
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def print_tables(results: dict[str, Any]) -> None:
    """What was measured, as plain text."""
    if results["machine"]:
        print(in_words(results["machine"]))
    for row in results["rows"]:
        times = ", ".join(f"{way} {ms:.1f} ms" for way, ms in row["ms"].items())
        peaks = ", ".join(
            f"{way} {mb:.0f} MB" for way, mb in row["peak_mb"].items() if mb is not None
        )
        ratios = ", ".join(
            f"{form} {found['median']:.3f} ({' to '.join(f'{q:.3f}' for q in found['quartiles'])})"
            for form, found in row["lora_over_biases"].items()
        )
        stepped = row["lora_over_biases_with_adamw"]["median"]
        print(f"{tuple(row['shape'])}: steps {times}; LoRA / biases {ratios}, "
              f"with AdamW {stepped:.3f}; peak: {peaks}")  # fmt: skip
    for row in results["files"]:
        print(f"{row['way']}: {row['trainable']:,} numbers train, {row['file_mb']:.2f} MB")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, save, print; 1 where LoRA's step is above the target."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes, for a test of the script"
    )
    parser.add_argument("--files", action="store_true", help="only the sizes of files")
    args = parser.parse_args(arguments)
    out = SCRATCH if args.quick else RESULTS
    out.mkdir(parents=True, exist_ok=True)
    path = out / "between.json"
    results: dict[str, Any] = {"machine": None, "rows": []}
    if args.files and path.exists():
        results = json.loads(path.read_text())
    if not args.files:
        shapes: Sequence[Shape] = QUICK_SHAPES if args.quick else SHAPES
        results["machine"] = machine()
        results["rows"] = [measure(shape, 0.05 if args.quick else 6.0) for shape in shapes]
    rows = results["rows"]
    results["files"] = file_sizes()
    path.write_text(json.dumps(results, indent=1) + "\n")
    save_figure(rows, results["files"], out / "between.png")
    print_tables(results)
    if args.quick or args.files or not rows:
        return 0
    missed = False
    for form in FORMS:
        mean = geometric_mean([row["lora_over_biases"][form]["median"] for row in rows])
        print(f"LoRA / biases, {form}, geometric mean: {mean:.3f} (target: at most {TARGET})")
        missed |= mean > TARGET
    return int(missed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print_peak(*sys.argv[2:])
    else:
        sys.exit(main())
