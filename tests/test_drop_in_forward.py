"""BiLSTM's forward is nn.LSTM's for every shape, layout, value, dtype and packing."""

import math

import pytest
import torch
from _oracle import (
    OUTPUT_TOLERANCE,
    B,
    Case,
    H,
    I,
    P,
    T,
    assert_agree,
    assert_close,
    assert_same_bits,
    example,
    gradients,
    pair,
    results,
    weighted_sum,
)
from torch import nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

pytestmark = pytest.mark.usefixtures("with_and_without_small_layers")

WIDE = {"num_layers": 2, "bidirectional": True}
BOTH_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
BOTH_ORDERS = pytest.mark.parametrize("batch_first", [False, True], ids=["time", "batch"])
BOTH_SIZES = pytest.mark.parametrize("proj_size", [0, P], ids=["P0", f"P{P}"])


# --- shapes


@BOTH_ORDERS
@BOTH_SIZES
@pytest.mark.parametrize(("time", "batch"), [(1, 1), (1, B), (T, 1), (40, 2), (2, 33)])
def test_shapes(time: int, batch: int, batch_first: bool, proj_size: int):
    lstm, bilstm = pair(batch_first=batch_first, proj_size=proj_size, **WIDE)
    x = torch.randn((batch, time, I) if batch_first else (time, batch, I))
    assert_close(results(bilstm(x)), results(lstm(x)), 1e-6)


@pytest.mark.parametrize(("input_size", "hidden_size"), [(1, 1), (1, 7), (17, 1), (64, 33)])
def test_sizes(input_size: int, hidden_size: int):
    lstm, bilstm = pair(input_size, hidden_size, **WIDE)
    x = torch.randn(T, B, input_size)
    assert_close(results(bilstm(x)), results(lstm(x)), 1e-6)


@BOTH_ORDERS
@BOTH_SIZES
@pytest.mark.parametrize("hx", [False, True], ids=["zeros", "hx"])
def test_empty_batch(batch_first: bool, proj_size: int, hx: bool):
    case = Case(2, True, True, batch_first, proj_size, torch.float32, "dense", hx)
    lstm, bilstm = pair(**case.options)
    call = example(case, batch=0)
    assert_agree(lstm, bilstm, call)
    for name, gradient in gradients(bilstm, call).items():
        assert gradient is not None, name
        assert gradient.count_nonzero() == 0, name


@BOTH_ORDERS
def test_unbatched_is_a_batch_of_one(batch_first: bool):
    _, bilstm = pair(batch_first=batch_first, **WIDE)
    x, h, c = torch.randn(T, I), torch.randn(4, H), torch.randn(4, H)
    alone = results(bilstm(x, (h, c)))
    dim = 0 if batch_first else 1
    batched = results(bilstm(x.unsqueeze(dim), (h.unsqueeze(1), c.unsqueeze(1))))
    batched["output"] = batched["output"].squeeze(dim)
    batched |= {name: batched[name].squeeze(1) for name in ("h_n", "c_n")}
    assert_close(alone, batched, 1e-6)


# --- layouts

LAYOUTS = {
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "features first": lambda x: x.transpose(0, 2).contiguous().transpose(0, 2),
    "every other row": lambda x: x.repeat_interleave(2, dim=0)[::2],
    "every other feature": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "inside a larger tensor": lambda x: nn.functional.pad(x, (1, 2, 1, 2, 1, 2))[1:-2, 1:-2, 1:-2],
    "flipped": lambda x: x.flip(0),
    "expanded over the batch": lambda x: x[:, :1].expand_as(x),
    "expanded over the first axis": lambda x: x[:1].expand_as(x),
    "expanded over everything": lambda x: x[:1, :1, :1].expand_as(x),
    "as one storage element per row": lambda x: x[..., :1].expand_as(x),
}


@BOTH_ORDERS
@BOTH_DTYPES
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_of_the_input(layout, batch_first: bool, dtype: torch.dtype):
    lstm, bilstm = pair(batch_first=batch_first, dtype=dtype, **WIDE)
    x = torch.randn(T, B, I, dtype=dtype, requires_grad=True)
    grads = {}
    for module in (lstm, bilstm):
        returned = results(module(layout(x)))
        (gradient,) = torch.autograd.grad(weighted_sum(returned), x)
        grads[module] = {**returned, "input": gradient}
    assert_close(grads[bilstm], grads[lstm], 10 * OUTPUT_TOLERANCE[dtype])


@pytest.mark.parametrize("form", ["dense", "packed"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_of_hx(layout, form: str):
    lstm, bilstm = pair(**WIDE)
    call = example(Case(2, True, True, False, 0, torch.float32, form, True))
    hx = tuple(layout(state.detach()) for state in call.hx)
    expected = results(lstm(call.input, hx))
    assert_close(results(bilstm(call.input, hx)), expected, 1e-6)


def test_parameters_that_are_not_contiguous():
    lstm, bilstm = pair(**WIDE)
    for module in (lstm, bilstm):
        for name, parameter in list(module.named_parameters()):
            if parameter.dim() == 2:
                setattr(module, name, nn.Parameter(parameter.detach().t().contiguous().t()))
    case = Case(2, True, True, False, 0, torch.float32, "dense", True)
    assert_agree(lstm, bilstm, example(case))


@BOTH_ORDERS
@BOTH_SIZES
@pytest.mark.parametrize("form", ["dense", "unbatched", "packed", "packed_unsorted"])
def test_what_nn_lstm_returns_contiguous_is_contiguous(
    form: str, batch_first: bool, proj_size: int
):
    case = Case(2, True, True, batch_first, proj_size, torch.float32, form, False)
    lstm, bilstm = pair(**case.options)
    call = example(case)
    found, expected = results(bilstm(*call.args)), results(lstm(*call.args))
    for name in expected:
        assert found[name].is_contiguous() >= expected[name].is_contiguous(), name


@pytest.mark.parametrize("form", ["dense", "unbatched", "packed", "packed_unsorted"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_arguments_are_left_as_they_are_and_results_share_no_memory(form: str, num_layers: int):
    case = Case(num_layers, True, True, False, 0, torch.float32, form, True)
    _, bilstm = pair(**case.options)
    call = example(case)
    before = {name: leaf.detach().clone() for name, leaf in call.leaves.items()}
    with torch.no_grad():
        returned = results(bilstm(*call.args))
        kept = {name: tensor.clone() for name, tensor in returned.items()}
        for name in kept:
            returned[name].fill_(7.0)
            kept[name].fill_(7.0)
            assert_same_bits(returned, kept)
        for tensor in call.leaves.values():
            tensor.add_(0.0)
    assert_same_bits({name: leaf.detach() for name, leaf in call.leaves.items()}, before)


@pytest.mark.parametrize("trained", [None, "weight_hh_l1_reverse", "bias_ih_l0", "h_0", "input"])
@pytest.mark.parametrize("form", ["dense", "unbatched", "packed"])
def test_results_require_grad_as_nn_lstms_do(form: str, trained: str | None):
    case = Case(2, True, True, False, 0, torch.float32, form, True)
    lstm, bilstm = pair(**case.options)
    call = example(case)
    leaves = {"input": call.leaves.get("input", call.leaves.get("input[0]"))}
    for module in (lstm, bilstm):
        module.requires_grad_(False)
    for leaf in call.leaves.values():
        leaf.requires_grad_(False)
    for module in (lstm, bilstm):
        for name, tensor in {**dict(module.named_parameters()), **call.leaves, **leaves}.items():
            if name == trained:
                tensor.requires_grad_()
    expected, found = results(lstm(*call.args)), results(bilstm(*call.args))
    for name in expected:
        assert found[name].requires_grad == expected[name].requires_grad, name
        assert found[name].is_leaf == expected[name].is_leaf, name
    with torch.no_grad():
        assert not any(tensor.requires_grad for tensor in results(bilstm(*call.args)).values())


@pytest.mark.parametrize("form", ["dense", "unbatched", "packed", "packed_unsorted"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_results_do_not_depend_on_grad_mode(mode, form: str):
    case = Case(2, True, True, False, 0, torch.float32, form, True)
    _, bilstm = pair(**case.options)
    call = example(case)
    expected = results(bilstm(*call.args))
    with mode():
        found = results(bilstm(*call.args))
        assert all(t.is_inference() == torch.is_inference_mode_enabled() for t in found.values())
    assert_close(found, expected, 1e-6)


def test_return_types_are_plain():
    for module in pair(**WIDE):
        returned = module(torch.randn(T, B, I))
        assert type(returned) is tuple
        assert type(returned[1]) is tuple
        assert [type(t) for t in (returned[0], *returned[1])] == [torch.Tensor] * 3


def test_tensor_subclasses_of_parameters_are_accepted():
    lstm, bilstm = pair()
    x = nn.Parameter(torch.randn(T, B, I))
    assert_close(results(bilstm(x)), results(lstm(x)), 1e-6)
    assert type(bilstm(x)[0]) is torch.Tensor


# --- values

SPECIAL = [math.inf, -math.inf, math.nan, 1e30, -1e38, 1e-40]


def assert_spread_alike(found, expected, tolerance):
    """NaN, +inf and -inf are in the same places; the rest is equal to rounding."""
    for name, truth in expected.items():
        for where in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(where(found[name]), where(truth)), (name, where.__name__)
    finite = {name: (torch.isfinite(truth)) for name, truth in expected.items()}
    assert_close(
        {name: found[name][mask] for name, mask in finite.items()},
        {name: expected[name][mask] for name, mask in finite.items()},
        tolerance,
    )


PLACES = ["input", "h_0", "c_0", "weight_hh_l1_reverse", "weight_hr_l0"]


@BOTH_DTYPES
@pytest.mark.parametrize(("form", "proj_size"), [("dense", 0), ("dense", P), ("packed", P)])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", SPECIAL)
def test_special_values_spread_alike(value, place: str, form: str, proj_size: int, dtype):
    case = Case(2, True, True, False, proj_size, dtype, form, True)
    modules = pair(**case.options)
    call = example(case)
    found = []
    with torch.no_grad():
        for module in modules:
            tensors = {**dict(module.named_parameters()), **call.leaves}
            target = tensors.get(place, call.leaves.get("input[1]"))
            if target is None:  # no weight_hr without projection
                target = tensors["bias_ih_l0_reverse"]
            target.view(-1)[target.numel() // 2] = value
            found.append(results(module(*call.args)))
    lstm, bilstm = found
    assert_spread_alike(bilstm, lstm, OUTPUT_TOLERANCE[dtype])


@BOTH_DTYPES
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 30.0, 1e4])
def test_saturated_and_tiny_values(scale: float, dtype: torch.dtype):
    case = Case(2, True, True, False, 0, dtype, "dense", True)
    lstm, bilstm = pair(**case.options)
    call = example(case)
    with torch.no_grad():
        for leaf in call.leaves.values():
            leaf.mul_(scale)
    assert_close(results(bilstm(*call.args)), results(lstm(*call.args)), OUTPUT_TOLERANCE[dtype])


# --- dtypes


@BOTH_SIZES
@pytest.mark.parametrize("form", ["dense", "unbatched", "packed", "packed_unsorted"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_near_the_truth_as_nn_lstm_may_be(dtype, form: str, proj_size: int):
    case = Case(2, True, True, False, proj_size, dtype, form, True)
    lstm, bilstm = pair(**case.options)
    call = example(case)
    exact = example(case._replace(dtype=torch.float64))
    with torch.no_grad():
        for name, leaf in exact.leaves.items():
            leaf.copy_(call.leaves[name])
    truth, _ = pair(**{**case.options, "dtype": torch.float64})
    truth.load_state_dict(lstm.state_dict())
    eps = torch.finfo(dtype).eps
    for module in (lstm, bilstm):
        returned = results(module(*call.args))
        assert {tensor.dtype for tensor in returned.values()} == {dtype}
        expected = {name: tensor.to(dtype) for name, tensor in results(truth(*exact.args)).items()}
        assert_close(returned, expected, 4 * eps)
        expected = {name: tensor.to(dtype) for name, tensor in gradients(truth, exact).items()}
        assert_close(gradients(module, call), expected, 8 * eps)


# What autocast gives: (form, projected) -> the dtypes of output, h_n and c_n for a float32 module.
LOW, FULL = torch.bfloat16, torch.float32
AUTOCAST = {
    ("dense", False): (LOW, LOW, LOW),
    ("dense", True): (LOW, LOW, FULL),
    ("unbatched", False): (LOW, LOW, LOW),
    ("packed", False): (FULL, FULL, FULL),
    ("packed", True): (LOW, LOW, FULL),
    ("packed_unsorted", False): (FULL, FULL, FULL),
}


def needs_bf16_primitive(form: str, projected: bool) -> bool:
    """Whether nn.LSTM would call oneDNN in bfloat16, which some CPUs cannot."""
    return form in ("dense", "unbatched") and not projected


@pytest.mark.parametrize("hx", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize(("form", "projected"), AUTOCAST)
def test_autocast_of_a_float32_module(form: str, projected: bool, hx: bool):
    case = Case(2, True, True, False, P * projected, torch.float32, form, hx)
    lstm, bilstm = pair(**case.options)
    call = example(case)
    expected, truth = results(lstm(*call.args)), gradients(lstm, call)
    subjects = [bilstm] if needs_bf16_primitive(form, projected) else [lstm, bilstm]
    for module in subjects:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            returned = results(module(*call.args))
        wanted = {**dict(module.named_parameters()), **call.leaves}
        found = torch.autograd.grad(weighted_sum(returned), list(wanted.values()))
        assert tuple(tensor.dtype for tensor in returned.values()) == AUTOCAST[form, projected]
        eps = torch.finfo(torch.bfloat16).eps
        as_float = {name: tensor.float() for name, tensor in returned.items()}
        assert_close(as_float, expected, 4 * eps)
        assert_close(dict(zip(wanted, found, strict=True)), truth, 8 * eps)


@pytest.mark.parametrize("form", ["dense", "packed"])
@pytest.mark.parametrize("proj_size", [0, P])
def test_autocast_leaves_float64_alone(form: str, proj_size: int):
    case = Case(2, True, True, False, proj_size, torch.float64, form, True)
    lstm, bilstm = pair(**case.options)
    call = example(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_agree(lstm, bilstm, call)


def test_autocast_switched_off_inside():
    lstm, bilstm = pair(**WIDE)
    x = torch.randn(T, B, I)
    expected = results(lstm(x))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert_close(results(bilstm(x)), expected, 1e-6)


# --- packing


@BOTH_ORDERS
@pytest.mark.parametrize("enforce_sorted", [True, False], ids=["sorted", "unsorted"])
def test_packed_output_keeps_all_fields(enforce_sorted: bool, batch_first: bool):
    lengths = [6, 4, 4, 1] if enforce_sorted else [4, 1, 6, 4]
    x = torch.randn((B, T, I) if batch_first else (T, B, I))
    packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted)
    lstm, bilstm = pair(batch_first=batch_first, **WIDE)
    output, _ = bilstm(packed)
    assert type(output) is PackedSequence
    assert torch.equal(output.batch_sizes, packed.batch_sizes)
    for name in ("sorted_indices", "unsorted_indices"):
        own, given = getattr(output, name), getattr(packed, name)
        assert (own is None) == (given is None) == enforce_sorted, name
        assert own is None or torch.equal(own, given)
    padded, own_lengths = pad_packed_sequence(output, batch_first, padding_value=-9.0)
    expected, their_lengths = pad_packed_sequence(lstm(packed)[0], batch_first, padding_value=-9.0)
    assert torch.equal(own_lengths, their_lengths)
    assert_close({"padded": padded}, {"padded": expected}, 1e-6)


LENGTH_TABLES = {
    "many ones": [1, 1, 5, 1, 1, 1, 3, 1],
    "all ones": [1, 1, 1],
    "all equal": [4, 4, 4],
    "one sample": [5],
    "one sample of one": [1],
    "a long tail": [2, 30, 1, 2],
    "every length": [3, 1, 4, 2, 6, 5],
}


@BOTH_DTYPES
@BOTH_SIZES
@pytest.mark.parametrize("lengths", LENGTH_TABLES.values(), ids=LENGTH_TABLES)
def test_packed_equals_nn_lstm_and_each_sample_alone(lengths, proj_size: int, dtype: torch.dtype):
    lstm, bilstm = pair(dtype=dtype, proj_size=proj_size, **WIDE)
    sequences = [torch.randn(length, I, dtype=dtype) for length in lengths]
    h = torch.randn(4, len(lengths), proj_size or H, dtype=dtype)
    c = torch.randn(4, len(lengths), H, dtype=dtype)
    packed = pack_sequence(sequences, enforce_sorted=False)
    output, (h_n, c_n) = bilstm(packed, (h, c))
    expected = results(lstm(packed, (h, c)))
    tolerance = OUTPUT_TOLERANCE[dtype]
    assert_close(results((output, (h_n, c_n))), expected, tolerance)
    padded, _ = pad_packed_sequence(output)
    for i, sequence in enumerate(sequences):
        alone = results(bilstm(sequence, (h[:, i], c[:, i])))
        among = {"output": padded[: lengths[i], i], "h_n": h_n[:, i], "c_n": c_n[:, i]}
        assert_close(among, alone, 2 * tolerance)


def test_padding_is_never_read():
    lstm, bilstm = pair(**WIDE)
    x = torch.randn(T, B, I)
    lengths = [6, 5, 2, 1]
    expected = results(lstm(pack_padded_sequence(x, lengths)))
    for i, length in enumerate(lengths):
        x[length:, i] = math.nan
    assert_close(results(bilstm(pack_padded_sequence(x, lengths))), expected, 1e-6)


def test_packed_by_hand_and_moved():
    lstm, bilstm = pair(**WIDE)
    by_hand = PackedSequence(torch.randn(9, I), torch.tensor([4, 3, 1, 1]))
    assert_close(results(bilstm(by_hand)), results(lstm(by_hand)), 1e-6)
    doubled = by_hand.to(torch.float64)
    assert_close(results(bilstm.double()(doubled)), results(lstm.double()(doubled)), 1e-12)


def test_output_of_one_is_input_of_the_next():
    first, own_first = pair(**WIDE)
    second, own_second = pair(2 * H, 3, seed=1)
    packed = example(Case(2, True, True, False, 0, torch.float32, "packed_unsorted", False)).input
    output, (h_n, _) = own_first(packed)
    expected, (their_h_n, _) = first(packed)
    assert_close(results(own_second(output)), results(second(expected)), 1e-6)
    assert_close({"h": h_n}, {"h": their_h_n}, 1e-6)


def test_states_carry_over_truncated_pieces():
    lstm, bilstm = pair(num_layers=2)
    x = torch.randn(12, B, I)
    whole = results(lstm(x))
    hx, outputs = None, []
    for piece in x.split(5):
        output, hx = bilstm(piece, hx)
        outputs.append(output)
    assert_close(results((torch.cat(outputs), hx)), whole, 1e-6)
