"""chosen_weights: the weights that get factors, or an error that says why one cannot."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .._model import Layers, Names, Target, Tree, as_targets, resolve, select_in
from .._names import KIND_GROUPS, is_factor, place_of
from .._rnn import BiLSTM
from .adapted import Adapted, LinearWithFactors, scales_of

ALL = "weight"


def chosen_weights(
    tree: Tree,
    targets: Sequence[Target],
    layers: Layers,
    directions: Names,
    kinds: Names,
    exclude: Target,
) -> list[Adapted]:
    """The chosen weights that can have factors; biases and the like among the chosen are skipped.

    Raises:
        ValueError: A recurrent or linear weight among them cannot have factors, or a target, or
            the whole choice, names none that can.
    """
    # All candidates are weights. Passed on, the default would require exactly one RNN.
    asked = None if kinds == ALL else kinds
    selection = select_in(tree, targets, layers, directions, asked, exclude)
    weights = {n: w for n in selection.distinct if (w := _weight_of(tree, n)) is not None}
    reasons = dict.fromkeys(r for n, w in weights.items() if (r := _reason_against(tree, n, w)))
    if reasons:
        raise ValueError("; ".join(reasons))
    for target in (t for several in targets for t in as_targets(several, "targets")):
        if not any(_weight_of(tree, name) for name in resolve(tree, target)):
            raise ValueError(
                f'"{target}": names no weight of a BiLSTM or nn.Linear; LoRA factors serve those '
                "only, and not biases, embeddings or normalisation"
            )
    if not weights:
        raise ValueError(
            "nothing chosen is a weight of a BiLSTM or nn.Linear, which LoRA factors serve; "
            "choose others, or use freeze(...) and unfreeze(...)"
        )
    return list(weights.values())


def _weight_of(tree: Tree, name: str) -> Adapted | None:
    """The weight of an RNN or nn.Linear that a parameter is, or is a part of (parametrised)."""
    if is_factor(name):
        return None
    path, _, local = tree.tensors_served.get(name, name).rpartition(".")
    if path in tree.rnns:
        place = place_of(local)
        recurrent = place is not None and place.kind in KIND_GROUPS["weight"]
        return Adapted(path, local) if recurrent else None
    linear = isinstance(tree.modules[path], nn.Linear) and local == "weight"
    return Adapted(path, local) if linear else None


def _reason_against(tree: Tree, name: str, weight: Adapted) -> str | None:
    """Why a weight cannot have factors; None where it can."""
    owner, where = weight.owner(tree), weight.path
    shown = f'"{where}"' if where else "the module itself"
    leave_out = f'leave it out with exclude="{where}"'
    parameter = tree.parameters[name]
    if where in tree.rnns and not isinstance(owner, BiLSTM):
        lstm = "make it a BiLSTM with replace_lstm(model) or BiLSTM.from_lstm(lstm)"
        remedy = lstm if isinstance(owner, nn.LSTM) else leave_out
        return f"{shown} is an nn.{owner.mode}, which can have no LoRA factors; {remedy}"
    if nn.parameter.is_lazy(parameter):
        return f"{name!r} has no shape yet; run the module once first"
    kinds = (nn.Linear, LinearWithFactors)
    if isinstance(owner, nn.Linear) and type(owner) not in kinds and name == weight.full_name:
        kind = type(owner).__name__
        return f"{shown} is a {kind}, which may compute more than an nn.Linear; {leave_out}"
    if name != weight.full_name:
        return (
            f"{weight.full_name!r} is parametrised ({name!r}); remove the parametrization first "
            "(torch.nn.utils.parametrize.remove_parametrizations)"
        )
    if weight.name in scales_of(owner):
        return f"{name!r} has LoRA factors already; merge() or remove() those first"
    if not parameter.is_floating_point():
        return f"{name!r} is {parameter.dtype}; LoRA factors need a floating-point weight"
    if others := _tied_elsewhere(tree, name, owner):
        return (
            f"{name!r} is tied to {', '.join(map(repr, others))}, and the update would reach only "
            f'one of them; leave it out with exclude="{name}"'
        )
    return None


def _tied_elsewhere(tree: Tree, name: str, owner: nn.Module) -> list[str]:
    parameter = tree.parameters[name]
    same = [other for other, p in tree.parameters.items() if p is parameter and other != name]
    return [n for n in same if tree.modules[n.rpartition(".")[0]] is not owner]
