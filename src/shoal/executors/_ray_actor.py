"""The worker at Ray's end: an actor that calls functions, as messages say.

An actor has three threads besides those of Ray and of ``WorkerCore``: the lane, which calls plain
functions one after another, and one for each of its concurrency groups. ``submit`` takes batches in
one of them, so a cancellation is taken while functions are at work. ``events`` is one call in the
other, for as long as the actor lives, and streams batches back.

The methods are plain ones, because Ray's own coroutines would only add a hop: a batch there and
back takes 1.0 ms with threads, and 1.6 ms with an actor of coroutines. Coroutine functions of the
user run in the loop of ``WorkerCore``.

Invariants:
- ``submit`` is idempotent, and takes batches by their numbers: Ray may repeat a call whose answer
  it has lost, and lets a large batch arrive after a small one that was sent later.
- Nothing here is raised: what happens to a function is a message, and what happens to the actor
  ends it.
"""

from __future__ import annotations

import os
import pickle
import platform
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, final

from shoal._version import __version__

from . import _messages as m
from ._sending import PROTOCOL, load, new_main
from ._worker import WorkerCore

TICK = 0.005
"""Seconds between two looks at what a long call holds up; see ``WorkerCore.tick``."""
SWITCH = 0.0005
"""Seconds for which a thread may keep the interpreter while another one waits: a tenth of what
Python does by itself. A batch takes two changes of threads, so a lane that computes would hold each
of them up by 10 ms, ten times what the way through Ray takes."""


@final
class RayActor:
    """One worker. Ray makes it in a process of its own."""

    def __init__(self, paths: list[str], initializer: bytes | None) -> None:
        """Start nothing yet.

        Args:
            paths: The ``sys.path`` of the pool's process. What exists here too is searched last.
            initializer: See ``WorkerCore``.
        """
        sys.path.extend(one for one in paths if one not in sys.path and Path(one).exists())
        sys.setswitchinterval(SWITCH)
        new_main()
        self._out: SimpleQueue[list[m.Message] | None] = SimpleQueue()
        self._core = WorkerCore(self._out.put, initializer=initializer)
        self._next = 1  # the number of the next batch
        self._early: dict[int, bytes] = {}  # batches that have overtaken it
        self._is_waiting = False  # whether `events` waits without looking up

    def submit(self, number: int, data: bytes) -> None:
        """Take a batch. Called by one thread at a time."""
        if number < self._next:
            return
        self._early[number] = data
        while (batch := self._early.pop(self._next, None)) is not None:
            self._next += 1
            self._core.handle(load(batch))
        if self._is_waiting:
            self._out.put([])  # calls are at work now, so `events` has to tick

    def events(self) -> Iterator[bytes]:
        """Yield what identifies this worker, then batches of messages.

        Functions are called meanwhile. The stream ends after the pool has said to stop.
        """
        yield pickle.dumps(about(), PROTOCOL)
        threading.Thread(target=self._run, name="shoal lane", daemon=True).start()
        while (batch := self._take()) is not None:
            yield pickle.dumps(batch, PROTOCOL)

    def _run(self) -> None:
        self._core.run()
        self._core.close()
        self._out.put(None)

    def _take(self) -> list[m.Message] | None:
        """Wait for messages to be sent, and return all that there are; None at the end."""
        while True:
            found: list[m.Message] = []
            batch = self._wait()
            while batch is not None:
                found += batch
                try:
                    batch = self._out.get_nowait()
                except Empty:  # that is all for now
                    break
            else:
                if not found:
                    return None
                self._out.put(None)  # what was found goes first
            if found:
                return found

    def _wait(self) -> list[m.Message] | None:
        """Return the next batch; an empty one from time to time while calls are at work."""
        # In this order: `submit` looks at the flag after it has made the core busy.
        self._is_waiting = True
        if not self._core.is_busy:
            batch = self._out.get()
            self._is_waiting = False
            return batch
        self._is_waiting = False
        try:
            return self._out.get(timeout=TICK)
        except Empty:
            self._core.tick()
            return []


def about() -> dict[str, Any]:
    """Return what people know a worker by, and what its pool has to agree with."""
    return {"process": os.getpid(), "host": platform.node(), "shoal": __version__}
