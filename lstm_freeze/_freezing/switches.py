"""Everything that freezing turns on or off: the protocol of a switch, and all kinds of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from .._model import Tree, can_train, join
from .._warn import warn
from .fixed_modes import FixedMode, decider_of, fixed_mode_of, is_dropout, is_normalization
from .marks import CONSTANT, NAMED, mark_of, set_mark

WHOLE = ""  # the part that is all of a tensor


class Slot(NamedTuple):
    """Where a switch is kept.

    Attributes:
        owner: The module.
        path: Its path in the module that was frozen.
        name: The name of the switch within the owner; of a parameter, the name of the tensor.
        part: The parameter, where a parametrization keeps several for the one tensor.
    """

    owner: nn.Module
    path: str
    name: str
    part: str = WHOLE


class Switch(Protocol):
    """One thing that freezing turns on or off."""

    @property
    def slots(self) -> Sequence[Slot]:
        """Where it is kept; several for a tied parameter."""

    @property
    def parameter(self) -> nn.Parameter | None:
        """The parameter that it switches; None where it switches something else."""

    def read(self) -> bool:
        """The present value."""

    def write(self, value: bool) -> None:
        """Set it; writing the present value again is harmless."""

    def on(self, slot: Slot, owner: nn.Module, tree: Tree) -> Iterator[Switch]:
        """The same switch as it is on a module now; none where the module has no such thing."""


def parameters_of(owner: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Part -> parameter, for what a name stands for in a module now, parametrised or not."""
    own = dict(owner._parameters.items())
    if (whole := own.get(name)) is not None:
        return {WHOLE: whole}
    found: dict[str, nn.Parameter | None] = {}
    if (parametrizations := owner._modules.get("parametrizations")) is not None:
        if (originals := parametrizations._modules.get(name)) is not None:
            found = {f"parametrizations.{name}.{k}": p for k, p in originals._parameters.items()}
    elif isinstance(vars(owner).get(name), Tensor):
        # Old-style weight and spectral norm.
        found = {part: own.get(part) for part in (f"{name}_g", f"{name}_v", f"{name}_orig")}
    return {part: p for part, p in found.items() if p is not None}


def parameter_at(owner: nn.Module, name: str, part: str) -> nn.Parameter | None:
    """The parameter in a slot now; None where there is none."""
    *path, last = (part or name).split(".")
    module: nn.Module | None = owner
    for piece in path:
        module = module._modules.get(piece) if module is not None else None
    if module is None or last not in module._parameters:
        return None
    return module._parameters[last]


def covers(decided: str, part: str) -> bool:
    """Whether a decision about one part decides about another: the whole, and what it became."""
    if decided == part:
        return True
    return WHOLE in (decided, part) and _is_original(decided or part)


def _is_original(part: str) -> bool:
    return not part.startswith("parametrizations.") or ".original" in part


@dataclass(frozen=True, eq=False)
class RequiresGrad:
    """A parameter's requires_grad: on is trainable. No old gradient outlives a change."""

    slots: tuple[Slot, ...]

    @property
    def parameter(self) -> nn.Parameter | None:
        """The parameter that has the name now."""
        slot = self.slots[0]
        return parameter_at(slot.owner, slot.name, slot.part)

    def read(self) -> bool:
        """Whether it is trainable."""
        return self.parameter is not None and self.parameter.requires_grad

    def write(self, value: bool) -> None:
        """Make it trainable or frozen."""
        parameter = self.parameter
        if parameter is None or (value and not can_train(parameter)):
            return
        if not (value and parameter.requires_grad):
            parameter.grad = None
        parameter.requires_grad = value  # the method would refuse lazy parameters

    def on(self, slot: Slot, owner: nn.Module, tree: Tree) -> Iterator[RequiresGrad]:
        """For each parameter that serves the tensor of this name now."""
        if slot.name in owner._buffers:
            warn(
                f"{join(slot.path, slot.name)!r} is a buffer now and cannot be made trainable: "
                "torch's remove_parametrizations makes one of what is frozen at that time; "
                "register it as a Parameter"
            )
        for part in parameters_of(owner, slot.name):
            if covers(slot.part, part):
                yield RequiresGrad((Slot(owner, slot.path, slot.name, part),))


@dataclass(frozen=True, eq=False)
class ModeSwitch:
    """Whether a module's mode is fixed while the parameters of `decider` are frozen."""

    owner: nn.Module
    path: str
    decider: nn.Module
    attribute: str = "training"
    fixed_value: float = False
    parameter: None = None

    @property
    def slots(self) -> tuple[Slot]:
        """The module."""
        return (Slot(self.owner, self.path, f"fixed {self.attribute}"),)

    def read(self) -> bool:
        """Whether the mode is fixed."""
        return fixed_mode_of(self.owner, self.attribute) is not None

    def write(self, value: bool) -> None:
        """Put the hooks on, or take them off."""
        present = fixed_mode_of(self.owner, self.attribute)
        if value and present is None:
            FixedMode(self.owner, self.decider, self.attribute, self.fixed_value).put_on(self.owner)
        elif present is not None and not value:
            present.take_off(self.owner)

    def on(self, slot: Slot, owner: nn.Module, tree: Tree) -> Iterator[ModeSwitch]:
        """The same switch on a normalisation or dropout layer, or a module with the attribute."""
        if owner is self.owner:
            yield self
            return
        decider = decider_of(tree, slot.path)
        fits = is_normalization(owner) or is_dropout(owner) or hasattr(owner, self.attribute)
        if fits and decider is not None:
            yield ModeSwitch(owner, slot.path, decider, self.attribute, self.fixed_value)


@dataclass(frozen=True, eq=False)
class LayerDropoutSwitch:
    """Whether the dropout next to a frozen layer of a BiLSTM is off."""

    owner: nn.Module
    path: str
    layer: int
    parameter: None = None

    @property
    def slots(self) -> tuple[Slot]:
        """The layer of the module."""
        return (Slot(self.owner, self.path, f"dropout off {self.layer}"),)

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

    def on(self, slot: Slot, owner: nn.Module, tree: Tree) -> Iterator[LayerDropoutSwitch]:
        """On another BiLSTM."""
        if hasattr(owner, "dropout_off_layers"):
            yield LayerDropoutSwitch(owner, slot.path, self.layer)


@dataclass(frozen=True, eq=False)
class ConstantSwitch:
    """Whether a parameter is what its author made constant; see `constants.py`."""

    slots: tuple[Slot, ...]
    parameter: None = None

    def read(self) -> bool:
        """Whether it is constant."""
        slot = self.slots[0]
        return mark_of(slot.owner, slot.name.removeprefix("constant "), slot.part) == CONSTANT

    def write(self, value: bool) -> None:
        """Note it as constant, or as named, so that it trains like all others."""
        for slot in self.slots:
            name = slot.name.removeprefix("constant ")
            set_mark(slot.owner, name, slot.part, CONSTANT if value else NAMED)

    def on(self, slot: Slot, owner: nn.Module, tree: Tree) -> Iterator[ConstantSwitch]:
        """Under the same name."""
        yield ConstantSwitch((Slot(owner, slot.path, slot.name, slot.part),))
