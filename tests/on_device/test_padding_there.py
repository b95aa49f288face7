"""Padded batches with lengths on the device: the CPU's numbers, and how often the host waits."""

import copy

import pytest
import torch

from lstm_freeze import BiLSTM, PrefixCache, freeze

T, B, I, H = 7, 4, 3, 5
LENGTHS = [3, 7, 1, 5]
GIVEN = {
    "list": lambda device: LENGTHS,
    "on the CPU": lambda device: torch.tensor(LENGTHS),
    "on the device": lambda device: torch.tensor(LENGTHS).to(device),
    "int32 on the device": lambda device: torch.tensor(LENGTHS, dtype=torch.int32).to(device),
}


def twins(device, **options):
    torch.manual_seed(0)
    here = BiLSTM(I, H, 2, **options)
    return here, copy.deepcopy(here).to(device)


def step(lstm, x, lengths, hx=None):
    x = x.detach().requires_grad_()
    output, (h, c) = lstm(x, hx, lengths=lengths)
    (output.square().sum() + h.cos().sum() + c.sum()).backward()
    return output, h, c, x.grad, *(p.grad for p in lstm.parameters())


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("options", [{}, {"batch_first": True, "proj_size": 2}], ids=str)
def test_results_and_gradients_are_the_cpus(given, options, device):
    here, there = twins(device, **options)
    x = torch.randn((B, T, I) if options else (T, B, I))
    hx = torch.randn(4, B, options.get("proj_size", H)), torch.randn(4, B, H)
    found = step(there, x.to(device), given(device), tuple(s.to(device) for s in hx))
    for ours, theirs in zip(found, step(here, x, LENGTHS, hx), strict=True):
        assert ours.device == device
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-6)
        assert theirs.any()


def test_the_host_waits_for_lengths_on_the_device_only_and_once(device, reads):
    _, there = twins(device)
    x = torch.randn(T, B, I).to(device)
    for name, given in GIVEN.items():
        lengths = given(device)
        expected = ["tolist"] if "device" in name else []
        assert reads(lambda n=lengths: step(there, x, n)) == expected, name


def test_the_cache_serves_padded_batches(device):
    here, there = twins(device)
    for lstm in (here, there):
        freeze(lstm, layers=0)
    there.prefix_cache = PrefixCache()
    x = torch.randn(T, B, I)
    for _ in range(2):
        found = there(x.to(device), lengths=LENGTHS)[0]
        torch.testing.assert_close(found.cpu(), here(x, lengths=LENGTHS)[0], rtol=1e-5, atol=1e-6)
        x[2, 2] = 3.0  # the padding of a sequence of length 1
    stats = there.prefix_cache.stats()
    assert (stats["hits"], stats["misses"]) == (B, B)


def test_a_cached_call_reads_two_values_and_lengths_on_the_device(device, reads):
    _, there = twins(device)
    freeze(there, layers=0)
    there.prefix_cache = PrefixCache()
    x = torch.randn(T, B, I).to(device)
    for hits, (name, given) in enumerate(GIVEN.items()):
        lengths = given(device)
        found = reads(lambda n=lengths: there(x, lengths=n)[0].sum().backward())
        assert len(found) <= 2 + ("device" in name), name
        assert there.prefix_cache.stats()["hits"] == hits * B


@pytest.mark.parametrize("frozen", [{"layers": 0}, {"directions": "reverse"}, {}], ids=str)
def test_gradients_of_what_trains_are_the_cpus(device, waits, frozen):
    here, there = twins(device)
    freeze(here, **frozen), freeze(there, **frozen)
    x = torch.randn(T, B, I)
    found = step(there, x.to(device), LENGTHS)
    for ours, theirs in zip(found, step(here, x, LENGTHS), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-6)
    x = x.to(device)
    assert waits(lambda: step(there, x, LENGTHS)) == []


def test_wrong_lengths_on_the_device_are_named(device):
    _, there = twins(device)
    with pytest.raises(ValueError, match=r"`lengths` must be between 1 .* lengths\[1\] = 8"):
        there(torch.randn(T, B, I).to(device), lengths=torch.tensor([3, 8, 0, 1]).to(device))
