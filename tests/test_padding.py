"""Padded batches with lengths: nn.LSTM on what is packed by hand is the oracle."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from _oracle import (
    GRADIENT_TOLERANCE,
    LENGTHS,
    OUTPUT_TOLERANCE,
    B,
    Case,
    H,
    I,
    P,
    T,
    assert_close,
    assert_same_bits,
    example,
    pair,
    results,
    weighted_sum,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from lstm_freeze import BiLSTM, FrozenGuard, PrefixCache, freeze, replace_lstm
from lstm_freeze._rnn import padding
from lstm_freeze._rnn.stack import Stack

CASES = [
    Case(layers, both, True, batch_first, proj_size, dtype, "dense", hx)
    for layers, both, batch_first, proj_size, dtype, hx in itertools.product(
        (1, 2), (False, True), (False, True), (0, P), (torch.float32, torch.float64), (False, True)
    )
] + [Case(2, True, False, True, 0, torch.float32, "dense", True)]


def by_hand(lstm, x, lengths, hx=None):
    """What people write without `lengths`."""
    lengths = torch.as_tensor(lengths)
    packed = pack_padded_sequence(x, lengths, lstm.batch_first, enforce_sorted=False)
    output, states = lstm(packed, hx)
    axis = 1 if lstm.batch_first else 0
    return pad_packed_sequence(output, lstm.batch_first, total_length=x.shape[axis])[0], states


def padding_of(x, lengths, batch_first=False):
    """(T, B) or (B, T): where no sequence has a step."""
    steps = torch.arange(x.shape[1 if batch_first else 0])
    padded = steps[:, None] >= torch.as_tensor(lengths)
    return padded.T if batch_first else padded


def gradients(module, returned, leaves):
    loss = weighted_sum(results(returned))
    wanted = {**dict(module.named_parameters()), **leaves}
    wanted = {name: tensor for name, tensor in wanted.items() if tensor.requires_grad}
    return dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True))


def assert_as_by_hand(lstm, bilstm, call, lengths=LENGTHS):
    x, hx = call.input, call.hx
    found, expected = bilstm(x, hx, lengths=lengths), by_hand(lstm, x, lengths, hx)
    assert_close(results(found), results(expected), OUTPUT_TOLERANCE[x.dtype])
    assert_close(
        gradients(bilstm, found, call.leaves),
        gradients(lstm, expected, call.leaves),
        GRADIENT_TOLERANCE[x.dtype],
    )


# --- the same as packing by hand


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_and_gradients_are_those_of_packing_by_hand(case):
    lstm, bilstm = pair(**case.options)
    assert_as_by_hand(lstm, bilstm, example(case))


@pytest.mark.parametrize(
    "lengths", [(6, 4, 3, 1), (1, 3, 4, 6), (6, 6, 6, 6), (1, 1, 1, 1), (2, 5, 2, 5)], ids=str
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_any_order_ties_and_no_sequence_as_long_as_the_batch(batch_first, lengths):
    case = Case(2, True, True, batch_first, 0, torch.float64, "dense", True)
    lstm, bilstm = pair(**case.options)
    assert_as_by_hand(lstm, bilstm, example(case), lengths)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 3), st.booleans())
def test_any_lengths(lengths, more, batch_first):
    lstm, bilstm = pair(bidirectional=True, batch_first=batch_first, dtype=torch.float64)
    steps = max(lengths) + more
    shape = (len(lengths), steps) if batch_first else (steps, len(lengths))
    x = torch.randn(*shape, I, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert_close(
        results(bilstm(x, lengths=lengths)),
        {k: v.detach() for k, v in results(by_hand(lstm, x, lengths)).items()},
        1e-12,
    )


@pytest.mark.parametrize("batch_first", [False, True])
def test_outputs_beyond_an_end_are_zeros_and_the_others_are_not(batch_first):
    _, bilstm = pair(bidirectional=True, batch_first=batch_first)
    x = example(Case(1, True, True, batch_first, 0, torch.float32, "dense", False)).input
    output = bilstm(x, lengths=LENGTHS)[0]
    padded = padding_of(x, LENGTHS, batch_first)
    assert not output[padded].any()
    assert (output[~padded] != 0).all()
    assert output.shape == bilstm(x)[0].shape
    assert output.is_contiguous()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("batch_first", [False, True])
def test_what_stands_in_the_padding_changes_nothing(batch_first, value):
    case = Case(2, True, True, batch_first, 0, torch.float32, "dense", True)
    _, bilstm = pair(**case.options)
    call = example(case)
    x, padded = call.input.detach(), padding_of(call.input, LENGTHS, batch_first)
    found = []
    for content in (x, x.masked_fill(padded[..., None], value)):
        leaves = {**call.leaves, "input": content.clone().requires_grad_()}
        returned = bilstm(leaves["input"], call.hx, lengths=LENGTHS)
        found.append({**results(returned), **gradients(bilstm, returned, leaves)})
        assert not found[-1]["input"][padded].any()
        assert found[-1]["input"][~padded].any(-1).all()
    assert_same_bits(found[1], found[0])


def test_the_result_without_lengths_is_another():
    """Why `lengths` are worth having: the reverse direction begins in the padding."""
    _, bilstm = pair(bidirectional=True)
    x = example(Case(1, True, True, False, 0, torch.float32, "dense", False)).input
    right, (h_n, _) = bilstm(x, lengths=LENGTHS)
    wrong, (h_padded, _) = bilstm(x)
    own = ~padding_of(x, LENGTHS)
    assert torch.allclose(right[..., :H][own], wrong[..., :H][own], atol=1e-6)
    short = torch.tensor(LENGTHS) < T
    assert (right[..., H:] - wrong[..., H:])[own & short].abs().min() > 1e-6
    assert (h_n - h_padded)[0, short].abs().amax(-1).min() > 1e-3
    assert torch.allclose(h_n[0, ~short], h_padded[0, ~short], atol=1e-6)


def test_dropout_draws_the_masks_of_packed_input():
    lstm, bilstm = pair(num_layers=3, bidirectional=True, dropout=0.5)
    x = example(Case(3, True, True, False, 0, torch.float32, "dense", False)).input
    torch.manual_seed(5)
    expected = results(by_hand(lstm, x, LENGTHS))
    torch.manual_seed(5)
    found = results(bilstm(x, lengths=LENGTHS))
    assert_close(found, expected, 1e-6)
    assert not torch.equal(found["output"], bilstm(x, lengths=LENGTHS)[0])


@pytest.mark.parametrize("proj_size", [0, P])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_gives_the_dtypes_of_packed_input(dtype, proj_size):
    lstm, bilstm = pair(bidirectional=True, proj_size=proj_size, dtype=dtype)
    x = example(Case(1, True, True, False, 0, dtype, "dense", False)).input
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = results(bilstm(x, lengths=LENGTHS)), results(by_hand(lstm, x, LENGTHS))
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        torch.testing.assert_close(found[name], tensor, rtol=2e-2, atol=1e-2)


def test_autocast_gives_the_same_dtypes_where_functions_are_transformed():
    bilstm = BiLSTM(I, H)
    x = torch.randn(T, B, I)
    with torch.autocast("cpu", torch.bfloat16):
        expected = bilstm(x, lengths=LENGTHS)[0]
        found = torch.func.vmap(lambda x: bilstm(x, lengths=LENGTHS)[0])(x[None])[0]
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-2)


def test_bfloat16():
    _, bilstm = pair(bidirectional=True)
    x = example(Case(1, True, True, False, 0, torch.float32, "dense", False)).input.bfloat16()
    bilstm.bfloat16()
    assert_same_bits(results(bilstm(x, lengths=LENGTHS)), results(by_hand(bilstm, x, LENGTHS)))


def test_a_call_gives_the_bits_of_packing_by_hand_and_freezing_changes_none():
    _, bilstm = pair(num_layers=2, bidirectional=True)
    x = example(Case(2, True, True, False, 0, torch.float32, "dense", False)).input
    before = results(bilstm(x, lengths=LENGTHS))
    assert_same_bits(before, results(by_hand(bilstm, x, LENGTHS)))
    for frozen in ({"layers": 0}, {"directions": "reverse"}, {"kinds": "bias"}):
        with freeze(bilstm, **frozen):
            assert_same_bits(results(bilstm(x, lengths=LENGTHS)), before)
    with torch.inference_mode():
        assert_same_bits(results(bilstm(x, lengths=LENGTHS)), before)


def test_frozen_weights_stay_and_others_train():
    _, bilstm = pair(num_layers=2, bidirectional=True)
    x = example(Case(2, True, True, False, 0, torch.float32, "dense", False)).input
    freeze(bilstm, layers=0)
    optimizer = torch.optim.AdamW(bilstm.parameters(), 0.1)
    before = copy.deepcopy(bilstm.state_dict())
    with FrozenGuard(bilstm).attach(optimizer):
        bilstm(x, lengths=LENGTHS)[0].square().sum().backward()
        optimizer.step()
    for name, tensor in bilstm.state_dict().items():
        assert torch.equal(tensor, before[name]) == ("_l0" in name)


def test_a_model_whose_lstm_was_replaced():
    torch.manual_seed(0)
    model = nn.ModuleDict({"lstm": nn.LSTM(I, H, batch_first=True, bidirectional=True)})
    x = torch.randn(B, T, I)
    expected = results(by_hand(model["lstm"], x, LENGTHS))
    replace_lstm(model)
    assert_close(results(model["lstm"](x, lengths=LENGTHS)), expected, 1e-6)
    again = pickle.loads(pickle.dumps(model))
    assert_same_bits(
        results(again["lstm"](x, lengths=LENGTHS)), results(model["lstm"](x, lengths=LENGTHS))
    )


def test_hooks_see_lengths():
    _, bilstm = pair(bidirectional=True)
    seen = []
    bilstm.register_forward_pre_hook(lambda _, args, kw: seen.append(kw), with_kwargs=True)
    bilstm(torch.randn(T, B, I), lengths=LENGTHS)
    assert seen == [{"lengths": LENGTHS}]


# --- the forms of input and lengths

GIVEN = {
    "tuple": tuple,
    "range": lambda n: range(2, 2 + len(n)),
    "numpy int64": np.array,
    "numpy uint8": lambda n: np.array(n, np.uint8),
    "numpy uint16": lambda n: np.array(n, np.uint16),
    "numpy, big-endian and reversed": lambda n: np.array(n[::-1], ">i4")[::-1],
    "numpy scalars": lambda n: list(np.array(n)),
    "0-D tensors": lambda n: list(torch.tensor(n)),
    "generator": lambda n: (length for length in n),
    **{
        str(dtype).removeprefix("torch."): lambda n, dtype=dtype: torch.tensor(n, dtype=dtype)
        for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint32)
    },
    "every other": lambda n: torch.tensor(n).repeat_interleave(2)[::2],
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_lengths_of_every_kind(given):
    _, bilstm = pair(bidirectional=True)
    x = torch.randn(T, B, I)
    lengths = list(range(2, 2 + B)) if isinstance(given(LENGTHS), range) else list(LENGTHS)
    assert_same_bits(
        results(bilstm(x, lengths=given(LENGTHS))), results(bilstm(x, lengths=lengths))
    )


STRIDED = {
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "features first": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "every other sequence": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "every other feature": lambda x: x.repeat_interleave(2, 2)[..., ::2],
    "part of a wider batch": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("strided", STRIDED.values(), ids=STRIDED)
def test_input_of_any_strides(strided, batch_first):
    _, bilstm = pair(bidirectional=True, batch_first=batch_first)
    shape = (B, T, I) if batch_first else (T, B, I)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    same = strided(x)
    assert not same.is_contiguous()
    assert torch.equal(same, x)
    assert_same_bits(results(bilstm(same, lengths=LENGTHS)), results(bilstm(x, lengths=LENGTHS)))


@pytest.mark.parametrize("batch_first", [False, True])
def test_no_sequences_at_all(batch_first):
    bilstm = BiLSTM(I, H, 2, batch_first=batch_first)
    x = torch.randn((0, T, I) if batch_first else (T, 0, I), requires_grad=True)
    output, (h_n, _) = bilstm(x, lengths=[])
    assert output.shape == (*x.shape[:2], 2 * H)
    assert h_n.shape == (4, 0, H)
    (output.sum() + h_n.sum()).backward()
    assert x.grad.shape == x.shape
    with pytest.raises(RuntimeError, match="sequence length to be larger than 0 in RNN, got 0"):
        bilstm(torch.randn(0, 0, I), lengths=[])


# --- errors

REFUSED = {
    "zero": ([3, 0, 7, 1], r"between 1 and the input's 6 steps, got lengths\[1\] = 0"),
    "negative": (torch.tensor([3, 6, -2, 0]), r"steps, got lengths\[2\] = -2"),
    "too long": ([3, 6, 1, 7], r"steps, got lengths\[3\] = 7"),
    "too long, uint8": (torch.tensor([255, 1, 1, 1], dtype=torch.uint8), r"lengths\[0\] = 255"),
    "float": ([3, 2.0, 1, 4], r"must be integers, got lengths\[1\] = 2.0"),
    "float tensor": (torch.tensor([3.5, 2, 1, 4]), r"got lengths\[0\] = 3.5, torch.float32"),
    "float array": (np.array([1.0, 2, 3, 4]), r"got lengths\[0\] = 1.0"),
    "bool": ([3, 1, True, 4], r"got lengths\[2\] = True"),
    "bool tensor": (torch.ones(B, dtype=torch.bool), r"got lengths\[0\] = True, torch.bool"),
    "bool in a tensor": ([torch.tensor(1), torch.tensor(True), 1, 1], r"lengths\[1\] = True"),
    "None inside": ([3, 1, None, 4], r"got lengths\[2\] = None"),
    "words": ("3164", r"must be \(B,\) integers, got '3164'"),
    "a set": ({3, 1, 2, 4}, r"must be \(B,\) integers, got \{1, 2, 3, 4\}"),
    "a mapping": ({3: "a", 1: "b", 2: "c", 4: "d"}, r"must be \(B,\) integers, got \{3: 'a'"),
    "bytes": (b"\3\1\2\4", r"must be \(B,\) integers, got b'"),
    "complex": (torch.ones(B, dtype=torch.complex64), r"lengths\[0\] = \(1\+0j\), torch.complex64"),
    "one number": (3, r"must be \(B,\) integers, got 3"),
    "0-D": (torch.tensor(3), r"must be 1-D, one integer for each sequence, got 0-D of shape \(\)"),
    "2-D": (torch.ones(B, 1, dtype=torch.int64), r"must be 1-D.*got 2-D of shape \(4, 1\)"),
    "2-D list": ([[3], [1], [2], [4]], r"must be integers, got lengths\[0\] = \[3\]"),
    "too few": ([3, 1, 2], r"each of the input's 4 sequences, got 3: sequence 3 has no"),
    "too many": (torch.ones(6, dtype=torch.int64), r"4 sequences, got 6: lengths\[4\] has no"),
}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("lengths", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_lengths_name_the_first_wrong_one(lengths, message, batch_first):
    bilstm = BiLSTM(I, H, batch_first=batch_first)
    x = torch.randn((B, T, I) if batch_first else (T, B, I))
    with pytest.raises(ValueError, match=f"`lengths` .*{message}"):
        bilstm(x, lengths=lengths)


def test_only_a_padded_batch_has_lengths():
    bilstm, x = BiLSTM(I, H), torch.randn(T, B, I)
    packed = pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False)
    with pytest.raises(ValueError, match="`lengths` need a padded batch, got a PackedSequence"):
        bilstm(packed, lengths=LENGTHS)
    with pytest.raises(ValueError, match=r"`lengths` need a padded batch.*got 2-D input"):
        bilstm(x[:, 0], lengths=[T])


def test_the_rest_of_the_call_is_checked_as_ever():
    bilstm, x = BiLSTM(I, H), torch.randn(T, B, I)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size"):
        bilstm(x, (torch.zeros(2, B + 1, H), torch.zeros(2, B + 1, H)), lengths=LENGTHS)
    with pytest.raises(ValueError, match="input dtype"):
        bilstm(x.double(), lengths=LENGTHS)
    with pytest.raises(TypeError):
        bilstm(x, None, LENGTHS)  # keyword only


# --- the prefix cache


def cached(**options):
    _, bilstm = pair(num_layers=2, bidirectional=True, **options)
    freeze(bilstm, layers=0)
    plain = copy.deepcopy(bilstm)
    bilstm.prefix_cache = PrefixCache()
    return bilstm, plain


def counts(bilstm):
    stats = bilstm.prefix_cache.stats()
    return stats["hits"], stats["misses"]


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_cache_knows_a_sample_whatever_its_padding(batch_first):
    bilstm, plain = cached(batch_first=batch_first)
    x = torch.randn((B, T, I) if batch_first else (T, B, I))
    padded = padding_of(x, LENGTHS, batch_first)[..., None]
    more = (0, 0, 0, 2) if batch_first else (0, 0, 0, 0, 0, 2)
    samples = (slice(None), [2, 0]) if not batch_first else [2, 0]
    calls = [
        (x, LENGTHS),
        (x.masked_fill(padded, float("nan")), LENGTHS),
        (nn.functional.pad(x, more, value=7.0), LENGTHS),
        (x[samples], [LENGTHS[2], LENGTHS[0]]),
    ]
    for x, lengths in calls:
        expected = {k: v.detach() for k, v in results(plain(x, lengths=lengths)).items()}
        assert_close(results(bilstm(x, lengths=lengths)), expected, 1e-6)
    assert counts(bilstm) == (2 * B + 2, B)


def test_the_cache_misses_on_another_length_or_row():
    bilstm, plain = cached()
    x = torch.randn(T, B, I)
    bilstm(x, lengths=LENGTHS)
    y = x.clone()
    y[0, 1] += 1  # within sequence 1, and the length of sequence 3 is another
    lengths = [*LENGTHS[:3], LENGTHS[3] - 1]
    assert_close(results(bilstm(y, lengths=lengths)), results(plain(y, lengths=lengths)), 1e-6)
    assert counts(bilstm) == (2, B + 2)


def test_the_cache_shares_samples_with_packed_calls_and_trains_the_rest():
    bilstm, plain = cached()
    x = torch.randn(T, B, I)
    by_hand(bilstm, x, LENGTHS)
    for lstm in (bilstm, plain):
        lstm(x, lengths=LENGTHS)[0].square().sum().backward()
    assert counts(bilstm) == (B, B)
    for (name, p), q in zip(bilstm.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) == ("_l0" in name)
        if p.grad is not None:
            assert p.grad.any()
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-6)


# --- no more work than packing by hand


def test_valid_rows_are_gathered_once_and_outputs_scattered_once(monkeypatch):
    bilstm = BiLSTM(I, H, 3)
    x, calls = torch.randn(T, B, I), []
    for name in ("_gathered", "_scattered", "_places"):
        original = getattr(padding, name)
        monkeypatch.setattr(
            padding, name, lambda *args, f=original, name=name: (calls.append(name), f(*args))[1]
        )
    rows, run_layer = [], Stack.run_layer
    monkeypatch.setattr(
        Stack,
        "run_layer",
        lambda self, r, *args: (rows.append(len(r.data)), run_layer(self, r, *args))[1],
    )
    bilstm(x, lengths=LENGTHS)
    assert calls == ["_places", "_gathered", "_scattered"]
    assert rows == [sum(LENGTHS)] * 3


class Copies(TorchDispatchMode):
    """Counts the operations that copy a whole tensor."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.copy_)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["as it is", "transposed", "part of a wider batch"])
def test_only_the_valid_rows_are_copied(name):
    """What batch_first=False is often given is a transposed batch; it is gathered in place."""
    x = torch.randn(T, B, I)
    places = padding_of(x, LENGTHS).logical_not().flatten().nonzero().squeeze(1)
    strided = {"as it is": lambda x: x, **STRIDED}[name](x)
    with Copies() as copies:
        found = padding._select(strided, places)
    assert torch.equal(found, x.flatten(0, 1)[places])
    assert copies.count == (name == "part of a wider batch")


def test_the_input_may_be_changed_after_the_call():
    """The rows were copied: autograd keeps nothing of the padded batch itself."""
    _, bilstm = pair(bidirectional=True)
    x = torch.randn(T, B, I)
    expected = gradients(bilstm, bilstm(x, lengths=LENGTHS), {})
    returned = bilstm(x, lengths=LENGTHS)
    x.zero_()
    assert_same_bits(gradients(bilstm, returned, {}), expected)


# --- derivatives of every kind


def test_gradients_of_gradients():
    bilstm = BiLSTM(2, 3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 2, dtype=torch.float64, generator=generator).requires_grad_()

    def call(x):
        return bilstm(x, lengths=[1, 3])[0]

    assert torch.autograd.gradcheck(call, (x,))
    assert torch.autograd.gradgradcheck(call, (x,))
    rows = torch.autograd.grad(call(x).sum((1, 2)), x, torch.eye(3).double(), is_grads_batched=True)
    assert torch.allclose(rows[0].sum(0), torch.autograd.grad(call(x).sum(), x)[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
def test_functional_transforms():
    _, bilstm = pair(num_layers=2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    padded = padding_of(x, LENGTHS)[..., None]
    weights = {name: p.detach() for name, p in bilstm.named_parameters()}

    def loss(weights, x, lengths):
        output, (h, c) = torch.func.functional_call(bilstm, weights, (x,), {"lengths": lengths})
        return weighted_sum({"output": output, "h": h, "c": c})

    lengths = torch.tensor(LENGTHS)
    found = torch.func.grad(loss)(weights, x.masked_fill(padded, float("nan")), lengths)
    loss(dict(bilstm.named_parameters()), x, lengths).backward()
    assert_close(found, {name: p.grad for name, p in bilstm.named_parameters()}, 1e-12)
    with pytest.raises(ValueError, match=r"lengths\[1\] = 0"):
        torch.func.grad(loss)(weights, x, torch.tensor([3, 0, 1, 2]))

    many, each = torch.randn(3, T, B, I).double(), torch.tensor([LENGTHS, (1, 2, 3, 4), (6,) * 4])
    found = torch.func.vmap(lambda x, n: bilstm(x, lengths=n)[0])(many, each)
    expected = torch.stack([bilstm(x, lengths=n)[0] for x, n in zip(many, each, strict=True)])
    assert torch.allclose(found, expected, atol=1e-12)

    tangent = torch.randn_like(x)
    _, forward = torch.func.jvp(lambda x: bilstm(x, lengths=LENGTHS)[0].sum(), (x,), (tangent,))
    grad = torch.func.grad(lambda x: bilstm(x, lengths=LENGTHS)[0].sum())(x)
    assert torch.allclose(forward, (grad * tangent).sum(), atol=1e-12)
    assert forward.abs() > 1e-3


def test_activation_checkpointing():
    _, bilstm = pair(num_layers=2, bidirectional=True)
    x = torch.randn(T, B, I, requires_grad=True)

    def call(x):
        return bilstm(x, lengths=LENGTHS)[0]

    expected = torch.autograd.grad(call(x).square().sum(), x)
    again = torch.utils.checkpoint.checkpoint(call, x, use_reentrant=False)
    assert_same_bits({"x": torch.autograd.grad(again.square().sum(), x)[0]}, {"x": expected[0]})


@pytest.mark.parametrize("length", [2**63, 2**70, -(2**70)])
def test_a_length_beyond_64_bits_is_named_as_any_other(length):
    with pytest.raises(ValueError, match=rf"between 1 and .*, got lengths\[1\] = {length}$"):
        BiLSTM(2, 3)(torch.zeros(4, 2, 2), lengths=[1, length])


def test_lengths_that_are_no_numbers_give_no_result():
    lengths = torch.empty(2, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match=r"`lengths` must be numbers, .*'meta'"):
        BiLSTM(2, 3)(torch.zeros(4, 2, 2), lengths=lengths)
    lstm = BiLSTM(2, 3, device="meta")
    assert lstm(torch.zeros(4, 2, 2, device="meta"), lengths=lengths)[0].shape == (4, 2, 6)
