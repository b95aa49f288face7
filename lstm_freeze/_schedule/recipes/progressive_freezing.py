"""Progressive freezing (FreezeOut): layer after layer freezes for good, input side first."""

from __future__ import annotations

from torch import nn

from ..._checks import as_bool
from ..._model import Groups
from ..annealing import Annealing, as_shape, as_start
from ..layers import layers_of
from ..recipe_definition import Outline, as_length, as_own_layers, as_part, as_rest, recipe


@recipe(
    total=as_length,
    encoder=as_part,
    head=as_part,
    t0=as_start,
    how=as_shape,
    scaled=as_bool,
    groups=as_own_layers,
    rest=as_rest,
    found=("scope",),
)
def progressive_freezing(
    model: nn.Module,
    total: int,
    encoder: str = "encoder",
    head: str = "head",
    t0: float = 0.8,
    how: str = "cubic",
    scaled: bool = True,
    *,
    groups: Groups = None,
    rest: str = "leave",
) -> Outline:
    """Freeze layer after layer for good, input side first (FreezeOut).

    Layer i of L (0 is the input-most layer of the encoder, L the head) trains for the fraction
    r_i = s(t0 + (1 - t0) i / L) of the training. Its rate falls along its own cosine from the
    rate the param group began with to 0 at that time, and it is frozen at the next epoch's
    start. The rates are set in each step, so each layer needs its own param group, and an LR
    scheduler is refused. Brock et al. 2017, arXiv 1706.04983.

    Args:
        model: The model, for its layers.
        total: The length of the training in epochs.
        encoder: A target: the layers that freeze.
        head: A target: the layer that trains to the end.
        t0: The fraction of the training after which the first layer freezes, before the shape.
        how: The shape s: `"linear"`, `"squared"` or `"cubic"`.
        scaled: Divide each layer's initial rate by r_i, so that its rates have the same sum.
        groups: The model's layers as you see them, input side first and the head last, in place of
            `encoder` and `head`: a target or a list of targets for each.
        rest: What to do with all that is in no layer: `"leave"` it as it is, or `"freeze"` it.

    Examples:
        >>> from lstm_freeze import FreezeSchedule
        >>> model = nn.ModuleDict({"encoder": nn.LSTM(4, 8, 2), "head": nn.Linear(8, 2)})
        >>> FreezeSchedule.progressive_freezing(model, 10, t0=0.5, how="linear").phases[1:]
        (Phase(5, ['encoder[1]', 'head']), Phase(8, ['head']))
    """
    layers = layers_of(model, encoder, head, groups)
    return Annealing((*layers.below, layers.head), total, t0, how, scaled)
