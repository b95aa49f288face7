"""One thread per test process: the workers share the cores; the summation order is fixed."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from _loops import LEVELS

from lstm_freeze._recurrence.native import extension, small

# A process of their own: test_accelerator.py.
collect_ignore = [] if "LSTM_FREEZE_DEVICE" in os.environ else ["on_device"]


@pytest.fixture(params=[False, True], ids=["loop", "small"])
def with_and_without_small_layers(request, monkeypatch):
    """Runs a test twice: the layers of tests are small, those of users seldom are."""
    if not request.param:
        monkeypatch.setattr(small, "_MOST_NUMBERS", 0)


@pytest.fixture(params=LEVELS)
def level(request):
    """Each instruction set of the extension that this processor has, in use."""
    before = extension.built.use(request.param)
    yield request.param
    extension.built.use(before)


@pytest.fixture
def threads():
    """Sets the number of threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
