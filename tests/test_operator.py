"""The fast layer against the readable equations, the derivatives, and the bits of freezing."""

import itertools

import pytest
import torch
from _loops import LOOPS, on_loop
from torch.autograd.gradcheck import GradcheckError
from torch.nn.utils.rnn import pack_sequence

from lstm_freeze._recurrence import loop_torch
from lstm_freeze._recurrence.equations import equations
from lstm_freeze._recurrence.operator import run_layer
from lstm_freeze._recurrence.rows import reverse_rows
from lstm_freeze._recurrence.weights import Weights

LENGTHS = (6, 6, 4, 3, 1, 1)
FORMS = ("dense", "packed")
NAMES = Weights._fields
ALL = list(itertools.product((1, 2), (False, True), (False, True), FORMS, (False, True)))
IDS = [f"D{d}{'-bias' * b}{'-proj' * p}-{form}{'-hx' * hx}" for d, b, p, form, hx in ALL]


@pytest.fixture(params=LOOPS)
def arithmetic(request):
    with on_loop(request.param):
        yield request.param


def arguments(directions, bias, proj, form, hx, dtype=torch.float64, features=3, hidden=5):
    """A layer's arguments, all floating ones leaves that require grad."""
    gen = torch.Generator().manual_seed(0)

    def leaf(*shape):
        return torch.randn(shape, generator=gen, dtype=dtype).mul_(0.4).requires_grad_()

    real = 2 if proj else hidden
    shapes = [(4 * hidden, features), (4 * hidden, real), (4 * hidden,), (4 * hidden,)]
    shapes = shapes if bias else [*shapes[:2], None, None]
    shapes.append((real, hidden) if proj else None)
    weights = [Weights(*(s and leaf(*s) for s in shapes)) for _ in range(directions)]
    batch_sizes = reverse = None
    if form == "packed":
        packed = pack_sequence([leaf(n, features).detach() for n in LENGTHS])
        data, batch_sizes, batch = packed.data.requires_grad_(), packed.batch_sizes, len(LENGTHS)
        reverse = reverse_rows(data, batch_sizes)
    else:
        batch = 4
        data = leaf(6, batch, features)
    h0, c0 = (leaf(directions, batch, n) if hx else None for n in (real, hidden))
    return [data, batch_sizes, reverse, h0, c0, weights]


def leaves(args):
    found = {"data": args[0], "h0": args[3], "c0": args[4]}
    for d, weights in enumerate(args[5]):
        found |= {f"{name}[{d}]": w for name, w in zip(NAMES, weights, strict=True)}
    return {name: x for name, x in found.items() if x is not None}


def gradients(function, args):
    outputs = function(*args)
    gen = torch.Generator().manual_seed(1)
    seeds = [torch.randn(y.shape, generator=gen, dtype=y.dtype) for y in outputs]
    inputs = {name: x for name, x in leaves(args).items() if x.requires_grad}
    found = torch.autograd.grad(outputs, list(inputs.values()), seeds) if inputs else ()
    return outputs, dict(zip(inputs, found, strict=True))


def assert_near(found, expected, tolerance):
    scale = expected.abs().max().clamp_min(1e-30)
    assert (found - expected).abs().max() <= tolerance * scale


@pytest.mark.parametrize(
    ("dtype", "tolerances"), [(torch.float64, (1e-12, 1e-12)), (torch.float32, (1e-6, 1e-5))]
)
@pytest.mark.parametrize("case", ALL, ids=IDS)
def test_layer_agrees_with_the_equations(case, dtype, tolerances, arithmetic):
    args = arguments(*case, dtype=dtype)
    outputs, grads = gradients(run_layer, args)
    expected, expected_grads = gradients(equations, args)
    for y, z in zip(outputs, expected, strict=True):
        assert_near(y, z, tolerances[0])
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        assert_near(grad, expected_grads[name], tolerances[1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("proj", [False, True])
@pytest.mark.parametrize("hx", [False, True])
def test_gradcheck_and_gradgradcheck(form, proj, hx):
    args = arguments(2, True, proj, form, hx, features=2, hidden=3)
    inputs = leaves(args)

    def function(*_):
        return run_layer(*args)

    # The inputs are perturbed in place, so the closure sees what gradcheck changes.
    assert torch.autograd.gradcheck(function, tuple(inputs.values()))
    assert torch.autograd.gradgradcheck(function, tuple(inputs.values()))


def test_gradcheck_sees_a_wrong_gradient():
    args = arguments(1, True, False, "dense", False)

    def function(data):
        return run_layer(data, *args[1:])[0] + data.detach().sum()

    with pytest.raises(GradcheckError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(function, (args[0],))


def sizes_of(form):
    # An odd hidden size leaves every row of memory a tail, where vector code differs from scalar.
    return {"features": 7, "hidden": 37} if form == "dense" else {"features": 5, "hidden": 16}


@pytest.mark.parametrize(
    "case",
    [c for c in ALL if c[0] == 2],
    ids=[i for c, i in zip(ALL, IDS, strict=True) if c[0] == 2],
)
def test_what_is_frozen_changes_no_bit(case, arithmetic):
    """Every parameter alone frozen, alone trainable, and whole directions, kinds and inputs."""
    options = {"dtype": torch.float32, **sizes_of(case[3])}
    outputs, grads = gradients(run_layer, arguments(*case, **options))
    names = list(grads)
    subsets = [{n} for n in names] + [set(names) - {n} for n in names] + [set()]
    subsets += [{n for n in names if key in n} for key in ("[0]", "[1]", "weight", "bias", "hh")]
    for trainable in subsets:
        args = arguments(*case, **options)
        for name, leaf in leaves(args).items():
            leaf.requires_grad_(name in trainable)
        found, some = gradients(run_layer, args)
        assert some.keys() == trainable
        assert all(torch.equal(y, z) for y, z in zip(found, outputs, strict=True))
        for name in trainable:
            assert torch.equal(some[name], grads[name]), f"{name} with {sorted(trainable)}"


@pytest.mark.parametrize("hidden", [1, 16, 37, 130])
@pytest.mark.parametrize("batch", [1, 2, 9])
def test_grad_mode_changes_no_bit_across_time_blocks(batch, hidden, arithmetic, monkeypatch):
    monkeypatch.setattr(
        "lstm_freeze._recurrence.layer._BLOCK_BYTES", 8 * batch * 4 * hidden * 4 * 3
    )
    data = torch.randn(70, batch, 11)
    weights = [
        Weights(
            *(
                torch.randn(s).div_(hidden**0.5).requires_grad_()
                for s in ((4 * hidden, 11), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,))
            )
        )
        for _ in range(2)
    ]
    args = (data, None, None, None, None, weights)
    expected = run_layer(*args)
    assert expected[0].requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert all(torch.equal(y, z) for y, z in zip(run_layer(*args), expected, strict=True))


def test_a_frozen_layer_keeps_nothing_for_backward():
    args = arguments(2, True, False, "dense", False)
    for leaf in leaves(args).values():
        leaf.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: pytest.fail("saved"), lambda x: x):
        output = run_layer(*args)[0]
    assert output.grad_fn is None


def test_products_are_left_out_for_what_is_frozen():
    def floating_point_operations(trainable):
        args = arguments(2, True, False, "dense", False, features=64, hidden=8)
        for name, leaf in leaves(args).items():
            leaf.requires_grad_(name in trainable)
        outputs = run_layer(*args)
        with torch.profiler.profile(with_flops=True) as profile:
            outputs[0].sum().backward()
        return sum(event.flops for event in profile.key_averages())

    everything = floating_point_operations(set(leaves(arguments(2, True, False, "dense", False))))
    biases = floating_point_operations({"bias_ih[0]", "bias_hh[1]"})
    tokens, hidden, features = 24, 8, 64
    products = 2 * 2 * tokens * 4 * hidden * (2 * features + hidden)  # data, weight_ih, weight_hh
    assert everything - biases >= products


def test_a_frozen_direction_is_not_walked_back(monkeypatch):
    walked = []
    factors = loop_torch._factors
    monkeypatch.setattr(
        loop_torch,
        "_factors",
        lambda gates, *rest: walked.append(len(gates)) or factors(gates, *rest),
    )
    for trainable, expected in (("bias_ih[1]", 1), ("weight_hh[0]", 1), ("data", 2)):
        args = arguments(2, True, False, "dense", False)
        for name, leaf in leaves(args).items():
            leaf.requires_grad_(name == trainable)
        walked.clear()
        gradients(run_layer, args)
        assert walked == [expected]


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("proj", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_layer_with_factors_agrees_with_the_equations(form, proj, dtype):
    args = with_factors(arguments(2, True, proj, form, True, dtype))
    outputs, grads = gradients(run_layer, args)
    expected, references = gradients(equations, args)
    assert {name for name in grads if "down" in name or "up" in name} == {
        f"{side}_{kind}[{d}]"
        for side in ("down", "up")
        for kind in ("ih", "hh", *(["hr"] if proj else []))
        for d in (0, 1)
    }
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for found, reference in zip(outputs, expected, strict=True):
        assert_near(found, reference, tolerance)
    for name, grad in grads.items():
        assert_near(grad, references[name], tolerance)


def with_factors(args, rank=2):
    """The same with factors of each weight."""
    gen = torch.Generator().manual_seed(2)

    def factors(weight):
        shapes = ((rank, weight.shape[1]), (weight.shape[0], rank))
        drawn = (torch.randn(s, generator=gen, dtype=weight.dtype) * 0.3 for s in shapes)
        return [factor.requires_grad_() for factor in drawn]

    weights = []
    for w in args[5]:
        pairs = [[None] * 2 if x is None else factors(x) for x in (w[0], w[1], w[4])]
        weights.append(Weights(*w[:5], *(factor for pair in pairs for factor in pair)))
    return [*args[:5], weights]


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_and_gradgradcheck_of_factors(form):
    args = with_factors(arguments(1, True, True, form, True, features=2, hidden=3), rank=1)
    inputs = leaves(args)
    down, up = inputs["down_hh[0]"], inputs["up_hr[0]"]

    def function(*_):
        return run_layer(*args)

    assert torch.autograd.gradcheck(function, (down, up))
    assert torch.autograd.gradgradcheck(function, (down, up))


def test_a_weight_in_two_places_gets_both_gradients_twice_over():
    w_ih, w_hh = (torch.randn(8, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    data = torch.randn(3, 2, 2, dtype=torch.float64)
    tied = [Weights(w_ih, w_hh), Weights(w_ih, w_hh)]

    def function(*_):
        return run_layer(data, None, None, None, None, tied)[0]

    assert torch.autograd.gradcheck(function, (w_ih, w_hh))
    assert torch.autograd.gradgradcheck(function, (w_ih, w_hh))


def test_operator_registrations_hold():
    args = arguments(2, True, True, "packed", True)
    flat = [*args[:5], *(w for weights in args[5] for w in weights), True]
    torch.library.opcheck(torch.ops.lstm_freeze.layer.default, tuple(flat))
    adapted = with_factors(args)
    flat = [*adapted[:5], *(w for weights in adapted[5] for w in weights), True]
    torch.library.opcheck(torch.ops.lstm_freeze.layer.default, tuple(flat))
    torch.library.opcheck(torch.ops.lstm_freeze.reverse_rows.default, (args[0].detach(), args[1]))


@pytest.mark.parametrize("form", FORMS)
def test_memory_and_references_do_not_grow(form):
    import gc
    import weakref

    args = arguments(2, True, False, form, False)
    output = run_layer(*args)[0]
    watched = weakref.ref(output.grad_fn)
    gc.disable()
    try:
        output.sum().backward()
        del output
        assert watched() is None
    finally:
        gc.enable()
