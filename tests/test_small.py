"""small: a layer in one call of the extension agrees with the definition, whatever is asked for."""

import itertools

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

from lstm_freeze import BiLSTM, add_lora
from lstm_freeze._recurrence.equations import equations
from lstm_freeze._recurrence.layer import backward, forward
from lstm_freeze._recurrence.native import extension, small
from lstm_freeze._recurrence.rows import reverse_rows
from lstm_freeze._recurrence.weights import Inputs, Wanted, Weights

pytestmark = pytest.mark.skipif(extension.built is None, reason="needs the extension")

SIZES = torch.tensor([4, 4, 3, 1, 1])


@pytest.fixture(autouse=True)
def native():
    with extension.switched(True):
        yield


def layer(directions=2, form="dense", hx=True, bias=True, features=3, hidden=21):
    """The inputs of a small layer; all floating ones are leaves that require grad."""
    gen = torch.Generator().manual_seed(0)

    def leaf(*shape):
        return torch.randn(shape, generator=gen).requires_grad_()

    packed = form == "packed"
    batch = int(SIZES[0])
    data = leaf(int(SIZES.sum()), features) if packed else leaf(len(SIZES), batch, features)
    sizes = SIZES if packed else None
    reverse = reverse_rows(data.detach(), SIZES) if packed else None
    states = [leaf(directions, batch, hidden) if hx else None for _ in range(2)]
    G = 4 * hidden
    weights = [
        Weights(leaf(G, features), leaf(G, hidden), *((leaf(G), leaf(G)) if bias else ()))
        for _ in range(directions)
    ]
    return Inputs(data, sizes, reverse, *states, weights)


def leaves(inputs):
    return [inputs.data, inputs.h0, inputs.c0, *(w for side in inputs.directions for w in side)]


def gradients(inputs, seeds, wanted):
    """What the backward pass gives, in the order of `leaves`."""
    with torch.no_grad():
        *_, state = forward(inputs, keep=True)
        data, h0, c0, weights = backward(seeds, inputs, state, wanted)
    return [data, h0, c0, *(w for side in weights for w in side)]


def every(inputs, on=True):
    given = inputs.h0 is not None
    flags = [tuple(on and w is not None for w in side) for side in inputs.directions]
    return Wanted(on, on and given, on and given, tuple(flags))


CASES = list(itertools.product((1, 2), ("dense", "packed"), (True, False), (True, False)))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize(("directions", "form", "hx", "bias"), CASES)
@pytest.mark.parametrize("hidden", [1, 16, 21])
def test_it_agrees_with_the_definition(directions, form, hx, bias, hidden):
    inputs = layer(directions, form, hx, bias, hidden=hidden)
    assert small.applies(inputs)
    expected = equations(*inputs)
    with torch.no_grad():
        *found, _ = forward(inputs, keep=True)
        *again, nothing = forward(inputs, keep=False)
    assert nothing is None
    assert all(map(torch.equal, found, again))
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
    seeds = tuple(torch.randn_like(y) for y in expected)
    asked = [x for x in leaves(inputs) if x is not None]
    true = iter(torch.autograd.grad(expected, asked, seeds))
    for x, got in zip(leaves(inputs), gradients(inputs, seeds, every(inputs)), strict=True):
        assert (got is None) == (x is None)
        if got is not None:
            torch.testing.assert_close(got, next(true), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["dense", "packed"])
@pytest.mark.parametrize("absent", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_a_result_without_a_gradient_counts_as_zeros(form, absent):
    inputs = layer(form=form)
    seeds = [torch.randn_like(y) for y in equations(*inputs)]
    given = [None if k in absent else seed for k, seed in enumerate(seeds)]
    zeros = [torch.zeros_like(y) if k in absent else y for k, y in enumerate(seeds)]
    found = gradients(inputs, given, every(inputs))
    for x, y in zip(found, gradients(inputs, zeros, every(inputs)), strict=True):
        assert x is None or torch.equal(x, y)


@pytest.mark.parametrize("form", ["dense", "packed"])
def test_what_else_is_wanted_changes_no_bit(form):
    inputs = layer(form=form)
    seeds = tuple(torch.randn_like(y) for y in equations(*inputs))
    everything = gradients(inputs, seeds, every(inputs))
    flat = [True] * 3 + [w is not None for side in inputs.directions for w in side]
    size = len(Weights._fields)
    for place in [k for k, flag in enumerate(flat) if flag]:
        only = [k == place for k in range(len(flat))]
        sides = tuple(tuple(only[3 + size * d : 3 + size * (d + 1)]) for d in range(2))
        found = gradients(inputs, seeds, Wanted(*only[:3], sides))
        assert [x is not None for x in found] == only
        assert torch.equal(found[place], everything[place])


def test_a_sequence_does_not_depend_on_the_others():
    inputs = layer()
    with torch.no_grad():
        output, h_n, c_n, _ = forward(inputs, keep=False)
        for k in range(inputs.batch):
            here = slice(k, k + 1)
            alone = inputs._replace(
                data=inputs.data[:, here], h0=inputs.h0[:, here], c0=inputs.c0[:, here]
            )
            for x, y in zip(forward(alone, keep=False), (output, h_n, c_n), strict=False):
                assert torch.equal(x, y[:, here])


def test_weights_and_data_may_lie_anyhow_in_memory():
    inputs = layer()
    expected = forward(inputs, keep=False)[:3]
    anyhow = [
        Weights(*(None if w is None else w.detach().repeat_interleave(2, 0)[::2] for w in side))
        for side in inputs.directions
    ]
    turned = [w._replace(weight_hh=w.weight_hh.t().contiguous().t()) for w in anyhow]
    data = inputs.data.transpose(0, 2).contiguous().transpose(0, 2)
    found = forward(inputs._replace(data=data, directions=turned), keep=False)[:3]
    assert all(map(torch.equal, found, expected))


def test_which_layers_are_small():
    def applies(T, B, features, H, dtype=torch.float32, **options):
        lstm = BiLSTM(features, H, dtype=dtype, **options)
        weights = Weights(*lstm.all_weights[0])
        return small.applies(
            Inputs(torch.zeros(T, B, features, dtype=dtype), None, None, None, None, [weights])
        )

    assert applies(5, 4, 8, 8)
    assert applies(1, 1, 128, 128)
    assert not applies(1, 1, 1024, 1024)
    assert not applies(100, 32, 64, 64)
    assert not applies(5, 4, 8, 8, dtype=torch.float64)
    with extension.switched(False):
        assert not applies(5, 4, 8, 8)


def test_a_projected_layer_is_not_small():
    weights = Weights(*BiLSTM(3, 5, proj_size=2, bias=False).all_weights[0][:2])
    projected = weights._replace(weight_hr=torch.zeros(2, 5))
    assert not small.applies(Inputs(torch.zeros(2, 2, 3), None, None, None, None, [projected]))


def test_an_order_that_names_no_row_is_refused():
    inputs = layer(form="packed")
    for wrong in (-1, len(inputs.reverse)):
        reverse = inputs.reverse.clone()
        reverse[2] = wrong
        with pytest.raises(IndexError, match="`reverse` must hold rows of the input"):
            forward(inputs._replace(reverse=reverse), keep=False)
    for wrong in (inputs.reverse[:-1], inputs.reverse.int()):
        with pytest.raises(ValueError, match="`reverse` must be"):
            forward(inputs._replace(reverse=wrong), keep=False)


def test_factors_are_trained_through_it():
    lstm = BiLSTM(4, 6)
    add_lora(lstm, rank=2)
    x = torch.randn(3, 2, 4)
    lstm(x)[0].square().sum().backward()
    found = {name: p.grad for name, p in lstm.named_parameters() if p.requires_grad}
    lstm.zero_grad()
    with extension.switched(False):
        lstm(x)[0].square().sum().backward()
    for name, parameter in lstm.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad)


def test_modes_that_watch_operators_still_see_the_layer():
    lstm, x = BiLSTM(4, 6), torch.randn(3, 2, 4)
    with FlopCounterMode(display=False) as counter:
        lstm(x)[0].sum().backward()
    assert counter.get_total_flops() > 0


def test_packed_modules_agree_with_nn_lstm():
    lstm = BiLSTM(4, 6, num_layers=2)
    packed = pack_sequence([torch.randn(n, 4) for n in (2, 5, 3)], enforce_sorted=False)
    for x, y in zip(lstm(packed)[1], lstm.to_lstm()(packed)[1], strict=True):
        torch.testing.assert_close(x, y)
