"""`cancel_everywhere`: cancel a scenario at every possible place.

Invariants:
- A place is the moment before a step of the event loop: on asyncio before any task's step or
  callback, timers' included; on trio before any task's step, and whenever no task can run. The
  cancellation is requested there between two steps, outside of any task.
- Each place is tried in an event loop of its own, on a virtual clock that starts at 0.
- Up to its place, each round repeats the round without a cancellation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from traceback import StackSummary
from typing import Any, Generic, Literal, TypeVar, TypeVarTuple, final, overload

import anyio
from anyio.lowlevel import cancel_shielded_checkpoint

from shoal.testing._clock import run_virtual
from shoal.testing._leaks import Census, judge
from shoal.testing._stacks import printed, stack_of
from shoal.testing._steps import Steps, steps_of_this_loop

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_REASON = "shoal.testing.cancel_everywhere"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ending(Generic[_T]):
    """How an attempt ended that didn't raise.

    Attributes:
        place: where cancellation was requested, counted from 1; 0 in the uncancelled round.
        cancelled: whether the attempt raised the cancellation. If not, it completed: before its
            place, in the same step, or in a shielded one after which nothing could be cancelled.
        result: the result of the function; None if it was cancelled.
    """

    place: int
    cancelled: bool
    result: _T | None


@final
class Attempt:
    """Cancels the function that the scenario of `cancel_everywhere` calls it with, once."""

    def __init__(self, place: int, how: Literal["scope", "native"]) -> None:
        """Plan an attempt.

        Args:
            place: Where to cancel; 0: nowhere.
            how: By a cancel scope, or by ``asyncio.Task.cancel``.
        """
        self._place = place
        self._how = how
        self._cancel: Callable[[], object]
        self._steps: Steps
        self._stood: list[tuple[str, StackSummary]] = []
        self._seen: int | None = None  # the places so far; None before the attempt
        self._requested = False

    async def __call__(self, function: Callable[[*_Ts], Awaitable[_T]], *args: *_Ts) -> Ending[_T]:
        """Call and await a function, cancelled at this round's place.

        Raises:
            LeakError: It left a task, thread, file descriptor or cancellation request behind.
            AssertionError: It swallowed its cancellation.
            Exception: Any exception of the function, in place of the cancellation or beside it.
        """
        if self._seen is not None:
            raise RuntimeError("an attempt is made once in each call of a scenario, not twice")
        self._seen = 0
        await cancel_shielded_checkpoint()  # trio's own tasks begin, so their steps are no places
        census = Census(threads=True, descriptors=True)
        self._steps = steps_of_this_loop(self._arrive, reason=_REASON)
        live = self._in_scope if self._how == "scope" else self._in_task
        try:
            ending = await live(function, *args)
        except Exception:
            await judge(census, inside="what was cancelled")
            raise
        await judge(census, inside="what was cancelled")
        return ending

    async def _in_scope(self, function: Callable[[*_Ts], Awaitable[_T]], *args: *_Ts) -> Ending[_T]:
        result, completed, hit = None, False, False
        with anyio.CancelScope() as scope:
            self._cancel = lambda: scope.cancel(_REASON)
            with self._steps:
                self._arrive()  # the first place: before it begins
                result = await function(*args)
                completed, hit = True, self._steps.hit()
        if completed and hit:
            raise _swallowed(result)
        return Ending(place=self._place, cancelled=not completed, result=result)

    async def _in_task(self, function: Callable[[*_Ts], Awaitable[_T]], *args: *_Ts) -> Ending[_T]:
        async def live() -> _T:
            try:
                return await function(*args)
            finally:
                self._steps.__exit__()  # later steps are not the function's

        with self._steps:
            task = asyncio.create_task(live(), name="attempt")
            self._cancel = task.cancel
            await asyncio.wait([task])
        if self._requested and task.cancelled():
            if task.cancelling() != 1:
                raise AssertionError(
                    f"one cancel was requested, and {task.cancelling()} are pending in the end."
                    f" HINT: code that catches a cancellation which it requested also calls"
                    f" uncancel(); other code must not"
                )
            return Ending(place=self._place, cancelled=True, result=None)
        result = task.result()
        if self._requested:
            raise _swallowed(result)
        return Ending(place=self._place, cancelled=False, result=result)

    def _arrive(self) -> None:
        assert self._seen is not None
        self._seen += 1
        if self._seen == self._place:
            self._stood = [(name, stack_of(coroutine)) for name, coroutine in self._steps.tasks()]
            self._requested = True
            self._cancel()

    def _story(self) -> str:
        """Return what was done to the scenario, and where its tasks stood."""
        if not self._requested:
            return "without having cancelled it"
        standing = "".join(
            f"  task {name!r} stood at\n{printed(stack, indent='    ')}"
            for name, stack in sorted(self._stood, key=lambda stood: stood[0])
        )
        return f"having cancelled it at place {self._place}, when\n{standing}"


def _swallowed(result: object) -> AssertionError:
    return AssertionError(
        f"a cancellation was swallowed: it was delivered, yet {result!r} was returned."
        f" HINT: look for an `except BaseException` or a `suppress` that doesn't let it through,"
        f" and for a `return` in a `finally`"
    )


@overload
def cancel_everywhere(
    scenario: Callable[[], Awaitable[_T]],
    check: Callable[[Ending[_T]], object],
    *,
    backend: Literal["asyncio", "trio"] = "asyncio",
    how: Literal["scope", "native"] = "scope",
    seed: int | None = None,
    limit: int | None = None,
    only: int | None = None,
) -> int: ...


@overload
def cancel_everywhere(
    scenario: Callable[[Attempt], Awaitable[object]],
    check: None = None,
    *,
    backend: Literal["asyncio", "trio"] = "asyncio",
    how: Literal["scope", "native"] = "scope",
    seed: int | None = None,
    limit: int | None = None,
    only: int | None = None,
) -> int: ...


def cancel_everywhere(
    scenario: Callable[..., Awaitable[Any]],
    check: Callable[[Ending[Any]], object] | None = None,
    *,
    backend: Literal["asyncio", "trio"] = "asyncio",
    how: Literal["scope", "native"] = "scope",
    seed: int | None = None,
    limit: int | None = None,
    only: int | None = None,
) -> int:
    """Run a scenario again and again, cancelling it at a later place each time.

    ``check`` is called after each round with its ending, and asserts what must hold however far the
    scenario has come:


    >>> accounts = {"mine": 10, "yours": 0}
    >>> async def transfer() -> None:
    ...     with anyio.CancelScope(shield=True):  # without it, 1 would be lost on the way
    ...         accounts["mine"] -= 1
    ...         await anyio.sleep(1)
    ...         accounts["yours"] += 1
    >>> def check(ending: Ending[None]) -> None:
    ...     assert sum(accounts.values()) == 10
    >>> cancel_everywhere(transfer, check)  # before it begins, while it sleeps, and after
    3

    If something must be prepared for each round, leave ``check`` out. The scenario is then a test
    of its own: it prepares, makes its one attempt, which is cancelled, and checks:

    >>> async def scenario(attempt: Attempt) -> None:
    ...     accounts = {"mine": 10, "yours": 0}
    ...
    ...     async def transfer() -> None:
    ...         with anyio.CancelScope(shield=True):
    ...             accounts["mine"] -= 10
    ...             await anyio.sleep(1)
    ...             accounts["yours"] += 10
    ...
    ...     await attempt(transfer)
    ...     assert sum(accounts.values()) == 10
    >>> cancel_everywhere(scenario)
    3

    The scenario is called in a new event loop each time, under virtual time: first without
    cancelling, then once for each place: each moment before a step that any task takes during the
    attempt. So keep it small: the time it takes grows with the square of its steps.

    These assertions are made after each attempt in any case. No task, thread or file descriptor is
    left. The cancellation was not swallowed, if it was delivered to the task that made the attempt.
    No more cancels are pending than were requested. And nothing hangs.

    An exception of the attempt, also beside or instead of the cancellation, is raised into the
    scenario. Some of them are right, as when a child failed in the same step: the scenario catches
    those, by their type. All others fail the test.

    An exception that fails the test has a note that says at which place, where all tasks stood
    then, and how to try this place alone.

    Threads are outside of virtual time: with them the places are not the same each time.

    Args:
        scenario: the function to cancel; without ``check``, a function that is called with an
            `Attempt`, and awaits ``attempt(function, *args)``.
        check: called with the `Ending`, in the same event loop, outside of the cancelled code; a
            coroutine function is awaited.
        backend: "asyncio" or "trio".
        how: "scope": an anyio scope around the attempt is cancelled. "native": the attempt is a
            task, and ``asyncio.Task.cancel`` is called on it, once: shields don't hold that off.
        seed: decides the order of simultaneous steps, see `run_virtual`. Without one, asyncio is
            first come, first served, and trio has the seed 0, so that its places stay the same.
        limit: the most places to try, spread evenly; None: all.
        only: the one place to try.

    Returns:
        The number of places at which the scenario was cancelled.

    Raises:
        ValueError: ``how="native"`` on trio, which has no native cancellation.
        RuntimeError: the scenario makes no attempt or two, or takes more steps in each round.
        VirtualDeadlock: it hangs.
        BaseException: any exception of the scenario.
    """
    if how == "native" and backend != "asyncio":
        raise ValueError('how="native" is asyncio\'s: on trio, choose how="scope"')
    if seed is None and backend == "trio":
        seed = 0
    attempted = scenario if check is None else partial(_checked, scenario, check)

    def run(place: int) -> Attempt:
        attempt = Attempt(place, how)
        try:
            run_virtual(attempted, attempt, backend=backend, seed=seed)
        except BaseException as error:
            again = f"HINT: cancel_everywhere(..., only={place}) tries this place alone"
            error.add_note(
                f"shoal: raised under cancel_everywhere (backend={backend!r}, how={how!r}, "
                f"seed={seed}), {attempt._story()}{again if attempt._requested else ''}"
            )
            raise
        if attempt._seen is None:
            raise RuntimeError(
                "the scenario made no attempt. HINT: await attempt(function, *args) in it"
            )
        return attempt

    if only is not None:
        return int(run(only)._requested)
    tried = 0
    for place in places(run(0)._seen or 0, limit):
        if not run(place)._requested:
            break
        tried += 1
    return tried


async def _checked(
    scenario: Callable[[], Awaitable[_T]], check: Callable[[Ending[_T]], object], attempt: Attempt
) -> None:
    pending = check(await attempt(scenario))
    if isinstance(pending, Awaitable):
        await pending


def places(total: int, limit: int | None) -> Iterable[int]:
    """Yield the places to try: those that were counted, and a few more."""
    if limit is not None and limit < total:
        yield from (1 + index * total // limit for index in range(limit))
        return
        # More than were counted, because a cancelled round may take more steps: the caller stops
        # when a round ends before its place.
    yield from range(1, 2 * total + 1)
    raise RuntimeError(
        f"the scenario had {total} places at first, and more than twice as many later."
        f" HINT: does it keep something from one call to the next?"
    )
