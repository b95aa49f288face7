"""What makes a schedule impossible in a fit: strategies, and checkpoints of other schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lstm_freeze._freezing import RANKS_DRIFT, waits_for_all
from lstm_freeze._schedule import ResolvedSchedule

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from ._advance import Plateau


def refuse_sharding(trainer: Trainer, advance: Plateau | None = None) -> None:
    """Raise ValueError for a strategy under which a phase cannot begin."""
    names = {base.__name__ for base in type(trainer.strategy).__mro__}
    for name in names & {"FSDPStrategy", "DeepSpeedStrategy"}:
        raise ValueError(
            f"FreezeScheduler cannot work with {name}, which lays parameters together into flat "
            "buffers by whether they train at the start; use "
            'strategy="ddp_find_unused_parameters_true", or shard with fully_shard under '
            "ModelParallelStrategy"
        )
    if "ModelParallelStrategy" in names and advance is not None and advance.restore_best:
        raise ValueError(
            "Plateau(restore_best=True) cannot work with ModelParallelStrategy: a checkpoint would "
            "keep only the first rank's shards of the best weights; use restore_best=False, or "
            'strategy="ddp_find_unused_parameters_true"'
        )


def ddp_mistakes(model: nn.Module | None, resolved: ResolvedSchedule) -> list[str]:
    """The mistakes of a schedule for a module that DDP has just wrapped."""
    if not isinstance(model, DistributedDataParallel):
        return []
    mistakes = []
    ever = resolved.ever_trained
    late = [name for name, p in ever.items() if not p.requires_grad]
    if late:
        mistakes.append(
            f"{late[0]!r} was frozen (in configure_model or setup of the module) before DDP "
            f"wrapped the module, and a later phase trains it: {RANKS_DRIFT}; leave freezing "
            "to the schedule"
        )
    reduced = {id(p) for p in model.module.parameters() if p.requires_grad}
    changes = any(id(p) in reduced for phase in resolved.phases for p in phase.frozen.values())
    if changes and waits_for_all(model):
        flag = "static_graph=True" if model.static_graph else "find_unused_parameters=False"
        mistakes.append(
            f"under DDP with {flag} the backward pass waits for the gradients of frozen "
            'parameters; use Trainer(strategy="ddp_find_unused_parameters_true"), without '
            "static_graph"
        )
    return mistakes


def advance_mistakes(
    trainer: Trainer, advance: Plateau | None, resolved: ResolvedSchedule
) -> list[str]:
    """The mistakes of a Plateau in this fit."""
    if advance is None:
        return []
    mistakes = []
    if not trainer.enable_validation:
        mistakes.append(
            f"advance=Plateau({advance.monitor!r}) looks at a metric after each validation, and "
            "this fit has none; give it validation data"
        )
    if resolved.schedule.annealing is not None:
        mistakes.append(
            "progressive_freezing fixes the times of its phases, so it takes no `advance`"
        )
    return mistakes


def refuse_uneven(trainer: Trainer) -> None:
    """Raise ValueError if the ranks have different numbers of batches, on every rank alike.

    They would begin epochs, and so phases, at different times, and exchange gradients of different
    parameters.
    """
    if trainer.world_size == 1:
        return
    batches = trainer.num_training_batches
    # Integers: floats would round, and float64, which would not, is not on every device.
    own = torch.tensor(
        [-1 if math.isinf(batches) else int(batches)],
        dtype=torch.int64,
        device=trainer.strategy.root_device,
    )
    gathered = [torch.empty_like(own) for _ in range(trainer.world_size)]
    dist.all_gather(gathered, own)
    counts = ["inf" if count < 0 else str(count) for count in torch.cat(gathered).tolist()]
    if others := [rank for rank, count in enumerate(counts) if count != counts[0]]:
        raise ValueError(
            f"rank 0 has {counts[0]} batches in an epoch and rank {others[0]} has "
            f"{counts[others[0]]}: they would wait for each other, or train in different phases; "
            "leave use_distributed_sampler=True in the Trainer, or give every rank as many batches "
            "(limit_train_batches)"
        )


def differences(state: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """How the schedule of a checkpoint differs from the present one, in words."""
    was, now = _flat(state["schedule"]), _flat(present["schedule"])
    was["advance"] = "Plateau" if state["plateau"] else None
    now["advance"] = "Plateau" if present["plateau"] else None
    return [
        f"the checkpoint was made with another schedule: {key} was {was.get(key)}, is "
        f"{now.get(key)}; resume with the schedule it was made with, or begin a new run from its "
        "weights"
        for key in dict.fromkeys((*was, *now))
        if was.get(key) != now.get(key)
    ]


def _flat(schedule: Mapping[str, Any]) -> dict[str, Any]:
    phases = schedule.get("phases", ())
    others = {key: value for key, value in schedule.items() if key != "phases"}
    return {
        **{
            f"the phase at {p['start']}": {k: v for k, v in p.items() if k != "start"}
            for p in phases
        },
        **others,
    }
