"""BiLSTM on another device: nn.LSTM's results on the CPU, whatever is frozen, nothing read back."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.flop_counter import FlopCounterMode

from lstm_freeze import BiLSTM, freeze

T = 5
LENGTHS = (2, 5, 1, 3)
OPTIONS = {
    "both directions": {},
    "one direction": {"bidirectional": False},
    "projected": {"proj_size": 2},
    "no bias": {"bias": False},
    "float64": {"dtype": torch.float64},
    "batch first": {"batch_first": True},
}
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
FORMS = ("dense", "unbatched", "packed", "packed sorted")


def pair(device, **options):
    """A BiLSTM there, and an nn.LSTM of equal weights on the CPU."""
    torch.manual_seed(0)
    there = BiLSTM(4, 6, 2, **options)
    return copy.deepcopy(there).to(device), there.to_lstm()


def inputs(form, dtype=torch.float32):
    gen = torch.Generator().manual_seed(1)
    if form == "dense":
        return torch.randn(T, 4, 4, generator=gen, dtype=dtype)
    if form == "unbatched":
        return torch.randn(T, 4, generator=gen, dtype=dtype)
    lengths = sorted(LENGTHS, reverse=True) if "sorted" in form else LENGTHS
    samples = [torch.randn(n, 4, generator=gen, dtype=dtype) for n in lengths]
    return pack_sequence(samples, enforce_sorted="sorted" in form)


def states(lstm, form):
    gen = torch.Generator().manual_seed(2)
    batch = {"dense": (T if lstm.batch_first else 4,), "unbatched": ()}.get(form, (4,))
    rows = lstm.num_layers * (1 + lstm.bidirectional)
    sizes = (lstm.proj_size or lstm.hidden_size, lstm.hidden_size)
    dtype = lstm.weight_hh_l0.dtype
    return tuple(torch.randn(rows, *batch, n, generator=gen, dtype=dtype) for n in sizes)


def moved(x, device):
    return tuple(t.to(device) for t in x) if type(x) is tuple else x.to(device)


def everything(lstm, *args):
    """Output, final states and the gradients of what trains, on the CPU."""
    output, (h, c) = lstm(*args)
    rows = output.data if isinstance(output, PackedSequence) else output
    for parameter in lstm.parameters():
        parameter.grad = None
    loss = rows.square().sum() + h.sum() + c.square().sum()
    if loss.requires_grad:
        loss.backward()
    grads = [None if p.grad is None else p.grad.cpu() for p in lstm.parameters()]
    return [rows.detach().cpu(), h.detach().cpu(), c.detach().cpu(), *grads]


def assert_close(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            scale = max(b.abs().max().item(), 1)
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * scale)


CASES = [(name, form, True) for name in OPTIONS for form in FORMS]
CASES += [("both directions", form, False) for form in FORMS]


@pytest.mark.parametrize(("options", "form", "hx"), CASES)
def test_results_are_those_of_nn_lstm(device, options, form, hx):
    bilstm, lstm = pair(device, **OPTIONS[options])
    x = inputs(form, lstm.weight_hh_l0.dtype)
    args = (x, states(lstm, form)) if hx else (x,)
    got = everything(bilstm, *(moved(a, device) for a in args))
    assert_close(got, everything(lstm, *args))


FROZEN = [
    {"layers": layers, "directions": directions, "kinds": kinds}
    for layers, directions, kinds in itertools.product(
        (None, 0, 1), (None, "forward", "reverse"), (None, "weight", "bias", "weight_ih")
    )
]


# Packed input differs in its rows, not in what is asked of the backward pass.
PATTERNS = [("dense", f) for f in FROZEN] + [("packed", f) for f in FROZEN if not f["kinds"]]


@pytest.mark.parametrize(("form", "frozen"), PATTERNS, ids=str)
def test_every_pattern_of_frozen_parts(device, form, frozen):
    bilstm, lstm = pair(device)
    x = inputs(form)
    before = everything(bilstm, x.to(device))
    freeze(lstm, **frozen)
    freeze(bilstm, **frozen)
    after = everything(bilstm, x.to(device))
    assert_close(after, everything(lstm, x))
    for old, new in zip(before[:3], after[:3], strict=True):
        assert torch.equal(old, new)  # what is frozen changes no bit of the forward pass
    trains = sum(p.requires_grad for p in bilstm.parameters())
    assert sum(g is not None for g in after[3:]) == trains < 16 or frozen == FROZEN[0]


@pytest.mark.parametrize("form", ["dense", "packed"])
def test_gradients_of_input_and_states(device, form):
    bilstm, lstm = pair(device)
    freeze(bilstm), freeze(lstm)
    found = []
    for module, where in ((bilstm, device), (lstm, "cpu")):
        data = torch.randn(4, T, 4, generator=torch.Generator().manual_seed(3))
        leaves = [t.to(where).requires_grad_() for t in (data, *states(lstm, form))]
        x = leaves[0].transpose(0, 1)
        if form == "packed":
            samples = [leaves[0][i, :n] for i, n in enumerate(LENGTHS)]
            x = pack_sequence(samples, enforce_sorted=False)
        output, (h, c) = module(x, tuple(leaves[1:]))
        rows = output.data if form == "packed" else output
        (rows.square().sum() + h.sum() + c.sum()).backward()
        found.append([leaf.grad.cpu() for leaf in leaves])
    assert_close(*found)


@pytest.mark.parametrize("form", ["dense", "packed"])
def test_second_derivatives(device, form):
    here, found = pair("cpu", dtype=torch.float64)[0], []
    freeze(here, layers=1, directions="reverse")
    for module in (copy.deepcopy(here).to(device), here):
        place = module.weight_hh_l0.device
        gen = torch.Generator().manual_seed(4)
        leaf = torch.randn(4, T, 4, generator=gen, dtype=torch.float64).to(place).requires_grad_()
        samples = [leaf[i, :n] for i, n in enumerate(LENGTHS)]
        packed = form == "packed"
        output = module(pack_sequence(samples, False) if packed else leaf.transpose(0, 1))[0]
        loss = (output.data if packed else output).square().sum()
        (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
        grad.square().sum().backward()
        grads = [None if p.grad is None else p.grad.cpu() for p in module.parameters()]
        found.append([leaf.grad.cpu(), *grads])
    assert_close(*found)
    assert sum(g is not None for g in found[0]) == 1 + 12


@pytest.mark.parametrize("form", ["dense", "packed"])
def test_as_many_flops_are_counted(device, form):
    bilstm, _ = pair(device)
    freeze(bilstm, layers=0)
    found = []
    for module in (bilstm, copy.deepcopy(bilstm).cpu()):
        x = moved(inputs(form), module.weight_hh_l0.device)
        with FlopCounterMode(display=False) as counter:
            output = module(x)[0]
            (output if form == "dense" else output.data).sum().backward()
        found.append(counter.get_total_flops())
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["dense", "packed"])
def test_autocast_gives_results_of_its_dtype(device, form, dtype):
    bilstm, _ = pair(device)
    freeze(bilstm, layers=0)
    x = moved(inputs(form), device)
    full = everything(bilstm, x)
    with torch.autocast(torch.device(device).type, dtype):
        found = everything(bilstm, x)
    assert {t.dtype for t in found[:3]} == {dtype}
    for got, expected in zip(found, full, strict=True):
        if expected is not None:
            scale = max(expected.abs().max().item(), 1)
            torch.testing.assert_close(got.float(), expected, rtol=0, atol=3e-2 * scale)
            assert not torch.equal(got.float(), expected)


def test_dropout_between_layers(device):
    bilstm, _ = pair(device, dropout=0.5)
    x = inputs("dense").to(device)
    first, again = bilstm(x)[0].cpu(), bilstm(x)[0].cpu()
    assert not torch.equal(first, again)
    freeze(bilstm, dropout="off")
    assert torch.equal(bilstm(x)[0].cpu(), bilstm(x)[0].cpu())


def test_input_on_another_device_is_refused(device):
    bilstm, _ = pair(device)
    with pytest.raises(RuntimeError, match="not at the same device"):
        bilstm(inputs("dense"))
    with pytest.raises(RuntimeError, match="not at the same device"):
        bilstm(inputs("dense").to(device), states(bilstm, "dense"))


@pytest.mark.parametrize("kind", [BiLSTM, nn.LSTM])
def test_a_module_made_there_is_initialised_there(device, kind):
    module = kind(3, 4, device=device)
    assert all(p.device.type == torch.device(device).type for p in module.parameters())
    assert 0 < module.weight_hh_l0.abs().max().item() <= 0.5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("frozen", [None, {"layers": 0}, {"directions": "reverse"}], ids=str)
def test_a_training_step_reads_nothing_back(device, reads, form, frozen):
    bilstm, _ = pair(device)
    if frozen:
        freeze(bilstm, **frozen)
    optimizer = torch.optim.AdamW(bilstm.parameters(), foreach=False, capturable=False)
    x = inputs(form).to(device)

    def step():
        optimizer.zero_grad()
        output, _ = bilstm(x)
        rows = output if isinstance(output, torch.Tensor) else output.data
        rows.square().sum().backward()
        optimizer.step()

    step()
    assert reads(step) == []
    assert reads(lambda: bilstm.weight_hh_l0.sum().item()) != []  # it does count


# Forms differ in their rows, kinds in what is asked of the backward pass: dense input has them all.
SHORT = {
    "dense": (torch.ones(2, 3, 4), FROZEN),
    "unbatched": (torch.ones(2, 4), FROZEN[::4]),
    "packed": (pack_sequence([torch.ones(1, 4), torch.ones(2, 4)], False), FROZEN[::4]),
    "packed sorted": (pack_sequence([torch.ones(2, 4), torch.ones(1, 4)]), FROZEN[::4]),
}


@pytest.mark.parametrize("form", SHORT)
def test_no_pattern_makes_the_host_wait(device, waits, form):
    bilstm, _ = pair(device, proj_size=2)
    x = moved(SHORT[form][0], device)

    def step():
        output, (h, c) = bilstm(x)
        rows = output if isinstance(output, torch.Tensor) else output.data
        loss = rows.sum() + h.sum() + c.sum()
        if loss.requires_grad:
            loss.backward()

    assert waits(step) == []
    for frozen in SHORT[form][1]:
        with freeze(bilstm, **frozen):
            assert waits(step) == [], frozen
    assert waits(lambda: torch.ones(2).to(device)) != []
