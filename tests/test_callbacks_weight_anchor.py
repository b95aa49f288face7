"""WeightAnchor: the pull in a fit, and resumed runs that end with the same bits."""

import copy

import pytest
import torch
from _fits import LIGHTNINGS, Stateful, bits, data, fit, lightning, module, same
from torch.nn import functional as F

from lstm_freeze import anchor
from lstm_freeze.callbacks import FreezeScheduler, WeightAnchor

L = lightning()


def loader():
    return Stateful(data().dataset, 4)


@pytest.mark.parametrize("name", LIGHTNINGS)
def test_a_fit_is_the_plain_loop_with_an_anchor(name):
    made = module(lightning(name), optimizer=torch.optim.SGD, lr=0.1)
    plain = copy.deepcopy(made)
    free = copy.deepcopy(made)
    fit(lightning(name), made, WeightAnchor("encoder", 2.0), max_epochs=2)
    optimizer = plain.configure_optimizers()
    with anchor(plain, optimizer, "encoder", strength=2.0):
        for _ in range(2):
            for x, y in data():
                optimizer.zero_grad()
                F.cross_entropy(plain(x), y).backward()
                optimizer.step()
    assert same(bits(made), bits(plain))
    fit(lightning(name), free, max_epochs=2)
    assert not same(bits(made), bits(free))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("when", [{"every_n_train_steps": 3}, {"every_n_epochs": 1}])
def test_resumed_runs_end_with_the_same_bits(when, tmp_path):
    def callbacks():
        schedule = FreezeScheduler({0: "head", 1: ["head", "encoder.lstm[1]"], 2: "*"})
        return schedule, WeightAnchor("encoder", 1.0)

    saver = L.callbacks.ModelCheckpoint(tmp_path, "{epoch}-{step}", save_top_k=-1, **when)
    options = {"loader": loader(), "max_epochs": 4}
    whole = module(L, lr=0.03)
    fit(L, whole, *callbacks(), saver, enable_checkpointing=True, **options)
    for checkpoint in sorted(tmp_path.glob("*.ckpt"))[::2]:
        resumed = module(L, lr=0.03)
        fit(L, resumed, *callbacks(), ckpt_path=checkpoint, **{**options, "loader": loader()})
        assert same(bits(resumed), bits(whole)), checkpoint.name
    # Drawn towards the checkpoint's weights, and not the beginning's, it would end elsewhere.
    other, late = module(L, lr=0.03), callbacks()
    late[1].load_state_dict = lambda state: None
    middle = sorted(tmp_path.glob("*.ckpt"))[1]
    fit(L, other, *late, ckpt_path=middle, **{**options, "loader": loader()})
    assert not same(bits(other), bits(whole))


def test_another_trainers_fit_begins_anew_and_the_same_one_goes_on():
    made, held = module(L), WeightAnchor(None, 0.5)
    start = {n: p.detach().clone() for n, p in made.named_parameters()}
    first = fit(L, made, held, max_epochs=1)
    assert not first.optimizers[0]._optimizer_step_post_hooks
    first.fit_loop.max_epochs = 2
    fit(L, made, made=first)
    assert same(held.state_dict()["start"], start)
    beginning = {n: p.detach().clone() for n, p in made.named_parameters()}
    assert not same(beginning, start)
    fit(L, made, held, max_epochs=1)
    assert same(held.state_dict()["start"], beginning)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("head", -1), ValueError, "`strength`"),
        (("head", "1"), TypeError, "`strength` must be a number"),
        (([], 1), ValueError, "`targets` got an empty list"),
        ((["head", 3], 1), TypeError, "`targets` must hold strings, got int"),
    ],
)
def test_bad_arguments(arguments, kind, message):
    with pytest.raises(kind, match=message):
        WeightAnchor(*arguments)


def test_a_wrong_target_is_said_before_the_first_step():
    made = module(L)
    before = bits(made)
    with pytest.raises(ValueError, match='did you mean "head"'):
        fit(L, made, WeightAnchor("hed", 1.0))
    assert same(bits(made), before)
