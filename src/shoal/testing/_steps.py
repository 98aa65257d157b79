"""Being told of every step that an event loop takes. Imports no shoal.

Neither loop has a public way for all of it: what is private here is pinned by
``tests/testing/test_everywhere.py``.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol, Self, final

Told = Callable[[], None]


class Steps(Protocol):
    """Within, something is called before each step. Entered by the task that is watched."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def tasks(self) -> Iterator[tuple[str, object]]:
        """The names and coroutines of all tasks, but the loop's own."""
        ...

    def hit(self) -> bool:
        """Whether the cancellation of this reason has reached the task that entered."""
        ...


def steps_of_this_loop(told: Told, *, reason: str) -> Steps:
    """What calls ``told`` before each step of the running loop, and sees cancels for a reason."""
    with suppress(RuntimeError):
        return _AsyncioSteps(asyncio.get_running_loop(), told)
    return _TrioSteps(told, reason)


@final
class _ToldQueue(deque[asyncio.Handle]):
    """A loop's queue. The loop takes what it runs next off its left end, one by one."""

    told: Told | None = None

    def popleft(self) -> asyncio.Handle:
        handle = super().popleft()
        if self.told is not None and not handle.cancelled():
            self.told()
        return handle


@final
class _AsyncioSteps:
    """Steps of tasks, and callbacks: a timer's too, which stands for the wait before it."""

    def __init__(self, loop: Any, told: Told) -> None:
        self._loop = loop
        self._told = told

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._requests = self._task.cancelling() if self._task is not None else 0
        self._queue = _ToldQueue(self._loop._ready)
        self._queue.told = self._told
        self._loop._ready = self._queue
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.told = None  # it stays: a thread may just be appending to it

    def tasks(self) -> Iterator[tuple[str, object]]:
        for task in asyncio.all_tasks(self._loop):
            yield task.get_name(), task.get_coro()

    def hit(self) -> bool:
        # Scopes cancel natively too, and take it back on leaving.
        return self._task is not None and self._task.cancelling() > self._requests


@final
class _TrioSteps:
    """A trio instrument. Steps of tasks, and each wait in which no task can run."""

    def __init__(self, told: Told, reason: str) -> None:
        self._trio: Any = sys.modules["trio"]
        self._told = told
        self._reason = reason
        self._hit = False
        self._idle = True  # told already

    def __enter__(self) -> Self:
        self._task = self._trio.lowlevel.current_task()
        self._trio.lowlevel.add_instrument(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._trio.lowlevel.remove_instrument(self)

    def before_task_step(self, task: Any) -> None:
        self._idle = False
        self._told()
        if task is self._task:
            error: Any = getattr(task._next_send, "error", None)
            if isinstance(error, self._trio.Cancelled) and error.reason == self._reason:
                self._hit = True

    def before_io_wait(self, timeout: float) -> None:
        # Once per wait: in real time the loop comes by again and again.
        if not self._idle and not self._trio.lowlevel.current_statistics().tasks_runnable:
            self._idle = True
            self._told()

    def tasks(self) -> Iterator[tuple[str, object]]:
        root, main = self._trio.lowlevel.current_root_task(), self._task
        while main.parent_nursery.parent_task is not root:
            main = main.parent_nursery.parent_task
        unseen = [main]  # trio's own are beside it
        while unseen:
            task = unseen.pop()
            yield task.name, task.coro
            unseen += [child for nursery in task.child_nurseries for child in nursery.child_tasks]

    def hit(self) -> bool:
        return self._hit
