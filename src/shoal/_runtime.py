"""The runtime: what runs share while a process lives. Imports everything above; anyio.

Invariants:
- Own task. A root run lives in a task of the runtime's, never in its caller's. A native
  ``task.cancel()`` (``asyncio.timeout``, a server) pierces anyio's shields; so it may reach only
  the caller's wait, which turns it into the cancellation of the run's own scope.
- Structured. The caller goes on only after the run has ended, cleanup included, however often it is
  cancelled meanwhile; then it goes on with its own cancellation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self, final

from anyio import (
    CancelScope,
    CapacityLimiter,
    Event,
    create_task_group,
    current_time,
    get_cancelled_exc_class,
    to_thread,
)
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint_if_cancelled

from ._cancel import fatal_leaf, ki_protected_functions, ki_unprotected_functions
from ._ports import NullStore, Services, Store, Waiter
from ._run import Run

THREADS = 40
"""Worker threads that plain functions of one runtime may use at once."""
COMMIT_DEADLINE = 30.0
"""Seconds that a store has to acknowledge a save."""
MAX_DEPTH = 64
"""How deep fan-outs may be nested."""


@final
class Runtime:
    """The services of one process, opened: ``async with Runtime() as runtime``."""

    def __init__(
        self,
        *,
        store: Store | None = None,
        threads: int = THREADS,
        commit_deadline: float = COMMIT_DEADLINE,
        max_depth: int = MAX_DEPTH,
    ) -> None:
        """Describe it; nothing is opened yet.

        Args:
            store: Where updates are kept; None: nowhere.
            threads: Worker threads at once.
            commit_deadline: Seconds that the store has to acknowledge a save.
            max_depth: How deep fan-outs may be nested.
        """
        self._store = store if store is not None else NullStore()
        self._threads = threads
        self._commit_deadline = commit_deadline
        self._max_depth = max_depth
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        """Open it."""
        backend = _backend()
        self.services: Services = Services(
            store=self._store,
            clock=backend.clock,
            waiter=backend.waiter,
            threads=partial(_in_thread, CapacityLimiter(self._threads)),
            native_cancels=backend.native_cancels,
            commit_deadline=self._commit_deadline,
            max_depth=self._max_depth,
        )
        self._tasks = await create_task_group().__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> bool | None:
        """Close it, once everything in it has ended."""
        assert self._tasks is not None
        return await self._tasks.__aexit__(kind, error, frames)

    async def complete(self, run: Run) -> BaseException | None:
        """Live a root run in a task of its own, and wait for its end, whatever happens meanwhile.

        How the run ended is in its ``status`` and ``error``.

        Returns what interrupted the caller, or the KeyboardInterrupt or SystemExit that came out
        of the run, for the caller to raise; None if nothing did.
        """
        root = self.start(run)
        interruption = await root.wait()
        return root.fatal or interruption

    def start(self, run: Run, on_ended: Callable[[], None] | None = None) -> Root:
        """Begin to live a root run in a task of its own; who calls this awaits ``Root.wait``.

        Args:
            run: The run.
            on_ended: Called when it has ended, cleanup included.
        """
        assert self._tasks is not None
        root = Root(run, on_ended)
        self._tasks.start_soon(root.live)
        return root


@final
class Root:
    """A root run's task, and whoever waits for it."""

    def __init__(self, run: Run, on_ended: Callable[[], None] | None = None) -> None:
        """See ``Runtime.start``."""
        self._run = run
        self._on_ended = on_ended
        # Shielded, so that only `wait` cancels it. If the caller's own scope did too, anyio would
        # hand on what has to be uncancelled to the caller's task, and a native cancel that the
        # caller got besides would be forgotten, see
        # test_a_native_cancel_and_a_scope_cancelled_around_each_other.
        self._scope = CancelScope(shield=True)
        self.ended: Event = Event()
        self.fatal: BaseException | None = None
        """The KeyboardInterrupt or SystemExit that came out of the run."""

    async def live(self) -> None:
        """Live the run, whose end is in its ``status`` and ``error``, or in ``fatal``."""
        try:
            with self._scope:
                await self._run.live()
        except Exception:
            raise
        except BaseException as error:
            fatal = fatal_leaf(error)
            if not isinstance(fatal, KeyboardInterrupt | SystemExit):
                raise
            self.fatal = fatal
        finally:
            self.ended.set()
            if self._on_ended is not None:
                self._on_ended()

    def cancel(self, reason: str) -> None:
        """Cancel the run, unless it is already; whoever is first gives the reason."""
        if not self._scope.cancel_called and not self.ended.is_set():
            self._run.reason = reason
            self._scope.cancel()

    async def wait(self) -> BaseException | None:
        """Wait for the run's end, cancelling it where the wait is interrupted.

        Returns the first interruption, for the caller to raise; None if there was none.
        """
        interruption: BaseException | None = None
        while not self.ended.is_set():
            try:
                with CancelScope(shield=interruption is not None):
                    await self.ended.wait()
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001 # returned, and raised by the caller
                if interruption is None:
                    interruption = error
                    self.cancel("the caller was cancelled")
        return interruption


async def _in_thread(
    limiter: CapacityLimiter, function: Callable[..., object], kwargs: Mapping[str, Any]
) -> object:
    result = await to_thread.run_sync(partial(function, **kwargs), limiter=limiter)
    await checkpoint_if_cancelled()  # the thread was waited for; its result comes too late
    return result


def _no_native_cancels() -> int:
    return 0


@final
class _EventWaiter:
    """A waiter made of an event, for trio."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = Event()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._event.wait().__await__()

    def done(self) -> bool:
        return self._event.is_set()

    def set_result(self, _result: None, /) -> None:
        self._event.set()


class _Backend(NamedTuple):
    """What is taken from the event loop itself: on asyncio that is several times faster."""

    clock: Callable[[], float]
    """The clock that the loop's own timers run on, virtual ones included."""
    waiter: Callable[[], Waiter]
    native_cancels: Callable[[], Callable[[], int]]


def _backend() -> _Backend:
    asyncio: Any = sys.modules.get("asyncio")  # not imported here: trio does without it
    if asyncio is not None and get_cancelled_exc_class() is asyncio.CancelledError:
        loop = asyncio.get_running_loop()
        return _Backend(loop.time, loop.create_future, lambda: asyncio.current_task().cancelling)
    trio: Any = sys.modules["trio"]
    for function in ki_protected_functions:
        trio.lowlevel.enable_ki_protection(function)
    for function in ki_unprotected_functions:
        trio.lowlevel.disable_ki_protection(function)
    return _Backend(current_time, _EventWaiter, lambda: _no_native_cancels)
