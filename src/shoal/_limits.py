"""Admission: what may start, and when, as the limits of a runtime allow. Imports the ports; anyio.

A *gate* stands for one part of a ``Limits``, for one key of it: slots, a rate, or both. What wants
to start needs several gates and takes a *seat*. Seats that need the same gates, of the same run,
stand in a *line*. A line is posted at one gate that keeps its first seat waiting; when that gate
opens, the line goes in, or on to another gate that is shut.

Invariants:
- What starts, starts at the moment in which all gates it needs are open to it; while it waits it
  takes up none of them. So two limits can't be taken in two orders, and a gate that is shut delays
  nobody who doesn't need it.
- Nobody waits who could start, and nobody overtakes at a gate: who finds others posted there, waits.
- Lines of one run are served first come, first served; lines of different runs take turns, however
  many each has waiting (start-time fair queueing: P. Goyal, H. Vin, H. Cheng, 1996).
- Only a running attempt holds slots. One that has lent its seat gets it back before new ones; where
  its wait for that is interrupted, it goes on without, and has them as soon as there is room.
- Nothing is lost: no slot and no unit of a rate, not when what took it fails, is cancelled, or is
  cancelled in the very moment in which it is granted.
- Memory follows what is in use: a gate of a key that is as good as new is forgotten.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any, Protocol, final
from weakref import WeakKeyDictionary

from anyio import CancelScope, sleep_forever

from ._action import FunctionAction
from ._cancel import ki_protected, ki_unprotected
from ._errors import BadResult, BadUse, brief
from ._ports import Clock, Waiter
from ._rate import CREDIT, Adaptive, Ended, ForeignMeter, Limits, Meter, Part
from ._state import State, make_state, refuse_awaitable

SWEEP = 64
"""Keys of a limit that are kept without looking whether some could be forgotten."""


# -- gates -----------------------------------------------------------------------------------------


@final
class Gate:
    """One part of a limit, for one key: so many at once, so many per time."""

    __slots__ = (
        "_posts",
        "adapt",
        "alarm_at",
        "changed_at",
        "has_cost",
        "is_keyed",
        "meter",
        "paused_until",
        "posted",
        "seats",
        "size",
        "used",
    )

    def __init__(
        self, size: float | None = None, meter: Meter | ForeignMeter | None = None
    ) -> None:
        """Have ``size`` slots (None: any number), all free, and a rate."""
        self.size = size
        self.meter = meter
        self.used = 0
        self.seats = 0  # that need it: granted, waiting or lent
        self.paused_until = -math.inf
        self.changed_at = -math.inf  # when its slots were last made fewer
        self.is_keyed = False  # whether it is one of many keys
        self.has_cost = False  # whether what it is charged is the user's to say
        self.adapt: Adaptive | None = None
        self.alarm_at = math.inf  # when it is served next, whatever happens
        self.posted = 0  # lines that wait here
        self._posts: list[tuple[_Turn, int, _Line]] = []  # a heap; lines that are gone stay a while

    def opens_at(self, cost: float, *, paid: bool) -> float:
        """Return when it is open to something that costs so much.

        Args:
            cost: Units of its rate.
            paid: Whether these were paid before, so that only a slot is needed.

        Returns -inf or a time that has passed if it is open, inf if time alone won't do.
        """
        if self.size is not None and self.used >= int(self.size):
            return math.inf
        if paid:
            return -math.inf
        opens = self.paused_until
        if self.meter is not None:
            opens = max(opens, self.meter.opens_at(cost))
        return opens

    def is_new(self, now: float) -> bool:
        """Tell whether it is as if it had never been used."""
        return (
            self.seats == 0
            and self.paused_until <= now
            and (self.meter is None or self.meter.is_full(now))
        )

    def post(self, line: _Line) -> None:
        """Have ``line`` wait here."""
        line.gate = self
        line.version += 1
        self.posted += 1
        heappush(self._posts, (line.turn(), line.version, line))

    def unpost(self, line: _Line) -> None:
        """Let ``line`` wait here no more."""
        line.gate = None
        line.version += 1
        self.posted -= 1

    def first(self) -> _Line | None:
        """Return the line whose turn it is, of those that wait here."""
        while self._posts:
            _, version, line = self._posts[0]
            if line.gate is self and line.version == version:
                return line
            heappop(self._posts)
        return None

    def waiting(self) -> int:
        """Count who waits here."""
        return sum(
            len(line.seats)
            for _, version, line in self._posts
            if line.gate is self and line.version == version
        )

    def __repr__(self) -> str:
        size = "" if self.size is None else f" {self.used}/{self.size:g}"
        rate = "" if self.meter is None else " rated"
        return f"<Gate{size}{rate}, {self.posted} lines waiting>"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """How one part of a ``Limits`` is used: ``runtime.limiter(owner).statistics()``."""

    limits: str
    """The part."""
    keys: int
    """Keys that are known at the moment; 1 for a part without ``by=``."""
    in_use: int
    """Slots in use, of all keys together."""
    slots: float | None
    """Slots there are for each key; None: any number. What adapts says what the first key has."""
    waiting: int
    """How many wait and are kept by this part."""
    paused: int
    """Keys that are paused."""


@final
class Limiter:
    """The gates of the ``Limits`` that stand on one owner, for all runs of a runtime."""

    def __init__(self, limits: Limits, admission: Admission) -> None:
        """Have no gates yet but those that there is one of."""
        self._admission = admission
        self._set(limits)

    def _set(self, limits: Limits) -> None:
        self.limits: Limits = limits
        self.parts: tuple[_PartGates, ...] = tuple(map(_PartGates, limits.parts))

    def change(self, limits: Limits) -> None:
        """Have other limits from now on; what waits is judged by them at once.

        What runs goes on: where there are fewer slots than are in use, nothing new starts until
        enough has ended. Parts at the same place keep what they have counted, if they are of the
        same kind: both with ``by=``, or both without.
        """
        if not isinstance(limits, Limits):
            msg = f"limiter.change(limits) takes Limits(...), not {brief(limits)}"
            raise BadUse(msg)
        if len(limits.parts) != len(self.parts) or any(
            (part.by is None) != (gates.part.by is None)
            for part, gates in zip(limits.parts, self.parts, strict=True)
        ):
            msg = (
                f"{self.limits!r} can't be changed into {limits!r} while it is in use: the same "
                f"parts are needed, in the same order, with other numbers"
            )
            raise BadUse(msg)
        self.limits = limits
        for part, gates in zip(limits.parts, self.parts, strict=True):
            gates.part = part
            for gate in gates.gates.values():
                gate.size = part.n
                meter = part.meter()
                if isinstance(meter, Meter) and isinstance(gate.meter, Meter):
                    meter.tat = gate.meter.tat
                gate.meter = meter
                self._admission.serve(gate)

    def statistics(self) -> tuple[Statistics, ...]:
        """Say how each part is used."""
        now = self._admission.clock()
        return tuple(
            Statistics(
                limits=repr(gates.part),
                keys=len(gates.gates),
                in_use=sum(gate.used for gate in gates.gates.values()),
                slots=next((gate.size for gate in gates.gates.values()), gates.part.n),
                waiting=sum(gate.waiting() for gate in gates.gates.values()),
                paused=sum(gate.paused_until > now for gate in gates.gates.values()),
            )
            for gates in self.parts
        )

    def __repr__(self) -> str:
        used = ", ".join(f"{one.in_use} in use, {one.waiting} waiting" for one in self.statistics())
        return f"<Limiter of {self.limits!r}: {used}>"


@final
class _PartGates:
    """The gates of one part of a limit, by key."""

    __slots__ = ("_sweep_at", "gates", "part")

    def __init__(self, part: Part) -> None:
        self.part = part
        self.gates: dict[Hashable, Gate] = {}
        self._sweep_at = SWEEP

    def find(self, state: State, now: float) -> tuple[Gate, float]:
        """Find the gate for what starts from ``state``, and what it costs there."""
        part = self.part
        cost = 1.0 if part.cost is None else _cost(part, state)
        key = None if part.by is None else _key(part, state)
        gate = self.gates.get(key)
        if gate is None:
            if len(self.gates) >= self._sweep_at:
                self._sweep(now)
            gate = self.gates[key] = self.make()
        return gate, cost

    def make(self) -> Gate:
        """Make a gate for one more key."""
        gate = Gate(self.part.n, self.part.meter())
        gate.is_keyed = self.part.by is not None
        gate.has_cost = self.part.cost is not None
        gate.adapt = self.part.adapt
        return gate

    def _sweep(self, now: float) -> None:
        """Forget the keys that are as good as new; each is looked at twice at most, on average."""
        self.gates = {key: gate for key, gate in self.gates.items() if not gate.is_new(now)}
        self._sweep_at = max(SWEEP, 2 * len(self.gates))


@ki_unprotected
def _cost(part: Part, state: State) -> float:
    assert part.cost is not None
    cost = part.cost(state)
    if not isinstance(cost, int | float) or isinstance(cost, bool) or not 0 <= cost < math.inf:
        refuse_awaitable(cost, "Limits(cost=...)")
        msg = f"{part!r}: cost= returned {brief(cost)}; it returns a number of units, at least 0"
        raise BadResult(msg)
    meter = part.meter()
    if meter is not None and cost > meter.burst:
        msg = (
            f"{part!r}: something costs {cost:g}, and no more than {meter.burst:g} may go at once, "
            f"so it could never start; allow more: Rate(..., burst=...)"
        )
        raise BadResult(msg)
    return float(cost)


@ki_unprotected
def _key(part: Part, state: State) -> Hashable:
    assert part.by is not None
    key = part.by(state)
    try:
        hash(key)
    except TypeError:
        msg = f"{part!r}: by= returned {brief(key)}, which is not hashable; return a str, say"
        raise BadResult(msg) from None
    refuse_awaitable(key, "Limits(by=...)")
    return key


# -- lines and seats -------------------------------------------------------------------------------

_Turn = tuple[bool, float, int]


class Unit(Protocol):
    """What takes turns with others: an execution."""

    tag: float
    """When its latest seat is due, on the clock that counts seats granted to each."""


@final
class _Line:
    """Seats of one unit that need the same gates, by the number of their arrival."""

    __slots__ = ("gate", "is_behind", "key", "seats", "version")

    def __init__(self, key: Hashable, *, is_behind: bool) -> None:
        self.key = key
        self.is_behind = is_behind
        self.seats: OrderedDict[Seat, int] = OrderedDict()  # a dict is slow to find its first
        self.gate: Gate | None = None  # where it waits
        self.version = 0  # of its post there

    def first(self) -> Seat:
        """Return the first seat."""
        return next(iter(self.seats))

    def turn(self) -> _Turn:
        """Say when the first seat is due, compared to those of other lines."""
        seat, arrival = next(iter(self.seats.items()))
        return self.is_behind, seat.tag, arrival


@final
class Seat:
    """What something holds while it runs; see the port of that name."""

    __slots__ = (
        "_admission",
        "_lent",
        "_on_granted",
        "_over",
        "costs",
        "granted",
        "line",
        "needed",
        "paid",
        "started_at",
        "tag",
        "unit",
        "waiter",
    )

    def __init__(
        self,
        admission: Admission,
        needed: tuple[Gate, ...],
        costs: tuple[float, ...] | None = None,
        unit: Unit | None = None,
        on_granted: Callable[[], None] | None = None,
    ) -> None:
        """Be granted all that is ``needed``, no two the same, or wait for it.

        Args:
            admission: Grants it.
            needed: The gates.
            costs: What it costs at each of them; None: 1.
            unit: Takes turns with others.
            on_granted: Called when it is granted after a wait; None: somebody calls ``wait``.
        """
        self._admission = admission
        self._on_granted = on_granted
        self._lent = 0  # how many have asked for it to be given back meanwhile
        self._over = False
        self.needed = needed
        self.costs = costs
        self.unit = unit
        self.tag = 0.0
        self.paid = False  # whether its rates were charged
        self.granted = False
        self.started_at = 0.0
        self.line: _Line | None = None
        self.waiter: Waiter | None = None
        for gate in needed:
            gate.seats += 1
        admission.enter(self)

    @property
    def is_waiting(self) -> bool:
        """Whether it stands in line."""
        return self.line is not None

    def cost(self, at: int) -> float:
        """Return what it costs at one of the gates it needs."""
        return 1.0 if self.costs is None else self.costs[at]

    async def wait(self) -> None:
        """Wait until it is granted; cancelled meanwhile, it holds nothing."""
        while self.line is not None or self.waiter is not None:
            waiter = self.waiter
            if waiter is None:
                waiter = self.waiter = self._admission.waiter()
            try:
                await waiter
            except BaseException:
                self.waiter = None
                self.cancel()
                raise
            self.waiter = None

    def wake(self) -> None:
        """Tell whoever waits that it is granted, or waits no more."""
        if self._on_granted is not None:
            if self.granted:
                self._on_granted()
        elif self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    @property
    def is_gone(self) -> bool:
        """Whether whoever waits for it is being cancelled."""
        return self.waiter is not None and self.waiter.done()

    def cancel(self) -> None:
        """Give back what it holds, which was never used: what it paid, too."""
        if self.granted and self.paid:
            self._admission.refund(self)
        self.leave()

    def leave(self) -> None:
        """Give back what it holds, for good."""
        if self._over:
            return
        self._over = True
        self._admission.leave(self)
        for gate in self.needed:
            gate.seats -= 1

    def lend(self) -> None:
        """Give back what it holds until it was regained or reclaimed as often.

        If another task of the attempt waits to regain it, that goes on without.
        """
        self._lent += 1
        self._admission.leave(self)
        self.wake()

    async def regain(self) -> None:
        """Take the slots again, ahead of new attempts; cancelled meanwhile, reclaim them."""
        self._lent -= 1
        if self._is_vacant():
            self._admission.enter(self, ahead=True)
            while self.line is not None:
                self.waiter = self._admission.waiter()
                try:
                    await self.waiter
                except BaseException:
                    self.waiter = None
                    self._claim()
                    raise
                self.waiter = None

    def reclaim(self) -> None:
        """Take the slots again without waiting; see the port."""
        self._lent -= 1
        self._claim()

    def charge(self, actual: float) -> None:
        """Correct what it was charged, at all gates where it had a cost of its own."""
        self._admission.charge(self, actual)

    def pause(self, seconds: float) -> bool:
        """Let nothing more start at the gates that are one of many keys; tell if there are any."""
        return self._admission.pause(self, seconds)

    def _is_vacant(self) -> bool:
        """Whether the attempt runs, itself, and holds no slots."""
        return not (self.granted or self._lent or self._over)

    def _claim(self) -> None:
        if self._is_vacant():
            self._admission.leave(self)  # waits no more
            self._admission.take(self)

    def __repr__(self) -> str:
        state = "granted" if self.granted else "free" if self.line is None else "waiting"
        return f"<Seat {state}, needs {self.needed}>"


# -- admission -------------------------------------------------------------------------------------


@final
class Admission:
    """Lets things start, as the limits of a runtime allow. Belongs to one event loop."""

    def __init__(
        self,
        waiter: Callable[[], Waiter],
        clock: Clock,
        start: Callable[[Callable[[], Awaitable[None]]], None] | None = None,
    ) -> None:
        """Admit everybody at first.

        Args:
            waiter: Makes what an attempt waits for.
            clock: The loop's.
            start: Starts the task that keeps time, when there is first something to be waited for;
                None: nothing will be, but slots.
        """
        self.waiter = waiter
        self.clock = clock
        self._start = start
        self._limiters: WeakKeyDictionary[object, dict[str, Limiter]] = WeakKeyDictionary()
        self._lines: dict[Hashable, _Line] = {}  # only where somebody waits
        self._arrivals = count()
        self._tag = 0.0  # of what was granted last
        self._alarms: list[tuple[float, int, Gate]] = []  # a heap
        self._sleep: CancelScope | None = None
        self._closed = False

    def limiter(self, owner: object, limits: Limits, name: str = "") -> Limiter:
        """Find the gates of the limits that stand on ``owner``; make them if there are none yet.

        Args:
            owner: A runtime, an application, an action, a fan-out.
            limits: The limits.
            name: Tells several of one owner apart.
        """
        named = self._limiters.get(owner)
        if named is None:
            named = self._limiters[owner] = {}
        found = named.get(name)
        if found is None:
            found = named[name] = Limiter(limits, self)
        return found

    def shared(self, owner: object, limits: Limits, name: str = "") -> _Gates | None:
        """Find what lets the children of a fan-out start; see the port."""
        shared = limits.shared
        return None if shared is None else _Gates(self, self.limiter(owner, shared, name))

    def seat(
        self,
        scopes: tuple[object, ...],
        action: FunctionAction[..., Any],
        data: Mapping[str, object],
        unit: Unit | None = None,
    ) -> Seat | None:
        """Take a seat for an attempt, granted at once where there is room; see the port."""
        limiters: tuple[Any, ...] = scopes
        if action.limits is not None:
            limiters = (*scopes, self.limiter(action.definition, action.limits))
        return self.seat_at(limiters, data, unit) if limiters else None

    def seat_at(
        self,
        limiters: tuple[Limiter, ...],
        data: Mapping[str, object],
        unit: Unit | None = None,
        on_granted: Callable[[], None] | None = None,
        besides: tuple[Gate, ...] = (),
    ) -> Seat:
        """Take a seat at the gates of some limits.

        Args:
            limiters: The limits.
            data: The state from which something is to start.
            unit: Takes turns with others.
            on_granted: Called when it is granted, if it has to wait; None: somebody calls ``wait``.
            besides: Gates that are needed besides.
        """
        parts = [gates for limiter in limiters for gates in limiter.parts]
        if all(gates.part.by is None and gates.part.cost is None for gates in parts):
            return Seat(self, (*_plain(parts), *besides), None, unit, on_granted)
        state, now = make_state(data), self.clock()
        found = [gates.find(state, now) for gates in parts]
        needed = (*(gate for gate, _ in found), *besides)
        costs = (*(cost for _, cost in found), *(1.0 for _ in besides))
        return Seat(self, needed, costs, unit, on_granted)

    # -- coming and going -----------------------------------------------------------------------

    @ki_protected
    def enter(self, seat: Seat, *, ahead: bool = False) -> None:
        """Grant ``seat`` what it needs, or have it wait: ``ahead`` of those that are not."""
        key = ahead, seat.unit, seat.needed
        line = self._lines.get(key) if self._lines else None
        if line is None:
            gate = self._shut(seat, (not ahead, math.inf, 0))
            if gate is None:
                self.take(seat)
                return
            line = self._lines[key] = _Line(key, is_behind=not ahead)
            self._join(seat, line)
            self._post(line, gate)
        else:
            self._join(seat, line)

    def _join(self, seat: Seat, line: _Line) -> None:
        unit = seat.unit
        if unit is not None:
            seat.tag = unit.tag = max(self._tag, unit.tag + 1.0)
        line.seats[seat] = next(self._arrivals)
        seat.line = line

    def _shut(self, seat: Seat, turn: _Turn, *, but: Gate | None = None) -> Gate | None:
        """Find a gate that keeps ``seat`` waiting; None if all are open, ``but`` set aside."""
        now: float | None = None
        for at, gate in enumerate(seat.needed):
            if gate is but:
                continue
            if gate.posted:
                first = gate.first()
                if first is not None and first.turn() < turn:  # nobody overtakes
                    return gate
            opens = gate.opens_at(seat.cost(at), paid=seat.paid)
            if opens == -math.inf:
                continue
            now = self.clock() if now is None else now
            if opens > now:
                return gate
        return None

    @ki_protected
    def take(self, seat: Seat, *, at: Gate | None = None, credit: float = 0.0) -> None:
        """Count what ``seat`` needs as taken, whether or not there is room."""
        seat.granted = True
        if seat.paid:
            for gate in seat.needed:
                gate.used += 1
            return
        seat.paid = True
        now: float | None = None
        for index, gate in enumerate(seat.needed):
            gate.used += 1
            if gate.adapt is not None:
                seat.started_at = now = self.clock() if now is None else now
            if gate.meter is not None:
                now = self.clock() if now is None else now
                gate.meter.take(now, seat.cost(index), credit if gate is at else 0.0)

    @ki_protected
    def leave(self, seat: Seat) -> None:
        """Take back what ``seat`` holds, and grant it to who waits; or let it wait no more."""
        if seat.granted:
            seat.granted = False
            for gate in seat.needed:
                gate.used -= 1
            if self._lines:
                self.serve(*seat.needed)
        elif seat.line is not None:
            self._drop(seat, seat.line)

    def _drop(self, seat: Seat, line: _Line) -> None:
        """Take a seat out of its line, whose turn may come later by that."""
        gate = line.gate
        assert gate is not None, "who waits, waits somewhere"
        gate.unpost(line)
        del line.seats[seat]
        seat.line = None
        if line.seats:
            gate.post(line)
        else:
            del self._lines[line.key]
        self.serve(gate)

    def _post(self, line: _Line, gate: Gate) -> None:
        """Have ``line`` wait at ``gate``, and look again when that opens by itself."""
        gate.post(line)
        if gate.first() is line:
            self._set_alarm(gate, line.first())

    def _set_alarm(self, gate: Gate, seat: Seat) -> None:
        at = seat.needed.index(gate)
        opens = gate.opens_at(seat.cost(at), paid=seat.paid)
        if opens == math.inf and isinstance(gate.meter, ForeignMeter):
            opens = self.clock() + gate.meter.pause
        if -math.inf < opens < math.inf:
            self._wake_at(opens, gate)

    @ki_protected
    def serve(self, *gates: Gate, due: float = math.inf) -> None:
        """Grant what can be granted of what waits at ``gates``, in turn.

        Args:
            gates: They may have opened.
            due: When that was to happen, if it is time that has opened one. A rate doesn't lose the
                seconds by which timers are late.
        """
        serving = [gate for gate in gates if gate.posted]
        while serving:
            gate = serving[0]
            if len(serving) > 1:
                gate = min(serving, key=_first_turn)
            line = gate.first()
            if line is None:
                serving.remove(gate)
                continue
            seat = line.first()
            opens = gate.opens_at(seat.cost(seat.needed.index(gate)), paid=seat.paid)
            now = self.clock()
            if opens > now and not seat.is_gone:
                self._set_alarm(gate, seat)
                serving.remove(gate)
                continue
            other = None if seat.is_gone else self._shut(seat, line.turn(), but=gate)
            gate.unpost(line)
            if other is not None:
                self._post(line, other)
                continue
            if not seat.is_gone:
                self._tag = max(self._tag, seat.tag)
                credit = min(now - opens, CREDIT) if opens >= due else 0.0
                self.take(seat, at=gate, credit=credit)
            del line.seats[seat]
            seat.line = None
            if line.seats:
                gate.post(line)  # looked at again, when it is its turn
            else:
                del self._lines[line.key]
            seat.wake()

    # -- rates ------------------------------------------------------------------------------------

    def refund(self, seat: Seat) -> None:
        """Give back what was charged for something that never started."""
        seat.paid = False
        for at, gate in enumerate(seat.needed):
            if gate.meter is not None:
                gate.meter.correct(-seat.cost(at))
                if gate.posted:
                    self.serve(gate)

    def charge(self, seat: Seat, actual: float) -> None:
        """Correct what ``seat`` was charged, wherever it has a cost of its own."""
        if seat.costs is None:
            return
        costs = list(seat.costs)
        for at, gate in enumerate(seat.needed):
            if gate.has_cost and gate.meter is not None:
                gate.meter.correct(actual - costs[at])
                costs[at] = actual
                if gate.posted:
                    self.serve(gate)
        seat.costs = tuple(costs)

    def pause(self, seat: Seat, seconds: float) -> bool:
        """Let nothing start at those gates of ``seat`` that are one of many keys, for a while.

        Returns whether there is one.
        """
        until = self.clock() + seconds
        keyed = [gate for gate in seat.needed if gate.is_keyed]
        for gate in keyed:
            gate.paused_until = max(gate.paused_until, until)
            if gate.posted:
                self.serve(gate)  # which waits for the new time
        return bool(keyed)

    def adapt(self, seat: Seat, error: BaseException | None) -> None:
        """Hear how an attempt ended that held ``seat``, before it leaves."""
        now = self.clock()
        for gate in seat.needed:
            if gate.adapt is None or gate.size is None:
                continue
            seconds, in_use = now - seat.started_at, gate.used
            ended = Ended(error, seconds, seat.started_at, now, in_use)
            size = gate.adapt.after(gate.size, gate.changed_at, ended)
            if size < gate.size:
                gate.changed_at = now
            gate.size = max(1.0, size)
            if gate.posted:
                self.serve(gate)

    # -- time ---------------------------------------------------------------------------------------

    def _wake_at(self, when: float, gate: Gate) -> None:
        """See to it that ``gate`` is served then."""
        if gate.alarm_at <= when:
            return
        gate.alarm_at = when
        first = self._alarms[0][0] if self._alarms else math.inf
        heappush(self._alarms, (when, next(self._arrivals), gate))
        if when >= first:
            return
        if self._sleep is not None:
            self._sleep.deadline = when
        elif self._start is not None and not self._closed:
            self._sleep = CancelScope(deadline=when)
            self._start(self._keep_time)

    @ki_protected
    async def _keep_time(self) -> None:
        """Serve each gate when it opens by itself; the only task that sleeps for limits."""
        assert self._sleep is not None
        while not self._closed:
            with self._sleep:
                await sleep_forever()
            now = self.clock()
            while self._alarms and self._alarms[0][0] <= now:
                when, _, gate = heappop(self._alarms)
                if gate.alarm_at == when:
                    gate.alarm_at = math.inf
                    self.serve(gate, due=when)
            # A scope whose deadline has passed is used up.
            self._sleep = CancelScope(deadline=self._alarms[0][0] if self._alarms else math.inf)

    def close(self) -> None:
        """Stop keeping time: nothing waits any more."""
        self._closed = True
        if self._sleep is not None:
            self._sleep.cancel()


@final
class _Gates:
    """What lets the children of a fan-out start; see the port."""

    __slots__ = ("_admission", "_limiters")

    def __init__(self, admission: Admission, limiter: Limiter) -> None:
        self._admission = admission
        self._limiters = (limiter,)

    def seat(self, data: Mapping[str, object], unit: Any, on_granted: Callable[[], None]) -> Seat:
        return self._admission.seat_at(self._limiters, data, unit, on_granted)


def _first_turn(gate: Gate) -> _Turn:
    line = gate.first()
    return (True, math.inf, 0) if line is None else line.turn()


def _plain(parts: list[_PartGates]) -> list[Gate]:
    """Find the gates of parts that have one each."""
    found: list[Gate] = []
    for gates in parts:
        gate = gates.gates.get(None)
        if gate is None:
            gate = gates.gates[None] = gates.make()
        found.append(gate)
    return found
