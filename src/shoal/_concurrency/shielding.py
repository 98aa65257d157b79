"""`shielded`: lets cleanup await although its task is cancelled.

Invariants:
- A cancellation from outside of the block is not lost: it is delivered when the block is left.
- No block delays a cancellation for longer than the grace of the runtime that it is used in.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from types import TracebackType
from typing import final

from anyio import CancelScope, current_time

from shoal._errors.arguments import is_number
from shoal._errors.exceptions import BadUse, brief

from .leftovers import mark_tasks, report_leftovers
from .watchdog import GRACE, place_of_users

logger = logging.getLogger("shoal")

_grace: ContextVar[float] = ContextVar("shoal.grace")


def shielded(seconds: float | None = None) -> AbstractAsyncContextManager[None]:
    """Let cleanup await for a few seconds although it is cancelled.

    A cancelled action (a lost race, a timeout, a failed sibling, a cancelled caller) is cancelled
    again at each ``await``, also in its ``finally`` and ``except`` blocks, so that it ends soon. If
    cleanup has to await (a rollback, a goodbye to a server), ``async with shielded(2):`` lets it.

    Inside the block no cancellation arrives from outside for ``seconds``. Then the block is
    cancelled, a warning in the log ``shoal`` names the line where it stood, and the program goes on
    after the block. The cancellation that was under way is not lost: it goes on where the
    ``finally`` ends, or at the next ``await``. An exception of the block is raised as it is.
    Meanwhile the race, or the timeout, that has cancelled the action waits for the block.

    On asyncio, ``task.cancel()`` itself (``asyncio.timeout``, ``asyncio.TaskGroup``) pierces this
    shield as it does anyio's, but only once per call: the next ``await`` in the ``finally`` works
    anyway. Runs have tasks of the engine's own, so no code outside of an action can cancel it in
    this way.

    It works outside of runs, too.

    Args:
        seconds: How long; at most the grace of the runtime (``Runtime(grace=...)``, 5 s), which
            is also the default. Outside of runs there is no bound, and the default is 5 s.

    Raises:
        BadUse: ``seconds`` is not a number above 0; or the object is entered while it is in use.

    Examples:
        >>> import anyio
        >>> @action(reads=["order"], writes=["paid"])
        ... async def pay(order: str) -> bool:
        ...     try:
        ...         await anyio.sleep(60)
        ...     finally:
        ...         async with shielded(2):
        ...             await anyio.sleep(0.01)  # tells the bank that this is off
        ...             print("told")
        ...     return True
        >>> async def main() -> None:
        ...     with anyio.move_on_after(0.01):
        ...         await Application(pay).run({"order": "a"})
        >>> anyio.run(main)
        told
    """
    if seconds is not None and not (is_number(seconds) and seconds > 0):
        msg = f"shielded(seconds) takes a number of seconds above 0, not {brief(seconds)}"
        raise BadUse(msg)
    return _Shield(seconds)


@final
class _Shield:
    """A block that no cancellation from outside reaches, for some seconds."""

    __slots__ = ("_scope", "_seconds")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._scope: CancelScope | None = None  # set while the block is entered

    async def __aenter__(self) -> None:
        """Begin. Not a checkpoint: a cancellation delivered here would skip the cleanup."""
        if self._scope is not None:
            msg = "this shielded(...) is in use already; make one for each block that uses it"
            raise BadUse(msg)
        grace = _grace.get(None)
        if self._seconds is None:
            self._seconds = GRACE if grace is None else grace
        elif grace is not None:
            self._seconds = min(self._seconds, grace)
        self._scope = CancelScope(shield=True, deadline=current_time() + self._seconds)
        self._scope.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> bool:
        """End. Not a checkpoint."""
        scope, self._scope = self._scope, None
        assert scope is not None, "it was entered"
        is_caught = scope.__exit__(kind, error, frames)
        if scope.cancelled_caught:
            message = (
                "cleanup at %s took longer than its %g s, and was cancelled: see shoal.shielded"
            )
            logger.warning(message, place_of_users(frames), self._seconds)
        return bool(is_caught)


async def lived_within(grace: float, run_id: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do the work of a root run in its own task, in which ``grace`` bounds every shield."""
    _grace.set(grace)
    mark = mark_tasks()
    try:
        await work()
    finally:
        report_leftovers(run_id, mark)
