"""What was frozen before this library first saw it stays so, unless it is named."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lstm_freeze import BiLSTM, FreezeSchedule, freeze, freeze_up_to, replace_lstm, status, unfreeze


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.levels = nn.Parameter(torch.tensor([0.1, 0.5, 0.9]), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(3))


class Encoder(nn.Module):
    def __init__(self, constant):
        super().__init__()
        words = torch.randn(5, 3)
        self.embedding = nn.Embedding.from_pretrained(words, freeze=constant)
        self.lstm = nn.LSTM(3, 4, 2)


class Model(nn.Module):
    """A head, a loss with constants, and an encoder, perhaps with a constant embedding."""

    def __init__(self, constant=True):
        super().__init__()
        self.encoder = Encoder(constant)
        self.head = nn.Linear(4, 3)
        self.loss = Loss()


CONSTANTS = {"encoder.embedding.weight", "loss.levels"}


def frozen(model):
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def by_hand():
    """A pretrained encoder that arrives frozen, as people freeze it."""
    model = Model()
    model.encoder.requires_grad_(False)
    return model


ENCODER = {f"encoder.{name}" for name, _ in Model().encoder.named_parameters()}

UNNAMED = {
    "unfreeze": lambda m: unfreeze(m),
    "a star": lambda m: unfreeze(m, "*"),
    "None": lambda m: unfreeze(m, None),
    "modules that hold others": lambda m: unfreeze(m, "encoder", "head", "loss"),
    "a glob": lambda m: unfreeze(m, "*.weight", "lo*"),
    "freeze, then unfreeze": lambda m: (freeze(m), unfreeze(m)),
    "only=True": lambda m: unfreeze(freeze(m, "head", only=True) and m, "head"),
    "the other way round": lambda m: (freeze(m, "encoder"), unfreeze(m, "encoder")),
    "a prefix": lambda m: (freeze_up_to(m, "head"), unfreeze(m)),
    "a schedule": lambda m: [
        FreezeSchedule({0: "head", 1: ["head", "encoder"], 2: "*"}).apply(m, i) for i in range(3)
    ],
    "a recipe": lambda m: [FreezeSchedule.gradual_unfreezing(m).apply(m, i) for i in range(5)],
    "chain-thaw": lambda m: [FreezeSchedule.chain_thaw(m).apply(m, i) for i in (0, 3)],
    "replace_lstm": lambda m: (freeze(m), replace_lstm(m), unfreeze(m)),
}


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.filterwarnings("ignore:nothing in this module is trainable")
@pytest.mark.parametrize("act", UNNAMED.values(), ids=UNNAMED)
@pytest.mark.parametrize("copied", [None, copy.deepcopy, by_pickle])
def test_constants_stay_unless_named(act, copied):
    model = Model()
    if copied:
        freeze(model, "head")
        model = copied(model)
        unfreeze(model, "head")
    act(model)
    assert frozen(model) == CONSTANTS


NAMED = {
    "loss.levels": {"loss.levels"},
    "encoder.embedding": {"encoder.embedding.weight"},
    "encoder.embedding.weight": {"encoder.embedding.weight"},
    "*.levels": {"loss.levels"},
    "encoder.emb*": {"encoder.embedding.weight"},
}


@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize(("target", "names"), NAMED.items(), ids=NAMED)
def test_its_own_path_trains_it(target, names, touched):
    model = Model()
    if touched:
        freeze(model, "head").undo()
    with unfreeze(model, target, "head"):
        assert frozen(model) == CONSTANTS - names
    unfreeze(model)
    assert frozen(model) == CONSTANTS, "undone, it is constant again"
    unfreeze(model, target)
    freeze(model)
    unfreeze(model)
    assert frozen(model) == CONSTANTS - names, "once named it trains like all others"


HAND = {
    "encoder": set(),
    "encoder.lstm": {"encoder.embedding.weight"},
    "encoder.lstm[1]": ENCODER - {n for n in ENCODER if n.endswith("_l1")},
    "encoder.*": set(),
}


@pytest.mark.parametrize(("target", "left"), HAND.items(), ids=HAND)
def test_what_was_frozen_by_hand_as_a_whole_trains_when_it_is_named(target, left):
    model = by_hand()
    unfreeze(model, target)
    assert frozen(model) == left | {"loss.levels"}
    model = by_hand()
    unfreeze(model.encoder, *([] if target.startswith("encoder.") else [None]), layers=None)
    assert frozen(model) == {"loss.levels"}


def test_keywords_name_too():
    model = nn.ModuleDict({"lstm": nn.LSTM(2, 2, 2), "head": nn.Linear(2, 2)})
    model["lstm"].requires_grad_(False)
    unfreeze(model, layers=1)
    assert frozen(model) == {f"lstm.{n}" for n, _ in model["lstm"].named_parameters() if "l0" in n}


def test_freeze_names_too():
    model = by_hand()
    freeze(model, "encoder")
    unfreeze(model)
    assert frozen(model) == {"loss.levels"}


def test_frozen_by_hand_after_the_first_touch_is_no_constant():
    model = Model()
    freeze(model, "head").undo()
    model.encoder.requires_grad_(False)
    unfreeze(model)
    assert frozen(model) == {"encoder.embedding.weight", "loss.levels"}


def test_switched_on_by_hand_is_no_constant():
    model = Model()
    freeze(model, "head").undo()
    model.loss.levels.requires_grad_(True)
    with freeze(model):
        pass
    freeze(model)
    unfreeze(model)
    assert frozen(model) == {"encoder.embedding.weight"}


def test_a_parametrised_constant_stays_one():
    model = Model()
    model.extra = nn.Linear(3, 3)
    model.extra.weight.requires_grad_(False)
    freeze(model, "head").undo()
    parametrizations.weight_norm(model.extra)
    unfreeze(model)
    assert len(frozen(model)) == len(CONSTANTS) + 2
    unfreeze(model, "extra.weight")
    assert frozen(model) == CONSTANTS


class TestSchedules:
    def test_every_phase_follows_from_the_schedule_alone(self):
        schedule = FreezeSchedule({0: "head", 1: ["head", "encoder.lstm[1]"], 2: "*"})
        stepwise = by_hand()
        for epoch in range(3):
            schedule.apply(stepwise, epoch)
            resumed = by_hand()
            schedule.apply(resumed, epoch)
            assert frozen(stepwise) == frozen(resumed)
        lower = {n for n in ENCODER if not n.endswith("_l1")}
        assert frozen(stepwise) == lower | {"loss.levels"}

    def test_a_layer_that_a_later_phase_names_trains(self):
        model = by_hand()
        schedule = FreezeSchedule(
            {0: "head", 1: ["head", "encoder.lstm[0]"]}, scope=["encoder", "head"]
        )
        schedule.apply(model, 0)
        assert "encoder.lstm.weight_ih_l0" in frozen(model)
        schedule.apply(model, 1)
        assert {n for n in ENCODER if n.endswith("_l0")} & frozen(model) == set()
        assert "encoder.embedding.weight" in frozen(model)

    def test_gradual_unfreezing_of_an_encoder_frozen_by_hand(self):
        stepwise = by_hand()
        for epoch in range(4):
            FreezeSchedule.gradual_unfreezing(stepwise).apply(stepwise, epoch)
            resumed = by_hand()
            FreezeSchedule.gradual_unfreezing(resumed).apply(resumed, epoch)
            assert frozen(stepwise) == frozen(resumed)
        assert frozen(stepwise) == {"loss.levels"}

    def test_progressive_freezing_has_no_layer_for_a_constant(self):
        model = Model()
        schedule = FreezeSchedule.progressive_freezing(model, 4)
        assert all("embedding" not in str(phase.train) for phase in schedule.phases)
        schedule.apply(model, 0)
        assert frozen(model) == CONSTANTS

    def test_preview_says_what_is_left(self):
        text = FreezeSchedule({0: "head", 2: "*"}).preview(Model(), 4)
        assert text.splitlines()[-1].startswith(
            "encoder.embedding, loss.levels: requires_grad was False before lstm_freeze first saw "
        )
        assert 'unfreeze(module, "encoder.embedding")' in text
        named = FreezeSchedule({0: "head", 2: ["*", "encoder.embedding", "loss.levels"]})
        assert "first saw" not in named.preview(Model(), 4)


def test_status_says_what_is_left():
    model = Model()
    unfreeze(model)
    assert "encoder.embedding, loss.levels: requires_grad was False" in str(
        status(model, by="parameter")
    ).replace("\n      ", " ")
    unfreeze(model, "encoder.embedding", "loss.levels")
    assert "first saw" not in str(status(model))


def test_integers_are_no_constants():
    model = nn.ModuleDict({"head": nn.Linear(2, 2)})
    model.counts = nn.Parameter(torch.zeros(2, dtype=torch.long), requires_grad=False)
    unfreeze(model)
    assert "counts: requires_grad" not in str(status(model))


def test_the_notes_are_plain_and_go_into_a_bilstm():
    lstm = nn.LSTM(2, 3)
    freeze(lstm)
    assert vars(lstm)["_lstm_freeze_at_first"] == dict.fromkeys(
        ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"), "trainable"
    )
    other = BiLSTM.from_lstm(lstm)
    unfreeze(other, kinds="bias")
    assert frozen(other) == {"weight_ih_l0", "weight_hh_l0"}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated")
def test_scripting_after_a_freeze():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    freeze(model, "0")
    with torch.no_grad():
        out = model(torch.ones(1, 2))
        assert torch.equal(torch.jit.script(model)(torch.ones(1, 2)), out)
