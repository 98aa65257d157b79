"""`shielded`: cleanup that awaits although its task is cancelled. Imports errors; anyio.

Invariants:
- A cancellation from outside of the block is not lost: it goes on where the block is left.
- No block holds a cancellation up for longer than the grace of the runtime that it is used in.
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

from .leftovers import mark_tasks, tell_leftovers
from .watchdog import GRACE, place_of_users

logger = logging.getLogger("shoal")

_grace: ContextVar[float] = ContextVar("shoal.grace")


def shielded(seconds: float | None = None) -> AbstractAsyncContextManager[None]:
    """Let cleanup await for a few seconds although it is cancelled.

    A cancelled action (a lost race, a timeout, a failed sibling, a cancelled caller) is cancelled
    again at each ``await``, also in its ``finally`` and ``except`` blocks, so that it ends soon.
    Where cleanup has to await (a rollback, a goodbye to a server), ``async with shielded(2):`` lets
    it.

    Within the block no cancellation arrives from outside for ``seconds``. When they are over, the
    block is cancelled, a warning in the log ``shoal`` names the place where it stood, and the
    program goes on behind the block. A cancellation that is under way is not lost by that: it goes
    on where the ``finally`` ends, or at the next ``await``. An error that the block raises goes on
    as it is. The race, or whatever has cancelled the action, waits for the block meanwhile.

    On asyncio, ``task.cancel()`` itself (``asyncio.timeout``, ``asyncio.TaskGroup``) reaches any
    task, as it does with anyio's own shields, but only once per call: an ``await`` in a ``finally``
    behind it works anyway. Runs live in tasks of the engine's, so nobody outside of an action
    reaches that in this way.

    It works outside of runs, too.

    Args:
        seconds: For how long; at most the grace of the runtime (``Runtime(grace=...)``, 5 s), which
            is what None means. Outside of runs there is no bound, and None means 5 s.

    Raises:
        BadUse: ``seconds`` is no number above 0; or one object is entered again while it is in use.

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
    """A block that no cancellation reaches from outside, while it lasts."""

    __slots__ = ("_scope", "_seconds")

    def __init__(self, seconds: float | None) -> None:
        """Describe it; the seconds count from when it is entered."""
        self._seconds = seconds
        self._scope: CancelScope | None = None

    async def __aenter__(self) -> None:
        """Begin, without a checkpoint."""
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
        """End, without a checkpoint."""
        scope, self._scope = self._scope, None
        assert scope is not None, "it was entered"
        is_caught = scope.__exit__(kind, error, frames)
        if scope.cancelled_caught:
            told = "cleanup at %s took longer than its %g s, and was cancelled: see shoal.shielded"
            logger.warning(told, place_of_users(frames), self._seconds)
        return bool(is_caught)


async def lived_within(grace: float, run_id: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do the work of a root run, which lives in a task of its own: shields heed ``grace``."""
    _grace.set(grace)
    mark = mark_tasks()
    try:
        await work()
    finally:
        tell_leftovers(run_id, mark)
