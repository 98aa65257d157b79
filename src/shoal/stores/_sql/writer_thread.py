"""A thread that does one store's writing: all that was asked meanwhile, in one transaction.

Imports what is taken from event loops. Knows nothing of any database.

Invariants:
- What was asked is done in that order, but for what a database may do earlier, see
  ``Database._grouped`` in ``_writing``.
- Where somebody waits, nothing waits for more to come: while one transaction is committed, the
  next one fills.
- Any number of event loops may ask. Each is woken once for all of its that a transaction has done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from math import inf
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar, final

from shoal._concurrency.backend import Backend, Waiter, current_backend

D = TypeVar("D")
T = TypeVar("T")

MOST_JOBS = 1000
"""Saves that may be left for later; further ones are waited for."""


class Database(Protocol):
    """What the thread works on, and nobody else."""

    def open(self) -> None:
        """Begin."""
        ...

    def do(self, jobs: Sequence[Job[Any, Any]]) -> Iterator[Sequence[Job[Any, Any]]]:
        """Do ``jobs``, and leave in each how that went. Raises nothing.

        Yields those that one transaction has done, as soon as it has: they wait for no others.
        """
        ...

    def end_by(self, at: float) -> None:
        """Try nothing again from a time on, by the monotonic clock. Called by event loops."""
        ...

    def keep_up(self) -> float:
        """Do what is due by itself; return when it is next, by the monotonic clock."""
        ...

    def close(self) -> None:
        """End."""
        ...


@final
class Job(Generic[D, T]):
    """What the thread is asked to do. Awaited, it says when that is done, and what came of it."""

    __slots__ = (
        "backend",
        "due",
        "error",
        "is_last",
        "is_light",
        "on_failed",
        "result",
        "waiter",
        "work",
    )

    def __init__(self, work: Callable[[D], T]) -> None:
        """Ask for ``work``, to be done at once."""
        self.work: Callable[[D], T] = work
        self.due: float = 0.0
        """When it has to be begun, by the monotonic clock."""
        self.result: T | None = None
        self.error: Exception | None = None
        self.is_last: bool = False
        self.is_light: bool = False
        """Whether what it writes may go with the machine's power."""
        self.backend: Backend | None = None
        """The event loop that waits for it, if one does."""
        self.waiter: Waiter | None = None
        self.on_failed: Callable[[Exception], None] | None = None
        """Told of the error where nobody waits."""

    def __await__(self) -> Generator[Any, Any, T]:
        """Wait for the end. Cancelled meanwhile, it is done all the same."""
        if self.waiter is not None:
            yield from self.waiter.__await__()
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # no cycle from the exception to this frame
        return self.result  # pyright: ignore[reportReturnType] # as the work has left it


@final
class Writer(threading.Thread, Generic[D]):
    """The thread. It lives until it is closed."""

    def __init__(self, database: Any, name: str) -> None:
        """Start it; if the database can't be opened, all jobs fail with the reason."""
        super().__init__(name=name, daemon=True)
        self._database: Any = database
        self._jobs: SimpleQueue[Job[D, Any]] = SimpleQueue()
        self._later: list[Job[D, Any]] = []  # to be done, but not yet due
        self._owed: dict[object, int] = {}
        self.start()

    # -- called on event loops ------------------------------------------------------------------

    def ask(self, work: Callable[[D], T], *, lightly: bool = False) -> Job[D, T]:
        """Have ``work`` done, with the database and inside of a transaction; await what this is.

        Done ``lightly``, it needn't outlast a loss of power.
        """
        job: Job[D, T] = Job(work)
        job.is_light = lightly
        self._put(job)
        return job

    def stop(self, within: float) -> Job[D, None]:
        """Have it end, once it has done what it was asked; await what this is.

        What fails is tried again for so many seconds at most. A caller that doesn't wait for so
        long leaves the thread to itself.
        """
        self._database.end_by(monotonic() + within)
        job: Job[D, None] = Job(_nothing)
        job.is_last = True
        self._put(job)
        return job

    def _put(self, job: Job[D, Any]) -> None:
        # Not kept in a RunVar, which would never let go of an event loop that it holds itself (see
        # test_a_store_keeps_no_event_loop_that_has_ended).
        backend = job.backend = current_backend()
        job.waiter = backend.waiter()
        self._owed[backend.token] = self._owed.get(backend.token, 0) + 1
        self._jobs.put(job)

    def leave(
        self, work: Callable[[D], object], within: float, on_failed: Callable[[Exception], None]
    ) -> Job[D, Any] | None:
        """Have ``work`` begun within some seconds; nobody needs to wait for it.

        Where too much is left already, return what to await all the same. Otherwise ``on_failed``
        is called, by the thread, if it fails.
        """
        if self._jobs.qsize() + len(self._later) >= MOST_JOBS:
            return self.ask(work)
        job: Job[D, Any] = Job(work)
        job.due, job.on_failed = monotonic() + within, on_failed
        self._jobs.put(job)
        return None

    def owes(self, token: object) -> bool:
        """Tell whether tasks of an event loop wait for it. Called by that loop's thread."""
        return bool(self._owed.get(token))

    def _release(self, token: object, jobs: Sequence[Job[D, Any]]) -> None:
        self._owed[token] -= len(jobs)
        if not self._owed[token]:
            del self._owed[token]
        for job in jobs:
            waiter = job.waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    # -- the thread's own -----------------------------------------------------------------------

    def run(self) -> None:
        """Work until it is told to stop."""
        database = self._database
        failure: Exception | None = None
        try:
            database.open()
        except Exception as error:  # noqa: BLE001 # every job's
            failure = error
        while True:
            self._gather(inf if failure else database.keep_up())
            jobs, self._later = self._later, []
            last = jobs.pop() if jobs and jobs[-1].is_last else None
            if failure is not None:
                for job in jobs:
                    job.error = failure
            elif last is None and min((job.due for job in jobs), default=inf) > monotonic():
                self._later = jobs
                continue
            elif jobs:
                for done in database.do(jobs):
                    self._hand_back(done)
                jobs = ()
            self._hand_back(jobs)
            if last is not None:
                database.close()
                self._hand_back((last,))
                return

    def _gather(self, until: float) -> None:
        """Collect jobs until one is due, the last has come, or that time has."""
        later = self._later
        due = min((job.due for job in later), default=inf)
        try:
            wait = min(due, until) - monotonic()
            job = self._jobs.get(timeout=max(wait, 0.0)) if wait < inf else self._jobs.get()
            later.append(job)
            while not job.is_last:
                job = self._jobs.get_nowait()
                later.append(job)
        except Empty:  # the time has come, or there is nothing more at the moment
            return

    def _hand_back(self, jobs: Sequence[Job[D, Any]]) -> None:
        waiting: dict[object, list[Job[D, Any]]] = {}
        for job in jobs:
            if job.backend is not None:
                waiting.setdefault(job.backend.token, []).append(job)
            elif job.error is not None and job.on_failed is not None:
                job.on_failed(job.error)
        for token, done in waiting.items():
            backend = done[0].backend
            assert backend is not None
            try:
                backend.call_soon(partial(self._release, token, done))
            except RuntimeError:  # that loop has ended, and so has whoever waited
                self._owed.pop(token, None)  # which would keep the loop


def _nothing(_: object) -> None:
    """Stand in for the work of the last job."""
