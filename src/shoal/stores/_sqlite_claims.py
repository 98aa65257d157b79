"""Claims of an ``SQLiteStore``: who executes a run, and for how long. Imports holders."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, final

from shoal._errors import LeaseLost

from ._holders import Holder, current_holder, now

CLAIM = "execution, host, boot, pid, started, lease, seen_at, seen_uptime"
"""Of a claim's row, what ``seconds_left`` takes."""


@final
class Claim:
    """What this process has of a root run."""

    __slots__ = ("epoch", "execution", "failure", "lost", "run_id")

    def __init__(self, run_id: str, execution: str) -> None:
        self.run_id: str = run_id
        self.execution: str = execution
        self.epoch: int = 0
        """Which claim of the run this is, counted from 1; set when it is made."""
        self.lost: bool = False
        """Whether the run was taken over."""
        self.failure: Exception | None = None
        """What went wrong with a save that nobody waited for."""

    def fail(self, error: Exception) -> None:
        self.failure = error

    def refusal(self) -> LeaseLost:
        return lost(self.run_id)


def lost(run_id: str) -> LeaseLost:
    return LeaseLost(
        f"run {run_id} was taken over by another execution; this one can't save any more"
    )


def seconds_left(claim: Sequence[Any]) -> float:
    """Return for how long a claim holds, by its row; 0 if nobody has the run any more."""
    execution, host, boot, pid, started, lease, wall, uptime = claim
    holder, at = Holder(host, boot, pid, started), now()
    if execution is None or holder.is_gone:
        return 0.0
    return max(0.0, lease - (at.uptime - uptime if holder.is_near else at.wall - wall))


def refusal_of(run_id: str, holder: Holder, until: float) -> str:
    us = current_holder()
    where = "this process" if holder == us else str(holder)
    when = time.strftime("%H:%M:%S", time.localtime(until))
    return (
        f"run {run_id} goes on in {where} already, and each run is executed once at a time: wait "
        f"for that execution to end, or cancel it; unless it gives a sign of life, its lease runs "
        f"out at {when}"
    )
