"""Attempts: timeouts and retries.

Invariants:
- Work that ends in the same tick as its timeout either keeps its result or times out, never both.
  If it is cancelled from outside in that tick as well, the cancellation wins.
- A result that an action returns after its deadline, because it swallowed the cancellation, is
  dropped.
- Only failures are retried: no cancellation, no KeyboardInterrupt, and nothing at all after a
  failed save or a failed guarding hook has ended the execution.
- Between two attempts a run holds no permit.
- While an attempt waits for a worker, its timeout doesn't run: see ``AttemptTime``.
"""

from __future__ import annotations

import math
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

from .child_time import ChildTime, Countdown, in_words, time_of
from .permits import starts_in, wait_without_slot
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
    time: AttemptTime | Countdown | None = None,
    waited: Callable[[], dict[str, float]] | None = None,
    named: str = "timeout",
) -> T:
    """Await the coroutine that ``attempt`` makes, and cancel it after ``seconds``.

    Args:
        seconds: The timeout.
        attempt: Makes the coroutine.
        run: The run that the attempt belongs to.
        what: Names the attempt in the error; called only when the timeout has passed.
        cause: Returns the exception that the error is raised from.
        keeps_late: Whether a result that comes after the deadline counts. It does for a child:
            its walk looks for the timeout before each save, and a saved success stays one.
        time: Stops meanwhile. A pool stops that of an attempt which waits for a worker, and a hold
            of the execution that of a child.
        waited: Returns what the attempt has waited for, for the error.
        named: The argument by which the user gave the timeout.

    Raises:
        StepTimeout: The attempt was cancelled at its deadline and has ended, or it returned after
            its deadline.
        Exception: The attempt raised it, before its deadline or after.
    """
    services = run.config.services
    deadline = services.clock() + seconds
    scope = CancelScope(deadline=deadline)
    watched: Watched | None = None
    try:
        with scope:
            coroutine = attempt()
            # The watchdog reports an attempt that ignores its deadline, so it is registered before
            # the first await and removed on every way out.
            parts = partial(_parts, run, coroutine)
            if time is None:
                watched = services.watchdog.watch(parts, deadline)
            else:
                time.begin(scope, parts)
            result = await coroutine
            # Compare the clock, not `scope.cancel_called`. In the tick of the deadline the scope
            # may be cancelled though the result is in time, and an attempt that never waits is
            # late though nothing has cancelled it. See
            # test_in_the_very_tick_of_its_timeout_it_ends_in_one_way.
            late_after = deadline if time is None else time.deadline
            if keeps_late or services.clock() <= late_after:
                return result
    except BaseException as error:
        if is_cancellation(error):
            # The scope lets a cancellation pass if user code left a native cancel on the task (see
            # test_native_cancellation_left_behind_does_not_hide_a_timeout). It is the timeout
            # unless something outside is cancelled too, and then the outside wins.
            if not scope.cancel_called or cancelled():
                raise
        else:
            if scope.cancel_called:
                note(error, f"shoal: raised after the {named} of {seconds:g} s")
            raise
    finally:
        if watched is not None:
            services.watchdog.forget(watched)
        if time is not None:
            time.end()
    # The attempt may have swallowed an outer cancellation together with its own; see
    # test_what_returns_late_and_was_cancelled_from_outside_too_is_cancelled.
    await checkpoint_if_cancelled()
    raise too_long(what(), named, seconds, {} if waited is None else waited()) from (
        None if cause is None else cause()
    )


def too_long(what: str, named: str, seconds: float, waited: dict[str, float]) -> StepTimeout:
    """Return the error of a timeout.

    Args:
        what: What took too long.
        named: The argument by which the user gave the timeout.
        seconds: The timeout.
        waited: The seconds of waiting, by what for. A ``work_timeout`` doesn't count them.
    """
    beside = named != "timeout"
    msg = f"{what} took longer than its {named} of {seconds:g} s{in_words(waited, beside=beside)}"
    return StepTimeout(msg, waited)


@final
class AttemptTime:
    """The time of an attempt whose function is called by a pool; see ``TimePort``.

    A worker may have to be started first, with an initializer that takes longer than the function
    may, or it is at another call, which may take longer. That is not the attempt's fault.
    """

    __slots__ = (
        "_child",
        "_clock",
        "_is_stopped",
        "_parts",
        "_scope",
        "_seconds",
        "_watchdog",
        "_watched",
        "deadline",
    )

    def __init__(self, seconds: float | None, run: Run) -> None:
        """Begin nothing yet.

        Args:
            seconds: The timeout of the attempt; None: only the child has one.
            run: The run that the attempt belongs to.
        """
        self.deadline: float = math.inf
        self._seconds = math.inf if seconds is None else seconds
        # Both for the child, whose timeouts count such a wait as one.
        self._child: ChildTime | None = time_of(run)
        self._is_stopped = False
        self._clock = run.config.services.clock
        self._watchdog = run.config.services.watchdog
        self._watched: Watched | None = None
        self._scope: CancelScope | None = None  # only while `within` is in it
        self._parts: Callable[[], tuple[Part]] | None = None

    def begin(self, scope: CancelScope, parts: Callable[[], tuple[Part]]) -> None:
        """Let the time run that ``scope`` has."""
        self._scope, self._parts = scope, parts
        self.deadline = scope.deadline
        self._watched = self._watchdog.watch(parts, self.deadline)

    def stop(self) -> None:
        """See ``TimePort.stop``."""
        if self._child is not None and not self._is_stopped:
            self._is_stopped = True
            self._child.begin_wait("a worker")
        if self._scope is not None and not self._scope.cancel_called:
            self.deadline = self._scope.deadline = math.inf
            self._unwatch()

    def start(self) -> None:
        """See ``TimePort.start``."""
        self._go_on()
        scope, parts = self._scope, self._parts
        if scope is None or parts is None or scope.cancel_called or self.deadline < math.inf:
            return
        self.deadline = scope.deadline = self._clock() + self._seconds
        self._watched = self._watchdog.watch(parts, self.deadline)

    def end(self) -> None:
        """Stop for good."""
        self._go_on()
        self._unwatch()
        self._scope = self._parts = None

    def _go_on(self) -> None:
        if self._child is not None and self._is_stopped:
            self._is_stopped = False
            self._child.end_wait()

    def _unwatch(self) -> None:
        watched, self._watched = self._watched, None
        if watched is not None:
            self._watchdog.forget(watched)


def _parts(run: Run, coroutine: object) -> tuple[Part]:
    return (Part(run, coroutine),)


# -- retries ---------------------------------------------------------------------------------------


@final
class Tries:
    """The attempts of one step or child, as many as its ``Retry`` allows."""

    __slots__ = (
        "_account",
        "_began_at",
        "_hold",
        "_is_on",
        "_retry",
        "_run",
        "_services",
        "count",
        "last",
        "late",
        "next_in",
    )

    def __init__(self, retry: Retry, run: Run) -> None:
        """Count no attempt yet."""
        self._retry = retry
        self._run = run
        self._services = services = run.config.services
        self._account = None if retry.budget is None else services.retries.account(retry.budget)
        # Set by the first attempt; `Retry.total` counts from here, and holds don't count.
        self._began_at = 0.0
        self._hold = run.config.execution.hold
        # Whether an attempt is under way. A failure before `begin`, while waiting for a permit,
        # is not the action's, so it is not retried.
        self._is_on = False
        self.count: int = 0
        """Attempts that were begun."""
        # None until an attempt fails and is about to be retried. The caller resets it, since an
        # error's traceback leads back to the frame that holds this object.
        self.last: Exception | None = None
        """The failure of the attempt before."""
        # At least what `pause` has returned last.
        self.next_in: float = 0.0
        """Seconds after which the next attempt can begin, as far as limits tell."""
        self.late: StepTimeout | None = None
        """Why there is no other attempt, if the time of the child is over before it could begin."""

    def begin(self) -> None:
        """Count an attempt that begins now.

        Raises:
            Exception: The failure of the attempt before, if it is too late for another.
        """
        now = self._services.clock()
        if self.last is None:
            self._began_at = now - self._hold.seconds()
            if self._account is not None:
                self._account.earn(now)  # only first attempts earn, so retries can't pay for others
        elif self._is_late(now, self.last):
            raise self.last
        else:
            self._run.begin_attempt()
        self._is_on = True
        self.count += 1
        owner = self._run.slot_owner
        if owner.retries is not None:
            owner.retries.last_permit = None

    def pause(self, error: Exception) -> float | None:
        """Return the seconds to wait before the next attempt; None if there is none.

        If ``error`` could have been retried and isn't, a note in it says why.
        """
        retry, was_on = self._retry, self._is_on
        self._is_on = False
        if (
            not was_on
            or self._run.config.execution.is_doomed
            or cancelled()
            or not _is_for(self._run, retry, error)  # last, since it may call user code
        ):
            return None
        if self.count >= retry.attempts:
            if self.count > 1:
                note(error, f"shoal: in attempt {self.count} of {retry.attempts}")
            return None
        pause = retry.delay(self.count, self._services.retries.chance())
        now = self._services.clock()
        # Not only the delay: an attempt that a rate lets begin too late isn't waited for; see
        # test_an_attempt_that_a_rate_lets_begin_too_late_is_not_waited_for.
        self.next_in = starts_in(self._run, pause)
        if self._is_late(now + self.next_in, error):
            return None
        # Not waited for: the child's time is over before its next attempt can begin.
        self.late = _too_late(self._run, self.next_in)
        if self.late is not None:
            return None
        # After all other reasons not to retry: an attempt that isn't made must not be paid for.
        if self._account is not None and not self._account.spend(now):
            note(
                error, f"shoal: not tried again after attempt {self.count}: no {retry.budget} left"
            )
            return None
        self.last = error
        return pause

    def _is_late(self, at: float, error: Exception) -> bool:
        """Return whether ``Retry.total`` is over at that time; if so, note it in ``error``."""
        total = self._retry.total
        if total is None or at - self._hold.seconds() <= self._began_at + total:
            return False
        note(error, f"shoal: not tried again after attempt {self.count}: {total:g} s are over")
        return True


@ki_unprotected  # `Retry.on` may be a user's function
def _is_for(run: Run, retry: Retry, error: Exception) -> bool:
    # A poisoned child must not start again in this execution, whatever its retry allows; see
    # test_it_is_not_retried.
    if isinstance(error, Poisoned):
        return False
    injection = run.config.services.injection
    return retry.is_for(error) if injection is None else injection.is_for(run, retry, error)


@ki_protected
async def try_again(
    run: Run, tries: Tries, attempt: Callable[[], Awaitable[T]], *, publishes_last: bool
) -> T:
    """Make attempts until one succeeds, or fails and isn't retried.

    Args:
        run: The run that is retried, or whose step is.
        tries: Counts the attempts. Each attempt calls ``tries.begin`` once it holds its permit.
        attempt: Makes one attempt.
        publishes_last: Whether the end of an attempt that isn't retried is published as well.

    Raises:
        BaseException: The last attempt raised it.
    """
    failure: Exception | None = None
    late: StepTimeout | None = None
    while True:
        try:
            return await attempt()
        except BaseException as raised:
            # A halted attempt waits for an answer: whatever it raised, it has not failed.
            failure = None if run.is_halting else as_failure(raised)
            pause = None if failure is None else tries.pause(failure)
            if pause is None:
                # `tries.last` is raised again by `begin`; its attempt's end is published already.
                if failure is not None and failure is not tries.last and publishes_last:
                    await publish_attempt_ended(run, failure, None)
                late, tries.late = tries.late, None
                if late is not None:
                    raise late from failure
                if failure is None or failure is raised:
                    raise
                raise failure from failure.__cause__
            await publish_attempt_ended(run, failure, tries.next_in)
        finally:
            failure = late = None  # breaks the traceback cycle
        # A native cancel that the action left on this task would interrupt the wait below.
        await absorb_stray_cancel(run.config.services.native_cancels)
        await wait_without_slot(run, pause)


def _too_late(run: Run, seconds: float) -> StepTimeout | None:
    """Return the error of a child that has no time for another attempt, in ``seconds``."""
    time = time_of(run)
    if time is None or run.config.services.clock() + seconds < time.deadline:
        return None
    return time.too_late(seconds)


@ki_protected
async def try_step(
    run: Run, retry: Retry, attempt: Callable[[Callable[[], None]], Awaitable[T]]
) -> T:
    """Execute the current step of ``run``, with as many attempts as ``retry`` allows.

    Args:
        run: The run.
        retry: Which failures are retried, and how often.
        attempt: Makes one attempt, and calls its argument at the moment when the attempt begins.

    Raises:
        BaseException: The last attempt raised it.
    """
    tries = Tries(retry, run)
    try:
        # `walk` publishes the last attempt of a step, since it knows hooks around the step.
        return await try_again(run, tries, partial(attempt, tries.begin), publishes_last=False)
    finally:
        tries.last = None  # breaks the traceback cycle
