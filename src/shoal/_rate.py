"""Limits and rates: what a user asks for, as values, and the arithmetic of rates. Imports errors.

Invariants:
- In any window of t seconds at most ``k * t / per + burst`` units are let through, and, as long as
  somebody waits, as many as the rate allows.
- Nothing is used up before it is granted. What was granted in vain, or turned out to cost less, is
  given back as if it had never been taken; never more than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast, final

from ._errors import DefinitionError, RetryLater, kind_of
from ._functions import require_plain

DEFAULT_IN_FLIGHT = 100
"""Children in flight in a fan-out that names no limit."""
OVERLOAD = (429, 503, 529)
"""HTTP statuses by which servers say that they are asked for too much."""
MARKS = 64
"""Marks that a meter keeps at most."""
CREDIT = 0.01
"""Seconds of a late wake-up that are not lost to a rate: timers are about as exact as that."""


@final
@dataclass(frozen=True, slots=True)
class Rate:
    """So many in so much time: ``Rate(5)`` is 5 a second, ``Rate(90_000, per=60)`` a minute.

    Starts are spaced evenly; ``burst`` lets so many go at once after a pause. In any window of
    ``t`` seconds at most ``k * t / per + burst`` start.

    Args:
        k: How many: children, attempts or, with ``cost=``, units of that.
        per: In how many seconds.
        burst: How many may start at once; by default 1 or, with ``cost=``, ``k``.

    Raises:
        DefinitionError: One of them is no number above 0.

    Examples:
        >>> Rate(5, per=1.0, burst=2)
        Rate(5, per=1.0, burst=2)
    """

    k: float
    per: float = 1.0
    burst: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no rate."""
        given = {"k": self.k, "per": self.per, "burst": 1 if self.burst is None else self.burst}
        for name, value in given.items():
            if (
                not isinstance(value, int | float)
                or isinstance(value, bool)
                or not 0 < value < math.inf
            ):
                msg = f"Rate({name}=...) takes a number above 0, not {value!r}"
                raise DefinitionError(msg)

    def __repr__(self) -> str:
        burst = "" if self.burst is None else f", burst={self.burst}"
        return f"Rate({self.k}, per={self.per}{burst})"


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
class Ended(NamedTuple):
    """How an attempt ended that held a slot, for what adapts the number of slots."""

    error: BaseException | None
    """What it raised; None if nothing."""
    seconds: float
    """How long it ran."""
    started_at: float
    """When it started, by the runtime's clock."""
    now: float
    """When it ended."""
    in_use: int
    """Slots in use while it ran, itself included."""


class Adaptive(Protocol):
    """Decides how many slots there are, from how attempts end."""

    def after(self, n: float, changed_at: float, ended: Ended) -> float:
        """Return the number of slots after an attempt has ended.

        Args:
            n: The number before; it may have a fraction, which grants nothing yet.
            changed_at: When the number was last lowered.
            ended: How the attempt ended.
        """
        ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AIMD:
    """Additive increase, multiplicative decrease: how TCP finds out what a network can bear.

    Each attempt that ends well while all slots are in use adds a share of a slot, so that a full
    round of them adds ``increase``. One that shows overload multiplies the number by ``decrease``,
    once for all that were under way then (V. Jacobson, Congestion Avoidance and Control, 1988).

    Args:
        least: The fewest slots.
        most: The most; None: as many as it comes to.
        increase: Slots added by a round that went well.
        decrease: What overload multiplies their number by, above 0 and below 1.
        slow: Seconds that show overload; None: no time does.
        overload: A plain function of an exception: whether it shows overload. By default a timeout,
            ``RetryLater``, and what carries an HTTP status of 429, 503 or 529 do.

    Raises:
        DefinitionError: One of them is out of range.
    """

    least: int = 1
    most: int | None = None
    increase: float = 1.0
    decrease: float = 0.5
    slow: float | None = None
    overload: Callable[[BaseException], bool] | None = None

    def __post_init__(self) -> None:
        """Refuse what could not work."""
        check_count("AIMD(least=...)", self.least)
        if self.most is not None:
            check_count("AIMD(most=...)", self.most)
        if self.most is not None and self.most < self.least:
            msg = f"AIMD(least={self.least}, most={self.most}) leaves nothing in between"
            raise DefinitionError(msg)
        if not 0 < self.decrease < 1 or not self.increase > 0:
            msg = (
                f"AIMD takes an increase above 0 and a decrease between 0 and 1, "
                f"not {self.increase!r} and {self.decrease!r}"
            )
            raise DefinitionError(msg)

    def after(self, n: float, changed_at: float, ended: Ended) -> float:
        """Return the number of slots after an attempt has ended; see ``Adaptive``."""
        slow = self.slow is not None and ended.seconds > self.slow
        shows = is_overload if self.overload is None else self.overload
        if slow or (ended.error is not None and shows(ended.error)):
            lower = n if ended.started_at < changed_at else n * self.decrease
            return max(float(self.least), lower)
        if ended.error is None and ended.in_use >= int(n):
            n += self.increase / n
        return n if self.most is None else min(n, float(self.most))


def is_overload(error: BaseException) -> bool:
    """Tell whether an exception says that somebody is asked for too much."""
    if isinstance(error, TimeoutError | RetryLater):
        return True
    response: object = getattr(error, "response", error)
    status: object = getattr(response, "status_code", getattr(response, "status", None))
    return status in OVERLOAD


@final
@dataclass(frozen=True, slots=True)
class Part:
    """One of the limits that ``&`` joins."""

    n: int | None
    rate: Rate | ForeignRate | None
    by: Callable[[Any], Hashable] | None
    cost: Callable[[Any], float] | None
    adapt: Adaptive | None = None

    def meter(self) -> Meter | ForeignMeter | None:
        """Make what measures its rate, for one key; None if there is no rate."""
        rate = self.rate
        if rate is None:
            return None
        if not isinstance(rate, Rate):
            return ForeignMeter(rate)
        burst = rate.burst
        if burst is None:
            burst = 1 if self.cost is None else rate.k
        return Meter(rate.per / rate.k, burst)

    def __repr__(self) -> str:
        given = [] if self.n is None else [str(self.n)]
        for name, value in (("rate", self.rate), ("by", self.by), ("cost", self.cost)):
            if value is not None:
                given.append(f"{name}={getattr(value, '__qualname__', repr(value))}")
        return f"Limits({', '.join(given)})"


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

    def go_on_from(self, other: Meter) -> None:
        """Count as gone what is gone by ``other``, which it replaces."""
        self._marks, self._added = other._marks, other._added

    def is_full(self, now: float) -> bool:
        """Tell whether it is as if nothing had ever gone."""
        return self.tat <= now


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

    def is_full(self, now: float) -> bool:
        """Never: others may use it."""
        return False


def check_count(what: str, value: object) -> None:
    """Refuse what is no whole number of at least 1.

    Raises:
        DefinitionError: Naming ``what`` it was given as.
    """
    if type(value) is not int or value < 1:
        msg = f"{what} takes a whole number of at least 1, not {value!r}"
        raise DefinitionError(msg)


def check_rate(rate: object) -> None:
    """Refuse what is no rate.

    Raises:
        DefinitionError: It is neither a ``Rate`` nor works like an ``aiolimiter.AsyncLimiter``.
    """
    if rate is None or isinstance(rate, Rate):
        return
    if not all(
        hasattr(rate, name) for name in ("max_rate", "time_period", "has_capacity", "acquire")
    ):
        hint = f": Rate({rate!r})" if isinstance(rate, int | float) else ""
        msg = (
            f"Limits(rate=...) takes a Rate or an aiolimiter.AsyncLimiter, not "
            f"{kind_of(rate)}{hint}"
        )
        raise DefinitionError(msg)


@final
@dataclass(frozen=True, slots=True, init=False)
class Limits:
    """How much may go on: so many at once, so many per second, each also per key.

    Where it stands says what it counts and who shares it. On a *fan-out* ``n`` is its children in
    flight, for each execution of the step; a child is in flight from its start until its result is
    part of the parent's saved state, so a slow reducer or store slows the source down. The rates
    and per-key parts of a fan-out are shared by all its executions in a runtime, and charged when a
    child starts. On an *action*: its running attempts; on an *application* or a *runtime*: the
    running attempts of all actions; these are shared by all runs of a runtime.

    Limits are joined with ``&``: ``Limits(20) & Limits(rate=Rate(5), by=host_of)`` is 20 at once,
    and 5 a second for each host. What starts, starts at the moment in which all that applies to it
    has room; while it waits, it takes up none of it, and a key that must wait delays no other. Only
    an attempt that runs holds a slot: no fan-out that waits for its children, and no action while
    it is inside ``context.fan_out``; so recursion under a limit of 1 can't lock itself up.

    Args:
        n: How many at once; at least 1.
        rate: How many per time: a ``Rate`` or, on asyncio, an ``aiolimiter.AsyncLimiter``.
        by: A plain function of the state that something would start from; it returns a key, and
            ``n`` and ``rate`` count for each key by itself. Any hashable.
        cost: A plain function of that state: how many units of the rate it takes; 1 by default.
            ``context.charge(actual)`` corrects it afterwards.
        adapt: How ``n`` follows from how attempts end: ``AIMD()``, or an object of yours. ``n`` is
            then where it begins.

    Raises:
        DefinitionError: Nothing is limited, or one of them is not what it must be.

    Examples:
        >>> Limits(20) & Limits(rate=Rate(5, per=1.0))
        Limits(20) & Limits(rate=Rate(5, per=1.0))
    """

    parts: tuple[Part, ...]
    """What ``&`` has joined."""

    def __init__(
        self,
        n: int | None = None,
        *,
        rate: Rate | ForeignRate | None = None,
        by: Callable[[Any], Hashable] | None = None,
        cost: Callable[[Any], float] | None = None,
        adapt: Adaptive | None = None,
    ) -> None:
        """Refuse what limits nothing; see the class."""
        if n is not None:
            check_count("Limits(n)", n)
        check_rate(rate)
        for name, function in (("by", by), ("cost", cost)):
            if function is not None:
                require_plain(function, f"Limits({name}=...)")
        if n is None and rate is None:
            msg = "Limits() limits nothing: give n, how many at once, or rate=Rate(...), or both"
            raise DefinitionError(msg)
        if cost is not None and rate is None:
            msg = "Limits(cost=...) is what a rate is charged; give rate=Rate(...) too"
            raise DefinitionError(msg)
        if adapt is not None and n is None:
            msg = "Limits(adapt=...) changes n; give the n that it begins with"
            raise DefinitionError(msg)
        object.__setattr__(self, "parts", (Part(n, rate, by, cost, adapt),))

    def __and__(self, other: Limits) -> Limits:
        """Join two limits: what starts needs room in both."""
        if not isinstance(other, Limits):
            return NotImplemented
        return _limits_of((*self.parts, *other.parts))

    @property
    def n(self) -> int | None:
        """How many at once in all; None: any number, as far as these limits go."""
        return min((part.n for part in self.parts if part.n and part.by is None), default=None)

    @property
    def in_flight(self) -> int:
        """How many children of a fan-out are in flight in each of its executions."""
        return DEFAULT_IN_FLIGHT if self.n is None else self.n

    @property
    def adapts_in_flight(self) -> Adaptive | None:
        """What adapts that number."""
        own = [part for part in self.parts if part.n == self.n and part.by is None]
        return own[0].adapt if own and self.n is not None else None

    @property
    def shared(self) -> Limits | None:
        """What all executions of a fan-out have in common: its rates and per-key parts."""
        parts = tuple(
            part if part.by is not None else Part(None, part.rate, None, part.cost)
            for part in self.parts
            if part.by is not None or part.rate is not None
        )
        return _limits_of(parts) if parts else None

    def __repr__(self) -> str:
        return " & ".join(map(repr, self.parts)) or "the default limits"


def _limits_of(parts: tuple[Part, ...]) -> Limits:
    limits = Limits.__new__(Limits)
    object.__setattr__(limits, "parts", parts)
    return limits


DEFAULT_LIMITS: Limits = _limits_of(())
"""Those of a fan-out that was given none: so many in flight, and no more than its tree may have."""
