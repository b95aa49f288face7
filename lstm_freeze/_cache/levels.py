"""The levels of frozen prefixes that a schedule will need, and having prefix caches keep them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

from torch import nn

from .._model import Tree
from .._names import lowest_layer
from .prefix_cache import PrefixCache

Trains = Callable[[nn.Parameter], bool]
"""Whether a parameter trains in a phase."""


def levels_ahead(depths: Sequence[int]) -> set[int]:
    """The levels worth keeping now, from the prefix depths of the present and the later phases.

    The prefix of a later phase is worth keeping if it is shallower than the present one, and if no
    phase until then trains a layer of it.

    >>> levels_ahead([3, 2, 1, 0])
    {1, 2}
    >>> levels_ahead([3, 0, 1, 2])
    set()
    >>> levels_ahead([2, 3, 1, 2])
    {1}
    """
    found, least = set(), depths[0]
    for depth in depths[1:]:
        if 0 < depth < least:
            found.add(depth)
        least = min(least, depth)
    return found


class PrefixLevels:
    """The prefix caches of a module's RNNs, and what a schedule has added to their `keep_levels`.

    Attributes:
        tree: The module.
        phases: For each phase, a function that says whether a parameter trains in it.
    """

    def __init__(self, tree: Tree, phases: Sequence[Trains]) -> None:
        """Add nothing yet."""
        self.tree = tree
        self.phases = tuple(phases)
        self._added: WeakKeyDictionary[PrefixCache, set[int]] = WeakKeyDictionary()

    @property
    def caches(self) -> dict[str, PrefixCache]:
        """Path of the RNN -> cache, each cache once."""
        found = {path: getattr(rnn, "prefix_cache", None) for path, rnn in self.tree.rnns.items()}
        first = {id(cache): path for path, cache in reversed(found.items())}
        return {
            path: cache
            for path, cache in found.items()
            if isinstance(cache, PrefixCache) and first[id(cache)] == path
        }

    def keep_ahead(self, index: int) -> None:
        """Have each cache keep what the phases after this one will need, beside its own levels."""
        self.take_back()
        for path, rnn in self.tree.rnns.items():
            cache = getattr(rnn, "prefix_cache", None)
            if isinstance(cache, PrefixCache):
                needed = levels_ahead([self._depth(path, trains) for trains in self.phases[index:]])
                added = needed - set(cache.keep_levels)
                cache.keep_levels = added.union(cache.keep_levels)
                self._added[cache] = self._added.get(cache, set()) | added

    def take_back(self) -> None:
        """Take the added levels out of the caches again."""
        for cache, levels in self._added.items():
            cache.keep_levels = set(cache.keep_levels) - levels
        self._added.clear()

    def _depth(self, path: str, trains: Trains) -> int:
        """How many of the lowest layers of an RNN have nothing that trains."""
        places = self.tree.places(path)
        layers = {place.layer for place in places.values()}
        trained = (place for n, place in places.items() if trains(self.tree.parameters[n]))
        return lowest_layer(trained, default=len(layers))
