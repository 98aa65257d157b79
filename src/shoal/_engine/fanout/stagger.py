"""Staggered starts: a source that delays the children of a fan-out.

It wraps the fan-out's own source. The group doesn't know of it, and a fan-out that doesn't stagger
pays nothing.

Invariants:
- A child starts only with a permit. A permit is due when the delay since the last start is over. A
  further one is due for each child without an accepted result: it failed, was refused, was
  cancelled by hand, or is halted.
- If the delay is endless, a permit is due when no child is in flight.
- With a ``Hedge``, as many children are in flight as could decide the race. These starts are needed
  and free, so a race falls back on its next child as it would without a hedge, and is never lost
  because the budget is spent. Further starts are extra ones, and take a permit from the budget.
- An element is pulled only when there is a permit for its child.
- No permit is taken while the source has no element. A source that is dry now may have more later,
  which ``grow`` finds, so the feed lasts until the group cancels it.
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
"""Seconds until a start is tried again for which the live budget had no permit.

Nothing wakes the feed when the budget has one again, so the feed polls.
"""


@final
class StaggeredSource:
    """A source that lets the children of another source start one after the other."""

    def __init__(
        self,
        source: ElementSource,
        delay: float | HedgeStatistics,
        clock: Callable[[], float],
        needed: int = 1,
    ) -> None:
        """Begin with permits for the first child or, with a hedge, the first ``needed`` ones.

        Args:
            source: Makes the children.
            delay: Seconds from one start to the next, or the statistics from which they follow.
            clock: Returns the time.
            needed: Children that a hedge starts at once.
        """
        # Taken from only with a permit, so that what it pulls can start.
        self._source = source
        self._learned = delay if isinstance(delay, HedgeStatistics) else None
        self._fixed = 0.0 if isinstance(delay, HedgeStatistics) else delay
        self._clock = clock
        self._needed = 1 if self._learned is None else needed  # free permits
        self._extra = 0  # permits from the budget, which ``close`` returns unused
        self._due = inf  # time of the next permit; infinite until the first start
        self._news: Event | None = None  # None until ``feed`` waits; a new one for each wait
        # Children that never took a permit, until ``on_batch`` is given their end: no start
        # replaces them.
        self._dropped = set[Run]()

    @property
    def _delay(self) -> float:
        return self._fixed if self._learned is None else self._learned.delay

    @property
    def _permits(self) -> int:
        return self._needed + self._extra

    def _ask(self) -> None:
        """Take a permit that is due; if the budget is spent, ``grant`` is called later."""
        if self._learned is None:
            self._needed += 1
        elif self._learned.spend(self):
            self._extra += 1

    def grant(self) -> None:
        """Take an extra permit that the budget allows now."""
        self._extra += 1
        self._notify()

    def _notify(self) -> None:
        if self._news is not None:
            self._news.set()

    # -- called by the step ---------------------------------------------------------------------

    def on_batch(self, batch: Iterable[Run], in_flight: int, lacking: int) -> None:
        """Allow the starts that are due because children have ended.

        Args:
            batch: Children whose ends are committed.
            in_flight: The number of children that have started and not ended.
            lacking: The number of results that would decide the race; 1 if it is no race.
        """
        due = 0
        for child in batch:
            if child.disposition.is_kept:
                continue  # applied by an earlier execution: it took no permit
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
        self._notify()

    def learn(self, children: Iterable[Run]) -> None:
        """Add the times that children took to the statistics.

        A child that was cancelled because another had won would have taken longer. It counts if it
        was slow already: otherwise the slow children, which hedges are for, would be left out.
        """
        if self._learned is None:
            return
        for child in children:
            lost = child.status == "cancelled" and child.winner is not None
            if child.status == "succeeded" or (lost and child.elapsed > self._learned.delay):
                self._learned.learn(child.elapsed)

    def learn_first(self, leader: Run, others: Iterable[Run]) -> None:
        """Add the time until the first item, if items decide; see ``learn`` for the others."""
        if self._learned is not None:
            delay = self._learned.delay
            self._learned.learn(leader.age)
            for other in others:
                if other is not leader and other.age > delay:
                    self._learned.learn(other.age)

    def close(self) -> None:
        """Return unused extra permits to the budget."""
        if self._learned is not None:
            # Also takes this race out of the queue, in which it may still wait.
            self._learned.leave(self, self._extra)

    # -- called by the group, as ``ChildSource`` says -------------------------------------------

    def take(self) -> Run | Dropped | None:
        """Make the next child if it may start; see ``ChildSource``."""
        if not self._permits and not self._source.is_next_done:
            return None
        child = self._source.take()
        if isinstance(child, Run) and child.is_live:
            self._start()
        return child

    def take_back(self, child: Run) -> None:
        """Return ``child``, which ``take`` makes again; its next permit is free."""
        self._needed += 1
        self._source.take_back(child)

    def _start(self) -> None:
        if not self._needed:
            self._extra -= 1
        else:
            # Free permits first, because those of the budget can be given back.
            self._needed -= 1
            if self._learned is not None:
                self._learned.earn()
        # From the actual start, which may be later than its permit was due.
        self._due = self._clock() + self._delay
        self._notify()

    def left(self) -> int:
        """Count the children that may start now."""
        return min(max(self._permits, self._source.is_next_done), self._source.left())

    def most(self) -> float:
        """Return the most children that can follow, with a permit or without."""
        return self._source.most()

    def waiting(self) -> int:
        """Count the elements that wait; without a permit, more than fit, so that none is pulled."""
        waiting = self._source.waiting()
        return waiting if waiting < self._permits else sys.maxsize

    def pulled(self) -> int:
        """Count the elements that were pulled and have no child yet."""
        return self._source.pulled()

    @property
    def kind(self) -> RunConfig | None:
        """What all children have in common; see ``ChildSource``."""
        return self._source.kind

    def dry(self) -> bool:
        """Whether there will be no more children, unless ``grow`` finds some."""
        return self._source.dry()

    def drop(self, is_meant: Callable[[RunConfig, Key], bool]) -> Sequence[Run]:
        """Make the children that ``is_meant``, which never begin."""
        dropped = self._source.drop(is_meant)
        self._dropped.update(dropped)
        return dropped

    def feeds(self) -> Sequence[AsyncFeed]:
        """Return the feeds of the source, and this one, which waits for the time of a start."""
        return [*self._source.feeds(), *([] if self._fixed == inf else [self])]

    async def feed(self, group: Backpressure) -> None:
        """Start a child whenever one is due, until the group cancels this feed."""
        while True:
            now, until = self._clock(), self._due
            if self._source.dry():
                until = inf  # ``on_batch`` wakes this when a child has discovered more
            elif now >= until and not self._permits:
                self._due = until = inf  # one permit for each delay: ``_start`` sets it again
                self._ask()
            if self._permits:
                group.engage()
                # If it lacks room, the group starts the child when another one ends. But nothing
                # wakes the group when the live budget has a permit again, so this polls.
                until = now + max(RETRY, self._delay) if group.lacks_permits else inf
            # No await since the permits were looked at, so no news is missed in between.
            self._news = Event()
            with CancelScope(deadline=until):
                await self._news.wait()


def stagger(
    how: Stagger | None, source: ElementSource, services: Services, definition: object, lacking: int
) -> StaggeredSource | None:
    """Wrap ``source`` so that its children start staggered; None if they start at once.

    Args:
        how: The user's setting.
        source: Makes the children.
        services: Keeps the statistics of hedges.
        definition: The fan-out's definition: its executions share the statistics.
        lacking: The number of results that are still needed.
    """
    if not isinstance(how, Hedge):
        return StaggeredSource(source, float(how), services.clock) if how else None
    # By the definition: all runs of the runtime learn from each other.
    experience = services.hedge_statistics.get(definition)
    if experience is None:
        experience = services.hedge_statistics[definition] = HedgeStatistics(how)
    return StaggeredSource(source, experience, services.clock, lacking)
