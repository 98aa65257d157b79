"""Add up what samples of one root run have shown, and make reports of it.

Invariants:
- ``spent`` adds up to ``seconds``: each interval is divided among what the runs in flight did at
  its end. Lateness of the sample is time in which the event loop was busy.
- Memory is bounded: of very many keys that were waited for, those that took least are forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from heapq import nlargest
from math import exp
from typing import Any, Protocol, TypeVar, cast, final

from shoal._concurrency.cancellation import ki_unprotected
from shoal._concurrency.watchdog import Part
from shoal._engine.fanout.group import ChildTaskGroup
from shoal._engine.hedged import hedged_attempt
from shoal._engine.run import Run
from shoal._engine.second_copies import SecondCopies
from shoal._engine.standing import Marks
from shoal._errors.exceptions import ShoalError, brief
from shoal._events.events import ChildName, Status
from shoal._events.identity import RunPath
from shoal._events.report import (
    BreakerUse,
    BudgetUse,
    Doing,
    LimitUse,
    LiveRun,
    LiveStep,
    Report,
    SlowRun,
    Spending,
    Waited,
)
from shoal._graph.action import FunctionAction
from shoal._state.state import make_state

from .limit_use import uses_in_flight
from .sampling import LONGEST, Leaf, Sample, Wait, waits_for

WAITS = 1000
"""Limits and keys that are kept. Beyond twice as many, those that took least are forgotten."""
WAITS_TOLD = 20
"""Limits and keys of which a report tells."""
SEARCHED = 2000
"""Runs in flight among which each report finds the oldest anew. Ten times as many take some
milliseconds, so of more they are sought..."""
NOW_AND_THEN = 4
"""...after so many samples, if half of those that were found have ended..."""
RARELY = 20
"""...or after so many in any case: runs may have become the oldest by losing their children."""
LATE = 0.005
"""Seconds by which a timer of the loop may be late though the loop was idle."""
KEYS = 50_000
"""Characters of the keys in the paths of a report, about. Runs and fan-outs beyond are left out:
a path that was cut would lead nowhere."""
FADED = 0.001
"""Seconds: less is not worth telling as recent."""
RECENT = 3.0
"""Seconds after which what was done counts a third as much in what is told to be recent."""
SLOWEST = 5
"""Children of which a report tells that they took longest."""
FEW = 10
"""The last children of a fan-out are a part of so many of those that it may have in flight."""
TEXT = 200
"""Characters of a note or a title. A report is rewritten a few times per second."""


T = TypeVar("T")


class Context(Protocol):
    """The part of an attempt's ``Context`` that a report reads."""

    _note: str


@final
class _Slow:
    """A child that has been in flight long."""

    __slots__ = ("alone", "path", "run", "seconds", "started_at", "status")

    def __init__(self, run: Run) -> None:
        self.run: Run | None = run  # None once it has ended: its state needs no memory any more
        self.path = run.path
        self.started_at = run.started_at
        self.seconds = 0.0
        self.alone = 0.0
        self.status: Status | None = None

    def update(self, now: float) -> None:
        run = self.run
        if run is None:
            return
        self.seconds = max(0.0, now - self.started_at)
        if run.status is not None:
            self.status, self.run = run.status, None
            self.seconds = run.elapsed or self.seconds


@final
class Tally:
    """What the samples of one root run have shown so far."""

    def __init__(self, run_id: str, began_at: float, marks: Marks) -> None:
        """Begin with no sample.

        Args:
            run_id: The root run.
            began_at: When its execution began, by the clock of the runtime.
            marks: The functions in which runs wait; see ``standing``.
        """
        self._run_id = run_id
        self._began_at = began_at
        self._marks = marks
        self._until = began_at  # the end of the last interval that was counted
        self.samples: int = 0
        """How many samples there were."""
        self._peak = 0
        self._spent: dict[Doing, float] = {}
        self._waited: dict[Wait, float] = {}
        # The same of the last few seconds.
        self._recent: dict[Doing, float] = {}
        self._recently_waited: dict[Wait, float] = {}
        self._recently_full: dict[tuple[str, int], float] = {}
        self._slowest: list[_Slow] = []
        # By owner and part of a limit: how long it was full, and its use when it was full last.
        self._full: dict[tuple[str, int], tuple[float, LimitUse]] = {}
        self._reduced = 0.0  # seconds of ``Execution.reducing`` that are counted
        self._last: tuple[Run, Collection[Part], Sample] | None = None
        self._steps: tuple[LiveStep, ...] = ()  # of the last report that was made in time
        self._leaves: Sequence[Leaf] = ()  # the runs of the last report
        self._searched_at = -RARELY  # the sample at which the oldest of all runs were found
        # By the id of a run: the run, what it did when it was first told of, and when that was.
        # Only of the runs in the last report.
        self._since: dict[int, tuple[Run, object, float]] = {}

    def add(
        self,
        run: Run | None,
        living: Collection[Part],
        *,
        now: float,
        due: float,
        limits: Sequence[LimitUse] = (),
    ) -> None:
        """Take a sample, and count the time since the last one.

        Args:
            run: The root run; None if it has not begun.
            living: The coroutine that executes it.
            now: The time, by the clock of the runtime.
            due: When the sample was due.
            limits: The limits of the runtime that are in use.
        """
        self.samples += 1
        began = self._until
        sample = None
        if run is not None:
            sample = Sample(run, living, self._marks, now=now, turn=self.samples)
            self._peak = max(self._peak, sample.in_flight)
            self._last = run, living, sample
            self._leaves = self._oldest(run, living, sample)
            self._remember(self._leaves, sample, now, now - began)
        # Before its beginning is saved the run waits for its store.
        self._count(sample, now, due, "store" if run is None else "other")
        self._count_full((*uses_in_flight(self.groups), *limits), now - began)

    @property
    def groups(self) -> Sequence[ChildTaskGroup]:
        """The fan-outs under way in the last sample, the outermost first; at most 50."""
        return () if self._last is None else self._last[2].groups

    def end(self, now: float, due: float) -> None:
        """Count the rest: the run has ended. It did what it did in the last sample."""
        self._count(None if self._last is None else self._last[2], now, due, "other")
        self._remember((), None, now, 0.0)
        self._last = None
        self._since = {}

    def _count(self, sample: Sample | None, now: float, due: float, default: Doing) -> None:
        interval = now - self._until
        if interval <= 0:
            return
        reduced = 0.0
        if self._last is not None:
            reducing = self._last[0].config.execution.reducing
            reduced, self._reduced = min(reducing - self._reduced, interval), reducing
        # While results are applied, nothing else can run, the sampler neither.
        late = now - max(due, self._until) - reduced
        late = 0.0 if late < LATE else min(late, interval - reduced)
        self._until = now
        rest = interval - reduced - late
        doing = {} if sample is None else sample.doing
        count = sum(doing.values())
        spent: dict[Doing, float] = {"reducer": reduced, "loop": late}
        waited: dict[Wait, float] = {}
        if sample is None or not count:
            spent[default] = spent.get(default, 0.0) + rest
        else:
            for what, weight in doing.items():
                spent[what] = spent.get(what, 0.0) + rest * weight / count
            waited = {wait: rest * weight / count for wait, weight in sample.waits.items()}
        _add(self._spent, spent)
        _add(self._waited, waited)
        if len(self._waited) > 2 * WAITS:
            self._waited = dict(_largest(self._waited, WAITS))
        _add_recent(self._recent, spent, interval)
        _add_recent(self._recently_waited, waited, interval)

    # -- the report -----------------------------------------------------------------------------

    def report(
        self,
        now: float,
        every: float,
        *,
        limits: Sequence[LimitUse] = (),
        breakers: tuple[BreakerUse, ...] = (),
        budgets: tuple[BudgetUse, ...] = (),
        owners: Mapping[str, str] | None = None,
        costs: Mapping[str, float] | None = None,
        spending: tuple[Spending, ...] = (),
        copies: SecondCopies | None = None,
        is_over: bool = False,
    ) -> Report:
        """Make a report of the last sample and of all that was added up.

        Args:
            now: The time, by the clock of the runtime.
            every: Seconds between two samples, at present.
            limits: The limits in use.
            breakers: The breakers of fan-outs that have run.
            budgets: The budgets of retries that have been used.
            owners: The owner of each limit, by the limit as it is written.
            costs: What was charged so far, by the name of the limit.
            spending: What was spent of budgets so far.
            copies: The second copies of late attempts.
            is_over: Whether the execution has ended.
        """
        steps: tuple[LiveStep, ...] = ()
        longest: tuple[LiveRun, ...] = ()
        in_flight, omitted, draining = 0, 0, ""
        if self._last is not None:
            run, living, sample = self._last
            draining = shown(run, run.config.execution.drain.reason or "")
            in_flight = sample.in_flight
            groups = _within(sample.groups, lambda group: group.parent.path)
            steps = tuple([self._step(group, sample, now) for group in groups])
            self._steps = steps
            omitted = len(run.config.execution.groups) - len(steps)
            self._leaves = self._oldest(run, living, sample)
            longest = self._runs(_within(self._leaves, lambda leaf: leaf.run.path), now)
        owned = owners or {}
        return Report(
            run_id=self._run_id,
            # Added up in the order of the mapping, so that its sum is the very same number.
            seconds=sum(self._spent.values()),
            samples=self.samples,
            every=every,
            spent=dict(self._spent),
            waited=_waited_of(self._waited, owned),
            recent=dict(self._recent),
            recent_waited=_waited_of(self._recently_waited, owned),
            steps=steps,
            unfinished=tuple([_unfinished(step) for step in self._steps]) if is_over else (),
            longest=longest,
            slowest=tuple(
                SlowRun(
                    path=one.path,
                    seconds=one.seconds,
                    began=max(0.0, one.started_at - self._began_at),
                    alone=one.alone,
                    status=one.status or "running",
                )
                for one in _within(self._slowest[:SLOWEST], lambda one: one.path)
            ),
            limits=(
                *[self._with_full(use) for use in limits],
                *(self._were_full(limits) if is_over else ()),
            ),
            breakers=breakers,
            budgets=budgets,
            in_flight=in_flight,
            peak=self._peak,
            omitted=omitted,
            is_over=is_over,
            draining=draining,
            costs=costs or {},
            spending=spending,
            hedges=() if copies is None else copies.uses(),
            copies=() if copies is None else tuple(_within(copies.all(), lambda one: one.path)),
        )

    def _oldest(self, run: Run, living: Collection[Part], sample: Sample) -> Sequence[Leaf]:
        """Return the runs in flight that have been so longest.

        Of many, those are kept that were the oldest at an earlier sample and still are in flight:
        all others are younger.
        """
        since = self.samples - self._searched_at
        if sample.in_flight > SEARCHED and since < RARELY:
            leaves = sample.still(self._leaves)
            if since < NOW_AND_THEN or len(leaves) > LONGEST // 2:
                return leaves
        self._searched_at = self.samples
        return sample.longest(run, living)

    def _remember(
        self, leaves: Sequence[Leaf], sample: Sample | None, now: float, interval: float
    ) -> None:
        """Remember the children that took longest, and how long one of them was the last."""
        oldest = [leaf for leaf in leaves if leaf.group is not None][:SLOWEST]
        known = {id(one.run): one for one in self._slowest if one.run is not None}
        for leaf in oldest:
            if id(leaf.run) not in known:
                known[id(leaf.run)] = _Slow(leaf.run)
                self._slowest.append(known[id(leaf.run)])
        if oldest and sample is not None and _is_last(oldest[0], sample):
            known[id(oldest[0].run)].alone += interval
        for one in self._slowest:
            one.update(now)
        self._slowest.sort(key=lambda one: -one.seconds)
        del self._slowest[2 * SLOWEST :]

    def _count_full(self, limits: Sequence[LimitUse], interval: float) -> None:
        """Count an interval for each limit that is full.

        At each sample, not at each report: a run whose reports nobody reads makes the last one
        alone. Fan-outs of one name count once, as if they were one.
        """
        if interval <= 0:
            return
        # Not those with keys: each key has its slots, and the runs that wait for it tell of it.
        full = {
            (use.owner, use.part): use
            for use in limits
            if use.slots is not None and use.in_use >= use.slots and use.waiting and not use.waits
        }
        for owner, use in full.items():
            seconds = self._full[owner][0] if owner in self._full else 0.0
            self._full[owner] = seconds + interval, use
        _add_recent(self._recently_full, dict.fromkeys(full, interval), interval)

    def _with_full(self, use: LimitUse) -> LimitUse:
        """Add the time for which a limit was full."""
        owner = use.owner, use.part
        full = self._full.get(owner)
        if full is None:
            return use
        return replace(use, full=full[0], recent=self._recently_full.get(owner, 0.0))

    def _were_full(self, limits: Sequence[LimitUse]) -> Iterator[LimitUse]:
        """Yield limits that are no longer in use, and were full: those of fan-outs that are over.

        The last report tells of them, so that an explanation of the run does.
        """
        told = {(use.owner, use.part) for use in limits}
        for owner, (seconds, use) in self._full.items():
            if owner not in told:
                yield replace(use, in_use=0, waiting=0, waits={}, full=seconds)

    def _step(self, group: ChildTaskGroup, sample: Sample, now: float) -> LiveStep:
        parent = group.parent
        ledger = group.ledger
        ended, halted = (0, 0) if ledger is None else (ledger.total, ledger.halted)
        ended += group.uncommitted
        started, unstarted, to_come = group.started, len(group.unstarted), group.to_come
        title = group.title
        return LiveStep(
            path=parent.path,
            step=group.name,
            visit=parent.visit(parent.step or ""),
            age=max(0.0, now - parent.started_at),
            title=shown(parent, title) if isinstance(title, str) else "",
            total=None if to_come is None else ended + halted + started + unstarted + to_come,
            ended=ended,
            failed=0 if ledger is None else ledger.failed,
            halted=halted,
            in_flight=started,
            waiting=unstarted,
            leader="" if ledger is None else _leader(ledger.winner),
            at={
                step: {doing: round(count) for doing, count in here.items()}
                for step, here in sample.at[id(group)].items()
            },
        )

    def _runs(self, leaves: Sequence[Leaf], now: float) -> tuple[LiveRun, ...]:
        before, self._since = self._since, {}
        return tuple([self._live_run(leaf, now, before) for leaf in leaves])

    def _live_run(
        self, leaf: Leaf, now: float, before: Mapping[int, tuple[Run, object, float]]
    ) -> LiveRun:
        run, standing, group = leaf.run, leaf.standing, leaf.group
        at = run if standing.inner is None else cast("Run", standing.inner)
        doing, wait = standing.doing, None
        if standing.permit is not None:
            doing, wait = waits_for(standing.permit, now)
        # A permit may wait for one limit and then for another: all that is one wait.
        now_at: object = doing if standing.permit is None else standing.permit
        what = (now_at, at.path.id if at is not run else "", at.step, at.attempt)
        known = before.get(id(run))
        age = max(0.0, now - run.started_at)
        if known is not None and known[0] is run and known[1] == what:
            began = known[2]
        elif known is None and doing == "action" and _is_at_first(at) and at is run:
            began = run.started_at  # it has done nothing else yet
        else:
            began = now
        self._since[id(run)] = run, what, began
        note = ""
        if standing.context is not None:
            note = shown(run, cast("Context", standing.context)._note)
        return LiveRun(
            path=at.path,
            step=at.step or "",
            doing=doing,
            since=now - began,
            age=age,
            attempt=at.attempt,
            attempts=_attempts(at),
            next_in=_next_in(at, now) if doing == "backoff" else None,
            limit="" if wait is None else wait.limit,
            limit_key="" if wait is None else wait.key,
            title="" if group is None else title_of(run, group),
            note=note,
            copied=_copied(at, now),
        )


def _unfinished(step: LiveStep) -> LiveStep:
    """Return a fan-out as its run has left it: nothing of it is in flight any more."""
    return LiveStep(
        path=step.path, step=step.step, visit=step.visit, title=step.title, total=step.total
    )


def _is_last(leaf: Leaf, sample: Sample) -> bool:
    """Return whether a child that works is one of the last, and nothing waits."""
    group = leaf.group
    if group is None or leaf.standing.doing != "action" or any(one.more for one in sample.groups):
        return False
    ledger = group.ledger
    count = group.started + group.uncommitted + (0 if ledger is None else ledger.total)
    few = max(1, int(min(count, group.slots)) // FEW)
    return min(count, group.slots) > 1 and sum(sample.doing.values()) <= few


def _is_at_first(run: Run) -> bool:
    """Return whether a run is in the first attempt of its first step, and waited for no limit."""
    return run.permits is None and run.steps is None and run.retries is None


def _attempts(run: Run) -> int | None:
    """Return how many attempts the current step of a run may have, or the run itself."""
    each = run.config.each
    retry = None if each is None else each.retry
    act = None if run.step is None else run.config.graph.find(run.step)
    if isinstance(act, FunctionAction):
        retry = cast("FunctionAction[..., Any]", act).retry or retry
    return None if retry is None else retry.attempts


def _next_in(run: Run, now: float) -> float | None:
    return None if run.retries is None else max(0.0, run.retries.next_at - now)


def _copied(run: Run, now: float) -> float | None:
    hedged = hedged_attempt(run)
    began_at = None if hedged is None else hedged.copy_began_at
    return None if began_at is None else max(0.0, now - began_at)


def title_of(run: Run, group: ChildTaskGroup) -> str:
    """Return what the fan-out of a child calls it.

    An error of the user's function is shown in place of the title, and never fails the run. It is
    called by a timer of the loop: anything that it raises would end the sampling of all runs there,
    and a SystemExit the loop itself.
    """
    title = group.title
    if title is None or isinstance(title, str):
        return "" if title is None else shown(run, title)
    try:
        text = _called(title, run)
    except KeyboardInterrupt:  # of a person, who doesn't want to wait for it
        raise
    except BaseException as error:  # noqa: BLE001 # of the user's function: shown
        text = f"title= raised {brief(error)}"
    return shown(run, text)


@ki_unprotected
def _called(title: Callable[..., object], run: Run) -> str:
    found = title(make_state(run.initial))
    return found if isinstance(found, str) else str(found)


def shown(run: Run, text: str) -> str:
    """Return a text of the user's as it may be shown: short, and without a secret."""
    secrets = run.config.secrets
    if secrets.names:
        try:
            secrets.refuse(text, "a title")
        except ShoalError:
            return "(it holds a secret)"
    return text if len(text) <= TEXT else f"{text[: TEXT - 1]}…"


def _within(found: Sequence[T], path_of: Callable[[T], RunPath]) -> Sequence[T]:
    """Return as many of the first ones as have short keys enough for a report."""
    room = KEYS
    for place, one in enumerate(found):
        path: RunPath | None = path_of(one)
        while path is not None:
            room -= len(path.key) if isinstance(path.key, str) else path.key.bit_length() // 4
            path = path.parent
        if room < 0:
            return found[:place]
    return found


def _waited_of(waited: Mapping[Wait, float], owners: Mapping[str, str]) -> tuple[Waited, ...]:
    """Return what a report tells of waits: those that took longest, and the others by limit."""
    told = _largest(waited, WAITS_TOLD)
    rest: dict[tuple[str, Doing], tuple[float, int]] = {}
    if len(waited) > len(told):
        known = {wait for wait, _ in told}
        for wait, seconds in waited.items():
            if wait not in known:
                before, count = rest.get((wait.limit, wait.doing), (0.0, 0))
                rest[wait.limit, wait.doing] = before + seconds, count + 1
    return (
        *(
            Waited(
                limit=wait.limit,
                key=wait.key,
                owner=owners.get(wait.limit, ""),
                seconds=seconds,
                doing=wait.doing,
            )
            for wait, seconds in told
        ),
        *(
            Waited(
                limit=limit,
                key="",
                owner=owners.get(limit, ""),
                seconds=seconds,
                doing=doing,
                others=count,
            )
            for (limit, doing), (seconds, count) in list(rest.items())[:WAITS_TOLD]
        ),
    )


K = TypeVar("K")


def _add(sums: dict[K, float], parts: Mapping[K, float]) -> None:
    for name, seconds in parts.items():
        if seconds > 0:
            sums[name] = sums.get(name, 0.0) + seconds


def _add_recent(sums: dict[K, float], parts: Mapping[K, float], interval: float) -> None:
    """Let ``sums`` fade by an interval, and add the parts of it; what has faded away is removed."""
    keeps = exp(-interval / RECENT)
    for name in list(sums):
        sums[name] *= keeps
        if sums[name] < FADED and name not in parts:
            del sums[name]
    gain = RECENT * (1.0 - keeps) / interval
    _add(sums, {name: seconds * gain for name, seconds in parts.items()})


def _largest(found: Mapping[Wait, float], count: int) -> list[tuple[Wait, float]]:
    return nlargest(count, found.items(), key=lambda one: one[1])


def _leader(child: ChildName | None) -> str:
    if child is None:
        return ""
    return child.act if child.key == "" else str(child.key)
