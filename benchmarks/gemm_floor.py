"""The least time an LSTM could take: the matrix products that must be done, as fast as they go.

A product counts where something trainable needs it. The time of each is measured in the same run,
on matrices of its own shape, in every memory layout, and the best of them counts; pointwise
arithmetic, copies and the biases' sums are free. The bound leaves the input's gradient out, as the
benchmarks do. The products that the library leaves out (the first step's, with a state of zeros)
are counted, as they are for nn.LSTM.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch

from lstm_freeze import BiLSTM, select

_SAMPLES = 3
_SAMPLE_SECONDS = 1e-3


class Product(NamedTuple):
    """A matrix product (m, k) @ (k, n), for one or both directions at once."""

    directions: int
    m: int
    k: int
    n: int

    @property
    def operations(self) -> int:
        """Floating-point operations: a multiplication and an addition for each term."""
        return 2 * self.directions * self.m * self.k * self.n


def products(lstm: BiLSTM, batch_sizes: Sequence[int], training: bool) -> Counter[Product]:
    """The products of one call, by what of `lstm` is trainable now.

    Args:
        lstm: A BiLSTM without projection.
        batch_sizes: (T,) how many sequences run at each step.
        training: Whether a backward pass follows.
    """
    found: Counter[Product] = Counter()
    rows, hidden, gates = sum(batch_sizes), lstm.hidden_size, 4 * lstm.hidden_size
    directions = 2 if lstm.bidirectional else 1
    lower_trains = False
    for layer in range(lstm.num_layers):
        width = lstm.input_size if layer == 0 else directions * hidden
        found[Product(1, rows, width, gates)] += directions
        found.update(Product(directions, size, hidden, gates) for size in batch_sizes)
        groups = [group for group in lstm.groups if group.layer == layer]
        trains = [any(p.requires_grad for p in group.parameters) for group in groups]
        reached = sum(own or lower_trains for own in trains)
        if training and reached:
            found.update(Product(reached, size, gates, hidden) for size in batch_sizes)
            found[Product(1, gates, rows, hidden)] += _trainable(lstm, layer, "weight_hh")
            found[Product(1, gates, rows, width)] += _trainable(lstm, layer, "weight_ih")
            if lower_trains:
                found[Product(1, rows, gates, width)] += reached
        lower_trains = lower_trains or any(trains)
    return +found


def operations(needed: Counter[Product]) -> int:
    """The floating-point operations of all products."""
    return sum(product.operations * count for product, count in needed.items())


class Gemm:
    """Measures products, each once.

    Attributes:
        peak: The highest rate seen, in operations per second.
    """

    def __init__(self, device: str = "cpu") -> None:
        """Measure nothing yet."""
        self.device = device
        self.peak = 0.0
        self._seconds: dict[Product, float] = {}

    def seconds(self, needed: Counter[Product]) -> float:
        """The time of all products, one after another."""
        return sum(self._of(product) * count for product, count in needed.items())

    def _of(self, product: Product) -> float:
        if product not in self._seconds:
            self._seconds[product] = _measured(product, self.device)
            self.peak = max(self.peak, product.operations / self._seconds[product])
        return self._seconds[product]


def _trainable(lstm: BiLSTM, layer: int, kind: str) -> int:
    """In how many directions of a layer this weight trains."""
    chosen = select(lstm, layers=[layer], kinds=kind)
    return sum(parameter.requires_grad for parameter in chosen.values())


def _measured(product: Product, device: str) -> float:
    directions, m, k, n = product
    best = float("inf")
    for a_shape, a_turned in (((m, k), False), ((k, m), True)):
        for b_shape, b_turned in (((k, n), False), ((n, k), True)):
            a = torch.randn(directions, *a_shape, device=device)
            b = torch.randn(directions, *b_shape, device=device)
            a, b = a.mT if a_turned else a, b.mT if b_turned else b
            best = min(best, _apart(a, b))
            if directions > 1:
                best = min(best, _together(a, b))
    return best


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    out = [torch.mm(x, y) for x, y in zip(a, b, strict=True)]
    operands = list(zip(a.unbind(), b.unbind(), out, strict=True))

    def run() -> None:
        for x, y, into in operands:
            torch.mm(x, y, out=into)

    return _time_of(run, a.is_cuda)


def _together(a: torch.Tensor, b: torch.Tensor) -> float:
    out = torch.bmm(a, b)
    return _time_of(lambda: torch.bmm(a, b, out=out), a.is_cuda)


def _time_of(run, cuda: bool) -> float:
    """Seconds of a call: the best of a few samples, each of enough calls to be timed."""
    synchronize = torch.cuda.synchronize if cuda else (lambda: None)
    best, calls = float("inf"), 1
    for _ in range(_SAMPLES):
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        synchronize()
        best = min(best, (time.perf_counter() - start) / calls)
        calls = max(1, int(_SAMPLE_SECONDS / best))
    return best
