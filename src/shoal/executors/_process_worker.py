"""A worker process: ``WorkerCore`` at the end of a socket.

The main thread is the lane. A thread reads the socket, and ends the process as soon as the other
end is closed, whatever functions are at work: so nothing is left when the pool's process is killed.
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
from typing import Any, NoReturn, final

from . import _messages as m
from ._frames import FrameReader, encode
from ._sending import new_main
from ._worker import WorkerCore

TICK = 5
"""Milliseconds after which answers are sent that a long call in the lane holds up."""
IDLE_TICK = 20
"""Milliseconds between looks, once one has found nothing to send. Each costs the lane the
interpreter's lock for a moment."""
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

    def run(self) -> NoReturn:
        """Read what the pool says first, then call functions until it says to stop."""
        batches: list[list[m.Message]] = []
        while not batches:
            batches = self._read()
        setup: dict[str, Any] = batches[0].pop(0)[1]
        sys.path[:] = setup["path"]
        sys.argv[:] = setup["argv"]
        core = WorkerCore(self._send, initializer=setup["initializer"], mark=self._set_mark)
        for batch in batches:
            core.handle(batch)
        reader = threading.Thread(target=self._read_all, args=(core,), name="shoal worker reader")
        reader.daemon = True
        reader.start()
        core.run()
        # Functions of `atexit`, as at the end of any Python, but no wait for threads.
        with suppress(Exception):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(0)

    def _set_mark(self, call: int) -> None:
        self._mark[0] = call

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

    def _read_all(self, core: WorkerCore) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        tick = TICK
        while True:
            if poll.poll(tick if core.is_busy else None):
                for batch in self._read():
                    core.handle(batch)
                tick = TICK
            else:
                tick = TICK if core.tick() else IDLE_TICK


def _end() -> NoReturn:
    """End the process, and with it all that functions have started in its group."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def ignore(*_: object) -> None:
    """Ignore a signal, without passing that on to programs that are started from here."""
