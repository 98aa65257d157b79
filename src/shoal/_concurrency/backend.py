"""What is taken from the event loop itself: on asyncio that is several times faster than anyio.

Imports the marks for Ctrl-C; anyio. Neither asyncio nor trio is loaded by it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, final
from weakref import ref

from anyio import Event, current_time, get_cancelled_exc_class

from .cancellation import ki_protected_functions, ki_unprotected_functions

if TYPE_CHECKING:
    import asyncio  # not at run time: trio does without it


class Clock(Protocol):
    """Tells the time."""

    def __call__(self) -> float:
        """Return seconds since some fixed moment; never goes back."""
        ...


class Waiter(Protocol):
    """What one task waits for and another one sets: shaped as ``asyncio.Future``, and often one."""

    def __await__(self) -> Generator[Any, Any, None]:
        """Wait until the result is set."""
        ...

    def done(self) -> bool:
        """Tell whether the result is set, or the waiting task was cancelled."""
        ...

    def set_result(self, result: None, /) -> None:
        """Let the waiting task go on. Only when not ``done``."""
        ...


@final
class Backend(NamedTuple):
    """One event loop."""

    library: str
    """What anyio calls the library that it is of."""
    token: object
    """The loop itself, or on trio what stands for it."""
    clock: Clock
    """The clock that the loop's own timers run on, virtual ones included."""
    waiter: Callable[[], Waiter]
    native_cancels: Callable[[], Callable[[], int]]
    call_soon: Callable[[Callable[[], None]], object]
    """Has the loop call a function soon, whatever thread it is called in."""
    alarm: Callable[[float, Callable[[], None]], Callable[[], object]] | None
    """Has the loop call a function at a time; None: it can't. Returns what calls that off."""
    is_closed: Callable[[], bool]
    """Tells whether the loop was closed, in any thread. Does not keep the loop alive."""


def current_backend() -> Backend:
    """Describe the event loop that runs in this thread."""
    aio: Any = sys.modules.get("asyncio")  # not imported here: trio does without it
    if aio is not None and get_cancelled_exc_class() is aio.CancelledError:
        loop = aio.get_running_loop()
        return Backend(
            "asyncio",
            loop,
            loop.time,
            loop.create_future,
            lambda: aio.current_task().cancelling,
            loop.call_soon_threadsafe,
            partial(_alarm_of, loop),
            partial(_is_closed, ref(loop)),
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
        _is_never_closed,
    )


def startable(context: Context, library: str | None = None) -> Context:
    """Copy ``context`` so that tasks can be started in it from callbacks of the loop, too.

    anyio asks which loop runs before it makes a task, and sniffio answers from the current task. A
    callback of asyncio's (a timer, a signal handler, a call from a thread) has none. ``anyio.run``
    therefore leaves the answer in a context variable; ``asyncio.run``, uvloop and servers don't.
    See test_a_rate_opens_however_the_loop_was_started.

    User code never runs in the copy: in a worker thread, the variable would keep
    ``anyio.run`` from starting a loop of its own.

    Args:
        context: Is copied.
        library: What anyio calls the library that runs; None: ask, which takes a current task.
    """
    copied = context.copy()
    sniffio: Any = sys.modules.get("sniffio")  # optional; without it, anyio asks the loop
    if sniffio is not None:
        found = library or sniffio.current_async_library()
        copied.run(sniffio.current_async_library_cvar.set, found)
    return copied


def protect_from_ctrl_c(backend: Backend) -> None:
    """Have trio heed the marks that the engine's functions bear, if it is what runs here."""
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
    """Stand in for trio, which ends no loop before its last task has ended."""
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
