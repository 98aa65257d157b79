"""What hedged races learn: how long their children take, and how many more they may start.

Imports values only.

Invariants:
- In the long run extra starts are at most the budget's share of the starts that were needed.
  In any stretch there may be besides as many as were left unused before, but never more than the
  last ``WINDOW`` needed starts allow: so where every race is slow, and asks for more, the load
  grows by that share, and isn't doubled.
- Who has to wait for the budget gets it in turn.

"Hedged requests" are Dean and Barroso's (The Tail at Scale, CACM 56(2), 2013): send the same
request elsewhere once it has taken longer than the 95th percentile, which adds about 5 % of load
and cuts off the tail. The budget is a token bucket as those that limit retries (Finagle's
RetryBudget, gRPC's retry throttling).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from math import ceil
from typing import Protocol, final

from shoal._graph.policy import Hedge

WINDOW = 1000
"""Latencies that are remembered, and needed starts whose unused budget is."""
ENOUGH = 20
"""Latencies from which a percentile is taken."""


class Waiting(Protocol):
    """A race that is due to start one more child, as soon as the budget allows."""

    def grant(self) -> None:
        """Hear that it does."""
        ...


@final
class HedgeStatistics:
    """What a runtime has learned of one race's definition."""

    __slots__ = ("_hedge", "_latencies", "_ordered", "_tokens", "_waiting")

    def __init__(self, hedge: Hedge) -> None:
        """Know nothing; one extra start is granted in advance.

        Args:
            hedge: What the race's user said.
        """
        self._hedge = hedge
        self._latencies: deque[float] = deque()  # as they came
        self._ordered: list[float] = []
        self._tokens = 1.0
        self._waiting: dict[Waiting, None] = {}  # in turn

    # -- latencies ------------------------------------------------------------------------------

    def learn(self, latency: float) -> None:
        """Hear how long a child took."""
        if len(self._latencies) == WINDOW:
            del self._ordered[bisect_left(self._ordered, self._latencies.popleft())]
        self._latencies.append(latency)
        insort(self._ordered, latency)

    @property
    def delay(self) -> float:
        """Seconds after which a child is one of the slow ones: the percentile, by nearest rank."""
        count = len(self._ordered)
        if count < ENOUGH:
            return self._hedge.initial
        return self._ordered[ceil(self._hedge.percentile / 100 * count) - 1]

    # -- the budget -----------------------------------------------------------------------------

    def earn(self) -> None:
        """Hear of a start that was needed: a share of one more may be started."""
        budget = self._hedge.budget
        self._add(budget, most=max(1.0, budget * WINDOW))

    def spend(self, race: Waiting) -> bool:
        """Take the budget for one more start; if there is none, ``race`` is granted it in turn."""
        if self._tokens < 1 - 1e-9:
            self._waiting[race] = None
            return False
        self._tokens -= 1
        return True

    def leave(self, race: Waiting, unspent: int) -> None:
        """Hear that a race waits no more, and take back what it did not spend."""
        self._waiting.pop(race, None)
        if unspent:
            self._add(unspent, most=self._tokens + unspent)

    def _add(self, tokens: float, most: float) -> None:
        self._tokens = min(most, self._tokens + tokens)
        while self._waiting and self._tokens >= 1 - 1e-9:
            self._tokens -= 1
            race = next(iter(self._waiting))
            del self._waiting[race]
            race.grant()

    def __repr__(self) -> str:
        seen, budget = len(self._latencies), self._tokens
        return f"<Experience of {seen} latencies: delay {self.delay:g} s, budget {budget:.2f}>"
