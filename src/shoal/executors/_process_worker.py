"""A worker process: a ``SocketWorker`` whose lane is the main thread.

Invariants:
- The process ends as soon as either of its threads finds the other end of the socket closed,
  whatever functions are at work. So nothing is left when the pool's process is killed.
"""

from __future__ import annotations

import atexit
import mmap
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import NoReturn

from ._remote_context import forward_logs
from ._sending import new_main
from ._socket_worker import MARK_SIZE, SocketWorker


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
    shared = mmap.mmap(mark, MARK_SIZE)
    os.close(mark)
    SocketWorker(socket.socket(fileno=descriptor), memoryview(shared).cast("Q"), _end).run()
    # Functions of `atexit`, as at the end of any Python, but no wait for threads.
    with suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # a stream that the user closed
            stream.flush()
    os._exit(0)


def _end() -> NoReturn:
    """End the process, and with it all that functions have started in its group."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def ignore(*_: object) -> None:
    """Ignore a signal, without passing that on to programs that are started from here."""
