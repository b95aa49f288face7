"""On what a benchmark ran: what its numbers depend on besides the code."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path
from typing import Any

import torch

from lstm_freeze._recurrence import which_loop


def machine(device: str = "cpu") -> dict[str, Any]:
    """The processor, threads, versions, the date, and which loop BiLSTM takes."""
    described = {
        "cpu": cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "loop": which_loop(),
        "date": datetime.date.today().isoformat(),
    }
    if device != "cpu":
        described |= {
            "device": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "loop": "torch",
        }
    return described


def in_words(described: dict[str, Any]) -> str:
    """One sentence for a table's caption."""
    device = f"{described['device']}, " if "device" in described else ""
    return (
        f"{device}{described['cpu']} ({described['instructions']}), threads: "
        f"{described['threads']}, torch {described['torch']}, BiLSTM's loop: "
        f"{described['loop']}, {described['date']}"
    )


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
