"""nn.LSTM -> BiLSTM inside a model."""

from __future__ import annotations

from torch import nn

from .bilstm import BiLSTM
from .conversion import is_plain, swap_lstms
from .subclasses import on_bilstm


def replace_lstm(model: nn.Module, *, subclasses: bool = False) -> tuple[str, ...]:
    """Makes every nn.LSTM inside `model` a BiLSTM, in place.

    Parameters stay the same objects, so optimizers stay valid; hooks and their handles, training
    mode and parametrizations are kept. An nn.LSTM that stands in several places stays shared.

    Args:
        model: What holds the nn.LSTM modules.
        subclasses: Also replace subclasses of nn.LSTM, such as those that pack their input around
            `super().forward`: the module keeps the subclass's methods, attributes and name, and
            `super().forward` is BiLSTM's. By default they are left alone with a warning.

    Examples:
        >>> model = nn.Sequential(nn.Embedding(20, 4), nn.LSTM(4, 8))
        >>> replace_lstm(model)
        ('1',)

    Returns:
        The paths of the replaced modules.

    Raises:
        ValueError: `model` is itself an nn.LSTM, or is already wrapped or compiled.
        TypeError: An argument is of another type than named above.

    Warns:
        UserWarning: A subclass was left alone, there was nothing to replace (it says what there
            is), an nn.LSTM is also kept in a plain list, dict or the like, from where it would go
            on to run, or one is on CUDA with no part frozen, where cuDNN is faster.
    """

    def convert(lstm: nn.LSTM) -> BiLSTM:
        if is_plain(lstm, nn.LSTM):
            return BiLSTM._from_lstm(lstm, share_hooks=True)
        return on_bilstm(lstm)

    return swap_lstms(model, convert, BiLSTM, subclasses)
