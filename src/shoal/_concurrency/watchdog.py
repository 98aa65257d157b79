"""Name the code that still runs long after its cancellation, and the line where it stands.

Invariants:
- Work that does not end within the grace after its cancellation is named, once.
- A child costs nothing for it. The code that cancels, or sets a timeout, says when and what;
  coroutines are looked into only when the grace is over.
- A runtime has one timer for all that it watches, and none if it watches nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from traceback import walk_tb
from types import CodeType, FrameType, TracebackType
from typing import Any, NamedTuple, TypeVar, final

from .cancellation import drive

logger = logging.getLogger("shoal")

GRACE = 5.0
"""Seconds for cleanup after a cancellation, before it is named and threads are left behind. Long
enough for a rollback or a goodbye to a server, short enough for a program that was told to stop."""
SPARE = 64
"""Ended entries are removed once all entries are more than twice the live ones plus this many. So
removing costs O(1) for each entry, and a few ended ones cost no search."""

_MACHINERY = {"anyio", "asyncio", "outcome", "trio", "shoal"}


class Part(NamedTuple):
    """A coroutine, and the run that it belongs to, if known."""

    run: object | None
    coroutine: object


class Place(NamedTuple):
    """Where code stands, and whose it is."""

    where: str
    """File, line and function."""
    what: str = "action"
    """``"action"``; or what `calls` was given: ``"store"``, ``"hook"``."""
    name: str = ""
    """The class of that store or hook, if known."""


# -- finding the place where a coroutine stands ----------------------------------------------------

Leads = Callable[[Mapping[str, Any]], Iterable[Part]]
F = TypeVar("F", bound=Callable[..., Any])

# Functions that are marked, by the decorators below.
_leads: dict[Callable[..., Any], Leads] = {}
_lives: dict[Callable[..., Any], str] = {}
_calls: dict[Callable[..., Any], str] = {}
_relays: list[Callable[..., Any]] = [drive]
_aware: list[Callable[..., Any]] = []


def leads_to(leads: Leads) -> Callable[[F], F]:
    """Mark a function that waits for coroutines of other tasks. ``leads`` finds them.

    ``leads`` is called with the local variables of the function's frame.
    """

    def mark(function: F) -> F:
        _leads[function] = leads
        return function

    return mark


def is_life_of(variable: str) -> Callable[[F], F]:
    """Mark a function that runs the whole of a run. Its local ``variable`` is that run."""

    def mark(function: F) -> F:
        _lives[function] = variable
        return function

    return mark


def calls(what: str) -> Callable[[F], F]:
    """Mark a function that waits for other code than that of an action: for a store, or a hook.

    If it has a local variable of that name, that is the store or hook.
    """

    def mark(function: F) -> F:
        _calls[function] = what
        return function

    return mark


def is_relay(function: F) -> F:
    """Mark a generator that resumes the coroutine in its local variable ``coroutine`` by hand.

    Python doesn't show what a generator sends to.
    """
    _relays.append(function)
    return function


def resumes_by_hand(frame: FrameType) -> bool:
    """Return whether a frame is that of a function that `is_relay` has marked."""
    return any(frame.f_code is relay.__code__ for relay in _relays)


def is_aware(function: F) -> F:
    """Mark a function that itself notices how long it has been cancelled."""
    _aware.append(function)
    return function


def standing(part: Part) -> Iterator[tuple[object | None, Place]]:
    """Yield where a suspended coroutine stands, and those of other tasks that it waits for."""
    # Looked up each time: trio gives functions other code when a runtime is opened.
    codes: dict[CodeType, Leads] = {marked.__code__: leads for marked, leads in _leads.items()}
    lives = {marked.__code__: variable for marked, variable in _lives.items()}
    called = {function.__code__: what for function, what in _calls.items()}
    aware = {function.__code__ for function in _aware}
    ways = [part]
    while ways:
        run, current = ways.pop()
        innermost: FrameType | None = None
        users: FrameType | None = None
        what, name = "action", ""
        while (frame := _frame(current)) is not None and frame.f_code not in aware:
            if frame.f_code in lives:
                run, users = frame.f_locals[lives[frame.f_code]], None
                what, name = "action", ""
            elif frame.f_code in called:
                # Not the place of the action that asks, say: it only waits for that.
                before, what, users = what, called[frame.f_code], None
                if what in frame.f_locals:
                    name = type(frame.f_locals[what]).__name__
                elif what != before:
                    name = ""
            if resumes_by_hand(frame):
                current = frame.f_locals["coroutine"]
                continue
            if frame.f_code in codes:
                ways += [
                    Part(run if other is None else other, coroutine)
                    for other, coroutine in codes[frame.f_code](frame.f_locals)
                ]
                break
            innermost = frame
            if not _is_machinery(frame):
                users = frame
            current = _awaited(current)
        else:
            shown = users or innermost
            if frame is None and shown is not None:
                yield run, Place(place_of(shown), what, name)


def _frame(awaitable: object) -> FrameType | None:
    """Return the frame of a suspended coroutine or generator; None if it has none to show."""
    return getattr(awaitable, "cr_frame", None) or getattr(awaitable, "gi_frame", None)


def _awaited(awaitable: object) -> object:
    return getattr(awaitable, "cr_await", None) or getattr(awaitable, "gi_yieldfrom", None)


def _is_machinery(frame: FrameType) -> bool:
    module: str = frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in _MACHINERY


def place_of(frame: FrameType) -> str:
    """Return file, line and function of a frame."""
    return f"{frame.f_code.co_filename}:{frame.f_lineno}, in {frame.f_code.co_name}"


def place_of_users(frames: TracebackType | None) -> str:
    """Return the place where an exception was raised: the innermost frame of user code."""
    place = "a place unknown"
    for frame, line in walk_tb(frames):
        if not _is_machinery(frame):
            place = f"{frame.f_code.co_filename}:{line}, in {frame.f_code.co_name}"
    return place


# -- watching --------------------------------------------------------------------------------------


@final
class Watched:
    """Work that is cancelled, or will be at a known time, until it has ended."""

    __slots__ = ("is_over", "named", "parts")

    def __init__(self, parts: Callable[[], Iterable[Part]]) -> None:
        self.parts: Callable[[], Iterable[Part]] = parts
        """Returns the coroutines of the work."""
        self.is_over: bool = False
        self.named: tuple[object, ...] = ()  # the runs in it that were named


@final
class Watchdog:
    """Names work that does not end in time. One belongs to each runtime."""

    def __init__(
        self,
        clock: Callable[[], float],
        grace: float,
        alarm: Callable[[float, Callable[[], None]], Callable[[], object]],
        start: Callable[[Callable[[], Coroutine[Any, Any, None]]], object],
        report: Callable[[Any, Place, float], Coroutine[Any, Any, None]],
    ) -> None:
        """Watch nothing yet.

        Args:
            clock: The loop's clock.
            grace: Seconds that cancelled work may take to end.
            alarm: Calls a function at a time of that clock; returns a function that cancels that.
            start: Starts a task of the runtime's.
            report: Reports a run that still runs, its place, and the seconds since its cancel.
        """
        self._clock = clock
        self._grace = grace
        self._alarm = alarm
        self._start = start
        self._report = report
        self._entries: list[tuple[float, int, Watched]] = []  # a heap, ordered by due time
        self._numbers = count()  # break ties: `Watched` can't be compared
        self._watched = 0  # those that have not ended; entries of the others may still be there
        self._named: dict[int, object] = {}  # runs, by identity: none is named twice
        self._looks_at = math.inf  # when the timer fires; inf if none is set
        self._call_off: Callable[[], object] | None = None  # cancels the timer

    def watch(
        self, parts: Callable[[], Iterable[Part]], cancelled_at: float | None = None
    ) -> Watched:
        """Expect ``parts`` to end: they are cancelled now, or will be at ``cancelled_at``."""
        watched = Watched(parts)
        due = (self._clock() if cancelled_at is None else cancelled_at) + self._grace
        heappush(self._entries, (due, next(self._numbers), watched))
        self._watched += 1
        self._look_at(due)
        return watched

    def forget(self, watched: Watched) -> None:
        """Stop watching work that has ended."""
        watched.is_over = True
        for run in watched.named:
            self._named.pop(id(run), None)
        self._watched -= 1
        if len(self._entries) > SPARE + 2 * self._watched:
            self._entries = [entry for entry in self._entries if not entry[2].is_over]
            heapify(self._entries)
        if not self._watched:
            self._entries.clear()
            self.close()

    def close(self) -> None:
        """Stop the timer until something new is watched."""
        if self._call_off is not None:
            self._call_off()
        self._looks_at, self._call_off = math.inf, None

    def _look_at(self, due: float) -> None:
        if due < self._looks_at:
            self.close()
            self._looks_at, self._call_off = due, self._alarm(due, self._look)

    def _look(self) -> None:
        """Name the work that is due, and set the timer for the rest."""
        self._looks_at, self._call_off = math.inf, None
        entries = self._entries
        while entries:
            due, _, watched = entries[0]
            if not watched.is_over:
                if due > self._clock():
                    self._look_at(due)
                    return
                self._name(watched)
            heappop(entries)

    def _name(self, watched: Watched) -> None:
        for part in watched.parts():
            for run, place in standing(part):
                if run is None:
                    logger.warning("%s still runs, cancelled %g s ago", place.where, self._grace)
                elif id(run) not in self._named:
                    self._named[id(run)] = run
                    watched.named = (*watched.named, run)
                    self._start(partial(self._report, run, place, self._grace))
