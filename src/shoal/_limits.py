"""Slots: which attempts run at once. Imports the ports.

Invariants:
- An attempt starts at the moment all limits that apply to it have a slot; while it waits it holds
  none. So two limits can't be taken in two orders, and nobody is blocked by one who is blocked.
- First come, first served, among those that wait for the same limits; one that waits for a limit
  which is full lets those pass who don't need that one.
- Only a running attempt holds slots. One that has lent its seat gets it back before new ones; where
  its wait for that is interrupted, it goes on without, and has them as soon as there is room.
- A slot is never lost: not when its attempt fails, is cancelled, or is cancelled in the very moment
  in which it is granted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
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
        self._lines: dict[tuple[Slots, ...], _Line] = {}
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
        if not needed:
            return None
        line = self._lines.get(needed)
        if line is None:
            line = self._lines[needed] = _Line(needed)
        return Seat(self, line)

    @ki_protected
    def enter(self, seat: Seat, *, ahead: bool) -> None:
        """Grant ``seat`` what it needs, or have it wait in its line."""
        line = seat.line
        if not (line.ahead if ahead else line.waits) and line.has_room():
            line.take()
            seat.granted = True
            return
        seat.number = next(self._arrivals)
        seat.waiter = self._waiter()
        (line.ahead if ahead else line.behind).append(seat)

    @ki_protected
    def leave(self, seat: Seat) -> None:
        """Take back what ``seat`` holds, and grant it to who waits; let it wait no more itself."""
        waiter, seat.waiter = seat.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if seat.granted:
            seat.granted = False
            seat.line.give()
            self._grant()

    def _grant(self) -> None:
        while ready := [line for line in self._lines.values() if line.waits and line.has_room()]:
            line = min(ready, key=_Line.turn)
            seat = line.next()
            waiter, seat.waiter = seat.waiter, None
            line.take()
            seat.granted = True
            if waiter is not None and not waiter.done():  # done: its task was cancelled
                waiter.set_result(None)


@final
class Seat:
    """What an attempt holds while it runs; see the port of that name."""

    __slots__ = ("_admission", "_lent", "granted", "line", "number", "waiter")

    def __init__(self, admission: Admission, line: _Line) -> None:
        """Be granted what the line stands for, or wait in it."""
        self._admission = admission
        self._lent = 0  # how many have asked for it to be given back meanwhile
        self.line = line
        self.granted = False
        self.number = 0
        self.waiter: Waiter | None = None
        admission.enter(self, ahead=False)

    async def wait(self) -> None:
        """Wait until it is granted or lent; interrupted meanwhile, it stays in line."""
        if self.waiter is not None:
            await self.waiter

    def leave(self) -> None:
        """Give back what it holds, and wait for nothing."""
        self._admission.leave(self)

    def lend(self) -> None:
        """Give back what it holds until ``regain`` was called as often."""
        self._lent += 1
        self._admission.leave(self)

    def regain(self) -> None:
        """Take the slots again, or stand in line for them, ahead of new attempts."""
        self._lent -= 1
        if self._lent == 0:
            self._admission.enter(self, ahead=True)


@final
class _Line:
    """Those that wait for the same slots."""

    __slots__ = ("_needed", "ahead", "behind")

    def __init__(self, needed: Iterable[Slots]) -> None:
        self._needed = tuple(dict.fromkeys(needed))
        self.ahead: deque[Seat] = deque()
        self.behind: deque[Seat] = deque()

    @property
    def waits(self) -> bool:
        """Whether anybody waits in it."""
        for seats in (self.ahead, self.behind):
            while seats and seats[0].waiter is None:  # was cancelled
                seats.popleft()
        return bool(self.ahead or self.behind)

    def turn(self) -> tuple[bool, int]:
        """Say when the first of the line is due, compared to those of other lines."""
        first = (self.ahead or self.behind)[0]
        return not self.ahead, first.number

    def next(self) -> Seat:
        """Take the first out of the line."""
        return (self.ahead or self.behind).popleft()

    def has_room(self) -> bool:
        return all(slots.used < slots.size for slots in self._needed)

    def take(self) -> None:
        for slots in self._needed:
            slots.used += 1

    def give(self) -> None:
        for slots in self._needed:
            slots.used -= 1
