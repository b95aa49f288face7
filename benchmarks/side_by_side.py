"""Two modules with equal weights, timed in turn in one process and compared in the same run."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

# In float32: of outputs and final states absolute; of gradients relative to the largest element
# of the same tensor, since they are sums over all tokens.
OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4

_LONG_PAIR = 1.5
_WARM_SECONDS = 0.5


@dataclass
class Side:
    """One of the two: a module, its input, and the gradient that flows into its output."""

    module: nn.Module
    input: Tensor | PackedSequence
    cotangent: Tensor | None = None

    def run(self) -> None:
        """Forward; with a cotangent, backward too."""
        if self.cotangent is None:
            with torch.no_grad():
                self.module(self.input)
        else:
            _data(self.module(self.input)[0]).backward(self.cotangent)

    def timed(self) -> float:
        """Seconds of one run from cleared gradients."""
        self.module.zero_grad(set_to_none=True)
        cuda = next(self.module.parameters()).is_cuda
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        self.run()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def results(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Outputs and final states, and the gradients of what is trainable, by name."""
        self.module.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(self.cotangent is not None):
            output, (h_n, c_n) = self.module(self.input)
        outputs = {"output": _data(output), "h_n": h_n, "c_n": c_n}
        if self.cotangent is None:
            return outputs, {}
        outputs["output"].backward(self.cotangent)
        named = self.module.named_parameters()
        gradients = {name: p.grad for name, p in named if p.grad is not None}
        return {name: value.detach() for name, value in outputs.items()}, gradients


class Difference(NamedTuple):
    """The largest differences of two sides; infinite for NaN or what only one of them has."""

    output: float
    gradient: float

    @property
    def equal(self) -> bool:
        """Whether both are within the tolerances."""
        return self.output <= OUTPUT_TOLERANCE and self.gradient <= GRADIENT_TOLERANCE


class Timing(NamedTuple):
    """Medians of interleaved pairs: seconds of both, and how many times the second is faster."""

    first: float
    second: float
    ratio: float
    lower: float
    upper: float
    pairs: int


def sides(modules: Sequence[nn.Module], input: Tensor | PackedSequence, train: bool) -> list[Side]:
    """Bidirectional LSTMs on the same input and, to train, the same random output gradient."""
    if not train:
        return [Side(module, input) for module in modules]
    rows = _data(input)
    width = 2 * modules[0].hidden_size
    generator = torch.Generator().manual_seed(3)
    cotangent = torch.randn(*rows.shape[:-1], width, generator=generator).to(rows.device)
    return [Side(module, input, cotangent) for module in modules]


def compare(first: Side, second: Side) -> Difference:
    """Runs both once and compares all results."""
    (outputs, gradients), (others, other_gradients) = first.results(), second.results()
    return Difference(
        _largest(outputs, others, relative=False),
        _largest(gradients, other_gradients, relative=True),
    )


def time_pairs(first: Side, second: Side, seconds: float, most: int = 21) -> Timing:
    """Times both in turn, the order changing from pair to pair, for about `seconds`.

    At least 5 pairs, or 3 where a pair takes longer than 1.5 seconds. The first calls, which warm
    up, do not count.
    """
    estimate = warmed = first.timed() + second.timed()
    while warmed < min(_WARM_SECONDS, seconds):
        estimate = first.timed() + second.timed()
        warmed += max(estimate, 1e-3)
    least = 3 if estimate > _LONG_PAIR else 5
    pairs = max(least, min(most, int(seconds / estimate)))
    times = []
    gc.disable()
    try:
        for i in range(pairs):
            if i % 2:
                later, earlier = second.timed(), first.timed()
                times.append((earlier, later))
            else:
                times.append((first.timed(), second.timed()))
    finally:
        gc.enable()
    return summary(times)


def summary(times: Sequence[tuple[float, float]]) -> Timing:
    """Medians of the times and of the pairwise ratios, with the ratios' quartiles."""
    ratios = [first / second for first, second in times]
    lower, middle, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    firsts, seconds = zip(*times, strict=True)
    medians = statistics.median(firsts), statistics.median(seconds)
    return Timing(*medians, middle, lower, upper, len(times))


def _data(value: Tensor | PackedSequence) -> Tensor:
    return value.data if isinstance(value, PackedSequence) else value


def _largest(ours: dict[str, Tensor], theirs: dict[str, Tensor], *, relative: bool) -> float:
    if ours.keys() != theirs.keys():
        return float("inf")
    differences = [0.0]
    for name, value in ours.items():
        difference = (value - theirs[name]).abs().max().item()
        scale = value.abs().max().item() if relative else 1.0
        differences.append(difference / scale if scale else difference)
    return float("inf") if any(map(math.isnan, differences)) else max(differences)
