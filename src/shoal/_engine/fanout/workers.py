"""Workers: the few tasks of a group that take children one after the other, and execute them.

A group begins with one worker, and adds more, up to the limit, whenever a child has to wait. So a
child costs no task, scope or event of its own, and children that never wait need a single worker.
On asyncio it stays at a few as long as they end their children within a few turns of the loop: then
the processor is what children wait for, and more workers would only cost their tasks.

Invariants:
- Every child runs in its own copy of the context variables that the parent's step began with.
- Workers are fair to other tasks: they pass a checkpoint after 64 children or 1 ms without one.
- A worker hands an ended child to the group without an await in between, so no cancellation can
  lose its end.
- One child can be cancelled alone: its worker's task is cancelled, and another worker takes over.
- A worker that finds nothing to do is parked; it ends if no child follows and none waits. Should
  one come back all the same, a new worker is started for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from functools import partial
from types import CoroutineType
from typing import Any, Literal, final

from anyio import TaskHandle
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from shoal._concurrency.backend import Waiter
from shoal._concurrency.cancellation import (
    absorb_native_cancel,
    cancelled,
    drive,
    is_cancellation,
    ki_protected,
)
from shoal._concurrency.watchdog import Part
from shoal._engine.commit import begin_anew
from shoal._engine.disposition import LIVE
from shoal._engine.publish import publish_child_started
from shoal._engine.replay import load_end
from shoal._engine.run import Run
from shoal._engine.spawning import within
from shoal._engine.walk import complete_last, live_child, walk, walk_simply
from shoal._errors.exceptions import BudgetExceeded
from shoal._events.events import ChildName

from .admission import ChildAdmission
from .entries import ChildSource, Dropped
from .finish import End, settle_end
from .scope import GroupScope

SPREAD = 8
"""Workers that are added, at most, when a child has to wait.

Each of these adds as many when its child waits, so a thousand workers take four loop iterations.
"""
FEW = 20
"""Workers that are started without a look whether the children are quick.

So many that a commit has a few dozen ends: each commit costs as much as a small child.
"""
QUICK_TURNS = 4
"""Turns of the event loop in which as many children as there are workers end if they are quick.

While they are, no more than the first workers are started: each is a task with a scope, which costs
as much as two small children. Children that wait for anything but the processor take longer, and
the others are started after these turns, a tenth of a millisecond; see
test_children_that_take_long_are_all_started and test_quick_children_share_a_few_workers.
"""
INLINE = 64
"""Children that a worker executes without a checkpoint, at most, if none of them waits.

A checkpoint after each child would be a large part of what a small child costs.
"""
INLINE_SECONDS = 0.001
"""Seconds that a worker goes on without a checkpoint, if that limit is reached first."""

Taken = Run | Dropped | Literal["waiting"] | None
"""A child to execute, or None if there is none now.

"dropped" and "waiting" say that this child isn't executed now, but the next one may be.
"""


@final
class WorkerPool:
    """The workers of one group, busy and idle ones."""

    __slots__ = (
        "_admission",
        "_count",
        "_idle",
        "_is_looking",
        "_is_running_out",
        "_keeps_idle",
        "_leave",
        "_next_turn",
        "_parent",
        "_parked",
        "_quick",
        "_scope",
        "_source",
        "_stop",
        "_take",
        "_turns",
        "workers",
    )

    def __init__(
        self,
        parent: Run,
        scope: GroupScope,
        admission: ChildAdmission,
        source: ChildSource,
        *,
        take: Callable[[], Taken],
        leave: Callable[[Run], None],
        stop: Callable[[str], None],
        looks_first: bool,
        keeps_idle: bool,
    ) -> None:
        """Prepare a pool without workers.

        Args:
            parent: The run whose children the workers execute.
            scope: Starts the workers' tasks.
            admission: Counts the children that may start.
            source: Counts the elements that are left.
            take: Takes the next child.
            leave: Hands an ended child to the parent.
            stop: Lets no more children start, for a reason.
            looks_first: Whether more than a few workers are started only for children that aren't
                quick. Not for races, whose contestants begin together.
            keeps_idle: Whether workers are parked even if the source is dry, because outcomes may
                add elements to it.
        """
        # None of these is replaced, but for `_take` and `_leave`, which `close` lets go of.
        self._parent = parent
        self._scope = scope
        self._admission = admission
        self._source = source
        self._take = take
        self._leave = leave
        self._stop = stop
        self._count = 0  # workers, parked ones included; those that are being replaced count once
        self._idle = 0  # of these, the ones that are about to call ``take``
        self._parked: deque[Waiter] = deque()  # one for each worker that waits for work
        self.workers: set[Worker] = set()
        """All workers, parked ones included."""
        # Calls a function in the loop's next turn; None once some children were not quick, and
        # where this doesn't matter: then workers are started without a look.
        self._next_turn = parent.config.services.next_turn if looks_first else None
        self._keeps_idle = keeps_idle
        # Whether the source had no child left when that was last asked: then workers ask whether
        # they are needed before they take, which costs less than a take of nothing.
        self._is_running_out = False
        self._is_looking = False  # from the first call of `_look` that is due to the last
        # Both only while looking: turns that have passed, and children that waited and have ended.
        self._turns = self._quick = 0

    # -- how many there are ---------------------------------------------------------------------

    def add_workers(self, count: int, *, spread: bool = False) -> None:
        """Wake or start up to ``count`` workers, as far as there is work and room for them.

        Parked workers are woken first. A new worker is started only if no other is about to take a
        child; with ``spread``, even then.
        """
        admission, parked = self._admission, self._parked
        place, ready = admission.place, len(admission.ready)
        if admission.reservation is not None and admission.reservation.is_granted:
            ready += 1  # the next child of the source has all that it needs
        may_have = place.slots + admission.suspended
        if not parked and self._count >= may_have:
            return  # all workers are busy, and no more are allowed
        left = self._source.left()
        self._is_running_out = not left
        work = min(place.slots - place.used, left) if left and admission.has_room else 0
        # Children that have waited, and may start now, need workers besides those that `source`
        # has. Idle workers are about to take a child each, so they are counted off.
        work += ready - self._idle
        # Asked once, since to wake a worker spends nothing; but the first child needs no permit.
        may_live = bool(ready) or admission.permits(1)
        for _ in range(min(count, int(work))):
            if not may_live and not admission.permits(self._idle):
                return
            if parked:
                _wake(parked.popleft())
            elif self._count < may_have and (spread or self._idle == 0):
                if self._next_turn is not None and self._count >= FEW:
                    self._look_soon(self._next_turn)
                    return
                self._count += 1
                self._start_worker()
                may_live = bool(ready)  # an eager task may have taken a permit already
            else:
                return
            self._idle += 1

    def _add_some(self) -> None:
        # Asked first, since it is called for each child, and mostly all workers are there.
        if self._parked or (
            not self._is_looking
            and self._count < self._admission.place.slots + self._admission.suspended
        ):
            self.add_workers(SPREAD, spread=True)  # each of these adds as many when its child waits

    def _look_soon(self, next_turn: Callable[[Callable[[], None]], object]) -> None:
        """Find out in the next turns whether the children are quick."""
        if not self._is_looking:
            self._is_looking = True
            self._turns = self._quick = 0
            next_turn(self._look)

    def _look(self) -> None:
        """Start more workers, now and from now on without a look, if the children aren't quick."""
        next_turn = self._next_turn
        if self._scope.closing or next_turn is None:
            return
        self._turns += 1
        if self._turns < QUICK_TURNS:
            next_turn(self._look)
            return
        # If they were quick, the next child that waits begins another look.
        self._is_looking = False
        if self._quick < self._count:
            self._next_turn = None
            self.add_workers(SPREAD, spread=True)

    def _start_worker(self) -> None:
        worker = Worker()
        self.workers.add(worker)
        worker.task, worker.handle = self._scope.start(partial(self._work, worker))

    def wake_all(self) -> None:
        """Wake all parked workers, which then end because the scope is closing."""
        while self._parked:
            _wake(self._parked.popleft())

    def close(self) -> None:
        """Release the group; all workers have ended."""
        # Breaks a cycle: these are methods of the group, which refers to this pool.
        self._take, self._leave, self._stop = _nothing, _ignore, _ignore

    # -- one child among others -----------------------------------------------------------------

    def living(self) -> Iterator[Run]:
        """Go through the children that have begun and not ended."""
        for worker in self.workers:
            child = worker.lives
            if child is not None:
                yield child

    def cancel_alone(
        self, children: Iterable[Run], reason: str, winner: ChildName | None = None
    ) -> None:
        """Cancel those of ``children`` that have begun and not ended; all others go on."""
        meant = set(children)
        workers = [worker for worker in self.workers if worker.lives in meant]
        for worker in workers:
            worker.cancel_alone(reason, winner)
        if workers:
            # Only these are cancelled, so only these may be reported as late.
            parts = [Part(self._parent, worker.task) for worker in workers]
            self._scope.watch(lambda: parts)

    # -- the loop of one worker -----------------------------------------------------------------

    @ki_protected
    async def _work(self, worker: Worker) -> None:
        scope, take = self._scope, self._take
        services = self._parent.config.services
        clock, native_cancels = services.clock, services.native_cancels()
        inline, since = 0, 0.0
        # Once for each worker. Each of its children runs in a copy of this one.
        context = within(scope.context.copy(), worker)
        try:
            while not scope.closing:
                # Nothing is awaited between the two: an idle worker is one that is about to take.
                self._idle -= 1
                child = take()
                waited: bool | None = False
                if isinstance(child, Run):
                    if child.disposition is not LIVE and not child.lacks_history:
                        self._leave(child)
                    else:
                        worker.child = child
                        waited = await self._execute(child, worker, context, native_cancels)
                        if waited is None:
                            return
                elif child is None:
                    worker.child = None
                    if not scope.closing and (self._needs_fewer() or not await self._park()):
                        return
                    continue
                # Hooks receive it here, in the task of a worker, since the admission can't await
                # anything.
                elif child == "waiting" and self._admission.has_unpublished:
                    await self._publish_waiting()
                    waited = True
                # Its child ended before the cancellation arrived, which would now hit the next one.
                if worker.cut_off is not None:
                    self._replace_cancelled()
                    return
                # Before any await: else others would start a worker for work that this one takes.
                self._idle += 1
                if native_cancels():
                    await self._replace()
                    return
                if waited:
                    inline = 0
                    self._quick += 1
                    if self._is_running_out and self._needs_fewer():
                        self._idle -= 1
                        scope.wake()  # the parent waits for ends, and there may be none any more
                        return
                    continue
                inline += 1
                if inline == 1:
                    since = clock()
                elif inline >= INLINE or clock() - since > INLINE_SECONDS:
                    await checkpoint()
                    inline = 0
        finally:
            # On every way out: `living` and the watchers look through this set.
            self.workers.discard(worker)
            # User code may have kept a copy of the context, which leads here.
            worker.child = worker.living = None

    def _needs_fewer(self) -> bool:
        """Return whether a worker without work ends: to park and wake it would be for nothing."""
        admission = self._admission
        if self._keeps_idle or admission.waiting or admission.ready or not self._source.dry():
            return False
        self._count -= 1
        return True

    async def _park(self) -> bool:
        """Wait for work; return False if this worker ends, cancelled or replaced by another."""
        waiter = self._parent.config.services.waiter()
        # No await since `take` found nothing, so no wake-up is missed.
        self._parked.append(waiter)
        try:
            await waiter
        except BaseException as error:
            if cancelled():
                if not is_cancellation(error):
                    raise
                return False
            # A child that ended long ago has kept a reference to this task, through which the task
            # was cancelled. See
            # test_a_stale_native_cancel_never_ends_a_fan_out_early.
            if waiter in self._parked:  # else it was woken, and is counted as idle already
                self._parked.remove(waiter)
                self._idle += 1
            await self._replace()
            return False
        return True

    async def _replace(self) -> None:
        """Let a new task take over, because a child left a native cancellation on this one."""
        self._start_worker()
        await absorb_native_cancel()

    def _replace_cancelled(self) -> None:
        """Let another worker take over from one that was cancelled alone."""
        # It counts no more, so that the other worker may be a new one; see
        # test_its_place_is_taken_by_the_next.
        self._count -= 1
        if not self._scope.closing:
            self.add_workers(1)

    async def _publish_waiting(self) -> None:
        try:
            await self._admission.publish()
        except BaseException as error:  # noqa: BLE001 # raised by the group
            self._scope.fail(error)

    # -- one child ------------------------------------------------------------------------------

    async def _execute(
        self, child: Run, worker: Worker, context: Context, native_cancels: Callable[[], int]
    ) -> bool | None:
        """Execute ``child`` to its end, and hand it to the parent.

        Returns whether the child ever waited, or None if this worker ends with it, cancelled. The
        cancellation is not raised further: the task that waits for the group gets its own. Raised
        out of this task, its traceback would be a cycle that only the collector could free.
        """
        waited = True
        try:
            config, is_live = child.config, child.disposition is LIVE
            publishes = is_live and bool(self._parent.config.hooks.child_started)
            if publishes or child.resume is not None:
                await self._begin(child, publishes=publishes)
            if not is_live:
                living = load_end(child)
            elif config.walks_simply:
                living = walk_simply(child, native_cancels)
            elif config.is_timed:
                living = live_child(child, config.each)
            else:
                living = walk(child)
            # Before it begins: a watcher may look at any time.
            worker.living = living
            waited = await drive(context.copy(), living, self._add_some)
            if is_live:
                try:
                    child.succeed()
                except Exception:
                    # The steps are done, only the value is missing: see ``complete_last``.
                    await complete_last(child)
                    raise
        except BaseException as error:  # noqa: BLE001 # the child's, or raised by the group
            scope = self._scope
            if (
                type(error) is scope.cancelled_by
                and child.questions is None
                and child.disposition is LIVE
                and worker.cut_off is None
            ):
                # As below, with no search in the error: a sibling was cancelled with the group
                # before, and this error can mean nothing else.
                if not scope.closing:
                    scope.notice_timeout()
                child.cancel(scope.reason, scope.winner)
                self._admission.let_out()
                self._leave(child)
                return None
            if not self._end_without_success(child, worker, error):
                return None
        self._admission.let_out()
        self._leave(child)
        return waited

    async def _begin(self, child: Run, *, publishes: bool) -> None:
        """Make void what is saved of a child that runs anew, and publish its start if asked."""
        try:
            if child.resume is not None and child.resume.is_afresh:
                await begin_anew(child, self._parent, child.config.step)
        finally:
            # Also if that save failed: the child's end will be published, so its start must be.
            # See test_the_start_of_a_child_is_published_though_its_rerun_could_not_be_saved.
            if publishes:
                await publish_child_started(self._parent, child)
        if publishes:
            # Cancelled while hooks ran, or by one of them: the child's work must not begin.
            await checkpoint_if_cancelled()

    def _end_without_success(self, child: Run, worker: Worker, error: BaseException) -> bool:
        """Note on ``child`` how it ended by ``error``; return whether its worker goes on.

        If the worker doesn't go on, this has handed the child to the parent already.
        """
        scope = self._scope
        if (
            isinstance(error, BudgetExceeded)
            and error.on_empty == "stop"
            and worker.cut_off is None
        ):
            # It has begun, so it isn't skipped as those are that have not.
            child.cancel(str(error))
            self._stop(str(error))
            return True
        end = settle_end(child, error, scope=scope, cut_off=worker.cut_off)
        if end is End.UNREADABLE:
            scope.fail(error)
            return True
        if end in (End.FAILED, End.HALTED):
            # No `on_error` tolerates these: the whole execution ends, also if the step would go on.
            if child.error is not None and child.config.execution.ended_by(child.error):
                scope.fail(child.error)
            return True
        self._admission.let_out()
        self._leave(child)
        if end is End.CANCELLED_ALONE:
            self._replace_cancelled()
        elif end is End.INTERRUPTED:
            scope.fail(error)
        return False


@final
class Worker:
    """A task that executes children, one after the other."""

    __slots__ = ("child", "cut_off", "handle", "living", "task")
    handle: TaskHandle[None]
    task: CoroutineType[Any, Any, None]

    def __init__(self) -> None:
        self.child: Run | None = None  # the last child that it has taken; None while it is parked
        # What the worker drives. A sampler could find it in a frame of ``task`` as well, but frames
        # of coroutines are only made for those that ask, and many of them keep the collector busy.
        self.living: object = None
        """The coroutine that executes the child; None before the first."""
        self.cut_off: tuple[str, ChildName | None] | None = None
        """Why the child is cancelled alone, and the child that had won.

        None unless ``cancel_alone`` was called. Never unset: the worker ends.
        """

    @property
    def lives(self) -> Run | None:
        """The child that has begun and not ended; None if there is none."""
        return None if self.child is None or self.child.status is not None else self.child

    def cancel_alone(self, reason: str, winner: ChildName | None) -> None:
        """Cancel the task and thereby the child. The first reason counts."""
        if self.cut_off is None:
            self.cut_off = reason, winner
            self.handle.cancel()


def _wake(waiter: Waiter) -> None:
    if not waiter.done():  # it is done already if its task has been cancelled
        waiter.set_result(None)


def _nothing() -> None:
    """Replace ``take`` of a group that has ended."""


def _ignore(_what: object) -> None:
    """Replace ``leave`` and ``stop`` of a group that has ended."""
