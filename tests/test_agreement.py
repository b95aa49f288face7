"""Nothing that happens between a forward pass and its backward crashes or answers wrongly."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _loops import LOOPS, on_loop
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from lstm_freeze import BiLSTM
from lstm_freeze._recurrence.agreement import is_there

T, B, I, H = 5, 3, 6, 70


@pytest.fixture(params=LOOPS, autouse=True)
def loop(request):
    with on_loop(request.param):
        yield request.param


def half_of_the_rows(tensor):
    tensor.data = tensor.data[: len(tensor) // 2]


def longer(tensor):
    tensor.data = torch.cat([tensor.data] * 100)


def no_memory(tensor):
    tensor.untyped_storage().resize_(0)


def other_dtype(tensor):
    tensor.data = tensor.data.double()


CHANGES = {
    "half": lambda m, x: m.half(),
    "double": lambda m, x: m.double(),
    "one direction in double": lambda m, x: other_dtype(m.weight_hh_l0_reverse),
    "a shorter weight": lambda m, x: half_of_the_rows(m.weight_hh_l0),
    "a shorter projection": lambda m, x: half_of_the_rows(m.weight_hr_l0),
    "a longer bias": lambda m, x: longer(m.bias_ih_l0_reverse),
    "a weight without memory": lambda m, x: no_memory(m.weight_hh_l0),
    "a longer input": lambda m, x: longer(x),
    "a shorter input": lambda m, x: half_of_the_rows(x),
    "an input in double": lambda m, x: other_dtype(x),
    "an input without memory": lambda m, x: no_memory(x),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_since_the_forward_pass_is_refused(change):
    m, x = BiLSTM(I, H, proj_size=9), torch.randn(T, B, I)
    y = m(x)[0]
    CHANGES[change](m, x)
    with pytest.raises(RuntimeError, match=r"forward pass was given, but is|has lost its memory"):
        y.sum().backward()


def test_the_inputs_of_the_first_report():
    m = BiLSTM(6, 512)
    y = m(torch.randn(5, 3, 6))[0]
    m.half()
    with pytest.raises(RuntimeError, match=r"`weight_ih` must be torch.float32 on cpu of size"):
        y.sum().backward()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    ("sizes", "others"),
    [([8] * 40, [319, 1] + [0] * 38), ([8, 8, 6, 6], [8, 7, 7, 6]), ([3, 2], [2**62, -(2**62)])],
)
def test_sizes_that_the_caller_writes_to_are_those_of_the_forward_pass(
    sizes, others, bidirectional
):
    def gradients(rewrite):
        torch.manual_seed(0)
        m, given = BiLSTM(I, H, bidirectional=bidirectional), torch.tensor(sizes)
        output, (h, _) = m(PackedSequence(torch.randn(sum(sizes), I), given))
        if rewrite:
            given.numpy()[:] = others
        (output.data.square().sum() + h.sum()).backward()
        return [p.grad for p in m.parameters()]

    pairs = list(zip(gradients(True), gradients(False), strict=True))
    assert all(torch.equal(found, expected) for found, expected in pairs)
    assert all(expected.abs().sum() > 0 for _, expected in pairs)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        (1, [1, -(2**63 - 1), 2**63 - 1]),
        (2, [2**62] * 4 + [2]),
        (2, [2**63 - 1, 2**63 - 1, 4]),
        (0, [2**63 - 1, 2**63 - 1, 2]),
        (5, [3, 2, -1, 1]),
        (5, [2, 3]),
        (5, [3, 1]),
    ],
)
def test_sizes_that_wrap_around_are_refused(rows, sizes, bidirectional):
    packed = PackedSequence(torch.randn(rows, I), torch.tensor(sizes))
    with pytest.raises(RuntimeError, match=r"input\.(batch_sizes|data) must"):
        BiLSTM(I, H, bidirectional=bidirectional)(packed)


def test_sizes_may_lie_in_any_memory():
    m, data = BiLSTM(I, H), torch.randn(6, I)
    expected = m(PackedSequence(data, torch.tensor([2, 2, 2])))[0].data
    for sizes in (torch.tensor([2]).expand(3), torch.tensor([[2, 0], [2, 0], [2, 0]])[:, 0]):
        assert torch.equal(m(PackedSequence(data, sizes))[0].data, expected)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_hooks_on_saved_tensors_may_change_strides(requires_grad):
    def transposed(x):
        dims = tuple(reversed(range(x.dim())))
        return x.permute(dims).contiguous().permute(dims)

    def gradients(module, x, unpack):
        module.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, unpack):
            output = module(x)[0]
        output.square().sum().backward()
        return [p.grad for p in module.parameters()]

    m, x = BiLSTM(I, H, proj_size=3), torch.randn(T, B, I, requires_grad=requires_grad)
    found, expected = (gradients(m, x, unpack) for unpack in (transposed, lambda x: x))
    assert all(torch.equal(y, z) for y, z in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["weight_hh_l0", "bias_ih_l0_reverse", "weight_ih_l1"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32, torch.complex64])
def test_weights_of_several_dtypes_are_refused(name, dtype):
    m = BiLSTM(I, H, 2)
    weight = getattr(m, name).detach().to(dtype)
    setattr(m, name, nn.Parameter(weight, requires_grad=dtype.is_floating_point))
    with pytest.raises(RuntimeError, match=f"all weights must have one dtype.*for {name}"):
        m(torch.randn(T, B, I))


def test_autocast_converts_sixteen_bit_weights_among_others():
    m = BiLSTM(I, H)
    m.weight_hh_l0 = nn.Parameter(m.weight_hh_l0.detach().half())
    with torch.autocast("cpu", torch.bfloat16):
        assert m(torch.randn(T, B, I))[0].dtype == torch.bfloat16
    m.weight_hh_l0 = nn.Parameter(m.weight_hh_l0.detach().double())
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(RuntimeError, match="all weights must have one dtype"),
    ):
        m(torch.randn(T, B, I))


@pytest.mark.parametrize("value", [-3e38, 3e38])
def test_a_very_large_cell_state_has_the_gradient_of_nn_lstm(value):
    torch.manual_seed(0)
    lstm = nn.LSTM(I, H, bidirectional=True)
    with torch.no_grad():
        lstm.bias_ih_l0[H : 2 * H] = -200.0  # the forget gate is shut: its own derivative is 0
    bilstm = BiLSTM.from_lstm(lstm)
    x, h = torch.randn(T, B, I), torch.zeros(2, B, H)
    found = []
    for m in (lstm, bilstm):
        c = torch.full((2, B, H), value, requires_grad=True)
        output, (_, c_n) = m(x, (h, c))
        loss = output.sum() + c_n[0].sum()
        found.append(torch.autograd.grad(loss, [c, *m.parameters()]))
    for expected, grad in zip(*found, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)
    assert all(grad.isfinite().all() for grad in found[1])


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_the_last_cell_state_of_one_step_knows_no_projection(steps, packed):
    lstm = nn.LSTM(I, H, 2, bidirectional=True, proj_size=4)
    x = torch.randn(steps, B, I)
    if packed:
        x = nn.utils.rnn.pack_padded_sequence(x, [steps] * B)

    def use(m):
        m.zero_grad()
        for name, p in m.named_parameters():
            p.requires_grad_("hr_l1" in name)
        c = m(x)[1][1]
        alone = c.requires_grad
        m.requires_grad_(True)
        m(x)[1][1].square().sum().backward()
        return alone, {name: p.grad is None for name, p in m.named_parameters()}

    assert use(BiLSTM.from_lstm(lstm)) == use(lstm)
    assert lstm.weight_hh_l0.grad is not None
    assert (lstm.weight_hr_l1.grad is None) == (steps == 1)


def test_the_projection_alone_asked_for_where_nothing_depends_on_it():
    m = BiLSTM(I, H, proj_size=4)
    c = m(torch.randn(1, B, I))[1][1]
    assert torch.autograd.grad(c.sum(), m.weight_hr_l0, allow_unused=True) == (None,)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_complex_gradients_are_those_of_nn_lstm():
    torch.manual_seed(0)
    lstm = nn.LSTM(I, 4, 2, bidirectional=True).to(torch.complex128)
    x = torch.randn(T, B, I, dtype=torch.complex128, requires_grad=True)
    found = [
        torch.autograd.grad(m(x)[0].abs().square().sum(), [x, *m.parameters()])
        for m in (lstm, BiLSTM.from_lstm(lstm))
    ]
    for expected, grad in zip(*found, strict=True):
        torch.testing.assert_close(grad, expected)


GONE = {
    "input": lambda m, x, hx: no_memory(x),
    "hidden state": lambda m, x, hx: no_memory(hx[0]),
    "weight": lambda m, x, hx: no_memory(m.bias_hh_l0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("gone", GONE)
def test_a_call_with_memory_that_is_gone_is_refused(gone, packed, dtype):
    m = BiLSTM(I, H, batch_first=True, dtype=dtype)
    x, hx = torch.randn(B, T, I, dtype=dtype), [torch.zeros(2, B, H, dtype=dtype) for _ in "hc"]
    if packed:
        x = nn.utils.rnn.pack_padded_sequence(x, [T] * B, batch_first=True)
    m(x, hx)
    GONE[gone](m, x.data, hx)
    with pytest.raises(RuntimeError, match="has lost its memory"):
        m(x, hx)


def test_memory_that_is_there():
    x = torch.zeros(4, 5)
    assert all(map(is_there, (x, x.t(), x[1:, 2], x[:0], torch.zeros(1).expand(9, 9))))
    view = x[2:]
    x.untyped_storage().resize_(4 * 5 * 4 - 1)
    assert not is_there(x)
    assert not is_there(view)
    assert is_there(x[:3])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_random_changes_between_forward_and_backward(seed):
    script = Path(__file__).with_name("_fuzz.py")
    command = [sys.executable, "-X", "faulthandler", script, "--seed", str(seed), "--cases", "150"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert f"150 cases, seed {seed}: no crash, nothing wrong" in run.stdout
