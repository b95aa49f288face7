"""replace_lstm on another device: what it says of a vendor's LSTM, and the same Parameters."""

import warnings

import pytest
import torch
from torch import nn

from lstm_freeze import BiLSTM, freeze, replace_lstm


@pytest.fixture
def model(device):
    torch.manual_seed(0)
    lstms = {"lower": nn.LSTM(4, 6), "upper": nn.LSTM(6, 3, bidirectional=True)}
    return nn.ModuleDict({**lstms, "head": nn.Linear(6, 2)}).to(device)


def texts(model):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        replace_lstm(model)
    assert all(isinstance(model[path], BiLSTM) for path in ("lower", "upper"))
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def test_one_warning_names_all_and_what_speaks_for_bilstm(model, fused):
    (text,) = texts(model)
    assert text.startswith("'lower', 'upper': on CUDA a BiLSTM all of which trains is slower")
    for reason in ("PrefixCache()", "one direction frozen", "eval()", "keep nn.LSTM"):
        assert reason in text


def test_an_lstm_with_a_frozen_part_is_not_named(model, fused):
    freeze(model, "upper[0].reverse")
    (text,) = texts(model)
    assert text.startswith("'lower': on CUDA")


def test_a_model_on_the_cpu_is_not_warned_of(model, fused):
    assert texts(model.cpu()) == []
    with pytest.warns(UserWarning, match="replaced nothing"):
        replace_lstm(nn.ModuleDict({"gru": nn.GRU(2, 2)}))


def test_optimizers_there_stay_valid(model, device):
    parameters = list(model.parameters())
    assert texts(model) == [] or torch.device(device).type == "cuda"
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    optimizer = torch.optim.SGD(parameters, 0.1, foreach=False)
    before = [p.detach().cpu().clone() for p in parameters]
    x = model["lower"](torch.randn(5, 3, 4).to(device))[0]
    model["head"](model["upper"](x)[0]).square().sum().backward()
    optimizer.step()
    after = [p.detach().cpu() for p in parameters]
    assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))
