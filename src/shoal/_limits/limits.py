"""Limits and rates: what a user asks for, as values. Imports meters, and what shares a rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, final

from shoal._errors.exceptions import DefinitionError, RetryLater, brief, kind_of
from shoal._state.functions import require_plain
from shoal._state.state import refuse_awaitable

from .meters import ForeignMeter, ForeignRate, Meter
from .shared_rates import RateBackend, SharedMeter, key_of

DEFAULT_IN_FLIGHT = 100
"""Children in flight in a fan-out that names no limit."""
OVERLOAD = (429, 503, 529)
"""HTTP statuses by which servers say that they are asked for too much."""


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
            check_number(f"Rate({name}=...)", value)

    def __repr__(self) -> str:
        burst = "" if self.burst is None else f", burst={self.burst}"
        return f"Rate({self.k}, per={self.per}{burst})"


@final
@dataclass(frozen=True, slots=True, eq=False)
class SharedRate:
    """A rate that several processes share, through a backend that all of them can reach.

    Whatever stands on it in any of them takes of the same rate: of one for each key, with ``by=``.
    In any window of ``t`` seconds at most ``k * t / per + burst`` start in all processes together,
    at the full rate while somebody waits. For that each start is counted as if it came 20 ms after
    its turn, by which time it has, in a process that isn't stuck. The burst pays for it: it is
    smaller by what goes in 20 ms. One too small for that (``1`` is) pays what it has above 1, or
    else 2 % of the rate; there, starts that are later than that pays for exceed the above, by what
    goes in the time they are late.

    What a process was granted and doesn't use, since what waited was cancelled or found another
    limit shut, is used by others in it or given back. Keys paused by ``RetryLater`` are paused in
    this process alone.

    Where the backend fails or doesn't answer, it is asked again until ``patience`` ends. Then what
    waits fails with ``RateUnavailable``: the attempt, which has not begun, so that no ``retry=`` of
    its action applies; or the step whose children wait to start. Or else the process goes on
    ``alone``, until the backend answers.

    Args:
        rate: The rate. Give the same in all processes.
        name: What the processes know it by; whatever has the same name at the backend, shares.
        backend: Keeps it: ``shoal.rates.redis.RedisRates(url)``, say, or one of yours.
        alone: The rate of this process by itself, for each key, while the backend can't be reached;
            None: what waits fails.
        patience: Seconds for which the backend is asked in vain before that.

    Raises:
        DefinitionError: One of them is not what it must be.

    Examples:
        >>> from shoal.rates import MemoryRates
        >>> SharedRate(Rate(5), "openai", MemoryRates())
        SharedRate(Rate(5, per=1.0), 'openai', MemoryRates())
    """

    rate: Rate
    name: str
    backend: RateBackend
    alone: Rate | None = field(default=None, kw_only=True)
    patience: float = field(default=10.0, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse what could not work."""
        for name, given in (("rate", self.rate), ("alone", self.alone)):
            if not isinstance(given, Rate) and not (name == "alone" and given is None):
                msg = f"SharedRate({name}=...) takes a Rate, not {kind_of(given)}"
                raise DefinitionError(msg)
        if not isinstance(self.name, str) or not self.name:
            msg = f"SharedRate(name=...) takes the name it is known by, not {self.name!r}"
            raise DefinitionError(msg)
        if isinstance(self.backend, type) or not callable(getattr(self.backend, "settle", None)):
            msg = (
                f"SharedRate(backend=...) takes what keeps rates, such as "
                f"shoal.rates.redis.RedisRates(url), not {brief(self.backend)}"
            )
            raise DefinitionError(msg)
        check_number("SharedRate(patience=...)", self.patience)

    def __repr__(self) -> str:
        alone = "" if self.alone is None else f", alone={self.alone!r}"
        return f"SharedRate({self.rate!r}, {self.name!r}, {self.backend!r}{alone})"


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
    """Decides how many slots there are, from how attempts end.

    What it raises fails the attempt that it was told of, or the child where it stands on a fan-out,
    in place of what that had come to; a cancellation stays one. The number stays as it was.
    """

    def after(self, n: float, changed_at: float, ended: Ended) -> float:
        """Return the number of slots after an attempt has ended: a finite one; below 1 is 1.

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
        DefinitionError: One of them is not what it must be.
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
        check_number("AIMD(increase=...)", self.increase)
        if not isinstance(self.decrease, int | float) or not 0 < self.decrease < 1:
            msg = f"AIMD takes a decrease between 0 and 1, not {self.decrease!r}"
            raise DefinitionError(msg)
        if self.slow is not None:
            check_number("AIMD(slow=...)", self.slow)
        if self.overload is not None:
            require_plain(self.overload, "AIMD(overload=...)")

    def after(self, n: float, changed_at: float, ended: Ended) -> float:
        """Return the number of slots after an attempt has ended; see ``Adaptive``.

        Raises:
            Exception: What ``overload`` raised.
            BadResult: It returned something to be awaited.
        """
        slow = self.slow is not None and ended.seconds > self.slow
        if slow or (ended.error is not None and self._shows_overload(ended.error)):
            lower = n if ended.started_at < changed_at else n * self.decrease
            return max(float(self.least), lower)
        if ended.error is None and ended.in_use >= int(n):
            n += self.increase / n
        return n if self.most is None else min(n, float(self.most))

    def _shows_overload(self, error: BaseException) -> bool:
        if self.overload is None:
            return is_overload(error)
        shows: object = self.overload(error)
        refuse_awaitable(shows, "AIMD(overload=...)")
        return bool(shows)


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
    rate: Rate | SharedRate | ForeignRate | None
    by: Callable[[Any], Hashable] | None
    cost: Callable[[Any], float] | None
    adapt: Adaptive | None = None

    @property
    def burst(self) -> float:
        """How many units of its rate may go at once; inf if there is none."""
        rate = self.rate
        if rate is None:
            return math.inf
        if isinstance(rate, SharedRate):
            rate = rate.rate
        elif not isinstance(rate, Rate):
            return rate.max_rate
        return self._burst_of(rate)

    def meter(self, key: Hashable = None) -> Meter | ForeignMeter | SharedMeter | None:
        """Make what measures its rate, for one key; None if there is no rate.

        Raises:
            BadResult: Other processes share the rate, and could not name that key.
        """
        rate = self.rate
        if rate is None:
            return None
        if isinstance(rate, Rate):
            return self._meter_of(rate)
        if not isinstance(rate, SharedRate):
            return ForeignMeter(rate)
        alone = None if rate.alone is None else self._meter_of(rate.alone)
        named = key_of(rate.name, key)
        return SharedMeter(
            rate.backend,
            named,
            rate.rate.per / rate.rate.k,
            self._burst_of(rate.rate),
            patience=rate.patience,
            alone=alone,
        )

    def _meter_of(self, rate: Rate) -> Meter:
        return Meter(rate.per / rate.k, self._burst_of(rate))

    def _burst_of(self, rate: Rate) -> float:
        if rate.burst is not None:
            return rate.burst
        return 1 if self.cost is None else rate.k

    def __repr__(self) -> str:
        given = [] if self.n is None else [str(self.n)]
        for name, value in (("rate", self.rate), ("by", self.by), ("cost", self.cost)):
            if value is not None:
                called: str | None = getattr(value, "__qualname__", None)
                shown = repr(value) if called is None else called.rpartition("<locals>.")[2]
                given.append(f"{name}={shown}")
        return f"Limits({', '.join(given)})"


def check_number(what: str, value: object) -> None:
    """Refuse what is no number above 0.

    Raises:
        DefinitionError: Naming ``what`` it was given as.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        msg = f"{what} takes a number above 0, not {value!r}"
        raise DefinitionError(msg)


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
        DefinitionError: It is no ``Rate``, no ``SharedRate``, and doesn't work like an
            ``aiolimiter.AsyncLimiter``.
    """
    if rate is None or isinstance(rate, Rate | SharedRate):
        return
    if not all(
        hasattr(rate, name) for name in ("max_rate", "time_period", "has_capacity", "acquire")
    ):
        hint = f": Rate({rate!r})" if isinstance(rate, int | float) else ""
        msg = (
            f"Limits(rate=...) takes a Rate, a SharedRate or an aiolimiter.AsyncLimiter, not "
            f"{kind_of(rate)}{hint}"
        )
        raise DefinitionError(msg)


def check_adapt(adapt: object) -> None:
    """Refuse what adapts nothing.

    Raises:
        DefinitionError: It is no ``AIMD``, and has no plain ``after``.
    """
    after: object = getattr(adapt, "after", None)
    if isinstance(adapt, type) or not callable(after):
        hint = f"; make one: {adapt.__name__}()" if isinstance(adapt, type) else ""
        msg = (
            f"Limits(adapt=...) takes AIMD(), or an object with a method "
            f"after(n, changed_at, ended), not {brief(adapt)}{hint}"
        )
        raise DefinitionError(msg)
    require_plain(after, "Limits(adapt=...).after")


@final
@dataclass(frozen=True, slots=True, init=False)
class Limits:
    """How much may go on: so many at once, so many per second, each also per key.

    Where it stands says what it counts and who shares it. On a *fan-out* ``n`` is its children in
    flight, for each execution of the step; a child is in flight from its start until its result is
    part of the parent's saved state, so a slow reducer or store slows the source down. The rates
    and per-key parts of a fan-out are shared by all its executions in a runtime. A rate is charged
    when a child starts, and when it is tried again: by ``Each(retry=)``, or in its first step by
    that action's ``retry=``; its further steps pay nothing. A child that is due for another attempt
    goes before children that have not started. On an *action*: its running attempts; on an
    *application* or a *runtime*: the running attempts of all actions; these are shared by all runs
    of a runtime.

    Limits are joined with ``&``: ``Limits(20) & Limits(rate=Rate(5), by=host_of)`` is 20 at once,
    and 5 a second for each host. An attempt or a child starts when every limit that applies has
    room. While it waits it uses none of them, and a key that must wait delays no other. Only an
    attempt that runs holds a slot: no fan-out that waits for its children, and no action while
    it is inside ``context.fan_out``; so recursion under a limit of 1 can't lock itself up.

    Args:
        n: How many at once; at least 1.
        rate: How many per time: a ``Rate``; a ``SharedRate``, where several processes have it
            together; or, on asyncio, an ``aiolimiter.AsyncLimiter``.
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
        rate: Rate | SharedRate | ForeignRate | None = None,
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
        if adapt is not None:
            check_adapt(adapt)
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
