"""FrozenWeightsCheck in real fits: precisions, averaging, several optimizers, who wrote."""

import copy
import pickle

import pytest
import torch
from _fits import LIGHTNINGS, fit, lightning, module
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lstm_freeze import FrozenWeightsChanged, freeze, replace_lstm, status
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


# Steps, however a fit makes them


class Wrapper(torch.optim.Optimizer):
    """As SAM's: what steps is an inner optimizer."""

    def __init__(self, groups):
        super().__init__(groups, {"lr": 0.01})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=0.01)

    def second_step(self):
        self.base_optimizer.step()

    def step(self, closure=None):
        raise NotImplementedError("its two halves are called by hand")


def by_hand(make, step, seed=0):
    """A module that optimises by hand."""
    m = module(L, optimizer=make, seed=seed)
    m.automatic_optimization = False
    automatic = m.training_step

    def training_step(batch, batch_idx):
        m.zero_grad()
        automatic(batch, batch_idx).backward()
        step(m)

    m.training_step = training_step
    return m


def moved_and_put_back(m):
    """A weight that is wrong at a step, and right again before the batch ends."""
    weight = m.encoder.lstm.weight_hh_l0
    with torch.no_grad():
        weight[0, 0] += 1
        m.optimizers().second_step()
        weight[0, 0] -= 1


def test_steps_of_an_inner_optimizer_are_seen():
    m = by_hand(Wrapper, lambda m: m.optimizers().second_step())
    check = FrozenWeightsCheck()
    fit(L, m, FreezeScheduler({0: "head"}), check)
    assert (check.guard.step, check.checks) == (12, 13)
    m = by_hand(Wrapper, moved_and_put_back)
    with pytest.raises(FrozenWeightsChanged) as caught:
        fit(L, m, FreezeScheduler({0: "head"}), FrozenWeightsCheck())
    assert (caught.value.names, caught.value.step) == (("encoder.lstm.weight_hh_l0",), 1)


@pytest.mark.parametrize("check", [[FrozenWeightsCheck()], []])
def test_optimizers_that_the_trainer_builds_anew_are_followed(check):
    class Rebuilds(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.strategy.setup_optimizers(trainer)

    with pytest.raises(FrozenWeightsChanged, match=r"unchanged up to step 8") as caught:
        fit(
            L,
            module(L),
            Rebuilds(),
            FreezeScheduler({0: "head"}),
            *check,
            writes(L, "on_train_batch_start", at=8),
        )
    assert caught.value.step == 9


def behind_torchs_back(m):
    """A step that calls none of torch's hooks."""
    with torch.no_grad():
        for p in m.head.parameters():
            p -= 0.01 * p.grad


@pytest.mark.parametrize("at", [0, 5])
def test_where_no_step_is_seen_it_compares_at_the_end_of_batches(at):
    m = by_hand(torch.optim.SGD, behind_torchs_back)
    check = FrozenWeightsCheck()
    with pytest.raises(FrozenWeightsChanged):
        fit(L, m, FreezeScheduler({0: "head"}), check, writes(L, "on_train_batch_start", at=at))
    assert check.checks == at


def test_steps_unseen_in_mid_fit_are_made_up_for_at_the_end_of_the_batch():
    class Hides(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                (optimizer,) = trainer.optimizers
                plain = type(optimizer).step.__wrapped__
                optimizer.step = lambda closure: plain(optimizer, closure)

    check = FrozenWeightsCheck()
    with pytest.raises(FrozenWeightsChanged) as caught:
        fit(
            L,
            module(L),
            FreezeScheduler({0: "head"}),
            check,
            Hides(),
            writes(L, "on_train_batch_start", at=7),
        )
    assert (check.checks, caught.value.step) == (7, 8)


@pytest.mark.filterwarnings("ignore:.*this fit will run with no optimizer")
def test_a_fit_without_the_trainers_optimizers():
    own = []

    def step(m):
        if not own:
            own.append(torch.optim.SGD(m.head.parameters(), lr=0.01))
        own[0].step()

    m = by_hand(torch.optim.SGD, step)
    m.configure_optimizers = lambda: None
    freeze(m, "encoder")
    check = FrozenWeightsCheck()
    fit(L, m, check, max_epochs=2)
    assert (check.guard.step, check.checks) == (8, 9)


def test_never_a_step_is_a_warning():
    m = by_hand(torch.optim.SGD, lambda m: None)
    with pytest.warns(UserWarning, match="attached and saw no optimizer step"):
        fit(L, m, FreezeScheduler({0: "head"}), FrozenWeightsCheck())


def test_a_phase_that_unfreezes_a_moved_weight_is_stopped_first():
    with pytest.raises(FrozenWeightsChanged, match="as it was about to be unfrozen") as caught:
        fit(
            L,
            module(L),
            FreezeScheduler({0: "head", 1: "*"}),
            FrozenWeightsCheck(every_n_steps=100),
            writes(L, "on_train_batch_end"),
        )
    assert caught.value.step == 4


def test_idle_parameters_are_named():
    m = module(L)
    features = m.encoder.forward
    m.encoder.forward = lambda x: features(x).detach()
    with pytest.warns(UserWarning, match=r"idle: 5 optimizer steps .* encoder.lstm.weight_ih_l0"):
        fit(L, m, FreezeScheduler({0: "*"}), FrozenWeightsCheck(idle_after=5))
    assert "trainable but idle in the last 12 optimizer steps" in str(status(m))


def test_after_a_fit_it_can_be_copied_and_pickled_without_the_module():
    check = FrozenWeightsCheck(idle_after=50)
    m = module(L)
    fit(L, m, FreezeScheduler({0: "head"}), check, max_epochs=1)
    for other in (copy.deepcopy(check), pickle.loads(pickle.dumps(check))):
        assert (other.idle_after, other.checks, other.guard) == (50, 0, None)
        fit(L, m, other, max_epochs=1)
        assert other.checks == 5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every_n_steps": 0}, ValueError, "`every_n_steps` must be at least 1, got 0"),
        ({"every_n_steps": True}, TypeError, "`every_n_steps` must be an integer, got True"),
        ({"idle_after": 0}, ValueError, "`idle_after` must be at least 1, got 0"),
        ({"idle_after": 2.0}, TypeError, "`idle_after` must be an integer, got 2.0"),
        ({"mode": "fast"}, ValueError, '`mode` must be "exact" or "fingerprint", got \'fast\''),
    ],
)
def test_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        FrozenWeightsCheck(**arguments)
