"""Functions that are called when a socket is ready."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import anyio
import pytest

from shoal._concurrency.backend import current_backend
from shoal.executors._readiness import Readiness
from shoal.testing import no_leaks

pytestmark = pytest.mark.realtime


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


PAUSE = 0.02


@pytest.mark.parametrize("is_late", [False, True], ids=["in_the_call", "later"])
async def test_after_a_pause_it_is_called_again(
    anyio_backend: object, pair: tuple[socket.socket, socket.socket], is_late: bool
):
    ours, theirs = pair
    backend = current_backend()
    read: list[bytes] = []
    came = anyio.Event()
    paused_at = 0.0

    def take() -> None:
        nonlocal came
        try:
            read.append(ours.recv(100))
        except BlockingIOError:  # nothing came in the pause
            return
        if not is_late:
            pause()
        came.set()
        came = anyio.Event()

    def pause() -> None:
        nonlocal paused_at
        if len(read) == 1:
            paused_at = backend.clock()
            ready.pause(PAUSE)

    async with no_leaks(), anyio.create_task_group() as tasks:
        ready = Readiness(
            ours, backend, tasks.start_soon, on_readable=take, on_writable=lambda: None
        )
        ready.pause(PAUSE)  # nothing: it is off
        ready.read(True)
        theirs.send(b"one")
        await came.wait()
        if is_late:
            await anyio.wait_all_tasks_blocked()
            pause()
        theirs.send(b"two")
        await came.wait()
        assert read == [b"one", b"two"]
        assert backend.clock() - paused_at >= PAUSE * 0.99
        theirs.send(b"three")  # called at once again
        await came.wait()
        ready.close()


async def test_turned_off_in_a_pause_it_is_not_called(
    anyio_backend: object, pair: tuple[socket.socket, socket.socket]
):
    ours, theirs = pair
    read: list[bytes] = []
    came = anyio.Event()

    def take() -> None:
        read.append(ours.recv(100))
        if len(read) == 1:
            ready.pause(60)
        came.set()

    async with no_leaks(), anyio.create_task_group() as tasks:
        ready = Readiness(
            ours, current_backend(), tasks.start_soon, on_readable=take, on_writable=lambda: None
        )
        ready.read(True)
        theirs.send(b"one")
        await came.wait()
        ready.read(False)
        theirs.send(b"two")
        came = anyio.Event()
        await anyio.wait_all_tasks_blocked()
        ready.read(True)  # what came meanwhile is there, and a pause ends when it is turned off
        with anyio.fail_after(5):
            await came.wait()
        assert read == [b"one", b"two"]
        ready.close()


async def test_it_may_be_turned_off_where_it_is_called_after_a_pause(
    anyio_backend: object, pair: tuple[socket.socket, socket.socket]
):
    ours, theirs = pair
    read: list[bytes] = []
    over = anyio.Event()

    def take() -> None:
        read.append(ours.recv(100))
        if len(read) == 1:
            ready.pause(0.001)
            theirs.send(b"two")
        else:
            ready.read(False)
            over.set()

    async with no_leaks(), anyio.create_task_group() as tasks:
        ready = Readiness(
            ours, current_backend(), tasks.start_soon, on_readable=take, on_writable=lambda: None
        )
        ready.read(True)
        theirs.send(b"one")
        await over.wait()
        theirs.send(b"three")
        await anyio.wait_all_tasks_blocked()
        assert read == [b"one", b"two"]
        ready.close()
