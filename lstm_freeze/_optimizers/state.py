"""What freezing asks of optimizers: that they hold what is unfrozen and forget what is frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer


def as_optimizers(optimizer: Any) -> tuple[Optimizer, ...]:
    """One or several optimizers as a tuple, each taken out of Lightning's wrapper.

    Raises:
        TypeError: Something in it is not an optimizer.
        ValueError: It is empty.
    """
    if optimizer is None:
        return ()
    several = isinstance(optimizer, Iterable) and not isinstance(optimizer, Optimizer)
    found = []
    for item in optimizer if several else (optimizer,):
        inner = getattr(item, "optimizer", item)
        if not isinstance(inner, Optimizer):
            raise TypeError(
                "`optimizer` must be a torch.optim.Optimizer or several of them, "
                f"got {type(item).__name__}"
            )
        found.append(inner)
    if not found:
        raise ValueError(f"`optimizer` must be at least one optimizer, got {optimizer!r}")
    return tuple(found)


def refuse_lbfgs(optimizers: Iterable[Optimizer], frozen: Iterable[nn.Parameter]) -> None:
    """Raise ValueError for an optimizer that moves what is frozen whatever is done."""
    ids = {id(p) for p in frozen}
    for optimizer in optimizers:
        if isinstance(optimizer, LBFGS) and any(
            id(p) in ids for group in optimizer.param_groups for p in group["params"]
        ):
            raise ValueError(
                "`optimizer` is an LBFGS that holds what is frozen, and its flat history moves "
                "every parameter it holds; use another optimizer, or build an LBFGS over the "
                "trainable parameters alone"
            )


def require_held(optimizers: tuple[Optimizer, ...], parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise ValueError if one of the parameters is in no group of the optimizers, if any."""
    held = {id(p) for optimizer in optimizers for g in optimizer.param_groups for p in g["params"]}
    missing = [name for name, p in parameters.items() if id(p) not in held]
    if optimizers and missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"`optimizer` holds no {', '.join(missing[:3])}{more}: unfrozen, it would never train; "
            "build the optimizer over all parameters, frozen ones too "
            "(param_groups(module, lr) lists them), or call optimizer.add_param_group first"
        )


def drop_state(optimizers: Iterable[Optimizer], parameters: Iterable[nn.Parameter]) -> None:
    """Forget momentum and the like, so that a later unfreeze begins afresh."""
    parameters = tuple(parameters)
    for optimizer in optimizers:
        for parameter in parameters:
            optimizer.state.pop(parameter, None)


def prepare_fused_momentum(
    optimizers: Iterable[Optimizer], parameters: Iterable[nn.Parameter]
) -> None:
    """Give newly trainable parameters the zero momentum that fused SGD requires of all or none.

    With a zero buffer the first step is that of an empty one when dampening is 0.
    """
    newcomers = {id(p) for p in parameters}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if not (
                isinstance(optimizer, torch.optim.SGD) and group["fused"] and group["momentum"]
            ):
                continue
            buffers = [
                optimizer.state[p].get("momentum_buffer")
                for p in group["params"]
                if p in optimizer.state
            ]
            if all(buffer is None for buffer in buffers):
                continue
            for p in group["params"]:
                if id(p) in newcomers and optimizer.state[p].get("momentum_buffer") is None:
                    optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
