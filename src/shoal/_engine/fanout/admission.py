"""Admission of a fan-out's children: which of them may start, and how many are in flight.

A child is in flight when it has a *place*. It starts when all that applies has room for it at once:
its place, its fan-out's rates and keys, and, where the first thing it does is to execute an action,
what limits that. So a rate is kept to by what really starts.

Invariants:
- In flight are at most as many children as there are places, each from its start until the parent
  has committed what it returned. So a slow parent slows the source down, and memory stays bounded.
- A child that may not start yet, since what limits it has no room, takes up no place, and others
  are started: it is looked ahead to. So is one that has started and waits for a rate, a key or
  another attempt: it is suspended. Only when a few times the limit wait, nothing more is pulled.
- Alive at once is always one child without asking, and more only with a permit of the execution's
  live budget, which nobody waits for. So trees stay small, and can't lock themselves up.
- A child that waits to start when it is cancelled, alone or with others, never starts, and what it
  was granted goes to others.
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
from shoal._limits.limiters import Limiter
from shoal._limits.limits import Limits
from shoal._limits.permits import AttemptPermit, HeldPermits, InFlight

AHEAD = 4
"""Children that may wait besides those in flight, for each of these..."""
LEAST_AHEAD = 64
"""...but at least so many."""


@final
class ChildAdmission:
    """How much room there is for the children of one group, and which of them wait to start."""

    __slots__ = (
        "_ahead",
        "_all_limiters",
        "_budget",
        "_governs_all",
        "_in_flight",
        "_limiters",
        "_live",
        "_on_refused",
        "_on_room",
        "_queue",
        "_unpublished",
        "_waiting",
        "place",
        "ready",
        "suspended",
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
        """Have no child in flight, and none that waits.

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
        services, execution = parent.config.services, parent.config.execution
        controller, shared = services.admission, limits.shared
        self._queue = controller.queue
        self._all_limiters = controller.limiters
        self._limiters: tuple[Limiter, ...] = ()  # of the fan-out itself
        if shared is not None:
            self._limiters = (controller.limiter(owner, shared, among),)
        above = parent.slot_owner.held_permits()
        self._in_flight = InFlight(controller.queue, limit, self._on_suspended, above)
        self.place: Gate = self._in_flight.place
        """Counts the children in flight: those that have started, and whose end the parent has not
        committed."""
        self.place.adapt = limits.adapts_in_flight
        # Else only those have to be admitted that execute what is limited.
        self._governs_all = shared is not None or limits.adapts_in_flight is not None
        self.suspended: int = 0
        """Children that have started, and wait without being in flight."""
        self.ready: deque[Run] = deque()
        """Those that have waited, and may start by now."""
        self._ahead = max(LEAST_AHEAD, AHEAD * limit)  # how many may wait to start, or suspended
        self._waiting: dict[Run, AttemptPermit] = {}  # those that wait to start
        self._unpublished: list[
            tuple[Run, AttemptPermit]
        ] = []  # of these, those that no hook was told of
        self._live = 0  # children that were let in and have not ended
        self._budget = execution.live
        if limits.n is not None or limit != limits.in_flight:  # a default is no wish
            self._budget.size = max(self._budget.size, limit)
        self._on_room = on_room
        self._on_refused = on_refused

    @property
    def waiting(self) -> int:
        """Children that wait: to start, or suspended."""
        return len(self._waiting) + self.suspended

    @property
    def waiting_to_start(self) -> list[Run]:
        """Children that have not started."""
        return [*self.ready, *self._waiting]

    @property
    def has_room(self) -> bool:
        """Whether one more may be pulled: for a place in flight, or to wait for one."""
        place = self.place
        if place.used >= place.slots:
            return False
        return len(self._waiting) + self.suspended < self._ahead

    @property
    def lacks_permits(self) -> bool:
        """Whether there is a place for one more, but no permit to be alive."""
        return self.place.used < self.place.slots and self._live > 0 and self._budget.is_spent

    def permits(self, others: int) -> bool:
        """Tell whether one more may be alive, besides those that are and ``others``."""
        return not (self._live or others) or not self._budget.is_spent

    # -- starting and ending ----------------------------------------------------------------------

    def let_in(self) -> bool:
        """Make room for one more to be alive, if there is any; ``let_out`` when it has ended."""
        place = self.place  # ``has_room`` would be a call for each child
        if place.used >= place.slots or len(self._waiting) + self.suspended >= self._ahead:
            return False
        if self._live and not self._budget.take():
            return False
        self._live += 1
        return True

    def let_out(self) -> None:
        """Have one less alive."""
        self._live -= 1
        if self._live:  # the last one has no permit
            self._budget.give()

    def admit(self, child: Run) -> bool:
        """Let a child start, or have it wait until it may; return whether it starts now.

        Raises:
            Exception: What ``by=`` or ``cost=`` of the fan-out's limits raised.
        """
        config = child.config
        config.in_flight = self._in_flight
        if not (self._governs_all or config.is_limited):
            self.place.used += 1
            return True
        seat = self._request(child)
        if seat.granted:
            return True
        self._waiting[child] = seat
        if config.hooks.waiting:
            self._unpublished.append((child, seat))
        return False

    def _request(self, child: Run) -> AttemptPermit:
        """Take all that a child needs to start, or have it stand in line for it.

        Its seat is then that of its first attempt.
        """
        limiters, config, in_flight = self._all_limiters, child.config, self._in_flight
        gates, costs = limiters.gates(self._limiters, child.data)
        if costs is None:
            costs = (1.0,) * len(gates)
        permits = child.permits = HeldPermits(config.execution, in_flight)
        stake = permits.stake = in_flight.make_stake(permits, gates, costs, is_held=False)
        needed: tuple[Gate, ...] = ()
        own: tuple[float, ...] | None = None
        thread: Gate | None = None
        action = config.entry
        if action is not None and child.begins_anew:
            try:
                applying = limiters.of_attempt(config.scopes, action.definition, action.limits)
                needed, own = limiters.gates(applying, child.data)
                thread = limiters.threads if action.in_thread else None
            except Exception:  # noqa: BLE001, S110 # the attempt's failure: it happens again there
                pass
        seat = AttemptPermit(
            self._queue,
            needed,
            own,
            permits,
            on_granted=partial(self._on_granted, child),
            stake=stake,
            thread=thread,
        )
        permits.seat = None if thread is None and not needed else seat
        return seat

    def ended(self, child: Run) -> None:
        """Count a child that has ended as in flight from now on, whatever it has waited for.

        Raises:
            Exception: What a user's policy raised that adapts limits.
        """
        permits = child.permits
        if permits is None:
            return
        if permits.seat is not None:  # its first attempt never came
            permits.seat.cancel()
            permits.seat = None
        if permits.stake is not None:
            permits.stake.resume()
            self._queue.adapt(permits.stake, child.error)

    def committed(self, children: Sequence[Run]) -> None:
        """Give back what children held in flight: the parent has committed their ends."""
        in_flight, place = self._in_flight, self.place
        for child in children:
            permits = child.permits
            if permits is None or permits.stake is None:  # as most: a place alone, not even a call
                place.used -= 1
            else:
                in_flight.release(permits)
        if place.posted:
            self._queue.serve(place)

    def cancel_unstarted(
        self, children: Iterable[Run], reason: str, winner: ChildName | None
    ) -> None:
        """Cancel children that have not started; what they were granted goes to others.

        Until the parent has taken their ends, they count as in flight, as all do that have ended.
        """
        for child in children:
            child.never_start(reason, winner)
            permits = child.permits
            if permits is None or permits.stake is None:
                continue  # it was not taken from the source yet
            self.place.used += 1
            seat = self._waiting.pop(child, None) or permits.seat
            permits.seat = None
            if seat is not None:
                seat.cancel()
            self._in_flight.release(permits, refunds=True)
            self.let_out()
        # Some may have been granted what others gave back.
        self.ready = deque(child for child in self.ready if child.status is None)

    def close(self) -> None:
        """Give back what is held by children that nobody has applied."""
        self._unpublished.clear()
        self._in_flight.close()
        self._on_room = self._on_refused = _ignore  # no cycle: these lead back to who holds this

    # -- waiting ----------------------------------------------------------------------------------

    def _on_granted(self, child: Run) -> None:
        """Have a child start that has waited, or never start: its seat is granted, or refused."""
        seat = self._waiting[child]
        if seat.refusal is not None:  # no failure of the child's: it was never begun
            self._on_refused(seat.refusal)
            return
        del self._waiting[child]
        self.ready.append(child)
        self._on_room()

    def _on_suspended(self, by: int) -> None:
        """Let another child take the place of one that is suspended, or not if it goes on."""
        self.suspended += by
        self._on_room()

    @property
    def has_unpublished(self) -> bool:
        """Whether some hook listens, and was not told yet which children wait."""
        return bool(self._unpublished)

    async def publish(self) -> None:
        """Publish which children wait.

        Raises:
            HookFailed: A guarding hook raised.
        """
        unpublished, self._unpublished = self._unpublished, []
        for child, seat in unpublished:
            if child in self._waiting:
                await publish_waiting(child, seat)

    def __repr__(self) -> str:
        who = f"limited by {self._limiters}" if self._limiters else "unlimited"
        return f"<ChildAdmission, {self.place.used} in flight, {self.waiting} waiting, {who}>"


def _ignore(_what: object = None) -> None:
    """Stand in for a group that has ended."""
