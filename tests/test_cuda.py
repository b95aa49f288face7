"""What only a real GPU can show: cuDNN beside it, autocast's casts, fused steps, streams, graphs.

What any device must do is in `on_device`, which `make gpu` runs on CUDA, too.
"""

import pytest
import torch
from torch import nn

from lstm_freeze import BiLSTM, FrozenGuard, PrefixCache, anchor, freeze, replace_lstm

DEVICE = "cuda"

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
    """A BiLSTM and an nn.LSTM on cuDNN that have the same Parameters."""
    lstm = nn.LSTM(6, 10, 2, bidirectional=True, device=DEVICE, **options)
    return BiLSTM.from_lstm(lstm), lstm


def inputs():
    return torch.randn(9, 4, 6, device=DEVICE)


def moved(model, block):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    block()
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("options", [{}, {"proj_size": 3}, {"bias": False}], ids=str)
def test_results_and_gradients_are_those_of_cudnn(options):
    bilstm, lstm = pair(**options)
    x, found = inputs(), []
    for module in (bilstm, lstm):
        output, (h, c) = module(x)
        module.zero_grad()
        (output.square().sum() + h.sum() + c.square().sum()).backward()
        found.append([output, h, c, *(p.grad for p in module.parameters())])
    for got, expected in zip(*found, strict=True):
        scale = max(expected.abs().max().item(), 1)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * scale)


def test_freezing_changes_no_bit_of_cublas_products():
    bilstm, _ = pair()
    x = inputs()
    full = bilstm(x)[0]
    full.square().sum().backward()
    before = {name: p.grad.clone() for name, p in bilstm.named_parameters()}
    freeze(bilstm, layers=0)
    freeze(bilstm, directions="reverse")
    again = bilstm(x)[0]
    bilstm.zero_grad()
    again.square().sum().backward()
    assert torch.equal(full, again)
    left = {name: p.grad for name, p in bilstm.named_parameters() if p.grad is not None}
    assert left.keys() == {name for name in before if name.endswith("_l1")}
    assert all(torch.equal(left[name], before[name]) for name in left)


def test_a_module_in_eval_mode_has_a_backward_where_cudnn_has_none():
    bilstm, lstm = pair()
    x = inputs().requires_grad_()
    with pytest.raises(RuntimeError, match="cudnn RNN backward can only be called in training"):
        lstm.eval()(x)[0].sum().backward()
    freeze(bilstm)
    bilstm.eval()(x)[0].sum().backward()
    assert x.grad.abs().max() > 0


def test_replacing_says_that_cudnn_is_faster():
    model = nn.ModuleDict({"encoder": nn.LSTM(2, 3)}).to(DEVICE)
    with pytest.warns(UserWarning, match="'encoder': on CUDA a BiLSTM all of which") as caught:
        replace_lstm(model)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    bilstm, lstm = pair()
    x = inputs()
    with torch.autocast(DEVICE, dtype):
        (got, ours), (expected, theirs) = bilstm(x), lstm(x)
    for a, b in zip((got, *ours), (expected, *theirs), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.float(), b.float(), rtol=0, atol=2e-2)


OPTIONS = {"fused": {"fused": True}, "capturable": {"capturable": True, "foreach": True}}


@pytest.mark.parametrize("overflow", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("mode", ["exact", "fingerprint"])
def test_mixed_precision_with_a_scaler(mode, options, overflow):
    """A step that the scaler leaves out moves nothing, by the anchor's pull neither."""
    bilstm, _ = pair()
    frozen = set(freeze(bilstm, layers=0).changed)
    optimizer = torch.optim.AdamW(bilstm.parameters(), 0.1, weight_decay=0.1, **options)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**10)
    held = anchor(bilstm, optimizer, strength=0.5)

    def step(factor=1.0):
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.float16):
            loss = bilstm(inputs())[0].float().square().mean()
        scaler.scale(loss * factor).backward()
        scaler.step(optimizer)
        scaler.update()

    with FrozenGuard(bilstm, mode=mode).attach(optimizer) as guard:
        names = moved(bilstm, step)
        assert names == {name for name, _ in bilstm.named_parameters()} - frozen
        assert held.distance() > 0
        assert moved(bilstm, lambda: step(float("inf") if overflow else 1.0)) == (
            set() if overflow else names
        )
    assert guard.checks >= 2


def test_a_stream_of_its_own():
    """Everything of a step runs on the current stream, and nothing on the default one."""
    bilstm, _ = pair()
    freeze(bilstm, layers=0)
    bilstm.prefix_cache = PrefixCache()
    x = inputs()
    expected = bilstm(x)[0].detach().clone()
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # what does not wait for this stream reads zeros below
        late = torch.zeros_like(x).add_(x)
        for _ in range(2):
            found = bilstm(late)[0]
            found.sum().backward()
    stream.synchronize()
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-6)
    assert bilstm.prefix_cache.stats()["hits"] == 2 * 4
    assert bilstm.weight_hh_l1.grad.any()


def test_a_training_step_makes_the_host_wait_for_nothing():
    bilstm, _ = pair()
    x = inputs()
    optimizer = torch.optim.AdamW(bilstm.parameters(), fused=True)
    mode = torch.cuda.get_sync_debug_mode()

    def step():
        optimizer.zero_grad()
        bilstm(x)[0].square().sum().backward()
        optimizer.step()

    step()
    for frozen in ({"layers": 0}, {"directions": "reverse"}, {"layers": 1}):
        with freeze(bilstm, **frozen):
            torch.cuda.set_sync_debug_mode("error")
            try:
                step()
                with pytest.raises(RuntimeError, match="synchroniz"):
                    bilstm.weight_hh_l0.sum().item()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
