"""Ends of children: interpret the exception that a run raised, record ends that aren't applied.

Invariants:
- Only this module interprets an exception that came out of a child, wherever the child was run.
- A cancellation outranks a failure, and a run that waits for an answer has not failed.
- An error that is raised while a step ends never hides the reason for which it ends.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterable, Sequence
from enum import Enum
from typing import final

from shoal._concurrency.cancellation import as_failure, cancelled, is_cancellation
from shoal._engine.commit import commit_unapplied
from shoal._engine.disposition import DONE
from shoal._engine.questions import has_halted
from shoal._engine.run import Run
from shoal._errors.exceptions import brief, note
from shoal._events.events import ChildName

from .scope import GroupScope

logger = logging.getLogger("shoal")


@final
class End(Enum):
    """How a run has ended, by the exception that it raised."""

    FAILED = "it has failed"
    HALTED = "it waits for something; or it has ended by what counts more, which it had hidden"
    CANCELLED_ALONE = "it was cancelled, and its siblings go on"
    CANCELLED = "it was cancelled with all that is around it"
    INTERRUPTED = "something came out of it that ends all that is around it, such as Ctrl-C"
    UNREADABLE = "it stays Done, and what it has written could not be read"


def settle_end(
    run: Run,
    error: BaseException,
    *,
    scope: GroupScope | None = None,
    cut_off: tuple[str, ChildName | None] | None = None,
    reason: str = "",
) -> End:
    """Return how ``run`` has ended, by the ``error`` that it raised, and note the end on the run.

    Args:
        run: The run. It has no end yet, unless it is Done.
        error: The exception that came out of the run.
        scope: The scope of the group whose child it is; None: it is in no group.
        cut_off: Why it was cancelled alone, and the child that had won; None: it wasn't.
        reason: Why it is cancelled, if it is in no group.
    """
    # Its end was saved by an earlier execution or attempt, so nothing here may replace it.
    is_done = run.disposition is DONE
    halts = not is_done and has_halted(run, error)
    # First: cancelled alone, it ends as cancelled, also if it has asked a question meanwhile.
    if cut_off is not None and (is_cancellation(error) or (halts and cancelled())):
        run.cancel(*cut_off)
        return End.CANCELLED_ALONE
    # A group that is being cancelled takes its halted children with it. Outside of a group,
    # ``Run.halt`` itself looks for a cancellation.
    if halts and (scope is None or not cancelled()):
        run.halt()
        return End.HALTED
    # A cancelled scope stays cancelled, so only the first of a thousand siblings' errors needs the
    # search that ``as_failure`` makes.
    is_known = scope is not None and type(error) is scope.cancelled_by
    failure = None if halts or is_known else as_failure(error)
    if failure is not None:
        if is_done:
            return End.UNREADABLE
        run.fail(failure)
        return End.FAILED
    winner = None
    if scope is not None:
        # Before the reason is read: if the deadline has passed, this is what notices it.
        scope.interrupt(error)
        reason, winner = scope.reason, scope.winner
    if not is_done:
        run.cancel(reason, winner)
    return End.CANCELLED if halts or is_cancellation(error) else End.INTERRUPTED


async def record_unapplied(parent: Run, children: Iterable[Run]) -> None:
    """Save and publish the ends of ``children`` without an update; leave out the saved ones.

    Raises:
        ShoalError: As ``commit_unapplied``.
    """
    # What is saved was published then too, and each start has only one end.
    ended = [child for child in children if not child.disposition.is_saved]
    if ended:
        await commit_unapplied(parent, ended)


async def wind_up(ending: Awaitable[None], error: BaseException, subject: str, what: str) -> None:
    """Await the ``ending`` of a step that raised ``error``; add its own failure as a note.

    Args:
        ending: Records the children and closes the source.
        error: The error for which the step ends.
        subject: The name of the step and its run, for the log.
        what: The kind of the step, for the note.
    """
    try:
        await ending
    # Only an Exception: a cancellation, or an error that ends the program, outranks ``error``.
    except Exception as failure:
        logger.exception("while %s ended", subject)
        note(error, f"shoal: while the {what} ended, {brief(failure)} was raised")


def failure_group(name: str, errors: Sequence[Exception]) -> ExceptionGroup[Exception]:
    """Make the error that the fan-out ``name`` raises for its failed children."""
    count = "a child" if len(errors) == 1 else f"{len(errors)} children"
    return ExceptionGroup(f"{count} of fan-out {name!r} failed", errors)
