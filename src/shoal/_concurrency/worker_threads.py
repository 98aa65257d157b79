"""Call plain functions in worker threads, which can't be interrupted.

Invariants:
- Permits bound how many threads there are. A thread that was left behind counts until it returns.
- A function is waited for, also when its task is cancelled, but then only for a grace. A result or
  exception after that is dropped.
- A function that has not begun when its task is cancelled never begins.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, cast, final

from anyio import CancelScope, CapacityLimiter, Event, current_time, to_thread
from anyio.lowlevel import checkpoint_if_cancelled

from .cancellation import cancelled, ki_protected
from .watchdog import is_aware, place_of


@final
class _Unlimited:
    """Stands for a limiter of anyio's, or of trio's, and limits nothing.

    Also one of theirs without a limit costs each call a turn of the loop.
    """

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        """Nothing; trio calls it."""

    def release_on_behalf_of(self, borrower: object) -> None:
        """Nothing; trio calls it, in the thread of the loop."""


@final
class Threads:
    """The worker threads of a runtime."""

    def __init__(self, grace: float, call_soon: Callable[[Callable[[], None]], object]) -> None:
        """Start no threads yet.

        Args:
            grace: Seconds that a function is waited for after its task was cancelled.
            call_soon: Makes the event loop call a function soon. May be called in any thread.
        """
        # Bounded by permits and not by anyio, which on asyncio counts a thread as free as soon as
        # nothing waits for it: see test_a_thread_that_was_left_behind_counts_until_it_returns.
        self._unlimited = cast("CapacityLimiter", _Unlimited())
        self._grace: float = grace
        self._call_soon: Callable[[Callable[[], None]], object] = call_soon

    def turn(self) -> Thread:
        """Return an object that calls one function. Its caller must hold a permit for a thread."""
        return Thread(self._unlimited, self._grace, self._call_soon)


@final
class Thread:
    """One call of a function in a thread. Made by ``Threads.turn``."""

    __slots__ = (
        "_call_soon",
        "_ended",
        "_identity",
        "_is_dropped",
        "_raised",
        "_turn",
        "_unlimited",
        "_waiting",
        "grace",
    )

    def __init__(
        self,
        unlimited: CapacityLimiter,
        grace: float,
        call_soon: Callable[[Callable[[], None]], object],
    ) -> None:
        """Do not call this; use ``Threads.turn``."""
        self._unlimited = unlimited
        self._call_soon = call_soon
        self.grace: float = grace
        """Seconds that the function is waited for after a cancellation."""
        # Two threads share these without locks: `list.pop` is atomic, and each attribute has one
        # writer at a time.
        # The thread pops the item to begin. If the loop pops it first, the function never begins.
        self._turn: list[None] = [None]
        self._ended = False
        self._raised: list[BaseException] = []  # the function's exception, until `call` raises it
        self._is_dropped = False  # whether `call` has ended, so that an exception is dropped
        self._identity: int | None = None  # of the thread, once it has begun
        self._waiting: list[Callable[[], None]] = []  # called in the loop once the function ended

    @is_aware
    async def call(
        self,
        function: Callable[..., object],
        kwargs: Mapping[str, Any],
        *,
        abandon: bool,
        on_cancelled: Callable[[], None] | None = None,
    ) -> object:
        """Call ``function(**kwargs)`` in a thread; return its result or raise its exception.

        Args:
            function: The function to call.
            kwargs: Its arguments.
            abandon: Whether not to wait for it after a cancellation. If it still runs when this
                raises, it was left behind: see ``is_running``.
            on_cancelled: Called if the function still runs when this is cancelled, before the wait
                for its end.
        """
        if abandon:
            self.grace = 0.0
        try:
            result = await to_thread.run_sync(
                partial(self._work, function, kwargs),
                abandon_on_cancel=True,  # `_outlast` does the waiting
                limiter=self._unlimited,
            )
        except BaseException:
            if self.is_running:
                if on_cancelled is not None:
                    on_cancelled()
                await self._outlast()
            self._is_dropped = True
            self._raised.clear()  # breaks the traceback cycle through the thread's frame
            raise
        if self._raised:
            raise self._raised.pop()
        await checkpoint_if_cancelled()  # a result that comes after a cancellation is dropped
        return result

    def _work(self, function: Callable[..., object], kwargs: Mapping[str, Any]) -> object:
        try:
            self._turn.pop()
        except IndexError:  # cancelled before it began: `is_running` has popped it
            return None
        self._identity = threading.get_ident()
        try:
            return function(**kwargs)
        except BaseException as error:  # noqa: BLE001 # `call` raises it in the event loop
            # Not raised through the future that asyncio's task waits for: a GeneratorExit, thrown
            # into coroutines, would close them all, down to the engine's own. And a worker thread
            # keeps the exception of its last call, with all frames, until the next one.
            if not self._is_dropped:
                self._raised.append(error)
            return None
        finally:
            # Before `_waiting` is read: `_when_ended` appends first and reads `_ended` then, so at
            # least one of the two threads sees the other's write.
            self._ended = True
            if self._waiting:
                with suppress(RuntimeError):  # the loop is closed
                    self._call_soon(self._notify)

    @property
    def is_running(self) -> bool:
        """Whether the function is at work. If it has not begun, it never will after this."""
        if self._ended:  # the usual case, without an exception
            return False
        try:
            self._turn.pop()
        except IndexError:
            return not self._ended
        self._ended = True
        return False

    @ki_protected
    async def _outlast(self) -> None:
        """Wait until the function ends; once this is cancelled, only for the grace."""
        ended, until = Event(), math.inf
        self._when_ended(ended.set)
        while not ended.is_set():
            if until == math.inf and cancelled():
                until = current_time() + self.grace
            try:
                with CancelScope(deadline=until, shield=until < math.inf) as scope:
                    await ended.wait()
            except GeneratorExit:
                raise
            except BaseException:  # noqa: BLE001, S112 # `call` raises its own interruption
                continue
            if scope.cancelled_caught:
                return

    def _when_ended(self, call: Callable[[], None]) -> None:
        """Call ``call`` in the event loop as soon as the function has ended."""
        self._waiting.append(call)
        if self._ended:  # it may have ended before `call` was appended, and not have seen it
            self._notify()

    def _notify(self) -> None:
        while self._waiting:
            self._waiting.pop()()

    @property
    def place(self) -> str:
        """The place where the function stands: file, line and name of its innermost frame."""
        frame = sys._current_frames().get(self._identity or 0)  # there is no public way
        return "a place unknown" if frame is None else place_of(frame)

    def leave(self, call: Callable[[], None]) -> None:
        """Call ``call`` as soon as the function has ended: now, if it doesn't run."""
        if self.is_running:
            self._when_ended(call)
        else:
            call()
