"""Work in a task of its own, and whoever waits for its end. Imports anyio and ``_cancel``.

Invariants:
- Own task. What is hosted never lives in the task of whoever waits for it. A native
  ``task.cancel()`` (``asyncio.timeout``, a server) pierces anyio's shields; so it may reach only
  the wait, which turns it into the cancellation of the work's own scope.
- Structured. Who waits goes on only after the work has ended, cleanup included, however often it is
  cancelled meanwhile; then it goes on with its own cancellation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import final

from anyio import CancelScope, Event

from ._cancel import fatal_leaf


@final
class Hosted:
    """Work, the scope around it, and its end."""

    def __init__(
        self, work: Callable[[], Awaitable[None]], on_interrupt: Callable[[], None]
    ) -> None:
        """Describe it; ``live`` is what the task runs.

        Args:
            work: What to do. It raises nothing but cancellation, KeyboardInterrupt or SystemExit.
            on_interrupt: Called when whoever waits is interrupted, before the work is cancelled.
        """
        self._work = work
        self._on_interrupt = on_interrupt
        # Shielded, so that only `wait` cancels it. If the caller's own scope did too, anyio would
        # hand on what has to be uncancelled to the caller's task, and a native cancel that the
        # caller got besides would be forgotten, see
        # test_a_native_cancel_and_a_scope_cancelled_around_each_other.
        self._scope = CancelScope(shield=True)
        self._ended = Event()
        self._fatal: BaseException | None = None

    async def live(self) -> None:
        """Do the work."""
        try:
            with self._scope:
                await self._work()
        except Exception:
            raise
        except BaseException as error:
            fatal = fatal_leaf(error)
            if not isinstance(fatal, KeyboardInterrupt | SystemExit):
                raise
            self._fatal = fatal
        finally:
            self._ended.set()

    def cancel(self) -> None:
        """Cancel the work."""
        self._scope.cancel()

    async def wait(self) -> BaseException | None:
        """Wait for the end of the work, whatever happens meanwhile.

        Returns what interrupted the wait first, or the KeyboardInterrupt or SystemExit that came
        out of the work, to be raised; None if nothing did.
        """
        interruption: BaseException | None = None
        while not self._ended.is_set():
            try:
                with CancelScope(shield=interruption is not None):
                    await self._ended.wait()
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001 # returned, and raised by the caller
                if interruption is None:
                    interruption = error
                    self._on_interrupt()
                    self._scope.cancel()
        return self._fatal or interruption
