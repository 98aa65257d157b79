"""Run one store's writing in a thread: all pending jobs in one transaction.

This module knows no particular database.

Invariants:
- Jobs are done in the order in which they were asked for. A database may do some of them earlier,
  see ``Database._grouped`` in ``writing``.
- If a caller waits for a job, the thread doesn't wait for further ones: jobs that arrive while one
  transaction is committed share the next one.
- Any number of event loops may ask. Each is woken once for all of its jobs in a transaction.
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
"""Saves that may be pending without a caller that waits; callers wait for further ones. The bound
keeps a run that is faster than the disk from filling the memory."""


class Database(Protocol):
    """The database of a writer thread. Only the thread uses it, except for ``end_by``."""

    def open(self) -> None:
        """Open the database."""
        ...

    def do(self, jobs: Sequence[Job[Any, Any]]) -> Iterator[Sequence[Job[Any, Any]]]:
        """Do ``jobs``, and set the result or error of each. Raises nothing.

        Yields the jobs of each transaction as soon as it has ended, so that their callers don't
        wait for the others.
        """
        ...

    def end_by(self, at: float) -> None:
        """Retry nothing after that moment, by the monotonic clock. Called by event loops."""
        ...

    def keep_up(self) -> float:
        """Do periodic work that is due; return when it is due next, by the monotonic clock."""
        ...

    def close(self) -> None:
        """Close the database."""
        ...


@final
class Job(Generic[D, T]):
    """A piece of work for the thread. Awaiting it waits for its end, and returns its result."""

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
        """Create a job that is due at once."""
        self.work: Callable[[D], T] = work
        self.due: float = 0.0
        """The latest moment for its start, by the monotonic clock."""
        # The thread sets one of the two, and afterwards wakes the waiter.
        self.result: T | None = None
        self.error: Exception | None = None
        self.is_last: bool = False
        """Whether the thread ends with this job."""
        self.is_light: bool = False
        """Whether its changes may be lost if the machine loses power."""
        self.backend: Backend | None = None
        """The event loop that waits for it; None if none does."""
        self.waiter: Waiter | None = None
        self.on_failed: Callable[[Exception], None] | None = None
        """Called with the error, in the thread, if no event loop waits."""

    def __await__(self) -> Generator[Any, Any, T]:
        """Wait for the end. If the caller is cancelled, the job is done all the same."""
        if self.waiter is not None:
            yield from self.waiter.__await__()
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # breaks the traceback cycle
        return self.result  # pyright: ignore[reportReturnType] # the work has returned a T


@final
class Writer(threading.Thread, Generic[D]):
    """The thread that writes. It lives until ``stop`` is called."""

    def __init__(self, database: Any, name: str) -> None:
        """Start the thread. If the database can't be opened, all jobs fail with the reason."""
        super().__init__(name=name, daemon=True)
        self._database: Any = database
        self._jobs: SimpleQueue[Job[D, Any]] = SimpleQueue()
        # Jobs that the thread has taken from the queue and that are not due yet. It belongs to the
        # thread; event loops read only its length.
        self._later: list[Job[D, Any]] = []
        # The number of unfinished jobs by token of the event loop that waits; no entry for 0. Each
        # loop changes only its own entry, in its own thread.
        self._owed: dict[object, int] = {}
        self.start()

    # -- called on event loops ------------------------------------------------------------------

    def ask(self, work: Callable[[D], T], *, lightly: bool = False) -> Job[D, T]:
        """Do ``work`` with the database, inside of a transaction; await the job for its result.

        With ``lightly``, its changes may be lost if the machine loses power.
        """
        job: Job[D, T] = Job(work)
        job.is_light = lightly
        self._put(job)
        return job

    def stop(self, within: float) -> Job[D, None]:
        """End the thread after all jobs are done; await the job to wait for that.

        Failing jobs are retried for ``within`` seconds at most. A caller may stop waiting earlier;
        the thread then ends by itself.
        """
        self._database.end_by(monotonic() + within)
        job: Job[D, None] = Job(_nothing)
        job.is_last = True
        self._put(job)
        return job

    def _put(self, job: Job[D, Any]) -> None:
        # Not kept in a RunVar: a backend refers to its event loop, and the RunVar would keep both
        # alive forever (see test_a_store_keeps_no_event_loop_that_has_ended).
        backend = job.backend = current_backend()
        job.waiter = backend.waiter()
        self._owed[backend.token] = self._owed.get(backend.token, 0) + 1
        self._jobs.put(job)

    def leave(
        self, work: Callable[[D], object], within: float, on_failed: Callable[[Exception], None]
    ) -> Job[D, Any] | None:
        """Do ``work`` within some seconds, without a caller that waits; return None.

        If it fails, the thread calls ``on_failed``. If too many jobs are pending, return a job that
        the caller has to await instead.
        """
        if self._jobs.qsize() + len(self._later) >= MOST_JOBS:
            return self.ask(work)
        job: Job[D, Any] = Job(work)
        job.due, job.on_failed = monotonic() + within, on_failed
        self._jobs.put(job)
        return None

    def owes(self, token: object) -> bool:
        """Return whether tasks of an event loop wait for jobs. Called in that loop's thread."""
        return bool(self._owed.get(token))

    def _release(self, token: object, jobs: Sequence[Job[D, Any]]) -> None:
        self._owed[token] -= len(jobs)
        if not self._owed[token]:
            del self._owed[token]
        for job in jobs:
            waiter = job.waiter
            if waiter is not None and not waiter.done():  # done: its task was cancelled
                waiter.set_result(None)

    # -- called in the thread -------------------------------------------------------------------

    def run(self) -> None:
        """Do jobs until the last one has come."""
        database = self._database
        failure: Exception | None = None
        try:
            database.open()
        except Exception as error:  # noqa: BLE001 # every job fails with it
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
        """Collect jobs until one is due, the last one has come, or that moment has."""
        later = self._later
        due = min((job.due for job in later), default=inf)
        try:
            wait = min(due, until) - monotonic()
            job = self._jobs.get(timeout=max(wait, 0.0)) if wait < inf else self._jobs.get()
            later.append(job)
            while not job.is_last:
                job = self._jobs.get_nowait()
                later.append(job)
        except Empty:  # the moment has come, or no further job is in the queue
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
            except RuntimeError:  # the loop was closed, so none of its tasks waits any more
                self._owed.pop(token, None)  # the token refers to the loop, and would keep it alive


def _nothing(_: object) -> None:
    """Do nothing: the work of the last job."""
