"""Call a function before every step that an event loop takes.

Neither loop has a public way to do this. ``tests/testing/test_everywhere.py`` fails if the private
parts that are used here change.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol, Self, final

Notify = Callable[[], None]


class Steps(Protocol):
    """Inside the block, calls a function before each step. Entered by the task that is watched."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def tasks(self) -> Iterator[tuple[str, object]]:
        """Yield the names and coroutines of all tasks except the loop's own."""
        ...

    def hit(self) -> bool:
        """Return whether a cancellation with the reason has reached the task that entered."""
        ...


def steps_of_this_loop(notify: Notify, *, reason: str) -> Steps:
    """Return the `Steps` of the running loop that call ``notify`` and look for ``reason``."""
    with suppress(RuntimeError):
        return _AsyncioSteps(asyncio.get_running_loop(), notify)
    return _TrioSteps(notify, reason)


@final
class _NotifyingQueue(deque[asyncio.Handle]):
    """A loop's queue. The loop takes each handle off its left end just before it runs it."""

    notify: Notify | None = None

    def popleft(self) -> asyncio.Handle:
        handle = super().popleft()
        if self.notify is not None and not handle.cancelled():
            self.notify()
        return handle


@final
class _AsyncioSteps:
    """Steps of tasks, and callbacks, a timer's included: it marks the end of the wait before it."""

    def __init__(self, loop: Any, notify: Notify) -> None:
        self._loop = loop
        self._notify = notify

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._requests = self._task.cancelling() if self._task is not None else 0
        self._queue = _NotifyingQueue(self._loop._ready)
        self._queue.notify = self._notify
        self._loop._ready = self._queue
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.notify = None  # the queue stays, because a thread may be appending to it

    def tasks(self) -> Iterator[tuple[str, object]]:
        for task in asyncio.all_tasks(self._loop):
            yield task.get_name(), task.get_coro()

    def hit(self) -> bool:
        # A scope also cancels natively, and uncancels when it is left.
        return self._task is not None and self._task.cancelling() > self._requests


@final
class _TrioSteps:
    """A trio instrument: steps of tasks, and each wait in which no task can run."""

    def __init__(self, notify: Notify, reason: str) -> None:
        self._trio: Any = sys.modules["trio"]
        self._notify = notify
        self._reason = reason
        self._hit = False
        self._idle = True  # whether the present wait is already counted

    def __enter__(self) -> Self:
        self._task = self._trio.lowlevel.current_task()
        self._trio.lowlevel.add_instrument(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._trio.lowlevel.remove_instrument(self)

    def before_task_step(self, task: Any) -> None:
        self._idle = False
        self._notify()
        if task is self._task:
            error: Any = getattr(task._next_send, "error", None)
            if isinstance(error, self._trio.Cancelled) and error.reason == self._reason:
                self._hit = True

    def before_io_wait(self, timeout: float) -> None:
        # Once for each wait: in real time the loop returns here again and again.
        if not self._idle and not self._trio.lowlevel.current_statistics().tasks_runnable:
            self._idle = True
            self._notify()

    def tasks(self) -> Iterator[tuple[str, object]]:
        root, main = self._trio.lowlevel.current_root_task(), self._task
        while main.parent_nursery.parent_task is not root:
            main = main.parent_nursery.parent_task
        unseen = [main]  # trio's own tasks are beside it
        while unseen:
            task = unseen.pop()
            yield task.name, task.coro
            unseen += [child for nursery in task.child_nurseries for child in nursery.child_tasks]

    def hit(self) -> bool:
        return self._hit
