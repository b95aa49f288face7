"""freeze, unfreeze, freeze_up_to and their handle, sentence by sentence of the contract."""

import contextlib
import copy
import gc
import pickle
import re
import warnings

import pytest
import torch
from _models import (
    RNN_TYPES,
    C,
    H,
    I,
    Tagger,
    bits,
    build_rnn,
    everything,
    frozen,
    moved,
    snapshot,
    trainable,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lstm_freeze import BiLSTM, Freeze, freeze, freeze_up_to, select, status, unfreeze
from lstm_freeze._freezing import listeners

TOKENS = torch.arange(12).reshape(4, 3) % 7


def names(module):
    return {name for name, _ in module.named_parameters(remove_duplicate=False)}


def with_gradients(module):
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    return module


# What a call does


@pytest.mark.parametrize("kind", RNN_TYPES)
def test_freezing_acts_at_once_on_requires_grad_and_grad(kind):
    model = with_gradients(Tagger(build_rnn(kind, num_layers=2, bidirectional=True)))
    chosen = set(select(model, layers=0))
    handle = freeze(model, layers=0)
    assert frozen(model) == chosen
    assert set(handle.changed) == chosen
    named = dict(model.named_parameters())
    assert all(named[name].grad is None for name in chosen)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for n, p in named.items() if n not in chosen)


def test_freezing_clears_the_stale_gradient_of_what_was_frozen_by_hand():
    model = with_gradients(Tagger())
    model.head.requires_grad_(False)
    handle = freeze(model, "head")
    assert handle.changed == ()
    assert model.head.weight.grad is None
    assert model.encoder.embedding.weight.grad is not None


def test_unfreezing_starts_without_old_gradients():
    model = with_gradients(Tagger())
    model.head.requires_grad_(False)
    unfreeze(model, "head")
    assert trainable(model) == names(model)
    assert model.head.weight.grad is None


def test_unfreezing_what_trains_keeps_its_gradient():
    model = with_gradients(Tagger())
    assert unfreeze(model).changed == ()
    assert all(p.grad is not None for p in model.parameters())


CALLS = {
    "nothing named": ((), {}),
    "None": ((None,), {}),
    "target": (("head",), {}),
    "targets": (("head", "encoder.lstm[0]"), {}),
    "list": ((["head", "encoder.embedding"],), {}),
    "keywords": ((), {"layers": -1, "directions": "reverse", "kinds": "bias"}),
    "both": (("encoder",), {"layers": 0}),
    "exclude": ((), {"exclude": "head"}),
}
calls = pytest.mark.parametrize(("targets", "keywords"), CALLS.values(), ids=CALLS)


@calls
def test_freeze_selects_as_select_does(targets, keywords):
    model = Tagger()
    freeze(model, *targets, **keywords)
    assert frozen(model) == set(select(model, *targets, **keywords))


@calls
def test_unfreeze_selects_as_select_does(targets, keywords):
    model = Tagger()
    model.requires_grad_(False)
    unfreeze(model, *targets, **keywords)
    assert trainable(model) == set(select(model, *targets, **keywords))


@calls
@pytest.mark.filterwarnings("ignore:nothing in this module is trainable")
def test_only_does_the_opposite_to_everything_else(targets, keywords):
    model = Tagger()
    freeze(model, "encoder.lstm[1]")
    chosen = set(select(model, *targets, **keywords))
    freeze(model, *targets, **keywords, only=True)
    assert frozen(model) == chosen
    unfreeze(model, *targets, **keywords, only=True)
    assert trainable(model) == chosen


@calls
def test_a_second_time_changes_nothing(targets, keywords):
    model = Tagger()
    freeze(model, *targets, **keywords)
    before = everything(model)
    handle = freeze(model, *targets, **keywords)
    assert handle.changed == ()
    assert everything(model) == before
    unfreeze(model)
    before = everything(model)
    assert unfreeze(model, *targets, **keywords).changed == ()
    assert everything(model) == before


def test_parameters_are_never_replaced_nor_removed_from_an_optimizer():
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters())
    before = [id(p) for p in model.parameters()]
    with freeze(model, "encoder", optimizer=optimizer):
        unfreeze(model, layers=0, optimizer=optimizer).undo()
    assert [id(p) for p in model.parameters()] == before
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == before


@pytest.mark.parametrize("part", ["encoder", "head", "encoder.lstm[1].reverse", "*"])
def test_freezing_changes_no_bit_of_the_forward_result(part):
    model = Tagger()
    before = bits([model(TOKENS)])
    with freeze(model, part) if part != "*" else freeze(model):
        assert bits([model(TOKENS)]) == before
    assert bits([model(TOKENS)]) == before


@pytest.mark.parametrize("kind", RNN_TYPES)
def test_frozen_weights_stay_and_the_others_move(kind):
    torch.manual_seed(0)
    model = Tagger(build_rnn(kind, num_layers=2, bidirectional=True))
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9, weight_decay=0.1)
    handle = freeze(model, directions="reverse", kinds=["weight_hh", "bias"])
    before = snapshot(model)
    for _ in range(3):
        optimizer.zero_grad()
        model(TOKENS).sin().sum().backward()
        optimizer.step()
    assert moved(model, before) == names(model) - set(handle.changed)


def test_train_and_eval_mode_are_left_alone():
    model = Tagger()
    model.encoder.eval()
    modes = [module.training for module in model.modules()]
    with freeze(model, "encoder"):
        assert [module.training for module in model.modules()] == modes
        unfreeze(model)
        assert [module.training for module in model.modules()] == modes
    assert [module.training for module in model.modules()] == modes


# freeze_up_to


@pytest.mark.parametrize(
    ("end", "left"),
    [
        (0, {"encoder.lstm[1]", "head"}),
        (1, {"head"}),
        (-1, {"head"}),
        (torch.tensor(-2), {"encoder.lstm[1]", "head"}),
        ("encoder", {"head"}),
        ("encoder.embedding", {"encoder.lstm", "head"}),
        ("encoder.lstm[0].forward", {"encoder.lstm[0].reverse", "encoder.lstm[1]", "head"}),
        ("encoder.lstm[0].reverse", {"encoder.lstm[1]", "head"}),
        ("encoder.lstm.weight_ih_l1", {"encoder.lstm[1].forward.weight_hh",
                                       "encoder.lstm[1].forward.bias",
                                       "encoder.lstm[1].reverse", "head"}),
        (["encoder.embedding", "encoder.lstm[0]"], {"encoder.lstm[1]", "head"}),
        ("head.weight", {"head.bias"}),
    ],
)  # fmt: skip
def test_freeze_up_to_freezes_the_prefix(end, left):
    model = Tagger()
    handle = freeze_up_to(model, end)
    assert trainable(model) == set(select(model, *left))
    assert set(handle.changed) == frozen(model)
    handle.undo()
    assert frozen(model) == set()


def test_freeze_up_to_leaves_the_rest_as_it_is():
    model = Tagger()
    model.head.bias.requires_grad_(False)
    freeze_up_to(model, 0)
    assert frozen(model) == set(select(model, "encoder.embedding", "encoder.lstm[0]", "head.bias"))


def test_freeze_up_to_on_parametrized_rnns_goes_by_layer_not_by_registration():
    lstm = nn.utils.parametrizations.weight_norm(BiLSTM(I, H, 2), "weight_hh_l0")
    freeze_up_to(lstm, 0)
    assert frozen(lstm) == set(select(lstm, layers=0))


@pytest.mark.parametrize("kind", RNN_TYPES)
@pytest.mark.parametrize("layer", [0, 1, 9, 10, -1])
def test_freeze_up_to_a_layer_of_twelve(kind, layer):
    model = Tagger(build_rnn(kind, num_layers=12))
    with freeze_up_to(model, layer):
        expected = select(model, "encoder.embedding", "encoder.lstm[:]") if layer == -1 else select(
            model, "encoder.embedding", f"encoder.lstm[:{layer + 1}]"
        )  # fmt: skip
        assert frozen(model) == set(expected)


@pytest.mark.parametrize("wrong", [None, True, 1.5, slice(0, 1), nn.Linear(1, 1)])
def test_freeze_up_to_takes_a_layer_or_a_target(wrong):
    model = Tagger()
    before = everything(model)
    with pytest.raises(TypeError, match=r"`(layer_or_target|targets)` must be"):
        freeze_up_to(model, wrong)
    assert everything(model) == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (2, "layer_or_target=2: this LSTM has 2 layers; valid: 0, 1, or -2, -1"),
        ("encodr", 'did you mean "encoder"?'),
        ([], "got an empty list"),
    ],
)
def test_freeze_up_to_errors(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        freeze_up_to(Tagger(), wrong)


# The handle


def test_changed_lists_each_parameter_once_and_only_what_changed():
    model = Tagger()
    model.decoder = nn.Linear(I, 7, bias=False)
    model.decoder.weight = model.encoder.embedding.weight
    model.head.bias.requires_grad_(False)
    handle = freeze(model, "decoder", "head")
    assert handle.changed == ("encoder.embedding.weight", "head.weight")
    assert isinstance(handle.changed, tuple)
    assert not model.encoder.embedding.weight.requires_grad
    assert unfreeze(model, "encoder.embedding").changed == ("encoder.embedding.weight",)


def test_changed_with_only_lists_both_sides():
    model = Tagger()
    freeze(model, "head")
    handle = freeze(model, "encoder", only=True)
    assert set(handle.changed) == names(model)


def test_undo_restores_what_was_and_a_second_undo_does_nothing():
    model = Tagger()
    model.head.bias.requires_grad_(False)
    before = trainable(model)
    handle = freeze(model)
    assert trainable(model) == set()
    handle.undo()
    assert trainable(model) == before
    freeze(model, "encoder")
    now = trainable(model)
    handle.undo()
    assert trainable(model) == now


def test_as_a_context_manager_it_undoes_at_the_exit_also_of_an_error():
    model = Tagger()
    with freeze(model, "encoder") as handle:
        assert isinstance(handle, Freeze)
        assert frozen(model) == set(select(model, "encoder"))
    assert frozen(model) == set()
    with pytest.raises(ZeroDivisionError), freeze(model, "encoder"):
        raise ZeroDivisionError
    assert frozen(model) == set()


def test_nested_context_managers():
    model = Tagger()
    with freeze(model):
        with unfreeze(model, "head"):
            assert trainable(model) == {"head.weight", "head.bias"}
            with freeze(model, "head.bias"):
                assert trainable(model) == {"head.weight"}
            assert trainable(model) == {"head.weight", "head.bias"}
        assert trainable(model) == set()
    assert frozen(model) == set()


def test_overlapping_context_managers():
    model = Tagger()
    stack = contextlib.ExitStack()
    first = freeze(model, "encoder")
    stack.enter_context(unfreeze(model, "encoder.lstm[1]"))
    first.undo()
    assert frozen(model) == set()
    stack.close()
    assert frozen(model) == set()


def test_dropping_a_handle_undoes_nothing():
    model = Tagger()
    freeze(model, "head")
    gc.collect()
    assert frozen(model) == {"head.weight", "head.bias"}


def test_a_handle_holds_also_what_was_already_frozen():
    model = Tagger()
    first = freeze(model, "head")
    second = freeze(model, "head")
    assert second.changed == ()
    first.undo()
    assert frozen(model) == {"head.weight", "head.bias"}
    second.undo()
    assert frozen(model) == set()


def test_edits_by_hand_are_overridden():
    model = Tagger()
    handle = freeze(model, "head")
    model.head.requires_grad_(True)
    freeze(model, "head").undo()
    assert frozen(model) == {"head.weight", "head.bias"}
    handle.undo()
    assert frozen(model) == set()


def test_undoing_an_unfreeze_clears_gradients():
    model = Tagger()
    freeze(model, "head")
    handle = unfreeze(model, "head")
    model(TOKENS).sum().backward()
    assert model.head.weight.grad is not None
    handle.undo()
    assert model.head.weight.grad is None
    assert frozen(model) == {"head.weight", "head.bias"}


def test_undo_brings_back_no_gradient_and_no_optimizer_state():
    model = with_gradients(Tagger())
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.step()
    handle = freeze(model, "head", optimizer=optimizer)
    handle.undo()
    assert model.head.weight.grad is None
    assert model.head.weight not in optimizer.state
    assert model.encoder.embedding.weight in optimizer.state


def test_a_handle_prints_as_the_status_of_the_moment():
    model = Tagger()
    handle = freeze(model, "encoder")
    assert repr(handle) == str(handle) == str(status(model))
    assert handle._repr_html_() == status(model)._repr_html_()
    assert "<table" in handle._repr_html_()
    handle.undo()
    assert repr(handle) == str(status(model))


def test_a_handle_made_on_a_part_and_one_on_the_whole_share_the_parameters():
    model = Tagger()
    outer = freeze(model, "encoder")
    inner = unfreeze(model.encoder.lstm, "[1]")
    outer.undo()
    inner.undo()
    assert frozen(model) == set()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_undoing_all_in_any_order_restores_everything(data):
    model = nn.ModuleDict(
        {
            "emb": nn.Embedding(3, I),
            "lstm": BiLSTM(I, H, 3, dropout=0.5),
            "norm": nn.BatchNorm1d(C),
            "drop": nn.Sequential(nn.Linear(C, C), nn.Dropout(), nn.BatchNorm1d(C, affine=False)),
        }
    )
    targets = ["emb", "lstm", "lstm[0]", "lstm[1:]", "lstm[1].reverse", "norm", "norm.bias", "drop",
               "drop.0.weight", "*bias*"]  # fmt: skip
    for parameter in model.parameters():
        parameter.requires_grad_(data.draw(st.booleans()))
    before = everything(model)
    handles = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(data.draw(st.integers(1, 5))):
            some = data.draw(st.lists(st.sampled_from(targets), min_size=1, max_size=3))
            only = data.draw(st.booleans())
            if data.draw(st.booleans()):
                word = data.draw(st.sampled_from(["keep", "off"]))
                handles.append(freeze(model, some, only=only, dropout=word))
            else:
                handles.append(unfreeze(model, some, only=only))
    for handle in data.draw(st.permutations(handles)):
        handle.undo()
    assert everything(model) == before


# Errors and warnings


def mistakes(model):
    """Calls that must be refused, each with what it says."""
    lbfgs = torch.optim.LBFGS(model.parameters())
    partial = torch.optim.Adam(model.head.parameters())
    return [
        (freeze, ("encodr",), {}, ValueError, "no such module"),
        (freeze, ("head",), {"exclude": "encodr"}, ValueError, "exclude="),
        (freeze, (), {"layers": []}, ValueError, "empty list"),
        (freeze, ("head",), {"layers": [7]}, ValueError, "this LSTM has 2 layers"),
        (freeze, (3,), {}, TypeError, "`targets` must be strings"),
        (freeze, ("head",), {"dropout": "on"}, ValueError, "`dropout` must be"),
        (freeze, ("head",), {"dropout": None}, ValueError, "`dropout` must be"),
        (freeze, ("encoder",), {"optimizer": lbfgs}, ValueError, "LBFGS"),
        (freeze, ("encoder",), {"optimizer": "adam"}, TypeError, "torch.optim.Optimizer"),
        (freeze, ("encoder",), {"optimizer": [partial, None]}, TypeError, "torch.optim.Optimizer"),
        (
            freeze,
            ("encoder",),
            {"optimizer": []},
            ValueError,
            r"`optimizer` must be at least one optimizer, got \[\]",
        ),
        (freeze, ("head",), {"only": True, "optimizer": partial}, ValueError, "would never train"),
        (unfreeze, ("encodr",), {}, ValueError, "no such module"),
        (unfreeze, ("encoder",), {"optimizer": partial}, ValueError, "would never train"),
        (unfreeze, ("encoder",), {"optimizer": [partial, partial]}, ValueError, "would never"),
        (freeze_up_to, ("encodr",), {}, ValueError, "no such module"),
        (freeze_up_to, (9,), {}, ValueError, "this LSTM has 2 layers"),
    ]


@pytest.mark.parametrize("i", range(17))
def test_an_error_changes_nothing(i):
    model = with_gradients(Tagger())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    optimizer.step()
    model.head.bias.requires_grad_(False)
    before = everything(model, optimizer)
    call, targets, keywords, kind, message = mistakes(model)[i]
    with pytest.raises(kind, match=message):
        call(model, *targets, **keywords)
    assert everything(model, optimizer) == before
    assert len(mistakes(model)) == 17


@pytest.mark.parametrize("call", [freeze, unfreeze, lambda m: freeze_up_to(m, 0)])
@pytest.mark.parametrize("module", [None, nn.Linear, [nn.Linear(1, 1)], torch.ones(1)])
def test_the_module_must_be_a_module(call, module):
    with pytest.raises(TypeError, match=r"`module` must be a torch\.nn\.Module, got \w+"):
        call(module)


EVERYTHING_NAMED = {
    "star": lambda m: freeze(m, "*"),
    "targets": lambda m: freeze(m, "encoder", "head"),
    "the rest": lambda m: (freeze(m, "encoder"), freeze(m, "head"))[1],
    "exclude": lambda m: (freeze(m, "encoder"), freeze(m, exclude="encoder"))[1],
    "up to": lambda m: freeze_up_to(m, "head"),
}


@pytest.mark.parametrize("call", EVERYTHING_NAMED.values(), ids=EVERYTHING_NAMED)
def test_a_call_that_leaves_nothing_trainable_warns_with_the_remedy(call):
    model = Tagger()
    with pytest.warns(UserWarning, match=r"nothing .* trainable .*; unfreeze\(module, ") as caught:
        call(model)
    assert frozen(model) == names(model)
    assert caught[0].filename == __file__


def test_freezing_all_without_naming_anything_is_silent():
    freeze(Tagger())
    freeze(Tagger(), None)


@pytest.mark.parametrize("call", EVERYTHING_NAMED.values(), ids=EVERYTHING_NAMED)
def test_a_warning_turned_into_an_error_changes_nothing(call):
    model = with_gradients(Tagger())
    if call in (EVERYTHING_NAMED["the rest"], EVERYTHING_NAMED["exclude"]):
        freeze(model, "encoder")
    before = everything(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="nothing"):
            call(model)
    assert everything(model) == before


@pytest.mark.parametrize("call", [freeze, unfreeze])
def test_what_autograd_recorded_is_refused_before_anything_changes(call):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight.requires_grad_(False)
    model[1].weight.mul_(model[0].weight)
    before = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=r"'1\.weight' is the result of a computation .*no_grad"):
        call(model)
    assert [p.requires_grad for p in model.parameters()] == before


# Parameters of every sort


class Table(nn.Module):
    """Integer parameters beside others."""

    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.arange(3), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        self.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))
        self.mask = nn.Parameter(torch.ones(3, dtype=torch.bool), requires_grad=False)


def test_unfreezing_skips_what_cannot_train():
    model = Table()
    optimizer = torch.optim.SGD([model.scale, model.phase], 0.1)
    handle = freeze(model)
    assert set(handle.changed) == {"scale", "phase"}
    second = unfreeze(model, optimizer=optimizer)
    assert set(second.changed) == {"scale", "phase"}
    assert trainable(model) == {"scale", "phase"}
    second.undo()
    assert trainable(model) == set()
    handle.undo()
    assert trainable(model) == {"scale", "phase"}


def test_unfreezing_only_what_cannot_train_warns():
    model = Table()
    freeze(model)
    with pytest.warns(UserWarning, match="nothing in this module is trainable"):
        unfreeze(model, "codes")


def test_lazy_parameters_are_frozen_before_they_have_a_shape():
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyLinear(2))
    handle = freeze(model, "0")
    assert handle.changed == ("0.weight", "0.bias")
    model(torch.ones(2, 4)).sum().backward()
    assert trainable(model) == {"1.weight", "1.bias"}
    assert model[0].weight.grad is None
    assert model[0].weight.shape == (3, 4)
    handle.undo()
    assert frozen(model) == set()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.complex64])
def test_all_trainable_dtypes(dtype):
    module = nn.ParameterList([nn.Parameter(torch.ones(2, dtype=dtype))])
    with freeze(module):
        assert not module[0].requires_grad
    assert module[0].requires_grad


def test_meta_parameters():
    model = Tagger().to("meta")
    with freeze(model, "encoder"):
        assert frozen(model) == set(select(model, "encoder"))
    assert frozen(model) == set()


def test_what_was_made_in_inference_mode_cannot_be_unfrozen_and_says_why():
    with torch.inference_mode():
        made = nn.Linear(2, 2)
    model = nn.Sequential(nn.Linear(2, 2), made)
    freeze(model, "0")
    before = everything(model)
    with pytest.raises(ValueError, match=r"'1\.weight' was made under torch\.inference_mode"):
        unfreeze(model)
    assert everything(model) == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_calls_within_no_grad_and_inference_mode(mode):
    model = with_gradients(Tagger())
    with mode():
        handle = freeze(model, "encoder")
    model(TOKENS).sum().backward()
    assert frozen(model) == set(select(model, "encoder"))
    with mode():
        handle.undo()
    model(TOKENS).sum().backward()
    assert model.encoder.embedding.weight.grad is not None


def test_tied_parameters_freeze_together_under_any_of_their_names():
    model = Tagger()
    model.decoder = nn.Linear(I, 7, bias=False)
    model.decoder.weight = model.encoder.embedding.weight
    freeze(model, "decoder")
    assert frozen(model) == {"decoder.weight", "encoder.embedding.weight"}
    unfreeze(model, "encoder.embedding")
    assert frozen(model) == set()
    freeze(model, "encoder", exclude="decoder")
    assert "encoder.embedding.weight" not in frozen(model)


def test_equal_values_do_not_freeze_together():
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model[1].load_state_dict(model[0].state_dict())
    freeze(model, "0")
    assert trainable(model) == {"1.weight", "1.bias"}


# Copies, wrappers


@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_frozen_and_independent(make):
    model = Tagger()
    handle = freeze(model, "encoder")
    twin = make(model)
    assert frozen(twin) == frozen(model)
    handle.undo()
    assert frozen(model) == set()
    assert frozen(twin) == set(select(twin, "encoder"))
    with unfreeze(twin):
        assert frozen(twin) == set()
    assert frozen(twin) == set(select(twin, "encoder"))


def test_a_frozen_state_is_no_part_of_a_state_dict():
    model = nn.Sequential(BiLSTM(I, H, 2, dropout=0.5), nn.BatchNorm1d(C))
    keys = list(model.state_dict())
    freeze(model, dropout="off")
    assert list(model.state_dict()) == keys
    nn.Sequential(BiLSTM(I, H, 2), nn.BatchNorm1d(C)).load_state_dict(model.state_dict())


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compile": lambda m: torch.compile(m, backend="eager"),
    "both": lambda m: torch.compile(nn.DataParallel(m), backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_are_looked_through(wrap):
    model = Tagger()
    wrapped = wrap(model)
    handle = freeze(wrapped, "encoder.lstm[0]")
    assert frozen(model) == set(select(model, "encoder.lstm[0]"))
    assert set(handle.changed) == frozen(model)
    unfreeze(wrapped, "module.encoder", only=True)
    assert trainable(model) == set(select(model, "encoder"))
    freeze_up_to(wrapped, 0)
    assert trainable(model) == set(select(model, "encoder.lstm[1]"))
    assert "module" not in repr(handle)
    assert "_orig_mod" not in repr(handle)


def test_a_compiled_model_follows_freezes_between_calls():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(C, C), nn.Tanh(), nn.Linear(C, C))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.randn(3, C)
    for part in ("0", "2", "0.weight"):
        with freeze(compiled, part):
            model.zero_grad()
            compiled(x).sum().backward()
            named = dict(model.named_parameters())
            assert {n for n, p in named.items() if p.grad is None} == frozen(model) != set()
    model.zero_grad()
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_script_module():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    with freeze(model, "0"):
        model(torch.ones(1, 2)).sum().backward()
        assert model[0].weight.grad is None
        assert model[1].weight.grad is not None
    assert frozen(model) == set()


# Listeners


class Ear:
    """Hears what was decided."""

    def __init__(self):
        self.heard, self.before, self.refuses = [], [], False
        listeners.add(self)

    def before_unfreezing(self, parameters):
        self.before = [(id(p), p.requires_grad) for p in parameters]
        if self.refuses:
            raise KeyError("refused")

    def frozen_changed(self, parameters):
        self.heard.append([(id(p), p.requires_grad) for p in parameters])

    def idle_steps(self):
        return {}


def test_listeners_hear_of_every_freeze_unfreeze_and_undo_afterwards():
    model = nn.Linear(2, 2)
    ear = Ear()
    weight, bias = id(model.weight), id(model.bias)
    with freeze(model, "weight"):
        unfreeze(model, "weight", only=True).undo()
    assert ear.heard == [
        [(weight, False)],
        [(bias, False), (weight, True)],
        [(bias, True), (weight, False)],
        [(weight, True)],
    ]
    with pytest.raises(ValueError, match="no such module"):
        freeze(model, "wight")
    assert len(ear.heard) == 4


def test_a_listener_that_raises_beforehand_stops_an_unfreeze_and_an_undo():
    model = nn.Linear(2, 2)
    handle = freeze(model, "weight")
    ear = Ear()
    ear.refuses = True
    for call in (handle.undo, lambda: unfreeze(model)):
        with pytest.raises(KeyError, match="refused"):
            call()
        assert not model.weight.requires_grad
        assert (id(model.weight), False) in ear.before
        assert not ear.heard
    ear.refuses = False
    handle.undo()
    assert model.weight.requires_grad
    assert ear.heard == [[(id(model.weight), True)]]


def test_listeners_are_held_weakly():
    size = len(listeners)
    ear = Ear()
    assert len(listeners) == size + 1
    del ear
    gc.collect()
    assert len(listeners) == size
