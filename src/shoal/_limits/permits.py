"""What is held while something runs: an attempt its seat, a child its stake. Imports the queue.

Invariants:
- Only a running attempt holds slots. One that has lent its seat gets it back before new ones; where
  its wait for that is interrupted, it goes on without, and has them as soon as there is room.
- A child holds its stake from its start to its end, except while it waits for something else; it
  holds it again in the very moment in which it gets that.
- A thread is one more slot, except that it isn't lent: it is busy until the function returns.
- What was granted and never used is given back whole, the units of a rate too.
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
    """What a child of a fan-out holds while it is in flight: its place, and its fan-out's gates.

    A child that must wait for something else gives it back meanwhile: it steps aside. It is held
    again in the very moment in which the child gets what it waits for. So the seat of an attempt
    that waits is *loaded* with it.
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
        """Begin.

        Args:
            queue: Grants it.
            needed: The child's place, then what its fan-out needs for it.
            costs: What it costs at each of them.
            on_aside: Called with 1 when the child has stepped aside, with -1 when it is back.
            is_held: Whether it is counted already.
        """
        super().__init__(needed, costs)
        self._queue: Queue = queue
        self._on_aside: Callable[[int], None] = on_aside
        self.is_held: bool = is_held
        self.is_due: bool = not is_held
        """Whether its rates are charged when it is held next."""
        self.is_aside: bool = False
        self.returns: bool = False
        """Whether it is held again before children that have not started, if it has to wait."""
        for gate in needed:
            gate.users += 1

    @property
    def price(self) -> tuple[float, ...]:
        """What it costs to hold it next: nothing, where that was paid before."""
        assert self.costs is not None, "a stake is made with its costs"
        return self.costs if self.is_due else (0.0,) * len(self.needed)

    def step_aside(self) -> None:
        """Give it back until it is needed again."""
        self.is_aside = True
        self._give_back()
        self._on_aside(1)

    def hold(self, *, since: float | None = None, taken_at: float = -math.inf) -> None:
        """Hear that it was counted, and charged if that was due."""
        if self.is_due:
            self.taken_at = taken_at
        self.is_held = True
        self.is_due = self.returns = False
        self.since = since
        if self.is_aside:
            self.is_aside = False
            self._on_aside(-1)

    def resume(self) -> None:
        """Hold it again, whether or not there is room: for a child that is about to end."""
        if self.is_aside:
            for gate in self.needed:
                gate.used += 1
            self.hold()

    def leave(self) -> None:
        """Give it back for good."""
        self._give_back()
        self._on_aside = ignore_aside
        for gate in self.needed:
            gate.users -= 1

    def refund(self) -> None:
        """Give back what was charged for a child that never started."""
        if not self.is_due:
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
    """Stand in for a group that has ended."""


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
    """What an attempt holds while it runs: a slot of every limit that applies to it, a thread."""

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
        """Be granted all that is ``needed``, no two the same, or wait for it.

        Args:
            queue: Grants it.
            needed: The gates.
            costs: What it costs at each of them; None: 1.
            holder: What holds it; None: nobody needs to know.
            on_granted: Called when it is granted after a wait, or refused; None: somebody calls
                ``wait``.
            stake: What has to be held besides.
            thread: The gate of the threads, if it runs in one.
        """
        super().__init__(needed, costs, None if holder is None else holder.unit)
        self.is_returning = stake is not None and stake.returns
        self._queue: Queue = queue
        self._holder: HeldPermits | None = holder
        self._on_granted: Callable[[], None] | None = on_granted
        self._lent: int = 0  # how many have asked for it to be given back meanwhile
        self._over: bool = False
        self._is_loaded: bool = False
        self.waiter: Waiter | None = None
        self.refusal: Exception | None = None  # why it waits in vain
        self.stake: Stake | None = stake
        self._thread: Gate | None = thread
        self._has_thread: bool = False
        for gate in needed:
            gate.users += 1
        if thread is not None:
            self.needed = (*needed, thread)
            self.costs = None if costs is None else (*costs, 1.0)
        if stake is not None and not stake.is_held:
            self._load(stake)
        queue.enter(self)
        if self.granted:
            self._on_granted = None

    # -- its stake ------------------------------------------------------------------------------

    def _load(self, stake: Stake) -> None:
        """Need the stake besides, and not pay for it twice."""
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
        """Need the stake of the child that must wait, if what it waits for may take its time.

        A slot doesn't: whoever has it runs, and gives it back.
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
        """Have the child step aside, now that it stands in line for its stake as well."""
        if self._is_loaded and self.stake is not None and self.stake.is_held:
            self.stake.step_aside()

    def settle(self, since: float | None) -> None:
        """Keep apart what is not its own: it was granted."""
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
        """Wait until it is granted, or lent; cancelled meanwhile, it holds nothing.

        Raises:
            RateUnavailable: A rate it needs can't be had.
        """
        try:
            while self.line is not None or self.waiter is not None:
                waiter = self.waiter
                if waiter is None:
                    waiter = self.waiter = self._queue.waiter()
                await waiter
                self.waiter = None
        except BaseException:
            self.waiter = None
            self.cancel()
            raise
        refusal, self.refusal = self.refusal, None
        if refusal is not None:
            try:
                raise refusal
            finally:
                del refusal  # no cycle from the exception to this frame

    def refuse(self, error: Exception) -> None:
        """Tell whoever waits why that is in vain."""
        self.refusal = error
        self.wake()

    def wake(self) -> None:
        """Tell whoever waits that it is granted, or waits no more."""
        if self._on_granted is not None:
            if self.granted or self.refusal is not None:
                on_granted, self._on_granted = self._on_granted, None
                on_granted()
        elif self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    @property
    def is_gone(self) -> bool:
        """Whether whoever waits for it is being cancelled."""
        return self.waiter is not None and self.waiter.done()

    @property
    def awaited(self) -> tuple[str, object]:
        """What keeps it waiting: the limit, and which key of it."""
        gate = None if self.line is None else self.line.gate
        if gate is not None and gate is self._thread:
            return "threads", None
        if gate is None or gate.part is None:
            return "in flight", None
        return repr(gate.part), gate.key

    # -- its end --------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Give back what it holds, which was never used: what it paid, too."""
        if self.granted and self.paid:
            self.paid = False
            self._queue.refund(self)
        self.leave()

    def leave(self) -> None:
        """Give back what it holds, for good."""
        if self._over:
            return
        self._over = True
        self._queue.leave(self)
        if self._is_loaded:  # it was never granted
            self._unload().resume()
        if self._thread is not None:
            self._leave_thread(self._thread)
        for gate in self.needed:
            gate.users -= 1
        self.wake()  # another task of the attempt may wait to regain it

    def _leave_thread(self, thread: Gate) -> None:
        if self._has_thread:
            self._has_thread = False
            thread.used -= 1
            self._queue.serve(thread)
        else:  # it was never granted
            self._set_thread_apart()

    # -- lending --------------------------------------------------------------------------------

    def lend(self) -> None:
        """Give back what it holds until it was regained or reclaimed as often.

        If another task of the attempt waits to regain it, that goes on without.
        """
        self._lent += 1
        self._queue.leave(self)
        self.wake()

    async def regain(self) -> None:
        """Take the slots again, ahead of new attempts; cancelled meanwhile, reclaim them."""
        self._lent -= 1
        if self._is_vacant():
            self._queue.enter(self, ahead=True)
            while self.line is not None:
                self.waiter = self._queue.waiter()
                try:
                    await self.waiter
                except BaseException:
                    self.waiter = None
                    self._claim()
                    raise
                self.waiter = None

    def reclaim(self) -> None:
        """Take the slots again at once: for an attempt that is cancelled, and can't wait.

        It runs, so it counts, though there may be no room: then no new attempt starts until enough
        others have ended.
        """
        self._lent -= 1
        self._claim()

    def _is_vacant(self) -> bool:
        """Whether the attempt runs, itself, and holds no slots."""
        return not (self.granted or self._lent or self._over)

    def _claim(self) -> None:
        if self._is_vacant():
            self._queue.leave(self)  # waits no more
            self._queue.take(self)

    def __repr__(self) -> str:
        state = "granted" if self.granted else "free" if self.line is None else "waiting"
        return f"<Seat {state}, needs {self.needed}>"
