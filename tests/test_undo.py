"""The youngest live handle decides; undoing all, in any order, restores exactly what was."""

import gc
import itertools
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lstm_freeze import freeze, unfreeze
from lstm_freeze._freezing import undo
from lstm_freeze._freezing.switches import Slot
from lstm_freeze._model import Tree


class Lamp:
    """A switch of its own module."""

    parameter = None

    def __init__(self, on=False):
        self.on_now = on
        self.slots = (Slot(nn.Module(), "", "lamp"),)

    def read(self):
        return self.on_now

    def write(self, value):
        self.on_now = value

    def on(self, slot, owner, tree):
        yield self


NOWHERE = Tree(nn.Module())


class Model:
    """The rule itself, with no weak references: a stack of (handle, value) above the first value.

    A handle that is dropped stays in the stack for ever.
    """

    def __init__(self, before):
        self.before = before
        self.stack = []

    @property
    def value(self):
        return self.stack[-1][1] if self.stack else self.before

    def decide(self, handle, value):
        self.stack.append((handle, value))

    def withdraw(self, handle):
        self.stack = [entry for entry in self.stack if entry[0] != handle]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["freeze", "unfreeze", "undo", "drop", "collect"]),
        st.integers(0, 7),
        st.integers(0, 7),
    ),
    max_size=30,
)


@pytest.fixture
def only_new_objects_are_collected():
    """So that a collection takes no longer than the few objects of a test deserve."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.filterwarnings("ignore:nothing in this module is trainable any more")
@pytest.mark.usefixtures("only_new_objects_are_collected")
@settings(max_examples=200, deadline=None)
@given(st.lists(st.booleans(), min_size=3, max_size=3), STEPS)
def test_any_sequence_agrees_with_the_rule(before, steps):
    layers = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in before)
    for layer, value in zip(layers, before, strict=True):
        layer.weight.requires_grad_(value)
    rules = [Model(value) for value in before]
    live = {}
    serial = itertools.count()
    for step, which, other in steps:
        if step in ("freeze", "unfreeze"):
            subset = sorted({which % 3, other % 3})
            key = next(serial)
            call = freeze if step == "freeze" else unfreeze
            live[key] = call(layers, *map(str, subset))
            for i in subset:
                rules[i].decide(key, step == "unfreeze")
        elif step == "collect":
            gc.collect()
        elif live:
            key = sorted(live)[which % len(live)]
            handle = live.pop(key)
            if step == "undo":
                handle.undo()
                for rule in rules:
                    rule.withdraw(key)
            del handle
        assert [layer.weight.requires_grad for layer in layers] == [rule.value for rule in rules]
    for key in list(live):
        live.pop(key).undo()
        for rule in rules:
            rule.withdraw(key)
    assert [layer.weight.requires_grad for layer in layers] == [rule.value for rule in rules]


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
@pytest.mark.parametrize("values", [*itertools.product((False, True), repeat=3)])
@pytest.mark.parametrize("before", [False, True])
def test_undoing_all_in_any_order_restores_what_was(before, values, order):
    lamp = Lamp(before)
    calls = [undo.Call() for _ in values]
    entries = []
    for call, value in zip(calls, values, strict=True):
        entries.append(undo.decide(call, lamp, value))
        assert lamp.on_now is value
    left = list(range(3))
    for i in order:
        undo.withdraw(calls[i], [entries[i]], NOWHERE)
        left.remove(i)
        assert lamp.on_now is (values[left[-1]] if left else before)
    assert not undo._ledger[lamp.slots[0].owner]


def test_a_dropped_handle_decides_for_ever():
    lamp = Lamp(False)
    older, younger = undo.Call(), undo.Call()
    first = undo.decide(older, lamp, False)
    undo.decide(younger, lamp, True)
    del younger
    gc.collect()
    youngest = undo.Call()
    last = undo.decide(youngest, lamp, False)
    undo.withdraw(older, [first], NOWHERE)
    assert lamp.on_now is False
    undo.withdraw(youngest, [last], NOWHERE)
    assert lamp.on_now is True


@pytest.mark.parametrize("collect", [False, True])
def test_garbage_collection_cannot_be_observed(collect):
    layer = nn.Linear(2, 2)
    first = freeze(layer)
    dropped = unfreeze(layer)
    cycle = [dropped]
    cycle.append(cycle)
    del dropped, cycle
    if collect:
        gc.collect()
    layer.weight.requires_grad_(False)  # by hand: overridden by the next undo
    second = freeze(layer)
    second.undo()
    assert layer.weight.requires_grad
    first.undo()
    assert layer.weight.requires_grad


def test_the_record_does_not_grow_with_a_scheduler_that_drops_its_handles():
    layer = nn.Linear(2, 2)
    live = freeze(layer)
    for _ in range(100):
        freeze(layer)
        unfreeze(layer)
    records = undo._ledger[layer]
    assert set(records) == {"weight", "bias"}
    assert all(len(record.decisions) <= 2 for record in records.values())
    live.undo()
    assert layer.weight.requires_grad


def test_a_record_dies_with_its_owner():
    layer = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    handle = freeze(layer)
    linear, norm = weakref.ref(layer[0]), weakref.ref(layer[1])
    size, known = len(undo._ledger), len(undo._by_parameter)
    del handle, layer
    gc.collect()
    assert linear() is norm() is None
    assert len(undo._ledger) <= size - 2
    assert len(undo._by_parameter) <= known - 4


def test_owners_are_compared_by_identity():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.weight, second.weight)
    with freeze(first):
        assert second.weight.requires_grad
        assert second not in undo._ledger
