"""A model's inside by path: wrappers are transparent, parts are disjoint and complete."""

import os
import warnings

import pytest
import torch
from _models import H, I, Tagger, build_rnn, case_id, rnn_cases
from torch import nn
from torch.nn.utils import parametrizations, prune

from lstm_freeze import BiLSTM
from lstm_freeze._model.tree import Tree, inner_name, is_rnn, join, rewrite, unwrap, walk, within


class Wrapped(nn.Module):
    """As torch.compile, FSDP and checkpoint_wrapper hold a module."""

    def __init__(self, module, name):
        super().__init__()
        self.add_module(name, module)


def compiled(module):
    return torch.compile(module, backend="eager")


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compile": compiled,
    "compile(DataParallel)": lambda m: compiled(nn.DataParallel(m)),
    "DataParallel(compile)": lambda m: nn.DataParallel(compiled(m)),
    "Fabric": lambda m: Wrapped(m, "_forward_module"),
    "FSDP": lambda m: Wrapped(m, "_fsdp_wrapped_module"),
    "checkpoint": lambda m: Wrapped(m, "_checkpoint_wrapped_module"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
def test_paths_never_mention_wrappers(wrapper):
    model = Tagger()
    expected = list(model.named_parameters())
    model.encoder.lstm = wrapper(model.encoder.lstm)
    tree = Tree(wrapper(model))
    assert tree.root is model
    assert tree.wrapped
    assert [(n, id(p)) for n, p in tree.parameters.items()] == [(n, id(p)) for n, p in expected]
    assert list(tree.rnns) == ["encoder.lstm"]
    assert type(tree.rnns["encoder.lstm"]) is BiLSTM


def test_a_child_called_module_is_no_wrapper():
    model = nn.Module()
    model.module = nn.Linear(2, 2)
    assert inner_name(model) is None
    assert unwrap(model) is model
    assert list(Tree(model).parameters) == ["module.weight", "module.bias"]
    assert not Tree(model).wrapped


@pytest.mark.parametrize("case", rnn_cases()[::5], ids=case_id)
def test_rnns_are_known_by_their_parameters(case):
    assert is_rnn(build_rnn(**case))


def test_a_model_with_an_rnn_s_settings_is_no_rnn():
    model = Tagger()
    model.mode, model.num_layers = "LSTM", 2
    assert not is_rnn(model)
    assert list(Tree(model).rnns) == ["encoder.lstm"]


@pytest.mark.parametrize("module", [nn.LSTMCell(2, 2), nn.Linear(2, 2), nn.Module()])
def test_other_modules_are_no_rnns(module):
    assert not is_rnn(module)


def parametrized(rnn):
    for name in [name for name, _ in rnn.named_parameters() if "weight" in name]:
        parametrizations.weight_norm(rnn, name)
    return rnn


def old_weight_norm(rnn):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for name in [name for name, _ in rnn.named_parameters() if "weight" in name]:
            nn.utils.weight_norm(rnn, name)
    return rnn


def pruned(rnn):
    for name in [name for name, _ in rnn.named_parameters() if "weight" in name]:
        prune.random_unstructured(rnn, name, amount=0.5)
    return rnn


CHANGES = {"plain": lambda rnn: rnn, "parametrized": parametrized, "pruned": pruned,
           "old weight norm": old_weight_norm}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("build", [BiLSTM, nn.LSTM, nn.GRU, nn.RNN])
def test_every_parameter_of_a_changed_rnn_has_its_place(change, build):
    rnn = change(build(I, H, 2, bidirectional=True))
    tree = Tree(rnn)
    assert is_rnn(rnn)
    assert list(tree.places("")) == list(tree.parameters)
    assert [part.name for part in tree.parts] == [
        "[0].forward", "[0].reverse", "[1].forward", "[1].reverse",
    ]  # fmt: skip
    assert len({len(part.parameters) for part in tree.parts}) == 1


def test_a_name_that_looks_like_an_old_style_one_serves_nothing():
    model = nn.Module()
    model.proj_v = nn.Parameter(torch.zeros(1))
    model.query_orig = nn.Parameter(torch.zeros(1))
    assert Tree(model).tensors_served == {}
    prune.identity(model, "proj_v")
    assert Tree(model).tensors_served == {"proj_v_orig": "proj_v"}


def test_tied_parameters_are_distinct_by_identity_not_value():
    model = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(3))
    model[1].weight = model[0].weight
    with torch.no_grad():
        model[2].weight.copy_(model[0].weight)
    tree = Tree(model)
    assert list(tree.distinct()) == ["0.weight", "2.weight"]
    assert list(tree.all_names(["1.weight"])) == ["0.weight", "1.weight"]
    assert list(tree.distinct(["1.weight"])) == ["1.weight"]


def test_a_shared_module_stands_at_each_path():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, shared)
    assert [path for path, _ in walk(model)] == ["", "0", "1"]
    assert len(Tree(model).distinct()) == 2


class Deep(nn.Module):
    """RNNs at several depths, a parameter of its own, a tie, blocks without parameters."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.embedding = nn.Embedding(5, 3)
        self.block = nn.Sequential(nn.LSTM(3, 3, 2), nn.Dropout(), nn.Linear(3, 3))
        self.more = nn.ModuleList([nn.GRU(3, 3), BiLSTM(3, 3)])
        self.nothing = nn.ReLU()
        self.head = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        self.decoder = nn.Linear(3, 5, bias=False)
        self.decoder.weight = self.embedding.weight


def test_parts_of_a_nested_model():
    parts = Tree(Deep()).parts
    assert [(part.name, part.depth) for part in parts] == [
        ("scale", 7),
        ("embedding", 6),
        ("block.0[0].forward", 5),
        ("block.0[1].forward", 4),
        ("block.2", 3),
        ("more.0[0].forward", 2),
        ("more.1[0].forward", 1),
        ("more.1[0].reverse", 1),
        ("head", 0),
    ]


def deep_with_weight_norm():
    model = Deep()
    parametrized(model.block[0])
    return model


@pytest.mark.parametrize(
    "build",
    [
        Deep,
        deep_with_weight_norm,
        Tagger,
        lambda: nn.Linear(2, 2),
        lambda: BiLSTM(I, H, 12),
        lambda: nn.DataParallel(Deep()),
        lambda: nn.Sequential(nn.Sequential(nn.Sequential(BiLSTM(I, H)))),
        nn.ReLU,
    ],
)
def test_parts_are_disjoint_and_complete(build):
    tree = Tree(build())
    listed = [id(p) for part in tree.parts for p in part.parameters.values()]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in tree.parameters.values()}
    assert all(tree.parameters[n] is p for part in tree.parts for n, p in part.parameters.items())
    assert len({part.name for part in tree.parts}) == len(tree.parts)
    depths = [part.depth for part in tree.parts]
    assert depths == sorted(depths, reverse=True)
    assert set(depths) == set(range(len(set(depths))))


def test_wrapping_changes_no_part():
    model = Deep()
    expected = [(p.name, p.depth, list(p.parameters)) for p in Tree(model).parts]
    outer = nn.ModuleDict({"body": nn.ModuleDict({"net": nn.DataParallel(model)})})
    found = [(p.name, p.depth, list(p.parameters)) for p in Tree(outer).parts]
    strip = [(n.removeprefix("body.net."), d, [x.removeprefix("body.net.") for x in names])
             for n, d, names in found]  # fmt: skip
    assert strip == expected


@pytest.mark.parametrize(
    ("name", "path", "inside"),
    [
        ("encoder.lstm.weight", "", True),
        ("encoder.lstm.weight", "encoder", True),
        ("encoder", "encoder", True),
        ("encoder2.weight", "encoder", False),
        ("layer.10.weight", "layer.1", False),
        ("lstm.encoder.weight", "encoder", False),
    ],
)
def test_within(name, path, inside):
    assert within(name, path) is inside


def test_join():
    assert [join("a", "b"), join("", "b"), join("a", "")] == ["a.b", "b", "a"]


def test_a_tree_reads_a_large_model_quickly():
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(2000)))
    start = os.times().user
    assert len(Tree(model).parts) == 2000
    assert os.times().user - start < 1


@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:DeprecationWarning")
def test_rewriting_parameters_changes_nothing_also_while_they_are_listed():
    model = Tagger()
    model.head.register_parameter("absent", None)
    before = list(model.named_parameters())
    listed = []
    for name, parameter in model.named_parameters():
        rewrite(model, model.parameters())
        listed.append((name, parameter))
    assert [(n, id(p)) for n, p in listed] == [(n, id(p)) for n, p in before]
    assert model.head._parameters["absent"] is None
    traced = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    rewrite(traced, traced.parameters())
    assert [name for name, _ in traced.named_parameters()] == ["weight", "bias"]
