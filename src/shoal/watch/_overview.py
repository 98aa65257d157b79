"""Define the first view of a run: of a root run and of a child alike."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from shoal._events.identity import RunPath
from shoal._events.report import LimitUse, LiveRun, LiveStep, Report
from shoal.stores._history import Steered
from shoal.stores._protocol import ChildStatus, RunSummary
from shoal.stores._watching import Row, StepTally

from ._failures import Failures
from ._headline import Headline, StepBar

_SILENT = 2.0
"""Seconds after which a run that is watched has reported, also if its store is slow."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The first view of a run, root or child."""

    path: RunPath
    row: Row
    """The run as its parent's list shows it."""
    summary: RunSummary
    """The root run that it belongs to."""
    status: ChildStatus
    headline: Headline
    paused: Steered | None = None
    """The pause under which its root run is; None if it isn't paused."""
    is_lost: bool = False
    """Whether it has no end and no process executes it: its process has died, or was stopped."""
    breadcrumbs: Sequence[RunPath] = ()
    """The way down to it: the root run first, then the run's ancestors, without itself."""
    spawned_by: tuple[RunPath, str] | None = None
    """The run, and its step, whose action started this root run by hand."""
    spawned: Sequence[RunSummary] = ()
    """Root runs that actions of this run have started by hand; at most 50."""
    counts: Mapping[ChildStatus, int] = field(default_factory=dict[ChildStatus, int])
    """Its children by status, as the store has them."""
    bars: Sequence[StepBar] = ()
    """Its steps that have children, in their order."""
    failures: Failures = field(default_factory=Failures)
    longest: Sequence[LiveRun] = ()
    """Its descendants that have been in flight longest, by the last report."""
    report: Report | None = None
    """The last report about its root run; None if there was none."""
    report_age: float | None = None
    """How many seconds old the report is."""
    is_silent: bool = False
    """Whether a process executes its root run and doesn't report about it, because the run isn't
    watched (``watch=False``). Then nothing is known of what runs now, and the process takes no
    commands. Never true in the first seconds of a run."""
    limits: Sequence[LimitUse] = ()
    """The limits in use, by the last report."""
    costs: Mapping[str, float] = field(default_factory=dict[str, float])
    """What was charged so far in the whole root run, by the name of the limit."""
    questions: Sequence[RunPath] = ()
    """Its halted children; at most 50."""
    asking: Sequence[RunPath] = ()
    """Its descendants under way whose own fan-outs have halted children, by the last report."""

    @property
    def waits_for_answers(self) -> bool:
        """Whether it is halted, or descendants of it are."""
        return self.status == "halted" or bool(self.questions or self.asking)


def bars_of(
    path: RunPath,
    tallies: Sequence[StepTally],
    report: Report | None,
    *,
    is_lost: bool = False,
    is_resumed: bool = False,
    last: Report | None = None,
) -> Sequence[StepBar]:
    """Combine what the store has counted with what the last report says about the same fan-outs.

    Args:
        path: The run.
        tallies: The counts of its children.
        report: The last report about its root run, if that still describes it.
        is_lost: Whether the process that has reported is gone. Then the report tells how many
            elements there are, and which children have gone with it.
        is_resumed: Whether there were executions before the one that has reported.
        last: The last report, also if it no longer describes the run: it has the totals of fan-outs
            that an execution left unfinished.
    """
    visits = dict[tuple[str, int], list[StepTally]]()
    for tally in tallies:
        visits.setdefault((tally.step, tally.visit), []).append(tally)
    live = {
        (step.step, step.visit): step
        for step in (() if report is None else report.steps)
        if step.path == path
    }
    left = {
        (step.step, step.visit): step.total
        for step in (() if last is None else last.unfinished)
        if step.path == path
    }
    for name in live:
        visits.setdefault(name, [])  # a fan-out whose children have not ended yet
    bars = list[StepBar]()
    for (step, visit), parts in visits.items():
        now = live.get((step, visit))
        counts = Counter[ChildStatus]()
        for part in parts:
            counts.update(part.counts)
        if now is not None and not is_lost and counts["halted"] > now.halted:
            # The others were answered and go on: they are halted to the store until their next
            # save, and in flight to the report.
            counts["halted"] = now.halted
        lost = sum(part.lost for part in parts)
        failed = sum(max(0, part.counts.get("failed", 0) - part.lost) for part in parts)
        if is_resumed and now is not None and not is_lost and not lost:
            failed = _take_those_at_work(counts, now)
        totals = [part.total for part in parts]
        total = None if None in totals or not totals else sum(one or 0 for one in totals)
        if total is None:
            total = left.get((step, visit)) if now is None else now.total
        bars.append(
            StepBar(
                step=step,
                visit=visit,
                title="" if now is None else now.title,
                counts={status: count for status, count in counts.items() if count},
                # In a decided race all failed contestants have lost; elsewhere nothing has.
                failed=failed,
                lost=lost,
                total=total,
                in_flight=0 if now is None or is_lost else now.in_flight,
                waiting=0 if now is None or is_lost else now.waiting,
                at={} if now is None or is_lost else now.at,
                leader="" if now is None or is_lost else now.leader,
                is_under_way=now is not None and not is_lost,
                gone=_gone(now, counts) if is_lost else 0,
            )
        )
    return bars


def _take_those_at_work(counts: Counter[ChildStatus], now: LiveStep) -> int:
    """Leave out of ``counts`` those that run again after a resume; return how many have failed.

    Children that have failed, or that were cancelled with their run, keep that in the store until
    their next save. The report counts them as in flight or as waiting, and not as ended. A failure
    of this execution is left out until the next report, if others are at work again.
    """
    more = sum(counts.values()) - counts["running"] - counts["halted"] - now.ended
    again = {"cancelled": counts["cancelled"], "failed": counts["failed"] - now.failed}
    status: ChildStatus
    for status in ("cancelled", "failed"):
        taken = max(0, min(again[status], more))
        counts[status] -= taken
        more -= taken
    return counts["failed"]


def nested_in(overview: Overview, bar: StepBar) -> Mapping[str, LiveStep]:
    """Add up the fan-outs that children of a step are at, by the names of these.

    Those of which a report leaves some out are missing.
    """
    found = dict[str, list[LiveStep]]()
    for one in () if overview.report is None or not bar.is_under_way else overview.report.steps:
        of = one.path
        if of.parent == overview.path and (of.step, of.visit) == (bar.step, bar.visit):
            found.setdefault(one.step, []).append(one)
    added = dict[str, LiveStep]()
    for step, parts in found.items():
        if len(parts) == sum(bar.at.get(step, {}).values()):
            totals = [one.total for one in parts]
            added[step] = LiveStep(
                path=overview.path,
                step=step,
                visit=bar.visit,
                total=None if None in totals else sum(one or 0 for one in totals),
                ended=sum(one.ended for one in parts),
                failed=sum(one.failed for one in parts),
                halted=sum(one.halted for one in parts),
                in_flight=sum(one.in_flight for one in parts),
                waiting=sum(one.waiting for one in parts),
            )
    return added


def _gone(now: LiveStep | None, counts: Mapping[ChildStatus, int]) -> int:
    """Return how many children a dead process had in flight.

    Those that have completed a step are running to the store. Of the others only the last report
    knows, and some of them may have ended after it.
    """
    running = counts.get("running", 0)
    if now is None:
        return running
    ended = sum(counts.values()) - running - counts.get("halted", 0)
    return max(running, now.in_flight - max(0, ended - now.ended))


def is_silent(summary: RunSummary, report: Report | None) -> bool:
    """Return whether a run is executed, and its process has not reported in this execution."""
    if not summary.holder or (report is not None and not report.is_over):
        return False
    return time.time() - summary.began_at > _SILENT


def step_of(path: RunPath, report: Report | None) -> str:
    """Return the step that a run in flight is at; empty if that isn't known."""
    found = () if report is None else report.longest
    return next((one.step for one in found if one.path == path), "")


def ancestors_of(path: RunPath) -> Sequence[RunPath]:
    """Return the runs above a run, the root run first."""
    found = list[RunPath]()
    at = path.parent
    while at is not None:
        found.append(at)
        at = at.parent
    return found[::-1]


def asking_in(path: RunPath, report: Report | None) -> Sequence[RunPath]:
    """Return the descendants under way that have halted children, without the run itself."""
    steps = () if report is None else report.steps
    found = (step.path for step in steps if step.halted)
    return [*dict.fromkeys(one for one in found if one != path and is_below(one, path))]


def is_below(path: RunPath, ancestor: RunPath) -> bool:
    """Return whether a run is a descendant of another one, or that run itself."""
    at: RunPath | None = path
    while at is not None and at.depth > ancestor.depth:
        at = at.parent
    return at == ancestor
