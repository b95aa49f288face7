"""What a PrefixCache costs where it never hits: its share of the forward pass.

    python benchmarks/cache_overhead.py            # 5 minutes
    python benchmarks/cache_overhead.py --quick    # seconds, only to see that it runs

Every batch is new, so the cache hashes its samples and the frozen weights, finds nothing, keeps
copies of all outputs, and drops older ones to make room. The same batch goes through an equal
BiLSTM without a cache, in turn, in one process; the median of the pairwise ratios is printed with
its quartiles. The command fails if there was a hit, or if a result differs.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from console_tables import console
from machine import in_words, machine
from rich import box
from rich.table import Table
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from lstm_freeze import BiLSTM, PrefixCache, freeze_up_to

TARGET = 0.03
LAYERS = 3


class Sizes(NamedTuple):
    """The input and the encoder; the cache has room for about eight batches of one depth."""

    B: int = 32
    T: int = 96
    I: int = 128
    H: int = 256
    max_bytes: int = 40 * 2**20


QUICK = Sizes(4, 12, 8, 8, max_bytes=10 * 2**10)


class Pair(NamedTuple):
    """Seconds of one call without and with the cache."""

    without: float
    cached: float


def batch_of(sizes: Sizes, packed: bool, draw: torch.Generator) -> Tensor | PackedSequence:
    """New noise: dense (T, B, I), or packed sequences of T/4 to T steps."""
    if not packed:
        return torch.randn(sizes.T, sizes.B, sizes.I, generator=draw)
    lengths = torch.randint(sizes.T // 4, sizes.T + 1, (sizes.B,), generator=draw)
    sequences = [torch.randn(int(length), sizes.I, generator=draw) for length in lengths]
    return pack_sequence(sequences, enforce_sorted=False)


def measured(sizes: Sizes, packed: bool, depth: int, pairs: int) -> list[Pair]:
    """Pairs of calls on new batches, with the lowest `depth` of the layers frozen."""
    torch.manual_seed(0)
    plain = BiLSTM(sizes.I, sizes.H, num_layers=LAYERS)
    if depth == LAYERS:
        plain.requires_grad_(False)
    else:
        freeze_up_to(plain, f"[{depth - 1}]")
    cached = copy.deepcopy(plain)
    cached.prefix_cache = PrefixCache(sizes.max_bytes)
    draw = torch.Generator().manual_seed(1)
    found = []
    # So many pass first that memory is warm and the cache is full.
    for i in range(-12, pairs):
        batch, seconds, outputs = batch_of(sizes, packed, draw), {}, []
        for lstm in (plain, cached) if i % 2 else (cached, plain):
            start = time.perf_counter()
            output = lstm(batch)[0]
            seconds[lstm] = time.perf_counter() - start
            outputs.append(output.data if packed else output)
        if i >= 0:
            found.append(Pair(seconds[plain], seconds[cached]))
        torch.testing.assert_close(*outputs)
    stats = cached.prefix_cache.stats()
    if stats["hits"] or not stats["evictions"]:
        raise SystemExit(f"the cache was to miss and to evict, but did {stats}")
    return found


def table(rows: Sequence[tuple[bool, int, list[Pair]]]) -> Table:
    """One row a kind of input and depth."""
    columns = ("input", "layers frozen", "forward, ms", "more with the cache", "quartiles")
    title = f"a cache that never hits, as a share of the forward pass (target: {TARGET:.0%})"
    found = Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for packed, depth, pairs in rows:
        low, middle, high = statistics.quantiles((p.cached / p.without - 1 for p in pairs), n=4)
        found.add_row(
            "packed" if packed else "dense",
            f"{depth} of {LAYERS}",
            f"{1e3 * statistics.median(p.without for p in pairs):.1f}",
            f"[bold]{middle:.1%}",
            f"{low:.1%} to {high:.1%}",
        )
    every = [p.cached / p.without - 1 for *_, pairs in rows for p in pairs]
    found.add_row("all", "", "", f"[bold]{statistics.median(every):.1%}", "")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--pairs", type=int, default=100, help="pairs of calls a row (default 100)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: as torch chooses)")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    sizes, pairs = (QUICK, 3) if options.quick else (Sizes(), options.pairs)
    cases = itertools.product((True, False), range(1, LAYERS + 1))
    rows = [(packed, depth, measured(sizes, packed, depth, pairs)) for packed, depth in cases]
    screen = console()
    screen.print(in_words(machine()))
    screen.print(table(rows))


if __name__ == "__main__":
    main()
