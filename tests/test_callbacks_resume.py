"""Resuming: from any checkpoint the run ends with the same bits as one that never stopped."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from _fits import Stateful, bits, data, fit, lightning, module, names, on, recorder, same

from lstm_freeze import FreezeSchedule, Phase
from lstm_freeze.callbacks import (
    FreezeScheduler,
    FrozenWeightsCheck,
    GradualUnfreezing,
    Plateau,
    WeightDrift,
)

L = lightning()
EPOCHS = 5

CASES = {
    "gradual_unfreezing": lambda: GradualUnfreezing(),
    "chain_thaw": lambda: FreezeScheduler(FreezeSchedule.recipe("chain_thaw", lr=0.05)),
    "linear_probing": lambda: FreezeScheduler(FreezeSchedule.recipe("linear_probing", every=2)),
    "progressive_freezing": lambda: FreezeScheduler(
        FreezeSchedule.recipe("progressive_freezing", total=EPOCHS, t0=0.5, how="linear")
    ),
    "refreezing": lambda: FreezeScheduler({0: "*", 2: "head", 3: "encoder", 4: "*"}),
    "steps": lambda: FreezeScheduler(
        FreezeSchedule({0: "head", 3: "*", 7: "head", 13: "encoder"}, unit="step")
    ),
    "rates": lambda: FreezeScheduler(
        [Phase(0, "head", lr=0.05, warmup=6), Phase(2, "*", lr={"head": 0.02, "*": 0.01}, warmup=6)]
    ),
    "plateau": lambda: FreezeScheduler(
        {0: "head", 1: "encoder.lstm", 2: "*"}, advance=Plateau(patience=1, min_delta=0.02)
    ),
    "plateau, best": lambda: FreezeScheduler(
        {0: "head", 1: "encoder.lstm", 2: "*"},
        advance=Plateau(patience=1, min_delta=0.02, restore_best=True),
    ),
    "plateau, length": lambda: FreezeScheduler(
        FreezeSchedule.recipe("chain_thaw"),
        advance=Plateau(patience=99, max_epochs_per_phase=1, restore_best=True),
    ),
}


def loader():
    return Stateful(data().dataset, 4)


def make(name):
    decay = None
    if name == "rates":
        decay = lambda o: torch.optim.lr_scheduler.StepLR(o, 2, gamma=0.7)  # noqa: E731
    return module(L, lr=0.03, scheduler=decay)


def saver(folder, **when):
    return L.callbacks.ModelCheckpoint(folder, "{epoch}-{step}", save_top_k=-1, **when)


WHEN = {
    "epoch": {"every_n_epochs": 1, "save_on_train_epoch_end": True},
    "validation": {"every_n_epochs": 1, "save_on_train_epoch_end": False},
    "step": {"every_n_train_steps": 3},
}


FAST = {
    ("gradual_unfreezing", "epoch"),
    ("rates", "step"),
    ("plateau, best", "step"),
    ("plateau, length", "validation"),
}
MATRIX = [
    pytest.param(case, when, marks=() if (case, when) in FAST else pytest.mark.slow)
    for case in CASES
    for when in WHEN
]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize(("case", "when"), MATRIX)
def test_resumed_runs_end_with_the_same_bits(case, when, tmp_path):
    options = {"max_epochs": EPOCHS, "enable_checkpointing": True}
    whole = make(case)
    scheduler = CASES[case]()
    fit(L, whole, scheduler, saver(tmp_path / "a", **WHEN[when]), loader=loader(), **options)
    checkpoints = sorted((tmp_path / "a").glob("*.ckpt"))
    assert len(checkpoints) >= EPOCHS - 1
    if "plateau" in case:
        assert scheduler.phase > 0
    for checkpoint in checkpoints:
        resumed = make(case)
        again = CASES[case]()
        fit(L, resumed, again, loader=loader(), ckpt_path=checkpoint, max_epochs=EPOCHS)
        assert same(bits(resumed), bits(whole)), checkpoint.name
        assert on(resumed) == on(whole)
        assert again.phase == scheduler.phase


def test_the_runs_compared_are_not_trivially_equal():
    """Another schedule ends with other bits: the test above can fail."""
    ends = []
    for schedule in ({0: "head", 1: "*"}, {0: "head", 2: "*"}):
        m = make("")
        fit(L, m, FreezeScheduler(schedule), loader=loader())
        ends.append(bits(m))
    assert not same(*ends)


@pytest.fixture
def checkpoint(tmp_path):
    """One after two epochs of head, then all."""

    def run(*callbacks, **options):
        m = module(L)
        t = fit(L, m, *callbacks, max_epochs=2, **options)
        path = tmp_path / "end.ckpt"
        t.save_checkpoint(path)
        return path

    return run


def test_the_state_is_that_of_the_epoch(checkpoint):
    path = checkpoint(FreezeScheduler({0: "head", 1: "encoder", 2: "*"}))
    m = module(L)
    watch = recorder(L, lambda t, m: (t.current_epoch, on(m)))
    fit(L, m, FreezeScheduler({0: "head", 1: "encoder", 2: "*"}), watch, ckpt_path=path)
    assert watch.seen == [(2, names(m, ""))] * 4


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("case", ["refreezing", "gradual_unfreezing", "chain_thaw"])
def test_what_was_saved_after_a_fit_goes_on_as_if_the_fit_had_not_ended(case, fused, tmp_path):
    """Its epoch is that of the next phase, its optimizer state that of the one before."""

    def make():
        sgd = partial(torch.optim.SGD, momentum=0.9, fused=True)
        return module(L, lr=0.03, optimizer=sgd if fused else torch.optim.AdamW)

    whole = make()
    fit(L, whole, CASES[case](), loader=loader(), max_epochs=EPOCHS)
    for epochs in range(1, EPOCHS):
        begun = make()
        first = fit(L, begun, CASES[case](), loader=loader(), max_epochs=epochs)
        first.save_checkpoint(tmp_path / "fit.ckpt")
        resumed = make()
        options = {"ckpt_path": tmp_path / "fit.ckpt", "max_epochs": EPOCHS}
        fit(L, resumed, CASES[case](), loader=loader(), **options)
        assert same(bits(resumed), bits(whole)), epochs


def test_a_checkpoint_brings_no_momentum_back_to_what_is_frozen(checkpoint):
    path, m = checkpoint(), module(L)
    watch = recorder(L, lambda t, m: {id(p) for p in t.optimizers[0].state})
    fit(L, m, FreezeScheduler({0: "head"}), watch, ckpt_path=path)
    assert watch.seen == [{id(p) for p in m.head.parameters()}] * 4


def test_a_checkpoint_without_the_callback_can_be_continued_with_it(checkpoint):
    path = checkpoint()
    m = module(L)
    watch = recorder(L, lambda t, m: on(m))
    schedule = [Phase(0, "*"), Phase(1, "head", lr=0.5)]
    t = fit(L, m, FreezeScheduler(schedule), FrozenWeightsCheck(), watch, ckpt_path=path)
    assert watch.seen == [names(m, "head")] * 4
    assert t.optimizers[0].param_groups[-1]["lr"] == 0.5


def test_plateau_on_a_checkpoint_without_the_callback_begins_at_phase_0(checkpoint):
    path = checkpoint()
    callback = FreezeScheduler(
        {0: "head", 1: "*"}, advance=Plateau(patience=9, max_epochs_per_phase=2)
    )
    watch = recorder(L, lambda t, m: callback.phase)
    fit(L, module(L), callback, watch, ckpt_path=path, max_epochs=6)
    assert watch.seen[::4] == [0, 0, 1, 1]


BASE = {0: "head", 1: "*"}


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (
            FreezeScheduler({0: "head", 3: "*"}),
            r"the phase at 1 was \{'train': \['\*'\]\}, is None",
        ),
        (FreezeScheduler({0: "encoder", 1: "*"}), r"the phase at 0 was .*'head'.*, is .*'encoder'"),
        (FreezeScheduler([Phase(0, "head"), Phase(1, "*", lr=0.1)]), r"the phase at 1 was .*'lr'"),
        (FreezeScheduler(FreezeSchedule(BASE, unit="step")), "unit was None, is step"),
        (FreezeScheduler(BASE, advance=Plateau()), "advance was None, is Plateau"),
        (
            FreezeScheduler(FreezeSchedule(BASE, scope=["encoder", "head"])),
            r"it was FreezeScheduler\{'scope': \['\*'\].*this is .*'scope': \['encoder', 'head'\]",
        ),
        (
            FreezeScheduler(FreezeSchedule(BASE, exclude="encoder.norm")),
            r"this is .*'exclude': \['encoder.norm'\]",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_another_schedule_is_refused_with_what_differs(checkpoint, now, message):
    path = checkpoint(FreezeScheduler(BASE))
    m = module(L)
    with pytest.raises(ValueError, match="the checkpoint was made with another schedule") as caught:
        fit(L, m, now, ckpt_path=path)
    assert caught.match(message)
    assert "resume with the schedule it was made with" in str(caught.value)
    assert not m.losses


def test_the_same_schedule_in_another_form_is_the_same(checkpoint, tmp_path):
    path = checkpoint(GradualUnfreezing())
    (tmp_path / "s.yaml").write_text("recipe: gradual_unfreezing")
    for form in (
        FreezeSchedule.gradual_unfreezing(module(L)),
        lambda m: FreezeSchedule.gradual_unfreezing(m),
        tmp_path / "s.yaml",
    ):
        m = module(L)
        fit(L, m, FreezeScheduler(form), ckpt_path=path)
        assert len(m.losses) == 4


def test_the_checkpoint_holds_plain_types(checkpoint):
    path = checkpoint(
        FreezeScheduler(BASE, advance=Plateau(restore_best=True)), WeightDrift(every_n_steps=1)
    )
    state = torch.load(path, weights_only=True)["callbacks"]
    (key,) = [k for k in state if k.startswith("FreezeScheduler")]
    assert set(state[key]) == {"schedule", "phase", "plateau", "best"}
    assert state[key]["schedule"]["phases"][0] == {"start": 0, "train": ["head"]}


def test_either_lightning_reads_the_checkpoint_of_the_other(checkpoint):
    path = checkpoint(GradualUnfreezing())
    P = lightning("pytorch_lightning")
    m = module(P)
    watch = recorder(P, lambda t, m: on(m))
    fit(P, m, GradualUnfreezing(), watch, ckpt_path=path)
    top = {n for n in names(m, "encoder.lstm") if "_l1" in n}
    assert watch.seen[0] == names(m, "head", "encoder.norm") | top


SCRIPT = """
import sys, time, pathlib
sys.path.insert(0, {tests!r})
from test_callbacks_resume import *
folder, delay = pathlib.Path(sys.argv[1]), float(sys.argv[2])
found = sorted(folder.glob("*.ckpt"), key=lambda p: int(p.stem.split("step=")[1]))
class Slow(L.Callback):
    def on_train_batch_end(self, trainer, *args):
        print(trainer.global_step, flush=True)
        time.sleep(delay)
m = make({case!r})
for path in reversed(found):
    try:
        torch.load(path, weights_only=True)
        break
    except Exception:
        path.unlink()  # the kill came while it was written
else:
    path = None
fit(L, m, CASES[{case!r}](), saver(folder, every_n_train_steps=1), Slow(), loader=loader(),
    ckpt_path=path, max_epochs=EPOCHS, enable_checkpointing=True)
torch.save(bits(m), folder / "end.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gradual_unfreezing", "rates", "plateau, best"])
def test_a_killed_run_ends_with_the_same_bits(case, tmp_path):
    whole = make(case)
    fit(L, whole, CASES[case](), loader=loader(), max_epochs=EPOCHS)
    script = SCRIPT.format(tests=str(Path(__file__).parent), case=case)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for steps in (3, 4):
        run = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), "0.05"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        for line in run.stdout:
            if line.strip().isdigit():
                steps -= 1
            if steps == 0:
                time.sleep(0.01)
                run.send_signal(signal.SIGKILL)
                break
        run.stdout.close()
        assert run.wait() == -signal.SIGKILL
    assert list(tmp_path.glob("*.ckpt"))
    assert not (tmp_path / "end.pt").exists()
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), "0"],
        check=True,
        capture_output=True,
        env=environment,
    )
    assert same(torch.load(tmp_path / "end.pt"), bits(whole))
