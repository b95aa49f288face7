"""FreezeScheduler and GradualUnfreezing in real fits, with both Lightnings."""

import math

import pytest
import torch
from _fits import LIGHTNINGS, bits, data, fit, lightning, module, names, on, recorder, same
from torch import nn

from lstm_freeze import FreezeSchedule, FrozenWeightsChanged, Phase, freeze, param_groups
from lstm_freeze._cache import PrefixLevels
from lstm_freeze._schedule import ResolvedSchedule
from lstm_freeze.callbacks import (
    FreezeScheduler,
    FrozenWeightsCheck,
    GradualUnfreezing,
    Plateau,
)

L = lightning()
THREE = {0: "head", 1: ["head", "encoder.lstm[-1]"], 2: "*"}


def rates(trainer):
    return {g["name"]: g["lr"] for o in trainer.optimizers for g in o.param_groups}


@pytest.mark.parametrize("name", LIGHTNINGS)
def test_follows_the_schedule_in_either_lightning(name):
    L = lightning(name)
    m = module(L)
    started = bits(m)
    watch = recorder(L, lambda t, m: (t.current_epoch, on(m), bits(m)))
    fit(L, m, FreezeScheduler(THREE), watch)
    top = {n for n in names(m, "encoder.lstm") if "_l1" in n}
    expected = [names(m, "head"), names(m, "head") | top, names(m, "")]
    assert len(watch.seen) == 12
    for epoch, trained, weights in watch.seen:
        assert trained == expected[epoch]
        ever = set().union(*expected[: epoch + 1])
        assert all(torch.equal(weights[n], started[n]) for n in names(m, "") - ever)
    assert not any(torch.equal(bits(m)[n], started[n]) for n in names(m, ""))
    assert on(m) == names(m, "")


def test_the_last_phase_stays_after_the_fit():
    m = module(L)
    fit(L, m, FreezeScheduler({0: "*", 1: "head"}))
    assert on(m) == names(m, "head")


@pytest.mark.parametrize(
    "schedule",
    [
        FreezeSchedule(THREE),
        THREE,
        [Phase(start, train) for start, train in THREE.items()],
        lambda model: FreezeSchedule(THREE),
    ],
    ids=["schedule", "mapping", "phases", "function"],
)
def test_forms_of_a_schedule(schedule):
    m = module(L)
    callback = FreezeScheduler(schedule)
    fit(L, m, callback, max_epochs=2)
    assert callback.phase == 1
    assert callback.state_key == "FreezeScheduler{'scope': ['*'], 'exclude': []}"


@pytest.mark.parametrize("as_text", [True, False])
def test_a_yaml_file(tmp_path, as_text):
    path = tmp_path / "schedule.yaml"
    path.write_text("recipe: gradual_unfreezing\nevery: 2\n")
    m = module(L)
    fit(L, m, FreezeScheduler(str(path) if as_text else path), max_epochs=3)
    assert on(m) == names(m, "head", "encoder.norm")


def test_gradual_unfreezing():
    m = module(L)
    watch = recorder(L, lambda t, m: on(m))
    fit(L, m, GradualUnfreezing(every_n_epochs=1), watch, max_epochs=5)
    low, top = ({n for n in names(m, "encoder.lstm") if f"_l{k}" in n} for k in (0, 1))
    head, above = names(m, "head"), names(m, "head", "encoder.norm")
    expected = [head, above, above | top, above | top | low, names(m, "")]
    assert watch.seen[::4] == expected


def test_steps():
    m = module(L)
    watch = recorder(L, lambda t, m: (t.global_step, on(m) == names(m, "head")))
    schedule = FreezeSchedule({0: "head", 3: "*", 6: "head"}, unit="step")
    fit(L, m, FreezeScheduler(schedule), watch, max_epochs=2)
    assert watch.seen == [(i, i < 3 or i >= 6) for i in range(8)]


def test_steps_are_optimizer_steps_under_accumulation():
    m = module(L)
    watch = recorder(L, lambda t, m: on(m) == names(m, "head"))
    schedule = FreezeSchedule({0: "head", 2: "*"}, unit="step")
    fit(L, m, FreezeScheduler(schedule), watch, max_epochs=2, accumulate_grad_batches=2)
    assert watch.seen == [True] * 4 + [False] * 4


def test_leaves_alone_what_is_outside_its_scope():
    m = module(L)
    freeze(m, "encoder.embedding")
    schedule = FreezeSchedule({0: "head"}, scope=["head", "encoder.lstm"])
    watch = recorder(L, lambda t, m: on(m))
    fit(L, m, FreezeScheduler(schedule), watch, max_epochs=1)
    assert watch.seen == [names(m, "head", "encoder.norm")] * 4


def test_two_schedulers_of_two_scopes():
    m = module(L)
    one = FreezeScheduler(FreezeSchedule({0: "head", 1: "head"}, scope="head"))
    two = FreezeScheduler(
        FreezeSchedule({0: "encoder.lstm[1]", 1: "encoder"}, scope="encoder"), check=None
    )
    watch = recorder(L, lambda t, m: on(m))
    fit(L, m, one, two, watch, max_epochs=2)
    top = {n for n in names(m, "encoder.lstm") if "_l1" in n}
    assert watch.seen == [names(m, "head") | top] * 4 + [names(m, "")] * 4


def test_drops_the_state_of_what_it_freezes():
    m = module(L)
    t = fit(L, m, FreezeScheduler({0: "*", 2: "head"}))
    assert {id(p) for p in t.optimizers[0].state} == {id(p) for p in m.head.parameters()}


def test_a_frozen_batch_norm_does_not_move():
    m = module(L)
    before = m.encoder.norm.running_mean.clone()
    fit(L, m, FreezeScheduler({0: "head"}))
    assert torch.equal(m.encoder.norm.running_mean, before)


def test_it_acts_again_when_something_else_flips_a_parameter():
    class Flips(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.encoder.embedding.weight.requires_grad_(True)

    m = module(L)
    watch = recorder(L, lambda t, m: on(m))
    fit(L, m, FreezeScheduler({0: "head"}), Flips(), watch, max_epochs=2)
    assert watch.seen == [names(m, "head")] * 8


def test_configure_model():
    class Late(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.inner = None

        def configure_model(self):
            if self.inner is None:
                self.inner = module(L)

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.inner(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    m = Late()
    callback = GradualUnfreezing(encoder="inner.encoder", head="inner.head")
    watch = recorder(L, lambda t, m: on(m))
    fit(L, m, callback, watch, val=False, max_epochs=2)
    assert watch.seen[0] == names(m, "inner.head")
    assert callback.phase == 1


class Manual:
    """Two optimizers by hand; `toggle` uses Lightning's toggling."""

    @staticmethod
    def make(toggle):
        base = type(module(L))

        class TwoOptimizers(base):
            def __init__(self):
                super().__init__()
                self.automatic_optimization = False

            def training_step(self, batch, index):
                for optimizer in self.optimizers():
                    if toggle:
                        self.toggle_optimizer(optimizer)
                    optimizer.zero_grad()
                    loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
                    if loss.requires_grad:
                        self.manual_backward(loss)
                    optimizer.step()
                    if toggle:
                        self.untoggle_optimizer(optimizer)

            def configure_optimizers(self):
                return [
                    torch.optim.Adam(param_groups(self.encoder, 0.01)),
                    torch.optim.SGD(self.head.parameters(), lr=0.1, momentum=0.9),
                ]

        torch.manual_seed(0)
        return TwoOptimizers()


@pytest.mark.parametrize("toggle", [False, True])
def test_two_optimizers_by_hand(toggle):
    m = Manual.make(toggle)
    watch = recorder(L, lambda t, m: (t.global_step, on(m), bits(m)))
    schedule = FreezeSchedule({0: "head", 4: "*", 6: "encoder"}, unit="step")
    fit(L, m, FreezeScheduler(schedule), FrozenWeightsCheck(), watch, max_epochs=1)
    head, encoder = names(m, "head"), names(m, "encoder")
    assert [(s, o) for s, o, _ in watch.seen] == [
        (0, head),
        (2, head),
        (4, head | encoder),
        (6, encoder),
    ]
    weights = [b for _, _, b in watch.seen]
    moved = [
        {n for n in a if not torch.equal(a[n], b[n])}
        for a, b in zip(weights, [*weights[1:], bits(m)], strict=True)
    ]
    assert [{n for n in one if n in head | encoder} for one in moved] == [
        head,
        head,
        head | encoder,
        encoder,
    ]


class TestRates:
    def test_lr_and_warm_up(self):
        m = module(L)
        schedule = FreezeSchedule(
            [Phase(0, "head", lr=0.5), Phase(1, "*", lr={"head": 0.1, "*": 0.02}, warmup=4)]
        )
        watch = recorder(L, lambda t, m: (rates(t)["head"], rates(t)["encoder.norm"]))
        fit(L, m, FreezeScheduler(schedule), watch)
        assert watch.seen == [(0.5, 0.01)] * 4 + [
            (0.1, pytest.approx(0.02 * min(i + 1, 4) / 4)) for i in range(8)
        ]

    def test_warm_up_counts_optimizer_steps(self):
        m = module(L)
        schedule = FreezeSchedule([Phase(0, "*", lr=1.0, warmup=2)])
        watch = recorder(L, lambda t, m: rates(t)["head"])
        fit(L, m, FreezeScheduler(schedule), watch, max_epochs=2, accumulate_grad_batches=2)
        assert watch.seen == [0.5, 0.5, 1, 1, 1, 1, 1, 1]

    @pytest.mark.parametrize(
        ("make", "factors"),
        [
            (lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5), [1, 0.5, 0.25]),
            (lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5), [1, 0.5, 0.25]),
            (lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2], 0.1), [1, 1, 0.1]),
            (
                lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 4),
                [(1 + math.cos(math.pi * i / 4)) / 2 for i in range(3)],
            ),
            (lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.5, 2), [1, 0.75, 0.5]),
            (
                lambda o: torch.optim.lr_scheduler.ChainedScheduler(
                    [torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5)]
                ),
                [1, 0.5, 0.25],
            ),
        ],
        ids=["Step", "Exponential", "MultiStep", "CosineAnnealing", "Linear", "Chained"],
    )
    def test_schedulers_that_go_on_are_kept(self, make, factors):
        m = module(L, scheduler=make)
        schedule = FreezeSchedule([Phase(0, "head"), Phase(1, "head", lr=3.0)])
        watch = recorder(L, lambda t, m: rates(t)["head"])
        fit(L, m, FreezeScheduler(schedule), watch)
        first = 0.01 * factors[0]
        later = [3.0 * f / factors[1] for f in factors[1:]]
        assert watch.seen[::4] == pytest.approx([first, *later])

    @pytest.mark.parametrize(
        "make",
        [
            lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: 0.9**e),
            lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=99),
            lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.1, 0.2, cycle_momentum=False),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
            lambda o: torch.optim.lr_scheduler.SequentialLR(
                o, [torch.optim.lr_scheduler.StepLR(o, 5) for _ in range(2)], [3]
            ),
            lambda o: torch.optim.lr_scheduler.ChainedScheduler(
                [torch.optim.lr_scheduler.LambdaLR(o, lambda e: 0.9**e)]
            ),
            lambda o: type("Own", (torch.optim.lr_scheduler.StepLR,), {})(o, 5),
        ],
        ids=["Lambda", "OneCycle", "Cyclic", "WarmRestarts", "Sequential", "Chained", "subclass"],
    )
    def test_schedulers_that_overwrite_are_refused(self, make):
        m = module(L, scheduler=make)
        before = bits(m)
        with pytest.raises(ValueError, match="may overwrite them: it computes them from its own"):
            fit(L, m, FreezeScheduler([Phase(0, "head", lr=1e-3)]))
        assert same(bits(m), before)

    def test_without_rates_any_scheduler_runs(self):
        m = module(L, scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: 0.9**e))
        t = fit(L, m, FreezeScheduler(THREE))
        assert rates(t)["head"] == pytest.approx(0.01 * 0.9**3)

    def test_progressive_freezing(self):
        m = module(L, lr=0.3)
        recipe = FreezeSchedule.recipe("progressive_freezing", total=4, t0=0.5, how="linear")
        watch = recorder(L, lambda t, m: (rates(t)["encoder.embedding"], rates(t)["head"], on(m)))
        fit(L, m, FreezeScheduler(recipe), watch, max_epochs=4)
        for j, (low, head, trained) in enumerate(watch.seen):
            assert head == pytest.approx(0.3 * (1 + math.cos(math.pi * j / 16)) / 2)
            part = min(j / 8, 1)
            assert low == pytest.approx(0.6 * (1 + math.cos(math.pi * part)) / 2)
            assert ("encoder.embedding.weight" in trained) is (j < 8)

    def test_progressive_freezing_refuses_a_scheduler(self):
        m = module(L, scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 5))
        recipe = FreezeSchedule.recipe("progressive_freezing", total=4)
        with pytest.raises(ValueError, match="sets the learning rates in each step, and so does S"):
            fit(L, m, FreezeScheduler(recipe))

    def test_progressive_freezing_needs_the_length_of_an_epoch(self):
        class Endless(torch.utils.data.IterableDataset):
            def __iter__(self):
                while True:
                    yield torch.zeros(5, dtype=torch.long), torch.tensor(0)

        recipe = FreezeSchedule.recipe("progressive_freezing", total=4)
        loader = torch.utils.data.DataLoader(Endless(), 2)
        with pytest.raises(ValueError, match="needs the length of an epoch, and the training data"):
            fit(L, module(L), FreezeScheduler(recipe), loader=loader)


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"schedule": 3}, TypeError, "`schedule` must be a FreezeSchedule, .*got int"),
            ({"schedule": THREE, "check": "batch"}, ValueError, "\"epoch\" or None, got 'batch'"),
            (
                {"schedule": THREE, "advance": 3},
                TypeError,
                "`advance` must be a Plateau or None, g",
            ),
            ({"schedule": {1: "head"}}, ValueError, "must have a phase that starts at 0"),
        ],
    )
    def test_arguments(self, arguments, error, message):
        with pytest.raises(error, match=message):
            FreezeScheduler(**arguments)

    @pytest.mark.parametrize(
        ("every", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)]
    )
    def test_every_n_epochs(self, every, error):
        with pytest.raises(error, match="`every_n_epochs` must be"):
            GradualUnfreezing(every_n_epochs=every)

    def test_a_function_that_returns_something_else(self):
        with pytest.raises(TypeError, match="`schedule` must return a FreezeSchedule, it returned"):
            fit(L, module(L), FreezeScheduler(lambda m: None))

    def test_all_mistakes_at_once_before_the_first_step(self):
        m = module(
            L,
            optimizer=lambda g: torch.optim.SGD(m.head.parameters(), lr=0.1),
            scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: 1),
        )
        before = bits(m)
        schedule = [Phase(0, "haed"), Phase(1, "encoder.lstm[5]"), Phase(2, "*", lr=1.0)]
        with pytest.raises(ValueError, match="for 4 reasons") as caught:
            fit(L, m, FreezeScheduler(schedule))
        for words in [
            "haed",
            "this LSTM has 2 layers",
            "`optimizer` holds no",
            "LambdaLR may over",
        ]:
            assert words in str(caught.value)
        assert same(bits(m), before)
        assert not m.losses

    def test_wrong_encoder(self):
        with pytest.raises(ValueError, match='encoder="encodr": no such module; did you mean'):
            fit(L, module(L), GradualUnfreezing(encoder="encodr"))

    def test_lbfgs(self):
        m = module(L, optimizer=lambda groups: torch.optim.LBFGS(m.parameters()))
        with pytest.raises(ValueError, match="is an LBFGS that holds what is frozen"):
            fit(L, m, FreezeScheduler(THREE))

    def test_an_idle_optimizer_under_gradient_scaling(self):
        m = Manual.make(False)
        precision = L.plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
        with pytest.raises(ValueError, match=r"phase at 0 leaves optimizer 0 \(Adam\) nothing"):
            fit(L, m, FreezeScheduler({0: "head", 1: "*"}), plugins=[precision])

    def test_an_idle_optimizer_without_gradient_scaling(self):
        m = Manual.make(False)
        fit(L, m, FreezeScheduler({0: "head", 1: "*"}), max_epochs=1)
        assert on(m) == names(m, "head")

    def test_plateau_without_validation(self):
        with pytest.raises(ValueError, match="looks at a metric after each validation, and this f"):
            fit(L, module(L), FreezeScheduler(THREE, advance=Plateau()), limit_val_batches=0)

    def test_plateau_with_progressive_freezing(self):
        recipe = FreezeSchedule.recipe("progressive_freezing", total=4)
        with pytest.raises(ValueError, match="fixes the times of its phases, so it takes no `adv"):
            fit(L, module(L), FreezeScheduler(recipe, advance=Plateau()))


class TestCheck:
    @staticmethod
    def writes(hook):
        def write(self, trainer, pl_module, *args):
            pl_module.encoder.embedding.weight.data[0] += 1

        return type("Writes", (L.Callback,), {hook: write})()

    @pytest.mark.parametrize("check", ["step", "epoch"])
    def test_a_moved_weight_stops_the_run(self, check):
        m = module(L)
        with pytest.raises(FrozenWeightsChanged, match=r"encoder\.embedding\.weight"):
            fit(L, m, FreezeScheduler(THREE, check=check), self.writes("on_train_batch_end"))
        assert len(m.losses) == (1 + 1 if check == "step" else 4)

    def test_none_checks_nothing(self):
        m = module(L)
        fit(L, m, FreezeScheduler(THREE, check=None), self.writes("on_train_batch_end"))
        assert len(m.losses) == 12

    def test_the_end_of_the_fit_is_checked(self):
        with pytest.raises(FrozenWeightsChanged, match=r"encoder\.embedding\.weight"):
            fit(L, module(L), FreezeScheduler({0: "head"}), self.writes("on_train_end"))

    def test_a_frozen_weights_check_takes_over(self, monkeypatch):
        made = []
        import lstm_freeze.callbacks._scheduler as scheduler

        monkeypatch.setattr(scheduler, "FitGuard", lambda *a, **k: made.append(a))
        fit(L, module(L), FreezeScheduler(THREE), FrozenWeightsCheck())
        assert not made

    def test_leaves_no_hook_behind(self):
        m = module(L)
        t = fit(L, m, FreezeScheduler(THREE))
        assert not t.optimizers[0]._optimizer_step_post_hooks


class TestLogging:
    def test_csv(self, tmp_path):
        logger = L.loggers.CSVLogger(tmp_path)
        m = module(L)
        fit(L, m, FreezeScheduler(THREE), logger=logger)
        rows = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
        header, *rows = [row.split(",") for row in rows]
        found = [dict(zip(header, row, strict=True)) for row in rows]
        found = [row for row in found if row["freeze/phase"]]
        assert [float(row["freeze/phase"]) for row in found] == [0, 1, 2]
        sizes = [14, 14 + 2 * 132, sum(p.numel() for p in m.parameters())]
        assert [float(row["freeze/trainable"]) for row in found] == sizes
        assert float(found[0]["freeze/lr/encoder.lstm[0].forward"]) == pytest.approx(0.01)

    def test_tensorboard(self, tmp_path):
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        logger = L.loggers.TensorBoardLogger(tmp_path)
        fit(L, module(L), FreezeScheduler(THREE), logger=logger)
        events = EventAccumulator(logger.log_dir)
        events.Reload()
        assert [e.value for e in events.Scalars("freeze/phase")] == [0, 1, 2]
        assert "freeze/lr/head" in events.Tags()["scalars"]

    def test_phases_by_step(self):
        schedule = FreezeSchedule({0: "head", 2: "*"}, unit="step")
        watch = recorder(L, lambda t, m: float(t.callback_metrics.get("freeze/phase", -1)))
        fit(L, module(L), FreezeScheduler(schedule), watch, max_epochs=1, log_every_n_steps=1)
        assert watch.seen[-1] == 1

    def test_the_progress_bar_shows_the_phase(self):
        shown = recorder(L, lambda t, m: dict(t.progress_bar_metrics))
        fit(L, module(L), FreezeScheduler(THREE), shown)
        assert [row.get("phase") for row in shown.seen][1::4] == [0, 1, 2]

    def test_learning_rate_monitor_names_the_groups(self, tmp_path):
        monitor = L.callbacks.LearningRateMonitor("step")
        schedule = [Phase(0, "head", lr=0.5), Phase(1, "head", lr=0.25)]
        logger = L.loggers.CSVLogger(tmp_path)
        m = module(L, scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 99))
        fit(L, m, FreezeScheduler(schedule), monitor, logger=logger, log_every_n_steps=1)
        assert monitor.lrs["lr-AdamW/head"][::4] == [0.5, 0.25, 0.25]


def test_state_keys():
    one = FreezeScheduler(FreezeSchedule(THREE, scope=["a", "b"], exclude="c"))
    assert one.state_key == "FreezeScheduler{'scope': ['a', 'b'], 'exclude': ['c']}"
    assert GradualUnfreezing().state_key == GradualUnfreezing(every_n_epochs=7).state_key
    f = lambda m: FreezeSchedule(THREE)  # noqa: E731
    assert FreezeScheduler(f).state_key != FreezeScheduler(f).state_key


def test_doing_nothing_costs_nothing():
    """In a batch without a change only a comparison is done: no walk, no freeze, no log."""
    m = module(L)
    callback = FreezeScheduler(FreezeSchedule({0: "head", 10**6: "*"}, unit="step"))
    calls = []

    class Counts(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            resolved = callback.resolved
            if not calls:
                inner = resolved.enter
                resolved.enter = lambda *a, **k: (calls.append("enter"), inner(*a, **k))[1]
                calls.append("begun")

    fit(L, m, callback, Counts(), max_epochs=1)
    assert calls == ["begun"]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_phase_is_entered_once_at_a_fits_start(resumed, monkeypatch, tmp_path):
    """Twice after a resume: the checkpoint's optimizer states come after the first time."""
    if resumed:
        before = fit(L, module(L), FreezeScheduler({0: "head"}), max_epochs=1)
        before.save_checkpoint(tmp_path / "one.ckpt")
    entered, computed = [], []
    for kind, name, calls in (
        (ResolvedSchedule, "enter", entered),
        (PrefixLevels, "keep_ahead", computed),
    ):
        inner = getattr(kind, name)

        def wrapped(*args, inner=inner, calls=calls, **options):
            calls.append(args[1])
            return inner(*args, **options)

        monkeypatch.setattr(kind, name, wrapped)
    checkpoint = tmp_path / "one.ckpt" if resumed else None
    fit(L, module(L), FreezeScheduler({0: "head"}), max_epochs=3, ckpt_path=checkpoint)
    assert entered == computed == [0] * (1 + resumed)


def test_what_was_unfrozen_by_hand_is_frozen_again_at_the_next_epoch():
    m = module(L)

    class Unfreezes(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.encoder.norm.weight.requires_grad_(True)

    watch = recorder(L, lambda t, m: on(m))
    fit(L, m, FreezeScheduler({0: "head"}), Unfreezes(), watch)
    assert watch.seen == [names(m, "head")] * 12


def test_data_loader_is_deterministic():
    assert same(dict(enumerate(data().dataset.tensors)), dict(enumerate(data().dataset.tensors)))
