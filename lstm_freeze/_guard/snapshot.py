"""Snapshot: a tensor's form, and its bits or their fingerprint, when it was remembered."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._hashing import Bits, stored


@dataclass(frozen=True)
class Snapshot:
    """A tensor as it was when it was remembered.

    Attributes:
        dtype: Its dtype.
        shape: Its shape; of a DTensor that of the local shard.
        content: Its bits, or their fingerprint.
        version: Autograd's count of the writes to it; None for an inference tensor.
    """

    dtype: torch.dtype
    shape: torch.Size
    content: Bits | int
    version: int | None

    @classmethod
    def of(cls, tensor: Tensor, content: Bits | int) -> Snapshot:
        """The snapshot of a tensor whose bits or fingerprint are given."""
        local = stored(tensor)
        return cls(local.dtype, local.shape, content, version_of(tensor))

    def bits_on(self, device: torch.device) -> Bits:
        """The bits on a device, to which the module may have moved."""
        if isinstance(self.content, int):
            raise TypeError("a fingerprint has no bits")
        words, rest = self.content.words.to(device), self.content.rest.to(device)
        return self.content._replace(words=words, rest=rest)


def version_of(tensor: Tensor) -> int | None:
    """Autograd's count of the writes to a tensor; None for an inference tensor."""
    return None if tensor.is_inference() else tensor._version
