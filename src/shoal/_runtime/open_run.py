"""A run that ends with a block: its events and its steps.

Invariants:
- The run is executed in a task of the runtime's, so its failure never interrupts what the block
  awaits. Failures are raised by what the block calls, or where it is left: unwrapped, and at least
  once.
- After the block nothing that the run started is alive, however the block was left.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self, final

from anyio import get_current_task
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._concurrency.backend import Waiter
from shoal._concurrency.cancellation import ki_protected
from shoal._engine.run import Run
from shoal._errors.exceptions import BadUse
from shoal._errors.inspection import first_of
from shoal._errors.tracebacks import frames_hidden
from shoal._events.events import Event
from shoal._events.identity import RunPath
from shoal._events.stream import Stream, wake
from shoal._state.state import S

from .handle import RunHandle
from .result import RunResult
from .root_run import RootRun
from .runtime import Runtime

Gate = Callable[[str], Awaitable[None]]
"""Called before each step of a run with the step's name; the step begins when it returns."""


@final
class OpenRun(RunHandle[S]):
    """A run that goes on while its block lasts: ``async with app.open(...) as run``.

    The run has a task of its own and advances by itself. In the block, read its events with
    ``async for event in run``, wait for its end with ``result()``, or, if it was opened with
    ``stepwise=True``, let it take one step at a time with ``step()``.

    ``async for`` yields the events of the run and of all its descendants, in order, each once; so
    there is one consumer. While a loop reads, the run is held back when more than ``buffer`` events
    wait. While none reads, the oldest are dropped, and ``Missed`` is read in their place. After the
    last event a failure of the run is raised, unwrapped; the events of a cancelled run just end.
    Reading may be cancelled at any moment (``with move_on_after(1): await anext(run)``): no event
    is lost.

    Leaving the block early cancels the run with the reason ``"closed"``, drops unread events, and
    awaits the run's end, all cleanup included. Then the block's own exception, or its cancellation,
    goes on as it is. A failure of the run that was never raised is raised then, in an
    ``ExceptionGroup`` with the block's exception if there is one. The block must be left in the
    task that entered it.

    Examples:
        >>> import anyio
        >>> from shoal.events import ChildEnded
        >>> @action(reads=["n"], writes=["double"])
        ... async def double(n: int) -> int:
        ...     return 2 * n
        >>> async def main() -> None:
        ...     app = Application(fan_out(double, over="numbers", item="n", into="doubles"))
        ...     async with app.open({"numbers": [1, 2, 3]}) as run:
        ...         async for event in run:
        ...             if isinstance(event, ChildEnded):
        ...                 print(event.outcome.element, "->", event.outcome.value)
        ...         print((await run.result()).state["doubles"])
        >>> anyio.run(main)
        1 -> 2
        2 -> 4
        3 -> 6
        [2, 4, 6]
    """

    def __init__(
        self,
        path: RunPath,
        runtime: AbstractAsyncContextManager[Runtime],
        plan: Callable[[Runtime, Gate | None], RootRun],
        *,
        buffer: int,
        stepwise: bool,
    ) -> None:
        """Use ``Application.open``."""
        self._path = path  # the rest of a handle comes when the block is entered
        self._runtime = runtime
        self._plan = plan
        self._buffer = buffer
        self._stepwise = stepwise
        self._entered = False
        self._left = False
        # Whether a failure of the run was raised somewhere, so that leaving the block need not.
        self._has_raised = False

    # -- the block ------------------------------------------------------------------------------

    @ki_protected
    async def __aenter__(self) -> Self:
        """Start the run.

        Raises:
            BadUse: The block was entered before.
        """
        if self._entered:
            msg = f"run {self._path.id} was opened before: a second run needs a second app.open()"
            raise BadUse(msg)
        await checkpoint_if_cancelled()  # in a cancelled scope no action starts
        runtime = await self._runtime.__aenter__()
        runtime.check_open()
        try:
            waiter = runtime.services.waiter
            self._stream = Stream(self._path, waiter, self._buffer)
            self._steps = _Steps(waiter) if self._stepwise else None
            gate = None if self._steps is None else self._steps.pass_gate
            root = self._plan(runtime, gate)
            self._owner = get_current_task().id
            root.follow(_Ending(root, self._stream, self._steps), self._stream)
            runtime.begin(root)
            self._root = root
            await root.wait_begun()
            if root.seat is not None:
                # Runs that the block waits for must not wait until it is left.
                root.seat.surround()
        except BaseException:
            await self._runtime.__aexit__(None, None, None)  # leaves a shared one open
            raise
        self._entered = True
        return self

    @ki_protected
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        """End the run if it goes on, and await its end; see the class.

        Raises:
            BaseException: What interrupted the wait, or what the run failed with.
            BadUse: The block was entered in another task; the run has ended all the same.
        """
        self._root.cancel("closed")
        self._stream.close()  # before the wait: the run may be held back until an event is read
        interruption = await self._root.task.wait()
        if get_current_task().id != self._owner:
            msg = (
                f"the block of run {self._path.id} is left in another task than it was entered in "
                f"(an async generator that was never closed does that): the run was cancelled"
            )
            raise BadUse(msg)
        self._left = True
        try:
            await self._runtime.__aexit__(None, None, None)
        except BaseException as raised:  # noqa: BLE001 # raised below
            interruption = first_of(interruption, raised)
        try:
            with frames_hidden:
                self._leave(error, interruption)
        finally:
            del error, interruption  # breaks the traceback cycle

    def _leave(self, error: BaseException | None, interruption: BaseException | None) -> None:
        """Raise what takes precedence over ``error``, which the block raised.

        Raising nothing lets ``error`` go on.
        """
        failure = None if self._has_raised else self._root.failure
        try:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                return
            if failure is not None and not isinstance(failure, Exception):
                raise failure from None  # came out of the run; nothing outranks it
            if not isinstance(error, Exception | GeneratorExit | None):
                return  # the block was cancelled, and so was the wait: one cancellation is enough
            if interruption is not None:
                # Also if a generator is being closed, which would swallow the cancellation.
                raise interruption
            if isinstance(failure, Exception) and not isinstance(error, GeneratorExit):
                if error is None:
                    raise failure
                msg = f"run {self._path.id} failed, and so did the block that had opened it"
                raise ExceptionGroup(msg, [error, failure]) from None
        finally:
            # A task that waits in `result` or `step` is about to raise the same error.
            if not self._stream.waiting:
                self._root.release_error()
            del error, failure, interruption

    def __del__(self) -> None:
        """Warn if the block was entered and never left."""
        # Without the attribute, a Ctrl-C has interrupted `__init__`.
        if getattr(self, "_entered", False) and not self._left:
            warnings.warn(
                f"{self!r} was never left: open it with `async with`",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def _how(self) -> str:
        return super()._how() if self._entered else "not yet opened"

    # -- its events -----------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Event]:
        """Begin to read; the run is held back for the reader until the loop is left.

        Raises:
            BadUse: Another task reads, or the block isn't entered or was left.
        """
        self._check_begun()
        return _Loop(self, self._stream)

    async def __anext__(self) -> Event:
        """Return the next event, as soon as there is one. If it is cancelled, no event is lost.

        Raises:
            StopAsyncIteration: All events were read, and the run has ended without a failure.
            Exception: The run's failure, after all events.
            BadUse: Another task reads, or the block isn't entered or was left.
        """
        self._check_begun()
        return await self._read(None)

    async def _read(self, loop: int | None) -> Event:
        event = await self._stream.read(loop)
        if event is None:
            with frames_hidden:
                self._raise_failure()
            raise StopAsyncIteration
        return event

    # -- its end --------------------------------------------------------------------------------

    async def result(self) -> RunResult[S]:
        """Wait for the run's end without reading its events, and return its result.

        A halted run has ended for now: the result's ``status`` and ``questions`` say so.

        Unless another task reads, the run isn't held back meanwhile. Cancelling this cancels the
        wait; the run goes on until the block is left.

        Raises:
            Exception: The run's failure, unwrapped.
            RunCancelled: The run was cancelled: by ``cancel``, by leaving the block, or by its
                runtime.
            BadUse: The run is stepped and hasn't ended, or it failed and the block was left.
        """
        self._check_begun()
        if self._steps is not None and not self._root.has_ended:
            msg = (
                f"run {self._path.id} is opened stepwise, so waiting for its end would take for "
                f"ever: call step() until it returns None, then result()"
            )
            raise BadUse(msg)
        with frames_hidden, self._stream.waited():
            return await super().result()

    async def step(self) -> str | None:
        """Let the run take its next step, and return the step's name once it is committed.

        A fan-out is one step, with all its children. Cancelling this doesn't cancel the step; the
        next call then waits for that step, and starts no other.

        Returns None if the run has ended before, or was cancelled.

        Raises:
            Exception: The run's failure, unwrapped.
            BadUse: The run was not opened with ``stepwise=True``, or another task steps it.
        """
        self._check_begun()
        if self._steps is None:
            msg = (
                f"run {self._path.id} advances by itself; to take its steps one by one, open it "
                f"with app.open(..., stepwise=True)"
            )
            raise BadUse(msg)
        if self._steps.asked:
            msg = f"run {self._path.id} is being stepped already: let one task call step()"
            raise BadUse(msg)
        with self._stream.waited():
            step = await self._steps.take()
        if step is None:
            with frames_hidden:
                self._raise_failure()
        return step

    # -- helpers --------------------------------------------------------------------------------

    def _raise_failure(self) -> None:
        self._has_raised = self._has_raised or self._root.failure is not None
        super()._raise_failure()

    def _check_begun(self) -> None:
        if not self._entered:
            msg = (
                f"run {self._path.id} isn't opened yet: write `async with app.open(...) as run:` "
                f"and use it inside"
            )
            raise BadUse(msg)


@final
class _Loop(AsyncIterator[Event]):
    """One ``async for`` over a run.

    The loop alone refers to it, so leaving the loop, in whatever way, deletes it.
    """

    __slots__ = ("_number", "_run", "_stream")

    def __init__(self, run: OpenRun[Any], stream: Stream) -> None:
        self._number: int | None = None
        self._run = run
        self._stream = stream
        self._number = stream.enter_loop()

    def __anext__(self) -> Coroutine[Any, Any, Event]:
        return self._run._read(self._number)

    def __del__(self) -> None:
        if self._number is not None:
            self._stream.leave_loop(self._number)


@final
class _Ending:
    """Wakes what waits in an ``OpenRun`` when its run has ended.

    An object of its own, because the run must not refer to the ``OpenRun``: one that is dropped
    without being left is deleted, and warns.
    """

    __slots__ = ("_root", "_steps", "_stream")

    def __init__(self, root: RootRun, stream: Stream, steps: _Steps | None) -> None:
        self._root = root
        self._stream = stream
        self._steps = steps

    def __call__(self) -> None:
        self._stream.end()
        if self._steps is not None:
            run = self._root.run
            self._steps.end(completed=run is not None and _has_completed_all(run))


def _has_completed_all(run: Run) -> bool:
    """Whether a run that has ended has completed every step that it began."""
    return run.status == "succeeded" or (run.status == "halted" and run.step is None)


@final
class _Steps:
    """Permission for a run's steps, one at a time. Each completed step is reported once."""

    def __init__(self, waiter: Callable[[], Waiter]) -> None:
        self._waiter = waiter
        self._granted = False  # one step, from when `take` asks for it until `take` returns it
        self._under_way: str | None = None
        self._completed: str | None = None  # completed, and not returned by `take` yet
        self._ended = False
        self._news: Waiter | None = None  # the caller waits for it, in `take`
        self._grant: Waiter | None = None  # the run waits for it, in `pass_gate`

    @property
    def asked(self) -> bool:
        """Whether a caller waits for a step."""
        return self._news is not None

    async def take(self) -> str | None:
        """Grant a step, unless one is granted; return its name once committed, None at the end."""
        await checkpoint_if_cancelled()
        self._granted = True
        wake(self._grant)
        while self._completed is None and not self._ended:
            self._news = self._waiter()
            try:
                await self._news
            finally:
                self._news = None
        completed, self._completed = self._completed, None
        self._granted = False
        return completed

    async def pass_gate(self, step: str) -> None:
        """Report the step before as completed, and wait for permission to take ``step``."""
        self._report()
        while not self._granted or self._completed is not None:
            self._grant = self._waiter()
            try:
                await self._grant
            finally:
                self._grant = None
        self._under_way = step

    def end(self, *, completed: bool) -> None:
        """Wake the caller at the run's end; ``completed`` says whether its last step is."""
        if completed:
            self._report()
        self._ended = True
        wake(self._news)

    def _report(self) -> None:
        if self._under_way is not None:
            self._completed, self._under_way = self._under_way, None
            wake(self._news)
