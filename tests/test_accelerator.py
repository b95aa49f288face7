"""The tests in `on_device` on a pretend accelerator, in a process of their own.

The pretend accelerator (`on_device/strict_device.py`) stands in for one here: its tensors refuse to
be mixed with those of the CPU, and it counts what is read to the host. `make gpu` runs the same
tests on CUDA.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "on_device"
OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-rs")


def run(path):
    environment = {**os.environ, "LSTM_FREEZE_DEVICE": "strict"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    return subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=FOLDER.parents[1],
    )


def test_on_the_pretend_accelerator():
    done = run(FOLDER)  # at once: the start of a process takes longer than most files
    assert done.returncode == 0, done.stdout[-9000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
    counted = re.search(r"(\d+) passed", done.stdout)
    assert counted
    # Each function at least once: none is left out of the collection.
    written = sum(f.read_text().count("\ndef test_") for f in FOLDER.glob("test_*.py"))
    assert int(counted[1]) >= written > 40


def test_a_failure_there_is_seen_here(tmp_path):
    failing = tmp_path / "test_failing.py"
    failing.write_text(
        f"import sys\nsys.path.insert(0, {str(FOLDER)!r})\n"
        "from strict_device import DEVICE\nimport torch\n\n\n"
        "def test_mixed():\n    torch.ones(2) + torch.ones(2).to(DEVICE)\n"
    )
    done = run(failing)
    assert done.returncode == 1
    assert "expected all tensors to be on the same device" in done.stdout
