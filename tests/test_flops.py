"""torch's FLOP counter counts the products of a BiLSTM as it counts those of nn.LSTM."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

from lstm_freeze import BiLSTM, add_lora, freeze

T, B, I, H = 7, 4, 6, 10


def counted(function):
    with FlopCounterMode(display=False) as counter:
        result = function()
    return result, counter.get_total_flops()


def forward_and_backward(module, x, hx=None):
    """Both counts; nn.LSTM's on the path that the counter sees into."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False):
            (output, _), forward = counted(lambda: module(x, hx))
            output = output if isinstance(output, torch.Tensor) else output.data
            _, backward = counted(output.sum().backward) if output.requires_grad else (None, 0)
    return forward, backward


@pytest.mark.parametrize("of_input", [False, True], ids=["", "input"])
@pytest.mark.parametrize("hx", [False, True], ids=["", "hx"])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 3}, {"bidirectional": False}, {"bias": False}], ids=str
)
def test_as_many_as_nn_lstm(options, packed, hx, of_input):
    bilstm = BiLSTM(I, H, **options)
    lstm, D = bilstm.to_lstm(), bilstm.num_directions
    x = torch.randn(T, B, I, requires_grad=of_input)
    if packed:
        x = pack_padded_sequence(x.detach(), [T, T - 2, 3, 1])
        x.data.requires_grad_(of_input)
    states = [torch.randn(bilstm.num_layers * D, B, H, requires_grad=True) for _ in "hc"]
    found, expected = (forward_and_backward(m, x, states if hx else None) for m in (bilstm, lstm))
    assert found[0] == expected[0] > 0
    if packed and D == 2 and not hx:
        # Its reverse direction multiplies rows of zeros where a sequence begins later.
        assert 0.9 * expected[1] < found[1] < expected[1]
    else:
        assert found[1] == expected[1] > 0


def test_a_projection():
    rows, P = T * B, 3
    module = BiLSTM(I, H, proj_size=P, bidirectional=False)
    forward, backward = forward_and_backward(module, torch.randn(T, B, I))
    products = 4 * H * (I + P) + P * H
    assert forward == 2 * rows * products
    assert backward == 2 * (rows * products + (rows - B) * 4 * H * P + rows * P * H)


def test_what_is_frozen_is_not_counted():
    module, x = BiLSTM(I, H, num_layers=2), torch.randn(T, B, I)
    full = forward_and_backward(module, x)
    freeze(module, layers=0)
    upper = forward_and_backward(module, x)
    assert upper[0] == full[0]
    assert upper[1] == 2 * 2 * (T * B * 4 * H * (2 * H + H) + (T - 1) * B * 4 * H * H)
    freeze(module)
    assert forward_and_backward(module, x) == (full[0], 0)


def test_a_compiled_program_counts_too():
    module, x = BiLSTM(I, H), torch.randn(T, B, I)
    expected = forward_and_backward(module, x)[0]
    program = torch.export.export(nn.Sequential(module).eval(), (x,)).module()
    assert counted(lambda: program(x))[1] == expected


def test_factors_are_counted_and_no_gradient_as_large_as_a_weight():
    lstm, rank, gates, rows = BiLSTM(I, H), 2, 4 * H, T * B
    x = torch.randn(T, B, I)
    freeze(lstm)
    base, _ = forward_and_backward(lstm, x)
    add_lora(lstm, rank=rank)
    forward, backward = forward_and_backward(lstm, x)
    assert forward - base == 2 * 2 * rank * gates * (I + H)
    # Per direction: weight_hh merged again, the walk back, and two products for each factor.
    walk = (rows - B) * gates * H
    factors = sum(2 * rows * rank * (size + gates) for size in (I, H))
    assert backward == 2 * 2 * (rank * gates * H + walk + factors)
