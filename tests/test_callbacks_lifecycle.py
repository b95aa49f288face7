"""Callbacks before, in, between and after fits: copies, pickles, and a new beginning each time."""

import collections.abc
import copy
import pickle

import pytest
from _fits import bits, fit, lightning, module, names, on, recorder, same

from lstm_freeze import FreezeSchedule, Phase
from lstm_freeze.callbacks import (
    FreezeScheduler,
    FrozenWeightsCheck,
    GradualUnfreezing,
    Plateau,
    SaveChanges,
    WeightAnchor,
    WeightDrift,
)

L = lightning()
TWO = {0: "head", 1: "*"}
CALLBACKS = {
    "FreezeScheduler": lambda: FreezeScheduler(TWO),
    "recipe": lambda: FreezeScheduler(FreezeSchedule.recipe("chain_thaw", lr=0.01)),
    "rates": lambda: FreezeScheduler([Phase(0, "head", lr=0.1, warmup=9), Phase(1, "*", lr=0.1)]),
    "best": lambda: FreezeScheduler(TWO, advance=Plateau(patience=1, restore_best=True)),
    "GradualUnfreezing": lambda: GradualUnfreezing(advance=Plateau()),
    "WeightDrift": lambda: WeightDrift(every_n_steps=1),
    "WeightAnchor": lambda: WeightAnchor("*", strength=0.5),
    "SaveChanges": lambda: SaveChanges(),
    "FrozenWeightsCheck": lambda: FrozenWeightsCheck(),
}
COPIES = {"pickle": lambda thing: pickle.loads(pickle.dumps(thing)), "deepcopy": copy.deepcopy}


class Stops(L.Callback):
    def on_train_batch_end(self, trainer, *args):
        raise RuntimeError("stop")


def used(callback, state):
    """A callback in one of the states of its life, with the copies that were made of it."""
    made = []
    copies = recorder(
        L, lambda t, m: made.append([copy_of(callback) for copy_of in COPIES.values()])
    )
    if state == "in a fit":
        fit(L, module(L), callback, copies, max_epochs=2)
    elif state == "after a fit":
        fit(L, module(L), callback, max_epochs=2)
    elif state == "after an error":
        with pytest.raises(RuntimeError, match="stop"):
            fit(L, module(L), callback, Stops())
    return made[-1] if made else [copy_of(callback) for copy_of in COPIES.values()]


@pytest.mark.parametrize("state", ["before", "in a fit", "after a fit", "after an error"])
@pytest.mark.parametrize("name", CALLBACKS)
def test_copies_work_like_new_ones(name, state):
    callback = CALLBACKS[name]()
    expected = module(L)
    fit(L, expected, CALLBACKS[name](), max_epochs=3)
    assert not same(bits(expected), bits(module(L)))
    for copied in used(callback, state):
        assert type(copied) is type(callback)
        m = module(L)
        fit(L, m, copied, max_epochs=3)
        assert same(bits(m), bits(expected))
        assert on(m) == on(expected)


def test_a_copy_holds_no_module():
    callback = FreezeScheduler(TWO)
    m = module(L)
    fit(L, m, callback, max_epochs=2)
    copied = copy.deepcopy(callback)
    assert (copied.phase, copied.state_key) == (callback.phase, callback.state_key)
    assert copied.state_dict() == callback.state_dict()
    assert len(pickle.dumps(callback)) < 3000


def test_a_function_that_makes_the_schedule_is_copied_too():
    callback = FreezeScheduler(lambda m: FreezeSchedule(TWO))
    fit(L, module(L), callback, max_epochs=2)
    assert copy.deepcopy(callback).state_key == callback.state_key


@pytest.mark.parametrize("again", ["the same module", "another module"])
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_new_trainer_begins_anew(name, again):
    """As in cross-validation: each fold as if the callback had not been used before."""
    callback, m = CALLBACKS[name](), module(L)
    beginning, first = bits(m), []
    for _ in range(3):
        fit(L, m, callback, max_epochs=3)
        first.append(bits(m))
        if again == "another module":
            m = module(L)
        m.load_state_dict(beginning)
        m.losses.clear()
    assert same(first[0], first[1])
    assert same(first[0], first[2])
    assert not same(first[0], beginning)


def test_a_phase_that_was_too_long_once_is_not_again():
    """`began` of an earlier fit does not count."""
    plateau = Plateau(patience=99, max_epochs_per_phase=2)
    callback = FreezeScheduler({0: "head", 1: "*"}, advance=plateau)
    m = module(L)
    for _ in range(2):
        watch = recorder(L, lambda t, m: callback.phase)
        fit(L, m, callback, watch, max_epochs=4)
        assert watch.seen[::4] == [0, 0, 1, 1]


def test_the_same_trainer_goes_on_where_it_was():
    callback = FreezeScheduler({0: "head", 1: "*"}, advance=Plateau(max_epochs_per_phase=1))
    m = module(L)
    watch = recorder(L, lambda t, m: (t.current_epoch, callback.phase))
    t = fit(L, m, callback, watch, max_epochs=2)
    t.fit_loop.max_epochs = 3
    fit(L, m, made=t)
    assert watch.seen[::4] == [(0, 0), (1, 1), (2, 1)]


def test_an_optimizer_that_outlives_its_fit_gets_the_rates_again():
    """A module that returns the same optimizer object each time."""
    m = module(L)
    kept = m.configure_optimizers()
    m.configure_optimizers = lambda: kept
    callback = FreezeScheduler([Phase(0, "head", lr=0.5, warmup=4)])
    for _ in range(2):
        watch = recorder(L, lambda t, m: kept.param_groups[-1]["lr"])
        fit(L, m, callback, watch, max_epochs=2)
        assert watch.seen[:5] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5])
        kept.param_groups[-1]["lr"] = 0.01


def test_a_checkpoint_is_taken_up_also_after_another_fit(tmp_path):
    plateau = Plateau(patience=99, max_epochs_per_phase=2)
    callback = FreezeScheduler({0: "head", 1: "encoder", 2: "*"}, advance=plateau)
    t = fit(L, module(L), callback, max_epochs=3)
    t.save_checkpoint(tmp_path / "three.ckpt")
    fit(L, module(L), callback, max_epochs=6)
    assert callback.phase == 2
    m = module(L)
    watch = recorder(L, lambda t, m: callback.phase)
    fit(L, m, callback, watch, ckpt_path=tmp_path / "three.ckpt", max_epochs=5)
    assert watch.seen[::4] == [1, 2]
    assert on(m) == names(m, "")


class ListConfig(collections.abc.MutableSequence):
    """Like those of configuration frameworks: a sequence that is no list."""

    def __init__(self, items):
        self.items = items

    def __getitem__(self, index):
        return as_config(self.items[index])

    def __len__(self):
        return len(self.items)

    def __setitem__(self, index, value):
        self.items[index] = value

    def __delitem__(self, index):
        del self.items[index]

    def insert(self, index, value):
        self.items.insert(index, value)


class DictConfig(collections.abc.Mapping):
    """Likewise: a mapping that is no dict."""

    def __init__(self, items):
        self.items_ = items

    def __getitem__(self, key):
        return as_config(self.items_[key])

    def __iter__(self):
        return iter(self.items_)

    def __len__(self):
        return len(self.items_)


def as_config(value):
    kinds = {list: ListConfig, dict: DictConfig}
    return kinds[type(value)](value) if type(value) in kinds else value


@pytest.mark.parametrize(
    "schedule",
    [
        {0: ["head"], 1: ["head", "encoder.lstm[-1]"]},
        {"phases": {0: ["head"], 1: ["*"]}, "scope": ["encoder", "head"], "exclude": ["head.bias"]},
        {"phases": [{"start": 0, "train": ["head"], "lr": {"head": 0.1, "*": 0.2}, "warmup": 3}]},
        [{"start": 0, "train": ["head"]}, {"start": 1, "train": "*", "lr": 0.1}],
        {"recipe": "chain_thaw", "lr": {"head": 0.1, "*": 0.2}, "every": 2},
    ],
    ids=["mapping", "description", "list of phases", "list", "recipe"],
)
def test_a_configuration_frameworks_objects(schedule):
    """Taken like the plain ones, in checkpoints too."""
    given, plain = FreezeScheduler(as_config(schedule)), FreezeScheduler(schedule)
    assert given.state_key == plain.state_key
    for callback in (given, plain):
        fit(L, module(L), callback, max_epochs=1)
    assert repr(given.state_dict()) == repr(plain.state_dict())
    assert "Config" not in repr(given.state_dict())
    assert given.state_dict()["schedule"]["phases"]
