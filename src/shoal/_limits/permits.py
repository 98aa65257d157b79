"""Permits: the slots that an attempt holds while it runs, and a child while it is in flight.

An attempt holds a *permit*, here ``Seat``: a slot of every limit that applies to it. A child of a
fan-out holds an *in-flight slot*, here ``Stake``: one of its fan-out.

Invariants:
- Only an attempt that runs holds slots. It releases them while its own children run, and reacquires
  them before new attempts get any. If that wait is cancelled, the attempt runs on with slots beyond
  the limit, and no new attempt starts until enough others have ended.
- A child holds its in-flight slot from its start to its end, except while it waits for something
  else. It reacquires the slot together with that, in one grant.
- A thread is one more slot, but it isn't released for children: the thread is busy until the
  function returns.
- A permit that was granted and never used is refunded: its slots and the units of rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

from shoal._concurrency.backend import Waiter

from .gates import Claim, Gate, Held, Unit
from .scheduler import Queue


@final
class Stake(Held):
    """The in-flight slot of a child: its place in the fan-out, and the fan-out's own gates.

    A child that must wait for something else *steps aside*: it releases the slot meanwhile. The
    permit for which it waits then includes the in-flight slot (the permit is *loaded* with it), so
    that both are granted in the same moment.
    """

    __slots__ = ("_on_aside", "_queue", "is_aside", "is_due", "is_held", "returns")

    def __init__(
        self,
        queue: Queue,
        needed: tuple[Gate, ...],
        costs: tuple[float, ...],
        on_aside: Callable[[int], None],
        *,
        is_held: bool = False,
    ) -> None:
        """Create the slot of one child.

        Args:
            queue: The queue that grants it.
            needed: The gate of the child's place, then the gates of its fan-out's limits.
            costs: The units that each of them charges.
            on_aside: Called with 1 when the child has stepped aside, with -1 when it is back.
            is_held: Whether its gates count it already.
        """
        super().__init__(needed, costs)
        self._queue: Queue = queue
        self._on_aside: Callable[[int], None] = on_aside
        self.is_held: bool = is_held
        self.is_due: bool = not is_held
        """Whether acquiring it charges its rates: at the start, and at each ``Each(retry=)``."""
        self.is_aside: bool = False
        self.returns: bool = False
        """Whether a child that has started waits for it, and so goes before those that have not."""
        for gate in needed:
            gate.users += 1

    @property
    def price(self) -> tuple[float, ...]:
        """The units that acquiring it charges at each gate; 0 if they are paid already."""
        assert self.costs is not None, "a stake is made with its costs"
        return self.costs if self.is_due else (0.0,) * len(self.needed)

    def step_aside(self) -> None:
        """Release the slot while the child waits for something else."""
        # Set before the slot is released: releasing grants other claims, which run callbacks.
        self.is_aside = True
        self._give_back()
        self._on_aside(1)

    def hold(self, *, since: float | None = None, taken_at: float = -math.inf) -> None:
        """Note that the queue has counted the slot, and charged it if that was due."""
        if self.is_due:  # else the time of the earlier charge stays, which a refund needs
            self.taken_at = taken_at
        self.is_held = True
        self.is_due = self.returns = False
        self.since = since
        if self.is_aside:
            self.is_aside = False
            self._on_aside(-1)

    def resume(self) -> None:
        """Reacquire the slot at once, whether or not there is room.

        For a child that is about to end, for instance because its wait was cancelled: applying its
        result must not wait for another child.
        """
        if self.is_aside:
            for gate in self.needed:
                gate.used += 1
            self.hold()

    def leave(self) -> None:
        """Release the slot for good."""
        self._give_back()
        self._on_aside = ignore_aside  # lets go of the group, which may have ended
        for gate in self.needed:
            gate.users -= 1

    def refund(self) -> None:
        """Give back the units charged for a child that never started."""
        if not self.is_due:  # else nothing was charged
            self._queue.refund(self)

    def _give_back(self) -> None:
        if self.is_held:
            self.is_held = False
            for gate in self.needed:
                gate.used -= 1
            self._queue.serve(*self.needed)

    def __repr__(self) -> str:
        return f"<Stake {'held' if self.is_held else 'not held'}, {self.needed}>"


def ignore_aside(by: int) -> None:
    """Do nothing: the ``on_aside`` of a group that has ended."""


@final
class InFlight:
    """The children in flight of one execution of a fan-out, and their stakes, while it lasts."""

    __slots__ = ("_holders", "_on_aside", "_queue", "above", "place")

    def __init__(
        self,
        queue: Queue,
        places: int,
        on_aside: Callable[[int], None],
        above: HeldPermits | None = None,
    ) -> None:
        """Have no child in flight.

        Args:
            queue: Where children wait.
            places: How many of them may be in flight.
            on_aside: Called with 1 when a child has stepped aside, with -1 when it is back.
            above: What is held by the run that has started them.
        """
        self._queue = queue
        self._on_aside = on_aside
        # By stake, what holds it. A child must not keep the stake of a group that is gone: when
        # something around it is retried, another group lives it, whose places these are not. See
        # test_a_retried_child_waits_for_no_place_of_a_group_that_is_gone.
        self._holders: dict[Stake, HeldPermits] = {}
        self.above: HeldPermits | None = above
        """What is held by the run that has started them; None once the fan-out has ended."""
        self.place: Gate = Gate(places)
        """Counts the children in flight. Those without a stake are counted by the group."""

    def make_stake(
        self,
        holder: HeldPermits,
        gates: tuple[Gate, ...] = (),
        costs: tuple[float, ...] = (),
        *,
        is_held: bool,
    ) -> Stake:
        """Make the stake of a child: its place, and ``gates``, which are its fan-out's."""
        needed = (self.place, *gates)
        stake = Stake(self._queue, needed, (1.0, *costs), self._on_aside, is_held=is_held)
        self._holders[stake] = holder
        return stake

    def release(self, holder: HeldPermits, *, refunds: bool = False) -> None:
        """Give back for good the stake of a child, if it has one.

        Args:
            holder: What it holds.
            refunds: Whether it never started, so that what was charged for it is given back, too.
        """
        stake, holder.stake = holder.stake, None
        if stake is None:
            return
        del self._holders[stake]
        if refunds:
            stake.refund()
        stake.leave()

    def close(self) -> None:
        """Give back what is held by children that nobody has applied, and take it from them."""
        self._on_aside = ignore_aside  # no cycle: an error's frames lead to children, and here
        self.above = None
        while self._holders:
            stake, holder = self._holders.popitem()
            stake.leave()
            if holder.stake is stake:
                holder.stake = None


@final
class HeldPermits:
    """What a run holds of limits: a seat that it has yet to use, and its stake in flight."""

    __slots__ = ("in_flight", "seat", "stake", "unit")

    def __init__(self, unit: Unit, in_flight: InFlight | None = None) -> None:
        """Hold nothing yet.

        Args:
            unit: What takes turns with others.
            in_flight: What a child of a fan-out is counted by.
        """
        self.unit: Unit = unit
        self.in_flight: InFlight | None = in_flight
        self.stake: Stake | None = None
        """What a child holds in flight, if that is more than a place, or has to be known."""
        self.seat: Seat | None = None
        """Of its first attempt, taken when it was let in."""

    @property
    def above(self) -> HeldPermits | None:
        """What is held by the child of a fan-out that has started the run, if there is one."""
        return None if self.in_flight is None else self.in_flight.above

    def make_stake(self) -> Stake | None:
        """Return the stake of a child, made on first use; None outside of fan-outs."""
        if self.stake is None and self.in_flight is not None:
            self.stake = self.in_flight.make_stake(self, is_held=True)
        return self.stake


@final
class Seat(Claim):
    """The permit of an attempt: a slot of every limit that applies to it, and of the threads.

    Its life, and the attributes that tell where it stands:

    - waiting: ``line`` is set. ``cancel`` and ``leave`` end the wait.
    - granted: ``granted`` is set. ``lend`` releases the slots for a time.
    - lent: neither is set, ``_lent`` is above 0. ``regain`` waits in line, ``reclaim`` doesn't.
    - over: ``_over`` is set, by ``leave`` alone, and stays.
    """

    __slots__ = (
        "_has_thread",
        "_holder",
        "_is_loaded",
        "_lent",
        "_on_granted",
        "_over",
        "_queue",
        "_thread",
        "refusal",
        "stake",
        "waiter",
    )

    def __init__(
        self,
        queue: Queue,
        needed: tuple[Gate, ...],
        costs: tuple[float, ...] | None = None,
        holder: HeldPermits | None = None,
        *,
        on_granted: Callable[[], None] | None = None,
        stake: Stake | None = None,
        thread: Gate | None = None,
    ) -> None:
        """Enter the queue: granted at once if there is room, else waiting.

        Args:
            queue: The queue that grants it.
            needed: The gates, each once.
            costs: The units that each of them charges; None: 1 each.
            holder: What the run of the attempt holds; None: nobody needs to know.
            on_granted: Called once, when the permit is granted after a wait, or refused. None: the
                attempt's task calls ``wait``.
            stake: The in-flight slot of the run, if it must be held as well.
            thread: The gate of the worker threads, if the attempt runs in one.
        """
        super().__init__(needed, costs, None if holder is None else holder.unit)
        self.is_returning = stake is not None and stake.returns
        self._queue: Queue = queue
        self._holder: HeldPermits | None = holder
        self._on_granted: Callable[[], None] | None = on_granted
        # Calls of `lend` that `regain` or `reclaim` has not matched yet. Several tasks of one
        # attempt may fan out at overlapping times; the slots are needed when the last is back.
        self._lent: int = 0
        self._over: bool = False
        # Whether `needed` and `costs` begin with those of the in-flight slot. Only between the
        # constructor and the first grant.
        self._is_loaded: bool = False
        # The future that a task awaits in `wait` or `regain`; None while no task does. Of tasks
        # that reacquire the same permit, the last one has it.
        self.waiter: Waiter | None = None
        self.refusal: Exception | None = None  # the error of `refuse`, until `wait` raises it
        self.stake: Stake | None = stake
        self._thread: Gate | None = thread
        self._has_thread: bool = False  # whether a slot of `_thread` is held
        for gate in needed:
            gate.users += 1
        # The order in `needed` is: in-flight slot, the attempt's own gates, thread. `settle` takes
        # both ends off again, so that releasing the permit for children keeps the thread.
        if thread is not None:
            self.needed = (*needed, thread)
            self.costs = None if costs is None else (*costs, 1.0)
        if stake is not None and not stake.is_held:
            self._load(stake)
        queue.enter(self)
        if self.granted:
            self._on_granted = None

    # -- the in-flight slot ---------------------------------------------------------------------

    def _load(self, stake: Stake) -> None:
        """Add the gates of the in-flight slot, at no cost where it is paid already."""
        own = (1.0,) * len(self.needed) if self.costs is None else self.costs
        self.stake = stake
        self.needed = (*stake.needed, *self.needed)
        self.costs = (*stake.price, *own)
        self._is_loaded = True

    def _unload(self) -> Stake:
        stake = self.stake
        assert stake is not None, "it is loaded with one"
        assert self.costs is not None
        self._is_loaded = False
        self.needed = self.needed[len(stake.needed) :]
        self.costs = self.costs[len(stake.needed) :]
        return stake

    def load(self) -> bool:
        """Add the in-flight slot of a child that must wait for a rate or a key.

        Such a wait may be long, and other children should run meanwhile. A wait for a mere slot is
        as short as the attempt that holds it, so the child keeps its place for that. See
        test_who_waits_holds_no_place_in_flight.
        """
        if self._is_loaded or self._holder is None:
            return False
        if not any(gate.meter is not None or gate.is_keyed for gate in self.needed):
            return False
        stake = self._holder.make_stake()
        if stake is not None:
            self._load(stake)
        return stake is not None

    def stand(self) -> None:
        """Release the child's in-flight slot, now that the permit waits for it as well."""
        if self._is_loaded and self.stake is not None and self.stake.is_held:
            self.stake.step_aside()

    def settle(self, since: float | None) -> None:
        """Split off the thread and the in-flight slot, which are released at other times."""
        self.since = since
        if self._thread is not None:
            self._set_thread_apart()
            self._has_thread = True
        if self._is_loaded:
            self._unload().hold(since=since, taken_at=self.taken_at)

    def _set_thread_apart(self) -> None:
        self.needed = self.needed[:-1]
        self.costs = None if self.costs is None else self.costs[:-1]

    # -- waiting --------------------------------------------------------------------------------

    async def wait(self) -> None:
        """Wait until the permit is granted, or lent. If cancelled meanwhile, it holds nothing.

        Raises:
            RateUnavailable: The backend of a shared rate can't be reached.
        """
        try:
            # The condition is looked at again after each wait: a permit that was granted may be
            # lent before its task runs.
            while self.line is not None or self.waiter is not None:
                waiter = self.waiter
                if waiter is None:
                    waiter = self.waiter = self._queue.waiter()
                await waiter
                self.waiter = None
        except BaseException:
            # Cancelled, perhaps in the loop iteration of the grant: `cancel` refunds that too. See
            # test_a_cancel_in_the_tick_of_the_grant.
            self.waiter = None
            self.cancel()
            raise
        refusal, self.refusal = self.refusal, None
        if refusal is not None:
            try:
                raise refusal
            finally:
                del refusal  # breaks the traceback cycle

    def refuse(self, error: Exception) -> None:
        """End the wait with an error, which ``wait`` raises."""
        self.refusal = error
        self.wake()

    def wake(self) -> None:
        """Resume the waiting task, or call ``on_granted``."""
        if self._on_granted is not None:
            # Not after `leave`: nothing was granted then, and the run is ending.
            if self.granted or self.refusal is not None:
                on_granted, self._on_granted = self._on_granted, None  # called once
                on_granted()
        elif self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    @property
    def is_gone(self) -> bool:
        """Whether the task that waits was cancelled: it still waits, but its future is done."""
        return self.waiter is not None and self.waiter.done()

    @property
    def awaited(self) -> tuple[str, object]:
        """The limit that the permit waits for, and the key."""
        gate = None if self.line is None else self.line.gate
        if gate is not None and gate is self._thread:
            return "threads", None
        if gate is None or gate.part is None:
            return "in flight", None
        return repr(gate.part), gate.key

    # -- the end --------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Release the slots of an attempt that never ran, and refund its units."""
        if self.granted and self.paid:
            self.paid = False
            self._queue.refund(self)
        self.leave()

    def leave(self) -> None:
        """Release the permit for good; further calls do nothing."""
        if self._over:
            return
        self._over = True
        self._queue.leave(self)
        # Never granted: what was added for the grant is taken off, so that `needed` is what `users`
        # was counted for. The child needs its place again, since it goes on to its end.
        if self._is_loaded:
            self._unload().resume()
        if self._thread is not None:
            self._leave_thread(self._thread)
        for gate in self.needed:
            gate.users -= 1
        # Another task of the attempt may wait in `regain`: see
        # test_a_seat_regained_after_its_attempt_ended_takes_nothing.
        self.wake()

    def _leave_thread(self, thread: Gate) -> None:
        if self._has_thread:
            self._has_thread = False
            thread.used -= 1
            self._queue.serve(thread)
        else:  # never granted
            self._set_thread_apart()

    # -- released for children ------------------------------------------------------------------

    def lend(self) -> None:
        """Release the slots while the attempt's children run.

        Each call is matched by one of ``regain`` or ``reclaim``. A task of the attempt that waits
        in ``regain`` meanwhile goes on without slots; the last task to come back reacquires them.
        See test_a_seat_lent_again_by_another_task_of_the_attempt_is_not_granted.
        """
        self._lent += 1
        self._queue.leave(self)
        self.wake()

    async def regain(self) -> None:
        """Reacquire the slots, ahead of new attempts; if cancelled meanwhile, without waiting."""
        self._lent -= 1
        if self._is_vacant():
            self._queue.enter(self, ahead=True)
            while self.line is not None:
                self.waiter = self._queue.waiter()
                try:
                    await self.waiter
                except BaseException:
                    # The attempt's cleanup runs now and is counted: see
                    # test_an_attempt_interrupted_inside_its_block_is_counted_afterwards.
                    self.waiter = None
                    self._claim()
                    raise
                self.waiter = None

    def reclaim(self) -> None:
        """Reacquire the slots at once: for an attempt that is cancelled and can't wait.

        The attempt runs, so it counts, even if there is no room. No new attempt starts then until
        enough others have ended.
        """
        self._lent -= 1
        self._claim()

    def _is_vacant(self) -> bool:
        """Whether the attempt itself runs again, without slots."""
        return not (self.granted or self._lent or self._over)

    def _claim(self) -> None:
        if self._is_vacant():
            # Out of the line first: a claim is never granted and waiting at once.
            self._queue.leave(self)
            self._queue.take(self)

    def __repr__(self) -> str:
        state = "granted" if self.granted else "free" if self.line is None else "waiting"
        return f"<Seat {state}, needs {self.needed}>"
