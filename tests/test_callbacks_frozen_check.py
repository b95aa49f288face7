"""FrozenWeightsCheck in real fits: precisions, averaging, several optimizers, who wrote."""

import pytest
import torch
from _fits import LIGHTNINGS, fit, lightning, module
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lstm_freeze import FrozenWeightsChanged, freeze, replace_lstm
from lstm_freeze.callbacks import FreezeScheduler, FrozenWeightsCheck, GradualUnfreezing

L = lightning()


def writes(L, hook, at=0):
    """A callback that moves a frozen weight at its n-th call."""

    def write(self, trainer, pl_module, *args):
        if self.calls == at:
            pl_module.encoder.lstm.weight_hh_l0.data[0, 0] += 1
        self.calls += 1

    return type("Writes", (L.Callback,), {hook: write, "calls": 0})()


@pytest.mark.parametrize("name", LIGHTNINGS)
@pytest.mark.parametrize("mode", ["exact", "fingerprint"])
def test_a_moved_weight_stops_the_run_and_is_named(name, mode):
    L = lightning(name)
    m = module(L)
    with pytest.raises(FrozenWeightsChanged) as caught:
        fit(
            L,
            m,
            FreezeScheduler({0: "head"}),
            FrozenWeightsCheck(mode=mode),
            writes(L, "on_train_batch_end", at=5),
        )
    assert caught.value.names == ("encoder.lstm.weight_hh_l0",)
    assert caught.value.step == 7
    assert "likely cause" in str(caught.value)
    assert len(m.losses) == 7


def test_every_n_steps_and_the_end():
    check = FrozenWeightsCheck(every_n_steps=5)
    fit(L, module(L), GradualUnfreezing(), check)
    assert check.checks == 12 // 5 + 1


def test_steps_are_named_as_the_trainer_counts_them_after_a_resume(tmp_path):
    half = fit(L, module(L), FreezeScheduler({0: "head"}), max_epochs=2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    with pytest.raises(FrozenWeightsChanged) as caught:
        fit(
            L,
            module(L),
            FreezeScheduler({0: "head"}),
            FrozenWeightsCheck(),
            writes(L, "on_train_batch_start"),
            ckpt_path=tmp_path / "half.ckpt",
        )
    assert caught.value.step == 9


@pytest.mark.parametrize("order", [1, -1])
def test_follows_the_schedule_in_any_order_of_callbacks(order):
    check = FrozenWeightsCheck()
    schedule = FreezeScheduler({0: "*", 1: "head", 2: "encoder"})
    fit(L, module(L), *[schedule, check][::order])
    assert check.checks == 13


def test_without_a_schedule():
    m = module(L)
    freeze(m, "encoder.lstm[0]")
    check = FrozenWeightsCheck()
    fit(L, m, check)
    assert check.checks == 13


def with_bilstm():
    """Not every CPU has nn.LSTM's bfloat16 kernels; BiLSTM needs none."""
    m = module(L)
    replace_lstm(m)
    return m


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_precisions(precision):
    check = FrozenWeightsCheck()
    schedule = FreezeScheduler({0: "head", 1: "*"})
    fit(L, with_bilstm(), schedule, check, precision=precision, max_epochs=2)
    assert check.checks == 9
    with pytest.raises(FrozenWeightsChanged, match="weight_hh_l0"):
        fit(
            L,
            with_bilstm(),
            FreezeScheduler({0: "head"}),
            FrozenWeightsCheck(),
            writes(L, "on_train_batch_end"),
            precision=precision,
        )


AVERAGES = {
    "SWA": lambda: L.callbacks.StochasticWeightAveraging(1e-2, swa_epoch_start=1),
    "EMA": lambda: L.callbacks.WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(0.9)),
}
has_averaging = pytest.mark.skipif(
    not hasattr(L.callbacks, "WeightAveraging"), reason="Lightning before 2.6 has no EMA"
)


@pytest.mark.parametrize("average", ["SWA", pytest.param("EMA", marks=has_averaging)])
def test_averaged_weights_of_what_never_moved_are_the_same(average):
    check = FrozenWeightsCheck()
    fit(L, module(L), FreezeScheduler({0: "head"}), check, AVERAGES[average]())
    assert check.checks >= 13


@has_averaging
def test_an_average_that_rounds_is_reported():
    """EMAWeightAveraging forms d * w + (1 - d) * w, which is not w in the last bit."""
    average = L.callbacks.EMAWeightAveraging(decay=0.9)
    with pytest.raises(FrozenWeightsChanged, match=r"largest change \d\.\d+e-0[78]"):
        fit(L, module(L), FreezeScheduler({0: "head"}), FrozenWeightsCheck(), average)


@has_averaging
def test_averaging_begun_before_the_freeze_is_reported_at_the_end():
    average = AVERAGES["EMA"]()
    with pytest.raises(FrozenWeightsChanged, match="largest change"):
        fit(L, module(L), FreezeScheduler({0: "*", 1: "head"}), FrozenWeightsCheck(), average)


def test_a_write_at_the_end_of_training_is_seen():
    with pytest.raises(FrozenWeightsChanged, match="weight_hh_l0"):
        fit(
            L,
            module(L),
            FreezeScheduler({0: "head"}),
            FrozenWeightsCheck(),
            writes(L, "on_train_end"),
        )


@pytest.mark.parametrize("fails", [False, True])
def test_leaves_no_hook_behind(fails):
    class Fails(L.Callback):
        def on_train_batch_end(self, *args):
            if fails:
                raise KeyError("stop")

    m = module(L)
    kept = []

    class Keep(L.Callback):
        def on_train_start(self, trainer, pl_module):
            kept.extend(trainer.optimizers)

    if fails:
        with pytest.raises(KeyError, match="stop"):
            fit(L, m, FreezeScheduler({0: "head"}), FrozenWeightsCheck(), Keep(), Fails())
    else:
        fit(L, m, FreezeScheduler({0: "head"}), FrozenWeightsCheck(), Keep(), Fails())
    assert not kept[0]._optimizer_step_post_hooks


def test_it_adds_nothing_to_the_checkpoint(tmp_path):
    t = fit(L, module(L), FrozenWeightsCheck(), max_epochs=1)
    t.save_checkpoint(tmp_path / "end.ckpt")
    assert not torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every_n_steps": 0}, ValueError, "`every_n_steps` must be at least 1, got 0"),
        ({"every_n_steps": True}, TypeError, "`every_n_steps` must be an integer, got True"),
        ({"mode": "fast"}, ValueError, '`mode` must be "exact" or "fingerprint", got \'fast\''),
    ],
)
def test_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        FrozenWeightsCheck(**arguments)
