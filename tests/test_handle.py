"""A handle undoes on what bears the names now, and a copied handle on its copy."""

import copy
import gc
import io
import itertools
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from lstm_freeze import (
    BiLSTM,
    FrozenGuard,
    FrozenWeightsChanged,
    freeze,
    replace_lstm,
    status,
    unfreeze,
)


class Model(nn.Module):
    def __init__(self, rnn=BiLSTM):
        super().__init__()
        self.encoder = rnn(3, 4, 2, bidirectional=True)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 2)


class Halved(nn.Module):
    def forward(self, x):
        return x / 2

    def right_inverse(self, x):
        return x * 2


def frozen(model):
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def under(flag, act):
    def run(model):
        switch = getattr(torch.__future__, f"set_{flag}")
        switch(True)
        try:
            act(model)
        finally:
            switch(False)

    return run


def assign(model):
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)


def set_anew(model):
    weight = model.encoder.weight_hh_l0
    model.encoder.weight_hh_l0 = nn.Parameter(weight.detach().clone(), requires_grad=False)


def single(model):
    parametrize.register_parametrization(model.encoder, "weight_hh_l0", Halved())


def single_and_back(model):
    single(model)
    parametrize.remove_parametrizations(model.encoder, "weight_hh_l0")


def replace_encoder(model):
    model.encoder = copy.deepcopy(model.encoder)


def to_meta_and_back(model):
    model.to("meta")
    model.to_empty(device="cpu")


SWAP, OVERWRITE = "swap_module_params_on_conversion", "overwrite_module_params_on_conversion"
CHANGES = {
    "load_state_dict(assign=True)": assign,
    "to_empty": lambda m: m.to_empty(device="cpu"),
    "meta and back": to_meta_and_back,
    "another Parameter": set_anew,
    "weight norm": lambda m: parametrizations.weight_norm(m.encoder, "weight_hh_l0"),
    "spectral norm": lambda m: parametrizations.spectral_norm(m.encoder, "weight_hh_l0"),
    "orthogonal": lambda m: parametrizations.orthogonal(m.encoder, "weight_hh_l0"),
    "one original": single,
    "parametrized and back": single_and_back,
    "another module": replace_encoder,
    "to nn.LSTM": lambda m: setattr(m, "encoder", m.encoder.to_lstm()),
    "swap: double": under(SWAP, lambda m: m.double()),
    "swap: load_state_dict": under(SWAP, lambda m: m.load_state_dict(Model().state_dict())),
    "swap: to_empty": under(SWAP, lambda m: m.to_empty(device="cpu")),
    "swap: assign": under(SWAP, assign),
    "overwrite: double": under(OVERWRITE, lambda m: m.double()),
    "overwrite: to_empty": under(OVERWRITE, lambda m: m.to_empty(device="cpu")),
}
changes = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


class TestAHandleStandsForNames:
    @changes
    def test_undo(self, change):
        model = Model()
        handle = freeze(model, "encoder")
        names = {id(p) for p in model.encoder.parameters()}
        change(model)
        assert len(frozen(model)) >= len(names)
        handle.undo()
        assert frozen(model) == set()
        model.requires_grad_(False)
        handle.undo()
        assert len(frozen(model)) == len(list(model.parameters()))

    @changes
    def test_the_exit_of_a_block(self, change):
        model = Model()
        with freeze(model, "encoder"):
            change(model)
        assert frozen(model) == set()

    @changes
    @pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
    def test_several_in_any_order(self, change, order):
        model = Model()
        handles = [freeze(model, "encoder"), unfreeze(model, "encoder")]
        change(model)
        handles.append(freeze(model, "encoder"))
        left = list(range(3))
        for i in order:
            handles[i].undo()
            left.remove(i)
            off = {0: True, 1: False, 2: True}[left[-1]] if left else False
            assert bool({n for n in frozen(model) if n.startswith("encoder")}) is off
        assert frozen(model) == set()

    def test_what_was_frozen_by_hand_is_so_again(self):
        model = Model()
        model.encoder.weight_hh_l0.requires_grad_(False)
        handle = freeze(model, "encoder")
        assign(model)
        handle.undo()
        assert frozen(model) == {"encoder.weight_hh_l0"}

    def test_replace_lstm(self):
        model = Model(nn.LSTM)
        handle = freeze(model, "encoder")
        replace_lstm(model)
        unfreeze(model, "encoder.weight_hh_l0").undo()
        assert len(frozen(model)) == 16
        handle.undo()
        assert frozen(model) == set()

    def test_what_is_gone_is_passed_over(self):
        model = Model()
        handle = freeze(model)
        model.encoder = nn.Identity()
        del model.norm
        handle.undo()
        assert frozen(model) == set()

    def test_modules_that_changed_places_are_told_apart(self):
        model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
        model["b"].requires_grad_(False)
        first, second = freeze(model, "a"), unfreeze(model, "b")
        model["a"], model["b"] = model["b"], model["a"]
        second.undo()
        assert frozen(model) == {"a.weight", "a.bias", "b.weight", "b.bias"}
        first.undo()
        assert frozen(model) == {"a.weight", "a.bias"}

    def test_a_normalisation_layer_that_was_replaced_is_let_go(self):
        model = Model()
        handle = freeze(model, "norm")
        model.norm = copy.deepcopy(model.norm)
        handle.undo()
        assert not model.norm._forward_pre_hooks
        model.norm(torch.randn(4, 8) + 3)
        assert model.norm.running_mean.abs().sum() > 0

    @pytest.mark.filterwarnings("ignore:nothing in this module is trainable")
    def test_tied_and_untied(self):
        model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
        model["b"].weight = model["a"].weight
        with freeze(model["b"]):
            assert not model["a"].weight.requires_grad
            handle = freeze(model, "a")
        assert not model["b"].weight.requires_grad
        assign(model)
        assert model["a"].weight is not model["b"].weight
        handle.undo()
        assert frozen(model) == set()

    def test_where_torch_made_a_buffer_of_it_that_is_said(self):
        model = Model()
        handle = freeze(model, "encoder")
        parametrizations.weight_norm(model.encoder, "weight_hh_l0")
        parametrize.remove_parametrizations(model.encoder, "weight_hh_l0")
        assert "weight_hh_l0" in dict(model.encoder.named_buffers())
        with pytest.warns(UserWarning, match=r"'encoder\.weight_hh_l0' is a buffer now"):
            handle.undo()
        assert frozen(model) == set()


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
    "copy of a copy": lambda model: copy.deepcopy(pickle.loads(pickle.dumps(model))),
}
copies = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


class TestAHandleInACopy:
    @copies
    @pytest.mark.parametrize("order", ["abc", "bca", "cab", "cba"])
    def test_undoes_on_the_copy_in_any_order(self, copied, order):
        model = Model()
        model.a = freeze(model, "encoder")
        model.b = unfreeze(model, "encoder")
        model.c = freeze(model, "encoder", "norm")
        there = copied(model)
        assert frozen(there) == frozen(model)
        left = list("abc")
        for name in order:
            getattr(there, name).undo()
            left.remove(name)
            off = {"a": True, "b": False, "c": True}[left[-1]] if left else False
            assert bool({n for n in frozen(there) if n.startswith("encoder")}) is off
        assert frozen(there) == set()
        assert not there.norm._forward_pre_hooks
        assert {n for n in frozen(model) if n.startswith("norm")}
        assert model.norm._forward_pre_hooks
        for name in reversed(order):
            getattr(model, name).undo()
        assert frozen(model) == set()

    @copies
    def test_and_goes_on_there(self, copied):
        model = Model()
        model.kept = freeze(model, "encoder")
        there = copied(model)
        later = freeze(there, "encoder", "head")
        there.kept.undo()
        assert len(frozen(there)) == 18
        later.undo()
        assert frozen(there) == set()
        there.requires_grad_(False)
        there.kept.undo()
        assert len(frozen(there)) == len(list(there.parameters()))
        assert len(frozen(model)) == 16

    @copies
    def test_a_handle_outside_stays_with_the_original(self, copied):
        model = Model()
        model.kept, outside = freeze(model, "encoder"), freeze(model, "encoder")
        there = copied(model)
        there.kept.undo()
        assert len(frozen(there)) == 16, "the other one decides, and can never be undone here"
        outside.undo()
        assert len(frozen(there)) == len(frozen(model)) == 16
        model.kept.undo()
        assert frozen(model) == set()
        unfreeze(there)
        assert frozen(there) == set()

    @copies
    def test_alone_it_brings_its_own_module(self, copied):
        model = Model()
        handle = freeze(model, "encoder")
        other = copied(handle)
        assert repr(other) == repr(handle) == str(status(model))
        other.undo()
        assert repr(other) == str(status(Model()))
        assert len(frozen(model)) == 16

    def test_a_module_pickled_without_its_handle_needs_no_class_of_this_library(self):
        model = nn.Sequential(nn.LSTM(2, 2), nn.Linear(2, 2))
        handle = freeze(model, "0")
        assert b"lstm_freeze." not in pickle.dumps(model)
        handle.undo()


@pytest.mark.parametrize("flag", [False, True])
def test_no_parameter_or_buffer_has_a_weak_reference(flag):
    model = Model()
    guard = FrozenGuard(model)
    with freeze(model, "encoder"):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        unfreeze(model, "head", optimizer=optimizer)
        handle = freeze(model, "norm")
        model.head(model.norm(model.encoder(torch.randn(5, 2, 3))[0][-1])).sum().backward()
        optimizer.step()
        guard.check()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert [name for name, tensor in tensors if weakref.getweakrefcount(tensor)] == []
    if flag:
        optimizer.zero_grad()
        model.double().load_state_dict(Model().double().state_dict())
        under(SWAP, lambda m: (m.float(), m.load_state_dict(Model().state_dict())))(model)
        handle.undo()
        assert frozen(model) == set()


def test_a_replaced_parameter_is_not_kept_alive():
    model = nn.Linear(3, 3)
    handle = freeze(model)
    storage = weakref.ref(model.weight)
    assign(model)
    gc.collect()
    assert storage() is None
    handle.undo()


@pytest.mark.parametrize("keep", [freeze, FrozenGuard], ids=["handle", "guard"])
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: torch.compile(m, backend="eager")])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_module_that_keeps_what_was_made_through_its_wrapper_can_be_copied(copied, wrap, keep):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    handle = freeze(wrap(model), "0")
    model.kept = handle if keep is freeze else FrozenGuard(wrap(model))
    one = copied(model)
    if keep is freeze:
        one.kept.undo()
        assert one[0].weight.requires_grad
        assert not model[0].weight.requires_grad
    else:
        one.kept.check()
        one[0].weight.data += 1
        with pytest.raises(FrozenWeightsChanged, match=r"0\.weight"):
            one.kept.check()
        model.kept.check()
