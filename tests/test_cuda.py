"""BiLSTM and freezing on a CUDA device, against nn.LSTM and against themselves."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from lstm_freeze import BiLSTM, FrozenGuard, PrefixCache, freeze

DEVICE = "cuda"
LENGTHS = (3, 9, 1, 6)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def full_precision():
    places = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    yield
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value


def pair(**options):
    lstm = nn.LSTM(6, 10, 2, device=DEVICE, **options)
    return BiLSTM.from_lstm(lstm), lstm


def inputs(form):
    if form == "packed":
        samples = [torch.randn(n, 6, device=DEVICE) for n in LENGTHS]
        return pack_sequence(samples, enforce_sorted=False)
    return torch.randn(9, 4, 6, device=DEVICE)


def gradients(module, x):
    output, (h, c) = module(x)
    rows = output if isinstance(output, torch.Tensor) else output.data
    for parameter in module.parameters():
        parameter.grad = None
    (rows.square().sum() + h.sum() + c.square().sum()).backward()
    return rows, h, c, *(p.grad for p in module.parameters())


@pytest.mark.parametrize("form", ["dense", "packed"])
@pytest.mark.parametrize(
    "options",
    [{}, {"bidirectional": True}, {"bidirectional": True, "proj_size": 3}, {"bias": False}],
    ids=["one direction", "both", "projected", "no bias"],
)
def test_results_and_gradients_are_those_of_nn_lstm(form, options):
    bilstm, lstm = pair(**options)
    x = inputs(form)
    for got, expected in zip(gradients(bilstm, x), gradients(lstm, x), strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * max(scale, 1))


@pytest.mark.parametrize("form", ["dense", "packed"])
def test_freezing_changes_no_bit_of_what_remains(form):
    bilstm, _ = pair(bidirectional=True)
    x = inputs(form)
    before = gradients(bilstm, x)
    freeze(bilstm, layers=0)
    freeze(bilstm, directions="reverse")
    after = gradients(bilstm, x)
    for old, new in zip(before, after, strict=True):
        assert new is None or torch.equal(old, new)
    assert sum(new is None for new in after) == 3 * 4


def test_a_frozen_module_in_eval_mode_has_a_backward():
    bilstm, _ = pair(bidirectional=True)
    freeze(bilstm, layers=0)
    bilstm.eval()
    x = inputs("dense").requires_grad_()
    bilstm(x)[0].sum().backward()
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    bilstm, lstm = pair(bidirectional=True)
    x = inputs("dense")
    with torch.autocast(DEVICE, dtype):
        got, expected = bilstm(x)[0], lstm(x)[0]
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got.float(), expected.float(), rtol=0, atol=2e-2)


@pytest.mark.parametrize("mode", ["exact", "fingerprint"])
def test_the_guard_watches_an_optimizer(mode):
    bilstm, _ = pair(bidirectional=True)
    freeze(bilstm, layers=0)
    optimizer = torch.optim.AdamW(bilstm.parameters(), lr=0.1, weight_decay=0.1)
    with FrozenGuard(bilstm, mode=mode).attach(optimizer) as guard:
        for _ in range(3):
            gradients(bilstm, inputs("dense"))
            optimizer.step()
    assert guard.checks == 3


@pytest.mark.parametrize("form", ["dense", "packed"])
def test_the_prefix_cache_serves(form):
    bilstm, _ = pair(bidirectional=True)
    freeze(bilstm, layers=0)
    x = inputs(form)
    expected = gradients(bilstm, x)
    bilstm.prefix_cache = PrefixCache()
    for hits in (0, 4):
        for got, same in zip(gradients(bilstm, x), expected, strict=True):
            assert (got is None and same is None) or torch.allclose(got, same, atol=1e-5)
        assert bilstm.prefix_cache.stats()["hits"] == hits
