"""Meters: how much of a rate is used up, for one key.

Invariants:
- In any window of t seconds at most ``t / interval + burst`` units pass. While requests wait, the
  full rate passes.
- Units are charged when a request is granted, not before. Units that were charged too much, or for
  an attempt that never ran, are given back as if they had never been taken, and never more than
  that.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, cast, final

MARKS = 64
"""The most marks that a meter keeps.

It bounds the memory and the time of a correction. A meter needs more only if so many units pass in
one burst; then units given back late make room too late, never too early. See
test_a_meter_remembers_only_so_much_and_then_gives_back_too_late.
"""
CREDIT = 0.01
"""Seconds by which a timer may be late without costing a rate anything.

Timers are about as exact as that. See
test_late_timers_cost_a_rate_nothing_up_to_a_hundredth_of_a_second.
"""


@final
class Meter:
    """Measures how much of a rate is used up, for one key.

    The generic cell rate algorithm in its virtual-scheduling form (ITU-T I.371, annex A): ``tat``,
    the theoretical arrival time, is when the next unit would come if all came evenly. It may be
    ahead of now by as much as ``burst`` allows.

    ``tat`` is the maximum of the times that follow from each unit that has passed, if all units
    after it had come evenly. The meter keeps some of these times as *marks*. So units that are
    given back late make room only if they still took up some, and no window holds more units than
    promised.
    """

    __slots__ = ("_added", "_marks", "burst", "interval")

    def __init__(self, interval: float, burst: float) -> None:
        """Create a meter that passes a unit every ``interval`` seconds, ``burst`` at once."""
        # Neither changes: for other numbers `PartGates.change` makes a new meter, which continues
        # from this one.
        self.interval: float = interval
        self.burst: float = burst
        # Pairs of when a unit passed and the time that follows from it, less `_added`. Ordered by
        # the former; the latter only decreases, so the first mark has the maximum.
        self._marks: list[tuple[float, float]] = []
        # Added to the time of every mark: a charge is one addition, however many marks there are.
        self._added: float = 0.0

    @property
    def tat(self) -> float:
        """When the next unit would come if all came evenly; -inf if none has passed."""
        # Times only decrease along the marks, so the first one has the maximum.
        return self._marks[0][1] + self._added if self._marks else -math.inf

    def opens_at(self, cost: float) -> float:
        """Return when ``cost`` units may pass."""
        # As `tat`, without a call for each start.
        marks = self._marks
        tat = marks[0][1] + self._added if marks else -math.inf
        return tat + (cost - self.burst) * self.interval

    def take(self, now: float, cost: float, credit: float = 0.0) -> None:
        """Charge ``cost`` units that pass now, and could have passed ``credit`` seconds earlier."""
        marks, start = self._marks, now - credit
        # Marks in the past no longer count: the rate has recovered from those units.
        while marks and marks[-1][1] + self._added <= start:
            marks.pop()
        if not marks:
            self._added = 0.0  # nothing refers to it; else rounding errors would add up
            marks.append((now, start))
        elif marks[-1][0] == now or len(marks) == MARKS:
            # Merged with the last mark, at the later of both times: units given back then lower
            # fewer marks than they could.
            marks[-1] = (now, marks[-1][1])
        else:
            marks.append((now, start - self._added))
        self._added += cost * self.interval

    def correct(self, by: float, taken_at: float) -> None:
        """Charge ``by`` units more, or fewer if negative, for units taken at ``taken_at``.

        Additional units count from now on, because units that passed since could not wait for them.
        """
        shift = by * self.interval
        if shift >= 0:
            self._added += shift
            return
        # Only marks up to then contain the units. Marks after that stay, and one that is now above
        # an earlier mark replaces it, so that the times still decrease.
        kept: list[tuple[float, float]] = []
        for at, follows in reversed(self._marks):
            lower = follows + shift if at <= taken_at else follows
            if not kept or lower > kept[-1][1]:
                kept.append((at, lower))
        self._marks = kept[::-1]

    def give_back(self, cost: float, taken_at: float) -> None:
        """Give back ``cost`` units that were taken at ``taken_at`` and never used."""
        self.correct(-cost, taken_at)

    def learn(self, now: float, units: float, reset_in: float | None) -> None:
        """Pass no more at once than the server says are left; more than before it never passes.

        Args:
            now: The time.
            units: How many the server says are left.
            reset_in: Seconds after which the server has all of them again.
        """
        lacking = (self.burst - units) * self.interval
        if reset_in is not None:
            lacking = min(lacking, reset_in)
        # What was taken here already is part of what the server lacks, and isn't charged twice.
        extra = now + lacking - max(self.tat, now)
        if extra > 0:
            self.take(now, extra / self.interval)

    def continue_from(self, other: object) -> None:
        """Continue with the units taken from the meter that this one replaces, if of this class."""
        if isinstance(other, Meter):
            self._marks, self._added = other._marks, other._added

    def is_full(self, now: float) -> bool:
        """Return whether a new meter would behave the same."""
        return self.tat <= now


class ForeignRate(Protocol):
    """A limiter of another library: an ``aiolimiter.AsyncLimiter``, or one like it."""

    max_rate: float
    time_period: float

    def has_capacity(self, amount: float = 1) -> bool:
        """Return whether ``amount`` could be acquired without waiting."""
        ...

    async def acquire(self, amount: float = 1) -> None:
        """Acquire ``amount``, waiting until there is room."""
        ...


@final
class ForeignMeter:
    """Adapts a limiter of another library, which other code may use as well."""

    __slots__ = ("_rate",)

    def __init__(self, rate: ForeignRate) -> None:
        self._rate = rate

    @property
    def burst(self) -> float:
        """How many units may pass at once."""
        return self._rate.max_rate

    def opens_at(self, cost: float) -> float:
        """Return -inf if ``cost`` units may pass now, else inf: the limiter doesn't say when."""
        return -math.inf if self._rate.has_capacity(cost) else math.inf

    @property
    def pause(self) -> float:
        """Seconds after which to look again: the time of one unit."""
        return self._rate.time_period / self._rate.max_rate

    def take(self, now: float, cost: float, credit: float = 0.0) -> None:
        """Acquire ``cost`` units, for which there is room."""
        # The coroutine is driven by hand, since the scheduler grants without awaiting. It returns
        # at the first step because there is room; one that suspends breaks its promise.
        taking = self._rate.acquire(cost)
        try:
            cast("Any", taking).send(None)
        except StopIteration:
            return
        cast("Any", taking).close()
        msg = (
            f"{self._rate!r}: has_capacity({cost:g}) returned True, but acquire({cost:g}) had to "
            f"wait"
        )
        raise RuntimeError(msg)

    def correct(self, by: float, taken_at: float) -> None:
        """Acquire ``by`` more units if there is room; the limiter takes none back."""
        # All or nothing, because `acquire` would wait for the rest, and nothing here can wait.
        if by > 0 and self._rate.has_capacity(by):
            self.take(0.0, by)

    def give_back(self, cost: float, taken_at: float) -> None:
        """Do nothing: the limiter takes no units back."""

    def continue_from(self, other: object) -> None:
        """Do nothing: the limiter has counted all along."""

    def is_full(self, now: float) -> bool:
        """Return False: other code may use the limiter."""
        return False
