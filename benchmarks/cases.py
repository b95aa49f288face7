"""What is measured: shapes, what trains, and the times that are aimed at. Plain data and inputs.

Shapes: B batch, T time, I input size, H hidden size, L layers.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lstm_freeze import BiLSTM, PrefixCache, freeze


class Shape(NamedTuple):
    """The sizes of one bidirectional LSTM and its input."""

    B: int
    T: int
    I: int
    H: int
    L: int


SHAPES = (
    Shape(16, 200, 64, 64, 2),
    Shape(32, 64, 128, 128, 2),
    Shape(64, 40, 300, 300, 1),
    Shape(32, 128, 256, 256, 2),
    Shape(8, 512, 256, 512, 2),
    Shape(64, 100, 400, 512, 3),
)
# A call's fixed cost is all of these calls: single steps, as in streaming, and short sequences.
SMALL_SHAPES = (
    Shape(4, 5, 8, 8, 1),
    Shape(4, 5, 8, 8, 2),
    Shape(1, 1, 8, 8, 1),
    Shape(1, 1, 64, 64, 1),
    Shape(1, 1, 128, 128, 2),
    Shape(2, 20, 32, 32, 2),
)
QUICK_SHAPES = (Shape(4, 12, 8, 16, 2), Shape(3, 8, 8, 8, 1))
FORMS = ("dense", "packed")

# What is frozen, as arguments of `freeze`; None: nothing is.
TRAINING: dict[str, dict[str, Any] | None] = {
    "everything trainable": None,
    "lower layers frozen": {"layers": slice(0, -1)},
    "upper layers frozen": {"layers": slice(1, None)},
    "one direction frozen": {"directions": "reverse"},
    "biases only": {"kinds": "weight"},
}
FORWARD = "forward only"
CASES = (FORWARD, *TRAINING)
# What speaks for BiLSTM where nn.LSTM is one call of a vendor's library; measured on such devices.
CACHED = "lower layers frozen, cached"
EVERY = (*CASES, CACHED)
FROZEN_IN = {**TRAINING, CACHED: TRAINING["lower layers frozen"]}


class Target(NamedTuple):
    """The geometric mean over the shapes to reach, and the least for any one shape."""

    mean: float
    each: float = 0.0


TARGETS = {
    ("packed", "everything trainable"): Target(4.5),
    ("packed", "lower layers frozen"): Target(4.0),
    ("packed", FORWARD): Target(2.0),
    ("dense", "everything trainable"): Target(1.4, each=1.0),
    ("dense", FORWARD): Target(1.2, each=1.0),
    ("dense", "lower layers frozen"): Target(1.5),
    ("dense", "upper layers frozen"): Target(1.6),
    ("dense", "one direction frozen"): Target(1.2),
    ("dense", "biases only"): Target(1.8),
}
FLOOR_CASE = "everything trainable"
# The most that training may take of the GEMM floor's time, by the least hidden size it holds for.
FLOOR_TARGETS = {256: 1.25, 128: 1.4}

# Shapes that nobody tuned for: drawn anew from this grid by a seed.
GRID = {
    "B": (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128),
    "T": (5, 10, 20, 30, 50, 90, 150, 250, 500),
    "I": (16, 50, 64, 100, 128, 200, 256, 300, 512),
    "H": (32, 47, 64, 96, 127, 128, 192, 200, 255, 256, 320, 401, 512, 640),
    "L": (1, 2, 3),
}
SAMPLE_CASES = (FORWARD, FLOOR_CASE)
SAMPLE_TARGETS = {
    ("packed", FLOOR_CASE): Target(3.5, each=1.9),
    ("dense", FLOOR_CASE): Target(1.4, each=1.0),
    ("dense", FORWARD): Target(1.2, each=1.0),
}
# So that one call of nn.LSTM lasts seconds at the most.
_MOST_OPERATIONS = 2e11


def sample_of_grid(count: int, seed: int) -> tuple[Shape, ...]:
    """Random shapes of the grid, each once; the same for the same seed."""
    draw = random.Random(seed)
    found: dict[Shape, None] = {}
    while len(found) < count:
        shape = Shape(**{name: draw.choice(sizes) for name, sizes in GRID.items()})
        if 48 * shape.B * shape.T * shape.H * (shape.H + shape.I) * shape.L < _MOST_OPERATIONS:
            found[shape] = None
    return tuple(found)


def applies(case: str, shape: Shape) -> bool:
    """Whether a case differs from the others at a shape: one layer is both lowest and highest."""
    return shape.L > 1 or "layers" not in (FROZEN_IN.get(case) or {})


def twins(shape: Shape, case: str, device: str = "cpu", seed: int = 0) -> tuple[nn.LSTM, BiLSTM]:
    """An nn.LSTM and a BiLSTM with equal weights of their own, frozen alike."""
    torch.manual_seed(seed)
    sizes = (shape.I, shape.H, shape.L)
    lstm = nn.LSTM(*sizes, bidirectional=True, device=device)
    bilstm = BiLSTM(*sizes, device=device)
    bilstm.load_state_dict(lstm.state_dict())
    for module in (lstm, bilstm):
        module.train(case != FORWARD)
        if frozen := FROZEN_IN.get(case):
            freeze(module, **frozen)
    if case == CACHED:
        bilstm.prefix_cache = PrefixCache()
    return lstm, bilstm


def lengths_of(shape: Shape) -> list[int]:
    """Lengths from T/4 to T, the longest first and of length T; about 0.65 of the tokens."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(max(1, shape.T // 4), shape.T + 1, (shape.B,), generator=generator)
    drawn[0] = shape.T
    return sorted(drawn.tolist(), reverse=True)


def batch_sizes_of(shape: Shape, form: str) -> list[int]:
    """How many sequences run at each step."""
    if form == "dense":
        return [shape.B] * shape.T
    return [sum(length > t for length in lengths_of(shape)) for t in range(shape.T)]


def input_of(shape: Shape, form: str, device: str = "cpu") -> Tensor | PackedSequence:
    """Random numbers, (T, B, I); packed with `lengths_of`."""
    generator = torch.Generator().manual_seed(2)
    data = torch.randn(shape.T, shape.B, shape.I, generator=generator).to(device)
    return data if form == "dense" else pack_padded_sequence(data, torch.tensor(lengths_of(shape)))
