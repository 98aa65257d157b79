"""Plain functions in worker threads, which can't be interrupted. Imports ``_watch``; anyio.

Invariants:
- How many there are at once is a matter of seats. One that was left behind counts until it returns.
- A function is waited for, also when its task is cancelled; then only for a grace. Whatever it
  returns or raises after that is dropped.
- A function that hasn't begun when its task is cancelled never does.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, final

from anyio import CancelScope, CapacityLimiter, Event, current_time, to_thread
from anyio.lowlevel import checkpoint_if_cancelled

from .cancellation import cancelled, ki_protected
from .watchdog import is_aware, place_of


@final
class Threads:
    """The worker threads of a runtime."""

    def __init__(self, grace: float, call_soon: Callable[[Callable[[], None]], object]) -> None:
        """Have none yet.

        Args:
            grace: Seconds that a function is waited for after its task was cancelled.
            call_soon: Has the event loop call a function soon; can be called in any thread.
        """
        # Counted by seats and not by anyio, which on asyncio takes a thread for free as soon as
        # nobody waits for it: see test_a_thread_that_was_left_behind_counts_until_it_returns.
        self._unlimited: CapacityLimiter = CapacityLimiter(math.inf)
        self._grace: float = grace
        self._call_soon: Callable[[Callable[[], None]], object] = call_soon

    def turn(self) -> Thread:
        """Make what calls one function, for whoever has a seat in a thread."""
        return Thread(self._unlimited, self._grace, self._call_soon)


@final
class Thread:
    """A thread's turn: one call of a function. Made by ``Threads.turn``."""

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
        """Use ``Threads.turn``."""
        self._unlimited = unlimited
        self._call_soon = call_soon
        self.grace: float = grace
        """Seconds for which it is waited after a cancellation."""
        # There are no locks: what both threads look at is written before it is read.
        self._turn: list[None] = [None]  # whoever takes it says whether the function begins
        self._ended = False
        self._raised: list[BaseException] = []  # what the function raised, until that is raised
        self._is_dropped = False  # whether nobody waits for what it raises
        self._identity: int | None = None
        self._waiting: list[Callable[[], None]] = []  # called in the loop when it has ended

    @is_aware
    async def call(
        self,
        function: Callable[..., object],
        kwargs: Mapping[str, Any],
        *,
        abandon: bool,
        on_cancelled: Callable[[], None] | None = None,
    ) -> object:
        """Call ``function(**kwargs)`` in a thread, and return or raise what it does.

        Args:
            function: What to call.
            kwargs: With what.
            abandon: Whether it isn't waited for after a cancellation. If it still runs when this
                raises, it was left behind: see ``is_running``.
            on_cancelled: Called where it still runs when this is cancelled, before that is waited
                for.
        """
        if abandon:
            self.grace = 0.0
        try:
            result = await to_thread.run_sync(
                partial(self._work, function, kwargs),
                abandon_on_cancel=True,  # we wait for it ourselves
                limiter=self._unlimited,
            )
        except BaseException:
            if self.is_running:
                if on_cancelled is not None:
                    on_cancelled()
                await self._outlast()
            self._is_dropped = True
            self._raised.clear()  # no cycle from the exception through the thread's frame
            raise
        if self._raised:
            raise self._raised.pop()
        await checkpoint_if_cancelled()  # the result comes too late
        return result

    def _work(self, function: Callable[..., object], kwargs: Mapping[str, Any]) -> object:
        try:
            self._turn.pop()
        except IndexError:  # cancelled before it began
            return None
        self._identity = threading.get_ident()
        try:
            return function(**kwargs)
        except BaseException as error:  # noqa: BLE001 # raised in the event loop, by `call`
            # Not by the future that asyncio's task waits for: a GeneratorExit, thrown into
            # coroutines, would close them all, down to the engine's own. And a worker thread keeps
            # what its last call raised, with all frames, until the next one.
            if not self._is_dropped:
                self._raised.append(error)
            return None
        finally:
            self._ended = True
            if self._waiting:
                with suppress(RuntimeError):  # the loop has ended
                    self._call_soon(self._tell)

    @property
    def is_running(self) -> bool:
        """Whether the function is under way; if it hasn't begun, it never will."""
        try:
            self._turn.pop()
        except IndexError:
            return not self._ended
        self._ended = True
        return False

    @ki_protected
    async def _outlast(self) -> None:
        """Wait for the end of the function; if this is cancelled, only for the grace."""
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
            except BaseException:  # noqa: BLE001, S112 # that it was interrupted is known already
                continue
            if scope.cancelled_caught:
                return

    def _when_ended(self, call: Callable[[], None]) -> None:
        """Have ``call`` called in the event loop as soon as the function has ended."""
        self._waiting.append(call)
        if self._ended:  # maybe before it could see that somebody waits
            self._tell()

    def _tell(self) -> None:
        while self._waiting:
            self._waiting.pop()()

    @property
    def place(self) -> str:
        """Where the function stands: file, line and name of its innermost frame."""
        frame = sys._current_frames().get(self._identity or 0)  # the only way to ask
        return "a place unknown" if frame is None else place_of(frame)

    def leave(self, call: Callable[[], None]) -> None:
        """Have ``call`` called as soon as the function has ended: now, if it doesn't run."""
        if self.is_running:
            self._when_ended(call)
        else:
            call()
