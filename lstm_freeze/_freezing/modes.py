"""Which normalisation and dropout layers a call fixes in a mode, and which it releases."""

from __future__ import annotations

from .._model import Tree
from .fixed_modes import decider_of, is_dropout, is_normalization, is_scripted_normalization
from .switches import LayerDropoutSwitch, ModeSwitch


def norm_switches(
    tree: Tree, frozen: set[int], trainable: set[int]
) -> list[tuple[ModeSwitch, bool]]:
    """The mode switches of normalisation layers whose parameters a call decides about.

    A layer's mode is fixed when the call makes none of its parameters trainable, even if some
    still train: the hooks act only once all of them are frozen. The hooks are taken off when
    something is unfrozen, so that a later freeze by hand leaves the layer alone.

    Args:
        tree: The module.
        frozen: The ids of the parameters that are frozen.
        trainable: The ids of those that are made trainable.
    """
    decisions = []
    for path, module in tree.modules.items():
        if is_normalization(module) and (decider := decider_of(tree, path)) is not None:
            ids = {id(p) for p in decider.parameters()}
            if ids & (frozen | trainable):
                decisions.append((ModeSwitch(module, path, decider), not ids & trainable))
    return decisions


def free_norms(tree: Tree, frozen: set[int], trainable: set[int]) -> list[str]:
    """The paths of TorchScript's normalisation layers whose mode cannot be fixed."""
    found = []
    for path, module in tree.modules.items():
        if is_scripted_normalization(module) and (decider := decider_of(tree, path)) is not None:
            ids = {id(p) for p in decider.parameters()}
            rest = (p for p in decider.parameters() if id(p) not in frozen)
            if ids & frozen and not any(p.requires_grad or id(p) in trainable for p in rest):
                found.append(path)
    return found


def dropout_switches(
    tree: Tree, frozen: set[int], frozen_afterwards: set[int]
) -> list[ModeSwitch | LayerDropoutSwitch]:
    """The switches for dropout inside of what is being frozen.

    Raises:
        ValueError: An nn.LSTM, nn.GRU or nn.RNN with dropout would be frozen only in part.
    """
    switches: list[ModeSwitch | LayerDropoutSwitch] = []
    for path, module in tree.modules.items():
        if is_dropout(module):
            decider = decider_of(tree, path)
            if decider is not None and all(id(p) in frozen for p in decider.parameters()):
                switches.append(ModeSwitch(module, path, decider))
        elif path in tree.rnns and any(id(p) in frozen for p in module.parameters()):
            switches += _rnn_dropout_switches(tree, path, frozen, frozen_afterwards)
    return switches


def _rnn_dropout_switches(
    tree: Tree, path: str, frozen: set[int], frozen_afterwards: set[int]
) -> list[ModeSwitch | LayerDropoutSwitch]:
    rnn = tree.rnns[path]
    if hasattr(rnn, "dropout_off_layers"):
        places = tree.places(path).items()
        layers = {p.layer for name, p in places if id(tree.parameters[name]) in frozen}
        return [LayerDropoutSwitch(rnn, path, layer) for layer in sorted(layers)]
    if not rnn.dropout or rnn.num_layers == 1:
        return []
    if not all(id(p) in frozen_afterwards for p in rnn.parameters()):
        kind = type(rnn).__name__
        name = f"{kind} {path!r}" if path else f"this {kind}"
        remedy = (
            "make it a BiLSTM with replace_lstm(model) or BiLSTM.from_lstm(lstm)"
            if rnn.mode == "LSTM"
            else "set its .dropout = 0.0"
        )
        raise ValueError(
            f'dropout="off": {name} would be frozen only in part, and a {kind} has one '
            f"dropout for all of its layers; {remedy}, or freeze all of it"
        )
    return [ModeSwitch(rnn, path, rnn, "dropout", 0.0)]
