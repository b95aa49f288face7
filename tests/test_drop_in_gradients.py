"""BiLSTM's gradients are nn.LSTM's; what is frozen costs nothing and changes nothing."""

import gc
import itertools
import resource
import sys
import weakref

import pytest
import torch
from _oracle import (
    GRADIENT_TOLERANCE,
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
    error_of,
    example,
    gradients,
    pair,
    results,
    weighted_sum,
)
from torch import nn

from lstm_freeze import BiLSTM

pytestmark = pytest.mark.usefixtures("with_and_without_small_layers")

DENSE = Case(2, True, True, False, P, torch.float32, "dense", True)
FORMS = pytest.mark.parametrize("form", ["dense", "unbatched", "packed", "packed_unsorted"])
BOTH_SIZES = pytest.mark.parametrize("proj_size", [0, P], ids=["P0", f"P{P}"])


# --- which result is used


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@FORMS
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(
    "uses", [("output",), ("h_n",), ("c_n",), ("output", "c_n"), ("h_n", "c_n")], ids="+".join
)
def test_only_some_results_are_used(uses, num_layers: int, form: str, dtype: torch.dtype):
    case = DENSE._replace(num_layers=num_layers, form=form, dtype=dtype)
    assert_agree(*pair(**case.options), example(case), uses)


@pytest.mark.parametrize("name", ["output", "h_n", "c_n"])
@pytest.mark.parametrize("proj_size", [0, P])
def test_only_one_element_is_used(name: str, proj_size: int):
    case = DENSE._replace(proj_size=proj_size)
    lstm, bilstm = pair(**case.options)
    call = example(case)
    shape = results(lstm(*call.args))[name].shape
    for index in itertools.product(*((0, n - 1) for n in shape)):
        found = []
        for module in (lstm, bilstm):
            wanted = {**dict(module.named_parameters()), **call.leaves}
            one = results(module(*call.args))[name][index]
            grads = torch.autograd.grad(one, list(wanted.values()), allow_unused=True)
            found.append(
                {
                    key: torch.zeros_like(wanted[key]) if grad is None else grad
                    for key, grad in zip(wanted, grads, strict=True)
                }
            )
        assert_close(found[1], found[0], 1e-5)


# --- how backward is called


@FORMS
def test_eval_mode_backward(form: str):
    case = DENSE._replace(form=form)
    lstm, bilstm = pair(dropout=0.5, **case.options)
    assert_agree(lstm.eval(), bilstm.eval(), example(case))


@FORMS
def test_retain_graph_gives_the_same_bits_again(form: str):
    case = DENSE._replace(form=form)
    _, bilstm = pair(**case.options)
    call = example(case)
    loss = weighted_sum(results(bilstm(*call.args)))
    wanted = [*bilstm.parameters(), *call.leaves.values()]
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    second = torch.autograd.grad(loss, wanted)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_backward_twice_without_retain_graph_is_told_alike():
    found = []
    for module in pair(**DENSE.options):
        loss = weighted_sum(results(module(*example(DENSE).args)))
        loss.backward()
        found.append(error_of(loss.backward))
    assert type(found[0]) is type(found[1]) is RuntimeError
    assert str(found[0]) == str(found[1])
    assert "backward through the graph a second time" in str(found[1])


@FORMS
def test_gradients_accumulate(form: str):
    case = DENSE._replace(form=form)
    lstm, bilstm = pair(**case.options)
    for seed in (1, 2, 3):
        for module in (lstm, bilstm):
            weighted_sum(results(module(*example(case, seed).args))).backward()
    expected = {name: parameter.grad for name, parameter in lstm.named_parameters()}
    found = {name: parameter.grad for name, parameter in bilstm.named_parameters()}
    assert_close(found, expected, 1e-5)


def test_accumulation_into_a_kept_grad_is_in_place():
    _, bilstm = pair(**DENSE.options)
    call = example(DENSE)
    weighted_sum(results(bilstm(*call.args))).backward()
    kept = [parameter.grad for parameter in bilstm.parameters()]
    once = [gradient.clone() for gradient in kept]
    bilstm.zero_grad(set_to_none=False)
    weighted_sum(results(bilstm(*call.args))).backward()
    for parameter, before, value in zip(bilstm.parameters(), kept, once, strict=True):
        assert parameter.grad is before
        assert torch.equal(before, value)


def test_no_two_gradients_share_memory():
    _, bilstm = pair(**DENSE.options)
    call = example(DENSE)
    weighted_sum(results(bilstm(*call.args))).backward()
    tensors = [*bilstm.parameters(), *call.leaves.values()]
    before = [tensor.grad.clone() for tensor in tensors]
    for i, tensor in enumerate(tensors):
        tensor.grad.fill_(float(i))
    for i, (tensor, value) in enumerate(zip(tensors, before, strict=True)):
        assert (tensor.grad == i).all()
        assert tensor.grad.shape == value.shape


def test_two_forwards_before_one_backward():
    lstm, bilstm = pair(**DENSE.options)
    found = []
    for module in (lstm, bilstm):
        losses = [weighted_sum(results(module(*example(DENSE, seed).args))) for seed in (1, 2)]
        parameters = dict(module.named_parameters())
        grads = torch.autograd.grad(losses[0] * losses[1], list(parameters.values()))
        found.append(dict(zip(parameters, grads, strict=True)))
    assert_close(found[1], found[0], 1e-5)


@pytest.mark.parametrize("result", ["output", "h_n", "c_n"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("form", ["dense", "unbatched", "packed"])
def test_a_result_changed_in_place_does_not_spoil_backward(form: str, num_layers: int, result: str):
    case = DENSE._replace(form=form, num_layers=num_layers, proj_size=0)
    lstm, bilstm = pair(**case.options)
    found = []
    for module in (lstm, bilstm):
        call = example(case)
        returned = results(module(*call.args))
        loss = weighted_sum({name: tensor * 1 for name, tensor in returned.items()})
        returned[result].mul_(0.5)
        grads = torch.autograd.grad(loss, list(module.parameters()))
        found.append(dict(zip(dict(module.named_parameters()), grads, strict=True)))
    assert_close(found[1], found[0], 1e-5)


# --- second derivatives


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", ["dense", "packed_unsorted"])
@BOTH_SIZES
def test_second_derivatives(proj_size: int, form: str, dtype: torch.dtype):
    case = DENSE._replace(proj_size=proj_size, form=form, dtype=dtype)
    lstm, bilstm = pair(**case.options)
    found = []
    for module in (lstm, bilstm):
        call = example(case)
        wanted = {**dict(module.named_parameters()), **call.leaves}
        first = gradients(module, call, create_graph=True)
        loss = weighted_sum(first, seed=3)
        second = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        found.append(dict(zip(wanted, second, strict=True)))
    for name, truth in found[0].items():  # an unused leaf may have None or zeros
        if found[1][name] is None or truth is None:
            assert all(grads[name] is None or not grads[name].any() for grads in found), name
            del found[1][name]
    expected = {name: found[0][name] for name in found[1]}
    assert_close(found[1], expected, 10 * GRADIENT_TOLERANCE[dtype])


def test_gradient_penalty_trains_the_parameters():
    found = []
    for module in pair(**DENSE.options):
        call = example(DENSE)
        output, _ = module(*call.args)
        (gradient,) = torch.autograd.grad(output.sum(), call.leaves["input"], create_graph=True)
        (output.sum() + (gradient.norm() - 1) ** 2).backward()
        found.append({name: parameter.grad for name, parameter in module.named_parameters()})
    assert_close(found[1], found[0], 1e-4)


def as_function(bilstm: nn.Module, call):
    """All leaves and parameters as arguments, all results as outputs: what gradcheck wants."""
    names = [name for name, _ in bilstm.named_parameters()]

    def function(*tensors: torch.Tensor):
        parameters = dict(zip(names, tensors, strict=False))
        leaves = dict(zip(call.leaves, tensors[len(names) :], strict=True))
        args = type(call)(leaves, call.form).args
        returned = torch.func.functional_call(bilstm, parameters, args)
        return tuple(results(returned).values())

    return function, [*bilstm.parameters(), *call.leaves.values()]


SMALL = [
    pytest.param(Case(layers, two, bias, False, proj, torch.float64, form, True), id=name)
    for name, layers, two, bias, proj, form in [
        ("one direction", 1, False, True, 0, "dense"),
        ("two directions", 1, True, True, 0, "dense"),
        ("projected", 1, True, False, 1, "dense"),
        ("two layers", 2, True, True, 0, "dense"),
        ("packed", 1, True, True, 0, "packed_unsorted"),
        ("packed projected", 2, False, True, 1, "packed"),
    ]
]


def small(case: Case):
    _, bilstm = pair(2, 2, **{**case.options, "batch_first": False})
    call = example(case, batch=2 if case.form == "dense" else B)
    leaves = {}
    for name, leaf in call.leaves.items():
        if name.startswith("input"):
            leaf = leaf[:3, ..., :2]
        elif leaf.size(-1) > 2:
            leaf = leaf[..., :2]
        elif case.proj_size:
            leaf = leaf[..., : case.proj_size]
        leaves[name] = leaf.detach().requires_grad_()
    return as_function(bilstm, type(call)(leaves, call.form))


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("case", SMALL)
def test_gradcheck_of_random_directions(case: Case, check):
    assert check(*small(case), fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("case", SMALL)
def test_gradcheck_of_every_element(case: Case, check):
    assert check(*small(case))


# --- frozen parts

LAYERS, DIRECTIONS = (0, 1), ("", "_reverse")
KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def subsets(values):
    """All subsets but the empty one."""
    sizes = range(1, len(values) + 1)
    return [chosen for n in sizes for chosen in itertools.combinations(values, n)]


def assert_frozen_subset(bilstm, call, frozen, forward, backward):
    """With these frozen: no gradient for them, every other bit as it was."""
    tensors = {**dict(bilstm.named_parameters()), **call.leaves}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name not in frozen)
        tensor.grad = None
    returned = results(bilstm(*call.args))
    assert_same_bits(returned, forward)
    weighted_sum(returned).backward()
    expected = {name: None if name in frozen else backward[name] for name in tensors}
    assert_same_bits({name: tensor.grad for name, tensor in tensors.items()}, expected)


@pytest.mark.parametrize("form", ["dense", pytest.param("packed_unsorted", marks=pytest.mark.slow)])
@pytest.mark.parametrize("directions", subsets(DIRECTIONS), ids=str)
@pytest.mark.parametrize("layers", subsets(LAYERS), ids=str)
def test_every_frozen_subset_by_layer_direction_and_kind(layers, directions, form: str):
    case = DENSE._replace(form=form)
    _, bilstm = pair(**case.options)
    call = example(case)
    forward, backward = results(bilstm(*call.args)), gradients(bilstm, call)
    for kinds in subsets(KINDS):
        places = itertools.product(kinds, layers, directions)
        frozen = {f"{kind}_l{layer}{reverse}" for kind, layer, reverse in places}
        assert_frozen_subset(bilstm, call, frozen, forward, backward)


@pytest.mark.parametrize("form", ["dense", "packed"])
@pytest.mark.parametrize("proj_size", [0, P])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_all_but_one_frozen(num_layers: int, proj_size: int, form: str):
    case = DENSE._replace(num_layers=num_layers, proj_size=proj_size, form=form)
    _, bilstm = pair(**case.options)
    call = example(case)
    forward, backward = results(bilstm(*call.args)), gradients(bilstm, call)
    names = [name for name, _ in bilstm.named_parameters()]
    for name in names:
        assert_frozen_subset(bilstm, call, set(names) - {name}, forward, backward)
        assert_frozen_subset(bilstm, call, {name}, forward, backward)


@pytest.mark.parametrize("form", ["dense", "packed"])
@pytest.mark.parametrize("frozen", [(), ("_l0",), ("_l1",), ("_reverse",), ("",)], ids=str)
@pytest.mark.parametrize("detached", subsets(["input", "h_0", "c_0"]), ids="+".join)
def test_detached_arguments(detached, frozen, form: str):
    """The input and the initial states may each need no gradient, whatever is frozen."""
    case = DENSE._replace(form=form)
    _, bilstm = pair(**case.options)
    call = example(case)
    forward, backward = results(bilstm(*call.args)), gradients(bilstm, call)
    for name, parameter in bilstm.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))
    for name, leaf in call.leaves.items():
        leaf.requires_grad_(name.partition("[")[0] not in detached)
    trained = {
        name: backward[name]
        for name, tensor in {**dict(bilstm.named_parameters()), **call.leaves}.items()
        if tensor.requires_grad
    }
    returned = results(bilstm(*call.args))
    assert_same_bits(returned, forward)
    if trained:
        assert_same_bits(gradients(bilstm, call), trained)
    else:
        assert not any(tensor.requires_grad for tensor in returned.values())


def test_frozen_gradients_agree_with_nn_lstm():
    case = DENSE._replace(num_layers=3)
    for part in ("_l0", "_l1", "_l2", "_reverse", "bias", "weight_hh", "weight_hr", "_ih_"):
        lstm, bilstm = pair(**case.options)
        for module in (lstm, bilstm):
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(part not in name)
        assert_agree(lstm, bilstm, example(case))


@pytest.mark.parametrize("frozen_first", [False, True])
def test_flags_are_read_at_each_forward(frozen_first: bool):
    _, bilstm = pair(**DENSE.options)
    call = example(DENSE)
    expected = gradients(bilstm, call)
    bilstm.requires_grad_(not frozen_first)
    bilstm(*call.args)
    bilstm.requires_grad_(frozen_first)
    found = gradients(bilstm, call)
    names = set(expected) if frozen_first else set(call.leaves)
    assert_same_bits(found, {name: g for name, g in expected.items() if name in names})


# --- what was changed after the forward


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", ["dense", "unbatched"])
@pytest.mark.parametrize(
    "changed", ["input", "weight_hh_l0", "weight_hh_l1_reverse", "weight_ih_l1"]
)
def test_changes_in_place_before_backward_are_detected(changed: str, form: str, dtype: torch.dtype):
    case = DENSE._replace(form=form, dtype=dtype, proj_size=0)
    found = []
    for module in pair(**case.options):
        call = example(case)
        x = call.leaves["input"] * 1
        loss = weighted_sum(results(module(x, call.hx)))
        with torch.no_grad():
            {**dict(module.named_parameters()), "input": x}[changed].mul_(2)
        found.append(error_of(loss.backward))
    assert type(found[0]) is type(found[1]) is RuntimeError
    for error in found:
        assert "modified by an inplace operation" in str(error)


@pytest.mark.parametrize("changed", ["data", "h_0", "c_0"])
def test_other_changes_in_place_are_detected_or_harmless(changed: str):
    """A stale gradient is never returned: it is right, or backward raises."""
    case = DENSE._replace(form="packed", proj_size=0)
    _, bilstm = pair(**case.options)
    call = example(case)
    expected = gradients(bilstm, call)
    packed = call.input
    hx = tuple(state * 1 for state in call.hx)
    loss = weighted_sum(results(bilstm(packed, hx)))
    target = {"data": packed.data, "h_0": hx[0], "c_0": hx[1]}[changed]
    with torch.no_grad():
        target.mul_(2)
    parameters = dict(bilstm.named_parameters())
    try:
        found = torch.autograd.grad(loss, list(parameters.values()))
    except RuntimeError as error:
        assert "inplace operation" in str(error)  # noqa: PT017
    else:
        assert_close(
            dict(zip(parameters, found, strict=True)),
            {name: expected[name] for name in parameters},
            1e-5,
        )


# --- memory


@pytest.mark.parametrize("form", ["dense", "packed_unsorted"])
@pytest.mark.parametrize("done", ["forward", "backward", "backward that can be differentiated"])
def test_everything_is_freed_without_the_garbage_collector(form: str, done: str):
    case = DENSE._replace(form=form)
    _, bilstm = pair(**case.options)
    gc.collect()
    gc.disable()
    try:
        call = example(case)
        returned = results(bilstm(*call.args))
        watched = [weakref.ref(tensor) for tensor in (*call.leaves.values(), *returned.values())]
        if done != "forward":
            wanted = list(bilstm.parameters())
            loss = weighted_sum(returned)
            grads = torch.autograd.grad(loss, wanted, create_graph=done != "backward")
            watched += [weakref.ref(gradient) for gradient in grads]
            del loss, grads, wanted
        del call, returned
        assert [reference() for reference in watched] == [None] * len(watched)
        watched = weakref.ref(bilstm)
        del bilstm
        assert watched() is None
    finally:
        gc.enable()


def resident_peak() -> int:
    """The process's peak memory in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_memory_is_flat_over_iterations(backward: bool):
    time, batch, hidden = 32, 64, 32
    _, bilstm = pair(hidden, hidden, bidirectional=True)
    x = torch.randn(time, batch, hidden, requires_grad=True)

    def iterate(n: int) -> None:
        for _ in range(n):
            output, _ = bilstm(x)
            if backward:
                output.sum().backward()

    iterate(3)
    gc.collect()
    gc.disable()
    try:
        before = resident_peak()
        iterate(50)  # one iteration's output is half a MiB, what it saves three
        assert resident_peak() - before < 8 * 2**20
    finally:
        gc.enable()


def test_nothing_is_kept_for_backward_when_nothing_trains():
    _, bilstm = pair(**DENSE.options)
    call = example(DENSE)
    packed = []
    hooks = (lambda tensor: packed.append(tensor.shape) or tensor, lambda tensor: tensor)
    bilstm.requires_grad_(False)
    for leaf in call.leaves.values():
        leaf.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        bilstm(*call.args)
    assert packed == []
    bilstm.requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        bilstm(*call.args)
    assert packed != []


def test_saved_tensors_hooks_see_and_restore_everything():
    _, bilstm = pair(**DENSE.options)
    call = example(DENSE)
    expected = gradients(bilstm, call)
    with torch.autograd.graph.save_on_cpu():
        assert_same_bits(gradients(bilstm, call), expected)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t * 2, lambda t: t / 2):
        assert_close(gradients(bilstm, call), expected, 1e-5)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t * 0, lambda t: t):
        wrong = gradients(bilstm, call)
    assert not torch.equal(wrong["weight_hh_l0"], expected["weight_hh_l0"])


def test_long_sequences_do_not_exhaust_the_stack():
    lstm, bilstm = pair(2, 3, dtype=torch.float64)
    x = torch.randn(2000, 1, 2, dtype=torch.float64, requires_grad=True)
    found = []
    for module in (lstm, bilstm):
        output, _ = module(x)
        (gradient,) = torch.autograd.grad(output.sum(), x)
        found.append({"output": output, "input": gradient})
    assert_close(found[1], found[0], OUTPUT_TOLERANCE[torch.float64])


def test_sizes_used_here_are_distinct():
    """So that a mixed-up axis cannot go unnoticed."""
    assert len({T, B, I, H, P}) == 5


# --- where the numbers lie


@pytest.mark.parametrize("lazy", [torch._neg_view, lambda x: torch._efficientzerotensor(x.shape)])
@pytest.mark.parametrize("which", ["input", "h_0", "c_0", "weights", "gradient"])
@pytest.mark.parametrize(("time", "batch", "size"), [(5, 3, 8), (40, 48, 64)])
def test_numbers_that_torch_changes_as_it_reads_them(lazy, which, time, batch, size):
    """As of the imaginary part of a conjugate, whose numbers in memory have the other sign."""
    torch.manual_seed(0)
    bilstm = BiLSTM(size, size)
    tensors = {
        "input": torch.randn(time, batch, size),
        "h_0": torch.randn(2, batch, size),
        "c_0": torch.randn(2, batch, size),
        "gradient": torch.randn(time, batch, 2 * size),
    }
    weights = {name: p.detach() for name, p in bilstm.named_parameters()}
    changed = weights if which == "weights" else tensors
    for name in list(weights) if which == "weights" else [which]:
        changed[name] = lazy(changed[name])

    def run(read):
        given = {name: read(x) for name, x in tensors.items()}
        read_weights = {name: read(w).requires_grad_() for name, w in weights.items()}
        args = given["input"], (given["h_0"], given["c_0"])
        output, states = torch.func.functional_call(bilstm, read_weights, args)
        leaves = list(read_weights.values())
        return [output, *states, *torch.autograd.grad(output, leaves, given["gradient"])]

    expected = run(lambda x: torch.empty(x.shape).copy_(x))
    assert all(map(torch.equal, run(lambda x: x), expected))
