"""Start interpreters in threads of this process, and carry batches to and from them.

Invariants:
- An interpreter ends when its end of the socket finds ours closed and its function has returned.
  Until then its thread is left behind, a daemon, so that the program can end.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from itertools import count
from threading import Thread
from typing import Any, final

from anyio import CapacityLimiter, to_thread

from ._channel import Channel
from ._links import OnBatch, OnDied
from ._messages import Message
from ._port import PoolHost

OLDEST = (3, 13)
"""The first Python whose interpreters have locks of their own and may be made by programs."""


JOINING = 1.0
"""Seconds for a thread to end that has nothing left to do."""


@final
class InterpreterTransport:
    """The interpreters of one pool."""

    def __init__(self, host: PoolHost, initializer: bytes | None) -> None:
        """Start nothing yet.

        Args:
            host: The runtime.
            initializer: The pickled initializer and its arguments.
        """
        self._host = host
        self._initializer = initializer
        self._numbers = count(1)
        self._links: list[InterpreterLink] = []

    def start(self, on_batch: OnBatch, on_died: OnDied) -> InterpreterLink:
        """Start an interpreter; see ``Transport.start``."""
        link = InterpreterLink(next(self._numbers), self._host, on_batch=on_batch, on_died=on_died)
        self._links = [one for one in self._links if not one.is_over]
        self._links.append(link)
        link.send(
            [("setup", {"path": sys.path, "argv": sys.argv, "initializer": self._initializer})]
        )
        return link

    async def aclose(self) -> None:
        """Leave behind what has not ended; see ``Transport.aclose``."""
        for link in self._links:
            if link.is_over:
                # The last thing that its thread has done was to say so.
                join = partial(link.thread.join, JOINING)
                await to_thread.run_sync(join, limiter=CapacityLimiter(1))
            else:
                link.leave_behind()


@final
class InterpreterLink:
    """An interpreter, as its pool reaches it."""

    def __init__(self, number: int, host: PoolHost, *, on_batch: OnBatch, on_died: OnDied) -> None:
        self.name: str = f"interpreter {number}"
        """How people find it: its thread has the same name."""
        self.is_over: bool = False
        """Whether it has ended or was left behind. Never reset."""
        self._on_died = on_died
        self._call_soon = host.backend.call_soon
        self._reason: str | None = None  # why it has ended, once it has
        self._sock, theirs = socket.socketpair()
        self._channel = Channel(self._sock, host, on_batch=on_batch, on_end=self._end_if_over)
        # Both belong to the thread from now on: a copy to the interpreter, and the other one to
        # what waits for its end. So the pool has a socket to look at until all is over, and no
        # virtual clock jumps; see test_on_a_virtual_clock_the_end_of_an_interpreter_is_awaited.
        self.thread: Thread = Thread(
            target=self._run, args=(os.dup(theirs.fileno()), theirs), name=self.name, daemon=True
        )
        self.thread.start()

    def _run(self, descriptor: int, theirs: socket.socket) -> None:
        """Be the thread of the interpreter."""
        code = (
            f"import os, sys; sys.path[:] = {sys.path!r}\n"
            f"try: from shoal.executors._interpreter_worker import work\n"
            f"except BaseException: os.close({descriptor}); raise\n"
            f"work({descriptor})"
        )
        try:
            execute = _new_interpreter()
        except BaseException as error:  # noqa: BLE001 # the pool is told
            os.close(descriptor)
            reason = f"{type(error).__name__}: {error}"
        else:
            # The code closes the descriptor. Later it may be another one's.
            try:
                reason = execute(code)
            except BaseException as error:  # noqa: BLE001 # the pool is told
                reason = f"{type(error).__name__}: {error}"
        with suppress(RuntimeError):  # the loop is closed: it was left behind
            self._call_soon(partial(self._on_ended, reason or "it has ended"))
        theirs.close()

    def _on_ended(self, reason: str) -> None:
        self._reason = reason
        self._channel.drain()
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self.is_over or self._reason is None:
            return
        self.is_over = True
        self._channel.close()
        self._on_died(self._reason)

    def send(self, batch: list[Message]) -> None:
        """Send a batch; see ``Link.send``."""
        self._channel.send(batch)

    def listen(self, is_on: bool) -> None:
        """Look for batches, or no more; see ``Link.listen``."""
        if not self.is_over:
            self._channel.listen(is_on)

    def pause(self, seconds: float) -> None:
        """Look for nothing for so long; see ``Link.pause``."""
        self._channel.pause(seconds)

    def begun(self) -> Collection[int]:
        """Return nothing: it ends only if nothing is at work; see ``Link.begun``."""
        return ()

    def kill(self) -> None:
        """Let it end as soon as nothing is at work in it: more is not possible."""
        with suppress(OSError):  # it is closed, or the other end is
            self._sock.shutdown(socket.SHUT_WR)

    def leave_behind(self) -> None:
        """Listen to it no more."""
        self.kill()
        self.is_over = True
        self._channel.close()


def _new_interpreter() -> Callable[[str], str]:
    """Make an interpreter, and return a function that executes code in it and ends it.

    That returns why the code failed, "" if it didn't.
    """
    if sys.version_info >= (3, 14):
        public: Any = importlib.import_module("concurrent.interpreters")
        one: Any = public.create()

        def execute_there(code: str) -> str:
            try:
                one.exec(code)
            except public.ExecutionFailed as error:
                return str(error)
            finally:
                one.close()
            return ""

        return execute_there
    private: Any = importlib.import_module("_interpreters")
    number: Any = private.create()

    def execute(code: str) -> str:
        try:
            failed: Any = private.exec(number, code)
        finally:
            private.destroy(number)
        return "" if failed is None else str(failed.formatted)

    return execute
