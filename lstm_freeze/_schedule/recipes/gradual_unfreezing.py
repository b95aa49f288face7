"""Gradual unfreezing (ULMFiT): the head, then one more layer at a time, from the top."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..kinds import Outline, as_length, as_part, recipe
from ..layers import encoder_of, rnn_layers
from ..phase import as_rates, in_turn


@recipe(encoder=as_part, head=as_part, every=as_length, lr=as_rates)
def gradual_unfreezing(
    model: nn.Module,
    encoder: str = "encoder",
    head: str = "head",
    every: int = 1,
    lr: float | Mapping[str, float] | None = None,
) -> Outline:
    """Train the head first, and every `every` epochs the next lower group too (ULMFiT).

    The groups: the head; the RNN layers from the top, both directions together (several RNNs
    in order from the output); then all that remains of the encoder. The paper's
    discriminative rates are those of `param_groups(model, lr, layer_decay=1 / 2.6)`, its
    slanted triangular rate is `slanted_triangular`; both go with `lr=None`.
    Howard & Ruder 2018, arXiv 1801.06146.

    Args:
        model: The model, for its layers.
        encoder: A target: what is unfrozen step by step.
        head: A target: what trains from the beginning.
        every: The length of a phase in epochs.
        lr: As in `Phase`, for every phase.

    Examples:
        >>> from lstm_freeze import FreezeSchedule
        >>> model = nn.ModuleDict({"encoder": nn.LSTM(4, 8, 2), "head": nn.Linear(8, 2)})
        >>> for phase in FreezeSchedule.gradual_unfreezing(model).phases:
        ...     print(phase)
        Phase(0, ['head'])
        Phase(1, ['head', 'encoder[1]'])
        Phase(2, ['head', 'encoder[1]', 'encoder[0]'])
    """
    tree, inside = encoder_of(model, encoder, head)
    targets, stages = [head], [[head]]
    for target, names in reversed(rnn_layers(tree, inside)):
        targets.append(target)
        stages.append([*targets])
        inside -= names
    if inside:
        stages.append([head, encoder])
    return in_turn(stages, every, lr)
