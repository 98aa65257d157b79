"""Work in a task of its own, and the wait for its end.

Invariants:
- Own task. The work never runs in the task that waits for it. A native ``task.cancel()``
  (``asyncio.timeout``, a server) pierces anyio's shields; so it may reach only the wait, which
  turns it into a cancellation of the work's own scope.
- Structured. The wait ends only after the work has ended, cleanup included, however often the
  waiting task is cancelled meanwhile. Then it raises its own cancellation.
- Work always begins, because only its own ``finally`` blocks report that it has ended. A loop that
  tears down all of its tasks (``asyncio.run``, a server) cancels the task of the work too, and
  asyncio never begins a task that was cancelled before its first step. So if the work is cancelled
  before it has begun, a second task is started, and the first of the two to begin does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, final

from anyio import CancelScope, Event

from shoal._errors.inspection import first_of

from .backend import Kinds
from .cancellation import fatal_leaf, ki_protected
from .watchdog import Part, Watchdog, Watched, leads_to

Work = Callable[[], Coroutine[Any, Any, None]]
StartTask = Callable[[Work], object]


@final
class BackgroundTask:
    """Work in a task of its own, the scope around it, and the event of its end."""

    def __init__(
        self,
        work: Work,
        on_cancel: Callable[[str], None],
        watchdog: Watchdog,
        kinds: Kinds,
        *,
        start: StartTask,
        start_again: StartTask,
        on_ended: Callable[[], None] | None = None,
    ) -> None:
        """Start a task that does ``work``.

        Args:
            work: A function whose coroutine is the work. It raises nothing but cancellation,
                KeyboardInterrupt or the like.
            on_cancel: Called once, with the reason, just before the work is cancelled.
            watchdog: Watches that the work ends in time after it was cancelled.
            kinds: The classes of scopes and events here.
            start: Starts a task.
            start_again: Starts one in the same context. Callbacks of the loop may call it too.
            on_ended: Called when the work has ended, cleanup included.
        """
        self._work = work
        self._on_cancel = on_cancel
        self._on_ended = on_ended
        self._watchdog = watchdog
        self._watched: Watched | None = None  # set by `cancel`
        self._coroutine: Coroutine[Any, Any, None] | None = None  # only while the work runs
        # Shielded, so that only `cancel` reaches it. If the caller's own scope reached it too,
        # anyio would pass its pending uncancels on to the caller's task, and a native cancel of
        # the caller would be forgotten: see
        # test_a_native_cancel_and_a_scope_cancelled_around_each_other.
        self._scope = kinds.scope(shield=True)
        self.ended: Event = kinds.event()
        self.fatal: BaseException | None = None
        """The KeyboardInterrupt, or the like, that the work raised."""
        self._has_begun = False
        self._start_again = start_again
        start(self._run)

    @ki_protected
    async def _run(self) -> None:
        """Do the work, unless another task has begun it."""
        if self._has_begun:
            return
        self._has_begun = True
        self._start_again = _no_task
        try:
            with self._scope:
                self._coroutine = self._work()
                self._work = _no_work  # the coroutine has all of it
                await self._coroutine
        except Exception:
            raise
        except BaseException as error:
            self.fatal = fatal_leaf(error)
            if self.fatal is None:
                raise
        finally:
            self._coroutine = None
            # After this line the waiter may go on: all that it reads, `fatal`, is set above.
            self.ended.set()
            if self._watched is not None:
                self._watchdog.forget(self._watched)
            on_ended, self._on_ended = self._on_ended, None
            # The work holds the object that holds this one: break the cycle.
            self._work, self._on_cancel = _no_work, _no_reason
            if on_ended is not None:
                on_ended()

    def cancel(self, reason: str) -> None:
        """Cancel the work unless it has ended or was cancelled before: the first reason counts."""
        self.see_to_begin()
        if not self._scope.cancel_called and not self.ended.is_set():
            # Before the cancellation, so that the work finds the reason when it is cancelled.
            self._on_cancel(reason)
            self._scope.cancel()
            self._watched = self._watchdog.watch(self.parts)

    def see_to_begin(self) -> None:
        """Start another task if the work has not begun, because its task may never begin."""
        self._start_again(self._run)

    @property
    def is_cancelled(self) -> bool:
        """Whether ``cancel`` has cancelled the work."""
        return self._scope.cancel_called

    def parts(self) -> tuple[Part, ...]:
        """Return the coroutine of the work, for the watchdog; nothing before it begins."""
        return () if self._coroutine is None else (Part(None, self._coroutine),)

    @leads_to(lambda variables: variables["self"].parts())
    async def wait(self) -> BaseException | None:
        """Wait for the end of the work; cancel it if the wait is interrupted.

        Returns the first interruption, for the caller to raise; None if there was none. An
        exception of the work itself is in ``fatal``.
        """
        interruption: BaseException | None = None
        while not self.ended.is_set():
            try:
                if interruption is None:
                    await self.ended.wait()
                else:
                    with CancelScope(shield=True):
                        await self.ended.wait()
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001 # returned, and raised by the caller
                interruption = first_of(interruption, error)
                self.cancel("the caller was cancelled")
        try:
            return interruption
        finally:
            del interruption  # breaks the traceback cycle


@final
class MadeLate(Coroutine[Any, Any, None]):
    """A coroutine that is made when its task begins.

    Python warns of coroutines that are never awaited, and a task that is cancelled before its first
    step would leave such a coroutine behind.
    """

    def __init__(self, work: Work) -> None:
        """Call ``work`` only when awaited."""
        self._work = work

    def __await__(self) -> Generator[Any, Any, None]:
        return self._work().__await__()

    def send(self, value: object) -> Any:
        """Raise: a task awaits this object, and sends nothing to it."""
        raise NotImplementedError

    def throw(self, *args: Any) -> Any:
        """Raise: a task awaits this object, and throws nothing into it."""
        raise NotImplementedError

    def close(self) -> None:
        """Do nothing, because no coroutine was made."""


def _no_task(_work: Work) -> None:
    """Takes the place of ``start_again`` once the work has begun."""


async def _no_work() -> None:
    """Takes the place of the work once it has ended."""


def _no_reason(_reason: str) -> None:
    """Takes the place of ``on_cancel`` once the work has ended."""
