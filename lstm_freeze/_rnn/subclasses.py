"""Subclasses of nn.LSTM that run on BiLSTM and keep what they add around `super().forward`.

For each subclass, a class is made that inherits from the subclass and then from BiLSTM. So
`super()` in the subclass's methods finds the methods of BiLSTM. The subclass's own code is not
changed.
"""

from __future__ import annotations

import functools
import types
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from .bilstm import BiLSTM
from .conversion import adopt

_STATE_OF_LSTM = ("_flat_weights_names", "_all_weights")


class OnBiLSTM(BiLSTM, nn.LSTM):  # type: ignore[misc]
    """The base of such classes: it puts BiLSTM's methods before nn.LSTM's, and can be pickled."""

    subclass: type[nn.LSTM]

    def to_lstm(self) -> nn.LSTM:
        """Makes a module of the subclass again, with the same Parameter objects."""
        lstm = self.subclass.__new__(self.subclass)
        nn.Module.__init__(lstm)
        adopt(lstm, self, share_hooks=False, skip=("dropout_off_layers", "prefix_cache"))
        vars(lstm).update({name: vars(self)[name] for name in _STATE_OF_LSTM})
        lstm._init_flat_weights()
        return lstm

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickles the subclass in place of the class that was made at run time."""
        return _blank, (self.subclass,), self.__getstate__()  # type: ignore[no-untyped-call]


def on_bilstm(lstm: nn.LSTM) -> BiLSTM:
    """A module of the subclass of `lstm` that runs on BiLSTM, with the same Parameter objects.

    Hooks are shared with `lstm`; mode, attributes and parametrizations are taken over.

    Raises:
        TypeError: Python cannot make a class of the two.
    """
    target = _blank(parametrize.type_before_parametrizations(lstm))
    target.begin_empty()
    adopt(target, lstm, share_hooks=True, skip=())
    vars(target).update({name: vars(lstm)[name] for name in _STATE_OF_LSTM})
    target._init_flat_weights()
    return target


def _blank(subclass: type[nn.LSTM]) -> OnBiLSTM:
    key: Any = subclass
    kind = _class_of(key)
    return kind.__new__(kind)


@functools.cache
def _class_of(subclass: Any) -> type[OnBiLSTM]:
    made: Any = types.new_class(subclass.__name__, (subclass, OnBiLSTM))
    made.subclass = subclass
    made.__module__, made.__qualname__ = subclass.__module__, subclass.__qualname__
    found: type[OnBiLSTM] = made
    return found
