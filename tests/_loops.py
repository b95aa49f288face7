"""The ways in which a layer may be computed, to run a test on each."""

from contextlib import contextmanager

import pytest

from lstm_freeze._recurrence.native import extension, small

# Torch's operations, the extension's time loop, and for small layers one call of the extension.
LOOPS = ("torch", "native", "small")
LEVELS = () if extension.built is None else extension.built.levels()


@contextmanager
def on_loop(name):
    """Computes float32 layers on the CPU in this way, which for larger ones is "native"."""
    if name != "torch" and extension.built is None:
        pytest.skip("the extension is not built here")
    most = small._MOST_NUMBERS
    with extension.switched(name != "torch"):
        try:
            small._MOST_NUMBERS = most if name == "small" else 0
            yield
        finally:
            small._MOST_NUMBERS = most
