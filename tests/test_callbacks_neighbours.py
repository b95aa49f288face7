"""Other callbacks beside a FreezeScheduler: what they do to the schedule is said, or refused."""

import importlib

import pytest
import torch
import torch._dynamo
from _fits import LIGHTNINGS, data, fit, lightning, module, names, on, recorder, trainer
from torch import nn

from lstm_freeze import FreezeSchedule, Phase
from lstm_freeze.callbacks import FreezeScheduler, GradualUnfreezing, Plateau

L = lightning()
THREE = {0: "head", 1: ["head", "encoder.lstm"], 2: "*"}
RATES = [Phase(0, "head", lr=0.1), Phase(2, "*", lr=0.01)]


@pytest.mark.parametrize("name", LIGHTNINGS)
def test_early_stopping_that_leaves_out_phases_is_said(name):
    L = lightning(name)
    stop = L.callbacks.EarlyStopping("val_loss", patience=1, min_delta=99)
    m = module(L)
    with pytest.warns(UserWarning, match="EarlyStopping ended the run in phase 1 of 3"):
        fit(L, m, FreezeScheduler(THREE), stop, max_epochs=9)
    assert on(m) == names(m, "head", "encoder.lstm")


def test_early_stopping_in_the_last_phase_is_not():
    stop = L.callbacks.EarlyStopping("val_loss", patience=4, min_delta=99)
    watch = recorder(L, lambda t, m: t.current_epoch)
    fit(L, module(L), FreezeScheduler(THREE), stop, watch, max_epochs=9)
    assert max(watch.seen) == 4


def test_with_less_patience_a_plateau_comes_first():
    """The remedy that the warning names."""
    stop = L.callbacks.EarlyStopping("val_loss", patience=4, min_delta=99)
    callback = FreezeScheduler(THREE, advance=Plateau(patience=1, min_delta=99))
    fit(L, module(L), callback, stop, max_epochs=9)
    assert callback.phase == 2


@pytest.mark.parametrize("name", LIGHTNINGS)
def test_a_rate_finder_is_said_to_train_everything(name, tmp_path):
    L = lightning(name)
    m = module(L)
    m.lr = 0.1
    seen = []
    m.on_train_batch_start = lambda batch, index: seen.append(on(m))
    finder = L.callbacks.LearningRateFinder(num_training_steps=3, update_attr=False)
    with pytest.warns(UserWarning, match="the learning rate finder runs before the schedule beg"):
        fit(L, m, GradualUnfreezing(), finder, max_epochs=1, default_root_dir=tmp_path)
    assert seen[0] == names(m, "")
    assert seen[-1] == names(m, "head")


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_remedy_for_the_rate_finder(tmp_path):
    m = module(L)
    m.lr = 0.1
    seen = []
    m.on_train_batch_start = lambda batch, index: seen.append(on(m))
    FreezeSchedule.gradual_unfreezing(m).apply(m, 0)
    alone = trainer(L, default_root_dir=tmp_path)
    importlib.import_module("lightning.pytorch.tuner").Tuner(alone).lr_find(
        m, data(), data(), num_training=3, update_attr=False
    )
    assert seen
    assert all(trained == names(m, "head") for trained in seen)


@pytest.mark.parametrize("kind", ["ModelSummary", "RichModelSummary"])
def test_a_summary_before_the_scheduler_is_said(kind):
    summary = getattr(L.callbacks, kind)()
    with pytest.warns(UserWarning, match=f"{kind} stands before FreezeScheduler in the Trainer's"):
        fit(L, module(L), summary, FreezeScheduler(THREE), max_epochs=1)


def test_a_summary_after_the_scheduler_shows_the_first_phase():
    shown = []

    class Summary(L.callbacks.ModelSummary):
        @staticmethod
        def summarize(summary_data, total_parameters, trainable_parameters, *args, **kwargs):
            shown.append(trainable_parameters)

    fit(L, module(L), FreezeScheduler(THREE), Summary(), max_epochs=1)
    assert shown == [14]


class TestAveraging:
    @staticmethod
    def swa(start):
        return L.callbacks.StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=start)

    @pytest.mark.parametrize(
        ("schedule", "start"),
        [
            (RATES, 2),
            (FreezeSchedule(RATES, unit="step"), 3),
            (FreezeSchedule.recipe("progressive_freezing", total=4), 3),
            ([Phase(0, "head"), Phase(2, "*", warmup=3)], 0.5),
        ],
        ids=["lr", "steps", "progressive_freezing", "warmup"],
    )
    @pytest.mark.parametrize("first", [True, False])
    def test_rates_after_it_begins_are_refused(self, schedule, start, first):
        m = module(L)
        callbacks = [FreezeScheduler(schedule), self.swa(start)]
        with pytest.raises(ValueError, match="StochasticWeightAveraging sets every learning rate"):
            fit(L, m, *(callbacks if first else callbacks[::-1]), max_epochs=4)
        assert not m.losses

    @pytest.mark.parametrize(
        "schedule", [[Phase(0, "head", lr=0.1), Phase(1, "*", lr=0.01)], THREE], ids=["lr", "none"]
    )
    def test_rates_before_it_begins_and_schedules_without_rates_run(self, schedule):
        m = module(L)
        m.encoder.norm = nn.Identity()
        fit(L, m, FreezeScheduler(schedule, check=None), self.swa(3), max_epochs=4)
        assert on(m) == names(m, "")


class TestCompiled:
    PHASES = {i: ["head", f"encoder.lstm[{i % 2}]"] if i % 3 else "head" for i in range(6)}  # noqa: RUF012

    @pytest.mark.parametrize("val", [True, False])
    def test_more_variants_than_torch_makes_are_said(self, val):
        m = module(L)
        m.head.compile(backend="eager")
        needed = 6 if val else 3
        with (
            torch._dynamo.config.patch(recompile_limit=needed - 1),
            pytest.warns(UserWarning, match=f"needs about {needed} compiled variants"),
        ):
            fit(L, m, FreezeScheduler(self.PHASES), max_epochs=1, limit_val_batches=int(val))

    def test_enough_is_not(self):
        m = module(L)
        m.head.compile(backend="eager")
        fit(L, m, FreezeScheduler(self.PHASES), max_epochs=1)

    def test_what_is_not_compiled_may_have_any_number(self):
        with torch._dynamo.config.patch(recompile_limit=1):
            fit(L, module(L), FreezeScheduler(self.PHASES), max_epochs=1)
