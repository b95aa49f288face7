"""Linear probing, then fine-tuning (LP-FT): the head on a frozen encoder, then both."""

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
def linear_probing(
    model: nn.Module,
    encoder: str = "encoder",
    head: str = "head",
    every: int = 1,
    lr: float | Mapping[str, float] | None = None,
    *,
    groups: Groups = None,
    rest: str = "leave",
) -> Outline:
    """Train the head on a frozen encoder for `every` epochs, then both (LP-FT).

    Kumar et al. 2022, arXiv 2202.10054.

    Args:
        model: The model, to check the targets.
        encoder: A target: what is frozen first.
        head: A target: what trains from the beginning.
        every: The length of the linear probing in epochs.
        lr: As in `Phase`, for both phases.
        groups: The model's layers as you see them, input side first and the head last, in place of
            `encoder` and `head`: a target or a list of targets for each.
        rest: What to do with all that is in no layer: `"leave"` it as it is, or `"freeze"` it.

    Examples:
        >>> from lstm_freeze import FreezeSchedule
        >>> model = nn.ModuleDict({"encoder": nn.LSTM(4, 8), "head": nn.Linear(8, 2)})
        >>> FreezeSchedule.linear_probing(model, every=5).phases
        (Phase(0, ['head']), Phase(5, ['head', 'encoder']))
    """
    layers = layers_of(model, encoder, head, groups)
    return in_turn([layers.head, layers.whole], every, lr)
