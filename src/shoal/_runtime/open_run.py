"""A run that ends with a block: its events, its steps. Imports everything above.

Invariants:
- The run lives in a task of the runtime's: nothing that becomes of it interrupts what the block
  awaits. Failures are told in band, unwrapped, and once at least.
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
from shoal._events.events import Event
from shoal._events.identity import RunPath
from shoal._events.stream import Stream, wake
from shoal._state.state import S

from .handle import RunHandle, wait_begun
from .result import RunResult
from .root_run import Root
from .runtime import Runtime

Gate = Callable[[str], Awaitable[None]]


@final
class OpenRun(RunHandle[S]):
    """A run that goes on while its block lasts: ``async with app.open(...) as run``.

    The run lives in a task of its own and advances by itself. In the block, read its events with
    ``async for event in run``, wait for its end with ``result()``, or, if it was opened with
    ``stepwise=True``, let it take one step at a time with ``step()``.

    ``async for`` gives the events of the run and of all its descendants, in order, each once, so to
    one consumer. While a loop reads, the run is held back when more than ``buffer`` events wait.
    Where nobody reads, the oldest are dropped, and ``Missed`` is read in their place. After the
    last event a failure of the run is raised, unwrapped; a cancelled run's events just end.
    Reading may be cancelled at any moment (``with move_on_after(1): await anext(run)``): no event
    is lost.

    Leaving the block early cancels the run, with the reason ``"closed"``, drops what was not read,
    and awaits the run's end, all cleanup included. Then what the block raised goes on, bare, a
    cancellation too. A failure of the run that nobody was told of is raised then, in an
    ``ExceptionGroup`` with the block's exception if there is one. The block is left in the task
    that entered it.

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
        plan: Callable[[Runtime, Gate | None], Root],
        *,
        buffer: int,
        stepwise: bool,
    ) -> None:
        """Use ``Application.open``."""
        self._path = path  # what else a handle has, it has when the block is entered
        self._runtime = runtime
        self._plan = plan
        self._buffer = buffer
        self._stepwise = stepwise
        self._entered = False
        self._left = False
        self._told = False  # whether somebody was told that the run failed

    # -- the block ------------------------------------------------------------------------------

    @ki_protected
    async def __aenter__(self) -> Self:
        """Start the run.

        Raises:
            BadUse: It was entered before.
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
            await wait_begun(root)
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
            BaseException: What interrupted that, or what the run failed with.
            BadUse: The block was entered in another task; the run has ended all the same.
        """
        hosted = self._root.hosted
        assert hosted is not None, "it was entered"
        hosted.cancel("closed")
        self._stream.close()
        interruption = await hosted.wait()
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
            self._leave(error, interruption)
        finally:
            del error, interruption  # no cycle from the exception to this frame

    def _leave(self, error: BaseException | None, interruption: BaseException | None) -> None:
        """Raise what goes before ``error``, which the block raised and which goes on by itself."""
        failure = None if self._told else self._failure()
        try:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                return
            if failure is not None and not isinstance(failure, Exception):
                raise failure from None  # came out of the run; nothing outranks it
            if not isinstance(error, Exception | GeneratorExit | None):
                return  # a cancellation, like the interruption
            if interruption is not None:
                raise interruption  # also where a generator is closed, which would swallow it
            if isinstance(failure, Exception) and not isinstance(error, GeneratorExit):
                if error is None:
                    raise failure
                msg = f"run {self._path.id} failed, and so did the block that had opened it"
                raise ExceptionGroup(msg, [error, failure]) from None
        finally:
            if not self._stream.waiting:  # else somebody is about to be told as well
                self._root.forget()
            del error, failure, interruption

    def __del__(self) -> None:
        """Warn if the block was entered and never left."""
        if self._entered and not self._left:
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
        """Return the next event, as soon as there is one. Cancelled, it takes none.

        Raises:
            StopAsyncIteration: The run has ended, and not failed; all events were read.
            Exception: The run's failure, after all events.
            BadUse: Another task reads, or the block isn't entered or was left.
        """
        self._check_begun()
        return await self._read(None)

    async def _read(self, loop: int | None) -> Event:
        event = await self._stream.read(loop)
        if event is None:
            self._raise_failure()
            raise StopAsyncIteration
        return event

    # -- its end --------------------------------------------------------------------------------

    async def result(self) -> RunResult[S]:
        """Wait for the run's end, without reading its events, and return what it came to.

        A run that is halted has ended for now; ``status`` and ``questions`` of the result say so.

        Where nobody else reads, the run isn't held back meanwhile. Cancelling this cancels the
        wait; the run goes on until the block is left.

        Raises:
            Exception: The run's failure, unwrapped.
            RunCancelled: It was cancelled: by ``cancel``, by leaving the block, or by its runtime.
            BadUse: The run is stepped and hasn't ended, or it failed and the block was left.
        """
        self._check_begun()
        if self._steps is not None and not self._root.has_ended:
            msg = (
                f"run {self._path.id} is opened stepwise, so waiting for its end would take for "
                f"ever: call step() until it returns None, then result()"
            )
            raise BadUse(msg)
        with self._stream.waited():
            return await super().result()

    async def step(self) -> str | None:
        """Let the run take its next step, and return its name once that is committed.

        The children of a fan-out aren't stepped: it is one step. Cancelling this doesn't cancel the
        step; the next call then waits for that one, and starts no other.

        Returns None where the run has ended before, or was cancelled.

        Raises:
            Exception: The run's failure, unwrapped.
            BadUse: The run was not opened with ``stepwise=True``, or somebody steps it already.
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
            self._raise_failure()
        return step

    # -- helpers --------------------------------------------------------------------------------

    def _raise_failure(self) -> None:
        self._told = self._told or self._failure() is not None
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
    """One ``async for`` over a run: it alone refers to this, so leaving the loop deletes it."""

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
    """Tells whoever waits that a run has ended. Not the handle, which may be forgotten."""

    __slots__ = ("_root", "_steps", "_stream")

    def __init__(self, root: Root, stream: Stream, steps: _Steps | None) -> None:
        self._root = root
        self._stream = stream
        self._steps = steps

    def __call__(self) -> None:
        self._stream.end()
        if self._steps is not None:
            run = self._root.run
            self._steps.end(completed=run is not None and _has_completed_all(run))


def _has_completed_all(run: Run) -> bool:
    """Tell whether a run that has ended has completed each step it has begun."""
    return run.status == "succeeded" or (run.status == "halted" and run.step is None)


@final
class _Steps:
    """Permission for a run's steps, one at a time. Each step is reported once."""

    def __init__(self, waiter: Callable[[], Waiter]) -> None:
        self._waiter = waiter
        self._granted = False  # one step, from when it is asked for until it is reported
        self._under_way: str | None = None
        self._completed: str | None = None  # and not reported yet
        self._ended = False
        self._news: Waiter | None = None  # what the caller waits for
        self._grant: Waiter | None = None  # what the run waits for

    @property
    def asked(self) -> bool:
        """Whether somebody waits for a step."""
        return self._news is not None

    async def take(self) -> str | None:
        """Grant a step, if none is granted; return its name when committed, None at the end."""
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
        """Report the step before, and wait for permission to take ``step``."""
        self._report()
        while not self._granted or self._completed is not None:
            self._grant = self._waiter()
            try:
                await self._grant
            finally:
                self._grant = None
        self._under_way = step

    def end(self, *, completed: bool) -> None:
        """Hear that the run has ended, its last step ``completed`` or not."""
        if completed:
            self._report()
        self._ended = True
        wake(self._news)

    def _report(self) -> None:
        if self._under_way is not None:
            self._completed, self._under_way = self._under_way, None
            wake(self._news)
