"""What each live handle decided, so that undoing in any order restores exactly what was.

For every switch (a parameter's requires_grad, a layer's dropout, ...) the ledger keeps the value
from before any handle and, above it, one decision per live handle, oldest first. The youngest
decides. A handle that nobody holds any more can never be undone: whatever lies below its decision
can never show again and is dropped, which keeps the record of a scheduler that drops its handles
at one decision, and makes the moment of garbage collection unobservable.
"""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch.utils.weak import WeakIdKeyDictionary


class Switch(Protocol):
    """One thing that freezing turns on or off. Its owner is compared by identity."""

    @property
    def owner(self) -> Any:
        """The object that has it; while it lives, so does its record."""

    @property
    def name(self) -> str:
        """Which of the owner's switches."""

    def read(self) -> bool:
        """The present value."""

    def write(self, value: bool) -> None:
        """Set it; writing the present value again is harmless."""


@dataclass
class _Record:
    before: bool
    final: bool = False  # `before` is the decision of a handle that can no longer be undone
    decisions: list[tuple[weakref.ref[Any], bool]] = field(default_factory=list)

    @property
    def value(self) -> bool:
        return self.decisions[-1][1] if self.decisions else self.before

    def drop_hidden(self) -> None:
        for i in reversed(range(len(self.decisions))):
            handle, value = self.decisions[i]
            if handle() is None:
                self.before, self.final = value, True
                del self.decisions[: i + 1]
                return


_records: MutableMapping[Any, dict[str, _Record]] = WeakIdKeyDictionary()


def decide(handle: object, switch: Switch, value: bool) -> None:
    """Turn a switch in the name of a handle, which decides until a younger one does."""
    switches = _records.setdefault(switch.owner, {})
    record = switches.setdefault(switch.name, _Record(switch.read()))
    record.drop_hidden()
    record.decisions.append((weakref.ref(handle), value))
    switch.write(value)


def withdraw(handle: object, switch: Switch) -> None:
    """Take a handle's decision back; the youngest one left decides."""
    switches = _records[switch.owner]
    record = switches[switch.name]
    record.decisions = [d for d in record.decisions if d[0]() is not handle]
    record.drop_hidden()
    switch.write(record.value)
    if not (record.decisions or record.final):
        del switches[switch.name]
