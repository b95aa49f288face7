"""FreezeSchedule and Phase: what they accept, what trains when, rates, in plain loops."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lstm_freeze import FreezeSchedule, Phase, freeze, param_groups, unfreeze


def model(layers=2):
    torch.manual_seed(0)
    encoder = nn.ModuleDict(
        {"embedding": nn.Embedding(9, 4), "lstm": nn.LSTM(4, 3, layers, bidirectional=True)}
    )
    return nn.ModuleDict({"encoder": encoder, "head": nn.Linear(6, 2)})


def trainable(module):
    """The parts that train: a part's name stands for all of its parameters."""
    named = dict(module.named_parameters())
    return {name for name, p in named.items() if p.requires_grad}


def names(module, *starts):
    return {n for n, _ in module.named_parameters() if n.startswith(starts)}


def optimizer_of(module, lr=0.1):
    return torch.optim.SGD(param_groups(module, lr), momentum=0.9)


def step(module, optimizer):
    optimizer.zero_grad()
    x = module["encoder"]["embedding"](torch.arange(6).view(3, 2))
    out = module["head"](module["encoder"]["lstm"](x)[0])
    out.square().sum().backward()
    optimizer.step()


def rates(optimizer):
    return {g["name"]: g["lr"] for g in optimizer.param_groups}


THREE = {0: ["head"], 2: ["head", "encoder.lstm[-1]"], 5: ["*"]}


class TestPhase:
    def test_holds_what_was_given(self):
        phase = Phase(3, "head", lr={"head": 1, "*": 1e-5}, warmup=7)
        assert (phase.start, phase.train, phase.warmup) == (3, ("head",), 7)
        assert phase.lr == {"head": 1.0, "*": 1e-5}

    def test_is_plain_data(self):
        phase = Phase(3, ["a", "b"], lr={"a": 1e-3}, warmup=2)
        assert pickle.loads(pickle.dumps(phase)) == phase == copy.deepcopy(phase)
        assert hash(phase) == hash(copy.deepcopy(phase))
        assert eval(repr(phase)) == phase
        assert phase != Phase(3, ["a", "b"], lr={"a": 1e-4}, warmup=2)
        with pytest.raises(AttributeError):
            phase.start = 4

    def test_copies_the_rates(self):
        given = {"head": 1.0}
        phase = Phase(0, "head", lr=given)
        given["head"] = 2.0
        assert phase.lr == {"head": 1.0}

    def test_none_trains_all(self):
        assert Phase(0, None).train == ("*",)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"start": -1}, ValueError, "`start` must not be negative, got -1"),
            ({"start": 1.5}, TypeError, "`start` must be an integer, got 1.5"),
            ({"start": True}, TypeError, "`start` must be an integer, got True"),
            ({"train": []}, ValueError, "`train` got an empty list, which names nothing"),
            ({"train": [3]}, TypeError, "`train` must hold strings, got int"),
            ({"lr": 0}, ValueError, "`lr` must be above 0, got 0; to freeze a target, leave it"),
            ({"lr": "1e-3"}, TypeError, "`lr` must be a number, got '1e-3'"),
            ({"lr": float("nan")}, ValueError, "`lr` must be finite, got nan"),
            ({"lr": {}}, ValueError, "`lr` got an empty mapping, which sets nothing"),
            ({"lr": {3: 1.0}}, TypeError, r"`lr` must map targets \(strings\) to numbers, got 3"),
            ({"lr": {"head": -1}}, ValueError, r"`lr\['head'\]` must be above 0, got -1"),
            ({"warmup": -3}, ValueError, "`warmup` must not be negative, got -3"),
            ({"warmup": 1.0}, TypeError, "`warmup` must be an integer, got 1.0"),
        ],
    )
    def test_refuses(self, arguments, error, message):
        with pytest.raises(error, match=message):
            Phase(**{"start": 0, "train": "head", **arguments})


class TestMaking:
    @pytest.mark.parametrize(
        ("phases", "options", "error", "message"),
        [
            ({1: "head"}, {}, ValueError, "must have a phase that starts at 0, but the first st"),
            ({}, {}, ValueError, "must have a phase that starts at 0, but it is empty"),
            ([Phase(0, "a"), Phase(0, "b")], {}, ValueError, "two phases that start at 0"),
            ([{"start": 0}], {}, TypeError, r"`phases` must hold Phase objects, got \{'start'"),
            (3, {}, TypeError, "`phases` must be a mapping start -> targets or a list .*got int"),
            ("head", {}, TypeError, "`phases` must be a mapping .*got str"),
            ({0: "a"}, {"unit": "batch"}, ValueError, '"epoch" or "step", got \'batch\''),
            ({0: "a"}, {"scope": []}, ValueError, "`scope` got an empty list"),
            ({0: "a"}, {"exclude": []}, ValueError, "`exclude` got an empty list"),
            ({0: "a"}, {"exclude": 3}, TypeError, "`exclude` must be strings"),
        ],
    )
    def test_refuses(self, phases, options, error, message):
        with pytest.raises(error, match=message):
            FreezeSchedule(phases, **options)

    def test_says_all_mistakes_at_once(self):
        with pytest.raises(ValueError, match="for 2 reasons") as caught:
            FreezeSchedule({0: [], -1: "head"})
        assert "phase 0: `train` got an empty list" in str(caught.value)
        assert "phase -1: `start` must not be negative" in str(caught.value)

    def test_sorts_phases(self):
        assert [p.start for p in FreezeSchedule({5: "a", 0: "b", 2: "c"}).phases] == [0, 2, 5]

    def test_is_plain_data(self):
        schedule = FreezeSchedule(THREE, scope=["head", "encoder"], exclude="encoder.embedding")
        assert pickle.loads(pickle.dumps(schedule)) == schedule == eval(repr(schedule))
        assert hash(schedule) == hash(copy.deepcopy(schedule))
        assert schedule != FreezeSchedule(THREE)
        assert schedule != "schedule"

    @pytest.mark.parametrize(
        ("epoch", "expected"),
        [
            (0, ("head",)),
            (1, ("head",)),
            (2, ("head", "encoder.lstm[-1]")),
            (4.9, THREE[2]),
            (5, ("*",)),
            (10**6, ("*",)),
        ],
    )
    def test_trainable_at(self, epoch, expected):
        assert FreezeSchedule(THREE).trainable_at(epoch) == tuple(expected)

    @pytest.mark.parametrize(
        ("epoch", "error"), [(-1, ValueError), ("1", TypeError), (float("inf"), ValueError)]
    )
    def test_trainable_at_refuses(self, epoch, error):
        with pytest.raises(error, match="`epoch` must"):
            FreezeSchedule(THREE).trainable_at(epoch)


class TestApply:
    def test_exactly_the_targets_train(self):
        m, schedule = model(), FreezeSchedule(THREE)
        last = {
            "encoder.lstm." + n for n in dict(m["encoder"]["lstm"].named_parameters()) if "_l1" in n
        }
        expected = {
            0: names(m, "head"),
            1: names(m, "head"),
            2: names(m, "head") | last,
            4: names(m, "head") | last,
            5: names(m, ""),
            9: names(m, ""),
        }
        for epoch in [0, 1, 2, 4, 5, 9, 0, 4, 1]:
            schedule.apply(m, epoch)
            assert trainable(m) == expected[epoch], epoch

    def test_is_a_pure_function_of_the_epoch(self):
        schedule = FreezeSchedule({0: "head", 1: "encoder.lstm", 2: "*", 3: "encoder.embedding"})
        for epoch in range(5):
            through, direct = model(), model()
            for earlier in range(epoch + 1):
                schedule.apply(through, earlier)
            schedule.apply(direct, epoch)
            assert trainable(through) == trainable(direct)

    def test_returns_a_handle(self):
        m = model()
        handle = FreezeSchedule(THREE).apply(m, 0)
        assert set(handle.changed) == names(m, "encoder")
        handle.undo()
        assert trainable(m) == names(m, "")

    def test_leaves_alone_what_is_outside_scope_or_excluded(self):
        m = model()
        freeze(m, "encoder.embedding")
        schedule = FreezeSchedule(
            {0: "encoder.lstm[0]", 1: "*"}, scope=["encoder"], exclude="encoder.embedding"
        )
        schedule.apply(m, 0)
        assert trainable(m) == names(m, "head") | {n for n in names(m, "encoder.lstm") if "l0" in n}
        freeze(m, "head")
        unfreeze(m, "encoder.embedding")
        schedule.apply(m, 1)
        assert trainable(m) == names(m, "encoder")

    def test_freezes_again(self):
        m, schedule = model(), FreezeSchedule({0: "*", 1: "head", 2: "encoder"})
        seen = []
        for epoch in range(3):
            schedule.apply(m, epoch)
            seen.append(trainable(m))
        assert seen == [names(m, ""), names(m, "head"), names(m, "encoder")]

    def test_frozen_bits_stay_and_the_rest_trains(self):
        m, schedule = model(), FreezeSchedule(THREE)
        optimizer = optimizer_of(m)
        for epoch in range(6):
            schedule.apply(m, epoch, optimizer)
            before = {n: p.detach().clone() for n, p in m.named_parameters()}
            for _ in range(2):
                step(m, optimizer)
            for n, p in m.named_parameters():
                assert torch.equal(before[n], p) is not p.requires_grad, (epoch, n)

    def test_drops_the_state_of_what_it_freezes(self):
        m, schedule = model(), FreezeSchedule({0: "*", 1: "head"})
        optimizer = optimizer_of(m)
        schedule.apply(m, 0, optimizer)
        step(m, optimizer)
        assert m["encoder"]["embedding"].weight in optimizer.state
        schedule.apply(m, 1, optimizer)
        assert set(optimizer.state) == {m["head"].weight, m["head"].bias}

    def test_knows_steps(self):
        m, schedule = model(), FreezeSchedule({0: "head", 100: "*"}, unit="step")
        schedule.apply(m, 99)
        assert trainable(m) == names(m, "head")
        schedule.apply(m, 100)
        assert trainable(m) == names(m, "")

    def test_tied_weights_train_if_one_name_does(self):
        m = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
        m["b"].weight = m["a"].weight
        FreezeSchedule({0: "b"}).apply(m, 0)
        assert trainable(m) == {"a.weight", "b.bias"}

    def test_looks_through_wrappers(self):
        m = model()
        FreezeSchedule({0: "head"}).apply(nn.DataParallel(m), 0)
        assert trainable(m) == names(m, "head")

    def test_bitfit_is_one_line(self):
        m = model()
        FreezeSchedule({0: ["*bias*", "head"]}).apply(m, 0)
        assert trainable(m) == {n for n in names(m, "") if "bias" in n} | {"head.weight"}


class TestMistakes:
    @pytest.mark.parametrize(
        ("phases", "options", "message"),
        [
            ({0: "haed"}, {}, 'phase at epoch 0: "haed": no such module; did you mean "head"'),
            ({0: "head", 9: "encoder.lstm[7]"}, {}, r"phase at epoch 9: .*this LSTM has 2 layers"),
            ({0: "head"}, {"scope": "encodr"}, 'scope="encodr": no such module; did you mean'),
            ({0: "head"}, {"exclude": "encodr"}, 'exclude="encodr": no such module; did you mean'),
            ({0: "head"}, {"exclude": "*"}, "leaves nothing in the scope"),
            ({0: "head"}, {"scope": "encoder"}, '"head" lies outside the schedule\'s scope'),
            ([Phase(0, "head", lr={"haed": 1})], {}, 'lr="haed": no such module; did you mean'),
        ],
    )
    def test_refuses_before_any_change(self, phases, options, message):
        m = model()
        with pytest.raises(ValueError, match=message):
            FreezeSchedule(phases, **options).apply(m, 0)
        assert trainable(m) == names(m, "")

    def test_says_all_at_once(self):
        schedule = FreezeSchedule(
            [Phase(0, ["haed", "encodr"]), Phase(3, "x", lr={"y": 1})], exclude="z"
        )
        with pytest.raises(ValueError, match="for 5 reasons") as caught:
            schedule.apply(model(), 0)
        for word in ["haed", "encodr", '"x"', 'lr="y"', 'exclude="z"']:
            assert word in str(caught.value)

    def test_a_phase_that_cannot_train(self):
        m = model()
        m["table"] = nn.Module()
        m["table"].ids = nn.Parameter(torch.arange(3), requires_grad=False)
        with pytest.raises(ValueError, match=r"phase at epoch 2: leaves nothing that can train"):
            FreezeSchedule({0: "head", 2: "table"}).apply(m, 0)

    def test_a_parameter_in_no_optimizer(self):
        m = model()
        optimizer = torch.optim.SGD(m["head"].parameters(), lr=0.1)
        with pytest.raises(ValueError, match=r"`optimizer` holds no encoder\.embedding\.weight"):
            FreezeSchedule({0: "head", 5: "*"}).apply(m, 0, optimizer)
        assert trainable(m) == names(m, "")

    def test_lbfgs(self):
        m = model()
        with pytest.raises(ValueError, match="is an LBFGS that holds what is frozen"):
            FreezeSchedule({0: "head"}).apply(m, 0, torch.optim.LBFGS(m.parameters()))

    @pytest.mark.parametrize("module", [None, "encoder", {}])
    def test_not_a_module(self, module):
        with pytest.raises(TypeError, match=r"`module` must be a torch\.nn\.Module"):
            FreezeSchedule({0: "head"}).apply(module, 0)


class TestRates:
    def test_are_set_once_at_the_start_of_the_phase(self):
        m = model()
        optimizer = optimizer_of(m)
        schedule = FreezeSchedule([Phase(0, "head"), Phase(2, "head", lr=0.5), Phase(4, "head")])
        seen = []
        for epoch in range(6):
            schedule.apply(m, epoch, optimizer)
            seen.append(rates(optimizer)["head"])
            optimizer.param_groups[-1]["lr"] *= 0.5
        assert seen == [0.1, 0.05, 0.5, 0.25, 0.125, 0.0625]

    def test_first_match_wins_and_frozen_groups_keep_theirs(self):
        m = model()
        optimizer = optimizer_of(m)
        phase = Phase(
            0, ["head", "encoder.lstm"], lr={"encoder.lstm[1].reverse": 3, "*": 1, "head": 9}
        )
        FreezeSchedule([phase]).apply(m, 0, optimizer)
        assert rates(optimizer) == {
            "encoder.embedding": 0.1,
            "encoder.lstm[0].forward": 1,
            "encoder.lstm[0].reverse": 1,
            "encoder.lstm[1].forward": 1,
            "encoder.lstm[1].reverse": 3,
            "head": 1,
        }

    def test_a_mapping_may_leave_groups_alone(self):
        m = model()
        optimizer = optimizer_of(m)
        FreezeSchedule([Phase(0, "*", lr={"head": 2})]).apply(m, 0, optimizer)
        assert rates(optimizer)["head"] == 2
        assert rates(optimizer)["encoder.embedding"] == 0.1

    def test_that_they_were_set_is_in_the_checkpoint(self):
        m = model()
        schedule = FreezeSchedule([Phase(0, "head", lr=0.5), Phase(3, "*", lr=0.2)])
        optimizer = optimizer_of(m)
        schedule.apply(m, 3, optimizer)
        optimizer.param_groups[0]["lr"] = 0.01
        saved = copy.deepcopy(optimizer.state_dict())
        resumed = optimizer_of(m)
        schedule.apply(m, 0, resumed)
        resumed.load_state_dict(saved)
        schedule.apply(m, 4, resumed)
        assert rates(resumed)["encoder.embedding"] == 0.01
        assert rates(resumed)["head"] == 0.2

    def test_tensor_rates(self):
        m = model()
        lr = torch.tensor(0.1)
        groups = [{**g, "lr": lr.clone()} for g in param_groups(m, 0.1)]
        optimizer = torch.optim.Adam(groups, foreach=False)
        FreezeSchedule([Phase(0, "*", lr=0.25, warmup=5)]).apply(m, 0, optimizer)
        for n in range(1, 6):
            assert optimizer.param_groups[0]["lr"] == pytest.approx(0.25 * n / 5)
            step(m, optimizer)
        assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
        assert optimizer.param_groups[0]["lr"] == 0.25

    @pytest.mark.parametrize(
        ("phase", "message"),
        [
            (Phase(0, "head", lr=1e-3), "only a part of the optimizer's group 0"),
            (Phase(0, "head", warmup=5), "only a part of the optimizer's group 0"),
            (Phase(0, "*", lr={"head": 1, "*": 2}), "parameters of the optimizer's group 0 differ"),
            (
                Phase(0, "*", lr={"head": 1}),
                "parameters of the optimizer's group 0 different rates",
            ),
        ],
    )
    def test_a_group_only_partly_named_is_refused(self, phase, message):
        m = model()
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        with pytest.raises(ValueError, match=message) as caught:
            FreezeSchedule([phase]).apply(m, 0, optimizer)
        assert "param_groups(module, lr)" in str(caught.value)
        assert optimizer.param_groups[0]["lr"] == 0.1


class TestWarmUp:
    def test_rises_linearly_for_newcomers_only(self):
        m = model()
        optimizer = optimizer_of(m)
        schedule = FreezeSchedule(
            [Phase(0, "head", lr=0.4), Phase(1, ["head", "encoder.lstm"], lr=0.2, warmup=4)]
        )
        schedule.apply(m, 0, optimizer)
        step(m, optimizer)
        assert rates(optimizer)["head"] == 0.4
        seen = []
        for _ in range(3):
            schedule.apply(m, 1, optimizer)
            for _ in range(2):
                seen.append(rates(optimizer)["encoder.lstm[0].forward"])
                assert rates(optimizer)["head"] == 0.2
                step(m, optimizer)
        assert seen == [0.05, 0.1, pytest.approx(0.15), 0.2, 0.2, 0.2]

    def test_without_lr_it_rises_to_the_present_rate(self):
        m = model()
        optimizer = optimizer_of(m, lr=0.3)
        FreezeSchedule([Phase(0, "*", warmup=3)]).apply(m, 0, optimizer)
        seen = []
        for _ in range(4):
            seen.append(rates(optimizer)["head"])
            step(m, optimizer)
        assert seen == pytest.approx([0.1, 0.2, 0.3, 0.3])
        assert rates(optimizer)["head"] == 0.3

    def test_keeps_step_with_an_lr_scheduler(self):
        m = model()
        optimizer = optimizer_of(m, lr=0.1)
        decay = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
        FreezeSchedule([Phase(0, "*", lr=0.8, warmup=4)]).apply(m, 0, optimizer)
        seen = []
        for _ in range(6):
            seen.append(rates(optimizer)["head"])
            step(m, optimizer)
            decay.step()
        ideal = [0.8 * min(i + 1, 4) / 4 * 0.5 ** (i // 2) for i in range(6)]
        assert seen == pytest.approx(ideal, rel=1e-12)

    def test_goes_on_after_a_resume(self):
        schedule = FreezeSchedule([Phase(0, "*", lr=1.0, warmup=5)])
        m = model()
        optimizer = optimizer_of(m)
        schedule.apply(m, 0, optimizer)
        for _ in range(2):
            step(m, optimizer)
        saved = copy.deepcopy(optimizer.state_dict())
        resumed = optimizer_of(m)
        resumed.load_state_dict(saved)
        schedule.apply(m, 0, resumed)
        seen = []
        for _ in range(4):
            seen.append(rates(resumed)["head"])
            step(m, resumed)
        assert seen == pytest.approx([0.6, 0.8, 1.0, 1.0])

    def test_a_group_frozen_meanwhile_is_left_at_its_full_rate(self):
        m = model()
        optimizer = optimizer_of(m)
        schedule = FreezeSchedule([Phase(0, "*", lr=1.0, warmup=5), Phase(1, "head")])
        schedule.apply(m, 0, optimizer)
        step(m, optimizer)
        schedule.apply(m, 1, optimizer)
        assert rates(optimizer)["encoder.embedding"] == 1.0
        assert rates(optimizer)["head"] == pytest.approx(0.4)


def test_a_repeated_call_changes_nothing_and_grows_nothing():
    from lstm_freeze._freezing import undo

    m, schedule = model(), FreezeSchedule(THREE)
    schedule.apply(m, 0)

    def decisions():
        return sum(
            len(record.decisions)
            for module in m.modules()
            for record in undo._ledger.get(module, {}).values()
        )

    before = decisions()
    for _ in range(50):
        assert not schedule.apply(m, 0).changed
    assert decisions() <= before + len(list(m.parameters()))
