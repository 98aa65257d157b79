"""The events of a run on their way to one consumer. Imports hooks, waiters and values; anyio.

Invariants:
- Events are read in the order in which they happened. None is lost silently: where some had to be
  dropped, ``Missed`` says how many.
- Bounded. Waiting to be read are at most ``buffer`` events, and one more for each task of the run
  that is held back.
- A run is held back only by somebody who reads: by an ``async for`` until it is left, or, where
  nobody waits for the run, by whoever has called ``anext``. Else the oldest events are dropped.
- Reading can be cancelled at any moment without losing an event; so can a run that is held back,
  once the stream is closed.
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
from .hooks import Hook, Told
from .identity import RunPath


@final
class Stream(Hook):
    """A hook that keeps events until they are read, and holds the run back when they are not."""

    observer: ClassVar[bool] = True
    _deadline: ClassVar[float] = math.inf  # it waits for its reader as long as that takes

    def __init__(
        self, path: RunPath, waiter: Callable[[], Waiter], buffer: int, *, holds: bool = True
    ) -> None:
        """Start with nothing.

        Args:
            path: Where the root run stands.
            waiter: Makes a waiter.
            buffer: Events kept before the run is held back, or the oldest are dropped.
            holds: Whether the run is ever held back.
        """
        self._path = path
        self._waiter = waiter
        self._buffer = buffer
        self._may_hold = holds
        self._events: deque[Event] = deque()
        self._missed = 0
        self._held: deque[Waiter] = deque()  # one for each event beyond the buffer
        self._arrival: Waiter | None = None  # what the reader waits for
        self._reading = False
        self._loops: list[int] = []  # the tasks in which an `async for` is under way
        self._single = False  # whether somebody has read without one
        self.waiting: list[int] = []
        """The tasks that wait for the run, and so don't read."""
        self._ended = False
        self._closed = False
        self._thread = threading.get_ident()

    # -- the run's side -------------------------------------------------------------------------

    def on_event(self, event: Event) -> Told:
        """Keep it."""
        if self._closed:
            return None
        self._events.append(event)
        self._tell_arrival()
        if len(self._events) <= self._buffer:
            return None
        if not self._holds():
            self._release()
            return None
        waiter = self._waiter()
        self._held.append(waiter)
        return _wait(waiter)

    def end(self) -> None:
        """Hear that no more events will come."""
        self._ended = True
        self._tell_arrival()

    def _tell_arrival(self) -> None:
        wake(self._arrival)

    # -- who reads ------------------------------------------------------------------------------

    def _holds(self) -> bool:
        """Tell whether somebody reads, for whom the run is held back."""
        if not self._may_hold:
            return False
        if self.waiting:
            return any(task not in self.waiting for task in self._loops)
        return bool(self._loops) or self._single

    def _release(self) -> None:
        """Let the run go on, unless somebody reads after all; what is too much is dropped."""
        if self._holds() and not self._closed:
            return
        while len(self._events) > self._buffer:
            self._events.popleft()
            self._missed += 1
        while self._held:
            wake(self._held.popleft())

    def enter_loop(self) -> int:
        """Begin an ``async for``; return what ``leave_loop`` and ``read`` want to know.

        Raises:
            BadUse: The block was left, or another task reads.
        """
        task = self._check_reader()
        self._loops.append(task)
        return task

    def leave_loop(self, task: int) -> None:
        """End an ``async for``: it holds the run back no longer."""
        self._loops.remove(task)
        if threading.get_ident() == self._thread:  # else the garbage collector's, in some other
            self._release()

    @contextmanager
    def waited(self) -> Generator[None]:
        """Within, the current task waits for the run, and so isn't the one that it waits for."""
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
                f"inside `async with app.open(...)`, also where another task reads"
            )
            raise BadUse(msg)
        task = get_current_task().id
        if self._reading or any(reader != task for reader in self._loops):
            msg = (
                f"run {self._path.id} has a consumer already: each event is read once, so let one "
                f"task iterate and hand on what others need, or give the application a hook each"
            )
            raise BadUse(msg)
        return task

    # -- the reader's side ----------------------------------------------------------------------

    async def read(self, loop: int | None = None) -> Event | None:
        """Take the next event, as soon as there is one; None if the run has ended.

        Args:
            loop: What ``enter_loop`` returned, if it is read in an ``async for``.

        Raises:
            BadUse: The block was left, or another task reads.
        """
        if self._closed or self._reading or loop is None:
            self._check_reader()
            self._single = self._single or loop is None
        self._reading = True
        try:
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
        """Drop what was not read and whatever comes, and hold nobody back any more."""
        self._closed = True
        self._release()
        self._events.clear()
        self._missed = 0
        self._tell_arrival()


async def _wait(waiter: Waiter) -> None:
    # Shielded by whoever tells hooks: a cancellation in here is user code's, left on an engine's
    # task. The event is kept already, so the run may as well go on.
    with suppress(get_cancelled_exc_class()):
        await waiter


def wake(waiter: Waiter | None) -> None:
    """Let whoever waits go on, if anybody does."""
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
