"""What depends on a device, on a device: the tests in on_device/, in a process of their own.

The pretend accelerator (`on_device/strict_device.py`) stands in for one here: its tensors refuse to
be mixed with those of the CPU, and it counts what is read to the host. `make gpu` runs the same
tests on CUDA.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "on_device"
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))


def run(*arguments):
    environment = {**os.environ, "LSTM_FREEZE_DEVICE": "strict"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=FOLDER.parents[1],
    )


@pytest.mark.parametrize("name", FILES)
def test_on_the_pretend_accelerator(name):
    done = run(str(FOLDER / name))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_a_failure_there_is_seen_here(tmp_path):
    case = FOLDER / "strict_device.py"
    failing = tmp_path / "test_failing.py"
    failing.write_text(
        f"import sys\nsys.path.insert(0, {str(case.parent)!r})\n"
        "from strict_device import DEVICE\nimport torch\n\n\n"
        "def test_mixed():\n    torch.ones(2) + torch.ones(2).to(DEVICE)\n"
    )
    done = run(str(failing))
    assert done.returncode == 1
    assert "expected all tensors to be on the same device" in done.stdout


def test_every_case_was_collected():
    assert len(FILES) >= 4
