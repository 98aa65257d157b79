"""Admission: what may start, and when, as the limits of a runtime allow. Imports the ports; anyio.

A *gate* stands for one part of a ``Limits``, for one key of it: slots, a rate, or both. What wants
to start needs several gates and takes a *seat*. Seats that need the same gates, of the same run,
stand in a *line*. A line is posted at one gate that keeps its first seat waiting; when that gate
opens, the line goes in, or on to another gate that is shut.

Invariants:
- What starts, starts at the moment in which all gates it needs are open to it; while it waits it
  takes up none of them. So two limits can't be taken in two orders, and a gate that is shut delays
  nobody who doesn't need it.
- Nobody waits who could start, and nobody overtakes at a gate: who finds others there, waits.
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
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any, Protocol, final
from weakref import WeakKeyDictionary

from ._action import FunctionAction
from ._cancel import ki_protected, ki_unprotected
from ._errors import BadResult, BadUse, DefinitionError, brief
from ._ports import Clock, Waiter
from ._rate import CREDIT, Adaptive, Ended, ForeignMeter, Limits, Meter, Part, Rate
from ._run import Run
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
        "key",
        "meter",
        "part",
        "paused_until",
        "posted",
        "seats",
        "size",
        "used",
    )

    def __init__(
        self, size: float | None = None, part: Part | None = None, key: Hashable = None
    ) -> None:
        """Have ``size`` slots (None: any number), all free, and the rate of ``part``."""
        self.size: float | None = size
        self.part: Part | None = part
        self.key: Hashable = key
        self.meter: Meter | ForeignMeter | None = None if part is None else part.meter()
        self.adapt: Adaptive | None = None if part is None else part.adapt
        self.used: int = 0
        self.seats: int = 0  # that need it: granted, waiting or lent
        self.paused_until: float = -math.inf
        self.changed_at: float = -math.inf  # when its slots were last made fewer
        self.alarm_at: float = math.inf  # when it is served next, whatever happens
        self.posted: int = 0  # lines that wait here
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

    @property
    def is_keyed(self) -> bool:
        """Whether it is one of many keys."""
        return self.part is not None and self.part.by is not None

    @property
    def has_cost(self) -> bool:
        """Whether what it is charged is the user's to say."""
        return self.part is not None and self.part.cost is not None

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
            for gate in list(gates.gates.values()):
                gate.part, gate.size, gate.adapt = part, part.n, part.adapt
                meter = part.meter()
                if isinstance(meter, Meter) and isinstance(gate.meter, Meter):
                    meter.go_on_from(gate.meter)
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
            gate = self.gates[key] = Gate(part.n, part, key)
        return gate, cost

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
        self.key: Hashable = key
        self.is_behind: bool = is_behind
        self.seats: OrderedDict[Seat, int] = OrderedDict()  # a dict is slow to find its first
        self.gate: Gate | None = None  # where it waits
        self.version: int = 0  # of its post there

    def first(self) -> Seat:
        """Return the first seat."""
        return next(iter(self.seats))

    def turn(self) -> _Turn:
        """Say when the first seat is due, compared to those of other lines."""
        seat, arrival = next(iter(self.seats.items()))
        return self.is_behind, seat.tag, arrival


class Party(Protocol):
    """Who takes a seat: a run."""

    @property
    def unit(self) -> Unit:
        """What takes turns with others: its execution."""
        ...

    @property
    def stake(self) -> Any:
        """What it holds while it is in flight, if it is a child and that is known already."""
        ...

    def make_stake(self) -> Any:
        """Say what it holds from now on, if it is a child."""
        ...


@final
class Stake:
    """What a child of a fan-out holds while it is in flight: its place, and its fan-out's gates.

    A child that must wait for something else gives it back meanwhile: it steps aside. It is held
    again in the very moment in which the child gets what it waits for. So the seat of an attempt
    that waits is *loaded* with it.
    """

    __slots__ = (
        "_admission",
        "_on_aside",
        "costs",
        "gates",
        "is_aside",
        "is_due",
        "is_held",
        "since",
    )

    def __init__(
        self,
        admission: Admission,
        gates: tuple[Gate, ...],
        costs: tuple[float, ...],
        on_aside: Callable[[int], None],
        *,
        is_held: bool = False,
    ) -> None:
        """Begin.

        Args:
            admission: Grants it.
            gates: The child's place, then what its fan-out needs for it.
            costs: What it costs at each of them.
            on_aside: Called with 1 when the child has stepped aside, with -1 when it is back.
            is_held: Whether it is counted already.
        """
        self._admission = admission
        self._on_aside = on_aside
        self.gates: tuple[Gate, ...] = gates
        self.costs: tuple[float, ...] = costs
        self.is_held: bool = is_held
        self.is_due: bool = not is_held  # whether its rates are charged when it is held next
        self.is_aside: bool = False
        self.since: float | None = None  # when it was held, where that is asked for
        for gate in gates:
            gate.seats += 1

    def step_aside(self) -> None:
        """Give it back until it is needed again."""
        self.is_aside = True
        self._give_back()
        self._on_aside(1)

    def hold(self, *, since: float | None = None) -> None:
        """Hear that it was counted."""
        self.is_held = True
        self.is_due = False
        self.since = since
        if self.is_aside:
            self.is_aside = False
            self._on_aside(-1)

    def resume(self) -> None:
        """Hold it again, whether or not there is room: for a child that is about to end."""
        if self.is_aside:
            for gate in self.gates:
                gate.used += 1
            self.hold()

    def leave(self) -> None:
        """Give it back for good."""
        self._give_back()
        self._on_aside = _nothing
        for gate in self.gates:
            gate.seats -= 1

    def refund(self) -> None:
        """Give back what was charged for a child that never started."""
        if not self.is_due:
            self._admission.correct(self.gates, [-cost for cost in self.costs])

    def _give_back(self) -> None:
        if self.is_held:
            self.is_held = False
            for gate in self.gates:
                gate.used -= 1
            self._admission.serve(*self.gates)

    def __repr__(self) -> str:
        return f"<Stake {'held' if self.is_held else 'not held'}, {self.gates}>"


@final
class Seat:
    """What something holds while it runs; see the port of that name."""

    __slots__ = (
        "_admission",
        "_is_loaded",
        "_lent",
        "_on_granted",
        "_over",
        "_party",
        "costs",
        "granted",
        "line",
        "needed",
        "paid",
        "since",
        "stake",
        "tag",
        "unit",
        "waiter",
    )

    def __init__(
        self,
        admission: Admission,
        needed: tuple[Gate, ...],
        costs: tuple[float, ...] | None = None,
        party: Party | None = None,
        *,
        on_granted: Callable[[], None] | None = None,
        stake: Stake | None = None,
    ) -> None:
        """Be granted all that is ``needed``, no two the same, or wait for it.

        Args:
            admission: Grants it.
            needed: The gates.
            costs: What it costs at each of them; None: 1.
            party: Whose it is.
            on_granted: Called when it is granted after a wait; None: somebody calls ``wait``.
            stake: What has to be held besides.
        """
        self._admission = admission
        self._party = party
        self._on_granted = on_granted
        self._lent = 0  # how many have asked for it to be given back meanwhile
        self._over = False
        self._is_loaded = False
        self.needed: tuple[Gate, ...] = needed
        self.costs: tuple[float, ...] | None = costs
        self.unit: Unit | None = None if party is None else party.unit
        self.tag: float = 0.0
        self.paid: bool = False  # whether its rates were charged
        self.granted: bool = False
        self.since: float | None = None  # when it was granted, where that is asked for
        self.line: _Line | None = None
        self.waiter: Waiter | None = None
        self.stake = stake
        for gate in needed:
            gate.seats += 1
        if stake is not None and not stake.is_held:
            self._load(stake)
        admission.enter(self)
        if self.granted:
            self._on_granted = None

    # -- its stake ------------------------------------------------------------------------------

    def _load(self, stake: Stake) -> None:
        """Need the stake besides, and not pay for it twice."""
        own = (1.0,) * len(self.needed) if self.costs is None else self.costs
        self.stake = stake
        self.needed = (*stake.gates, *self.needed)
        self.costs = (*(stake.costs if stake.is_due else (0.0,) * len(stake.gates)), *own)
        self._is_loaded = True

    def unload(self, now: float | None = None) -> None:
        """Leave to the stake what is the stake's: it was granted."""
        if self._is_loaded:
            self._take_off().hold(since=now)

    def _take_off(self) -> Stake:
        stake = self.stake
        assert stake is not None, "it is loaded with one"
        assert self.costs is not None
        self._is_loaded = False
        self.needed = self.needed[len(stake.gates) :]
        self.costs = self.costs[len(stake.gates) :]
        return stake

    def load_to_wait(self) -> Stake | None:
        """Have the child that must wait step aside, if what it waits for may take its time.

        A slot doesn't: whoever has it runs, and gives it back.

        Returns the stake that is to be given back, once this stands in line.
        """
        if self._is_loaded or self._party is None:
            return None
        if not any(gate.meter is not None or gate.is_keyed for gate in self.needed):
            return None
        stake: Stake | None = self._party.make_stake()
        if stake is not None:
            self._load(stake)
        return stake

    @property
    def is_waiting(self) -> bool:
        """Whether it stands in line."""
        return self.line is not None

    def cost(self, at: int) -> float:
        """Return what it costs at one of the gates it needs."""
        return 1.0 if self.costs is None else self.costs[at]

    async def wait(self) -> None:
        """Wait until it is granted; cancelled meanwhile, it holds nothing."""
        try:
            while self.line is not None or self.waiter is not None:
                waiter = self.waiter
                if waiter is None:
                    waiter = self.waiter = self._admission.waiter()
                await waiter
                self.waiter = None
        except BaseException:
            self.waiter = None
            self.cancel()
            raise

    def wake(self) -> None:
        """Tell whoever waits that it is granted, or waits no more."""
        if self._on_granted is not None:
            if self.granted:
                on_granted, self._on_granted = self._on_granted, None
                on_granted()
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
        if self._is_loaded:  # it was never granted
            self._take_off().resume()
        for gate in self.needed:
            gate.seats -= 1
        self.wake()  # another task of the attempt may wait to regain it

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

    @property
    def awaited(self) -> tuple[str, object]:
        """What keeps it waiting: the limit, and which key of it."""
        gate = None if self.line is None else self.line.gate
        if gate is None or gate.part is None:
            return "in flight", None
        return repr(gate.part), gate.key

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
        alarm: Callable[[float, Callable[[], None]], Callable[[], object]] | None = None,
        *,
        takes_foreign: bool = True,
    ) -> None:
        """Admit everybody at first.

        Args:
            waiter: Makes what an attempt waits for.
            clock: The loop's.
            alarm: Has a function called at a time, and returns what takes that back; None: nothing
                will be waited for but slots.
            takes_foreign: Whether rates that are not ours work here: they are made for asyncio.
        """
        self.waiter = waiter
        self.clock = clock
        self._alarm = alarm
        self._takes_foreign = takes_foreign
        self._limiters: WeakKeyDictionary[object, dict[str, Limiter]] = WeakKeyDictionary()
        self._lines: dict[Hashable, _Line] = {}  # only where somebody waits
        self._arrivals = count()
        self._tag = 0.0  # of what was granted last
        self._alarms: list[tuple[float, int, Gate]] = []  # a heap
        self._silence: Callable[[], object] | None = None  # takes back the next alarm

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
            if not self._takes_foreign:
                _refuse_foreign(limits)
            found = named[name] = Limiter(limits, self)
        return found

    def entrance(
        self,
        owner: object,
        limits: Limits,
        places: int,
        on_aside: Callable[[int], None],
        among: str = "",
    ) -> Entrance:
        """Make what lets the children of a fan-out start; see the port."""
        shared = limits.shared
        limiter = None if shared is None else self.limiter(owner, shared, among)
        place = Gate(places)
        place.adapt = limits.adapts_in_flight
        return Entrance(self, place, limiter, on_aside)

    def place(self, party: Party) -> Seat:
        """Take again what a child holds in flight, which has stepped aside."""
        return Seat(self, (), None, party, stake=party.stake)

    def seat(
        self,
        scopes: tuple[object, ...],
        action: FunctionAction[..., Any],
        data: Mapping[str, object],
        party: Party | None = None,
    ) -> Seat | None:
        """Take a seat for an attempt, granted at once where there is room; see the port."""
        stake: Stake | None = None if party is None else party.stake
        limiters = self._limiters_of(scopes, action)
        if not limiters and (stake is None or stake.is_held):
            return None
        needed, costs = self._gates(limiters, data)
        return Seat(self, needed, costs, party, stake=stake)

    def _limiters_of(
        self, scopes: tuple[object, ...], action: FunctionAction[..., Any]
    ) -> tuple[Limiter, ...]:
        limiters: tuple[Any, ...] = scopes
        if action.limits is not None:
            limiters = (*scopes, self.limiter(action.definition, action.limits))
        return limiters

    def _gates(
        self, limiters: Sequence[Limiter], data: Mapping[str, object]
    ) -> tuple[tuple[Gate, ...], tuple[float, ...] | None]:
        """Find the gates that are needed to start from ``data``, and what it costs there."""
        parts = [gates for limiter in limiters for gates in limiter.parts]
        if all(gates.part.by is None and gates.part.cost is None for gates in parts):
            return tuple(_plain(parts)), None
        state, now = make_state(data), self.clock()
        found = [gates.find(state, now) for gates in parts]
        return tuple(gate for gate, _ in found), tuple(cost for _, cost in found)

    # -- coming and going -----------------------------------------------------------------------

    @ki_protected
    def enter(self, seat: Seat, *, ahead: bool = False) -> None:
        """Grant ``seat`` what it needs, or have it wait: ``ahead`` of those that are not."""
        gate: Gate | None = None
        line = self._lines.get((ahead, seat.unit, seat.needed)) if self._lines else None
        if line is None:
            gate = self._shut(seat, (not ahead, math.inf, 0))
            if gate is None:
                self.take(seat)
                return
        stake = None if ahead else seat.load_to_wait()
        key = ahead, seat.unit, seat.needed
        if stake is not None:
            line = self._lines.get(key)
        if line is None:
            gate = gate or self._shut(seat, (not ahead, math.inf, 0))
            assert gate is not None, "others wait in front of it"
            line = self._lines[key] = _Line(key, is_behind=not ahead)
            self._join(seat, line)
            self._post(line, gate)
        else:
            self._join(seat, line)
        if stake is not None:
            stake.step_aside()

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
        since: float | None = None
        for index, gate in enumerate(seat.needed):
            gate.used += 1
            if gate.adapt is not None:
                since = now = self.clock() if now is None else now
            if gate.meter is not None:
                now = self.clock() if now is None else now
                gate.meter.take(now, seat.cost(index), credit if gate is at else 0.0)
        seat.since = since
        seat.unload(since)

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
            self._end_line(line)
        self.serve(gate)

    def _end_line(self, line: _Line) -> None:
        del self._lines[line.key]
        if not self._lines:  # nobody waits for a time any more
            for _, _, gate in self._alarms:
                gate.alarm_at = math.inf
            self._alarms.clear()
            self._take_back_alarm()

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
                self._end_line(line)
            seat.wake()

    # -- rates ------------------------------------------------------------------------------------

    def refund(self, seat: Seat) -> None:
        """Give back what was charged for something that never started."""
        seat.paid = False
        self.correct(seat.needed, [-seat.cost(at) for at in range(len(seat.needed))])

    def correct(self, gates: Sequence[Gate], costs: Sequence[float]) -> None:
        """Count so much more as gone at each of ``gates``, or less."""
        for gate, cost in zip(gates, costs, strict=True):
            if gate.meter is not None and cost:
                gate.meter.correct(cost)
                if gate.posted:
                    self.serve(gate)

    def charge(self, seat: Seat | None, stake: Stake | None, actual: float) -> None:
        """Correct what an attempt was charged, and its child, wherever ``cost=`` said it."""
        for held in (seat, stake):
            if held is not None and held.costs is not None:
                gates = held.needed if isinstance(held, Seat) else held.gates
                due = tuple(
                    actual if gate.has_cost else cost
                    for gate, cost in zip(gates, held.costs, strict=True)
                )
                self.correct(gates, [new - old for new, old in zip(due, held.costs, strict=True)])
                held.costs = due

    def pause(self, seat: Seat | None, stake: Stake | None, seconds: float) -> bool:
        """Let nothing start for a while at those gates that are one of many keys; see the port."""
        until = self.clock() + seconds
        gates = (*(() if seat is None else seat.needed), *(() if stake is None else stake.gates))
        keyed = [gate for gate in gates if gate.is_keyed]
        for gate in keyed:
            gate.paused_until = max(gate.paused_until, until)
            if gate.posted:
                self.serve(gate)  # which waits for the new time
        return bool(keyed)

    def adapt(self, held: Seat | Stake, error: BaseException | None) -> None:
        """Hear how something ended, before it gives back what it holds."""
        if held.since is None:
            return
        now = self.clock()
        for gate in held.needed if isinstance(held, Seat) else held.gates:
            if gate.adapt is None or gate.size is None:
                continue
            ended = Ended(error, now - held.since, held.since, now, gate.used)
            size = gate.adapt.after(gate.size, gate.changed_at, ended)
            if size < gate.size:
                gate.changed_at = now
            gate.size = max(1.0, size)
            if gate.posted:
                self.serve(gate)

    # -- time -----------------------------------------------------------------------------------

    def _wake_at(self, when: float, gate: Gate) -> None:
        """See to it that ``gate`` is served then."""
        if gate.alarm_at <= when:
            return
        gate.alarm_at = when
        is_next = not self._alarms or when < self._alarms[0][0]
        heappush(self._alarms, (when, next(self._arrivals), gate))
        if is_next:
            self._set_next_alarm()

    def _set_next_alarm(self) -> None:
        self._take_back_alarm()
        if self._alarms and self._alarm is not None:
            self._silence = self._alarm(self._alarms[0][0], self._ring)

    @ki_protected
    def _ring(self) -> None:
        """Serve each gate that opens by itself by now."""
        self._silence = None
        now = self.clock()
        while self._alarms and self._alarms[0][0] <= now:
            when, _, gate = heappop(self._alarms)
            if gate.alarm_at == when:
                gate.alarm_at = math.inf
                self.serve(gate, due=when)
        self._set_next_alarm()

    def close(self) -> None:
        """Look at the clock no more."""
        self._take_back_alarm()
        self._alarm = None  # which leads back to the runtime

    def _take_back_alarm(self) -> None:
        silence, self._silence = self._silence, None
        if silence is not None:
            silence()


@final
class Entrance:
    """What lets the children of one fan-out start, while it lasts.

    A child is in flight when it has a *place*. It starts when all that applies has room for it at
    once: its place, its fan-out's rates and keys, and, where the first thing it does is to execute
    an action, what limits that. So a rate is kept to by what really starts.
    """

    __slots__ = ("_admission", "_limiters", "_on_aside", "_stakes", "place")

    def __init__(
        self,
        admission: Admission,
        place: Gate,
        limiter: Limiter | None,
        on_aside: Callable[[int], None],
    ) -> None:
        """Have no child in flight.

        Args:
            admission: The runtime's.
            place: Counts them.
            limiter: What is shared by all its executions.
            on_aside: Called with 1 when a child has stepped aside, with -1 when it is back.
        """
        self._admission = admission
        self._limiters = () if limiter is None else (limiter,)
        self._on_aside = on_aside
        self._stakes: set[Stake] = set()
        self.place: Gate = place

    @property
    def governs_all(self) -> bool:
        """Whether every child has to be admitted: else only those that execute what is limited."""
        return bool(self._limiters) or self.place.adapt is not None

    def admit(self, child: Run, on_granted: Callable[[], None]) -> Seat:
        """Take all that a child needs to start, or have it stand in line for it.

        Its seat is then that of its first attempt.

        Args:
            child: The child.
            on_granted: Called when it may start, if it has to wait.

        Raises:
            Exception: What ``by=`` or ``cost=`` of the fan-out's limits raised.
        """
        admission, setting = self._admission, child.setting
        gates, costs = admission._gates(self._limiters, child.data)
        if costs is None:
            costs = (1.0,) * len(gates)
        stake = Stake(admission, (self.place, *gates), (1.0, *costs), self._on_aside)
        child.stake = stake
        self._stakes.add(stake)
        needed: tuple[Gate, ...] = ()
        own: tuple[float, ...] | None = None
        action = setting.entry
        if action is not None and child.begins_anew:
            # What goes wrong in it is the attempt's failure, and happens again there.
            with suppress(Exception):
                limiters = admission._limiters_of(setting.scopes, action)
                needed, own = admission._gates(limiters, child.data)
        seat = Seat(admission, needed, own, child, on_granted=on_granted, stake=stake)
        child.seat = seat if needed else None
        return seat

    def stake(self) -> Stake:
        """Make what a child holds that was not admitted, since nothing limits its start."""
        stake = Stake(self._admission, (self.place,), (1.0,), self._on_aside, is_held=True)
        self._stakes.add(stake)
        return stake

    def leave(self, children: Sequence[Run]) -> None:
        """Give back what children held in flight."""
        for child in children:
            stake: Any = child.stake
            if stake is None:
                self.place.used -= 1
            else:
                child.stake = None
                self._stakes.discard(stake)
                stake.leave()
        if self.place.posted:
            self._admission.serve(self.place)

    def give_up(self, child: Run, seat: Seat | None) -> None:
        """Give back what a child took, or stood in line for, that never started."""
        stake: Any = child.stake
        child.stake = child.seat = None
        if seat is not None:
            seat.cancel()
        if stake is not None:
            self._stakes.discard(stake)
            stake.refund()
            stake.leave()

    def adapt(self, child: Run) -> None:
        """Hear how a child ended."""
        stake: Any = child.stake
        if stake is not None:
            self._admission.adapt(stake, child.error)

    def close(self) -> None:
        """Give back what is held by children that nobody has applied."""
        self._on_aside = _nothing  # no cycle: an error's frames lead to children, and these here
        while self._stakes:
            self._stakes.pop().leave()


def _refuse_foreign(limits: Limits) -> None:
    for part in limits.parts:
        rate = part.rate
        if rate is not None and not isinstance(rate, Rate):
            kind = type(rate)
            msg = (
                f"{limits!r}: {kind.__module__}.{kind.__qualname__} works on asyncio only; on trio "
                f"and asyncio alike does Rate({rate.max_rate:g}, per={rate.time_period:g})"
            )
            raise DefinitionError(msg)


def _nothing(by: int) -> None:
    """Stand in for a group that has ended."""


def _first_turn(gate: Gate) -> _Turn:
    line = gate.first()
    return (True, math.inf, 0) if line is None else line.turn()


def _plain(parts: list[_PartGates]) -> list[Gate]:
    """Find the gates of parts that have one each."""
    found: list[Gate] = []
    for gates in parts:
        gate = gates.gates.get(None)
        if gate is None:
            gate = gates.gates[None] = Gate(gates.part.n, gates.part)
        found.append(gate)
    return found
