"""A run that goes on, as whoever holds it sees it. Imports everything above; anyio.

Invariants:
- Holding a run does nothing to it, and neither does dropping what holds it.
- Followers never hold a run back: what one of them does not read in time is dropped for that one.
- Reading, and waiting, can be cancelled at any moment; the run does not notice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import contextmanager
from typing import Generic, cast, final

from shoal._engine.fanout.group import Group
from shoal._engine.run import Run
from shoal._errors.exceptions import DefinitionError
from shoal._events.events import Event, Question, Status
from shoal._events.identity import Key, RunPath
from shoal._events.stream import Stream
from shoal._state.state import S, State

from .result import RunResult
from .root_run import RootRun

BUFFER = 1000
"""Events that may wait to be read."""


class RunHandle(Generic[S]):
    """A run that goes on in a runtime: to look at, wait for, follow and cancel.

    ``await runtime.start(app, ...)`` gives one, for work that outlives whoever has started it;
    ``runtime.find(run_id)`` and ``runtime.runs()`` give those of runs that go on. An ``OpenRun`` is
    one whose run ends with its block.

    There may be several handles of one run. None is needed for it to go on, and there is nothing to
    be closed: the runtime's block awaits the run.

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
        """The state as it was last committed: at any time, after a failure or the end too.

        Read upon an event, it may be further than the event: what that changed is in its
        ``update``.
        """
        self._check_begun()
        return cast("State[S]", self._run.state)

    @property
    def number(self) -> int:
        """The number of the last update, which has led to ``state``; 0 before the first."""
        self._check_begun()
        return self._run.number

    @property
    def error(self) -> BaseException | None:
        """What it has failed with; None if it has not."""
        self._check_begun()
        return self._root.failure

    @property
    def reason(self) -> str:
        """Why it was cancelled, if it was."""
        self._check_begun()
        return self._run.reason if self._run.status == "cancelled" else ""

    @property
    def questions(self) -> Sequence[Question]:
        """What it waits for, if it is halted."""
        self._check_begun()
        return self._run.open_questions if self.status == "halted" else ()

    @property
    def is_interrupted(self) -> bool:
        """Whether it was cancelled since its process stops, and so is left to another one."""
        return self._root.is_interrupted

    # -- what happens in it ---------------------------------------------------------------------

    @contextmanager
    def events(self, *, buffer: int = BUFFER) -> Generator[RunEvents]:
        """Follow the run from now on: ``with run.events() as events``, then ``async for``.

        Gives the events of the run and of all its descendants, in order, until the run has ended;
        they end then, however it has. Any number of followers read, each at its own pace: none
        holds the run back. Who has more than ``buffer`` events to read loses the oldest, and reads
        ``Missed`` in their place.

        Args:
            buffer: Events that are kept for this follower, at least 1.

        Raises:
            DefinitionError: ``buffer`` is not a whole number of at least 1.
        """
        self._check_begun()
        check_buffer(buffer, "events")
        services = self._run.setting.services
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
        """Wait until the run has ended, cleanup included; say how.

        Cancelling this cancels the wait, not the run.
        """
        self._check_begun()
        return await self._root.wait_ended()

    async def result(self) -> RunResult[S]:
        """Wait for the run's end, and return what it came to.

        A run that is halted has ended for now; ``status`` and ``questions`` of the result say so.

        Cancelling this cancels the wait; the run goes on.

        Raises:
            Exception: The run's failure, unwrapped.
            RunCancelled: It was cancelled: by ``cancel``, or by its runtime.
        """
        await self.wait_ended()
        self._raise_failure()
        return self._root.result()

    def cancel(self, reason: str) -> None:
        """Cancel the run, at once and without waiting; if it has ended, nothing happens.

        Its actions are cancelled where they wait; it ends as cancelled for ``reason`` when all
        cleanup has.

        Args:
            reason: Who cancels it, or why; ``RunEnded.reason`` says so.
        """
        self._check_begun()
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
        self._check_begun()
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
        """Refuse to say anything of what isn't there yet."""

    def _raise_failure(self) -> None:
        failure = self._root.failure
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # no cycle from the exception to this frame


@final
class RunEvents(AsyncIterator[Event]):
    """What happens in a run, for one follower."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        """Use ``RunHandle.events``."""
        self._stream = stream

    async def __anext__(self) -> Event:
        """Return the next event, as soon as there is one. Cancelled, it takes none.

        Raises:
            StopAsyncIteration: The run has ended, or ``end`` was called; all events were read.
            BadUse: Another task reads, or the block was left.
        """
        event = await self._stream.read()
        if event is None:
            raise StopAsyncIteration
        return event

    def end(self) -> None:
        """End them now, once what has happened so far was read; whatever the run does."""
        self._stream.end()


def check_buffer(buffer: object, where: str) -> None:
    """Refuse what is no number of events.

    Raises:
        DefinitionError: Saying what it takes.
    """
    if type(buffer) is not int or buffer < 1:
        msg = f"{where}(buffer=...) takes a whole number of at least 1, not {buffer!r}"
        raise DefinitionError(msg)
