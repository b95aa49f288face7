"""PrefixCache: the outputs of a frozen prefix, computed once for each sample and then looked up.

A sample's key is made of all that its output depends on: a 128-bit hash of its own input rows, its
length, the depth of the prefix, the fingerprint of its weights, dtypes and device. Whatever changes
can therefore only miss. (AutoFreeze, Liu et al. 2021, arXiv 2102.01386, caches what the frozen
prefix of a transformer puts out.)
"""

from __future__ import annotations

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, SupportsIndex

import torch
from torch import Tensor
from torch.nn import functional as F

from ._bits import row_sums
from ._packing import Rows, reverse_rows

Layers = Callable[[Rows, int, int], tuple[Rows, list[tuple[Tensor, Tensor]]]]
"""Runs layers [first, last) over rows: the output rows and each layer's final states."""


class Entry(NamedTuple):
    """What is kept of one sample: its output (len, D * P) and the final states of all layers."""

    output: Tensor
    h: Tensor
    c: Tensor

    @property
    def nbytes(self) -> int:
        """The memory it holds."""
        return sum(t.numel() * t.element_size() for t in self)


class PrefixCache:
    """Keeps what the frozen prefix of a BiLSTM makes of each sample; least recently used go first.

    Set it on a BiLSTM (`lstm.prefix_cache = PrefixCache()`); None switches it off. It serves calls
    without `hx` whose input needs no gradient, and is bypassed in all others, under tracing, export
    and torch.func, and where dropout makes the prefix random. Results agree with the uncached ones
    to rounding. Pickles and copies of the model have an empty cache of the same settings. With DDP
    each rank has its own.

    Args:
        max_bytes: The memory the kept outputs may take, on the device of the input.
        keep_levels: Shallower depths (numbers of layers) whose outputs are kept on the way, for
            phases to come that train more layers.

    Raises:
        TypeError: `max_bytes` or a level is not an integer.
        ValueError: `max_bytes` is negative or a level is less than 1.

    Examples:
        >>> from lstm_freeze import BiLSTM, freeze
        >>> lstm = BiLSTM(4, 8, num_layers=2)
        >>> _ = freeze(lstm, layers=0)
        >>> lstm.prefix_cache = PrefixCache()
        >>> x = torch.randn(5, 3, 4)
        >>> first, again = lstm(x)[0], lstm(x)[0]
        >>> stats = lstm.prefix_cache.stats()
        >>> stats["hits"], stats["misses"], stats["evictions"]
        (3, 3, 0)
    """

    def __init__(self, max_bytes: int = 2 * 2**30, keep_levels: Iterable[int] = ()) -> None:
        self.max_bytes = _at_least(0, max_bytes, "max_bytes")
        if not isinstance(keep_levels, Iterable):
            raise TypeError(f"`keep_levels` must be several integers, got {keep_levels!r}")
        self.keep_levels = tuple(sorted({_at_least(1, x, "keep_levels") for x in keep_levels}))
        self._reset()

    def _reset(self) -> None:
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self._bytes = self._hits = self._misses = self._evictions = 0
        self.has_warned = False

    def stats(self) -> dict[str, int]:
        """Samples found and not found, the bytes held, and the samples dropped to make room.

        >>> PrefixCache().stats()
        {'hits': 0, 'misses': 0, 'bytes': 0, 'evictions': 0}
        """
        return {
            "hits": self._hits,
            "misses": self._misses,
            "bytes": self._bytes,
            "evictions": self._evictions,
        }

    def clear(self) -> None:
        """Drop all that is kept; the statistics start anew.

        >>> PrefixCache().clear()
        """
        self._reset()

    def __repr__(self) -> str:
        return f"PrefixCache(max_bytes={self.max_bytes}, keep_levels={self.keep_levels})"

    def __getstate__(self) -> dict[str, Any]:
        return {"max_bytes": self.max_bytes, "keep_levels": self.keep_levels}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def warn_of_dropout(self) -> None:
        """Say once that dropout makes the prefix random, so that nothing can be kept."""
        if not self.has_warned:
            self.has_warned = True
            warnings.warn(
                "the prefix cache is bypassed: dropout between frozen layers makes their output "
                'random; freeze(..., dropout="off") stops it',
                stacklevel=2,
            )

    def serve(
        self, rows: Rows, depth: int, contexts: Sequence[Hashable], run: Layers
    ) -> tuple[Rows, Tensor, Tensor]:
        """The outputs of the layers below `depth`, looked up or computed.

        Args:
            rows: The input.
            depth: The number of layers in the prefix, at least 1.
            contexts: For each level 1 ... depth, all that outputs depend on but the sample.
            run: Runs a range of layers.

        Returns:
            Output rows, h (depth * D, B, P) and c (depth * D, B, H).
        """
        seats = seats_of(rows)
        keys = [
            [(context, length, content) for context in contexts[:depth]]
            for length, content in zip(seats.lengths, _contents(rows, seats), strict=True)
        ]
        found = [self._deepest(k) for k in keys]
        hits = sum(level == depth for level, _ in found)
        self._hits += hits
        self._misses += len(found) - hits
        if not any(level for level, _ in found):
            return self._compute(rows, seats, [], keys, 0, depth, run)
        ready = {b: e for b, (level, e) in enumerate(found) if e is not None and level == depth}
        for level in sorted({level for level, _ in found} - {depth}):
            members = [b for b, (at, _) in enumerate(found) if at == level]
            prior = [entry for b in members if (entry := found[b][1]) is not None]
            inputs = [e.output for e in prior] if level else _pick(rows, seats, members)
            some = _joined(inputs, rows)
            group = [keys[b] for b in members]
            output, h, c = self._compute(some, seats_of(some), prior, group, level, depth, run)
            ready.update(zip(members, _entries(output, seats_of(some), h, c), strict=True))
        entries = [ready[b] for b in range(len(found))]
        joined = _joined([e.output for e in entries], rows)
        return (
            rows.with_data(joined.data),
            torch.stack([e.h for e in entries], 1),
            torch.stack([e.c for e in entries], 1),
        )

    def _deepest(self, keys: Sequence[Hashable]) -> tuple[int, Entry | None]:
        """The deepest level that is kept of a sample, and what is kept there."""
        for level in range(len(keys), 0, -1):
            if (entry := self._entries.get(keys[level - 1])) is not None:
                self._entries.move_to_end(keys[level - 1])
                return level, entry
        return 0, None

    def _compute(
        self,
        rows: Rows,
        seats: Seats,
        prior: Sequence[Entry],
        keys: Sequence[Sequence[Hashable]],
        level: int,
        depth: int,
        run: Layers,
    ) -> tuple[Rows, Tensor, Tensor]:
        """Run the layers from a level up to the depth, and keep what is to be kept."""
        h = [torch.stack([e.h for e in prior], 1)] if level else []
        c = [torch.stack([e.c for e in prior], 1)] if level else []
        for stop in (*(x for x in self.keep_levels if level < x < depth), depth):
            rows, finals = run(rows, level, stop)
            h += [state for state, _ in finals]
            c += [state for _, state in finals]
            self._keep([k[stop - 1] for k in keys], rows, seats, torch.cat(h), torch.cat(c))
            level = stop
        return rows, torch.cat(h), torch.cat(c)

    def _keep(
        self, keys: Sequence[Hashable], rows: Rows, seats: Seats, h: Tensor, c: Tensor
    ) -> None:
        # What inference mode makes could not be used in training later, except as a copy made here.
        with torch.inference_mode(False), torch.no_grad():
            for key, entry in zip(keys, _entries(rows, seats, h, c), strict=True):
                if entry.nbytes > self.max_bytes:
                    continue
                if (old := self._entries.pop(key, None)) is not None:
                    self._bytes -= old.nbytes
                self._entries[key] = Entry(*(part.clone() for part in entry))
                self._bytes += entry.nbytes
                while self._bytes > self.max_bytes:
                    self._bytes -= self._entries.popitem(last=False)[1].nbytes
                    self._evictions += 1


class Seats(NamedTuple):
    """Where the samples of a batch lie among its rows.

    Attributes:
        lengths: (B,) steps of each sample.
        step: (N,) the step of each packed row; None where dense.
        sample: (N,) the sample of each packed row; None where dense.
        place: (N,) the packed row's place when the samples stand one after another.
    """

    lengths: list[int]
    step: Tensor | None = None
    sample: Tensor | None = None
    place: Tensor | None = None


def seats_of(rows: Rows) -> Seats:
    """The seats of dense or packed rows."""
    sizes, device = rows.batch_sizes, rows.data.device
    if sizes is None:
        return Seats([rows.data.shape[0]] * rows.data.shape[1])
    count = rows.data.shape[0]
    step = torch.repeat_interleave(torch.arange(len(sizes)), sizes, output_size=count)
    sample = torch.arange(count) - (sizes.cumsum(0) - sizes)[step]
    lengths = torch.bincount(sample, minlength=int(sizes[0]))
    place = (lengths.cumsum(0) - lengths)[sample] + step
    return Seats(lengths.tolist(), step.to(device), sample.to(device), place.to(device))


def _entries(rows: Rows, seats: Seats, h: Tensor, c: Tensor) -> list[Entry]:
    """Each sample's own outputs and final states, as views."""
    if seats.place is None:
        outputs = rows.data.unbind(1)
    else:
        in_turn = torch.empty_like(rows.data).index_copy_(0, seats.place, rows.data)
        outputs = torch.split(in_turn, seats.lengths)
    return [Entry(*parts) for parts in zip(outputs, h.unbind(1), c.unbind(1), strict=True)]


def _pick(rows: Rows, seats: Seats, members: Sequence[int]) -> list[Tensor]:
    none = rows.data.new_empty(0, len(seats.lengths), 0)
    entries = _entries(rows, seats, none, none)
    return [entries[b].output for b in members]


def _joined(samples: Sequence[Tensor], like: Rows) -> Rows:
    """Samples, (len, F) each, as rows of the kind of `like`; packed ones by falling length."""
    if like.batch_sizes is None:
        return Rows(torch.stack(list(samples), 1))
    lengths = torch.tensor([len(x) for x in samples])
    sizes = (lengths > torch.arange(int(lengths[0]))[:, None]).sum(1)
    data = torch.cat(list(samples))
    rows = Rows(data, sizes)
    place = seats_of(rows).place
    assert place is not None
    data = data.index_select(0, place)
    return Rows(data, sizes, None if like.reverse is None else reverse_rows(data, sizes))


def _contents(rows: Rows, seats: Seats) -> list[tuple[int, int]]:
    """A 128-bit hash of each sample's rows: two multilinear hashes modulo 2**64.

    Each weighs both halves of every 8-byte word with fixed random numbers, first within a row, then
    over the rows of a sample (compare _bits.py, which says how well this tells inputs apart).
    """
    words = _words(rows.data.flatten(0, -2))
    place = _weights(words.shape[1], words.device)
    time = _weights(max(seats.lengths), words.device, salt=1)
    halves = []
    for seed in range(2):
        row = row_sums(words, *place[seed])
        low, high = time[seed]
        if seats.step is None or seats.sample is None:
            table = row.view(-1, len(seats.lengths))
            halves.append(_weighted(table, low[:, None], high[:, None]).sum(0))
        else:
            weighed = _weighted(row, low[seats.step], high[seats.step])
            total = row.new_zeros(len(seats.lengths))
            halves.append(total.index_add_(0, seats.sample, weighed))
    first, second = torch.stack(halves).tolist()
    return list(zip(first, second, strict=True))


def _words(rows: Tensor) -> Tensor:
    """The memory of each row as 8-byte words, padded with zeros."""
    memory = rows.detach().contiguous().view(torch.uint8)
    return F.pad(memory, (0, -memory.shape[1] % 8)).view(torch.int64)


def _weighted(words: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (words >> 32).mul_(high).addcmul_(words, low)


def _weights(count: int, device: torch.device, salt: int = 0) -> list[tuple[Tensor, Tensor]]:
    """For both hashes: odd random words for the whole and the upper half of `count` words.

    Places and times have words of their own (`salt`): with the same ones, the transpose of a
    sample would have its hash.
    """
    return [(low[:count], high[:count]) for low, high in _drawn(-(-count // 1024), device, salt)]


@functools.lru_cache(maxsize=64)
def _drawn(chunks: int, device: torch.device, salt: int) -> list[tuple[Tensor, Tensor]]:
    drawn = []
    for chunk in range(chunks):
        generator = torch.Generator().manual_seed(0xF00D + 2 * chunk + salt)
        memory = torch.randint(0, 256, (4, 8 * 1024), dtype=torch.uint8, generator=generator)
        drawn.append(memory.view(torch.int64) | 1)
    table = torch.cat(drawn, 1).to(device)
    return [(table[0], table[1]), (table[2], table[3])]


def _at_least(least: int, value: int, argument: str) -> int:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"`{argument}` must be of integers, got {value!r}")
    if value < least:
        raise ValueError(f"`{argument}` must be at least {least}, got {value}")
    return int(value)
