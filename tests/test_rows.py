"""The internal form: rows, runs, blocks and the reverse order, against padded tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from lstm_freeze._recurrence import rows
from lstm_freeze._recurrence.rows import (
    Run,
    blocks_of,
    dense_rows,
    flipped,
    packed_rows,
    previous_rows,
    reverse_rows,
    runs_of,
    unpermuted,
)

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=7)


def packed_of(lengths):
    """Sequences whose elements say where they are: 100 * sequence + step."""
    sequences = [
        100.0 * b + torch.arange(n, dtype=torch.float32)[:, None] for b, n in enumerate(lengths)
    ]
    return pack_sequence(sequences, enforce_sorted=False)


@given(lengths, st.sampled_from([0, rows._FEW_ROWS]))
@settings(deadline=None)
def test_reverse_rows_turn_every_sequence_round(lengths, few):
    packed = packed_of(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_FEW_ROWS", few)
        reverse = packed_rows(packed, both_directions=True, traced=False).reverse
    turned = packed._replace(data=flipped(packed.data, reverse))
    padded, found = pad_packed_sequence(turned, batch_first=True)
    assert found.tolist() == lengths
    for b, n in enumerate(lengths):
        assert (padded[b, :n, 0] == 100 * b + torch.arange(n).flip(0)).all()
    assert torch.equal(flipped(turned.data, reverse), packed.data)


@given(lengths)
@settings(deadline=None)
def test_previous_rows_are_the_same_sequences_a_step_before(lengths):
    data, batch_sizes = packed_of(lengths)[:2]
    initial = torch.full((len(lengths), 1), -1.0)
    before = torch.cat((initial, data))[previous_rows(batch_sizes, len(data), data.device)]
    first = data % 100 == 0
    assert (before[first] == -1).all()
    assert torch.equal(before[~first], data[~first] - 1)


@given(lengths, st.integers(1, 30))
@settings(deadline=None)
def test_runs_and_blocks_cover_every_step_once(lengths, room):
    batch_sizes = packed_of(lengths).batch_sizes
    runs = runs_of(len(batch_sizes), len(lengths), batch_sizes)
    blocks = blocks_of(runs, room)
    for parts in (runs, [run for block in blocks for run in block]):
        sizes = [run.batch for run in parts for _ in range(run.steps)]
        assert sizes == batch_sizes.tolist()
        starts = [run.row for run in parts]
        assert starts == [sum(r.steps * r.batch for r in parts[:k]) for k in range(len(parts))]
        assert [run.before for run in parts] == [parts[0].batch] + [r.batch for r in parts[:-1]]
    assert len({run.batch for run in runs}) == len(runs)
    for block in blocks:
        rows = sum(run.steps * run.batch for run in block)
        assert rows <= room or (len(block) == 1 and block[0].steps == 1)


def test_dense_input_is_one_run():
    assert runs_of(5, 3, None) == [Run(0, 5, 3, 3)]
    blocks = [[Run(0, 2, 3, 3)], [Run(6, 2, 3, 3)], [Run(12, 1, 3, 3)]]
    assert blocks_of(runs_of(5, 3, None), 7) == blocks


@pytest.mark.parametrize("batch_first", [False, True])
def test_dense_rows_are_contiguous_and_time_major(batch_first):
    x = torch.randn(5, 3, 2)
    rows = dense_rows(x.transpose(0, 1) if batch_first else x, batch_first)
    assert torch.equal(rows.data, x)
    assert rows.data.is_contiguous()
    assert rows.batch_sizes is rows.reverse is None


def test_one_direction_needs_no_reverse_order():
    packed = packed_of([3, 1])
    assert packed_rows(packed, both_directions=False, traced=False).reverse is None
    assert torch.equal(
        packed_rows(packed, both_directions=True, traced=False).reverse,
        reverse_rows(packed.data, packed.batch_sizes),
    )


@pytest.mark.parametrize("few", [0, rows._FEW_ROWS])
def test_the_order_of_no_rows_is_one_of_integers(monkeypatch, few):
    monkeypatch.setattr(rows, "_FEW_ROWS", few)
    order = reverse_rows(torch.zeros(0, 1), torch.tensor([0]))
    assert (order.shape, order.dtype) == ((0,), torch.long)


def test_unpermuted_picks_sequences():
    h, c = torch.arange(6.0).view(1, 3, 2), torch.arange(3.0).view(1, 3, 1)
    order = torch.tensor([2, 0, 1])
    found = unpermuted((h, c), order)
    assert found[0][0, :, 0].tolist() == [4, 0, 2]
    assert found[1][0, :, 0].tolist() == [2, 0, 1]
    assert unpermuted((h, c), None)[0] is h
