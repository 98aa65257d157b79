"""Close async iterators after use: streaming actions, and the iterators that fan-outs run over.

Invariants:
- An iterator that was advanced is closed, cleanup included, in the same task, on every way out,
  within 5 seconds.
- The scope that bounds the closing is entered before the iterator begins. So scopes that the
  iterator holds across a yield are inside of it.
- An exception of the closing never hides the one that ended the iteration.
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
"""Seconds that an iterator may take to close before it is cancelled: as long as the default grace
of a runtime, since both bound the cleanup of user code."""
CLOSINGS = 10
"""How often GeneratorExit is thrown into a generator that yields instead of ending. A loop around
a ``yield`` that swallows it would otherwise never end."""


@ki_protected
async def closed_after(
    iterator: AsyncIterator[object],
    work: Callable[[CancelScope], Awaitable[T]],
    what: str,
    *,
    where: str = "",
    hide: Callable[[BaseException], None],
) -> T:
    """Await ``work``, which advances ``iterator``, then close the iterator; return work's result.

    Args:
        iterator: An iterator that has not begun.
        work: Called with the scope around it, which it may read.
        what: Names the iterator in the log and in a note: "streaming action 'ask'".
        where: Appended to the message in the log.
        hide: Called with an exception of the closing before it is logged.

    Raises:
        BaseException: What ``work`` raised; if it raised nothing, what the closing raised.
    """
    ended_by: BaseException | None = None
    results: list[T] = []  # a list, so that None is a result
    # Entered before the generator begins, so that the scopes that it holds across a yield are
    # inside of this one: see test_a_generator_that_holds_a_scope_is_closed_inside_it.
    with CancelScope() as scope:
        try:
            results.append(await work(scope))
            if _is_over(iterator):
                return results[0]
        except GeneratorExit:  # this coroutine is being closed, so nothing can be awaited any more
            raise
        except BaseException as error:  # noqa: BLE001 # raised below
            ended_by = error
        # The deadline first: a shield without one could hold a cancellation up for ever.
        scope.deadline = current_time() + CLOSING_SECONDS
        scope.shield = True
        ended_by = await _close(iterator, ended_by, what, where, hide)
    try:
        if ended_by is not None:
            raise ended_by
        return results[0]
    finally:
        del ended_by  # breaks the traceback cycle


def _is_over(iterator: object) -> bool:
    """Return whether the iterator is a generator that has ended. Others can't be asked."""
    return isinstance(iterator, AsyncGeneratorType) and iterator.ag_frame is None


@ki_protected
async def _close(
    iterator: AsyncIterator[object],
    ended_by: BaseException | None,
    what: str,
    where: str,
    hide: Callable[[BaseException], None],
) -> BaseException | None:
    """Close ``iterator`` whatever it raises or yields; return the exception to raise then.

    That is ``ended_by``, unless the cleanup raises a KeyboardInterrupt or SystemExit. If there is
    no ``ended_by``, it is the exception of the cleanup.
    """
    # What went wrong, in order, each with its exception if there is one.
    failed: dict[str, Exception | None] = {}
    try:
        for _ in range(CLOSINGS):
            if _is_over(iterator):
                break
            try:
                if not await _throw_exit(iterator):
                    break
            except (GeneratorExit, StopAsyncIteration):  # the generator has ended
                break
            except BaseException as error:  # noqa: BLE001 # logged or raised below
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
            message = f"while {what} was closed, {outcome}"
            if ended_by is None and cause is not None:
                ended_by = cause  # it is raised, so it need not be logged
                continue
            logger.error("%s%s", message, where, exc_info=cause)
            if ended_by is not None:
                note(ended_by, f"shoal: {message}")
        return ended_by
    finally:
        # Both break the traceback cycle.
        failed.clear()
        del ended_by


async def _throw_exit(iterator: Any) -> bool:
    """Call ``aclose``, or throw GeneratorExit into a generator; return whether that yielded."""
    if isinstance(iterator, AsyncGeneratorType):
        # Not aclose(): a generator that yields in it can't be resumed by any later call.
        await cast("AsyncGeneratorType[object, None]", iterator).athrow(GeneratorExit())
        return True
    close = getattr(iterator, "aclose", None)
    if close is not None:
        await close()
    return False


def _is_exit(error: BaseException) -> bool:
    """Return whether the error is a GeneratorExit alone, wrapped by task groups."""
    if not isinstance(error, BaseExceptionGroup):
        return False
    return are_all(cast("BaseException", error), GeneratorExit)
