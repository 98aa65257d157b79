"""Halt a run between two attempts: at a breakpoint, or because its execution is drained.

Invariants:
- What runs is never interrupted by this: a run halts only where it is about to begin an attempt, or
  waits until it may.
- A cancellation outranks it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn

from anyio import CancelScope
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._errors.exceptions import Halting
from shoal._limits.permits import AttemptPermit

from .run import Run


def stop_here(run: Run) -> NoReturn:
    """Halt between two steps, or between two attempts of one.

    Raises:
        Halting: Always.
    """
    run.pending_questions().is_halting = True
    raise Halting(f"run {run.path.id} stops here")


def stop_if_drained(run: Run) -> None:
    """Halt if the execution starts nothing more.

    Raises:
        Halting: It does.
    """
    drain = run.config.execution.drain
    if drain.reason is not None:
        drain.has_cut = True
        stop_here(run)


async def unless_drained(run: Run, wait: Callable[[], Awaitable[object]]) -> None:
    """Wait before an attempt, and halt as soon as the execution starts nothing more.

    Raises:
        Halting: It starts nothing more.
        BaseException: The wait raised it, or was cancelled.
    """
    drain = run.config.execution.drain
    if drain.reason is None:
        with CancelScope() as scope:
            drain.add(scope.cancel)
            try:
                await wait()
            finally:
                drain.remove(scope.cancel)
    if drain.reason is not None:
        # The scope may have caught a cancellation from outside along with its own.
        await checkpoint_if_cancelled()
        stop_if_drained(run)


async def until_granted(run: Run, permit: AttemptPermit) -> None:
    """Wait for the permit of an attempt, and halt as soon as the execution starts nothing more.

    The caller gives the permit back if this raises.

    Raises:
        Halting: The execution starts nothing more.
        BaseException: ``permit.wait`` raised it.
    """
    drain = run.config.execution.drain
    # By a call and not by a scope around the wait: that would cost each wait as much as the wait.
    drain.add(permit.withdraw)
    try:
        await permit.wait()
    finally:
        drain.remove(permit.withdraw)
    # Also if it was granted in the same moment: the attempt has not begun.
    stop_if_drained(run)
