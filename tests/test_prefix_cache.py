"""The prefix cache: the same results, never a stale one, in bounded memory."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from lstm_freeze import BiLSTM, PrefixCache, freeze, status, unfreeze
from lstm_freeze._cache.samples import contents, sample_rows
from lstm_freeze._recurrence.rows import dense_rows, packed_rows
from lstm_freeze._rnn.stack import Stack

F, H, L = 3, 5, 3


def freeze_layers(lstm, layers):
    if len(layers) == L:
        freeze(lstm)  # that nothing is left to train is not worth a warning here
    else:
        freeze(lstm, layers=list(layers))


def twins(frozen=(0, 1), **options):
    """A BiLSTM with a cache and an equal one without."""
    torch.manual_seed(0)
    cached = BiLSTM(F, H, num_layers=L, **options)
    freeze_layers(cached, frozen)
    plain = copy.deepcopy(cached)
    cached.prefix_cache = PrefixCache()
    return cached, plain


def packed(*lengths, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    samples = [torch.randn(n, F, generator=generator).to(dtype) for n in lengths]
    return pack_sequence(samples, enforce_sorted=False)


def dense(batch=4, seed=1, dtype=torch.float32):
    return torch.randn(6, batch, F, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tensors(result):
    output, (h, c) = result
    return [output.data if isinstance(output, PackedSequence) else output, h, c]


def assert_same(cached, plain, x, tolerance=1e-6):
    for got, expected in zip(tensors(cached(x)), tensors(plain(x)), strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def counts(lstm):
    stats = lstm.prefix_cache.stats()
    return stats["hits"], stats["misses"]


OPTIONS = [
    {},
    {"bidirectional": False},
    {"proj_size": 2},
    {"bias": False},
    {"batch_first": True},
    {"dtype": torch.float64},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("frozen", [(0,), (0, 1), (0, 1, 2)])
@pytest.mark.parametrize(
    "make", [dense, lambda **k: packed(7, 2, 5, 5, 1, **k)], ids=["dense", "packed"]
)
def test_results_are_those_without_a_cache(options, frozen, make):
    cached, plain = twins(frozen, **options)
    x = make(dtype=options.get("dtype", torch.float32))
    for _ in range(3):
        assert_same(cached, plain, x)
    samples = (
        len(x.batch_sizes) and int(x.batch_sizes[0])
        if isinstance(x, PackedSequence)
        else (x.shape[0 if options.get("batch_first") else 1])
    )
    assert counts(cached) == (2 * samples, samples)


@pytest.mark.parametrize("make", [dense, lambda: packed(7, 2, 5)], ids=["dense", "packed"])
def test_gradients_of_what_trains_are_those_without_a_cache(make):
    cached, plain = twins()
    for lstm in (cached, cached, plain):
        lstm.zero_grad()
        sum(t.square().sum() for t in tensors(lstm(make()))).backward()
    for (name, p), q in zip(cached.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) == ("_l2" not in name)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-6)
            assert p.grad.abs().sum() > 0


def test_a_batch_computes_only_the_samples_that_miss():
    cached, plain = twins()
    generator = torch.Generator().manual_seed(3)
    samples = [torch.randn(n, F, generator=generator) for n in (4, 9, 2, 6, 6)]
    ran = []
    original = Stack.run_layer

    def counting(self, rows, layer):
        ran.append((layer, len(rows.data)))
        return original(self, rows, layer)

    cached(pack_sequence(samples[:3], enforce_sorted=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stack, "run_layer", counting)
        assert_same(cached, plain, pack_sequence(samples[1:], enforce_sorted=False))
    # Two samples of 6 steps are new to the two frozen layers; the top layer runs over all.
    assert ran[:3] == [(0, 12), (1, 12), (2, 23)]
    assert counts(cached) == (2, 5)


def test_a_dense_sample_is_its_whole_padded_column():
    cached, plain = twins()
    x = dense(4)
    cached(x)
    assert_same(cached, plain, x[:, [2, 0]])
    assert counts(cached) == (2, 4)
    assert_same(cached, plain, torch.cat([x, torch.zeros(1, 4, F)]))
    assert counts(cached) == (2, 8)


def test_more_frozen_layers_are_fed_from_a_shallower_level():
    cached, plain = twins((0,))
    x = packed(5, 3)
    cached(x)
    for lstm in (cached, plain):
        freeze(lstm, layers=1)
    ran: list[int] = []
    original = Stack.run_layer

    def counting(self, rows, layer):
        ran.append(layer)
        return original(self, rows, layer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stack, "run_layer", counting)
        cached(x)
    assert ran == [1, 2]
    assert_same(cached, plain, x)


def test_keep_levels_serve_the_phases_that_unfreeze():
    cached, plain = twins((0, 1, 2))
    cached.prefix_cache = PrefixCache(keep_levels=[1])
    x = packed(5, 3, 8)
    cached(x)
    for lstm in (cached, plain):
        unfreeze(lstm, layers=[1, 2])
    assert_same(cached, plain, x)
    assert counts(cached) == (3, 3)


def test_without_keep_levels_an_unfreeze_only_misses():
    cached, plain = twins((0, 1, 2))
    x = packed(5, 3, 8)
    cached(x)
    for lstm in (cached, plain):
        unfreeze(lstm, layers=[1, 2])
    assert_same(cached, plain, x)
    assert counts(cached) == (0, 6)


WRITES = {
    "data write": lambda m: m.weight_ih_l0.data.mul_(2),
    "one element": lambda m: m.bias_hh_l1_reverse.data[3:4].add_(1),
    "swapped elements": lambda m: m.weight_hh_l0.data.copy_(m.weight_hh_l0.data.flip(0)),
    "replaced": lambda m: setattr(
        m, "weight_ih_l0", nn.Parameter(m.weight_ih_l0.detach() + 1, requires_grad=False)
    ),
    "loaded": lambda m: m.load_state_dict({k: v * 1.5 for k, v in m.state_dict().items()}),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_an_overwritten_weight_misses(write):
    cached, plain = twins()
    x = packed(5, 3, 8)
    before = tensors(cached(x))[0].clone()
    for lstm in (cached, plain):
        write(lstm)
    assert_same(cached, plain, x)
    assert counts(cached) == (0, 6)
    assert not torch.equal(before, tensors(plain(x))[0])


STEPS = [
    "freeze 0",
    "freeze 0 1",
    "freeze all",
    "unfreeze 1 2",
    "unfreeze all",
    "train",
    "load",
    "write",
    "double",
    "float",
    "eval",
    "train mode",
    "call",
    "call",
    "call",
    "other input",
]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(STEPS), min_size=4, max_size=14), st.booleans())
def test_no_sequence_of_events_serves_a_stale_result(steps, use_packed):
    cached, plain = twins((0, 1))
    cached.prefix_cache = PrefixCache(max_bytes=6000, keep_levels=[1])
    both = (cached, plain)
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in both]
    seed = 1
    for step in steps:
        for lstm, optimizer in zip(both, optimizers, strict=True):
            dtype = lstm.weight_ih_l0.dtype
            x = packed(4, 2, 6, seed=seed, dtype=dtype) if use_packed else dense(3, seed, dtype)
            match step.split():
                case ["freeze", "all"]:
                    freeze(lstm)
                case ["freeze", *layers]:
                    freeze(lstm, layers=[int(i) for i in layers], only=True)
                case ["unfreeze", "all"]:
                    unfreeze(lstm)
                case ["unfreeze", *layers]:
                    unfreeze(lstm, layers=[int(i) for i in layers])
                case ["train"] if any(p.requires_grad for p in lstm.parameters()):
                    optimizer.zero_grad()
                    tensors(lstm(x))[0].square().sum().backward()
                    optimizer.step()
                case ["load"]:
                    lstm.load_state_dict({k: v * 0.5 for k, v in lstm.state_dict().items()})
                case ["write"]:
                    lstm.weight_hh_l0.data[0].neg_()
                case ["double" | "float" as name]:
                    getattr(lstm, name)()
                case ["eval"]:
                    lstm.eval()
                case ["train", "mode"]:
                    lstm.train()
        seed += step == "other input"
        dtype = cached.weight_ih_l0.dtype
        x = packed(4, 2, 6, seed=seed, dtype=dtype) if use_packed else dense(3, seed, dtype)
        # Parameters that trained on cached features agree to rounding, which training carries on.
        assert_same(cached, plain, x, tolerance=2e-5)


def test_memory_is_bounded_and_the_least_recently_used_leave_first():
    cached, plain = twins()
    one = 4 * (6 * 2 * H + 2 * (4 * H))  # output (6, 2H), h and c (4, H) of one sample
    cached.prefix_cache = PrefixCache(max_bytes=3 * one)
    x = dense(4)
    cached(x[:, :3])
    assert cached.prefix_cache.stats()["bytes"] == 3 * one
    cached(x[:, :1])  # sample 0 is used; 1 is now the oldest
    cached(x[:, 3:])
    assert cached.prefix_cache.stats()["evictions"] == 1
    hits, misses = counts(cached)
    cached(x[:, [0, 2, 3]])
    assert counts(cached) == (hits + 3, misses)
    assert_same(cached, plain, x[:, 1:2])
    assert counts(cached) == (hits + 3, misses + 1)
    assert cached.prefix_cache.stats()["bytes"] == 3 * one


@pytest.mark.parametrize("x", [dense(4), packed(5, 3, 6)], ids=["dense", "packed"])
def test_what_is_kept_holds_no_more_memory_than_it_counts(x):
    cached, _ = twins()
    cached.prefix_cache.keep_levels = [1]
    cached(x)
    kept = [t for entry in cached.prefix_cache._entries.values() for t in entry[:3]]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    assert sum(storages.values()) == cached.prefix_cache.stats()["bytes"]
    assert len(storages) == len(kept)


def test_a_sample_larger_than_the_cache_is_not_kept():
    cached, plain = twins()
    cached.prefix_cache = PrefixCache(max_bytes=10)
    assert_same(cached, plain, dense())
    assert cached.prefix_cache.stats() == {"hits": 0, "misses": 4, "bytes": 0, "evictions": 0}


def test_eviction_in_the_middle_of_a_call_harms_nothing():
    cached, plain = twins()
    x = dense(6)
    one = 4 * (6 * 2 * H + 2 * (4 * H))
    cached.prefix_cache = PrefixCache(max_bytes=2 * one)
    cached(x[:, :2])
    assert_same(cached, plain, x)


def test_levels_kept_on_the_way_displace_nothing_and_leave_first():
    cached, plain = twins((0, 1))
    x, state = dense(4), 2 * (2 * H)  # h and c of one layer
    shallow, deep = 4 * (6 * 2 * H + state), 4 * (6 * 2 * H + 2 * state)
    cached.prefix_cache = PrefixCache(max_bytes=4 * deep + 2 * shallow, keep_levels=[1])
    cached(x[:, :3])  # room for three of both; a fourth takes that of others
    assert cached.prefix_cache.stats()["bytes"] == 3 * (deep + shallow)
    cached(x[:, 3:])
    assert cached.prefix_cache.stats() == {
        "hits": 0,
        "misses": 4,
        "bytes": 4 * deep + 2 * shallow,
        "evictions": 1,
    }
    assert_same(cached, plain, x)
    assert counts(cached) == (4, 4)
    for lstm in (cached, plain):
        unfreeze(lstm, layers=1)
    assert_same(cached, plain, x)
    assert counts(cached) == (4 + 2, 4 + 2)


def test_a_sample_that_stands_twice_in_a_batch_is_kept_once():
    cached, plain = twins()
    x = dense(1).expand(-1, 3, -1)
    assert_same(cached, plain, x)
    assert cached.prefix_cache.stats()["bytes"] == 4 * (6 * 2 * H + 2 * (4 * H))
    assert_same(cached, plain, x[:, :2])
    assert counts(cached) == (2, 3)


@pytest.mark.parametrize("sizes", [[2, 1, 1], [1, 2], [2, 2, 0, -1], [2.0, 1.0]])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_malformed_packed_input_is_refused_though_its_rows_are_kept(bidirectional, sizes):
    lstm = BiLSTM(4, 3, bidirectional=bidirectional).requires_grad_(False)
    data = torch.randn(3, 4)
    with pytest.raises(RuntimeError) as uncached:
        lstm(PackedSequence(data, torch.tensor(sizes)))
    lstm.prefix_cache = PrefixCache()
    lstm(PackedSequence(data, torch.tensor([2, 1])))
    with pytest.raises(RuntimeError) as cached:
        lstm(PackedSequence(data, torch.tensor(sizes)))
    assert str(cached.value) == str(uncached.value)
    assert "input." in str(cached.value)


def test_unbatched_input_is_a_batch_of_one():
    cached, plain = twins()
    x = dense(2)
    cached(x)
    assert_same(cached, plain, x[:, 1])
    assert counts(cached) == (1, 2)


@pytest.mark.parametrize("offset", [0, 1])
def test_rows_may_begin_anywhere_in_memory(offset):
    torch.manual_seed(0)
    lstm = BiLSTM(2, H).requires_grad_(False)  # rows of 8 bytes
    lstm.prefix_cache = PrefixCache()
    memory = torch.randn(5 * 3 * 2 + offset)[offset:]
    x = memory.view(5, 3, 2)
    assert x.storage_offset() == offset
    expected = lstm(x)[0]
    assert torch.equal(lstm(x.clone())[0], expected)
    assert counts(lstm) == (3, 3)


def test_a_parametrised_prefix_is_served_until_its_originals_change():
    torch.manual_seed(0)
    cached = BiLSTM(F, H, num_layers=2)
    nn.utils.parametrizations.weight_norm(cached, "weight_hh_l0")
    freeze(cached, layers=0)
    plain = copy.deepcopy(cached)
    cached.prefix_cache = PrefixCache()
    for lstm in (cached, plain):
        assert not lstm.parametrizations.weight_hh_l0.original0.requires_grad
    for _ in range(2):
        assert_same(cached, plain, dense())
    assert counts(cached) == (4, 4)
    for lstm in (cached, plain):
        lstm.parametrizations.weight_hh_l0.original0.data.mul_(2)
    assert_same(cached, plain, dense())
    assert counts(cached) == (4, 8)


def test_status_shows_it():
    cached, _ = twins()
    cached(dense())
    held = cached.prefix_cache.stats()["bytes"]
    note = f"prefix cache of BiLSTM: hits 0, misses 4, bytes {held:,}, evictions 0"
    assert note in str(status(cached))


def test_levels_set_later_are_checked_and_in_order():
    cache = PrefixCache()
    cache.keep_levels = {3, 1}
    assert cache.keep_levels == (1, 3)
    with pytest.raises(ValueError, match="`keep_levels` must be at least 1, got 0"):
        cache.keep_levels = [0]
    with pytest.raises(TypeError, match="`keep_levels` must be several integers, got 2"):
        cache.keep_levels = 2
    assert cache.keep_levels == (1, 3)


def _hx():
    return torch.zeros(2 * L, 4, H), torch.full((2 * L, 4, H), 0.5)


def _compiled(lstm, x):
    torch._dynamo.reset()
    return torch.compile(lstm, backend="eager")(x)


BYPASSES = {
    "hx given": lambda m, x: m(x, _hx()),
    "input requires grad": lambda m, x: m(x.clone().requires_grad_()),
    "compiled": _compiled,
    "exported": lambda m, x: torch.export.export(m, (x,)).module()(x),
    "functional": lambda m, x: torch.func.vjp(m, x)[0],
    "meta": lambda m, x: m.to("meta")(x.to("meta")),
}


@pytest.mark.parametrize("call", BYPASSES.values(), ids=BYPASSES)
def test_bypassed(call):
    cached, _ = twins()
    call(cached, dense())
    assert counts(cached) == (0, 0)


@pytest.mark.parametrize(
    "make", [dense, lambda **k: packed(7, 2, 5, 5, **k)], ids=["dense", "packed"]
)
@pytest.mark.parametrize("options", [{}, {"bidirectional": False}, {"proj_size": 2}], ids=str)
def test_initial_states_of_zeros_count_as_none(options, make):
    cached, plain = twins(**options)
    x, D = make(), 1 + plain.bidirectional
    h, c = torch.zeros(L * D, 4, plain.proj_size or H), -torch.zeros(L * D, 4, H)
    cached(x)
    assert_same(lambda x: cached(x, (h, c)), plain, x)
    assert counts(cached) == (4, 4)
    # What the layers above the prefix begin with is not the prefix's concern, and is kept.
    h[2 * D :], c[2 * D :] = 0.3, -0.7
    assert_same(lambda x: cached(x, (h, c)), lambda x: plain(x, (h, c)), x)
    assert counts(cached) == (8, 4)
    assert not torch.allclose(tensors(plain(x, (h, c)))[0], tensors(plain(x))[0], atol=1e-3)


def test_a_batch_with_states_of_zeros_computes_only_the_samples_that_miss():
    cached, plain = twins()
    x, states = dense(), (torch.zeros(2 * L, 4, H), torch.zeros(2 * L, 4, H))
    cached(x[:, :3])
    assert_same(lambda x: cached(x, states), plain, x)
    assert counts(cached) == (3, 4)


BEGINNINGS = {
    "one number": lambda h, c: h[0, 0, :1].fill_(1e-30),
    "the other state": lambda h, c: c[1, -1, -1:].fill_(1.0),
    "NaN": lambda h, c: h[1, 0, :1].fill_(float("nan")),
    "trained": lambda h, c: h.requires_grad_(),
}


@pytest.mark.parametrize("begin", BEGINNINGS.values(), ids=BEGINNINGS)
def test_other_initial_states_bypass_it_in_silence(begin):
    cached, plain = twins()
    states = torch.zeros(2 * L, 4, H), torch.zeros(2 * L, 4, H)
    begin(*states)
    x = dense()
    for got, expected in zip(tensors(cached(x, states)), tensors(plain(x, states)), strict=True):
        assert torch.equal(got.isnan(), expected.isnan())
        torch.testing.assert_close(got, expected, equal_nan=True)
    assert counts(cached) == (0, 0)


def test_autocast_knows_zeros_from_none_by_their_dtypes_only():
    cached, plain = twins()
    x, states = packed(5, 3), (torch.zeros(2 * L, 2, H), torch.zeros(2 * L, 2, H))
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            assert_same(lambda x: cached(x, states), lambda x: plain(x, states), x, tolerance=1e-2)
    assert counts(cached) == (2, 2)


def test_nothing_is_kept_while_the_lowest_layer_trains():
    cached, plain = twins((1, 2))
    assert_same(cached, plain, dense())
    assert counts(cached) == (0, 0)


def test_random_dropout_bypasses_it_with_one_warning():
    cached, plain = twins(dropout=0.5)
    model = nn.Sequential(nn.Identity(), cached)
    with pytest.warns(UserWarning, match=r'freeze\(\.\.\., dropout="off"\)') as caught:
        model(dense())
    assert [warning.filename for warning in caught] == [__file__]
    cached(dense())
    assert counts(cached) == (0, 0)
    for lstm in (cached.eval(), plain.eval()):
        lstm(dense())
    assert_same(cached, plain, dense())
    assert counts(cached) == (4, 4)


def test_dropout_off_lets_it_serve_in_training():
    torch.manual_seed(0)
    lstm = BiLSTM(F, H, num_layers=L, dropout=0.5)
    freeze(lstm, layers=[0, 1], dropout="off")
    lstm.prefix_cache = PrefixCache()
    first, second = lstm(dense())[0], lstm(dense())[0]
    assert counts(lstm) == (4, 4)
    assert not torch.equal(first, second)  # the dropout above the prefix is still random


def test_a_trainable_embedding_below_misses_when_it_moves():
    torch.manual_seed(0)
    embedding, (cached, plain) = nn.Embedding(9, F), twins()
    tokens = torch.randint(9, (6, 4))
    with torch.no_grad():
        cached(embedding(tokens))
        embedding.weight[tokens[0, 0]] += 1
        hit_or_missed = embedding(tokens)
        assert_same(cached, plain, hit_or_missed)
    changed = int((tokens == tokens[0, 0]).any(0).sum())
    assert counts(cached) == (4 - changed, 4 + changed)


def test_what_inference_mode_kept_can_be_trained_on():
    cached, plain = twins()
    with torch.inference_mode():
        cached(dense())
    for lstm in (cached, plain):
        lstm(dense())[0].square().sum().backward()
    assert counts(cached) == (4, 4)
    torch.testing.assert_close(cached.weight_ih_l2.grad, plain.weight_ih_l2.grad)


@pytest.mark.parametrize("make", [dense, lambda: packed(5, 3)], ids=["dense", "packed"])
def test_autocast_and_full_precision_are_kept_apart(make):
    cached, plain = twins()
    for _ in range(2):
        assert_same(cached, plain, make())
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(cached, plain, make(), tolerance=1e-2)
    samples = counts(cached)[0] // 2
    assert counts(cached) == (2 * samples, 2 * samples)


def test_bfloat16():
    cached, plain = (m.bfloat16() for m in twins())
    for _ in range(2):
        assert_same(cached, plain, dense(dtype=torch.bfloat16), tolerance=1e-2)
    assert counts(cached) == (4, 4)


def test_writing_into_a_result_does_not_reach_the_cache():
    cached, plain = twins((0, 1, 2))
    for _ in range(3):
        output, (h, c) = cached(dense(1))
        for tensor in (output, h, c):
            tensor.zero_()
    assert_same(cached, plain, dense(1))


def test_copies_and_pickles_begin_empty_with_the_same_settings():
    cached, plain = twins()
    cached.prefix_cache = PrefixCache(max_bytes=12345, keep_levels=(1,))
    cached(dense())
    for twin in (copy.deepcopy(cached), pickle.loads(pickle.dumps(cached))):
        assert repr(twin.prefix_cache) == "PrefixCache(max_bytes=12345, keep_levels=(1,))"
        assert twin.prefix_cache.stats()["bytes"] == 0
        assert_same(twin, plain, dense())
    assert list(cached.state_dict()) == list(plain.state_dict())


def test_clear_and_none():
    cached, plain = twins()
    cached(dense())
    cached.prefix_cache.clear()
    assert cached.prefix_cache.stats() == dict.fromkeys(("hits", "misses", "bytes", "evictions"), 0)
    cached.prefix_cache = None
    assert all(map(torch.equal, tensors(cached(dense())), tensors(plain(dense()))))


CHANGES = {
    "transposed": lambda x: x.transpose(0, 2),
    "rows swapped": lambda x: x.flip(0),
    "columns swapped": lambda x: x.flip(2),
    "two signs flipped": lambda x: x * torch.tensor([-1.0, -1.0, 1.0, 1.0]),
    "negative zero": lambda x: torch.where(x == x.flatten()[0], -0.0, x),
    "last bit": lambda x: torch.nextafter(x, torch.full_like(x, torch.inf)),
}


@pytest.mark.parametrize("kind", ["random", "one-hot"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_key_tells_inputs_apart(kind, change):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 1, 4, generator=generator)
    if kind == "one-hot":
        x = torch.zeros(4, 1, 4)
        x[0, 0, 1] = x[1, 0, 3] = x[2, 0, 1] = x[3, 0, 0] = 1.0
    other = change(x)
    assert not torch.equal(x.view(torch.int32), other.contiguous().view(torch.int32))
    both = dense_rows(torch.cat([x, other], 1), False)
    first, second = contents(both, sample_rows(both))
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_an_input_of_another_dtype_with_the_same_bits_misses():
    cached, plain = BiLSTM(4, 5).requires_grad_(False), BiLSTM(4, 5)
    plain.load_state_dict(cached.state_dict())
    cached.prefix_cache = PrefixCache()
    x = torch.randn(3, 2, 4).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for same_bits in (x, x.view(torch.bfloat16)):
            torch.testing.assert_close(cached(same_bits)[0], plain(same_bits)[0])
    assert cached.prefix_cache.stats()["misses"] == 4


def test_a_default_device_is_not_taken_for_the_inputs():
    from lstm_freeze._hashing.word_sums import multipliers

    lstm = BiLSTM(4, 5).requires_grad_(False)
    lstm.prefix_cache = PrefixCache()
    rows = [torch.randn(n, 4) for n in (4, 3, 2)]
    both = [nn.utils.rnn.pack_sequence(rows[:k]) for k in (2, 3)]
    dense = torch.randn(3, 2, 4)
    multipliers.cache_clear()
    with torch.device("meta"):
        outputs = [lstm(x)[0] for x in (*both, dense)]
    assert lstm.prefix_cache.stats()["hits"] == 2
    lstm.prefix_cache = None
    for x, got in zip((*both, dense), outputs, strict=True):
        torch.testing.assert_close(got, lstm(x)[0])


def test_no_two_one_hot_sequences_share_a_key():
    letters = torch.cartesian_prod(*[torch.arange(4)] * 5)  # all 1,024 words of 5 letters of 4
    words = nn.functional.one_hot(letters, 4).float().transpose(0, 1)
    rows = dense_rows(words, False)
    keys = contents(rows, sample_rows(rows))
    assert len({a for a, _ in keys}) == len({b for _, b in keys}) == 1024


def test_a_sample_has_one_key_wherever_it_stands():
    x = packed(6, 4, 2)
    rows = packed_rows(x, True, traced=False)
    alone = pack_sequence([torch.nn.utils.rnn.unpack_sequence(x)[1]])
    single = packed_rows(alone, True, traced=False)
    assert contents(rows, sample_rows(rows))[1] == contents(single, sample_rows(single))[0]


ERRORS = [
    ({"max_bytes": -1}, ValueError, "`max_bytes` must not be negative, got -1"),
    ({"max_bytes": 1.5}, TypeError, "`max_bytes` must be an integer, got 1.5"),
    ({"keep_levels": [0]}, ValueError, "`keep_levels` must be at least 1, got 0"),
    ({"keep_levels": ["1"]}, TypeError, "`keep_levels` must be an integer, got '1'"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), ERRORS)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        PrefixCache(**arguments)
