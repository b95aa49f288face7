"""Models of the builds that other packages use: selected, frozen, unfrozen in turn, given rates."""

import copy
import itertools
import pickle

import pytest
import torch
from _models import frozen, moved, snapshot, trainable
from _other_models import (
    Adapter,
    AlternatingEncoder,
    BiLSTMCell,
    Classifier,
    DropConnect,
    DualPathBlock,
    Factor,
    Forecaster,
    HighwayCell,
    LanguageModelEncoder,
    PackedLSTM,
    Policy,
    Separator,
    StackOfCells,
    drop_inside,
)
from torch import nn

from lstm_freeze import (
    BiLSTM,
    FreezeSchedule,
    FrozenGuard,
    freeze,
    freeze_up_to,
    param_groups,
    replace_lstm,
    select,
    status,
    unfreeze,
)

TOKENS = torch.randint(9, (3, 5), generator=torch.Generator().manual_seed(0))


def depths(model, **options):
    """Name of a part -> how deep param_groups takes it to lie."""
    groups = param_groups(model, 1.0, layer_decay=0.5, **options)
    return {g["name"]: round(-torch.tensor(g["lr"]).log2().item()) for g in groups}


def unfrozen_in_turn(schedule):
    """What each phase trains that the phase before did not."""
    trained = [phase.train for phase in schedule.phases]
    return [trained[0], *(b[len(a) :] for a, b in itertools.pairwise(trained))]


def train(model, steps=2):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        model(TOKENS).square().sum().backward()
        optimizer.step()


class TestWeightDrop:
    @pytest.mark.parametrize("build", [nn.LSTM, nn.GRU, nn.RNN, BiLSTM])
    @pytest.mark.parametrize("suffix", ["_raw", "_dropped", "_dc", "raw", "_v2"])
    @pytest.mark.parametrize("name", ["weight_hh_l0", "weight_ih_l1_reverse", "bias_hh_l1"])
    @pytest.mark.parametrize("put", [DropConnect, drop_inside])
    def test_the_parameter_takes_the_place_of_the_tensor_it_serves(self, put, name, suffix, build):
        plain = build(4, 4, 2, bidirectional=True)
        expected = {f"[{g}].{d}" for g in (0, 1) for d in ("forward", "reverse")}
        model = put(build(4, 4, 2, bidirectional=True), (name,), suffix)
        rnn = "inner" if put is DropConnect else ""
        dropped = next(n for n, _ in model.named_parameters() if n.endswith(suffix))
        layer, direction = name.split("_l")[1][0], "reverse" if "reverse" in name else "forward"
        kind = name.split("_l")[0]
        assert dropped in select(model, f"{rnn}[{layer}]")
        assert dropped not in select(model, f"{rnn}[{1 - int(layer)}]")
        assert dropped in select(model, f"{rnn}[{layer}].{direction}.{kind}")
        assert list(select(model, layers=int(layer), directions=direction, kinds=kind)) == [dropped]
        assert dropped in select(model, f"{rnn}.{name}".strip("."))
        assert {row.name.removeprefix(rnn) for row in status(model).rows} == expected
        assert len(select(model, f"{rnn}[0:2]")) == len(list(plain.parameters()))

    @pytest.mark.parametrize("build", [nn.LSTM, nn.GRU, BiLSTM])
    @pytest.mark.parametrize("put", [DropConnect, drop_inside])
    def test_an_rnn_none_of_whose_tensors_is_a_parameter(self, put, build):
        names = tuple(name for name, _ in build(4, 4, 2).named_parameters())
        model = put(build(4, 4, 2), names)
        rnn = "inner" if put is DropConnect else ""
        assert len(select(model, f"{rnn}[1]")) == len(select(model, layers=0)) == len(names) // 2

    def test_the_path_of_the_rnn_covers_what_serves_it_from_around(self):
        model = Classifier(LanguageModelEncoder())
        dropped = {f"encoder.rnns.{i}.weight_hh_l0_raw" for i in range(3)}
        assert set(select(model, "encoder.rnns.0.inner")) & dropped == {sorted(dropped)[0]}
        assert dropped < set(select(model, "*.inner"))
        assert dropped.isdisjoint(select(model, exclude="*.inner"))

    def test_an_old_wrapper_leaves_a_computed_copy_among_the_parameters(self):
        model = DropConnect(nn.LSTM(4, 4))
        vars(model.inner).pop("weight_hh_l0")
        model.inner._parameters["weight_hh_l0"] = model.weight_hh_l0_raw * 0.5
        assert list(select(model, "inner[0].forward.weight_hh")) == ["weight_hh_l0_raw"]
        assert "inner.weight_hh_l0" not in select(model, "inner")
        assert "weight_hh_l0_raw" in select(model, "inner")

    def test_in_eval_mode_an_old_wrapper_ties_the_two(self):
        model = DropConnect(nn.LSTM(4, 4))
        vars(model.inner).pop("weight_hh_l0")
        model.inner._parameters["weight_hh_l0"] = model.weight_hh_l0_raw
        assert [row.name for row in status(model).rows] == ["inner[0].forward"]

    @pytest.mark.parametrize("name", ["weight_hh_l0_mask", "weight_hh_l0_raw"])
    def test_beside_a_parameter_of_that_name_it_serves_nothing(self, name):
        model = nn.Module()
        model.lstm = nn.LSTM(4, 4)
        model.register_parameter(name, nn.Parameter(torch.ones(2)))
        assert name not in select(model, "lstm[0]")
        assert depths(model) == {name: 1, "lstm[0].forward": 0}

    def test_around_two_rnns_that_lack_the_tensor_it_belongs_to_neither(self):
        model = nn.Module()
        model.rnns = nn.ModuleList(nn.LSTM(4, 4) for _ in range(2))
        for rnn in model.rnns:
            del rnn._parameters["weight_hh_l0"]
        model.register_parameter("weight_hh_l0_raw", nn.Parameter(torch.ones(16, 4)))
        assert len(select(model, "rnns.0")) == len(select(model, "rnns.1[0]")) == 3

    def test_any_other_layer_s_weight_answers_to_the_tensor_s_name(self):
        model = nn.Module()
        model.linear = nn.Linear(3, 3)
        weight = model.linear.weight
        del model.linear.weight
        model.weight_raw = nn.Parameter(weight.detach())
        model.linear.weight = weight.detach().clone()
        assert list(select(model, "linear.weight")) == ["weight_raw"]

    def test_recipes_rates_and_tables_count_it_as_its_layer(self):
        model = Classifier(LanguageModelEncoder())
        layers = [f"encoder.rnns.{i}.inner[0].forward" for i in range(3)]
        assert depths(model) == {
            "encoder.embedding": 4, layers[0]: 3, layers[1]: 2, layers[2]: 1, "head": 0,
        }  # fmt: skip
        assert [row.name for row in status(model).rows] == list(depths(model))
        gradual = unfrozen_in_turn(FreezeSchedule.gradual_unfreezing(model))
        assert gradual[:4] == [("head",), *((layer[: -len(".forward")],) for layer in layers[::-1])]
        assert gradual[4][0] == "encoder.embedding"
        thaw = FreezeSchedule.chain_thaw(model)
        thaw.apply(model, 2)
        assert trainable(model) == {n for n, _ in model.named_parameters() if "rnns.0" in n}

    def test_what_is_frozen_keeps_its_bits_and_what_is_not_moves(self):
        model = Classifier(LanguageModelEncoder())
        FreezeSchedule.gradual_unfreezing(model).apply(model, 1)
        before, guard = snapshot(model), FrozenGuard(model)
        train(model)
        guard.check()
        names = {n for n in moved(model, before) if "embedding_dropout" not in n}
        assert names == {n for n, _ in model.named_parameters() if "rnns.2" in n or "head" in n}
        assert "encoder.rnns.2.weight_hh_l0_raw" in names

    def test_the_columns_of_fastai(self):
        """Its freeze, freeze_to(-2) and unfreeze, as docs/coming_from.md says them."""
        model = Classifier(LanguageModelEncoder())
        unfreeze(model, "head", only=True)
        assert trainable(model) == {"head.weight", "head.bias"}
        unfreeze(model, "encoder.rnns.2", "head", only=True)
        assert "encoder.rnns.2.weight_hh_l0_raw" in trainable(model)
        assert "encoder.rnns.1.weight_hh_l0_raw" in frozen(model)
        unfreeze(model)
        assert not frozen(model)


class TestAdapters:
    def adapted(self):
        model = Classifier(nn.LSTM(4, 4))
        model.encoder = Factor(model.encoder, "weight_hh_l0")
        model.head = Factor(model.head)
        return model

    def test_the_prefix_is_looked_through_and_never_printed(self):
        plain, model = Classifier(StackOfCells()), Adapter(Classifier(StackOfCells()))
        assert list(select(model)) == list(select(plain))
        assert depths(model) == depths(plain)
        assert list(select(model, "base_model.model.head")) == ["head.weight", "head.bias"]
        assert list(select(model, "base_model.model")) == list(select(plain))
        assert freeze(model, "head").changed == ("head.weight", "head.bias")
        assert FreezeSchedule.gradual_unfreezing(model).phases[0].train == ("head",)

    def test_under_other_wrappers_too(self):
        model = nn.DataParallel(Adapter(Classifier(nn.LSTM(4, 4))))
        assert list(select(model, "module.base_model.model.head.weight")) == ["head.weight"]

    def test_a_model_that_only_has_such_a_child_is_no_adapter(self):
        model = nn.Module()
        model.base_model, model.head = nn.Linear(2, 2), nn.Linear(2, 2)
        assert [n.split(".")[0] for n in select(model)] == ["base_model"] * 2 + ["head"] * 2
        alone = nn.ModuleDict({"model": nn.Linear(2, 2)})
        assert list(select(alone)) == ["model.weight", "model.bias"]
        beside = Adapter(nn.Linear(2, 2))
        beside.prompt = nn.Embedding(2, 2)
        assert next(iter(select(beside))) == "base_model.model.weight"

    def test_factors_count_as_the_weight_they_serve(self):
        model = Adapter(self.adapted())
        factors = {"encoder.lora_A.default.weight", "encoder.lora_B.default.weight"}
        assert factors < set(select(model, "encoder[0].forward.weight_hh"))
        assert factors.isdisjoint(select(model, kinds=["weight_ih", "bias"]))
        assert list(select(model, "encoder.weight_hh_l0")) == [
            "encoder.base_layer.weight_hh_l0", *sorted(factors),
        ]  # fmt: skip
        assert set(select(model, "head.weight")) == {
            "head.base_layer.weight", "head.lora_A.default.weight", "head.lora_B.default.weight",
        }  # fmt: skip
        assert depths(model) == {"encoder.base_layer[0].forward": 1, "head": 0}
        assert [row.total for row in status(model).rows] == [160 + 8 + 32, 10 + 8 + 4]

    def test_factors_within_an_rnn(self):
        lstm = nn.LSTM(4, 4, 2)
        lstm.weight_ih_l1_lora_A = nn.Parameter(torch.ones(2, 4))
        lstm.weight_ih_l1_lora_B = nn.Parameter(torch.ones(16, 2))
        assert {"weight_ih_l1_lora_A", "weight_ih_l1_lora_B"} < set(select(lstm, "[1].forward"))
        assert len(select(lstm, layers=0)) == 4

    def test_training_factors_alone_leaves_the_base_bit_for_bit(self):
        model = Adapter(Classifier(LanguageModelEncoder()))
        model.base_model.model.head = Factor(model.base_model.model.head)
        unfreeze(model, "*lora_*", only=True)
        before = snapshot(model)
        train(model)
        assert {n.split(".")[-3] for n in moved(model, before)} == {"lora_A", "lora_B"}


class TestStacks:
    def test_cells_are_layers(self):
        model = Classifier(StackOfCells())
        cells = [f"encoder.cells.{i}" for i in range(3)]
        assert list(depths(model).items()) == [
            ("encoder.embedding", 4), (cells[0], 3), (cells[1], 2), (cells[2], 1), ("head", 0),
        ]  # fmt: skip
        assert unfrozen_in_turn(FreezeSchedule.gradual_unfreezing(model)) == [
            ("head",), (cells[2],), (cells[1],), (cells[0],), ("encoder.embedding",),
        ]  # fmt: skip
        assert [p.train for p in FreezeSchedule.chain_thaw(model).phases][1:3] == [
            ("encoder.embedding",), (cells[0],),
        ]  # fmt: skip
        freeze_up_to(model, cells[1])
        before = snapshot(model)
        train(model)
        assert moved(model, before) == {
            n for n, _ in model.named_parameters() if "cells.2" in n or "head" in n
        }

    @pytest.mark.parametrize("cell", [nn.GRUCell, nn.RNNCell, lambda *_: HighwayCell()])
    def test_cells_of_other_kinds(self, cell):
        model = nn.ModuleDict(
            {"encoder": nn.ModuleList(cell(4, 4) for _ in range(2)), "head": nn.Linear(4, 2)}
        )
        assert depths(model) == {"encoder.0": 2, "encoder.1": 1, "head": 0}

    def test_cells_in_blocks_with_norms_are_one_layer_with_them(self):
        def block():
            return nn.ModuleDict({"cell": nn.LSTMCell(4, 4), "norm": nn.LayerNorm(4)})

        model = nn.Sequential(nn.Embedding(9, 4), *(block() for _ in range(2)), nn.Linear(4, 2))
        assert depths(model) == {
            "0": 3, "1.cell": 2, "1.norm": 2, "2.cell": 1, "2.norm": 1, "3": 0,
        }  # fmt: skip

    def test_layers_of_other_kinds_are_one_part_as_before(self):
        model = nn.ModuleDict(
            {"encoder": nn.ModuleList(nn.Linear(4, 4) for _ in range(3)), "head": nn.Linear(4, 2)}
        )
        assert depths(model) == {"encoder": 1, "head": 0}

    @pytest.mark.parametrize("named", [True, False])
    def test_two_directions_of_a_cell_share_a_depth(self, named):
        encoder = nn.ModuleList(BiLSTMCell(named) for _ in range(3))
        model = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(4, 2)})
        assert list(depths(model).values()) == [3, 3, 2, 2, 1, 1, 0]
        assert unfrozen_in_turn(FreezeSchedule.gradual_unfreezing(model)) == [
            ("head",), ("encoder.2",), ("encoder.1",), ("encoder.0",),
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("first", "second"),
        [("forward", "backward"), ("fwd", "bwd"), ("fw", "bw"), ("f", "b"), ("l2r", "r2l")],
    )
    def test_two_directions_side_by_side_share_a_depth(self, first, second):
        stacks = {
            f"{side}_rnns": nn.ModuleList(nn.GRU(4, 4) for _ in range(2))
            for side in (first, second)
        }
        model = nn.ModuleDict({"encoder": nn.ModuleDict(stacks), "head": nn.Linear(4, 2)})
        assert list(depths(model).items()) == [
            (f"encoder.{first}_rnns.0[0].forward", 2), (f"encoder.{second}_rnns.0[0].forward", 2),
            (f"encoder.{first}_rnns.1[0].forward", 1), (f"encoder.{second}_rnns.1[0].forward", 1),
            ("head", 0),
        ]  # fmt: skip

    def test_augmented_layers_of_both_directions(self):
        model = Classifier(AlternatingEncoder())
        assert list(depths(model).values()) == [3, 2, 2, 1, 1, 0]
        assert unfrozen_in_turn(FreezeSchedule.gradual_unfreezing(model))[1] == (
            "encoder.forward_layer_1", "encoder.backward_layer_1",
        )  # fmt: skip

    def test_a_block_of_a_dual_path_model_is_one_layer(self):
        assert max(depths(Separator(blocks=6)).values()) == 9
        schedule = FreezeSchedule.gradual_unfreezing(
            Separator(), encoder="masker", head="masker.mask"
        )
        assert unfrozen_in_turn(schedule) == [
            ("masker.mask",), *((f"masker.net.{i}",) for i in (3, 2, 1, 0)), ("masker.bottleneck",),
        ]  # fmt: skip

    def test_a_block_with_a_deep_rnn_is_not_one_layer(self):
        blocks = [DualPathBlock() for _ in range(2)]
        for block in blocks:
            block.intra_rnn = nn.LSTM(4, 4, 2)
        found = depths(nn.ModuleDict({"net": nn.Sequential(*blocks), "head": nn.Linear(4, 2)}))
        assert found["net.0.intra_rnn[0].forward"] == found["net.0.intra_rnn[1].forward"] + 1

    def test_the_parameters_of_one_module_share_a_depth(self):
        model = Classifier(nn.LSTM(4, 4))
        model.start, model.scale = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        assert depths(model) == {"start": 2, "scale": 2, "encoder[0].forward": 1, "head": 0}


class TestOrder:
    def test_what_lies_above_the_rnn_is_unfrozen_before_it(self):
        encoder = nn.ModuleDict(
            {"embedding": nn.Embedding(9, 4), "rnn": nn.GRU(4, 4), "projection": nn.Linear(4, 4)}
        )
        model = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(4, 2)})
        assert unfrozen_in_turn(FreezeSchedule.gradual_unfreezing(model)) == [
            ("head",), ("encoder.projection",), ("encoder.rnn[0]",), ("encoder.embedding",),
        ]  # fmt: skip

    @pytest.mark.parametrize("build", [LanguageModelEncoder, StackOfCells, AlternatingEncoder])
    def test_all_recipes_and_rates_have_one_order(self, build):
        model = Classifier(build())
        thaw = [phase.train for phase in FreezeSchedule.chain_thaw(model).phases[1:-1]]
        gradual = unfrozen_in_turn(FreezeSchedule.gradual_unfreezing(model))[1:]
        progressive = FreezeSchedule.progressive_freezing(model, 10).annealing.groups[:-1]
        assert thaw == gradual[::-1] == list(progressive)
        by_depth = {}
        for group in param_groups(model, 1.0, layer_decay=0.5):
            by_depth.setdefault(group["lr"], set()).update(map(id, group["params"]))
        rates = [{id(p) for p in select(model, *layer).parameters} for layer in thaw]
        assert rates == list(by_depth.values())[:-1]


GROUPS = [["features"], ["lstm_*"], ["action_net", "value_net", "log_std"]]


class TestGroups:
    def test_rates(self):
        assert depths(Policy(), groups=GROUPS) == {
            "features": 2, "lstm_actor[0].forward": 1, "lstm_critic[0].forward": 1,
            "log_std": 0, "action_net": 0, "value_net": 0,
        }  # fmt: skip

    def test_a_star_takes_what_is_left(self):
        groups = [["input_embeddings", "prescalers"], ["static_*", "*_selection", "initial_*"],
                  ["lstm_*"], ["*"], ["output_layer"]]  # fmt: skip
        with pytest.raises(ValueError, match=r"groups\[4\]=\['output_layer'\] is empty"):
            param_groups(Forecaster(), 1.0, groups=groups)
        groups[-2:] = [["gate_*", "attention"], ["*"]]
        found = depths(Forecaster(), groups=groups)
        assert {d: [n for n in found if found[n] == d] for d in range(5)} == {
            4: ["input_embeddings", "prescalers"],
            3: ["static_selection", "encoder_selection", "decoder_selection", "initial_hidden",
                "initial_cell"],
            2: ["lstm_encoder[0].forward", "lstm_decoder[0].forward"],
            1: ["gate_encoder", "attention", "gate_norm"],
            0: ["output_layer"],
        }  # fmt: skip

    def test_a_part_may_lie_in_several_groups(self):
        model = nn.ModuleDict(
            {"rnn": nn.LSTM(4, 4), "head": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))}
        )
        found = depths(model, groups=[["rnn"], ["head.0"], ["head.1"]])
        assert found == {"rnn[0].forward": 2, "head (group 1)": 1, "head (group 2)": 0}
        bits = depths(model, groups=["*bias*", "rnn[0]", "head"])
        assert list(bits.values()) == [2, 2, 1, 0]

    def test_tied_parameters_are_in_the_group_of_their_first_name(self):
        model = nn.ModuleDict(
            {"embedding": nn.Embedding(4, 4), "rnn": nn.LSTM(4, 4), "head": nn.Linear(4, 4)}
        )
        model.head.weight = model.embedding.weight
        found = param_groups(model, 1.0, layer_decay=0.5, groups=["embedding", "rnn", "head"])
        assert sum(len(g["params"]) for g in found) == 6
        assert found[0]["params"] == [model.embedding.weight]
        found = param_groups(model, 1.0, groups=["rnn", "head", "*"][:2])
        assert sum(len(g["params"]) for g in found) == 6

    @pytest.mark.parametrize(
        ("recipe", "trains"),
        [
            ("gradual_unfreezing", [{2}, {1, 2}, {0, 1, 2}]),
            ("chain_thaw", [{2}, {0}, {1}, {0, 1, 2}]),
            ("linear_probing", [{2}, {0, 1, 2}]),
        ],
    )
    def test_recipes(self, recipe, trains):
        model = Policy()
        names = [set(select(model, group)) for group in GROUPS]
        schedule = getattr(FreezeSchedule, recipe)(model, groups=GROUPS)
        for epoch, groups in enumerate(trains):
            schedule.apply(model, epoch)
            assert trainable(model) == set().union(*(names[i] for i in groups))

    def test_progressive_freezing(self):
        schedule = FreezeSchedule.progressive_freezing(Policy(), 10, groups=GROUPS)
        assert schedule.annealing.groups == tuple(map(tuple, GROUPS))
        model = Policy()
        schedule.apply(model, 7)
        assert trainable(model) == set(select(model, "lstm_*", *GROUPS[2]))

    def test_overlapping_groups_are_taken_apart(self):
        model = Classifier(StackOfCells())
        groups = [["encoder.embedding"], ["encoder"], ["head"]]
        assert unfrozen_in_turn(FreezeSchedule.gradual_unfreezing(model, groups=groups)) == [
            ("head",), ("encoder.cells",), ("encoder.embedding",),
        ]  # fmt: skip

    def test_freeze_up_to(self):
        model = Policy()
        freeze_up_to(model, "lstm_actor", groups=GROUPS)
        assert trainable(model) == set(select(model, GROUPS[2]))
        with pytest.raises(
            ValueError, match="`layer_or_target` lies in none of the `groups`: it is log_std"
        ):
            freeze_up_to(model, "log_std", groups=GROUPS[:2])

    @pytest.mark.parametrize("recipe", ["gradual_unfreezing", "chain_thaw", "progressive_freezing"])
    def test_yaml(self, tmp_path, recipe):
        total = {"total": 10} if recipe == "progressive_freezing" else {}
        arguments = {**total, "groups": GROUPS, "rest": "freeze"}
        path = tmp_path / "schedule.yaml"
        FreezeSchedule.recipe(recipe, **arguments).to_yaml(path)
        read = FreezeSchedule.from_yaml(path)
        assert read == FreezeSchedule.recipe(recipe, **arguments)
        made = getattr(FreezeSchedule, recipe)(Policy(), **arguments)
        assert read.for_model(Policy()) == made
        made.to_yaml(path)
        assert FreezeSchedule.from_yaml(path) == made

    def test_yaml_says_the_line_of_a_wrong_group(self, tmp_path):
        path = tmp_path / "schedule.yaml"
        path.write_text("recipe: chain_thaw\ngroups: lstm\nrest: keep\n")
        with pytest.raises(ValueError, match=r"line 2, key .groups.*\n.*line 3, key .rest"):
            FreezeSchedule.from_yaml(path)

    @pytest.mark.parametrize(
        ("groups", "error", "match"),
        [
            ("lstm", TypeError, r"`groups` must be a list with the targets of each group, input"),
            (3, TypeError, r"`groups` must be a list with the targets of each group, input"),
            ([], ValueError, "`groups` got an empty list; None takes the model's own parts"),
            ([["features"], []], ValueError, r"`groups\[1\]` got an empty list"),
            ([["features"], None], TypeError, r'`groups` must hold targets, got None; "\*" is all'),
            (
                [["featurs"], "*"],
                ValueError,
                r'groups\[0\]="featurs": no such module; did you mean',
            ),
            (
                [["features"], "lstm_*"],
                ValueError,
                '`groups` leaves out "log_std", "action_net.weight"',
            ),
        ],
    )
    def test_wrong_groups(self, groups, error, match):
        with pytest.raises(error, match=match):
            param_groups(Policy(), 1.0, groups=groups)

    def test_groups_stand_in_place_of_encoder_and_head(self):
        with pytest.raises(ValueError, match="encoder= and head= cannot stand beside it"):
            FreezeSchedule.chain_thaw(Policy(), encoder="features", groups=GROUPS)
        with pytest.raises(ValueError, match="`groups` must be at least two, the head last"):
            FreezeSchedule.chain_thaw(Policy(), groups=[["*"]])


class TestNames:
    @pytest.mark.parametrize("recipe", ["gradual_unfreezing", "chain_thaw", "linear_probing"])
    def test_an_error_says_what_there_is_with_a_line_to_copy(self, recipe):
        model = nn.ModuleDict(
            {"emb": nn.Embedding(9, 4), "rnn": nn.GRU(4, 4), "fc": nn.Linear(4, 2)}
        )
        with pytest.raises(
            ValueError, match=r'the RNNs here: "rnn"; .* registered: "fc"; to copy: .'
        ) as error:
            getattr(FreezeSchedule, recipe)(model)
        line = str(error.value).rpartition("to copy: ")[2]
        copied = eval(f"FreezeSchedule.{recipe}(model, {line})")
        assert copied.phases[0].train == ("fc",)

    def test_where_the_heads_come_first_it_does_not_guess(self):
        with pytest.raises(
            ValueError, match=r'"lstm_actor", "lstm_critic".*comes before it here.*groups='
        ):
            FreezeSchedule.gradual_unfreezing(Policy())

    def test_several_rnns_by_glob(self):
        model = Policy()
        schedule = FreezeSchedule.linear_probing(model, encoder="lstm_*", head="*_net")
        schedule.apply(model, 1)
        assert {n.split(".")[0] for n in trainable(model)} == {
            "log_std", "features", "action_net", "value_net", "lstm_actor", "lstm_critic",
        }  # fmt: skip
        schedule.apply(model, 0)
        assert frozen(model) == set(select(model, "lstm_*"))
        assert set(select(model, "lstm_*[0].forward.weight_hh")) == {
            "lstm_actor.weight_hh_l0", "lstm_critic.weight_hh_l0",
        }  # fmt: skip


class TestRest:
    def test_preview_says_what_trains_beside_the_schedule(self):
        model = Policy()
        freeze(model, "features.bias")
        schedule = FreezeSchedule.linear_probing(model, encoder="lstm_*", head="*_net")
        assert schedule.preview(model, 2).splitlines()[-1] == (
            "also trains, outside the schedule: 2 tensors, 14 params (log_std, features); "
            'rest="freeze" freezes it'
        )
        freeze(model, "features", "log_std")
        assert "also trains" not in schedule.preview(model, 2)
        assert "also trains" not in FreezeSchedule({0: "*_net"}).preview(Policy(), 2)

    @pytest.mark.parametrize("rest", ["leave", "freeze"])
    def test_what_is_outside_the_scope(self, rest):
        model = Policy()
        outside = {"log_std", "features.weight", "features.bias"}
        for schedule in (
            FreezeSchedule(
                {0: "*_net", 1: ["*_net", "lstm_*"]}, scope=["*_net", "lstm_*"], rest=rest
            ),
            FreezeSchedule.linear_probing(model, encoder="lstm_*", head="*_net", rest=rest),
        ):
            unfreeze(model)
            for epoch in (0, 1):
                schedule.apply(model, epoch)
                assert (outside <= trainable(model)) is (rest == "leave")
                assert outside.isdisjoint(trainable(model)) is (rest == "freeze")
            assert set(select(model, "lstm_*")) <= trainable(model)
            assert ("also trains" in schedule.preview(Policy(), 2)) is (rest == "leave")

    def test_what_is_excluded_is_left_alone_whatever_the_rest(self):
        model = Policy()
        schedule = FreezeSchedule({0: "*_net"}, scope="*_net", exclude="log_std", rest="freeze")
        schedule.apply(model, 0)
        assert "log_std" in trainable(model)
        assert "features.weight" in frozen(model)

    def test_yaml_and_equality(self, tmp_path):
        schedule = FreezeSchedule({0: "head"}, scope="head", rest="freeze")
        schedule.to_yaml(tmp_path / "schedule.yaml")
        assert FreezeSchedule.from_yaml(tmp_path / "schedule.yaml") == schedule
        assert schedule != FreezeSchedule({0: "head"}, scope="head")
        assert repr(schedule) == "FreezeSchedule({0: ['head']}, scope=['head'], rest='freeze')"

    def test_another_word_is_refused(self):
        with pytest.raises(ValueError, match='`rest` must be "leave" or "freeze", got \'keep\''):
            FreezeSchedule({0: "*"}, rest="keep")


class TestSubclasses:
    def model(self):
        torch.manual_seed(0)
        return nn.ModuleDict({"rnn": PackedLSTM(4, 4, 2, batch_first=True, bidirectional=True)})

    def test_what_a_subclass_adds_is_kept(self):
        model, twin = self.model(), self.model()
        parameters = list(model.parameters())
        assert replace_lstm(model, subclasses=True) == ("rnn",)
        assert isinstance(model.rnn, BiLSTM)
        assert isinstance(model.rnn, PackedLSTM)
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        assert repr(model) == repr(twin)
        x, lengths = torch.randn(3, 5, 4), torch.tensor([5, 2, 3])
        for args in ((x,), (x, lengths)):
            outputs = [m.rnn(*args)[0] for m in (model, twin)]
            torch.testing.assert_close(*outputs)
            for m, output in zip((model, twin), outputs, strict=True):
                m.zero_grad()
                output.square().sum().backward()
            for a, b in zip(model.parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(a.grad, b.grad)

    def test_its_arithmetic_is_bilstm_s(self, monkeypatch):
        model = self.model()
        replace_lstm(model, subclasses=True)
        monkeypatch.setattr(nn.LSTM, "forward", None)
        assert model.rnn(torch.randn(3, 5, 4), torch.tensor([5, 2, 3]))[0].shape == (3, 5, 8)

    def test_copies_pickles_and_the_way_back(self):
        model = self.model()
        replace_lstm(model, subclasses=True)
        x = torch.randn(3, 5, 4)
        expected = model.rnn(x)[0]
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(copied.rnn(x)[0], expected)
            assert isinstance(copied.rnn, PackedLSTM)
        back = model.rnn.to_lstm()
        assert type(back) is PackedLSTM
        torch.testing.assert_close(back(x)[0], expected)
        assert back.weight_hh_l0 is model.rnn.weight_hh_l0

    def test_a_second_call_finds_nothing_more_and_says_nothing(self):
        model = self.model()
        replace_lstm(model, subclasses=True)
        before = model.rnn
        assert replace_lstm(model, subclasses=True) == replace_lstm(model) == ()
        assert model.rnn is before

    def test_without_the_word_a_warning_names_it(self):
        model = self.model()
        with pytest.warns(UserWarning, match=r"'rnn' is a PackedLSTM.*subclasses=True"):
            assert replace_lstm(model) == ()

    def test_replacing_nothing_says_what_there_is(self):
        model = nn.Sequential(nn.Embedding(3, 4), nn.GRU(4, 4), nn.LSTMCell(4, 4))
        with pytest.warns(
            UserWarning, match=r"nothing: .*there are '1' \(GRU\), '2' \(LSTMCell\)"
        ) as caught:
            assert replace_lstm(model) == ()
        assert caught[0].filename == __file__
        with pytest.warns(UserWarning, match="no nn.LSTM in this Sequential; nor any other RNN"):
            replace_lstm(nn.Sequential(nn.Linear(2, 2)))

    def test_another_type_is_refused(self):
        with pytest.raises(TypeError, match="`subclasses` must be a bool, got 1"):
            replace_lstm(self.model(), subclasses=1)


class Shell:
    """An optimizer wrapper as fastai's is: no param groups of its own, one optimizer of torch."""

    def __init__(self, optimizer):
        self.opt = optimizer

    def step(self):
        self.opt.step()

    def zero_grad(self):
        self.opt.zero_grad()


class TestOptimizersOfOtherPackages:
    def test_a_shell_is_looked_through(self):
        model = Classifier(StackOfCells())
        optimizer = torch.optim.Adam(model.parameters())
        model(TOKENS).sum().backward()
        optimizer.step()
        freeze(model, "encoder", optimizer=Shell(optimizer))
        assert set(optimizer.state) == {model.head.weight, model.head.bias}
        half = torch.optim.Adam(model.head.parameters())
        with pytest.raises(ValueError, match=r"`optimizer` holds no encoder\.embedding\.weight"):
            unfreeze(model, optimizer=Shell(half))

    def test_one_whose_groups_are_copies_is_refused(self):
        class Copies(Shell):
            param_groups = property(lambda self: [{"params": [], "lr": 0.1}])

        with pytest.raises(TypeError, match=r"Copies, which is not torch's"):
            freeze(Classifier(StackOfCells()), "encoder", optimizer=Copies(None))

    def test_one_that_holds_none_of_torch_s_is_refused_by_module_and_name(self):
        model = Classifier(StackOfCells())
        with pytest.raises(TypeError, match=r"got test_other_models\.Shell, which is not torch's"):
            freeze(model, "head", optimizer=Shell(Shell(None)))
        assert not frozen(model)
