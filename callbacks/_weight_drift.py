"""WeightDrift: logs how far weights have moved from their start, per layer and direction."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torchmetrics import Metric

from lstm_freeze import param_groups
from lstm_freeze._checks import as_integer

from ._callback import Callback, goes_on, without_fit

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class Drift(Metric):
    """The distance of each part's weights from their start, ||w - w0|| / ||w0||.

    Where w0 is zero it is ||w - w0||. Processes that train together hold the same weights, so the
    norms are averaged over them.

    Args:
        parts: The number of parts.
        kwargs: As torchmetrics.Metric takes.
    """

    moved: Tensor
    began: Tensor
    full_state_update = False
    higher_is_better = None

    def __init__(self, parts: int, **kwargs: Any) -> None:
        """Begin with distance 0."""
        super().__init__(**kwargs)
        for name in ("moved", "began"):
            self.add_state(name, torch.zeros(parts), dist_reduce_fx="mean")

    def update(self, weights: list[list[Tensor]], start: list[list[Tensor]]) -> None:
        """Measure each part; earlier measurements no longer count."""
        pairs = list(zip(weights, start, strict=True))
        differences = ([_wide(a) - _wide(b) for a, b in zip(w, w0, strict=True)] for w, w0 in pairs)
        self.moved = torch.stack([_norm(part, self.moved) for part in differences])
        self.began = torch.stack([_norm(map(_wide, w0), self.began) for _, w0 in pairs])

    def compute(self) -> Tensor:
        """The distance of each part."""
        return self.moved / torch.where(self.began > 0, self.began, 1.0)


class WeightDrift(Callback):
    """Log how far the weights have moved from where they began, per layer and direction.

    Logs `weight_drift/<part>` = ||w - w0|| / ||w0||, where w0 are the weights at the start of the
    fit; where w0 is zero, ||w - w0||. A part that never trained reads exactly 0. w0 is in the
    checkpoint, so a resumed run measures from the same start. A fit of another Trainer begins
    anew. Lazy modules are measured from the weights that their first batch makes.

    Args:
        every_n_steps: The number of optimizer steps from one log entry to the next.

    Raises:
        ValueError: `every_n_steps` is less than 1.

    Examples:
        >>> WeightDrift(every_n_steps=10).every_n_steps
        10
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        """Check the arguments."""
        self.every_n_steps = as_integer(every_n_steps, "every_n_steps", least=1)
        self.start: dict[str, Tensor] = {}
        self._module: weakref.ref[nn.Module] | None = None
        self._drift: Drift | None = None
        self._parts: dict[str, dict[str, nn.Parameter]] = {}
        self._last_step = 0

    def __getstate__(self) -> dict[str, Any]:
        """The state for copies and pickles: of the module only the weights at the start."""
        return without_fit(self, _module=None, _drift=None, _parts={})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget earlier fits, unless the same Trainer goes on with the same module."""
        if stage == "fit":
            if not goes_on(trainer, self._module, pl_module):
                self.start = {}
            self._module = weakref.ref(pl_module)
            self._parts = {}

    def state_dict(self) -> dict[str, Any]:
        """The weights at the start of the fit."""
        return {"start": {n: _whole(w).cpu() for n, w in self.start.items()}} if self.start else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Measure from the start of the run that made the checkpoint."""
        self.start = dict(state_dict.get("start", {}))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the weights, unless a checkpoint has brought those at the start."""
        self._remember(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from the step that a checkpoint brought."""
        self._last_step = trainer.global_step

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Remember the weights of lazy modules, which their first batch has just made."""
        if not self._parts:
            self._remember(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log after every n-th step."""
        step, before = trainer.global_step, self._last_step
        self._last_step = step
        if self._parts and step // self.every_n_steps > before // self.every_n_steps:
            for name, value in self.measure().items():
                pl_module.log(f"weight_drift/{name}", value, on_step=True, on_epoch=False)

    def _remember(self, pl_module: nn.Module) -> None:
        if any(is_lazy(p) for p in pl_module.parameters()):
            return
        self._parts = weights_by_part(pl_module)
        weights = {n: p for part in self._parts.values() for n, p in part.items()}
        if not self.start:
            self.start = {n: p.detach().clone() for n, p in weights.items()}
        if other := differing(self.start, weights):
            raise ValueError(
                f"the checkpoint's WeightDrift remembers other weights: {other}; resume with the "
                "model it was made with, or without WeightDrift"
            )
        self.start = {n: _laid_out_as(weights[n], w) for n, w in self.start.items()}
        self._drift = Drift(len(self._parts)).to(next(iter(weights.values())).device)

    def measure(self) -> dict[str, float]:
        """The present distance of each part."""
        assert self._drift is not None
        parts = list(self._parts.values())
        self._drift.reset()
        self._drift.update(
            [[p.detach() for p in part.values()] for part in parts],
            [[self.start[name] for name in part] for part in parts],
        )
        return dict(zip(self._parts, self._drift.compute().tolist(), strict=True))


def weights_by_part(module: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Part -> parameter name -> parameter: per RNN layer and direction, and other part."""
    names = {id(p): name for name, p in module.named_parameters()}
    groups = param_groups(module, lr=1.0)
    return {g["name"]: {names[id(p)]: p for p in g["params"]} for g in groups}


def differing(start: dict[str, Tensor], weights: dict[str, nn.Parameter]) -> str:
    """Which weights the two do not share, in words; empty where they agree."""
    unknown = sorted(start.keys() ^ weights.keys())
    shapes = [n for n in start.keys() & weights.keys() if start[n].shape != weights[n].shape]
    return ", ".join([*unknown, *sorted(shapes)][:3])


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in a dtype in which subtraction does not overflow."""
    if tensor.is_complex() or tensor.dtype in (torch.float32, torch.float64):
        return tensor
    return tensor.float()


def _norm(tensors: Iterable[Tensor], like: Tensor) -> Tensor:
    """The norm of all elements of several tensors together."""
    norms = [_whole(torch.linalg.vector_norm(t)).to(like) for t in tensors]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm


def _whole(tensor: Tensor) -> Tensor:
    """The tensor; of a DTensor, the shards of all ranks together."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def _laid_out_as(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """A value on the device of a parameter, sharded as the parameter is."""
    if not hasattr(parameter, "placements") or hasattr(value, "placements"):
        return value.to(parameter.device)
    from torch.distributed.tensor import distribute_tensor

    like: Any = parameter
    sharded: Tensor = distribute_tensor(
        value.to(parameter.device), like.device_mesh, like.placements
    )
    return sharded
