"""Bits of tensors: what counts as equal, and what a fingerprint sees."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lstm_freeze._hashing import tensors
from lstm_freeze._hashing.tensors import (
    bits_of,
    difference,
    fingerprints,
    has_bits,
    same_bits,
    tensor_of,
)

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]
ROW = tensors._ROW


def same(a: Tensor, b: Tensor) -> bool:
    return same_bits([(bits_of(a), bits_of(b))])[0]


def same_fingerprint(a: Tensor, b: Tensor) -> bool:
    return fingerprints([a])[0] == fingerprints([b])[0]


COMPARISONS = pytest.mark.parametrize("equal", [same, same_fingerprint])


def random_bits(count: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    size = torch.empty(0, dtype=dtype).element_size()
    generator = torch.Generator().manual_seed(seed)
    high = 2 if dtype == torch.bool else 256
    drawn = torch.randint(0, high, (count * size,), dtype=torch.uint8, generator=generator)
    return drawn.view(dtype)


@COMPARISONS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 3, 17, 1000])
def test_each_flipped_bit_is_seen_and_equal_bits_are_equal(equal, dtype, count):
    tensor = random_bits(count, dtype)
    assert equal(tensor, tensor.clone())
    size = tensor.numel() * tensor.element_size()
    for place in {0, size // 2, size - 1}:
        for bit in (0, 3, 7) if dtype != torch.bool else (0,):
            other = tensor.clone()
            other.view(torch.uint8)[place] ^= 1 << bit
            assert not equal(tensor, other)


PAIRS = {
    "signed zeros": (torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0])),
    "NaN payloads": (
        torch.tensor([0x7FC00000, 1], dtype=torch.int32).view(torch.float32),
        torch.tensor([0x7FC00001, 1], dtype=torch.int32).view(torch.float32),
    ),
    "swapped elements": (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])),
    "cancelling changes": (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])),
    "two flipped signs": (torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([0.0, -1.0, 0.0, -1.0])),
    "swapped signs": (torch.tensor([0.0, 1.0, 0.0, -1.0]), torch.tensor([0.0, -1.0, 0.0, 1.0])),
    "dtype": (torch.zeros(4), torch.zeros(4, dtype=torch.int32)),
    "shape": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "a zero more": (torch.zeros(3), torch.zeros(4)),
}


@COMPARISONS
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_values_that_compare_equal_or_add_up_equal_are_told_apart(equal, pair):
    assert not equal(*pair)
    assert equal(pair[0], pair[0].clone())


@COMPARISONS
def test_a_nan_equals_itself(equal):
    tensor = torch.tensor([math.nan, 1.0])
    assert equal(tensor, tensor.clone())


@COMPARISONS
@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.view(30, 40).t(),
        lambda t: t[::2],
        lambda t: t[1:],
        lambda t: t[3],
        lambda t: t[:0],
        lambda t: t.view(2, 600).to_sparse(),
        lambda t: torch.complex(t[:600], t[600:]).conj(),
        lambda t: torch.complex(t[:600], t[600:]).conj().imag,
    ],
    ids=["transposed", "strided", "offset", "0-dim", "empty", "sparse", "conjugate", "negative"],
)
def test_the_bits_are_those_of_the_values_in_logical_order(equal, make):
    tensor = make(torch.arange(1.0, 1201.0))
    plain = tensor.to_dense() if tensor.is_sparse else tensor
    plain = plain.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    assert equal(tensor, plain)
    if plain.numel():
        assert not equal(tensor, plain + 1)


@pytest.mark.parametrize(
    "places",
    [(0, 1), (1, 3), (5, 5 + ROW), (2, 2 * ROW), (ROW, 2 * ROW - 1), (7, 70 * ROW), (0, -1)],
)
def test_a_fingerprint_sees_two_words_swapped_wherever_they_are(places):
    # Long enough for two levels of rows, with a last row and left-over bytes.
    words = random_bits(70 * ROW + 100, torch.int64)
    i, j = places
    swapped = words.clone()
    swapped[i], swapped[j] = words[j].clone(), words[i].clone()
    assert not torch.equal(swapped, words)
    assert not same_fingerprint(words, swapped)
    # The same for signs alone, which lie in the top bits.
    signed = words.clone()
    signed[i] ^= -(2**63)
    signed[j] ^= -(2**63)
    assert not same_fingerprint(words, signed)


def test_no_two_of_many_small_changes_have_one_fingerprint():
    base = torch.zeros(64)
    changed = [base]
    for i, j in itertools.combinations(range(64), 2):
        other = base.clone()
        other[i], other[j] = -0.0, -0.0
        changed.append(other)
    assert len(set(fingerprints(changed))) == len(changed)


def test_weights_of_a_fingerprint_leave_no_sign_pair_that_cancels():
    # Two flipped signs cancel if the weights of their places agree modulo 2**33, up to sign.
    for level in range(3):
        low, high = (w.tolist() for w in tensors._weights(level, torch.device("cpu")))
        odd = [(w << 32) + v for w, v in zip(low, high, strict=True)]
        seen = [sign * w % 2**33 for w in (*low, *odd) for sign in (1, -1)]
        assert len(set(seen)) == len(seen)


def test_a_fingerprint_fits_into_8_bytes_and_does_not_depend_on_company():
    several = [random_bits(n, torch.float32, seed=n) for n in (1, 2, 100, 3 * ROW, 100 * ROW)]
    together = fingerprints(several)
    assert together == [fingerprints([tensor])[0] for tensor in several]
    assert all(0 <= value < 2**64 for value in together)
    assert len(set(together)) == len(together)


def test_a_copy_of_the_bits_does_not_follow_the_tensor():
    tensor = torch.zeros(3, 5)
    kept, shared = bits_of(tensor, copy=True), bits_of(tensor)
    tensor[1, 2] = 7
    assert torch.equal(tensor_of(kept), torch.zeros(3, 5))
    assert torch.equal(tensor_of(shared), tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (2, 1, 9)])
def test_a_tensor_comes_back_from_its_bits(dtype, shape):
    tensor = random_bits(math.prod(shape), dtype).view(shape)
    back = tensor_of(bits_of(tensor))
    assert back.dtype == dtype
    assert back.shape == shape
    assert same(back, tensor)


@pytest.mark.parametrize(
    ("old", "new", "moved", "largest"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.5, 2.0], 2, 1.0),
        ([0.0, 1.0], [-0.0, 1.0], 1, 0.0),
        ([1.0, 2.0], [math.nan, 5.0], 2, math.nan),
        ([math.nan, 2.0], [math.nan, 5.0], 1, 3.0),
        ([1.0, 2.0], [1.0, math.inf], 1, math.inf),
        ([], [], 0, 0.0),
    ],
)
def test_a_difference_counts_elements_and_finds_the_largest(old, new, moved, largest):
    found = difference(torch.tensor(new), torch.tensor(old))
    assert found == pytest.approx((moved, largest), abs=0, nan_ok=True)


def test_a_difference_knows_integers_complex_numbers_and_several_pieces(monkeypatch):
    assert difference(torch.tensor([True, False]), torch.tensor([False, False])) == (1, 1.0)
    assert difference(torch.tensor([5, 1], dtype=torch.uint8), torch.tensor([7, 1]).byte()) == (
        1,
        2,
    )
    assert difference(torch.tensor([3 + 4j]), torch.tensor([0j])) == (1, 5.0)
    monkeypatch.setattr(tensors, "_PIECE", 4)
    old, new = torch.zeros(11), torch.zeros(11)
    new[[0, 5, 10]] = torch.tensor([1.0, 9.0, 2.0])
    assert difference(new, old) == (3, 9.0)


def test_lazy_and_meta_tensors_have_no_bits():
    assert not has_bits(nn.LazyLinear(2).weight)
    assert not has_bits(torch.empty(2, device="meta"))
    assert has_bits(torch.empty(0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_fingerprint_is_the_same_on_every_device():
    for dtype, count in itertools.product(DTYPES, [0, 1, 17, 3 * ROW + 5, 70 * ROW]):
        tensor = random_bits(count, dtype)
        assert fingerprints([tensor.cuda()]) == fingerprints([tensor])
        assert same(tensor.cuda(), tensor.cuda())
        if count:
            other = tensor.clone()
            other.view(torch.uint8)[-1] ^= 1
            assert not same(tensor.cuda(), other.cuda())


@pytest.mark.skipif(tensors._extension is None, reason="the extension is not built: no C compiler")
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (70, 2048), (2, 7), (0, 4)])
def test_native_and_torch_sums_are_the_same_numbers(shape, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randint, -(2**63), 2**63 - 1, generator=generator)
    table, low, high = draw(shape), draw(shape[1:]), draw(shape[1:])
    native = tensors.row_sums(table, low, high)
    monkeypatch.setattr(tensors, "_extension", None)
    assert torch.equal(native, tensors.row_sums(table, low, high))
    exact = [
        sum(w * x + v * (x >> 32) for x, w, v in zip(row, low.tolist(), high.tolist(), strict=True))
        for row in table.tolist()
    ]
    assert [x % 2**64 for x in native.tolist()] == [x % 2**64 for x in exact]


@pytest.mark.skipif(tensors._extension is None, reason="the extension is not built: no C compiler")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_native_and_torch_fingerprints_are_the_same(threads, monkeypatch):
    several = [
        random_bits(count, dtype)
        for dtype, count in itertools.product(DTYPES, [0, 1, 2, 17, ROW, 3 * ROW + 5, 70 * ROW])
    ]
    matrix = random_bits(64 * ROW, torch.float32).view(ROW, 64)
    several += [matrix.t(), matrix[1:], matrix[0, 1:], nn.Parameter(matrix[:3])]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        native = fingerprints(several)
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(tensors, "_extension", None)
    assert native == fingerprints(several)
    assert native == [fingerprints([tensor])[0] for tensor in several]


def test_a_fingerprint_is_made_under_another_default_device():
    tensor = torch.arange(4.0)
    expected = fingerprints([tensor])
    with torch.device("meta"):
        assert fingerprints([tensor]) == expected
