"""The scope of a group: its tasks, what failed in them, and why all of them end together.

Invariants:
- No exception goes through the task group, which would wrap it: failures cross as values.
- The first failure counts, and the first reason; only a KeyboardInterrupt outranks another failure.
- Whatever is cancelled is watched until it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from types import CoroutineType
from typing import Any, final

from anyio import Event, TaskHandle
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._concurrency.backend import startable
from shoal._concurrency.cancellation import as_failure, fatal_leaf, is_cancellation
from shoal._concurrency.watchdog import SPARE, Part, Watched
from shoal._engine.run import Run
from shoal._errors.exceptions import SpuriousCancel, StepTimeout, brief
from shoal._errors.inspection import first_of
from shoal._events.events import ChildName


@final
class GroupScope:
    """The tasks of a group, and the one reason for which all of them stop."""

    __slots__ = (
        "_coroutines",
        "_deadline",
        "_failure",
        "_name",
        "_news",
        "_parent",
        "_task_context",
        "_tasks",
        "_tidy_at",
        "_timed_out",
        "_timeout",
        "_watched",
        "cancelled_by",
        "closing",
        "context",
        "interrupted",
        "reason",
        "was_cancelled",
        "winner",
    )

    def __init__(
        self, parent: Run, name: str, timeout: float | None, ends_at: float | None = None
    ) -> None:
        """Have no tasks yet, and ``timeout`` seconds: from now on, or until ``ends_at``."""
        self._parent = parent
        self._name = name
        self.reason: str = "the fan-out was cancelled"
        self.winner: ChildName | None = None
        """The child that decided the race which the others are cancelled for."""
        self.closing: bool = False
        """Whether nothing more is started."""
        self.was_cancelled: bool = False
        """Whether ``cancel`` has ended it, and it didn't end by itself."""
        self.interrupted: bool = False
        """Whether a child was truly cancelled, or something fatal came out of it..."""
        self.cancelled_by: type[BaseException] | None = None
        """...and the type of that cancellation, if it came alone."""
        self.context: Context = copy_context()
        """Each child lives in a copy of it."""
        self._tasks: TaskGroup | None = None
        self._task_context: Context = startable(self.context)  # each task's is a copy of it
        self._coroutines: list[CoroutineType[Any, Any, None]] = []  # some may have ended
        self._tidy_at = SPARE  # so many of them, that it is time to look which
        # As the user gave it, never the seconds that are left: messages name it
        # (see test_a_timeout_is_told_as_it_was_given).
        self._timeout = timeout
        now = parent.config.services.clock()
        self._deadline = now + (timeout or 0.0) if ends_at is None else ends_at
        self._timed_out = False
        self._watched: list[Watched] = []  # what the watchdog expects to end
        self._news: Event | None = None  # set while the parent waits for something to happen
        self._failure: BaseException | None = None

    # -- tasks ----------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether it has tasks, so that more can be started."""
        return self._tasks is not None

    def open(self, tasks: TaskGroup) -> None:
        """Begin to use ``tasks``, until the timeout."""
        self._tasks = tasks
        if self._timeout is not None:
            tasks.cancel_scope.deadline = self._deadline
            self.watch(self.parts, self._deadline)

    def start(
        self, function: Callable[[], CoroutineType[Any, Any, None]]
    ) -> tuple[CoroutineType[Any, Any, None], TaskHandle[None]]:
        """Start a task; callable in callbacks of the loop, too."""
        assert self._tasks is not None
        if len(self._coroutines) > self._tidy_at:
            self._coroutines = [task for task in self._coroutines if task.cr_frame is not None]
            self._tidy_at = 2 * len(self._coroutines) + SPARE
        task = function()
        self._coroutines.append(task)
        return task, self._task_context.copy().run(self._tasks.start_soon, _same, task)

    def close(self) -> None:
        """Let go of the tasks: all have ended."""
        for watched in self._watched:
            self._parent.config.services.watchdog.forget(watched)
        self._watched.clear()  # no cycle: what is watched leads here
        for task in self._coroutines:
            task.close()  # one may never have begun, see `BackgroundTask`
        self._coroutines.clear()

    def watch(self, parts: Callable[[], list[Part]], cancelled_at: float | None = None) -> None:
        """Have it told which of ``parts`` doesn't end in time."""
        watchdog = self._parent.config.services.watchdog
        self._watched.append(watchdog.watch(parts, cancelled_at))

    def parts(self) -> list[Part]:
        """Return what it is made of: what workers and feeders do."""
        return [Part(self._parent, task) for task in self._coroutines]

    # -- waking the parent ----------------------------------------------------------------------

    def wake(self) -> None:
        """Have the parent look at what has happened."""
        if self._news is not None:
            self._news.set()
            self._news = None

    async def wait(self) -> None:
        """Wait until ``wake`` is called; for the parent."""
        self._news = Event()
        await self._news.wait()

    # -- stopping -------------------------------------------------------------------------------

    @property
    def goes_on(self) -> bool:
        """Whether nothing has failed in it, and nothing has stopped it from outside."""
        return self._failure is None and not self.interrupted and not self.was_cancelled

    def cancel(self, reason: str) -> None:
        """End the group for ``reason``: cancel what is left. Its ``run`` then returns normally.

        The first reason counts.
        """
        self.was_cancelled = True
        if self.closing:
            return
        if self._tasks is None:
            self.reason = reason
            self.closing = True
        else:
            self.stop(reason)

    def fail(self, error: BaseException) -> None:
        """Stop for what came out of code that runs in the group's tasks, but for its children.

        Raises:
            BaseException: ``error``, if it is a true cancellation, which must travel on.
        """
        failure: BaseException | None = None
        try:
            failure = as_failure(error)
            if failure is None and is_cancellation(error):
                self.notice_timeout()
                raise error
            failure = first_of(failure, fatal_leaf(error), error)
            self.stop(f"its fan-out failed: {brief(failure)}", failure)
        finally:
            del error, failure  # breaks the traceback cycle

    def stop(self, reason: str, failure: BaseException | None = None) -> None:
        """Cancel what is left for ``reason``; ``failure`` is raised in the end."""
        if self._failure is None or isinstance(self._failure, Exception):
            outranks = failure is not None and not isinstance(failure, Exception)
            if self._failure is None or outranks:
                self._failure = failure
        if not self.closing:
            self.reason = reason
        self.closing = True
        assert self._tasks is not None
        if not self._tasks.cancel_scope.cancel_called:
            self._tasks.cancel_scope.cancel()
            self.watch(self.parts)
        self.wake()

    def interrupt(self, error: BaseException) -> None:
        """Note that all are cancelled, or interrupted: ``error`` came out of one of them."""
        self.notice_timeout()
        self.interrupted = True
        if is_cancellation(error) and not isinstance(error, BaseExceptionGroup):
            self.cancelled_by = type(error)

    def notice_timeout(self) -> None:
        """Find the reason for a cancellation that came from no code."""
        if self._timeout is None or self.closing:
            return
        assert self._tasks is not None
        late = self._parent.config.services.clock() >= self._deadline
        if late and self._tasks.cancel_scope.cancel_called:
            self._timed_out = self.closing = True
            self.reason = f"timeout of {self._timeout:g} s"

    # -- what is raised in the end --------------------------------------------------------------

    def raise_fatal(self) -> None:
        """Raise what outranks even a cancellation, if that has come out of a task."""
        if not isinstance(self._failure, Exception | None):
            raise self._failure from None

    async def raise_failure(self, *, finished: bool) -> None:
        """Raise why it has ended, if that is neither that all is ``finished``, nor ``cancel``.

        Raises:
            StepTimeout: It took longer than its timeout.
            SpuriousCancel: Code in it has cancelled it, and not by ``cancel``.
            Exception: What ``fail`` was called with first.
        """
        self._tasks = None
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # breaks the traceback cycle
        if finished or self.was_cancelled:
            return
        # The parent may have been scheduled by a child's end in the very tick in which all were
        # cancelled, and so not have noticed, see
        # test_starts_and_ends_are_paired_when_the_caller_is_cancelled.
        await checkpoint_if_cancelled()
        if self._timed_out:
            who = f"fan-out {self._name!r} of run {self._parent.path.id}"
            raise StepTimeout(f"{who} took longer than its {self.reason}")
        msg = "a fan-out was interrupted though nobody had cancelled it"
        raise SpuriousCancel(msg)


def _same(task: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
    """Give a task group what was made already, so that it can be looked into."""
    return task
