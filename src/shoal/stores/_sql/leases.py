"""Leases on root runs: which execution holds a run, and for how long.

A ``Lease`` is one that this process holds; a ``LeaseState`` describes any lease, as the table
``claims`` has it.

Invariants:
- A process knows which of its own executions are alive. So a lease that one of its executions could
  not release is free for the process itself at once; other processes wait until it has expired.
- An execution ends with its event loop, even if the loop is closed while tasks are pending. Then
  its leases are no longer renewed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, final

from shoal._concurrency.backend import current_backend
from shoal._errors.exceptions import LeaseLost
from shoal._events.identity import Key

from .holders import LeaseHolder, current_holder, now


@final
class KnownRows:
    """The rows that saves under a lease have seen. Nothing else changes them while the lease holds.

    It is dropped with the lease, because then other processes may change or delete the rows, and
    SQLite may use ids of deleted rows again.
    """

    __slots__ = ("begun", "ids", "is_running")

    def __init__(self) -> None:
        """Start with no rows."""
        self.ids: dict[tuple[int, int, Key], int] = {}
        """The ids of runs, by parent, place and key. Bounded by ``KNOWN``."""
        self.begun: dict[int, int] = {}
        """The ``crashes`` of children under way, by id. Their rows hold nothing that belongs to a
        history, so they may be overwritten without moving updates into ``history`` first."""
        self.is_running: bool = False
        """Whether the row of the root run is known to have no end."""

    def forget(self) -> None:
        """Drop everything."""
        self.ids.clear()
        self.begun.clear()
        self.is_running = False


@final
class Lease:
    """A lease on a root run that this process holds, or is about to take."""

    __slots__ = (
        "before",
        "epoch",
        "execution",
        "failure",
        "given_back",
        "is_abandoned",
        "lost",
        "rows",
        "run_id",
        "saves",
    )

    def __init__(self, run_id: str, execution: str) -> None:
        """Register the execution as alive until ``end``, before the lease is written.

        Called in the event loop in which the execution runs.
        """
        leases, is_closed = _alive.get(execution) or (0, current_backend().is_closed)
        _alive[execution] = leases + 1, is_closed
        self.is_abandoned: Callable[[], bool] = is_closed
        """Whether the event loop was closed, so that no task is left that could release it."""
        self.run_id: str = run_id
        self.execution: str = execution
        self.epoch: int = 0
        """The number of leases that the run has had, this one included; 0 until it is taken."""
        self.before: tuple[int, str | None] | None = None
        """Epoch and execution of the previous lease, as it was read; None if there was none."""
        self.given_back: bool = False
        """Whether a release has been requested. A claim that is still queued is then skipped."""
        self.lost: bool = False
        """Whether another execution has taken the run, or ``end`` was called. Never reset; saves
        are refused from then on."""
        self.saves: int = 0
        """The number of transactions that saved under it, if the database counts them."""
        self.failure: Exception | None = None
        """The error of a save that no caller waited for. Never reset; later saves fail with it."""
        self.rows: KnownRows = KnownRows()
        """The rows that the writer knows. Only the writer's thread uses it."""

    @property
    def is_first(self) -> bool:
        """Whether this is the run's first lease, so that nothing was saved of the run before."""
        return self.epoch == 1

    def fail(self, error: Exception) -> None:
        self.failure = error

    def end(self) -> None:
        """Unregister the execution, whether or not the lease was released. Called once.

        Saves that were left for later must be done before: from now on a new execution of this
        process may take the run.
        """
        self.lost = True
        leases, is_closed = _alive.pop(self.execution, (1, self.is_abandoned))
        if leases > 1:  # an execution has a lease in each store that it uses
            _alive[self.execution] = leases - 1, is_closed

    def refusal(self) -> LeaseLost:
        return lost(self.run_id)


_alive: dict[str, tuple[int, Callable[[], bool]]] = {}
"""The executions of this process that are alive: the number of their leases in stores, and a
callable that tells whether their event loop was closed. An execution stays in one thread, so no two
threads change the same entry."""


def _goes_on(execution: str) -> bool:
    alive = _alive.get(execution)
    return alive is not None and not alive[1]()


def lost(run_id: str) -> LeaseLost:
    return LeaseLost(
        f"run {run_id} was taken over by another execution; this one can't save any more"
    )


@final
class LeaseState(NamedTuple):
    """The last lease on a run, as the table has it."""

    epoch: int
    execution: str | None
    """The execution that holds the run; None if it has released it."""
    holder: LeaseHolder
    """The process of that execution."""
    lease: float
    """Seconds until it expires; negative if it has. Counts only if the holder may be alive."""

    @property
    def is_over(self) -> bool:
        """Whether an execution of this very process held the run, and has ended.

        It could not release the run, because the database was unreachable or its event loop was
        closed. That is not a crash.
        """
        execution = self.execution
        if execution is None or self.holder != current_holder():
            return False
        return not _goes_on(execution)

    @property
    def seconds_left(self) -> float:
        """Seconds until this process may take the run; 0 if it may do so now."""
        if self.execution is None or self.holder.is_gone or self.is_over:
            return 0.0
        return max(0.0, self.lease)

    @property
    def has_died(self) -> bool:
        """Whether the execution never released the run, because its process died or hangs."""
        return self.execution is not None and not self.is_over

    def refusal(self, run_id: str) -> str:
        """Return the message for a caller that wants the run: which process has it, until when."""
        us = current_holder()
        where = "this process" if self.holder == us else str(self.holder)
        when = time.strftime("%H:%M:%S", time.localtime(now().wall + self.seconds_left))
        return (
            f"run {run_id} is already running in {where}, and a run has one execution at a time: "
            f"wait for that execution to end, or cancel it; if it gives no further sign of life, "
            f"its lease expires at {when}"
        )
