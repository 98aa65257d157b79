"""Second copies of the late children of a map: ``Each(hedge=...)``.

Invariants:
- An attempt of a step is late once it has run longer than the percentile of the attempts of that
  step. Waiting for limits, and for another attempt, is no part of that.
- One task and one timer serve all children of a group. A child has no task of its own, and only a
  late one has a copy.
- A copy needs what a new child would need: a place in flight, units of the fan-out's rates, and
  what limits its action. It waits like a child that has not started, and holds nothing meanwhile.
- A copy that never began costs no budget.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from typing import Any, final

from anyio import CancelScope, Event

from shoal._engine.hedged import HedgedAttempt
from shoal._engine.run import Run
from shoal._engine.second_copies import Copied, SecondCopies
from shoal._engine.services import Services
from shoal._graph.action import FunctionAction
from shoal._graph.policy import Each
from shoal._limits.permits import AttemptPermit

from .admission import ChildAdmission
from .entries import Backpressure
from .hedge import HedgeStatistics
from .scope import GroupScope


@final
class Copies:
    """Starts second copies of late attempts, for the children of one group."""

    __slots__ = (
        "_admission",
        "_at_work",
        "_clock",
        "_drain",
        "_granted",
        "_hold",
        "_name",
        "_news",
        "_record",
        "_scope",
        "_statistics",
        "_wakes_at",
        "_watched",
    )

    def __init__(
        self,
        statistics: HedgeStatistics,
        admission: ChildAdmission,
        scope: GroupScope,
        parent: Run,
        name: str,
    ) -> None:
        """Prepare; nothing is late yet.

        Args:
            statistics: What is known of the steps, and the budget of copies.
            admission: The admission of the group.
            scope: Starts the tasks of copies.
            parent: The run whose children they are.
            name: The name of the fan-out.
        """
        self._name = name
        execution = parent.config.execution
        if execution.copies is None:
            execution.copies = SecondCopies(parent.config.services.clock)
        self._record = execution.copies
        self._at_work: dict[HedgedAttempt, Copied] = {}
        self._statistics = statistics
        self._admission = admission
        self._scope = scope
        self._clock = parent.config.services.clock
        self._hold, self._drain = execution.hold, execution.drain
        # The attempts that have begun and are not late, by the name of the step: the first to begin
        # first. Ordered, since a plain dict looks at all that were deleted in front of its first.
        self._watched: dict[str, OrderedDict[HedgedAttempt, None]] = {}
        # Late attempts that have got budget for a copy, which has not begun.
        self._granted: set[HedgedAttempt] = set()
        self._wakes_at = inf  # when ``feed`` looks again
        self._news: Event | None = None  # only while ``feed`` waits

    # -- ``Hedging``, which attempts call ---------------------------------------------------------

    def watch(self, attempt: HedgedAttempt) -> None:
        """Note that an attempt has begun; it is copied if it takes too long."""
        self._statistics.earn()
        step = attempt.action.name
        watched = self._watched.get(step)
        if watched is None:
            watched = self._watched[step] = OrderedDict()
        watched[attempt] = None
        self._look(step, watched)

    def forget(self, attempt: HedgedAttempt) -> None:
        """Note that an attempt needs no copy any more."""
        watched = self._watched.get(attempt.action.name)
        if watched is not None and attempt in watched:
            del watched[attempt]
        else:
            # It was late: perhaps it waits for the budget, or its copy for limits.
            self._statistics.leave(attempt, 0)
            self._give_back(attempt)

    def learn(self, attempt: HedgedAttempt, seconds: float) -> None:
        """Add the time that an attempt took to those of its step."""
        step = attempt.action.name
        self._statistics.of(step).learn(seconds)
        watched = self._watched.get(step)
        # None if all attempts of the step were suspects so far, which have no copy; see
        # test_children_that_were_at_work_in_two_crashes_are_learned_from.
        if watched is not None:
            self._look(step, watched)

    def request(self, copy: Run, action: FunctionAction[..., Any]) -> AttemptPermit:
        """Request what a copy needs to start."""
        return self._admission.request_copy(copy, action)

    def started(self, attempt: HedgedAttempt) -> None:
        """Note that a copy begins, and so has cost its budget."""
        self._granted.discard(attempt)
        self._admission.count_copy()
        run = attempt.run
        copied = self._record.began(self._name, run.path, attempt.action.name)
        copied.attempt, copied.after = run.attempt, attempt.due_after
        self._at_work[attempt] = copied

    def ended(self, attempt: HedgedAttempt, copy: Run, *, began: bool) -> None:
        """Give back the place of a copy."""
        self._admission.release_copy(copy, began=began)
        copied = self._at_work.pop(attempt, None)
        if copied is not None:
            self._record.ended(copied, used=attempt.is_won_by_copy)

    def fail(self, error: BaseException) -> None:
        """End the group."""
        self._scope.fail(error)

    # -- starting copies --------------------------------------------------------------------------

    def _look(self, step: str, watched: OrderedDict[HedgedAttempt, None]) -> None:
        """Wake ``feed`` if an attempt is late before it looks by itself."""
        if self._news is None or not watched:
            return
        oldest = next(iter(watched))
        if oldest.began_at + self._statistics.of(step).delay < self._wakes_at:
            self._news.set()

    async def feed(self, group: Backpressure) -> None:
        """Copy late attempts until the group cancels this."""
        while True:
            # Anything that becomes late while this looks makes it look again.
            self._news, self._wakes_at = Event(), inf
            self._wakes_at = self._copy_late(self._clock())
            with CancelScope(deadline=self._wakes_at):
                await self._news.wait()
            self._news = None

    def look(self) -> None:
        """Look for late attempts now."""
        if self._news is not None:
            self._news.set()

    def _copy_late(self, now: float) -> float:
        """Copy the attempts that are late; return when the next one will be."""
        wakes_at = inf
        if self._starts_nothing:  # what has begun goes on, and may be late
            return wakes_at
        # A copy, since on eager event loops other attempts may begin in this loop.
        for step, watched in list(self._watched.items()):
            delay = self._statistics.of(step).delay
            while watched:
                attempt = next(iter(watched))
                if attempt.began_at + delay > now:
                    wakes_at = min(wakes_at, attempt.began_at + delay)
                    break
                del watched[attempt]  # judged once
                attempt.due_after = delay
                if self._statistics.spend(attempt):
                    self.copy(attempt)
        return wakes_at

    def copy(self, attempt: HedgedAttempt) -> None:
        """Start the copy of an attempt, which has got the budget for it."""
        self._granted.add(attempt)
        if self._scope.closing or self._starts_nothing:
            self._give_back(attempt)
        else:
            attempt.copy(self._scope.start)

    @property
    def _starts_nothing(self) -> bool:
        """Whether the run is paused or drained: a copy is another attempt, and begins anew."""
        return self._hold.is_on or self._drain.reason is not None

    def _give_back(self, attempt: HedgedAttempt) -> None:
        if attempt in self._granted:
            self._granted.remove(attempt)
            self._statistics.leave(attempt, 1)

    def close(self) -> None:
        """Release the group; all attempts have ended."""
        self._watched.clear()
        # Breaks a cycle: the configuration of the children refers to this.
        del self._admission, self._scope

    def __repr__(self) -> str:
        watched = sum(map(len, self._watched.values()))
        return f"<Copies for {watched} attempts, {self._statistics}>"


def statistics_of(
    services: Services, definition: object, each: Each | None, name: str = ""
) -> HedgeStatistics | None:
    """Return the statistics of a fan-out's children; None if they have no hedge.

    Args:
        services: The runtime's services, which keep the statistics.
        definition: The definition that all executions of the fan-out share.
        each: The policy that may have a hedge.
        name: The name of the fan-out among those of one action.
    """
    if each is None or each.hedge is None:
        return None
    # By the definition and not by the run, so that all executions learn from each other.
    named = services.child_hedges.setdefault(definition, {})
    found: HedgeStatistics | None = named.get(name)
    # A changed hedge begins anew: what the old one has measured may be another percentile's.
    if found is None or found.hedge != each.hedge:
        found = named[name] = HedgeStatistics(each.hedge)
    return found
