"""Chain-thaw (DeepMoji): the head, each other layer alone, then everything."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..._model import Groups
from ..layers import layers_of
from ..phase import Phase, as_rates, in_turn
from ..recipe_definition import Outline, as_length, as_own_layers, as_part, as_rest, recipe


@recipe(
    encoder=as_part, head=as_part, every=as_length, lr=as_rates, groups=as_own_layers, rest=as_rest
)
def chain_thaw(
    model: nn.Module,
    encoder: str = "encoder",
    head: str = "head",
    every: int = 1,
    lr: float | Mapping[str, float] | None = None,
    *,
    groups: Groups = None,
    rest: str = "leave",
) -> Outline:
    """Train the head, then each other layer alone from the first to the last, then all.

    In the paper every stage lasts until a metric stops improving and begins from the best
    weights with fresh optimizer state; in Lightning that is
    `FreezeScheduler(..., advance=Plateau(patience=5, restore_best=True))`.
    Felbo et al. 2017 (DeepMoji), arXiv 1708.00524.

    Args:
        model: The model, for its layers.
        encoder: A target: the other layers.
        head: A target: the new, output layer.
        every: The length of a stage in epochs.
        lr: The rate of the head's stage; the stages after it have a tenth of it (in the
            paper 1e-3 and 1e-4). A mapping is as in `Phase`, for every stage.
        groups: The model's layers as you see them, input side first and the head last, in place of
            `encoder` and `head`: a target or a list of targets for each.
        rest: What to do with all that is in no layer: `"leave"` it as it is, or `"freeze"` it.

    Examples:
        >>> from lstm_freeze import FreezeSchedule
        >>> model = nn.ModuleDict({"encoder": nn.LSTM(4, 8, 2), "head": nn.Linear(8, 2)})
        >>> [phase.train for phase in FreezeSchedule.chain_thaw(model).phases]
        [('head',), ('encoder[0]',), ('encoder[1]',), ('head', 'encoder')]
    """
    layers = layers_of(model, encoder, head, groups)
    first, *others = in_turn([layers.head, *layers.below, layers.whole], every, lr)
    if isinstance(lr, Mapping) or lr is None:
        return first, *others
    return first, *(Phase(p.start, p.train, lr=lr / 10) for p in others)
