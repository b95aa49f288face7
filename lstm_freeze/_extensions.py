"""The C extensions: checks their version, and sets their threads."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from types import ModuleType


def ready(extension: ModuleType, interface: int) -> ModuleType | None:
    """The extension, set to torch's threads; None where it is of another version of the package.

    `interface` is the version of the extension's functions that the caller uses. The functions of
    another version would read the wrong memory.
    """
    if getattr(extension, "INTERFACE", None) != interface:
        return None
    if sys.platform == "linux":
        parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
        if parallel is not None:
            extension.share_threads(ctypes.cast(parallel, ctypes.c_void_p).value)
            # A child process has none of the threads, and would wait for them forever.
            os.register_at_fork(after_in_child=functools.partial(extension.share_threads, 0))
    return extension
