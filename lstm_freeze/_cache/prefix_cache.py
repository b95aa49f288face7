"""PrefixCache: the outputs of a frozen prefix, computed once for each sample and then looked up.

A sample's key is made of all that its output depends on: a 128-bit hash of its own input rows, its
length, the depth of the prefix, the fingerprint of its weights, dtypes and device. So a change
of any of these can only miss. (AutoFreeze, Liu et al. 2021, arXiv 2102.01386, caches the output of
a transformer's frozen prefix.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import as_integer
from .._hashing import tensor_hashes
from .._recurrence import Rows
from .._rnn import RunLayers
from .._warn import warn
from .samples import SampleRows, contents, copies, joined, rows_of, sample_rows


class CachedSample(NamedTuple):
    """One kept sample: its output (len, D * P) and the final states of all layers."""

    output: Tensor
    h: Tensor
    c: Tensor
    nbytes: int


class PrefixCache:
    """Keeps what the frozen prefix of a BiLSTM makes of each sample; least recently used go first.

    Set it on a BiLSTM (`lstm.prefix_cache = PrefixCache()`); None switches it off. It serves calls
    without `hx` whose input needs no gradient, and is bypassed in all others, under tracing, export
    and torch.func, and where dropout makes the prefix random. An `hx` whose part for the prefix is
    zeros counts as none on the CPU; on an accelerator, where looking would make the host wait, any
    `hx` bypasses the cache, with one warning. A sample is its own rows: of packed input and with
    `lengths`, padding plays no part. Results agree with the uncached ones to rounding. Pickles and
    copies of the model have an empty cache of the same settings. With DDP each rank has its own.

    Args:
        max_bytes: The memory the kept outputs may take, on the device of the input.
        keep_levels: Shallower depths (numbers of layers) whose outputs are kept on the way, for
            phases to come that train more layers. They take only room that is free, and leave
            first. `FreezeScheduler` adds those of its schedule during a fit.

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
        self.max_bytes = as_integer(max_bytes, "max_bytes", least=0)
        self.keep_levels = keep_levels
        self._reset()

    def _reset(self) -> None:
        self._entries: OrderedDict[Hashable, CachedSample] = OrderedDict()
        self._bytes = self._hits = self._misses = self._evictions = 0
        self._warned: set[str] = set()

    @property
    def keep_levels(self) -> tuple[int, ...]:
        """The shallower depths that are kept on the way, in rising order; may be set anew.

        >>> cache = PrefixCache()
        >>> cache.keep_levels = [2, 1]
        >>> cache.keep_levels
        (1, 2)
        """
        return self._keep_levels

    @keep_levels.setter
    def keep_levels(self, levels: Iterable[int]) -> None:
        if not isinstance(levels, Iterable):
            raise TypeError(f"`keep_levels` must be several integers, got {levels!r}")
        self._keep_levels = tuple(sorted({as_integer(x, "keep_levels", least=1) for x in levels}))

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
        self.max_bytes, self.keep_levels = state["max_bytes"], state["keep_levels"]
        self._reset()

    def warn_of_dropout(self) -> None:
        """Say once that dropout makes the prefix random, so that nothing can be kept."""
        self._warn_once(
            "dropout between frozen layers makes their output random; "
            'freeze(..., dropout="off") stops it'
        )

    def warn_of_states(self) -> None:
        """Say once that states on an accelerator are not read, so that the cache is bypassed."""
        self._warn_once(
            "`hx` is given, and to see whether it is zeros the host would wait for the accelerator "
            "at each call; leave `hx` out where it is zeros"
        )

    def _warn_once(self, why: str) -> None:
        if why not in self._warned:
            self._warned.add(why)
            warn(f"the prefix cache is bypassed: {why}")

    def serve(
        self,
        rows: Rows,
        prefix: Sequence[Sequence[Tensor]],
        form: tuple[Hashable, ...],
        run: RunLayers,
    ) -> tuple[Rows, Tensor, Tensor]:
        """The outputs of a prefix, looked up or computed.

        Args:
            rows: The input.
            prefix: The weights of each layer of the prefix, of at least one.
            form: All else that outputs depend on besides the sample.
            run: Runs a range of layers.

        Returns:
            Output rows, h (depth * D, B, P) and c (depth * D, B, H).
        """
        where, depth = sample_rows(rows), len(prefix)
        contexts = _contexts(prefix, form)
        keys = [
            [(context, length, content) for context in contexts]
            for length, content in zip(where.lengths, contents(rows, where), strict=True)
        ]
        found = [self._deepest(k) for k in keys]
        hits = sum(level == depth for level, _ in found)
        self._hits += hits
        self._misses += len(found) - hits
        if not any(level for level, _ in found):
            return self._compute(rows, where, [], keys, 0, depth, run)
        ready: dict[int, tuple[Tensor, ...]] = {
            b: e[:3] for b, (level, e) in enumerate(found) if e is not None and level == depth
        }
        for level in sorted({level for level, _ in found} - {depth}):
            members = [b for b, (at, _) in enumerate(found) if at == level]
            prior = [entry for b in members if (entry := found[b][1]) is not None]
            every = [] if level else copies(rows.data, where)
            inputs = [e.output for e in prior] if level else [every[b]() for b in members]
            some, places = rows_of(inputs, rows)
            their_keys = [keys[b] for b in members]
            output, h, c = self._compute(some, places, prior, their_keys, level, depth, run)
            parts = zip(copies(output.data, places), h.unbind(1), c.unbind(1), strict=True)
            ready |= {b: (x(), *states) for b, (x, *states) in zip(members, parts, strict=True)}
        outputs, *finals = zip(*(ready[b] for b in range(len(found))), strict=True)
        h, c = (torch.stack(states, 1) for states in finals)
        return rows.with_data(joined(outputs, where)), h, c

    def _deepest(self, keys: Sequence[Hashable]) -> tuple[int, CachedSample | None]:
        """The deepest level at which a sample is kept, and what is kept there; else 0 and None."""
        for level in range(len(keys), 0, -1):
            if (entry := self._entries.get(keys[level - 1])) is not None:
                self._entries.move_to_end(keys[level - 1])
                return level, entry
        return 0, None

    def _compute(
        self,
        rows: Rows,
        where: SampleRows,
        prior: Sequence[CachedSample],
        keys: Sequence[Sequence[Hashable]],
        level: int,
        depth: int,
        run: RunLayers,
    ) -> tuple[Rows, Tensor, Tensor]:
        """Run the layers from a level up to the depth, and keep the samples where asked to."""
        h = [torch.stack([e.h for e in prior], 1)] if level else []
        c = [torch.stack([e.c for e in prior], 1)] if level else []
        for stop in (*(x for x in self.keep_levels if level < x < depth), depth):
            rows, finals = run(rows, level, stop)
            h = [torch.cat([*h, *(state for state, _ in finals)])]
            c = [torch.cat([*c, *(state for _, state in finals)])]
            self._keep([k[stop - 1] for k in keys], rows, where, h[0], c[0], passing=stop < depth)
            level = stop
        return rows, h[0], c[0]

    def _keep(
        self,
        keys: Sequence[Hashable],
        rows: Rows,
        where: SampleRows,
        h: Tensor,
        c: Tensor,
        passing: bool,
    ) -> None:
        """Keep samples; those kept on the way (`passing`) evict none and are evicted first."""
        row = rows.data.shape[-1] * rows.data.element_size()
        states = (h.nbytes + c.nbytes) // len(keys)
        # A tensor made in inference mode cannot be used in training; a copy made outside of it can.
        with torch.inference_mode(False), torch.no_grad():
            outputs = copies(rows.data, where)
            samples = zip(keys, where.lengths, outputs, h.unbind(1), c.unbind(1), strict=True)
            for key, length, output, h_n, c_n in samples:
                nbytes = length * row + states
                if key in self._entries or not self._make_room(nbytes, passing):
                    continue
                self._entries[key] = CachedSample(output(), h_n.clone(), c_n.clone(), nbytes)
                self._entries.move_to_end(key, last=not passing)
                self._bytes += nbytes

    def _make_room(self, nbytes: int, passing: bool) -> bool:
        """Whether there is room, after evicting the least recently used where that is allowed."""
        if nbytes > self.max_bytes - (self._bytes if passing else 0):
            return False
        while self._bytes + nbytes > self.max_bytes:
            self._bytes -= self._entries.popitem(last=False)[1].nbytes
            self._evictions += 1
        return True


def _contexts(
    prefix: Sequence[Sequence[Tensor]], form: tuple[Hashable, ...]
) -> list[tuple[Hashable, ...]]:
    """For each depth up to that of the prefix, all but the sample that its outputs depend on."""
    prints = iter(tensor_hashes([w for weights in prefix for w in weights]))
    contexts, known = [], form
    for weights in prefix:
        known = (*known, *(next(prints) for _ in weights))
        contexts.append(known)
    return contexts
