"""Have a function called whenever a socket can be read, or written, on asyncio and trio.

On asyncio that is the loop's own business and costs no task; on trio it takes one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast, final

import anyio

from shoal._concurrency.backend import Backend
from shoal._concurrency.background import StartTask
from shoal._concurrency.cancellation import ki_protected


@final
class Readiness:
    """Calls functions when a socket is ready. Both are off at first."""

    def __init__(
        self,
        sock: Any,
        backend: Backend,
        start_task: StartTask,
        *,
        on_readable: Callable[[], None],
        on_writable: Callable[[], None],
    ) -> None:
        """Do nothing yet.

        Args:
            sock: The socket. It must not be closed before ``close`` was called.
            backend: The loop.
            start_task: Starts a task, on trio.
            on_readable: Called again and again while the socket can be read.
            on_writable: Called again and again while it can be written.
        """
        kind = _Watched if backend.library == "trio" else _Registered
        self._reading: _Registered | _Watched = kind(
            sock, "reader", backend, start_task, on_readable
        )
        self._writing: _Registered | _Watched = kind(
            sock, "writer", backend, start_task, on_writable
        )

    def read(self, is_on: bool) -> None:
        """Call ``on_readable`` from now on, or no more."""
        self._reading.turn(is_on)

    def write(self, is_on: bool) -> None:
        """Call ``on_writable`` from now on, or no more."""
        self._writing.turn(is_on)

    def pause(self, seconds: float) -> None:
        """Call ``on_readable`` no more for so long. Nothing if it is off, or pauses already."""
        self._reading.pause(seconds)

    def close(self) -> None:
        """Call nothing any more."""
        self._reading.turn(False)
        self._writing.turn(False)


@final
class _Registered:
    """On asyncio."""

    def __init__(
        self,
        sock: Any,
        what: str,
        backend: Backend,
        start_task: StartTask,
        call: Callable[[], None],
    ) -> None:
        loop = cast("Any", backend.token)
        self._call = call
        self._add: Callable[[], object] = partial(getattr(loop, f"add_{what}"), sock, call)
        self._remove: Callable[[], object] = partial(getattr(loop, f"remove_{what}"), sock)
        self._call_later: Callable[[float, Callable[[], None]], Any] = loop.call_later
        self._is_on = False
        self._is_registered = False
        self._timer: Any = None  # ends the pause, if there is one
        self._is_calling = False  # at the end of a pause

    def turn(self, is_on: bool) -> None:
        self._is_on = is_on
        if self._timer is not None and not is_on:
            self._timer.cancel()
            self._timer = None
        self._register()

    def pause(self, seconds: float) -> None:
        if self._is_on and self._timer is None:
            self._timer = self._call_later(seconds, self._end_pause)
            self._register()

    def _end_pause(self) -> None:
        self._timer = None
        # Called without a look whether it is ready. If it pauses again, as is usual, registering
        # would only cost the loop two calls of the system.
        self._is_calling = True
        try:
            self._call()
        finally:
            self._is_calling = False
            self._register()

    def _register(self) -> None:
        is_wanted = self._is_on and self._timer is None
        if is_wanted != self._is_registered and not self._is_calling:
            self._is_registered = is_wanted
            (self._add if is_wanted else self._remove)()


@final
class _Watched:
    """On trio: a task while it is on."""

    def __init__(
        self,
        sock: Any,
        what: str,
        backend: Backend,
        start_task: StartTask,
        call: Callable[[], None],
    ) -> None:
        self._wait = partial(anyio.wait_readable if what == "reader" else anyio.wait_writable, sock)
        self._start_task = start_task
        self._call = call
        self._scope: anyio.CancelScope | None = None  # of the task, while it is on
        self._paused_until = 0.0

    def turn(self, is_on: bool) -> None:
        if is_on == (self._scope is not None):
            return
        self._paused_until = 0.0
        if self._scope is None:
            self._scope = anyio.CancelScope()
            self._start_task(partial(self._watch, self._scope))
        else:
            self._scope.cancel()
            self._scope = None

    def pause(self, seconds: float) -> None:
        now = anyio.current_time()
        if self._scope is not None and self._paused_until <= now:
            self._paused_until = now + seconds

    @ki_protected
    async def _watch(self, scope: anyio.CancelScope) -> None:
        with scope:
            while not scope.cancel_called:
                await self._sleep()
                await self._wait()
                await self._sleep()  # paused while it has waited
                # Turned off, and perhaps on again, in this very turn of the loop: another task has
                # taken over.
                if not scope.cancel_called:
                    self._call()

    async def _sleep(self) -> None:
        if self._paused_until > anyio.current_time():
            await anyio.sleep_until(self._paused_until)
