"""from_lstm, to_lstm and replace_lstm: the same Parameters in the other class."""

import itertools
from collections import OrderedDict

import pytest
import torch
import torch.distributed as dist
from _oracle import (
    B,
    Case,
    H,
    I,
    T,
    assert_agree,
    assert_close,
    assert_same_bits,
    example,
    pair,
    results,
)
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from lstm_freeze import BiLSTM, freeze, replace_lstm

X = torch.linspace(-1, 1, T * B * I).sin().reshape(T, B, I)
CASES = [
    Case(layers, two, bias, batch_first, proj, dtype, "dense", True)
    for layers, two, bias, batch_first, proj, dtype in [
        (1, False, True, False, 0, torch.float32),
        (1, True, False, True, 2, torch.float64),
        (2, True, True, True, 0, torch.float64),
        (3, False, False, False, 2, torch.float32),
        (3, True, True, False, 2, torch.float32),
    ]
]


def same_objects(one: nn.Module, other: nn.Module) -> None:
    """Both list the same Parameter objects under the same names, in the same order."""
    pairs = itertools.zip_longest(
        one.named_parameters(remove_duplicate=False), other.named_parameters(remove_duplicate=False)
    )
    for (name, own), (their_name, theirs) in pairs:
        assert name == their_name
        assert own is theirs, name


# --- one module


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_from_lstm_and_back(case: Case, used: bool):
    lstm, _ = pair(**case.options)
    lstm.eval().weight_hh_l0.requires_grad_(False)
    if used:
        lstm(*example(case).args)[0].sum().backward()
    bilstm = BiLSTM.from_lstm(lstm)
    back = bilstm.to_lstm()
    assert type(bilstm) is BiLSTM
    assert type(back) is nn.LSTM
    for module in (bilstm, back):
        same_objects(module, lstm)
        assert not module.training
        assert repr(module).removeprefix("Bi") == repr(lstm)
        assert_same_bits(module.state_dict(), lstm.state_dict())
        assert_close(
            results(module(*example(case).args)),
            results(lstm(*example(case).args)),
            {torch.float32: 1e-6, torch.float64: 1e-12}[case.dtype],
        )
    lstm.weight_hh_l0.requires_grad_(True)
    assert_agree(lstm, bilstm, example(case))
    assert_agree(lstm, back, example(case))


def test_conversion_draws_no_random_numbers_and_warns_of_nothing():
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        lstm = nn.LSTM(I, H, dropout=0.5)
    before = torch.get_rng_state()
    bilstm = BiLSTM.from_lstm(lstm)
    assert bilstm.dropout == bilstm.to_lstm().dropout == 0.5
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "convert", [BiLSTM.from_lstm, lambda lstm: BiLSTM.from_lstm(lstm).to_lstm()]
)
def test_optimizers_made_before_conversion_stay_valid(convert):
    lstm, _ = pair(num_layers=2)
    optimizer = torch.optim.SGD(lstm.parameters(), lr=0.5)
    module = convert(lstm)
    before = results(module(X))
    module(X)[0].sum().backward()
    optimizer.step()
    assert not torch.allclose(module(X)[0], before["output"])
    assert_close(results(module(X)), results(lstm(X)), 1e-6)


@pytest.mark.parametrize("other", [nn.GRU(I, H), nn.Linear(1, 1), None, "lstm"], ids=repr)
def test_from_lstm_takes_nothing_else(other):
    with pytest.raises(TypeError, match=rf"nn\.LSTM, got {type(other).__name__}"):
        BiLSTM.from_lstm(other)


class Special(nn.LSTM):
    """May do anything in its forward."""


def test_from_lstm_refuses_a_subclass():
    with pytest.raises(TypeError, match=r"Special.*subclass"):
        BiLSTM.from_lstm(Special(I, H))


def test_ties_are_kept():
    lstm, _ = pair(num_layers=2, bidirectional=True)
    lstm.weight_hh_l0_reverse = lstm.weight_hh_l0
    bilstm = BiLSTM.from_lstm(lstm)
    assert bilstm.weight_hh_l0_reverse is bilstm.weight_hh_l0 is lstm.weight_hh_l0
    back = bilstm.to_lstm()
    assert back.weight_hh_l0_reverse is lstm.weight_hh_l0
    assert_agree(lstm, bilstm, example(CASES[0]._replace(num_layers=2, bidirectional=True)))


def parametrized(lstm: nn.LSTM) -> nn.LSTM:
    parametrizations.weight_norm(lstm, "weight_hh_l0")
    return lstm


def old_weight_norm(lstm: nn.LSTM) -> nn.LSTM:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(lstm, "weight_hh_l0")


def pruned(lstm: nn.LSTM) -> nn.LSTM:
    return prune.l1_unstructured(lstm, "weight_hh_l0", 0.5)


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("change", [parametrized, old_weight_norm, pruned])
def test_changed_lstms_are_converted_as_they_are(change, used: bool):
    lstm = change(pair(num_layers=2)[0])
    if used:
        lstm(X)[0].sum().backward()
    kind = type(lstm)
    bilstm = BiLSTM.from_lstm(lstm)
    assert type(lstm) is kind
    assert parametrize.is_parametrized(bilstm) == parametrize.is_parametrized(lstm)
    for module in (bilstm, bilstm.to_lstm()):
        same_objects(module, lstm)
        assert_same_bits(module.state_dict(), lstm.state_dict())
        assert_agree(lstm, module, example(CASES[0]._replace(num_layers=2)))
    before = bilstm(X)[0]
    parameter = dict(bilstm.named_parameters())
    name = next(name for name in parameter if "weight_hh_l0" in name)
    with torch.no_grad():
        parameter[name].mul_(1.5)
    assert not torch.allclose(bilstm(X)[0], before)
    assert_close(results(bilstm(X)), results(lstm(X)), 1e-6)


# --- a whole model


class Tagger(nn.Module):
    """LSTMs in every kind of container, one of them in two places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(9, I)
        self.encoder = nn.LSTM(I, H, 2, batch_first=True, bidirectional=True)
        self.stack = nn.ModuleList([nn.LSTM(2 * H, H, batch_first=True), nn.Linear(H, H)])
        self.named = nn.ModuleDict({"deep": nn.Sequential(OrderedDict(rnn=nn.LSTM(H, H)))})
        self.again = self.encoder
        self.gru = nn.GRU(H, H)
        self.head = nn.Linear(H, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x, _ = self.encoder(self.embedding(tokens))
        x, _ = self.stack[0](x)
        x, _ = self.named["deep"](self.stack[1](x).transpose(0, 1))
        return self.head(self.gru(x)[0])


TOKENS = torch.arange(12).remainder(9).reshape(2, 6)
PATHS = {"encoder", "again", "stack.0", "named.deep.rnn"}


def test_replace_lstm_reaches_every_place():
    model = Tagger()
    expected, text, state = model(TOKENS), repr(model), model.state_dict()
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    parameters = list(model.parameters())
    replaced = replace_lstm(model)
    assert isinstance(replaced, tuple)
    assert set(replaced) == PATHS
    assert len(replaced) == len(PATHS)
    assert all(type(model.get_submodule(path)) is BiLSTM for path in replaced)
    assert model.again is model.encoder
    assert not [m for m in model.modules() if isinstance(m, nn.LSTM)]
    assert type(model.gru) is nn.GRU
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert [name for name, _ in model.named_modules(remove_duplicate=False)] == names
    assert repr(model).replace("BiLSTM", "LSTM") == text
    assert_same_bits(model.state_dict(), state)
    assert_close({"logits": model(TOKENS)}, {"logits": expected}, 2e-6)
    assert replace_lstm(model) == ()


def test_replaced_lstms_train_with_the_optimizer_made_before():
    model, twin = Tagger().double(), Tagger().double()
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (model, twin)]
    replace_lstm(model)
    start = {name: value.clone() for name, value in twin.state_dict().items()}
    for _ in range(4):
        for module, optimizer in zip((model, twin), optimizers, strict=True):
            optimizer.zero_grad()
            module(TOKENS).logsumexp(-1).sum().backward()
            optimizer.step()
    assert_close(model.state_dict(), twin.state_dict(), 1e-8)
    for name, value in twin.state_dict().items():
        assert not torch.equal(value, start[name]), name


def test_mode_flags_and_attributes_are_kept():
    model = Tagger()
    model.encoder.eval()
    model.encoder.tag = "pretrained"
    model.encoder.bias_hh_l1.requires_grad_(False)
    model.train(True).encoder.eval()
    replace_lstm(model)
    assert not model.encoder.training
    assert model.stack[0].training
    assert model.encoder.tag == "pretrained"
    assert not model.encoder.bias_hh_l1.requires_grad


def test_hooks_are_kept_and_their_handles_remove_them():
    model = Tagger()
    seen = []
    encoder = model.encoder
    handles = [
        encoder.register_forward_pre_hook(lambda m, a: seen.append(("pre", type(m)))),
        encoder.register_forward_hook(lambda m, a, o: seen.append(("forward", type(m)))),
        encoder.register_full_backward_hook(lambda m, i, o: seen.append(("backward", type(m)))),
        encoder.register_state_dict_pre_hook(lambda m, *_: seen.append(("state", type(m)))),
        encoder.register_load_state_dict_post_hook(lambda m, _: seen.append(("load", type(m)))),
    ]
    replace_lstm(model)

    def everything() -> list[tuple[str, type]]:
        seen.clear()
        model(TOKENS).sum().backward()
        model.encoder.load_state_dict(model.encoder.state_dict())
        return sorted(set(seen), key=str)

    kinds = ["backward", "forward", "load", "pre", "state"]
    assert everything() == [(kind, BiLSTM) for kind in kinds]
    for handle in handles:
        handle.remove()
    assert everything() == []


def test_parametrized_lstms_are_replaced():
    model = Tagger()
    parametrized(model.encoder)
    model(TOKENS)
    expected, names = model(TOKENS), [name for name, _ in model.named_parameters()]
    assert set(replace_lstm(model)) == PATHS
    assert parametrize.type_before_parametrizations(model.encoder) is BiLSTM
    assert [name for name, _ in model.named_parameters()] == names
    assert_close({"logits": model(TOKENS)}, {"logits": expected}, 2e-6)


def test_a_subclass_is_left_alone_with_a_warning():
    model = nn.Sequential(OrderedDict(plain=nn.LSTM(I, H), special=Special(I, H)))
    special = model.special
    with pytest.warns(UserWarning, match=r"special.*Special") as caught:
        assert replace_lstm(model) == ("plain",)
    assert model.special is special
    assert caught[0].filename == __file__


def test_a_model_without_lstms_is_left_alone():
    model = nn.Sequential(nn.GRU(I, H), nn.Linear(H, 2), BiLSTM(I, H))
    children = list(model)
    assert replace_lstm(model) == ()
    assert all(a is b for a, b in zip(model, children, strict=True))


@pytest.mark.parametrize("make", [nn.LSTM, Special], ids=["LSTM", "subclass"])
def test_an_lstm_itself_is_refused(make):
    with pytest.raises(ValueError, match="from_lstm"):
        replace_lstm(make(I, H))


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


WRAPPED = {
    "compiled": torch.compile,
    "compiled inside": lambda model: nn.Sequential(torch.compile(model)),
    "compile() called": lambda model: model.compile() or model,
    "compile() called inside": lambda model: model.encoder.compile() or model,
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_compiled_model_is_refused_and_left_alone(wrap):
    model = Tagger()
    modules = list(model.modules())
    with pytest.raises(ValueError, match=r"OptimizedModule|compile\(\)"):
        replace_lstm(wrap(model))
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))


def test_a_model_in_ddp_is_refused_and_left_alone(process_group):
    model = Tagger()
    modules = list(model.modules())
    for wrapped in (
        nn.parallel.DistributedDataParallel(model),
        nn.Sequential(nn.parallel.DistributedDataParallel(Tagger())),
    ):
        with pytest.raises(ValueError, match="DistributedDataParallel"):
            replace_lstm(wrapped)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert type(model.encoder) is nn.LSTM


def test_ddp_around_a_replaced_model_trains(process_group):
    model, twin = Tagger(), Tagger()
    replace_lstm(model)
    found = []
    for module in (model, twin):
        wrapped = nn.parallel.DistributedDataParallel(module)
        wrapped(TOKENS).logsumexp(-1).sum().backward()
        found.append({name: p.grad for name, p in module.named_parameters()})
    assert_close(found[0], found[1], 1e-5)


# --- groups


@pytest.mark.parametrize("case", CASES, ids=str)
def test_groups_hold_every_parameter_once_in_order(case: Case):
    _, bilstm = pair(**case.options)
    directions = ("forward", "reverse")[: 1 + case.bidirectional]
    expected = [(layer, d) for layer in range(case.num_layers) for d in directions]
    assert [(group.layer, group.direction) for group in bilstm.groups] == expected
    listed = [(n, p) for g in bilstm.groups for n, p in zip(g.names, g.parameters, strict=True)]
    for (name, parameter), (own, theirs) in zip(listed, bilstm.named_parameters(), strict=True):
        assert name == own
        assert parameter is theirs


def test_freezing_goes_through_conversion():
    model = Tagger()
    freeze(model.encoder, layers=[0])
    replace_lstm(model)
    flags = {name: p.requires_grad for name, p in model.encoder.named_parameters()}
    assert flags == {name: "_l1" in name for name in flags}
    model(TOKENS).sum().backward()
    grads = {name: p.grad is not None for name, p in model.encoder.named_parameters()}
    assert grads == flags
