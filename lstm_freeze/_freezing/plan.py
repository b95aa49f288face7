"""What a call is about to freeze and unfreeze: what it changes, and whether it can be done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from .._model import Tree
from .modes import dropout_switches, norm_switches
from .undo import Switch


@dataclass(frozen=True, eq=False)
class RequiresGrad:
    """The switch of a parameter: on is trainable. No old gradient outlives a change."""

    owner: nn.Parameter
    name: str = "requires_grad"

    def read(self) -> bool:
        """Whether it is trainable."""
        return self.owner.requires_grad

    def write(self, value: bool) -> None:
        """Make it trainable or frozen."""
        if not (value and self.owner.requires_grad):
            self.owner.grad = None
        self.owner.requires_grad = value  # the method would refuse lazy parameters


@dataclass(frozen=True)
class Plan:
    """Parameters, by first name, that are to be frozen and to be trainable from now on."""

    tree: Tree
    frozen: Mapping[str, nn.Parameter]
    trainable: Mapping[str, nn.Parameter]

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of those whose requires_grad is another now."""
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
        """Whether something will be trainable."""
        return len(self.frozen_afterwards) < len(self.tree.distinct())

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
        """The switches to turn, and to what: modules first, then parameters."""
        if dropout not in ("keep", "off"):
            raise ValueError(f'`dropout` must be "keep" or "off", got {dropout!r}')
        off, on = self._ids
        modules: list[tuple[Switch, bool]] = [*norm_switches(self.tree, off, on)]
        if dropout == "off":
            afterwards = {id(p) for p in self.frozen_afterwards}
            modules += [(switch, True) for switch in dropout_switches(self.tree, off, afterwards)]
        # A module reached by two paths has one switch.
        once = {(id(switch.owner), switch.name): (switch, value) for switch, value in modules}
        return [
            *once.values(),
            *((RequiresGrad(p), False) for p in self.frozen.values()),
            *((RequiresGrad(p), True) for p in self.trainable.values()),
        ]

    @property
    def _ids(self) -> tuple[set[int], set[int]]:
        return {id(p) for p in self.frozen.values()}, {id(p) for p in self.trainable.values()}


def can_train(parameter: nn.Parameter) -> bool:
    """Whether a parameter is of a type that can require a gradient (integers cannot)."""
    return parameter.is_floating_point() or parameter.is_complex()
