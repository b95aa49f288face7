"""Warnings blame the first line outside of this library, torch and Lightning, on every path."""

import inspect
import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from lstm_freeze import BiLSTM, FreezeSchedule, freeze, freeze_up_to, replace_lstm, unfreeze
from lstm_freeze._warn import users_line, warn


def here():
    return inspect.currentframe().f_back.f_lineno


def model():
    return nn.ModuleDict({"encoder": nn.LSTM(2, 2), "head": nn.Linear(2, 1)})


def nothing_trains(m):
    return freeze(m, "encoder", "head"), here()


def all_but_what_cannot_train(m):
    m.counts = nn.Parameter(torch.zeros(1, dtype=torch.long), requires_grad=False)
    return unfreeze(m, "counts", only=True), here()


def a_prefix(m):
    return freeze_up_to(m, "head"), here()


PATHS = [nothing_trains, all_but_what_cannot_train, a_prefix]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
def test_freezing_everything(path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        *_, line = path(model())
    assert [(w.filename, w.lineno) for w in caught] == [(__file__, line)]


class Wider(nn.LSTM):
    """A subclass that replace_lstm leaves alone."""


def a_dropout_without_effect():
    return BiLSTM(2, 3, dropout=0.5), here()


def nothing_to_replace():
    return replace_lstm(nn.Linear(2, 1)), here()


def a_subclass_left_alone():
    return replace_lstm(nn.Sequential(Wider(2, 3))), here()


MODULES = [a_dropout_without_effect, nothing_to_replace, a_subclass_left_alone]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.__name__)
def test_modules(path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, line = path()
    assert [(w.filename, w.lineno) for w in caught] == [(__file__, line)]


def test_at_import(tmp_path):
    """LSTM_FREEZE_NATIVE=1 without the extension blames the line that imports the package."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "sys.modules['lstm_freeze._recurrence.native._timeloop'] = None\n"
        "import lstm_freeze\n"
    )
    run = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "LSTM_FREEZE_NATIVE": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert f"{script}:3: RuntimeWarning: LSTM_FREEZE_NATIVE=1" in run.stderr


@pytest.fixture
def process_group(tmp_path):
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch was built without gloo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def by_freeze(m):
    return freeze(m, "encoder"), here()


def by_a_schedule(m):
    return FreezeSchedule({0: "head"}).apply(m, 0), here()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("path", [by_freeze, by_a_schedule], ids=lambda path: path.__name__)
def test_under_ddp(path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, line = path(DDP(model()))
    assert "find_unused_parameters=True" in str(caught[0].message)
    assert [(w.filename, w.lineno) for w in caught] == [(__file__, line)]


def test_frames_of_torch_are_passed_over():
    inner = nn.Module()
    inner.forward = _as_if_of("torch.nn.modules.inside")
    with pytest.warns(UserWarning, match="here") as caught:
        inner(1)
    assert [(w.filename, w.lineno) for w in caught] == [(__file__, here() - 1)]


def _as_if_of(module):
    names = {"warn": warn, "__name__": module}
    exec("def forward(x):\n    warn('here')\n    return x", names)
    return names["forward"]


def test_where_every_frame_is_passed_over_the_outermost_is_blamed():
    from lstm_freeze import _warn

    class Frame:
        def __init__(self, name, back=None):
            self.f_globals = {"__name__": name}
            self.f_back = back

    outermost = Frame("lightning.pytorch.trainer")
    assert _warn._users_frame(Frame("lstm_freeze._rnn", Frame("torch.nn", outermost))) is outermost


def test_a_warning_as_an_error_is_raised_and_once_is_once():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="said"):
            warn("said")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            warn("said once a line")
    assert len(caught) == 1


def test_the_user_s_line_as_text():
    assert users_line() == f"{__file__}:{here()}"
