"""A handle of a run that goes on in a runtime.

Invariants:
- Neither a handle nor dropping it does anything to the run.
- Followers never hold a run back: events that a follower does not read in time are dropped for it
  alone.
- Reading and waiting can be cancelled at any moment, and the run does not notice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import contextmanager
from time import time
from typing import Generic, cast, final

from shoal._engine.fanout.group import ChildTaskGroup
from shoal._engine.fanout.ledger import Ledger
from shoal._engine.run import Run
from shoal._errors.completion import hides
from shoal._errors.exceptions import DefinitionError, did_you_mean
from shoal._errors.tracebacks import frames_hidden
from shoal._events.events import ChildName, Event, Question, Status
from shoal._events.identity import Key, RunPath
from shoal._events.report import Report
from shoal._events.stream import Stream
from shoal._state.state import S, State
from shoal.stores._history import Steered
from shoal.stores._watching import CommandKind

from .result import RunResult
from .root_run import RootRun

BUFFER = 1000
"""Events that may wait to be read, by default."""


@hides("is_interrupted")
class RunHandle(Generic[S]):
    """A run that goes on in a runtime: to look at, wait for, follow and cancel.

    ``await runtime.start(app, ...)`` returns one, for work that outlives the caller;
    ``runtime.find(run_id)`` and ``runtime.runs()`` return those of runs that go on. An ``OpenRun``
    is a handle whose run ends with its block.

    There may be several handles of one run. The run needs none of them, and there is nothing to
    close: the runtime's block awaits the run.

    Examples:
        >>> import anyio
        >>> @action(reads=["n"], writes=["double"])
        ... async def double(n: int) -> int:
        ...     return 2 * n
        >>> async def main() -> None:
        ...     async with Runtime() as runtime:
        ...         run = await runtime.start(Application(double), {"n": 3})
        ...         print(await run.wait_ended(), run.state["double"])
        >>> anyio.run(main)
        succeeded 6
    """

    def __init__(self, root: RootRun) -> None:
        """Use ``Runtime.start`` or ``Runtime.find``."""
        self._path = root.path
        self._root = root

    # -- what it is -----------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._path.id

    @property
    def owner(self) -> str:
        """Whose run it is; empty if it has no owner."""
        return self._root.owner

    @property
    def application(self) -> str:
        """The name of its application."""
        return self._path.act

    @property
    def status(self) -> Status | None:
        """How the run ended; None while it goes on."""
        self._check_begun()
        return self._run.status if self._root.has_ended else None

    @property
    def state(self) -> State[S]:
        """The state as it was committed last, also after a failure or the end.

        Read upon an event, it may be newer than the event, whose own change is its ``update``.
        """
        self._check_begun()
        return cast("State[S]", self._run.state)

    @property
    def number(self) -> int:
        """The number of the update that led to ``state``; 0 before the first."""
        self._check_begun()
        return self._run.number

    @property
    def error(self) -> BaseException | None:
        """What the run failed with; None if it has not failed."""
        self._check_begun()
        return self._root.failure

    @property
    def reason(self) -> str:
        """Why the run was cancelled, or drained if that has halted it; else empty."""
        self._check_begun()
        return self._run.reason if self.status in ("cancelled", "halted") else ""

    @property
    def questions(self) -> Sequence[Question]:
        """The open questions of a halted run; otherwise none."""
        self._check_begun()
        return self._run.open_questions if self.status == "halted" else ()

    @property
    def is_interrupted(self) -> bool:
        """Whether the run was cancelled because its process stops; another one can recover it."""
        return self._root.is_interrupted

    @property
    def report(self) -> Report | None:
        """What the run and its descendants do now, and where the time went so far.

        None if the run isn't watched (see ``Runtime(watch=...)``), or before the first sample, 50
        ms after its start.
        """
        return self._root.report

    def winner(self, step: str) -> ChildName | None:
        """Return which contestant has won a race of the run; None as long as none has.

        In a race by ``first_item`` the contestant is known as soon as it leads, which is while it
        goes on; ``LeaderChanged`` is the event. Of a race that was executed several times, it is
        the last one's. After a success, ``result.outcomes(step).winner`` says the same.

        Args:
            step: The race's name; inside of a graph that is a node, ``"graph/race"`` once that has
                ended.

        Raises:
            KeyError: The run's graph has no such step.
        """
        self._check_begun()
        ledgers = self._run.ledgers.get(step)
        if ledgers:
            return cast("Ledger", ledgers[-1]).winner
        graph = self._run.config.graph
        if graph.find(step.partition("/")[0]) is None:
            names = [act.name for act in graph.acts]
            msg = (
                f"run {self.run_id} has no step {step!r} (it has: {', '.join(names)})"
                f"{did_you_mean(step, names)}"
            )
            raise KeyError(msg)
        return None

    # -- its events -----------------------------------------------------------------------------

    @contextmanager
    def events(self, *, buffer: int = BUFFER) -> Generator[RunEvents]:
        """Follow the run from now on: ``with run.events() as events``, then ``async for``.

        Yields the events of the run and of all its descendants, in order, and stops when the run
        has ended, in whatever way. Any number of followers read, each at its own pace, and none
        holds the run back. A follower with more than ``buffer`` unread events loses the oldest, and
        reads ``Missed`` in their place.

        Args:
            buffer: Events that are kept for this follower, at least 1.

        Raises:
            DefinitionError: ``buffer`` is not a whole number of at least 1.
        """
        self._check_begun()
        check_buffer(buffer, "events")
        services = self._run.config.services
        stream = Stream(self._path, services.waiter, buffer, holds=False)
        end = stream.end
        self._root.follow(end, stream)
        try:
            yield RunEvents(stream)
        finally:
            self._root.unfollow(end, stream)
            stream.close()

    # -- its end --------------------------------------------------------------------------------

    async def wait_ended(self) -> Status:
        """Wait until the run has ended, cleanup included; return how it ended.

        Cancelling this cancels the wait, not the run.
        """
        self._check_begun()
        return await self._root.wait_ended()

    async def result(self) -> RunResult[S]:
        """Wait for the run's end, and return its result.

        A halted run has ended for now: the result's ``status`` and ``questions`` say so.

        Cancelling this cancels the wait; the run goes on.

        Raises:
            Exception: The run's failure, unwrapped.
            RunCancelled: The run was cancelled, by ``cancel`` or by its runtime.
        """
        await self.wait_ended()
        with frames_hidden:
            self._raise_failure()
            return self._root.result()

    @property
    def draining(self) -> bool:
        """Whether ``drain`` was called, and the run has not ended yet."""
        self._check_begun()
        return self._root.is_draining

    def drain(self, reason: str = "it was drained") -> None:
        """Start nothing more in the run, and let it halt when what runs has ended; returns at once.

        Attempts that are under way go on to their end, and their results are saved. Nothing else
        begins: no step, no child, no retry, no contestant of a race. If something is left that way,
        the run ends as ``"halted"`` for ``reason``, and the next ``run`` of its id goes on there; a
        run without a store can't be run again. If nothing is left, the run ends as it would have.

        - Children that have not started have no record, no event and no outcome. Those that stand
          between two attempts are halted: they wait for a retry, a slot, a rate or their next step.
        - A race that is decided ends with its winner. One that isn't halts instead of being lost.
        - An action that awaits children of its own ``context.fan_out`` halts when those under way
          have ended; its body runs again later, as after a question.
        - Failures, timeouts and ``cancel`` count as always: they end the run in their own way.

        It can't be undone; a second call does nothing.

        Args:
            reason: Who drains it, or why; it becomes ``RunEnded.reason`` and ``RunResult.reason``.

        Examples:
            >>> import anyio
            >>> @action(reads=["n"], writes=["square"])
            ... async def square(n: int) -> int:
            ...     await anyio.sleep(0.01)
            ...     return n * n
            >>> numbers = fan_out(
            ...     square, over="numbers", item="n", into="squares", limits=Limits(2)
            ... )
            >>> async def main() -> None:
            ...     app = Application(numbers, store=MemoryStore())
            ...     async with Runtime() as runtime:
            ...         run = await runtime.start(app, {"numbers": [1, 2, 3]}, id="some")
            ...         run.drain("time to go home")
            ...         result = await run.result()
            ...         print(result.status, result.reason)
            ...         print((await app.run(id="some")).state["squares"])
            >>> anyio.run(main)
            halted time to go home
            [1, 4, 9]
        """
        self._check_begun()
        if not isinstance(reason, str):
            msg = f"drain(reason) takes a string, not {reason!r}"
            raise TypeError(msg)
        self._root.drain(reason)

    def cancel(self, reason: str = "it was cancelled") -> None:
        """Cancel the run, at once and without waiting; if it has ended, nothing happens.

        Its actions are cancelled where they wait. The run ends as cancelled for ``reason`` when all
        cleanup has ended.

        Args:
            reason: Who cancels it, or why; it becomes ``RunEnded.reason``.
        """
        self._check_begun()
        if not isinstance(reason, str):
            msg = f"cancel(reason) takes a string, not {reason!r}"
            raise TypeError(msg)
        self._root.cancel(reason)

    @property
    def paused(self) -> Steered | None:
        """The pause under which the run is: by whom, since when, why; None if it isn't paused."""
        return self._root.paused

    async def pause(self, reason: str = "", *, by: str = "") -> None:
        """Start nothing more in the run until ``resume``; what is under way goes on to its end.

        No attempt of an action begins, no child starts, and no source is read on. What waits holds
        no slot of any limit meanwhile. The timeouts of fan-outs and children (``timeout=``,
        ``Each(timeout=)``, ``Retry(total=)``) stand still; those of attempts under way, and
        deadlines of the caller, count on.

        The pause is on record in the run's history, and outlasts the process: until it is resumed,
        the run starts nothing in whichever process goes on with it, and ``Runtime.recover`` leaves
        it alone. Other processes pause runs with ``shoal.watch.Control``. Pausing again changes
        nothing; if the run has ended, nothing happens.

        Args:
            reason: Why, for the record.
            by: Who, for the record.

        Raises:
            SecretLeaked: The reason holds a secret of the run.
            ShoalError: The record could not be saved; that ends this execution of the run.

        Examples:
            >>> import anyio
            >>> @action(reads=["n"], writes=["square"])
            ... async def square(n: int) -> int:
            ...     await anyio.sleep(0.05)
            ...     return n * n
            >>> squares = fan_out(square, over="ns", item="n", into="squares", limits=Limits(1))
            >>> async def main() -> None:
            ...     async with Runtime() as runtime:
            ...         run = await runtime.start(Application(squares), {"ns": [1, 2]})
            ...         await run.pause("the service is down", by="ops")
            ...         assert run.paused is not None
            ...         print(run.paused.what, run.paused.by, run.paused.reason)
            ...         await run.resume()
            ...         print((await run.result()).state["squares"])
            >>> anyio.run(main)
            pause ops the service is down
            [1, 4]
        """
        await self._steer("pause", reason, by)

    async def resume(self, reason: str = "", *, by: str = "") -> None:
        """Go on after ``pause``; if the run isn't paused, or has ended, nothing happens.

        Args:
            reason: Why, for the record.
            by: Who, for the record.

        Raises:
            SecretLeaked: The reason holds a secret of the run.
            ShoalError: The record could not be saved; that ends this execution of the run.
        """
        if self._root.paused is not None:
            await self._steer("resume", reason, by)

    async def _steer(self, what: CommandKind, reason: str, by: str) -> None:
        self._check_begun()
        if not isinstance(reason, str) or not isinstance(by, str):
            msg = f"{what}(reason, by=) takes strings, not {reason!r} and {by!r}"
            raise TypeError(msg)
        arguments = {"reason": reason} if reason else {}
        await self._root.steer(Steered(what, by, time(), arguments))

    def cancel_child(
        self, child: Key | RunPath, reason: str = "it was cancelled", *, act: str | None = None
    ) -> bool:
        """Cancel one child of the run, at once and without waiting; its siblings don't notice.

        The child ends as ``Cancelled`` for ``reason`` when its cleanup has ended, and contributes
        nothing: a fan-out goes on without it, and a race without that contestant. An action's own
        fan-out gives the action that outcome. A child that still waits to start, for a slot, a rate
        or its turn, never starts.

        Args:
            child: Its key within the fan-out that the run executes now; or its path, as events have
                it, at any depth.
            reason: Who cancels it, or why.
            act: Of several children with that key, the one that executes the act of this name; in a
                race among acts the key is ``""``.

        Returns whether there was such a child that had not ended. An element that was not pulled
        yet, because there is no place for its child, is no child.
        """
        self._check_begun()
        if not isinstance(reason, str):
            msg = f"cancel_child(child, reason) takes a string as reason, not {reason!r}"
            raise TypeError(msg)
        groups = cast("set[ChildTaskGroup]", self._run.config.execution.groups)
        if isinstance(child, RunPath):
            of_parent = [group for group in groups if group.parent.path == child.parent]
            key, act, step = child.key, child.act, child.step
        else:
            depth = min((group.parent.path.depth for group in groups), default=0)
            of_parent = [group for group in groups if group.parent.path.depth == depth]
            key, step = child, None
        # Not any(), which stops at the first: every group may have a child of that key.
        return True in [group.cancellation.by_key(key, reason, act, step) for group in of_parent]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._path.id}: {self._how()}>"

    # -- helpers --------------------------------------------------------------------------------

    def _how(self) -> str:
        return self.status or "running"

    @property
    def _run(self) -> Run:
        run = self._root.run
        assert run is not None, "it has begun"
        return run

    def _check_begun(self) -> None:
        """Refuse to be used before the run is there; a handle is made afterwards."""

    def _raise_failure(self) -> None:
        failure = self._root.failure
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # breaks the traceback cycle


@final
class RunEvents(AsyncIterator[Event]):
    """The events of a run, for one follower."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        """Use ``RunHandle.events``."""
        self._stream = stream

    async def __anext__(self) -> Event:
        """Return the next event, as soon as there is one. If it is cancelled, no event is lost.

        Raises:
            StopAsyncIteration: All events were read, and the run has ended or ``end`` was called.
            BadUse: Another task reads, or the block was left.
        """
        event = await self._stream.read()
        if event is None:
            raise StopAsyncIteration
        return event

    def end(self) -> None:
        """Stop after the events that have happened so far, whether or not the run goes on."""
        self._stream.end()


def check_buffer(buffer: object, where: str) -> None:
    """Refuse a ``buffer`` that is no number of events.

    Raises:
        DefinitionError: It is no whole number of at least 1.
    """
    if type(buffer) is not int or buffer < 1:
        msg = f"{where}(buffer=...) takes a whole number of at least 1, not {buffer!r}"
        raise DefinitionError(msg)
