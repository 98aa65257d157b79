"""The events of a run on their way to one reader.

Invariants:
- Events are read in the order in which they happened. None is lost silently: if events had to be
  dropped, ``Missed`` says how many.
- Memory is bounded: at most ``buffer`` events wait for the reader, and one more for each task of
  the run that is held back.
- A run is held back only for a reader: during an ``async for``, or after a call of ``anext`` while
  no task waits for the run. Otherwise the oldest events are dropped.
- Reading can be cancelled at any moment without losing an event. A run that is held back can be
  cancelled too, once the stream is closed.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import ClassVar, final

from anyio import get_cancelled_exc_class, get_current_task
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._concurrency.backend import Waiter
from shoal._errors.exceptions import BadUse

from .events import Event, Missed
from .hooks import Hook, HookResult
from .identity import RunPath


@final
class Stream(Hook):
    """A hook that keeps events until they are read, and holds the run back if they are not."""

    observer: ClassVar[bool] = True
    _deadline: ClassVar[float] = math.inf  # a slow reader is no failure: it may take any time

    def __init__(
        self, path: RunPath, waiter: Callable[[], Waiter], buffer: int, *, holds: bool = True
    ) -> None:
        """Keep no events yet.

        Args:
            path: The path of the root run.
            waiter: Makes a waiter.
            buffer: The most events kept before the run is held back, or the oldest are dropped.
            holds: Whether the run may be held back at all.
        """
        self._path = path
        self._waiter = waiter
        self._buffer = buffer
        self._may_hold = holds
        self._events: deque[Event] = deque()
        self._missed = 0
        self._held: deque[Waiter] = deque()  # the run's tasks, one for each event over the buffer
        self._arrival: Waiter | None = None  # the reader, while it waits for an event
        self._reading = False
        self._loops: list[int] = []  # the tasks that are inside an `async for`
        self._single = False  # whether a task has read outside of an `async for`
        self.waiting: list[int] = []
        """The tasks that wait for the run, and so can't read."""
        self._ended = False
        self._closed = False
        self._thread = threading.get_ident()

    # -- the run's side -------------------------------------------------------------------------

    def on_event(self, event: Event) -> HookResult:
        """Keep the event; return what waits for the reader if the run is held back."""
        if self._closed:
            return None
        self._events.append(event)
        self._notify_arrival()
        if len(self._events) <= self._buffer:
            return None
        if not self._holds():
            self._release()
            return None
        waiter = self._waiter()
        self._held.append(waiter)
        return _wait(waiter)

    def end(self) -> None:
        """Take note that no more events will come."""
        self._ended = True
        self._notify_arrival()

    def _notify_arrival(self) -> None:
        wake(self._arrival)

    # -- readers --------------------------------------------------------------------------------

    def _holds(self) -> bool:
        """Return whether a reader holds the run back."""
        if not self._may_hold:
            return False
        if self.waiting:
            return any(task not in self.waiting for task in self._loops)
        return bool(self._loops) or self._single

    def _release(self) -> None:
        """Let the run go on unless a reader holds it back; drop events over the buffer."""
        if self._holds() and not self._closed:
            return
        while len(self._events) > self._buffer:
            self._events.popleft()
            self._missed += 1
        while self._held:
            wake(self._held.popleft())

    def enter_loop(self) -> int:
        """Begin an ``async for``; return the task, for ``leave_loop`` and ``read``.

        Raises:
            BadUse: The block was left, or another task is reading.
        """
        task = self._check_reader()
        self._loops.append(task)
        return task

    def leave_loop(self, task: int) -> None:
        """End an ``async for``, which holds the run back no longer."""
        self._loops.remove(task)
        # Without this, the garbage collector, which closes a forgotten generator in any thread,
        # would wake tasks from outside of their event loop.
        if threading.get_ident() == self._thread:
            self._release()

    @contextmanager
    def waited(self) -> Generator[None]:
        """Mark the current task, inside the block, as one that waits for the run and can't read."""
        task = get_current_task().id
        self.waiting.append(task)
        self._release()
        try:
            yield
        finally:
            self.waiting.remove(task)

    def _check_reader(self) -> int:
        if self._closed:
            msg = (
                f"run {self._path.id}: its block was left, so its events are gone; read them "
                f"inside `async with app.open(...)`, in other tasks too"
            )
            raise BadUse(msg)
        task = get_current_task().id
        if self._reading or any(reader != task for reader in self._loops):
            msg = (
                f"run {self._path.id} has a consumer already: each event is read once, so let one "
                f"task iterate and pass events on, or give the application one hook per reader"
            )
            raise BadUse(msg)
        return task

    # -- the reader's side ----------------------------------------------------------------------

    async def read(self, loop: int | None = None) -> Event | None:
        """Return the next event, as soon as there is one; None if the run has ended.

        Args:
            loop: The result of ``enter_loop``, in an ``async for``.

        Raises:
            BadUse: The block was left, or another task is reading.
        """
        if self._closed or self._reading or loop is None:
            self._check_reader()
            self._single = self._single or loop is None
        self._reading = True
        try:
            # Before an event is taken: a cancellation at this point loses none.
            await checkpoint_if_cancelled()
            while not self._events and not self._missed:
                if self._closed:
                    self._check_reader()
                if self._ended:
                    return None
                self._arrival = self._waiter()
                try:
                    await self._arrival
                finally:
                    self._arrival = None
        finally:
            self._reading = False
        if self._missed:
            missed, self._missed = self._missed, 0
            return Missed(path=self._path, count=missed)
        event = self._events.popleft()
        if self._held:
            wake(self._held.popleft())
        return event

    def close(self) -> None:
        """Drop all events, those to come included, and let the run go on."""
        self._closed = True
        self._release()
        self._events.clear()
        self._missed = 0
        self._notify_arrival()


async def _wait(waiter: Waiter) -> None:
    # `Hooks.notify` shields this wait. So a cancellation that arrives here was left on the engine's
    # task by user code. The event is already kept, so the run may as well go on.
    with suppress(get_cancelled_exc_class()):
        await waiter


def wake(waiter: Waiter | None) -> None:
    """Let the task go on that waits, if one does."""
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
