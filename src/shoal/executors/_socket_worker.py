"""A worker at the end of a socket: ``WorkerCore``, and the two threads that read what it is sent.

The thread that calls ``SocketWorker.run`` is the lane. It reads the socket itself when it has
nothing to do, so a quick call wakes no other thread. A second thread, the reader, looks at the
socket while the lane is at work.

Invariants:
- One thread at a time reads, and handles what it has read before another one reads on.
- As soon as either thread finds the other end of the socket closed, ``on_closed`` is called,
  whatever functions are at work.
"""

from __future__ import annotations

import select
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, cast, final

from . import _messages as m
from ._frames import FrameReader, encode
from ._worker import WorkerCore

LOOK = 0.05
"""Seconds between two looks at the socket while the lane is at work and nothing is urgent. Each
costs the lane some 80 microseconds, in which another thread has the interpreter."""
MARK_SIZE = 8


@final
class SocketWorker:
    """Reads what the pool says, and calls functions."""

    def __init__(
        self,
        sock: socket.socket,
        mark: memoryview,
        on_closed: Callable[[], None],
        *,
        is_daemon: bool = True,
    ) -> None:
        """Read nothing yet.

        Args:
            sock: The socket.
            mark: One number, which the pool can see: the call that the lane is at.
            on_closed: Called in any thread, perhaps several times, when the pool has closed the
                other end. If it returns, the worker stops as soon as its function has ended.
            is_daemon: Whether threads are daemons, so that nobody has to end them.
        """
        sock.setblocking(True)
        self._sock = sock
        self._frames = FrameReader(sock)
        self._mark = mark
        self._on_closed = on_closed
        self._is_daemon = is_daemon
        self._is_over = False  # whether the reader has nothing more to read; never reset
        self._reader: threading.Thread | None = None
        # Held by the thread that reads the socket and handles what it has read.
        self._reading = threading.Lock()
        self._poll = select.poll()  # of the lane alone
        self._poll.register(sock, select.POLLIN)
        # Set to make the reader look at the socket, or at what is urgent.
        self._kick = threading.Event()
        # Whether the reader waits until the lane is at work. Set by the reader, before it looks at
        # the lane a last time; read by the lane, after it has set the mark.
        self._is_asleep = False
        self._core: WorkerCore = cast("WorkerCore", None)  # set by `run`, before the reader starts

    def run(self) -> None:
        """Read what the pool says first, then call functions until it says to stop."""
        batches: list[list[m.Message]] = []
        while not batches:
            batches = self._read()
            if self._is_over:
                return
        setup: dict[str, Any] = batches[0].pop(0)[1]
        sys.path[:] = setup["path"]
        sys.argv[:] = setup["argv"]
        core = self._core = WorkerCore(
            self._send,
            initializer=setup["initializer"],
            mark=self._set_mark,
            receive=self._receive,
            glance=self._glance,
            hurry=self._kick.set,
            is_daemon=self._is_daemon,
        )
        for batch in batches:
            core.handle(batch)
        self._reader = threading.Thread(
            target=self._look, name="shoal worker reader", daemon=self._is_daemon
        )
        self._reader.start()
        core.run()

    def close(self) -> None:
        """End the threads, and wait for them. Call this after ``run`` has returned."""
        self._is_over = True
        self._kick.set()
        if self._reader is not None:
            self._reader.join()
            self._core.close()

    def _set_mark(self, call: int) -> None:
        self._mark[0] = call
        if call and self._is_asleep:
            self._kick.set()

    def _send(self, batch: list[m.Message]) -> None:
        try:
            for piece in encode(batch):
                self._sock.sendall(piece)
        except OSError:
            self._close()

    def _close(self) -> None:
        """The pool has closed the other end: nothing is read any more, and nothing sent."""
        self._is_over = True
        self._on_closed()

    def _read(self) -> list[list[m.Message]]:
        try:
            batches = self._frames.read()
        except OSError:
            batches = None
        if batches is not None:
            return batches
        self._close()
        return [[(m.STOP,)]]

    def _receive(self) -> None:
        """Wait for messages and handle them, in the lane."""
        with self._reading:
            # The reader may have handled the next call since the lane found that it has none. Only
            # under the lock is that certain: without this look, the lane waits for a message that
            # has come, and with it the run; see test_a_call_that_the_reader_takes_is_not_forgotten.
            if self._core.has_work:
                return
            for batch in self._read():
                self._core.handle(batch)

    def _glance(self) -> None:
        """Handle what has come, in the lane, between two calls that are not quick."""
        if self._poll.poll(0) and self._reading.acquire(blocking=False):
            try:
                if self._poll.poll(0):  # the reader may have read it
                    for batch in self._read():
                        self._core.handle(batch)
            finally:
                self._reading.release()

    def _look(self) -> None:
        """Handle messages while the lane is at work. When it isn't, it handles them itself.

        Waking another thread for each message would cost the lane more than the message.
        """
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        core, kick = self._core, self._kick
        while not self._is_over:
            is_urgent = core.is_urgent
            if not is_urgent:
                self._is_asleep = True
                if self._mark[0]:
                    self._is_asleep = False  # or the lane would wake it for each call
                    kick.wait(LOOK)
                else:
                    kick.wait()
                    self._is_asleep = False
                kick.clear()
            if poll.poll(1000 * LOOK if is_urgent else 0) and self._reading.acquire(blocking=False):
                try:
                    # Looked at again, now that the lane can't read what was there.
                    if poll.poll(0):
                        for batch in self._read():
                            core.handle(batch)
                finally:
                    self._reading.release()
            core.tick()
        # The lane may be at work for ever. A loop that waited for it would hold up the end of the
        # interpreter; see test_a_program_ends_although_a_function_does_not.
        core.close_soon()
