"""The seats of a runtime for root runs: so many execute at once, and the others stand in line.

Invariants:
- A run that stands in line has not begun: nothing is claimed, saved or published of it. Cancelled
  there, it leaves nothing.
- The classes of priority that have runs in line take turns, as at limits, so none of them starves.
  In each class seats are given in the order in which the runs came.
- Nothing that has begun waits for a seat again. So a run that is started from within another one
  waits for none either: the other one may wait for it, and would hold its own seat meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import Literal, NamedTuple, Self, final

from anyio import Event

from shoal._errors.exceptions import Overloaded, ShoalError
from shoal._limits.flows import WEIGHTS, Flow, Priority
from shoal._limits.lines import Line


@final
class RunLoad(NamedTuple):
    """How many root runs a runtime executes, and how many wait; see ``Runtime.load``."""

    running: int
    """Root runs that execute now. Runs that runs have started, and paused ones that went on, may
    make it more than ``max_runs``."""
    waiting: int
    """Root runs that wait for their turn."""
    max_runs: int | None = None
    """How many may execute at once; None: any number."""
    max_waiting: int | None = None
    """How many may wait; None: any number."""
    refused: int = 0
    """Root runs that were refused since the runtime was opened, because so many waited."""

    def is_busy(self, share: float) -> bool:
        """Whether so large a share of those that may wait does, so that refusals are near."""
        if self.max_runs is None or self.max_waiting is None:
            return False
        if self.max_waiting == 0:
            return self.running >= self.max_runs
        return self.waiting >= self.max_waiting * share


@final
class Seat:
    """The seat of one root run, or its stand in the line for one."""

    __slots__ = (
        "_all",
        "_error",
        "_status",
        "_turn",
        "is_bounded",
        "is_counted",
        "let_in",
        "priority",
    )

    def __init__(
        self, seats: Seats, *, is_counted: bool, is_bounded: bool, priority: Priority
    ) -> None:
        """Use ``Seats.enter``."""
        self._all = seats
        self.priority: Priority = priority
        """The class in which its run stands in line."""
        self._status: Literal["waiting", "held", "lent", "over"] = "held"
        # None: it need not wait. Set when it has its turn, or is taken out of the line.
        self._turn: Event | None = None
        self._error: ShoalError | None = None
        self.is_counted: bool = is_counted
        """Whether it is one of ``max_runs``."""
        self.is_bounded: bool = is_bounded
        """Whether it is one of those of which only so many may wait."""
        self.let_in: set[object] | None = None  # for the line alone, see `InLine`

    @property
    def is_waiting(self) -> bool:
        """Whether its run still stands in line."""
        return self._status == "waiting"

    @property
    def is_over(self) -> bool:
        """Whether its run has ended."""
        return self._status == "over"

    def is_of(self, seats: Seats) -> bool:
        """Return whether it is one of ``seats``."""
        return self._all is seats

    async def wait(self) -> None:
        """Wait for the turn of its run. Cancelled, the seat is left by ``leave``, as always.

        Raises:
            Draining: The runtime takes no more runs.
        """
        if self._turn is not None:
            await self._turn.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def surround(self) -> None:
        """Let runs that are started from here on, in this context, count as its run's own."""
        # Those that are over are left out, so that a chain of runs doesn't make it grow.
        around = [one for one in _around.get() if not one.is_over]
        _around.set((*around, self))

    def lend(self) -> None:
        """Give the seat to others while its run is paused."""
        if self._status == "held":
            self._status = "lent"
            self._all._free(self)

    def take_back(self) -> None:
        """Take a seat again, at once, because a run that goes on after a pause has begun."""
        if self._status == "lent":
            self._status = "held"
            self._all._hold(self)

    def leave(self) -> None:
        """Leave the seat or the line: the run has ended. Further calls do nothing."""
        status, self._status = self._status, "over"
        if status == "waiting":
            self._all._remove(self)
        elif status == "held":
            self._all._free(self)

    def _begin_to_wait(self) -> None:
        self._status, self._turn = "waiting", Event()

    def _end_wait(self, error: ShoalError | None = None) -> None:
        assert self._turn is not None, "it waits"
        self._status, self._error = "held" if error is None else "over", error
        self._turn.set()


_around: ContextVar[tuple[Seat, ...]] = ContextVar("shoal_seats", default=())
"""The seats of the runs that a run started here belongs to."""


class _Class(NamedTuple):
    """The runs of one class of priority that stand in line, and their turns beside the others."""

    flow: Flow
    line: dict[Seat, None]  # a dict keeps the order, and removes in constant time


@final
class Seats:
    """The seats of one runtime with ``max_runs=``, and the line for them."""

    def __init__(self, most: int, most_waiting: int | None, clock: Callable[[], float]) -> None:
        """Open them.

        Args:
            most: How many root runs execute at once.
            most_waiting: How many may wait; None: any number.
            clock: The clock of the runtime.
        """
        self._most = most
        self._most_waiting = most_waiting
        self._clock = clock
        self._held = 0
        # The most urgent class first, which so has the first turn of several that are due at once.
        classes = Flow()
        self._classes = {name: _Class(Flow(classes, WEIGHTS[name]), {}) for name in WEIGHTS}
        self._bounded = 0  # those in line that are one of `most_waiting`
        self._pace = Line(self)  # tells how long the line takes
        self._refused = 0

    @classmethod
    def of(
        cls, most: int | None, most_waiting: int | None, clock: Callable[[], float]
    ) -> Self | None:
        """Return the seats of a runtime with these options; None if it has any number."""
        return None if most is None else cls(most, most_waiting, clock)

    @property
    def load(self) -> RunLoad:
        """How many are in use, and how many runs wait."""
        return RunLoad(self._held, self._in_line, self._most, self._most_waiting, self._refused)

    @property
    def _in_line(self) -> int:
        return sum(len(one.line) for one in self._classes.values())

    def enter(
        self, run_id: str, *, is_recovered: bool, is_detached: bool, priority: Priority = "normal"
    ) -> Seat:
        """Return a seat for a run that is about to be started, or its stand in the line.

        Args:
            run_id: The run.
            is_recovered: Whether another process has left it. Nothing would tell of a refusal, so
                it always may wait.
            is_detached: Whether it may outlive what starts it.
            priority: The class in which it waits.

        Raises:
            Overloaded: So many wait that it may not.
        """
        # In the caller's context: a run's task has a copy of the context that it was started in.
        is_within = any(one.is_of(self) and not one.is_over for one in _around.get())
        # What an action awaits is part of its run, and needs no seat of its own. What it starts
        # and leaves alone has one, so that others are let in later, but doesn't wait for it.
        seat = Seat(
            self,
            is_counted=is_detached or not is_within,
            is_bounded=not is_recovered,
            priority=priority,
        )
        if is_within or (self._held < self._most and not self._in_line):
            self._hold(seat)
            return seat
        most = math.inf if self._most_waiting is None else self._most_waiting
        if seat.is_bounded and self._bounded >= most:
            self._refused += 1
            raise self._overloaded(run_id)
        seat._begin_to_wait()
        flow, line = self._classes[priority]
        line[seat] = None
        flow.add()
        self._bounded += seat.is_bounded
        self._pace.join(seat, self._clock())
        return seat

    def refuse_waiting(self, why: Callable[[], ShoalError]) -> None:
        """Refuse all runs in line: the runtime takes no more."""
        for seat in [seat for one in self._classes.values() for seat in one.line]:
            self._remove(seat)
            seat._end_wait(why())

    def _overloaded(self, run_id: str) -> Overloaded:
        seconds = self._pace.turns_in(max(1, self._in_line), self._clock())
        most = self._most_waiting
        waiting = f"{most} wait already" if most else "none may wait"
        msg = (
            f"run {run_id} was not started: this runtime executes {self._most} at once, and "
            f"{waiting}; try again in {seconds:.3g} s, or give it more with "
            f"Runtime(max_runs=..., waiting=...)"
        )
        return Overloaded(msg, seconds)

    def _hold(self, seat: Seat) -> None:
        self._held += seat.is_counted

    def _free(self, seat: Seat) -> None:
        self._held -= seat.is_counted
        while self._held < self._most:
            waiting = [one for one in self._classes.values() if one.line]
            if not waiting:
                break
            flow, line = min(waiting, key=lambda one: one.flow.key())
            first = next(iter(line))
            flow.on_turn(flow.round)
            self._pace.admit(first, self._clock())
            self._remove(first)
            self._hold(first)
            first._end_wait()

    def _remove(self, seat: Seat) -> None:
        flow, line = self._classes[seat.priority]
        del line[seat]
        flow.remove()
        self._bounded -= seat.is_bounded
        self._pace.leave(seat, self._clock())
