"""Prefix caches in real fits: the scheduler has them keep what later phases need, and logs them."""

import copy

import _ddp_fits
import pytest
import torch
from _fits import LIGHTNINGS, fit, lightning
from _ranks import run
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from lstm_freeze import BiLSTM, FreezeSchedule, PrefixCache, param_groups
from lstm_freeze.callbacks import FreezeScheduler, GradualUnfreezing, Plateau

L = lightning()
I, H, LAYERS = 3, 4, 3
SAMPLES = 12
GRADUAL = {
    0: "head",
    1: ["head", "encoder[-1]"],
    2: ["head", "encoder[1:]"],
    3: ["head", "encoder"],
}


def samples():
    """Sequences of 2 to 7 steps with labels."""
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randn(2 + k % 6, I, generator=draw) for k in range(SAMPLES)]
    return [(row, int(row.sum() > 0)) for row in rows]


def packed(batch):
    rows, labels = zip(*batch, strict=True)
    return pack_sequence(rows, enforce_sorted=False), torch.tensor(labels)


def padded(batch):
    rows, labels = zip(*batch, strict=True)
    whole = torch.zeros(8, len(rows), I)
    for column, row in enumerate(rows):
        whole[: len(row), column] = row
    return whole, torch.tensor(labels)


def loader(collate=packed, workers=0, shuffle=True):
    """Shuffled anew in each epoch, so that batches are of other samples each time."""
    order = torch.Generator().manual_seed(2)
    return torch.utils.data.DataLoader(
        samples(), 4, shuffle=shuffle, generator=order, collate_fn=collate, num_workers=workers
    )


def module(L=L, cache=None, validates=False):
    class Classifier(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.encoder = BiLSTM(I, H, LAYERS)
            self.head = nn.Linear(2 * H, 2)

        def training_step(self, batch, index):
            output, (h, _) = self.encoder(batch[0])
            data = output.data if isinstance(output, PackedSequence) else output
            scores = self.head(torch.cat([h[-2], h[-1]], -1))
            return F.cross_entropy(scores, batch[1]) + data.square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(param_groups(self, 1e-3))

    class Validated(Classifier):
        def validation_step(self, batch, index):
            self.log("val_loss", self.training_step(batch, index), batch_size=4)

    torch.manual_seed(0)
    made = Validated() if validates else Classifier()
    made.encoder.prefix_cache = cache
    return made


class EachEpoch(L.Callback):
    """Notes, for each train epoch, hits, misses, and the levels that are kept on the way."""

    def __init__(self):
        self.seen, self.before = [], (0, 0)

    def on_train_epoch_start(self, trainer, pl_module):
        stats = pl_module.encoder.prefix_cache.stats()
        self.before = stats["hits"], stats["misses"]

    def on_train_epoch_end(self, trainer, pl_module):
        cache = pl_module.encoder.prefix_cache
        hits, misses = cache.stats()["hits"], cache.stats()["misses"]
        seen = hits - self.before[0], misses - self.before[1]
        self.seen.append((*seen, cache.keep_levels))


def fit_with(scheduler, cache, *others, **options):
    model = module(cache=cache)
    options = {"loader": loader(), "val": False, "max_epochs": 4, **options}
    return model, fit(L, model, scheduler, *others, **options)


def assert_close(a, b):
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("collate", [packed, padded])
def test_in_gradual_unfreezing_every_phase_after_the_first_epoch_only_hits(collate):
    watch = EachEpoch()
    cached, _ = fit_with(
        FreezeScheduler(GRADUAL), PrefixCache(), watch, loader=loader(collate), max_epochs=5
    )
    assert watch.seen == [
        (0, SAMPLES, (1, 2)),
        (SAMPLES, 0, (1,)),
        (SAMPLES, 0, ()),
        (0, 0, ()),  # all of it trains: nothing to look up
        (0, 0, ()),
    ]
    plain, _ = fit_with(FreezeScheduler(GRADUAL), None, loader=loader(collate), max_epochs=5)
    assert_close(cached, plain)


def test_what_is_frozen_keeps_its_bits_and_the_rest_trains():
    start = copy.deepcopy(module())
    cached, _ = fit_with(FreezeScheduler(GRADUAL, check="step"), PrefixCache(), max_epochs=2)
    for (name, p), q in zip(cached.named_parameters(), start.parameters(), strict=True):
        assert torch.equal(p, q) == ("_l0" in name or "_l1" in name), name


@pytest.mark.parametrize("name", LIGHTNINGS)
def test_gradual_unfreezing_keeps_what_its_phases_need(name):
    L = lightning(name)
    model = module(L, PrefixCache())
    fit(L, model, GradualUnfreezing(), loader=loader(), val=False, max_epochs=4)
    stats = model.encoder.prefix_cache.stats()
    assert (stats["hits"], stats["misses"]) == (2 * SAMPLES, SAMPLES)


def with_validation(*callbacks, cache, **options):
    """A fit that validates on the data it trains on."""
    model = module(cache=cache, validates=True)
    options = {"num_sanity_val_steps": 0, "loader": loader(), **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("_fits.data", lambda: loader(shuffle=False))
        fit(L, model, *callbacks, **options)
    return model


def test_validation_is_served_too():
    watch = EachEpoch()
    with_validation(FreezeScheduler({0: "head"}), watch, cache=PrefixCache(), max_epochs=2)
    assert [seen[:2] for seen in watch.seen] == [(SAMPLES, SAMPLES), (2 * SAMPLES, 0)]


LEVELS = {
    "LP-FT": ({0: "head", 1: "*"}, [(), ()]),
    "chain-thaw": (lambda m: FreezeSchedule.chain_thaw(m), [(), (), (), (), ()]),
    "progressive freezing": (
        {0: "*", 1: ["head", "encoder[1:]"], 2: "head"},
        [(), (), ()],
    ),
    "a phase repeated": (
        {0: "head", 1: ["head", "encoder[2]"], 2: "head", 3: ["head", "encoder[2]"]},
        [(2,), (), (2,), ()],
    ),
    "a shallow phase, then a deeper one": (
        {0: "head", 1: ["head", "encoder[1:]"], 2: ["head", "encoder[2]"]},
        [(1,), (), ()],
    ),
    "one direction counts": ({0: "head", 1: ["head", "encoder[1].reverse"]}, [(1,), ()]),
    "one kind counts": ({0: "head", 1: ["head", "encoder[2].forward.bias_hh"]}, [(2,), ()]),
}


@pytest.mark.parametrize(("schedule", "expected"), LEVELS.values(), ids=LEVELS)
def test_levels_of_each_phase(schedule, expected):
    watch = EachEpoch()
    fit_with(FreezeScheduler(schedule), PrefixCache(), watch, max_epochs=len(expected))
    assert [levels for _, _, levels in watch.seen] == expected


def test_the_users_own_levels_stay_and_what_was_added_is_taken_back():
    watch = EachEpoch()
    model, _ = fit_with(FreezeScheduler(GRADUAL), PrefixCache(keep_levels=[2]), watch)
    assert [levels for _, _, levels in watch.seen] == [(1, 2), (1, 2), (2,), (2,)]
    assert model.encoder.prefix_cache.keep_levels == (2,)
    model, _ = fit_with(FreezeScheduler(GRADUAL), PrefixCache(), max_epochs=1)
    assert model.encoder.prefix_cache.keep_levels == ()


class Stops(L.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        raise RuntimeError("enough")


def test_a_failing_fit_takes_back_what_was_added():
    model = module(cache=PrefixCache())
    with pytest.raises(RuntimeError, match="enough"):
        fit(L, model, FreezeScheduler(GRADUAL), Stops(), loader=loader(), val=False)
    assert model.encoder.prefix_cache.keep_levels == ()


def test_a_resume_in_a_later_phase_keeps_what_is_still_ahead(tmp_path):
    _, trainer = fit_with(FreezeScheduler(GRADUAL), PrefixCache(), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    watch = EachEpoch()
    resumed, _ = fit_with(
        FreezeScheduler(GRADUAL), PrefixCache(), watch, ckpt_path=tmp_path / "one.ckpt"
    )
    # The cache is not in the checkpoint: the first epoch computes what it and the later ones need.
    assert watch.seen == [(0, SAMPLES, (1,)), (SAMPLES, 0, ()), (0, 0, ())]
    assert resumed.encoder.prefix_cache.keep_levels == ()
    plain, _ = fit_with(FreezeScheduler(GRADUAL), None, ckpt_path=tmp_path / "one.ckpt")
    assert_close(resumed, plain)


def test_plateau_and_restored_best_weights():
    advance = Plateau("val_loss", patience=1, max_epochs_per_phase=1, restore_best=True)
    watch = EachEpoch()

    def fitted(cache, *others):
        scheduler = FreezeScheduler(GRADUAL, advance=advance)
        return with_validation(scheduler, *others, cache=cache, max_epochs=4)

    cached = fitted(PrefixCache(), watch)
    # Each epoch sees the samples twice: in training and in validation.
    assert watch.seen == [
        (SAMPLES, SAMPLES, (1, 2)),
        (2 * SAMPLES, 0, (1,)),
        (2 * SAMPLES, 0, ()),
        (0, 0, ()),
    ]
    assert_close(cached, fitted(None))


@pytest.mark.parametrize("workers", [0, 2])
def test_data_loader_workers(workers):
    watch = EachEpoch()
    fit_with(FreezeScheduler({0: "head"}), PrefixCache(), watch, loader=loader(workers=workers))
    assert [seen[:2] for seen in watch.seen] == [(0, SAMPLES), *[(SAMPLES, 0)] * 3]


def test_a_cache_that_holds_one_level_of_the_data_loses_nothing_to_the_levels_ahead():
    one = PrefixCache()
    fit_with(FreezeScheduler({0: "head"}), one, max_epochs=1)
    tight = PrefixCache(max_bytes=one.stats()["bytes"])
    watch = EachEpoch()
    schedule = {0: "head", 2: ["head", "encoder[-1]"], 4: ["head", "encoder[1:]"]}
    fit_with(FreezeScheduler(schedule), tight, watch, max_epochs=6)
    assert [seen[:2] for seen in watch.seen[:2]] == [(0, SAMPLES), (SAMPLES, 0)]
    assert [seen[0] for seen in watch.seen[3::2]] == [SAMPLES, SAMPLES]
    assert tight.stats()["bytes"] <= tight.max_bytes


class TestLogging:
    def logged(self, model, scheduler):
        seen = []

        class Notes(L.Callback):
            def on_train_end(self, trainer, pl_module):
                seen.append({k: float(v) for k, v in trainer.logged_metrics.items()})

        fit(L, model, scheduler, Notes(), loader=loader(), val=False, max_epochs=2)
        return {k: v for k, v in seen[0].items() if "cache" in k}

    def test_one_cache(self):
        model = module(cache=PrefixCache())
        found = self.logged(model, FreezeScheduler({0: "head"}))
        stats = model.encoder.prefix_cache.stats()
        assert found == {f"freeze/cache/{key}": value for key, value in stats.items()}
        assert (found["freeze/cache/hits"], found["freeze/cache/misses"]) == (SAMPLES, SAMPLES)

    def test_none(self):
        assert self.logged(module(), FreezeScheduler({0: "head"})) == {}

    def test_several_are_named_by_path(self):
        model = module(cache=PrefixCache())
        model.other = BiLSTM(2, 2)
        model.other.prefix_cache = PrefixCache(keep_levels=[1])
        found = self.logged(model, FreezeScheduler({0: ["head", "other"], 1: "*"}))
        assert found["freeze/cache/encoder/misses"] == SAMPLES
        assert found["freeze/cache/other/misses"] == 0
        assert len(found) == 8
        assert model.other.prefix_cache.keep_levels == (1,)

    def test_once_an_epoch(self, tmp_path):
        logger = L.loggers.CSVLogger(tmp_path)
        fit_with(FreezeScheduler(GRADUAL), PrefixCache(), logger=logger, log_every_n_steps=1)
        header, *rows = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().split()
        column = header.split(",").index("freeze/cache/hits")
        values = [float(value) for row in rows if (value := row.split(",")[column])]
        assert values == [0, SAMPLES, 2 * SAMPLES, 2 * SAMPLES]


def test_two_rnns_have_levels_of_their_own_and_a_shared_cache_those_of_both():
    model = nn.ModuleDict({"a": BiLSTM(2, 2, 3), "b": BiLSTM(2, 2, 3), "head": nn.Linear(4, 2)})
    model["a"].prefix_cache = model["b"].prefix_cache = shared = PrefixCache()
    resolved = FreezeSchedule({0: "head", 1: ["head", "a[2]", "b[1:]"]}).resolve(model)
    assert list(resolved.prefixes.caches) == ["a"]
    resolved.prefixes.keep_ahead(0)
    assert shared.keep_levels == (1, 2)
    model["b"].prefix_cache = PrefixCache()
    resolved.prefixes.keep_ahead(0)
    assert (shared.keep_levels, model["b"].prefix_cache.keep_levels) == ((2,), (1,))
    resolved.prefixes.keep_ahead(1)
    assert (shared.keep_levels, model["b"].prefix_cache.keep_levels) == ((), ())


def test_what_is_outside_the_scope_counts_as_the_user_has_set_it():
    model = nn.ModuleDict({"encoder": BiLSTM(2, 2, 3), "head": nn.Linear(4, 2)})
    model["encoder"].prefix_cache = cache = PrefixCache()
    schedule = FreezeSchedule({0: "head", 1: ["head", "encoder[2]"]}, scope=["head", "encoder[2]"])
    resolved = schedule.resolve(model)
    resolved.prefixes.keep_ahead(0)
    assert cache.keep_levels == ()  # layers below train
    model["encoder"].requires_grad_(False)
    resolved.prefixes.keep_ahead(0)
    assert cache.keep_levels == (2,)


def test_levels_set_by_hand_during_a_fit_stay():
    model = nn.ModuleDict({"encoder": BiLSTM(2, 2, 3), "head": nn.Linear(4, 2)})
    model["encoder"].prefix_cache = cache = PrefixCache()
    resolved = FreezeSchedule(GRADUAL).resolve(model)
    resolved.prefixes.keep_ahead(0)
    cache.keep_levels = (*cache.keep_levels, 3)
    resolved.prefixes.keep_ahead(1)
    assert cache.keep_levels == (1, 3)
    resolved.prefixes.take_back()
    assert cache.keep_levels == (3,)


# ---- several ranks


def _on_a_rank(cached):
    tagger = _ddp_fits.Tagger()
    if cached:
        tagger.encoder.lstm.prefix_cache = PrefixCache()
    schedule = {0: "head", 1: ["head", "encoder.lstm[-1]"], 3: "*"}
    watch = _ddp_fits.Watch()
    trainer = _ddp_fits.fit(tagger, FreezeScheduler(schedule), watch, world=2, val=False)
    cache = tagger.encoder.lstm.prefix_cache
    return {
        "agree": all(step["agree"] for step in watch.seen),
        "weights": _ddp_fits.weights(tagger),
        "stats": cache.stats() if cache else None,
        "logged": {k: float(v) for k, v in trainer.logged_metrics.items() if "cache" in k},
    }


def test_under_ddp_each_rank_has_its_own_and_the_ranks_stay_equal():
    cached, plain = run(2, _on_a_rank, True), run(2, _on_a_rank, False)
    assert all(rank["agree"] for rank in cached)
    for rank in cached:
        # 12 samples a rank: computed in the first epoch, looked up in the two of the next phase.
        assert rank["stats"]["misses"] == 12
        assert rank["stats"]["hits"] == 24
        for name, weight in rank["weights"].items():
            torch.testing.assert_close(weight, plain[0]["weights"][name], rtol=1e-4, atol=1e-5)
    assert cached[0]["logged"]["freeze/cache/hits"] == 24
    assert plain[0]["logged"] == {}
