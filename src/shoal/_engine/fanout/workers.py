"""Pullers: the few tasks of a group that take children one after the other, and live them.

Imports the lobby, sources and how a group stops; anyio.

There is one at first; whenever a child has to wait for something, more are engaged, up to the
limit. So a child costs no task, scope or event of its own, and children that never wait need a
single puller.

Invariants:
- Every child runs in its own copy of the context variables that the parent's step began with.
- Fair. Pullers pass a checkpoint after 64 children or 1 ms without waiting.
- A child that has ended is left to the group without waiting: nothing can cancel that, so no end is
  lost.
- One child can be cancelled alone: its puller's task is, and a fresh puller takes over.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from functools import partial
from types import CoroutineType
from typing import Any, Literal, final

from anyio import TaskHandle
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from shoal._concurrency.backend import Waiter
from shoal._concurrency.cancellation import (
    absorb_native_cancel,
    as_failure,
    cancelled,
    drive,
    is_cancellation,
    ki_protected,
)
from shoal._concurrency.watchdog import Part
from shoal._engine.commit import begin_anew
from shoal._engine.disposition import DONE, LIVE
from shoal._engine.publish import publish_child_started
from shoal._engine.questions import has_halted
from shoal._engine.replay import load_end
from shoal._engine.run import Run
from shoal._engine.walk import complete_last, live_child, walk
from shoal._events.events import ChildName

from .admission import Lobby
from .entries import Dropped, Source
from .scope import Stopper

SPREAD = 8
"""Pullers that are engaged, at most, when a child has to wait: a thousand take four turns."""
INLINE = 64
"""Children that a puller lives without passing a checkpoint, if none of them waits..."""
INLINE_SECONDS = 0.001
"""...or for how long, whichever is first."""


class Crew(Stopper, ABC):
    """The part of a group that lives its children."""

    __slots__ = (
        "_cancellation",
        "_engaged",
        "_idle",
        "_interrupted",
        "_lobby",
        "_parked",
        "_pullers",
        "_source",
    )

    def __init__(
        self,
        parent: Run,
        name: str,
        source: Source,
        lobby: Lobby,
        *,
        timeout: float | None,
        ends_at: float | None,
    ) -> None:
        """Have no pullers yet."""
        super().__init__(parent, name, timeout, ends_at)
        self._source = source
        self._lobby = lobby
        self._engaged = 0  # pullers there are
        self._idle = 0  # of these, how many are about to take a child
        self._parked: deque[Waiter] = deque()
        self._pullers: set[Puller] = set()
        self._interrupted = False  # whether a child was truly cancelled...
        self._cancellation: type[BaseException] | None = None  # ...and if so, by what

    @abstractmethod
    def _take(self) -> Run | Dropped | Literal["waiting"] | None:
        """Take the next child; None if none is to be lived now.

        Or say that there may be others behind it: it was dropped, or it waits to start.
        """

    @abstractmethod
    def _leave(self, child: Run) -> None:
        """Leave a child that has ended to the parent."""

    # -- how many there are ---------------------------------------------------------------------

    def _engage(self, count: int, *, spread: bool = False) -> None:
        """Put up to ``count`` more pullers to work, as far as there is work and room for them.

        A new one is made only if there is none that could do it; with ``spread``, as many as
        needed.
        """
        lobby, parked = self._lobby, self._parked
        place, ready = lobby.place, len(lobby.ready)
        may_have = place.slots + lobby.aside
        if not parked and self._engaged >= may_have:
            return  # all are at work
        work = min(place.slots - place.used, self._source.left()) if lobby.has_room else 0
        work += ready - self._idle
        for _ in range(min(count, int(work))):
            if not ready and not lobby.permits(self._idle):
                return
            if parked:
                _wake(parked.popleft())
            elif self._engaged < may_have and (spread or self._idle == 0):
                self._engaged += 1
                self._start_puller()
            else:
                return
            self._idle += 1

    def _engage_some(self) -> None:
        self._engage(SPREAD, spread=True)  # and so will each of them

    def _start_puller(self) -> None:
        puller = Puller()
        self._pullers.add(puller)
        puller.handle = self._start(partial(self._pull, puller))
        puller.task = self._tasks_of[-1]

    def _wake_pullers(self) -> None:
        while self._parked:
            _wake(self._parked.popleft())

    def _cut_off(
        self, pullers: Sequence[Puller], reason: str, winner: ChildName | None = None
    ) -> None:
        """Cancel the children of some pullers, and no others."""
        for puller in pullers:
            puller.cut_off(reason, winner)
        if pullers:
            parts = [Part(self._parent, puller.task) for puller in pullers]
            self._watch(lambda: parts)

    # -- what each of them does -----------------------------------------------------------------

    @ki_protected
    async def _pull(self, puller: Puller) -> None:
        services = self._parent.setting.services
        clock, native_cancels = services.clock, services.native_cancels()
        inline, since = 0, 0.0
        try:
            while not self._closing:
                self._idle -= 1
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
                    if self._lobby.has_news:
                        await self._tell_waiting()
                        waited = True
                elif child.disposition is not LIVE and not child.lacks_history:
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

    def _replace_cut_off(self) -> None:
        """Have a fresh puller take over from one that was cancelled alone."""
        self._engaged -= 1
        if not self._closing:
            self._engage(1)

    async def _tell_waiting(self) -> None:
        try:
            await self._lobby.tell()
        except BaseException as error:  # noqa: BLE001 # raised by live
            self._fell(error)

    # -- a child's life -------------------------------------------------------------------------

    async def _live_child(self, child: Run, puller: Puller) -> bool | None:
        """Live ``child`` to its end, and leave it to the parent.

        Returns whether it ever waited; None if it was cut off by what ends this puller too. A
        cancellation goes no further than that: whoever waits for the group gets its own. Raised out
        of the task, its traceback would be garbage that only the collector can clear away.
        """
        waited = True
        try:
            is_live = child.disposition is LIVE  # a property would be a call for each child
            tells = is_live and bool(self._parent.setting.hooks.child_started)
            try:
                if child.resume is not None and child.resume.is_afresh:
                    await begin_anew(child, self._parent, child.setting.step)
            finally:  # its end is told even where that could not be saved, and so is its start
                if tells:
                    await publish_child_started(self._parent, child)
            if tells:
                await checkpoint_if_cancelled()  # while hooks, or by them: its work never begins
            each = child.setting.each
            if not is_live:
                living = load_end(child)
            elif each is None:
                living = walk(child)
            else:
                living = live_child(child, each)
            waited = await drive(self._context.copy(), living, self._engage_some)
            if is_live:
                try:
                    child.succeed()
                except Exception:
                    await complete_last(child)
                    raise
        except BaseException as error:  # noqa: BLE001 # the child's, or raised by live
            if not self._end_without_success(child, puller, error):
                return None
        self._lobby.let_go()
        self._leave(child)
        return waited

    def _end_without_success(self, child: Run, puller: Puller, error: BaseException) -> bool:
        """Note how a child has ended that raised ``error``; tell whether its puller goes on."""
        if child.disposition is DONE:
            return self._leave_done(child, error)
        halts = has_halted(child, error)
        is_cut_off = is_cancellation(error) or (halts and cancelled())
        if puller.reason is not None and is_cut_off:
            child.cancel(puller.reason, puller.winner)
            self._lobby.let_go()
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

    def _leave_done(self, child: Run, error: BaseException) -> bool:
        """Leave a child as it is that was Done before, and whose history could not be read."""
        if as_failure(error) is not None:
            self._fell(error)
            return True
        if is_cancellation(error):
            self._cancellation = type(error)
        else:
            self._fell(error)
        self._end_with_all(child)
        return False

    def _end_with_all(self, child: Run) -> None:
        """End a child that was truly cancelled, or interrupted."""
        self._see_whether_timed_out()
        if child.disposition is not DONE:
            child.cancel(self.reason, self.winner)
        self._interrupted = True
        self._lobby.let_go()
        self._leave(child)


@final
class Puller:
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


def _wake(waiter: Waiter) -> None:
    if not waiter.done():  # done if its task has been cancelled
        waiter.set_result(None)
