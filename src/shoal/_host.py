"""Work in a task of its own, and whoever waits for its end. Imports anyio and ``_cancel``.

Invariants:
- Own task. What is hosted never lives in the task of whoever waits for it. A native
  ``task.cancel()`` (``asyncio.timeout``, a server) pierces anyio's shields; so it may reach only
  the wait, which turns it into the cancellation of the work's own scope.
- Structured. Who waits goes on only after the work has ended, cleanup included, however often it is
  cancelled meanwhile; then it goes on with its own cancellation.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, final

from anyio import CancelScope, Event

from ._cancel import fatal_leaf
from ._ports import Watchdog
from ._watch import Part, Watched, leads_to


@final
class Hosted:
    """Work, the scope around it, and its end."""

    def __init__(
        self,
        work: Callable[[], Coroutine[Any, Any, None]],
        on_cancel: Callable[[str], None],
        watchdog: Watchdog,
        on_ended: Callable[[], None] | None = None,
    ) -> None:
        """Describe it; ``live`` is what the task runs.

        Args:
            work: What to do. It raises nothing but cancellation, KeyboardInterrupt or the like.
            on_cancel: Called with the reason just before the work is cancelled, once.
            watchdog: Watches that it ends in time when it was cancelled.
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

    async def live(self) -> None:
        """Do the work."""
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
        if not self._scope.cancel_called and not self.ended.is_set():
            self._on_cancel(reason)
            self._scope.cancel()
            self._watched = self._watchdog.watch(self.parts)

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
                if interruption is None:
                    interruption = error
                    self.cancel("the caller was cancelled")
        return interruption


async def _no_work() -> None:
    """Stand in for work that has been done."""


def _no_reason(_reason: str) -> None:
    """Stand in for whoever would hear why that is cancelled."""
