"""A phase's best state: the weights and buffers that it trains, copied and written back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


def copy_state(module: nn.Module, scope: Iterable[nn.Parameter]) -> dict[str, Tensor]:
    """Copy, to the CPU, the trainable parameters of a scope and the buffers that belong to it.

    A buffer belongs to the scope if all parameters of its own module do; for a module without
    parameters, those of the nearest module around it.
    """
    ids = {id(p) for p in scope}
    left_out = {
        name
        for name, p in module.named_parameters(remove_duplicate=False)
        if id(p) not in ids or not p.requires_grad
    }
    left_out |= set(_buffers_outside(module, ids))
    return {
        name: value.detach().to("cpu", copy=True)
        for name, value in module.state_dict().items()
        if name not in left_out and isinstance(value, Tensor)
    }


@torch.no_grad()
def write_back(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Write copied values back into the module's own tensors."""
    for name, value in module.state_dict().items():
        if name in state:
            value.copy_(state[name])


def _buffers_outside(module: nn.Module, ids: set[int]) -> Iterator[str]:
    modules = dict(module.named_modules(remove_duplicate=False))
    for name, _ in module.named_buffers(remove_duplicate=False):
        path = name.rpartition(".")[0]
        while path and not any(True for _ in modules[path].parameters()):
            path = path.rpartition(".")[0]
        if not all(id(p) in ids for p in modules[path].parameters()):
            yield name
