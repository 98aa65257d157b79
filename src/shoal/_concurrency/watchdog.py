"""Naming what still runs long after it was cancelled, and where it stands. Imports ``_cancel``.

Invariants:
- Whatever doesn't end within the grace after its cancellation is named, once.
- A child costs nothing for it. Who cancels, or sets a timeout, says when and what; only when the
  grace is over, coroutines are looked into.
- A runtime has one alarm for that, whatever the number of what is watched; none if nothing is.
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
"""Seconds for cleanup after a cancellation, before it is named and threads are left behind."""
SPARE = 64
"""Of what has ended, how much may lie about beside as much as goes on."""

_MACHINERY = {"anyio", "asyncio", "outcome", "trio", "shoal"}


class Part(NamedTuple):
    """A coroutine, and the run that it is part of, if that is known."""

    run: object | None
    coroutine: object


# -- where coroutines stand ------------------------------------------------------------------------

Leads = Callable[[Mapping[str, Any]], Iterable[Part]]
F = TypeVar("F", bound=Callable[..., Any])

_leads: dict[Callable[..., Any], Leads] = {}
_lives: dict[Callable[..., Any], str] = {}
_aware: list[Callable[..., Any]] = []


def leads_to(leads: Leads) -> Callable[[F], F]:
    """Mark a function that waits for coroutines of other tasks: ``leads`` finds them.

    It is given the local variables of the function's frame.
    """

    def mark(function: F) -> F:
        _leads[function] = leads
        return function

    return mark


def is_life_of(variable: str) -> Callable[[F], F]:
    """Mark a function in which all happens that a run does; its local ``variable`` is that run."""

    def mark(function: F) -> F:
        _lives[function] = variable
        return function

    return mark


def is_aware(function: F) -> F:
    """Mark a function that notices by itself for how long it has been cancelled."""
    _aware.append(function)
    return function


def standing(part: Part) -> Iterator[tuple[object | None, str]]:
    """Find where a suspended coroutine stands, and what it waits for in other tasks."""
    # Looked up each time: on trio, functions get other code when a runtime is opened.
    codes: dict[CodeType, Leads] = {marked.__code__: leads for marked, leads in _leads.items()}
    lives = {marked.__code__: variable for marked, variable in _lives.items()}
    aware = {function.__code__ for function in _aware}
    ways = [part]
    while ways:
        run, current = ways.pop()
        innermost: FrameType | None = None
        users: FrameType | None = None
        while (frame := _frame(current)) is not None and frame.f_code not in aware:
            if frame.f_code in lives:
                run, users = frame.f_locals[lives[frame.f_code]], None
            if frame.f_code is drive.__code__:
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
                yield run, place_of(shown)


def _frame(awaitable: object) -> FrameType | None:
    """Return the frame of what is suspended; None where there is none, or nobody can see it."""
    return getattr(awaitable, "cr_frame", None) or getattr(awaitable, "gi_frame", None)


def _awaited(awaitable: object) -> object:
    return getattr(awaitable, "cr_await", None) or getattr(awaitable, "gi_yieldfrom", None)


def _is_machinery(frame: FrameType) -> bool:
    module: str = frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in _MACHINERY


def place_of(frame: FrameType) -> str:
    """Say where a frame stands."""
    return f"{frame.f_code.co_filename}:{frame.f_lineno}, in {frame.f_code.co_name}"


def place_of_users(frames: TracebackType | None) -> str:
    """Say where an exception came out of: the innermost frame that is of no library's."""
    place = "a place unknown"
    for frame, line in walk_tb(frames):
        if not _is_machinery(frame):
            place = f"{frame.f_code.co_filename}:{line}, in {frame.f_code.co_name}"
    return place


# -- watching --------------------------------------------------------------------------------------


@final
class Watched:
    """What is being cancelled, or will be, until it has ended."""

    __slots__ = ("is_over", "named", "parts")

    def __init__(self, parts: Callable[[], Iterable[Part]]) -> None:
        """Begin; ``parts`` finds what is to end."""
        self.parts: Callable[[], Iterable[Part]] = parts
        self.is_over: bool = False
        self.named: list[object] = []


@final
class Watchdog:
    """Names what doesn't end in time. Belongs to a runtime."""

    def __init__(
        self,
        clock: Callable[[], float],
        grace: float,
        alarm: Callable[[float, Callable[[], None]], Callable[[], object]],
        start: Callable[[Callable[[], Coroutine[Any, Any, None]]], object],
        report: Callable[[Any, str, float], Coroutine[Any, Any, None]],
    ) -> None:
        """Watch nothing yet.

        Args:
            clock: The loop's.
            grace: Seconds that something may take to end.
            alarm: Has a function called at a time by that clock; returns what calls that off.
            start: Starts a task of the runtime's.
            report: Says of a run where it stands, so many seconds after it was cancelled.
        """
        self._clock = clock
        self._grace = grace
        self._alarm = alarm
        self._start = start
        self._report = report
        self._entries: list[tuple[float, int, Watched]] = []  # a heap, by when they are due
        self._numbers = count()
        self._watched = 0  # what has not ended
        self._named: dict[int, object] = {}  # by identity
        self._looks_at = math.inf
        self._call_off: Callable[[], object] | None = None

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
        """Hear that it has ended."""
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
        """Look no more, until something new is watched."""
        if self._call_off is not None:
            self._call_off()
        self._looks_at, self._call_off = math.inf, None

    def _look_at(self, due: float) -> None:
        if due < self._looks_at:
            self.close()
            self._looks_at, self._call_off = due, self._alarm(due, self._look)

    def _look(self) -> None:
        """Name what is due, and look again when more is."""
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
                    logger.warning("%s still runs, cancelled %g s ago", place, self._grace)
                elif id(run) not in self._named:
                    self._named[id(run)] = run
                    watched.named.append(run)
                    self._start(partial(self._report, run, place, self._grace))
