"""The extension's products of matrices, around the time loop and within it."""

from types import SimpleNamespace

import pytest
import torch

from lstm_freeze import BiLSTM
from lstm_freeze._recurrence.native import extension, loop, products

# Rows, depth and columns: less than a tile, a panel or a block, whole ones, and some more.
SIZES = [(3, 1, 1), (5, 3, 17), (48, 64, 64), (49, 321, 33), (100, 700, 203), (7, 640, 130)]


@pytest.fixture(autouse=True)
def on_each_level(level, monkeypatch):
    monkeypatch.setattr(products, "_FEWEST_MULTIPLICATIONS", 0)
    monkeypatch.setattr(products, "_own_products", True)
    with extension.switched(True):
        yield


def random(*shape, turned=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape[::-1] if turned else shape, generator=generator)
    return x.t() if turned else x


def multiplied(left, matrix):
    """left @ matrix, with numbers around the output that must not change."""
    M, N = left.shape[0], matrix.shape[1]
    around = torch.full((M + 2, N), float("nan"))
    products.multiply(left, products.right(matrix, M), around[1 : M + 1])
    assert around[0].isnan().all()
    assert around[-1].isnan().all()
    return around[1 : M + 1]


@pytest.mark.parametrize(("rows", "depth", "columns"), SIZES)
@pytest.mark.parametrize("turned", [(a, b) for a in (False, True) for b in (False, True)])
def test_a_product_in_any_layout(rows, depth, columns, turned):
    left = random(rows, depth, turned=turned[0])
    matrix = random(depth, columns, turned=turned[1], seed=1)
    expected = left.double() @ matrix.double()
    most = 2e-6 * (left.double().abs() @ matrix.double().abs() + 1)
    assert ((multiplied(left, matrix) - expected).abs() <= most).all()


@pytest.mark.parametrize("turned", [False, True])
def test_a_row_depends_neither_on_others_nor_on_threads(threads, turned):
    left, matrix = random(131, 330, turned=turned), random(330, 77, seed=1)
    threads(3)
    together = multiplied(left, matrix)
    threads(1)
    assert torch.equal(together, multiplied(left, matrix))
    assert torch.equal(together[5:16], multiplied(left[5:16].contiguous(), matrix))


def test_what_is_not_finite_spoils_its_own_row_and_column_only():
    left, matrix = random(50, 40), random(40, 37, seed=1)
    left[7, 3], matrix[5, 36] = float("nan"), float("inf")
    spoiled = ~multiplied(left, matrix).isfinite()
    expected = torch.zeros(50, 37, dtype=torch.bool)
    expected[7], expected[:, 36] = True, True
    assert torch.equal(spoiled, expected)


def test_an_output_that_does_not_fit_is_refused():
    by = products.right(random(4, 5), 6)
    with pytest.raises(ValueError, match=r"`out` must be \(6, 5\), contiguous; got"):
        products.multiply(random(6, 4), by, torch.empty(5, 6).t())
    with pytest.raises(ValueError, match=r"`left` must be \(6, 4\), all of it in memory; got"):
        products.multiply(random(6, 3), by, torch.empty(6, 5))
    with pytest.raises(ValueError, match=r"`out` must be float32 on the CPU; got torch\.float64"):
        products.multiply(random(6, 4), by, torch.empty(6, 5, dtype=torch.float64))


def test_torch_makes_the_products_where_it_is_faster(monkeypatch):
    def others(is_intel, has_mkl):
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: has_mkl)
        return products._makes_products(SimpleNamespace(IS_INTEL=is_intel))

    assert not others(1, True)
    assert others(0, True)
    assert others(1, False)
    assert not products._makes_products(None)
    monkeypatch.setattr(products, "_own_products", False)
    assert products.right(random(40, 40), 40).panels is None
    torch.manual_seed(0)
    lstm, data = BiLSTM(8, 24, num_layers=2), torch.randn(5, 50, 8)
    theirs = lstm(data)[0]
    monkeypatch.setattr(products, "_own_products", True)
    torch.testing.assert_close(lstm(data)[0], theirs)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("batch", "sizes", "options"),
    [
        (64, (33, 47), {}),
        (50, (700, 20), {"bias": False}),
        (24, (16, 65), {"proj_size": 5}),
        (49, (40, 16), {"bidirectional": False}),
    ],
)
def test_where_the_input_is_multiplied_changes_no_bit(monkeypatch, packed, batch, sizes, options):
    torch.manual_seed(0)
    lstm, data = BiLSTM(*sizes, num_layers=2, **options), torch.randn(5, batch, sizes[0])
    lengths = torch.randint(1, 6, (batch,)).sort(descending=True)[0]
    lengths[0] = 5
    pack = torch.nn.utils.rnn.pack_padded_sequence
    results = []
    for rows in (1, 10**6):  # within the loop, and before it
        monkeypatch.setattr(loop, "_ROWS_OF_A_STEP", rows)
        for keep in (True, False):
            with torch.set_grad_enabled(keep):
                output, (h, c) = lstm(pack(data, lengths) if packed else data)
            output = output.data if packed else output
            results.append((output.detach(), h.detach(), c.detach()))
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert torch.equal(x, y)
