"""Plateau: the decision as a pure function, and phases driven by a metric in real fits."""

import math

import pytest
import torch
from _fits import bits, data, fit, lightning, module, names, on, recorder, same
from torch import nn

from lstm_freeze import FreezeSchedule
from lstm_freeze.callbacks import FreezeScheduler, FrozenWeightsCheck, Plateau
from lstm_freeze.callbacks._advance import PlateauState

L = lightning()
THREE = {0: "head", 1: ["head", "encoder.lstm"], 2: "*"}


def run(plateau, values):
    """The phase in which each epoch is trained, given one validation value an epoch."""
    state, phases = PlateauState(began=0), []
    for epoch, value in enumerate(values):
        if plateau.is_due(state, epoch):
            state = state.next(epoch)
        phases.append(state.phase)
        state = state.after(value, plateau.improves(value, state.best), epoch)
    return phases


class TestDecision:
    @pytest.mark.parametrize(
        ("plateau", "values", "phases"),
        [
            (Plateau(patience=1), [5, 4, 3, 3, 2, 2], [0, 0, 0, 0, 1, 1]),
            (Plateau(patience=2), [5, 6, 4, 5, 4, 9, 9], [0, 0, 0, 0, 0, 1, 1]),
            (Plateau(patience=1, mode="max"), [1, 2, 2, 1, 1], [0, 0, 0, 1, 1]),
            (Plateau(patience=1, min_delta=1.0), [5, 4.5, 3, 3], [0, 0, 1, 1]),
            (Plateau(patience=1, min_delta=1.0), [5, 4, 3, 3], [0, 0, 1, 1]),
            (Plateau(patience=1), [math.nan, math.nan, 5, 4, math.nan, 3], [0, 1, 2, 2, 2, 3]),
            (Plateau(patience=9, max_epochs_per_phase=2), [5, 4, 3, 2, 1], [0, 0, 1, 1, 2]),
            (Plateau(patience=1, max_epochs_per_phase=3), [5, 5, 5, 5, 5], [0, 0, 1, 1, 2]),
            (Plateau(patience=1), [math.inf, 5, 5, -math.inf, -math.inf], [0, 0, 0, 1, 1]),
        ],
    )
    def test_when_the_next_phase_begins(self, plateau, values, phases):
        assert run(plateau, values) == phases

    def test_best_and_count_start_anew(self):
        state = PlateauState(began=0).after(1.0, True, 4).after(2.0, False, 8)
        assert (state.best, state.waited) == (1.0, 1)
        state = state.next(3)
        assert (state.phase, state.began, state.best, state.waited) == (1, 3, None, 0)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"mode": "lowest"}, '`mode` must be "min" or "max", got \'lowest\''),
            ({"patience": 0}, "`patience` must be at least 1, got 0"),
            ({"max_epochs_per_phase": 0}, "`max_epochs_per_phase` must be at least 1, got 0"),
            ({"min_delta": -1.0}, "`min_delta` must be finite and at least 0, got -1.0"),
            ({"min_delta": math.nan}, "`min_delta` must be finite and at least 0, got nan"),
        ],
    )
    def test_refuses(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            Plateau(**arguments)


def scripted(values):
    """A module whose validation metric is given, one value a validation (the sanity check too)."""

    class Scripted(type(module(L))):
        def on_validation_epoch_end(self):
            if self.trainer.sanity_checking:
                self.log("score", -1e9)
            else:
                self.log("score", values[self.validations])
                self.validations += 1

    torch.manual_seed(0)
    made = Scripted()
    made.validations = 0
    return made


def test_the_next_phase_begins_after_patience_validations():
    m = scripted([5.0, 4.0, 4.0, 4.0, 3.0, 3.0, 3.0, 3.0])
    callback = FreezeScheduler(THREE, advance=Plateau("score", patience=2))
    watch = recorder(L, lambda t, m: (callback.phase, on(m)))
    fit(L, m, callback, FrozenWeightsCheck(), watch, max_epochs=8, num_sanity_val_steps=2)
    assert [phase for phase, _ in watch.seen[::4]] == [0, 0, 0, 0, 1, 1, 1, 2]
    lstm = names(m, "head", "encoder.lstm")
    expected = [names(m, "head"), lstm, names(m, "")]
    assert all(trained == expected[phase] for phase, trained in watch.seen)


def test_several_validations_an_epoch_count_each():
    m = scripted([5.0] * 8)
    callback = FreezeScheduler(THREE, advance=Plateau("score", patience=3))
    watch = recorder(L, lambda t, m: callback.phase)
    fit(L, m, callback, watch, max_epochs=4, val_check_interval=0.5)
    assert watch.seen[::4] == [0, 0, 1, 1]


def test_the_starts_do_not_count():
    m = scripted([5.0] * 5)
    schedule = {0: "head", 100: "encoder", 200: "*"}
    callback = FreezeScheduler(schedule, advance=Plateau("score", patience=1))
    watch = recorder(L, lambda t, m: callback.phase)
    fit(L, m, callback, watch, max_epochs=5)
    assert watch.seen[::4] == [0, 0, 1, 1, 2]


def test_the_optimizer_forgets_everything_at_a_new_phase():
    m = scripted([5.0] * 3)
    sizes = []

    class Sizes(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            sizes.append(len(trainer.optimizers[0].state))

    callback = FreezeScheduler({0: "head", 1: "*"}, advance=Plateau("score", patience=1))
    fit(L, m, callback, Sizes(), max_epochs=3)
    assert sizes == [0, 2, 0]


@pytest.mark.parametrize("restore", [True, False])
def test_the_best_weights_come_back_before_the_next_phase(restore):
    m = scripted([5.0, 3.0, 4.0, 4.0, 4.0])
    ends, starts = [], []

    class Watch(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            ends.append(bits(pl_module))

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 0:
                starts.append(bits(pl_module))

    plateau = Plateau("score", patience=2, restore_best=restore)
    callback = FreezeScheduler({0: ["head", "encoder.norm"], 1: "*"}, advance=plateau)
    fit(L, m, callback, FrozenWeightsCheck(), Watch(), max_epochs=5, num_sanity_val_steps=0)
    assert callback.phase == 1
    assert not same(ends[1], ends[3])
    assert same(starts[4], ends[1]) is restore
    assert same(starts[4], ends[3]) is not restore


class Two(L.LightningModule):
    """A generator and a discriminator, each with its own optimizer, batch norm and buffer."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.encoder = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)
        self.critic = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.register_buffer("count", torch.zeros(()))

    def training_step(self, batch, index):
        self.count += 1
        made = self.head(self.encoder(torch.rand(4, 2)))
        for optimizer, loss in zip(
            self.optimizers(),
            (made.square().mean(), self.critic(torch.rand(4, 2)).square().mean()),
            strict=True,
        ):
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def validation_step(self, batch, index):
        self.log("val_loss", 5.0)

    def configure_optimizers(self):
        mine = [*self.encoder.parameters(), *self.head.parameters()]
        return torch.optim.Adam(mine), torch.optim.Adam(self.critic.parameters())


@pytest.mark.parametrize("exclude", [None, "encoder.0", "encoder.1"])
def test_a_new_phase_leaves_what_is_outside_its_scope(exclude):
    """Optimizer state, weights and buffers of the critic go on; those of the scope go back."""
    torch.manual_seed(0)
    m = Two()
    seen = []

    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append((bits(pl_module), states(trainer)))

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 0:
                seen.append((bits(pl_module), states(trainer)))

    def states(trainer):
        return [
            {name: float(o.state[p]["step"]) for name, p in m.named_parameters() if p in o.state}
            for o in trainer.optimizers
        ]

    schedule = FreezeSchedule(
        {0: ["head", "encoder"], 1: "*"}, scope=["encoder", "head"], exclude=exclude
    )
    plateau = Plateau(patience=1, restore_best=True)
    callback = FreezeScheduler(schedule, advance=plateau)
    fit(L, m, callback, Watch(), max_epochs=3, num_sanity_val_steps=0)
    assert callback.phase == 1
    (best, _), (end, _), (start, state) = seen[1], seen[3], seen[4]
    outside = {n for n in end if n.startswith(("critic", "count", exclude or "critic"))}
    assert all(torch.equal(start[n], end[n]) for n in outside)
    assert all(torch.equal(start[n], best[n]) for n in end.keys() - outside)
    assert not torch.equal(end["critic.0.weight"], best["critic.0.weight"])
    assert not torch.equal(end["head.weight"], best["head.weight"])
    assert set(state[0]) == {
        n for n in outside if n.startswith("encoder") and "running" not in n and "num_" not in n
    }
    assert set(state[1].values()) == {8.0}


def test_a_metric_that_was_not_logged():
    callback = FreezeScheduler(THREE, advance=Plateau("valloss"))
    with pytest.raises(
        ValueError, match=r"`monitor` 'valloss' was not logged .*logged: .*val_loss"
    ):
        fit(L, module(L), callback)


def test_validate_on_its_own_counts_nothing():
    m = scripted([5.0] * 9)
    callback = FreezeScheduler(THREE, advance=Plateau("score", patience=1))
    t = fit(L, m, callback, max_epochs=1)
    before = callback._plateau.state
    t.validate(m, data(), verbose=False)
    assert callback._plateau.state == before


def test_another_module_begins_at_phase_0():
    callback = FreezeScheduler(THREE, advance=Plateau("score", patience=1))
    fit(L, scripted([5.0] * 3), callback, max_epochs=3)
    assert callback.phase == 1
    fit(L, scripted([5.0] * 3), callback, max_epochs=1)
    assert callback.phase == 0
