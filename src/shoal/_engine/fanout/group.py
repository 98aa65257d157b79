"""Child runs under one task group: start them as there is room, hand over ended ones in batches.

Invariants:
- Structured. ``ChildTaskGroup.run`` returns or raises after every child has ended, cleanup
  included.
- Only the parent's task takes from the inbox, in which workers leave children that have ended.
- While the inbox holds an end that may decide the step (the last result needed, or one failure too
  many), no child starts.
- A child that is Done, and only has to be applied, waits for no limit, no breaker and no hook.
- Every child that began reaches the inbox, even if a user's callback for its end raises: that fails
  the child.
- As many children are executed as there are places, at most. A child holds its place until its end
  is committed; with ``gives_places_early``, until it ends, as long as few others wait for that.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import final

from anyio import create_task_group
from anyio.lowlevel import checkpoint

from shoal._concurrency.cancellation import as_failure, cancelled, ki_protected
from shoal._concurrency.watchdog import leads_to
from shoal._engine.disposition import LIVE
from shoal._engine.run import Run
from shoal._engine.standing import stands_for
from shoal._events.events import Status
from shoal._graph.policy import Each, Title
from shoal._limits.limits import Limits
from shoal._limits.permits import AttemptPermit

from .admission import ChildAdmission
from .breakers import GroupBreaker
from .cancelling import ChildCancellation
from .children import circuits_of
from .copies import Copies, statistics_of
from .entries import AsyncFeed, ChildSource, Dropped
from .feeders import Feeders
from .gathering import Gathering
from .ledger import Ledger
from .scope import GroupScope
from .workers import Taken, Worker, WorkerPool

BATCH = 1000
"""Ended children in one save, at most, so that other tasks run between two large batches.

See test_between_two_batches_others_may_run.
"""
UNCOMMITTED = 64
"""Ended children that hold no place before their commit, at most, besides as many as have places.

Only if ``gives_places_early``. So the workers of a group with few places don't wait for its parent.
"""
ENDLESS = sys.maxsize // 2
"""Estimates of at least so many elements say that the source doesn't know how many there are."""
_position: Callable[[Run], int] = attrgetter("position")


@final
class ChildTaskGroup:
    """The children of one fan-out, while it lasts.

    The group decides which child is next, and hands over those that have ended. Its workers execute
    the children, its admission counts them against the limits, and its ``scope`` ends them all and
    keeps the reason.
    """

    __slots__ = (
        "_admission",
        "_breaker",
        "_copies",
        "_decisive",
        "_errand",
        "_feeders",
        "_gathering",
        "_gives_early",
        "_halted",
        "_is_judging",
        "_is_shut",
        "_on_answer",
        "_on_drained",
        "_pool",
        "_skips",
        "_source",
        "cancellation",
        "inbox",
        "is_drained",
        "ledger",
        "name",
        "parent",
        "scope",
        "title",
    )

    def __init__(
        self,
        parent: Run,
        source: ChildSource,
        limits: Limits,
        *,
        owner: object,
        name: str,
        limit: int | None = None,
        among: str = "",
        timeout: float | None = None,
        ends_at: float | None = None,
        decisive: Collection[Status | None] = (),
        title: Title | None = None,
        ahead: int | None = None,
        each: Each | None = None,
        gives_places_early: bool = False,
        on_drained: Callable[[], bool] | None = None,
        is_race: bool = False,
        grows: bool = False,
    ) -> None:
        """Prepare a group of children of ``parent``; nothing starts yet.

        Args:
            parent: The run whose task calls ``run``.
            source: Makes the children.
            limits: How many may be in flight, and how they start.
            owner: The fan-out's definition: its executions share limiters by it.
            name: The fan-out's name, for messages.
            limit: How many may be in flight, if that differs from ``limits``.
            among: Tells several fan-outs of one owner apart.
            timeout: Seconds from now until all are cancelled, as the user gave them.
            ends_at: When the timeout expires, by the loop's clock, if it began before now.
            decisive: The statuses of ends that may decide that no more children are needed.
            title: What watchers call the fan-out, or its children.
            ahead: How many elements may be pulled for children that can't start yet.
            each: The policy of each child: a breaker skips children for a while, and a hedge makes
                second copies of late ones.
            gives_places_early: Whether children that have ended may give their places to others
                before the parent has committed their ends.
            on_drained: Called when nothing more starts and nothing is under way; returns whether
                the group ends with that. None: it does.
            is_race: Whether the children are contestants of a race.
            grows: Whether outcomes of children may add elements to the source.
        """
        self.name: str = name
        """The fan-out's name, which is the step of its children."""
        self.title: Title | None = title
        """What watchers call the fan-out, or its children."""
        self.ledger: Ledger | None = None
        """The counts of ended children; None if no children run."""
        self._halted: Iterable[Run] = ()
        self.parent: Run = parent
        """The run whose children they are."""
        self.inbox: deque[Run] = deque()
        """Children that have ended, and that the parent has not taken.

        Workers and cancellations append; only the parent's task removes.
        """
        self.scope: GroupScope = GroupScope(parent, name, timeout, ends_at)
        # Asked without an await by the task that needs a child, so never by two tasks at once.
        self._source = source
        leave, stop = self._leave, self._stop_for_budget  # two bound methods, and not four
        self._admission = ChildAdmission(
            parent,
            source,
            limits,
            limit,
            owner=owner,
            among=among,
            ahead=ahead,
            on_room=self._on_room,
            on_refused=self.scope.fail,
            refuses_alone=is_race,
            on_stopped=stop,
        )
        self._pool = WorkerPool(
            parent,
            self.scope,
            self._admission,
            source,
            take=self._take,
            leave=leave,
            stop=stop,
            looks_first=not is_race,
            keeps_idle=grows,
        )
        self.cancellation: ChildCancellation = ChildCancellation(
            self.scope, source, self._admission, self._pool, leave
        )
        """Cancels some of them, and no others."""
        self._copies: Copies | None = None
        services = parent.config.services
        hedge = statistics_of(services, owner, each, among)
        if hedge is not None:
            self._copies = Copies(hedge, self._admission, self.scope, parent, self.name)
            self._admission.hedge(self._copies)
        # Why the rest is skipped, once a budget has said so; never unset.
        self._skips: str = ""
        circuits = circuits_of(services, owner, each, among)
        self._breaker = None if circuits is None else GroupBreaker(circuits)
        # Only while ``run`` lasts: lets halted children go on that have their answers.
        self._on_answer: Callable[[], Awaitable[None]] | None = None
        # Set by ``run_in_parent``; None again as soon as the parent's task begins with it.
        self._errand: Callable[[], Awaitable[str | None]] | None = None
        self._feeders = Feeders(self.scope)
        self._is_shut = False  # no more children start; never unset: a decision stays
        self.is_drained: bool = False
        """Whether the execution starts nothing more: the source may have children left then.

        Never unset.
        """
        self._on_drained = on_drained
        self._decisive = decisive
        self._gives_early = gives_places_early
        # While it is held, no child starts...
        self._gathering = Gathering(
            parent, self.inbox, self.scope, self._admission, gives_early=gives_places_early
        )
        # ...unless ``apply`` is saving: it has judged its own batch by then, and a slow save must
        # not keep other children from starting.
        self._is_judging = False

    @property
    def in_flight(self) -> int:
        """Count the children that have started, and whose end the parent has not committed."""
        return self._admission.in_flight + self._admission.uncommitted

    @property
    def under_way(self) -> int:
        """Count the children that may still succeed: those in flight, and those that wait."""
        return self.in_flight + self._admission.waiting

    @property
    def is_quiet(self) -> bool:
        """Whether no child is under way, and all that have ended were taken from the inbox."""
        return not (self.under_way or self.inbox)

    def living(self) -> Iterator[Run]:
        """Go through the children that have begun and not ended."""
        return self._pool.living()

    # -- what watchers see ----------------------------------------------------------------------

    @property
    def workers(self) -> Collection[Worker]:
        """The workers, most of which execute a child, while others are about to take one."""
        return self._pool.workers

    @property
    def unstarted(self) -> Mapping[Run, AttemptPermit]:
        """The children that wait to start, and the permits that they wait for."""
        return self._admission.unstarted

    @property
    def held_back(self) -> float:
        """Count the elements that have a place, and aren't pulled because they could not start.

        They would wait for the same as the children that wait to start.
        """
        admission = self._admission
        unstarted = len(admission.unstarted)
        if not unstarted or admission.has_room:
            return 0
        place = admission.place
        return max(0, min(place.slots - place.used - unstarted, self._source.most()))

    @property
    def started(self) -> int:
        """Count the children that have started, and that have not ended or hold a place yet."""
        return self._admission.in_flight + self._admission.suspended

    @property
    def uncommitted(self) -> int:
        """Count the children that have ended, hold no place, and are about to be committed."""
        return self._admission.uncommitted

    @property
    def halted(self) -> Sequence[Run]:
        """The children that are halted, and whose halt the parent has committed."""
        return [*self._halted]  # a copy: an answer to one of them changes it

    @property
    def slots(self) -> float:
        """How many children may be in flight."""
        return self._admission.place.slots

    @property
    def more(self) -> int:
        """Count the children that wait or are yet to come; at least 1 if it has no end."""
        to_come = self.to_come
        more = min(1, self._source.left()) if to_come is None else to_come
        return len(self._admission.unstarted) + more

    def resize(self, slots: int) -> None:
        """Change how many children may be in flight. Those in flight go on."""
        self._admission.place.resize(slots)
        self._on_room()

    @property
    def to_come(self) -> int | None:
        """Count the children that the source has yet to give; None if that isn't known.

        A fan-out that finds its own elements knows those that it has found so far.
        """
        source = self._source
        most = source.most()
        if most < ENDLESS:
            return int(most)
        left = source.left()
        # An async source says nothing about the elements that it has yet to give.
        is_fed = self._feeders.count > (self._copies is not None)
        return None if is_fed or left >= ENDLESS else left

    @leads_to(lambda variables: variables["self"].scope.parts())
    async def run(
        self,
        apply: Callable[[list[Run]], Awaitable[str | None]],
        ledger: Ledger | None = None,
        *,
        halted: Iterable[Run] = (),
        on_answer: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Execute every child, and hand ended ones to ``apply`` in batches, sorted by position.

        Children that end after the last call of ``apply`` stay in ``inbox``.

        Args:
            apply: Commits a batch. If it returns a reason, the group ends: the other children are
                cancelled for that reason, and awaited.
            ledger: Counts the ended children, for watchers.
            halted: The children that are halted, as ``apply`` keeps them, for watchers.
            on_answer: Lets those of them go on that have their answers; called in the parent's task
                when a question of the execution was answered.

        Raises:
            StepTimeout: The group took longer than its timeout.
            Exception: The source or ``apply`` raised it; all children have ended by then.
        """
        finished = False
        scope, groups = self.scope, self.parent.config.execution.groups
        hold = self.parent.config.execution.hold
        self.ledger, self._halted, self._on_answer = ledger, halted, on_answer
        # Before the first child, so that a cancellation by key finds each child that there is.
        groups.add(self)
        hold.members.add(self)
        drain = self.parent.config.execution.drain
        drain.add(self.drain)
        if drain.reason is not None:
            self.drain()
        try:
            async with create_task_group() as tasks:
                scope.open(tasks)
                if hold.is_on:
                    scope.stop_clock()
                # One worker is enough to begin with: it adds others when its first child waits.
                self._pool.add_workers(1)
                for source in self._source.feeds():
                    self.start_feeding(source)
                if self._copies is not None:
                    self.start_feeding(self._copies)
                try:
                    finished = await self._consume(apply)
                except BaseException as error:  # noqa: BLE001 # raised below
                    scope.fail_in_parent(error)
                finally:
                    # First of all: a worker that is woken ends only if it finds this set.
                    scope.closing = True
                    self._pool.wake_all()
                    self._feeders.stop()
        except BaseException:
            scope.raise_fatal()  # nothing outranks a KeyboardInterrupt
            raise
        finally:
            scope.close()
            groups.discard(self)
            hold.members.discard(self)
            drain.remove(self.drain)
            # Breaks cycles: errors in the ledger lead back here, and so do methods of the step.
            self.ledger = self._on_answer = self._on_drained = None
            self._halted = ()
            # Before the admission is closed: this gives back what waiting children were granted.
            self.cancellation.close()
            self._admission.close()
            self._pool.close()
            if self._copies is not None:
                self._copies.close()
        # Outside of the task group, which would wrap it in a group of exceptions.
        await scope.raise_failure(finished=finished)

    # -- the parent's side --------------------------------------------------------------------

    @stands_for("group")
    @ki_protected
    async def _consume(self, apply: Callable[[list[Run]], Awaitable[str | None]]) -> bool:
        """Hand over ended children until none is left, or ``apply`` or an errand gives a reason.

        Returns False if the group failed, or was stopped from outside.
        """
        inbox, source, scope = self.inbox, self._source, self.scope
        while scope.goes_on:
            # Before the inbox, as ``run_in_parent`` promises: a decision that is due is saved
            # before ends that came after it.
            if self._errand is not None:
                errand, self._errand = self._errand, None
                reason = await errand()
                if reason is not None:
                    scope.stop(reason)
                    return True
                continue
            if not inbox:
                if not self.under_way and (
                    source.dry() or self._leaves_rest or self._ends_drained()
                ):
                    return True
                await scope.wait()
                await self._let_more_end()
                continue
            batch = [inbox.popleft() for _ in range(min(len(inbox), BATCH))]
            # So that results that come together are applied in input order, whatever order they
            # ended in; see test_results_that_come_together_are_applied_in_input_order.
            batch.sort(key=_position)
            self._is_judging = True
            reason = await apply(batch)
            self._is_judging = False
            # Only after the save: so children in flight are bounded also where saves are slow.
            self._admission.committed(batch)
            if reason is not None:
                scope.stop(reason)
                return True
            self._use_room(len(batch))
            if inbox:
                # Children may end as fast as they are saved, and other tasks have to run in
                # between; see test_between_two_batches_others_may_run.
                await checkpoint()
                await self._let_more_end()
        return False

    async def _let_more_end(self) -> None:
        """Let other children end before the next commit, if that is worth their time."""
        await self._gathering.wait(saves_wait=self.parent.config.execution.saves_wait)

    def run_in_parent(self, errand: Callable[[], Awaitable[str | None]]) -> None:
        """Run ``errand`` in the parent's task before it takes more children from the inbox.

        If it returns a reason, the group ends, as it does for ``apply``.
        """
        # Both are kept: two children may call this before the parent's task runs.
        earlier = self._errand
        self._errand = errand if earlier is None else partial(_both, earlier, errand)
        self.scope.wake()

    def look_for_answers(self) -> None:
        """Let halted children go on that have their answers, if the group can do that.

        Not now, but in the parent's task, when the ends that it is committing are committed: a
        child holds its place until then.
        """
        on_answer = self._on_answer
        if on_answer is not None:
            self.run_in_parent(partial(_then_go_on, on_answer))

    def resume_starting(self) -> None:
        """Let other children start again: the ends that held them up have decided nothing."""
        if self._gathering.is_held:
            self._gathering.is_held = False
            self._pool.add_workers(1)

    def stop_starting(self) -> None:
        """Start no more children: the step is decided or fails, and that is about to be saved."""
        self._is_shut = True
        self._admission.stop()

    def _stop_for_budget(self, reason: str) -> None:
        """Start no more children: nothing is left of a budget that says so. Those at work go on."""
        if self._skips or self.scope.closing:
            return
        self._skips = reason
        unstarted = self._admission.waiting_to_start
        self._admission.skip_unstarted(unstarted, reason)
        for child in unstarted:
            self._leave(child)
        self._pool.add_workers(1)  # takes the rest from the source, to skip it

    @property
    def _leaves_rest(self) -> bool:
        """Whether the rest is left in the source: it has no known end, so it is not even read."""
        return bool(self._skips) and self.to_come is None

    def drain(self) -> None:
        """Start no more children: the execution starts nothing more. Those in flight go on.

        Children that wait to start go back to the source, which keeps them for the next execution.
        """
        self._is_shut = self.is_drained = True
        unstarted = self._admission.withdraw()
        # The first by position is put back last, so it stands in front.
        for child in sorted(unstarted, key=_position, reverse=True):
            if self._breaker is not None:
                self._breaker.report(child)
            self._source.take_back(child)
        self.scope.wake()

    def _ends_drained(self) -> bool:
        """Whether the group ends though its source may have more, since nothing more starts."""
        return self.is_drained and (self._on_drained is None or self._on_drained())

    def engage(self) -> None:
        """Start a child if there is room by now; let the parent check if the group has ended."""
        if self.scope.is_open and not self.scope.closing:
            self._use_room(1)
            self.scope.wake()

    def on_hold(self) -> None:
        """Let the timeout stand still: the execution is held. No child starts meanwhile."""
        self.scope.stop_clock()
        self._admission.stop()

    def on_release(self) -> None:
        """Go on after a hold."""
        self.scope.start_clock()
        if self._copies is not None:
            self._copies.look()
        self.engage()

    def _use_room(self, count: int) -> None:
        """Fill up to ``count`` in-flight slots that have become free."""
        self._feeders.wake()
        self._pool.add_workers(count)

    def _on_room(self) -> None:
        """Start a child that has waited, or another one in the slot of a suspended child."""
        if not self.scope.closing:
            self._pool.add_workers(1)
            self._feeders.wake()

    # -- the workers' side ----------------------------------------------------------------------

    def _take(self) -> Taken:
        # Called only while the scope isn't closing: the worker has just checked that.
        if self._is_shut or (self._gathering.is_held and not self._is_judging):
            return None  # if held: ``resume_starting`` adds workers again
        admission, source = self._admission, self._source
        if self._skips and self._leaves_rest:
            return None
        if admission.ready:
            # A child that is cancelled gives its permits back, and they may have been granted to
            # another child of this group, which is being cancelled too: that must not start.
            return None if cancelled() else admission.ready.popleft()
        # After those: they hold what they were granted until they find out that they have to wait.
        if self.parent.config.execution.hold.is_on:
            return None
        # Before the source is asked: an element is pulled only if its child has a place.
        reservation = admission.reservation
        if reservation is not None:
            # A worker is woken once the child can start.
            if not admission.may_pull_one(reservation):
                return None
        elif not admission.let_in():
            return None
        child: Run | Dropped | None = None
        try:
            child = source.take()
            if isinstance(child, Run):
                if self._breaker is not None and child.is_live:
                    self._breaker.consult(child)
                if self._skips and child.is_live:
                    child.pass_over(self._skips)
                if child.disposition is LIVE:  # a property would be a call for each child
                    if self._feeders.room is not None:
                        self._feeders.wake()  # what it has pulled may be fewer now than may wait
                    # Called in two places: a bound method in a variable costs each child more.
                    if reservation is not None:
                        if not admission.admit_first(child, reservation):
                            return "waiting"
                    elif not admission.admit(child):
                        return "waiting"
                    return child
                # It was done earlier, but counts as in flight until it is applied.
                admission.give_back_reserved()
                admission.place.used += 1
                if not child.lacks_history:  # else a worker reads its history, so it is alive
                    admission.let_out()
                return child
            admission.give_back_reserved()
            admission.let_out()
            if child == "dropped":
                self._feeders.wake()  # the dropped element takes up no room any more
            elif source.dry():
                # The parent waits for ends, and there may be none any more.
                self.scope.wake()
        except BaseException as error:  # noqa: BLE001 # raised by ``run``
            admission.give_back_reserved()
            admission.let_out()
            if isinstance(child, Run):
                if self._breaker is not None:
                    self._breaker.report(child)
                # The next attempt gets the element; see
                # test_an_element_is_not_lost_when_something_raises_about_it.
                source.take_back(child)
            self.scope.fail(error)
            return None
        return child

    def _leave(self, child: Run) -> None:
        if self.scope.closing and child.permits is child.passed is self._breaker is None:
            self.inbox.append(child)  # none starts in its place, and the parent waits for none
            return
        gathering = self._gathering
        try:
            # Most children hold nothing: saves a call for each.
            if child.permits is not None or child.passed is not None or self._breaker is not None:
                self._give_back(child)
        finally:
            # Before the parent is woken: no child may start between this end and its judgement.
            if child.status in self._decisive:
                gathering.is_held = True
            self.inbox.append(child)
            if self._gives_early and (
                (child.permits is None and child.config.passes is None)
                or self._admission.may_give_early(child)
            ):
                self._admission.give_place_early(UNCOMMITTED)
            if len(self.inbox) >= gathering.enough or gathering.is_held:
                self.scope.wake()

    def _give_back(self, child: Run) -> None:
        """Give back what ``child`` holds, and report its end. If that raises, it has failed."""
        try:
            try:
                if child.permits is not None or child.passed is not None:
                    self._admission.ended(child)
            finally:
                if self._breaker is not None:
                    self._breaker.report(child)
        except BaseException as error:  # noqa: BLE001 # the child's, or raised by ``run``
            failure = as_failure(error)
            if failure is None:
                self.scope.fail(error)
            else:
                child.replace_end(failure)

    # -- the feeders' side ----------------------------------------------------------------------

    def start_feeding(self, source: AsyncFeed) -> None:
        """Let ``source`` feed its elements in a task of its own."""
        self._feeders.start(partial(source.feed, self))

    async def wait_for_room(self) -> bool:
        """Wait until there is room for one more element; return False if the group is closing."""
        return await self._feeders.wait(self._may_feed)

    def _may_feed(self) -> bool:
        is_held = self._is_shut or self.parent.config.execution.hold.is_on
        return not is_held and self._admission.may_pull()

    @property
    def lacks_permits(self) -> bool:
        """Whether there is room for one more, but none in the live budget."""
        return self._admission.lacks_permits

    def new_element(self) -> None:
        """Start a child for an element that the source has just received, if there is room."""
        self._pool.add_workers(1)


async def _then_go_on(errand: Callable[[], Awaitable[None]]) -> None:
    """Run an errand that is no reason to end the group."""
    await errand()


async def _both(
    first: Callable[[], Awaitable[str | None]], second: Callable[[], Awaitable[str | None]]
) -> str | None:
    """Run two errands; the second only if the first returns no reason to end the group."""
    reason = await first()
    return await second() if reason is None else reason
