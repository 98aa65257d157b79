"""A worker in an interpreter of its own, in the process of the run: a ``SocketWorker``.

Invariants:
- When the pool closes its end of the socket, everything here ends, as soon as the function that is
  at work returns. Nothing can end that one: the interpreter shares its process with the run.
"""

from __future__ import annotations

import socket

from ._remote_context import forward_logs
from ._sending import new_main
from ._socket_worker import MARK_SIZE, SocketWorker


def work(descriptor: int) -> None:
    """Be a worker of the pool at the other end of this socket.

    Args:
        descriptor: The socket. It is closed then.
    """
    new_main()
    forward_logs()
    with socket.socket(fileno=descriptor) as sock:
        # An interpreter doesn't die alone, so nobody asks what it was at.
        mark = memoryview(bytearray(MARK_SIZE)).cast("Q")
        # Interpreters have no daemon threads.
        worker = SocketWorker(sock, mark, _nothing, is_daemon=False)
        worker.run()
        worker.close()


def _nothing() -> None:
    pass
