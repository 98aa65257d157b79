"""What actions have come to, remembered. Imports operations.

A store that can keeps results for all processes (``CachesResults``); in memory, here.

Invariants:
- What has run out is never returned, and goes in time: what is kept is bounded by what was
  remembered in the longest time to live, or by a size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from math import inf
from typing import final

from shoal._state.state import Operation

SIZE = 1000
"""Results that a runtime remembers for runs without a store."""


@final
class Results:
    """Results in memory; a ``CachesResults``. Of more than a size, those used last stay."""

    __slots__ = ("_clock", "_due", "_kept", "_size")

    def __init__(self, clock: Callable[[], float], size: int | None = None) -> None:
        """Remember nothing yet.

        Args:
            clock: By which results run out.
            size: How many are kept at most; None: all, until they run out.
        """
        self._clock = clock
        self._size = size
        self._kept: OrderedDict[str, tuple[float, Sequence[Operation]]] = OrderedDict()
        self._due: list[tuple[float, str]] = []  # a heap; some are gone or replaced meanwhile

    async def recall(self, key: str) -> Sequence[Operation] | None:
        """Return what was remembered under ``key``; see ``CachesResults``."""
        until, operations = self._kept.get(key, (-inf, ()))
        if until <= self._clock():
            return None
        self._kept.move_to_end(key)
        return operations

    async def remember(self, key: str, operations: Sequence[Operation], seconds: float) -> None:
        """Remember ``operations`` for that long; see ``CachesResults``."""
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
        """Forget what has run out."""
        now = self._clock()
        while self._due and self._due[0][0] <= now:
            until, key = heappop(self._due)
            if self._kept.get(key, (inf,))[0] == until:
                del self._kept[key]

    def copy(self) -> Results:
        """Return others that remember the same."""
        other = Results(self._clock, self._size)
        other._kept, other._due = self._kept.copy(), self._due.copy()
        return other

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        return f"<Results, {len(self._kept)} of them>"
