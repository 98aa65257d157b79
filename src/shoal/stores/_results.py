"""Cache results of actions in memory, for one process.

A store that implements ``CachesResults`` caches them for all processes instead.

Invariants:
- Expired results are never returned, and are deleted in time: the cache is bounded by the number
  of results made within the longest time to live, or by a size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from math import inf
from typing import final

from shoal._state.state import Operation

SIZE = 1000
"""Results that a runtime caches for runs without a store: a bound that needs no setting, since
nothing else limits the cache of results that never expire."""


@final
class Results:
    """A cache of results in memory (``CachesResults``); with a size, the least recently used go."""

    __slots__ = ("_clock", "_due", "_kept", "_size")

    def __init__(self, clock: Callable[[], float], size: int | None = None) -> None:
        """Create an empty cache.

        Args:
            clock: The clock by which results expire.
            size: The largest number of results; None keeps all until they expire.
        """
        self._clock = clock
        self._size = size
        self._kept: OrderedDict[str, tuple[float, Sequence[Operation]]] = OrderedDict()
        # A heap of expiry times and keys. It may hold entries of results that are gone or replaced;
        # ``expire`` recognizes them by the time, and ``remember`` rebuilds the heap when more than
        # half of it is stale, so it stays in proportion to ``_kept``.
        self._due: list[tuple[float, str]] = []

    async def recall(self, key: str) -> Sequence[Operation] | None:
        """Return the operations cached under ``key``; see ``CachesResults``."""
        until, operations = self._kept.get(key, (-inf, ()))
        if until <= self._clock():
            return None
        self._kept.move_to_end(key)
        return operations

    async def remember(self, key: str, operations: Sequence[Operation], seconds: float) -> None:
        """Cache ``operations`` for that long; see ``CachesResults``."""
        self.expire()
        until = self._clock() + seconds
        self._kept[key] = until, operations
        self._kept.move_to_end(key)
        if self._size is not None and len(self._kept) > self._size:
            self._kept.popitem(last=False)
        if until < inf:
            heappush(self._due, (until, key))
        if len(self._due) > 2 * len(self._kept):
            self._due = [(until, key) for key, (until, _) in self._kept.items() if until < inf]
            heapify(self._due)

    def expire(self) -> None:
        """Delete the expired results."""
        now = self._clock()
        while self._due and self._due[0][0] <= now:
            until, key = heappop(self._due)
            if self._kept.get(key, (inf,))[0] == until:
                del self._kept[key]

    def copy(self) -> Results:
        """Return another cache with the same results."""
        other = Results(self._clock, self._size)
        other._kept, other._due = self._kept.copy(), self._due.copy()
        return other

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        return f"<Results, {len(self._kept)} of them>"
