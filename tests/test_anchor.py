"""anchor: closed forms, what it leaves alone, and runs that resume with the same bits."""

import copy
import io

import pytest
import torch
from _models import Tagger, moved, snapshot
from torch import nn

from lstm_freeze import FrozenGuard, anchor, freeze, unfreeze


def vector(*values, dtype=torch.float64):
    """A module with one weight and a loss whose gradient is always `slope`."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.tensor(values, dtype=dtype))
    return module


def step(module, optimizer, slope=1.0):
    optimizer.zero_grad()
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, slope)
    optimizer.step()


def tokens():
    return torch.randint(0, 7, (5, 4))


def train(model, optimizer, steps=3, accumulate=1):
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(accumulate):
            model(tokens()).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("strength", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("rate", [0.1, 0.01])
def test_sgd_closed_form(rate, strength):
    """With a constant gradient g the distance d obeys d' = (d - lr g)(1 - lr s)."""
    module = vector(1.0, -2.0, 0.0)
    start = module.weight.detach().clone()
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    held = anchor(module, optimizer, strength=strength)
    for _ in range(50):
        step(module, optimizer, 0.7)
    q = 1 - rate * strength
    expected = -rate * 0.7 * sum(q**k for k in range(1, 51))
    torch.testing.assert_close(module.weight - start, torch.full((3,), expected).double())
    assert held.distance() == pytest.approx(abs(expected) * 3**0.5)


def test_adamw_closed_form():
    """A constant gradient makes AdamW's own step exactly lr, up to eps; then the pull."""
    module = vector(1.0, 3.0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.0, eps=0.0)
    anchor(module, optimizer, strength=2.0)
    for _ in range(30):
        step(module, optimizer, 5.0)
    q = 1 - 0.01 * 2.0
    expected = -0.01 * sum(q**k for k in range(1, 31))
    found = module.weight.detach() - torch.tensor([1.0, 3.0]).double()
    torch.testing.assert_close(found, torch.full((2,), expected).double())


OPTIMIZERS = {
    "SGD": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda p, lr: torch.optim.AdamW(p, lr=lr),
    "AdamW, fused": lambda p, lr: torch.optim.AdamW(p, lr=lr, fused=True),
    "RMSprop": lambda p, lr: torch.optim.RMSprop(p, lr=lr),
    "Adam, lr a tensor": lambda p, lr: torch.optim.Adam(p, lr=torch.tensor(lr), foreach=False),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex64])
def test_against_the_step_written_out(make, dtype):
    module = vector(1.0, -2.0, 0.5, dtype=dtype)
    if make is OPTIMIZERS["AdamW, fused"] and dtype.is_complex:
        pytest.skip("fused optimizers take no complex numbers")
    other = copy.deepcopy(module)
    optimizer, plain = make(module.parameters(), 0.03), make(other.parameters(), 0.03)
    anchor(module, optimizer, strength=0.5)
    start = other.weight.detach().clone()
    for k in range(5):
        step(module, optimizer, 1.0 + k)
        step(other, plain, 1.0 + k)
        with torch.no_grad():
            other.weight -= 0.03 * 0.5 * (other.weight - start)
    torch.testing.assert_close(module.weight, other.weight)
    assert not torch.equal(module.weight, start)


def test_the_rate_is_that_of_the_group_and_of_the_moment():
    module = nn.ModuleDict({"a": vector(1.0), "b": vector(1.0)})
    groups = [{"params": module["a"].parameters(), "lr": 0.1}, {"params": module["b"].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    anchor(module, optimizer, strength=1.0)
    expected = {"a": 0.0, "b": 0.0}
    for k in range(4):
        step(module, optimizer)
        for name, first in (("a", 0.1), ("b", 0.2)):
            rate = first * 0.5**k
            expected[name] = (expected[name] - rate) * (1 - rate)
        scheduler.step()
    for name in "ab":
        assert module[name].weight.item() == pytest.approx(1 + expected[name], abs=1e-12)


def test_frozen_weights_are_not_touched_by_a_bit_whatever_was_anchored():
    torch.manual_seed(0)
    model = Tagger()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    train(model, optimizer, 1)
    held = anchor(model, optimizer, strength=1.0)
    train(model, optimizer, 1)  # now everything is away from where it is anchored
    freeze(model, "encoder", optimizer=optimizer)
    before = snapshot(model)
    with FrozenGuard(model).attach(optimizer):
        train(model, optimizer)
    assert moved(model, before) == {"head.weight", "head.bias"}
    unfreeze(model, optimizer=optimizer)
    far = held.distance()
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    for parameter in model.parameters():
        parameter.grad = None
    before = snapshot(model)
    optimizer.step()  # no gradient: only the pull, towards what they were when anchored
    assert moved(model, before) >= {"encoder.lstm.weight_hh_l0"}
    assert held.distance() < far


def test_weights_at_the_anchor_keep_their_bits():
    module = vector(-0.0, 0.0, 1e-300, 3.0)
    before = snapshot(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    anchor(module, optimizer, strength=0.7)
    optimizer.step()
    assert snapshot(module) == before


def test_targets_and_exclude():
    torch.manual_seed(0)
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    anchor(model, optimizer, "encoder", strength=0.5, exclude="encoder.lstm[1]")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    before = snapshot(model)
    optimizer.step()
    names = {n for n, _ in model.named_parameters()}
    assert moved(model, before) == {n for n in names if "_l1" not in n and "head" not in n}


def test_accumulated_gradients_are_one_step():
    results = []
    for accumulate in (1, 4):
        module = vector(1.0)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        anchor(module, optimizer, strength=1.0)
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(accumulate):
                (module.weight.sum() / accumulate).backward()
            optimizer.step()
        results.append(module.weight.item())
    assert results[0] == pytest.approx(results[1], abs=1e-12)
    assert results[0] == pytest.approx(1 - 0.1 * (0.9 + 0.9**2 + 0.9**3))


def test_several_optimizers_draw_their_own_weights():
    model = nn.ModuleDict({"a": vector(1.0), "b": vector(1.0)})
    one, two = (torch.optim.SGD(model[n].parameters(), lr=0.1) for n in "ab")
    held = anchor(model, [one, two], strength=1.0)
    for _ in range(2):
        step(model["a"], one)
    assert model["b"].weight.item() == 1.0
    assert model["a"].weight.item() == pytest.approx(1 - 0.1 * (0.9 + 0.81))
    step(model["b"], two)
    assert model["b"].weight.item() == pytest.approx(1 - 0.1 * 0.9)
    held.detach()
    step(model["b"], two)
    assert model["b"].weight.item() == pytest.approx(1 - 0.1 * 0.9 - 0.1)


def test_lightnings_wrapper_is_looked_through():
    core = pytest.importorskip("lightning.pytorch.core.optimizer")
    module = vector(1.0)
    wrapper = core.LightningOptimizer(torch.optim.SGD(module.parameters(), lr=0.1))
    anchor(module, wrapper, strength=1.0)
    step(module, wrapper.optimizer)
    assert module.weight.item() == pytest.approx(0.91)


def test_a_step_skipped_for_an_overflow_pulls_nothing():
    """Fused optimizers are called all the same and skip the step themselves."""
    module = vector(1.0, dtype=torch.float32)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, fused=True)
    anchor(module, optimizer, strength=1.0)
    step(module, optimizer)
    scaler = torch.amp.GradScaler("cpu")
    for slope, moves in ((float("inf"), False), (1.0, True)):
        before = snapshot(module)
        optimizer.zero_grad()
        scaler.scale(module.weight.sum() * slope).backward()
        scaler.step(optimizer)
        scaler.update()
        assert bool(moved(module, before)) is moves


def test_resume_has_the_same_bits():
    def build():
        torch.manual_seed(0)
        model = Tagger()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
        return model, optimizer, anchor(model, optimizer, strength=0.5)

    whole, optimizer, held = build()
    file = io.BytesIO()
    for k in range(6):
        if k == 3:
            state = {"model": whole, "optimizer": optimizer, "anchor": held}
            torch.save({n: thing.state_dict() for n, thing in state.items()}, file)
        torch.manual_seed(k)
        train(whole, optimizer, 1)
    resumed, optimizer, held = build()
    train(resumed, optimizer, 2)  # what the checkpoint overwrites
    held.remember()
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    for name, thing in {"model": resumed, "optimizer": optimizer, "anchor": held}.items():
        thing.load_state_dict(saved[name])
    for k in range(3, 6):
        torch.manual_seed(k)
        train(resumed, optimizer, 1)
    assert snapshot(resumed) == snapshot(whole)


def test_remember_and_the_context_manager():
    module = vector(1.0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with anchor(module, optimizer, strength=1.0) as held:
        step(module, optimizer)
        held.remember()
        assert held.distance() == 0.0
        step(module, optimizer)
        assert module.weight.item() == pytest.approx(0.91 - 0.09)
        assert repr(held) == "Anchor(1 weights, strength=1.0, attached to 1 optimizers)"
    step(module, optimizer)
    assert module.weight.item() == pytest.approx(0.82 - 0.1)
    held.detach()
    assert "detached" in repr(held)


def test_a_module_that_changes_its_dtype_is_followed():
    module = vector(1.0, 2.0, dtype=torch.float32)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    held = anchor(module, optimizer, strength=1.0)
    module.double()
    step(module, optimizer)
    assert module.weight.dtype == torch.float64
    assert held.distance() == pytest.approx(0.09 * 2**0.5)


def test_tied_weights_are_drawn_once():
    module = nn.ModuleDict({"a": vector(1.0)})
    module["b"] = module["a"]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    anchor(module, optimizer, strength=1.0)
    step(module, optimizer)
    assert module["b"].weight.item() == pytest.approx(0.91)


MODEL = Tagger()
SGD = torch.optim.SGD(MODEL.parameters(), lr=0.1)
HEAD = torch.optim.SGD(MODEL.head.parameters(), lr=0.1)
BAD = {
    "strength": (lambda: anchor(MODEL, SGD, strength=-1), ValueError, r"`strength` .* got -1"),
    "nan": (lambda: anchor(MODEL, SGD, strength=float("nan")), ValueError, "finite"),
    "a word": (lambda: anchor(MODEL, SGD, strength="1"), TypeError, "`strength` must be a number"),
    "module": (lambda: anchor(3, SGD, strength=1), TypeError, "`module` must be"),
    "no optimizer": (lambda: anchor(MODEL, None, strength=1), ValueError, "at least one optimizer"),
    "none": (lambda: anchor(MODEL, [], strength=1), ValueError, "at least one optimizer"),
    "other": (lambda: anchor(MODEL, MODEL, strength=1), TypeError, "`optimizer` must be a torch"),
    "target": (lambda: anchor(MODEL, SGD, "hed", strength=1), ValueError, 'did you mean "head"'),
    "nothing left": (
        lambda: anchor(MODEL, SGD, "head", strength=1, exclude="*"),
        ValueError,
        "leaves nothing",
    ),
    "not held": (
        lambda: anchor(MODEL, HEAD, strength=1),
        ValueError,
        "`optimizer` holds no encoder.embedding.weight, .*_l1_reverse: anchored, .* never",
    ),
    "lazy": (
        lambda: anchor(lazy := nn.LazyLinear(2), torch.optim.SGD(lazy.parameters()), strength=1),
        ValueError,
        "weight, bias: no values yet",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_change_nothing(call, kind, message):
    before = snapshot(MODEL)
    with pytest.raises(kind, match=message):
        call()
    assert snapshot(MODEL) == before
    assert not SGD._optimizer_step_post_hooks
    assert not HEAD._optimizer_step_post_hooks


def test_another_state_dict_is_refused_by_name():
    held = anchor(MODEL, SGD, "head", strength=1)
    held.detach()
    state = held.state_dict()
    wrong = {"head.weight": torch.zeros(3), "hed.bias": state["head.bias"]}
    with pytest.raises(ValueError, match=r"head\.bias, hed\.bias, head\.weight"):
        held.load_state_dict(wrong)
    assert held.distance() == 0.0
