"""The papers' schedules, against METHODS as written in their docstrings."""

import copy
import math
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lstm_freeze
from lstm_freeze import FreezeSchedule, Recipe, param_groups


class Encoder(nn.Module):
    def __init__(self, layers=3):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.lstm = nn.LSTM(4, 3, layers, bidirectional=True)
        self.attention = nn.Linear(6, 1)


class Model(nn.Module):
    def __init__(self, layers=3):
        super().__init__()
        self.encoder = Encoder(layers)
        self.head = nn.Linear(6, 2)


def trained(schedule, module, epoch):
    schedule.apply(module, epoch)
    return {n for n, p in module.named_parameters() if p.requires_grad}


def layer(module, *ks):
    return {n for n, _ in module.named_parameters() if any(f"_l{k}" in n for k in ks)}


HEAD = {"head.weight", "head.bias"}
ABOVE = {"encoder.attention.weight", "encoder.attention.bias"}
BELOW = {"encoder.embedding.weight"}


class TestGradualUnfreezing:
    def test_head_then_layers_from_the_output_to_the_input(self):
        m = Model()
        schedule = FreezeSchedule.gradual_unfreezing(m)
        expected = [
            HEAD,
            HEAD | ABOVE,
            HEAD | ABOVE | layer(m, 2),
            HEAD | ABOVE | layer(m, 2, 1),
            HEAD | ABOVE | layer(m, 2, 1, 0),
            HEAD | ABOVE | layer(m, 2, 1, 0) | BELOW,
        ]
        assert [trained(schedule, m, e) for e in range(7)] == [*expected, expected[-1]]

    def test_every(self):
        starts = [p.start for p in FreezeSchedule.gradual_unfreezing(Model(), every=3).phases]
        assert starts == [0, 3, 6, 9, 12, 15]

    def test_several_rnns_from_the_output(self):
        m = nn.ModuleDict(
            {
                "encoder": nn.ModuleDict({"low": nn.LSTM(3, 3, 1), "high": nn.GRU(3, 3, 2)}),
                "head": nn.Linear(3, 2),
            }
        )
        phases = FreezeSchedule.gradual_unfreezing(m).phases
        assert [p.train[-1] for p in phases] == [
            "head",
            "encoder.high[1]",
            "encoder.high[0]",
            "encoder.low[0]",
        ]

    def test_an_encoder_that_is_an_rnn_has_no_rest(self):
        m = nn.ModuleDict({"encoder": nn.LSTM(3, 3, 2), "head": nn.Linear(3, 2)})
        phases = FreezeSchedule.gradual_unfreezing(m).phases
        assert [p.train for p in phases] == [
            ("head",),
            ("head", "encoder[1]"),
            ("head", "encoder[1]", "encoder[0]"),
        ]

    def test_other_names_and_the_scope(self):
        m = nn.ModuleDict({"net": Model(), "other": nn.Linear(2, 2)})
        m["other"].weight.requires_grad_(False)
        schedule = FreezeSchedule.gradual_unfreezing(m, encoder="net.encoder", head="net.head")
        assert schedule.scope == ("net.encoder", "net.head")
        assert trained(schedule, m, 0) == {"net.head.weight", "net.head.bias", "other.bias"}

    def test_everything_but_the_head_may_be_the_encoder(self):
        m = Model(layers=1)
        schedule = FreezeSchedule.gradual_unfreezing(m, encoder="*")
        assert [trained(schedule, m, e) for e in range(4)] == [
            HEAD,
            HEAD | ABOVE,
            HEAD | ABOVE | layer(m, 0),
            HEAD | ABOVE | layer(m, 0) | BELOW,
        ]

    def test_rates_go_to_every_phase(self):
        lr = {"head": 1e-3, "*": 1e-4}
        assert all(p.lr == lr for p in FreezeSchedule.gradual_unfreezing(Model(), lr=lr).phases)


class TestChainThaw:
    def test_head_then_each_layer_alone_then_all(self):
        m = Model()
        schedule = FreezeSchedule.chain_thaw(m, every=2)
        expected = [
            HEAD,
            {"encoder.embedding.weight"},
            layer(m, 0),
            layer(m, 1),
            layer(m, 2),
            {"encoder.attention.weight", "encoder.attention.bias"},
            {n for n, _ in m.named_parameters()},
        ]
        assert [trained(schedule, m, 2 * i) for i in range(7)] == expected
        assert [p.start for p in schedule.phases] == [0, 2, 4, 6, 8, 10, 12]

    def test_rates_of_the_paper(self):
        phases = FreezeSchedule.chain_thaw(Model(), lr=1e-3).phases
        assert [p.lr for p in phases] == [1e-3] + [1e-4] * 6

    def test_no_rates(self):
        assert not any(p.sets_rates for p in FreezeSchedule.chain_thaw(Model()).phases)

    def test_a_layer_under_several_names(self):
        m = Model()
        m.encoder.norms = nn.ModuleDict({"a": nn.LayerNorm(3), "b": nn.LayerNorm(3)})
        m.encoder.scale = nn.Parameter(torch.ones(1))
        stages = [p.train for p in FreezeSchedule.chain_thaw(m).phases]
        assert ("encoder.norms",) in stages
        assert ("encoder.scale",) in stages


class TestLinearProbing:
    def test_head_then_all(self):
        m = Model()
        schedule = FreezeSchedule.linear_probing(m, every=5)
        assert trained(schedule, m, 4) == HEAD
        assert trained(schedule, m, 5) == {n for n, _ in m.named_parameters()}


class TestProgressiveFreezing:
    @pytest.mark.parametrize(("how", "power"), [("linear", 1), ("squared", 2), ("cubic", 3)])
    @pytest.mark.parametrize("t0", [0.3, 0.8, 1.0])
    def test_times(self, how, power, t0):
        m, total = Model(), 50
        schedule = FreezeSchedule.progressive_freezing(m, total, t0=t0, how=how)
        groups = [
            {"encoder.embedding.weight"},
            layer(m, 0),
            layer(m, 1),
            layer(m, 2),
            {"encoder.attention.weight", "encoder.attention.bias"},
            HEAD,
        ]
        for epoch in range(total):
            on = trained(schedule, m, epoch)
            for i, group in enumerate(groups):
                end = (t0 + (1 - t0) * i / 5) ** power * total
                assert (group <= on) is (epoch < end - 1e-9), (epoch, i)
                assert group <= on or not group & on

    @pytest.mark.parametrize("scaled", [True, False])
    def test_rates(self, scaled):
        m, total = Model(layers=1), 10
        optimizer = torch.optim.SGD(param_groups(m, 0.4))
        schedule = FreezeSchedule.progressive_freezing(
            m, total, t0=0.5, how="linear", scaled=scaled
        )
        ends = {
            "encoder.embedding": 0.5,
            "encoder.lstm[0].forward": 0.5 + 0.5 / 3,
            "encoder.lstm[0].reverse": 0.5 + 0.5 / 3,
            "encoder.attention": 0.5 + 1 / 3,
            "head": 1.0,
        }
        for epoch in [0, 2.5, 4.999, 7.25, 10]:
            schedule.apply(m, epoch, optimizer)
            for group in optimizer.param_groups:
                r = ends[group["name"]]
                j = epoch / total
                expected = 0.4 / (r if scaled else 1) * (1 + math.cos(math.pi * j / r)) / 2
                assert group["lr"] == pytest.approx(expected if j < r else 0.0, abs=1e-15)

    def test_at_the_end_and_after_the_head_goes_on_alone_with_rate_0(self):
        m = Model()
        optimizer = torch.optim.SGD(param_groups(m, 0.4))
        schedule = FreezeSchedule.progressive_freezing(m, 10)
        schedule.apply(m, 12, optimizer)
        assert {n for n, p in m.named_parameters() if p.requires_grad} == HEAD
        assert optimizer.param_groups[-1]["lr"] == 0.0

    def test_a_group_of_several_layers_is_refused(self):
        m = Model()
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        with pytest.raises(ValueError, match="the optimizer's group 0 holds more than one layer"):
            FreezeSchedule.progressive_freezing(m, 10).apply(m, 0, optimizer)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"total": 0}, ValueError, "`total` must be at least 1, got 0"),
            ({"total": 2.5}, TypeError, "`total` must be an integer, got 2.5"),
            ({"t0": 0}, ValueError, "`t0` must be above 0 and at most 1, got 0"),
            ({"t0": 1.1}, ValueError, "`t0` must be above 0 and at most 1, got 1.1"),
            (
                {"how": "quartic"},
                ValueError,
                '`how` must be "linear", "squared" or "cubic", got .quartic',
            ),
            ({"scaled": 1}, TypeError, "`scaled` must be a bool, got 1"),
        ],
    )
    def test_refuses(self, arguments, error, message):
        with pytest.raises(error, match=message):
            FreezeSchedule.progressive_freezing(Model(), **{"total": 10, **arguments})


RECIPES = ["gradual_unfreezing", "chain_thaw", "linear_probing", "progressive_freezing"]


def make(name, module, **arguments):
    extra = {"total": 10} if name == "progressive_freezing" else {}
    return getattr(FreezeSchedule, name)(module, **extra, **arguments)


@pytest.mark.parametrize("name", RECIPES)
class TestEveryRecipe:
    def test_scope_and_unit(self, name):
        schedule = make(name, Model())
        assert (schedule.scope, schedule.unit) == (("encoder", "head"), "epoch")

    def test_wrong_targets_are_said_together(self, name):
        with pytest.raises(ValueError, match=r'encoder="encodr".*encoder.*head="haed".*head'):
            make(name, Model(), encoder="encodr", head="haed")

    def test_a_head_that_holds_the_encoder(self, name):
        with pytest.raises(ValueError, match='head="\\*" holds all of encoder="encoder"'):
            make(name, Model(), head="*")

    def test_several_targets(self, name):
        with pytest.raises(TypeError, match=r"`encoder` must be one target \(a string\), got \["):
            make(name, Model(), encoder=["encoder"])

    def test_not_a_module(self, name):
        with pytest.raises(TypeError, match=r"`model` must be a torch\.nn\.Module, got str"):
            make(name, "model")

    def test_deferred_gives_the_same(self, name):
        extra = {"total": 10} if name == "progressive_freezing" else {}
        deferred = FreezeSchedule.recipe(name, **extra)
        m = Model()
        assert deferred.for_model(m) == make(name, m)
        assert deferred.scope == make(name, m).scope
        deferred.apply(m, 0)
        assert isinstance(deferred, Recipe)
        with pytest.raises(AttributeError, match=f"phases of the recipe {name} follow from a mod"):
            _ = deferred.phases
        assert pickle.loads(pickle.dumps(deferred)) == deferred == copy.deepcopy(deferred)


@pytest.mark.parametrize("name", RECIPES[:3])
@pytest.mark.parametrize(
    ("every", "error", "message"),
    [(0, ValueError, "`every` must be at least 1, got 0"), (1.5, TypeError, "must be an integer")],
)
def test_every_is_checked(name, every, error, message):
    with pytest.raises(error, match=message):
        make(name, Model(), every=every)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("chain_thw", {}, "no recipe 'chain_thw'; .*; did you mean \"chain_thaw\"?"),
        ("chain_thaw", {"evry": 1}, "chain_thaw takes no 'evry'; .*; did you mean \"every\"?"),
        ("progressive_freezing", {}, "progressive_freezing needs `total`"),
    ],
)
def test_recipe_refuses(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        FreezeSchedule.recipe(name, **arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("chain_thaw", {"every": 0}, ValueError, "`every` must be at least 1, got 0"),
        ("linear_probing", {"lr": "x"}, TypeError, "`lr` must be a number, got 'x'"),
        ("gradual_unfreezing", {"head": ["a"]}, TypeError, "`head` must be one target"),
        ("gradual_unfreezing", {"encoder": ""}, ValueError, "`encoder` must name a part of the m"),
        ("progressive_freezing", {"total": 3, "t0": 4}, ValueError, "`t0` must be above 0 and at"),
    ],
)
def test_arguments_are_checked_without_a_model(name, arguments, error, message):
    with pytest.raises(error, match=message):
        FreezeSchedule.recipe(name, **arguments)
    with pytest.raises(error, match=message):
        getattr(FreezeSchedule, name)(Model(), **arguments)


def test_all_wrong_arguments_are_said_at_once():
    with pytest.raises(ValueError, match="for 3 reasons") as caught:
        FreezeSchedule.recipe("progressive_freezing", evry=1, t0=4)
    for words in ("takes no 'evry'", "`t0` must be above 0", "needs `total`"):
        assert words in str(caught.value)


FIFTH = '''
"""The encoder, then the head."""

from ..recipe_definition import as_length, as_part, recipe
from ..phase import in_turn


@recipe(encoder=as_part, head=as_part, pause=as_length)
def fifth(model, encoder="encoder", head="head", pause=2):
    """Train the encoder, then the head."""
    return in_turn([[encoder], [head]], pause, None)
'''
USE = r"""
import pathlib
from torch import nn
import lstm_freeze
from lstm_freeze import FreezeSchedule

assert pathlib.Path(lstm_freeze.__file__).parents[1] == pathlib.Path.cwd()
model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
recipe = FreezeSchedule.recipe("fifth", pause=3)
recipe.apply(model, 3)
assert model["head"].weight.requires_grad and not model["encoder"].weight.requires_grad
assert recipe.for_model(model) == FreezeSchedule.fifth(model, pause=3)
assert "the encoder, then the head" in FreezeSchedule.fifth.__doc__
pathlib.Path("s.yaml").write_text("recipe: fifth\npause: 3\n")
assert FreezeSchedule.from_yaml("s.yaml") == recipe
pathlib.Path("s.yaml").write_text("recipe: fifth\npause: 0\n")
try:
    FreezeSchedule.from_yaml("s.yaml")
except ValueError as error:
    print(error)
"""


def test_a_fifth_recipe_is_one_file(tmp_path):
    """In a copy of the package, where that file is the only change."""
    shutil.copytree(Path(lstm_freeze.__file__).parent, tmp_path / "lstm_freeze")
    (tmp_path / "lstm_freeze" / "_schedule" / "recipes" / "fifth.py").write_text(FIFTH)
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert 's.yaml, line 2, key "pause": `pause` must be at least 1, got 0' in done.stdout
