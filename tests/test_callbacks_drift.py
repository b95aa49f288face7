"""WeightDrift: the numbers, the checkpoint, and what is logged."""

import pytest
import torch
from _fits import LIGHTNINGS, fit, lightning, module, recorder, same
from torch import nn
from torchmetrics import Metric

from lstm_freeze.callbacks import FreezeScheduler, WeightDrift
from lstm_freeze.callbacks._weight_drift import Drift

L = lightning()
GROUPS = [
    "encoder.embedding",
    *(f"encoder.lstm[{k}].{d}" for k in (0, 1) for d in ("forward", "reverse")),
    "encoder.norm",
    "head",
]


def logged(trainer):
    return {k: float(v) for k, v in trainer.callback_metrics.items() if "weight_drift" in k}


class TestMetric:
    def test_is_a_metric(self):
        assert issubclass(Drift, Metric)

    @pytest.mark.parametrize(
        "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64]
    )
    def test_against_the_definition(self, dtype):
        torch.manual_seed(0)
        start = [
            [torch.randn(3, 4).to(dtype), torch.randn(5).to(dtype)],
            [torch.randn(2).to(dtype)],
        ]
        weights = [[w + torch.randn_like(w) for w in group] for group in start]
        metric = Drift(2)
        metric.update(weights, start)
        for found, w, w0 in zip(metric.compute(), weights, start, strict=True):
            a, b = (torch.cat([t.flatten().to(torch.complex128) for t in g]) for g in (w, w0))
            assert float(found) == pytest.approx(float((a - b).norm() / b.norm()), rel=1e-5)

    def test_unmoved_is_exactly_zero(self):
        weights = [[torch.randn(3, 4)]]
        metric = Drift(1)
        metric.update(weights, [[weights[0][0].clone()]])
        assert float(metric.compute()) == 0.0

    def test_from_zero_it_is_the_distance(self):
        metric = Drift(1)
        metric.update([[torch.tensor([3.0, 4.0])]], [[torch.zeros(2)]])
        assert float(metric.compute()) == 5.0

    def test_the_last_update_counts(self):
        metric = Drift(1)
        metric.update([[torch.ones(2)]], [[torch.zeros(2)]])
        metric.update([[torch.zeros(2)]], [[torch.zeros(2)]])
        assert float(metric.compute()) == 0.0

    def test_a_nan_shows(self):
        metric = Drift(1)
        metric.update([[torch.tensor([float("nan")])]], [[torch.ones(1)]])
        assert torch.isnan(metric.compute()).all()


@pytest.mark.parametrize("name", LIGHTNINGS)
def test_logs_every_group_and_frozen_ones_read_zero(name):
    L = lightning(name)
    m = module(L)
    start = {n: p.detach().clone() for n, p in m.named_parameters()}
    t = fit(L, m, FreezeScheduler({0: ["head", "encoder.lstm[1].reverse"]}), WeightDrift(4))
    found = logged(t)
    assert sorted(found) == sorted(f"weight_drift/{g}" for g in GROUPS)
    trained = {"weight_drift/head", "weight_drift/encoder.lstm[1].reverse"}
    assert {k for k, v in found.items() if v == 0.0} == set(found) - trained
    a = torch.cat([p.detach().flatten() for p in m.head.parameters()])
    b = torch.cat([start[f"head.{n}"].flatten() for n, _ in m.head.named_parameters()])
    assert found["weight_drift/head"] == pytest.approx(float((a - b).norm() / b.norm()), rel=1e-5)


def test_every_n_steps():
    watch = recorder(L, lambda t, m: (t.global_step, bool(logged(t))))
    fit(L, module(L), WeightDrift(3), watch, max_epochs=1)
    assert watch.seen == [(0, False), (1, False), (2, False), (3, True)]


def test_a_resumed_run_measures_from_the_same_beginning(tmp_path):
    whole = fit(L, module(L), WeightDrift(1), max_epochs=4)
    half = fit(L, module(L), WeightDrift(1), max_epochs=2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    m = module(L)
    resumed = fit(L, m, WeightDrift(1), max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    assert logged(resumed) == logged(whole)
    assert logged(whole) != logged(half)


def test_without_it_in_the_checkpoint_it_begins_there(tmp_path):
    half = fit(L, module(L), max_epochs=2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = fit(L, module(L), WeightDrift(1), max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    whole = fit(L, module(L), WeightDrift(1), max_epochs=4)
    assert logged(resumed)["weight_drift/head"] != logged(whole)["weight_drift/head"]


def test_another_model_is_refused(tmp_path):
    half = fit(L, module(L), WeightDrift(1), max_epochs=1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)
    del state["callbacks"]["WeightDrift"]["start"]["head.weight"]
    torch.save(state, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"remembers other weights: head\.weight; resume with"):
        fit(L, module(L), WeightDrift(1), ckpt_path=tmp_path / "other.ckpt")


def test_another_trainers_fit_begins_anew():
    """As in cross-validation, also where the folds share the module."""
    m, drift = module(L), WeightDrift(1)
    fit(L, m, drift, max_epochs=1)
    ended = {n: p.detach().clone() for n, p in m.named_parameters()}
    fit(L, m, drift, max_epochs=1)
    assert same(drift.start, ended)
    other = module(L, seed=5)
    began = {n: p.detach().clone() for n, p in other.named_parameters()}
    fit(L, other, drift, max_epochs=1)
    assert same(drift.start, began)
    assert not same(drift.start, ended)


def test_the_same_trainer_goes_on_measuring():
    m, drift = module(L), WeightDrift(1)
    t = fit(L, m, drift, max_epochs=1)
    start = {n: w.clone() for n, w in drift.start.items()}
    t.fit_loop.max_epochs = 2
    fit(L, m, made=t)
    assert same(drift.start, start)
    assert not same(drift.start, dict(m.named_parameters()))


@pytest.mark.parametrize("sanity", [0, 2])
def test_lazy_modules_are_measured_from_what_their_first_batch_made_them(sanity):
    class Lazy(type(module(L))):
        def __init__(self):
            super().__init__()
            self.head = nn.LazyLinear(2)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    m = Lazy()
    began = {}
    note = recorder(L, lambda t, m: None)
    note.on_before_zero_grad = lambda t, m, o: began.update(
        {} if began else {n: p.detach().clone() for n, p in m.named_parameters()}
    )
    t = fit(L, m, WeightDrift(1), note, num_sanity_val_steps=sanity, max_epochs=1)
    ended = dict(m.named_parameters())
    a = torch.cat([ended[f"head.{n}"].detach().flatten() for n in ("weight", "bias")])
    b = torch.cat([began[f"head.{n}"].flatten() for n in ("weight", "bias")])
    found = logged(t)["weight_drift/head"]
    assert found == pytest.approx(float((a - b).norm() / b.norm()), rel=1e-4)
    assert found > 0


@pytest.mark.parametrize(
    ("every", "error", "message"),
    [
        (0, ValueError, "`every_n_steps` must be at least 1, got 0"),
        (2.0, TypeError, "`every_n_steps` must be an integer, got 2.0"),
    ],
)
def test_every_n_steps_is_checked(every, error, message):
    with pytest.raises(error, match=message):
        WeightDrift(every)
