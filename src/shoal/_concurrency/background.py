"""Work in a task of its own, and whoever waits for its end. Imports the watchdog; anyio.

Invariants:
- Own task. What is hosted never lives in the task of whoever waits for it. A native
  ``task.cancel()`` (``asyncio.timeout``, a server) pierces anyio's shields; so it may reach only
  the wait, which turns it into the cancellation of the work's own scope.
- Structured. Who waits goes on only after the work has ended, cleanup included, however often it is
  cancelled meanwhile; then it goes on with its own cancellation.
- Work always begins, because only its own ``finally`` blocks say that it has ended. A loop that
  tears down all of its tasks (``asyncio.run``, a server) cancels the task of the work too, and
  asyncio never begins a task that was cancelled before its first step. So where the work is
  cancelled before it has begun, a second task is started, and the first of them that begins does
  the work.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, final

from anyio import CancelScope, Event

from shoal._errors.inspection import first_of

from .cancellation import fatal_leaf
from .watchdog import Part, Watchdog, Watched, leads_to

Work = Callable[[], Coroutine[Any, Any, None]]
StartTask = Callable[[Work], object]


@final
class Hosted:
    """Work, the scope around it, and its end."""

    def __init__(
        self,
        work: Work,
        on_cancel: Callable[[str], None],
        watchdog: Watchdog,
        *,
        start: StartTask,
        start_again: StartTask,
        on_ended: Callable[[], None] | None = None,
    ) -> None:
        """Start a task that does ``work``.

        Args:
            work: What to do. It raises nothing but cancellation, KeyboardInterrupt or the like.
            on_cancel: Called with the reason just before the work is cancelled, once.
            watchdog: Watches that it ends in time when it was cancelled.
            start: Starts a task.
            start_again: Starts one in the same context; callable in callbacks of the loop, too.
            on_ended: Called when it has ended, cleanup included.
        """
        self._work = work
        self._on_cancel = on_cancel
        self._on_ended = on_ended
        self._watchdog = watchdog
        self._watched: Watched | None = None
        self._coroutine: Coroutine[Any, Any, None] | None = None
        # Shielded, so that only `cancel` reaches it. If the caller's own scope did too, anyio would
        # hand on what has to be uncancelled to the caller's task, and a native cancel that the
        # caller got besides would be forgotten, see
        # test_a_native_cancel_and_a_scope_cancelled_around_each_other.
        self._scope = CancelScope(shield=True)
        self.ended: Event = Event()
        self.fatal: BaseException | None = None
        """The KeyboardInterrupt, or the like, that came out of the work."""
        self._has_begun = False
        self._start_again = start_again
        start(self._live)

    async def _live(self) -> None:
        """Do the work, unless another task has begun with it."""
        if self._has_begun:
            return
        self._has_begun = True
        self._start_again = _no_task
        try:
            with self._scope:
                self._coroutine = self._work()
                await self._coroutine
        except Exception:
            raise
        except BaseException as error:
            self.fatal = fatal_leaf(error)
            if self.fatal is None:
                raise
        finally:
            self._coroutine = None
            self.ended.set()
            if self._watched is not None:
                self._watchdog.forget(self._watched)
            on_ended, self._on_ended = self._on_ended, None
            self._work, self._on_cancel = _no_work, _no_reason  # no cycle with who holds this
            if on_ended is not None:
                on_ended()

    def cancel(self, reason: str) -> None:
        """Cancel the work, unless it has ended or is cancelled: the first reason counts."""
        self.see_to_begin()
        if not self._scope.cancel_called and not self.ended.is_set():
            self._on_cancel(reason)
            self._scope.cancel()
            self._watched = self._watchdog.watch(self.parts)

    def see_to_begin(self) -> None:
        """Start another task if the work has not begun, for its task may never begin."""
        self._start_again(self._live)

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has cancelled it."""
        return self._scope.cancel_called

    def parts(self) -> tuple[Part, ...]:
        """Return what it is made of."""
        return () if self._coroutine is None else (Part(None, self._coroutine),)

    @leads_to(lambda variables: variables["self"].parts())
    async def wait(self) -> BaseException | None:
        """Wait for the end of the work, cancelling it where the wait is interrupted.

        Returns the first interruption, for the caller to raise; None if there was none. What came
        out of the work itself is in ``fatal``.
        """
        interruption: BaseException | None = None
        while not self.ended.is_set():
            try:
                with CancelScope(shield=interruption is not None):
                    await self.ended.wait()
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001 # returned, and raised by the caller
                interruption = first_of(interruption, error)
                self.cancel("the caller was cancelled")
        try:
            return interruption
        finally:
            del interruption  # no cycle from the exception through its traceback to this frame


@final
class MadeLate(Coroutine[Any, Any, None]):
    """A coroutine that is made when its task begins.

    Python warns of coroutines that nobody awaits, and a task that is cancelled before its first
    step leaves its own behind.
    """

    def __init__(self, work: Work) -> None:
        """Make ``work()`` when awaited."""
        self._work = work

    def __await__(self) -> Generator[Any, Any, None]:
        """Make the coroutine, and run it."""
        return self._work().__await__()

    def send(self, value: object) -> Any:
        """Refuse to: a task awaits it."""
        raise NotImplementedError

    def throw(self, *args: Any) -> Any:
        """Refuse to: a task awaits it."""
        raise NotImplementedError

    def close(self) -> None:
        """Do nothing: no coroutine was made."""


def _no_task(_work: Work) -> None:
    """Stand in for what starts tasks, once the work has begun."""


async def _no_work() -> None:
    """Stand in for work that has been done."""


def _no_reason(_reason: str) -> None:
    """Stand in for whoever would hear why that is cancelled."""
