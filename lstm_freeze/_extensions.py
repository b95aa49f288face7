"""The C extensions: whether they are of this version, and the threads they run on."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from types import ModuleType


def ready(extension: ModuleType, interface: int) -> ModuleType | None:
    """The extension on torch's threads; None where another version of the package left it.

    `interface` is the version of the extension's calls that the caller makes: those of another one
    would read the wrong memory.
    """
    if getattr(extension, "INTERFACE", None) != interface:
        return None
    if sys.platform == "linux":
        parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
        if parallel is not None:
            extension.share_threads(ctypes.cast(parallel, ctypes.c_void_p).value)
            # A child process has none of the threads, and would wait for them.
            os.register_at_fork(after_in_child=functools.partial(extension.share_threads, 0))
    return extension
