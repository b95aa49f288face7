"""FixedMode: normalisation and dropout layers stay in one mode while their parameters are frozen.

A pair of forward hooks sets an attribute (`training`, or an nn.LSTM's `dropout`) for the length of
the forward pass. So it survives `.train()`, `.eval()`, deepcopy and pickle. The hooks look at
`requires_grad` in every call: once a parameter is unfrozen, they change nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .._model import Tree
from .._torch_internals import (
    has_running_statistics,
    is_old_spectral_norm,
    is_spectral_norm,
    remove_hooks_of,
    update_bn_runs,
)
from .._torch_internals import is_dropout as is_dropout
from .listeners import announce_recompute


class FixedMode:
    """The hooks that keep one module's mode fixed while the parameters that decide are frozen.

    They do nothing while the statistics of a batch norm are recomputed on purpose.
    `torch.optim.swa_utils.update_bn` and Lightning's StochasticWeightAveraging reset the statistics
    and set `momentum` to None for the passes that fill them again. Where `momentum` was None from
    the beginning, the counter of batches shows the reset. It counts as one until `update_bn`
    has returned, or, where that does not run, until the next pass in eval mode.

    Attributes:
        decider: The module whose parameters decide.
        attribute: The attribute that is fixed.
        value: The value it is fixed at.
    """

    def __init__(self, owner: nn.Module, decider: nn.Module, attribute: str, value: float) -> None:
        """Fix `attribute` of `owner` at `value` whenever all parameters of `decider` are frozen.

        No reference to the owner is kept: replicas of a module share its hooks.
        """
        self.decider = decider
        self.attribute = attribute
        self.value = value
        self._momentum = getattr(owner, "momentum", None)
        self._batches = _batches(owner)
        self._recomputing = self._in_update_bn = False

    @property
    def active(self) -> bool:
        """Whether the parameters that decide are all frozen now."""
        frozen = [not p.requires_grad for p in self.decider.parameters()]
        return bool(frozen) and all(frozen)

    def before_forward(self, module: nn.Module, args: Any) -> None:
        """Before the forward pass, set the value."""
        # The own value is kept on the module and not here: replicas share these hooks.
        module.__dict__[f"_own_{self.attribute}"] = getattr(module, self.attribute)
        if not self.active:
            return
        if self._is_recomputed(module):
            announce_recompute(module)
        else:
            setattr(module, self.attribute, self.value)

    def after_forward(self, module: nn.Module, *call: Any) -> None:
        """After the forward pass, also one that raised, set the module's own value again."""
        if (kept := f"_own_{self.attribute}") in module.__dict__:
            setattr(module, self.attribute, module.__dict__.pop(kept))

    def put_on(self, module: nn.Module) -> None:
        """Register the hooks."""
        module.register_forward_pre_hook(self.before_forward, prepend=True)
        if self.attribute == "training" and _has_old_spectral_norm(module):
            # The old-style norm is a pre-hook itself; the module's own forward, which may be a
            # cuDNN RNN's, stays in its mode.
            module.register_forward_pre_hook(self.after_forward)
        else:
            module.register_forward_hook(self.after_forward, always_call=True)

    def take_off(self, module: nn.Module) -> None:
        """Remove the hooks, also those that came into a copy of the module by copying."""
        remove_hooks_of(module, self)

    def _is_recomputed(self, module: nn.Module) -> bool:
        """Whether somebody has reset the statistics and fills them anew in this pass."""
        if self.attribute != "training" or not has_running_statistics(module):
            return False
        if self._momentum is not None or module.momentum is not None:
            return module.training and module.momentum is None
        if torch.compiler.is_compiling():  # would not look at numbers
            return False
        if module.training and _batches(module) < self._batches and not self._recomputing:
            self._recomputing, self._in_update_bn = True, update_bn_runs()
        done = not module.training or (self._in_update_bn and not update_bn_runs())
        if self._recomputing and done:
            self._recomputing, self._batches = False, _batches(module)
        return self._recomputing


def _batches(module: nn.Module) -> int:
    """How many batches a batch norm that averages over all of them has counted."""
    counter = getattr(module, "num_batches_tracked", None)
    if getattr(module, "momentum", None) is not None or not isinstance(counter, torch.Tensor):
        return 0
    return 0 if counter.is_meta else int(counter)


def fixed_mode_of(module: nn.Module, attribute: str | None = None) -> FixedMode | None:
    """The fixed mode of a module, or of one attribute of it; None where there is none."""
    for hook in module._forward_pre_hooks.values():
        found = getattr(hook, "__self__", None)
        if isinstance(found, FixedMode) and attribute in (None, found.attribute):
            return found
    return None


def is_normalization(module: nn.Module) -> bool:
    """Whether a module keeps statistics that move in training though no gradient reaches them."""
    return (
        is_spectral_norm(module) or _has_old_spectral_norm(module) or has_running_statistics(module)
    )


def is_scripted_normalization(module: nn.Module) -> bool:
    """Whether a module is TorchScript's form of a layer that keeps running statistics."""
    return isinstance(module, torch.jit.ScriptModule) and "running_mean" in module._buffers


def _has_old_spectral_norm(module: nn.Module) -> bool:
    return any(map(is_old_spectral_norm, module._forward_pre_hooks.values()))


def decider_of(tree: Tree, path: str) -> nn.Module | None:
    """The module itself if it has parameters, else its nearest ancestor that has some."""
    if path not in tree.modules:
        return None
    while not any(True for _ in tree.modules[path].parameters()):
        if not path:
            return None
        path = path.rpartition(".")[0]
    return tree.modules[path]
