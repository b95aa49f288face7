"""Bits of tensors: what counts as equal, and what a fingerprint sees."""

import itertools
import math
import struct
import zlib
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lstm_freeze._hashing import bits as bits_file
from lstm_freeze._hashing import (
    bits_of,
    column_hashes,
    difference,
    has_bits,
    row_hashes,
    same_bits,
    tensor_hashes,
    tensor_of,
    word_sums,
)
from lstm_freeze._hashing.tensor_hashes import ROW, _multipliers, little_endian

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


def same(a: Tensor, b: Tensor) -> bool:
    return same_bits([(bits_of(a), bits_of(b))])[0]


def same_fingerprint(a: Tensor, b: Tensor) -> bool:
    return tensor_hashes([a])[0] == tensor_hashes([b])[0]


NEEDS_EXTENSION = pytest.mark.skipif(
    not word_sums.has_extension(), reason="the extension is not built: no C compiler"
)
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
    assert len(set(tensor_hashes(changed))) == len(changed)


def test_weights_of_a_fingerprint_leave_no_sign_pair_that_cancels():
    # Two flipped signs cancel if the weights of their places agree modulo 2**33, up to sign.
    for level in range(3):
        low, high = (w.tolist() for w in _multipliers(level, torch.device("cpu")))
        odd = [(w << 32) + v for w, v in zip(low, high, strict=True)]
        seen = [sign * w % 2**33 for w in (*low, *odd) for sign in (1, -1)]
        assert len(set(seen)) == len(seen)


def test_a_fingerprint_fits_into_8_bytes_and_does_not_depend_on_company():
    several = [random_bits(n, torch.float32, seed=n) for n in (1, 2, 100, 3 * ROW, 100 * ROW)]
    together = tensor_hashes(several)
    assert together == [tensor_hashes([tensor])[0] for tensor in several]
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
    monkeypatch.setattr(bits_file, "_PIECE", 4)
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
        assert tensor_hashes([tensor.cuda()]) == tensor_hashes([tensor])
        assert same(tensor.cuda(), tensor.cuda())
        if count:
            other = tensor.clone()
            other.view(torch.uint8)[-1] ^= 1
            assert not same(tensor.cuda(), other.cuda())


@pytest.mark.skipif(
    not word_sums.has_extension(), reason="the extension is not built: no C compiler"
)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (70, 2048), (2, 7), (0, 4)])
def test_native_and_torch_sums_are_the_same_numbers(shape, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randint, -(2**63), 2**63 - 1, generator=generator)
    table, low, high = draw(shape), draw(shape[1:]), draw(shape[1:])
    native = word_sums.row_sums(table, low, high)
    monkeypatch.setattr(word_sums, "_extension", None)
    assert torch.equal(native, word_sums.row_sums(table, low, high))
    exact = [
        sum(w * x + v * (x >> 32) for x, w, v in zip(row, low.tolist(), high.tolist(), strict=True))
        for row in table.tolist()
    ]
    assert [x % 2**64 for x in native.tolist()] == [x % 2**64 for x in exact]


@pytest.mark.skipif(
    not word_sums.has_extension(), reason="the extension is not built: no C compiler"
)
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
        native = tensor_hashes(several)
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(word_sums, "_extension", None)
    assert native == tensor_hashes(several)
    assert native == [tensor_hashes([tensor])[0] for tensor in several]


def test_a_fingerprint_is_made_under_another_default_device():
    tensor = torch.arange(4.0)
    expected = tensor_hashes([tensor])
    with torch.device("meta"):
        assert tensor_hashes([tensor]) == expected


# Views whose strides torch's is_contiguous() does not look at


def one_element_with_a_stride():
    tensor = torch.arange(1.0, 6.0).view(1, 5)[:, 0]
    assert tensor.stride() == (5,)
    assert tensor.is_contiguous()
    return tensor


ODD_VIEWS = {
    "one element": one_element_with_a_stride,
    "one row of a transpose": lambda: torch.arange(6.0)[:1].view(1, 1).as_strided((1, 1), (3, 7)),
    "a column of one": lambda: torch.arange(5.0).as_strided((5, 1), (1, 5)),
    "none": lambda: torch.zeros(3, 5)[:0, 2],
    "one half": lambda: torch.arange(6).half().view(1, 6)[:, 3],
    "8 bytes": lambda: torch.arange(6.0).double().view(1, 6)[:, 3],
    "between two words": lambda: torch.arange(6.0).view(1, 6)[:, 3],
}


@pytest.mark.parametrize("make", ODD_VIEWS.values(), ids=ODD_VIEWS)
def test_views_with_strides_of_dimensions_of_size_1(make):
    tensor = make()
    plain = torch.tensor(tensor.tolist(), dtype=tensor.dtype).view(tensor.shape)
    assert same(tensor, plain)
    assert same(tensor_of(bits_of(tensor, copy=True)), plain)
    assert tensor_hashes([tensor]) == tensor_hashes([plain])
    if plain.numel():
        assert not same(tensor, plain + 1)
        assert not same_fingerprint(tensor, plain + 1)
        assert difference(plain + 1, tensor) == (plain.numel(), 1.0)
    rows = tensor.view(len(tensor), -1) if tensor.numel() else tensor.view(0, 3)
    assert torch.equal(
        row_hashes(rows), row_hashes(rows.clone(memory_format=torch.contiguous_format))
    )


def test_memory_that_begins_between_two_words():
    memory = torch.frombuffer(bytearray(range(1, 42)), dtype=torch.uint8, offset=1)
    assert memory.data_ptr() % 8
    assert bits_of(memory).words.data_ptr() % 8 == 0
    assert same(memory, memory.clone())
    assert tensor_hashes([memory]) == tensor_hashes([memory.clone()])
    assert torch.equal(row_hashes(memory.view(5, 8)), row_hashes(memory.clone().view(5, 8)))


# Values that may stand in files


def counted(count, dtype):
    return (torch.arange(count) % 251).to(dtype)


@pytest.mark.parametrize("native", [True, False])
def test_fingerprints_are_what_they_have_always_been(native, monkeypatch):
    if not native:
        monkeypatch.setattr(word_sums, "_extension", None)
    tensors = [
        counted(0, torch.float32),
        counted(3, torch.float32),
        counted(5000, torch.float32),
        counted(ROW * (ROW + 1) + 7, torch.float32),
        counted(5000, torch.float64),
        counted(3, torch.bfloat16),
        counted(5000, torch.float16),
        counted(3, torch.int8),
        counted(5000, torch.bool),
        counted(5000, torch.complex64),
    ]
    assert [f"{value:016x}" for value in tensor_hashes(tensors)] == [
        "2b5c89b568e5dab1",
        "a68adf921e3f41ad",
        "8a83b0360f418f47",
        "63f41b9a97451100",
        "74c011eddfebcf32",
        "5e104ff11437585c",
        "9692bb6f28d84066",
        "61f943b0c4cb61c3",
        "9c54547ec8d197ea",
        "a4599e864804402d",
    ]


def test_a_fingerprint_is_defined_by_values_and_not_by_the_memory_of_a_machine():
    """Worked out in Python from the little-endian bytes of the values alone."""
    values = [0.5 * i - 3 for i in range(5)]
    memory = struct.pack("<5f", *values) + b"\0" * 4
    words = struct.unpack("<3q", memory)
    low, high = (w.tolist() for w in _multipliers(0, torch.device("cpu")))
    whole = sum(w * x + v * (x >> 32) for x, w, v in zip(words[:2], low, high, strict=False))
    low, high = (w.tolist() for w in _multipliers(1, torch.device("cpu")))
    signed = (whole + 2**63) % 2**64 - 2**63
    pair = zip((signed, words[2]), low, high, strict=False)
    total = sum(w * x + v * (x >> 32) for x, w, v in pair)
    form = zlib.crc32(b"torch.float32(5,)") * 0x9E3779B97F4A7C15
    assert tensor_hashes([torch.tensor(values)]) == [(total + form) % 2**64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_of_a_big_endian_machine_become_those_of_a_little_endian_one(dtype):
    tensor = random_bits(11, dtype)
    size = tensor.element_size() // (2 if dtype.is_complex else 1)
    swapped = tensor.view(torch.uint8).view(-1, size).flip(1).view(-1).view(dtype)
    here = little_endian(bits_of(swapped))  # words are swapped, too, on a machine of that kind
    words = here.words.view(torch.uint8).view(-1, 8).flip(1).view(-1)
    assert torch.equal(torch.cat([words, here.rest]), tensor.view(torch.uint8))


def test_weights_are_those_of_the_reference_generator():
    drawn = torch.randint(
        0, 256, (64,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0x5EED)
    )
    expected = struct.unpack("<8q", bytes(drawn.tolist()))
    found = word_sums.multipliers(0x5EED, 2, 4, torch.device("cpu"))
    assert found.flatten().tolist() == [word | 1 for word in expected]


# Rows and columns


def test_a_row_has_a_hash_of_its_bits_and_a_column_one_of_its_rows_in_order():
    rows = random_bits(6 * 5, torch.float32).view(6, 5)
    hashes = row_hashes(rows)
    assert torch.equal(hashes[:, 2], row_hashes(rows[2:3])[:, 0])
    assert len(set(hashes.flatten().tolist())) == 12
    samples = column_hashes(hashes.view(2, 3, 2))
    turned = column_hashes(hashes.view(2, 3, 2).flip(1))
    assert (samples != turned).all()
    longer = torch.cat([hashes.view(2, 3, 2), hashes.new_zeros(2, 4, 2)], 1)
    assert torch.equal(column_hashes(longer), samples)
