"""A worker process from inside: who reads its socket."""

# pyright: reportPrivateUsage=false
# Which of two threads is first can be decided only in here.

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from shoal.executors._frames import encode
from shoal.executors._process_worker import MARK_SIZE, _ProcessWorker
from shoal.executors._worker import WorkerCore

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memfd_create")


@pytest.fixture
def pool() -> Iterator[tuple[socket.socket, _ProcessWorker]]:
    ours, theirs = socket.socketpair()
    mark = os.memfd_create("mark")
    os.truncate(mark, MARK_SIZE)
    with ours, theirs:
        worker = _ProcessWorker(theirs, mark)
        worker._core = WorkerCore(lambda batch: None)
        yield ours, worker
        worker._core.close()


def test_a_call_that_the_reader_takes_is_not_forgotten(
    pool: tuple[socket.socket, _ProcessWorker], monkeypatch: pytest.MonkeyPatch
):
    _, worker = pool
    monkeypatch.setattr(worker, "_read", lambda: pytest.fail("it waits for another message"))
    # The lane has found its queue empty, and before it reads, the reader has taken this.
    worker._core._lane.put(None)
    worker._receive()  # returns, and the lane looks into its queue again
    assert worker._core.has_work


def test_without_a_call_the_lane_reads(pool: tuple[socket.socket, _ProcessWorker]):
    ours, worker = pool
    assert not worker._core.has_work
    for piece in encode([("stop",)]):
        ours.sendall(piece)
    worker._receive()
    assert worker._core.has_work
