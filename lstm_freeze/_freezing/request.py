"""Request: what a call asks to freeze and unfreeze, and whether that can be done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from .._model import Tree
from .constants import constants, slots_of
from .modes import dropout_switches, free_norms, norm_switches
from .switches import ConstantSwitch, RequiresGrad, Slot, Switch


@dataclass(frozen=True)
class Request:
    """The parameters, by first name, that a call asks to freeze and to make trainable.

    Attributes:
        tree: The module.
        frozen: What is to be frozen.
        trainable: What is to be trainable.
        named: Further parameters that a target names, so that they are no constants any more.
    """

    tree: Tree
    frozen: Mapping[str, nn.Parameter]
    trainable: Mapping[str, nn.Parameter]
    named: Mapping[str, nn.Parameter] = field(default_factory=dict)

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the parameters whose requires_grad the call changes."""
        off = [name for name, p in self.frozen.items() if p.requires_grad]
        return (*off, *(name for name, p in self.trainable.items() if not p.requires_grad))

    @property
    def frozen_afterwards(self) -> list[nn.Parameter]:
        """All parameters of the module that will be frozen."""
        off, on = self._ids
        return [
            p
            for p in self.tree.distinct().values()
            if id(p) in off or not (p.requires_grad or id(p) in on)
        ]

    @property
    def leaves_trainable(self) -> bool:
        """Whether something in the module will be trainable."""
        return len(self.frozen_afterwards) < len(self.tree.distinct())

    @property
    def free_norms(self) -> list[str]:
        """The normalisation layers whose statistics go on moving though they are frozen."""
        return free_norms(self.tree, *self._ids)

    def refuse_unswitchable(self) -> None:
        """Raise ValueError where torch would refuse to set requires_grad, before it is set."""
        for name, parameter in self.trainable.items():
            if not nn.parameter.is_lazy(parameter) and parameter.is_inference():
                raise ValueError(
                    f"{name!r} was made under torch.inference_mode() and can never train; "
                    "build the module outside of it"
                )
        for name, parameter in {**self.frozen, **self.trainable}.items():
            if not parameter.is_leaf:
                raise ValueError(
                    f"{name!r} is the result of a computation that autograd recorded (it was "
                    "written to in place), so requires_grad cannot be set; write to parameters "
                    "under torch.no_grad()"
                )

    def decisions(self, dropout: str) -> list[tuple[Switch, bool]]:
        """The switches to turn, with their new values: modules first, then parameters.

        Raises:
            ValueError: `dropout` is unknown, or cannot be switched off.
        """
        if dropout not in ("keep", "off"):
            raise ValueError(f'`dropout` must be "keep" or "off", got {dropout!r}')
        off, on = self._ids
        modules: list[tuple[Switch, bool]] = [*norm_switches(self.tree, off, on)]
        if dropout == "off":
            afterwards = {id(p) for p in self.frozen_afterwards}
            modules += [(switch, True) for switch in dropout_switches(self.tree, off, afterwards)]
        # A module at two paths has one switch.
        once = {
            (id(switch.slots[0].owner), switch.slots[0].name): (switch, value)
            for switch, value in modules
        }
        slots = slots_of(self.tree)
        named = {id(p) for p in (*self.trainable.values(), *self.named.values())}
        constant = [id(p) for p in constants(self.tree).values() if id(p) in named]
        return [
            *once.values(),
            *((_constant(slots[key]), False) for key in constant),
            *((RequiresGrad(slots[id(p)]), False) for p in self.frozen.values()),
            *((RequiresGrad(slots[id(p)]), True) for p in self.trainable.values()),
        ]

    @property
    def _ids(self) -> tuple[set[int], set[int]]:
        return {id(p) for p in self.frozen.values()}, {id(p) for p in self.trainable.values()}


def _constant(slots: tuple[Slot, ...]) -> ConstantSwitch:
    return ConstantSwitch(tuple(slot._replace(name=f"constant {slot.name}") for slot in slots))
