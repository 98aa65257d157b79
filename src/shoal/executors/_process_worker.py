"""A worker process: ``WorkerCore`` at the end of a socket.

The main thread is the lane. It reads the socket itself when it has nothing to do, so a quick call
wakes no other thread. A second thread, the reader, looks at the socket while the lane is at work.

Invariants:
- One thread at a time reads, and handles what it has read before another one reads on.
- The process ends as soon as either thread finds the other end of the socket closed, whatever
  functions are at work. So nothing is left when the pool's process is killed.
"""

from __future__ import annotations

import atexit
import mmap
import os
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn, cast, final

from . import _messages as m
from ._frames import FrameReader, encode
from ._remote_context import forward_logs
from ._sending import new_main
from ._worker import WorkerCore

LOOK = 0.05
"""Seconds between two looks at the socket while the lane is at work and nothing is urgent. Each
costs the lane some 80 microseconds, in which another thread has the interpreter."""
MARK_SIZE = 8


def work(descriptor: int, mark: int) -> NoReturn:
    """Be a worker of the pool at the other end of this socket; end the process then.

    Args:
        descriptor: The socket.
        mark: A file in memory, shared with the pool: the call that the lane is at.
    """
    # A Ctrl-C in a terminal is the business of the pool's process. Not SIG_IGN: programs that
    # functions start would inherit it.
    signal.signal(signal.SIGINT, ignore)
    new_main()
    forward_logs()
    _ProcessWorker(socket.socket(fileno=descriptor), mark).run()


@final
class _ProcessWorker:
    def __init__(self, sock: socket.socket, mark: int) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._frames = FrameReader(sock)
        shared = mmap.mmap(mark, MARK_SIZE)
        os.close(mark)
        self._mark = memoryview(shared).cast("Q")
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

    def run(self) -> NoReturn:
        """Read what the pool says first, then call functions until it says to stop."""
        batches: list[list[m.Message]] = []
        while not batches:
            batches = self._read()
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
        )
        for batch in batches:
            core.handle(batch)
        threading.Thread(target=self._look, name="shoal worker reader", daemon=True).start()
        core.run()
        # Functions of `atexit`, as at the end of any Python, but no wait for threads.
        with suppress(Exception):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # a stream that the user closed
                stream.flush()
        os._exit(0)

    def _set_mark(self, call: int) -> None:
        self._mark[0] = call
        if call and self._is_asleep:
            self._kick.set()

    def _send(self, batch: list[m.Message]) -> None:
        try:
            for piece in encode(batch):
                self._sock.sendall(piece)
        except OSError:
            _end()

    def _read(self) -> list[list[m.Message]]:
        try:
            batches = self._frames.read()
        except OSError:
            batches = None
        if batches is None:
            _end()
        return batches

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
        while True:
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


def _end() -> NoReturn:
    """End the process, and with it all that functions have started in its group."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def ignore(*_: object) -> None:
    """Ignore a signal, without passing that on to programs that are started from here."""
