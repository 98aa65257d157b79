"""The event loop's own clock, futures and timers: on asyncio, several times faster than anyio's.

This module loads neither asyncio nor trio: a program on one of them need not have the other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextvars import Context
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, final
from weakref import ref

from anyio import CancelScope, Event, current_time, get_cancelled_exc_class

from .cancellation import ki_protected_functions, ki_unprotected_functions

if TYPE_CHECKING:
    import asyncio  # not at run time: programs on trio don't load it


class Clock(Protocol):
    """Returns the time."""

    def __call__(self) -> float:
        """Return the seconds since some fixed moment. Never goes back."""
        ...


class Waiter(Protocol):
    """One task waits for it, and another task sets it. Shaped as ``asyncio.Future``; often one."""

    def __await__(self) -> Generator[Any, Any, None]:
        """Wait until the result is set."""
        ...

    def done(self) -> bool:
        """Return whether the result is set, or the waiting task was cancelled."""
        ...

    def set_result(self, result: None, /) -> None:
        """Let the waiting task go on. Call it only if not ``done``."""
        ...


@final
class Backend(NamedTuple):
    """One event loop, of either library."""

    library: str
    """The name of the library, as anyio has it."""
    token: object
    """The loop itself; on trio, its token."""
    clock: Clock
    """The clock of the loop's own timers, virtual ones included."""
    waiter: Callable[[], Waiter]
    native_cancels: Callable[[], Callable[[], int]]
    """Returns a function that counts the native cancellations of the current task; 0 on trio."""
    call_soon: Callable[[Callable[[], None]], object]
    """Makes the loop call a function soon. May be called in any thread."""
    next_turn: Callable[[Callable[[], None]], object] | None
    """Makes the loop call a function in its next turn, from the loop's thread; None on trio."""
    alarm: Callable[[float, Callable[[], None]], Callable[[], object]] | None
    """Makes the loop call a function at a time, and returns a function that cancels that. None if
    the loop has no such timers: trio needs a task for each."""
    is_closed: Callable[[], bool]
    """Returns whether the loop was closed, in any thread. Does not keep the loop alive."""
    is_real: bool = True
    """Whether the clock shows real time, and not the virtual time of a test."""


@final
class Kinds(NamedTuple):
    """The classes of anyio's events and scopes in the event loop that runs here.

    ``anyio.Event()`` asks each time which library that is, which costs as much as the event.
    """

    event: type[Event]
    scope: type[CancelScope]

    @classmethod
    def here(cls) -> Kinds:
        """Return those of the event loop that runs in this thread."""
        return cls(type(Event()), type(CancelScope()))


def current_backend() -> Backend:
    """Return the event loop that runs in this thread."""
    aio: Any = sys.modules.get("asyncio")  # not imported: programs on trio don't load it
    if aio is not None and get_cancelled_exc_class() is aio.CancelledError:
        loop = aio.get_running_loop()
        # What the method of asyncio's loops returns, without its call: every child reads the clock.
        is_plain = getattr(loop.time, "__func__", None) is aio.BaseEventLoop.time
        return Backend(
            "asyncio",
            loop,
            monotonic if is_plain else loop.time,
            loop.create_future,
            lambda: aio.current_task().cancelling,
            loop.call_soon_threadsafe,
            loop.call_soon,
            partial(_alarm_of, loop),
            partial(_is_closed, ref(loop)),
            # The clocks of asyncio and uvloop are the monotonic one.
            abs(loop.time() - monotonic()) < 1.0,
        )
    token = sys.modules["trio"].lowlevel.current_trio_token()
    call_soon = token.run_sync_soon
    return Backend(
        "trio",
        token,
        current_time,
        _EventWaiter,
        lambda: _no_native_cancels,
        call_soon,
        None,
        None,
        _is_never_closed,
        # By its name, since the class is private to trio.
        type(sys.modules["trio"].lowlevel.current_clock()).__name__ == "SystemClock",
    )


def startable(context: Context, library: str | None = None) -> Context:
    """Copy ``context`` so that callbacks of the loop can start tasks in it, too.

    anyio asks which loop runs before it makes a task, and sniffio answers from the current task. A
    callback of asyncio's (a timer, a signal handler, a call from a thread) has none. ``anyio.run``
    therefore puts the answer into a context variable; ``asyncio.run``, uvloop and servers don't.
    See test_a_rate_opens_however_the_loop_was_started.

    User code never runs in the copy: in a worker thread, the variable would keep ``anyio.run``
    from starting a loop of its own.

    Args:
        context: The context to copy.
        library: The library that runs, as anyio names it. None: look it up, in a task.
    """
    copied = context.copy()
    sniffio: Any = sys.modules.get("sniffio")  # optional: without it, anyio looks at the loop
    if sniffio is not None:
        found = library or sniffio.current_async_library()
        copied.run(sniffio.current_async_library_cvar.set, found)
    return copied


def protect_from_ctrl_c(backend: Backend) -> None:
    """Apply the marks on the engine's functions if trio runs here."""
    if backend.alarm is not None:
        return
    trio: Any = sys.modules["trio"]
    for function in ki_protected_functions:
        trio.lowlevel.enable_ki_protection(function)
    for function in ki_unprotected_functions:
        trio.lowlevel.disable_ki_protection(function)


def _alarm_of(
    loop: asyncio.AbstractEventLoop, at: float, call: Callable[[], None]
) -> Callable[[], object]:
    return loop.call_at(at, call).cancel


def _is_closed(loop: ref[asyncio.AbstractEventLoop]) -> bool:
    found = loop()
    return found is None or found.is_closed()


def _is_never_closed() -> bool:
    """Return False: trio ends no loop before its last task has ended."""
    return False


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
