"""Async iterators that are advanced and closed: streaming actions, and what fan-outs run over.

Imports cancellation and errors; anyio.

Invariants:
- What is advanced is closed, cleanup included, in the same task, on every way out, in 5 seconds.
- The scope that bounds the closing is entered before the iterator begins: so what that holds across
  a yield is inside of it.
- What ended the iteration is never hidden by what closing raises.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from types import AsyncGeneratorType
from typing import Any, TypeVar, cast

from anyio import CancelScope, current_time

from shoal._errors.exceptions import brief, note
from shoal._errors.inspection import are_all, first_of

from .cancellation import as_failure, fatal_leaf, is_cancellation, ki_protected

T = TypeVar("T")

logger = logging.getLogger("shoal")

CLOSING_SECONDS = 5.0
"""How long an iterator may take to close before it is cancelled."""
CLOSINGS = 10
"""How often a generator is told to exit that yields instead."""


@ki_protected
async def closed_after(
    iterator: AsyncIterator[object],
    work: Callable[[CancelScope], Awaitable[T]],
    what: str,
    *,
    where: str = "",
    hide: Callable[[BaseException], None],
) -> T:
    """Await ``work``, which advances ``iterator``, and close that; return what ``work`` does.

    Args:
        iterator: It has not begun.
        work: Gets the scope around it, to look at.
        what: Names the iterator, in the log and in a note: "streaming action 'ask'".
        where: What is added to that in the log.
        hide: Called with what closing raises, before it is told.

    Raises:
        BaseException: What ``work`` raised; or, if that went well, what closing did.
    """
    ended_by: BaseException | None = None
    results: list[T] = []  # one, once there is one
    # Entered before the generator begins: so the scopes that it holds across a yield are inside of
    # this one, also when it is closed, see test_a_generator_that_holds_a_scope_is_closed_inside_it.
    with CancelScope() as scope:
        try:
            results.append(await work(scope))
            if _is_over(iterator):
                return results[0]
        except GeneratorExit:  # its own, or nothing can be awaited any more
            raise
        except BaseException as error:  # noqa: BLE001 # raised below
            ended_by = error
        scope.deadline = current_time() + CLOSING_SECONDS
        scope.shield = True
        ended_by = await _close(iterator, ended_by, what, where, hide)
    try:
        if ended_by is not None:
            raise ended_by
        return results[0]
    finally:
        del ended_by  # no cycle from the exception through its traceback to this frame


def _is_over(iterator: object) -> bool:
    """Tell whether there is nothing to be closed any more, as far as can be told."""
    return isinstance(iterator, AsyncGeneratorType) and iterator.ag_frame is None


@ki_protected
async def _close(
    iterator: AsyncIterator[object],
    ended_by: BaseException | None,
    what: str,
    where: str,
    hide: Callable[[BaseException], None],
) -> BaseException | None:
    """Close ``iterator``, whatever it does about it; return what is to be raised then.

    That is ``ended_by``, unless a KeyboardInterrupt or SystemExit comes out of the cleanup; without
    it, what came out of that.
    """
    failed: dict[str, Exception | None] = {}
    try:
        for _ in range(CLOSINGS):
            if _is_over(iterator):
                break
            try:
                if not await _told_to_exit(iterator):
                    break
            except (GeneratorExit, StopAsyncIteration):  # it has ended
                break
            except BaseException as error:  # noqa: BLE001 # told below
                if _is_exit(error):
                    break
                hide(error)
                failure = as_failure(error)
                if failure is not None:
                    failed[f"it raised {brief(failure)}"] = failure
                elif is_cancellation(error):
                    failed[f"it took longer than {CLOSING_SECONDS:g} s and was cancelled"] = None
                elif isinstance(ended_by, Exception | None) or is_cancellation(ended_by):
                    ended_by = first_of(fatal_leaf(error), error)
                break
            failed["it yielded when it was told to exit"] = None
        else:
            failed[f"it did so {CLOSINGS} times, and is left as it is"] = None
        for outcome, cause in failed.items():
            told = f"while {what} was closed, {outcome}"
            if ended_by is None and cause is not None:
                ended_by = cause  # raised, so it needn't be logged
                continue
            logger.error("%s%s", told, where, exc_info=cause)
            if ended_by is not None:
                note(ended_by, f"shoal: {told}")
        return ended_by
    finally:
        failed.clear()
        del ended_by  # no cycles from exceptions through their tracebacks to this frame


async def _told_to_exit(iterator: Any) -> bool:
    """Close what is no generator, or tell a generator to exit; return whether it has yielded."""
    if isinstance(iterator, AsyncGeneratorType):
        # not aclose(): after that, one that yields once more can't be resumed by anybody
        await cast("AsyncGeneratorType[object, None]", iterator).athrow(GeneratorExit())
        return True
    close = getattr(iterator, "aclose", None)
    if close is not None:
        await close()
    return False


def _is_exit(error: BaseException) -> bool:
    """Tell whether that is only the GeneratorExit, out of task groups that wrap it."""
    if not isinstance(error, BaseExceptionGroup):
        return False
    return are_all(cast("BaseException", error), GeneratorExit)
