"""Child runs under one task group: started as there is room, their ends handed over in batches.

Imports everything above; anyio.

A few tasks, the *pullers*, take children from a source one after the other and live them. There is
one at first; whenever a child has to wait for something, more are engaged, up to the limit. So a
child costs no task, scope or event of its own, and children that never wait need a single puller.

Invariants:
- Structured. ``Group.live`` returns or raises after every child has ended, cleanup included.
- In flight are at most ``limit`` children, each from its start until the parent has committed what
  it returned. So a slow parent slows the source down, and memory stays bounded.
- A child that may not start yet, since what limits it has no room, takes up no place, and others
  are started: it is looked ahead to. So is one that has started and waits for a rate, a key or
  another attempt: it steps aside. Only when a few times the limit wait, nothing more is pulled.
- Alive at once is always one child without asking, and more only with a permit of the execution's
  live budget, which nobody waits for. So trees stay small, and can't lock themselves up.
- An ended child leaves itself in the inbox without waiting: nothing can cancel that, so no end is
  lost. Only the parent's task takes from the inbox.
- Every child runs in its own copy of the context variables that the parent's step began with.
- Fair. Pullers pass a checkpoint after 64 children or 1 ms without waiting.
- No exception goes through the task group, which would wrap it: failures cross as values.
- One child can be cancelled alone: its puller's task is, and a fresh puller takes over.
- Who waits to start when it is cancelled, alone or with others, never starts: it is dismissed, and
  what it was granted goes to others. Nobody starts while an end isn't judged that may be the last
  one that is needed, or one failure too many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Hashable,
    Iterable,
    Iterator,
    Sequence,
)
from contextvars import Context, copy_context
from functools import partial
from operator import attrgetter
from types import CoroutineType
from typing import Any, Literal, Protocol, final

from anyio import CancelScope, Event, TaskHandle, create_task_group
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from ._attempts import live_child
from ._breaker import Circuits
from ._cancel import (
    absorb_native_cancel,
    as_failure,
    cancelled,
    drive,
    fatal_leaf,
    is_cancellation,
    ki_protected,
)
from ._errors import SpuriousCancel, StepTimeout, brief
from ._events import ChildName, Status
from ._halting import has_halted
from ._ids import Key
from ._ports import Seat, Waiter
from ._rate import Limits
from ._run import Run
from ._setting import Setting
from ._watch import SPARE, Part, Watched, leads_to

BATCH = 1000
"""Ended children that the parent takes at once."""
TURNS = 4
"""Turns of the event loop for which ends are waited for that go into the same save, at most."""
INLINE = 64
"""Children that a puller lives without passing a checkpoint, if none of them waits..."""
INLINE_SECONDS = 0.001
"""...or for how long, whichever is first."""
AHEAD = 4
"""Children that may wait besides those in flight, for each of these..."""
LEAST_AHEAD = 64
"""...but at least so many."""

Dropped = Literal["dropped"]
_position: Callable[[Run], int] = attrgetter("position")


class Feed(Protocol):
    """A source that must wait for its elements."""

    async def feed(self, group: Group) -> None:
        """Bring elements in, one whenever ``group`` has room; return when all are in."""
        ...


class Source(Protocol):
    """Where a group's children come from. Told apart by position, in the order they are made."""

    def take(self) -> Run | Dropped | None:
        """Make the next child, or None if there is none now. Whatever it raises ends the group.

        Or say that the next element was dropped: then there may be others behind it.
        """
        ...

    def left(self) -> int:
        """Guess how many more ``take`` would make now; 0 only if none, for certain."""
        ...

    def waiting(self) -> int:
        """Count what takes up room besides the children in flight, before more is fed."""
        ...

    def dry(self) -> bool:
        """Tell whether there will be no more, unless ``grow`` adds some."""
        ...

    def feeds(self) -> Iterable[Feed]:
        """Return what brings elements in that must be waited for, in tasks of their own."""
        ...

    def drop(self, is_meant: Callable[[Setting, Key], bool]) -> Sequence[Run]:
        """Make those children that ``is_meant``, of what is known so far: they never begin."""
        ...


@final
class Group:
    """The children of one fan-out, while it lasts."""

    __slots__ = (
        "_ahead",
        "_aside",
        "_cancellation",
        "_circuits",
        "_circuit_keys",
        "_closing",
        "_context",
        "_deadline",
        "_decisive",
        "_ended_by_hand",
        "_engaged",
        "_errand",
        "_failure",
        "_feeding",
        "_entrance",
        "_idle",
        "_interrupted",
        "_is_held",
        "_is_judging",
        "_is_shut",
        "_live",
        "_live_budget",
        "_news",
        "_parent",
        "_parked",
        "_place",
        "_pullers",
        "_ready",
        "_room",
        "_source",
        "_tasks",
        "_tasks_of",
        "_timed_out",
        "_timeout",
        "_unsaid",
        "_waiting",
        "_watched",
        "inbox",
        "name",
        "reason",
        "winner",
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
            timeout: Seconds from now until all is cancelled.
            circuits: Say which children are skipped for a while; None: none are.
            decisive: What an end has to be to decide, maybe, that no more are needed.
        """
        self._circuits = circuits
        self._circuit_keys: dict[Run, Hashable] = {}  # of children that were let through
        self.name: str = name
        admission = parent.setting.services.admission
        limit = limits.in_flight if limit is None else limit
        self._entrance = admission.entrance(
            owner, limits, limit, self._hear_aside, among=among, parent=parent
        )
        self._place = self._entrance.place
        self._ahead = max(LEAST_AHEAD, AHEAD * limit)  # how many may wait to start, or aside
        self._aside = 0  # children that have started, and wait without being in flight
        self._waiting: dict[Run, Seat] = {}  # those that wait to start
        self._ready: deque[Run] = deque()  # those that may start by now
        self._unsaid: list[tuple[Run, Seat]] = []  # those that nobody was told of
        self._parent = parent
        self._source = source
        self._live = 0  # children that were taken and have not ended
        self._live_budget = parent.setting.execution.live
        if limits.n is not None or limit != limits.in_flight:  # a default is no wish
            self._live_budget.size = max(self._live_budget.size, limit)
        self._tasks: TaskGroup | None = None
        self._context: Context = copy_context()
        self._engaged = 0  # pullers there are
        self._errand: Callable[[], Awaitable[None]] | None = None
        self._idle = 0  # of these, how many are about to take from the source
        self._tasks_of: list[CoroutineType[Any, Any, None]] = []  # some may have ended
        self._parked: deque[Waiter] = deque()
        self._timeout = timeout
        self._deadline = parent.setting.services.clock() + (timeout or 0.0)
        self._timed_out = False
        self._watched: list[Watched] = []  # what the watchdog expects to end
        self._pullers: set[_Puller] = set()
        self._news: Event | None = None  # set while the parent waits for something to happen
        self._room: Event | None = None  # set while the feeder waits for room
        self._feeding: list[CancelScope] = []  # each ends when no more elements are needed
        self._closing = False
        self._is_shut = False  # whether no more start, while those that have may go on
        self._decisive = decisive
        self._is_held = False  # whether there is an end that may decide, so that nobody starts...
        self._is_judging = False  # ...unless the parent has its turn: it may take its time to save
        self._interrupted = False  # whether a child was truly cancelled...
        self._cancellation: type[BaseException] | None = None  # ...and if so, by what
        self._ended_by_hand = False
        self._failure: BaseException | None = None
        self.inbox: deque[Run] = deque()
        self.reason = "the fan-out was cancelled"
        self.winner: ChildName | None = None
        """The child that decided the race which the others are cancelled for."""

    @property
    def in_flight(self) -> int:
        """Children that have started, and whose end the parent has not committed."""
        return self._place.used

    @property
    def under_way(self) -> int:
        """Children that may still come to something: those in flight, and those that wait."""
        return self.in_flight + len(self._waiting) + self._aside

    @property
    def _has_room(self) -> bool:
        """Whether one more may be pulled: for a place in flight, or to wait for one."""
        place = self._place
        if place.used >= place.slots:
            return False
        return len(self._waiting) + self._aside < self._ahead

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
                    self._watch(self._deadline)
                self._engage(1)
                for source in self._source.feeds():
                    self.start_feeding(source)
                try:
                    finished = await self._attend(apply)
                except BaseException as error:  # noqa: BLE001 # raised below, or right away
                    self._fell(error)
                finally:
                    self._closing = True
                    self._wake_all()
                    for feeding in self._feeding:
                        feeding.cancel()
        except BaseException:
            if not isinstance(self._failure, Exception | None):
                raise self._failure from None  # nothing outranks a KeyboardInterrupt
            raise
        finally:
            for watched in self._watched:
                self._parent.setting.services.watchdog.forget(watched)
            self._tasks_of.clear()
            groups.discard(self)
            self._give_back()
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
                await errand()
                continue
            if not inbox:
                if self.in_flight == 0 and source.dry() and not self._waiting and not self._aside:
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
            self._entrance.leave(batch)
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

    def _fell(self, error: BaseException) -> None:
        """Deal with what came out of code that runs in the group's tasks, but for its children.

        Raises:
            BaseException: ``error``, if it is a true cancellation, which must travel on.
        """
        failure: BaseException | None = None
        try:
            failure = as_failure(error)
            if failure is None and is_cancellation(error):
                self._see_whether_timed_out()
                raise error
            failure = failure or fatal_leaf(error)
            self._stop(failure, f"its fan-out failed: {brief(failure)}")
        finally:
            del error, failure  # no cycle from the exception through its traceback to this frame

    def _stop(self, failure: BaseException | None, reason: str) -> None:
        """Cancel what is left for ``reason``; ``failure`` is raised in the end."""
        if self._failure is None or isinstance(self._failure, Exception):
            outranks = failure is not None and not isinstance(failure, Exception)
            if self._failure is None or outranks:
                self._failure = failure
        if not self._closing:
            self.reason = reason
        self._closing = True
        assert self._tasks is not None
        if not self._tasks.cancel_scope.cancel_called:
            self._tasks.cancel_scope.cancel()
            self._watch()
        self._tell()

    def _see_whether_timed_out(self) -> None:
        """Find the reason for a cancellation that came from no code."""
        if self._timeout is None or self._closing:
            return
        assert self._tasks is not None
        late = self._parent.setting.services.clock() >= self._deadline
        if late and self._tasks.cancel_scope.cancel_called:
            self._timed_out = self._closing = True
            self.reason = f"timeout of {self._timeout:g} s"

    def _watch(self, cancelled_at: float | None = None) -> None:
        """Have it told who doesn't end in time."""
        watchdog = self._parent.setting.services.watchdog
        self._watched.append(watchdog.watch(self.parts, cancelled_at))

    def parts(self) -> list[Part]:
        """Return what it is made of: what pullers and feeders do."""
        return [Part(self._parent, task) for task in self._tasks_of]

    def cancel(self, reason: str) -> None:
        """End the group for ``reason``: cancel what is left. ``live`` then returns normally.

        The first reason counts.
        """
        self._ended_by_hand = True
        if self._closing:
            return
        if self._tasks is None:
            self.reason = reason
            self._closing = True
        else:
            self._stop(None, reason)

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
        unbegun = [child for child in (*self._ready, *self._waiting) if is_one(child)]
        if not self._closing:  # else all are cancelled, and the first reason counts
            unbegun += self._drop(is_meant)
            self._cut_off(begun, unbegun, reason)
        return bool(begun or unbegun)

    def _drop(self, is_meant: Callable[[Setting, Key], bool]) -> list[Run]:
        """Take those children from the source that never begin."""
        dropped = list[Run]()
        try:
            for child in self._source.drop(is_meant):
                self._place.used += 1
                if child.is_settled:  # it needn't
                    self._leave(child)
                else:
                    dropped.append(child)
        except BaseException as error:  # noqa: BLE001 # raised by live
            self._fell(error)
        return dropped

    def _cut_off(
        self,
        begun: Sequence[_Puller],
        unbegun: Sequence[Run],
        reason: str,
        winner: ChildName | None = None,
    ) -> None:
        """Cancel some children, and no others."""
        for puller in begun:
            puller.cut_off(reason, winner)
        if begun:
            parts = [Part(self._parent, puller.task) for puller in begun]
            watchdog = self._parent.setting.services.watchdog
            self._watched.append(watchdog.watch(lambda: parts))
        self._dismiss(unbegun, reason, winner)

    def have_done(self, errand: Callable[[], Awaitable[None]]) -> None:
        """Have ``errand`` done in the parent's task, before that takes any more outcomes."""
        self._errand = errand
        self._tell()

    def spare(self, child: Run, reason: str, winner: ChildName) -> None:
        """Cancel all children but this one, for ``reason``; it goes on."""
        others = [puller for puller in self._pullers if puller.lives not in (None, child)]
        self._cut_off(others, [*self._ready, *self._waiting], reason, winner)

    def go_on(self) -> None:
        """Hear that what was taken from the inbox decides nothing: others may start meanwhile."""
        if self._is_held:
            self._is_held = False
            self._engage(1)

    def shut(self) -> None:
        """Start no more children: it is known that they are not needed, and about to be saved."""
        self._is_shut = True

    def living(self) -> Iterator[Run]:
        """Go through the children that have begun and not ended."""
        for puller in self._pullers:
            if puller.lives is not None:
                yield puller.lives

    @property
    def unended(self) -> int:
        """Children that have begun, and that the parent has not taken yet: they may wait aside."""
        return self.in_flight + self._aside

    @property
    def parent(self) -> Run:
        """The run whose children they are."""
        return self._parent

    @property
    def was_cancelled(self) -> bool:
        """Whether somebody has ended it, and it didn't end by itself."""
        return self._ended_by_hand

    @property
    def is_live(self) -> bool:
        """Whether its children have begun to live."""
        return self._tasks is not None

    @property
    def is_closing(self) -> bool:
        """Whether nothing more is started."""
        return self._closing

    @property
    def lacks_permits(self) -> bool:
        """Whether there is room for one more, but none in the live budget."""
        room = self._place.used < self._place.slots
        return room and self._live > 0 and self._live_budget.is_spent

    def engage(self) -> None:
        """Hear that there may be more to do, or less to wait for, than before."""
        if self._tasks is not None and not self._closing:
            self._tell_places(1)
            self._tell()

    def _tell_places(self, count: int) -> None:
        """Use places in flight that may have become free."""
        self._tell_room()
        self._engage(count)

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()
            self._news = None

    # -- the pullers' side ----------------------------------------------------------------------

    def _engage(self, count: int, *, spread: bool = False) -> None:
        """Put up to ``count`` more pullers to work, as far as there is work and room for them.

        A new one is made only if there is none that could do it; with ``spread``, as many as
        needed.
        """
        place, parked, ready = self._place, self._parked, len(self._ready)
        may_have = place.slots + self._aside
        if not parked and self._engaged >= may_have:
            return  # all are at work
        work = min(place.slots - place.used, self._source.left()) if self._has_room else 0
        work += ready - self._idle
        for _ in range(min(count, int(work))):
            if not ready and (self._live or self._idle) and self._live_budget.is_spent:
                return
            if parked:
                _wake(parked.popleft())
            elif self._engaged < may_have and (spread or self._idle == 0):
                self._engaged += 1
                self._start_puller()
            else:
                return
            self._idle += 1

    def _engage_two(self) -> None:
        self._engage(2, spread=True)  # and so will each of them: a thousand take ten turns

    def _start(self, function: Callable[[], CoroutineType[Any, Any, None]]) -> TaskHandle[None]:
        assert self._tasks is not None
        if len(self._tasks_of) > 2 * self._engaged + SPARE:
            self._tasks_of = [task for task in self._tasks_of if task.cr_frame is not None]
        task = function()
        self._tasks_of.append(task)
        return self._context.copy().run(self._tasks.start_soon, _same, task)

    def _start_puller(self) -> None:
        puller = _Puller()
        self._pullers.add(puller)
        puller.handle = self._start(partial(self._pull, puller))
        puller.task = self._tasks_of[-1]

    def _wake_all(self) -> None:
        while self._parked:
            _wake(self._parked.popleft())
        self._tell_room()

    def _take(self) -> Run | Dropped | Literal["waiting"] | None:
        self._idle -= 1
        if self._closing or self._is_shut:
            return None
        if self._is_held and not self._is_judging:
            return None  # the parent is about to judge, and engages us again
        if self._ready:
            # What one gives back that is being cancelled is granted to another of the same group.
            return None if cancelled() else self._ready.popleft()
        if not self._has_room:
            return None
        entrance = self._entrance
        if self._live and not self._live_budget.take():
            return None
        self._live += 1
        try:
            child = self._source.take()
            if self._circuits is not None and isinstance(child, Run) and not child.is_settled:
                self._consult(self._circuits, child)
            if child is None:
                self._end_live()
                if self._source.dry():
                    self._tell()
            elif child == "dropped":
                self._end_live()
                self._tell_room()  # it was fed, and takes no more room
            elif child.is_settled:
                self._end_live()
                self._place.used += 1
            else:
                setting = child.setting
                setting.entrance = entrance
                if entrance.governs_all or setting.is_limited:
                    return self._admit(child)
                self._place.used += 1
        except BaseException as error:  # noqa: BLE001 # raised by live
            self._end_live()
            self._fell(error)
            return None
        return child

    # -- those that wait, to start or aside -------------------------------------------------------

    def _admit(self, child: Run) -> Run | Literal["waiting"]:
        """Let a child start, or have it wait until it may."""
        seat = self._entrance.admit(child, partial(self._let_start, child))
        if seat.granted:
            return child
        self._waiting[child] = seat
        if child.setting.hooks.waiting:
            self._unsaid.append((child, seat))
        return "waiting"

    def _let_start(self, child: Run) -> None:
        """Hear that a child may start, or never will."""
        seat = self._waiting[child]
        if seat.refusal is not None:  # no failure of the child's: it was never begun
            self._fell(seat.refusal)
            return
        del self._waiting[child]
        self._ready.append(child)
        if not self._closing:
            self._engage(1)
            self._tell_room()

    def _hear_aside(self, by: int) -> None:
        """Hear that a child waits aside, so that another may take its place, or does no more."""
        self._aside += by
        if not self._closing:
            self._engage(1)
            self._tell_room()

    async def _tell_waiting(self) -> None:
        unsaid, self._unsaid = self._unsaid, []
        try:
            for child, seat in unsaid:
                if child in self._waiting:
                    await child.tell_waiting(seat)
        except BaseException as error:  # noqa: BLE001 # raised by live
            self._fell(error)

    def _give_back(self) -> None:
        """Give back what is held; children that never started have been cancelled."""
        self._dismiss([*self._ready, *self._waiting], self.reason, self.winner)
        self._unsaid.clear()
        self._entrance.close()

    def _dismiss(
        self, children: Sequence[Run], reason: str, winner: ChildName | None = None
    ) -> None:
        """Cancel children that have not started; what they were granted goes to others.

        Until the parent has taken their ends, they count as in flight, as all do that have ended.
        """
        for child in children:
            child.cancel(reason, winner)
            child.never_started = True
            if child.stake is not None:  # else it was not taken from the source yet
                self._place.used += 1
                self._entrance.give_up(child, self._waiting.pop(child, None) or child.seat)
                self._end_live()
            self._leave(child)
        if children:  # some may have been granted what others gave back
            self._ready = deque(child for child in self._ready if child.status is None)

    # -- breakers ---------------------------------------------------------------------------------

    def _consult(self, circuits: Circuits, child: Run) -> None:
        """Have ``child`` skipped if its circuit is open, unless it has done its work before."""
        if child.record is not None and child.record.status == "succeeded":
            return
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

    def _end_live(self) -> None:
        self._live -= 1
        if self._live:  # the last one has no permit
            self._live_budget.give()

    @ki_protected
    async def _pull(self, puller: _Puller) -> None:
        services = self._parent.setting.services
        clock, native_cancels = services.clock, services.native_cancels()
        inline, since = 0, 0.0
        try:
            while not self._closing:
                child = self._take()
                if child is None:
                    puller.child = None
                    if not self._closing and not await self._park():
                        return
                    continue
                waited: bool | None = False
                if child == "dropped":
                    pass
                elif child == "waiting":
                    if self._unsaid:
                        await self._tell_waiting()
                        waited = True
                elif child.is_settled:
                    self._leave(child)
                else:
                    puller.child = child
                    waited = await self._live_child(child, puller)
                    if waited is None:
                        return
                if puller.reason is not None:  # its child ended before it noticed
                    self._replace_cut_off()
                    return
                self._idle += 1  # about to take again
                if native_cancels():
                    await self._replace()
                    return
                if waited:
                    inline = 0
                    continue
                inline += 1
                if inline == 1:
                    since = clock()
                elif inline >= INLINE or clock() - since > INLINE_SECONDS:
                    await checkpoint()
                    inline = 0
        finally:
            self._pullers.discard(puller)

    async def _park(self) -> bool:
        """Wait to be woken; return False if cancelled, or where a fresh task takes over."""
        waiter = self._parent.setting.services.waiter()
        self._parked.append(waiter)
        try:
            await waiter
        except BaseException as error:
            if cancelled():
                if not is_cancellation(error):
                    raise
                return False
            # A child that ended long ago left somebody with the means to cancel this task.
            if waiter in self._parked:
                self._parked.remove(waiter)
                self._idle += 1
            await self._replace()
            return False
        return True

    async def _replace(self) -> None:
        """Hand over to a fresh task: a child left native cancellation on this one."""
        self._start_puller()
        await absorb_native_cancel()

    async def _live_child(self, child: Run, puller: _Puller) -> bool | None:
        """Live ``child`` to its end, and leave it in the inbox.

        Returns whether it ever waited; None if it was cut off by what ends this puller too. A
        cancellation goes no further than that: whoever waits for the group gets its own. Raised out
        of the task, its traceback would be garbage that only the collector can clear away.
        """
        waited = True
        try:
            if child.is_afresh:
                await child.rerun(child.setting.step, self._parent)
            if self._parent.setting.hooks.child_started:
                await self._parent.tell_child_started(child)
                await checkpoint_if_cancelled()  # while hooks, or by them: its work never begins
            each = child.setting.each
            if each is None:
                living = child.advance()
            else:
                living = live_child(child, each, child.setting.services)
            waited = await drive(self._context.copy(), living, self._engage_two)
            child.succeed()
        except BaseException as error:  # noqa: BLE001 # the child's, or raised by live
            if not self._end_without_success(child, puller, error):
                return None
        self._end_live()
        self._leave(child)
        return waited

    def _end_without_success(self, child: Run, puller: _Puller, error: BaseException) -> bool:
        """Note how a child has ended that raised ``error``; tell whether its puller goes on."""
        halts = has_halted(child, error)
        is_cut_off = is_cancellation(error) or (halts and cancelled())
        if puller.reason is not None and is_cut_off:
            child.cancel(puller.reason, puller.winner)
            self._end_live()
            self._leave(child)
            self._replace_cut_off()
            return False
        if type(error) is self._cancellation or (halts and cancelled()):
            self._end_with_all(child)  # a scope that is cancelled stays so
            return False
        failure = None if halts else as_failure(error)
        if halts:
            child.halt()
        elif failure is not None:
            child.fail(failure)
        else:
            self._end_with_all(child)
            if is_cancellation(error):
                self._cancellation = type(error)
            else:
                self._fell(error)
            return False
        if child.error is not None and child.setting.execution.ended_by(child.error):
            self._fell(child.error)
        return True

    def _replace_cut_off(self) -> None:
        """Have a fresh puller take over from one that was cancelled alone."""
        self._engaged -= 1
        if not self._closing:
            self._engage(1)

    def _end_with_all(self, child: Run) -> None:
        """End a child that was truly cancelled, or interrupted."""
        self._see_whether_timed_out()
        child.cancel(self.reason, self.winner)
        self._interrupted = True
        self._end_live()
        self._leave(child)

    def _leave(self, child: Run) -> None:
        if child.seat is not None:  # its first attempt never came
            child.seat.cancel()
            child.seat = None
        if child.stake is not None:
            child.stake.resume()
            self._entrance.adapt(child)
        if self._circuits is not None:
            self._tell_circuit(self._circuits, child)
        if child.status in self._decisive:
            self._is_held = True
        self.inbox.append(child)
        self._tell()

    # -- the feeder's side ----------------------------------------------------------------------

    def start_feeding(self, source: Feed) -> None:
        """Have ``source`` bring its elements in, in a task of its own."""
        self._start(partial(self._feed, source))

    async def _feed(self, source: Feed) -> None:
        feeding = CancelScope()
        self._feeding.append(feeding)
        try:
            with feeding:
                await source.feed(self)
        except BaseException as error:  # noqa: BLE001 # raised by live
            self._fell(error)
        self._tell()

    async def wait_for_room(self) -> bool:
        """Wait until one more element can be used; return whether there is any use for more."""
        while not self._closing and (
            self._is_shut
            or not self._has_room
            or self._place.used + self._source.waiting() >= self._place.slots
        ):
            self._room = Event()
            await self._room.wait()
        return not self._closing

    def new_element(self) -> None:
        """Hear that the source has one more element."""
        self._engage(1)

    def _tell_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None


@final
class _Puller:
    """A task that lives children, one after the other."""

    __slots__ = ("child", "handle", "reason", "task", "winner")
    handle: TaskHandle[None]
    task: CoroutineType[Any, Any, None]

    def __init__(self) -> None:
        """Live none yet."""
        self.child: Run | None = None  # the last one it has taken
        self.reason: str | None = None  # why that is cancelled alone
        self.winner: ChildName | None = None

    @property
    def lives(self) -> Run | None:
        """The child that has begun and not ended."""
        return None if self.child is None or self.child.status is not None else self.child

    def cut_off(self, reason: str, winner: ChildName | None = None) -> None:
        """Cancel the task, and with it the child; the first reason counts."""
        if self.reason is None:
            self.reason, self.winner = reason, winner
            self.handle.cancel()


def _same(task: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
    """Give a task group what was made already, so that it can be looked into."""
    return task


def _wake(waiter: Waiter) -> None:
    if not waiter.done():  # done if its task has been cancelled
        waiter.set_result(None)
