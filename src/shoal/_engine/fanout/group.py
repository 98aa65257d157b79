"""Child runs under one task group: started as there is room, their ends handed over in batches.

Invariants:
- Structured. ``ChildTaskGroup.run`` returns or raises after every child has ended, cleanup
  included.
- Only the parent's task takes from the inbox, in which workers leave children that have ended.
- No child starts while an end isn't judged that may be the last one that is needed, or one failure
  too many.
- A child that is Done, and only has to be applied, waits for no limit, no breaker and no hook.
- Every child that began is left in the inbox, whatever a user's function does that is told how it
  ended: one that raises fails the child.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from typing import final

from anyio import CancelScope, Event, create_task_group
from anyio.lowlevel import checkpoint

from shoal._concurrency.cancellation import as_failure, cancelled, ki_protected
from shoal._concurrency.watchdog import leads_to
from shoal._engine.config import RunConfig
from shoal._engine.disposition import LIVE
from shoal._engine.run import Run
from shoal._events.events import ChildName, Status
from shoal._events.identity import Key
from shoal._limits.breaker import Circuits
from shoal._limits.limits import Limits

from .admission import ChildAdmission
from .entries import AsyncFeed, ChildSource, Dropped
from .scope import GroupScope
from .workers import Taken, WorkerPool

BATCH = 1000
"""Ended children that the parent takes at once."""
TURNS = 4
"""Turns of the event loop for which ends are waited for that go into the same save, at most."""
_position: Callable[[Run], int] = attrgetter("position")


@final
class ChildTaskGroup:
    """The children of one fan-out, while it lasts.

    It decides which child is next, and hands over those that have ended. Why all of them stop is
    known to its ``scope``; its workers execute them; its admission says how much room there is.
    """

    __slots__ = (
        "_admission",
        "_circuit_keys",
        "_circuits",
        "_decisive",
        "_errand",
        "_feeding",
        "_is_held",
        "_is_judging",
        "_is_shut",
        "_pool",
        "_room",
        "_source",
        "inbox",
        "parent",
        "scope",
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
        circuits: Circuits | None = None,
        decisive: Collection[Status | None] = (),
    ) -> None:
        """Prepare a group of children of ``parent``; nothing starts yet.

        Args:
            parent: The run whose task calls ``run``.
            source: Makes the children.
            limits: How many may be in flight, and how they start.
            owner: What all executions of the fan-out have in common.
            name: What the fan-out is called.
            limit: How many may be in flight, if that isn't what ``limits`` says.
            among: Tells several of one owner apart.
            timeout: Seconds from now until all is cancelled, as the user gave them.
            ends_at: When those are over, by the loop's clock, if they began before now.
            circuits: Say which children are skipped for a while; None: none are.
            decisive: What an end has to be to decide, maybe, that no more are needed.
        """
        self.parent: Run = parent
        """The run whose children they are."""
        self.inbox: deque[Run] = deque()
        """Children that have ended, and that the parent has not taken."""
        self.scope: GroupScope = GroupScope(parent, name, timeout, ends_at)
        self._source = source
        self._admission = ChildAdmission(
            parent,
            limits,
            limit,
            owner=owner,
            among=among,
            on_room=self._on_room,
            on_refused=self.scope.fail,
        )
        self._pool = WorkerPool(
            parent, self.scope, self._admission, source, take=self._take, leave=self._leave
        )
        self._circuits = circuits
        self._circuit_keys: dict[Run, Hashable] = {}  # of children that were let through
        self._errand: Callable[[], Awaitable[str | None]] | None = None
        self._room: Event | None = None  # set while a feeder waits for room
        self._feeding: list[CancelScope] = []  # each ends when no more elements are needed
        self._is_shut = False  # whether no more start, while those that have may go on
        self._decisive = decisive
        self._is_held = False  # whether there is an end that may decide, so that nobody starts...
        self._is_judging = False  # ...unless the parent has its turn: it may take its time to save

    @property
    def in_flight(self) -> int:
        """Children that have started, and whose end the parent has not committed."""
        return self._admission.place.used

    @property
    def under_way(self) -> int:
        """Children that may still come to something: those in flight, and those that wait."""
        return self._admission.place.used + self._admission.waiting

    def living(self) -> Iterator[Run]:
        """Go through the children that have begun and not ended."""
        return self._pool.living()

    @leads_to(lambda variables: variables["self"].scope.parts())
    async def run(self, apply: Callable[[list[Run]], Awaitable[str | None]]) -> None:
        """Execute every child, handing those that ended to ``apply`` in batches, by position.

        What ends after the last call of ``apply`` stays in ``inbox``.

        Args:
            apply: Commits a batch. A text that it returns ends the group: the rest is cancelled
                for that reason, and awaited.

        Raises:
            StepTimeout: It took longer than its timeout.
            Exception: What the source or ``apply`` raised, after all children have ended.
        """
        finished = False
        scope, groups = self.scope, self.parent.config.execution.groups
        groups.add(self)
        try:
            async with create_task_group() as tasks:
                scope.open(tasks)
                self._pool.add_workers(1)
                for source in self._source.feeds():
                    self.start_feeding(source)
                try:
                    finished = await self._consume(apply)
                except BaseException as error:  # noqa: BLE001 # raised below, or right away
                    scope.fail(error)
                finally:
                    scope.closing = True
                    self._pool.wake_all()
                    self._stop_feeding()
        except BaseException:
            scope.raise_fatal()  # nothing outranks a KeyboardInterrupt
            raise
        finally:
            scope.close()
            groups.discard(self)
            self._cancel_unstarted(self._admission.waiting_to_start, scope.reason, scope.winner)
            self._admission.close()
            self._pool.close()
        await scope.raise_failure(finished=finished)

    # -- the parent's side --------------------------------------------------------------------

    @ki_protected
    async def _consume(self, apply: Callable[[list[Run]], Awaitable[str | None]]) -> bool:
        """Hand over what ends, until all has or ``apply`` ends it; False if something failed."""
        inbox, source, scope = self.inbox, self._source, self.scope
        while scope.goes_on:
            if self._errand is not None:
                errand, self._errand = self._errand, None
                reason = await errand()
                if reason is not None:
                    scope.stop(reason)
                    return True
                continue
            if not inbox:
                if not self.under_way and source.dry():
                    return True
                await scope.wait()
                await self._let_more_end()
                continue
            batch = [inbox.popleft() for _ in range(min(len(inbox), BATCH))]
            batch.sort(key=_position)
            self._is_judging = True
            reason = await apply(batch)
            self._is_judging = False
            self._admission.committed(batch)
            if reason is not None:
                scope.stop(reason)
                return True
            self._use_room(len(batch))
            if inbox:
                await checkpoint()
                await self._let_more_end()
        return False

    async def _let_more_end(self) -> None:
        """Where a save takes time, let the event loop make a few turns while that brings more ends.

        Else quick children would end just behind a save, again and again: then each other one is of
        a few, and those that have made room run while it is written, in each other's way.
        """
        for _ in range(TURNS if self.parent.config.execution.saves_wait else 0):
            before = len(self.inbox), self.in_flight
            if self._is_held:  # one of them may decide, so nobody starts
                return
            await checkpoint()
            if before == (len(self.inbox), self.in_flight):
                return

    def run_in_parent(self, errand: Callable[[], Awaitable[str | None]]) -> None:
        """Have ``errand`` run in the parent's task, before that takes any more outcomes.

        A text that it returns ends the group, as one that ``apply`` returns.
        """
        self._errand = errand
        self.scope.wake()

    def resume_starting(self) -> None:
        """Let others start: what was taken from the inbox decides nothing."""
        if self._is_held:
            self._is_held = False
            self._pool.add_workers(1)

    def stop_starting(self) -> None:
        """Start no more children: it is known that they are not needed, and about to be saved."""
        self._is_shut = True

    def engage(self) -> None:
        """Look whether there is more to do, or less to wait for, than before."""
        if self.scope.is_open and not self.scope.closing:
            self._use_room(1)
            self.scope.wake()

    def _use_room(self, count: int) -> None:
        """Use places in flight that may have become free."""
        self._wake_feeder()
        self._pool.add_workers(count)

    def _on_room(self) -> None:
        """Have a child start that has waited, or another in the place of a suspended one."""
        if not self.scope.closing:
            self._pool.add_workers(1)
            self._wake_feeder()

    # -- some children, and no others -----------------------------------------------------------

    def cancel_others(self, child: Run, reason: str, winner: ChildName) -> None:
        """Cancel all children but this one, for ``reason``; it goes on."""
        others = [other for other in self._pool.living() if other is not child]
        self._pool.cancel_alone(others, reason, winner)
        self._cancel_unstarted(self._admission.waiting_to_start, reason, winner)

    def cancel_child(
        self, key: Key, reason: str, act: str | None = None, step: str | None = None
    ) -> bool:
        """Cancel the children that have this key; with ``act``, only the one that executes it.

        One that waits to start never does. Its siblings don't notice. Returns whether there was one
        that had not ended; what the source has not pulled yet is none.
        """

        def is_meant(config: RunConfig, of: Key) -> bool:
            return key == of and act in (None, config.act) and step in (None, config.step)

        def is_one(child: Run) -> bool:
            return is_meant(child.config, child.key)

        begun = [child for child in self._pool.living() if is_one(child)]
        unstarted = [child for child in self._admission.waiting_to_start if is_one(child)]
        if not self.scope.closing:  # else all are cancelled, and the first reason counts
            unstarted += self._drop(is_meant)
            self._pool.cancel_alone(begun, reason)
            self._cancel_unstarted(unstarted, reason)
        return bool(begun or unstarted)

    def _drop(self, is_meant: Callable[[RunConfig, Key], bool]) -> list[Run]:
        """Take those children from the source that never begin."""
        dropped = list[Run]()
        try:
            for child in self._source.drop(is_meant):
                self._admission.place.used += 1
                if child.is_live:
                    dropped.append(child)
                else:  # it needn't begin
                    self._leave(child)
        except BaseException as error:  # noqa: BLE001 # raised by ``run``
            self.scope.fail(error)
        return dropped

    def _cancel_unstarted(
        self, children: Sequence[Run], reason: str, winner: ChildName | None = None
    ) -> None:
        """Cancel children that have not started, and leave them to the parent."""
        self._admission.cancel_unstarted(children, reason, winner)
        for child in children:
            self._leave(child)

    # -- where workers take from, and leave to --------------------------------------------------

    def _take(self) -> Taken:
        # Workers have looked whether the scope is closing.
        if self._is_shut or (self._is_held and not self._is_judging):
            return None  # if it is held, the parent is about to judge, and adds workers again
        admission, source = self._admission, self._source
        if admission.ready:
            # What one gives back that is being cancelled is granted to another of the same group.
            return None if cancelled() else admission.ready.popleft()
        if not admission.let_in():
            return None
        child: Run | Dropped | None = None
        try:
            child = source.take()
            if self._circuits is not None and isinstance(child, Run) and child.is_live:
                self._consult(self._circuits, child)
            if child is None:
                admission.let_out()
                if source.dry():
                    self.scope.wake()
            elif child == "dropped":
                admission.let_out()
                self._wake_feeder()  # it was fed, and takes no more room
            elif child.disposition is LIVE:  # a property would be a call for each child
                if not admission.admit(child):
                    return "waiting"
            else:
                admission.place.used += 1
                if not child.lacks_history:
                    admission.let_out()
        except BaseException as error:  # noqa: BLE001 # raised by ``run``
            admission.let_out()
            if isinstance(child, Run):
                if self._circuits is not None:
                    self._tell_circuit(self._circuits, child)
                source.take_back(child)
            self.scope.fail(error)
            return None
        return child

    def _leave(self, child: Run) -> None:
        try:
            try:
                if child.permits is not None:  # most hold nothing
                    self._admission.ended(child)
            finally:
                if self._circuits is not None:
                    self._tell_circuit(self._circuits, child)
        except BaseException as error:  # noqa: BLE001 # the child's, or raised by ``run``
            failure = as_failure(error)
            if failure is None:
                self.scope.fail(error)
            else:
                child.replace_end(failure)
        finally:
            if child.status in self._decisive:
                self._is_held = True
            self.inbox.append(child)
            self.scope.wake()

    # -- breakers ---------------------------------------------------------------------------------

    def _consult(self, circuits: Circuits, child: Run) -> None:
        """Have ``child`` skipped if its circuit is open."""
        key = circuits.key(child.config.act, child.data)
        if circuits.admit(key):
            self._circuit_keys[child] = key
        else:
            child.pass_over(f"breaker open: {key}")

    def _tell_circuit(self, circuits: Circuits, child: Run) -> None:
        """Tell how a child ended that was let through."""
        if child not in self._circuit_keys:
            return
        key = self._circuit_keys.pop(child)
        if child.status == "failed" and child.error is not None:
            circuits.hear(key, child.error)
        else:
            circuits.hear(key, "done" if child.status == "succeeded" else "cancelled")

    # -- the feeders' side ----------------------------------------------------------------------

    def start_feeding(self, source: AsyncFeed) -> None:
        """Have ``source`` bring its elements in, in a task of its own."""
        self.scope.start(partial(self._feed, source))

    async def _feed(self, source: AsyncFeed) -> None:
        feeding = CancelScope()
        self._feeding.append(feeding)
        if self.scope.closing:  # it ended before this task began; the source closes itself still
            feeding.cancel()
        try:
            with feeding:
                await source.feed(self)
        except BaseException as error:  # noqa: BLE001 # raised by ``run``
            self.scope.fail(error)
        self.scope.wake()

    async def wait_for_room(self) -> bool:
        """Wait until one more element can be used; return whether there is any use for more."""
        admission, place, scope = self._admission, self._admission.place, self.scope
        while not scope.closing and (
            self._is_shut
            or not admission.has_room
            or place.used + self._source.waiting() >= place.slots
        ):
            self._room = Event()
            await self._room.wait()
        return not scope.closing

    @property
    def lacks_permits(self) -> bool:
        """Whether there is room for one more, but none in the live budget."""
        return self._admission.lacks_permits

    def new_element(self) -> None:
        """Use one more element that the source has."""
        self._pool.add_workers(1)

    def _stop_feeding(self) -> None:
        self._wake_feeder()
        for feeding in self._feeding:
            feeding.cancel()

    def _wake_feeder(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None
