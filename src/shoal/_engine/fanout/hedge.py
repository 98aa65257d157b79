"""Statistics of hedges: how long children or their steps take, and how many more may start.

A hedged race starts further children, by the latencies of its children. A map with
``Each(hedge=...)`` starts second copies of late attempts, by the latencies of each step.

Invariants:
- In the long run, extra starts are at most the budget's share of the needed starts. A burst may
  also use the share of earlier needed starts, if it is unused, but at most that of ``WINDOW`` of
  them. So if every race is slow, and asks for more, the load grows by that share instead of
  doubling.
- Races and attempts that wait for the budget get it in the order in which they asked.

"Hedged requests" are Dean and Barroso's (The Tail at Scale, CACM 56(2), 2013): send the same
request elsewhere once it has taken longer than the 95th percentile, which adds about 5 % of load
and cuts off the tail. The budget is a token bucket like those that limit retries (Finagle's
RetryBudget, gRPC's retry throttling).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from math import ceil
from typing import Protocol, final

from shoal._graph.policy import Hedge

WINDOW = 1000
"""Latencies that are kept, and needed starts whose unused budget is kept.

Enough for a 99th percentile, and few enough for an insertion into a sorted list.
"""
ENOUGH = 20
"""Latencies from which a percentile is taken: with 20, the 95th is below the largest."""


class Waiting(Protocol):
    """A race or an attempt that waits for the budget to start one more."""

    def grant(self) -> None:
        """Take the start that the budget allows now."""
        ...


@final
class Latencies:
    """The latencies of the children of a race, or of one step of the children of a map."""

    __slots__ = ("_hedge", "_ordered", "known")

    def __init__(self, hedge: Hedge) -> None:
        """Begin without any."""
        self._hedge = hedge
        self.known: deque[float] = deque()
        """The last ``WINDOW``, oldest first."""
        self._ordered: list[float] = []  # the same latencies, sorted

    def learn(self, latency: float) -> None:
        """Add a latency; the oldest one drops out of the window."""
        if len(self.known) == WINDOW:
            del self._ordered[bisect_left(self._ordered, self.known.popleft())]
        self.known.append(latency)
        insort(self._ordered, latency)

    @property
    def delay(self) -> float:
        """Seconds after which a child counts as slow: the percentile, by nearest rank."""
        count = len(self._ordered)
        if count < ENOUGH:
            return self._hedge.initial
        return self._ordered[ceil(self._hedge.percentile / 100 * count) - 1]

    def __repr__(self) -> str:
        return f"{len(self.known)} latencies: delay {self.delay:g} s"


@final
class HedgeStatistics:
    """Latencies and budget of all hedges of one definition, in one runtime."""

    __slots__ = ("_by_step", "_tokens", "_waiting", "hedge")

    def __init__(self, hedge: Hedge) -> None:
        """Begin without latencies, and with a budget of one extra start.

        Args:
            hedge: The user's settings.
        """
        self.hedge: Hedge = hedge
        """The user's settings."""
        self._by_step: dict[str, Latencies] = {"": Latencies(hedge)}
        # One in advance, so that the first slow race is helped; see
        # test_one_is_granted_in_advance_then_a_share.
        self._tokens = 1.0  # extra starts that are allowed now; never negative
        self._waiting: dict[Waiting, None] = {}  # races that wait, in the order of their requests

    # -- latencies ------------------------------------------------------------------------------

    def of(self, step: str = "") -> Latencies:
        """Return the latencies of a step of the children of a map; without a step, of a race."""
        found = self._by_step.get(step)
        if found is None:
            found = self._by_step[step] = Latencies(self.hedge)
        return found

    def learn(self, latency: float) -> None:
        """Add the time that a child of a race took."""
        self.of().learn(latency)

    @property
    def delay(self) -> float:
        """Seconds after which a child of a race counts as slow."""
        return self.of().delay

    # -- the budget -----------------------------------------------------------------------------

    def earn(self) -> None:
        """Count a needed start, which allows a share of an extra one."""
        budget = self.hedge.budget
        # At least 1, or a small share would never add up to a start.
        self._add(budget, most=max(1.0, budget * WINDOW))

    def spend(self, race: Waiting) -> bool:
        """Spend one extra start, or return False and ``grant`` it to ``race`` in turn."""
        # 1e-9 less than 1: shares such as 0.1 don't add up to exactly 1.
        if self._tokens < 1 - 1e-9:
            self._waiting[race] = None
            return False
        self._tokens -= 1
        return True

    def leave(self, race: Waiting, unspent: int) -> None:
        """Remove ``race`` from the waiting ones, and take back its unused extra starts."""
        self._waiting.pop(race, None)
        if unspent:
            # Without a bound: they were below it when they were earned.
            self._add(unspent, most=self._tokens + unspent)

    def _add(self, tokens: float, most: float) -> None:
        self._tokens = min(most, self._tokens + tokens)
        while self._waiting and self._tokens >= 1 - 1e-9:
            self._tokens -= 1
            race = next(iter(self._waiting))
            del self._waiting[race]
            race.grant()

    def __repr__(self) -> str:
        seen = ", ".join(
            f"{step + ' ' if step else ''}{latencies!r}"
            for step, latencies in self._by_step.items()
            if latencies.known or len(self._by_step) == 1
        )
        return f"<HedgeStatistics of {seen}, budget {self._tokens:.2f}>"
