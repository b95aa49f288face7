"""After freeze(optimizer=) and unfreeze(optimizer=), no optimizer moves a weight by itself."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from _wrappers import (
    MADGRAD,
    SAM,
    Adagrad26,
    Lookahead,
    NeedsModel,
    PlainWrapper,
    SlowLists,
)
from torch import nn

from lstm_freeze import FreezeSchedule, FrozenGuard, freeze, status, unfreeze
from lstm_freeze._optimizers import as_optimizers, drop_state, innermost, with_inner

SGD, AdamW = torch.optim.SGD, torch.optim.AdamW


def momentum(model):
    return SGD(model.parameters(), 0.1, momentum=0.9)


def adamw(model):
    return AdamW(model.parameters(), 0.1, weight_decay=0)


def sam(model):
    return SAM(model.parameters(), AdamW, lr=0.1, weight_decay=0.0)


OPTIMIZERS = {
    "momentum": momentum,
    "AdamW": adamw,
    "Adagrad": lambda m: torch.optim.Adagrad(m.parameters(), 0.1),
    "Adagrad of torch 2.6": lambda m: Adagrad26(m.parameters(), 0.1),
    "MADGRAD": lambda m: MADGRAD(m.parameters(), 0.1),
    "SAM": sam,
    "Lookahead": lambda m: Lookahead(momentum(m)),
    "slow lists": lambda m: SlowLists(momentum(m)),
    "plain wrapper": lambda m: PlainWrapper(momentum(m)),
    "Lookahead(SAM(AdamW))": lambda m: Lookahead(sam(m)),
    "slow lists(Lookahead(MADGRAD))": lambda m: SlowLists(Lookahead(MADGRAD(m.parameters(), 0.1))),
    "plain wrapper(slow lists(SAM))": lambda m: PlainWrapper(SlowLists(sam(m))),
    "needs the model": lambda m: NeedsModel(m, 0.1),
}
optimizers = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)


def fresh(build):
    torch.manual_seed(0)
    model = nn.ModuleDict({"encoder": nn.Linear(3, 4), "head": nn.Linear(4, 2)})
    return model, build(model)


def step(model, optimizer, gradient=None):
    model.zero_grad()
    out = model["head"](model["encoder"](torch.ones(2, 3))).sin().sum()
    out.backward()
    if gradient is not None:
        for p in model.parameters():
            p.grad = None if p.grad is None else torch.full_like(p, gradient)
    optimizer.step()


def values(model, part):
    return [p.detach().clone() for p in model[part].parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def train_freeze_train_unfreeze(model, optimizer, told):
    for _ in range(3):
        step(model, optimizer)
    freeze(model, "encoder", optimizer=told)
    for _ in range(3):
        step(model, optimizer)
    unfreeze(model, "encoder", optimizer=told)


@optimizers
def test_a_zero_gradient_moves_nothing_after_an_unfreeze(build):
    model, optimizer = fresh(build)
    train_freeze_train_unfreeze(model, optimizer, optimizer)
    before = values(model, "encoder")
    for _ in range(4):
        step(model, optimizer, gradient=0.0)
    after = values(model, "encoder")
    for was, now in zip(before, after, strict=True):
        torch.testing.assert_close(now, was, rtol=0, atol=1e-7)
    step(model, optimizer, gradient=1.0)
    step(model, optimizer, gradient=1.0)
    assert not any(
        torch.allclose(a, b) for a, b in zip(values(model, "encoder"), after, strict=True)
    )


MOVES = set(OPTIMIZERS) - {"Adagrad", "Adagrad of torch 2.6"}


@pytest.mark.parametrize("name", sorted(MOVES))
def test_it_would_move_if_the_optimizer_were_not_told(name):
    model, optimizer = fresh(OPTIMIZERS[name])
    train_freeze_train_unfreeze(model, optimizer, None)
    before = values(model, "encoder")
    step(model, optimizer, gradient=0.0)
    assert not same(values(model, "encoder"), before)


@optimizers
def test_while_frozen_nothing_moves_and_the_rest_trains(build):
    model, optimizer = fresh(build)
    for _ in range(3):
        step(model, optimizer)
    before = values(model, "encoder")
    freeze(model, "encoder", optimizer=optimizer)
    for _ in range(3):
        step(model, optimizer)
    # Wrappers that average write to what is frozen too, to rounding.
    for was, now in zip(before, values(model, "encoder"), strict=True):
        torch.testing.assert_close(now, was, rtol=0, atol=1e-7)
    head = values(model, "head")
    step(model, optimizer, gradient=0.5)
    assert not same(values(model, "head"), head)


def test_adagrad_begins_anew_with_its_initial_value():
    def adagrad(m):
        return torch.optim.Adagrad(m.parameters(), 0.1, initial_accumulator_value=0.3)

    model, optimizer = fresh(
        lambda m: torch.optim.Adagrad(m.parameters(), 0.1, initial_accumulator_value=0.3)
    )
    step(model, optimizer)
    drop_state([optimizer], model["encoder"].parameters())
    kept = optimizer.state.get(model["encoder"].weight)
    assert not kept or torch.equal(kept["sum"], torch.full((4, 3), 0.3))
    first, again = fresh(
        lambda m: torch.optim.Adagrad(m.parameters(), 0.1, initial_accumulator_value=0.3)
    )
    first.load_state_dict(model.state_dict())
    step(first, again, gradient=0.5)
    step(model, optimizer, gradient=0.5)
    assert torch.equal(first["encoder"].weight, model["encoder"].weight)


def test_state_filled_by_a_constructor_is_made_anew_for_the_frozen_alone():
    model, optimizer = fresh(OPTIMIZERS["MADGRAD"])
    for _ in range(3):
        step(model, optimizer)
    head = {k: v.clone() for k, v in optimizer.state[model["head"].weight].items()}
    freeze(model, "encoder", optimizer=optimizer)
    state = optimizer.state[model["encoder"].weight]
    assert set(state) == {"grad_sum_sq", "s", "x0"}
    assert torch.equal(state["x0"], model["encoder"].weight)
    assert not state["s"].any()
    assert not state["grad_sum_sq"].any()
    assert all(torch.equal(v, optimizer.state[model["head"].weight][k]) for k, v in head.items())
    assert optimizer.state["k"] == 3


@optimizers
def test_a_schedule_drops_it_too(build):
    model, optimizer = fresh(build)
    schedule = FreezeSchedule({0: "*", 1: "head", 2: "*"})
    for epoch in range(3):
        schedule.apply(model, epoch, optimizer)
        if epoch < 2:
            step(model, optimizer)
            step(model, optimizer)
    before = values(model, "encoder")
    step(model, optimizer, gradient=0.0)
    for was, now in zip(before, values(model, "encoder"), strict=True):
        torch.testing.assert_close(now, was, rtol=0, atol=1e-7)


def test_what_is_inside():
    _, optimizer = fresh(OPTIMIZERS["plain wrapper(slow lists(SAM))"])
    kinds = ["PlainWrapper", "SlowLists", "SAM", "AdamW"]
    assert [type(one).__name__ for one in with_inner([optimizer])] == kinds
    assert [type(one).__name__ for one in innermost([optimizer])] == ["AdamW"]
    optimizer.itself = optimizer
    assert len(with_inner([optimizer, optimizer])) == 4


def test_lbfgs_inside_a_wrapper_is_refused():
    model, optimizer = fresh(lambda m: Lookahead(torch.optim.LBFGS(m.parameters())))
    with pytest.raises(ValueError, match="LBFGS"):
        freeze(model, "encoder", optimizer=optimizer)


def test_what_no_optimizer_inside_holds_is_refused():
    model, optimizer = fresh(lambda m: Lookahead(SGD(m["head"].parameters(), 0.1)))
    freeze(model, "encoder")
    with pytest.raises(ValueError, match="would never train"):
        unfreeze(model, "encoder", optimizer=optimizer)
    unfreeze(model, "head", optimizer=optimizer)
    assert "trainable but in no optimizer" not in str(status(model, optimizer))


@pytest.mark.parametrize("name", ["AdamW", "Lookahead(SAM(AdamW))"])
def test_inside_lightning_s_wrapper(name):
    pytest.importorskip("pytorch_lightning")
    from pytorch_lightning.core.optimizer import LightningOptimizer

    model, optimizer = fresh(OPTIMIZERS[name])
    wrapped = LightningOptimizer(optimizer)
    train_freeze_train_unfreeze(model, optimizer, wrapped)
    before = values(model, "encoder")
    step(model, optimizer, gradient=0.0)
    assert same(before, values(model, "encoder"))
    assert with_inner(as_optimizers([wrapped])) == with_inner([optimizer])


def test_what_is_no_optimizer_is_an_error():
    with pytest.raises(
        TypeError,
        match=r"must be a torch\.optim\.Optimizer .*, got torch\.nn\.modules\.linear\.Linear",
    ):
        as_optimizers(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="got type"):
        as_optimizers(PlainWrapper)


class Slotted:
    """Keeps its optimizer in a private slot, and cannot be referenced weakly."""

    __slots__ = ("__inner",)

    def __init__(self, inner):
        self.__inner = inner

    @property
    def param_groups(self):
        return self.__inner.param_groups

    def step(self):
        self.__inner.step()

    def zero_grad(self):
        self.__inner.zero_grad()


class Hidden:
    """Keeps its optimizer in something of another kind; what leads to it is given."""

    def __init__(self, inner, kept):
        self.kept, self.param_groups, self.step = kept, inner.param_groups, inner.step

    def zero_grad(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None


HIDING = {
    "slot": Slotted,
    "nested": lambda o: Hidden(o, {"a": [(0, {"b": o})]}),
    "object": lambda o: Hidden(o, SimpleNamespace(inside=SimpleNamespace(one=o))),
    "closure": lambda o: Hidden(o, lambda: o),
    "partial": lambda o: Hidden(o, partial(print, o)),
    "bound method": lambda o: Hidden(o, o.add_param_group),
}


@pytest.mark.parametrize("hide", HIDING.values(), ids=HIDING.keys())
def test_an_inner_optimizer_is_found_however_it_is_kept(hide):
    model, inner = fresh(lambda m: SGD(m.parameters(), 0.1, momentum=0.9))
    optimizer = hide(inner)
    train_freeze_train_unfreeze(model, optimizer, optimizer)
    before, head = values(model, "encoder"), values(model, "head")
    step(model, optimizer, gradient=0.0)
    assert same(values(model, "encoder"), before)
    assert not same(values(model, "head"), head)
    freeze(model, "encoder")
    with FrozenGuard(model).attach(optimizer) as guard:
        step(model, optimizer)
    assert guard.checks == 1


def test_what_trains_something_else_or_lies_around_is_not_inside():
    model, optimizer = fresh(lambda m: SGD(m["head"].parameters(), 0.1))
    optimizer.partner = SGD(model["encoder"].parameters(), 0.1)
    optimizer.inner = SGD(model["head"].parameters(), 0.1)
    optimizer.inner.outer = optimizer
    assert with_inner([optimizer]) == (optimizer, optimizer.inner)
    assert innermost([optimizer]) == (optimizer.inner,)
