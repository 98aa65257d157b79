"""The lobby of a fan-out: how much room there is for its children, and who waits to start.

Imports the entrance, and runs.

Invariants:
- In flight are at most as many children as there are places, each from its start until the parent
  has committed what it returned. So a slow parent slows the source down, and memory stays bounded.
- A child that may not start yet, since what limits it has no room, takes up no place, and others
  are started: it is looked ahead to. So is one that has started and waits for a rate, a key or
  another attempt: it steps aside. Only when a few times the limit wait, nothing more is pulled.
- Alive at once is always one child without asking, and more only with a permit of the execution's
  live budget, which nobody waits for. So trees stay small, and can't lock themselves up.
- Who waits to start when it is cancelled, alone or with others, never starts: it is dismissed, and
  what it was granted goes to others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import final

from shoal._engine.publish import publish_waiting
from shoal._engine.run import Run
from shoal._events.events import ChildName
from shoal._limits.gates import Gate
from shoal._limits.limits import Limits
from shoal._limits.permits import Seat

from .entrance import Entrance

AHEAD = 4
"""Children that may wait besides those in flight, for each of these..."""
LEAST_AHEAD = 64
"""...but at least so many."""


@final
class Lobby:
    """Where the children of one fan-out wait to start."""

    __slots__ = (
        "_ahead",
        "_budget",
        "_entrance",
        "_live",
        "_on_refused",
        "_on_room",
        "_unsaid",
        "_waiting",
        "aside",
        "place",
        "ready",
    )

    def __init__(
        self,
        parent: Run,
        limits: Limits,
        limit: int | None,
        *,
        owner: object,
        among: str,
        on_room: Callable[[], None],
        on_refused: Callable[[Exception], None],
    ) -> None:
        """Have nobody in it.

        Args:
            parent: The run whose children they are.
            limits: How many may be in flight, and how they start.
            limit: How many may be in flight, if that isn't what ``limits`` says.
            owner: What all executions of the fan-out have in common.
            among: Tells several of one owner apart.
            on_room: Called when a child may start, or another may take its place.
            on_refused: Called with the reason why a child never will.
        """
        limit = limits.in_flight if limit is None else limit
        setting = parent.setting
        admission, above = setting.services.admission, parent.slot_owner.held_permits()
        self._entrance: Entrance = Entrance(
            admission, owner, limits, limit, self._hear_aside, among=among, above=above
        )
        self.place: Gate = self._entrance.in_flight.place
        """Counts the children in flight."""
        self.aside: int = 0
        """Children that have started, and wait without being in flight."""
        self.ready: deque[Run] = deque()
        """Those that have waited, and may start by now."""
        self._ahead = max(LEAST_AHEAD, AHEAD * limit)  # how many may wait to start, or aside
        self._waiting: dict[Run, Seat] = {}  # those that wait to start
        self._unsaid: list[tuple[Run, Seat]] = []  # those that nobody was told of
        self._live = 0  # children that were let in and have not ended
        self._budget = setting.execution.live
        if limits.n is not None or limit != limits.in_flight:  # a default is no wish
            self._budget.size = max(self._budget.size, limit)
        self._on_room = on_room
        self._on_refused = on_refused

    @property
    def in_flight(self) -> int:
        """Children that have started, and whose end the parent has not committed."""
        return self.place.used

    @property
    def waiting(self) -> int:
        """Children that wait: to start, or aside."""
        return len(self._waiting) + self.aside

    @property
    def unbegun(self) -> list[Run]:
        """Children that have not started."""
        return [*self.ready, *self._waiting]

    @property
    def has_room(self) -> bool:
        """Whether one more may be pulled: for a place in flight, or to wait for one."""
        place = self.place
        if place.used >= place.slots:
            return False
        return len(self._waiting) + self.aside < self._ahead

    @property
    def lacks_permits(self) -> bool:
        """Whether there is a place for one more, but no permit to be alive."""
        return self.place.used < self.place.slots and self._live > 0 and self._budget.is_spent

    def permits(self, others: int) -> bool:
        """Tell whether one more may be alive, besides those that are and ``others``."""
        return not (self._live or others) or not self._budget.is_spent

    # -- coming and going -------------------------------------------------------------------------

    def let_in(self) -> bool:
        """Make room for one more to be alive, if there is any; ``let_go`` when it has ended."""
        if not self.has_room or (self._live and not self._budget.take()):
            return False
        self._live += 1
        return True

    def let_go(self) -> None:
        """Hear that one that was let in is not alive any more."""
        self._live -= 1
        if self._live:  # the last one has no permit
            self._budget.give()

    def admit(self, child: Run) -> bool:
        """Let a child start, or have it wait until it may; tell whether it starts now.

        Raises:
            Exception: What functions in the fan-out's limits raised.
        """
        entrance, setting = self._entrance, child.setting
        setting.in_flight = entrance.in_flight
        if not (entrance.governs_all or setting.is_limited):
            self.place.used += 1
            return True
        seat = entrance.admit(child, partial(self._let_start, child))
        if seat.granted:
            return True
        self._waiting[child] = seat
        if setting.hooks.waiting:
            self._unsaid.append((child, seat))
        return False

    def end(self, child: Run) -> None:
        """Hear that a child has ended: from now on it is in flight, whatever it has waited for.

        Raises:
            Exception: What a user's policy raised that was told.
        """
        permits = child.permits
        if permits is None:
            return
        if permits.seat is not None:  # its first attempt never came
            permits.seat.cancel()
            permits.seat = None
        if permits.stake is not None:
            permits.stake.resume()
            self._entrance.adapt(child, permits.stake)

    def leave(self, batch: Sequence[Run]) -> None:
        """Hear that the parent has committed these."""
        self._entrance.leave(batch)

    def dismiss(self, children: Iterable[Run], reason: str, winner: ChildName | None) -> None:
        """Cancel children that have not started; what they were granted goes to others.

        Until the parent has taken their ends, they count as in flight, as all do that have ended.
        """
        for child in children:
            child.never_start(reason, winner)
            permits = child.permits
            if permits is not None and permits.stake is not None:
                # Else it was not taken from the source yet.
                self.place.used += 1
                self._entrance.give_up(permits, self._waiting.pop(child, None) or permits.seat)
                self.let_go()
        # Some may have been granted what others gave back.
        self.ready = deque(child for child in self.ready if child.status is None)

    def close(self) -> None:
        """Give back what is held by children that nobody has applied."""
        self._unsaid.clear()
        self._entrance.close()
        self._on_room = self._on_refused = _ignore  # no cycle: these lead back to who holds this

    # -- waiting ----------------------------------------------------------------------------------

    def _let_start(self, child: Run) -> None:
        """Hear that a child may start, or never will."""
        seat = self._waiting[child]
        if seat.refusal is not None:  # no failure of the child's: it was never begun
            self._on_refused(seat.refusal)
            return
        del self._waiting[child]
        self.ready.append(child)
        self._on_room()

    def _hear_aside(self, by: int) -> None:
        """Hear that a child waits aside, so that another may take its place, or does no more."""
        self.aside += by
        self._on_room()

    @property
    def has_news(self) -> bool:
        """Whether somebody listens, and was not told yet who waits."""
        return bool(self._unsaid)

    async def tell(self) -> None:
        """Tell who waits.

        Raises:
            HookFailed: A guarding hook raised.
        """
        unsaid, self._unsaid = self._unsaid, []
        for child, seat in unsaid:
            if child in self._waiting:
                await publish_waiting(child, seat)

    def __repr__(self) -> str:
        return f"<Lobby, {self.in_flight} in flight, {self.waiting} waiting>"


def _ignore(_what: object = None) -> None:
    """Stand in for a group that has ended."""
