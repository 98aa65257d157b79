"""Look at the runs in flight of one root run, and say what each does now.

The tree is walked down: the groups of children that are alive, and the children in their workers.
A child that waits is suspended somewhere, and that place says what it waits for (see ``standing``).
Nothing is changed by looking, and nothing is awaited.

Invariants:
- A look takes a bounded time: of many runs in flight, every n-th is looked at and counts n times.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from heapq import heappush, heapreplace, nsmallest
from itertools import islice
from math import inf
from typing import NamedTuple, cast, final

from shoal._concurrency.watchdog import Part
from shoal._engine.fanout.group import ChildTaskGroup
from shoal._engine.fanout.workers import Worker
from shoal._engine.run import Run
from shoal._engine.standing import Marks, Standing, look
from shoal._events.paths import key_in_short
from shoal._events.report import Doing
from shoal._limits.permits import AttemptPermit

LOOKED_AT = 700
"""Runs that one sample looks at, about: of those in flight, and of those that wait to start.

A look takes three microseconds, so a sample of 20,000 runs takes some five milliseconds. The shares
of 700 runs are mostly within two percent of those of all, and samples add up.
"""
STEPS = 50
"""Fan-outs of which a report tells the steps of the children."""
LONGEST = 50
"""Runs in flight of which a report tells what they do."""


@final
class Wait(NamedTuple):
    """What a run waits for."""

    limit: str
    """The limit, as it is written."""
    key: str
    """The key of that limit; empty if it has no keys."""
    doing: Doing
    """What of the limit it waits for: a slot, the rate, the key, the breaker."""


@final
class Leaf(NamedTuple):
    """A run in flight without live children."""

    run: Run
    standing: Standing
    group: ChildTaskGroup | None = None
    """The group of which it is a child; None: it is the root run."""
    worker: Worker | None = None
    """What executes it."""


@final
class Sample:
    """What the runs in flight of one root run do at one moment."""

    __slots__ = (
        "_busy",
        "_is_held",
        "_marks",
        "_now",
        "at",
        "doing",
        "groups",
        "in_flight",
        "waits",
    )

    def __init__(
        self, run: Run, living: Collection[Part], marks: Marks, *, now: float, turn: int = 0
    ) -> None:
        """Look at them.

        Args:
            run: The root run.
            living: The coroutine that executes it, if it has begun.
            marks: The functions in which runs wait; see ``standing``.
            now: The time, by the clock of the runtime.
            turn: Another number at each sample, so that each looks at other runs.
        """
        self._marks = marks
        self._now = now
        self._is_held = run.config.execution.hold.is_on
        self.doing: dict[Doing, float] = {}
        """How many runs in flight do what; those that wait to start count, too."""
        self.waits: dict[Wait, float] = {}
        """How many wait for each limit and key."""
        self.in_flight: int = 0
        """How many runs without live children are in flight."""
        found = _groups_of(run)
        self.groups: list[ChildTaskGroup] = nsmallest(STEPS, found, key=_depth)
        """The fan-outs under way, the outermost first; at most 50."""
        # By the id of a group: how many children are at each step of theirs, by what they do there.
        self.at: dict[int, dict[str, dict[Doing, float]]] = {id(one): {} for one in self.groups}
        # The ids of runs that have live children. They are not looked at: their children are.
        self._busy: set[int] = set()
        count = waiting = 0
        looked: list[tuple[ChildTaskGroup, Collection[Worker]]] = []
        queued: list[Collection[AttemptPermit]] = []
        for group in found:
            workers, unstarted = group.workers, group.unstarted
            looked.append((group, workers))
            count += len(workers)
            if unstarted:
                waiting += len(unstarted)
                queued.append(unstarted.values())
            if unstarted or _has_living(workers):
                self._busy.add(id(group.parent))
                self._busy.add(id(group.parent.slot_owner))
        self._look_at_workers(looked, max(1, count // LOOKED_AT), turn)
        self._look_at_unstarted(queued, max(1, waiting // LOOKED_AT), turn)
        if id(run) not in self._busy:
            for part in living:
                self._count(self._standing(run, part.coroutine), 1)
                self.in_flight += 1

    def _look_at_workers(
        self, groups: Iterable[tuple[ChildTaskGroup, Collection[Worker]]], stride: int, turn: int
    ) -> None:
        marks, busy, first = self._marks, self._busy, turn % stride
        for group, workers in groups:
            size = len(workers)
            if first >= size:  # none of these is looked at
                first -= size
                continue
            at = self.at.get(id(group))
            for worker in workers if stride == 1 else islice(workers, first, None, stride):
                child = worker.lives
                if child is None:
                    continue
                if id(child) in busy:
                    doing: Doing = "action"  # it executes its own children
                else:
                    self.in_flight += stride
                    doing = self._count(look(worker.living, marks), stride)
                if at is not None:
                    here = at.setdefault(child.step or "", {})
                    here[doing] = here.get(doing, 0) + stride
            first = (first - size) % stride

    def _look_at_unstarted(
        self, queued: Iterable[Collection[AttemptPermit]], stride: int, turn: int
    ) -> None:
        first = turn % stride
        for permits in queued:
            for permit in islice(permits, first, None, stride):
                self._count(Standing("slot", permit), stride)
            first = (first - len(permits)) % stride

    def _standing(self, run: Run, coroutine: object) -> Standing:
        if run.config.execution.is_doomed or run.status is not None:
            return Standing("store" if run.status is not None else "other")
        return look(coroutine, self._marks, has_context=True)

    def _count(self, standing: Standing, weight: float) -> Doing:
        """Count so many runs that stand like this; return what they do."""
        doing = standing.doing
        if doing == "other" and self._is_held:
            doing = "paused"  # a parent whose children don't start
        if standing.permit is not None:
            doing, wait = waits_for(standing.permit, self._now)
            if wait is not None:
                self.waits[wait] = self.waits.get(wait, 0) + weight
        self.doing[doing] = self.doing.get(doing, 0) + weight
        return doing

    def longest(self, run: Run, living: Collection[Part]) -> list[Leaf]:
        """Return the runs in flight that have been so longest; see ``Sample`` for the arguments."""
        busy = self._busy
        # A heap with the youngest of the oldest in front: most children are younger than that, and
        # cost no call and no object. Numbered, since runs can't be compared.
        oldest: list[tuple[float, int, Run, Worker, ChildTaskGroup]] = []
        bound, count = inf, 0
        for group in _groups_of(run):
            for worker in group.workers:
                child = worker.child
                if child is None or child.status is not None or child.started_at >= bound:
                    continue
                if id(child) in busy:
                    continue
                count += 1
                one = -child.started_at, count, child, worker, group
                if len(oldest) < LONGEST:
                    heappush(oldest, one)
                else:
                    heapreplace(oldest, one)
                if len(oldest) == LONGEST:
                    bound = -oldest[0][0]
        leaves = [
            Leaf(child, look(worker.living, self._marks, has_context=True), group, worker)
            for _, _, child, worker, group in sorted(oldest, key=_by_age)
        ]
        if id(run) not in self._busy:
            leaves += [Leaf(run, self._standing(run, part.coroutine)) for part in living]
        return leaves

    def still(self, leaves: Iterable[Leaf]) -> list[Leaf]:
        """Return those of ``leaves`` that have not ended and have no children, as they are now."""
        return [
            Leaf(
                leaf.run,
                look(leaf.worker.living, self._marks, has_context=True),
                leaf.group,
                leaf.worker,
            )
            for leaf in leaves
            if leaf.worker is not None
            and leaf.worker.lives is leaf.run
            and id(leaf.run) not in self._busy
        ]


def _by_age(one: tuple[float, int, Run, Worker, ChildTaskGroup]) -> tuple[float, int]:
    return -one[0], one[2].position


def _groups_of(run: Run) -> Collection[ChildTaskGroup]:
    return cast("Collection[ChildTaskGroup]", run.config.execution.groups)


def _depth(group: ChildTaskGroup) -> int:
    parent = group.parent.config.parent
    return 0 if parent is None else parent.depth + 1


def _has_living(workers: Iterable[Worker]) -> bool:
    for worker in workers:  # no generator: there may be thousands of groups
        child = worker.child
        if child is not None and child.status is None:
            return True
    return False


def waits_for(permit: AttemptPermit, now: float) -> tuple[Doing, Wait | None]:
    """Return what an attempt does that has asked for this permit, and what it waits for."""
    if permit.wait_queue is None:
        return "action", None  # granted: it is about to begin
    doing, limit, key = permit.held_up(now)
    name = "" if key is None else key_in_short(key)
    return doing, Wait(limit, name, doing)
