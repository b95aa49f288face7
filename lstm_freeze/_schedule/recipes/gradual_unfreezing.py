"""Gradual unfreezing (ULMFiT): the head, then one more layer at a time, from the top."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..._model import Groups
from ..layers import layers_of
from ..phase import as_rates, in_turn
from ..recipe_definition import Outline, as_length, as_own_layers, as_part, as_rest, recipe


@recipe(
    encoder=as_part, head=as_part, every=as_length, lr=as_rates, groups=as_own_layers, rest=as_rest
)
def gradual_unfreezing(
    model: nn.Module,
    encoder: str = "encoder",
    head: str = "head",
    every: int = 1,
    lr: float | Mapping[str, float] | None = None,
    *,
    groups: Groups = None,
    rest: str = "leave",
) -> Outline:
    """Train the head first, then after every `every` epochs one more layer too (ULMFiT).

    The layers are added from the output to the input, in the order of `param_groups`: both
    directions of an RNN layer at once, a layer of a stack of cells as one, and each other part (an
    embedding, a projection) by itself. The paper's discriminative rates are those of
    `param_groups(model, lr, layer_decay=1 / 2.6)`, its slanted triangular rate is
    `slanted_triangular`; both go with `lr=None`. Howard & Ruder 2018, arXiv 1801.06146.

    Args:
        model: The model, for its layers.
        encoder: A target: what is unfrozen step by step.
        head: A target: what trains from the beginning.
        every: The length of a phase in epochs.
        lr: As in `Phase`, for every phase.
        groups: The model's layers as you see them, input side first and the head last, in place of
            `encoder` and `head`: a target or a list of targets for each.
        rest: What to do with all that is in no layer: `"leave"` it as it is, or `"freeze"` it.

    Examples:
        >>> from lstm_freeze import FreezeSchedule
        >>> model = nn.ModuleDict({"encoder": nn.LSTM(4, 8, 2), "head": nn.Linear(8, 2)})
        >>> for phase in FreezeSchedule.gradual_unfreezing(model).phases:
        ...     print(phase)
        Phase(0, ['head'])
        Phase(1, ['head', 'encoder[1]'])
        Phase(2, ['head', 'encoder[1]', 'encoder[0]'])
    """
    layers = layers_of(model, encoder, head, groups)
    stages = [[*layers.head]]
    for layer in reversed(layers.below):
        stages.append([*stages[-1], *layer])
    return in_turn(stages, every, lr)
