"""Child runs under one task group: started as there is room, their ends handed over in batches.

Imports how it stops, who waits to start, and who lives the children; anyio.

Invariants:
- Structured. ``Group.live`` returns or raises after every child has ended, cleanup included.
- Only the parent's task takes from the inbox, in which children leave themselves when they end.
- Nobody starts while an end isn't judged that may be the last one that is needed, or one failure
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
from typing import Literal, final

from anyio import CancelScope, Event, create_task_group
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from shoal._concurrency.cancellation import as_failure, cancelled, ki_protected
from shoal._concurrency.watchdog import leads_to
from shoal._engine.config import Setting
from shoal._engine.disposition import LIVE
from shoal._engine.run import Run
from shoal._errors.exceptions import SpuriousCancel, StepTimeout
from shoal._events.events import ChildName, Status
from shoal._events.identity import Key
from shoal._limits.breaker import Circuits
from shoal._limits.limits import Limits

from .admission import Lobby
from .entries import Dropped, Feed, Source
from .workers import Crew

BATCH = 1000
"""Ended children that the parent takes at once."""
TURNS = 4
"""Turns of the event loop for which ends are waited for that go into the same save, at most."""
_position: Callable[[Run], int] = attrgetter("position")


@final
class Group(Crew):
    """The children of one fan-out, while it lasts."""

    __slots__ = (
        "_circuit_keys",
        "_circuits",
        "_decisive",
        "_errand",
        "_feeding",
        "_is_held",
        "_is_judging",
        "_is_shut",
        "_room",
        "inbox",
    )

    def __init__(
        self,
        parent: Run,
        source: Source,
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
            parent: The run whose task calls ``live``.
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
        lobby = Lobby(
            parent,
            limits,
            limit,
            owner=owner,
            among=among,
            on_room=self._hear_room,
            on_refused=self._fell,
        )
        super().__init__(parent, name, source, lobby, timeout=timeout, ends_at=ends_at)
        self.inbox: deque[Run] = deque()
        self._circuits = circuits
        self._circuit_keys: dict[Run, Hashable] = {}  # of children that were let through
        self._errand: Callable[[], Awaitable[str | None]] | None = None
        self._room: Event | None = None  # set while the feeder waits for room
        self._feeding: list[CancelScope] = []  # each ends when no more elements are needed
        self._is_shut = False  # whether no more start, while those that have may go on
        self._decisive = decisive
        self._is_held = False  # whether there is an end that may decide, so that nobody starts...
        self._is_judging = False  # ...unless the parent has its turn: it may take its time to save

    @property
    def in_flight(self) -> int:
        """Children that have started, and whose end the parent has not committed."""
        return self._lobby.in_flight

    @property
    def under_way(self) -> int:
        """Children that may still come to something: those in flight, and those that wait."""
        return self._lobby.in_flight + self._lobby.waiting

    @property
    def unended(self) -> int:
        """Children that have begun, and that the parent has not taken yet: they may wait aside."""
        return self._lobby.in_flight + self._lobby.aside

    def living(self) -> Iterator[Run]:
        """Go through the children that have begun and not ended."""
        for puller in self._pullers:
            if puller.lives is not None:
                yield puller.lives

    @leads_to(lambda variables: variables["self"].parts())
    async def live(self, apply: Callable[[list[Run]], Awaitable[str | None]]) -> None:
        """Live every child, handing those that ended to ``apply`` in batches, by position.

        What ends after the last call of ``apply`` stays in ``inbox``.

        Args:
            apply: Commits a batch. A text that it returns ends the group: the rest is cancelled
                for that reason, and awaited.

        Raises:
            StepTimeout: It took longer than its timeout.
            Exception: What the source or ``apply`` raised, after all children have ended.
        """
        finished = False
        groups = self._parent.setting.execution.groups
        groups.add(self)
        try:
            async with create_task_group() as tasks:
                self._tasks = tasks
                if self._timeout is not None:
                    tasks.cancel_scope.deadline = self._deadline
                    self._watch(self.parts, self._deadline)
                self._engage(1)
                for source in self._source.feeds():
                    self.start_feeding(source)
                try:
                    finished = await self._attend(apply)
                except BaseException as error:  # noqa: BLE001 # raised below, or right away
                    self._fell(error)
                finally:
                    self._closing = True
                    self._wake_pullers()
                    self._stop_feeding()
        except BaseException:
            if not isinstance(self._failure, Exception | None):
                raise self._failure from None  # nothing outranks a KeyboardInterrupt
            raise
        finally:
            self._watch_no_more()
            for task in self._tasks_of:
                task.close()  # one may never have begun, see `_host`
            self._tasks_of.clear()
            groups.discard(self)
            self._dismiss(self._lobby.unbegun, self.reason, self.winner)
            self._lobby.close()
        self._tasks = None
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # no cycle from the exception through its traceback to this frame
        if not finished and not self._ended_by_hand:
            # The parent may have been scheduled by a child's end in the very tick in which all were
            # cancelled, and so not have noticed, see
            # test_starts_and_ends_are_paired_when_the_caller_is_cancelled.
            await checkpoint_if_cancelled()
            if self._timed_out:
                who = f"fan-out {self.name!r} of run {self._parent.path.id}"
                raise StepTimeout(f"{who} took longer than its {self.reason}")
            msg = "a fan-out was interrupted though nobody had cancelled it"
            raise SpuriousCancel(msg)

    # -- the parent's side --------------------------------------------------------------------

    @ki_protected
    async def _attend(self, apply: Callable[[list[Run]], Awaitable[str | None]]) -> bool:
        """Hand over what ends, until all has or ``apply`` ends it; False if something failed."""
        inbox, source = self.inbox, self._source
        while self._failure is None and not self._interrupted and not self._ended_by_hand:
            if self._errand is not None:
                errand, self._errand = self._errand, None
                reason = await errand()
                if reason is not None:
                    self._stop(None, reason)
                    return True
                continue
            if not inbox:
                if not self.under_way and source.dry():
                    return True
                self._news = Event()
                await self._news.wait()
                await self._let_more_end()
                continue
            batch = [inbox.popleft() for _ in range(min(len(inbox), BATCH))]
            batch.sort(key=_position)
            self._is_judging = True
            reason = await apply(batch)
            self._is_judging = False
            self._lobby.leave(batch)
            if reason is not None:
                self._stop(None, reason)
                return True
            self._tell_places(len(batch))
            if inbox:
                await checkpoint()
                await self._let_more_end()
        return False

    async def _let_more_end(self) -> None:
        """Where a save takes time, let the event loop make a few turns while that brings more ends.

        Else quick children would end just behind a save, again and again: then each other one is of
        a few, and those that have made room run while it is written, in each other's way.
        """
        for _ in range(TURNS if self._parent.setting.execution.saves_wait else 0):
            before = len(self.inbox), self.in_flight
            if self._is_held:  # one of them may decide, so nobody starts
                return
            await checkpoint()
            if before == (len(self.inbox), self.in_flight):
                return

    def have_done(self, errand: Callable[[], Awaitable[str | None]]) -> None:
        """Have ``errand`` done in the parent's task, before that takes any more outcomes.

        A text that it returns ends the group, as one that ``apply`` returns.
        """
        self._errand = errand
        self._tell()

    def go_on(self) -> None:
        """Hear that what was taken from the inbox decides nothing: others may start meanwhile."""
        if self._is_held:
            self._is_held = False
            self._engage(1)

    def shut(self) -> None:
        """Start no more children: it is known that they are not needed, and about to be saved."""
        self._is_shut = True

    def engage(self) -> None:
        """Hear that there may be more to do, or less to wait for, than before."""
        if self._tasks is not None and not self._closing:
            self._tell_places(1)
            self._tell()

    def _tell_places(self, count: int) -> None:
        """Use places in flight that may have become free."""
        self._tell_room()
        self._engage(count)

    def _hear_room(self) -> None:
        """Hear that a child that has waited may start, or that one waits aside."""
        if not self._closing:
            self._engage(1)
            self._tell_room()

    # -- some children, and no others -----------------------------------------------------------

    def spare(self, child: Run, reason: str, winner: ChildName) -> None:
        """Cancel all children but this one, for ``reason``; it goes on."""
        others = [puller for puller in self._pullers if puller.lives not in (None, child)]
        self._cut_off(others, reason, winner)
        self._dismiss(self._lobby.unbegun, reason, winner)

    def cancel_child(
        self, key: Key, reason: str, act: str | None = None, step: str | None = None
    ) -> bool:
        """Cancel the children that have this key; with ``act``, only the one that executes it.

        Who waits to start never does. Its siblings don't notice. Returns whether there was one that
        had not ended; what the source has not pulled yet is none.
        """

        def is_meant(setting: Setting, of: Key) -> bool:
            return key == of and act in (None, setting.act) and step in (None, setting.step)

        def is_one(child: Run) -> bool:
            return is_meant(child.setting, child.key)

        begun = [puller for puller in self._pullers if puller.lives and is_one(puller.lives)]
        unbegun = [child for child in self._lobby.unbegun if is_one(child)]
        if not self._closing:  # else all are cancelled, and the first reason counts
            unbegun += self._drop(is_meant)
            self._cut_off(begun, reason)
            self._dismiss(unbegun, reason)
        return bool(begun or unbegun)

    def _drop(self, is_meant: Callable[[Setting, Key], bool]) -> list[Run]:
        """Take those children from the source that never begin."""
        dropped = list[Run]()
        try:
            for child in self._source.drop(is_meant):
                self._lobby.place.used += 1
                if child.is_live:
                    dropped.append(child)
                else:  # it needn't begin
                    self._leave(child)
        except BaseException as error:  # noqa: BLE001 # raised by live
            self._fell(error)
        return dropped

    def _dismiss(
        self, children: Sequence[Run], reason: str, winner: ChildName | None = None
    ) -> None:
        """Cancel children that have not started."""
        self._lobby.dismiss(children, reason, winner)
        for child in children:
            self._leave(child)

    # -- where pullers take from, and leave to --------------------------------------------------

    def _take(self) -> Run | Dropped | Literal["waiting"] | None:
        if self._closing or self._is_shut:
            return None
        if self._is_held and not self._is_judging:
            return None  # the parent is about to judge, and engages us again
        lobby, source = self._lobby, self._source
        if lobby.ready:
            # What one gives back that is being cancelled is granted to another of the same group.
            return None if cancelled() else lobby.ready.popleft()
        if not lobby.let_in():
            return None
        child: Run | Dropped | None = None
        try:
            child = source.take()
            if self._circuits is not None and isinstance(child, Run) and child.is_live:
                self._consult(self._circuits, child)
            if child is None:
                lobby.let_go()
                if source.dry():
                    self._tell()
            elif child == "dropped":
                lobby.let_go()
                self._tell_room()  # it was fed, and takes no more room
            elif child.disposition is LIVE:  # a property would be a call for each child
                if not lobby.admit(child):
                    return "waiting"
            else:
                lobby.place.used += 1
                if not child.lacks_history:
                    lobby.let_go()
        except BaseException as error:  # noqa: BLE001 # raised by live
            lobby.let_go()
            if isinstance(child, Run):
                if self._circuits is not None:
                    self._tell_circuit(self._circuits, child)
                source.take_back(child)
            self._fell(error)
            return None
        return child

    def _leave(self, child: Run) -> None:
        try:
            try:
                if child.permits is not None:  # most hold nothing
                    self._lobby.end(child)
            finally:
                if self._circuits is not None:
                    self._tell_circuit(self._circuits, child)
        except BaseException as error:  # noqa: BLE001 # the child's, or raised by live
            failure = as_failure(error)
            if failure is None:
                self._fell(error)
            else:
                child.replace_end(failure)
        finally:
            if child.status in self._decisive:
                self._is_held = True
            self.inbox.append(child)
            self._tell()

    # -- breakers ---------------------------------------------------------------------------------

    def _consult(self, circuits: Circuits, child: Run) -> None:
        """Have ``child`` skipped if its circuit is open."""
        key = circuits.key(child.setting.act, child.data)
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

    # -- the feeder's side ----------------------------------------------------------------------

    def start_feeding(self, source: Feed) -> None:
        """Have ``source`` bring its elements in, in a task of its own."""
        self._start(partial(self._feed, source))

    async def _feed(self, source: Feed) -> None:
        feeding = CancelScope()
        self._feeding.append(feeding)
        if self._closing:  # the group ended before this task began; the source closes itself still
            feeding.cancel()
        try:
            with feeding:
                await source.feed(self)
        except BaseException as error:  # noqa: BLE001 # raised by live
            self._fell(error)
        self._tell()

    async def wait_for_room(self) -> bool:
        """Wait until one more element can be used; return whether there is any use for more."""
        lobby = self._lobby
        while not self._closing and (
            self._is_shut
            or not lobby.has_room
            or lobby.place.used + self._source.waiting() >= lobby.place.slots
        ):
            self._room = Event()
            await self._room.wait()
        return not self._closing

    @property
    def lacks_permits(self) -> bool:
        """Whether there is room for one more, but none in the live budget."""
        return self._lobby.lacks_permits

    def new_element(self) -> None:
        """Hear that the source has one more element."""
        self._engage(1)

    def _stop_feeding(self) -> None:
        self._tell_room()
        for feeding in self._feeding:
            feeding.cancel()

    def _tell_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None
