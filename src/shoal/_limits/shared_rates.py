"""Rates that several processes share: what keeps them is asked what, and how it reckons.

A *backend* keeps, for each key, where the schedule of a rate stands. A process asks it for units;
each is granted as of a moment, its *turn*, a little ahead. Imports meters.

Invariants:
- In any window of t seconds at most ``t / interval + burst`` units have their turn in it, of all
  processes together.
- A unit goes no sooner than its turn. It is counted as if it went ``SLACK`` later, as far as the
  burst allows; so, if it does go within that, the same holds of what really goes.
- What is not used within ``HOLD`` of its turn is given back. It counts as not gone only as far as
  the schedule has not moved on since: what is lost was nobody's to use any more.
- A process that dies loses what it held: no more than what has its turn within ``AHEAD``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast, final

from shoal._errors.exceptions import BadResult, brief

from .meters import CREDIT, Meter

AHEAD = 0.05
"""Seconds before its turn from which a unit is granted: so nobody waits for an answer."""
HOLD = CREDIT
"""Seconds after its turn for which a unit is kept for somebody who can use it."""
SLACK = 2 * HOLD
"""Seconds after its turn by which a unit is sure to have gone, in a process that is not stuck."""
GUARD = 0.02
"""Share of the interval that is given up for that if there is no burst to take it from."""
BATCH = 64
"""Units that are asked for at once, at most."""


# -- what a backend does ---------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RateRequest:
    """What a process says of one rate, for one key; a backend takes it in this order."""

    key: str
    """Names what is shared: the rate, and the key of ``by=``."""
    interval: float
    """Seconds from one unit to the next."""
    burst: float
    """How many units may go at once."""
    returns: tuple[tuple[float, float], ...] = ()
    """Units that were granted and never used: when their turn was, and how many."""
    extra: float = 0.0
    """Units that are gone without having been asked for; below 0: that were counted wrongly."""
    costs: tuple[float, ...] = ()
    """Units that are wanted, by each of those who wait, in order."""

    @property
    def slack(self) -> float:
        """Seconds after its turn as of which a unit is counted: ``SLACK``, if the burst allows."""
        return min(SLACK, max(GUARD, self.burst - 1) * self.interval)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RateReply:
    """What a backend answers to a ``RateRequest``."""

    now: float
    """The backend's clock, in seconds."""
    turns: tuple[float, ...] = ()
    """When what is wanted may go, by that clock: the first of ``costs``, as many as soon can."""
    again_in: float = 0.0
    """Seconds after which it is worth asking for the others."""


@final
@dataclass(frozen=True, slots=True)
class RateState:
    """What a backend keeps of one key. It may be forgotten once both times have passed."""

    tat: float
    """When the next unit would come if all came evenly, by the backend's clock."""
    last: float
    """The latest turn that was granted."""


class RateBackend(Protocol):
    """Keeps rates that several processes share: ``shoal.rates`` has some.

    All that it must do is to apply ``reckon`` to the state of each key, one request after the
    other, each as if nothing else went on, with one clock for all processes.
    """

    async def settle(self, requests: Sequence[RateRequest]) -> Sequence[RateReply]:
        """Apply requests, each of another key, and return the replies in the same order.

        It is called by one task at a time for each runtime. It may be cancelled, after some seconds
        without an answer; whether it was applied is then not known, and it is not repeated as it
        is: units may be lost by that, and none are granted twice.

        Raises:
            Exception: They could not be applied. It is asked again, until patience ends.
        """
        ...


def reckon(
    state: RateState | None, now: float, request: RateRequest
) -> tuple[RateState, RateReply]:
    """Apply a request to the state of its key: what every ``RateBackend`` does.

    The generic cell rate algorithm; see ``Meter``.

    Args:
        state: What is kept of the key; None if nothing is.
        now: The backend's clock, in seconds.
        request: What a process says.

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
        # What came later has counted on these units for no more than this: see
        # test_what_is_given_back_late_is_never_granted_again_in_excess.
        tat -= max(0.0, units * interval - max(0.0, last - turn))
    if request.extra > 0:
        tat, last = max(tat, now), max(last, now)
    tat += request.extra * interval
    turns: list[float] = []
    again_in = 0.0
    for cost in request.costs:
        turn = max(now, tat + (cost - burst) * interval)
        if turn > now + AHEAD:
            again_in = turn - now - AHEAD
            break
        tat = max(tat, turn + request.slack) + cost * interval
        last = max(last, turn)
        turns.append(turn)
    reply = RateReply(now=now, turns=tuple(turns), again_in=again_in)
    return RateState(tat, last), reply


def key_of(name: str, key: Hashable) -> str:
    """Name a key of a shared rate, the same in every process.

    Raises:
        BadResult: It is no plain value, so another process could not name it.
    """
    if key is None:
        return name
    if not _is_plain(key):
        msg = (
            f"by= returned {brief(key)} for the rate {name!r}, which other processes share: they "
            f"must come to the same key; return a str, a number, bytes, or a tuple of those"
        )
        raise BadResult(msg)
    return f"{name}:{key!r}"


def _is_plain(key: object) -> bool:
    if type(key) is tuple:
        return all(map(_is_plain, cast("tuple[object, ...]", key)))
    return key is None or type(key) in (str, int, float, bool, bytes)


# -- what a process holds --------------------------------------------------------------------------


@final
class Granted(NamedTuple):
    """Units that this process was granted and has not used yet."""

    opens_at: float
    """Their turn, by the loop's clock..."""
    turn: float
    """...and by the backend's."""
    units: float


@final
class Taken(NamedTuple):
    """Units that were used lately."""

    at: float
    """When, by the loop's clock."""
    granted: Granted


@final
class SharedMeter:
    """What this process was granted of a rate that it shares, for one key.

    Whoever waits takes of what is held; ``Supply`` asks for more. While the backend can't be
    reached, the process may have to go by a meter ``alone``.
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
        """Hold nothing.

        Args:
            backend: Grants units.
            key: What it knows the rate by.
            interval: Seconds from one unit to the next.
            burst: How many units may go at once.
            patience: Seconds for which it may fail before whoever waits hears of it.
            alone: What is gone by then instead; None: nothing.
        """
        self.backend: RateBackend = backend
        self.key: str = key
        self.patience: float = patience
        self.interval: float = interval
        self.burst: float = burst
        self.alone: Meter | None = alone
        self.is_alone: bool = False
        self.held: deque[Granted] = deque()
        self.batch: int = 1  # how many are asked for at once: as many as have found a use
        self.again_at: float = -math.inf  # when asking for more is worth it
        self._taken_at: float = -math.inf  # when units were used last
        self._last: deque[Taken] = deque(maxlen=BATCH)
        self._returns: list[tuple[float, float]] = []
        self._extra: float = 0.0

    def opens_at(self, cost: float) -> float:
        """Return when ``cost`` units may go; inf if more must be granted first."""
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
        """Let ``cost`` units go."""
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
        self._extra += max(0.0, cost)

    def correct(self, by: float, taken_at: float) -> None:
        """Count ``by`` units more as gone, or less if negative; the backend is yet to hear it.

        Less counts from now on as well: the backend doesn't know what has gone since ``taken_at``.
        """
        if self.is_alone and self.alone is not None:
            self.alone.correct(by, taken_at)
        else:
            self._extra += by

    def give_back(self, cost: float, taken_at: float) -> None:
        """Hold ``cost`` units again that were taken then, and never used."""
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
        # What was taken longer ago than that has had its turn: it is lost.

    def go_on_from(self, other: object) -> None:
        """Have what is held by the meter that it replaces given back, if it is the same rate's."""
        if (
            isinstance(other, SharedMeter)
            and other.backend is self.backend
            and other.key == self.key
        ):
            other.let_go()
            self._returns, self._extra = other._returns, other._extra

    def is_full(self, now: float) -> bool:
        """Tell whether it is as if nothing had ever gone, as far as this process knows."""
        return not self.is_busy

    @property
    def is_busy(self) -> bool:
        """Whether something is held, or is yet to be said or heard."""
        return bool(self.held) or self.has_news or self.is_alone

    # -- what the backend is told ---------------------------------------------------------------

    @property
    def has_news(self) -> bool:
        """Whether the backend is yet to hear something."""
        return bool(self._returns or self._extra)

    @property
    def lapses_at(self) -> float:
        """When it lapses next that something is held."""
        return min((granted.opens_at for granted in self.held), default=math.inf) + HOLD

    def lapse(self, now: float) -> None:
        """Hold no longer what nobody could use when its turn had come."""
        held, self.held = self.held, deque[Granted]()
        for granted in held:
            if granted.opens_at + HOLD <= now:
                self.batch = 1
                self._returns.append((granted.turn, granted.units))
            else:
                self.held.append(granted)

    def let_go(self) -> None:
        """Hold nothing any more."""
        self._returns += [(granted.turn, granted.units) for granted in self.held]
        self.held.clear()

    def wants(self, costs: Sequence[float], now: float) -> tuple[float, ...]:
        """Say what to ask for, of what is waited for; nothing while enough is held.

        As little as is sure to find a use: twice as much as the last time where that was used and
        somebody wanted more at once, else as much as one needs.
        """
        if not len(self.held) < len(costs) or 2 * len(self.held) > self.batch:
            return ()
        if now - self._taken_at < HOLD:
            self.batch = min(2 * self.batch, BATCH)
        return tuple(costs[len(self.held) : self.batch])

    def request(self, costs: tuple[float, ...]) -> RateRequest:
        """Say what the backend is yet to hear, and that so much is wanted."""
        request = RateRequest(
            key=self.key,
            interval=self.interval,
            burst=self.burst,
            returns=tuple(self._returns),
            extra=self._extra,
            costs=costs,
        )
        self._extra = 0.0
        self._returns = []
        return request

    def receive(self, request: RateRequest, reply: RateReply, ahead: float, chance: float) -> None:
        """Hold what was granted.

        Args:
            request: What was asked for...
            reply: ...and answered.
            ahead: Seconds by which the loop's clock is ahead of the backend's, or less.
            chance: From 0 to 1, so that several processes don't ask all at once.
        """
        self.is_alone = False
        for cost, turn in zip(request.costs, reply.turns, strict=False):
            self.held.append(Granted(turn + ahead, turn, cost))
        if len(reply.turns) == len(request.costs):
            self.again_at = -math.inf
        else:
            # Who has got something lets those go first who have not: or else the process that is
            # nearest to the backend would have all there is.
            pause = AHEAD / 2 if reply.turns else AHEAD / 10
            self.again_at = reply.now + ahead + reply.again_in + pause + chance * AHEAD / 4

    def fail(self, request: RateRequest) -> None:
        """Hear that a request may not have been applied: nothing that frees units is repeated."""
        self._extra += max(0.0, request.extra)

    def __repr__(self) -> str:
        return f"<SharedMeter of {self.key!r} holding {sum(one.units for one in self.held):g}>"


def _less(units: float, by: float) -> float:
    """Subtract units, which may be fractions of many; what is left of rounding is nothing."""
    rest = units - by
    return 0.0 if abs(rest) < 1e-9 * max(1.0, units) else rest
