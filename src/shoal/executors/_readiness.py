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
        self._add: Callable[[], object] = partial(getattr(loop, f"add_{what}"), sock, call)
        self._remove: Callable[[], object] = partial(getattr(loop, f"remove_{what}"), sock)
        self._is_on = False

    def turn(self, is_on: bool) -> None:
        if is_on != self._is_on:
            self._is_on = is_on
            (self._add if is_on else self._remove)()


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

    def turn(self, is_on: bool) -> None:
        if is_on == (self._scope is not None):
            return
        if self._scope is None:
            self._scope = anyio.CancelScope()
            self._start_task(partial(self._watch, self._scope))
        else:
            self._scope.cancel()
            self._scope = None

    @ki_protected
    async def _watch(self, scope: anyio.CancelScope) -> None:
        with scope:
            while not scope.cancel_called:
                await self._wait()
                # Turned off, and perhaps on again, in this very turn of the loop: another task has
                # taken over.
                if not scope.cancel_called:
                    self._call()
