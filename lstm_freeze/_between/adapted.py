"""Adapted weights: where LoRA factors are kept, what they add, and how they are removed.

A factor is a Parameter of the module that has the weight, and stands under the weight's name and
`_lora_A` or `_lora_B`. The module's `lora_scales` lists the weights that have factors, and the
number that each product is multiplied by. A BiLSTM reads them itself; an nn.Linear becomes a
LinearWithFactors.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._model import Tree, join
from .._names import factor_name


class Adapted(NamedTuple):
    """A weight that has factors, or will get some.

    Attributes:
        path: The path of the module with the weight.
        name: Its name there.
    """

    path: str
    name: str

    @property
    def full_name(self) -> str:
        """The name of the weight in the whole module."""
        return join(self.path, self.name)

    @property
    def factors(self) -> tuple[str, str]:
        """The names of A and B in the whole module."""
        return factor_name(self.full_name, "A"), factor_name(self.full_name, "B")

    def owner(self, tree: Tree) -> nn.Module:
        """The module with the weight."""
        return tree.modules[self.path]


class LinearWithFactors(nn.Linear):
    """An nn.Linear whose weight has factors; `add_lora` makes and unmakes it.

    Attributes:
        lora_scales: "weight" -> the number that the product of the factors is multiplied by.
        lora_weight_trained: Whether the weight was trainable before it had factors.
    """

    lora_scales: dict[str, float]
    lora_weight_trained: bool
    weight_lora_A: Tensor
    weight_lora_B: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """The output of the base plus that of the factors, whose product is never formed."""
        up = self.weight_lora_B * self.lora_scales["weight"]
        # The factors may be kept in a finer dtype than the weight.
        narrow = F.linear(input, self.weight_lora_A.to(self.weight.dtype))
        return self._base(input) + F.linear(narrow, up.to(self.weight.dtype))

    def _base(self, input: Tensor) -> Tensor:
        """What nn.Linear computed before the weight was frozen, bit for bit.

        Torch multiplies inputs of three or more dimensions that are not contiguous (as a
        batch_first LSTM's output is) in another way for a weight that requires grad.
        """
        folded = self.lora_weight_trained and not self.weight.requires_grad
        if not folded or input.dim() < 3 or input.is_contiguous():
            return F.linear(input, self.weight, self.bias)
        output = input.reshape(-1, input.shape[-1]) @ self.weight.t()
        output = output.view(*input.shape[:-1], -1)
        return output if self.bias is None else output + self.bias


def add_factors(owner: nn.Module, name: str, rank: int, scale: float) -> None:
    """Give a weight (out, in) factors A (rank, in), drawn, and B (out, rank), zeros."""
    weight = owner._parameters[name]
    assert weight is not None
    a = nn.Parameter(weight.detach().new_empty(rank, weight.shape[1]))
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    owner.register_parameter(factor_name(name, "A"), a)
    b = nn.Parameter(weight.detach().new_zeros(weight.shape[0], rank))
    owner.register_parameter(factor_name(name, "B"), b)
    held: Any = owner
    held.lora_scales = {**scales_of(owner), name: scale}
    if type(owner) is nn.Linear:
        held.__class__ = LinearWithFactors
        held.lora_weight_trained = weight.requires_grad


def take_factors(owner: nn.Module, name: str) -> None:
    """Remove a weight's factors; nothing happens where it has none."""
    for factor in "AB":
        owner._parameters.pop(factor_name(name, factor), None)
    left = {n: scale for n, scale in scales_of(owner).items() if n != name}
    held: Any = owner
    if left:
        held.lora_scales = left
    else:
        vars(owner).pop("lora_scales", None)
    if isinstance(owner, LinearWithFactors):
        del owner.lora_weight_trained
        held.__class__ = nn.Linear


def scales_of(owner: nn.Module) -> dict[str, float]:
    """Name of each weight with factors -> the number that their product is multiplied by."""
    found: dict[str, float] = vars(owner).get("lora_scales", {})
    return found


@torch.no_grad()
def merged(owner: nn.Module, name: str) -> Tensor:
    """The weight with its update, computed as a BiLSTM computes with it."""
    weight, a, b = (
        getattr(owner, n) for n in (name, factor_name(name, "A"), factor_name(name, "B"))
    )
    up = (b * scales_of(owner)[name]).to(weight.dtype)
    return torch.addmm(weight, up, a.to(weight.dtype))
