"""Meters: how much of a rate is used up, for one key. Imports nothing of ours.

Invariants:
- In any window of t seconds at most ``t / interval + burst`` units are let through, and, as long as
  somebody waits, as many as the rate allows.
- Nothing is used up before it is granted. What was granted in vain, or turned out to cost less, is
  given back as if it had never been taken; never more than that.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, cast, final

MARKS = 64
"""Marks that a meter keeps at most."""
CREDIT = 0.01
"""Seconds of a late wake-up that are not lost to a rate: timers are about as exact as that."""


@final
class Meter:
    """How much of a rate is used up, for one key.

    The generic cell rate algorithm in its virtual-scheduling form (ITU-T I.371, annex A): ``tat``
    is when the next unit would come if all came evenly; it may be ahead of now by what ``burst``
    allows. That is the latest of what follows from each unit that went, if all after it had come
    evenly. Some of that is kept, as *marks*: so that what is given back late makes room only where
    it still took some up, and no window holds more than is promised.
    """

    __slots__ = ("_added", "_marks", "burst", "interval")

    def __init__(self, interval: float, burst: float) -> None:
        """Let a unit through every ``interval`` seconds, and ``burst`` of them at once."""
        self.interval: float = interval
        self.burst: float = burst
        self._marks: list[tuple[float, float]] = []  # when it went, and what follows: ever earlier
        self._added: float = 0.0  # to what follows from all of them

    @property
    def tat(self) -> float:
        """When the next unit would come if all came evenly."""
        return self._marks[0][1] + self._added if self._marks else -math.inf

    def opens_at(self, cost: float) -> float:
        """Return when ``cost`` units may go."""
        return self.tat + (cost - self.burst) * self.interval

    def take(self, now: float, cost: float, credit: float = 0.0) -> None:
        """Let ``cost`` units go; they could have gone ``credit`` seconds earlier."""
        marks, start = self._marks, now - credit
        while marks and marks[-1][1] + self._added <= start:
            marks.pop()
        if not marks:
            self._added = 0.0
            marks.append((now, start))
        elif marks[-1][0] == now or len(marks) == MARKS:
            marks[-1] = (now, marks[-1][1])  # what is given back may then make room too late
        else:
            marks.append((now, start - self._added))
        self._added += cost * self.interval

    def correct(self, by: float, taken_at: float) -> None:
        """Count ``by`` units more as gone, or less if negative, of what was taken then.

        More of them count from now on: what nobody knew of couldn't wait.
        """
        shift = by * self.interval
        if shift >= 0:
            self._added += shift
            return
        kept: list[tuple[float, float]] = []
        for at, follows in reversed(self._marks):
            lower = follows + shift if at <= taken_at else follows
            if not kept or lower > kept[-1][1]:
                kept.append((at, lower))
        self._marks = kept[::-1]

    def give_back(self, cost: float, taken_at: float) -> None:
        """Count ``cost`` units as not gone that were taken then, and never used."""
        self.correct(-cost, taken_at)

    def go_on_from(self, other: object) -> None:
        """Count as gone what is gone by the meter that it replaces, if that is of its kind."""
        if isinstance(other, Meter):
            self._marks, self._added = other._marks, other._added

    def is_full(self, now: float) -> bool:
        """Tell whether it is as if nothing had ever gone."""
        return self.tat <= now


class ForeignRate(Protocol):
    """What else is taken for a rate: an ``aiolimiter.AsyncLimiter``, or what looks like one."""

    max_rate: float
    time_period: float

    def has_capacity(self, amount: float = 1) -> bool:
        """Tell whether so much could be acquired without waiting."""
        ...

    async def acquire(self, amount: float = 1) -> None:
        """Take so much."""
        ...


@final
class ForeignMeter:
    """The same for a limiter that is not ours, and may be used by others besides."""

    __slots__ = ("_rate",)

    def __init__(self, rate: ForeignRate) -> None:
        """Ask ``rate``."""
        self._rate = rate

    @property
    def burst(self) -> float:
        """How many units may go at once."""
        return self._rate.max_rate

    def opens_at(self, cost: float) -> float:
        """Return -inf if ``cost`` units may go now, else inf: it does not tell when."""
        return -math.inf if self._rate.has_capacity(cost) else math.inf

    @property
    def pause(self) -> float:
        """Seconds after which it is worth asking again."""
        return self._rate.time_period / self._rate.max_rate

    def take(self, now: float, cost: float, credit: float = 0.0) -> None:
        """Let ``cost`` units go, for which there is room."""
        taking = self._rate.acquire(cost)
        try:
            cast("Any", taking).send(None)
        except StopIteration:
            return
        cast("Any", taking).close()
        msg = f"{self._rate!r} said that it had room for {cost:g}, and then made it wait"
        raise RuntimeError(msg)

    def correct(self, by: float, taken_at: float) -> None:
        """Count ``by`` units more as gone, as far as there is room for them; none less."""
        room = by if by > 0 and self._rate.has_capacity(by) else 0.0
        if room:
            self.take(0.0, room)

    def give_back(self, cost: float, taken_at: float) -> None:
        """Do nothing: it takes nothing back."""

    def go_on_from(self, other: object) -> None:
        """Do nothing: it has counted all the time."""

    def is_full(self, now: float) -> bool:
        """Never: others may use it."""
        return False
