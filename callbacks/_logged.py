"""What a FreezeScheduler logs: the phase, what trains, the rates, statistics of prefix caches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lstm_freeze._schedule import ResolvedSchedule, present_rates

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


def log_phase(
    trainer: Trainer, pl_module: LightningModule, resolved: ResolvedSchedule, index: int
) -> None:
    """Log phase and rates. Once a phase or epoch is enough: Lightning keeps what was logged."""
    by_step = resolved.schedule.unit == "step"
    values = {
        "freeze/phase": float(index),
        "freeze/trainable": float(resolved.trainable),
        **{f"freeze/lr/{name}": rate for name, rate in present_rates(trainer.optimizers).items()},
    }
    for name, value in values.items():
        pl_module.log(
            name,
            value,
            on_step=by_step,
            on_epoch=not by_step,
            reduce_fx="max",
            sync_dist=not by_step and trainer.world_size > 1,
        )
    pl_module.log("phase", float(index), prog_bar=True, logger=False, on_step=True, on_epoch=False)


def log_caches(pl_module: LightningModule, resolved: ResolvedSchedule) -> None:
    """Log the statistics of the module's prefix caches, at an epoch's end.

    A single cache is logged without a name, several by the paths of their RNNs. Each rank has
    caches of its own; those of rank 0 are logged, so nothing is sent.
    """
    caches = resolved.prefixes.caches
    for path, cache in caches.items():
        name = f"freeze/cache/{path}" if len(caches) > 1 else "freeze/cache"
        for key, value in cache.stats().items():
            # Without sync_dist=True Lightning would warn that nothing is sent.
            pl_module.log(f"{name}/{key}", float(value), sync_dist=True, rank_zero_only=True)
