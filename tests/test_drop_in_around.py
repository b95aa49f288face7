"""What stands around an LSTM in a training script works with BiLSTM as with nn.LSTM."""

import copy
import threading
from collections.abc import Callable
from functools import partial

import pytest
import torch
from _oracle import (
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
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lstm_freeze import BiLSTM
from lstm_freeze._recurrence.native import small

WIDE = {"num_layers": 2, "bidirectional": True}
CASE = Case(2, True, True, False, 0, torch.float32, "dense", False)
FORMS = pytest.mark.parametrize("form", ["dense", "unbatched", "packed", "packed_unsorted"])
X = torch.linspace(-1, 1, T * B * I).sin().reshape(T, B, I)


# --- dropout


def seeded(module: nn.Module, *args: object, seed: int = 5):
    """The results of one call under a seed, and the generator's state after it."""
    torch.manual_seed(seed)
    return results(module(*args)), torch.get_rng_state()


@FORMS
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("proj_size", [0, P])
@pytest.mark.parametrize(("num_layers", "p"), [(2, 0.5), (3, 0.2), (2, 1.0), (2, 0.0), (3, 0.999)])
def test_dropout_has_nn_lstms_masks(num_layers, p, proj_size, batch_first, form: str):
    case = CASE._replace(
        num_layers=num_layers, proj_size=proj_size, batch_first=batch_first, form=form, hx=True
    )
    lstm, bilstm = pair(dropout=p, **case.options)
    call = example(case)
    expected, theirs = seeded(lstm, *call.args)
    found, own = seeded(bilstm, *call.args)
    assert_close(found, expected, 1e-6)
    assert torch.equal(own, theirs)
    torch.manual_seed(6)
    expected = gradients(lstm, call)
    torch.manual_seed(6)
    assert_close(gradients(bilstm, call), expected, 1e-5)


def test_dropout_acts_in_training_only_and_between_layers_only():
    _, bilstm = pair(dropout=0.5, **WIDE)
    _, without = pair(**WIDE)
    first, _ = seeded(bilstm, X)
    again, _ = seeded(bilstm, X)
    other, _ = seeded(bilstm, X, seed=6)
    assert_same_bits(again, first)
    assert not torch.equal(other["output"], first["output"])
    assert first["output"].count_nonzero() == first["output"].numel()
    # the first layer's final states are below the dropout
    assert_same_bits({"h": first["h_n"][:2]}, {"h": results(without(X))["h_n"][:2]})
    assert_same_bits(results(bilstm.eval()(X)), results(without(X)))
    _, before = seeded(without, X)
    torch.manual_seed(5)
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_of_one_lets_nothing_through():
    lstm, bilstm = pair(dropout=1.0, **WIDE)
    assert_close(results(bilstm(X)), results(lstm(X)), 1e-6)
    assert_same_bits(results(bilstm(X)), results(bilstm(X)))
    grads = gradients(bilstm, example(CASE), uses=("output",))
    assert not grads["weight_hh_l0"].any()
    assert grads["weight_hh_l1"].any()


def test_dropout_is_read_at_each_call():
    lstm, bilstm = pair(**WIDE)
    for p in (0.5, 0.0, 0.9):
        lstm.dropout = bilstm.dropout = p
        assert_close(seeded(bilstm, X)[0], seeded(lstm, X)[0], 1e-6)


# --- hooks


def watched(module: nn.Module, call) -> list[tuple[str, object]]:
    """Everything the hooks of one forward and backward saw, as shapes."""

    def shapes(value):
        if isinstance(value, torch.Tensor):
            return tuple(value.shape)
        return tuple(map(shapes, value)) if isinstance(value, tuple | list) else value

    log = []
    module.register_forward_pre_hook(lambda m, args: log.append(("pre", shapes(args))))
    module.register_forward_pre_hook(
        lambda m, args, kwargs: log.append(("pre kw", shapes(args), sorted(kwargs))),
        with_kwargs=True,
    )
    module.register_forward_hook(
        lambda m, args, output: log.append(("forward", shapes(args), shapes(output)))
    )
    module.register_full_backward_pre_hook(lambda m, out: log.append(("backward pre", shapes(out))))
    module.register_full_backward_hook(
        lambda m, inp, out: log.append(("backward", shapes(inp), shapes(out)))
    )
    for parameter in module.parameters():
        parameter.register_hook(lambda g: log.append(("gradient", shapes(g))))
    output, _ = module(*call.args)
    (output.data if isinstance(output, tuple) else output).sum().backward()
    gradient_log = [entry for entry in log if entry[0] == "gradient"]
    return [entry for entry in log if entry[0] != "gradient"] + sorted(gradient_log)


@FORMS
@pytest.mark.parametrize("hx", [False, True])
def test_hooks_see_what_nn_lstms_see(hx: bool, form: str):
    case = CASE._replace(hx=hx, form=form)
    lstm, bilstm = pair(**case.options)
    call = example(case)
    assert watched(bilstm, call) == watched(lstm, call)


def test_backward_hooks_get_the_same_numbers_and_may_replace_them():
    found = []
    for module in pair(**WIDE):
        seen = {}

        def keep(_, inp, out, seen=seen):
            seen.update({"input": inp[0], "output": out[0]})
            return (2 * inp[0],)

        module.register_full_backward_hook(keep)
        x = X.clone().requires_grad_()
        weighted_sum({"output": module(x)[0]}).backward()
        found.append({**seen, "twice": x.grad})
        assert torch.equal(x.grad, 2 * seen["input"])
    assert_close(found[1], found[0], 1e-5)


def test_forward_hooks_may_replace_arguments_and_results():
    found = []
    for module in pair(**WIDE):
        module.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
        module.register_forward_hook(lambda m, args, output: (output[0] + 1, output[1]))
        found.append(results(module(X)))
    assert_close(found[1], found[0], 1e-6)


def test_hooks_on_results_and_accumulated_gradients():
    found = []
    for module in pair(**WIDE):
        seen = {}
        module.weight_hh_l0.register_post_accumulate_grad_hook(
            lambda p, seen=seen: seen.update(accumulated=p.grad.clone())
        )
        output, (h_n, _) = module(X)
        output.register_hook(lambda g, seen=seen: seen.update(output=g))
        h_n.retain_grad()
        weighted_sum({"output": output, "h_n": h_n}).backward()
        found.append({"output": seen["output"], "at": seen["accumulated"], "h": h_n.grad})
    assert_close(found[1], found[0], 1e-5)


# --- torch.func and forward-mode AD


def loss_of(module: nn.Module, parameters: dict[str, torch.Tensor], x: torch.Tensor):
    return weighted_sum(results(functional_call(module, parameters, (x,))))


def named(pytree) -> dict[str, torch.Tensor]:
    """The tensors of a nested result, by position."""
    return {str(i): leaf for i, leaf in enumerate(torch.utils._pytree.tree_leaves(pytree))}


def tangents(module, x):
    return jvp(lambda p, x: loss_of(module, p, x), *double_tangent(module, x))


def double_tangent(module, x):
    primals = ({k: v.detach() for k, v in module.named_parameters()}, x)
    return primals, torch.utils._pytree.tree_map(torch.cos, primals)


def duals(module, x):
    with torch.autograd.forward_ad.dual_level():
        returned = module(torch.autograd.forward_ad.make_dual(x, x.cos()))
        unpacked = [
            torch.autograd.forward_ad.unpack_dual(t).tangent for t in results(returned).values()
        ]
        return [tangent.clone() for tangent in unpacked]


def batched_grads(module, x):
    x = x.clone().requires_grad_()
    output = module(x)[0]
    seeds = torch.eye(3)[..., None, None, None].to(x) * torch.ones_like(output)
    return torch.autograd.grad(output, x, seeds[:, 0], is_grads_batched=True)


TRANSFORMS = {
    "functional_call": lambda m, x: results(
        functional_call(m, {k: v * 2 for k, v in m.named_parameters()}, (x,))
    ),
    "functional_call of some": lambda m, x: results(
        functional_call(m, {"weight_hh_l1": m.weight_hh_l1.detach() * 2}, (x,))
    ),
    "grad of parameters": lambda m, x: grad(partial(loss_of, m))(dict(m.named_parameters()), x),
    "grad of input": lambda m, x: grad(partial(loss_of, m), argnums=1)(
        dict(m.named_parameters()), x
    ),
    "grad of grad": lambda m, x: grad(lambda y: grad(lambda z: m(z)[0].sum())(y).pow(2).sum())(x),
    "vjp": lambda m, x: vjp(lambda y: m(y)[0], x)[1](torch.ones_like(m(x)[0])),
    "jacrev": lambda m, x: jacrev(lambda y: m(y)[0].sum((0, 1)))(x),
    "autograd.functional.jacobian": lambda m, x: torch.autograd.functional.jacobian(
        lambda y: m(y)[0].sum(0), x
    ),
    "autograd.functional.jacobian, vectorized": lambda m, x: torch.autograd.functional.jacobian(
        lambda y: m(y)[0].sum(0), x, vectorize=True
    ),
    "autograd.functional.jvp": lambda m, x: torch.autograd.functional.jvp(
        lambda y: m(y)[0], x, x.cos()
    ),
    "autograd.functional.hvp": lambda m, x: torch.autograd.functional.hvp(
        lambda y: m(y)[0].sum(), x, x.cos()
    ),
    "is_grads_batched": batched_grads,
}
FORWARD_MODE = {
    "jvp": tangents,
    "dual numbers": duals,
    "jacfwd": lambda m, x: jacfwd(lambda y: m(y)[0].sum((0, 1)))(x),
    "hessian": lambda m, x: hessian(lambda y: m(y)[0].sum())(x[:2]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_function_transforms(transform, dtype: torch.dtype):
    lstm, bilstm = pair(dtype=dtype, **WIDE)
    x = X.to(dtype)
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-11}[dtype]
    assert_close(named(transform(bilstm, x)), named(transform(lstm, x)), tolerance)


# torch scripts its own decompositions when forward mode is first used
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("proj_size", [0, P])
@pytest.mark.parametrize("transform", FORWARD_MODE.values(), ids=FORWARD_MODE)
def test_forward_mode(transform, proj_size: int):
    """In float64: nn.LSTM on CPU has no forward-mode AD in float32."""
    lstm, bilstm = pair(dtype=torch.float64, proj_size=proj_size, **WIDE)
    x = X.double()
    assert_close(named(transform(bilstm, x)), named(transform(lstm, x)), 1e-11)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_over_gradients():
    lstm, bilstm = pair(**WIDE)
    xs = torch.stack([X, X + 1, X.flip(0)])

    def loss(module, parameters, x):
        return functional_call(module, parameters, (x,))[0].cos().sum()

    for module in (lstm, bilstm):  # nn.LSTM can do this in float32 only
        parameters = dict(module.named_parameters())
        per_sample = vmap(grad(partial(loss, module), argnums=1), in_dims=(None, 0))
        for x, found in zip(xs, per_sample(parameters, xs), strict=True):
            alone = grad(partial(loss, lstm), argnums=1)(parameters, x)
            assert_close({"x": found}, {"x": alone}, 1e-5)


@pytest.mark.parametrize("strict", [False, True])
def test_functional_call_names_wrong_parameters(strict: bool):
    for module in pair():
        with pytest.raises(RuntimeError, match="nope"):
            functional_call(module, {"nope": torch.zeros(1)}, (X,), strict=True)
    state = {name: value.detach() for name, value in module.named_parameters()}
    assert functional_call(module, state, (X,), strict=strict)[0].shape == (T, B, H)


def test_functional_call_leaves_the_module_as_it_was():
    _, bilstm = pair(**WIDE)
    before, parameters = results(bilstm(X)), list(bilstm.parameters())
    functional_call(bilstm, {k: v * 0 for k, v in bilstm.named_parameters()}, (X,))
    assert all(a is b for a, b in zip(bilstm.parameters(), parameters, strict=True))
    assert_same_bits(results(bilstm(X)), before)


def test_checkpointing_recomputes():
    lstm, bilstm = pair(dropout=0.5, **WIDE)
    for use_reentrant in (False, True):
        found = []
        for module in (lstm, bilstm):
            module.zero_grad()
            x = X.clone().requires_grad_()
            torch.manual_seed(0)
            output, _ = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=use_reentrant)
            output.sum().backward()
            found.append({"x": x.grad, **{k: p.grad for k, p in module.named_parameters()}})
        assert_close(found[1], found[0], 1e-5)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_detection_and_deterministic_algorithms():
    _, bilstm = pair(**WIDE)
    call = example(CASE)
    expected = gradients(bilstm, call)
    with torch.autograd.detect_anomaly():
        assert_same_bits(gradients(bilstm, call), expected)
    torch.use_deterministic_algorithms(True)
    try:
        assert_same_bits(gradients(bilstm, call), expected)
    finally:
        torch.use_deterministic_algorithms(False)


# --- parameters that are not plain


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    def right_inverse(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2


def weight_norm(module: nn.Module) -> None:
    for name in ("weight_hh_l0", "weight_ih_l1_reverse"):
        parametrizations.weight_norm(module, name)


def old_weight_norm(module: nn.Module) -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(module, "weight_hh_l0")


def doubled(module: nn.Module) -> None:
    for name in ("weight_hh_l0", "bias_ih_l1"):
        parametrize.register_parametrization(module, name, Doubled())


def old_spectral_norm(module: nn.Module) -> None:
    torch.manual_seed(0)
    nn.utils.spectral_norm(module, "weight_hh_l0")


def spectral_norm(module: nn.Module) -> None:
    torch.manual_seed(0)
    parametrizations.spectral_norm(module, "weight_hh_l0")


def orthogonal(module: nn.Module) -> None:
    torch.manual_seed(0)
    parametrizations.orthogonal(module, "weight_hh_l0")


def pruned(module: nn.Module) -> None:
    prune.l1_unstructured(module, "weight_hh_l0", 0.5)
    prune.l1_unstructured(module, "bias_hh_l1_reverse", 0.25)


def tied_directions(module: nn.Module) -> None:
    module.weight_hh_l0_reverse = module.weight_hh_l0
    module.bias_ih_l1 = module.bias_hh_l1


def tied_layers(module: nn.Module) -> None:
    module.weight_hh_l1 = module.weight_hh_l0


def a_plain_tensor(module: nn.Module) -> None:
    weight = module.weight_hh_l0.detach() * 2
    del module.weight_hh_l0
    module.weight_hh_l0 = weight


CHANGES = {
    change.__name__.replace("_", " "): change
    for change in (
        *(weight_norm, old_weight_norm, doubled, old_spectral_norm, spectral_norm, orthogonal),
        *(pruned, tied_directions, tied_layers, a_plain_tensor),
    )
}


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_parameters(change, used: bool):
    lstm, bilstm = pair(**WIDE)
    for module in (lstm, bilstm):
        if used:
            module(X)
        torch.manual_seed(0)
        change(module)
    assert [name for name, _ in bilstm.named_parameters()] == [
        name for name, _ in lstm.named_parameters()
    ]
    assert_same_bits(bilstm.state_dict(), lstm.state_dict())
    assert_agree(lstm, bilstm, example(CASE))
    for module in (lstm, bilstm):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(X)[0].sum().backward()
            optimizer.step()
    assert_close(results(bilstm(X)), results(lstm(X)), 1e-5)


def test_parametrizations_can_be_cached_frozen_and_removed():
    lstm, bilstm = pair(**WIDE)
    for module in (lstm, bilstm):
        weight_norm(module)
        doubled(module)
        with parametrize.cached():
            module(X)
        module.parametrizations.weight_hh_l0.original1.requires_grad_(False)
    assert_agree(lstm, bilstm, example(CASE))
    expected = results(bilstm(X))
    for name in list(bilstm.parametrizations):
        parametrize.remove_parametrizations(bilstm, name)
    assert type(bilstm) is BiLSTM
    assert_close(results(bilstm(X)), expected, 1e-6)


def test_pruning_can_be_made_permanent():
    _, bilstm = pair(**WIDE)
    pruned(bilstm)
    expected = results(bilstm(X))
    zeros = bilstm.weight_hh_l0 == 0
    bilstm(X)[0].sum().backward()
    assert not bilstm.weight_hh_l0_orig.grad[zeros].any()
    assert bilstm.weight_hh_l0_orig.grad[~zeros].all()
    prune.remove(bilstm, "weight_hh_l0")
    prune.remove(bilstm, "bias_hh_l1_reverse")
    assert_same_bits(results(bilstm(X)), expected)


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_a_parametrized_module_can_be_copied(used: bool):
    _, bilstm = pair(**WIDE)  # alone: nn.LSTM cannot once it was used
    weight_norm(bilstm)
    if used:
        bilstm(X)
    twin = copy.deepcopy(bilstm)
    assert_same_bits(results(twin(X)), results(bilstm(X)))
    with torch.no_grad():
        twin.parametrizations.weight_hh_l0.original0.mul_(2)
    assert not torch.equal(twin(X)[0], bilstm(X)[0])


WRITES = {
    "in place": lambda m: m.weight_hh_l0.mul_(2),
    "through data": lambda m: m.weight_hh_l0.data.mul_(2),
    "data replaced": lambda m: setattr(m.weight_hh_l0, "data", m.weight_hh_l0.data * 2),
    "parameter replaced": lambda m: setattr(
        m, "weight_hh_l0", nn.Parameter(m.weight_hh_l0.detach() * 2)
    ),
    "registered again": lambda m: m.register_parameter(
        "weight_hh_l0", nn.Parameter(m.weight_hh_l0.detach() * 2)
    ),
    "put into _parameters": lambda m: m._parameters.__setitem__(
        "weight_hh_l0", nn.Parameter(m.weight_hh_l0.detach() * 2)
    ),
    "vector_to_parameters": lambda m: nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(m.parameters()) * 2, m.parameters()
    ),
    "load_state_dict": lambda m: m.load_state_dict({k: v * 2 for k, v in m.state_dict().items()}),
    "load_state_dict(assign=True)": lambda m: m.load_state_dict(
        {k: v * 2 for k, v in m.state_dict().items()}, assign=True
    ),
    "numpy": lambda m: m.weight_hh_l0.detach().numpy().__imul__(2),
    "init": lambda m: nn.init.constant_(m.weight_hh_l0, 0.1),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_written_weight_counts_at_the_next_forward(write):
    case = CASE._replace(dtype=torch.float64)
    _, bilstm = pair(**case.options)
    before = bilstm(X.double())[0]
    with torch.no_grad():
        write(bilstm)
    fresh = nn.LSTM(I, H, dtype=torch.float64, **WIDE)
    fresh.load_state_dict(bilstm.state_dict())
    assert not torch.allclose(bilstm(X.double())[0], before)
    assert_agree(fresh, bilstm, example(case))


# --- optimizers, averages, threads, processes


@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2),
        partial(torch.optim.AdamW, lr=1e-2),
        partial(torch.optim.AdamW, lr=1e-2, fused=True),
        partial(torch.optim.Adam, lr=1e-2, foreach=True),
        partial(torch.optim.LBFGS, lr=0.1, max_iter=3),
    ],
    ids=["SGD", "AdamW", "AdamW fused", "Adam foreach", "LBFGS"],
)
def test_training_takes_the_same_path(make):
    lstm, bilstm = pair(dtype=torch.float64, **WIDE)
    start = lstm.weight_hh_l0.detach().clone()
    for module in (lstm, bilstm):
        optimizer = make(module.parameters())

        def closure(module=module, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (module(X.double())[0] - X.double().sum(-1, keepdim=True)).pow(2).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.1)
            return loss

        for _ in range(5):
            optimizer.step(closure)
    assert_close(bilstm.state_dict(), lstm.state_dict(), 1e-7)
    assert not torch.allclose(bilstm.weight_hh_l0, start)


@pytest.mark.parametrize(
    "options", [{}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}], ids=["mean", "moving"]
)
def test_averaged_models(options):
    lstm, bilstm = pair(dropout=0.5, **WIDE)
    found = []
    for module in (lstm, bilstm):
        averaged = AveragedModel(module, **options)
        for factor in (1.0, 2.0, -0.5):
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(factor)
            averaged.update_parameters(module)
        found.append(results(averaged.eval()(X)))
    assert_close(found[1], found[0], 1e-6)
    assert not torch.allclose(found[1]["output"], bilstm.eval()(X)[0])


def test_share_memory():
    _, bilstm = pair(**WIDE)
    expected = results(bilstm(X))
    assert bilstm.share_memory() is bilstm
    assert all(parameter.is_shared() for parameter in bilstm.parameters())
    assert_same_bits(results(bilstm(X)), expected)


def test_threads_do_not_disturb_each_other():
    _, bilstm = pair(**WIDE)
    calls = [example(CASE, seed) for seed in range(6)]
    expected = [gradients(bilstm, call) for call in calls]
    found = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def work(i: int) -> None:
        start.wait()
        for _ in range(10):
            found[i] = gradients(bilstm, calls[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own, alone in zip(found, expected, strict=True):
        assert own is not None
        assert_same_bits(own, alone)


def test_data_parallel_on_cpu_is_transparent():
    _, bilstm = pair(**WIDE)
    assert_same_bits(results(nn.DataParallel(bilstm)(X)), results(bilstm(X)))


def test_the_default_of_bidirectional_is_the_only_other_default():
    torch.manual_seed(0)
    lstm = nn.LSTM(I, H, bidirectional=True)
    torch.manual_seed(0)
    bilstm = BiLSTM(I, H)
    assert bilstm.bidirectional
    assert_agree(lstm, bilstm, example(CASE._replace(num_layers=1)))


def operators_run(function: Callable[[], object]) -> set[str]:
    """The names of all operators that run, those inside other operators included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return {event.name for event in profile.events()}


def test_the_oracle_is_not_used(monkeypatch: pytest.MonkeyPatch):
    """Were BiLSTM to call nn.LSTM's kernels, comparing it with nn.LSTM would prove nothing."""

    def refuse(*args, **kwargs):
        raise AssertionError("a vendor's RNN was called")

    def vendors(names):
        aten = [name for name in names if name.startswith(("aten::", "mkldnn::", "quantized::"))]
        return [name for name in aten if "rnn" in name or "lstm" in name]

    lstm, bilstm = pair(**WIDE)
    assert vendors(operators_run(lambda: lstm(X)))  # the profiler can see the oracle
    for owner in (torch, torch._VF):
        for name in ("lstm", "lstm_cell"):
            monkeypatch.setattr(owner, name, refuse)
    monkeypatch.setattr(nn.LSTMCell, "forward", refuse)
    monkeypatch.setattr(nn.LSTM, "forward", refuse)
    monkeypatch.setattr(small, "_MOST_NUMBERS", 0)  # in small layers no operator of torch is run
    for form in ("dense", "packed_unsorted"):
        names = operators_run(
            lambda form=form: gradients(bilstm, example(CASE._replace(form=form)))
        )
        assert any("mm" in name for name in names)
        assert not vendors(names)
