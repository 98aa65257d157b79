"""The entrance of a fan-out: what lets its children start. Imports admission, and runs.

A child is in flight when it has a *place*. It starts when all that applies has room for it at once:
its place, its fan-out's rates and keys, and, where the first thing it does is to execute an action,
what limits that. So a rate is kept to by what really starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

from shoal._engine.run import Run
from shoal._limits.admission import Admission
from shoal._limits.gates import Gate
from shoal._limits.limiters import Limiter, Limiters
from shoal._limits.limits import Limits
from shoal._limits.permits import HeldPermits, InFlight, Seat, Stake
from shoal._limits.scheduler import Queue


@final
class Entrance:
    """What lets the children of one execution of a fan-out start, while it lasts."""

    __slots__ = ("_all", "_limiters", "_queue", "governs_all", "in_flight")

    def __init__(
        self,
        admission: Admission,
        owner: object,
        limits: Limits,
        places: int,
        on_aside: Callable[[int], None],
        *,
        among: str = "",
        above: HeldPermits | None = None,
    ) -> None:
        """Have no child in flight.

        Args:
            admission: That of the runtime.
            owner: What all executions of the fan-out have in common...
            limits: ...and what stands on it.
            places: How many children may be in flight.
            on_aside: Called with 1 when a child has stepped aside, with -1 when it is back.
            among: Tells several fan-outs of one owner apart.
            above: What is held by the run that has started them.
        """
        self._queue: Queue = admission.queue
        self._all: Limiters = admission.limiters
        shared = limits.shared
        self._limiters: tuple[Limiter, ...] = ()
        if shared is not None:
            self._limiters = (admission.limiter(owner, shared, among),)
        self.in_flight: InFlight = InFlight(admission.queue, places, on_aside, above)
        """Counts the children in flight."""
        self.in_flight.place.adapt = limits.adapts_in_flight
        self.governs_all: bool = shared is not None or limits.adapts_in_flight is not None
        """Whether every child has to be admitted: else only those that execute what is limited."""

    def admit(self, child: Run, on_granted: Callable[[], None]) -> Seat:
        """Take all that a child needs to start, or have it stand in line for it.

        Its seat is then that of its first attempt.

        Args:
            child: The child.
            on_granted: Called when it may start, if it has to wait, or when its seat was refused.

        Raises:
            Exception: What ``by=`` or ``cost=`` of the fan-out's limits raised.
        """
        limiters, setting = self._all, child.setting
        gates, costs = limiters.gates(self._limiters, child.data)
        if costs is None:
            costs = (1.0,) * len(gates)
        permits = child.permits = HeldPermits(setting.execution, self.in_flight)
        stake = permits.stake = self.in_flight.make_stake(permits, gates, costs, is_held=False)
        needed: tuple[Gate, ...] = ()
        own: tuple[float, ...] | None = None
        thread: Gate | None = None
        action = setting.entry
        if action is not None and child.begins_anew:
            try:
                applying = limiters.of_attempt(setting.scopes, action.definition, action.limits)
                needed, own = limiters.gates(applying, child.data)
                thread = limiters.threads if action.in_thread else None
            except Exception:  # noqa: BLE001, S110 # the attempt's failure: it happens again there
                pass
        seat = Seat(
            self._queue, needed, own, permits, on_granted=on_granted, stake=stake, thread=thread
        )
        permits.seat = None if thread is None and not needed else seat
        return seat

    def leave(self, children: Sequence[Run]) -> None:
        """Give back what children held in flight."""
        in_flight, place = self.in_flight, self.in_flight.place
        for child in children:
            permits = child.permits
            if permits is None or permits.stake is None:  # as most: a place alone, not even a call
                place.used -= 1
            else:
                in_flight.release(permits)
        if place.posted:
            self._queue.serve(place)

    def give_up(self, permits: HeldPermits, seat: Seat | None) -> None:
        """Give back what a child took, or stood in line for, that never started."""
        permits.seat = None
        if seat is not None:
            seat.cancel()
        self.in_flight.release(permits, refunds=True)

    def adapt(self, child: Run, stake: Stake) -> None:
        """Tell what adapts limits how a child ended.

        Raises:
            Exception: What a user's policy raised that was told.
        """
        self._queue.adapt(stake, child.error)

    def close(self) -> None:
        """Give back what is held by children that nobody has applied, and take it from them."""
        self.in_flight.close()

    def __repr__(self) -> str:
        return f"<Entrance, {self.in_flight.place.used} in flight, limited by {self._limiters}>"
