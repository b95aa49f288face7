"""What `lengths=` costs: beside a packed call of the same rows, and beside packing by hand.

    python benchmarks/padded.py            # 10 minutes
    python benchmarks/padded.py --quick    # seconds, only to see that it runs

One BiLSTM gets the same sequences three times: as a PackedSequence made beforehand, as a padded
batch that is packed, run and padded again by hand, and as a padded batch with `lengths=`. The calls
take turns in one process; printed are medians of pairwise ratios of times, with quartiles. The
command fails if a result differs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from cases import FORWARD, QUICK_SHAPES, SHAPES, Shape, lengths_of, twins
from console_tables import console, milliseconds
from machine import in_words, machine
from rich import box
from rich.progress import track
from rich.table import Table
from side_by_side import OUTPUT_TOLERANCE, Timing, time_pairs
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lstm_freeze import BiLSTM

TARGET = 1.1  # times the packed call
TRAINING = "everything trainable"
INPUT_TOO = "everything trainable, and the input"
CASES = (FORWARD, TRAINING, INPUT_TOO)


class Call:
    """One way to hand over the sequences; a training step where the module trains."""

    def __init__(self, run: Callable[[], Tensor], lstm: BiLSTM, input: Tensor) -> None:
        """`run` gives the output, packed or padded."""
        self.run, self.lstm, self.input = run, lstm, input
        output = self.run().detach()
        generator = torch.Generator().manual_seed(3)
        self._cotangent = torch.randn(output.shape, generator=generator)

    def __call__(self) -> Tensor:
        """Forward, and in training backward."""
        if not self.lstm.training:
            with torch.no_grad():
                return self.run()
        output = self.run()
        output.backward(self._cotangent)
        return output

    def timed(self) -> float:
        """Seconds of one call from cleared gradients."""
        self.lstm.zero_grad(set_to_none=True)
        self.input.grad = None
        start = time.perf_counter()
        self()
        return time.perf_counter() - start


class Row(NamedTuple):
    """One shape and case: `lengths=` beside a packed call, and beside packing by hand."""

    shape: Shape
    case: str
    packed: Timing
    by_hand: Timing
    difference: float


def measure(shape: Shape, case: str, seconds: float) -> Row:
    """Both ratios of times, and the largest difference of the outputs."""
    _, lstm = twins(shape, FORWARD if case == FORWARD else TRAINING)
    generator = torch.Generator().manual_seed(2)
    input = torch.randn(shape.T, shape.B, shape.I, generator=generator)
    input.requires_grad_(case == INPUT_TOO)
    order = torch.randperm(shape.B, generator=generator)
    lengths = torch.tensor(lengths_of(shape))[order]

    def pack() -> PackedSequence:
        return pack_padded_sequence(input, lengths, enforce_sorted=False)

    def by_hand() -> Tensor:
        return pad_packed_sequence(lstm(pack())[0], total_length=shape.T)[0]

    ready = pack()
    data = ready.data.detach().requires_grad_(case == INPUT_TOO)
    ready = ready._replace(data=data)
    given = Call(lambda: lstm(input, lengths=lengths)[0], lstm, input)
    others = [
        Call(lambda: lstm(ready)[0].data, lstm, data),
        Call(by_hand, lstm, input),
    ]
    difference = (given() - others[1]()).abs().max().item()
    packed, hand = (time_pairs(given, other, seconds) for other in others)
    return Row(shape, case, packed, hand, difference)


def table(rows: Sequence[Row]) -> Table:
    """One line a case and shape."""
    columns = ("B, T, I, H, L", "packed, ms", "lengths=, ms", "times packed", "quartiles")
    title = f"a padded batch with lengths= beside a packed call of the same rows (<= {TARGET})"
    found = Table(*columns, "times by hand", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for case in CASES:
        found.add_section()
        found.add_row(f"[bold]{case}")
        for row in (row for row in rows if row.case == case):
            style = "bold red" if row.packed.ratio > TARGET else "bold"
            found.add_row(
                ", ".join(map(str, row.shape)),
                milliseconds(row.packed.second * 1e3),
                milliseconds(row.packed.first * 1e3),
                f"[{style}]{row.packed.ratio:.2f}",
                f"{row.packed.lower:.2f}-{row.packed.upper:.2f}",
                f"{row.by_hand.ratio:.2f}",
            )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    options = parser.parse_args(argv)
    shapes, seconds = (QUICK_SHAPES, 0.02) if options.quick else (SHAPES, 8.0)
    cases = [(shape, case) for case in CASES for shape in shapes]
    rows = [
        measure(shape, case, seconds)
        for shape, case in track(cases, description="times", transient=True)
    ]
    screen = console()
    screen.print(in_words(machine()))
    screen.print(table(rows))
    largest = max(row.difference for row in rows)
    screen.print(f"Largest difference of outputs: {largest:.1e} (at most {OUTPUT_TOLERANCE:.0e}).")
    return 0 if largest <= OUTPUT_TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
