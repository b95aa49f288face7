"""Runs the fuzzer of tests/_fuzz.py under the address and undefined-behaviour sanitizers.

`make sanitize` calls it. Both extensions are built with -fsanitize=address,undefined into a copy of
the package, so the one that is installed stays as it is. Needs GCC on Linux. Arguments are the
fuzzer's: `python tests/_sanitized.py --seed 7 --cases 1000`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTENSIONS = ("lstm_freeze/_recurrence/native/_timeloop.c", "lstm_freeze/_hashing/_words.c")
FLAGS = (
    *("-shared", "-fPIC", "-O1", "-g", "-fno-omit-frame-pointer", "-ffp-contract=off"),
    *("-fno-wrapv", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
)
# A product's panels are written to memory that is one number too short: this must be reported.
FAULT = """
import struct, torch
from lstm_freeze._recurrence.native import _timeloop
weight = torch.zeros(64, 64)
short = torch.zeros(64 * 64 - 1)
numbers = (1, 64, 64, 64, 1, weight.data_ptr(), short.data_ptr())
_timeloop.pack(1, struct.pack("=7q", *numbers), ())
"""


def build(folder: Path) -> None:
    """A copy of the package with sanitized extensions."""
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(ROOT / "lstm_freeze", folder / "lstm_freeze", ignore=ignored)
    include = sysconfig.get_path("include")
    for source in EXTENSIONS:
        target = folder / Path(source).with_suffix(".abi3.so")
        command = ["gcc", *FLAGS, f"-I{include}", str(folder / source), "-o", str(target)]
        subprocess.run(command, check=True)


def environment(folder: Path) -> dict[str, str]:
    """Python itself is not built with the sanitizers, so their libraries come first."""
    libraries = [
        subprocess.run(
            ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONPATH": str(folder),
        "LSTM_FREEZE_NATIVE": "1",
        "PYTHONWARNINGS": "ignore",
    }


def main(arguments: list[str]) -> int:
    """The fuzzer's exit status, once the sanitizers have shown that they see a fault."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder)
        env = environment(folder)
        fault = subprocess.run(
            [sys.executable, "-c", FAULT], env=env, cwd=folder, capture_output=True, text=True
        )
        if "heap-buffer-overflow" not in fault.stderr:
            print(fault.stderr, "the sanitizers did not report a fault made for them", sep="\n")
            return 1
        script = ROOT / "tests" / "_fuzz.py"
        return subprocess.run(
            [sys.executable, str(script), *arguments], env=env, cwd=folder
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
