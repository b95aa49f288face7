"""What freezing requires of optimizers: they hold what is unfrozen, and move nothing frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from .wrappers import with_inner


def refuse_lbfgs(optimizers: Iterable[Optimizer], frozen: Iterable[nn.Parameter]) -> None:
    """Raise ValueError for LBFGS that holds frozen parameters, which it would move."""
    ids = {id(p) for p in frozen}
    for optimizer in with_inner(optimizers):
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
    groups = (group for optimizer in with_inner(optimizers) for group in optimizer.param_groups)
    held = {id(p) for group in groups for p in group["params"]}
    missing = [name for name, p in parameters.items() if id(p) not in held]
    if optimizers and missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"`optimizer` holds no {', '.join(missing[:3])}{more}: unfrozen, it would never train; "
            "build the optimizer over all parameters, frozen ones too "
            "(param_groups(module, lr) lists them), or call optimizer.add_param_group first"
        )


def prepare_fused_momentum(
    optimizers: Iterable[Optimizer], parameters: Iterable[nn.Parameter]
) -> None:
    """Give newly trainable parameters zero momentum: fused SGD needs it for all or for none.

    With dampening 0, the first step from zero momentum is the same as from none.
    """
    newcomers = {id(p) for p in parameters}
    for optimizer in with_inner(optimizers):
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
