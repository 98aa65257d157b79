"""The scope of a group: its tasks, their first failure, and the reason for which all are cancelled.

Invariants:
- No exception passes through the task group, which would wrap it: failures are handed over as
  values.
- The first failure and the first reason count. Only a fatal error, such as KeyboardInterrupt,
  outranks an earlier failure.
- The watchdog watches every task that is cancelled until it has ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import Context, copy_context
from types import CoroutineType
from typing import Any, final

from anyio import TaskHandle
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._concurrency.backend import Waiter, startable
from shoal._concurrency.cancellation import as_failure, cancelled, fatal_leaf, is_cancellation
from shoal._concurrency.watchdog import SPARE, Part, Watched
from shoal._engine.run import Run
from shoal._errors.exceptions import SpuriousCancel, StepTimeout, brief
from shoal._errors.inspection import first_of
from shoal._events.events import ChildName


@final
class GroupScope:
    """The tasks of a group, and the one reason for which all of them are cancelled."""

    __slots__ = (
        "_coroutines",
        "_cut_off",
        "_deadline",
        "_failure",
        "_late",
        "_left",
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
        """Prepare a scope without tasks; it times out after ``timeout`` s, or at ``ends_at``."""
        self._parent = parent
        self._name = name
        self.reason: str = "the fan-out was cancelled"
        """Why children are cancelled. Final as soon as ``closing`` is set."""
        self.winner: ChildName | None = None
        """The child that decided the race for which the others are cancelled.

        None before a decision. The step sets it once the decision is saved.
        """
        self.closing: bool = False
        """Whether no more children are started. Never unset."""
        self.was_cancelled: bool = False
        """Whether ``cancel`` was called. Never unset.

        ``run`` then returns normally, unless something fails.
        """
        self.interrupted: bool = False
        """Whether a child was cancelled with the group, or a fatal error came out of it.

        Never unset.
        """
        self.cancelled_by: type[BaseException] | None = None
        """The type of that cancellation; None if there was none, or only one in a group of errors.
        """
        self.context: Context = copy_context()
        """The step's context variables; each child runs in a copy of them."""
        self._tasks: TaskGroup | None = None  # None before ``open``, and after ``raise_failure``
        self._task_context: Context = startable(self.context)  # each task runs in a copy of it
        self._coroutines: list[CoroutineType[Any, Any, None]] = []  # some may have ended
        # At this length, ``start`` removes the ended ones. It doubles with what remains, so the
        # cost for each start is constant.
        self._tidy_at = SPARE
        # As the user gave it, not the seconds that remain, because messages name it: see
        # test_a_timeout_is_shown_as_it_was_given.
        self._timeout = timeout
        now = parent.config.services.clock()
        self._deadline = now + (timeout or 0.0) if ends_at is None else ends_at
        self._late: Watched | None = None  # of the timeout; None also while it stands still
        self._left: float | None = None  # seconds of the timeout that are left; None: it runs
        self._timed_out = False
        self._watched: tuple[Watched, ...] = ()  # registrations with the watchdog, until ``close``
        self._news: Waiter | None = None  # None unless the parent waits
        # Only ``stop`` sets it, and replaces it only by a failure that outranks it.
        self._failure: BaseException | None = None
        # The cancellation that reached the parent's task; ``raise_failure`` raises it.
        self._cut_off: BaseException | None = None

    # -- tasks ----------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether ``open`` was called and the group has not ended: tasks can be started."""
        return self._tasks is not None

    def open(self, tasks: TaskGroup) -> None:
        """Start tasks in ``tasks`` from now on, and cancel them at the timeout."""
        self._tasks = tasks
        if self._timeout is not None:
            tasks.cancel_scope.deadline = self._deadline
            self._late = self._watch_late()

    def _watch_late(self) -> Watched:
        return self._parent.config.services.watchdog.watch(self.parts, self._deadline)

    def stop_clock(self) -> None:
        """Let the timeout stand still until ``start_clock``, unless it is over, or there is none.

        Between the two nothing starts, since the execution is held; see ``Hold``.
        """
        tasks, late = self._tasks, self._late
        if tasks is None or late is None or tasks.cancel_scope.cancel_called:
            return
        services = self._parent.config.services
        services.watchdog.forget(late)
        self._late = None
        self._left = self._deadline - services.clock()
        self._deadline = tasks.cancel_scope.deadline = math.inf

    def start_clock(self) -> None:
        """Let the timeout go on after ``stop_clock``."""
        tasks, left = self._tasks, self._left
        if tasks is None or left is None or tasks.cancel_scope.cancel_called:
            return
        self._left = None
        self._deadline = self._parent.config.services.clock() + left
        tasks.cancel_scope.deadline = self._deadline
        self._late = self._watch_late()

    def start(
        self, function: Callable[[], CoroutineType[Any, Any, None]]
    ) -> tuple[CoroutineType[Any, Any, None], TaskHandle[None]]:
        """Start a task and return it; also callable from callbacks of the event loop."""
        assert self._tasks is not None
        if len(self._coroutines) > self._tidy_at:
            self._coroutines = [task for task in self._coroutines if task.cr_frame is not None]
            self._tidy_at = 2 * len(self._coroutines) + SPARE
        # Made here and not by the task group, so that the scope can look at the coroutine and close
        # it.
        task = function()
        self._coroutines.append(task)
        context = self._task_context.copy()
        return task, self._tasks.create_task(
            task, name=f"shoal.{task.__qualname__}", context=context
        )

    def close(self) -> None:
        """Release the tasks, which have all ended."""
        if self._late is not None:
            self._watched = (*self._watched, self._late)
        for watched in self._watched:
            self._parent.config.services.watchdog.forget(watched)
        self._watched = ()  # breaks a cycle: the watched parts refer to this scope
        for task in self._coroutines:
            task.close()  # a task may never have begun, see `BackgroundTask`
        self._coroutines.clear()

    def watch(self, parts: Callable[[], list[Part]], cancelled_at: float | None = None) -> None:
        """Let the watchdog report which of ``parts`` don't end in time."""
        watchdog = self._parent.config.services.watchdog
        self._watched = (*self._watched, watchdog.watch(parts, cancelled_at))

    def parts(self) -> list[Part]:
        """Return the tasks of workers and feeders, for the watchdog."""
        return [Part(self._parent, task) for task in self._coroutines]

    # -- waking the parent ----------------------------------------------------------------------

    def wake(self) -> None:
        """Wake the parent's task if it waits."""
        news, self._news = self._news, None
        if news is not None and not news.done():  # it is done if the parent was cancelled
            news.set_result(None)

    async def wait(self) -> None:
        """Wait until ``wake`` is called. Only the parent's task may wait."""
        self._news = news = self._parent.config.services.waiter()
        await news

    # -- stopping -------------------------------------------------------------------------------

    @property
    def goes_on(self) -> bool:
        """Whether nothing has failed, and the group was neither interrupted nor cancelled."""
        return self._failure is None and not self.interrupted and not self.was_cancelled

    def cancel(self, reason: str) -> None:
        """Cancel the remaining children for ``reason``, so that ``run`` returns normally.

        If the group is closing already, its first reason stays.
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
        """Stop the group for an ``error`` of code in its tasks that is not a child's own.

        Raises:
            BaseException: ``error`` itself, if it is a real cancellation: the task group must
                receive it.
        """
        failure: BaseException | None = None
        try:
            failure = as_failure(error)
            if failure is None and is_cancellation(error):
                self.notice_timeout()  # while ``closing`` is unset: else the reason is another one
                raise error
            failure = first_of(failure, fatal_leaf(error), error)
            self.stop(f"its fan-out failed: {brief(failure)}", failure)
        finally:
            del error, failure  # breaks the traceback cycle

    def fail_in_parent(self, error: BaseException) -> None:
        """Stop the group as ``fail`` does; keep a real cancellation until all tasks have ended.

        The tasks are cancelled by the scope that has cancelled the parent. If the task group
        received the cancellation now, it would cancel each of them a second time.
        """
        try:
            self.fail(error)
        except BaseException as cut_off:  # noqa: BLE001 # raised by ``raise_failure``
            self._cut_off = cut_off
        finally:
            del error  # breaks the traceback cycle

    def stop(self, reason: str, failure: BaseException | None = None) -> None:
        """Cancel the remaining children for ``reason``; ``raise_failure`` raises ``failure``."""
        if self._failure is None or isinstance(self._failure, Exception):
            outranks = failure is not None and not isinstance(failure, Exception)
            if self._failure is None or outranks:
                self._failure = failure
        if not self.closing:
            # Before `closing` is set, which makes it final.
            self.reason = reason
        self.closing = True
        assert self._tasks is not None
        # Once only: cancelled tasks are watched from the first time on. A cancellation of the
        # parent is watched by the code that has made it.
        if not self._tasks.cancel_scope.cancel_called and self._cut_off is None:
            self._tasks.cancel_scope.cancel()
            self.watch(self.parts)
        self.wake()

    def interrupt(self, error: BaseException) -> None:
        """Note that a cancellation of the whole group, or a fatal error, came out of a child."""
        self.notice_timeout()
        self.interrupted = True
        if is_cancellation(error) and not isinstance(error, BaseExceptionGroup):
            self.cancelled_by = type(error)

    def notice_timeout(self) -> None:
        """Set the reason if the deadline has cancelled the tasks: then no code has set one."""
        if self._timeout is None or self.closing:
            return
        assert self._tasks is not None
        late = self._parent.config.services.clock() >= self._deadline
        if late and self._tasks.cancel_scope.cancel_called:
            self._timed_out = self.closing = True
            self.reason = f"timeout of {self._timeout:g} s"

    # -- raising after the end ------------------------------------------------------------------

    def raise_fatal(self) -> None:
        """Raise a fatal error that came out of a task: it outranks even a cancellation."""
        self._cut_off = None  # another exception takes its place; breaks a traceback cycle
        if not isinstance(self._failure, Exception | None):
            # The error of the task group, which is being handled here, would only be in the way.
            raise self._failure from None

    async def raise_failure(self, *, finished: bool) -> None:
        """Raise the reason for the end, unless the group ``finished`` or ``cancel`` was called.

        Raises:
            StepTimeout: The group took longer than its timeout.
            SpuriousCancel: Code inside the group cancelled it without ``cancel``.
            Exception: The first error that ``fail`` was called with.
        """
        # From here on nothing can be started: the task group has ended.
        self._tasks = None
        cut_off = self._cut_off
        if cut_off is not None:
            try:
                self.raise_fatal()
                if cancelled():  # else it was the group's own timeout that has cancelled the parent
                    raise cut_off
            finally:
                del cut_off  # breaks the traceback cycle
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # breaks the traceback cycle
        if finished or self.was_cancelled:
            return
        # A child's end may have woken the parent in the same loop iteration in which the caller
        # was cancelled. Then nothing has been raised here yet, see
        # test_starts_and_ends_are_paired_when_the_caller_is_cancelled.
        await checkpoint_if_cancelled()
        if self._timed_out:
            subject = f"fan-out {self._name!r} of run {self._parent.path.id}"
            raise StepTimeout(f"{subject} took longer than its {self.reason}")
        msg = "a fan-out was interrupted though nobody had cancelled it"
        raise SpuriousCancel(msg)
