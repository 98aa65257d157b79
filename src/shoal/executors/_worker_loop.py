"""The event loop of a worker, in a thread of its own, and the way into it from plain functions.

Plain functions are called in the *lane*, the one thread of a worker that has nothing else to do.
``anyio.from_thread`` works there as it does in the threads of a runtime, and leads to the loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol, final

import anyio
from anyio._core._eventloop import claim_worker_thread

Work = Callable[[], Coroutine[Any, Any, None]]


class Cancellable(Protocol):
    """A call whose scopes are cancelled together."""

    is_cancelled: bool

    def enter(self, scope: anyio.CancelScope) -> None:
        """Cancel ``scope`` when the call is cancelled, now or later. Called in the loop."""
        ...

    def leave(self, scope: anyio.CancelScope) -> None:
        """Forget a scope that was left."""
        ...


@final
class WorkerLoop:
    """An event loop of asyncio's in a thread. The thread starts when it is first needed."""

    def __init__(self, *, is_daemon: bool = True) -> None:
        """Start no thread yet; a daemon, unless interpreters here have none."""
        self._is_daemon = is_daemon
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._new: deque[tuple[Work, contextvars.Context | None]] = deque()
        # Both are set by the thread before `start_soon` returns for the first time.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news: asyncio.Event | None = None
        self._is_closing = False

    def start_soon(self, work: Work, context: contextvars.Context | None = None) -> None:
        """Start a task in the loop. May be called in any thread. ``work`` raises nothing."""
        self._new.append((work, context))
        self.call_soon(self._notify)

    def call_soon(self, call: Callable[[], object]) -> None:
        """Make the loop call a function soon. May be called in any thread."""
        loop = self._loop
        if loop is None:
            loop = self._start()
        loop.call_soon_threadsafe(call)

    @property
    def is_here(self) -> bool:
        """Whether this is the thread of the loop."""
        return self._thread is not None and self._thread.ident == threading.get_ident()

    def close(self) -> None:
        """Cancel all tasks, and wait for the end of the thread if there is one."""
        self.close_soon()
        if self._thread is not None:
            self._thread.join()

    def close_soon(self) -> None:
        """Cancel all tasks; the thread ends then. May be called again."""
        with self._starting:
            self._is_closing = True
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._notify)

    def _start(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                ready = threading.Event()
                self._thread = threading.Thread(
                    target=anyio.run,
                    args=(self._run, ready),
                    name="shoal worker loop",
                    daemon=self._is_daemon,
                )
                self._thread.start()
                ready.wait()
            assert self._loop is not None
            return self._loop

    async def _run(self, ready: threading.Event) -> None:
        news = self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        ready.set()
        async with anyio.create_task_group() as tasks:
            while not self._is_closing:
                await news.wait()
                news.clear()
                while self._new:
                    work, context = self._new.popleft()
                    if context is None:
                        tasks.start_soon(work)
                    else:
                        context.run(tasks.start_soon, work)
            tasks.cancel_scope.cancel()

    def _notify(self) -> None:
        if self._news is not None:
            self._news.set()


@final
class LaneBackend:
    """Stands for a backend of anyio's in the lane: what ``anyio.from_thread`` calls."""

    def __init__(self, loop: WorkerLoop) -> None:
        self._loop = loop
        self.call: Cancellable | None = None
        """The call whose function is at work in the lane. Set by the lane alone."""

    def claim(self) -> Any:
        """Return a context manager in which ``anyio.from_thread`` works in this thread."""
        return claim_worker_thread(self, None)  # type: ignore[arg-type]

    def check_cancelled(self) -> None:
        """Raise a cancellation if the call was cancelled."""
        if self.call is not None and self.call.is_cancelled:
            raise asyncio.CancelledError("the action was cancelled")

    def run_async_from_thread(
        self, func: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...], token: object
    ) -> Any:
        """Await ``func(*args)`` in the loop, in a scope that is cancelled with the call."""
        call = self.call
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        async def work() -> None:
            with anyio.CancelScope() as scope:
                if call is not None:
                    call.enter(scope)
                try:
                    future.set_result(await func(*args))
                except asyncio.CancelledError:
                    future.set_exception(concurrent.futures.CancelledError())
                    raise
                except BaseException as error:  # noqa: BLE001 # raised in the lane
                    future.set_exception(error)
                finally:
                    if call is not None:
                        call.leave(scope)

        self._loop.start_soon(work, contextvars.copy_context())
        return future.result()

    def run_sync_from_thread(
        self, func: Callable[..., Any], args: tuple[Any, ...], token: object
    ) -> Any:
        """Call ``func(*args)`` in the loop."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def work() -> None:
            try:
                future.set_result(func(*args))
            except BaseException as error:  # noqa: BLE001 # raised in the lane
                future.set_exception(error)

        self._loop.call_soon(work)
        return future.result()
