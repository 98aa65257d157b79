"""Tolerated failures: a step fails for too many if there are too many, and only then.

Events tell how children end, and not which of them are judged in one batch, by their positions. If
that makes a difference, a step may fail or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, final

from shoal import Done, Failed, Outcome, RunPath
from shoal.events import (
    ChildEnded,
    ChildRerun,
    ChildStarted,
    Event,
    StateUpdated,
    StepEnded,
    StepStarted,
)

from .world import World, lineage

COUNT = 1
SHARE, AFTER = 0.5, 2
"""What all programs tolerate: see ``build``."""

BEFORE = -1


class DoneChild(NamedTuple):
    """A child that is Done."""

    position: int
    told: int
    """The number of the event that told so; ``BEFORE`` the attempt."""


@final
@dataclass(slots=True)
class Ends:
    """How the children of one run's fan-out have ended, by their ids."""

    path: RunPath
    """Of the run."""
    done: dict[str, DoneChild] = field(default_factory=dict[str, DoneChild])
    failed: set[str] = field(default_factory=set[str])
    applied: set[str] = field(default_factory=set[str])
    """Children whose failure the state has: another attempt does not run them again."""
    doubtful: set[str] = field(default_factory=set[str])
    """Failed children that the present program may run again, and may have been given."""
    ended: set[str] = field(default_factory=set[str])
    """Children that have ended in this attempt, in any way."""
    void: int = 0
    """Children that were Done before, and run again in this life, at some time."""
    may_exceed: bool = False
    """Whether there were too many failures in this attempt, if batches were such."""
    must_exceed: bool = False
    """Whether there were, whatever batches were."""

    def begin_attempt(self, *, is_hidden: bool) -> None:
        """Begin another attempt; ``is_hidden``: children that are Done may run again, untold."""
        self.failed &= self.applied
        self.ended.clear()
        self.may_exceed = self.must_exceed = False
        if is_hidden:
            self.void += len(self.done)
            self.done.clear()
        self.done = {child: DoneChild(one.position, BEFORE) for child, one in self.done.items()}

    def forget(self, child: str) -> None:
        """Note that a child runs again: its end counts no more."""
        self.failed.discard(child)
        self.applied.discard(child)
        self.doubtful.discard(child)
        self.done.pop(child, None)

    def end(self, outcome: Outcome, told: int) -> None:
        """Note how a child has ended."""
        self.ended.add(outcome.run_id)
        self.failed.discard(outcome.run_id)
        self.doubtful.discard(outcome.run_id)
        if isinstance(outcome, Failed):
            self.failed.add(outcome.run_id)
        elif isinstance(outcome, Done):
            self.done[outcome.run_id] = DoneChild(outcome.position, told)

    def behind(self, outcome: Outcome, since: int) -> int:
        """Count the children that may have been judged after ``outcome``, in the same batch.

        The failure that is one too many is told last. What was told before the event ``since``,
        when the child was not at its end, was in another batch.
        """
        found = (one for one in self.done.values() if one.position > outcome.position)
        return sum(one.told >= since for one in found)

    @property
    def count(self) -> int:
        """The number of children that have ended, cancelled ones left out."""
        return len(self.failed) + len(self.done)


@final
class ToleranceJudge:
    """Judges the fan-outs of one name, in one life, by its events."""

    def __init__(
        self, world: World, step: str, on_error: str, *, folds: bool, may_fold: bool = False
    ) -> None:
        """Begin.

        Args:
            world: Has the events.
            step: The name of the fan-outs.
            on_error: What they tolerate: "count" or "share".
            folds: Whether ``reduce`` is given failures, so they stay in later lives.
            may_fold: Whether it is in one of two programs.
        """
        self._world = world
        self._step = step
        self._on_error = on_error
        self._folds = folds
        self._may_fold = may_fold
        self._ends = dict[str, Ends]()  # by run
        again = {event.child.id for event in world.events if isinstance(event, ChildRerun)}
        # Actions whose own children are kept nowhere run these again, and no event says so.
        self._hidden = world.rerun - again

    def judge(self) -> None:
        """Go through all events of this life."""
        for number, event in enumerate(self._world.events):
            if isinstance(event, ChildRerun):
                self._begin_afresh(event.child)
            if isinstance(event, StepStarted) and event.step == self._step:
                self._begin(event.path)
            ends = self._ends.get(event.run_id)
            if ends is not None:
                self._go_on(ends, event, number)

    def _begin_afresh(self, child: RunPath) -> None:
        """Note that a run begins afresh: its end, and what is below it, count no more."""
        above = self._ends.get(str(child.parent_id))
        if above is not None and child.step == self._step:
            above.forget(child.id)
        for run_id, ends in list(self._ends.items()):
            if any(one.id == child.id for one in lineage(ends.path)):
                del self._ends[run_id]

    def _begin(self, path: RunPath) -> None:
        ends = self._ends.get(path.id)
        if ends is not None:
            self._begin_attempt(ends)
            return
        world = self._world
        ends = self._ends[path.id] = Ends(path)
        for child in self._children(path, world.done_before.values()):
            if world.is_rerun(child):
                ends.void += 1
            else:
                ends.done[child.id] = DoneChild(0, BEFORE)
        if self._folds or self._may_fold:
            failed = self._children(path, world.failed_before.values())
            ends.failed = {child.id for child in failed if not world.is_rerun(child)}
            ends.applied = set(ends.failed)
            ends.doubtful = set() if self._folds else set(ends.failed)

    def _begin_attempt(self, ends: Ends) -> None:
        above = (ends.path.root, *lineage(ends.path))
        ends.begin_attempt(is_hidden=any(one.id in self._hidden for one in above))

    def _children(self, path: RunPath, found: Iterable[RunPath]) -> Iterator[RunPath]:
        return (one for one in found if one.parent_id == path.id and one.step == self._step)

    def _go_on(self, ends: Ends, event: Event, number: int) -> None:
        match event:
            case ChildStarted() if event.step == self._step:
                self._meet(ends, event.child.id)
                ends.forget(event.child.id)
            case StateUpdated(outcome=Failed() as outcome) if event.update.step == self._step:
                ends.applied.add(outcome.run_id)
            case ChildEnded() if event.step == self._step:
                self._meet(ends, event.outcome.run_id)
                ends.end(event.outcome, number)
                if isinstance(event.outcome, Done | Failed):
                    self._count(ends, event.outcome)
            case StepEnded() if event.step == self._step:
                self._end(ends, event)
            case _:
                pass

    def _meet(self, ends: Ends, child: str) -> None:
        """Note that a child starts, or ends: it may not have started, if a breaker is open."""
        if child in ends.ended:  # another attempt goes on with a fan-out, and no event says so
            self._begin_attempt(ends)

    def _count(self, ends: Ends, outcome: Outcome) -> None:
        since = self._world.body_ends.get(outcome.run_id, 0)
        least, most = ends.count - ends.behind(outcome, since), ends.count
        # The fewer have ended, the larger is the share.
        if self._is_exceeded(len(ends.failed), min(most, max(least, AFTER))):
            ends.may_exceed = True
        if self._is_exceeded(len(ends.failed - ends.doubtful), most + ends.void):
            ends.must_exceed = True

    def _is_exceeded(self, failed: int, ended: int, *, at_end: bool = False) -> bool:
        if self._on_error == "count":
            return failed > COUNT
        return (at_end or ended >= AFTER) and failed > SHARE * ended

    def _end(self, ends: Ends, event: StepEnded) -> None:
        failed, certain = len(ends.failed), len(ends.failed - ends.doubtful)
        may_exceed = ends.may_exceed or self._is_exceeded(failed, ends.count, at_end=True)
        must_exceed = ends.must_exceed or self._is_exceeded(certain, ends.count, at_end=True)
        if event.status == "failed" and not may_exceed:
            message = str(event.error)
            if f" of fan-out {self._step!r} failed" in message or "too many" in message:
                why = f"{message!r}, and it has not too many failures"
                self._world.violate(f"{event.path!r}: {why}")
        if self._step == "fan" and self._world.program["until"] != "all":
            return  # what was decided before has succeeded
        if event.status == "succeeded" and must_exceed:
            counts = f"{failed} failures and {len(ends.done)} done"
            self._world.violate(f"{self._step} of {event.path!r} has succeeded with {counts}")


def judge_tolerance(world: World) -> None:
    """Judge the fan-outs of a program that tolerate some failures."""
    row = world.program.row
    if "loop" in row["place"]:
        return
    folds = row["result"] == "reduce" or row["form"] == "class"
    may_fold = world.has_changed and row["change"] == "folded"
    if row["on_error"] in ("count", "share"):
        ToleranceJudge(world, "fan", row["on_error"], folds=folds, may_fold=may_fold).judge()
    if row["outer_on_error"] == "share":
        ToleranceJudge(world, "outer", "share", folds=row["outer_result"] == "reduce").judge()
