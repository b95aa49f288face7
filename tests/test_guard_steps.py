"""Which optimizer steps a guard sees, however they are made, and when it lets go."""

import copy
import gc
import pickle
import warnings
import weakref
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer

from lstm_freeze import BiLSTM, FrozenGuard, FrozenWeightsChanged, freeze, unfreeze

NEVER_STEPPED = "attached and saw no optimizer step"


def unfrozen():
    torch.manual_seed(0)
    return nn.ModuleDict({"encoder": BiLSTM(4, 8, 2), "head": nn.Linear(16, 2)})


def model():
    made = unfrozen()
    freeze(made, "encoder")
    return made


def loss(m):
    return m["head"](m["encoder"](torch.ones(5, 3, 4))[0]).square().sum()


def move(m):
    with torch.no_grad():
        m["encoder"].weight_hh_l0[0, 0] += 1


def sgd(m):
    return torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)


def hooks_left():
    return len(torch_optimizer._global_optimizer_post_hooks)


@pytest.fixture(autouse=True)
def no_hook_outlives_its_guard():
    gc.collect()
    yield
    gc.collect()
    probe = FrozenGuard(nn.Linear(1, 1)).attach()
    probe._leave()
    assert hooks_left() == 0


# Ways to make a step


class SAM(torch.optim.Optimizer):
    """As the wrappers of its kind: two halves, the second of which steps an inner optimizer."""

    def __init__(self, parameters, base=torch.optim.SGD, **options):
        super().__init__(parameters, {"rho": 0.05, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def first_step(self):
        self.zero_grad()

    def second_step(self):
        self.base_optimizer.step()

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            closure()
        self.second_step()


class HiddenInner(torch.optim.Optimizer):
    """Holds its inner optimizer out of sight, and does not call torch's __init__ (timm's way)."""

    def __init__(self, inner):
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self.step_inner = inner.step
        self.param_groups = inner.param_groups
        self.state = inner.state
        self.defaults = {}

    def step(self, closure=None):
        self.step_inner()


class CallsSuper(torch.optim.Adam):
    """Its step and the one it calls both have torch's hooks."""

    def step(self, closure=None):
        return super().step(closure)


def by_halves(m, wrapper):
    loss(m).backward()
    wrapper.first_step()
    loss(m).backward()
    wrapper.second_step()
    wrapper.zero_grad()


def with_closure(m, optimizer):
    def closure():
        optimizer.zero_grad()
        value = loss(m)
        value.backward()
        return value

    optimizer.step(closure)


def plainly(m, optimizer):
    optimizer.zero_grad()
    loss(m).backward()
    optimizer.step()


def with_scaler(m, optimizer):
    scaler = torch.amp.GradScaler("cpu")
    optimizer.zero_grad()
    scaler.scale(loss(m)).backward()
    scaler.step(optimizer)
    scaler.update()


def trainable(m):
    return [p for p in m.parameters() if p.requires_grad]


STEPS = {
    "plain": (sgd, plainly),
    "fused": (lambda m: torch.optim.AdamW(m.parameters(), fused=True), plainly),
    "closure": (sgd, with_closure),
    "LBFGS": (lambda m: torch.optim.LBFGS(trainable(m), lr=0.01), with_closure),
    "scaler": (sgd, with_scaler),
    "SAM by halves": (lambda m: SAM(m.parameters(), lr=0.1), by_halves),
    "SAM's step": (lambda m: SAM(m.parameters(), lr=0.1), with_closure),
    "hidden inner": (lambda m: HiddenInner(sgd(m)), plainly),
    "calls super": (lambda m: CallsSuper(m.parameters(), lr=0.1), plainly),
}
WAYS = pytest.mark.parametrize(("make", "step"), STEPS.values(), ids=STEPS)


@WAYS
@pytest.mark.parametrize("given", [True, False])
def test_every_way_to_make_a_step_is_one_step(make, step, given):
    m = model()
    optimizer = make(m)
    before = m["head"].weight.detach().clone()
    with FrozenGuard(m).attach(optimizer if given else None) as guard:
        for _ in range(3):
            step(m, optimizer)
    assert (guard.step, guard.checks) == (3, 3)
    assert not torch.equal(m["head"].weight, before)


@WAYS
def test_a_change_between_two_steps_is_found_at_the_next(make, step):
    m = model()
    optimizer = make(m)
    guard = FrozenGuard(m).attach(optimizer)
    step(m, optimizer)
    move(m)
    with pytest.raises(FrozenWeightsChanged) as caught:
        step(m, optimizer)
    assert caught.value.names == ("encoder.weight_hh_l0",)
    assert caught.value.step == 2
    guard._leave()


def test_a_skipped_step_of_a_scaler_is_no_step():
    m = model()
    optimizer = sgd(m)
    scaler = torch.amp.GradScaler("cpu")
    with FrozenGuard(m).attach(optimizer) as guard:
        scaler.scale(loss(m)).backward()
        m["head"].weight.grad[0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        plainly(m, optimizer)
    assert (guard.step, guard.checks) == (1, 1)


def test_two_optimizers_by_turns_count_together_and_others_do_not():
    m = model()
    unfreeze(m, "encoder[1]")
    top = torch.optim.SGD(m["encoder"].parameters(), lr=0.1)
    head = torch.optim.SGD(m["head"].parameters(), lr=0.1)
    other = nn.Linear(2, 2)
    strange = torch.optim.SGD(other.parameters(), lr=0.1)
    with FrozenGuard(m).attach([top, head]) as both, FrozenGuard(m).attach(head) as one:
        for _ in range(2):
            loss(m).backward()
            top.step()
            head.step()
            strange.step()
    assert (both.step, one.step) == (4, 2)


def test_without_an_argument_every_optimizer_of_the_process_counts():
    m, other = model(), nn.Linear(2, 2)
    guard = FrozenGuard(m).attach(every_n_steps=2)
    strange = torch.optim.SGD(other.parameters(), lr=0.1)
    strange.step()
    plainly(m, sgd(m))
    assert (guard.step, guard.checks) == (2, 1)
    guard.detach()


def test_an_optimizer_that_is_built_anew_is_followed():
    m = model()
    optimizer = sgd(m)
    guard = FrozenGuard(m).attach(optimizer)
    plainly(m, optimizer)
    optimizer = torch.optim.Adam(trainable(m), lr=0.1)
    plainly(m, optimizer)
    assert (guard.step, guard.checks) == (2, 2)
    move(m)
    with pytest.raises(FrozenWeightsChanged, match=r"after step 3 \(unchanged up to step 2\)"):
        plainly(m, optimizer)
    guard._leave()


def test_a_pickled_optimizer_that_comes_back_is_followed_with_its_module():
    m = model()
    m, optimizer = pickle.loads(pickle.dumps((m, sgd(m))))
    with FrozenGuard(m).attach(optimizer) as guard:
        plainly(m, optimizer)
        plainly(m, copy.copy(optimizer))
    assert guard.step == 2


def test_a_step_that_raises_leaves_no_step_open():
    m = model()

    class Fails(SAM):
        fail = True

        def second_step(self):
            if self.fail:
                raise KeyError("stop")
            super().second_step()

    optimizer = Fails(m.parameters(), lr=0.1)
    with FrozenGuard(m).attach(optimizer) as guard:
        with pytest.raises(KeyError):
            with_closure(m, optimizer)
        optimizer.fail = False
        by_halves(m, optimizer)
        with_closure(m, optimizer)
    assert guard.step == 2


def test_one_guard_that_raises_keeps_no_other_from_its_step():
    first, second = model(), model()
    guards = [FrozenGuard(m).attach() for m in (first, second)]
    move(first)
    with pytest.raises(FrozenWeightsChanged):
        plainly(second, sgd(second))
    assert [guard.step for guard in guards] == [1, 1]
    assert guards[1].checks == 1
    for guard in guards:
        guard._leave()


# Steps that nobody can see


class NotOfTorch:
    """Moves weights, and is no torch optimizer."""

    def __init__(self, m):
        self.m = m

    def step(self):
        with torch.no_grad():
            for p in self.m.parameters():
                p -= 0.1


@pytest.mark.parametrize("given", [True, False])
def test_the_end_compares_whatever_steps_were_seen(given):
    m = model()
    optimizer = sgd(m)
    with (
        pytest.raises(FrozenWeightsChanged, match=r"encoder\.weight_hh_l0"),
        FrozenGuard(m).attach(optimizer if given else None),
    ):
        NotOfTorch(m).step()


def test_the_end_compares_what_was_written_after_the_last_check():
    m = model()
    optimizer = sgd(m)

    def write_after_the_last_step():
        with FrozenGuard(m).attach(optimizer) as guard:
            plainly(m, optimizer)
            assert guard.checks == 1
            move(m)

    with pytest.raises(FrozenWeightsChanged, match=r"seen at the end after step 1 \(unchanged"):
        write_after_the_last_step()
    guard = FrozenGuard(m).attach(optimizer)
    plainly(m, optimizer)
    move(m)
    with pytest.raises(FrozenWeightsChanged):
        guard.detach()
    guard.detach()
    assert hooks_left() == 0


def test_a_block_without_an_optimizer_compares_at_its_end():
    m = model()
    with pytest.raises(FrozenWeightsChanged), FrozenGuard(m):
        move(m)
    with FrozenGuard(m) as guard:
        pass
    assert guard.checks == 1


def monkeypatched(m):
    optimizer = sgd(m)
    optimizer.step = lambda: None
    return optimizer


def by_block(guard, optimizer):
    with guard:
        if "step" in vars(optimizer):
            optimizer.step()


def by_detach(guard, optimizer):
    guard.detach()


@pytest.mark.parametrize("make", [sgd, monkeypatched])
@pytest.mark.parametrize("end", [by_block, by_detach])
def test_attached_and_never_stepped_is_a_warning_at_the_users_line(make, end):
    m = model()
    optimizer = make(m)
    guard = FrozenGuard(m).attach(optimizer)
    with pytest.warns(UserWarning, match=NEVER_STEPPED) as caught:
        end(guard, optimizer)
    assert [one.filename for one in caught] == [__file__]
    assert guard.checks == 1


def test_no_warning_where_an_exception_is_on_its_way():
    m = model()
    with pytest.raises(KeyError), FrozenGuard(m).attach(sgd(m)):
        raise KeyError


# Two guards


@pytest.mark.parametrize("rebuilt", [False, True])
def test_a_second_guard_takes_the_place_of_the_first(rebuilt):
    """As a notebook cell that is run again."""
    m = model()
    optimizer = sgd(m)
    kept = FrozenGuard(m).attach(optimizer)
    move(m)
    with pytest.raises(FrozenWeightsChanged):
        plainly(m, optimizer)
    old = optimizer
    optimizer = sgd(m) if rebuilt else optimizer
    guard = FrozenGuard(m).attach(optimizer)
    plainly(m, optimizer)
    plainly(m, old)
    assert (kept.step, guard.step, guard.checks) == (1, 2, 2)
    with pytest.raises(FrozenWeightsChanged):
        kept.check()
    guard.detach()


def test_without_an_argument_a_guard_takes_every_place_of_its_module_only():
    m, other = model(), model()
    optimizer = sgd(m)
    first = FrozenGuard(m).attach(optimizer)
    apart = FrozenGuard(other).attach(sgd(other))
    second = FrozenGuard(nn.DataParallel(m)).attach()
    plainly(m, optimizer)
    assert (first.step, second.step) == (0, 1)
    assert hooks_left() == 1
    assert "attached to SGD" not in repr(first)
    apart._leave()
    second._leave()


def test_guards_of_other_optimizers_and_inside_blocks_keep_their_places():
    m = model()
    unfreeze(m, "encoder[1]")
    top = torch.optim.SGD(m["encoder"].parameters(), lr=0.1)
    head = torch.optim.SGD(m["head"].parameters(), lr=0.1)
    apart = FrozenGuard(m).attach(top)
    with FrozenGuard(m).attach(head) as outer, FrozenGuard(m, "fingerprint").attach(head) as inner:
        loss(m).backward()
        top.step()
        head.step()
    assert (apart.step, outer.step, inner.step) == (1, 1, 1)
    apart.detach()


def test_the_message_says_which_of_several_guards_it_is():
    m = model()
    optimizer = sgd(m)
    with FrozenGuard(m).attach(optimizer) as outer:
        inner = FrozenGuard(m, "fingerprint").attach(optimizer)
        move(m)
        for guard in (outer, inner):
            with pytest.raises(FrozenWeightsChanged, match="this is the FrozenGuard made at") as c:
                guard.check()
            assert f"made at {__file__}:" in str(c.value)
        inner.remember()
        outer.remember()
        plainly(m, optimizer)
        inner.detach()
    alone = FrozenGuard(m)
    move(m)
    with pytest.raises(FrozenWeightsChanged) as caught:
        alone.check()
    assert "made at" not in str(caught.value)


# Copies


def test_a_copy_of_a_guard_belongs_to_the_copy_of_its_module():
    m = model()
    optimizer = sgd(m)
    guard = FrozenGuard(m).attach(optimizer)
    for other, its_guard in (copy.deepcopy((m, guard)), pickle.loads(pickle.dumps((m, guard)))):
        its_guard.check()
        move(other)
        with pytest.raises(FrozenWeightsChanged, match=r"encoder\.weight_hh_l0"):
            its_guard.check()
        its_guard.remember()
        unfreeze(other, "encoder")
        move(other)
        its_guard.check()
        with FrozenGuard(other).attach(its_optimizer := sgd(other)) as third:
            plainly(other, its_optimizer)
        assert third.step == 1
    plainly(m, optimizer)
    assert guard.step == 1
    guard.detach()


def test_a_module_with_an_attached_guard_is_saved_without_it():
    m = model()
    guard = FrozenGuard(m).attach(sgd(m))
    assert b"_guard" not in pickle.dumps(m).replace(b"_frozen_guards", b"")
    assert not copy.deepcopy(m)._frozen_guards
    guard._leave()
    assert "_frozen_guards" not in vars(m)


def test_a_guard_of_a_module_that_is_gone_holds_nothing():
    m = model()
    gone = weakref.ref(m)
    FrozenGuard(m).attach()
    FrozenGuard(m).attach(sgd(m))
    del m
    gc.collect()
    assert gone() is None


# What leaves is compared first


def by_unfreeze(m, handle):
    unfreeze(m, "encoder")


def by_undo(m, handle):
    handle.undo()


def by_only(m, handle):
    unfreeze(m, "encoder[1]", only=True)
    unfreeze(m, "encoder[0]", only=True)


LEAVING = pytest.mark.parametrize("leave", [by_unfreeze, by_undo, by_only])


@LEAVING
def test_an_attached_guard_refuses_to_let_a_changed_weight_go(leave):
    m = unfrozen()
    handle = freeze(m, "encoder")
    optimizer = sgd(m)
    guard = FrozenGuard(m).attach(optimizer)
    plainly(m, optimizer)
    move(m)
    with pytest.raises(FrozenWeightsChanged, match="as it was about to be unfrozen after step 1"):
        leave(m, handle)
    assert not m["encoder"].weight_hh_l0.requires_grad
    leave(m, handle)  # it was reported
    guard.check()
    guard.detach()


@LEAVING
def test_another_guard_says_it_at_its_next_check(leave):
    m = unfrozen()
    handle = freeze(m, "encoder")
    guard = FrozenGuard(m)
    move(m)
    leave(m, handle)
    with pytest.raises(FrozenWeightsChanged, match="as it was about to be unfrozen"):
        guard.check()
    guard.check()


def test_a_with_block_that_is_left_compares_first_and_undoes_all_the_same():
    m = nn.Linear(2, 2)
    guard = FrozenGuard(m).attach(sgd(m))
    with pytest.raises(FrozenWeightsChanged), freeze(m, "weight"):
        m.weight.data += 1
    assert m.weight.requires_grad

    def fail():
        with freeze(m, "weight"):
            m.weight.data += 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert m.weight.requires_grad
    guard._leave()


def test_a_schedule_compares_what_a_phase_unfreezes():
    from lstm_freeze import FreezeSchedule

    m = model()
    optimizer = sgd(m)
    schedule = FreezeSchedule({0: "head", 1: ["head", "encoder[1]"], 2: "*"})
    with FrozenGuard(m).attach(optimizer, every_n_steps=100) as guard:
        schedule.apply(m, 0, optimizer)
        plainly(m, optimizer)
        schedule.apply(m, 1, optimizer)
        plainly(m, optimizer)
        move(m)
        with pytest.raises(FrozenWeightsChanged) as caught:
            schedule.apply(m, 2, optimizer)
        guard.remember()
    assert caught.value.names == ("encoder.weight_hh_l0",)
    assert caught.value.step == 2


def test_statistics_that_leave_with_their_layer_are_compared():
    m = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    freeze(m, "1")
    guard = FrozenGuard(m)
    m[1].running_mean += 1
    unfreeze(m, "1.bias")
    with pytest.raises(FrozenWeightsChanged) as caught:
        guard.check()
    assert caught.value.names == ("1.running_mean",)


# TorchScript


@pytest.mark.parametrize("mode", ["exact", "fingerprint"])
def test_torchscript_modules(mode):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        m = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)))
    m[0].requires_grad_(False)
    m[1].requires_grad_(False)
    optimizer = sgd(m)
    m.eval()
    with FrozenGuard(m, mode).attach(optimizer) as guard:
        m(torch.randn(4, 3)).sum().backward()
        optimizer.step()
    assert guard.checks == 1
    m.train()
    m(torch.randn(4, 3))
    with pytest.raises(FrozenWeightsChanged, match="running statistics"):
        guard.check()
    guard.remember()
    m[0].weight.data += 1
    with pytest.raises(FrozenWeightsChanged) as caught:
        guard.check()
    assert caught.value.names == ("0.weight",)


@pytest.mark.parametrize("mode", ["exact", "fingerprint"])
def test_a_parameter_of_one_element_with_a_stride(mode):
    m = nn.ParameterList([nn.Parameter(torch.randn(1, 5)[:, 0], requires_grad=False)])
    guard = FrozenGuard(m, mode)
    guard.check()
    m[0].data += 1
    with pytest.raises(FrozenWeightsChanged, match=r"^1 frozen tensor"):
        guard.check()
