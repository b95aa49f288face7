"""param_groups and slanted_triangular."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lstm_freeze import BiLSTM, freeze, param_groups, slanted_triangular, unfreeze


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.lstm = BiLSTM(4, 3, num_layers=2)
        self.scale = nn.Parameter(torch.ones(1))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.norm = nn.LayerNorm(6)
        self.head = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


class Wrapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.net = model


NAMES = [
    "encoder.scale",
    "encoder.embedding",
    "encoder.lstm[0].forward",
    "encoder.lstm[0].reverse",
    "encoder.lstm[1].forward",
    "encoder.lstm[1].reverse",
    "norm",
    "head",
]
DEPTHS = [5, 4, 3, 3, 2, 2, 1, 0]


def names_of(groups):
    return [group["name"] for group in groups]


def ids_of(groups):
    return [id(p) for group in groups for p in group["params"]]


def test_one_group_for_each_direction_and_each_other_part():
    groups = param_groups(Model(), 0.1)
    assert names_of(groups) == NAMES
    assert all(group.keys() == {"name", "params", "lr", "weight_decay"} for group in groups)
    assert {group["lr"] for group in groups} == {0.1}
    assert {group["weight_decay"] for group in groups} == {0.0}


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    "make",
    [
        Model,
        lambda: nn.LSTM(3, 4, num_layers=3, proj_size=2),
        lambda: nn.GRU(3, 4, bias=False, bidirectional=True),
        lambda: nn.Linear(2, 2),
        lambda: nn.Sequential(nn.RNN(3, 4), nn.ModuleList([nn.LSTM(4, 4), nn.Linear(4, 4)])),
        lambda: parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0"),
    ],
)
def test_groups_are_disjoint_and_complete_and_an_optimizer_takes_them(make, weight_decay):
    model = make()
    freeze(model)
    groups = param_groups(model, 0.1, layer_decay=0.5, weight_decay=weight_decay)
    ids = ids_of(groups)
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters()}
    assert len(set(names_of(groups))) == len(groups)
    optimizer = torch.optim.AdamW(groups)
    assert [g["name"] for g in optimizer.param_groups] == names_of(groups)


def test_layer_decay_counts_from_the_head():
    groups = param_groups(Model(), 0.1, layer_decay=1 / 2.6)
    rates = [group["lr"] for group in groups]
    assert rates == pytest.approx([0.1 / 2.6**depth for depth in DEPTHS], rel=1e-12)
    assert rates[-1] == 0.1


def test_wrapping_modules_change_nothing_but_names():
    model = Model()
    plain = param_groups(model, 0.1, layer_decay=0.5, weight_decay=0.1)
    wrapped = param_groups(Wrapped(model), 0.1, layer_decay=0.5, weight_decay=0.1)
    parallel = param_groups(nn.DataParallel(model), 0.1, layer_decay=0.5, weight_decay=0.1)
    assert names_of(wrapped) == [f"net.{name}" for name in names_of(plain)]
    assert names_of(parallel) == names_of(plain)
    for a, b, c in zip(plain, wrapped, parallel, strict=True):
        assert a["lr"] == b["lr"] == c["lr"]
        assert ids_of([a]) == ids_of([b]) == ids_of([c])


def test_groups_are_split_by_decay():
    groups = param_groups(Model(), 0.1, weight_decay=0.01)
    names = names_of(groups)
    assert names[:4] == [
        "encoder.scale",
        "encoder.embedding",
        "encoder.lstm[0].forward",
        "encoder.lstm[0].forward (no decay)",
    ]
    for group in groups:
        spared = group["name"].endswith(" (no decay)")
        assert group["weight_decay"] == (0.0 if spared else 0.01)
        assert all((p.ndim == 1) >= spared for p in group["params"])


@pytest.mark.parametrize(
    ("no_decay", "spared"),
    [
        ("*bias*", {"bias_ih_l0", "bias_hh_l0"}),
        (None, set()),
        ("nothing*like*this", set()),
        ("nothing.here", set()),
        (["*bias_ih*", "weight_hh_l0"], {"bias_ih_l0"} | {"weight_hh_l0"}),
        ("[0].forward.weight", {"weight_ih_l0", "weight_hh_l0"}),
        ("*", {"bias_ih_l0", "bias_hh_l0", "weight_ih_l0", "weight_hh_l0"}),
    ],
)
def test_no_decay_takes_targets_and_may_match_nothing(no_decay, spared):
    model = nn.LSTM(3, 4)
    groups = param_groups(model, 0.1, weight_decay=0.01, no_decay=no_decay)
    found = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    assert found == {id(model.get_parameter(name)) for name in spared}
    assert len(ids_of(groups)) == 4


def test_no_decay_knows_parametrised_biases():
    model = nn.LSTM(3, 4)
    nn.utils.parametrize.register_parametrization(model, "bias_hh_l0", nn.Tanh(), unsafe=True)
    groups = param_groups(model, 0.1, weight_decay=0.01, no_decay="bias_hh_l0")
    (spared,) = (g for g in groups if g["name"] == "[0].forward (no decay)")
    assert spared["params"] == [model.parametrizations.bias_hh_l0.original]


def test_tied_parameters_are_in_the_group_of_their_first_name():
    model = Model()
    model.head[2] = nn.Linear(4, 10)
    model.head[2].weight = model.encoder.embedding.weight
    groups = {g["name"]: ids_of([g]) for g in param_groups(model, 0.1)}
    assert id(model.head[2].weight) in groups["encoder.embedding"]
    assert id(model.head[2].weight) not in groups["head"]


def test_integer_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.table = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    groups = param_groups(model, 0.1)
    assert len(ids_of(groups)) == 2
    torch.optim.AdamW(groups, fused=True)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"lr": -1}, ValueError, "`lr` must be finite and at least 0, got -1"),
        ({"lr": math.inf}, ValueError, "`lr` must be finite and at least 0, got inf"),
        ({"lr": math.nan}, ValueError, "`lr` must be finite and at least 0, got nan"),
        ({"lr": "0.1"}, TypeError, "`lr` must be a number, got '0.1'"),
        ({"weight_decay": -1}, ValueError, "`weight_decay` must be finite and at least 0, got -1"),
        (
            {"layer_decay": 2.6},
            ValueError,
            "`layer_decay` must be finite and between 0 and 1, got 2.6",
        ),
        ({"layer_decay": 0}, ValueError, "`layer_decay` must be more than 0, got 0"),
        ({"layer_decay": True}, TypeError, "`layer_decay` must be a number, got True"),
        ({"no_decay": []}, ValueError, "`no_decay` got an empty list"),
        ({"no_decay": 3}, TypeError, "`no_decay` must be strings"),
    ],
)
def test_wrong_arguments_of_param_groups(options, error, match):
    with pytest.raises(error, match=match):
        param_groups(nn.Linear(2, 2), **{"lr": 0.1, **options})


def test_param_groups_needs_a_module():
    with pytest.raises(TypeError, match=r"`module` must be a torch\.nn\.Module, got list"):
        param_groups([nn.Linear(2, 2)], 0.1)


# Slanted triangular learning rate


def sgd(*rates):
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": lr} for lr in rates]
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9)


def formula(t, total, cut_frac, ratio):
    """Equation 3 of ULMFiT, as METHODS states it, with its two edges made safe."""
    cut = max(1, math.floor(total * cut_frac))
    p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
    return (1 + max(p, 0) * (ratio - 1)) / ratio


@pytest.mark.parametrize("total", [1, 2, 5, 10, 37, 100, 1000])
@pytest.mark.parametrize("cut_frac", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("ratio", [1, 2, 32, 1e4])
def test_every_step_is_the_formula_and_the_last_value_is_held(total, cut_frac, ratio):
    optimizer = sgd(0.01, 1.0)
    scheduler = slanted_triangular(optimizer, total, cut_frac, ratio)
    for t in range(total + 5):
        factor = formula(min(t, total), total, cut_frac, ratio)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.01 * factor, factor], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_the_shape_of_ulmfits_triangle():
    optimizer = sgd(0.01)
    scheduler = slanted_triangular(optimizer, 1000)
    rates = []
    for _ in range(1001):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(0.01 / 32, rel=1e-12)
    assert rates.index(max(rates)) == 100
    assert rates[100] == 0.01
    assert rates[1000] == pytest.approx(0.01 / 32, rel=1e-9)
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)


def run(model, optimizer, scheduler, steps, start=0):
    for step in range(start, start + steps):
        if step == 4:
            unfreeze(model, "encoder.lstm[1]", optimizer=optimizer)
        if step == 8:
            freeze(model, "encoder.lstm[1]", optimizer=optimizer)
        optimizer.zero_grad()
        torch.manual_seed(step)
        hidden, _ = model.encoder.lstm(model.encoder.embedding(torch.randint(10, (5, 2))))
        model.head(model.norm(hidden * model.encoder.scale)).square().mean().backward()
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("cut", [3, 6, 10])
def test_groups_and_schedule_survive_a_round_trip_while_freezing_goes_on(cut):
    def start():
        torch.manual_seed(0)
        model = Model()
        freeze(model, "encoder")
        groups = param_groups(model, 0.1, layer_decay=0.5, weight_decay=0.01)
        optimizer = torch.optim.AdamW(groups)
        return model, optimizer, slanted_triangular(optimizer, 12)

    whole = start()
    before = copy.deepcopy(whole[0].state_dict())
    run(*whole, steps=12)

    first = start()
    run(*first, steps=cut)
    saved = pickle.loads(pickle.dumps([part.state_dict() for part in first]))
    second = start()
    for part, state in zip(second, saved, strict=True):
        part.load_state_dict(state)
    if 4 < cut <= 8:
        unfreeze(second[0], "encoder.lstm[1]", optimizer=second[1])
    run(*second, steps=12 - cut, start=cut)

    assert second[1].param_groups[0]["lr"] == whole[1].param_groups[0]["lr"]
    assert names_of(second[1].param_groups) == names_of(whole[1].param_groups)
    moved = set()
    for name, value in whole[0].state_dict().items():
        assert torch.equal(second[0].state_dict()[name], value), name
        if not torch.equal(before[name], value):
            moved.add(name.split(".")[0] + ("_l1" if "_l1" in name else ""))
    assert moved == {"encoder_l1", "norm", "head"}


def test_the_state_of_the_schedule_is_plain_and_it_pickles():
    optimizer = sgd(0.1)
    scheduler = slanted_triangular(optimizer, 10, 0.5, 4)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    state = scheduler.state_dict()
    assert state["lr_lambdas"] == [{"total_steps": 10, "cut_frac": 0.5, "ratio": 4.0}]
    other = slanted_triangular(sgd(0.1), 99)
    other.load_state_dict(state)
    again = pickle.loads(pickle.dumps(scheduler))
    for one in (scheduler, other, again):
        one.optimizer.step()
        one.step()
        assert one.get_last_lr() == pytest.approx([0.1 * formula(4, 10, 0.5, 4)], rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((0,), ValueError, "`total_steps` must be at least 1, got 0"),
        ((1.5,), TypeError, "`total_steps` must be an integer, got 1.5"),
        ((True,), TypeError, "`total_steps` must be an integer, got True"),
        ((9, 0), ValueError, "`cut_frac` must lie between 0 and 1, both excluded, got 0"),
        ((9, 1.0), ValueError, "`cut_frac` must lie between 0 and 1, both excluded, got 1.0"),
        ((9, 1.5), ValueError, "`cut_frac` must be finite and between 0 and 1, got 1.5"),
        ((9, 0.1, 0.5), ValueError, "`ratio` must be finite and at least 1, got 0.5"),
        ((9, 0.1, "2"), TypeError, "`ratio` must be a number, got '2'"),
    ],
)
def test_wrong_arguments_of_slanted_triangular(arguments, error, match):
    optimizer = sgd(0.1)
    with pytest.raises(error, match=match):
        slanted_triangular(optimizer, *arguments)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_slanted_triangular_needs_one_optimizer():
    with pytest.raises(ValueError, match="`optimizer` must be one optimizer, got 2"):
        slanted_triangular([sgd(0.1), sgd(0.1)], 10)
    with pytest.raises(TypeError, match=r"`optimizer` must be a torch\.optim\.Optimizer"):
        slanted_triangular(nn.Linear(1, 1), 10)
