"""The memory that layers use again: never shared, and no Python runs when it comes back."""

import copy
import gc
import multiprocessing
import random
import signal
import sys
import threading
import time

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from lstm_freeze import BiLSTM, freeze, release_memory
from lstm_freeze._recurrence.native import extension, memory, small

MEGABYTE = 2**20
LIKE = torch.empty(0)


@pytest.fixture(autouse=True)
def nothing_waits(monkeypatch):
    if extension.built is None:
        pytest.skip("the extension is not built here")
    monkeypatch.setattr(memory, "_blocks", extension.built)
    monkeypatch.setattr(small, "_MOST_NUMBERS", 0)  # small layers take memory of the C library
    gc.collect()
    release_memory()
    yield
    release_memory()


@pytest.fixture
def all_is_lent(monkeypatch):
    """Even what the small layers of these tests work with."""
    monkeypatch.setattr(memory, "_SMALLEST", 64)


def floats(megabytes):
    """A float32 tensor of so many megabytes."""
    return memory.empty(LIKE, int(megabytes * MEGABYTE) // 8, 2)


def poison():
    """Write NaN over all memory that waits."""
    taken, size = [], 1
    while before := memory.waiting_memory():
        found = floats(size)
        if memory.waiting_memory() == before:  # no block of this size waits any more
            size += 1
        taken.append(found.fill_(float("nan")))
        assert size < 100


T, B, FEATURES, H = 7, 3, 5, 13


def encoder(**options):
    torch.manual_seed(0)
    return BiLSTM(FEATURES, H, num_layers=2, **options)


def batch(packed, seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    if not packed:
        return torch.randn(T, B, FEATURES, generator=draw, dtype=dtype)
    lengths = torch.randint(1, T + 1, (B,), generator=draw).tolist()
    sequences = [torch.randn(length, FEATURES, generator=draw, dtype=dtype) for length in lengths]
    return pack_sequence(sequences, enforce_sorted=False)


def rows(output):
    return output if isinstance(output, torch.Tensor) else output.data


def step(lstm, x, of_output=True):
    """Output, final states and gradients of one training step."""
    lstm.zero_grad()
    output, states = lstm(x)
    losses = (rows(output),) if of_output else states
    sum(loss.square().sum() for loss in losses).backward()
    gradients = [p.grad for p in lstm.parameters() if p.grad is not None]
    return [rows(output).detach(), *(s.detach() for s in states), *gradients]


def without_workspace(monkeypatch, function, *args):
    with monkeypatch.context() as patch:
        patch.setattr(memory, "_SMALLEST", float("inf"))
        return function(*args)


def same(found, expected):
    assert len(found) == len(expected) > 0
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_memory_comes_back_and_is_lent_again():
    first = floats(2)
    address = first.data_ptr()
    second = floats(2)
    assert second.data_ptr() != address
    assert memory.waiting_memory() == 0
    del first
    assert memory.waiting_memory() >= 2 * MEGABYTE
    assert floats(2).data_ptr() == address


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_is_as_new_empty_makes_it(dtype):
    like = torch.empty(0, dtype=dtype)
    found, expected = memory.empty(like, 3, 1000, 500), like.new_empty(3, 1000, 500)
    assert (found.shape, found.stride()) == (expected.shape, expected.stride())
    assert (found.dtype, found.device) == (dtype, expected.device)
    assert found.untyped_storage().nbytes() == expected.untyped_storage().nbytes()


def test_any_view_keeps_its_memory():
    view = floats(2)[5:6]
    view.fill_(7)
    others = [floats(2).fill_(1) for _ in range(3)]
    assert memory.waiting_memory() == 0
    assert view.eq(7).all()
    assert all(other.eq(1).all() for other in others)


def test_no_two_live_tensors_share_memory():
    draw, live, seen = random.Random(0), {}, set()
    for mark in range(400):
        if len(live) > 12 or (live and draw.random() < 0.45):
            old = draw.choice(list(live))
            assert live.pop(old).eq(old).all()
        live[mark] = floats(draw.uniform(0.5, 6)).fill_(mark)
        seen.add(live[mark].data_ptr())
    assert all(tensor.eq(mark).all() for mark, tensor in live.items())
    assert len(seen) < 200  # most stood where another had been


def test_a_small_tensor_is_not_lent():
    small = floats(0.9)
    assert small.untyped_storage().resizable()
    del small
    assert memory.waiting_memory() == 0


def test_what_is_lent_is_at_most_twice_what_is_asked():
    large = floats(8)
    address = large.data_ptr()
    del large
    small = floats(2)
    assert small.data_ptr() != address
    assert memory.waiting_memory() >= 8 * MEGABYTE


def test_the_smallest_that_fits_is_lent_of_equals_the_last_to_come_back():
    tensors = [floats(size) for size in (3, 2, 2)]
    first, second, third = (tensor.data_ptr() for tensor in tensors)
    while tensors:
        del tensors[0]
    lent = [floats(2) for _ in range(3)]
    assert [tensor.data_ptr() for tensor in lent] == [third, second, first]


def test_memory_that_nobody_asks_for_is_let_go():
    old = floats(8)
    del old
    for _ in range(64):
        assert memory.waiting_memory() >= 8 * MEGABYTE
        memory.pass_by()
    young = floats(1)
    del young
    memory.pass_by()
    assert 0 < memory.waiting_memory() < 8 * MEGABYTE


def test_small_steps_give_back_what_a_large_one_took():
    large = [floats(60) for _ in range(8)]
    del large
    assert memory.waiting_memory() >= 480 * MEGABYTE
    lstm = encoder()
    for _ in range(40):
        step(lstm, batch(packed=False))
    assert memory.waiting_memory() == 0


def test_lengths_that_vary_do_not_pile_up_memory():
    draw, most, made = random.Random(0), 0, []
    for _ in range(150):
        live = [floats(draw.uniform(1, 30)) for _ in range(4)]
        # A block is at most twice as large as what was asked for, and has at least an eighth more.
        most = max(most, sum(2 * x.nbytes + MEGABYTE for x in live))
        made.append(memory.waiting_memory())
        del live
        assert memory.waiting_memory() <= 1.5 * most
    assert max(made) > 0  # some was kept for the next


def test_the_longest_waiting_go_to_make_room():
    tensors = [floats(10) for _ in range(3)]  # 12 MiB each
    _, second, third = (tensor.data_ptr() for tensor in tensors)
    while tensors:
        del tensors[0]
    large = floats(25)  # 29 MiB, of at most 54 in all
    assert memory.waiting_memory() == 24 * MEGABYTE
    left = floats(10), floats(10)
    assert [tensor.data_ptr() for tensor in left] == [third, second]
    del large


def test_no_more_memory_is_torchs_error():
    waits = floats(2)
    del waits
    with pytest.raises(RuntimeError, match="alloc"):
        memory.empty(LIKE, 2**50)
    assert memory.waiting_memory() == 0
    with pytest.raises(ValueError, match="a number of floats of 4 or 8 bytes"):
        extension.built.lend(2**61, 4)


def test_release_memory_gives_back_what_waits():
    held, waits = floats(3).fill_(1), floats(2)
    del waits
    assert release_memory() == 3 * MEGABYTE  # with an eighth to spare, in whole MiB
    assert memory.waiting_memory() == release_memory() == 0
    assert held.eq(1).all()


def test_a_capsule_that_nobody_takes_comes_back():
    capsule = extension.built.lend(MEGABYTE, 4)
    assert memory.waiting_memory() == 0
    del capsule
    assert memory.waiting_memory() == 5 * MEGABYTE


def test_without_the_extension_every_tensor_is_torchs(monkeypatch):
    monkeypatch.setattr(memory, "_blocks", None)
    assert floats(2).untyped_storage().resizable()
    memory.pass_by()
    assert memory.waiting_memory() == release_memory() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no such timer there")
@pytest.mark.usefixtures("all_is_lent")
def test_no_interrupt_is_lost():
    """An exception of a signal handler always reaches the training loop."""

    class Interrupt(Exception):
        pass

    fired = caught = 0

    def handler(*_):
        nonlocal fired
        fired += 1
        raise Interrupt

    draw, lstm, x = random.Random(0), BiLSTM(16, 32), torch.randn(60, 16, 16)
    takes = 0.02
    for _ in range(5):
        began = time.perf_counter()
        step(lstm, x)
        takes = min(takes, time.perf_counter() - began)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        for _ in range(100):
            expected = fired + 1
            try:
                signal.setitimer(signal.ITIMER_REAL, max(1e-5, draw.uniform(0, takes)))
                step(lstm, x)
                while fired < expected:
                    time.sleep(1e-4)
            except Interrupt:
                caught += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught == fired == 100


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        ({}, None),
        ({}, {"layers": [0]}),
        ({}, {"layers": [1]}),
        ({}, {"directions": ["reverse"]}),
        ({}, {"kinds": ["weight"]}),
        ({"proj_size": 6}, None),
        ({"dtype": torch.float64}, None),
        ({"bidirectional": False}, None),
        ({"bias": False}, None),
    ],
    ids=str,
)
@pytest.mark.usefixtures("all_is_lent")
def test_what_lay_in_the_memory_before_changes_no_bit(monkeypatch, options, frozen, packed):
    lstm, x = encoder(**options), batch(packed, dtype=options.get("dtype", torch.float32))
    if frozen:
        freeze(lstm, **frozen)
    expected = without_workspace(monkeypatch, step, lstm, x)
    step(lstm, x)
    assert memory.waiting_memory() > 0
    poison()
    same(step(lstm, x), expected)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.usefixtures("all_is_lent")
def test_nor_where_the_output_has_no_gradient(monkeypatch, packed):
    lstm, x = encoder(), batch(packed)
    expected = without_workspace(monkeypatch, step, lstm, x, False)
    step(lstm, x)
    poison()
    same(step(lstm, x, False), expected)


@pytest.mark.usefixtures("all_is_lent")
def test_forward_alone_uses_it_and_agrees(monkeypatch):
    lstm, x = encoder(), batch(packed=True)
    with torch.no_grad():
        expected = without_workspace(monkeypatch, lstm, x)
        lstm(x)
        assert memory.waiting_memory() > 0
        poison()
        found = lstm(x)
    same([found[0].data, *found[1]], [expected[0].data, *expected[1]])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.usefixtures("all_is_lent")
def test_a_warm_step_asks_for_no_new_memory(packed):
    lstm, x = encoder(), batch(packed)
    found = step(lstm, x)
    del found
    held = memory.waiting_memory()
    step(lstm, x)
    assert memory.waiting_memory() == held > 0


@pytest.mark.usefixtures("all_is_lent")
def test_no_result_lies_in_it():
    lstm, x = encoder(proj_size=6), batch(packed=False).requires_grad_()
    hx = torch.randn(4, B, 6, requires_grad=True), torch.randn(4, B, H, requires_grad=True)
    for _ in range(2):
        output, states = lstm(x, hx)
        (output.sum() + sum(s.sum() for s in states)).backward()
        gradients = [t.grad for t in (x, *hx, *lstm.parameters())]
        for tensor in (output, *states, *gradients):
            assert tensor.untyped_storage().resizable()  # lent memory is not
    assert not floats(2).untyped_storage().resizable()


@pytest.mark.usefixtures("all_is_lent")
def test_several_graphs_at_once(monkeypatch):
    lstm = encoder()
    batches = [batch(packed=True, seed=seed) for seed in range(3)]
    expected = [without_workspace(monkeypatch, step, lstm, x)[3:] for x in batches]
    for order in ((0, 1, 2), (2, 0, 1)):
        outputs = [lstm(x)[0].data for x in batches]
        for k in order:
            lstm.zero_grad()
            outputs[k].square().sum().backward(retain_graph=True)
            same([p.grad for p in lstm.parameters()], expected[k])
            lstm.zero_grad()
            outputs[k].square().sum().backward()
            same([p.grad for p in lstm.parameters()], expected[k])


@pytest.mark.usefixtures("all_is_lent")
def test_threads_do_not_share_it(monkeypatch):
    lstm, seeds = encoder(), range(4)
    lstms = [copy.deepcopy(lstm) for _ in seeds]
    batches = [batch(packed=True, seed=seed) for seed in seeds]
    expected = [without_workspace(monkeypatch, step, lstm, x) for x in batches]
    expected = [[t.clone() for t in found] for found in expected]
    wrong = []

    def work(k):
        for _ in range(5):
            found = step(lstms[k], batches[k])
            if not all(torch.equal(x, y) for x, y in zip(found, expected[k], strict=True)):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_its_own():
    waits = floats(2)
    held = floats(3).fill_(1)
    del waits
    assert memory.waiting_memory() > 0

    def child():
        torch.set_num_threads(1)  # OpenMP's do not live on here
        held.fill_(2)
        # What waited is let go: copies of its pages would cost both processes memory.
        sys.exit(memory.waiting_memory() > 0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert held.eq(1).all()
    assert memory.waiting_memory() > 0
