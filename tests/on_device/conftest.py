"""The device that the tests in this folder run on: LSTM_FREEZE_DEVICE, else the pretend one.

They are not collected with the rest: the pretend device belongs to a process of its own.
`test_accelerator.py` runs them on it, `make gpu` on CUDA.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent)]
NAME = os.environ.get("LSTM_FREEZE_DEVICE", "strict")

if NAME == "strict":
    from strict_device import DEVICE, blocking_copies, host_reads
else:
    DEVICE, host_reads = torch.device(NAME), None


@pytest.fixture
def device():
    return DEVICE


@pytest.fixture
def reads():
    """Counts the values that a block reads to the host; only the pretend device can tell."""
    if host_reads is None:
        pytest.skip("only the pretend device counts what is read to the host")

    def count(block):
        host_reads.clear()
        block()
        return list(host_reads)

    return count


@pytest.fixture
def waits(reads):
    """As `reads`, and what is copied to the device while the host waits."""

    def count(block):
        blocking_copies.clear()
        return reads(block) + blocking_copies

    return count


@pytest.fixture
def fused(device, monkeypatch):
    """Takes the pretend device for one with a vendor's LSTM, as CUDA has."""
    from lstm_freeze._model import tree

    monkeypatch.setattr(tree, "FUSED_LSTM_DEVICES", {torch.device(device).type})


@pytest.fixture(autouse=True)
def full_precision():
    """No TF32 on CUDA: the oracle's products are in full float32."""
    places = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    yield
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value
