"""BiLSTM is built, printed, saved and loaded as nn.LSTM is."""

import copy
import fractions
import inspect
import io
import itertools
import pickle
import warnings

import numpy as np
import pytest
import torch
from _oracle import H, I, T, assert_close, assert_same_bits, error_of, pair, results
from torch import nn

from lstm_freeze import BiLSTM

OPTIONS = [
    pytest.param(
        {"num_layers": layers, "bidirectional": two, "bias": bias, "proj_size": proj},
        id=f"{layers}x{'-bidirectional' * two}{'-bias' * bias}-P{proj}",
    )
    for layers, two, bias, proj in itertools.product(
        (1, 2, 3), (False, True), (False, True), (0, 2)
    )
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def built(seed=0, **options):
    """Each class built under the same seed with the same options, and the generator's state."""
    found = []
    for cls in (nn.LSTM, BiLSTM):
        torch.manual_seed(seed)
        module = cls(**{"input_size": I, "hidden_size": H, "bidirectional": False, **options})
        found.append((module, torch.get_rng_state()))
    return found


# --- arguments


def test_arguments_are_in_nn_lstm_order_with_its_defaults():
    own = dict(inspect.signature(BiLSTM).parameters)
    theirs = dict(inspect.signature(nn.RNNBase).parameters)
    del theirs["mode"]
    assert list(own) == list(theirs)
    for name, parameter in theirs.items():
        expected = True if name == "bidirectional" else parameter.default
        assert own[name].default == expected, name
        assert own[name].kind == parameter.kind, name


def test_all_arguments_can_be_positional():
    arguments = (I, H, 2, False, True, 0.25, True, 3, "cpu", torch.float64)
    lstm, bilstm = nn.LSTM(*arguments), BiLSTM(*arguments)
    assert bilstm.extra_repr() == lstm.extra_repr()
    assert bilstm.weight_ih_l0.dtype is torch.float64


def test_forward_takes_input_and_hx_by_name():
    lstm, bilstm = pair()
    hx = torch.ones(1, 2, H), torch.ones(1, 2, H)
    x = torch.ones(T, 2, I)
    assert_close(results(bilstm(hx=hx, input=x)), results(lstm(hx=hx, input=x)), 1e-6)


WRONG = {
    # id: (keywords, words in the messages of both)
    "hidden_size zero": ({"hidden_size": 0}, ["hidden_size must be greater than zero"]),
    "hidden_size negative": ({"hidden_size": -1}, ["hidden_size must be greater than zero"]),
    "hidden_size float": ({"hidden_size": 2.5}, ["hidden_size", "int", "float"]),
    "hidden_size str": ({"hidden_size": "4"}, ["hidden_size", "int", "str"]),
    "hidden_size None": ({"hidden_size": None}, ["hidden_size", "int", "NoneType"]),
    "hidden_size numpy": ({"hidden_size": np.int64(4)}, ["hidden_size", "int", "int64"]),
    "num_layers zero": ({"num_layers": 0}, ["num_layers must be greater than zero"]),
    "num_layers negative": ({"num_layers": -1}, ["num_layers must be greater than zero"]),
    "num_layers float": ({"num_layers": 1.5}, ["int", "float"]),
    "num_layers str": ({"num_layers": "2"}, ["int", "str"]),
    "num_layers None": ({"num_layers": None}, ["int", "NoneType"]),
    "dropout negative": ({"dropout": -0.1}, ["dropout should be a number in range [0, 1]"]),
    "dropout above one": ({"dropout": 1.5}, ["dropout should be a number in range [0, 1]"]),
    "dropout NaN": ({"dropout": float("nan")}, ["dropout should be a number in range [0, 1]"]),
    "dropout True": ({"dropout": True}, ["dropout should be a number in range [0, 1]"]),
    "dropout False": ({"dropout": False}, ["dropout should be a number in range [0, 1]"]),
    "dropout digits": ({"dropout": "0.5"}, ["dropout should be a number in range [0, 1]"]),
    "dropout str": ({"dropout": "high"}, []),
    "dropout None": ({"dropout": None}, ["number", "NoneType"]),
    "dropout complex": ({"dropout": 0.5j}, ["number", "complex"]),
    "dropout tensor": ({"dropout": torch.tensor(0.5)}, ["should be a number in range [0, 1]"]),
    "proj_size negative": ({"proj_size": -1}, ["proj_size should be a positive integer or zero"]),
    "proj_size equal": ({"proj_size": H}, ["proj_size has to be smaller than hidden_size"]),
    "proj_size larger": ({"proj_size": H + 1}, ["proj_size has to be smaller than hidden_size"]),
    "proj_size float": ({"proj_size": 2.5}, ["int", "float"]),
    "proj_size str": ({"proj_size": "1"}, ["int", "str"]),
    "proj_size None": ({"proj_size": None}, ["int", "NoneType"]),
    "proj_size True": ({"proj_size": True}, ["bool"]),
    "dtype str": ({"dtype": "float32"}, ["dtype", "str"]),
    "dtype integer": ({"dtype": torch.int64}, ["floating point"]),
    "device unknown": ({"device": "nope"}, ["nope"]),
    "unknown keyword": ({"layers": 1}, ["unexpected keyword argument 'layers'"]),
}
NEWER = {
    # What nn.LSTM does not check in the older versions of PyTorch, and BiLSTM does.
    "input_size zero": ({"input_size": 0}, ["input_size must be greater than zero"]),
    "input_size negative": ({"input_size": -3}, ["input_size must be greater than zero"]),
    "input_size float": ({"input_size": 3.0}, ["input_size", "int", "float"]),
    "bias int": ({"bias": 1}, ["bias should be of type bool, got: int"]),
    "bias None": ({"bias": None}, ["bias should be of type bool, got: NoneType"]),
    "batch_first int": ({"batch_first": 1}, ["batch_first should be of type bool, got: int"]),
    "batch_first str": ({"batch_first": "x"}, ["batch_first should be of type bool, got: str"]),
}


@pytest.mark.parametrize(("keywords", "words"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_raise_as_in_nn_lstm(keywords: dict[str, object], words: list[str]):
    arguments = {"input_size": I, "hidden_size": H, **keywords}
    expected, found = error_of(nn.LSTM, **arguments), error_of(BiLSTM, **arguments)
    assert type(found) is type(expected)
    for word in words:
        assert word in str(expected)
        assert word in str(found)


def nn_lstm_checks_its_arguments() -> bool:
    """Whether this version's nn.LSTM refuses what makes no LSTM."""
    try:
        nn.LSTM(0, H)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize(("keywords", "words"), NEWER.values(), ids=NEWER)
def test_what_the_newer_nn_lstm_refuses_is_refused_in_every_version(
    keywords: dict[str, object], words: list[str]
):
    if nn_lstm_checks_its_arguments():
        test_wrong_arguments_raise_as_in_nn_lstm(keywords, words)
    error = error_of(BiLSTM, **{"input_size": I, "hidden_size": H, **keywords})
    assert type(error) is (ValueError if "greater" in words[0] else TypeError)
    for word in words:
        assert word in str(error)


@pytest.mark.parametrize(
    ("name", "value"), [("num_layers", 1.5), ("num_layers", None), ("dropout", None)]
)
def test_messages_name_the_argument_where_nn_lstm_does_not(name: str, value: object):
    with pytest.raises(TypeError, match=name):
        BiLSTM(I, H, **{name: value})


@pytest.mark.parametrize(
    "arguments",
    [(), (I,), (I, H, 1, True, False, 0.0, False, 0, None, None, 1)],
    ids=["none", "one", "eleven"],
)
def test_wrong_number_of_arguments(arguments: tuple[object, ...]):
    for cls in (nn.LSTM, BiLSTM):
        with pytest.raises(TypeError, match=r"missing|positional arguments? but"):
            cls(*arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": True},
        {"bidirectional": 1},
        {"bidirectional": 0},
        {"num_layers": 2, "dropout": 1},
        {"num_layers": 2, "dropout": np.float32(0.5)},
        {"num_layers": 2, "dropout": fractions.Fraction(1, 2)},
    ],
    ids=str,
)
def test_what_nn_lstm_accepts_is_accepted(options: dict[str, object]):
    (lstm, _), (bilstm, _) = built(**options)
    assert bilstm.extra_repr() == lstm.extra_repr()
    assert_same_bits(bilstm.state_dict(), lstm.state_dict())
    assert type(bilstm.dropout) is float


def test_dropout_with_one_layer_warns_as_nn_lstm_does():
    caught = []
    for cls in (nn.LSTM, BiLSTM):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            cls(I, H, dropout=0.5)
        caught.append([(warning.category, str(warning.message)) for warning in found])
    assert caught[0] == caught[1]
    assert len(caught[1]) == 1


def test_the_dropout_warning_points_at_the_caller():
    with pytest.warns(UserWarning, match="num_layers greater than 1") as caught:
        BiLSTM(I, H, dropout=0.5)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtype_and_device_reach_every_parameter(dtype: torch.dtype):
    module = BiLSTM(I, H, 2, proj_size=2, dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}
    on_meta = BiLSTM(I, H, 2, proj_size=2, dtype=dtype, device="meta")
    assert {(p.dtype, p.device.type) for p in on_meta.parameters()} == {(dtype, "meta")}


def test_default_dtype_and_device_context_are_followed():
    torch.set_default_dtype(torch.float64)
    try:
        assert BiLSTM(I, H).weight_hh_l0.dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert BiLSTM(I, H).weight_hh_l0.is_meta


def test_meta_module_comes_to_life_with_a_state_dict():
    lstm, _ = pair(num_layers=2)
    state = lstm.state_dict()
    on_meta = BiLSTM(I, H, 2, bidirectional=False, device="meta")
    on_meta.load_state_dict(state, assign=True)
    emptied = BiLSTM(I, H, 2, bidirectional=False, device="meta").to_empty(device="cpu")
    emptied.load_state_dict(state)
    x = torch.randn(T, 2, I)
    for module in (on_meta, emptied):
        assert_close(results(module(x)), results(lstm(x)), 1e-6)


def test_skip_init_draws_nothing_and_loads():
    lstm, _ = pair()
    before = torch.get_rng_state()
    bilstm = nn.utils.skip_init(BiLSTM, I, H, bidirectional=False)
    assert torch.equal(torch.get_rng_state(), before)
    bilstm.load_state_dict(lstm.state_dict())
    assert_same_bits(bilstm.state_dict(), lstm.state_dict())


# --- attributes and text


@pytest.mark.parametrize("options", OPTIONS)
def test_attributes(options: dict[str, object]):
    (lstm, _), (bilstm, _) = built(batch_first=True, **options)
    for name in (
        *("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"),
        *("bidirectional", "proj_size", "training"),
    ):
        expected = getattr(lstm, name)
        assert getattr(bilstm, name) == expected, name
        assert type(getattr(bilstm, name)) is type(expected), name


def test_every_public_name_of_nn_lstm_is_there():
    lstm, bilstm = pair(num_layers=2, bidirectional=True, proj_size=2)
    names = [name for name in dir(lstm) if not name.startswith("_")]
    assert "all_weights" in names
    for name in names:
        assert callable(getattr(bilstm, name)) == callable(getattr(lstm, name)), name


@pytest.mark.parametrize("options", OPTIONS)
def test_all_weights_are_the_parameters_themselves(options: dict[str, object]):
    (lstm, _), (bilstm, _) = built(**options)
    names = {id(p): name for name, p in lstm.named_parameters()}
    expected = [[names[id(p)] for p in group] for group in lstm.all_weights]
    own = {id(p): name for name, p in bilstm.named_parameters()}
    assert [[own[id(p)] for p in group] for group in bilstm.all_weights] == expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bidirectional": True},
        {"num_layers": 3, "dropout": 0.5},
        {"bias": False, "batch_first": True, "proj_size": 2},
        {"num_layers": 2, "bias": False, "batch_first": True, "bidirectional": True},
    ],
    ids=str,
)
def test_repr_differs_in_the_class_name_only(options: dict[str, object]):
    (lstm, _), (bilstm, _) = built(**options)
    assert repr(bilstm) == "Bi" + repr(lstm)
    nested = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(1, I), bilstm)})
    theirs = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(1, I), lstm)})
    assert repr(nested).replace("BiLSTM", "LSTM") == repr(theirs)
    bilstm.dropout = lstm.dropout = 0.75
    assert repr(bilstm) == "Bi" + repr(lstm)


def test_module_tree_is_that_of_a_leaf():
    _, bilstm = pair(num_layers=2)
    assert list(bilstm.modules()) == [bilstm]
    assert list(bilstm.buffers()) == []
    assert isinstance(bilstm, nn.Module)
    assert not isinstance(bilstm, nn.RNNBase)


def test_flatten_parameters_is_harmless():
    _, bilstm = pair(num_layers=2, bidirectional=True)
    x = torch.randn(T, 2, I)
    before, parameters = results(bilstm(x)), list(bilstm.parameters())
    assert bilstm.flatten_parameters() is None
    assert all(a is b for a, b in zip(bilstm.parameters(), parameters, strict=True))
    assert_same_bits(results(bilstm(x)), before)


# --- parameters and their values


@pytest.mark.parametrize("options", OPTIONS)
def test_parameters_have_the_same_names_order_and_shapes(options: dict[str, object]):
    (lstm, _), (bilstm, _) = built(**options)
    theirs = [(name, p.shape, p.requires_grad) for name, p in lstm.named_parameters()]
    assert [(name, p.shape, p.requires_grad) for name, p in bilstm.named_parameters()] == theirs
    assert {type(p) for p in bilstm.parameters()} == {nn.Parameter}
    assert list(bilstm.state_dict()) == list(lstm.state_dict())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS)
def test_same_seed_gives_the_same_bits(options: dict[str, object], dtype: torch.dtype):
    (lstm, theirs), (bilstm, own) = built(dtype=dtype, **options)
    assert_same_bits(dict(bilstm.named_parameters()), dict(lstm.named_parameters()))
    assert torch.equal(own, theirs)
    torch.manual_seed(1)
    lstm.reset_parameters()
    theirs = torch.get_rng_state()
    torch.manual_seed(1)
    assert bilstm.reset_parameters() is None
    assert_same_bits(dict(bilstm.named_parameters()), dict(lstm.named_parameters()))
    assert torch.equal(own := torch.get_rng_state(), theirs), own
    assert not torch.equal(bilstm.weight_hh_l0, built(dtype=dtype, **options)[1][0].weight_hh_l0)


@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
@pytest.mark.parametrize("options", OPTIONS)
def test_state_dict_goes_both_ways(options: dict[str, object], assign: bool):
    (lstm, _), _ = built(seed=0, **options)
    _, (bilstm, _) = built(seed=1, **options)
    there = BiLSTM(I, H, **options)
    assert str(there.load_state_dict(lstm.state_dict(), strict=True, assign=assign)) == (
        "<All keys matched successfully>"
    )
    assert_same_bits(there.state_dict(), lstm.state_dict())
    back = nn.LSTM(I, H, **options)
    back.load_state_dict(bilstm.state_dict(), strict=True, assign=assign)
    assert_same_bits(back.state_dict(), bilstm.state_dict())
    x = torch.randn(T, 2, I)
    assert_close(results(there(x)), results(lstm(x)), 1e-6)
    assert_close(results(back(x)), results(bilstm(x)), 1e-6)


def test_state_dict_metadata():
    lstm, bilstm = pair()
    assert bilstm.state_dict()._metadata == lstm.state_dict()._metadata
    assert list(bilstm.state_dict(prefix="encoder.")) == list(lstm.state_dict(prefix="encoder."))


def test_wrong_state_dicts_are_told_alike():
    lstm, bilstm = pair(num_layers=2)
    missing = {k: v for k, v in lstm.state_dict().items() if k != "bias_hh_l1"}
    larger = {**lstm.state_dict(), "weight_hh_l0": torch.zeros(1, 2)}
    extra = {**lstm.state_dict(), "weight_hr_l0": torch.zeros(1)}
    for state in (missing, larger, extra):
        messages = []
        for module in (lstm, bilstm):
            with pytest.raises(RuntimeError, match="loading state_dict") as caught:
                module.load_state_dict(state)
            messages.append(str(caught.value))
        assert messages[1] == messages[0].replace("LSTM", "BiLSTM")
    for state in (missing, extra):
        found = [module.load_state_dict(state, strict=False) for module in (lstm, bilstm)]
        assert found[0] == found[1]


def test_dtype_conversion_keeps_parameters_and_is_seen_by_forward():
    lstm, bilstm = pair(num_layers=2, bidirectional=True)
    parameters = list(bilstm.parameters())
    x = torch.randn(T, 2, I)
    bilstm(x)
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        assert bilstm.to(dtype) is bilstm
        assert all(a is b for a, b in zip(bilstm.parameters(), parameters, strict=True))
        assert bilstm(x.to(dtype))[0].dtype is dtype
    lstm.to(torch.float64).to(torch.bfloat16).to(torch.float32)
    assert_close(results(bilstm(x)), results(lstm(x)), 1e-6)


def test_conversion_that_swaps_parameters():
    lstm, bilstm = pair(num_layers=2)
    x = torch.randn(T, 2, I, dtype=torch.float64)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        expected, found = lstm.double()(x), bilstm.double()(x)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert_close(results(found), results(expected), 1e-12)


# --- copies


def through_pickle(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def through_torch_save(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch_save])
def test_copies_stand_alone(copied, used: bool):
    options = {"num_layers": 2, "bidirectional": True, "proj_size": 2, "dropout": 0.5}
    _, bilstm = pair(batch_first=True, **options)
    bilstm.eval().bias_ih_l0.requires_grad_(False)
    x = torch.randn(2, T, I)
    if used:
        bilstm(x)[0].sum().backward()
    twin = copied(bilstm)
    assert type(twin) is BiLSTM
    assert repr(twin) == repr(bilstm)
    assert not twin.training
    assert not twin.bias_ih_l0.requires_grad
    assert twin.bias_hh_l0.requires_grad
    assert_same_bits(twin.state_dict(), bilstm.state_dict())
    assert_same_bits(results(twin(x)), results(bilstm(x)))
    with torch.no_grad():
        twin.weight_hh_l1.zero_()
    assert bilstm.weight_hh_l1.count_nonzero() > 0
    assert not torch.equal(twin(x)[0], bilstm(x)[0])


def test_shallow_copy_shares_parameters():
    _, bilstm = pair()
    twin = copy.copy(bilstm)
    assert twin.weight_hh_l0 is bilstm.weight_hh_l0
    x = torch.randn(T, 2, I)
    assert_same_bits(results(twin(x)), results(bilstm(x)))


def test_weights_only_file_goes_both_ways():
    lstm, bilstm = pair(num_layers=2)
    for source, target in (
        (lstm, BiLSTM(I, H, 2, bidirectional=False)),
        (bilstm, nn.LSTM(I, H, 2)),
    ):
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        target.load_state_dict(torch.load(file, weights_only=True))
        assert_same_bits(target.state_dict(), source.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch_save])
def test_a_module_saved_before_proj_size_existed_loads(copied):
    for module in pair(num_layers=2):
        x = torch.randn(T, 2, I)
        expected = results(module(x))
        del module.__dict__["proj_size"]
        old = copied(module)
        assert old.proj_size == 0
        assert_same_bits(results(old(x)), expected)
