"""Start processes, and carry batches of messages to and from them.

Invariants:
- A process that was started is ended by the launcher, or by the end of its socket, or by us; see
  ``_launcher``. No thread and no lock of this process is ever copied into one.
- Descriptors are looked at only while a worker starts or has calls.
- A worker has died when the launcher says so, and everything that it sent before was read.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count
from typing import cast, final

import anyio
from anyio import CapacityLimiter, to_thread

from shoal._concurrency.cancellation import ki_protected

from ._channel import Channel
from ._launcher import ENDED, KILL, RECORD, START, STARTED, command, from_record, to_record
from ._links import OnBatch, OnDied
from ._messages import Message
from ._port import PoolHost
from ._readiness import Readiness

logger = logging.getLogger("shoal")

MARK_SIZE = 8
ORPHANED = "the process that had started it has ended"
ENDING = 5.0
"""Seconds for the launcher to end, which has nothing to do for that but to kill its children."""


@final
class ProcessTransport:
    """The processes of one pool."""

    def __init__(self, host: PoolHost, initializer: bytes | None, *, is_spawn: bool) -> None:
        """Start nothing yet.

        Args:
            host: The runtime.
            initializer: The pickled initializer and its arguments.
            is_spawn: Whether each process is a new Python, and not forked from the launcher.
        """
        self._host = host
        self._initializer = initializer
        self._is_spawn = is_spawn
        self._numbers = count(1)
        self._launcher: _LauncherLink | None = None  # the present one, unless it has died
        self._former: list[_LauncherLink] = []

    def start(self, on_batch: OnBatch, on_died: OnDied) -> ProcessLink:
        """Start a process; see ``Transport.start``."""
        launcher = self._launcher
        if launcher is None or launcher.is_dead:
            if launcher is not None:
                self._former.append(launcher)
            launcher = self._launcher = _LauncherLink(self._host)
        number = next(self._numbers)
        with ExitStack() as opened:
            mark = opened.enter_context(_memory())
            ours, theirs = socket.socketpair()
            opened.callback(theirs.close)
            with ExitStack() as unless_started:
                unless_started.callback(ours.close)
                mapped = mmap.mmap(mark.fileno(), MARK_SIZE)
                link = ProcessLink(
                    number, ours, mapped, launcher, self._host, on_batch=on_batch, on_died=on_died
                )
                launcher.start(link, self._is_spawn, (theirs.fileno(), mark.fileno()))
                unless_started.pop_all()
        link.send([("setup", self._setup())])
        return link

    def _setup(self) -> dict[str, object]:
        return {"path": sys.path, "argv": sys.argv, "initializer": self._initializer}

    async def aclose(self) -> None:
        """End everything; see ``Transport.aclose``."""
        for launcher in (*self._former, self._launcher):
            if launcher is not None:
                await launcher.aclose()


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> tempfile._TemporaryFileWrapper[bytes]:
    """Return a file of ``MARK_SIZE`` bytes that no name leads to."""
    file = cast("tempfile._TemporaryFileWrapper[bytes]", _unnamed())
    file.truncate(MARK_SIZE)
    return file


def _unnamed() -> object:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("shoal"), "r+b")
    return tempfile.TemporaryFile()  # the caller closes it


@final
class _LauncherLink:
    """The launcher, as we reach it."""

    def __init__(self, host: PoolHost) -> None:
        self._host = host
        self._sock, self._theirs = socket.socketpair()
        self._sock.setblocking(False)
        self._ready = Readiness(
            self._sock, host.backend, host.start_task, on_readable=self._read, on_writable=_nothing
        )
        self._links: dict[int, ProcessLink] = {}  # those that have not ended
        self._listening = 0  # links that listen
        self._process: subprocess.Popen[bytes] | None = None
        self._launched = anyio.Event()  # set when it was started, or could not be
        self.is_dead: bool = False
        """Whether it has ended, or could not be started. Never reset."""
        host.start_task(self._launch)

    async def _launch(self) -> None:
        """Start it. In a thread: that blocks until the new process has begun."""
        try:
            self._process = await to_thread.run_sync(self._open, limiter=CapacityLimiter(1))
        except Exception as error:  # noqa: BLE001 # the workers are reported instead
            self._die(f"the process that starts it could not be started: {error}")
        finally:
            self._theirs.close()
            self._launched.set()

    def _open(self) -> subprocess.Popen[bytes]:
        descriptor = self._theirs.fileno()
        # Modules that define actions load these, so workers need them; and they start no threads.
        ours = [name for name in tuple(sys.modules) if name.startswith("shoal._")]
        code = f"from shoal.executors._launcher import launch; launch({descriptor}, *{ours})"
        return subprocess.Popen(  # noqa: S603 # this Python
            command(code, sys.path),
            stdin=subprocess.DEVNULL,
            pass_fds=(descriptor,),
            # No signal of a terminal reaches it or its workers.
            start_new_session=True,
        )

    def start(self, link: ProcessLink, is_spawn: bool, descriptors: tuple[int, int]) -> None:
        """Have it start a worker. It need not run yet."""
        socket.send_fds(self._sock, [to_record(START, link.number, is_spawn)], descriptors)
        self._links[link.number] = link

    def kill(self, number: int) -> None:
        """Have it kill a worker, with its group."""
        with suppress(OSError):  # it has died, and we know or are about to
            self._sock.send(to_record(KILL, number))

    def listen(self, is_on: bool) -> None:
        """Count a link that listens, or no longer does."""
        self._listening += 1 if is_on else -1
        if not self.is_dead:
            self._ready.read(self._listening > 0)

    @ki_protected
    def _read(self) -> None:
        try:
            data = self._sock.recv(64 * RECORD)
        except BlockingIOError:  # nothing has come yet
            return
        except OSError:
            data = b""
        for at in range(0, len(data), RECORD):
            kind, number, more = from_record(data[at : at + RECORD])
            link = self._links.get(number)
            if kind == STARTED and link is not None:
                link.pid = more
            elif kind == ENDED and link is not None:
                link.on_ended(more)
        if not data:
            self._die(ORPHANED)

    def forget(self, number: int) -> None:
        """Forget a worker that has ended."""
        self._links.pop(number, None)

    def _die(self, reason: str) -> None:
        if self.is_dead:
            return
        self.is_dead = True
        self._ready.close()
        # A process that the program has forked holds a copy of the socket, so closing it alone
        # tells the launcher nothing; see test_a_copy_of_the_program_does_not_hold_up_the_closing.
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        for link in list(self._links.values()):
            link.on_orphaned(reason)

    async def aclose(self) -> None:
        """Let it end, and all workers with it; wait for that."""
        with anyio.move_on_after(ENDING):
            await self._launched.wait()
        self._die("the pool is closed")
        process = self._process
        if process is not None and process.poll() is None:
            await to_thread.run_sync(_wait_for, process, limiter=CapacityLimiter(1))


def _wait_for(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(ENDING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _nothing() -> None:
    pass


@final
class ProcessLink:
    """A worker process, as its pool reaches it."""

    def __init__(
        self,
        number: int,
        sock: socket.socket,
        mark: mmap.mmap,
        launcher: _LauncherLink,
        host: PoolHost,
        *,
        on_batch: OnBatch,
        on_died: OnDied,
    ) -> None:
        self.number: int = number
        self.pid: int = 0
        """Its process id; 0 before the launcher has told it."""
        self._mark = mark
        self._launcher = launcher
        self._on_died = on_died
        self._call_soon = host.backend.call_soon
        self._channel = Channel(sock, host, on_batch=on_batch, on_end=self._end_if_over)
        self._is_listening = False
        self._reason: str | None = None  # why it has ended, once the launcher has said so
        self._is_over = False

    @property
    def name(self) -> str:
        """How people find it."""
        return f"worker process {self.pid}" if self.pid else f"worker process no. {self.number}"

    def send(self, batch: list[Message]) -> None:
        """Send a batch; see ``Link.send``."""
        self._channel.send(batch)

    def kill(self) -> None:
        """End it at once; see ``Link.kill``."""
        self._launcher.kill(self.number)

    def listen(self, is_on: bool) -> None:
        """Look for batches, or no more; see ``Link.listen``."""
        if is_on != self._is_listening and not self._is_over:
            self._is_listening = is_on
            self._launcher.listen(is_on)
            self._channel.listen(is_on)
            if is_on and self._launcher.is_dead:
                self._call_soon(
                    partial(self.on_orphaned, "the process that had started it has ended")
                )

    def pause(self, seconds: float) -> None:
        """Look for nothing for so long; see ``Link.pause``."""
        self._channel.pause(seconds)

    def on_ended(self, reason: str) -> None:
        """The launcher says that it has ended, and why."""
        self._reason = reason
        # What it has sent is still to be read. Nothing in its group holds the socket any more, so
        # the end of that is near.
        self._channel.drain()
        self._end_if_over()

    def on_orphaned(self, reason: str) -> None:
        """The launcher has died: nothing is known of the worker any more, so it is ended."""
        if self._is_over:
            return
        if self.pid and not self._channel.is_read:
            with suppress(OSError):  # it has ended already
                os.killpg(self.pid, signal.SIGKILL)
        self._channel.drain()
        self._reason = reason
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self._is_over or self._reason is None or not self._channel.is_read:
            return
        if self._is_listening:
            self._launcher.listen(False)
        self._is_over = True
        self._channel.close()
        self._launcher.forget(self.number)
        self._on_died(self._reason)
        self._mark.close()

    def begun(self) -> Collection[int]:
        """Return the call of the lane that it was at; see ``Link.begun``."""
        call = int.from_bytes(self._mark[:MARK_SIZE], sys.byteorder)
        return (call,) if call else ()
