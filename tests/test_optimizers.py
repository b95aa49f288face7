"""The matrix: no optimizer of torch.optim moves a frozen bit, and the rest trains as if the frozen
part had been frozen from the start; and what `optimizer=` checks, drops and prepares."""

import copy
import inspect
import itertools
import re
from typing import NamedTuple

import pytest
import torch
from _models import H, I, Tagger, bits, everything, snapshot
from torch import nn

from lstm_freeze import BiLSTM, freeze, select, unfreeze

LR = {"SGD": 0.1, "Adadelta": 1.0, "Muon": 0.05}
REFUSED = {"LBFGS"}  # test_lbfgs_*
SPARSE = {"SparseAdam"}  # test_sparse_adam

KNOBS = {
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True},
            {"momentum": 0.9, "dampening": 0.5}],
    "RMSprop": [{}, {"momentum": 0.9}, {"momentum": 0.9, "centered": True}],
    "Adam": [{}, {"amsgrad": True}],
    "AdamW": [{}, {"amsgrad": True}],
    "NAdam": [{}, {"decoupled_weight_decay": True}],
    "RAdam": [{}, {"decoupled_weight_decay": True}],
    "Adagrad": [{}, {"lr_decay": 0.1}],
    "Muon": [{"nesterov": False}, {}],
}  # fmt: skip


class Variant(NamedTuple):
    """An optimizer and one way to run it."""

    name: str
    knobs: dict[str, object]

    def build(self, parameters, **more):
        cls = getattr(torch.optim, self.name)
        return cls(parameters, lr=LR.get(self.name, 0.01), **self.knobs, **more)

    @property
    def accepts(self):
        return inspect.signature(getattr(torch.optim, self.name)).parameters

    def __str__(self):
        return "-".join(
            [self.name, *(k if v is True else f"{k}={v}" for k, v in self.knobs.items())]
        )


def all_optimizers():
    """The names of torch.optim's optimizers, whatever this torch has."""
    return [
        name
        for name, cls in vars(torch.optim).items()
        if inspect.isclass(cls)
        and issubclass(cls, torch.optim.Optimizer)
        and cls is not torch.optim.Optimizer
    ]


def all_variants():
    variants = []
    for name in all_optimizers():
        if name in REFUSED | SPARSE:
            continue
        accepts = inspect.signature(getattr(torch.optim, name)).parameters
        ways = [{"foreach": False}, {"foreach": True}] if "foreach" in accepts else [{}]
        ways += [{"fused": True}] if "fused" in accepts else []
        variants += [
            Variant(name, {**knobs, **way}) for knobs in KNOBS.get(name, [{}]) for way in ways
        ]
    return variants


VARIANTS = all_variants()
TIMINGS = ("before", "after backward", "in accumulation")
AXES = {
    "weight_decay": (0.0, 0.1),
    "set_to_none": (True, False),
    "clip": (False, True),
    "bf16": (False, True),
    "warm": (0, 2),
}
FROZEN = ("encoder.embedding", "encoder.lstm[0]", "encoder.lstm[1].reverse.weight_hh", "head")


def model_for(variant):
    torch.manual_seed(0)
    matrices_only = variant.name == "Muon"
    model = Tagger(BiLSTM(I, H, 2, bias=not matrices_only))
    if matrices_only:
        model.head = nn.Linear(2 * H, 2, bias=False)
    return model


BATCHES = torch.randint(0, 7, (12, 4, 3), generator=torch.Generator().manual_seed(1))


class Run:
    """A training loop in the usual order, with a moment to freeze in."""

    def __init__(self, model, variant, weight_decay, set_to_none, clip, bf16):
        self.model = model
        decay = {"weight_decay": weight_decay} if "weight_decay" in variant.accepts else {}
        self.optimizer = variant.build(model.parameters(), **decay)
        self.set_to_none, self.clip, self.bf16 = set_to_none, clip, bf16
        self.used = 0

    def backward(self):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            out = self.model(BATCHES[self.used])
        self.used += 1
        out.float().sin().sum().backward()

    def step(self, freezing=lambda: None, timing=None):
        if timing == "before":
            freezing()
        self.optimizer.zero_grad(set_to_none=self.set_to_none)
        self.backward()
        if timing == "in accumulation":
            freezing()
        self.backward()
        if timing == "after backward":
            freezing()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.05)
        self.optimizer.step()


def check(variant, *, warm, **how):
    """Some cells of the matrix: the three moments, against the same training with the part frozen
    before it began."""
    warmed = Run(model_for(variant), variant, **how)
    for _ in range(warm):
        warmed.step()
    reference = copy.deepcopy(warmed)
    chosen = select(reference.model, FROZEN)
    for parameter in chosen.parameters:  # by hand, where no mistake is possible
        parameter.requires_grad_(False)
        parameter.grad = None
    reference.step()
    reference.step()
    expected = snapshot(reference.model)
    before = snapshot(warmed.model)
    for timing in TIMINGS:
        run = copy.deepcopy(warmed)
        run.step(lambda model=run.model: freeze(model, FROZEN), timing)
        run.step()
        after = snapshot(run.model)
        for name in before:
            moved = after[name] != before[name]
            assert moved == (name not in chosen), f"{timing}: {name} {'moved' * moved}"
        assert after == expected, f"{timing}: the updates differ"


ALL_HOWS = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]
# Six rows in which every two axes take all four pairs of values.
FEW = [(0, 0, 0, 0, 0), (0, 1, 1, 1, 1), (1, 0, 1, 1, 0), (1, 1, 0, 1, 1), (1, 1, 1, 0, 0),
       (0, 0, 0, 0, 1)]  # fmt: skip
FEW_HOWS = [{a: AXES[a][i] for a, i in zip(AXES, row, strict=True)} for row in FEW]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_matrix(variant):
    """A part of it: each variant at each moment, with the other choices taking turns."""
    check(variant, **FEW_HOWS[VARIANTS.index(variant) % len(FEW_HOWS)])


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_whole_matrix(variant):
    for how in ALL_HOWS:
        check(variant, **how)


def test_the_few_take_every_pair():
    for a, b in itertools.combinations(range(len(AXES)), 2):
        assert {(row[a], row[b]) for row in FEW} == set(itertools.product((0, 1), repeat=2))


def test_every_optimizer_of_torch_is_covered():
    assert {v.name for v in VARIANTS} | REFUSED | SPARSE == set(all_optimizers())
    assert {"SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adadelta", "Adamax",
            "ASGD", "Rprop"} <= {v.name for v in VARIANTS}  # fmt: skip
    for name in ("SGD", "Adam", "AdamW"):
        assert any(v.name == name and v.knobs.get("fused") for v in VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_zero_gradient_would_have_moved_it(variant):
    """The matrix can fail: a gradient of zero in place of None moves the weight."""
    run = Run(model_for(variant), variant, 0.1, set_to_none=False, clip=False, bf16=False)
    run.step()
    head = run.model.head.weight
    head.requires_grad_(False)
    head.grad = torch.zeros_like(head)
    before = bits([head])
    run.optimizer.step()
    assert (bits([head]) != before) == (variant.name != "Rprop")  # it has no momentum, no decay


@pytest.mark.parametrize("timing", TIMINGS)
def test_sparse_adam(timing):
    model = nn.ModuleList([nn.Embedding(5, 2, sparse=True), nn.Embedding(5, 2, sparse=True)])
    optimizer = torch.optim.SparseAdam(model.parameters())

    def backward():
        (model[0](torch.arange(3)) * model[1](torch.arange(1, 4))).sum().backward()

    backward()
    optimizer.step()
    if timing == "before":
        freeze(model, "0")
    optimizer.zero_grad()
    backward()
    if timing == "in accumulation":
        freeze(model, "0")
    backward()
    if timing == "after backward":
        freeze(model, "0")
    before = bits(model.parameters())
    optimizer.step()
    after = bits(model.parameters())
    assert after[0] == before[0]
    assert after[1] != before[1]


# optimizer=


def trained(build=torch.optim.Adam, **knobs):
    """A model and its optimizer after a step."""
    torch.manual_seed(0)
    model = Tagger()
    optimizer = build(model.parameters(), lr=0.1, **knobs)
    model(BATCHES[0]).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def test_state_of_what_is_frozen_is_dropped_and_no_other():
    model, optimizer = trained()
    chosen = {id(p) for p in select(model, "encoder").parameters}
    kept = {id(p): s for p, s in optimizer.state.items() if id(p) not in chosen}
    freeze(model, "encoder", optimizer=optimizer)
    assert {id(p): s for p, s in optimizer.state.items()} == kept != {}


def test_state_is_dropped_also_of_what_was_already_frozen():
    model, optimizer = trained()
    freeze(model, "head")
    freeze(model, "head", optimizer=optimizer)
    assert model.head.weight not in optimizer.state


def test_without_optimizer_state_is_kept():
    model, optimizer = trained()
    freeze(model, "encoder")
    assert len(optimizer.state) == len(list(model.parameters()))


def test_only_drops_the_state_of_the_others():
    model, optimizer = trained()
    unfreeze(model, "head", only=True, optimizer=optimizer)
    assert {id(p) for p in optimizer.state} == {id(p) for p in model.head.parameters()}


def test_several_optimizers():
    torch.manual_seed(0)
    model = Tagger()
    optimizers = [
        torch.optim.Adam(model.encoder.parameters()),
        torch.optim.SGD(model.head.parameters(), 0.1, momentum=0.9),
    ]
    model(BATCHES[0]).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    freeze(model, "head.bias", "encoder.embedding", optimizer=tuple(optimizers))
    assert model.encoder.embedding.weight not in optimizers[0].state
    assert model.head.bias not in optimizers[1].state
    assert model.head.weight in optimizers[1].state
    assert unfreeze(model, optimizer=iter(optimizers)).changed == (
        "encoder.embedding.weight",
        "head.bias",
    )
    with pytest.raises(ValueError, match=r"holds no encoder\.embedding\.weight"):
        unfreeze(model, optimizer=optimizers[1:])


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_lightning_s_wrapper(package):
    core = pytest.importorskip(f"{package}.core.optimizer")
    model, optimizer = trained()
    wrapped = core.LightningOptimizer(optimizer)
    freeze(model, "head", optimizer=wrapped)
    assert model.head.weight not in optimizer.state
    unfreeze(model, "head", optimizer=[wrapped])
    partial = core.LightningOptimizer(torch.optim.Adam(model.head.parameters()))
    with pytest.raises(ValueError, match="would never train"):
        unfreeze(model, "encoder", optimizer=partial)
    lbfgs = core.LightningOptimizer(torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ValueError, match="LBFGS"):
        freeze(model, "encoder", optimizer=lbfgs)


def test_an_unfrozen_parameter_that_no_optimizer_holds_is_an_error_naming_it():
    model = Tagger()
    freeze(model, "encoder")
    optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, model.parameters()))
    before = everything(model)
    message = (
        "`optimizer` holds no encoder.embedding.weight, encoder.lstm.weight_ih_l0, "
        "encoder.lstm.weight_hh_l0 and 14 more: unfrozen, it would never train; "
        "build the optimizer over all parameters"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        unfreeze(model, optimizer=optimizer)
    assert everything(model) == before
    optimizer.add_param_group({"params": list(model.encoder.parameters())})
    assert len(unfreeze(model, optimizer=optimizer).changed) == 17


def test_membership_is_by_identity_not_value():
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    freeze(model, "1")
    optimizer = torch.optim.Adam(model[0].parameters())
    with pytest.raises(ValueError, match=r"holds no 1\.weight, 1\.bias"):
        unfreeze(model, "1", optimizer=optimizer)


def test_lbfgs_moves_what_is_frozen_and_is_refused_with_the_reason():
    model = Tagger()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = model(BATCHES[0]).sin().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    freeze(model, "encoder")
    before = bits([model.encoder.lstm.weight_hh_l0])
    optimizer.step(closure)
    assert bits([model.encoder.lstm.weight_hh_l0]) != before

    model = Tagger()
    optimizer = torch.optim.LBFGS(model.parameters())
    for call in (
        lambda: freeze(model, "encoder", optimizer=optimizer),
        lambda: freeze(
            model, "encoder", optimizer=[torch.optim.SGD(model.parameters()), optimizer]
        ),
        lambda: unfreeze(model, "encoder", only=True, optimizer=optimizer),
    ):
        with pytest.raises(ValueError, match=r"LBFGS .* its flat history moves every parameter"):
            call()


def test_the_remedy_for_lbfgs_works():
    model = Tagger()
    optimizer = torch.optim.LBFGS(model.head.parameters())
    freeze(model, "encoder", optimizer=optimizer)
    unfreeze(model, "head", optimizer=optimizer)


FUSED_SGD = {"fused": True, "momentum": 0.9}


def test_fused_sgd_takes_newcomers_when_told_of_them():
    torch.manual_seed(0)
    model = Tagger()
    freeze(model, "encoder")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, **FUSED_SGD)
    twin = copy.deepcopy(model)
    plain = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9, foreach=False)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(BATCHES[0]).sin().sum().backward()
        optimizer.step()

    for net, opt in ((model, optimizer), (twin, plain)):
        step(net, opt)
        unfreeze(net, "encoder", optimizer=opt)
        before = bits([net.encoder.embedding.weight])
        step(net, opt)
        step(net, opt)
        assert bits([net.encoder.embedding.weight]) != before
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_fused_sgd_without_telling_is_torch_s_error():
    model = Tagger()
    freeze(model, "encoder")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, **FUSED_SGD)
    for _ in range(2):
        model(BATCHES[0]).sum().backward()
        if model.encoder.embedding.weight.requires_grad:
            with pytest.raises(TypeError, match="None"):
                optimizer.step()
        else:
            optimizer.step()
        unfreeze(model, "encoder")


def test_newcomers_get_no_buffer_where_none_is_needed():
    for knobs in ({"momentum": 0.9}, {"fused": True}):
        model, optimizer = trained(torch.optim.SGD, **knobs)
        freeze(model, "head", optimizer=optimizer)
        unfreeze(model, "head", optimizer=optimizer)
        assert "momentum_buffer" not in optimizer.state.get(model.head.weight, {})
    fresh = Tagger()
    freeze(fresh, "head")
    optimizer = torch.optim.SGD(fresh.parameters(), 0.1, **FUSED_SGD)
    unfreeze(fresh, "head", optimizer=optimizer)
    assert not optimizer.state


@pytest.mark.parametrize("wrong", ["adam", 3, [None], {"optimizer": 1}, nn.Linear(1, 1)])
def test_something_else_is_no_optimizer(wrong):
    with pytest.raises(
        TypeError, match=r"`optimizer` must be a torch\.optim\.Optimizer or several"
    ):
        freeze(Tagger(), "head", optimizer=wrong)


def test_an_empty_list_of_optimizers_is_an_error():
    with pytest.raises(ValueError, match=r"`optimizer` must be at least one optimizer, got \[\]"):
        freeze(Tagger(), "head", optimizer=[])


def test_schedulers_and_optimizer_checkpoints_survive():
    model, optimizer = trained()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    freeze(model, "encoder", optimizer=optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.step()
    scheduler.step()
    unfreeze(model, "encoder", optimizer=optimizer)
    scheduler.step()
    optimizer.load_state_dict(state)
    model(BATCHES[1]).sum().backward()
    before = bits([model.encoder.lstm.weight_hh_l0])
    optimizer.step()
    assert bits([model.encoder.lstm.weight_hh_l0]) != before
