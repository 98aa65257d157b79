"""Define the first view of a run: of a root run and of a child alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from shoal._events.identity import RunPath
from shoal._events.report import Doing, LimitUse, LiveRun, Report
from shoal.stores._protocol import ChildStatus, RunStatus, RunSummary
from shoal.stores._watching import Row

from ._failures import Failures
from ._headline import Headline


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StepBar:
    """A step of the chain with its children: certain numbers, and what runs now."""

    step: str
    visit: int
    title: str = ""
    """What the fan-out calls itself, by ``title=``."""
    counts: Mapping[ChildStatus, int] = field(default_factory=dict[ChildStatus, int])
    """Its children by status, as the store has them."""
    lost: int = 0
    """How many of the cancelled and failed ones had lost a race."""
    total: int | None = None
    """How many elements it has; None if that isn't known."""
    in_flight: int = 0
    """How many run now, by the last report."""
    waiting: int = 0
    """How many wait to start, by the last report."""
    at: Mapping[str, Mapping[Doing, int]] = field(default_factory=dict[str, Mapping[Doing, int]])
    """How many stand at each step of theirs, by what they do there; by the last report."""
    is_under_way: bool = False

    @property
    def done(self) -> int:
        """How many of its children have ended."""
        return sum(
            count for status, count in self.counts.items() if status not in ("running", "halted")
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The first view of a run, root or child."""

    path: RunPath
    row: Row
    """The run as its parent's list shows it."""
    summary: RunSummary
    """The root run that it belongs to."""
    status: RunStatus
    headline: Headline
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
    limits: Sequence[LimitUse] = ()
    """The limits in use, by the last report."""
    costs: Mapping[str, float] = field(default_factory=dict[str, float])
    """What was charged so far in the whole root run, by the name of the limit."""
    questions: Sequence[RunPath] = ()
    """Its halted children; at most 50."""
