"""The native time loop beside the torch one: the same numbers, and where it applies."""

import importlib.util
import os
import struct
import subprocess
import sys
import types

import pytest
import torch
from _loops import LEVELS
from torch.nn.utils.rnn import PackedSequence

from lstm_freeze import BiLSTM
from lstm_freeze._recurrence import cell
from lstm_freeze._recurrence.equations import equations
from lstm_freeze._recurrence.native import extension, loop, memory, small
from lstm_freeze._recurrence.rows import last_rows, reverse_rows, runs_of
from lstm_freeze._recurrence.weights import State, Weights

built = pytest.mark.skipif(extension.built is None, reason="the extension is not built here")
MAGNITUDES = (float("inf"), 0.0, 1e-45, 1e-40, 1e-30, 1e-4, 0.3, 17.4, 88.3, 103.0, 105.0, 3e38)
SPECIAL = torch.tensor([float("nan"), *(sign * x for x in MAGNITUDES for sign in (1, -1))])
NOT_BUILT = "torch (the extension lstm_freeze._recurrence.native._timeloop is not built)"
OFF = "torch (the native loop is switched off)"
SIZES = torch.tensor([60, 60, 55, 54, 6, 5, 1])  # sequences still running at each step


def bits(tensor):
    return tensor.view(torch.int32)


def same_bits(found, expected):
    assert len(found) == len(expected) > 0
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(bits(x.contiguous()), bits(y.contiguous()))


def operands(hidden=19, projected=0, sizes=SIZES, directions=2, seed=0):
    """A layer's weights, the input's part of its gates, initial states and incoming gradients."""
    generator = torch.Generator().manual_seed(seed)
    N, batch, P = int(sizes.sum()), int(sizes[0]), projected or hidden

    def random(*shape):
        return torch.randn(directions, *shape, generator=generator)

    weights = [
        Weights(
            torch.empty(4 * hidden, 0),
            random(4 * hidden, P)[0] / P**0.5,
            weight_hr=random(P, hidden)[0] / hidden**0.5 if projected else None,
        )
        for _ in range(directions)
    ]
    inputs = (random(N, 4 * hidden), random(batch, P), random(batch, hidden))
    return weights, inputs, (random(N, P), random(batch, P), random(batch, hidden))


def time_steps(rows, sizes):
    """Batch sizes as a layer is given them, None where dense, and the runs of steps."""
    batch = int(sizes[0])
    if bool((sizes == batch).all()):
        return None, runs_of(rows // batch, batch, None)
    return sizes, runs_of(rows, batch, sizes)


def steps_of(rows, sizes):
    """The steps, their runs, and the row of the output that each of the reverse direction is."""
    given, runs = time_steps(rows, sizes)
    T, batch = len(sizes), int(sizes[0])
    if given is None:
        back = torch.arange(rows).view(T, batch).flip(0).flatten()
        return loop.Steps(rows, T, batch), runs, back
    back = reverse_rows(torch.empty(rows, 0), given)
    return loop.Steps(rows, T, batch, given, back), runs, back


def walk(weights, inputs, sizes=SIZES, keep=True, empty=torch.empty, output=None):
    """The native loop forward: what it keeps. Without `keep`, its final states."""
    projected, h0, c0 = inputs
    D, N, batch, H = *projected.shape[:2], *c0.shape[1:]
    state = State(
        empty((D, N if keep else 0, 4 * H)),
        empty((D, batch + N if keep else 2 * batch, h0.shape[2])),
        empty((D, batch + (N if keep else 0), H)),
    )
    state.hidden[:, :batch], state.cells[:, :batch] = h0, c0
    steps, runs, _ = steps_of(N, sizes)
    loop_forward = loop.NativeForward(weights, state, steps, keep, output)
    loop_forward.run(runs, empty(projected.shape).copy_(projected))
    return state if keep else loop_forward.final_states()


def walk_back(weights, state, gradients, sizes=SIZES, active=None):
    """The native loop backward: the gradients of the gates and of the initial cell state."""
    dh, dh_n, dc = gradients
    steps, _, back = steps_of(state.gates.shape[1], sizes)
    sides = [dh[0], *(side[back] for side in dh[1:])]
    output = torch.cat(sides, 1)
    if steps.sizes is None:
        output = output.view(steps.steps, steps.batch, -1)
    active = active or range(len(weights))
    return loop.walk_back(weights, state, steps, (output, dh_n, dc), active)


def everything(weights, inputs, gradients, sizes=SIZES):
    """All that both loops write."""
    state = walk(weights, inputs, sizes)
    found = walk_back(weights, state, gradients, sizes)
    return *state, found.dgates, found.dc0


def definition(weights, inputs, gradients, sizes):
    """The same by the definition, in double precision."""
    projected, h0, c0 = (x.double().requires_grad_() for x in inputs)
    outputs = []
    for d, w in enumerate(weights):
        H, P = w.weight_hh.shape[0] // 4, w.weight_hh.shape[1]
        hr = None if w.weight_hr is None else w.weight_hr.double()
        one = Weights(torch.eye(4 * H).double(), w.weight_hh.double(), None, None, hr)
        outputs.append(equations(projected[d], sizes, None, h0[d : d + 1], c0[d : d + 1], [one]))
        assert outputs[-1][0].shape[1] == P
    hidden = torch.stack([x for x, _, _ in outputs])
    h_n, c_n = (torch.cat([x[k] for x in outputs]) for k in (1, 2))
    total = sum((x * g.double()).sum() for x, g in zip((hidden, h_n, c_n), gradients, strict=True))
    return hidden, c_n, *torch.autograd.grad(total, (projected, c0))


def activations(x):
    """The native sigmoid and tanh of a vector: one step of as many units, projected to one."""
    nothing = [
        Weights(torch.empty(0), torch.zeros(4 * len(x), 1), weight_hr=torch.zeros(1, len(x)))
    ]
    inputs = (x.repeat(4).view(1, 1, -1), torch.zeros(1, 1, 1), torch.zeros(1, 1, len(x)))
    i, f, g, o = walk(nothing, inputs, torch.tensor([1])).gates.view(4, -1)
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
    signed = SPECIAL.abs() > 0  # the sum with the state's part makes -0.0 into 0.0
    assert torch.equal(tanh.signbit()[signed], SPECIAL.signbit()[signed])


@built
@pytest.mark.parametrize("hidden", [1, 3, 4, 7, 8, 9, 16, 17, 31, 33, 64, 70, 300])
def test_the_loops_follow_the_definition(level, hidden):
    args = operands(hidden)
    hidden_states, c_n, dgates, dc = definition(*args, SIZES)
    _, hidden, cells, *gradients = everything(*args)
    ended = last_rows(len(hidden[0]) - 60, 60, SIZES, torch.device("cpu"))
    found = (hidden[:, 60:], cells[:, 60:][:, ended], *gradients)
    for got, true in zip(found, (hidden_states, c_n, dgates, dc), strict=True):
        torch.testing.assert_close(got.double(), true.detach(), rtol=5e-6, atol=5e-6)


@built
@pytest.mark.parametrize(("hidden", "projected"), [(19, 5), (8, 8), (20, 33), (5, 1), (64, 30)])
def test_projections_follow_the_definition(level, hidden, projected):
    args = operands(hidden, projected)
    hidden_states, _, dgates, dc = definition(*args, SIZES)
    _, hidden, _, *gradients = everything(*args)
    for got, true in zip((hidden[:, 60:], *gradients), (hidden_states, dgates, dc), strict=True):
        torch.testing.assert_close(got.double(), true.detach(), rtol=5e-6, atol=5e-6)


@built
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 6, 7, 11, 13, 48, 49, 97])
def test_every_number_of_rows_follows_the_definition(level, batch):
    sizes = torch.full((3,), batch)
    args = operands(21, sizes=sizes)
    hidden_states, _, dgates, dc = definition(*args, sizes)
    _, hidden, _, *gradients = everything(*args, sizes)
    for got, true in zip((hidden[:, batch:], *gradients), (hidden_states, dgates, dc), strict=True):
        torch.testing.assert_close(got.double(), true.detach(), rtol=5e-6, atol=5e-6)


@built
@pytest.mark.parametrize("rows", [1, 50, 60, 115, 130, 180])
@pytest.mark.parametrize("keep", [True, False])
def test_blocks_of_packed_rows_begin_where_the_last_one_ended(monkeypatch, rows, keep):
    """A block may begin with fewer sequences than the step before it had."""
    lstm = BiLSTM(4, 9)
    data = PackedSequence(torch.randn(int(SIZES.sum()), 4), SIZES)
    with torch.set_grad_enabled(keep), extension.switched(True):
        expected = lstm(data)
        monkeypatch.setattr("lstm_freeze._recurrence.layer._BLOCK_BYTES", rows * 2 * 4 * 9 * 4)
        found = lstm(data)
    for got, same in zip((found[0].data, *found[1]), (expected[0].data, *expected[1]), strict=True):
        torch.testing.assert_close(got, same, rtol=1e-5, atol=1e-6)


@built
def test_a_wrong_loop_would_be_seen():
    weights, inputs, gradients = operands(16)
    hidden = definition(weights, inputs, gradients, SIZES)[0]
    swapped = (torch.cat([inputs[0][..., 16:32], inputs[0][..., :16], inputs[0][..., 32:]], -1),)
    got = walk(weights, (*swapped, *inputs[1:])).hidden[:, 60:]
    assert not torch.allclose(got.double(), hidden, rtol=1e-3)


@built
@pytest.mark.parametrize("projected", [0, 5])
@pytest.mark.parametrize("chosen", [[0], [4], [0, 1, 2], [3, 50, 51, 59], list(range(7, 60))])
def test_a_sequence_depends_neither_on_its_place_nor_on_others(level, projected, chosen):
    """The same sequences alone, in other places of vectors, tiles and chunks."""
    sizes = torch.full((4,), 60)
    weights, inputs, gradients = operands(37, projected, sizes)
    fewer = torch.full((4,), len(chosen))

    def pick(x):
        steps = x.unflatten(1, (-1, 60))
        return steps[:, :, chosen].flatten(1, 2)

    whole = everything(weights, inputs, gradients, sizes)
    few = everything(weights, *(tuple(map(pick, xs)) for xs in (inputs, gradients)), fewer)
    same_bits(few, [pick(x) for x in whole])


@built
@pytest.mark.parametrize("sizes", [SIZES, torch.full((5,), 23)], ids=["packed", "dense"])
@pytest.mark.parametrize("directions", [1, 2])
def test_the_number_of_threads_changes_no_bit(threads, sizes, directions):
    args = operands(20, sizes=sizes, directions=directions)
    threads(1)
    expected = everything(*args, sizes)
    for count in (2, 3, 8):
        threads(count)
        same_bits(everything(*args, sizes), expected)


@built
def test_directions_are_independent(level):
    weights, inputs, gradients = operands(20)
    expected = everything(weights, inputs, gradients)
    for d in range(2):
        only = slice(d, d + 1)
        alone = everything(weights[only], [x[only] for x in inputs], [x[only] for x in gradients])
        same_bits(alone, [x[only] for x in expected])


@built
def test_a_direction_that_is_not_active_is_not_walked_back(monkeypatch):
    weights, inputs, gradients = operands(20)
    state = walk(weights, inputs)
    monkeypatch.setattr(memory, "empty", lambda like, *shape: torch.full(shape, 9.0))
    both = walk_back(weights, state, gradients)
    for d in range(2):
        one = walk_back(weights, state, gradients, active=range(d, d + 1))
        assert torch.equal(one.dgates[d], both.dgates[d])
        assert (one.dgates[1 - d] == 9.0).all()
        assert torch.equal(one.dc0[1 - d], gradients[2][1 - d])


@built
@pytest.mark.parametrize("projected", [0, 5])
@pytest.mark.parametrize("hidden", [16, 37])
def test_keeping_the_gates_changes_no_bit(level, hidden, projected):
    weights, inputs, _ = operands(hidden, projected)
    N, P = inputs[0].shape[1], projected or hidden
    outputs = torch.zeros(2, N, 2 * P)
    kept = walk(weights, inputs, output=outputs[0])
    without = walk(weights, inputs, keep=False, output=outputs[1])
    ended = last_rows(N, 60, SIZES, torch.device("cpu")) + 60
    same_bits(without, [kept.hidden[:, ended], kept.cells[:, ended]])
    _, _, back = steps_of(N, SIZES)
    same_bits(outputs, [torch.cat([kept.hidden[0, 60:], kept.hidden[1, 60:][back]], 1)] * 2)


@built
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_final_states_that_are_kept_in_turns(level, steps):
    sizes = torch.full((steps,), 5)
    weights, inputs, _ = operands(9, sizes=sizes)
    kept = walk(weights, inputs, sizes)
    expected = kept.hidden[:, -5:], kept.cells[:, -5:]
    same_bits(walk(weights, inputs, sizes, keep=False), expected)


@built
def test_memory_that_begins_anywhere_gives_the_same_bits(level, monkeypatch):
    weights, inputs, gradients = operands(29)
    expected = everything(weights, inputs, gradients)

    for shift in range(1, 9):

        def empty(shape, shift=shift):
            return torch.empty(shape.numel() + shift)[shift:].view(shape)

        moved = [
            Weights(empty(w.weight_ih.shape), empty(w.weight_hh.shape).copy_(w.weight_hh))
            for w in weights
        ]
        monkeypatch.setattr(memory, "empty", lambda like, *shape: empty(torch.Size(shape)))
        state = walk(moved, inputs, empty=lambda shape: empty(torch.Size(shape)))
        found = walk_back(moved, state, gradients)
        same_bits([*state, found.dgates, found.dc0], expected)


@built
@pytest.mark.parametrize("projected", [0, 5])
def test_nothing_is_written_around_the_operands(level, projected, monkeypatch):
    around = []

    def empty(shape):
        wide = torch.full((shape[0], shape[1] + 2, shape[2]), 7.0)
        around.append(wide)
        return wide[:, 1:-1]

    weights, inputs, gradients = operands(29, projected)
    expected = everything(weights, inputs, gradients)
    for keep in (False, True):
        output = empty((1, inputs[0].shape[1], 2 * (projected or 29)))[0]
        state = walk(weights, inputs, keep=keep, empty=empty, output=output)
    real = memory.empty
    monkeypatch.setattr(
        memory,
        "empty",
        lambda like, *shape: empty(shape) if len(shape) == 3 else real(like, *shape),
    )
    found = walk_back(weights, state, gradients)
    same_bits([*state, found.dgates, found.dc0], expected)
    assert len(around) == 12
    for wide in around:
        assert (wide[:, [0, -1]] == 7.0).all()


@built
def test_weights_may_lie_in_any_layout(level):
    weights, inputs, gradients = operands(20, 6)
    turned = [
        w._replace(
            weight_hh=w.weight_hh.t().contiguous().t(),
            weight_hr=torch.stack([w.weight_hr, w.weight_hr], -1)[..., 0],
        )
        for w in weights
    ]
    same_bits(everything(turned, inputs, gradients), everything(weights, inputs, gradients))


@built
def test_levels_with_fused_multiply_add_agree_in_bits_and_others_to_rounding():
    args = operands(45)
    results = {}
    for name in LEVELS:
        before = extension.built.use(name)
        results[name] = everything(*args)
        extension.built.use(before)
    for name, result in results.items():
        for got, same in zip(result, results[LEVELS[-1]], strict=True):
            torch.testing.assert_close(got, same, rtol=5e-6, atol=5e-6)
        if name != "baseline":
            same_bits(result, results[LEVELS[-1]])


@built
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_spoils_its_own_sequence_only(level, value):
    sizes = torch.full((4,), 9)
    weights, inputs, _ = operands(20, sizes=sizes)
    expected = walk(weights, inputs, sizes).hidden.unflatten(1, (5, 9))
    inputs[0].unflatten(1, (4, 9))[:, 1, 3] = value
    got = walk(weights, inputs, sizes).hidden.unflatten(1, (5, 9))
    assert torch.equal(got[:, 2, 3].isnan(), torch.full_like(got[:, 2, 3], value != value).bool())
    others = [b for b in range(9) if b != 3]
    same_bits([got[:, :, others]], [expected[:, :, others]])


@built
@pytest.mark.parametrize(
    ("name", "wrong", "must"),
    [
        ("gates", torch.zeros(1, 3, 16), r"\(2, rows, 16\) with dense rows"),
        ("gates", torch.zeros(2, 3, 5), r"\(2, rows, 16\) with dense rows"),
        ("projected", torch.zeros(2, 3, 5), r"\(2, rows, 16\) with dense rows"),
        ("cells", torch.zeros(2, 6, 4, dtype=torch.float64), "float32 on the CPU"),
        ("hidden", torch.zeros(2, 6, 8)[..., ::2], r"\(2, rows, 4\) with dense rows"),
        ("hidden", torch.zeros(2, 6, 4, device="meta"), "float32 on the CPU"),
    ],
)
def test_an_operand_that_does_not_fit_is_refused(name, wrong, must):
    weights = [Weights(torch.empty(0), torch.zeros(16, 4))] * 2
    state = State(torch.zeros(2, 3, 16), torch.zeros(2, 6, 4), torch.zeros(2, 6, 4))
    given = {**state._asdict(), "projected": torch.zeros(2, 3, 16), name: wrong}
    projected = given.pop("projected")
    with pytest.raises(ValueError, match=f"`{name}` must be {must}"):
        loop.NativeForward(weights, State(**given), loop.Steps(3, 1, 3), True).run(
            runs_of(1, 3, None), projected
        )


@pytest.mark.parametrize("sizes", [[2, 3], [3, 2, -1, 1], [1, 4]])
def test_batch_sizes_that_name_other_memory_are_refused(sizes):
    rows = torch.nn.utils.rnn.PackedSequence(torch.zeros(5, 4), torch.tensor(sizes))
    with pytest.raises(RuntimeError, match=r"batch_sizes must not increase .* Got \["):
        BiLSTM(4, 5)(rows)


@pytest.mark.parametrize(
    ("sizes", "given"),
    [
        (torch.tensor([3, 2, 1], dtype=torch.int32), r"1-D torch.int32 on cpu"),
        (torch.tensor([3.0, 2.0, 1.0]), r"1-D torch.float32 on cpu"),
        (torch.tensor([[3], [2], [1]]), r"2-D torch.int64 on cpu"),
        (torch.tensor([3, 2, 1], device="meta"), r"1-D torch.int64 on meta"),
    ],
)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_batch_sizes_in_another_form_are_refused(sizes, given, bidirectional):
    kind = torch.nn.utils.rnn.PackedSequence  # whose own __new__ refuses other devices
    rows = tuple.__new__(kind, (torch.zeros(6, 4), sizes, None, None))
    with pytest.raises(RuntimeError, match=f"batch_sizes must be a 1-D int64 .* Got {given}"):
        BiLSTM(4, 5, bidirectional=bidirectional)(rows)


@pytest.mark.parametrize(
    ("name", "shape", "must"),
    [
        ("weight_hh_l0", (20, 3), r"\(20, 5\) on cpu, got \(20, 3\) on cpu"),
        ("weight_hh_l0_reverse", (4, 1), r"\(20, 5\) on cpu, got \(4, 1\) on cpu"),
        ("weight_ih_l1", (24, 10), r"\(20, 10\) on cpu, got \(24, 10\) on cpu"),
        ("bias_ih_l0", (1,), r"\(20,\) on cpu, got \(1,\) on cpu"),
    ],
)
def test_weights_that_name_other_memory_are_refused(name, shape, must):
    lstm = BiLSTM(4, 5, num_layers=2)
    setattr(lstm, name, torch.nn.Parameter(torch.zeros(shape)))
    with pytest.raises(RuntimeError, match=f"{name} must have size {must}: set it"):
        lstm(torch.zeros(3, 2, 4))


def test_projections_of_another_size_or_place_are_refused():
    lstm = BiLSTM(4, 5, proj_size=3)
    lstm.weight_hr_l0 = torch.nn.Parameter(torch.zeros(1, 5))
    with pytest.raises(RuntimeError, match=r"weight_hr_l0 must have size \(3, 5\)"):
        lstm(torch.zeros(3, 2, 4))
    lstm.weight_hr_l0 = torch.nn.Parameter(torch.zeros(3, 5, device="meta"))
    with pytest.raises(RuntimeError, match=r"weight_hr_l0 .* on cpu, got \(3, 5\) on meta"):
        lstm(torch.zeros(3, 2, 4))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_steps_at_the_end_that_no_sequence_has_are_taken(bidirectional):
    lstm = BiLSTM(4, 5, bidirectional=bidirectional)
    data = torch.randn(3, 4)
    found = []
    for module in (lstm, lstm.to_lstm()):
        rows = torch.nn.utils.rnn.PackedSequence(data, torch.tensor([2, 1, 0]))
        output, (h, c) = module(rows)
        total = output.data.sum() + h.sum() + c.square().sum()
        gradients = torch.autograd.grad(total, list(module.parameters()))
        found.append((output.data, h, c, *gradients))
    for got, true in zip(*found, strict=True):
        torch.testing.assert_close(got, true)


@built
def test_the_extension_has_the_gates_of_the_cell():
    assert len(cell.GATES) == extension._timeloop.GATES == 4


@built
def test_the_extension_refuses_calls_it_cannot_read():
    native = extension.built
    job = struct.pack("=17q", *[0] * 17)
    for call in (native.pack, native.forward, native.backward):
        with pytest.raises(TypeError, match="expected 3 arguments, got 2"):
            call(1, job)
        with pytest.raises(ValueError, match=r"expected a job of \d+ bytes, got 136"):
            call(1, job, None)
        with pytest.raises(TypeError, match="bytes"):
            call(1, bytearray(job), None)
        with pytest.raises(TypeError, match="int"):
            call("1", job, None)
    with pytest.raises(ValueError, match="this processor has no level 'mmx'"):
        native.use("mmx")
    with pytest.raises(TypeError, match="the level must be a string"):
        native.use(3)


@built
def test_it_runs_on_as_many_threads_as_torch(threads, monkeypatch):
    monkeypatch.setattr(small, "_MOST_NUMBERS", 0)
    asked = []
    real = extension.built

    class Spy:
        def __getattr__(self, name):
            def call(count, *rest):
                asked.append((name, count))
                return getattr(real, name)(count, *rest)

            return call if name in ("forward", "backward") else getattr(real, name)

    monkeypatch.setattr(extension, "_timeloop", Spy())
    lstm = BiLSTM(4, 5)
    for count in (1, 3):
        threads(count)
        asked.clear()
        with extension.switched(True):
            lstm(torch.randn(6, 3, 4))[0].sum().backward()
        assert asked == [("forward", count), ("backward", count)]


@built
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_wait_for_its_parents_threads():
    code = """
import os, sys, torch
from lstm_freeze import BiLSTM
from lstm_freeze._recurrence.native import extension
torch.set_num_threads(2)
extension.enable(True)
lstm, x = BiLSTM(2, 3), torch.randn(4, 3, 2)
with torch.no_grad():
    expected = lstm(x)[0]
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(lstm(x)[0], expected) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@built
def test_many_threads_may_call_it_at_once():
    from concurrent.futures import ThreadPoolExecutor

    lstm = BiLSTM(8, 40)
    inputs = [torch.randn(30, b, 8) for b in range(1, 9)]
    with extension.switched(True), torch.no_grad():
        expected = [lstm(x)[0] for x in inputs]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(5):
                for got, same in zip(pool.map(lambda x: lstm(x)[0], inputs), expected, strict=True):
                    assert torch.equal(got, same)


@built
def test_the_switch():
    tensor = torch.zeros(1)
    with extension.switched(True):
        assert extension.applies(tensor)
        assert not extension.applies(tensor.double())
        assert not extension.applies(tensor.to("meta"))
        assert extension.which_loop() == f"native ({LEVELS[-1]})"
        with extension.switched(False):
            assert not extension.applies(tensor)
            assert extension.which_loop() == OFF
        assert extension.applies(tensor)
        assert extension.enable(False) is True
        assert extension.enable(True) is False


def test_a_processor_without_avx2_says_so(monkeypatch):
    monkeypatch.setattr(extension, "built", types.SimpleNamespace(levels=lambda: ("baseline",)))
    monkeypatch.setattr(extension, "_enabled", False)
    assert extension.which_loop().startswith("torch (no AVX2 here; LSTM_FREEZE_NATIVE=1")


def test_without_the_extension_torch_serves(monkeypatch):
    monkeypatch.setattr(extension, "built", None)
    monkeypatch.setattr(extension, "_enabled", False)
    assert extension.which_loop() == NOT_BUILT
    assert not extension.applies(torch.zeros(1))
    assert extension.enable(False) is False
    said = r"extension lstm_freeze\..*\._timeloop was not built .* install a C compiler"
    with pytest.raises(RuntimeError, match=said):
        extension.enable(True)


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
        with extension.switched(native):
            output, (h, c) = lstm(x)
            total = loss(output) + loss(h) + loss(c)
            found[native] = torch.autograd.grad(total, list(lstm.parameters()))
    for got, same in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(got, same)
        assert got.abs().max() > 0


@pytest.fixture
def imported_anew(monkeypatch):
    """Runs the module's source again, as a new interpreter would, beside the one in use."""

    # The source that is run chooses the memory, too.
    monkeypatch.setattr(memory, "_blocks", memory._blocks)

    def run(setting=None, left=None):
        if setting is None:
            monkeypatch.delenv("LSTM_FREEZE_NATIVE", raising=False)
        else:
            monkeypatch.setenv("LSTM_FREEZE_NATIVE", setting)
        if left is not None:
            monkeypatch.delattr("lstm_freeze._recurrence.native._timeloop", raising=False)
            monkeypatch.setitem(sys.modules, "lstm_freeze._recurrence.native._timeloop", *left)
        spec = importlib.util.spec_from_file_location(
            "lstm_freeze._recurrence.native.extension_anew", extension.__file__
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return run


@built
@pytest.mark.parametrize("setting", [None, "", "0", "1"])
def test_the_environment_switches_it(imported_anew, setting):
    module = imported_anew(setting)
    on = setting == "1" or (setting != "0" and LEVELS[-1].startswith("avx"))
    assert module.which_loop() == (f"native ({LEVELS[-1]})" if on else OFF)
    assert module.applies(torch.zeros(1)) == on


@pytest.mark.parametrize(
    ("levels", "setting", "on"),
    [
        (("baseline", "avx2"), "", True),
        (("baseline",), "", False),
        (("neon",), "", False),
        (("neon",), "1", True),
    ],
)
def test_where_it_was_not_measured_it_must_be_asked_for(levels, setting, on):
    module = types.SimpleNamespace(levels=lambda: levels)
    assert extension._wanted(setting, module) is on


def test_the_environment_is_refused_where_it_says_neither(imported_anew):
    with pytest.raises(ValueError, match=r"LSTM_FREEZE_NATIVE must be 0 .* or 1 .*, got 'no'"):
        imported_anew("no")


@pytest.mark.parametrize("left", [None, types.SimpleNamespace(INTERFACE=0)])
def test_an_extension_absent_or_of_another_version_is_not_used(imported_anew, left):
    module = imported_anew(left=[left])
    assert module.which_loop() == NOT_BUILT
    assert not module.applies(torch.zeros(1))


@pytest.mark.parametrize("left", [None, types.SimpleNamespace(INTERFACE=0)])
def test_asking_for_an_extension_that_is_not_there_warns(imported_anew, left):
    remedy = "LSTM_FREEZE_NATIVE=1 .* was not built .* install a C compiler"
    with pytest.warns(RuntimeWarning, match=remedy):
        module = imported_anew("1", left=[left])
    assert not module.applies(torch.zeros(1))
