"""A phase's best weights: what trains and the buffers, kept on the CPU and written back."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copy everything of the module's state that training changes."""
    frozen = {
        name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad
    }
    return {
        name: value.detach().to("cpu", copy=True)
        for name, value in module.state_dict().items()
        if name not in frozen and isinstance(value, Tensor)
    }


@torch.no_grad()
def load_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Write copied values back into the same tensors."""
    for name, value in module.state_dict().items():
        if name in weights:
            value.copy_(weights[name])
