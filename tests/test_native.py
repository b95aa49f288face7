import importlib.util
import struct
import sys
import types

import pytest
import torch

from lstm_freeze import BiLSTM, _native

built = pytest.mark.skipif(_native._extension is None, reason="the extension is not built here")
LEVELS = () if _native._extension is None else _native._extension.levels()
MAGNITUDES = (float("inf"), 0.0, 1e-45, 1e-40, 1e-30, 1e-4, 0.3, 17.4, 88.3, 103.0, 105.0, 3e38)
SPECIAL = torch.tensor([float("nan"), *(sign * x for x in MAGNITUDES for sign in (1, -1))])


OFF = "torch (the native step is switched off)"


@pytest.fixture(params=LEVELS)
def level(request):
    before = _native._extension.use(request.param)
    yield request.param
    _native._extension.use(before)


def bits(tensor):
    return tensor.view(torch.int32)


def activations(x):
    """The native sigmoid and tanh of a vector."""
    pre = x.repeat(4).view(1, 1, -1)
    gates, c = torch.empty_like(pre), torch.zeros(1, 1, x.numel())
    _native.forward_step(pre, gates, c, torch.empty_like(c), torch.empty_like(c))(1, 0, 0, 0, 0, 0)
    i, f, g, o = gates.view(4, -1)
    assert torch.equal(bits(i), bits(f))
    assert torch.equal(bits(i), bits(o))
    return i, g


def errors_in_ulps(got, true):
    """Distance in units of the last place of the float32 nearest to the true value."""
    exponent = torch.frexp(true.abs().clamp_min(2.0**-126))[1]
    return (got.double() - true).abs() / torch.ldexp(torch.ones_like(true), exponent - 24)


@built
@pytest.mark.parametrize(
    "x",
    [
        torch.arange(-(2**31), 2**31, 9973).to(torch.int32).view(torch.float32),
        torch.linspace(-20, 20, 400_001),
        torch.linspace(-104, -80, 100_001),
    ],
    ids=["every magnitude", "usual", "near underflow"],
)
def test_activations_are_accurate(level, x):
    for got, true in zip(activations(x), (x.double().sigmoid(), x.double().tanh()), strict=True):
        assert torch.equal(got.isnan(), x.isnan())
        assert errors_in_ulps(got, true)[~x.isnan()].max() < 3


@built
def test_special_values_give_what_torch_gives(level):
    sigmoid, tanh = activations(SPECIAL)
    tiny = torch.finfo(torch.float32).tiny  # torch rounds sigmoids below 3e-39 to zero
    torch.testing.assert_close(sigmoid, SPECIAL.sigmoid(), equal_nan=True, rtol=3e-7, atol=tiny)
    torch.testing.assert_close(tanh, SPECIAL.tanh(), equal_nan=True, rtol=3e-7, atol=0)
    assert sigmoid[1:3].tolist() == [1, 0]
    assert tanh[1:3].tolist() == [1, -1]
    assert torch.equal(tanh.signbit()[1:], SPECIAL.signbit()[1:])


def buffers(rows, hidden, directions=2, seed=0):
    """Operands of one step: pre, c_before, dh, dc, with every special value somewhere."""
    generator = torch.Generator().manual_seed(seed)
    pre = 3 * torch.randn(directions, rows, 4 * hidden, generator=generator)
    pre.view(-1)[:: max(1, pre.numel() // 40)] = 50.0
    others = [torch.randn(directions, rows, hidden, generator=generator) for _ in range(3)]
    return (pre, *others)


def run_forward(pre, c_before, keep=True):
    c, h = torch.empty_like(c_before), torch.empty_like(c_before)
    gates = torch.empty_like(pre) if keep else None
    rows = pre.shape[1]
    _native.forward_step(pre, gates, c_before, c, h)(rows, 0, 0, 0, 0, 0)
    return gates, c, h


def run_backward(dh, dc, gates, c_before, c):
    dc, dgates = dc.clone(), torch.empty_like(gates)
    _native.backward_step(dh, dc, gates, c_before, c, dgates)(dh.shape[1], 0, 0, 0, 0, 0, 0)
    return dgates, dc


def step(pre, c_before):
    """The definition."""
    i, f, g, o = pre.chunk(4, -1)
    c = f.sigmoid() * c_before + i.sigmoid() * g.tanh()
    return c, o.sigmoid() * c.tanh()


@built
@pytest.mark.parametrize("hidden", [1, 3, 8, 31, 64, 100])
@pytest.mark.parametrize("directions", [1, 2])
def test_a_step_and_its_gradient_follow_the_definition(level, hidden, directions):
    pre, c_before, dh, dc = buffers(5, hidden, directions)
    gates, c, h = run_forward(pre, c_before)
    dgates, dc_before = run_backward(dh, dc, gates, c_before, c)

    exact = [x.double().requires_grad_() for x in (pre, c_before)]
    outputs = step(*exact)
    expected = torch.autograd.grad(outputs, exact, [dc.double(), dh.double()])
    for got, true in zip((c, h, dgates, dc_before), (*outputs, *expected), strict=True):
        torch.testing.assert_close(got.double(), true.detach(), rtol=2e-6, atol=2e-6)


@built
def test_a_wrong_step_would_be_seen():
    pre, c_before, *_ = buffers(5, 64)
    _, c, _ = run_forward(pre, c_before)
    swapped = torch.cat([pre[..., 64:128], pre[..., :64], pre[..., 128:]], -1)
    assert not torch.allclose(step(swapped, c_before)[0], c, rtol=1e-3)


@built
@pytest.mark.parametrize("hidden", [*range(1, 20), 31, 33, 63, 65])
def test_an_element_depends_neither_on_its_place_nor_on_the_number_of_rows(level, hidden):
    pre, c_before, dh, dc = buffers(6, hidden)
    gates, c, h = run_forward(pre, c_before)
    whole = (gates, c, h, *run_backward(dh, dc, gates, c_before, c))

    # The same elements, all in one row: another place in the vectors, another tail.
    def in_one_row(x, parts=1):
        return x.unflatten(-1, (parts, hidden)).permute(2, 0, 1, 3).reshape(1, 1, -1)

    one = run_forward(in_one_row(pre, 4), in_one_row(c_before))
    back = run_backward(in_one_row(dh), in_one_row(dc), one[0], in_one_row(c_before), one[1])
    for got, same, parts in zip((*one, *back), whole, (4, 1, 1, 4, 1), strict=True):
        assert torch.equal(bits(got), bits(in_one_row(same, parts)))


@built
def test_memory_that_begins_anywhere_gives_the_same_bits(level):
    pre, c_before, *_ = buffers(4, 29)
    expected = run_forward(pre, c_before)
    for shift in range(1, 9):
        shifted = [
            torch.empty(x.numel() + shift)[shift:].view(x.shape).copy_(x) for x in (pre, c_before)
        ]
        for got, same in zip(run_forward(*shifted), expected, strict=True):
            assert torch.equal(bits(got), bits(same))


@built
def test_keeping_the_gates_changes_no_bit(level):
    pre, c_before, *_ = buffers(7, 37)
    _, c, h = run_forward(pre, c_before)
    _, c_without, h_without = run_forward(pre, c_before, keep=False)
    assert torch.equal(bits(c), bits(c_without))
    assert torch.equal(bits(h), bits(h_without))


@built
def test_a_step_may_overwrite_what_it_read(level):
    pre, c_before, dh, dc = buffers(7, 37)
    gates, c, h = run_forward(pre, c_before)
    dgates, dc_before = run_backward(dh, dc, gates, c_before, c)

    pre_in_place, c_in_place, h_in_place = pre.clone(), c_before.clone(), torch.empty_like(h)
    forward = _native.forward_step(pre_in_place, pre_in_place, c_in_place, c_in_place, h_in_place)
    forward(7, 0, 0, 0, 0, 0)
    for got, same in ((pre_in_place, gates), (c_in_place, c), (h_in_place, h)):
        assert torch.equal(bits(got), bits(same))
    backward = _native.backward_step(dh, dc, pre_in_place, c_before, c, pre_in_place)
    backward(7, 0, 0, 0, 0, 0, 0)
    assert torch.equal(bits(pre_in_place), bits(dgates))
    assert torch.equal(bits(dc), bits(dc_before))


@built
def test_a_step_touches_only_its_rows(level):
    pre, c_before, dh, dc = buffers(12, 10)
    gates, cells, hidden = (torch.full(x.shape, 9.0) for x in (pre, c_before, c_before))
    _native.forward_step(pre, gates, c_before, cells, hidden)(3, 4, 2, 5, 1, 6)
    expected = run_forward(pre[:, 4:7], c_before[:, 5:8])
    for buffer, first, same in zip((gates, cells, hidden), (2, 1, 6), expected, strict=True):
        assert torch.equal(buffer[:, first : first + 3], same)
        buffer[:, first : first + 3] = 9.0
        assert (buffer == 9.0).all()

    dgates, dc_after = torch.full(pre.shape, 9.0), dc.clone()
    _native.backward_step(dh, dc_after, pre, c_before, dh, dgates)(3, 1, 2, 3, 4, 5, 6)
    rows = [x[:, k : k + 3] for k, x in enumerate((dh, dc, pre, c_before, dh), start=1)]
    got = run_backward(*rows)
    assert torch.equal(dgates[:, 6:9], got[0])
    assert torch.equal(dc_after[:, 2:5], got[1])
    dgates[:, 6:9], dc_after[:, 2:5] = 9.0, dc[:, 2:5]
    assert (dgates == 9.0).all()
    assert torch.equal(dc_after, dc)


@built
def test_the_gates_of_a_row_may_have_wider_rows_around_them(level):
    pre, c_before, *_ = buffers(4, 9)
    wide = torch.zeros(2, 4, 50)
    wide[..., 7:43] = pre
    for got, same in zip(
        run_forward(wide[..., 7:43], c_before), run_forward(pre, c_before), strict=True
    ):
        assert torch.equal(got, same)


@built
def test_levels_with_fused_multiply_add_agree_in_bits_and_others_to_rounding():
    operands = buffers(9, 45)
    results = {}
    for name in LEVELS:
        before = _native._extension.use(name)
        results[name] = run_forward(*operands[:2])
        _native._extension.use(before)
    for name, result in results.items():
        for got, same in zip(result, results[LEVELS[-1]], strict=True):
            torch.testing.assert_close(got, same, rtol=2e-6, atol=2e-7)
            assert name == "baseline" or torch.equal(bits(got), bits(same))


@built
def test_work_large_enough_to_release_the_interpreter_lock():
    pre, c_before, dh, dc = buffers(200, 100)
    gates, c, _ = run_forward(pre, c_before)
    parts = [run_forward(pre[:, k : k + 1], c_before[:, k : k + 1]) for k in range(200)]
    assert torch.equal(c, torch.cat([part[1] for part in parts], 1))
    dgates, _ = run_backward(dh, dc, gates, c_before, c)
    one = run_backward(*(x[:, 150:151] for x in (dh, dc, gates, c_before, c)))
    assert torch.equal(dgates[:, 150:151], one[0])


@built
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("pre", torch.zeros(2, 3, 5)),
        ("gates", torch.zeros(1, 3, 16)),
        ("c_before", torch.zeros(2, 3, 4, dtype=torch.float64)),
        ("c_before", torch.zeros(2, 3, 8)[..., ::2]),
        ("h", torch.zeros(2, 3, 4, device="meta")),
        ("h", torch.zeros(3, 4)),
    ],
)
def test_an_operand_that_does_not_fit_is_refused(name, wrong):
    state = torch.zeros(2, 3, 4)
    operands = {"pre": torch.zeros(2, 3, 16), "gates": None, "c_before": state, "c": state}
    with pytest.raises(ValueError, match=f"`{name}` must be float32 on the CPU"):
        _native.forward_step(**{**operands, "h": state.clone(), name: wrong})


@built
def test_the_extension_refuses_calls_it_cannot_read():
    gates = _native._extension
    step = struct.pack("=17q", *[0] * 17)
    with pytest.raises(TypeError, match="expected 8 arguments, got 3"):
        gates.forward(step, None, 0)
    with pytest.raises(ValueError, match="expected a step of 160 bytes, got 136"):
        gates.backward(step, None, 0, 0, 0, 0, 0, 0, 0)
    with pytest.raises(TypeError, match="int"):
        gates.forward(step, None, 0, 0, 0, "0", 0, 0)
    with pytest.raises(TypeError, match="bytes"):
        gates.forward(bytearray(step), None, 0, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="this processor has no level 'mmx'"):
        gates.use("mmx")
    with pytest.raises(TypeError, match="the level must be a string"):
        gates.use(3)


@built
def test_the_switch():
    tensor = torch.zeros(1)
    with _native.switched(True):
        assert _native.applies(tensor)
        assert not _native.applies(tensor.double())
        assert not _native.applies(tensor.to("meta"))
        assert _native.in_use() == f"native ({LEVELS[-1]})"
        with _native.switched(False):
            assert not _native.applies(tensor)
            assert _native.in_use() == OFF
        assert _native.applies(tensor)
        assert _native.enable(False) is True
        assert _native.enable(True) is False


def test_without_the_extension_torch_serves(monkeypatch):
    monkeypatch.setattr(_native, "_extension", None)
    monkeypatch.setattr(_native, "_enabled", False)
    assert _native.in_use() == "torch (the extension lstm_freeze._gates is not built)"
    assert not _native.applies(torch.zeros(1))
    assert _native.enable(False) is False
    with pytest.raises(RuntimeError, match="install a C compiler and then lstm-freeze again"):
        _native.enable(True)


@built
@pytest.mark.parametrize(
    "loss",
    [
        lambda state: (state.transpose(0, 2).contiguous() ** 2).sum(),
        lambda state: (state.transpose(1, 2).contiguous() ** 2).sum(),
        lambda state: state.sum(),
        lambda state: state[..., ::2].square().sum(),
    ],
    ids=["permuted", "transposed", "expanded", "strided"],
)
def test_gradients_may_come_in_any_layout(loss):
    lstm, x = BiLSTM(4, 5), torch.randn(6, 3, 4)
    found = {}
    for native in (True, False):
        with _native.switched(native):
            output, (h, c) = lstm(x)
            total = loss(output) + loss(h) + loss(c)
            found[native] = torch.autograd.grad(total, list(lstm.parameters()))
    for got, same in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(got, same)
        assert got.abs().max() > 0


@pytest.fixture
def imported_anew(monkeypatch):
    """Runs the module's source again, as a new interpreter would, beside the one in use."""

    def run(setting=None, extension=None):
        if setting is None:
            monkeypatch.delenv("LSTM_FREEZE_NATIVE", raising=False)
        else:
            monkeypatch.setenv("LSTM_FREEZE_NATIVE", setting)
        if extension is not None:
            monkeypatch.delattr("lstm_freeze._gates", raising=False)
            monkeypatch.setitem(sys.modules, "lstm_freeze._gates", *extension)
        spec = importlib.util.spec_from_file_location("lstm_freeze._native_anew", _native.__file__)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return run


@built
@pytest.mark.parametrize(
    ("setting", "expected"), [(None, "native ("), ("", "native ("), ("1", "native ("), ("0", OFF)]
)
def test_the_environment_switches_it_off(imported_anew, setting, expected):
    module = imported_anew(setting)
    assert module.in_use().startswith(expected)
    assert module.applies(torch.zeros(1)) == (setting != "0")


def test_the_environment_is_refused_where_it_says_neither(imported_anew):
    with pytest.raises(ValueError, match=r"LSTM_FREEZE_NATIVE must be 0 .* or 1 .*, got 'no'"):
        imported_anew("no")


@pytest.mark.parametrize("extension", [None, types.SimpleNamespace(INTERFACE=0)])
def test_an_extension_absent_or_of_another_version_is_not_used(imported_anew, extension):
    module = imported_anew(extension=[extension])
    assert module.in_use() == "torch (the extension lstm_freeze._gates is not built)"
    assert not module.applies(torch.zeros(1))
