"""``Channel``: the pool's end of a socket to a worker, on the event loop."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import final

from shoal._concurrency.cancellation import ki_protected

from ._frames import FrameReader, Piece, encode
from ._links import OnBatch
from ._messages import Message
from ._port import PoolHost
from ._readiness import Readiness

AT_ONCE = 1 << 20
"""Bytes that are sent to a worker in one turn of the loop, more or less."""


@final
class Channel:
    """Carries batches to and from one worker."""

    def __init__(
        self, sock: socket.socket, host: PoolHost, *, on_batch: OnBatch, on_end: Callable[[], None]
    ) -> None:
        """Look for nothing yet.

        Args:
            sock: Our end of the socket. ``close`` closes it.
            host: The runtime.
            on_batch: Called with each batch that arrives.
            on_end: Called when the other end was closed and everything was read, unless that is
                found out by ``drain``.
        """
        sock.setblocking(False)
        self._sock = sock
        self._on_batch, self._on_end = on_batch, on_end
        self._frames = FrameReader(sock)
        self._pieces: deque[Piece] = deque()  # what the socket had no room for
        self._ready = Readiness(
            sock, host.backend, host.start_task, on_readable=self._read, on_writable=self._write
        )
        self.is_read: bool = False
        """Whether the end of what the worker sends was reached. Never reset."""
        self._is_closed = False

    def send(self, batch: list[Message]) -> None:
        """Send a batch; see ``Link.send``."""
        if not self._is_closed:
            self._pieces.extend(encode(batch))
            self._write()

    @ki_protected
    def _write(self) -> None:
        """Send what the socket has room for."""
        pieces, sent = self._pieces, 0
        try:
            while pieces and sent < AT_ONCE:
                piece = pieces[0]
                count = self._sock.send(piece)
                sent += count
                if count == len(piece):
                    pieces.popleft()
                else:
                    pieces[0] = memoryview(piece)[count:]
        except BlockingIOError:  # the rest is sent when there is room
            pass
        except OSError:  # it has died, which is noticed where it is read
            pieces.clear()
        self._ready.write(bool(pieces))

    def listen(self, is_on: bool) -> None:
        """Look for batches, or no more; see ``Link.listen``."""
        self._ready.read(is_on and not self.is_read)

    def pause(self, seconds: float) -> None:
        """Look for nothing for so long; see ``Link.pause``."""
        self._ready.pause(seconds)

    @ki_protected
    def _read(self) -> None:
        try:
            batches = self._frames.read()
        except BlockingIOError:  # nothing has come yet
            return
        except OSError:
            batches = None
        if batches is None:
            self.is_read = True
            self._ready.read(False)
            self._on_end()
            return
        for batch in batches:
            self._on_batch(batch)

    def drain(self) -> None:
        """Read everything that was sent, after the worker has ended."""
        while not self.is_read and not self._is_closed:
            try:
                batches = self._frames.read()
            except OSError:  # also if there is no more for now
                batches = None
            if batches is None:
                self.is_read = True
            else:
                for batch in batches:
                    self._on_batch(batch)

    def close(self) -> None:
        """Close the socket, and forget what was not sent."""
        self._is_closed = True
        self._ready.close()
        self._sock.close()
        self._pieces.clear()
