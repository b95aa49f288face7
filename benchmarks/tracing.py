"""How long torch.compile and torch.export take, and how large the graph is, by sequence length."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from cases import Shape, twins

SHAPE = Shape(4, 16, 32, 32, 2)
LENGTHS = (16, 64, 256, 1024)
QUICK_LENGTHS = (4, 8)


def traces(lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    """One row a sequence length; a first trace, which loads torch's compiler, is thrown away."""
    trace(3)
    return [trace(length) for length in lengths]


def trace(length: int) -> dict[str, Any]:
    """Seconds to compile and to export a BiLSTM, and the number of nodes of the exported graph.

    torch.compile runs with the backend "aot_eager", which traces forward and backward but needs no
    compiler of C++. Its time is that of the first call less that of a second one, so that the
    sequence's own computation does not count.
    """
    shape = SHAPE._replace(T=length)
    _, lstm = twins(shape, "everything trainable")
    input = torch.randn(shape.T, shape.B, shape.I)
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its internals
        compiled = torch.compile(lstm, backend="aot_eager")
        first, second = (_seconds(lambda: compiled(input)[0].sum().backward()) for _ in range(2))
        start = time.perf_counter()
        program = torch.export.export(lstm.eval(), (input,))
        export = time.perf_counter() - start
    return {
        "T": length,
        "compile_s": max(0.0, first - second),
        "export_s": export,
        "nodes": len(program.graph.nodes),
    }


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
