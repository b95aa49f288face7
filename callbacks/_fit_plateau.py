"""FitPlateau: a Plateau in a fit, which counts validations and keeps a phase's best weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ._advance import Plateau, PlateauState

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class FitPlateau:
    """Tells when a Plateau's next phase is due, and goes back to the best weights before it.

    Attributes:
        plateau: What the user asked for.
        state: The present phase, and how the metric has developed in it.
        best: The best weights of the present phase, by name; empty without `restore_best`.
    """

    def __init__(self, plateau: Plateau) -> None:
        """Begin with phase 0."""
        self.plateau = plateau
        self.reset()

    def reset(self) -> None:
        """Forget earlier fits."""
        self.state = PlateauState()
        self.best: dict[str, Tensor] = {}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from the state in a checkpoint."""
        self.state = PlateauState(**saved["plateau"])
        self.best = dict(saved.get("best", {}))

    def begin(self, epoch: int) -> None:
        """Note the epoch in which training begins, unless a checkpoint has brought it."""
        if self.state.began is None:
            self.state = replace(self.state, began=epoch)

    def after_batch(self, trainer: Trainer, batch_idx: int) -> None:
        """Note, for a checkpoint made now, that a validation has to follow."""
        if validation_follows(trainer, batch_idx):
            self.state = replace(self.state, awaits=True)

    def after_validation(
        self, trainer: Trainer, module: nn.Module, scope: Iterable[nn.Parameter]
    ) -> None:
        """Count a validation; with `restore_best`, copy the scope's weights if it is the best."""
        if trainer.global_step == self.state.seen:
            return
        value = monitored(trainer, self.plateau.monitor)
        improved = trainer.strategy.reduce_boolean_decision(
            self.plateau.improves(value, self.state.best), all=True
        )
        self.state = self.state.after(value, improved, trainer.global_step)
        if improved and self.plateau.restore_best:
            self.best = copy_state(module, scope)

    def advance(self, trainer: Trainer, module: nn.Module, phases: int) -> bool:
        """Begin the next of so many phases if it is due; decided once an epoch.

        Returns:
            Whether it has begun.
        """
        epoch = trainer.current_epoch
        if self.state.decided == epoch:
            return False
        due = self.state.phase + 1 < phases and trainer.strategy.reduce_boolean_decision(
            self.plateau.is_due(self.state, epoch), all=False
        )
        if due:
            if self.best:
                write_back(module, self.best)
            self.state, self.best = self.state.next(epoch), {}
        self.state = replace(self.state, decided=epoch)
        return due


def monitored(trainer: Trainer, name: str) -> float:
    """The present value of a logged metric, the mean of all ranks.

    Raises:
        ValueError: No such metric was logged.
    """
    metrics = trainer.callback_metrics
    if name not in metrics:
        known = ", ".join(sorted(metrics)) or "none"
        raise ValueError(
            f"`monitor` {name!r} was not logged by the end of the validation; logged: {known}"
        )
    value = metrics[name].detach().clone().float().to(trainer.strategy.root_device)
    return float(trainer.strategy.reduce(value, reduce_op="mean"))


def validation_follows(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this train batch."""
    every, interval = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if every is not None and (trainer.current_epoch + 1) % every:
        return False
    if interval is None or interval == math.inf:
        return trainer.is_last_batch
    done = trainer.fit_loop.total_batch_idx if every is None else batch_idx
    return (done + 1) % interval == 0


def validate(trainer: Trainer) -> None:
    """Run the validation that Lightning leaves out when it resumes at the end of a train batch.

    The checkpoint was written before that validation.
    """
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True


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
