"""When the children of a fan-out start, where they don't start at once. Imports the group.

A source is put before the fan-out's own; the group knows nothing of it, and who doesn't stagger
pays nothing.

Invariants:
- A child starts only with a permit. One is due when the delay since the last start is over, and
  one for each child that brought nothing: that failed, was refused, was cancelled by hand, or
  is halted.
- Where the delay is endless, one is due when no child is in flight.
- With a ``Hedge``, as many children are in flight as could decide the race: these starts are
  needed, and free. So a race falls back on its next child as it would without a hedge, and is never
  lost for want of a budget. Starts beyond that are extra ones, and take a permit from the budget.
- An element is pulled only when there is a permit for its child.
- No permit is taken while the source has no element. A source that is dry now may have more later:
  ``grow`` finds them. So the feed lasts as long as the group, which cancels it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import final

from anyio import CancelScope, Event

from shoal._engine.config import RunConfig
from shoal._engine.run import Run
from shoal._engine.services import Services
from shoal._events.identity import Key
from shoal._graph.policy import Hedge, Stagger

from .entries import AsyncFeed, Backpressure, Dropped
from .hedge import HedgeStatistics
from .source import ElementSource

RETRY = 0.1
"""Seconds after which a start is tried again that the live budget had no permit for."""


@final
class StaggeredSource:
    """The source of a fan-out whose children start one after the other."""

    def __init__(
        self,
        source: ElementSource,
        delay: float | HedgeStatistics,
        clock: Callable[[], float],
        needed: int = 1,
    ) -> None:
        """Let the first start.

        Args:
            source: Makes the children.
            delay: Seconds from one start to the next, or what a hedge has learned of them.
            clock: Tells the time.
            needed: Children that a hedge starts at once.
        """
        self._source = source
        self._learned = delay if isinstance(delay, HedgeStatistics) else None
        self._fixed = 0.0 if isinstance(delay, HedgeStatistics) else delay
        self._clock = clock
        self._needed = 1 if self._learned is None else needed  # permits that are free
        self._extra = 0  # permits from the budget
        self._due = inf  # when the next permit is
        self._news: Event | None = None  # set while it waits for that
        self._dropped = set[Run]()  # whose end has yet to be heard, and no permit was taken for

    @property
    def _delay(self) -> float:
        return self._fixed if self._learned is None else self._learned.delay

    @property
    def _permits(self) -> int:
        return self._needed + self._extra

    def _ask(self) -> None:
        """Take a permit, as one is due; or be granted it later."""
        if self._learned is None:
            self._needed += 1
        elif self._learned.spend(self):
            self._extra += 1

    def grant(self) -> None:
        """Hear that the budget allows one more start."""
        self._extra += 1
        self._tell()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()

    # -- what the fan-out tells -----------------------------------------------------------------

    def hear(self, batch: Iterable[Run], in_flight: int, lacking: int) -> None:
        """Count how children ended, and allow the starts that are due by that.

        Args:
            batch: They have ended, and their ends are committed.
            in_flight: Children that have started and not ended.
            lacking: Results that would decide the race; without one, 1.
        """
        due = 0
        for child in batch:
            if child.disposition.is_kept:
                continue  # it took no permit
            if child in self._dropped:
                self._dropped.remove(child)
            elif child.status in ("failed", "cancelled", "halted") or not child.used:
                due += 1
        if self._learned is not None:
            # See test_a_hedged_race_falls_back_without_a_budget: a race whose children all failed
            # must not wait for other races to earn its next start.
            free = max(0, lacking - in_flight - self._permits)
            self._needed += free
            due -= free
        elif not (due or self._permits or in_flight) and self._delay == inf:
            due = 1
        for _ in range(due):
            self._ask()
        self._tell()

    def learn(self, children: Iterable[Run]) -> None:
        """Learn how long children took, of those that say so.

        One that was cancelled because another had won took at least so long. It counts if it was
        one of the slow ones: else these, of which it is all about, would never be seen.
        """
        if self._learned is None:
            return
        for child in children:
            lost = child.status == "cancelled" and child.winner is not None
            if child.status == "succeeded" or (lost and child.elapsed > self._learned.delay):
                self._learned.learn(child.elapsed)

    def learn_first(self, leader: Run, others: Iterable[Run]) -> None:
        """Learn how long it took until the first item, where that decides; see ``learn``."""
        if self._learned is not None:
            delay = self._learned.delay
            self._learned.learn(leader.age)
            for other in others:
                if other is not leader and other.age > delay:
                    self._learned.learn(other.age)

    def close(self) -> None:
        """Give back what wasn't used."""
        if self._learned is not None:
            self._learned.leave(self, self._extra)
            self._extra = 0

    # -- what a group asks of its source --------------------------------------------------------

    def take(self) -> Run | Dropped | None:
        """Make the next child if it may start; see ``Source``."""
        if not self._permits and not self._source.is_next_done:
            return None
        child = self._source.take()
        if isinstance(child, Run) and child.is_live:
            self._start()
        return child

    def take_back(self, child: Run) -> None:
        """Have a child be the next that is taken, and its permit be free; see ``Source``."""
        self._needed += 1
        self._source.take_back(child)

    def _start(self) -> None:
        if not self._needed:
            self._extra -= 1
        else:
            self._needed -= 1
            if self._learned is not None:
                self._learned.earn()
        self._due = self._clock() + self._delay
        self._tell()

    def left(self) -> int:
        """Count what may start now."""
        return min(max(self._permits, self._source.is_next_done), self._source.left())

    def waiting(self) -> int:
        """Count what was pulled, or more than there is ever room for, so that nothing is."""
        waiting = self._source.waiting()
        return waiting if waiting < self._permits else sys.maxsize

    def dry(self) -> bool:
        """Tell whether there will be no more."""
        return self._source.dry()

    def drop(self, is_meant: Callable[[RunConfig, Key], bool]) -> Sequence[Run]:
        """Make children that are not to begin."""
        dropped = self._source.drop(is_meant)
        self._dropped.update(dropped)
        return dropped

    def feeds(self) -> Sequence[AsyncFeed]:
        """Return what must wait: for elements, and for the time to start."""
        return [*self._source.feeds(), *([] if self._fixed == inf else [self])]

    async def feed(self, group: Backpressure) -> None:
        """See to it that a child starts whenever it is due, until the group cancels this."""
        while True:
            now, until = self._clock(), self._due
            if self._source.dry():
                until = inf  # ``hear`` wakes it when a child has discovered more
            elif now >= until and not self._permits:
                self._due = until = inf  # until the next start
                self._ask()
            if self._permits:
                group.engage()
                # Who has no room is engaged again by its own children's ends; but nobody is woken
                # when the live budget has a permit again.
                until = now + max(RETRY, self._delay) if group.lacks_permits else inf
            self._news = Event()
            with CancelScope(deadline=until):
                await self._news.wait()


def stagger(
    how: Stagger | None, source: ElementSource, services: Services, definition: object, lacking: int
) -> StaggeredSource | None:
    """Put before ``source`` what says when children start; None if they start at once.

    Args:
        how: As the user said.
        source: Makes the children.
        services: What has been learned of latencies by then.
        definition: What all executions of the fan-out have in common.
        lacking: Results that are still needed.
    """
    if not isinstance(how, Hedge):
        return StaggeredSource(source, float(how), services.clock) if how else None
    experience = services.hedge_statistics.get(definition)
    if experience is None:
        experience = services.hedge_statistics[definition] = HedgeStatistics(how)
    return StaggeredSource(source, experience, services.clock, lacking)
