"""Ctrl-C as a cancellation like any other, for programs that have something to put in order."""

import signal
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskStatus


async def until_interrupted(work: Callable[[], Awaitable[object]]) -> bool:
    """Do `work` to its end or to a Ctrl-C, and say whether it was a Ctrl-C.

    The signal cancels the work like any other cancellation, so that it ends in good order. From
    then on a Ctrl-C is the interpreter's again: a second one ends a clean-up that hangs.
    """

    async def listen(*, task_status: TaskStatus[None]) -> None:
        try:
            with anyio.open_signal_receiver(signal.SIGINT) as signals:
                task_status.started()
                await anext(signals)
                working.cancel()
        except NotImplementedError:  # asyncio on Windows: there it stays a KeyboardInterrupt
            task_status.started()

    working = anyio.CancelScope()
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        with working:
            await tasks.start(listen)
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - raised below, outside of the task group
                failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return working.cancelled_caught
