"""Modules held in a mode while their parameters are frozen: normalisation and dropout layers.

A hold is a pair of forward hooks that switches an attribute (`training`, or an nn.LSTM's
`dropout`) for the length of the forward pass. That survives `.train()`, `.eval()`, deepcopy and
pickle, and it looks at `requires_grad` in every call, so that it lets go when they are unfrozen.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from .._model import Tree
from .._torch_internals import has_running_statistics, is_old_spectral_norm, is_spectral_norm
from .._torch_internals import is_dropout as is_dropout


class Hold:
    """The hooks of one held module; `owner` is the module whose parameters decide."""

    def __init__(self, owner: nn.Module, attribute: str, value: float) -> None:
        """Hold `attribute` at `value` whenever all parameters of `owner` are frozen."""
        self.owner = owner
        self.attribute = attribute
        self.value = value

    @property
    def active(self) -> bool:
        """Whether the parameters that decide are all frozen now."""
        frozen = [not p.requires_grad for p in self.owner.parameters()]
        return bool(frozen) and all(frozen)

    def enter(self, module: nn.Module, args: Any) -> None:
        """Before the forward pass."""
        # Kept on the module and not here: replicas of a module share its hooks.
        module.__dict__[f"_held_{self.attribute}"] = getattr(module, self.attribute)
        if self.active:
            setattr(module, self.attribute, self.value)

    def leave(self, module: nn.Module, *call: Any) -> None:
        """After the forward pass, also one that raised."""
        if (kept := f"_held_{self.attribute}") in module.__dict__:
            setattr(module, self.attribute, module.__dict__.pop(kept))


_hooks: weakref.WeakKeyDictionary[Hold, tuple[RemovableHandle, RemovableHandle]] = (
    weakref.WeakKeyDictionary()
)


def hold_of(module: nn.Module, attribute: str | None = None) -> Hold | None:
    """The hold on a module, or on one attribute of it, if there is one."""
    for hook in module._forward_pre_hooks.values():
        hold = getattr(hook, "__self__", None)
        if isinstance(hold, Hold) and attribute in (None, hold.attribute):
            return hold
    return None


def is_normalization(module: nn.Module) -> bool:
    """Whether a module keeps statistics that move in training though no gradient reaches them."""
    return (
        is_spectral_norm(module) or _has_old_spectral_norm(module) or has_running_statistics(module)
    )


def _has_old_spectral_norm(module: nn.Module) -> bool:
    return any(map(is_old_spectral_norm, module._forward_pre_hooks.values()))


@dataclass(frozen=True, eq=False)
class Held:
    """The switch that puts a hold on a module and takes it off."""

    owner: nn.Module
    decider: nn.Module
    attribute: str = "training"
    value: float = False

    @property
    def name(self) -> str:
        """Which attribute is held."""
        return f"held {self.attribute}"

    def read(self) -> bool:
        """Whether the module is held."""
        return hold_of(self.owner, self.attribute) is not None

    def write(self, value: bool) -> None:
        """Put the hold on, or take it off."""
        hold = hold_of(self.owner, self.attribute)
        if value and hold is None:
            hold = Hold(self.decider, self.attribute, self.value)
            before = self.owner.register_forward_pre_hook(hold.enter, prepend=True)
            _hooks[hold] = (before, self._leaving(hold))
        elif hold is not None and not value:
            # A copy of a held module has hooks of its own, which are not ours to remove.
            for hook in _hooks.pop(hold, ()):
                hook.remove()

    def _leaving(self, hold: Hold) -> RemovableHandle:
        if self.attribute == "training" and _has_old_spectral_norm(self.owner):
            # The old-style norm is a pre-hook itself; the module's own forward, which may be a
            # cuDNN RNN's, stays in its mode.
            return self.owner.register_forward_pre_hook(hold.leave)
        return self.owner.register_forward_hook(hold.leave, always_call=True)


@dataclass(frozen=True, eq=False)
class LayerDropoutOff:
    """The switch that stops the dropout next to a frozen layer of a BiLSTM."""

    owner: nn.Module
    layer: int

    @property
    def name(self) -> str:
        """Which layer."""
        return f"dropout_off[{self.layer}]"

    @property
    def _layers(self) -> set[int]:
        layers: set[int] = self.owner.dropout_off_layers  # type: ignore[assignment]
        return layers

    def read(self) -> bool:
        """Whether the layer's dropout is off while frozen."""
        return self.layer in self._layers

    def write(self, value: bool) -> None:
        """Switch it off (True) or back on."""
        (self._layers.add if value else self._layers.discard)(self.layer)


def decider_of(tree: Tree, path: str) -> nn.Module | None:
    """The module itself if it has parameters, else its nearest ancestor that has some."""
    while not any(True for _ in tree.modules[path].parameters()):
        if not path:
            return None
        path = path.rpartition(".")[0]
    return tree.modules[path]


def norm_switches(tree: Tree, frozen: set[int], trainable: set[int]) -> list[tuple[Held, bool]]:
    """Switches for the normalisation layers whose deciding parameters (by id) change, and to what.

    A hold looks at requires_grad itself; it is taken off where something is unfrozen so that what
    is frozen by hand later is left alone.
    """
    decisions = []
    for path, module in tree.modules.items():
        if is_normalization(module) and (decider := decider_of(tree, path)) is not None:
            ids = {id(p) for p in decider.parameters()}
            if ids & (frozen | trainable):
                decisions.append((Held(module, decider), not ids & trainable))
    return decisions


def dropout_switches(
    tree: Tree, frozen: set[int], frozen_afterwards: set[int]
) -> list[Held | LayerDropoutOff]:
    """Switches for the dropout that lies within what is being frozen.

    Raises:
        ValueError: An nn.LSTM, nn.GRU or nn.RNN with dropout would be frozen only in part.
    """
    switches: list[Held | LayerDropoutOff] = []
    for path, module in tree.modules.items():
        if is_dropout(module):
            decider = decider_of(tree, path)
            if decider is not None and all(id(p) in frozen for p in decider.parameters()):
                switches.append(Held(module, decider))
        elif path in tree.rnns and any(id(p) in frozen for p in module.parameters()):
            switches += _rnn_dropout_switches(tree, path, frozen, frozen_afterwards)
    return switches


def _rnn_dropout_switches(
    tree: Tree, path: str, frozen: set[int], frozen_afterwards: set[int]
) -> list[Held | LayerDropoutOff]:
    rnn = tree.rnns[path]
    if hasattr(rnn, "dropout_off_layers"):
        places = tree.places(path).items()
        layers = {p.layer for name, p in places if id(tree.parameters[name]) in frozen}
        return [LayerDropoutOff(rnn, layer) for layer in sorted(layers)]
    if not rnn.dropout or rnn.num_layers == 1:
        return []
    if not all(id(p) in frozen_afterwards for p in rnn.parameters()):
        kind = type(rnn).__name__
        name = f"{kind} {path!r}" if path else f"this {kind}"
        remedy = (
            "make it a BiLSTM with replace_lstm(model) or BiLSTM.from_lstm(lstm)"
            if rnn.mode == "LSTM"
            else "set its .dropout = 0.0"
        )
        raise ValueError(
            f'dropout="off": {name} would be frozen only in part, and a {kind} has one '
            f"dropout for all of its layers; {remedy}, or freeze all of it"
        )
    return [Held(rnn, rnn, "dropout", 0.0)]
