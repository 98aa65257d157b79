"""When the children of a fan-out start, where they don't start at once. Imports the group.

A source is put before the fan-out's own; the group knows nothing of it, and who doesn't stagger
pays nothing.

Invariants:
- A child starts only with a permit. One is granted when the delay since the last start is over, and
  one for each child that brought nothing: that failed, was refused, or was cancelled by hand.
- Where the delay is endless, one is granted when no child is in flight.
- An element is pulled only when there is a permit for its child.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import final

from anyio import CancelScope, Event

from ._group import Dropped, Feed, Group
from ._run import Run
from ._source import Elements

RETRY = 0.1
"""Seconds after which a start is tried again that the live budget had no permit for."""


@final
class Staggered:
    """The source of a fan-out whose children start one after the other."""

    def __init__(self, source: Elements, delay: float, clock: Callable[[], float]) -> None:
        """Let one child start.

        Args:
            source: Makes the children.
            delay: Seconds from one start to the next.
            clock: Tells the time.
        """
        self._source = source
        self._delay = delay
        self._clock = clock
        self._permits = 1
        self._due = inf  # when the next permit is granted
        self._news: Event | None = None  # set while it waits for that

    def hear(self, batch: Iterable[Run], in_flight: int) -> None:
        """Hear how children ended, while ``in_flight`` others have not."""
        self._permits += sum(map(_is_out, batch))
        if not self._permits and not in_flight and self._delay == inf:
            self._permits = 1
        self._tell()

    # -- what a group asks of its source --------------------------------------------------------

    def take(self) -> Run | Dropped | None:
        """Make the next child if it may start; see ``Source``."""
        if not self._permits:
            return None
        child = self._source.take()
        if isinstance(child, Run) and not child.reason:
            self._permits -= 1
            self._due = self._clock() + self._delay
            self._tell()
        return child

    def left(self) -> int:
        """Count what may start now."""
        return min(self._permits, self._source.left())

    def waiting(self) -> int:
        """Count what was pulled, or more than there is ever room for, so that nothing is."""
        waiting = self._source.waiting()
        return waiting if waiting < self._permits else sys.maxsize

    def dry(self) -> bool:
        """Tell whether there will be no more."""
        return self._source.dry()

    def feeds(self) -> Sequence[Feed]:
        """Return what must wait: for elements, and for the time to start."""
        return [*self._source.feeds(), *([] if self._delay == inf else [self])]

    async def feed(self, group: Group) -> None:
        """Grant a permit whenever it is due."""
        while not self.dry():
            now, until = self._clock(), self._due
            if now >= until and not self._permits:
                self._permits = 1
            if self._permits:
                group.engage()
                # Who has no room is engaged again by its own children's ends; but nobody is woken
                # when the live budget has a permit again.
                until = now + max(RETRY, self._delay) if group.lacks_permits else inf
            self._news = Event()
            with CancelScope(deadline=until):
                await self._news.wait()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()


def _is_out(child: Run) -> bool:
    """Tell whether a child has ended and brought nothing."""
    return child.status in ("failed", "cancelled") or not child.used
