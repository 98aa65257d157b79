"""A run as its caller holds it: its events, its steps, its result. Imports everything above.

Invariants:
- The run lives in a task of the runtime's: nothing that becomes of it interrupts what the block
  awaits. Failures are told in band, unwrapped, and once at least.
- After the block nothing that the run started is alive, however the block was left.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Literal, Self, cast, final

from anyio import get_current_task
from anyio.lowlevel import checkpoint_if_cancelled

from ._cancel import ki_protected
from ._errors import BadUse, RunCancelled
from ._events import Event, Failed, Outcome, Question, Status
from ._graph import Graph
from ._group import Group
from ._hooks import Hook
from ._host import Hosted
from ._ids import Key, RunPath
from ._join import Ledger
from ._ports import Waiter
from ._recorded import read_outcomes
from ._root import Root
from ._run import Run
from ._runtime import Runtime
from ._state import S, State
from ._stream import Stream, wake

Gate = Callable[[str], Awaitable[None]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult(Generic[S]):
    """What a run came to."""

    run_id: str
    """The run's id."""
    state: State[S]
    """Its final state; ``state.data`` is an instance of the application's model. If the run is
    halted, the state as it was committed last."""
    status: Literal["succeeded", "halted"] = "succeeded"
    """``"halted"`` if it waits: for answers to its ``questions``, or, where it has none, since it
    was told to halt between two steps."""
    questions: Sequence[Question] = ()
    """What it and its descendants wait for; of siblings, in order of their positions."""
    _ledgers: Mapping[str, Sequence[Ledger]] = field(repr=False)
    _run: Run = field(repr=False, compare=False)

    def outcomes(self, step: str, visit: int = -1) -> Ledger:
        """Return how the children of the fan-out ``step`` ended: counts, and who is not Done.

        Those that are Done are in the state, where ``into`` or ``reduce`` has put them;
        ``all_outcomes`` reads them from the store.

        Args:
            step: The fan-out's name; inside of a graph that is a node, ``"graph/fan-out"``; of an
                action's own fan-out, ``"action/fan-out"``.
            visit: Which execution of it, counted from 0; by default the last one.

        Raises:
            KeyError: The run executed no fan-out of that name, or not so often.
        """
        try:
            ledgers = self._ledgers[step]
        except KeyError:
            names = ", ".join(sorted(self._ledgers)) or "none"
            msg = f"run {self.run_id} executed no fan-out named {step!r} (it did: {names})"
            raise KeyError(msg) from None
        try:
            return ledgers[visit]
        except IndexError:
            msg = f"run {self.run_id} executed {step!r} {len(ledgers)} times; no visit {visit}"
            raise KeyError(msg) from None

    def all_outcomes(self, step: str, visit: int = -1) -> AsyncIterator[Outcome]:
        """Read how each child of the fan-out ``step`` ended from the store, in input order.

        Read lazily: ``async for outcome in result.all_outcomes("titles")``. The ``state`` of a
        child that is Done holds the fields that it has written; not where the children are kept
        nowhere, and of an action's own fan-out with a ``store=`` only in the execution that ran it.

        Args:
            step: The name of one of the run's own fan-outs; of an action's, ``"action/fan-out"``.
                Inside of a graph that is a node, only ``outcomes`` can tell.
            visit: Which execution of it, counted from 0; by default the last one.

        Raises:
            KeyError: The run executed no fan-out of that name, or not so often.
            BadUse: The run has no store, or the fan-out is one inside of a graph that is a node.
            StoreFailed: The store did not say.
        """
        ledger = self.outcomes(step, visit)
        self._refuse_inner(step)
        count = len(self._ledgers[step])
        return read_outcomes(self._run, step, visit % count, ledger.kept_in)

    def _refuse_inner(self, step: str) -> None:
        graph = self._run.setting.graph
        node, _, inner = step.partition("/")
        if graph.find(step) is None and isinstance(graph.find(node), Graph):
            msg = (
                f"run {self.run_id}: {inner!r} is a fan-out of {node!r}, which is a graph and so a "
                f"run of its own, and only the run's own children can be read back; "
                f"outcomes({step!r}) has their counts and what brought nothing, and what they came "
                f"to is in the state, if {node!r} writes it"
            )
            raise BadUse(msg)

    def raise_for_failures(self) -> None:
        """Raise the failures that were collected or ignored, if there are any.

        For those who collect failures and, in the end, want none. What failed below a child that
        put up with it is not among them, for that child is Done; nor is what failed in an action's
        own fan-out, for it was raised there, or handed to the action.

        Raises:
            ExceptionGroup: All failures of the run's fan-outs, in the order of the steps and,
                within each, of the input.
        """
        errors = [
            outcome.error
            for ledgers in self._ledgers.values()
            for ledger in ledgers
            for outcome in ledger
            if isinstance(outcome, Failed)
        ]
        if errors:
            count = "a child" if len(errors) == 1 else f"{len(errors)} children"
            msg = f"{count} of run {self.run_id} failed"
            raise ExceptionGroup(msg, errors)


def result_of(run: Run) -> RunResult[Any]:
    """Make the result of a root run that has succeeded, or is halted."""
    halted = run.status == "halted"
    return RunResult(
        run_id=run.path.id,
        state=run.state,
        status="halted" if halted else "succeeded",
        questions=run.questions if halted else (),
        _ledgers=run.ledgers,
        _run=run,
    )


@final
class OpenRun(Generic[S]):
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
        plan: Callable[[Runtime, Hook, Gate | None], Root],
        *,
        buffer: int,
        stepwise: bool,
    ) -> None:
        """Use ``Application.open``."""
        self._path = path
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
            root = self._plan(runtime, self._stream, gate)
            self._owner = get_current_task().id
            self._root: Hosted = runtime.start(root, _Ending(root, self._stream, self._steps))
            self._run = await self._begun(root)
        except BaseException:
            await self._runtime.__aexit__(None, None, None)  # leaves a shared one open
            raise
        self._entered = True
        return self

    async def _begun(self, root: Root) -> Run:
        """Wait until the run goes on, or is known to have ended long ago."""
        if root.run is None:
            try:
                await root.begun.wait()
            except BaseException:
                self._root.cancel("closed")
                await self._root.wait()
                raise
        if root.run is None:
            await self._root.wait()
            try:
                raise self._root.fatal or root.error or self._never_began(root.reason)
            finally:
                root.error = None  # no cycle from the exception to this frame
        return root.run

    def _never_began(self, reason: str) -> RunCancelled:
        return RunCancelled(f"run {self._path.id} was cancelled before it began: {reason}")

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
        self._root.cancel("closed")
        self._stream.close()
        interruption = await self._root.wait()
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
            interruption = interruption or raised
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
                self._root.fatal = None
                self._run.forget()
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

    def __repr__(self) -> str:
        how = (self.status or "running") if self._entered else "not yet opened"
        return f"<OpenRun {self._path.id}: {how}>"

    # -- what it is -----------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._path.id

    @property
    def status(self) -> Status | None:
        """How the run ended; None while it goes on."""
        self._check_entered()
        return self._run.status if self._root.ended.is_set() else None

    @property
    def state(self) -> State[S]:
        """The state as it was last committed: at any time, after a failure or the block too.

        Read upon an event, it may be further than the event: what that changed is in its
        ``update``.
        """
        self._check_entered()
        return cast("State[S]", self._run.state)

    # -- its events -----------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Event]:
        """Begin to read; the run is held back for the reader until the loop is left.

        Raises:
            BadUse: Another task reads, or the block isn't entered or was left.
        """
        self._check_entered()
        return _Loop(self, self._stream)

    async def __anext__(self) -> Event:
        """Return the next event, as soon as there is one. Cancelled, it takes none.

        Raises:
            StopAsyncIteration: The run has ended, and not failed; all events were read.
            Exception: The run's failure, after all events.
            BadUse: Another task reads, or the block isn't entered or was left.
        """
        self._check_entered()
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
        self._check_entered()
        if self._steps is not None and not self._root.ended.is_set():
            msg = (
                f"run {self._path.id} is opened stepwise, so waiting for its end would take for "
                f"ever: call step() until it returns None, then result()"
            )
            raise BadUse(msg)
        with self._stream.waited():
            await self._root.ended.wait()
        self._raise_failure()
        run = self._run
        if run.status in ("succeeded", "halted"):
            return result_of(run)
        if run.status == "cancelled":
            msg = f"run {self._path.id} has no result, it was cancelled: {run.reason}"
            raise RunCancelled(msg)
        msg = f"run {self._path.id} failed; what with was raised until its block was left"
        raise BadUse(msg)

    def cancel(self, reason: str) -> None:
        """Cancel the run, at once and without waiting; if it has ended, nothing happens.

        Its actions are cancelled where they wait; it ends as cancelled for ``reason`` when all
        cleanup has. Its last events can still be read, and hold it back as all others do.

        Args:
            reason: Who cancels it, or why; ``RunEnded.reason`` says so.
        """
        self._check_entered()
        if not isinstance(reason, str):
            msg = f"cancel(reason) takes a string, not {reason!r}"
            raise TypeError(msg)
        self._root.cancel(reason)

    def cancel_child(self, child: Key | RunPath, reason: str, *, act: str | None = None) -> bool:
        """Cancel one child of the run, at once and without waiting; its siblings don't notice.

        It ends as ``Cancelled`` for ``reason`` when its cleanup has, and brings nothing: a fan-out
        goes on without it, and a race without that contestant. An action's own fan-out gives the
        action that outcome.

        Args:
            child: Its key within the fan-out that the run executes now; or its path, as events have
                it, at any depth.
            reason: Who cancels it, or why.
            act: Of several children with that key, the one that executes the act of this name; in a
                race among acts the key is ``""``.

        One that waits to start, for a slot, a rate, its turn, never does.

        Returns whether there was such a child, which had not ended. An element that was not pulled
        yet, since there is no place for its child, is none.
        """
        self._check_entered()
        if not isinstance(reason, str):
            msg = f"cancel_child(child, reason) takes a string as reason, not {reason!r}"
            raise TypeError(msg)
        groups = cast("set[Group]", self._run.setting.execution.groups)
        if isinstance(child, RunPath):
            of_parent = [group for group in groups if group.parent.path == child.parent]
            key, act, step = child.key, child.act, child.step
        else:
            depth = min((group.parent.path.depth for group in groups), default=0)
            of_parent = [group for group in groups if group.parent.path.depth == depth]
            key, step = child, None
        # not any(): each of them is asked
        return True in [group.cancel_child(key, reason, act, step) for group in of_parent]

    async def step(self) -> str | None:
        """Let the run take its next step, and return its name once that is committed.

        The children of a fan-out aren't stepped: it is one step. Cancelling this doesn't cancel the
        step; the next call then waits for that one, and starts no other.

        Returns None where the run has ended before, or was cancelled.

        Raises:
            Exception: The run's failure, unwrapped.
            BadUse: The run was not opened with ``stepwise=True``, or somebody steps it already.
        """
        self._check_entered()
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

    def _failure(self) -> BaseException | None:
        return self._root.fatal or self._run.error

    def _raise_failure(self) -> None:
        failure = self._failure()
        if failure is not None:
            self._told = True
            try:
                raise failure
            finally:
                del failure  # no cycle from the exception to this frame

    def _check_entered(self) -> None:
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
    return run.status == "succeeded" or (run.status == "halted" and run.current_step is None)


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
