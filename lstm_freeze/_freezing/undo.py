"""Records of what each live handle decided, so that undo in any order restores what was before.

For each switch (a parameter's requires_grad, a layer's dropout, ...) a record keeps the value
before all calls and the decision of each live call, oldest first. The youngest decision counts. A
call whose handle does not exist any more can never be undone. So the decisions older than its own
can never count again, and are dropped. The records of a scheduler that drops its handles stay
short, and it makes no difference when garbage is collected.

Records belong to modules and names, not to Parameters: these may be replaced under their name
(`load_state_dict(assign=True)`, a parametrization) or swapped (`torch.utils.swap_tensors`, which
refuses tensors that have weak references).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from .._model import Tree
from .switches import WHOLE, Slot, Switch, covers, parameter_at


class Call:
    """One call that froze or unfroze. Its handle keeps it alive; then it can be undone.

    Copying or pickling a handle copies its call, and the records with decisions of it.
    """


class Decision(NamedTuple):
    """What one call decided about one part of a parametrised tensor, or about the whole."""

    call: weakref.ref[Call]
    part: str
    value: bool


@dataclass(eq=False)
class Record:
    """The decisions about one switch.

    Attributes:
        before: The value of each part before any call decided about it.
        decisions: Oldest first.
        slots: Where the switch is kept: the module (weakly), the name and the part.
    """

    before: dict[str, bool] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    slots: list[tuple[weakref.ref[nn.Module], str, str]] = field(default_factory=list)

    def value(self, part: str) -> bool:
        """The value that the youngest call decided, or the value before all calls."""
        for decision in reversed(self.decisions):
            if covers(decision.part, part):
                return decision.value
        if part in self.before:
            return self.before[part]
        return next((v for p, v in self.before.items() if covers(p, part)), True)

    def add(self, call: Call, part: str, value: bool) -> None:
        """Add the decision of a call."""
        self._drop_hidden()
        self.decisions.append(Decision(weakref.ref(call), part, value))

    def withdraw(self, call: Call) -> None:
        """Remove the decisions of a call."""
        self.decisions[:] = [d for d in self.decisions if d.call() is not call]
        self._drop_hidden()

    def join(self, other: Record) -> None:
        """Share all decisions with another record, whose parameter is tied to this one now."""
        self.decisions += [d for d in other.decisions if d not in self.decisions]
        for part, value in other.before.items():
            self.before.setdefault(part, value)
        other.decisions, other.before = self.decisions, self.before

    def _drop_hidden(self) -> None:
        """Drop every decision below one for the same part that can no longer be undone."""
        settled: set[str] = set()
        kept: list[Decision] = []
        for decision in reversed(self.decisions):
            if WHOLE in settled or decision.part in settled:
                continue
            if decision.call() is None:
                settled.add(decision.part)
            kept.append(decision)
        self.decisions[:] = kept[::-1]

    def __getstate__(self) -> dict[str, Any]:
        # Weak references cannot be copied, so the state has the calls themselves. A call without
        # its handle in the copy is freed with the state: in the copy it can never be undone.
        return {"before": self.before, "decisions": [(d.call(), *d[1:]) for d in self.decisions]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.before, self.slots = state["before"], []
        self.decisions = [
            Decision(weakref.ref(call or Call()), part, value)
            for call, part, value in state["decisions"]
        ]


@dataclass(frozen=True, eq=False)
class Entry:
    """One decision in a handle: the switch that was turned, and the switch's record."""

    switch: Switch
    record: Record


_ledger: MutableMapping[nn.Module, dict[str, Record]] = weakref.WeakKeyDictionary()
# By the id of a Parameter, since modules that share a tied one may not know of each other. An id
# may belong to another object by now, so each use checks that a slot of the record holds it.
_by_parameter: MutableMapping[int, Record] = weakref.WeakValueDictionary()
_arrived: list[Sequence[Entry]] = []  # of copied or unpickled handles, not yet in the ledger


def decide(call: Call, switch: Switch, value: bool) -> Entry:
    """Turn a switch for a call; its decision counts until a younger call decides."""
    _record_arrived()
    record = _record_of(switch) or Record()
    _keep(record, switch)
    part = switch.slots[0].part
    if not any(covers(decision.part, part) for decision in record.decisions):
        record.before[part] = switch.read()
    record.add(call, part, value)
    switch.write(value)
    return Entry(switch, record)


def withdraw(call: Call, entries: Sequence[Entry], tree: Tree) -> list[Switch]:
    """Take back a call's decisions, under the names as they are now; returns the turned switches.

    Args:
        call: The call.
        entries: What it decided.
        tree: The module that the call was given, as it is now.
    """
    _record_arrived()
    for entry in entries:
        entry.record.withdraw(call)
    present = set(map(id, tree.modules.values()))
    turned = []
    for entry in entries:
        for switch in _successors(entry.switch, tree, present):
            part = switch.slots[0].part
            record = _record_of(switch) or entry.record
            if record is not entry.record:
                # The module was replaced and frozen again; this call made it what it was before.
                record.before[part] = entry.record.value(part)
            switch.write(record.value(part))
            turned.append(switch)
        if not entry.record.decisions:
            _forget(entry.record)
    return turned


def arrive(entries: Sequence[Entry]) -> None:
    """Keep the decisions of a copied or unpickled handle until its module is complete."""
    _arrived.append(entries)


def _record_arrived() -> None:
    while _arrived:
        for entry in _arrived.pop():
            for slot in entry.switch.slots:
                present = _ledger.setdefault(slot.owner, {}).get(slot.name)
                if present is not None and present is not entry.record:
                    entry.record.join(present)
            _keep(entry.record, entry.switch)


def _record_of(switch: Switch) -> Record | None:
    found: list[Record] = []
    for slot in switch.slots:
        record = _ledger.get(slot.owner, {}).get(slot.name)
        if record is not None and record not in found:
            found.append(record)
    parameter = switch.parameter
    record = None if parameter is None else _by_parameter.get(id(parameter))
    if record is not None and record not in found and _holds(record, parameter):
        found.append(record)
    for other in found[1:]:
        found[0].join(other)
    return found[0] if found else None


def _holds(record: Record, parameter: nn.Parameter | None) -> bool:
    places = ((module(), name, part) for module, name, part in record.slots)
    return any(m is not None and parameter_at(m, n, p) is parameter for m, n, p in places)


def _keep(record: Record, switch: Switch) -> None:
    for slot in switch.slots:
        records = _ledger.setdefault(slot.owner, {})
        place = (weakref.ref(slot.owner), slot.name, slot.part)
        if records.get(slot.name) is not record or place not in record.slots:
            records[slot.name] = record
            record.slots.append(place)
    if switch.parameter is not None:
        _by_parameter[id(switch.parameter)] = record


def _forget(record: Record) -> None:
    for reference, name, _ in record.slots:
        if (module := reference()) is not None and _ledger.get(module, {}).get(name) is record:
            del _ledger[module][name]
    record.slots.clear()


def _successors(switch: Switch, tree: Tree, present: set[int]) -> Iterator[Switch]:
    """The switches that now correspond to one that was turned.

    If the module is still part of the tree, at any path, it is that module's switch. Else it is the
    switch of the module that is at its path now, and also that of the old module.
    """
    for slot in switch.slots:
        yield from switch.on(slot, slot.owner, tree)
        heir = tree.modules.get(slot.path)
        if id(slot.owner) not in present and heir is not None:
            yield from switch.on(Slot(heir, slot.path, slot.name, slot.part), heir, tree)
