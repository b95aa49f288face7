"""nn.LSTM -> BiLSTM inside a model."""

from __future__ import annotations

from torch import nn

from .bilstm import BiLSTM
from .conversion import swap_lstms


def replace_lstm(model: nn.Module) -> tuple[str, ...]:
    """Makes every nn.LSTM inside `model` a BiLSTM, in place.

    Parameters stay the same objects, so optimizers stay valid; hooks and their handles, training
    mode and parametrizations are kept. An nn.LSTM that stands in several places stays shared.
    Subclasses of nn.LSTM are left alone with a warning.

    Examples:
        >>> model = nn.Sequential(nn.Embedding(20, 4), nn.LSTM(4, 8))
        >>> replace_lstm(model)
        ('1',)

    Returns:
        The paths of the replaced modules.

    Raises:
        ValueError: `model` is itself an nn.LSTM, or is already wrapped or compiled.
    """
    return swap_lstms(model, lambda lstm: BiLSTM._from_lstm(lstm, share_hooks=True), stacklevel=3)
