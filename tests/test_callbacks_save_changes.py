"""SaveChanges: small checkpoints, and resumed runs with the bits of whole ones."""

import pytest
import torch
from _fits import LIGHTNINGS, Stateful, bits, data, fit, lightning, module, same, trainer

from lstm_freeze import fingerprints, load_changes
from lstm_freeze.callbacks import FreezeScheduler, SaveChanges

L = lightning()
NOTE = "lstm_freeze.base"
SCHEDULE = {0: "head", 2: ["head", "encoder.lstm[1]"]}
# What the schedule never trains; the batch norm is frozen with its parameters.
KEPT = ("encoder.embedding.weight", "encoder.lstm.weight_ih_l0", "encoder.norm.running_mean")


def loader():
    return Stateful(data().dataset, 4)


def saver(folder, **when):
    return L.callbacks.ModelCheckpoint(folder, "{epoch}-{step}", save_top_k=-1, **when)


def saved(checkpoint):
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def run(folder, *callbacks, when=None, seed=0, **options):
    made = module(L, lr=0.03, seed=seed)
    found = fit(
        L,
        made,
        FreezeScheduler(SCHEDULE),
        *callbacks,
        saver(folder, **(when or {"every_n_epochs": 1})),
        loader=loader(),
        max_epochs=4,
        enable_checkpointing=True,
        **options,
    )
    return made, found


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("when", [{"every_n_epochs": 1}, {"every_n_train_steps": 3}])
def test_resumed_runs_have_the_bits_of_whole_checkpoints(when, tmp_path):
    whole, _ = run(tmp_path / "whole", when=when)
    thin, _ = run(tmp_path / "thin", SaveChanges(), when=when)
    assert same(bits(whole), bits(thin))
    names = sorted(p.name for p in (tmp_path / "thin").glob("*.ckpt"))
    assert names == sorted(p.name for p in (tmp_path / "whole").glob("*.ckpt"))
    for name in names[::2]:
        resumed = module(L, lr=0.03)
        callbacks = FreezeScheduler(SCHEDULE), SaveChanges()
        where = tmp_path / "thin" / name
        fit(L, resumed, *callbacks, loader=loader(), ckpt_path=where, max_epochs=4)
        assert same(bits(resumed), bits(whole)), name


@pytest.mark.parametrize("name", LIGHTNINGS)
def test_a_checkpoint_holds_what_changed(name, tmp_path):
    L = lightning(name)
    made = module(L, lr=0.03)
    start = bits(made)
    t = fit(L, made, FreezeScheduler({0: "head"}), SaveChanges(), max_epochs=1)
    t.save_checkpoint(tmp_path / "a.ckpt")
    state = saved(tmp_path / "a.ckpt")
    assert state.keys() == {"head.weight", "head.bias", NOTE}
    assert torch.equal(state["head.weight"], made.head.weight)
    assert not torch.equal(state["head.weight"], start["head.weight"])


def test_a_later_save_holds_what_was_unfrozen_since(tmp_path):
    run(tmp_path, SaveChanges())
    early, late = (saved(next(tmp_path.glob(f"epoch={k}*.ckpt"))) for k in (0, 3))
    assert "encoder.lstm.weight_hh_l1" not in early
    assert "encoder.lstm.weight_hh_l1" in late
    assert not set(KEPT) & late.keys()


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_an_early_checkpoint_loads_after_the_run_went_on(tmp_path):
    """The module no longer holds what the early checkpoint leaves out; the callback does."""
    callback = SaveChanges()
    made, t = run(tmp_path, callback)
    early = next(tmp_path.glob("epoch=0*.ckpt"))
    final = bits(made)
    t.validate(made, data(), ckpt_path=early, verbose=False)
    assert torch.equal(made.encoder.lstm.weight_hh_l1, module(L).encoder.lstm.weight_hh_l1)
    assert not torch.equal(made.encoder.lstm.weight_hh_l1, final["encoder.lstm.weight_hh_l1"])
    fresh = module(L)
    trainer(L, SaveChanges()).validate(fresh, data(), ckpt_path=early, verbose=False)
    assert same(bits(fresh), bits(made))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_another_base_is_refused_by_name_before_anything_is_loaded(tmp_path):
    run(tmp_path, SaveChanges())
    late = sorted(tmp_path.glob("*.ckpt"))[-1]
    other = module(L, lr=0.03, seed=1)
    before = bits(other)
    with pytest.raises(ValueError, match="does not hold the base") as caught:
        fit(L, other, FreezeScheduler(SCHEDULE), SaveChanges(), ckpt_path=late, max_epochs=5)
    for name in ("encoder.embedding.weight", "encoder.lstm.weight_ih_l0"):
        assert repr(name) in str(caught.value)
    assert "'head.weight'" not in str(caught.value)
    assert same(bits(other), before)
    assert not other._load_state_dict_pre_hooks


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_head_without_a_seed_resumes_when_the_base_leaves_it_out(tmp_path):
    made = module(L, lr=0.03)
    base = {n: f for n, f in fingerprints(made).items() if n.startswith("encoder")}
    callbacks = FreezeScheduler({0: "encoder.lstm[1]"}), SaveChanges(base)  # the head stays frozen
    t = fit(L, made, *callbacks, max_epochs=1)
    t.save_checkpoint(tmp_path / "a.ckpt")
    assert "head.weight" in saved(tmp_path / "a.ckpt")
    again = module(L, lr=0.03)
    torch.nn.init.uniform_(again.head.weight)
    callbacks = FreezeScheduler({0: "encoder.lstm[1]"}), SaveChanges(base)
    fit(L, again, *callbacks, ckpt_path=tmp_path / "a.ckpt", max_epochs=1)
    assert same(bits(again), bits(made))


def test_outside_of_a_trainer_load_changes_reads_it(tmp_path):
    made, _ = run(tmp_path, SaveChanges())
    fresh = module(L)
    assert not same(bits(fresh), bits(made))
    load_changes(fresh, sorted(tmp_path.glob("*.ckpt"))[-1])
    assert same(bits(fresh), bits(made))
    with pytest.raises(ValueError, match=r"another base: 'encoder\.embedding\.weight'"):
        load_changes(module(L, seed=1), sorted(tmp_path.glob("*.ckpt"))[-1])


def test_loaded_without_the_callback_torch_says_what_is_missing(tmp_path):
    run(tmp_path, SaveChanges())
    with pytest.raises(RuntimeError, match=NOTE):
        module(L).load_state_dict(saved(sorted(tmp_path.glob("*.ckpt"))[-1]))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_whole_checkpoints_are_loaded_as_they_are(tmp_path):
    whole, _ = run(tmp_path / "whole")
    resumed = module(L, lr=0.03)
    start = fingerprints(resumed)
    callback = SaveChanges()
    first = sorted((tmp_path / "whole").glob("*.ckpt"))[0]
    fit(
        L, resumed, FreezeScheduler(SCHEDULE), callback, ckpt_path=first, loader=loader(),
        max_epochs=4,
    )  # fmt: skip
    assert same(bits(resumed), bits(whole))
    assert callback.base == start  # what a new process builds, and not what the checkpoint brought


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_averaging_works_behind_it_and_is_refused_before_it(tmp_path):
    averaging = getattr(L.callbacks, "EMAWeightAveraging", None)
    if averaging is None:
        pytest.skip("this Lightning has no EMAWeightAveraging")
    with pytest.raises(ValueError, match="SaveChanges must stand before EMAWeightAveraging"):
        fit(L, module(L), averaging(), SaveChanges())
    ends = []
    for k, extra in enumerate(([], [SaveChanges()])):
        made, _ = run(tmp_path / str(k), *extra, averaging(decay=0.5))
        again = module(L, lr=0.03)
        first = sorted((tmp_path / str(k)).glob("*.ckpt"))[0]
        fresh = [SaveChanges()] if extra else []
        callbacks = FreezeScheduler(SCHEDULE), *fresh, averaging(decay=0.5)
        fit(L, again, *callbacks, ckpt_path=first, loader=loader(), max_epochs=4)
        ends += [bits(made), bits(again)]
    assert all(same(end, ends[0]) for end in ends)


@pytest.mark.parametrize(
    ("base", "kind", "message"),
    [
        ({"a": "xyz"}, ValueError, "16 hex digits"),
        (["a"], TypeError, "`base` must be the fingerprints"),
        ({"a": 3}, TypeError, "map names to strings"),
    ],
)
def test_bad_arguments(base, kind, message):
    with pytest.raises(kind, match=message):
        SaveChanges(base)


def test_strategies_that_shard_are_refused():
    class ModelParallelStrategy:
        pass

    t = trainer(L, callback := SaveChanges())
    t.strategy.__class__ = type("Mine", (type(t.strategy), ModelParallelStrategy), {})
    with pytest.raises(ValueError, match="cannot work with ModelParallelStrategy"):
        callback.setup(t, module(L), "fit")
