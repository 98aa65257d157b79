"""Attempts: bounding what runs by time, and trying again what failed. Imports runs and retries.

Invariants:
- What ended in the very tick of its timeout keeps its result or times out, never both; where it was
  cancelled from outside as well, that counts.
- What an action returns after its time, since it has swallowed the cancellation, is no result.
- Only failures are tried again: no cancellation, no KeyboardInterrupt, and nothing once the
  execution has been ended by a save or a guarding hook that failed.
- While an attempt is waited for, nothing of the one before is held.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar, final

from anyio import CancelScope
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._concurrency.cancellation import (
    absorb_stray_cancel,
    as_failure,
    cancelled,
    is_cancellation,
    ki_protected,
    ki_unprotected,
)
from shoal._concurrency.watchdog import Part, Watched
from shoal._errors.exceptions import Poisoned, StepTimeout, note
from shoal._limits.retry import Retry

from .permits import wait_without_slot
from .publish import publish_attempt_ended
from .run import Run

T = TypeVar("T")


# -- bounded by time -------------------------------------------------------------------------------


@ki_protected
async def within(
    seconds: float,
    attempt: Callable[[], Coroutine[Any, Any, T]],
    run: Run,
    *,
    what: Callable[[], str],
    cause: Callable[[], Exception | None] | None = None,
    keeps_late: bool = False,
) -> T:
    """Await what ``attempt`` makes, and cancel it after so many seconds.

    Args:
        seconds: How many.
        attempt: Makes it.
        run: Whose it is.
        what: Names it, for the error.
        cause: Finds what that error is raised from.
        keeps_late: Whether what it returns after its time counts, for it sees to that by itself:
            a child, which may have saved by then that it has ended well.

    Raises:
        StepTimeout: It was cancelled for that, and has ended, or it has returned after its time.
        Exception: Whatever it raises, also if that was after its time.
    """
    services = run.setting.services
    deadline = services.clock() + seconds
    scope = CancelScope(deadline=deadline)
    watched: Watched | None = None
    try:
        with scope:
            coroutine = attempt()
            watched = services.watchdog.watch(partial(_parts, run, coroutine), deadline)
            result = await coroutine
            # By the clock, and not by whether the scope is cancelled: in the very tick it may be,
            # and what has never waited nobody has cancelled.
            if keeps_late or services.clock() <= deadline:
                return result
    except BaseException as error:
        if is_cancellation(error):
            # Where user code has left native cancellation on the task, the scope lets it pass.
            if not scope.cancel_called or cancelled():
                raise
        else:
            if scope.cancel_called:
                note(error, f"shoal: raised after the timeout of {seconds:g} s")
            raise
    finally:
        if watched is not None:
            services.watchdog.forget(watched)
    await checkpoint_if_cancelled()  # from outside, which it may have swallowed as well
    raise StepTimeout(f"{what()} took longer than its timeout of {seconds:g} s") from (
        None if cause is None else cause()
    )


def _parts(run: Run, coroutine: object) -> tuple[Part]:
    return (Part(run, coroutine),)


# -- trying again ----------------------------------------------------------------------------------


@final
class Tries:
    """The attempts at one thing, as a ``Retry`` allows them."""

    __slots__ = ("_account", "_began_at", "_is_on", "_retry", "_run", "_services", "count", "last")

    def __init__(self, retry: Retry, run: Run) -> None:
        """Make none yet."""
        self._retry = retry
        self._run = run
        self._services = services = run.setting.services
        self._account = None if retry.budget is None else services.retries.account(retry.budget)
        self._began_at = 0.0
        self._is_on = False  # an attempt
        self.count: int = 0
        """Attempts that were begun."""
        self.last: Exception | None = None
        """What the one before failed with."""

    def begin(self) -> None:
        """Hear that an attempt begins now.

        Raises:
            Exception: What the one before failed with, where it has become too late for another.
        """
        now = self._services.clock()
        if self.last is None:
            self._began_at = now
            if self._account is not None:
                self._account.earn(now)
        elif self._is_late(now, self.last):
            raise self.last
        else:
            self._run.begin_attempt()
        self._is_on = True
        self.count += 1

    def pause(self, error: Exception) -> float | None:
        """Return the seconds to wait before the next attempt; None if there is to be none.

        Where ``error`` might have been tried again, it has a note then that says why it isn't.
        """
        retry, was_on = self._retry, self._is_on
        self._is_on = False
        if (
            not was_on
            or self._run.setting.execution.is_doomed
            or cancelled()
            or not _is_for(retry, error)
        ):
            return None
        if self.count >= retry.attempts:
            if self.count > 1:
                note(error, f"shoal: in attempt {self.count} of {retry.attempts}")
            return None
        pause = retry.delay(self.count, self._services.retries.chance())
        now = self._services.clock()
        if self._is_late(now + pause, error):
            return None
        if self._account is not None and not self._account.spend(now):
            note(
                error, f"shoal: not tried again after attempt {self.count}: no {retry.budget} left"
            )
            return None
        self.last = error
        return pause

    def _is_late(self, at: float, error: Exception) -> bool:
        """Tell whether no attempt is begun at that time any more; then note it."""
        total = self._retry.total
        if total is None or at <= self._began_at + total:
            return False
        note(error, f"shoal: not tried again after attempt {self.count}: {total:g} s are over")
        return True


@ki_unprotected
def _is_for(retry: Retry, error: Exception) -> bool:
    """Ask the retry, which may ask user code."""
    return not isinstance(error, Poisoned) and retry.is_for(error)


@ki_protected
async def try_again(
    run: Run, tries: Tries, attempt: Callable[[], Awaitable[T]], *, tells_last: bool
) -> T:
    """Make attempts until one succeeds, or fails and isn't tried again.

    Args:
        run: What is tried, or part of what.
        tries: Counts them: each attempt calls its ``begin``, at the moment when it begins.
        attempt: Makes one.
        tells_last: Whether the one that isn't tried again is published, too.

    Raises:
        BaseException: What the last attempt raised.
    """
    failure: Exception | None = None
    while True:
        try:
            return await attempt()
        except BaseException as raised:
            failure = None if run.is_halting else as_failure(raised)
            pause = None if failure is None else tries.pause(failure)
            if pause is None:
                if failure is not None and failure is not tries.last and tells_last:
                    await publish_attempt_ended(run, failure, None)
                if failure is None or failure is raised:
                    raise
                raise failure from failure.__cause__
            await publish_attempt_ended(run, failure, pause)
        finally:
            failure = None  # no cycle from the exception through its traceback to this frame
        await absorb_stray_cancel(run.setting.services.native_cancels)
        await wait_without_slot(run, pause)


@ki_protected
async def try_step(
    run: Run, retry: Retry, attempt: Callable[[Callable[[], None]], Awaitable[T]]
) -> T:
    """Make attempts at a step of ``run``, as often as ``retry`` allows.

    Args:
        run: Whose step it is.
        retry: What is tried again, and how often.
        attempt: Makes one; it calls what it is given at the moment when it begins.

    Raises:
        BaseException: What the last attempt raised.
    """
    tries = Tries(retry, run)
    try:
        return await try_again(run, tries, partial(attempt, tries.begin), tells_last=False)
    finally:
        tries.last = None  # no cycle from the exception through its traceback to this frame
