"""What BiLSTM has beyond nn.LSTM: groups, conversion, freezing without a trace in the output."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_padded_sequence

from lstm_freeze import BiLSTM, ParameterGroup, PrefixCache, replace_lstm

T, B, I, H = 7, 5, 3, 6
LENGTHS = [7, 5, 5, 2, 1]


def built(**options):
    torch.manual_seed(0)
    return BiLSTM(I, H, **{"num_layers": 2, **options})


def inputs(form, requires_grad=False):
    torch.manual_seed(1)
    x = torch.randn(T, B, I, requires_grad=requires_grad)
    return x if form == "dense" else pack_padded_sequence(x, LENGTHS)


def run(lstm, form):
    output, (h, c) = lstm(inputs(form))
    return [output if form == "dense" else output.data, h, c]


def test_groups_are_in_order_and_complete():
    lstm = built(proj_size=2)
    assert [(g.layer, g.direction) for g in lstm.groups] == [
        (0, "forward"),
        (0, "reverse"),
        (1, "forward"),
        (1, "reverse"),
    ]
    listed = [pair for g in lstm.groups for pair in zip(g.names, g.parameters, strict=True)]
    assert [name for name, _ in listed] == [name for name, _ in lstm.named_parameters()]
    assert all(lstm.get_parameter(name) is p for name, p in listed)
    assert isinstance(lstm.groups, tuple)
    assert "parameters" not in repr(lstm.groups[0])


def test_groups_compare_by_identity():
    group = built().groups[0]
    assert group != ParameterGroup(group.layer, group.direction, group.names, group.parameters)


def test_groups_know_parametrised_names_and_tied_parameters():
    lstm = built()
    nn.utils.parametrizations.weight_norm(lstm, "weight_hh_l1_reverse")
    assert "parametrizations.weight_hh_l1_reverse.original1" in lstm.groups[3].names
    lstm.bias_hh_l0 = lstm.bias_ih_l0
    assert lstm.groups[0].names[2:] == ("bias_ih_l0", "bias_hh_l0")
    assert lstm.groups[0].parameters[2] is lstm.groups[0].parameters[3]


FREEZES = {
    "nothing": lambda name: False,
    "everything": lambda name: True,
    **{f"layer {k}": lambda name, k=k: f"_l{k}" in name for k in (0, 1)},
    "reverse": lambda name: "reverse" in name,
    "forward": lambda name: "reverse" not in name,
    **{
        kind: lambda name, kind=kind: kind in name
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "bias", "weight")
    },
    "all but one bias": lambda name: name != "bias_hh_l1_reverse",
}


@pytest.mark.parametrize("form", ["dense", "packed"])
@pytest.mark.parametrize("proj_size", [0, 2])
def test_freezing_changes_no_bit_of_forward_or_of_other_gradients(form, proj_size):
    lstm = built(proj_size=proj_size)
    expected = run(lstm, form)
    sum(y.square().sum() for y in expected).backward()
    grads = {name: p.grad for name, p in lstm.named_parameters()}
    for (label, frozen), training in itertools.product(FREEZES.items(), (True, False)):
        lstm.train(training)
        for name, p in lstm.named_parameters():
            p.requires_grad_(not frozen(name))
            p.grad = None
        found = run(lstm, form)
        assert all(torch.equal(y, z) for y, z in zip(found, expected, strict=True)), label
        if label != "everything":
            sum(y.square().sum() for y in found).backward()
        for name, p in lstm.named_parameters():
            if frozen(name):
                assert p.grad is None, (label, name)
            else:
                assert torch.equal(p.grad, grads[name]), (label, name)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert all(torch.equal(y, z) for y, z in zip(run(lstm, form), expected, strict=True))


def test_dropout_off_needs_both_layers_listed_and_frozen(monkeypatch):
    lstm = built(num_layers=3, dropout=0.5)
    drop, calls = nn.functional.dropout, []
    monkeypatch.setattr(nn.functional, "dropout", lambda *a, **k: calls.append(a) or drop(*a, **k))

    def dropouts():
        calls.clear()
        run(lstm, "dense")
        return len(calls)

    lstm.requires_grad_(False)
    assert dropouts() == 2
    for layers, expected in (({0, 1}, 1), ({0, 2}, 2), ({1, 2}, 1), ({0, 1, 2}, 0)):
        lstm.dropout_off_layers = layers
        assert dropouts() == expected
    plain = built(num_layers=3)
    assert torch.equal(run(lstm, "dense")[0], run(plain, "dense")[0])
    lstm.bias_hh_l2.requires_grad_(True)
    assert dropouts() == 1
    assert "dropout_off" not in repr(lstm)
    assert not any("dropout_off" in name for name in lstm.state_dict())


def test_a_pickle_without_the_extras_loads():
    lstm = built()
    state = {
        k: v
        for k, v in vars(lstm).items()
        if k not in ("proj_size", "prefix_cache", "dropout_off_layers")
    }
    old = BiLSTM.__new__(BiLSTM)
    old.__setstate__(state)
    assert (old.proj_size, old.prefix_cache, old.dropout_off_layers) == (0, None, set())
    assert torch.equal(old(inputs("dense"))[0], lstm(inputs("dense"))[0])


def test_the_extras_of_copies_are_their_own():
    lstm = built()
    lstm.dropout_off_layers.add(0)
    for other in (copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm))):
        assert other.dropout_off_layers == {0}
        other.dropout_off_layers.add(1)
        assert lstm.dropout_off_layers == {0}
    assert built().dropout_off_layers == set()


def test_conversion_refuses_what_is_not_plain_nn_lstm():
    class Special(nn.LSTM):
        pass

    for module, words in ((nn.GRU(2, 3), "got GRU"), (Special(2, 3), "got Special .a subclass")):
        with pytest.raises(TypeError, match=f"lstm must be an nn.LSTM, {words}"):
            BiLSTM.from_lstm(module)
    with pytest.raises(ValueError, match=r"BiLSTM.from_lstm\(model\)"):
        replace_lstm(nn.LSTM(2, 3))


def test_converted_parameters_stay_in_the_optimizer():
    model = nn.Sequential(nn.LSTM(I, H))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert replace_lstm(model) == ("0",)
    before = copy.deepcopy(model.state_dict())
    model(inputs("dense"))[0].sum().backward()
    optimizer.step()
    assert all(not torch.equal(model.state_dict()[name], w) for name, w in before.items())


def test_hook_handles_survive_replacing_but_from_lstm_copies_hooks():
    calls = []
    lstm = nn.LSTM(I, H)
    handle = lstm.register_forward_hook(lambda *_: calls.append("old"))
    alone = BiLSTM.from_lstm(lstm)
    alone.register_forward_hook(lambda *_: calls.append("new"))
    lstm(inputs("dense"))
    assert calls == ["old"]
    alone(inputs("dense"))
    assert calls == ["old", "old", "new"]
    model = nn.Sequential(lstm)
    replace_lstm(model)
    handle.remove()
    model(inputs("dense"))
    assert calls == ["old", "old", "new"]


def test_a_load_hook_bound_to_the_module_follows_it():
    seen = []
    lstm = nn.LSTM(I, H)
    lstm.register_load_state_dict_pre_hook(lambda module, *_: seen.append(module))
    model = nn.Sequential(lstm)
    replace_lstm(model)
    del lstm
    model.load_state_dict(model.state_dict())
    assert seen == [model[0]]


def test_a_compiled_or_wrapped_model_is_refused_unchanged():
    compiled = nn.Sequential(nn.LSTM(I, H))
    compiled[0].compile(backend="eager")
    with pytest.raises(ValueError, match=r"model\.0\.compile\(\) was called"):
        replace_lstm(compiled)
    wrapped = nn.Sequential(nn.LSTM(I, H), nn.DataParallel(nn.LSTM(I, H)))
    with pytest.raises(ValueError, match=r"model\.1 is a DataParallel"):
        replace_lstm(wrapped)
    assert type(compiled[0]) is type(wrapped[0]) is nn.LSTM


class Counting(nn.Module):
    """A parametrization that counts how often the weight is read."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def forward(self, weight):
        self.reads += 1
        return weight * 1


@pytest.mark.parametrize("cached", [False, True], ids=["", "cached"])
@pytest.mark.parametrize("hx", [False, True], ids=["", "hx"])
@pytest.mark.parametrize("form", ["dense", "unbatched", "packed", "padded"])
def test_each_weight_is_read_once_a_call(form, hx, cached):
    lstm = built(proj_size=2)
    counters = {name: Counting() for name, _ in lstm.named_parameters()}
    for name, counter in counters.items():
        parametrize.register_parametrization(lstm, name, counter)
    if cached:
        for name, p in lstm.named_parameters():
            p.requires_grad_("_l1" in name)
        lstm.prefix_cache = PrefixCache()
    x = inputs("packed" if form == "packed" else "dense")
    x = x[:, 0] if form == "unbatched" else x
    lengths = list(range(1, B + 1)) if form == "padded" else None
    states = [torch.randn(4, B, 2), torch.randn(4, B, H)] if hx else None
    if hx and form == "unbatched":
        states = [state[:, 0] for state in states]
    for _ in range(2):  # the second call finds the samples in the cache
        for counter in counters.values():
            counter.reads = 0
        lstm(x, states, lengths=lengths)
        assert {name: counter.reads for name, counter in counters.items()} == dict.fromkeys(
            counters, 1
        )
    if cached and not hx:
        assert lstm.prefix_cache.stats()["hits"] > 0


WRONG = {
    "features": lambda lstm: (torch.randn(T, B, I + 1), None),
    "state": lambda lstm: (inputs("dense"), (torch.randn(4, B, H), torch.randn(4, B + 1, H))),
    "weight of the last layer": lambda lstm: (
        setattr(lstm, "bias_hh_l1", nn.Parameter(torch.zeros(3))),
        (inputs("dense"), None),
    )[1],
    "batch sizes": lambda lstm: (
        nn.utils.rnn.PackedSequence(torch.randn(5, I), torch.tensor([2, 3])),
        None,
    ),
}


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_found_before_any_number_is_computed(wrong, bidirectional, monkeypatch):
    import lstm_freeze._rnn.stack as stack

    lstm, ran = built(bidirectional=bidirectional), []
    run_layer = stack.run_layer
    monkeypatch.setattr(stack, "run_layer", lambda *a: ran.append(a) or run_layer(*a))
    lstm(inputs("dense"))
    assert len(ran) == 2
    input, hx = WRONG[wrong](lstm)
    with pytest.raises(RuntimeError):
        lstm(input, hx)
    assert len(ran) == 2


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor.*are deprecated:UserWarning")
def test_quantization_says_that_it_passes_over_a_bilstm():
    model = nn.Sequential(built(), nn.Linear(3, 3))
    with pytest.warns(UserWarning, match=r"leaves it as it is: put lstm\.to_lstm\(\)") as caught:
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM, nn.Linear})
    ours = [w for w in caught if "to_lstm" in str(w.message)]
    assert [w.filename for w in ours] == [__file__]
    assert type(quantized[0]) is BiLSTM
    model[0] = model[0].to_lstm()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM})
    assert type(quantized[0]) is not nn.LSTM
