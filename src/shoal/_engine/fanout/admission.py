"""Admission of a fan-out's children: which of them may start, and how many are in flight.

A child in flight holds a *place*. It starts when all of its limits have room at once: the place,
the rates and keys of its fan-out and, if the child begins with an action, the limits of that
action. So rates count real starts.

Invariants:
- A child is in flight from its start until the parent has committed its result, and there are at
  most as many as there are places. So a slow parent slows the source down, and memory is bounded.
  Where nothing can slow the parent down, a child may give its place to another as soon as it ends;
  see ``ChildTaskGroup``.
- A child that waits to start holds no place, so others start before it. A child that has started
  and waits for a rate, a key or another attempt is suspended, and holds no place either. How many
  elements are pulled for children that wait is said by ``ReadAhead``.
- One child may always be alive. Each further one needs a permit of the execution's live budget, and
  no child waits for such a permit. So trees of fan-outs stay small, and can't deadlock.
- A child that is cancelled while it waits to start never starts, and its permits go to others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, final

from shoal._engine.config import RunConfig
from shoal._engine.disposition import LIVE
from shoal._engine.hedged import Hedging
from shoal._engine.permits import passes_of
from shoal._engine.publish import publish_waiting
from shoal._engine.run import Run
from shoal._errors.exceptions import BudgetExceeded
from shoal._events.events import ChildName
from shoal._graph.action import FunctionAction
from shoal._limits.gates import Gate
from shoal._limits.limiters import Limiter
from shoal._limits.limits import Limits
from shoal._limits.passes import START
from shoal._limits.permits import AttemptPermit, InFlight
from shoal._limits.refusals import overload

from .ahead import ReadAhead
from .entries import ChildSource
from .reservation import Reservation
from .start_requests import StartRequests


@final
class ChildAdmission:
    """Counts the children of one group against its limits, and keeps those that wait to start."""

    __slots__ = (
        "_ahead",
        "_arrivals",
        "_below",
        "_budget",
        "_copies",
        "_governs_all",
        "_in_flight",
        "_limiters",
        "_live_count",
        "_on_refused",
        "_on_room",
        "_refuses_alone",
        "_requests",
        "_on_stopped",
        "_scheduler",
        "_scopes",
        "_source",
        "_unpublished",
        "_waiting",
        "place",
        "ready",
        "reservation",
        "suspended",
        "uncommitted",
    )

    def __init__(
        self,
        parent: Run,
        source: ChildSource,
        limits: Limits,
        limit: int | None,
        *,
        owner: object,
        among: str,
        ahead: int | None,
        on_room: Callable[[], None],
        on_refused: Callable[[Exception], None],
        refuses_alone: bool = False,
        on_stopped: Callable[[str], None],
    ) -> None:
        """Begin with no child in flight or waiting.

        Args:
            parent: The run whose children they are.
            source: Makes them.
            limits: How many may be in flight, and how they start.
            limit: How many may be in flight, if that differs from ``limits``.
            owner: The fan-out's definition: its executions share limiters by it.
            among: Tells several fan-outs of one owner apart.
            ahead: The user's ``ahead=``.
            on_room: Called when a child may start, or another may take its place.
            on_refused: Called with the reason why a waiting child can never start.
            refuses_alone: Whether a child that finds a limit overloaded fails alone, as a
                contestant of a race does. Else the whole group fails: the children after it would
                be taken from the source one after the other to be refused as well.
            on_stopped: Called with the reason why no more children are to start.
        """
        limit = limits.in_flight if limit is None else limit
        services, execution = parent.config.services, parent.config.execution
        controller, of_starts, of_attempts = (
            services.admission,
            limits.of_starts,
            limits.of_attempts,
        )
        self._scheduler = controller.scheduler
        # At the last commit: requests that had begun to wait by then, in the whole runtime.
        self._arrivals: int = controller.scheduler.arrivals
        self._limiters: tuple[Limiter, ...] = ()  # the fan-out's own, if it has any
        if of_starts is not None:
            self._limiters = (controller.limiter(owner, of_starts, among),)
        # None if nothing is added, which is usual.
        self._scopes: tuple[Limiter, ...] | None = None
        """The limiters of the children's attempts, if the fan-out has limits that count those."""
        self._below: tuple[Limiter, ...] = parent.config.scopes_below
        """The limiters of the attempts of all that is below the children."""
        of_descendants = limits.of_descendants
        if of_descendants is not None:
            name = f"{among} budgets".strip()
            self._below = (*self._below, controller.limiter(owner, of_descendants, name))
            self._scopes = self._below
        if of_attempts is not None:
            name = f"{among} attempts".strip()
            self._scopes = (*self._below, controller.limiter(owner, of_attempts, name))
        above = parent.slot_owner.held_permits()
        # Of this group alone: another attempt of the step makes a new one, with places of its own.
        self._in_flight = InFlight(controller.scheduler, limit, self._on_suspended, above, parent)
        self.place: Gate = self._in_flight.place
        """Counts the children in flight, from their start until the parent has committed their end.
        """
        # Not by a `Part`, since places are no limiter's: each execution of the fan-out has its own.
        self.place.adapt = adapt = limits.adapts_in_flight
        # False: only children with limits of their own need permits; all others just take a place.
        self._governs_all = of_starts is not None or self._scopes is not None or adapt is not None
        self.suspended: int = 0
        """Children that have started, and wait without a place."""
        self.uncommitted: int = 0
        """Ended children that hold no place any more, though the parent has not committed their
        end."""
        self.ready: deque[Run] = deque()
        """Children that have waited and may start now. Workers take them; never ended ones."""
        self._source = source
        self._ahead = ReadAhead(ahead, limit, controller.limiters, self._limiters, self._scopes)
        self._requests = StartRequests(controller, self._in_flight, self._limiters)
        self.reservation: Reservation | None = None
        """For the next child, with ``ahead=0``: its element is pulled only if it can start.

        None: its element is pulled before that is asked.
        """
        if ahead == 0:
            self.reservation = Reservation(
                source,
                self._ahead,
                self._requests,
                self._in_flight,
                self._scheduler,
                on_room=on_room,
                on_refused=on_refused,
            )
        # Children that wait to start, each until its permit is granted or it is cancelled.
        self._waiting: dict[Run, AttemptPermit] = {}
        # Of these, the ones that hooks have not been notified of; some may have started since.
        self._unpublished: list[tuple[Run, AttemptPermit]] = []
        # Children that ``let_in`` counted and ``let_out`` has not. All but one hold a permit of the
        # live budget.
        self._live_count = 0
        self._budget = execution.live
        self._copies = 0  # second copies that hold a place: they are no children
        # A limit that the user gave raises the budget; the default limit doesn't.
        if limits.n is not None or limit != limits.in_flight:
            # The user has asked for so many at once, and knows about this fan-out; see
            # test_a_limit_above_the_budget_raises_it.
            self._budget.size = max(self._budget.size, limit)
        self._on_room = on_room
        self._on_refused = on_refused
        self._refuses_alone = refuses_alone
        self._on_stopped = on_stopped

    @property
    def waiting(self) -> int:
        """Count the children that wait to start or are suspended."""
        return len(self._waiting) + self.suspended

    @property
    def unstarted(self) -> Mapping[Run, AttemptPermit]:
        """The children that wait to start, and the permits that they wait for."""
        return self._waiting

    @property
    def waiting_to_start(self) -> list[Run]:
        """The children that have been taken from the source and not started."""
        return [*self.ready, *self._waiting]

    @property
    def has_room(self) -> bool:
        """Whether one more child may be taken from the source, to start or to wait."""
        return self.place.used < self.place.slots and self._may_read_on()

    def _may_read_on(self) -> bool:
        waiting, place = len(self._waiting), self.place
        # Most fan-outs have no child that waits, and are asked no more.
        if not (waiting or self.suspended):
            return True
        if place.used + waiting + self.suspended >= place.slots + self._ahead.beyond:
            return False
        return not waiting or waiting < self._ahead.waiting(self._source.kind)

    def may_pull(self) -> bool:
        """Whether an async source may pull one more element.

        With ``ahead=`` it may do so while all places are taken, since its elements take time to
        come. What it has pulled waits in the source then.
        """
        place, ahead, source = self.place, self._ahead, self._source
        # Not the same where an action has yet to consume outcomes: these take up room as well.
        pulled, room = source.pulled(), place.slots - place.used - source.waiting()
        if room + ahead.beyond <= len(self._waiting) + self.suspended:
            return False
        unstarted = pulled + len(self._waiting)
        if ahead.given is not None and unstarted < ahead.given:
            return True
        if room <= 0:
            return False
        kind = source.kind
        # Where a place is all that a child needs, what was pulled starts at once.
        if kind is None or self._governs_all or kind.is_limited:
            if unstarted >= ahead.waiting(kind):
                return False
        # Without a permit of the live budget its child would wait; one is enough to ask for it.
        elif pulled and self.lacks_permits:
            return False
        return self.reservation is None or self.reservation.could_start()

    @property
    def lacks_permits(self) -> bool:
        """Whether one more child has a place, but no permit of the live budget."""
        # With no child alive no permit is needed, so none is lacking.
        return self.place.used < self.place.slots and self._live_count > 0 and self._budget.is_spent

    def permits(self, others: int) -> bool:
        """Whether one more child may be alive, besides the live ones and ``others``."""
        return not (self._live_count or others) or not self._budget.is_spent

    # -- starting and ending ----------------------------------------------------------------------

    def let_in(self) -> bool:
        """Count one more live child, and return True, if there is room; ``let_out`` undoes it."""
        place = self.place  # ``has_room`` repeated here, to save a call for each child
        if place.used >= place.slots:
            return False
        if (self._waiting or self.suspended) and not self._may_read_on():
            return False
        # The first child takes none. That is why a tree of fan-outs can't come to a standstill.
        if self._live_count:
            budget = self._budget  # `is_spent` repeated here, for the same reason
            if budget.used >= budget.size:
                return False
            budget.used += 1
        self._live_count += 1
        return True

    def let_out(self) -> None:
        """Count one live child less, and return its permit to the live budget."""
        self._live_count -= 1
        if self._live_count:  # the last live child never took a permit
            self._budget.used -= 1

    def admit(self, child: Run) -> bool:
        """Request what ``child`` needs to start; return whether it may start now.

        Otherwise the child waits, and ``on_room`` is called once it is in ``ready``.

        Raises:
            Exception: ``by=`` or ``cost=`` of the fan-out's limits raised it.
            Overloaded: So many runs wait for one of its limits that this one may not.
        """
        config = child.config
        # Before the child runs: its permits find their places through this.
        config.in_flight = self._in_flight
        if self._scopes is not None:
            self._limit_attempts(config)
        if not (self._governs_all or config.is_limited):
            self.place.used += 1
            return True
        if config.walks_simply and self._lets_pass(child, config):
            self.place.used += 1
            return True
        permit = self._requests.for_child(child, partial(self._on_granted, child))
        if permit.granted:
            return True
        scheduler = self._scheduler
        refusal = overload(permit, scheduler.clock) if scheduler.bounds_waiting else None
        if refusal is not None:
            permit.cancel()
            if not self._refuses_alone:
                raise refusal
            self._start_refused(child, permit, refusal)
            return True
        self._waiting[child] = permit
        if config.hooks.waiting:
            # Later and by a worker, because nothing is awaited here.
            self._unpublished.append((child, permit))
        return False

    def _limit_attempts(self, config: RunConfig) -> None:
        """Add the limits of the fan-out that count attempts to what its children have in common."""
        assert self._scopes is not None, "the caller has looked"
        config.scopes, config.scopes_below = self._scopes, self._below
        config.is_governed, config.may_call_simply = True, False
        config.is_limited_simply = config.walks_simply

    def _lets_pass(self, child: Run, config: RunConfig) -> bool:
        """Let ``child`` take what it needs besides its place, past a request, if all is open."""
        place = self.place
        # A policy wants to know when the child has had its place, and others may wait for one.
        if place.posted or place.adapt is not None:
            return False
        if not (child.pending is child.retries is child.resume is child.questions is None):
            return False  # it may continue elsewhere
        passes = config.passes or passes_of(config, self._limiters)
        return passes.take(child, START)

    def _start_refused(self, child: Run, permit: AttemptPermit, refusal: Exception) -> None:
        """Start ``child`` with a permit that fails its first attempt."""
        permits = child.permits
        assert permits is not None, "it has requested a permit"
        assert permits.slot is not None, "a child in flight has one"
        permit.refusal = refusal
        permits.first_permit = permit
        permits.slot.take_place()  # a child ends in flight

    def ended(self, child: Run) -> None:
        """Count ``child``, which has ended, as in flight, also if it was suspended.

        Raises:
            Exception: A user's policy that adapts limits raised it.
        """
        permits, passes = child.permits, child.config.passes
        if child.passed is not None and passes is not None:
            passes.end(child, refunds=not child.began)
        if permits is None:
            return
        if (
            permits.first_permit is not None
        ):  # it ended before its first attempt, which would have used it
            permits.first_permit.cancel()
            permits.first_permit = None
        if permits.slot is not None:
            # Before the policies see it: a child ends in flight, whether or not there is room.
            permits.slot.resume()
            self._scheduler.adapt(permits.slot, child.error)

    def may_give_early(self, child: Run) -> bool:
        """Whether ``child``, which has ended, may give its place to another before its commit.

        Not if anything has begun to wait for a limit since the last commit, and the child had to
        pass one: what waits has only a few requests in line at once, and each of the next ones
        comes when the loop has gone round. See
        test_a_big_fan_out_does_not_starve_a_later_small_one.
        """
        permits, scheduler = child.permits, self._scheduler
        if permits is not None and permits.slot is not None:
            return False
        return child.config.passes is None or (
            self._arrivals == scheduler.arrivals and not scheduler.wait_queues
        )

    def give_place_early(self, more: int) -> None:
        """Release the place of a child that has ended and holds no slot, before its commit.

        Not if as many children wait for their commit without a place as there are places, and
        ``more``.
        """
        place = self.place
        if self.uncommitted >= place.slots + more:
            return
        # Which child it was is of no interest: places are alike, and ``committed`` counts them.
        self.uncommitted += 1
        place.used -= 1
        if place.posted:
            self._scheduler.serve(place)

    def committed(self, children: Sequence[Run]) -> None:
        """Release the in-flight slots of ``children``, whose ends the parent has committed."""
        in_flight, place = self._in_flight, self.place
        self._arrivals = self._scheduler.arrivals
        places = 0
        for child in children:
            permits = child.permits
            if permits is None or permits.slot is None:  # most hold just a place: no call for them
                places += 1
            else:
                in_flight.release(permits)
        early = min(places, self.uncommitted)
        self.uncommitted -= early
        place.used -= places - early
        if place.posted:
            self._scheduler.serve(place)

    def cancel_unstarted(
        self, children: Iterable[Run], reason: str, winner: ChildName | None
    ) -> None:
        """Cancel children that have not started, and give their permits to others.

        They count as in flight until the parent has committed their ends, as all ended children do.
        """
        # First: it refuses a child that has ended, before anything is given back for it.
        self._end_unstarted(children, lambda child: child.never_start(reason, winner))

    def skip_unstarted(self, children: Iterable[Run], reason: str) -> None:
        """Skip children that have not started; otherwise as ``cancel_unstarted``."""
        self._end_unstarted(children, lambda child: child.pass_over(reason))

    def _end_unstarted(self, children: Iterable[Run], end: Callable[[Run], None]) -> None:
        for child in children:
            end(child)
            permits = child.permits
            if permits is None or permits.slot is None:
                continue  # not admitted: the group counted it as it took it from the source
            self.place.used += 1
            # A child in `ready` has been granted it; one that waits has not. `cancel` undoes
            # either.
            permit = self._waiting.pop(child, None) or permits.first_permit
            permits.first_permit = None
            if permit is not None:
                permit.cancel()
            self._in_flight.release(permits, refunds=True)
            self.let_out()
        # Some were in ``ready``, or got there by permits that others of them have just returned.
        self.ready = deque(
            child for child in self.ready if child.status is None and child.disposition is LIVE
        )

    def withdraw(self) -> list[Run]:
        """Return the children that wait to start, and give what they were granted to others.

        They count neither as live nor as in flight any more: the group takes them back.
        """
        children = self.waiting_to_start
        for child in children:
            permits = child.permits
            assert permits is not None, "a child that waits has asked for a permit"
            permit = self._waiting.pop(child, None) or permits.first_permit
            if permit is not None:
                permit.cancel()
            self._in_flight.release(permits, refunds=True)
            child.permits = None
            self.let_out()
        # All of them, and those that permits of the others have brought here meanwhile.
        self.ready.clear()
        return children

    def close(self) -> None:
        """Release the slots of children whose ends were not committed."""
        self.stop()
        if self.reservation is not None:
            self.reservation.close()
        self._unpublished.clear()
        self._in_flight.close()
        # Breaks a cycle: these are methods of the group and its scope, which refer to this.
        self._on_room = self._on_refused = self._on_stopped = _ignore

    # -- second copies ----------------------------------------------------------------------------

    def request_copy(self, copy: Run, action: FunctionAction[..., Any]) -> AttemptPermit:
        """Request what a second copy of a child's attempt needs to start; its task waits for it.

        Raises:
            Exception: ``by=`` or ``cost=`` raised it.
        """
        return self._requests.for_copy(copy, action)

    def hedge(self, hedging: Hedging) -> None:
        """Let late children have second copies."""
        self._in_flight.hedging = hedging

    def count_copy(self) -> None:
        """Note that a copy has got its place."""
        self._copies += 1

    def release_copy(self, copy: Run, *, began: bool) -> None:
        """Release the place of a copy; if it never ``began``, refund what that cost."""
        self._copies -= began
        if copy.permits is not None:
            self._in_flight.release(copy.permits, refunds=not began)

    # -- before an element is pulled --------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Count the children that have started, and whose end the parent has not committed."""
        used, reservation = self.place.used - self._copies, self.reservation
        return used if reservation is None else used - reservation.is_granted

    def may_pull_one(self, reservation: Reservation) -> bool:
        """Let in the next child and return True, if it can start as far as that is known.

        If not, ``on_room`` is called once it can. A child that is admitted gets what was granted.
        """
        if reservation.is_made:
            return reservation.is_granted  # let in when that was requested
        if not self.let_in():
            return False
        source = self._source
        # An async source, or a multiple of acts, has pulled its next element already.
        return not source.left() or source.waiting() > 0 or reservation.make()

    def admit_first(self, child: Run, reservation: Reservation) -> bool:
        """Do as ``admit``, with what was reserved for this child."""
        permits = reservation.take_for(child)
        if permits is None:
            return self.admit(child)
        config = child.config
        config.in_flight = self._in_flight
        if self._scopes is not None:
            self._limit_attempts(config)
        child.permits = permits
        return True

    def give_back_reserved(self) -> None:
        """Give back what was reserved, if anything was, as there is no next child now."""
        if self.reservation is not None:
            self.reservation.give_back()

    def stop(self) -> None:
        """Give back what was reserved for a child that will not start any more."""
        if self.reservation is not None and self.reservation.is_made:
            self.reservation.give_back()
            self.let_out()  # it was let in when that was requested

    # -- waiting ----------------------------------------------------------------------------------

    def _on_granted(self, child: Run) -> None:
        """Move ``child`` to ``ready``, or end the group if its request was refused."""
        permit = self._waiting[child]
        refusal = permit.refusal
        if isinstance(refusal, BudgetExceeded):
            self._on_too_dear(child, permit, refusal)
            return
        if refusal is not None:  # the group fails, not the child, which has never begun
            self._on_refused(refusal)
            return
        del self._waiting[child]
        # Before `on_room`, which may wake the worker that takes it.
        self.ready.append(child)
        self._on_room()

    def _on_too_dear(self, child: Run, permit: AttemptPermit, refusal: BudgetExceeded) -> None:
        """Let a child begin that doesn't fit into a budget, or the group end with what it has."""
        if refusal.on_empty == "stop":
            self._on_stopped(str(refusal))
            return
        # It begins with the permit that was refused, and fails or asks in its first attempt: so it
        # has a start, an end and an error like any other.
        del self._waiting[child]
        if child.permits is not None:
            child.permits.first_permit = permit
        permit.take_place()
        self.ready.append(child)
        self._on_room()

    def _on_suspended(self, by: int) -> None:
        """Count a child that is suspended (``by`` 1) or goes on (-1), and use the room."""
        self.suspended += by
        self._on_room()

    @property
    def has_unpublished(self) -> bool:
        """Whether hooks have yet to be notified of waiting children."""
        return bool(self._unpublished)

    async def publish(self) -> None:
        """Publish the children that wait and have not been published.

        Raises:
            HookFailed: A guarding hook raised.
        """
        # Replaced before the first await: other workers append meanwhile.
        unpublished, self._unpublished = self._unpublished, []
        for child, permit in unpublished:
            if child in self._waiting:  # it may have started while hooks ran
                await publish_waiting(child, permit)

    def __repr__(self) -> str:
        limits = f"limited by {self._limiters}" if self._limiters else "unlimited"
        return f"<ChildAdmission, {self.place.used} in flight, {self.waiting} waiting, {limits}>"


def _ignore(_what: object = None) -> None:
    """Replace the callbacks of a group that has ended."""
