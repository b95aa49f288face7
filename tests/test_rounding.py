"""Float32 results are as far from the float64 ones as nn.LSTM's, and near those."""

import copy
import math
import random

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from lstm_freeze import BiLSTM

# The smallest error that is told from none: two roundings of the largest value.
LEAST = 2 * torch.finfo(torch.float32).eps


def random_case(draw):
    """An nn.LSTM of random options and a batch for it."""
    torch.manual_seed(draw.randrange(2**31))
    H = draw.choice((7, 16, 33, 100))
    lstm = nn.LSTM(
        draw.choice((1, 5, 20, 64)),
        H,
        draw.choice((1, 2, 3)),
        bias=draw.random() < 0.8,
        bidirectional=draw.random() < 0.6,
        proj_size=draw.choice((0, 0, 0, H // 2)),
    )
    T, B = draw.choice((1, 5, 40, 120)), draw.choice((1, 3, 10))
    if draw.random() < 0.5:
        return lstm, torch.randn(T, B, lstm.input_size)
    lengths = [draw.randint(1, T) for _ in range(B)]
    sequences = [torch.randn(n, lstm.input_size) for n in lengths]
    return lstm, pack_sequence(sequences, enforce_sorted=False)


def enlarged(lstm, most):
    """Weights like trained ones: most are small, some as large as `most`."""
    with torch.no_grad():
        for p in lstm.parameters():
            p.copy_(torch.randn_like(p).pow(3).mul_(most / 20).clamp_(-most, most))
            p.view(-1)[0] = most
    return lstm


def results(module, x, dtype):
    """Output and final states, and all gradients."""
    module = copy.deepcopy(module).to(dtype)
    packed = isinstance(x, PackedSequence)
    output, states = module(x._replace(data=x.data.to(dtype)) if packed else x.to(dtype))
    output = output.data if packed else output
    seed = torch.linspace(-1, 1, output.numel(), dtype=dtype).view(output.shape)
    loss = (output * seed).sum() + sum(s.sum() for s in states)
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    return [t.detach() for t in (output, *states)], list(gradients)


def error(found, expected):
    """The largest difference of any tensor, as a share of its largest value."""
    return max(
        float((x.double() - y.double()).abs().max() / y.abs().max().clamp_min(1e-30))
        for x, y in zip(found, expected, strict=True)
    )


def finite(found):
    return all(bool(x.isfinite().all()) for x in found)


def errors(cases, seed, change=lambda lstm: lstm):
    """For outputs and gradients, each case's errors: nn.LSTM's, BiLSTM's, and between the two."""
    draw, outputs, gradients = random.Random(seed), [], []
    for _ in range(cases):
        lstm, x = random_case(draw)
        change(lstm)
        exact = results(lstm, x, torch.float64)
        theirs, ours = (results(m, x, torch.float32) for m in (lstm, BiLSTM.from_lstm(lstm)))
        for kept, e, a, b in zip((outputs, gradients), exact, theirs, ours, strict=True):
            if finite(a):
                kept.append((error(a, e), error(b, e), error(b, a)))
            else:  # large weights overflow float32, and then in both
                assert not finite(b)
    return outputs, gradients


def ratio(found):
    """The geometric mean of BiLSTM's error over nn.LSTM's."""
    logs = [math.log(max(ours, LEAST) / max(theirs, LEAST)) for theirs, ours, _ in found]
    return math.exp(sum(logs) / len(logs))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(
    "cases", [15, pytest.param(150, marks=pytest.mark.slow)], ids=["some", "many"]
)
class TestRounding:
    def test_fresh_weights(self, cases):
        outputs, gradients = errors(cases, seed=cases)
        assert ratio(outputs) <= 1.3
        assert ratio(gradients) <= 1.3
        assert 0 < max(between for *_, between in outputs) <= 5e-6
        assert 0 < max(between for *_, between in gradients) <= 5e-5

    @pytest.mark.parametrize("most", [1.0, 3.0])
    def test_weights_of_pretrained_size(self, cases, most):
        # Large weights make a recurrence amplify any rounding: only the two errors can be compared.
        for found in errors(cases, seed=cases + 1, change=lambda m: enlarged(m, most)):
            assert ratio(found) <= 1.3


def test_a_larger_error_is_noticed():
    assert ratio([(1e-6, 2e-6, 0), (1e-6, 1e-6, 0)]) == pytest.approx(math.sqrt(2))
    assert error([torch.ones(3)], [torch.tensor([1.0, 2.0, 1.0])]) == 0.5
