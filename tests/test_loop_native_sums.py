"""What the native loop sums on its way back: the gradients of biases and of low-rank factors."""

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from lstm_freeze import BiLSTM, add_lora
from lstm_freeze._recurrence.equations import equations
from lstm_freeze._recurrence.layer import backward, forward
from lstm_freeze._recurrence.native import extension, loop, small
from lstm_freeze._recurrence.rows import reverse_rows
from lstm_freeze._recurrence.weights import Inputs, Wanted, Weights

pytestmark = pytest.mark.skipif(extension.built is None, reason="needs the extension")

DENSE, PACKED = [12] * 20, [40, 40, 33, 33, 33, 7, 7, 1, 1]
# Ranks of the updates of weight_ih and weight_hh, of each direction; 0 for none.
RANKS = [
    ((1, 1), (1, 1)),
    ((8, 8), (8, 8)),
    ((17, 3), (0, 9)),
    ((0, 2), (5, 0)),
    ((40, 0), (1, 31)),
]


@pytest.fixture(autouse=True)
def no_small_layers(monkeypatch):
    monkeypatch.setattr(small, "_MOST_NUMBERS", 0)
    with extension.switched(True):
        yield


def layer(sizes, ranks, features=11, hidden=19, seed=0):
    """The inputs of a layer whose floating tensors are leaves that require grad."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        scale = 1 if len(shape) == 1 else shape[-1] ** -0.5
        return (torch.randn(shape, generator=generator) * scale).requires_grad_()

    G, dense = 4 * hidden, len(set(sizes)) == 1
    data = leaf(len(sizes), sizes[0], features) if dense else leaf(sum(sizes), features)
    sizes = None if dense else torch.tensor(sizes)
    reverse = None if dense or len(ranks) == 1 else reverse_rows(data.detach(), sizes)
    directions = [
        Weights(
            leaf(G, features),
            leaf(G, hidden),
            leaf(G),
            leaf(G),
            None,
            *((leaf(ih, features), leaf(G, ih)) if ih else (None, None)),
            *((leaf(hh, hidden), leaf(G, hh)) if hh else (None, None)),
        )
        for ih, hh in ranks
    ]
    return Inputs(data, sizes, reverse, None, None, directions)


def seeds_of(inputs):
    D, H, B = len(inputs.directions), inputs.directions[0].hidden_size, inputs.batch
    generator = torch.Generator().manual_seed(9)
    shapes = (*inputs.data.shape[:-1], D * H), (D, B, H), (D, B, H)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def gradients(inputs, wanted=None, seeds=None):
    """Of each direction, in Weights' order; of all that is there unless said otherwise."""
    flags = wanted or tuple(tuple(w is not None for w in side) for side in inputs.directions)
    with torch.no_grad():
        *_, state = forward(inputs, keep=True)
        found = backward(
            seeds or seeds_of(inputs), inputs, state, Wanted(False, False, False, flags)
        )
    return found[3]


def defined(inputs):
    """The same by the definition, in double precision."""

    def double(x):
        return None if x is None else x.detach().double().requires_grad_()

    directions = [Weights(*map(double, side)) for side in inputs.directions]
    results = equations(
        double(inputs.data), inputs.batch_sizes, inputs.reverse, None, None, directions
    )
    seeds = seeds_of(inputs)
    total = sum((x * s.double()).sum() for x, s in zip(results, seeds, strict=True))
    leaves = [x for side in directions for x in side if x is not None]
    found = iter(torch.autograd.grad(total, leaves))
    return [[None if x is None else next(found) for x in side] for side in directions]


@pytest.mark.parametrize("ranks", [*RANKS, RANKS[1][:1]], ids=str)
@pytest.mark.parametrize("sizes", [DENSE, PACKED], ids=["dense", "packed"])
@pytest.mark.parametrize(("features", "hidden"), [(11, 19), (1, 3), (64, 32)])
def test_the_gradients_follow_the_definition(level, sizes, ranks, features, hidden):
    inputs = layer(sizes, ranks, features, hidden)
    for found, expected in zip(gradients(inputs), defined(inputs), strict=True):
        for got, true in zip(found, expected, strict=True):
            assert (got is None) == (true is None)
            if got is not None:
                assert got.is_contiguous()
                most = true.abs().max()
                torch.testing.assert_close(got.double() / most, true / most, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", [DENSE, PACKED, [3] * 200], ids=["dense", "packed", "long"])
def test_the_number_of_threads_changes_no_bit(threads, sizes):
    inputs = layer(sizes, RANKS[1])
    threads(1)
    expected = gradients(inputs)
    for count in (2, 3, 8):
        threads(count)
        for found, before in zip(gradients(inputs), expected, strict=True):
            # weight_ih and weight_hh: their products may be torch's.
            for got, same in zip(found[2:], before[2:], strict=True):
                assert (got is None and same is None) or torch.equal(got, same)


@pytest.mark.parametrize("sizes", [DENSE, PACKED], ids=["dense", "packed"])
def test_what_is_not_asked_for_changes_no_bit_and_is_not_there(sizes):
    inputs = layer(sizes, RANKS[1])
    everything = gradients(inputs)
    for asked in ({2}, {3}, {5}, {6, 7}, {8}, {2, 5, 8}):
        flags = tuple(tuple(k in asked and d == 1 for k in range(11)) for d in range(2))
        first, second = gradients(inputs, flags)
        assert all(x is None for x in first)
        for k, (got, same) in enumerate(zip(second, everything[1], strict=True)):
            assert torch.equal(got, same) if k in asked else got is None


@pytest.mark.parametrize("sizes", [DENSE, PACKED], ids=["dense", "packed"])
def test_the_gradient_of_the_output_may_lie_anyhow_in_memory(sizes):
    inputs = layer(sizes, RANKS[1])
    output, *states = seeds_of(inputs)
    expected = gradients(inputs, seeds=[output, *states])
    layouts = [
        output.transpose(0, -1).contiguous().transpose(0, -1),
        output.transpose(0, 1).contiguous().transpose(0, 1),
        output.repeat_interleave(2, -1)[..., ::2],
        torch._neg_view(-output),
    ]
    for layout in layouts:
        found = gradients(inputs, seeds=[layout, *states])
        for got, same in zip(found, expected, strict=True):
            assert all(x is y or torch.equal(x, y) for x, y in zip(got, same, strict=True))
    one = torch.ones(())
    expected = gradients(inputs, seeds=[one.expand(output.shape).contiguous(), None, None])
    found = gradients(inputs, seeds=[one.expand(output.shape), None, None])
    assert torch.equal(found[1][5], expected[1][5])
    nothing = gradients(inputs, seeds=[None, None, None])
    assert not any(x.any() for side in nothing for x in side if x is not None)


@pytest.mark.parametrize("wrong", [-1, sum(PACKED)])
def test_an_order_that_names_no_row_is_refused(wrong):
    inputs = layer(PACKED, RANKS[1])
    with torch.no_grad():
        *_, state = forward(inputs, keep=True)
    reverse = inputs.reverse.clone()
    reverse[2] = wrong
    changed = inputs._replace(reverse=reverse)
    with torch.no_grad(), pytest.raises(IndexError):
        forward(changed, keep=False)
    steps = loop.Steps.of(changed)
    with pytest.raises(IndexError, match="an order of rows must hold rows that are there"):
        loop.walk_back(inputs.directions, state, steps, (None, None, None), range(2))
    with pytest.raises(ValueError, match="`reverse` must be int64 of size"):
        loop.Steps.of(inputs._replace(reverse=reverse.int()))


def test_a_module_gives_them_on_its_way_through_autograd():
    torch.manual_seed(0)
    lstm = BiLSTM(6, 40, num_layers=2)
    add_lora(lstm, rank=3)
    for name, parameter in lstm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    x = pack_sequence([torch.randn(n, 6) for n in (30, 30, 12, 5, 1)])
    found = []
    for native in (True, False):
        lstm.zero_grad()
        with extension.switched(native):
            lstm(x)[0].data.square().sum().backward()
        found.append({n: p.grad for n, p in lstm.named_parameters() if p.grad is not None})
    assert len(found[0]) == 2 * 2 * 4 + 2 * 2 * 2
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_the_default_device_of_new_tensors_does_not_matter(packed):
    lstm = BiLSTM(5, 7)
    add_lora(lstm, rank=2)
    x = pack_sequence([torch.randn(n, 5) for n in (5, 3)]) if packed else torch.randn(4, 3, 5)

    def run():
        lstm.zero_grad()
        output = lstm(x)[0]
        (output.data if packed else output).square().sum().backward()
        return [p.grad for p in lstm.parameters() if p.grad is not None]

    expected = run()
    with torch.device("meta"):
        found = run()
    assert len(found) == 12
    assert all(map(torch.equal, found, expected))
