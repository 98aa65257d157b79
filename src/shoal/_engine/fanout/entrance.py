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
from shoal._limits.permits import Party, Seat, Stake, ignore_aside
from shoal._limits.scheduler import Queue


@final
class Entrance:
    """What lets the children of one execution of a fan-out start, while it lasts."""

    __slots__ = (
        "_all",
        "_limiters",
        "_on_aside",
        "_queue",
        "_stakes",
        "above",
        "governs_all",
        "place",
    )

    def __init__(
        self,
        admission: Admission,
        owner: object,
        limits: Limits,
        places: int,
        on_aside: Callable[[int], None],
        *,
        among: str = "",
        above: Party | None = None,
    ) -> None:
        """Have no child in flight.

        Args:
            admission: That of the runtime.
            owner: What all executions of the fan-out have in common...
            limits: ...and what stands on it.
            places: How many children may be in flight.
            on_aside: Called with 1 when a child has stepped aside, with -1 when it is back.
            among: Tells several fan-outs of one owner apart.
            above: The run that has started them; the child of a fan-out, if it is part of one.
        """
        self._queue: Queue = admission.queue
        self._all: Limiters = admission.limiters
        shared = limits.shared
        self._limiters: tuple[Limiter, ...] = ()
        if shared is not None:
            self._limiters = (admission.limiter(owner, shared, among),)
        self._on_aside: Callable[[int], None] = on_aside
        # By stake, the child that holds it. A child must not keep the stake of a group that is
        # gone: when something around it is retried, another group lives it, whose places these
        # are not. See test_a_retried_child_waits_for_no_place_of_a_group_that_is_gone.
        self._stakes: dict[Stake, Party] = {}
        self.above: Party | None = above
        """What has started them; None once the fan-out has ended."""
        self.place: Gate = Gate(places)
        """Counts the children in flight. Those without a stake are counted by the group."""
        self.place.adapt = limits.adapts_in_flight
        self.governs_all: bool = shared is not None or self.place.adapt is not None
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
        stake = Stake(self._queue, (self.place, *gates), (1.0, *costs), self._on_aside)
        child.stake = stake
        self._stakes[stake] = child
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
            self._queue, needed, own, child, on_granted=on_granted, stake=stake, thread=thread
        )
        child.seat = None if thread is None and not needed else seat
        return seat

    def stake(self, child: Party) -> Stake:
        """Make what a child holds that was not admitted, since nothing limits its start."""
        stake = Stake(self._queue, (self.place,), (1.0,), self._on_aside, is_held=True)
        self._stakes[stake] = child
        return stake

    def leave(self, children: Sequence[Run]) -> None:
        """Give back what children held in flight."""
        for child in children:
            stake = child.stake
            if stake is None:
                self.place.used -= 1
            else:
                child.stake = None
                del self._stakes[stake]
                stake.leave()
        if self.place.posted:
            self._queue.serve(self.place)

    def give_up(self, child: Run, seat: Seat | None) -> None:
        """Give back what a child took, or stood in line for, that never started."""
        stake = child.stake
        child.stake = child.seat = None
        if seat is not None:
            seat.cancel()
        if stake is not None:
            del self._stakes[stake]
            stake.refund()
            stake.leave()

    def adapt(self, child: Run) -> None:
        """Hear how a child ended.

        Raises:
            Exception: What a user's policy raised that was told.
        """
        stake = child.stake
        if stake is not None:
            self._queue.adapt(stake, child.error)

    def close(self) -> None:
        """Give back what is held by children that nobody has applied, and take it from them."""
        self._on_aside = ignore_aside  # no cycle: an error's frames lead to children, and here
        self.above = None
        while self._stakes:
            stake, child = self._stakes.popitem()
            stake.leave()
            if child.stake is stake:
                child.stake = None

    def __repr__(self) -> str:
        return f"<Entrance, {self.place.used} in flight, limited by {self._limiters}>"
