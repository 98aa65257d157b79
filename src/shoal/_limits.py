"""Slots: which attempts run at once. Imports the ports.

Invariants:
- An attempt starts at the moment all limits that apply to it have a slot; while it waits it holds
  none. So two limits can't be taken in two orders, and nobody is blocked by one who is blocked.
- Nobody waits who could start. So whoever finds room on arrival goes ahead of nobody.
- First come, first served, among those that wait for the same limits; one that waits for a limit
  which is full lets those pass who don't need that one.
- Only a running attempt holds slots. One that has lent its seat gets it back before new ones; where
  its wait for that is interrupted, it goes on without, and has them as soon as there is room.
- A slot is never lost: not when its attempt fails, is cancelled, or is cancelled in the very moment
  in which it is granted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import count
from typing import Any, final
from weakref import WeakKeyDictionary

from ._action import FunctionAction
from ._cancel import ki_protected
from ._policy import Limits
from ._ports import Waiter


@final
class Slots:
    """The slots of one ``Limits`` where it stands, counted for all runs of a runtime."""

    __slots__ = ("size", "used")

    def __init__(self, size: int) -> None:
        """Have ``size`` of them, all free."""
        self.size = size
        self.used = 0

    def __repr__(self) -> str:
        return f"<Slots {self.used}/{self.size}>"


@final
class Admission:
    """Lets attempts start, as the limits of a runtime allow. Belongs to one event loop."""

    def __init__(self, waiter: Callable[[], Waiter]) -> None:
        """Admit everybody at first.

        Args:
            waiter: Makes what an attempt waits for.
        """
        self._waiter = waiter
        self._slots: WeakKeyDictionary[object, Slots] = WeakKeyDictionary()  # by what has limits
        self._lines: dict[tuple[bool, tuple[Slots, ...]], _Line] = {}  # only where somebody waits
        self._arrivals = count()

    def slots(self, owner: object, limits: Limits) -> Slots:
        """Find the slots of the limits that stand on ``owner``; make them if there are none yet."""
        found = self._slots.get(owner)
        if found is None:
            found = self._slots[owner] = Slots(limits.n)
        return found

    def seat(self, scopes: tuple[object, ...], action: FunctionAction[..., Any]) -> Seat | None:
        """Take a seat for an attempt, granted at once where there is room; see the port."""
        needed: tuple[Any, ...] = scopes
        if action.limits is not None:
            needed = (*scopes, self.slots(action.definition, action.limits))
        return Seat(self, needed) if needed else None

    @ki_protected
    def enter(self, seat: Seat, *, ahead: bool = False) -> None:
        """Grant ``seat`` what it needs, or have it wait: ``ahead`` of those that are not."""
        if _has_room(seat.needed):
            self.take(seat)
            return
        place = not ahead, seat.needed
        line = self._lines.get(place)
        if line is None:
            line = self._lines[place] = _Line(*place)
        line.seats[seat] = next(self._arrivals)
        seat.line = line
        seat.waiter = self._waiter()

    @ki_protected
    def take(self, seat: Seat) -> None:
        """Count what ``seat`` needs as taken, whether or not there is room."""
        for slots in seat.needed:
            slots.used += 1
        seat.granted = True

    @ki_protected
    def leave(self, seat: Seat) -> None:
        """Take back what ``seat`` holds, and grant it to who waits; or let it wait no more."""
        if seat.granted:
            seat.granted = False
            for slots in seat.needed:
                slots.used -= 1
            if self._lines:
                self._grant()
        elif seat.line is not None:
            del seat.line.seats[seat]
            self._let_go(seat, seat.line)

    def _grant(self) -> None:
        while ready := [line for line in self._lines.values() if _has_room(line.needed)]:
            line = min(ready, key=_Line.turn) if len(ready) > 1 else ready[0]
            seat, _ = line.seats.popitem(last=False)
            assert seat.waiter is not None
            if not seat.waiter.done():  # done: its task is being cancelled
                self.take(seat)
            self._let_go(seat, line)

    def _let_go(self, seat: Seat, line: _Line) -> None:
        """Have a seat that is not in its line any more wake who waits for it."""
        if not line.seats:
            del self._lines[line.is_behind, line.needed]
        waiter, seat.waiter, seat.line = seat.waiter, None, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


@final
class Seat:
    """What an attempt holds while it runs; see the port of that name."""

    __slots__ = ("_admission", "_lent", "_over", "granted", "line", "needed", "waiter")

    def __init__(self, admission: Admission, needed: tuple[Slots, ...]) -> None:
        """Be granted a slot of each that is ``needed``, no two the same, or wait for them."""
        self._admission = admission
        self._lent = 0  # how many have asked for it to be given back meanwhile
        self._over = False
        self.needed = needed
        self.granted = False
        self.line: _Line | None = None
        self.waiter: Waiter | None = None
        admission.enter(self)

    async def wait(self) -> None:
        """Wait until it is granted; cancelled meanwhile, it holds nothing."""
        if self.waiter is not None:
            try:
                await self.waiter
            except BaseException:
                self._admission.leave(self)
                raise

    def leave(self) -> None:
        """Give back what it holds, for good."""
        self._over = True
        self._admission.leave(self)

    def lend(self) -> None:
        """Give back what it holds until it was regained or reclaimed as often.

        If another task of the attempt waits to regain it, that goes on without.
        """
        self._lent += 1
        self._admission.leave(self)

    async def regain(self) -> None:
        """Take the slots again, ahead of new attempts; cancelled meanwhile, reclaim them."""
        self._lent -= 1
        if self._is_vacant():
            self._admission.enter(self, ahead=True)
            if self.waiter is not None:
                try:
                    await self.waiter
                except BaseException:
                    self._claim()
                    raise

    def reclaim(self) -> None:
        """Take the slots again without waiting; see the port."""
        self._lent -= 1
        self._claim()

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


@final
class _Line:
    """Those that wait for the same slots, by the number of their arrival."""

    __slots__ = ("is_behind", "needed", "seats")

    def __init__(self, is_behind: bool, needed: tuple[Slots, ...]) -> None:
        self.is_behind = is_behind
        self.needed = needed
        self.seats: OrderedDict[Seat, int] = OrderedDict()  # a dict is slow to find its first

    def turn(self) -> tuple[bool, int]:
        """Say when the first of the line is due, compared to those of other lines."""
        return self.is_behind, next(iter(self.seats.values()))


def _has_room(needed: tuple[Slots, ...]) -> bool:
    for slots in needed:  # noqa: SIM110 # twice as fast as all(...)
        if slots.used >= slots.size:
            return False
    return True
