"""Hedged attempts: an attempt of a late child, and a second copy of it, of which one counts.

The copy is an attempt of the same step of the same run, from the same state. It has a ``Run`` of
its own, of the same identity, for its permits; that run is never committed, published or retried.

Invariants:
- The first of the two that succeeds gives the step's change. The other one is cancelled, and
  awaited to the end of its cleanup, before the step goes on. If both fail, the failure of the
  attempt itself counts, as if there had been no copy.
- A cancellation of the attempt from outside ends both.
- A copy that has not begun when the attempt ends or is put off never begins, since it would only
  delay what comes next. It costs nothing.
- Nothing of a copy is saved. So where an attempt is about to save something before it ends (it
  starts children, or asks a question), the copy is ended: see ``go_on_alone``.
- A run that was at work in a crash, or in the death of a worker, has no copy.
- Of one attempt and its copy, only one gives partial items: the first that does goes on alone. If
  that is the copy, and it comes to where it has to save something, none of the two is left; then
  ``execute`` returns None, and the step is attempted once more, without a copy.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from functools import partial
from types import CoroutineType
from typing import Any, Literal, Protocol, final

from anyio import CancelScope, Event, sleep_forever
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._concurrency.cancellation import (
    absorb_stray_cancel,
    as_failure,
    cancelled,
    drive,
    is_cancellation,
    ki_protected,
)
from shoal._concurrency.watchdog import Part, Watched
from shoal._errors.exceptions import RunCancelled, SpuriousCancel, brief, note
from shoal._graph.action import FunctionAction
from shoal._limits.permits import AttemptPermit
from shoal._state.state import Change

from .progress import PendingQuestions
from .publish import publish_hedge_ended, publish_hedge_started
from .run import Run
from .standing import stands_for
from .streaming import Items

logger = logging.getLogger("shoal")

Which = Literal["first", "copy"]
Started = tuple["CoroutineType[Any, Any, None]", object]


class Hedging(Protocol):
    """The fan-out of a hedged child: it knows what is late, and starts copies."""

    def watch(self, attempt: HedgedAttempt) -> None:
        """Note that the attempt has begun; it is copied if it takes too long."""
        ...

    def forget(self, attempt: HedgedAttempt) -> None:
        """Note that the attempt needs no copy any more."""
        ...

    def learn(self, attempt: HedgedAttempt, seconds: float) -> None:
        """Add the time that an attempt took to those that are known of its step."""
        ...

    def copy(self, attempt: HedgedAttempt) -> None:
        """Start the copy of an attempt, which has got the budget for it."""
        ...

    def request(self, copy: Run, action: FunctionAction[..., Any]) -> AttemptPermit:
        """Request what a copy needs to start: its place, and what limits its action."""
        ...

    def started(self, attempt: HedgedAttempt) -> None:
        """Note that a copy has got all that, and begins."""
        ...

    def ended(self, attempt: HedgedAttempt, copy: Run, *, began: bool) -> None:
        """Give back the place of a copy."""
        ...

    def fail(self, error: BaseException) -> None:
        """End the fan-out because of an error that ends more than the copy."""
        ...


@final
class HedgedAttempt:
    """One attempt of the current step of a hedged child, and its copy if there is one."""

    __slots__ = (
        "_began_at",
        "_change",
        "_context",
        "_copy",
        "_copy_began",
        "_copy_began_at",
        "_copy_failure",
        "_copy_task",
        "_ended",
        "_first",
        "_gives_way",
        "_hedging",
        "_is_alone",
        "_items",
        "_make",
        "_scopes",
        "_starts_over",
        "_watched",
        "_winner",
        "action",
        "due_after",
        "run",
    )

    def __init__(
        self,
        run: Run,
        action: FunctionAction[..., Any],
        make: Callable[[Run, AttemptPermit], Coroutine[Any, Any, Change]],
    ) -> None:
        """Prepare an attempt; ``execute`` makes it.

        Args:
            run: The child.
            action: The action of its current step.
            make: Makes the one attempt of a copy, given its run and its permit.
        """
        self.run: Run = run
        self.action: FunctionAction[..., Any] = action
        in_flight = run.config.in_flight
        assert in_flight is not None, "it is the child of a fan-out"
        self._hedging: Hedging = in_flight.hedging
        self._make = make
        self.due_after: float = 0.0
        """Seconds after which it was late; set when it is."""
        self._began_at = 0.0  # of the function, once all limits have admitted it
        self._copy_began = False  # it has all that it needs; never unset
        self._copy_began_at: float | None = None  # of its function; None: it was not called
        self._scopes: dict[Which, CancelScope] = {}  # of those that live
        self._items: dict[Which, Items] = {}  # of those whose action may give any
        # Set once, by the first that succeeds; the change is its.
        self._winner: Which | None = None
        self._change: Change | None = None
        # Neither is ever unset. Whether there will be no copy, or none but the one that there is...
        self._is_alone = False
        # ...and whether that one counts, whatever becomes of the attempt itself.
        self._gives_way = False
        # Never unset: the copy goes on alone, and was ended where it had to save something.
        self._starts_over = False
        # Only while the attempt itself is made; the watchdog looks at it if it gives way.
        self._first: object = None
        self._watched: Watched | None = None
        # All four only while there is a copy.
        self._copy: Run | None = None
        self._copy_task: object = None
        self._copy_failure: Exception | None = None
        self._ended: Event | None = None
        # Of the function's task when it began: the copy has the same, with the spans of hooks.
        self._context: Context | None = None

    @property
    def began_at(self) -> float:
        """When the attempt began."""
        return self._began_at

    @property
    def copy_began_at(self) -> float | None:
        """When the function of its copy was called; None: no copy is at work."""
        return None if self._copy is None else self._copy_began_at

    @property
    def copy_task(self) -> object:
        """The coroutine that makes its copy; None: it has no copy."""
        return self._copy_task

    @property
    def is_won_by_copy(self) -> bool:
        """Whether the step goes on with the result of the copy."""
        return self._winner == "copy"

    # -- what the attempt itself says -------------------------------------------------------------

    def begin(self, run: Run) -> None:
        """Note that the function of ``run`` is about to be called: it waits for no limit now."""
        if run is not self.run:
            self._copy_began_at = self.run.config.services.clock()
            return
        self._began_at = self.run.config.services.clock()
        self._context = copy_context()
        retries = self.run.retry_state()
        # It may be what kills processes or workers, and has to be alone at work.
        is_suspect = retries.crashes - retries.is_suspect > 0
        if not (self._is_alone or is_suspect) and self._ended is None:
            self._hedging.watch(self)

    def pause(self, run: Run) -> None:
        """Note that ``run`` waits before its function is called again."""
        if run is self.run and not self._copy_began:
            # While it waits it isn't late, and a copy would be put off like it; see
            # test_a_copy_that_waits_is_dropped_where_its_attempt_is_put_off.
            self._hedging.forget(self)
            self._cancel("copy")

    def has_items(self, run: Run, items: Items) -> None:
        """Let ``items`` claim the attempt with the first of them."""
        which: Which = "first" if run is self.run else "copy"
        self._items[which] = items
        items.on_first = partial(self._claim, which)

    def _claim(self, which: Which) -> None:
        """End the other one: what this one does now is seen outside."""
        if not self._is_alone:
            self._is_alone = True
            self._hedging.forget(self)
            if which == "first":
                self._cancel("copy")
            else:
                self._give_way()

    async def go_on_alone(self, run: Run) -> None:
        """Return when there is no copy any more, and none will be. In the copy, never return."""
        is_copy = run is not self.run
        if is_copy:
            # The history has no copies, so this one can't go further. The attempt itself does, or
            # another one that is made in place of both.
            self._starts_over = self._gives_way
            self._cancel("copy")
        if is_copy or self._gives_way:
            if cancelled():
                await sleep_forever()
            # A shield around this call, or a thread that made it, keeps the cancellation off.
            which = "a second copy" if is_copy else "the first attempt"
            msg = f"{which} of action {self.action.name!r} of run {run.path.id} was ended"
            raise RunCancelled(msg)
        self._claim("first")
        if self._ended is not None:
            await self._ended.wait()

    def _cancel(self, which: Which) -> None:
        scope = self._scopes.get(which)
        if scope is not None:
            items = self._items.get(which)
            if items is not None:
                items.stop()
            scope.cancel()

    # -- the attempt ------------------------------------------------------------------------------

    @ki_protected
    async def execute(self, first: Coroutine[Any, Any, Change]) -> Change | None:
        """Make the attempt by awaiting ``first``; return its change or that of its copy.

        Returns None if another attempt has to be made in place of both; see
        test_a_copy_that_has_given_items_and_asks_is_replaced_by_another_attempt.

        Raises:
            BaseException: The attempt raised it, and a copy has not succeeded.
        """
        retries = self.run.retry_state()
        retries.hedged = self
        failure = await self._make_first(first)
        try:
            if failure is None or self._may_still_succeed(failure):
                await self._wait_for_copy()
                if self._winner == "copy":
                    failure = None
            if failure is None and self._winner != "first":
                # The function may have swallowed an outer cancellation together with that of its
                # copy; see test_what_is_cancelled_when_its_copy_wins_is_cancelled.
                await checkpoint_if_cancelled()
            if failure is None and self._winner is not None:
                assert self._change is not None, "set with the winner"
                return self._change
            if failure is None and self._starts_over:
                return None
            raise self._reason(failure)
        finally:
            try:
                await self._end_copy()
            finally:
                retries.hedged = self._copy_failure = self._context = None
                self._items.clear()  # breaks a cycle: they refer to this
                del failure  # breaks the traceback cycle

    async def _make_first(self, first: Coroutine[Any, Any, Change]) -> BaseException | None:
        """Make the attempt itself; return what it raised, None if that doesn't count."""
        scope = self._scopes["first"] = CancelScope()
        self._first = first
        try:
            with scope:
                self._settle("first", await first)
        except BaseException as error:  # noqa: BLE001 # raised by ``execute``
            return None if self._is_overruled(error) else error
        finally:
            del self._scopes["first"]
            self._first = None
            self._hedging.forget(self)
            if self._watched is not None:
                self.run.config.services.watchdog.forget(self._watched)
        return None

    @stands_for("copy")
    async def _wait_for_copy(self) -> None:
        """Wait for the end of the copy, if there is one and it may still succeed."""
        if self._winner is None and self._ended is not None:
            # A native cancel that the action left on this task would interrupt the wait.
            await absorb_stray_cancel(self.run.config.services.native_cancels)
            await self._ended.wait()

    def _reason(self, failure: BaseException | None) -> BaseException:
        """Return what to raise if both have failed."""
        other = self._copy_failure
        if failure is None:  # it has given way to its copy
            msg = f"a second copy of {self.action.name!r} was interrupted"
            return SpuriousCancel(msg) if other is None else other
        if other is not None and isinstance(failure, Exception):
            note(failure, f"shoal: so has a second copy: {brief(other)}")
        return failure

    def _settle(self, which: Which, change: Change) -> None:
        """Take the change of the first that succeeds, and cancel the other one."""
        # What gives way may return all the same, because it swallows its cancellation; see
        # test_one_that_gives_way_and_returns_all_the_same_has_lost.
        if self._winner is not None or (which == "first" and self._gives_way):
            return
        self._winner, self._change, self._is_alone = which, change, True
        now = self.run.config.services.clock()
        if which == "first":
            if self._context is not None:  # else its result was remembered
                self._hedging.learn(self, now - self._began_at)
        elif self._copy_began_at is not None:
            self._hedging.learn(self, now - self._copy_began_at)
            # It would have taken longer, nobody knows how much. Any longer time than this one, and
            # the delay would grow with each copy that wins; see
            # test_copies_that_win_do_not_make_the_delay_longer.
            self._hedging.learn(self, self.due_after)
        if which == "first":
            self._cancel("copy")
        else:
            self._give_way()

    def _give_way(self) -> None:
        """Cancel the attempt itself: its copy goes on alone, or has won."""
        self._gives_way = True
        self._cancel("first")
        services, first = self.run.config.services, self._first
        if first is not None and self._watched is None:
            parts = partial(_parts, self.run, first)
            self._watched = services.watchdog.watch(parts, services.clock())

    def _is_overruled(self, error: BaseException) -> bool:
        """Whether the copy counts in spite of what the attempt has raised."""
        if not self._gives_way:
            return False
        if is_cancellation(error):
            return not cancelled()  # else something around both is cancelled as well
        return not self.run.is_halting and as_failure(error) is not None

    def _may_still_succeed(self, failure: BaseException) -> bool:
        """Whether to wait for the copy now that the attempt has failed."""
        run = self.run
        if self._ended is None or self._ended.is_set():
            return False
        # It may wait for its limits for a long time, and a retry would wait with it; see
        # test_one_that_fails_does_not_wait_for_a_copy_that_has_not_begun.
        if not self._copy_began:
            return False
        # A halted attempt waits for a person, and a doomed execution saves nothing more.
        return not (run.is_halting or run.config.execution.is_doomed) and (
            as_failure(failure) is not None
        )

    # -- the copy ---------------------------------------------------------------------------------

    def grant(self) -> None:
        """Take the budget for a copy; see ``Waiting`` in ``fanout.hedge``."""
        self._hedging.copy(self)

    def copy(self, start: Callable[[Callable[[], CoroutineType[Any, Any, None]]], Started]) -> None:
        """Start a copy in a task that ``start`` starts."""
        assert not self._is_alone, "the fan-out has forgotten it then"
        assert self._ended is None, "only an attempt without a copy is watched"
        self._ended = Event()
        # Before the task has begun: the attempt may succeed until then.
        self._scopes["copy"] = CancelScope()
        self._copy_task, _ = start(self._live)

    @ki_protected
    async def _live(self) -> None:
        """Make the one attempt of the copy. Raises nothing: the group would be cancelled."""
        copy = self._copy = _copy_of(self.run)
        permit: AttemptPermit | None = None
        try:
            with self._scopes["copy"]:
                permit = self._hedging.request(copy, self.action)
                # Not by `_attempt`, which publishes a wait: the child itself doesn't wait.
                await permit.wait()
                await checkpoint_if_cancelled()
                execution = self.run.config.execution
                if execution.hold.is_on or execution.drain.reason is not None:
                    return  # nothing begins any more, and the attempt itself goes on
                self._copy_began = True
                self._hedging.started(self)
                await self._attempt(copy, permit)
        except BaseException as error:  # noqa: BLE001 # handed over
            self._copy_has_raised(error)
        finally:
            if permit is not None and not self._copy_began:
                permit.cancel()
            self._hedging.ended(self, copy, began=self._copy_began)
            if copy.abandoned:
                self.run.retry_state().abandoned = True  # its thread still runs
            del self._scopes["copy"]
            self._copy = self._copy_task = None
            copy.retry_state().hedged = None
            assert self._ended is not None
            self._ended.set()
            if not self._copy_began:
                self._ended = None  # the attempt may be late once more, if it was put off

    async def _attempt(self, copy: Run, permit: AttemptPermit) -> None:
        body = self._make(copy, permit)
        try:
            await publish_hedge_started(copy, self.due_after)
            assert self._context is not None, "it is late, so it has begun"
            await drive(self._context.copy(), self._body(body), _nothing)
        finally:
            body.close()  # if it never began
            await publish_hedge_ended(copy, is_used=self.is_won_by_copy)

    async def _body(self, attempt: Awaitable[Change]) -> None:
        self._settle("copy", await attempt)

    def _copy_has_raised(self, error: BaseException) -> None:
        """Keep the failure of a copy; end the group for an error that ends more than that."""
        failure = as_failure(error)
        if failure is None:
            if not is_cancellation(error):
                self._hedging.fail(error)
            return
        self.run.config.secrets.hide(failure)
        self._copy_failure = failure
        if self.run.config.execution.ended_by(failure):
            self._hedging.fail(failure)

    async def _end_copy(self) -> None:
        """Cancel the copy, if there is one, and wait for its end."""
        ended = self._ended
        if ended is None or ended.is_set():
            return
        self._cancel("copy")
        services = self.run.config.services
        parts = partial(_parts, self.run, self._copy_task)
        watched = services.watchdog.watch(parts, services.clock())
        try:
            await absorb_stray_cancel(services.native_cancels)
            with CancelScope(shield=True):
                await ended.wait()
        finally:
            services.watchdog.forget(watched)

    def __repr__(self) -> str:
        return f"<HedgedAttempt of {self.action.name!r} in {self.run.path!r}>"


def _copy_of(run: Run) -> Run:
    """Make the run of a copy: the identity and the state of ``run``, and permits of its own."""
    copy = Run(
        run.config,
        run.initial,
        key=run.key,
        position=run.position,
        element=run.element,
        path=run.path,
    )
    copy.head, copy.step, copy.steps = run.head, run.step, run.steps
    copy.began = True
    if run.questions is not None:
        copy.questions = PendingQuestions(run.questions.asked)
    own, retries = run.retry_state(), copy.retry_state()
    retries.attempt, retries.result_key, retries.hedged = own.attempt, own.result_key, own.hedged
    return copy


async def claim(run: Run) -> None:
    """Return when no second copy of the present attempt of ``run`` is at work, nor will be.

    To be called before an attempt saves something. In a copy this is where it ends: it is
    cancelled.
    """
    hedged = None if run.retries is None else run.retries.hedged
    if hedged is not None:
        await hedged.go_on_alone(run)


def hedged_attempt(run: Run) -> HedgedAttempt | None:
    """Return the hedged attempt that ``run`` makes, or whose copy it is."""
    return None if run.retries is None else run.retries.hedged


def _parts(run: Run, coroutine: object) -> tuple[Part]:
    return (Part(run, coroutine),)


def _nothing() -> None:
    """Ignore that the copy waits: there are no workers to add."""
