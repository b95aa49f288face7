"""An nn.LSTM that a model also keeps in a plain Python object: replace_lstm says where."""

import functools
import warnings

import pytest
import torch
from torch import nn

from lstm_freeze import BiLSTM, replace_lstm


class Model(nn.Module):
    def __init__(self, keep):
        super().__init__()
        self.inner = nn.Module()
        self.inner.lstm = nn.LSTM(2, 3)
        keep(self.inner)


def in_object(module):
    module.__dict__["plain"] = module.lstm


KEPT = {
    "list": (lambda m: setattr(m, "layers", [m.lstm]), "inner.layers[0]"),
    "tuple": (lambda m: setattr(m, "layers", (None, m.lstm)), "inner.layers[1]"),
    "dict": (lambda m: setattr(m, "by_name", {"a": m.lstm}), "inner.by_name['a']"),
    "nested": (lambda m: setattr(m, "deep", {"a": [(1, m.lstm)]}), "inner.deep['a'][0][1]"),
    "attribute": (in_object, "inner.plain"),
    "method": (lambda m: setattr(m, "run", m.lstm.forward), "inner.run (its method forward)"),
    "partial": (lambda m: setattr(m, "run", functools.partial(m.lstm, hx=None)), "inner.run"),
    "alone": (lambda m: setattr(m, "layers", [nn.LSTM(2, 2)]), "inner.layers[0]"),
    "in a module": (
        lambda m: setattr(m, "layers", [nn.Sequential(nn.LSTM(2, 2))]), "inner.layers[0].0",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("keep", "path"), KEPT.values(), ids=KEPT)
def test_it_is_said_where(keep, path):
    model = Model(keep)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert replace_lstm(model) == ("inner.lstm",)
    assert isinstance(model.inner.lstm, BiLSTM)
    (warning,) = caught
    assert f"{path!r} still is an nn.LSTM" in str(warning.message)
    assert warning.filename == __file__


SILENT = {
    "ModuleList": lambda m: setattr(m, "layers", nn.ModuleList([m.lstm])),
    "registered module": lambda m: setattr(m, "itself", [m]),
    "circle": lambda m: setattr(m, "circle", [m.__dict__]),
    "others": lambda m: setattr(m, "others", [nn.GRU(2, 2), torch.ones(2), "lstm"]),
}


@pytest.mark.parametrize("keep", SILENT.values(), ids=SILENT)
def test_what_is_replaced_everywhere_is_no_warning(keep):
    model = Model(keep)
    replaced = replace_lstm(model)
    assert "inner.lstm" in replaced
    assert replace_lstm(model) == ()
