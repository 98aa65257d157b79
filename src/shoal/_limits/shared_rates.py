"""Rates that several processes share: the protocol of backends, and the meter of a process.

A *backend* keeps, for each key, how far the schedule of a rate has advanced. A process requests
units. The backend grants each unit for a time a little ahead, its *turn*. The process uses the unit
at its turn or soon after, or returns it with the next request.

Invariants:
- In any window of t seconds at most ``t / interval + burst`` units have their turn, of all
  processes together.
- No unit is used before its turn. It is counted as if it were used ``SLACK`` later, as far as the
  burst allows. So the same bound holds for the actual uses, if they come within ``SLACK``.
- A unit that is not used within ``HOLD`` of its turn is returned. It is taken off the schedule only
  as far as no later unit relied on it; the rest is lost, because its time has passed.
- A process that dies loses the units it holds, at most those with a turn within ``AHEAD``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast, final

from shoal._errors.exceptions import BadResult, NotApplied, brief

from .meters import CREDIT, Meter

AHEAD = 0.05
"""Seconds before its turn at which a unit may be granted.

Longer than the round trip to a backend in the same region, so that the next unit has arrived when
it can be used. Short, because a process that dies loses what was granted ahead.
"""
HOLD = CREDIT
"""Seconds after its turn for which a process keeps a unit: as long as a timer may be late."""
SLACK = 2 * HOLD
"""Seconds after its turn as of which a unit is counted.

By then a process that is not stuck has used it: its timer rings within ``CREDIT``, and it drops the
unit after ``HOLD``.
"""
GUARD = 0.02
"""The share of each interval that is given up for the slack where no burst can pay for it.

A chosen number: 2 % of the throughput, for starts that are late by up to 2 % of an interval.
"""
BATCH = 64
"""The most units requested at once.

It bounds the size of a message, and the units that lapse when the requests that wanted them are
cancelled.
"""


# -- the protocol of backends ----------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RateRequest:
    """What a process returns, reports and requests of one key; applied in this order."""

    key: str
    """Identifies the rate and, with ``by=``, the key."""
    interval: float
    """Seconds from one unit to the next."""
    burst: float
    """How many units may pass at once."""
    returns: tuple[tuple[float, float], ...] = ()
    """Units that were granted and not used: pairs of their turn and their number."""
    extra: float = 0.0
    """Units used without a grant; negative: units to be taken off the schedule."""
    costs: tuple[float, ...] = ()
    """The units that each waiting request asks for, in order."""

    @property
    def slack(self) -> float:
        """Seconds after its turn as of which a unit is counted: ``SLACK``, if the burst allows."""
        # Counting later takes units off the burst: as many as pass in that time. At least one unit
        # must remain, or nothing would ever pass.
        return min(SLACK, max(GUARD, self.burst - 1) * self.interval)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RateReply:
    """The answer of a backend to a ``RateRequest``."""

    now: float
    """The backend's clock, in seconds."""
    turns: tuple[float, ...] = ()
    """The turns granted to the first of ``costs``, by that clock; the others are not granted."""
    again_in: float = 0.0
    """Seconds after which the first of the others could be granted."""


@final
@dataclass(frozen=True, slots=True)
class RateState:
    """The state that a backend keeps for one key. It may be dropped once both times have passed."""

    tat: float
    """When the next unit would come if all came evenly, by the backend's clock."""
    last: float
    """The latest turn that was granted."""


class RateBackend(Protocol):
    """Keeps rates that several processes share; ``shoal.rates`` has implementations.

    A backend applies ``reckon`` to the state of each key, atomically, one request after the other,
    and with one clock for all processes. It needs nothing else.
    """

    async def settle(self, requests: Sequence[RateRequest]) -> Sequence[RateReply]:
        """Apply requests, each for a different key, and return the replies in the same order.

        Each runtime has at most one call in progress. A call that takes some seconds is cancelled.
        The runtime can't know then whether the requests were applied, so it doesn't repeat the
        parts that free units: units may be lost, and none is granted twice.

        Args:
            requests: At least one.

        Raises:
            Exception: The requests could not be applied. The backend is called again, until the
                ``patience`` of the rate ends.
            NotApplied: It is certain that none was, so units can be returned once more.
        """
        ...


KEPT_HERE: ContextVar[Any] = ContextVar("shoal_kept_here", default=None)
"""Keeps shared rates and budgets in place of all backends, in a replay; else None."""


def reckon(
    state: RateState | None, now: float, request: RateRequest
) -> tuple[RateState, RateReply]:
    """Apply a request to the state of its key, as every ``RateBackend`` does.

    This is the generic cell rate algorithm; see ``Meter``.

    Args:
        state: The stored state of the key; None if there is none.
        now: The backend's clock, in seconds.
        request: The request of a process.

    Returns the new state and the reply.

    Examples:
        >>> request = RateRequest(key="openai", interval=0.25, burst=1, costs=(1, 1))
        >>> state, reply = reckon(None, 100.0, request)
        >>> reply.turns, round(reply.again_in, 3)
        ((100.0,), 0.205)
    """
    interval, burst = request.interval, request.burst
    tat, last = (-math.inf, -math.inf) if state is None else (state.tat, state.last)
    for turn, units in request.returns:
        # Units with a later turn were granted as if these had passed. Only the part that they
        # didn't rely on may be granted again: see
        # test_what_is_given_back_late_is_never_granted_again_in_excess.
        tat -= max(0.0, units * interval - max(0.0, last - turn))
    # Extra units have passed by now, so they count from now on, like any unit with its turn now:
    # see test_what_a_start_has_cost_besides_counts_from_now.
    if request.extra > 0:
        tat, last = max(tat, now), max(last, now)
    tat += request.extra * interval
    turns: list[float] = []
    again_in = 0.0
    for cost in request.costs:
        turn = max(now, tat + (cost - burst) * interval)
        if turn > now + AHEAD:
            again_in = turn - now - AHEAD
            break  # in order: a cheaper request further on doesn't overtake
        tat = max(tat, turn + request.slack) + cost * interval
        last = max(last, turn)
        turns.append(turn)
    reply = RateReply(now=now, turns=tuple(turns), again_in=again_in)
    return RateState(tat, last), reply


def key_of(name: str, key: Hashable) -> str:
    """Return the name of a key of a shared rate, which is the same in every process.

    Raises:
        BadResult: The key is no plain value, so other processes could not name it.
    """
    if key is None:
        return name
    if not is_plain(key):
        msg = (
            f"by= returned {brief(key)} for the shared rate {name!r}: all processes must compute "
            f"the same key; return a str, a number, bytes, or a tuple of those"
        )
        raise BadResult(msg)
    return f"{name}:{key!r}"  # repr keeps 1 and "1" apart


def is_plain(key: object) -> bool:
    """Return whether every process would write a key in the same way."""
    # By exact type: the repr of a subclass, such as an enum, may differ between processes.
    if type(key) is tuple:
        return all(map(is_plain, cast("tuple[object, ...]", key)))
    return key is None or type(key) in (str, int, float, bool, bytes)


# -- the units of a process ------------------------------------------------------------------------


@final
class Granted(NamedTuple):
    """Units that the backend granted to this process for one turn."""

    opens_at: float
    """Their turn, by the loop's clock..."""
    turn: float
    """...and by the backend's clock."""
    units: float


@final
class Taken(NamedTuple):
    """Units that were used recently, in case that they are given back."""

    at: float
    """When they were used, by the loop's clock."""
    granted: Granted


@final
class SharedMeter:
    """Holds the units of a shared rate that this process was granted, for one key.

    Requests take units that are held, and ``SharedRateClient`` requests more. While the backend
    can't be reached, requests may take from a meter ``alone`` instead.
    """

    __slots__ = (
        "_extra",
        "_last",
        "_returns",
        "_taken_at",
        "again_at",
        "alone",
        "backend",
        "batch",
        "burst",
        "held",
        "interval",
        "is_alone",
        "key",
        "patience",
    )

    def __init__(
        self,
        backend: RateBackend,
        key: str,
        interval: float,
        burst: float,
        *,
        patience: float = 0.0,
        alone: Meter | None = None,
    ) -> None:
        """Create a meter that holds no units.

        Args:
            backend: The backend that grants units.
            key: The name of the rate and key at the backend.
            interval: Seconds from one unit to the next.
            burst: How many units may pass at once.
            patience: Seconds for which the backend may fail before waiting requests are refused.
            alone: The meter to use instead of that; None: requests are refused.
        """
        self.backend: RateBackend = backend
        self.key: str = key
        self.patience: float = patience
        self.interval: float = interval
        self.burst: float = burst
        self.alone: Meter | None = alone
        # Whether `alone` is in use: from the end of patience to the backend's next answer.
        self.is_alone: bool = False
        self.held: deque[Granted] = deque()  # in the order of their turns
        # The units to request at once. Doubled while all of them find a use, 1 again when one
        # lapses: as in TCP's slow start, a process holds no more than it uses.
        self.batch: int = 1
        # Only from an answer that granted less than was requested; such an answer says when there
        # is more.
        self.again_at: float = -math.inf  # the next request is made no sooner than this
        self._taken_at: float = -math.inf  # when units were last used
        # The latest uses, as far as units may be given back. Units used before these had their
        # turn too long ago for the backend to grant them again.
        self._last: deque[Taken] = deque(maxlen=BATCH)
        # To be sent with the next request: units to return, and units to charge.
        self._returns: list[tuple[float, float]] = []
        self._extra: float = 0.0

    def opens_at(self, cost: float) -> float:
        """Return when ``cost`` units may pass; inf if more must be granted first."""
        if self.is_alone and self.alone is not None:
            return self.alone.opens_at(cost)
        opens = -math.inf
        for granted in self.held:
            if cost <= 0:
                break
            opens = max(opens, granted.opens_at)
            cost = _less(cost, granted.units)
        return opens if cost <= 0 else math.inf

    def take(self, now: float, cost: float, credit: float = 0.0) -> None:
        """Use ``cost`` units; more than are held are charged with the next request."""
        self._taken_at = now
        if self.is_alone and self.alone is not None:
            self.alone.take(now, cost, credit)
            return
        while cost > 0 and self.held:
            granted = self.held.popleft()
            rest = _less(granted.units, cost)
            if rest > 0:
                self.held.appendleft(granted._replace(units=rest))
                granted = granted._replace(units=cost)
            cost = _less(cost, granted.units)
            self._last.append(Taken(now, granted))
        # The start has happened, so what it took beyond its grant is owed: the next request charges
        # it.
        self._extra += max(0.0, cost)

    def correct(self, by: float, taken_at: float) -> None:
        """Charge ``by`` units more, or fewer if negative, with the next request.

        Both count from now on: the backend doesn't keep what has passed since ``taken_at``.
        """
        if self.is_alone and self.alone is not None:
            self.alone.correct(by, taken_at)
        else:
            self._extra += by

    def give_back(self, cost: float, taken_at: float) -> None:
        """Hold ``cost`` units again that were taken at ``taken_at`` and never used."""
        if self.is_alone and self.alone is not None:
            self.alone.give_back(cost, taken_at)
            return
        for taken in [taken for taken in reversed(self._last) if taken.at == taken_at]:
            if cost <= 0:
                return
            self._last.remove(taken)
            granted = taken.granted
            rest = _less(granted.units, cost)
            if rest > 0:
                self._last.append(Taken(taken.at, granted._replace(units=rest)))
                granted = granted._replace(units=cost)
            cost = _less(cost, granted.units)
            self.held.appendleft(granted)
        # Units taken longer ago are lost: their turn has passed.

    def continue_from(self, other: object) -> None:
        """Return the units held by the meter that this one replaces, if it has the same rate."""
        if (
            isinstance(other, SharedMeter)
            and other.backend is self.backend
            and other.key == self.key
        ):
            other.return_held()
            self._returns, self._extra = other._returns, other._extra

    def is_full(self, now: float) -> bool:
        """Return whether this process holds and owes nothing; the backend knows the rest."""
        return not self.is_busy

    @property
    def is_busy(self) -> bool:
        """Whether units are held, a message is due, or an answer of the backend is awaited."""
        return bool(self.held) or self.has_news or self.is_alone

    # -- messages to the backend ----------------------------------------------------------------

    @property
    def has_news(self) -> bool:
        """Whether there are units to return or to charge."""
        return bool(self._returns or self._extra)

    @property
    def lapses_at(self) -> float:
        """When the first of the units held lapses; inf if none are."""
        return min((granted.opens_at for granted in self.held), default=math.inf) + HOLD

    def lapse(self, now: float) -> None:
        """Return the units that found no use within ``HOLD`` of their turn."""
        held, self.held = self.held, deque[Granted]()
        for granted in held:
            if granted.opens_at + HOLD <= now:
                self.batch = 1
                self._returns.append((granted.turn, granted.units))
            else:
                self.held.append(granted)

    def return_held(self) -> None:
        """Return all units held."""
        self._returns += [(granted.turn, granted.units) for granted in self.held]
        self.held.clear()

    def wants(self, costs: Sequence[float], now: float) -> tuple[float, ...]:
        """Return the part of ``costs`` to request; nothing while enough units are held.

        It is as little as is sure to find a use: twice the last batch if units were used just now,
        else the last batch, which is 1 after a lapse.

        Args:
            costs: The costs of waiting requests, in order.
            now: The loop's clock.
        """
        # A new request is made when half of a batch is used up, so that the answer arrives before
        # the other half is.
        if not len(self.held) < len(costs) or 2 * len(self.held) > self.batch:
            return ()
        if now - self._taken_at < HOLD:
            self.batch = min(2 * self.batch, BATCH)
        # The units held are for the first requests, though their costs may differ: an estimate.
        return tuple(costs[len(self.held) : self.batch])

    def request(self, costs: tuple[float, ...]) -> RateRequest:
        """Make the next request: for ``costs``, and with the units to return and to charge."""
        request = RateRequest(
            key=self.key,
            interval=self.interval,
            burst=self.burst,
            returns=tuple(self._returns),
            extra=self._extra,
            costs=costs,
        )
        # Cleared now, not after the answer: corrections made meanwhile belong to the next request.
        # `fail` restores the part that may be repeated.
        self._extra = 0.0
        self._returns = []
        return request

    def receive(self, request: RateRequest, reply: RateReply, ahead: float, chance: float) -> None:
        """Hold the units that were granted.

        Args:
            request: The request...
            reply: ...and its answer.
            ahead: Seconds to add to the backend's clock to get the loop's: never too few, so that
                no unit is used before its turn.
            chance: A random number in [0, 1), so that processes don't all ask at once.
        """
        # The backend answers again: from here on all processes share the rate. What `alone` has
        # granted meanwhile is not reported, since its numbers are this process's own.
        self.is_alone = False
        for cost, turn in zip(request.costs, reply.turns, strict=False):
            self.held.append(Granted(turn + ahead, turn, cost))
        if len(reply.turns) == len(request.costs):
            self.again_at = -math.inf
        else:
            # A process that was granted units waits longer than one that was not. Else the process
            # nearest to the backend would always ask first and get all units: see
            # test_a_process_far_from_the_backend_has_its_share. All these pauses are shorter than
            # AHEAD, so the next grant still arrives before its turn.
            pause = AHEAD / 2 if reply.turns else AHEAD / 10
            self.again_at = reply.now + ahead + reply.again_in + pause + chance * AHEAD / 4

    def fail(self, request: RateRequest, error: Exception) -> None:
        """Restore what may be sent again after a call failed, which may have been applied.

        Only charges: units returned twice would be granted twice. See
        test_what_may_have_been_done_is_not_said_again_if_it_frees_units.
        """
        if isinstance(error, NotApplied):
            self._extra += request.extra
            self._returns = [*request.returns, *self._returns]
        else:
            self._extra += max(0.0, request.extra)

    def __repr__(self) -> str:
        return f"<SharedMeter of {self.key!r} holding {sum(one.units for one in self.held):g}>"


def _less(units: float, by: float) -> float:
    """Subtract units; a remainder of the size of a rounding error counts as 0."""
    # Costs may be fractions and add up in any order. Floats are exact to about 1e-16 of the larger
    # number, so 1e-9 is far above their errors and far below any cost that matters.
    rest = units - by
    return 0.0 if abs(rest) < 1e-9 * max(1.0, units) else rest
