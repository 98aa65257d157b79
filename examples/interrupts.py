"""Ctrl-C, SIGTERM and deadlines: let the work settle, then cancel it.

A second signal cancels the work at once. A third one reaches the interpreter, which ends a cleanup
that hangs. Service managers and containers send SIGTERM to end a program.
"""

import signal
from collections.abc import Awaitable, Callable
from typing import Literal

import anyio
from anyio.abc import TaskStatus

Ended = Literal["done", "interrupted", "late"]


async def _at_once() -> None:
    """Cancel without waiting for a step to end."""


class Interruptible:
    """Runs some work until it ends, a signal arrives or its deadline passes."""

    def __init__(
        self, settle: Callable[[], Awaitable[None]] = _at_once, deadline: float | None = None
    ) -> None:
        """Cancel the work on a signal or after `deadline` seconds, once `settle` is done."""
        self._settle = settle
        self._deadline = deadline
        self.asked: Ended = "done"
        """Why the work was asked to end: "interrupted" or "late"; "done": it wasn't."""
        self._scope = anyio.CancelScope()
        self.signal: signal.Signals = signal.SIGINT
        """The first signal that arrived, if the work was interrupted."""

    @property
    def exit_code(self) -> int:
        """The exit code that a shell reports for a program ended by this signal: 130 or 143."""
        return 128 + self.signal

    async def do(self, work: Callable[[], Awaitable[object]]) -> Ended:
        """Do the work, and return how it ended; "done" if it returned, asked to end or not.

        A signal or the deadline cancels the work like any other cancellation, so its cleanup runs.
        """
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            with self._scope:
                await tasks.start(self._listen)
                if self._deadline is not None:
                    tasks.start_soon(self._expire, self._deadline)
                try:
                    await work()
                except Exception as error:  # noqa: BLE001 - raised below, outside of the group
                    failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return self.asked if self._scope.cancelled_caught else "done"

    async def _listen(self, *, task_status: TaskStatus[None]) -> None:
        try:
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                task_status.started()
                self.signal = await anext(signals)
                self.asked = "interrupted"
                async with anyio.create_task_group() as settling:
                    settling.start_soon(self._settle_and_cancel)
                    await anext(signals)
                    self._scope.cancel()
                    settling.cancel_scope.cancel()
        except NotImplementedError:  # asyncio on Windows: Ctrl-C raises KeyboardInterrupt there
            task_status.started()

    async def _expire(self, seconds: float) -> None:
        await anyio.sleep(seconds)
        if self.asked == "done":
            self.asked = "late"
        await self._settle_and_cancel()

    async def _settle_and_cancel(self) -> None:
        await self._settle()
        self._scope.cancel()


async def until_interrupted(
    work: Callable[[], Awaitable[object]], settle: Callable[[], Awaitable[None]] = _at_once
) -> bool:
    """Do `work` until it ends, or a signal comes and `settle` is done; return whether one came."""
    interruptible = Interruptible(settle)
    await interruptible.do(work)
    return interruptible.asked == "interrupted"
