"""One way to name parameters: keywords and targets, on every RNN, and every message."""

import copy
import itertools
import re

import numpy as np
import pytest
import torch
from _models import RNN_TYPES, H, I, Tagger, build_rnn, case_id, rnn_cases, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tree import old_weight_norm, parametrized, pruned
from torch import nn
from torch.nn.utils import parametrizations

from lstm_freeze import BiLSTM, Selection, select
from lstm_freeze._names import DIRECTIONS, KIND_GROUPS, kinds_of, place_of


def chosen(module, *targets, **keywords):
    return list(select(module, *targets, **keywords))


def expected(rnn, layers, directions=DIRECTIONS, kinds=None):
    """By nn.RNNBase's own names, spelled here anew."""
    return [
        name
        for name, _ in rnn.named_parameters()
        for layer, direction in itertools.product(layers, directions)
        if (match := re.fullmatch(r"(\w+?)_l(\d+)(_reverse)?", name))
        and int(match[2]) == layer
        and (match[3] is not None) == (direction == "reverse")
        and (kinds is None or match[1] in kinds)
    ]


@pytest.mark.parametrize("case", rnn_cases(), ids=case_id)
def test_keywords_on_every_rnn(case):
    rnn = build_rnn(**case)
    count = case["num_layers"]
    everything = [name for name, _ in rnn.named_parameters()]
    assert chosen(rnn) == chosen(rnn, None) == chosen(rnn, "*") == everything
    for layer in range(count):
        names = expected(rnn, [layer])
        assert chosen(rnn, layers=layer) == chosen(rnn, layers=[layer]) == names
        assert chosen(rnn, layers=layer - count) == chosen(rnn, f"[{layer}]") == names
        assert chosen(rnn, f"[{layer - count}]") == names
    assert chosen(rnn, directions="forward") == expected(rnn, range(count), ["forward"])
    for kind in kinds_of(case["bias"], bool(case.get("proj_size"))):
        assert chosen(rnn, kinds=kind) == expected(rnn, range(count), kinds=[kind])
    weights = ["weight_ih", "weight_hh", "weight_hr"]
    assert chosen(rnn, kinds="weight") == expected(rnn, range(count), kinds=weights)
    if case["bias"]:
        assert chosen(rnn, kinds="bias") == [n for n in everything if "bias" in n]
    if case["bidirectional"]:
        assert chosen(rnn, directions="reverse") == [n for n in everything if "reverse" in n]
        assert chosen(rnn, directions=["reverse", "forward"]) == everything


@pytest.mark.parametrize("kind", RNN_TYPES)
def test_layer_1_is_never_layer_10_or_11(kind):
    rnn = build_rnn(kind, num_layers=12, bidirectional=True)
    for names in (
        chosen(rnn, layers=1),
        chosen(rnn, "[1]"),
        chosen(rnn, layers=-11),
        chosen(rnn, "[1:2]"),
    ):
        assert {place_of(name).layer for name in names} == {1}
    assert {place_of(n).direction for n in chosen(rnn, "[1]")} == set(DIRECTIONS)
    assert chosen(rnn, "*_l1") == expected(rnn, [1], ["forward"])
    assert chosen(rnn, "weight_ih_l1") == ["weight_ih_l1"]
    assert {place_of(n).layer for n in chosen(rnn, exclude="[1]")} == {*range(12)} - {1}


LAYERS = {
    "int": (1, [1]),
    "negative": (-1, [2]),
    "list": ([0, 2], [0, 2]),
    "tuple": ((0, -1), [0, 2]),
    "set": ({0, 1}, [0, 1]),
    "range": (range(1, 3), [1, 2]),
    "generator": ((i for i in (0, 2)), [0, 2]),
    "slice": (slice(0, 2), [0, 1]),
    "open slice": (slice(1, None), [1, 2]),
    "negative slice": (slice(-2, None), [1, 2]),
    "stepping slice": (slice(None, None, 2), [0, 2]),
    "slices": ([slice(0, 1), slice(2, 3)], [0, 2]),
    "twice": ([0, 0, -3], [0]),
    "numpy": (np.array([0, 2]), [0, 2]),
    "numpy scalar": (np.int64(2), [2]),
    "tensor": (torch.tensor([0, 2]), [0, 2]),
    "tensor scalar": (torch.tensor(2), [2]),
    "slice beyond": (slice(2, 99), [2]),
}


@pytest.mark.parametrize(("given_", "layers"), LAYERS.values(), ids=LAYERS)
def test_layers_index_like_a_sequence(given_, layers):
    rnn = BiLSTM(I, H, 3)
    assert chosen(rnn, layers=given_) == expected(rnn, layers)


def test_keywords_are_anded_and_their_values_ored():
    rnn = BiLSTM(I, H, 3)
    names = chosen(rnn, layers=[0, 2], directions="reverse", kinds=["weight_hh", "bias"])
    kinds = ["weight_hh", "bias_ih", "bias_hh"]
    assert names == expected(rnn, [0, 2], ["reverse"], kinds)
    assert chosen(rnn, "[0:2]", layers=[1, 2]) == expected(rnn, [1])
    assert chosen(rnn, directions="backward") == chosen(rnn, directions="reverse")
    assert (
        chosen(rnn, "[0].backward") == chosen(rnn, "[0].reverse") == expected(rnn, [0], ["reverse"])
    )


def test_keywords_reach_the_one_rnn_inside_and_are_anded_with_targets():
    model = Tagger()
    inside = [f"encoder.lstm.{n}" for n in expected(model.encoder.lstm, [1])]
    assert chosen(model, layers=1) == chosen(model, "encoder", layers=1) == inside
    assert chosen(model, "*bias*", layers=1, directions="reverse") == [
        "encoder.lstm.bias_ih_l1_reverse", "encoder.lstm.bias_hh_l1_reverse",
    ]  # fmt: skip


L0 = ["encoder.lstm." + n for n in expected(BiLSTM(I, H, 2), [0])]
L1 = ["encoder.lstm." + n for n in expected(BiLSTM(I, H, 2), [1])]
HEAD = ["head.weight", "head.bias"]
EMBEDDING = ["encoder.embedding.weight"]

TARGETS = {
    "encoder": EMBEDDING + L0 + L1,
    "encoder.lstm": L0 + L1,
    "encoder.*": EMBEDDING + L0 + L1,
    "head": HEAD,
    "head.*": HEAD,
    "head.bias": ["head.bias"],
    "he*": HEAD,
    "*": EMBEDDING + L0 + L1 + HEAD,
    "*.lstm": L0 + L1,
    "*.bias": ["head.bias"],
    "*head*": HEAD,
    "encoder.lstm[0]": L0,
    "encoder.lstm[-1]": L1,
    "encoder.lstm[ 1 ]": L1,
    "encoder.lstm[:]": L0 + L1,
    "encoder.lstm[0:1]": L0,
    "encoder.lstm[-1:]": L1,
    "*[0]": L0,
    "enc*[1]": L1,
    "encoder.lstm[-1].reverse": [n for n in L1 if "reverse" in n],
    "encoder.lstm[0:2].forward.weight_hh": [
        "encoder.lstm.weight_hh_l0",
        "encoder.lstm.weight_hh_l1",
    ],
    "encoder.lstm[0].weight_ih": [
        "encoder.lstm.weight_ih_l0",
        "encoder.lstm.weight_ih_l0_reverse",
    ],
    "encoder.lstm[0].bias": [n for n in L0 if "bias" in n],
    "encoder.lstm[0].reverse.weight": [
        "encoder.lstm.weight_ih_l0_reverse",
        "encoder.lstm.weight_hh_l0_reverse",
    ],
    "encoder.lstm.weight_ih_l0": ["encoder.lstm.weight_ih_l0"],
}


@pytest.mark.parametrize(("target", "names"), TARGETS.items(), ids=TARGETS)
def test_targets(target, names):
    model = Tagger()
    named = dict(model.named_parameters())
    selection = select(model, target)
    assert list(selection) == names
    assert all(selection[name] is named[name] for name in names)
    rest = [name for name in named if name not in names]
    if rest:
        assert chosen(model, exclude=target) == rest
        assert chosen(model, "*", exclude=[target]) == rest


@pytest.mark.parametrize(("target", "names"), TARGETS.items(), ids=TARGETS)
@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "_forward_module."],
)
def test_wrappers_prefixes_are_accepted_and_never_printed(target, names, prefix):
    if target.startswith("*"):
        return
    for model in (Tagger(), nn.DataParallel(Tagger()), torch.compile(Tagger(), backend="eager")):
        assert chosen(model, prefix + target) == names


def test_targets_are_ored_and_come_in_registration_order():
    model = Tagger()
    assert chosen(model, "head", "encoder.lstm[0]") == L0 + HEAD
    assert chosen(model, ["head", "encoder.lstm[0]"]) == L0 + HEAD
    assert chosen(model, ["head"], "encoder.lstm[0]", ("head.bias",)) == L0 + HEAD
    assert chosen(model, dict.fromkeys(HEAD)) == HEAD
    assert chosen(model, (name for name in HEAD)) == HEAD
    assert chosen(model, select(model, "head")) == HEAD
    assert chosen(model, "head", None) == chosen(model)


def test_every_name_a_wrapped_model_prints_is_accepted():
    plain = Tagger()
    wrapped = torch.compile(nn.DataParallel(plain), backend="eager")
    plain.encoder.lstm = torch.compile(plain.encoder.lstm, backend="eager")
    names = [name for name, _ in wrapped.named_parameters()]
    assert any(name.startswith("_orig_mod.module.encoder.lstm._orig_mod.") for name in names)
    assert chosen(wrapped, names) == EMBEDDING + L0 + L1 + HEAD
    for name in names:
        assert len(chosen(wrapped, name)) == 1


class Really(nn.Module):
    """A model with a child that is really called `module`."""

    def __init__(self):
        super().__init__()
        self.module = nn.Sequential(nn.Linear(2, 2), BiLSTM(I, H, 2))
        self.head = nn.Linear(2, 2)


def test_a_child_really_called_module():
    plain = Really()
    inside = [name for name, _ in plain.named_parameters() if name.startswith("module.")]
    wrapped = nn.DataParallel(Really())
    for model in (plain, wrapped):
        assert chosen(model, "module") == chosen(model, "module.*") == inside
        assert chosen(model, "module.0") == ["module.0.weight", "module.0.bias"]
        assert chosen(model, "module.1[0].reverse.weight_hh") == ["module.1.weight_hh_l0_reverse"]
    assert chosen(wrapped, "module.module.0.bias") == ["module.0.bias"]
    assert chosen(wrapped, "module.module") == inside
    assert chosen(wrapped, "module.head") == ["head.weight", "head.bias"]
    assert chosen(wrapped, [n for n, _ in wrapped.named_parameters()]) == list(
        dict(plain.named_parameters())
    )


def test_the_wrapper_itself_by_name():
    assert chosen(nn.DataParallel(nn.Linear(2, 2)), "module") == ["weight", "bias"]
    with pytest.raises(ValueError, match='"module": no such module'):
        select(nn.Linear(2, 2), "module")


@pytest.mark.parametrize("change", [parametrized, old_weight_norm, pruned])
@pytest.mark.parametrize("build", [BiLSTM, nn.LSTM, nn.GRU, nn.RNN])
def test_changed_rnns_by_layer_direction_kind_and_old_name(change, build):
    model = nn.ModuleDict({"lstm": change(build(I, H, 11, bidirectional=True))})
    names = dict(model.named_parameters())
    of = {name: place_of(name.removeprefix("lstm.")) for name in names}
    assert None not in of.values()
    assert chosen(model, layers=1) == [n for n in names if of[n].layer == 1]
    assert chosen(model, "lstm[1].reverse") == [n for n in names if of[n][:2] == (1, "reverse")]
    assert chosen(model, kinds="weight_hh") == [n for n in names if of[n].kind == "weight_hh"]
    old = chosen(model, "lstm.weight_hh_l1")
    assert old == [n for n in names if of[n] == (1, "forward", "weight_hh")]
    assert len(old) >= 1
    assert all("weight_hh_l1" in name and name != "lstm.weight_hh_l1" for name in old)
    assert chosen(model, "*weight_hh_l1") == old
    assert chosen(model, *names) == list(names)


def test_a_parametrized_linear_by_its_old_name():
    model = nn.ModuleDict({"head": parametrizations.weight_norm(nn.Linear(2, 2))})
    originals = [
        "head.parametrizations.weight.original0", "head.parametrizations.weight.original1",
    ]  # fmt: skip
    assert chosen(model, "head.weight") == chosen(model, "*.weight") == originals
    assert set(chosen(model, "head")) == {*originals, "head.bias"}


def test_a_name_ending_like_an_old_style_one_is_not_taken_for_it():
    model = nn.ParameterDict({"proj_v": nn.Parameter(torch.ones(1))})
    assert chosen(model, "proj_v") == ["proj_v"]
    with pytest.raises(ValueError, match=r'"proj": no such module; did you mean "proj_v"\?'):
        select(model, "proj")


def test_tied_parameters_are_listed_under_every_name():
    model = Tagger()
    model.decoder = nn.Linear(I, 7, bias=False)
    model.decoder.weight = model.encoder.embedding.weight
    both = ["encoder.embedding.weight", "decoder.weight"]
    assert chosen(model, "decoder") == chosen(model, "encoder.embedding") == both
    assert select(model, "decoder").parameters == (model.decoder.weight,)
    assert "decoder.weight" not in chosen(model, exclude="encoder.embedding")
    assert set(chosen(model, exclude="decoder")) == set(L0 + L1 + HEAD)


def test_directions_tied_within_an_rnn_are_one_parameter():
    rnn = BiLSTM(I, H, 1)
    rnn.weight_hh_l0_reverse = rnn.weight_hh_l0
    assert chosen(rnn, "[0].forward.weight_hh") == ["weight_hh_l0", "weight_hh_l0_reverse"]
    assert len(select(rnn).parameters) == 7


def test_a_tie_across_targets_and_keywords_counts_by_identity():
    model = nn.ModuleDict({"lstm": BiLSTM(I, H, 1), "twin": nn.Module()})
    model["twin"].weight = model["lstm"].weight_hh_l0
    assert chosen(model, "twin", layers=0) == ["lstm.weight_hh_l0", "twin.weight"]


def test_equal_values_are_not_a_tie():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].load_state_dict(model["a"].state_dict())
    assert chosen(model, "a") == ["a.weight", "a.bias"]
    assert select(model, "a") != select(copy.deepcopy(model), "a")
    assert select(model, "a") == select(model, "a.*")
    assert select(model, "a") != "a"


def test_an_rnn_shared_at_two_paths_is_one_rnn():
    shared = BiLSTM(I, H)
    model = nn.ModuleDict({"query": shared, "document": shared})
    assert len(select(model, layers=0).parameters) == 8
    assert len(select(model, layers=0)) == 16


def test_several_rnns():
    model = nn.ModuleDict(
        {"a": nn.ModuleList([BiLSTM(I, H, 2), nn.GRU(I, H, 3)]), "b": nn.RNN(I, H)}
    )
    assert chosen(model, "a.0[0].reverse.bias_ih") == ["a.0.bias_ih_l0_reverse"]
    assert chosen(model, "a.1[-1].weight_ih") == ["a.1.weight_ih_l2"]
    assert chosen(model, "*[0].forward.weight_ih") == [
        "a.0.weight_ih_l0", "a.1.weight_ih_l0", "b.weight_ih_l0",
    ]  # fmt: skip
    assert chosen(model, "a.*[2].weight_ih") == ["a.1.weight_ih_l2"]  # those that have it
    with pytest.raises(
        ValueError,
        match=re.escape(
            "layers= needs a module that is or contains exactly one RNN; "
            'the RNNs here: "a.0", "a.1", "b"; use targets, like "a.0[0]"'
        ),
    ):
        select(model, layers=0)


ERRORS = {
    "misspelled": (("encodr",), {}, '"encodr": no such module; did you mean "encoder"?'),
    "misspelled path": (
        ("encoder.lsmt",),
        {},
        '"encoder.lsmt": no such module or parameter; did you mean "encoder.lstm"?',
    ),
    "far off": (("zzz",), {}, '"zzz": no such module; valid: "encoder", "head", or a path below'),
    "far off below": (
        ("encoder.zzzzzzzzzzzzzzzz",),
        {},
        'no such module or parameter; valid: "encoder.embedding", "encoder.lstm", or a path below',
    ),
    "empty string": (("",), {}, '"": no such module; valid: "encoder", "head"'),
    "item of a list": (
        (["head", "encodr"],),
        {},
        '"encodr": no such module; did you mean "encoder"?',
    ),
    "glob": (
        ("lstm.*",),
        {},
        '"lstm.*": matches no module and no parameter; valid: "encoder", "head"',
    ),
    "no prefix match": (("enc",), {}, '"enc": no such module'),
    "exclude": (
        ("head",),
        {"exclude": "encodr"},
        'exclude="encodr": no such module; did you mean "encoder"?',
    ),
    "layer": ((), {"layers": [3]}, "layers=[3]: this LSTM has 2 layers; valid: 0, 1, or -2, -1"),
    "negative layer": (
        (),
        {"layers": -3},
        "layers=[-3]: this LSTM has 2 layers; valid: 0, 1, or -2, -1",
    ),
    "one of the layers": ((), {"layers": [0, 2]}, "layers=[2]: this LSTM has 2 layers"),
    "empty slice": (
        (),
        {"layers": slice(5, 7)},
        "layers=slice(5, 7, None): this LSTM has 2 layers",
    ),
    "bracket layer": (
        ("encoder.lstm[2]",),
        {},
        '"encoder.lstm[2]": this LSTM has 2 layers; valid: 0, 1, or -2, -1',
    ),
    "direction": (
        (),
        {"directions": "left"},
        'directions="left": this LSTM has no "left"; valid: "forward", "reverse"',
    ),
    "near direction": ((), {"directions": "revers"}, 'did you mean "reverse"?'),
    "kind": (
        (),
        {"kinds": "weight_xx"},
        'kinds="weight_xx": this LSTM has no "weight_xx"; valid: "weight_ih", "weight_hh", '
        '"bias_ih", "bias_hh", "weight", "bias"; did you mean "weight"?',
    ),
    "absent kind": ((), {"kinds": "weight_hr"}, 'this LSTM has no "weight_hr"'),
    "brackets on a module": (
        ("head[0]",),
        {},
        '"head[0]": "head" is a Linear, and brackets belong to RNNs; the RNNs here: "encoder.lstm"',
    ),
    "brackets on the model": (
        ("[0]",),
        {},
        '"[0]": the module itself is a Tagger, and brackets belong to RNNs; '
        'the RNNs here: "encoder.lstm"',
    ),
    "brackets nowhere": (
        ("encoder.lsmt[0]",),
        {},
        '"encoder.lsmt[0]": no RNN at "encoder.lsmt"; the RNNs here: "encoder.lstm"; '
        'did you mean "encoder.lstm"?',
    ),
    "bad index": (
        ("encoder.lstm[a]",),
        {},
        "between brackets stands a layer (0, -1) or a slice (0:2), got 'a'",
    ),
    "empty index": (
        ("encoder.lstm[]",),
        {},
        "between brackets stands a layer (0, -1) or a slice (0:2), got ''",
    ),
    "step": (("encoder.lstm[::2]",), {}, "between brackets stands a layer"),
    "two brackets": (("encoder.lstm[0][1]",), {}, "brackets stand once, after the path of an RNN"),
    "open bracket": (("encoder.lstm[0",), {}, "brackets stand once, after the path of an RNN"),
    "after brackets": (
        ("encoder.lstm[0].forwrd",),
        {},
        'after the brackets may stand a direction ("forward", "reverse") and a kind ("weight_ih", '
        '"weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight", "bias", "lora"), got "forwrd"; '
        'did you mean "forward"?',
    ),
    "trailing dot": (("encoder.lstm[0].",), {}, 'got ""'),
    "kind before direction": (("encoder.lstm[0].bias.forward",), {}, 'got "forward"'),
    "own name after brackets": (("encoder.lstm[0].weight_ih_l0",), {}, 'got "weight_ih_l0"'),
    "glob after brackets": (("encoder.lstm[0].*",), {}, 'got "*"'),
    "target and keyword": (
        ("head",),
        {"layers": 0},
        "targets ['head'] and the keywords together select nothing",
    ),
    "all excluded": (("head",), {"exclude": "head"}, "exclude='head' leaves nothing selected"),
    "empty targets": (
        ([],),
        {},
        "`targets` got an empty list, which names nothing; None means all",
    ),
    "empty exclude": ((), {"exclude": []}, "`exclude` got an empty list"),
    "empty layers": ((), {"layers": []}, "`layers` got an empty list"),
    "empty directions": ((), {"directions": []}, "`directions` got an empty list"),
    "empty kinds": ((), {"kinds": ()}, "`kinds` got an empty list"),
}


@pytest.mark.parametrize(("targets", "keywords", "message"), ERRORS.values(), ids=ERRORS)
def test_value_errors_name_the_item_what_is_valid_and_the_nearest(targets, keywords, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        select(Tagger(), *targets, **keywords)


TYPE_ERRORS = {
    "module": (nn.Linear, (), {}, "`module` must be a torch.nn.Module, got type"),
    "target": (None, (1,), {}, "`targets` must be strings .* or lists of them, got int"),
    "a module as target": (None, (nn.Sequential(nn.ReLU()),), {}, "`targets` .* got Sequential"),
    "a parameter as target": (
        None,
        (nn.Parameter(torch.ones(2)),),
        {},
        "`targets` .* got Parameter",
    ),
    "a list of parameters": (
        None,
        ([nn.Parameter(torch.ones(2))],),
        {},
        "`targets` must hold strings, got Parameter",
    ),
    "exclude": (None, (), {"exclude": 0}, "`exclude` must be strings"),
    "bool layer": (None, (), {"layers": True}, "`layers` must be integers or slices, got True"),
    "float layer": (None, (), {"layers": 1.0}, "`layers` must be integers or slices, got 1.0"),
    "string layer": (None, (), {"layers": "0"}, "`layers` must be integers or slices, got '0'"),
    "direction": (None, (), {"directions": 1}, "`directions` must be strings, got 1"),
    "kind": (None, (), {"kinds": [1]}, "`kinds` must be strings, got 1"),
}


@pytest.mark.parametrize(
    ("module", "targets", "keywords", "message"), TYPE_ERRORS.values(), ids=TYPE_ERRORS
)
def test_type_errors(module, targets, keywords, message):
    with pytest.raises(TypeError, match=message):
        select(module or Tagger(), *targets, **keywords)


RNN_ERRORS = {
    "one layer": (
        nn.LSTM(2, 2),
        {"layers": 1},
        "layers=[1]: this LSTM has 1 layer; valid: 0, or -1",
    ),
    "many layers": (
        nn.GRU(2, 2, 12),
        {"layers": 12},
        "layers=[12]: this GRU has 12 layers; valid: 0 to 11, or -12 to -1",
    ),
    "BiLSTM": (BiLSTM(2, 2), {"layers": 5}, "this LSTM has 1 layer"),
    "RNN": (nn.RNN(2, 2, nonlinearity="relu"), {"layers": 5}, "this RNN has 1 layer"),
    "unidirectional": (
        nn.LSTM(2, 2),
        {"directions": "reverse"},
        'directions="reverse": this LSTM has no "reverse"; valid: "forward"',
    ),
    "the alias is not printed": (
        nn.LSTM(2, 2),
        {"directions": "backward"},
        'directions="reverse": this LSTM has no "reverse"',
    ),
    "no bias": (
        nn.LSTM(2, 2, bias=False),
        {"kinds": "bias"},
        'kinds="bias": this LSTM has no "bias"; valid: "weight_ih", "weight_hh", "weight"',
    ),
    "no RNN": (
        nn.Linear(2, 2),
        {"layers": 0},
        "layers= needs a module that is or contains exactly one RNN; this module has no RNN "
        "(BiLSTM, nn.LSTM, nn.GRU, nn.RNN); use targets",
    ),
    "no RNN, directions": (
        nn.Linear(2, 2),
        {"directions": "forward"},
        "directions= needs a module",
    ),
    "no RNN, kinds": (nn.Linear(2, 2), {"kinds": "bias"}, "kinds= needs a module"),
}


@pytest.mark.parametrize(("module", "keywords", "message"), RNN_ERRORS.values(), ids=RNN_ERRORS)
def test_messages_speak_of_the_rnn(module, keywords, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        select(module, **keywords)


def test_brackets_on_an_rnn_within_an_rnn_s_parameter():
    with pytest.raises(
        ValueError, match=r"no RNN at \"weight_ih_l0\"; the RNNs here: the module itself"
    ):
        select(nn.LSTM(2, 2), "weight_ih_l0[0]")


def test_a_module_without_parameters_is_an_error_only_when_named():
    model = nn.ModuleDict({"act": nn.ReLU(), "head": nn.Linear(2, 2)})
    with pytest.raises(
        ValueError, match=r'"act": this module has no parameters; nothing to select'
    ):
        select(model, "act")
    assert chosen(nn.ReLU()) == chosen(nn.ReLU(), None) == []
    with pytest.raises(
        ValueError, match=r'"\*": matches no module and no parameter; this module is empty'
    ):
        select(nn.ReLU(), "*")


def test_selecting_changes_nothing():
    model = Tagger()
    model.head.bias.requires_grad_(False)
    before = snapshot(model), [p.requires_grad for p in model.parameters()]
    select(model, "encoder", exclude="encoder.lstm[0]")
    assert (snapshot(model), [p.requires_grad for p in model.parameters()]) == before


def test_a_selection_is_a_mapping_that_prints_its_rows():
    model = Tagger()
    model.head.bias.requires_grad_(False)
    selection = select(model, "head")
    assert isinstance(selection, Selection)
    assert len(selection) == 2
    assert "head.bias" in selection
    assert "encoder" not in selection
    assert selection["head.weight"] is model.head.weight
    assert dict(selection) == dict(selection.items())
    assert selection.parameters == (model.head.weight, model.head.bias)
    assert repr(selection) == (
        "Selection of 2 parameters:\n"
        "  head.weight  trainable  (2, 8)\n"
        "  head.bias    frozen     (2,)"
    )
    with pytest.raises(TypeError, match="unhashable"):
        hash(selection)
    assert "(lazy)" in repr(select(nn.LazyLinear(2)))


RNN = st.sampled_from(rnn_cases())
BOUND = st.none() | st.integers(-14, 14)


@settings(max_examples=150, deadline=None)
@given(RNN, st.data())
def test_selection_by_keyword_is_selection_by_target(case, data):
    rnn = build_rnn(**case)
    count = case["num_layers"]
    index = data.draw(st.integers(-count - 1, count) | st.builds(slice, BOUND, BOUND))
    direction = data.draw(st.sampled_from([None, *DIRECTIONS, "backward"]))
    kind = data.draw(st.sampled_from([None, *kinds_of(True, True), *KIND_GROUPS]))
    if isinstance(index, slice):
        text = ":".join("" if b is None else str(b) for b in (index.start, index.stop))
    else:
        text = str(index)
    path, model = data.draw(
        st.sampled_from(
            [("", rnn), ("net.rnn", nn.ModuleDict({"net": nn.ModuleDict({"rnn": rnn})}))]
        )
    )
    target = ".".join(filter(None, [f"{path}[{text}]", direction, kind]))
    outcomes = []
    for call in (
        lambda: select(model, target),
        lambda: select(model, layers=index, directions=direction, kinds=kind),
    ):
        try:
            outcomes.append(list(call()))
        except ValueError:
            outcomes.append(ValueError)
    assert outcomes[0] == outcomes[1]
    valid = range(count)[index] if isinstance(index, slice) else -count <= index < count
    if not valid:
        assert outcomes[0] is ValueError


@settings(max_examples=60, deadline=None)
@given(RNN)
def test_layers_directions_and_kinds_partition_an_rnn(case):
    rnn = build_rnn(**case)
    layers = range(case["num_layers"])
    directions = DIRECTIONS[: 1 + case["bidirectional"]]
    kinds = kinds_of(case["bias"], bool(case.get("proj_size")))
    cells = [
        select(rnn, layers=a, directions=b, kinds=c)
        for a, b, c in itertools.product(layers, directions, kinds)
    ]
    assert all(len(cell) == 1 for cell in cells)
    names = [name for cell in cells for name in cell]
    assert len(names) == len(set(names))
    assert set(names) == {name for name, _ in rnn.named_parameters()}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_set_of_names_selects_itself_and_excludes_itself(data):
    model = Tagger()
    names = [name for name, _ in model.named_parameters()]
    subset = data.draw(
        st.lists(st.sampled_from(names), min_size=1, max_size=len(names) - 1, unique=True)
    )
    assert set(select(model, subset)) == set(subset)
    assert set(select(model, exclude=subset)) == set(names) - set(subset)
