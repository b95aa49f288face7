"""IdleCounts: for how many optimizer steps each trainable parameter has been idle."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .._model import Tree
from .followed import parameters_in


class IdleCounts:
    """Counts, for each trainable parameter, the optimizer steps in a row for which it was idle.

    A parameter is idle in a step if it got no gradient before, or if the optimizer of the step does
    not hold it. A gradient of zeros counts if autograd made it, and not if `zero_grad` left it.
    """

    def __init__(self, module: nn.Module, limit: int) -> None:
        """Count from 0; from `limit` steps on, a parameter is reported."""
        self._module = module
        self._limit = limit
        self._steps = 0
        self._counts: dict[int, int] = {}
        self._names: dict[int, tuple[str, nn.Parameter]] = {}
        self._arrived: set[int] = set()
        self._hooks: dict[int, RemovableHandle] = {}
        self.read_module()

    @property
    def idle(self) -> Mapping[int, int]:
        """Id of each parameter that is idle for `limit` steps or more -> for how many."""
        return {
            key: count
            for key, count in self._counts.items()
            if count >= self._limit and key in self._names and self._names[key][1].requires_grad
        }

    def read_module(self) -> None:
        """Read the module's parameters again: they may have been replaced."""
        found = Tree(self._module).distinct()
        self._names = {id(p): (name, p) for name, p in found.items()}
        for key in self._hooks.keys() - self._names.keys():
            self._hooks.pop(key).remove()
        self._counts = {key: n for key, n in self._counts.items() if key in self._names}
        self._listen()

    def after_step(self, optimizer: Optimizer) -> str:
        """Count a step; a message if some parameters have just reached the limit, else empty."""
        held = {id(p) for p in parameters_in(optimizer)}
        if not held & self._names.keys():
            return ""  # it has copies, or the parameters of another model
        self._steps += 1
        if self._steps % self._limit == 0:
            self.read_module()
        late = []
        for key, (_, parameter) in self._names.items():
            if not parameter.requires_grad or (key in held and self._has_gradient(parameter)):
                self._counts.pop(key, None)
            else:
                self._counts[key] = self._counts.get(key, 0) + 1
                if self._counts[key] == self._limit:
                    late.append(key)
        message = self._message(late, held)
        self._arrived -= held
        self._listen()
        return message

    def stop(self) -> None:
        """Take the hooks off the parameters; the counts stay as they are."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
        self._arrived.clear()

    def _listen(self) -> None:
        for key, (_, parameter) in self._names.items():
            if key in self._hooks or not parameter.requires_grad:
                continue
            if not nn.parameter.is_lazy(parameter) and parameter.is_leaf:
                self._hooks[key] = parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    functools.partial(_arrive, self._arrived, key)
                )

    def _has_gradient(self, parameter: nn.Parameter) -> bool:
        if id(parameter) in self._arrived:
            return True
        gradient = parameter.grad  # one that was set by hand
        if gradient is None:
            return False
        return gradient.layout != torch.strided or bool(gradient.any())

    def _message(self, late: list[int], held: set[int]) -> str:
        if not late:
            return ""
        without = [self._names[key][0] for key in late if key not in self._arrived]
        unheld = [self._names[key][0] for key in late if key in self._arrived]
        reasons = []
        if without:
            reasons.append(
                f"{', '.join(without)} got no gradient (outside the graph: unused, detached, under "
                "no_grad, or behind outputs that were computed before)"
            )
        if unheld:
            reasons.append(
                f"{', '.join(unheld)} got gradients, but no optimizer that stepped holds "
                f"{'them' if len(unheld) > 1 else 'it'}"
            )
        noun = "parameter is" if len(late) == 1 else "parameters are"
        return (
            f"{len(late)} trainable {noun} idle: {self._limit} optimizer steps in a row did not "
            f"train {'it' if len(late) == 1 else 'them'}: {'; '.join(reasons)}. "
            "Freeze what should not train, or look at why"
        )


def _arrive(arrived: set[int], key: int, parameter: nn.Parameter) -> None:
    arrived.add(key)
