"""A worker at the end of a socket from inside: which of its threads reads it."""

# pyright: reportPrivateUsage=false
# Which of two threads is first can be decided only in here.

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from shoal.executors._frames import encode
from shoal.executors._socket_worker import MARK_SIZE, SocketWorker
from shoal.executors._worker import WorkerCore


@pytest.fixture
def pool() -> Iterator[tuple[socket.socket, SocketWorker]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = SocketWorker(theirs, memoryview(bytearray(MARK_SIZE)).cast("Q"), lambda: None)
        worker._core = WorkerCore(lambda batch: None)
        yield ours, worker
        worker._core.close()


def test_a_call_that_the_reader_takes_is_not_forgotten(
    pool: tuple[socket.socket, SocketWorker], monkeypatch: pytest.MonkeyPatch
):
    _, worker = pool
    monkeypatch.setattr(worker, "_read", lambda: pytest.fail("it waits for another message"))
    # The lane has found its queue empty, and before it reads, the reader has taken this.
    worker._core._lane.put(None)
    worker._receive()  # returns, and the lane looks into its queue again
    assert worker._core.has_work


def test_without_a_call_the_lane_reads(pool: tuple[socket.socket, SocketWorker]):
    ours, worker = pool
    assert not worker._core.has_work
    for piece in encode([("stop",)]):
        ours.sendall(piece)
    worker._receive()
    assert worker._core.has_work
