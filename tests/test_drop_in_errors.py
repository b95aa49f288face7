"""Wrong calls raise the same exception types as nn.LSTM's, and say what was expected and given."""

import re

import numpy as np
import pytest
import torch
from _oracle import B, H, I, T, error_of, pair
from torch.nn.utils.rnn import pack_padded_sequence

ROWS = 4  # two layers, two directions
LENGTHS = {"sorted": [6, 4, 3, 1], "unsorted": [3, 6, 1, 4]}


def lstms(**options):
    return pair(num_layers=2, bidirectional=True, **options)


def zeros(*shape, dtype=torch.float32, device=None):
    return torch.zeros(shape, dtype=dtype, device=device)


def packed(order="sorted", dtype=torch.float32, features=I):
    x = zeros(T, B, features, dtype=dtype)
    return pack_padded_sequence(x, LENGTHS[order], enforce_sorted=order == "sorted")


X, H0, C0 = zeros(T, B, I), zeros(ROWS, B, H), zeros(ROWS, B, H)
X2, H2, C2 = zeros(T, I), zeros(ROWS, H), zeros(ROWS, H)
SORTED, UNSORTED = packed("sorted"), packed("unsorted")

# id: (arguments of forward, words both messages hold, words only BiLSTM's must hold)
DENSE = {
    "input 0-D": ((torch.tensor(1.0),), ["2D or 3D", "0D"], []),
    "input 1-D": ((zeros(I),), ["2D or 3D", "1D"], []),
    "input 4-D": ((zeros(1, T, B, I),), ["2D or 3D", "4D"], []),
    "input size": ((zeros(T, B, 7),), ["input_size", "Expected 3, got 7"], []),
    "input size zero": ((zeros(T, B, 0),), ["input_size", "Expected 3, got 0"], []),
    "input size, unbatched": ((zeros(T, 7),), ["input_size", "Expected 3, got 7"], []),
    "no time steps": ((zeros(0, B, I),), ["sequence length", "larger than 0"], []),
    "no time steps, unbatched": ((zeros(0, I),), ["sequence length", "larger than 0"], []),
    "no time steps, no samples": ((zeros(0, 0, I),), ["sequence length", "larger than 0"], []),
    "input float64": ((X.double(),), ["torch.float64", "torch.float32"], ["input.to("]),
    "input bfloat16": ((X.bfloat16(),), ["torch.bfloat16", "torch.float32"], []),
    "input int64": ((X.long(),), ["torch.int64", "torch.float32"], []),
    "input bool": ((X.bool(),), ["torch.bool", "torch.float32"], []),
    "input complex": ((X.to(torch.complex64),), ["torch.complex64", "torch.float32"], []),
    "input on meta": ((X.to("meta"),), ["device", "meta", "cpu"], []),
    "input list": (([X],), ["list"], ["input"]),
    "input tuple": (((X,),), ["tuple"], ["input"]),
    "input numpy": ((np.zeros((T, B, I)),), ["ndarray"], ["input"]),
    "input None": ((None,), ["NoneType"], ["input"]),
    "input str": (("text",), ["str"], ["input"]),
    "input int": ((3,), ["int"], ["input"]),
    "no input": ((), ["missing 1 required positional argument: 'input'"], []),
    "three arguments": ((X, (H0, C0), 1), ["positional arguments"], []),
    "h layers": ((X, (H0[:2], C0)), ["Expected hidden[0] size (4, 4, 5), got [2, 4, 5]"], []),
    "h batch": ((X, (H0[:, :1], C0)), ["Expected hidden[0] size (4, 4, 5), got [4, 1, 5]"], []),
    "h size": ((X, (H0[..., 1:], C0)), ["Expected hidden[0] size (4, 4, 5), got [4, 4, 4]"], []),
    "c layers": ((X, (H0, C0[:2])), ["Expected hidden[1] size (4, 4, 5), got [2, 4, 5]"], []),
    "c batch": ((X, (H0, C0[:, :1])), ["Expected hidden[1] size (4, 4, 5), got [4, 1, 5]"], []),
    "c size": ((X, (H0, C0[..., 1:])), ["Expected hidden[1] size (4, 4, 5), got [4, 4, 4]"], []),
    "h unbatched rows": ((X2, (H2[:3], C2)), ["Expected hidden[0] size", "got [3, 1, 5]"], []),
    "c unbatched size": ((X2, (H2, C2[:, 1:])), ["Expected hidden[1] size", "got [4, 1, 4]"], []),
    "hx 2-D, input 3-D": ((X, (H2, C2)), ["batched 3-D input", "3-D but got (2-D, 2-D)"], []),
    "h 2-D, input 3-D": ((X, (H2, C0)), ["batched 3-D input", "3-D but got (2-D, 3-D)"], []),
    "c 2-D, input 3-D": ((X, (H0, C2)), ["batched 3-D input", "3-D but got (3-D, 2-D)"], []),
    "hx 4-D": ((X, (H0[None], C0[None])), ["3-D input", "3-D but got (4-D, 4-D)"], []),
    "hx 3-D, input 2-D": ((X2, (H0, C0)), ["2-D input", "2-D but got (3-D, 3-D)"], []),
    "hx float64": ((X, (H0.double(), C0.double())), [], ["float64", "float32", "h"]),
    "h float64": ((X, (H0.double(), C0)), [], ["float64", "float32", "h"]),
    "c float64": ((X, (H0, C0.double())), [], ["float64", "float32", "h"]),
    "hx int64": ((X, (H0.long(), C0.long())), [], ["int64", "float32"]),
    "hx on meta": ((X, (H0.to("meta"), C0.to("meta"))), ["device", "meta", "cpu"], []),
    "hx of none": ((X, ()), [], ["hx"]),
    "hx of one": ((X, (H0,)), [], ["hx"]),
    "hx of one, unbatched": ((X2, (H2,)), [], ["hx"]),
    "hx of three": ((X, (H0, C0, C0)), ["two hidden states"], []),
    "hx one tensor": ((X, H0), ["3-D but got (2-D, 2-D)"], []),
    "hx one tensor, unbatched": ((X2, H2), ["2-D but got (1-D, 1-D)"], []),
    "hx stacked": ((X, torch.stack([H0, C0])), ["Tensor", "tuple"], ["hx"]),
    "hx dict": ((X, {"h": H0, "c": C0}), [], ["hx"]),
    "hx of None": ((X, (None, None)), ["NoneType"], ["hx"]),
    "c None": ((X, (H0, None)), ["NoneType"], ["hx"]),
    "hx of None, unbatched": ((X2, (None, None)), ["NoneType"], ["hx"]),
    "hx str": ((X, "hc"), ["str"], ["hx"]),
    "hx int": ((X, 3), ["int"], ["hx"]),
    "hx False": ((X, False), ["bool"], ["hx"]),
    "hx generator": ((X, (t for t in (H0, C0))), ["generator"], ["hx"]),
    "hx numpy": ((X, (H0.numpy(), C0.numpy())), ["ndarray"], ["hx"]),
}
PACKED = {
    "float64": ((packed(dtype=torch.float64),), ["dtype"], ["float64", "float32"]),
    "bfloat16": ((packed(dtype=torch.bfloat16),), ["dtype"], ["bfloat16", "float32"]),
    "int64": ((packed(dtype=torch.int64),), ["dtype"], ["int64", "float32"]),
    "input size": ((packed(features=7),), ["7"], ["input_size", "Expected 3, got 7"]),
    "data 3-D": ((SORTED._replace(data=zeros(14, 1, I)),), [], ["3"]),
    "data 1-D": ((SORTED._replace(data=zeros(14)),), [], ["1"]),
    "data too short": ((SORTED._replace(data=zeros(5, I)),), ["5"], []),
    "h layers": ((SORTED, (H0[:2], C0)), [], ["Expected hidden[0] size (4, 4, 5)", "[2, 4, 5]"]),
    "h batch": ((SORTED, (H0[:, :1], C0)), [], ["Expected hidden[0] size", "[4, 1, 5]"]),
    "h larger batch": ((SORTED, (zeros(4, 5, H),) * 2), [], ["hidden[0] size", "[4, 5, 5]"]),
    "h size": ((SORTED, (H0[..., 1:], C0)), [], ["Expected hidden[0] size", "[4, 4, 4]"]),
    "c batch": ((SORTED, (H0, C0[:, :1])), [], ["Expected hidden[1] size", "[4, 1, 5]"]),
    "c size": ((SORTED, (H0, C0[..., 1:])), [], ["Expected hidden[1] size", "[4, 4, 4]"]),
    "hx 2-D": ((SORTED, (H2, C2)), [], ["hidden[0]"]),
    "hx float64": ((SORTED, (H0.double(), C0.double())), ["dtype"], ["float64", "float32"]),
    "hx of none": ((SORTED, ()), ["two hidden states"], []),
    "hx of one": ((SORTED, (H0,)), ["two hidden states"], []),
    "hx of three": ((SORTED, (H0, C0, C0)), ["two hidden states"], []),
    "hx one tensor": ((SORTED, H0), ["Tensor", "tuple"], ["hx"]),
    "hx stacked": ((SORTED, torch.stack([H0, C0])), ["Tensor", "tuple"], ["hx"]),
    "hx dict": ((SORTED, {"h": H0, "c": C0}), ["dict", "tuple"], ["hx"]),
    "hx of None": ((SORTED, (None, None)), ["Tensor", "NoneType"], ["hx"]),
    "hx int": ((SORTED, 3), ["int", "tuple"], ["hx"]),
    "hx str": ((SORTED, "hc"), ["str", "tuple"], ["hx"]),
    "unsorted float64": ((packed("unsorted", torch.float64),), ["dtype"], ["float64", "float32"]),
    "unsorted h layers": ((UNSORTED, (H0[:2], C0)), [], ["Expected hidden[0] size", "[2, 4, 5]"]),
    "unsorted h batch": ((UNSORTED, (H0[:, :1], C0)), [], ["hidden[0]"]),
    "unsorted h size": ((UNSORTED, (H0[..., 1:], C0)), [], ["hidden[0] size", "[4, 4, 4]"]),
    "unsorted c batch": ((UNSORTED, (H0, C0[:, :1])), [], ["hidden[1]"]),
    "unsorted c size": ((UNSORTED, (H0, C0[..., 1:])), [], ["hidden[1] size", "[4, 4, 4]"]),
    "unsorted hx of none": ((UNSORTED, ()), [], ["hx"]),
    "unsorted hx of one": ((UNSORTED, (H0,)), [], ["hx"]),
    "unsorted hx one tensor": ((UNSORTED, H2), [], ["hx"]),
    "unsorted hx one 3-D tensor": ((UNSORTED, H0), [], ["hx"]),
    "unsorted hx dict": ((UNSORTED, {"h": H0, "c": C0}), [], ["hx"]),
    "unsorted hx of None": ((UNSORTED, (None, None)), ["NoneType"], ["hx"]),
    "unsorted hx int": ((UNSORTED, 3), ["int"], ["hx"]),
    "unsorted hx str": ((UNSORTED, "hc"), ["str"], ["hx"]),
}
CALLS = {
    **{f"dense {name}": row for name, row in DENSE.items()},
    **{f"packed {name}": row for name, row in PACKED.items()},
}


@pytest.mark.parametrize(("arguments", "shared", "own"), CALLS.values(), ids=CALLS)
def test_wrong_calls_raise_as_in_nn_lstm(arguments, shared, own):
    lstm, bilstm = lstms()
    expected, found = error_of(lstm, *arguments), error_of(bilstm, *arguments)
    assert type(found) is type(expected), f"{found!r} is not like {expected!r}"
    for word in shared:
        assert word in str(expected), f"the oracle does not say {word!r}: {expected}"
    for word in [*shared, *own]:
        assert word in str(found), f"{word!r} is missing in: {found}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((SORTED, (H0, C0[:2])), r"Expected hidden\[1\] size \(4, 4, 5\), got \[2, 4, 5\]"),
        ((UNSORTED, (H0, C0[:2])), r"Expected hidden\[1\] size \(4, 4, 5\), got \[2, 4, 5\]"),
    ],
    ids=["sorted", "unsorted"],
)
def test_a_short_c_with_packed_input_is_an_error(arguments, words):
    _, bilstm = lstms()  # alone: nn.LSTM reads past the end of c here, and may crash the process
    with pytest.raises(RuntimeError, match=words):
        bilstm(*arguments)


@pytest.mark.parametrize("batch_first", [False, True])
def test_sizes_in_messages_with_projection(batch_first: bool):
    x = zeros(B, T, I) if batch_first else X
    for hx in ((H0, C0), (H0[..., :2], C0[..., :2])):
        messages = [
            str(error_of(module, x, hx)) for module in lstms(proj_size=2, batch_first=batch_first)
        ]
        assert messages[0] == messages[1]


def test_keywords_are_checked():
    for module in lstms():
        with pytest.raises(TypeError, match="unexpected keyword argument 'hidden'"):
            module(X, hidden=(H0, C0))


def test_an_error_changes_nothing():
    _, bilstm = lstms()
    before = {name: parameter.detach().clone() for name, parameter in bilstm.named_parameters()}
    rng = torch.get_rng_state()
    for arguments, _, _ in CALLS.values():
        error_of(bilstm, *arguments)
    assert all(torch.equal(bilstm.get_parameter(name), value) for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert bilstm(X)[0].shape == (T, B, 2 * H)


def test_sparse_input_is_refused():
    for module in lstms():
        with pytest.raises(RuntimeError, match=re.compile("sparse", re.IGNORECASE)):
            module(X.to_sparse())


@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_hh_l1_reverse", "bias_hh_l0"])
def test_a_parameter_set_to_none_is_an_error(name: str):
    errors = []
    for module in lstms():
        setattr(module, name, None)
        errors.append(error_of(module, X))
    assert type(errors[0]) is type(errors[1]) is TypeError
    assert name in str(errors[1])


def test_hx_may_be_a_list_or_any_pair():
    class Pair(tuple):
        __slots__ = ()

    for module in lstms():
        expected = module(X, (H0, C0))[0]
        for hx in ([H0, C0], Pair([H0, C0])):
            assert torch.equal(module(X, hx)[0], expected)
            assert torch.equal(module(SORTED, hx)[0].data, module(SORTED, (H0, C0))[0].data)


def test_unsorted_packed_input_takes_the_first_two_of_what_hx_holds():
    for module in lstms():
        expected = module(UNSORTED, (H0, C0 + 1))[0].data
        for hx in (torch.stack([H0, C0 + 1]), (H0, C0 + 1, None)):
            assert torch.equal(module(UNSORTED, hx)[0].data, expected)
