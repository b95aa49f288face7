"""What show_config() says of an installation."""

import re
import types

import pytest
import torch

from lstm_freeze import BiLSTM, release_memory, show_config
from lstm_freeze._hashing import word_sums
from lstm_freeze._recurrence.native import extension


def lines():
    return dict(line.split(": ", 1) for line in show_config().splitlines())


def test_what_is_in_use():
    found = lines()
    assert found["BiLSTM on the CPU, float32"] == extension.which_loop()
    assert found["its large matrix products"].removeprefix("made by ") in ("the extension", "torch")
    assert found["threads"] == str(torch.get_num_threads())
    assert torch.__version__ in found["torch"]
    assert re.match(r"\d+\.\d+", found["lstm_freeze"])
    assert re.match(r"3\.\d+", found["Python"])


def test_why_something_is_not_in_use(monkeypatch):
    monkeypatch.setattr(word_sums, "_extension", None)
    assert lines()["fingerprints on the CPU"].startswith("torch (the extension is not built")
    monkeypatch.setattr(word_sums, "_extension", types.SimpleNamespace())
    assert lines()["fingerprints on the CPU"] == "native"
    with extension.switched(False):
        assert lines()["BiLSTM on the CPU, float32"].startswith("torch (")
        assert lines()["its large matrix products"] == "made by torch"
    monkeypatch.setattr(extension, "built", None)
    assert "is not built" in lines()["BiLSTM on the CPU, float32"]


@pytest.mark.skipif("native" not in extension.which_loop(), reason="there is no such memory")
def test_memory_that_waits():
    BiLSTM(64, 64)(torch.randn(64, 64, 64))
    assert lines()["memory kept for the next call"] != "0 MiB"
    release_memory()
    assert lines()["memory kept for the next call"] == "0 MiB"
