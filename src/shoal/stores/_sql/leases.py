"""Claims on root runs: who executes one, and for how long. Imports holders, and event loops.

Invariants:
- A process knows which of its own executions go on. So a claim that an execution of it could not
  give back is nobody's for the process itself, at once; other processes wait for its lease.
- An execution ends with its event loop, also if that is closed without an end of its tasks. Then
  nothing keeps its claims up any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, final

from shoal._concurrency.backend import current_backend
from shoal._errors.exceptions import LeaseLost
from shoal._events.identity import Key

from .holders import Holder, current_holder, now


@final
class KnownRows:
    """What saves under a claim have come to know of rows. Nobody else changes these meanwhile.

    It goes with the claim: then others may change them, and the numbers of rows that were deleted
    come up again.
    """

    __slots__ = ("begun", "ids", "is_running")

    def __init__(self) -> None:
        """Know nothing."""
        self.ids: dict[tuple[int, int, Key], int] = {}
        """Of runs, by parent, place and key."""
        self.begun: dict[int, int] = {}
        """Of children that have begun, and not ended: their ``crashes``. What else their rows say
        is known too: nothing of histories that would have to outlive it."""
        self.is_running: bool = False
        """Whether the root run is known to have no end."""

    def forget(self) -> None:
        """Know nothing any more."""
        self.ids.clear()
        self.begun.clear()
        self.is_running = False


@final
class Claim:
    """What this process has of a root run."""

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
        """Note that the execution goes on, until ``end``: before anything is written of it.

        Called in the event loop that it goes on in.
        """
        claims, is_closed = _alive.get(execution) or (0, current_backend().is_closed)
        _alive[execution] = claims + 1, is_closed
        self.is_abandoned: Callable[[], bool] = is_closed
        """Whether the event loop was closed, so that nobody is left who could give it back."""
        self.run_id: str = run_id
        self.execution: str = execution
        self.epoch: int = 0
        """Which claim of the run this is, counted from 1; set when it is made."""
        self.before: tuple[int, str | None] | None = None
        """Epoch and execution of the claim that this one comes after, as it was found."""
        self.given_back: bool = False
        """Whether it was to be given back, so that nobody needs to make it any more."""
        self.lost: bool = False
        """Whether the run was taken over, or nobody here executes it any more."""
        self.saves: int = 0
        """How many transactions have saved under it, where the database counts them."""
        self.failure: Exception | None = None
        """What went wrong with a save that nobody waited for."""
        self.rows: KnownRows = KnownRows()
        """What the writer knows of its rows."""

    @property
    def is_first(self) -> bool:
        """Whether nobody has claimed the run before, so that nothing was saved of it either."""
        return self.epoch == 1

    def fail(self, error: Exception) -> None:
        self.failure = error

    def end(self) -> None:
        """Note that nobody here executes the run any more, given back or not. Called once.

        What was saved for later must be done by then: a new execution may take over from now on.
        """
        self.lost = True
        claims, is_closed = _alive.pop(self.execution, (1, self.is_abandoned))
        if claims > 1:  # an execution claims its run in each store that it uses
            _alive[self.execution] = claims - 1, is_closed

    def refusal(self) -> LeaseLost:
        return lost(self.run_id)


_alive: dict[str, tuple[int, Callable[[], bool]]] = {}
"""Executions of this process that go on, each with how many claims it has in stores, and whether
its event loop was closed. One execution lives in one thread, so no two threads change the same
entry."""


def _goes_on(execution: str) -> bool:
    alive = _alive.get(execution)
    return alive is not None and not alive[1]()


def lost(run_id: str) -> LeaseLost:
    return LeaseLost(
        f"run {run_id} was taken over by another execution; this one can't save any more"
    )


@final
class Held(NamedTuple):
    """What is known of the last claim on a run."""

    epoch: int
    execution: str | None
    """Whose it is; None: it was given back."""
    holder: Holder
    lease: float
    """Seconds that are left of its lease, if it is nobody's that is known to be gone."""

    @property
    def is_over(self) -> bool:
        """Whether an execution of this very process had it, which has ended.

        It could not give the run back then, because the database was away, or because its event
        loop was closed under it. That is no crash.
        """
        execution = self.execution
        if execution is None or self.holder != current_holder():
            return False
        return not _goes_on(execution)

    @property
    def seconds_left(self) -> float:
        """For how long this process can't have the run."""
        if self.execution is None or self.holder.is_gone or self.is_over:
            return 0.0
        return max(0.0, self.lease)

    @property
    def has_died(self) -> bool:
        """Whether the execution never gave the run back, for its process has died, or hangs."""
        return self.execution is not None and not self.is_over

    def refusal(self, run_id: str) -> str:
        """Say that the run is taken: by whom, and until when."""
        us = current_holder()
        where = "this process" if self.holder == us else str(self.holder)
        when = time.strftime("%H:%M:%S", time.localtime(now().wall + self.seconds_left))
        return (
            f"run {run_id} goes on in {where} already, and each run is executed once at a time: "
            f"wait for that execution to end, or cancel it; unless it gives a sign of life, its "
            f"lease runs out at {when}"
        )
