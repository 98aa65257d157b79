"""How a group stops: the tasks it is made of, what failed in them, and why all end together.

Imports runs; anyio.

Invariants:
- No exception goes through the task group, which would wrap it: failures cross as values.
- The first failure counts, and the first reason; only a KeyboardInterrupt outranks another failure.
- Whatever is cancelled is watched until it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from types import CoroutineType
from typing import Any

from anyio import Event, TaskHandle
from anyio.abc import TaskGroup

from shoal._concurrency.backend import startable
from shoal._concurrency.cancellation import as_failure, fatal_leaf, is_cancellation
from shoal._concurrency.watchdog import SPARE, Part, Watched
from shoal._engine.run import Run
from shoal._errors.exceptions import brief
from shoal._errors.inspection import first_of
from shoal._events.events import ChildName


class Stopper:
    """The part of a group that stops."""

    __slots__ = (
        "_closing",
        "_context",
        "_deadline",
        "_ended_by_hand",
        "_failure",
        "_news",
        "_parent",
        "_task_context",
        "_tasks",
        "_tasks_of",
        "_tidy_at",
        "_timed_out",
        "_timeout",
        "_watched",
        "name",
        "reason",
        "winner",
    )

    def __init__(
        self, parent: Run, name: str, timeout: float | None, ends_at: float | None = None
    ) -> None:
        """Have no tasks yet, and ``timeout`` seconds: from now on, or until ``ends_at``."""
        self.name: str = name
        self.reason: str = "the fan-out was cancelled"
        self.winner: ChildName | None = None
        """The child that decided the race which the others are cancelled for."""
        self._parent = parent
        self._tasks: TaskGroup | None = None
        self._context: Context = copy_context()  # each child's is a copy of it
        self._task_context: Context = startable(self._context)  # each task's is a copy of it
        self._tasks_of: list[CoroutineType[Any, Any, None]] = []  # some may have ended
        self._tidy_at = SPARE  # so many of them, that it is time to look which
        # As the user gave it, never the seconds that are left: messages name it
        # (see test_a_timeout_is_told_as_it_was_given).
        self._timeout = timeout
        now = parent.setting.services.clock()
        self._deadline = now + (timeout or 0.0) if ends_at is None else ends_at
        self._timed_out = False
        self._watched: list[Watched] = []  # what the watchdog expects to end
        self._news: Event | None = None  # set while the parent waits for something to happen
        self._closing = False
        self._ended_by_hand = False
        self._failure: BaseException | None = None

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

    def _start(self, function: Callable[[], CoroutineType[Any, Any, None]]) -> TaskHandle[None]:
        """Start a task of the group's; callable in callbacks of the loop, too."""
        assert self._tasks is not None
        if len(self._tasks_of) > self._tidy_at:
            self._tasks_of = [task for task in self._tasks_of if task.cr_frame is not None]
            self._tidy_at = 2 * len(self._tasks_of) + SPARE
        task = function()
        self._tasks_of.append(task)
        return self._task_context.copy().run(self._tasks.start_soon, _same, task)

    def _tell(self) -> None:
        """Have the parent look at what has happened."""
        if self._news is not None:
            self._news.set()
            self._news = None

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
            failure = first_of(failure, fatal_leaf(error), error)
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
            self._watch(self.parts)
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

    def _watch(self, parts: Callable[[], list[Part]], cancelled_at: float | None = None) -> None:
        """Have it told which of ``parts`` doesn't end in time."""
        watchdog = self._parent.setting.services.watchdog
        self._watched.append(watchdog.watch(parts, cancelled_at))

    def _watch_no_more(self) -> None:
        for watched in self._watched:
            self._parent.setting.services.watchdog.forget(watched)
        self._watched.clear()  # no cycle: what is watched leads here

    def parts(self) -> list[Part]:
        """Return what it is made of: what pullers and feeders do."""
        return [Part(self._parent, task) for task in self._tasks_of]


def _same(task: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
    """Give a task group what was made already, so that it can be looked into."""
    return task
