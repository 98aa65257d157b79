"""Permits: the slots that an attempt holds while it runs, and a child while it is in flight.

An attempt holds a *permit*, an ``AttemptPermit``: a slot of every limit that applies to it. A child
of a fan-out holds an *in-flight slot*, an ``InFlightSlot``: one of its fan-out.

Invariants:
- Only an attempt that runs holds slots. It releases them while its own children run, and reacquires
  them before new attempts get any. If that wait is cancelled, the attempt runs on with slots beyond
  the limit, and no new attempt starts until enough others have ended.
- A child holds its in-flight slot from its start to its end, except while it waits for something
  else. It reacquires the slot together with that, in one grant.
- A worker is one more slot. A plain function keeps it busy until it returns, so it isn't released
  for children. A coroutine function doesn't, and its slot is released for them like the others.
- A permit that was granted and never used is refunded: its slots and the units of rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, Literal, final

from shoal._concurrency.backend import Waiter

from .accounts import Payer, Stake
from .flows import Flow, Share
from .gates import Acquired, FairShare, Gate, PermitRequest
from .scheduler import FairScheduler


@final
class InFlightSlot(Acquired):
    """The in-flight slot of a child: its place in the fan-out, and the fan-out's own gates.

    A child that must wait for something else *steps aside*: it releases the slot meanwhile. The
    permit for which it waits then includes the in-flight slot, so that both are granted in the same
    moment.
    """

    __slots__ = ("_on_aside", "_scheduler", "is_aside", "is_due", "is_held")

    def __init__(
        self,
        scheduler: FairScheduler,
        needed: tuple[Gate, ...],
        costs: tuple[float, ...],
        on_aside: Callable[[int], None],
        *,
        is_held: bool = False,
    ) -> None:
        """Create the slot of one child.

        Args:
            scheduler: The scheduler that grants it.
            needed: The gate of the child's place, then the gates of its fan-out's limits.
            costs: The units that each of them charges.
            on_aside: Called with 1 when the child has stepped aside, with -1 when it is back.
            is_held: Whether its gates count it already.
        """
        super().__init__(needed, costs)
        self._scheduler: FairScheduler = scheduler
        # Replaced by `ignore_aside` in `leave`, and never set again.
        self._on_aside: Callable[[int], None] = on_aside
        # Whether the gates in `needed` count the slot. Changed by `hold`, once they do, and by
        # `_give_back`, which counts it off.
        self.is_held: bool = is_held
        self.is_due: bool = not is_held
        """Whether acquiring it charges its rates: at the start, and when that is done anew."""
        # Only while the child waits: set by `step_aside`, reset by `hold`. Both tell the group.
        self.is_aside: bool = False
        for gate in needed:
            gate.users += 1

    @property
    def price(self) -> tuple[float, ...]:
        """The units that acquiring it charges at each gate; 0 if they are paid already."""
        assert self.costs is not None, "a slot is made with its costs"
        return self.costs if self.is_due else (0.0,) * len(self.needed)

    @property
    def is_shared(self) -> bool:
        """Whether other executions may need something of it: more than the place in the group."""
        return len(self.needed) > 1

    def step_aside(self) -> None:
        """Release the slot while the child waits for something else."""
        # Set before the slot is released: releasing grants other requests, which run callbacks.
        self.is_aside = True
        self._give_back()
        # After the slot is released, since the group starts another child for it here; see
        # test_a_child_that_waits_for_its_next_attempt_gives_its_place_in_flight_to_another.
        self._on_aside(1)

    def hold(self, *, since: float | None = None, taken_at: float = -math.inf) -> None:
        """Note that the scheduler has counted the slot, and charged it if that was due."""
        if self.is_due:  # else the time of the earlier charge stays, which a refund needs
            self.taken_at = taken_at
        self.is_held = True
        # For this grant only. The next one is free, unless the child steps aside for a retry.
        self.is_due = False
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
            self.take_place()

    def take_place(self) -> None:
        """Hold the slot, whether or not there is room, and charge nothing."""
        for gate in self.needed:
            gate.used += 1
        self.hold()

    def leave(self) -> None:
        """Release the slot for good."""
        self._give_back()
        self._on_aside = ignore_aside  # lets go of the group, which may have ended
        for gate in self.needed:
            gate.users -= 1

    def refund(self, unit: FairShare) -> None:
        """Give back the units charged to ``unit`` for a child that never started."""
        if not self.is_due:  # else nothing was charged
            self._scheduler.refund(self, unit)

    def _give_back(self) -> None:
        if self.is_held:
            self.is_held = False
            for gate in self.needed:
                gate.used -= 1
            self._scheduler.serve(*self.needed)

    def __repr__(self) -> str:
        return f"<InFlightSlot {'held' if self.is_held else 'not held'}, {self.needed}>"


def ignore_aside(by: int) -> None:
    """Do nothing: the ``on_aside`` of a group that has ended."""


@final
class InFlight:
    """The children in flight of one execution of a fan-out, and their in-flight slots."""

    __slots__ = ("_holders", "_on_aside", "_scheduler", "above", "hedging", "parent", "place")

    def __init__(
        self,
        scheduler: FairScheduler,
        places: int,
        on_aside: Callable[[int], None],
        above: HeldPermits | None = None,
        parent: object = None,
    ) -> None:
        """Create the counter, with no child in flight.

        Args:
            scheduler: The scheduler in which children wait.
            places: How many children may be in flight.
            on_aside: Called with 1 when a child has stepped aside, with -1 when it is back.
            above: The permits of the run that starts the children.
            parent: That run itself.
        """
        self._scheduler = scheduler
        self._on_aside = on_aside
        # Slots and their holders. `close` takes them away, because a child must not keep a slot of
        # a group that is gone: if a step around it is retried, another group, with places of its
        # own, runs the child. See test_a_retried_child_waits_for_no_place_of_a_group_that_is_gone.
        self._holders: dict[InFlightSlot, HeldPermits] = {}
        self.above: HeldPermits | None = above
        """The permits of the run that started the children; None once the fan-out has ended."""
        # `Any`, since it belongs to the engine, which finds it here by its children.
        self.hedging: Any = None
        """Starts second copies of late attempts of these children; None: nothing does."""
        # Let go of by `close`, as `above` is. `Any`, since runs are above this package.
        self.parent: Any = parent
        """The run that starts the children, for what knows runs."""
        self.place: Gate = Gate(places)
        """Counts the children in flight. The group counts those without a ``InFlightSlot``."""

    def make_slot(
        self,
        holder: HeldPermits,
        gates: tuple[Gate, ...] = (),
        costs: tuple[float, ...] = (),
        *,
        is_held: bool,
    ) -> InFlightSlot:
        """Create the in-flight slot of a child: its place, and ``gates``, those of its fan-out."""
        needed = (self.place, *gates)
        slot = InFlightSlot(self._scheduler, needed, (1.0, *costs), self._on_aside, is_held=is_held)
        self._holders[slot] = holder
        return slot

    def release(self, holder: HeldPermits, *, refunds: bool = False) -> None:
        """Release the in-flight slot of a child for good, if it has one.

        Args:
            holder: The permits of the child.
            refunds: Whether to refund its units, because the child never started.
        """
        # Taken off first, so that a second call releases nothing.
        slot, holder.slot = holder.slot, None
        if slot is None:
            return
        del self._holders[slot]
        if refunds:
            slot.refund(holder.unit)
        slot.leave()

    def close(self) -> None:
        """Release the in-flight slots of all children whose results were not applied."""
        self._on_aside = ignore_aside  # breaks a cycle: frames of an error, child, slot, group
        self.above = self.parent = self.hedging = None
        while self._holders:
            slot, holder = self._holders.popitem()
            slot.leave()
            holder.slot = None


@final
class HeldPermits:
    """The permits of a run: one that its first attempt has yet to use, and its in-flight slot."""

    __slots__ = ("_shares", "in_flight", "first_permit", "returns", "slot", "unit")

    def __init__(self, unit: FairShare, in_flight: InFlight | None = None) -> None:
        """Create the record; nothing is held yet.

        Args:
            unit: The fair share of the run's execution.
            in_flight: The children in flight among which the run is counted; None for a root run.
        """
        self.unit: FairShare = unit
        self.in_flight: InFlight | None = in_flight
        self.slot: InFlightSlot | None = None
        """The in-flight slot of a child; None until it is needed: the group counts the child."""
        self.first_permit: AttemptPermit | None = None
        """The permit of the first attempt, which was acquired when the child was admitted."""
        # Set while a run waits for another attempt, also a root run, which has no slot. The next
        # request takes it over, so that no later step of the run is preferred.
        self._shares: tuple[Share, ...] | None = None  # None: those of the run above
        self.returns: bool = False
        """Whether the next request goes before those of attempts and children that are new."""

    @property
    def shares(self) -> tuple[Share, ...]:
        """The shares of the fan-outs around it that the run belongs to, the outermost first."""
        if self._shares is None:
            above = self.above
            return () if above is None else above.shares
        return self._shares

    def belong_to(self, shares: tuple[Share, ...]) -> None:
        """Note the shares of its own fan-out that a child belongs to."""
        above = self.above
        self._shares = shares if above is None else (*above.shares, *shares)

    @property
    def above(self) -> HeldPermits | None:
        """The permits of the run that started this one, if that is a child of a fan-out."""
        return None if self.in_flight is None else self.in_flight.above

    def make_slot(self) -> InFlightSlot | None:
        """Return the in-flight slot, creating it on first use; None outside a fan-out."""
        if self.slot is None and self.in_flight is not None:
            self.slot = self.in_flight.make_slot(self, is_held=True)
        return self.slot


@final
class AttemptPermit(PermitRequest):
    """The permit of an attempt: a slot of every limit that applies to it, and of the workers.

    Its life, and the attributes that tell where it stands:

    - waiting: ``wait_queue`` is set. ``cancel`` and ``leave`` end the wait.
    - granted: ``granted`` is set. ``release_for_children`` releases the slots for a time.
    - released: neither is set, ``_released`` is above 0. ``reacquire`` waits, ``reacquire_nowait``
      doesn't.
    - over: ``_over`` is set, by ``leave`` alone, and stays.
    """

    __slots__ = (
        "_has_worker",
        "_holder",
        "_includes_slot",
        "_released",
        "_notify",
        "_over",
        "_scheduler",
        "_worker",
        "refusal",
        "slot",
        "waiter",
    )

    def __init__(
        self,
        scheduler: FairScheduler,
        needed: tuple[Gate, ...],
        costs: tuple[float, ...] | None = None,
        holder: HeldPermits | None = None,
        *,
        on_granted: Callable[[], None] | None = None,
        slot: InFlightSlot | None = None,
        worker: Gate | None = None,
        keeps_worker: bool = True,
        flow: Flow | None = None,
        taken_at: float | None = None,
    ) -> None:
        """Enter the scheduler: granted at once if there is room, else waiting.

        Args:
            scheduler: The scheduler that grants it.
            needed: The gates, each once.
            costs: The units that each of them charges; None: 1 each.
            holder: The permits of the run that the attempt belongs to; None: a request without a
                run.
            on_granted: Called once, when the permit is granted after a wait, or refused. None: the
                attempt's task calls ``wait``.
            slot: The in-flight slot of the run, if it must be held as well.
            worker: The gate of the workers, if the attempt runs in one.
            keeps_worker: Whether the worker can do nothing else while the attempt's children run.
            flow: Where it takes turns; None: where everything without a priority or share does.
            taken_at: When the gates were charged, if they count the attempt already.
        """
        if worker is not None and not keeps_worker:
            needed, worker = (*needed, worker), None
            costs = None if costs is None else (*costs, 1.0)
        super().__init__(needed, costs, None if holder is None else holder.unit, flow)
        if holder is not None and holder.returns:
            holder.returns = False
            self.is_returning: bool = True
        self._scheduler: FairScheduler = scheduler
        self._holder: HeldPermits | None = holder
        self._notify: Callable[[], None] | None = on_granted
        # Calls of `release_for_children` that `reacquire` or `reacquire_nowait` has not matched
        # yet. Several tasks of one attempt may fan out at overlapping times; the slots are needed
        # when the last is back.
        self._released: int = 0
        self._over: bool = False
        # Whether `needed` and `costs` begin with those of the in-flight slot. Only between the
        # constructor and the first grant.
        self._includes_slot: bool = False
        # The future that a task awaits in `wait` or `reacquire`; None while no task does. Of tasks
        # that reacquire the same permit, the last one has it.
        self.waiter: Waiter | None = None
        self.refusal: Exception | None = None  # the error of `refuse`, until `wait` raises it
        self.slot: InFlightSlot | None = slot
        self._worker: Gate | None = worker
        self._has_worker: bool = False  # whether a slot of `_worker` is held
        for gate in needed:
            gate.users += 1
        # The order in `needed` is: in-flight slot, the attempt's own gates, worker. `on_granted`
        # splits off both ends, so that a permit released for children keeps them.
        if worker is not None:
            self.needed = (*needed, worker)
            self.costs = None if costs is None else (*costs, 1.0)
        if slot is not None and not slot.is_held:
            self._include(slot)
        if taken_at is None:
            scheduler.enter(self)
        else:
            self.count_as_granted(taken_at)
        # The callback is for a grant after a wait, and there was none.
        if self.granted:
            self._notify = None

    @property
    def payer(self) -> Payer | None:
        """The permits of the run that the attempt belongs to."""
        return self._holder

    def settle(self) -> tuple[Stake, ...]:
        """Count at budgets what the attempt has cost; return what is counted now.

        An attempt that said nothing has cost its worst case.
        """
        settled = tuple([stake for stake in self.stakes if stake.settle()])
        if settled:
            self._scheduler.look_at(settled)
        return settled

    # -- the in-flight slot ---------------------------------------------------------------------

    def _include(self, slot: InFlightSlot) -> None:
        """Add the gates of the in-flight slot, at no cost where it is paid already."""
        own = (1.0,) * len(self.needed) if self.costs is None else self.costs
        self.slot = slot
        self.needed = (*slot.needed, *self.needed)
        self.costs = (*slot.price, *own)
        self._includes_slot = True

    def _split_off_slot(self) -> InFlightSlot:
        slot = self.slot
        assert slot is not None, "the permit includes one"
        assert self.costs is not None
        self._includes_slot = False
        self.needed = self.needed[len(slot.needed) :]
        self.costs = self.costs[len(slot.needed) :]
        return slot

    def include_slot(self) -> bool:
        """Add the in-flight slot of a child that must wait for a rate or a key.

        Such a wait may be long, and other children should run meanwhile. A wait for a mere slot is
        as short as the attempt that holds it, so the child keeps its place for that. See
        test_a_waiting_child_holds_no_place_in_flight.
        """
        if self._includes_slot or self._holder is None:
            return False
        if not any(
            gate.meter is not None or gate.is_keyed or gate.is_shut or gate.purse is not None
            for gate in self.needed
        ):
            return False  # a held run requests nothing before the hold ends
        slot = self._holder.make_slot()
        if slot is not None:
            self._include(slot)
        return slot is not None

    def take_place(self) -> None:
        """Hold the child's in-flight slot, though the permit was refused: it begins, and ends."""
        if self._includes_slot:
            self._split_off_slot().take_place()

    def suspend_slot(self) -> None:
        """Release the child's in-flight slot, now that the permit waits for it as well."""
        if self._includes_slot and self.slot is not None and self.slot.is_held:
            self.slot.step_aside()

    def on_granted(self, since: float | None) -> None:
        """Split off the worker and the in-flight slot, which are released at other times."""
        self.since = since
        if self._worker is not None:
            self._split_off_worker()
            self._has_worker = True
        if self._includes_slot:
            # Held from the same moment as the permit, and with its time of charge: a refund needs
            # it.
            self._split_off_slot().hold(since=since, taken_at=self.taken_at)

    def _split_off_worker(self) -> None:
        self.needed: tuple[Gate, ...] = self.needed[:-1]
        self.costs: tuple[float, ...] | None = None if self.costs is None else self.costs[:-1]

    # -- waiting --------------------------------------------------------------------------------

    async def wait(self) -> None:
        """Wait until the permit is granted or released for children. Holds nothing if cancelled.

        Raises:
            RateUnavailable: The backend of a shared rate can't be reached.
        """
        try:
            # The condition is looked at again after each wait: a permit that was granted may be
            # released before its task runs.
            while self.wait_queue is not None or self.waiter is not None:
                waiter = self.waiter
                if waiter is None:
                    waiter = self.waiter = self._scheduler.waiter()
                await waiter
                self.waiter = None
        except BaseException:
            # Cancelled, perhaps in the loop iteration of the grant: `cancel` refunds that too. See
            # test_a_cancel_in_the_tick_of_the_grant.
            self.waiter = None
            self.cancel()
            raise
        # Raised once, and by this task: an error that is kept here leads back to this frame.
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
        """Resume the waiting task, or call the constructor's ``on_granted``."""
        if self._notify is not None:
            # Not after `leave`: nothing was granted then, and the run is ending.
            if self.granted or self.refusal is not None:
                notify, self._notify = self._notify, None  # called once
                notify()
        elif self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def withdraw(self) -> None:
        """End the wait of ``wait``, which then returns without a grant; else do nothing."""
        if self.wait_queue is not None:
            self.leave()

    @property
    def is_gone(self) -> bool:
        """Whether the task that waits was cancelled: it still waits, but its future is done."""
        return self.waiter is not None and self.waiter.done()

    def held_up(self, now: float) -> tuple[Literal["slot", "rate", "key", "paused"], str, Hashable]:
        """Return what the permit waits for: what kind of thing, the limit as written, and the key.

        That is the gate at which it is posted. Others may be closed too.
        """
        gate = None if self.wait_queue is None else self.wait_queue.gate
        limit, key = self.awaited
        if self.unit is not None and self.unit.held_at is not None:
            # It may be posted elsewhere still, but only the end of the hold helps.
            return "paused", "", None
        if gate is None or gate.part is None:
            return "slot", limit, key
        is_paused = gate.is_shut or gate.paused_until > now
        if gate.is_keyed and (is_paused or gate.used >= gate.slots):
            return "key", limit, key
        if gate.used < gate.slots and gate.meter is not None:
            return "rate", limit, key
        return ("key" if gate.is_keyed else "slot"), limit, key

    @property
    def awaited(self) -> tuple[str, Hashable]:
        """The limit that the permit waits for, and the key."""
        gate = None if self.wait_queue is None else self.wait_queue.gate
        if gate is None:
            return "in flight", None
        if gate.part is None:
            return gate.name, None
        # The limit as its user wrote it, because hooks and watchers show this text.
        return repr(gate.part), gate.key

    # -- the end --------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Release the slots of an attempt that never ran, and refund its units."""
        if self.granted and self.paid:
            self.paid = False
            self._scheduler.refund(self, self.unit)
        self.leave()

    def leave(self) -> None:
        """Release the permit for good; further calls do nothing."""
        if self._over:
            return
        self._over = True
        if self.stakes:
            self.settle()  # done before, unless the engine itself was interrupted
        self._scheduler.leave(self)
        # Never granted: what was added for the grant is taken off, so that `needed` is what `users`
        # was counted for. The child needs its place again, since it goes on to its end.
        if self._includes_slot:
            self._split_off_slot().resume()
        if self._worker is not None:
            self._leave_worker(self._worker)
        for gate in self.needed:
            gate.users -= 1
        # Another task of the attempt may wait in `reacquire`: see
        # test_a_permit_reacquired_after_its_attempt_ended_takes_nothing.
        self.wake()

    def _leave_worker(self, worker: Gate) -> None:
        if self._has_worker:
            self._has_worker = False
            worker.used -= 1
            self._scheduler.serve(worker)
        else:  # never granted
            self._split_off_worker()

    # -- released for children ------------------------------------------------------------------

    def release_for_children(self) -> None:
        """Release the slots while the attempt's children run.

        Each call is matched by one of ``reacquire`` or ``reacquire_nowait``. A task of the attempt
        that waits in ``reacquire`` meanwhile goes on without slots; the last task to come back
        reacquires them. See
        test_a_permit_released_again_by_another_task_of_the_attempt_is_not_granted.
        """
        self._released += 1
        for stake in self.stakes:
            stake.rest(self._holder)
        self._scheduler.leave(self)
        self._scheduler.look_at(self.stakes)  # requests that wait for its money may never get it
        self.wake()

    async def reacquire(self) -> None:
        """Reacquire the slots, ahead of new attempts; if cancelled meanwhile, without waiting."""
        self._released -= 1
        if self._is_vacant():
            # The attempt has begun already: behind new ones it would wait as long as there are any.
            # See test_an_attempt_takes_its_slot_again_ahead_of_new_ones.
            self._scheduler.enter(self, ahead=True)
            while self.wait_queue is not None:
                self.waiter = self._scheduler.waiter()
                try:
                    await self.waiter
                except BaseException:
                    # The attempt's cleanup runs now and is counted: see
                    # test_an_attempt_interrupted_inside_its_block_is_counted_afterwards.
                    self.waiter = None
                    self._reacquire_now()
                    raise
                self.waiter = None

    def reacquire_nowait(self) -> None:
        """Reacquire the slots at once: for an attempt that is cancelled and can't wait.

        The attempt runs, so it counts, even if there is no room. No new attempt starts then until
        enough others have ended.
        """
        self._released -= 1
        self._reacquire_now()

    def _is_vacant(self) -> bool:
        """Whether the attempt itself runs again, without slots."""
        # All three matter: another task of the attempt may have reacquired the slots, may still
        # have children at work, or may have ended the attempt. See
        # test_tasks_of_one_attempt_that_fan_out_at_overlapping_times.
        if self._released or self._over:
            return False
        for stake in self.stakes:
            stake.wake()
        return not self.granted

    def _reacquire_now(self) -> None:
        if self._is_vacant():
            # Out of the wait queue first: a request is never granted and waiting at once.
            self._scheduler.leave(self)
            self._scheduler.take(self)

    def __repr__(self) -> str:
        state = "granted" if self.granted else "free" if self.wait_queue is None else "waiting"
        return f"<AttemptPermit {state}, needs {self.needed}>"
