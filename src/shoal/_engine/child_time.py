"""The time of a child: its timeouts, and what it waits for.

Only children with ``Each(timeout=)`` or ``Each(work_timeout=)``, and what runs below the latter,
have such a record. The functions in which a run waits look for it.

Invariants:
- ``timeout`` counts everything from the start of the first attempt, and stands still only while the
  execution is held.
- ``work_timeout`` counts the time in which the child is at work, or, while it waits for children of
  its own, in which at least one of these is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

from anyio import CancelScope

from shoal._concurrency.watchdog import Part, Watched
from shoal._errors.exceptions import StepTimeout, brief
from shoal._graph.policy import Each
from shoal._limits.permits import AttemptPermit

from .run import Run


@final
class Countdown:
    """A timeout that can be stopped and started; given to ``within``."""

    __slots__ = ("_left", "_parts", "_run", "_scope", "_stops", "_watched", "deadline")

    def __init__(self, run: Run) -> None:
        """Begin nothing yet."""
        self.deadline: float = math.inf
        """When the time is over, by the loop's clock; inf while it stands still."""
        self._run = run
        self._watched: Watched | None = None
        self._scope: CancelScope | None = None  # only while `within` is in it
        self._parts: Callable[[], tuple[Part]] | None = None
        self._left: float = 0.0  # seconds, while it stands still
        self._stops: int = 0  # reasons to stand still

    def begin(self, scope: CancelScope, parts: Callable[[], tuple[Part]]) -> None:
        """Let the time run that ``scope`` has, unless it has to stand still."""
        self._scope, self._parts, self.deadline = scope, parts, scope.deadline
        if self._stops:
            self._stop(scope)
        else:
            self._watched = self._run.config.services.watchdog.watch(parts, self.deadline)

    def stop(self) -> None:
        """Stand still until ``start`` was called as often as this."""
        self._stops += 1
        if self._stops == 1 and self._scope is not None and not self._scope.cancel_called:
            self._stop(self._scope)

    def _stop(self, scope: CancelScope) -> None:
        # May be negative: the time is over, and the loop has not come to it yet.
        self._left = self.deadline - self._run.config.services.clock()
        self.deadline = scope.deadline = math.inf
        self._unwatch()

    def start(self) -> None:
        """Undo one ``stop``."""
        self._stops -= 1
        scope, parts = self._scope, self._parts
        if self._stops or scope is None or parts is None or scope.cancel_called:
            return
        services = self._run.config.services
        self.deadline = scope.deadline = services.clock() + self._left
        self._watched = services.watchdog.watch(parts, self.deadline)

    def end(self) -> None:
        """Stop for good."""
        self._unwatch()
        self._scope = self._parts = None

    def _unwatch(self) -> None:
        watched, self._watched = self._watched, None
        if watched is not None:
            self._run.config.services.watchdog.forget(watched)


@final
class ChildTime:
    """What a child has waited for so far, and the clocks of its timeouts."""

    __slots__ = ("_above", "_active", "_run", "_since", "_waits", "_what", "total", "work")

    def __init__(self, run: Run, each: Each | None) -> None:
        """Begin with a child that is at work.

        Args:
            run: The child.
            each: Its policy.
        """
        self._run = run
        self.total: Countdown | None = None
        """The clock of its ``timeout``."""
        self.work: Countdown | None = None
        """The clock of its ``work_timeout``."""
        if each is not None and each.timeout is not None:
            self.total = Countdown(run)
        if each is not None and each.work_timeout is not None:
            self.work = Countdown(run)
        # The child with a `work_timeout` around it, for which it counts as at work.
        self._above: ChildTime | None = run.config.time_above
        # What is at work: the child itself, or those of its children that are. At 0, the clock of
        # its work stands still.
        self._active: int = 1
        self._waits: dict[str, float] = {}  # seconds, by what it waited for
        self._what: str = ""  # what it waits for now
        self._since: float = 0.0  # when that wait began, by `_now`
        run.config.execution.hold.members.add(self)
        if run.config.execution.hold.is_on:
            self.on_hold()
        if self._above is not None:
            self._above.go_on()

    @property
    def deadline(self) -> float:
        """When its ``timeout`` is over; inf if that stands still, or there is none."""
        return math.inf if self.total is None else self.total.deadline

    def end(self) -> None:
        """Stop for good."""
        self._run.config.execution.hold.members.discard(self)
        if self._above is not None and self._active:
            self._above.rest()

    # -- holds ----------------------------------------------------------------------------------

    def on_hold(self) -> None:
        """Let both clocks stand still."""
        for clock in (self.total, self.work):
            if clock is not None:
                clock.stop()

    def on_release(self) -> None:
        """Let both clocks go on."""
        for clock in (self.total, self.work):
            if clock is not None:
                clock.start()

    # -- work and waits -------------------------------------------------------------------------

    def rest(self) -> None:
        """Count one less at work."""
        self._active -= 1
        if self._active == 0:
            if self.work is not None:
                self.work.stop()
            if self._above is not None:
                self._above.rest()

    def go_on(self) -> None:
        """Count one more at work."""
        self._active += 1
        if self._active == 1:
            if self.work is not None:
                self.work.start()
            if self._above is not None:
                self._above.go_on()

    def begin_wait(self, what: str | AttemptPermit) -> None:
        """Note that the child waits, for a permit or what a text says, until ``end_wait``."""
        # Named here, so that it costs nothing where nobody will read it.
        self._what = what if isinstance(what, str) else awaited(self._run, what)
        self._since = self._now()
        self.rest()

    def end_wait(self) -> None:
        """Note that the child waits no more."""
        self._waits[self._what] = self._waits.get(self._what, 0.0) + self._now() - self._since
        self._what = ""
        self.go_on()

    def _now(self) -> float:
        # Without the time in which the execution was held, which no timeout counts either.
        return self._run.config.services.clock() - self._run.config.execution.hold.seconds()

    def too_late(self, seconds: float) -> StepTimeout:
        """Return the error that its next attempt, in ``seconds``, would begin after its timeout."""
        run, left = self._run, self.deadline - self._run.config.services.clock()
        msg = (
            f"{described(run)} would begin its next attempt in {seconds:.3g} s, and its timeout is "
            f"over in {max(0.0, left):.3g} s{in_words(self.waited(), beside=False)}"
        )
        return StepTimeout(msg, self.waited())

    def waited(self) -> dict[str, float]:
        """Return the seconds for which the child has waited, by what for, the longest first.

        Called where it waits for nothing: a wait under way is not counted yet.
        """
        longest = sorted(self._waits.items(), key=lambda wait: -wait[1])
        return {what: seconds for what, seconds in longest if seconds > 0.0}


def described(child: Run) -> str:
    """Return how an error names a child."""
    path, step = child.path, child.step
    where = "" if step is None else f", in {step!r},"
    return f"child {brief(path.key)} of fan-out {path.step!r}{where} run {path.id},"


def time_of(run: Run) -> ChildTime | None:
    """Return the record of the child that ``run`` is, or is part of; None if it has none."""
    owner = run.slot_owner
    times = owner.config.times
    return None if times is None else times.get(owner)


def work_around(run: Run) -> ChildTime | None:
    """Return the record that counts the work of the children of ``run``; None: nothing does."""
    time = time_of(run)
    if time is not None and time.work is not None:
        return time
    return run.slot_owner.config.time_above


# Classes and no generators: those touch the exception that leaves the block, which may be a user's
# that takes no attributes; see test_a_reducer_raises_it.


@final
class waiting:  # noqa: N801 # used like a function
    """Notes for the timeouts of a child that it waits, within the block."""

    __slots__ = ("_time", "_what")

    def __init__(self, run: Run, what: str | AttemptPermit) -> None:
        self._time = time_of(run)
        self._what = what

    def __enter__(self) -> None:
        if self._time is not None:
            self._time.begin_wait(self._what)

    def __exit__(self, *_: object) -> None:
        if self._time is not None:
            self._time.end_wait()


@final
class at_rest:  # noqa: N801 # used like a function
    """Counts only children of a run as at work, within the block."""

    __slots__ = ("_time",)

    def __init__(self, run: Run) -> None:
        self._time = time_of(run)

    def __enter__(self) -> None:
        if self._time is not None:
            self._time.rest()

    def __exit__(self, *_: object) -> None:
        if self._time is not None:
            self._time.go_on()


def awaited(run: Run, permit: AttemptPermit) -> str:
    """Return what a permit waits for, as the error of a timeout names it."""
    if permit.wait_queue is None:
        return "a slot"
    kind, limit, key = permit.held_up(run.config.services.clock())
    if kind == "rate":
        return f"a turn of {limit}"
    if kind == "key":
        return f"key {brief(key)} of {limit}"
    return "a place in flight" if limit == "in flight" else f"a slot of {limit}"


def in_words(waited: dict[str, float], *, beside: bool) -> str:
    """Return what a child has waited for, for the error of a timeout.

    Args:
        waited: The seconds, by what for.
        beside: Whether the timeout didn't count them.
    """
    if not waited:
        return ""
    total = sum(waited.values())
    how = "beside that" if beside else "of that"
    if len(waited) == 1:
        return f"; {total:.3g} s {how} it waited for {next(iter(waited))}"
    parts = ", ".join(f"{seconds:.3g} s for {what}" for what, seconds in waited.items())
    return f"; {total:.3g} s {how} it waited: {parts}"
