"""param_groups and slanted_triangular: optimizer groups per layer, and ULMFiT's schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from .._checks import as_integer, as_module, as_number
from .._model import Groups, Target, Tree, as_targets, can_train, grouped_parts, resolve
from .wrappers import as_optimizers


def param_groups(
    module: nn.Module,
    lr: float,
    *,
    layer_decay: float = 1.0,
    weight_decay: float = 0.0,
    no_decay: Target = "*bias*",
    groups: Groups = None,
) -> list[dict[str, Any]]:
    """List optimizer groups per layer, with discriminative learning rates.

    There is one group for each direction of an RNN layer (`encoder.lstm[0].forward`) and one for
    each other part (`encoder.embedding`), input side first. Frozen parameters are included, so that
    unfreezing them later needs no `add_param_group`, and learning-rate schedulers and resuming go
    on working. Each parameter is in exactly one group, a tied one in that of its first name.
    Integer parameters, which cannot train, are left out: fused optimizers refuse them.

    Args:
        module: Any module; wrappers (DDP, torch.compile's) are looked through.
        lr: Learning rate of the last registered part, the head.
        layer_decay: Factor from one depth to the next towards the input, in (0, 1]: the rate is
            `lr * layer_decay**depth`. The head has depth 0; RNN layers count one each, their two
            directions share one; so do all parts of one layer of a stack, and a module's
            own parameters. `1 / 2.6` is ULMFiT's (Howard & Ruder 2018, arXiv 1801.06146).
        weight_decay: Weight decay of all but `no_decay`.
        no_decay: Targets (see `select`) that get no weight decay, in groups of their own named
            `... (no decay)`. Here, unlike in `select`, a target may match nothing. None: all decay.
            Without weight decay nothing is split.
        groups: The model's layers as you see them, input side first: a target or a list of targets
            for each, as in `[["embeddings"], ["net.0"], ["net.1"], ["head"]]`. The depth is then
            counted in these groups; together they must hold every parameter, and one that several
            groups name is in the first of them. None takes the order of registration.

    Returns:
        Groups for any optimizer of torch.optim: dicts of `name`, `params`, `lr`, `weight_decay`.

    Raises:
        ValueError: A number is out of its range, a group names nothing, or the groups leave a
            parameter out.
        TypeError: An argument is of another type than named above.

    Examples:
        >>> model = nn.Sequential(nn.LSTM(4, 8, num_layers=2), nn.Linear(8, 2))
        >>> for group in param_groups(model, 0.01, layer_decay=0.5):
        ...     print(group["name"], len(group["params"]), group["lr"])
        0[0].forward 4 0.0025
        0[1].forward 4 0.005
        1 2 0.01
    """
    as_module(module)
    lr = as_number(lr, "lr", least=0)
    weight_decay = as_number(weight_decay, "weight_decay", least=0)
    if as_number(layer_decay, "layer_decay", 0, 1) == 0:
        raise ValueError("`layer_decay` must be more than 0, got 0; ULMFiT's is 1 / 2.6")
    tree = Tree(module)
    spared = _spared(tree, no_decay)
    found: list[dict[str, Any]] = []
    for part in tree.parts if groups is None else grouped_parts(tree, groups):
        rate = lr * float(layer_decay) ** part.depth
        decaying, rest = _split(part.parameters, spared if weight_decay else frozenset())
        for name, params, decay in (
            (part.name, decaying, weight_decay),
            (f"{part.name} (no decay)", rest, 0.0),
        ):
            if params:
                found.append({"name": name, "params": params, "lr": rate, "weight_decay": decay})
    return found


def slanted_triangular(
    optimizer: Any, total_steps: int, cut_frac: float = 0.1, ratio: float = 32
) -> LRScheduler:
    """Raise each group's learning rate shortly and linearly, then let it fall slowly and linearly.

    The slanted triangular learning rate of ULMFiT (Howard & Ruder 2018, arXiv 1801.06146). With
    `cut = max(1, floor(total_steps * cut_frac))`, the share `p` of the way up is `t / cut` for
    `t < cut` and then `1 - (t - cut) / (cut * (1 / cut_frac - 1))`, not below 0; the rate is
    `lr * (1 + p * (ratio - 1)) / ratio`, where `lr` is what the group has now. After `total_steps`
    the last value stays.

    Args:
        optimizer: Lightning's wrapper is looked through. Its groups may not be added to later.
        total_steps: Number of optimizer steps; call `.step()` of the result after each.
        cut_frac: Share of the steps that rise, in (0, 1).
        ratio: How much smaller the smallest rate is than the largest, at least 1.

    Returns:
        A scheduler of torch; its `state_dict` holds plain values.

    Raises:
        ValueError: A number is out of its range, or there is not exactly one optimizer.
        TypeError: An argument is of another type than named above.

    Examples:
        >>> import torch
        >>> optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.32)
        >>> scheduler = slanted_triangular(optimizer, total_steps=100)
        >>> rates = []
        >>> for _ in range(100):
        ...     rates += scheduler.get_last_lr()
        ...     optimizer.step()
        ...     scheduler.step()
        >>> round(rates[0], 3), round(rates[10], 3), rates.index(max(rates))
        (0.01, 0.32, 10)
    """
    if len(optimizers := as_optimizers(optimizer)) != 1:
        raise ValueError(f"`optimizer` must be one optimizer, got {len(optimizers)}")
    total_steps = as_integer(total_steps, "total_steps", least=1)
    if as_number(cut_frac, "cut_frac", 0, 1) in (0, 1):
        raise ValueError(f"`cut_frac` must lie between 0 and 1, both excluded, got {cut_frac}")
    ratio = as_number(ratio, "ratio", least=1)
    return LambdaLR(optimizers[0], SlantedTriangle(total_steps, float(cut_frac), ratio))


@dataclass
class SlantedTriangle:
    """The factor on the learning rate at step `t`; an object, so that it can be pickled."""

    total_steps: int
    cut_frac: float
    ratio: float

    def __call__(self, t: int) -> float:
        """The factor, between 1 / ratio and 1."""
        t = min(t, self.total_steps)
        cut = max(1, math.floor(self.total_steps * self.cut_frac))
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / self.cut_frac - 1))
        return (1 + max(p, 0.0) * (self.ratio - 1)) / self.ratio


def _spared(tree: Tree, no_decay: Target) -> frozenset[int]:
    """Ids of the parameters without weight decay; a target that matches nothing is ignored."""
    names: set[str] = set()
    if no_decay is None:
        return frozenset()
    for target in as_targets(no_decay, "no_decay", "None means all decay"):
        try:
            names |= resolve(tree, target, "no_decay=")
        except ValueError:
            continue
    return frozenset(id(tree.parameters[name]) for name in names)


def _split(
    parameters: Mapping[str, nn.Parameter], spared: frozenset[int]
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Those that decay and those that do not; integer ones are left out."""
    usable = [p for p in parameters.values() if can_train(p)]
    return [p for p in usable if id(p) not in spared], [p for p in usable if id(p) in spared]
