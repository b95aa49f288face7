"""The peak memory of one call, in a process of its own.

What the operating system reports as the process's resident set is the only measure that sees
nn.LSTM's and oneDNN's own buffers as well as tensors. Each measurement runs in a fresh process,
after a small call that loads the libraries: the high-water mark (VmHWM in /proc/self/status) above
what was resident before. ru_maxrss would not do: a child inherits its parent's. Linux only;
elsewhere nothing is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from cases import FLOOR_CASE, Shape, input_of, twins
from side_by_side import sides

_STATUS = Path("/proc/self/status")
_RESET_PEAK = Path("/proc/self/clear_refs")
SIDES = ("nn.LSTM", "BiLSTM")


class PeakMemory:
    """This process's peak of resident memory from now on, above what is resident now."""

    def __init__(self) -> None:
        """Begin."""
        _RESET_PEAK.write_text("5")
        self._before = _kilobytes("VmRSS")

    @staticmethod
    def available() -> bool:
        """Whether the system tells."""
        return _RESET_PEAK.exists()

    def megabytes(self) -> float:
        """The peak so far."""
        return (_kilobytes("VmHWM") - self._before) * 1024 / 1e6


def peak_megabytes(shape: Shape, form: str, side: str) -> dict[str, float] | None:
    """MB above what was resident before: of a forward pass, and of one training step after it."""
    if not PeakMemory.available():
        return None
    arguments = [str(torch.get_num_threads()), form, side, *map(str, shape)]
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def _kilobytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])


def _measure(shape: Shape, form: str, side: str) -> dict[str, float]:
    module = twins(shape, FLOOR_CASE)[SIDES.index(side)]
    input = input_of(shape, form)
    tiny = Shape(2, 3, shape.I, shape.H, shape.L)
    for warm in sides([module], input_of(tiny, form), train=True):
        warm.timed()
    module.zero_grad(set_to_none=True)
    (forward,), (step,) = sides([module], input, train=False), sides([module], input, train=True)
    peak = PeakMemory()
    peaks = {}
    for name, run in (("forward", forward), ("training", step)):
        run.run()
        peaks[name] = peak.megabytes()
    return peaks


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps(_measure(Shape(*map(int, sys.argv[4:])), sys.argv[2], sys.argv[3])))
