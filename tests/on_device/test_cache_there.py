"""PrefixCache on another device: hits, results, and how little is read back."""

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from lstm_freeze import BiLSTM, PrefixCache, freeze, unfreeze

LENGTHS = (3, 7, 1, 5)


def inputs(form, device):
    samples = [torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in LENGTHS]
    if form == "packed":
        return pack_sequence([s.to(device) for s in samples], enforce_sorted=False)
    return torch.randn(7, 4, 4, generator=torch.Generator().manual_seed(9)).to(device)


def results(lstm, x):
    output, (h, c) = lstm(x)
    rows = output if isinstance(output, torch.Tensor) else output.data
    lstm.zero_grad()
    (rows.square().sum() + h.sum() + c.square().sum()).backward()
    grads = [p.grad.cpu() for p in lstm.parameters() if p.grad is not None]
    return [rows.detach().cpu(), h.detach().cpu(), c.detach().cpu(), *grads]


@pytest.fixture
def lstm(device):
    torch.manual_seed(0)
    lstm = BiLSTM(4, 6, 3).to(device)
    freeze(lstm, layers=[0, 1])
    return lstm


@pytest.mark.parametrize("form", ["dense", "packed"])
def test_results_are_those_without_a_cache(lstm, device, form):
    x = inputs(form, device)
    expected = results(lstm, x)
    lstm.prefix_cache = PrefixCache(keep_levels=[1])
    for hits in (0, 4):
        for got, same in zip(results(lstm, x), expected, strict=True):
            torch.testing.assert_close(got, same, rtol=1e-5, atol=1e-5)
        assert lstm.prefix_cache.stats()["hits"] == hits


@pytest.mark.parametrize("form", ["dense", "packed"])
def test_a_cached_call_reads_at_most_two_values_back(lstm, device, reads, form):
    lstm.prefix_cache = PrefixCache()
    x = inputs(form, device)
    lstm(x)
    assert len(reads(lambda: lstm(x))) <= 2
    assert lstm.prefix_cache.stats()["hits"] == 4


def test_what_changed_can_only_miss(lstm, device):
    lstm.prefix_cache = PrefixCache()
    x = inputs("dense", device)
    lstm(x)
    with torch.no_grad():
        lstm.weight_hh_l0[0, 0] += 1
    lstm(x)
    lstm(x + 1)
    unfreeze(lstm, layers=0)
    lstm(x)  # nothing is frozen below the lowest layer: not looked up
    assert lstm.prefix_cache.stats()["hits"] == 0
    assert lstm.prefix_cache.stats()["misses"] == 3 * 4


def test_initial_states_are_not_read_and_bypass_it_with_one_warning(device, reads):
    lstm = BiLSTM(4, 6, 2).to(device)
    freeze(lstm, layers=0)
    lstm.prefix_cache = PrefixCache()
    x = torch.randn(7, 3, 4).to(device)
    hx = torch.zeros(4, 3, 6).to(device), torch.zeros(4, 3, 6).to(device)
    with pytest.warns(UserWarning, match="leave `hx` out where it is zeros") as caught:
        lstm(x, hx)
    assert [warning.filename for warning in caught] == [__file__]
    assert reads(lambda: lstm(x, hx)) == []  # nor is a second warning raised
    assert lstm.prefix_cache.stats()["misses"] == 0
    lstm(x)
    assert lstm.prefix_cache.stats()["misses"] == 3
