"""Limits and rates as users write them: immutable values, from which a runtime makes gates."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, final

from shoal._errors.completion import hides
from shoal._errors.exceptions import DefinitionError, brief, kind_of
from shoal._errors.misplaced import says_where
from shoal._state.digest import ADDED
from shoal._state.functions import require_plain

from .accounts import Terms, name_of
from .adaptive import Adaptive, check_adapt
from .flows import Weight, check_weight
from .meters import ForeignMeter, ForeignRate, Meter
from .numbers import check_count, check_number
from .places import NOWHERE, Origin
from .shared_rates import KEPT_HERE, RateBackend, SharedMeter, key_of

DEFAULT_IN_FLIGHT = 100
"""Children in flight in a fan-out that names no limit.

A chosen number: enough to hide network latency, and few enough for the connections and the memory
of one process.
"""


@says_where
@final
@dataclass(frozen=True, slots=True)
class Rate:
    """A rate: ``Rate(5)`` is 5 a second, ``Rate(90_000, per=60)`` is 90,000 a minute.

    Starts are spaced evenly. After a pause, up to ``burst`` may start at once. In any window of
    ``t`` seconds at most ``k * t / per + burst`` start.

    Args:
        k: How many children, attempts or, with ``cost=``, units.
        per: The seconds in which ``k`` may start.
        burst: How many may start at once; by default 1 or, with ``cost=``, ``k``.

    Raises:
        DefinitionError: An argument is not a number above 0.

    Examples:
        >>> Rate(5, per=1.0, burst=2)
        Rate(5, per=1.0, burst=2)
    """

    # May be a fraction: 0.5 is one start in two seconds.
    k: float
    per: float = 1.0
    # None stays None here, because a rate doesn't know whether its units are starts or costs. The
    # `Part` that has the rate decides what None means.
    burst: float | None = None

    def __post_init__(self) -> None:
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

    All limits with this rate, in all processes, use up the same rate; with ``by=``, the same rate
    for each key. In any window of ``t`` seconds at most ``k * t / per + burst`` start in all
    processes together, and while requests wait the full rate is used.

    To keep that promise, each start is counted as if it came 20 ms after its turn, because a
    process that isn't stuck has started it by then. The burst pays for this: it is smaller by what
    starts in 20 ms. A burst that is too small for that (``1`` is) pays what it has above 1, or else
    2 % of the rate is given up. In that case, starts that are later than this covers exceed the
    bound, by what starts in the time they are late.

    Units that a process was granted and doesn't use, because an attempt was cancelled or found
    another limit closed, are used by other attempts of the process or returned. A key that
    ``RetryLater`` pauses is paused in this process alone.

    If the backend fails or doesn't answer, it is called again until ``patience`` ends. Then the
    attempts that wait fail with ``RateUnavailable``; they have not begun, so the ``retry=`` of
    their action doesn't apply. If children wait to start, their step fails. With ``alone``, the
    process continues at a rate of its own instead, until the backend answers.

    Args:
        rate: The rate. Give the same in all processes.
        name: The name of the rate at the backend. Rates of one name are one rate.
        backend: The backend: ``shoal.rates.redis.RedisRates(url)``, for example, or your own.
        alone: The rate of this process alone, for each key, while the backend can't be reached.
            None: attempts that wait fail.
        patience: Seconds for which a failing backend is called again before that.

    Raises:
        DefinitionError: An argument has the wrong type or is out of range.

    Examples:
        >>> from shoal.rates import MemoryRates
        >>> SharedRate(Rate(5), "openai", MemoryRates())
        SharedRate(Rate(5, per=1.0), 'openai', MemoryRates())
    """

    # Each process sends these numbers with each request, so a backend knows no rates by itself.
    rate: Rate
    name: str
    backend: RateBackend
    # Of one process: several of them may exceed the shared rate together, as long as that lasts.
    alone: Rate | None = field(default=None, kw_only=True)
    # Twice as long as one call may take (`CALL`), so that a call that hangs is made once more.
    patience: float = field(default=10.0, kw_only=True)

    def __post_init__(self) -> None:
        for name, given in (("rate", self.rate), ("alone", self.alone)):
            if not isinstance(given, Rate) and not (name == "alone" and given is None):
                msg = f"SharedRate({name}=...) takes a Rate, not {kind_of(given)}"
                raise DefinitionError(msg)
        if not isinstance(self.name, str) or not self.name:
            msg = (
                f"SharedRate(name=...) takes a string that names the rate at its backend, not "
                f"{self.name!r}"
            )
            raise DefinitionError(msg)
        # By its method and not by its class, because users write backends of their own.
        if isinstance(self.backend, type) or not callable(getattr(self.backend, "settle", None)):
            msg = (
                f"SharedRate(backend=...) takes a rate backend, such as "
                f"shoal.rates.redis.RedisRates(url), not {brief(self.backend)}"
            )
            raise DefinitionError(msg)
        check_number("SharedRate(patience=...)", self.patience)

    def __repr__(self) -> str:
        alone = "" if self.alone is None else f", alone={self.alone!r}"
        return f"SharedRate({self.rate!r}, {self.name!r}, {self.backend!r}{alone})"


@final
@dataclass(frozen=True, slots=True)
class Part:
    """One of the limits that ``&`` joins. Each has gates of its own."""

    n: int | None
    rate: Rate | SharedRate | ForeignRate | None
    by: Callable[[Any], Hashable] | None
    cost: Callable[[Any], float] | None
    adapt: Adaptive | None = None
    # What `cost` counts; None where it isn't said.
    unit: str | None = field(default=None, metadata=ADDED)
    # What a `Budget` says; None: it is no budget.
    terms: Terms | None = field(default=None, metadata=ADDED)
    waiting: int | None = field(default=None, metadata=ADDED)  # runs; None: any number
    share: Callable[[Any], Hashable] | None = field(default=None, metadata=ADDED)
    weight: Weight | None = field(default=None, metadata=ADDED)  # of a share; None: 1 each
    # The identity of the `Limits` that it was written as; equal limits have different ones.
    origin: Origin = field(default_factory=Origin, compare=False)

    @property
    def of_gates(self) -> Part:
        """The same part without its origin, for gates, which must not keep that alive."""
        terms = self.terms
        if terms is not None and terms.here is not None:
            terms = replace(terms, here=None)
        return replace(self, terms=terms, origin=NOWHERE)

    def in_place_of(self, old: Part) -> Part:
        """The part for gates that had another one until now; a budget keeps its accounts."""
        if self.terms is None or old.terms is None:
            return self.of_gates
        terms = replace(self.terms, identity=old.terms.identity, here=None)
        return replace(self, terms=terms, origin=NOWHERE)

    @property
    def burst(self) -> float:
        """How many units of the rate may pass at once; inf if there is no rate."""
        rate = self.rate
        if rate is None:
            return math.inf
        if isinstance(rate, SharedRate):
            rate = rate.rate
        elif not isinstance(rate, Rate):
            return rate.max_rate
        return self._burst_of(rate)

    def meter(self, key: Hashable = None) -> Meter | ForeignMeter | SharedMeter | None:
        """Create the meter of one key; None if there is no rate.

        Raises:
            BadResult: The rate is shared, and other processes could not name the key.
        """
        rate = self.rate
        if rate is None:
            return None
        if isinstance(rate, Rate):
            return self._meter_of(rate)
        if not isinstance(rate, SharedRate):
            return ForeignMeter(rate)
        # Made now though it may never be used: `SharedMeter` must not know about limits.
        alone = None if rate.alone is None else self._meter_of(rate.alone)
        # Where the gate is made, so that a key that other processes could not name is refused
        # before anything is granted for it.
        named = key_of(rate.name, key)
        return SharedMeter(
            rate.backend if KEPT_HERE.get() is None else KEPT_HERE.get(),
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
        # With `cost=`, one start may take many units, so a burst of one unit would let nothing
        # start.
        return 1 if self.cost is None else rate.k

    def __repr__(self) -> str:
        if self.terms is not None:
            by = "" if self.by is None else f", by={name_of(self.by)}"
            return f"Budget({self.terms!r}{by})"
        given = [] if self.n is None else [str(self.n)]
        for name, value in (
            ("rate", self.rate),
            ("by", self.by),
            ("cost", self.cost),
            ("share", self.share),
            ("weight", self.weight),
        ):
            if value is not None:
                given.append(f"{name}={name_of(value)}")
        if self.unit is not None:
            given.append(f"unit={self.unit!r}")
        if self.waiting is not None:
            given.append(f"waiting={self.waiting}")
        return f"Limits({', '.join(given)})"


def check_rate(rate: object) -> None:
    """Check a user's ``rate=``.

    Raises:
        DefinitionError: It is no ``Rate``, no ``SharedRate``, and doesn't work like an
            ``aiolimiter.AsyncLimiter``.
    """
    if rate is None or isinstance(rate, Rate | SharedRate):
        return
    # By attributes: aiolimiter is not a dependency.
    if not all(
        hasattr(rate, name) for name in ("max_rate", "time_period", "has_capacity", "acquire")
    ):
        hint = f": Rate({rate!r})" if isinstance(rate, int | float) else ""
        msg = (
            f"Limits(rate=...) takes a Rate, a SharedRate or an aiolimiter.AsyncLimiter, not "
            f"{kind_of(rate)}{hint}"
        )
        raise DefinitionError(msg)


@says_where
@hides(
    "adapts_in_flight in_flight of_attempts of_descendants of_fan_out of_starts parts stand_on "
    "with_numbers"
)
@dataclass(frozen=True, slots=True, init=False)
class Limits:
    """Limits how much runs at once and how much starts per second, in all or for each key.

    The place of a limit says what it counts:

    - On a *fan-out*, ``n`` counts the children in flight, for each execution of the step. A child
      is in flight from its start until its result is part of the parent's saved state, so a slow
      reducer or store slows the source down. Rates and per-key limits are shared by all executions
      of the fan-out in a runtime. A rate is charged when a child starts, and when its start is done
      anew, because its first step is tried again. Further steps and their retries pay nothing.
    - On an *action*, its running attempts are counted, in all runs of a runtime together.
    - On an *application* or a *runtime*, the running attempts of all actions are, in all runs of a
      runtime together.

    The object counts, not its numbers. One ``Limits`` object that is given to several actions,
    fan-outs, applications or the runtime is one limit in that runtime: "8 calls to the model in
    all, whichever step makes them". An attempt that it reaches on several ways needs one slot and
    is charged once. On a fan-out, such an object counts the running attempts of its children, like
    everywhere else, and not the children in flight; of those, each execution still has at most
    ``n``. Equal but separate objects are separate limits. ``&`` joins the objects themselves, and
    ``bind`` keeps them; a copy (``copy.deepcopy``, ``pickle``) is another object. In another
    runtime, and so in another process, the same object counts anew.

    Limits are joined with ``&``: ``Limits(20) & Limits(rate=Rate(5), by=host_of)`` is 20 at once,
    and 5 a second for each host. An attempt or a child starts when every limit that applies has
    room. While it waits it holds no slot, and it does not delay other keys. What has waited for its
    next attempt goes before all that has not started. Only a running attempt
    holds slots: a fan-out that waits for its children holds none, nor does an action inside
    ``context.fan_out``. So recursion under a limit of 1 doesn't deadlock.

    Args:
        n: How many at once; at least 1.
        rate: How many per time: a ``Rate``; a ``SharedRate``, if several processes share it; or,
            on asyncio, an ``aiolimiter.AsyncLimiter``.
        by: A plain function of the state that the attempt or child would start from. It returns a
            key, any hashable, and ``n`` and ``rate`` apply to each key separately. ``OWNER`` is the
            owner of the run.
        cost: A plain function of that state that returns how many units of the rate are charged; 1
            by default. ``context.charge(actual)`` corrects the number afterwards.
        unit: What ``cost`` counts, such as ``"tokens"``. Several costs are corrected by it, each by
            itself: ``context.charge(actual, unit="tokens")``.
        adapt: A policy that adjusts ``n`` as attempts end: ``AIMD()``, or your own. ``n`` is the
            number to begin with.
        waiting: How many runs may wait for the limit, with ``by=`` for each key. A further one is
            refused at once: the attempt with which it comes fails with ``Overloaded``, which says
            after how many seconds to try again. Runs are counted, and not what each of them has
            waiting, because runs take turns. A run that the limit has let in once, or that is in
            line, waits with whatever else it has: its children, its further steps, its retries. A
            further run that begins with a fan-out fails as a whole and not child by child; in a
            race, only the contestant fails.
        share: A plain function of that state that returns whose share of the limit it is: a tenant,
            say; or ``OWNER``. While requests wait, the shares have turns by their weights, however
            many runs and children of each wait; within a share, runs take turns as they do without.
            Fields that a child wasn't given are those of the runs around it, so the tenant of a run
            holds in all fan-outs below. Where several limits of an attempt have ``share=``, the
            outermost one gives the first turns: that of the runtime, the application, the fan-outs,
            the action. On a fan-out it orders only children that wait for rates, keys and limits of
            actions; places in flight are taken in the order of the source.
        weight: The turns of a share beside others of weight 1: a plain function of what ``share``
            returned, or a mapping from it; what the mapping lacks has 1.

    Raises:
        DefinitionError: Nothing is limited, or an argument has the wrong type or is out of range.

    Examples:
        >>> Limits(20) & Limits(rate=Rate(5, per=1.0))
        Limits(20) & Limits(rate=Rate(5, per=1.0))
    """

    parts: tuple[Part, ...]
    """The limits that ``&`` has joined."""

    def __init__(
        self,
        n: int | None = None,
        *,
        rate: Rate | SharedRate | ForeignRate | None = None,
        by: Callable[[Any], Hashable] | None = None,
        cost: Callable[[Any], float] | None = None,
        unit: str | None = None,
        adapt: Adaptive | None = None,
        waiting: int | None = None,
        share: Callable[[Any], Hashable] | None = None,
        weight: Weight | None = None,
    ) -> None:
        """Check the arguments; see the class."""
        if n is not None:
            check_count("Limits(n)", n)
        check_rate(rate)
        for name, function in (("by", by), ("cost", cost), ("share", share)):
            if function is not None:
                require_plain(function, f"Limits({name}=...)")
        if n is None and rate is None:
            msg = "Limits() limits nothing: give n, how many at once, or rate=Rate(...), or both"
            raise DefinitionError(msg)
        if cost is not None and rate is None:
            msg = "Limits(cost=...) is what a rate is charged; give rate=Rate(...) too"
            raise DefinitionError(msg)
        if unit is not None and (not isinstance(unit, str) or not unit):
            msg = f"Limits(unit=...) takes a name, such as 'tokens', not {brief(unit)}"
            raise DefinitionError(msg)
        if unit is not None and cost is None:
            msg = f"Limits(unit={unit!r}) names what cost= counts; give cost=... too"
            raise DefinitionError(msg)
        if adapt is not None and n is None:
            msg = "Limits(adapt=...) changes n; give the n to begin with"
            raise DefinitionError(msg)
        if adapt is not None:
            check_adapt(adapt)
        # 0 is a limit for which nothing waits: what finds no room is refused.
        if waiting is not None and (type(waiting) is not int or waiting < 0):
            msg = f"Limits(waiting=...) takes a whole number of runs, at least 0, not {waiting!r}"
            raise DefinitionError(msg)
        check_weight(weight, share)
        # The class is frozen.
        part = Part(n, rate, by, cost, adapt, unit, waiting=waiting, share=share, weight=weight)
        object.__setattr__(self, "parts", (part,))

    def __and__(self, other: Limits) -> Limits:
        """Join two limits: an attempt or child needs room in both."""
        if not isinstance(other, Limits):
            return NotImplemented
        return limits_of((*self.parts, *other.parts))

    def with_numbers(
        self,
        part: int,
        *,
        n: int | None = None,
        rate: float | None = None,
        per: float | None = None,
        burst: float | None = None,
        amount: float | None = None,
    ) -> Limits:
        """Return the same limits with other numbers in one part; numbers that are None stay.

        Args:
            part: Which of ``parts``.
            n: How many at once.
            rate: How many may start in ``per`` seconds.
            per: The seconds of the rate.
            burst: How many may start at once.
            amount: How much a budget has.

        Raises:
            DefinitionError: There is no such part, it has no such number, or one is out of range.
        """
        # By exact type, because a bool would count as part 0 or 1.
        if type(part) is not int or not 0 <= part < len(self.parts):
            msg = f"{self!r} has no part {part!r}; they are counted from 0"
            raise DefinitionError(msg)
        old = self.parts[part]
        if n is not None:
            check_count("Limits(n)", n)
            if old.n is None:
                msg = f"{old!r} has no n to change: it doesn't limit how many run at once"
                raise DefinitionError(msg)
        new_rate = old.rate
        if not rate is per is burst is None:
            if not isinstance(old.rate, Rate):
                msg = f"{old!r} has no Rate(...) of this process whose numbers could change"
                raise DefinitionError(msg)
            new_rate = Rate(
                old.rate.k if rate is None else rate,
                old.rate.per if per is None else per,
                old.rate.burst if burst is None else burst,
            )
        terms = old.terms
        if amount is not None:
            check_number("Budget(amount)", amount)
            if terms is None:
                msg = f"{old!r} has no amount to change: it is no Budget"
                raise DefinitionError(msg)
            terms = replace(terms, amount=float(amount))
        new = replace(old, n=old.n if n is None else n, rate=new_rate, terms=terms)
        return limits_of((*self.parts[:part], new, *self.parts[part + 1 :]))

    @property
    def n(self) -> int | None:
        """How many at once in all, not counting limits per key; None: unlimited."""
        # A limit for each key doesn't say how many there are in all.
        least: int | None = None
        for part in self.parts:
            if part.n and part.by is None and (least is None or part.n < least):
                least = part.n
        return least

    @property
    def in_flight(self) -> int:
        """How many children one execution of a fan-out may have in flight."""
        return DEFAULT_IN_FLIGHT if self.n is None else self.n

    @property
    def adapts_in_flight(self) -> Adaptive | None:
        """The policy that adjusts ``in_flight``, if any."""
        # Only the part with the smallest `n` matters: larger numbers are never reached.
        own = [part for part in self.parts if part.n == self.n and part.by is None]
        return own[0].adapt if own and self.n is not None else None

    @property
    def of_starts(self) -> Limits | None:
        """The limits of a fan-out that all its executions share: its rates and per-key parts.

        Without those of objects that stand in other places as well, which count attempts.
        """
        # Without `n` and its policy: places in flight belong to one execution of the fan-out.
        parts = [
            part if part.by is not None else replace(part, n=None, adapt=None)
            for part in self.parts
            if not (part.origin.is_shared or part.terms is not None)
            and (part.by is not None or part.rate is not None)
        ]
        return limits_of(tuple(parts)) if parts else None

    @property
    def of_attempts(self) -> Limits | None:
        """The limits of a fan-out that stand in other places too: its children's attempts count."""
        parts = [part for part in self.parts if part.origin.is_shared and part.terms is None]
        return limits_of(tuple(parts)) if parts else None

    @property
    def of_descendants(self) -> Limits | None:
        """The budgets of a fan-out: the attempts of its children and of all below them count."""
        parts = [part for part in self.parts if part.terms is not None]
        return limits_of(tuple(parts)) if parts else None

    @property
    def of_fan_out(self) -> Limits | None:
        """The limits of a fan-out that are counted in a runtime, and not for one execution."""
        found = (self.of_starts, self.of_attempts, self.of_descendants)
        parts = tuple(part for limits in found if limits is not None for part in limits.parts)
        return limits_of(parts) if parts else None

    def stand_on(self, owner: object, name: str = "", *, is_runtime: bool = False) -> None:
        """Note that the limits are those of a definition or a runtime; see ``Origin``."""
        for part in self.parts:
            if is_runtime and part.terms is not None and part.terms.on_empty == "ask":
                msg = (
                    f"{part!r} stands on a runtime, and on_empty='ask' asks for more for one run: "
                    f"place it on an application, an action or a fan-out, or let it fail or stop"
                )
                raise DefinitionError(msg)
            part.origin.stand_on(owner, name, is_runtime=is_runtime)

    def __repr__(self) -> str:
        return " & ".join(map(repr, self.parts)) or "the default limits"


def mended(given: object) -> str:
    """Return how to write what was given for ``limits=``, for the message that refuses it."""
    if isinstance(given, Rate | SharedRate):
        return f": limits=Limits(rate={given!r})"
    return f": limits=Limits({given})" if type(given) is int and given > 0 else ""


def limits_of(parts: tuple[Part, ...]) -> Limits:
    """Join parts that were checked before."""
    # Past `__init__`, whose checks these parts have passed. And the default limits have no part,
    # which it would refuse.
    limits = Limits.__new__(Limits)
    object.__setattr__(limits, "parts", parts)
    return limits


DEFAULT_LIMITS: Limits = limits_of(())
"""The limits of a fan-out that was given none: ``DEFAULT_IN_FLIGHT`` children in flight."""
