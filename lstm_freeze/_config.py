"""show_config: what this installation computes with, for bug reports and slow runs."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from ._hashing import has_extension
from ._recurrence import waiting_memory, which_loop, which_products


def show_config() -> str:
    """Describes what the library computes with here, like `torch.__config__.show()`.

    Whether BiLSTM's native loop is in use and at which level of the processor, or why not; who
    makes its large matrix products; whether the fingerprints' extension is in use; threads;
    versions; memory kept for the next call.

    Examples:
        >>> from lstm_freeze import show_config
        >>> print(show_config().splitlines()[0].split(":")[0])
        lstm_freeze

    Returns:
        A few lines of text.
    """
    sums = "native" if has_extension() else "torch (the extension is not built; same numbers)"
    lines = {
        "lstm_freeze": _own_version(),
        "BiLSTM on the CPU, float32": which_loop(),
        "its large matrix products": f"made by {which_products()}",
        "fingerprints on the CPU": sums,
        "threads": f"{torch.get_num_threads()}",
        "torch": f"{torch.__version__} ({torch.backends.cpu.get_cpu_capability()})",
        "CUDA": _cuda(),
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "memory kept for the next call": f"{waiting_memory() / 2**20:.0f} MiB",
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


def _own_version() -> str:
    try:
        return version("lstm-freeze")
    except PackageNotFoundError:
        return "not installed as a package"


def _cuda() -> str:
    if not torch.version.cuda:
        return "not in this build of torch"
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return f"{torch.version.cuda}, cuDNN {cudnn}"
