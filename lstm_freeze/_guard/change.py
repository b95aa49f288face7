"""Change: a tensor that had to stay as it was, then and now."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .._hashing import Bits, bits_of, difference, has_bits, tensor_of
from .remembered import Key, Remembered
from .snapshot import Snapshot, version_of


@dataclass(frozen=True)
class Change:
    """One remembered tensor whose bits have changed.

    Attributes:
        name: The name it is reported under.
        remembered: The tensor, as it is remembered.
        was: Its snapshot.
        now: The present tensor; None where there is none.
        replaced: The name refers to another Parameter now, or to none.
    """

    name: str
    remembered: Remembered
    was: Snapshot
    now: Tensor | None
    replaced: bool = False

    @property
    def key(self) -> Key:
        """The key of the remembered tensor."""
        return self.remembered.key

    @cached_property
    def present(self) -> Bits | None:
        """The present bits; None where there are none."""
        return bits_of(self.now) if self.now is not None and has_bits(self.now) else None

    @property
    def converted(self) -> bool:
        """Whether dtype or shape has changed."""
        return self.present is not None and self.present[:2] != self._form

    @property
    def unseen(self) -> bool:
        """Whether autograd saw no write to it."""
        version = self.was.version
        return self.now is not None and version is not None and version == version_of(self.now)

    @property
    def _form(self) -> tuple[torch.dtype, torch.Size]:
        return self.was.dtype, self.was.shape

    @cached_property
    def new_and_old(self) -> tuple[Tensor, Tensor] | None:
        """The tensor now and before; None where elements cannot be compared."""
        if self.present is None or isinstance(self.was.content, int) or self.converted:
            return None
        return tensor_of(self.present), tensor_of(self.was.bits_on(self.present.words.device))

    @cached_property
    def extent(self) -> tuple[int, float] | None:
        """How many elements changed and the largest change; None where that is not known."""
        return difference(*self.new_and_old) if self.new_and_old else None

    @property
    def whole(self) -> bool:
        """Whether most elements changed; also where that is not known."""
        if not self.new_and_old or not self.extent:
            return True
        return 2 * self.extent[0] > self.new_and_old[0].numel()

    def __str__(self) -> str:
        others = [name for name in self.remembered.names if name != self.name]
        ties = f" (tied: also {', '.join(others)})" if others else ""
        return f"{self.name}{ties}: {self._amount()}"

    def _amount(self) -> str:
        if self.present is None:
            return "gone" if self.now is None else "has no values any more"
        if self.converted:
            was, now = (f"{d} {tuple(s)}" for d, s in (self._form, self.present[:2]))
            return f"{was} became {now}".replace("torch.", "")
        if not self.new_and_old or not self.extent:
            return 'how many elements moved and how far is known in mode="exact" only'
        moved, largest = self.extent
        if not moved:
            return "another object with the same bits"
        size = "NaN" if largest != largest else f"{largest:.3g}"
        if not largest:
            size += " (the sign of a zero)"
        total = self.new_and_old[0].numel()
        return f"{moved:,} of {total:,} elements moved, largest change {size}"
