"""What FrozenGuard costs: per GB, and as a share of a training step with 10 M frozen parameters.

    python benchmarks/guard_overhead.py            # a few minutes
    python benchmarks/guard_overhead.py --quick    # seconds, only to see that it runs

The share is the time of a check after each step, divided by the time of the same step without a
guard, step by step in turn in one process; the median of these ratios is printed with its
quartiles. A frozen weight is written at the end, to show that the guard that was timed looks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from machine import in_words, machine
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from lstm_freeze import BiLSTM, FrozenGuard, FrozenWeightsChanged, freeze
from lstm_freeze._guard.guard import MODES

TARGET = 0.02


class Case(NamedTuple):
    """A training step: B sequences of T tokens through an encoder and a head."""

    B: int
    T: int
    I: int
    H: int
    L: int
    frozen: slice

    @property
    def sizes(self) -> str:
        """As the table's heading lists them."""
        return f"{self.B}, {self.T}, {self.I}, {self.H}, {self.L}"


LOWER = slice(0, -1)
CASES = (
    # 10 M parameters in the two lower layers; the top layer and the head train.
    Case(64, 100, 400, 512, 3, LOWER),
    Case(16, 40, 400, 512, 3, LOWER),
    # All 16 M parameters of the encoder frozen, the head trains: the cheapest step there is.
    Case(64, 100, 400, 512, 3, slice(None)),
)
QUICK = (Case(4, 5, 8, 16, 2, LOWER),)


class Model(nn.Module):
    """A BiLSTM encoder and a linear head on the mean of its output."""

    def __init__(self, case: Case) -> None:
        """Freeze what the case says."""
        super().__init__()
        self.encoder = BiLSTM(case.I, case.H, num_layers=case.L, batch_first=True)
        self.head = nn.Linear(2 * case.H, 2)
        freeze(self, layers=case.frozen)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, I) -> (B, 2)."""
        output: torch.Tensor = self.encoder(tokens)[0]
        logits: torch.Tensor = self.head(output.mean(1))
        return logits


def milliseconds(call: Callable[[], object]) -> float:
    """The time of one call."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def per_gigabyte(megabytes: int, repeats: int) -> Table:
    """Check a single large tensor, and many small ones."""
    table = _table("a check, by size", "mode", "parameters", "MB", "ms", "ms per GB")
    count = megabytes * 250_000
    for pieces in (1, 16, 1000):
        model = nn.ParameterList(
            nn.Parameter(torch.randn(count // pieces), requires_grad=False) for _ in range(pieces)
        )
        for mode in MODES:
            guard = FrozenGuard(model, mode)
            guard.check()
            ms = statistics.median(milliseconds(guard.check) for _ in range(repeats))
            gigabytes = 4 * (count // pieces) * pieces / 1e9
            table.add_row(
                mode, f"{pieces:,}", f"{1e3 * gigabytes:.0f}", f"{ms:.2f}", f"{ms / gigabytes:.0f}"
            )
    return table


def shares(cases: tuple[Case, ...], steps: int) -> Table:
    """Train with AdamW; after each step, time a check of each mode."""
    table = _table(
        f"a check after each step, as a share of the step (target: {TARGET:.0%} at 10 M frozen)",
        *("B, T, I, H, L", "frozen", "step, ms", "mode", "check, ms", "share", "quartiles"),
    )
    for case in cases:
        torch.manual_seed(0)
        model = Model(case)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        tokens, labels = torch.randn(case.B, case.T, case.I), torch.randint(2, (case.B,))

        def step(
            model: nn.Module = model,
            optimizer: torch.optim.Optimizer = optimizer,
            tokens: torch.Tensor = tokens,
            labels: torch.Tensor = labels,
        ) -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(tokens), labels).backward()
            optimizer.step()

        guards = {mode: FrozenGuard(model, mode) for mode in MODES}
        step()
        times: dict[str, list[float]] = {"step": [], **{mode: [] for mode in MODES}}
        for _ in range(steps):
            times["step"].append(milliseconds(step))
            for mode, guard in guards.items():
                times[mode].append(milliseconds(guard.check))
        _show_that_they_look(model, guards)
        frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        for mode in MODES:
            ratios = [a / b for a, b in zip(times[mode], times["step"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            table.add_row(
                case.sizes,
                f"{frozen / 1e6:.1f} M",
                f"{statistics.median(times['step']):.1f}",
                mode,
                f"{statistics.median(times[mode]):.2f}",
                f"[bold]{middle:.2%}",
                f"{low:.2%}-{high:.2%}",
            )
    return table


def _show_that_they_look(model: nn.Module, guards: dict[str, FrozenGuard]) -> None:
    frozen = next(p for p in model.parameters() if not p.requires_grad)
    frozen.data.view(-1)[-1].mul_(-1)
    for mode, guard in guards.items():
        try:
            guard.check()
        except FrozenWeightsChanged:
            continue
        raise SystemExit(f"{mode}: a changed sign went unseen; the times above mean nothing")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--steps", type=int, default=21, help="training steps a case (default 21)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: as torch chooses)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console()
    console = console if console.width >= 100 else Console(width=100)
    console.print(in_words(machine()))
    steps = 3 if options.quick else options.steps
    console.print(per_gigabyte(1 if options.quick else 256, steps))
    console.print(shares(QUICK if options.quick else CASES, steps))


if __name__ == "__main__":
    main()
