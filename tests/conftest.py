"""One thread per test process: the workers share the cores; the summation order is fixed."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# A process of their own: test_accelerator.py.
collect_ignore = [] if "LSTM_FREEZE_DEVICE" in os.environ else ["on_device"]


@pytest.fixture(params=[False, True], ids=["loop", "small"])
def with_and_without_small_layers(request, monkeypatch):
    """Runs a test twice: the layers of tests are small, those of users seldom are."""
    from lstm_freeze._recurrence import small

    if not request.param:
        monkeypatch.setattr(small, "_MOST_NUMBERS", 0)
