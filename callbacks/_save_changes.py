"""SaveChanges: checkpoints that hold only the weights that differ from the base."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lstm_freeze._saving import (
    as_base,
    base_in,
    filled,
    prints_of,
    state_of,
    stripped,
    without_note,
)

from ._callback import Callback, without_fit
from ._neighbours import callbacks_of, named

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

_SHARDING = {"FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"}


class SaveChanges(Callback):
    """Strip checkpoints to the weights that differ from the base, and fill them again on load.

    A checkpoint then holds, of the module's weights and buffers, those that training has changed,
    and the fingerprints of the whole base. When a Trainer with this callback loads it (`fit`,
    `validate`, `test` or `predict` with `ckpt_path`), the missing tensors come from the module as
    it was built, or from the copy of the base. Each must have the bits of the base; else ValueError
    is raised before anything is loaded. So a resumed run has the same bits as one with whole
    checkpoints. Outside of a Trainer, `load_changes(module, "last.ckpt")` reads such a file.

    Optimizer states are kept as they are, and checkpoints with `save_weights_only=True`, for which
    Lightning asks no callback, stay whole. A copy of the base is kept on the CPU.

    Args:
        base: What `fingerprints(module)` gave of the LightningModule; None takes the weights at
            the first fit's start. What it does not name is always saved: leave out what a new
            process would not build with the same bits, such as a new head without a seed.

    Raises:
        ValueError: `base` holds no fingerprints.
        TypeError: `base` is no mapping of strings.

    Examples:
        >>> SaveChanges().base is None
        True
    """

    def __init__(self, base: Mapping[str, str] | None = None) -> None:
        """Check the argument."""
        self.base = None if base is None else as_base(base)
        self._given = base is not None
        self._values: dict[str, Tensor] = {}
        self._module: weakref.ref[nn.Module] | None = None
        self._hook: RemovableHandle | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The state for copies and pickles: of the module only the values of the base."""
        return without_fit(self, _module=None, _hook=None)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put a hook on the module: the Trainer loads a checkpoint after this."""
        _refuse_sharding(trainer)
        _refuse_late_place(trainer, self)
        if self._module is None or self._module() is not pl_module:
            self._module, self._values = weakref.ref(pl_module), {}
            self.base = self.base if self._given else None
        self._release()
        self._hook = pl_module.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            self._fill
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the weights as the base, unless a checkpoint or an earlier fit has set the base."""
        self._remember(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Strip the checkpoint; before there is a base it stays whole."""
        if self.base is not None and self._values:
            checkpoint["state_dict"] = stripped(checkpoint["state_dict"], pl_module, self.base)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hook off the module."""
        self._release()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take the hook off the module."""
        self._release()

    def _release(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _remember(self, module: nn.Module) -> None:
        """Copy the tensors that are as in the base; where there is no base yet, all become it."""
        if self._values:
            return
        state = state_of(module)
        now = prints_of(state)
        if self.base is None:
            self.base = now
        self._values = {
            name: tensor.detach().to("cpu", copy=True)
            for name, tensor in state.items()
            if now[name] == self.base.get(name)
        }

    def _fill(
        self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *others: Any
    ) -> None:
        """Put the missing tensors into a state_dict before the module reads it."""
        found = base_in(state_dict, prefix)
        if found is not None and not self._given:
            if self.base != found.fingerprints:
                self._values = {}
            self.base = dict(found.fingerprints)
        self._remember(module)
        if found is None:
            return
        missing = filled(state_dict, prefix, found, (self._values, state_of(module)))
        without_note(state_dict, prefix)
        state_dict.update(missing)


def _refuse_sharding(trainer: Trainer) -> None:
    names = {base.__name__ for base in type(trainer.strategy).__mro__}
    for name in sorted(names & _SHARDING):
        raise ValueError(
            f"SaveChanges cannot work with {name}, which shards the weights over processes: "
            'their bits cannot be compared with the base; use strategy="ddp" or leave it out'
        )


def _refuse_late_place(trainer: Trainer, callback: SaveChanges) -> None:
    callbacks = callbacks_of(trainer)
    place = callbacks.index(callback)
    for other in named(trainer, "WeightAveraging"):
        if callbacks.index(other) < place:
            raise ValueError(
                f"SaveChanges must stand before {type(other).__name__} in the Trainer's callbacks: "
                "averaging takes the checkpoint's weights for its own and replaces them"
            )
