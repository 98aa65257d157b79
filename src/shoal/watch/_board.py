"""What a progress display shows of a run: a row for each fan-out, computed from its reports.

Fan-outs of the root run have a row each. Nested ones are folded into one row per step: those under
way together with those that have ended since the display began.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import final

from shoal._events.identity import Key, RunPath
from shoal._events.paths import key_as_text
from shoal._events.report import LiveRun, LiveStep, Report

from ._headline import held_up
from ._words import about, length, pace

WINDOW = 15.0
"""Seconds over which the pace is measured: long enough to be calm, short enough to be news."""
LONGEST = 3
"""Runs in flight that are named, those that have been so longest."""
LONG = 5.0
"""Seconds after which a run in flight is worth a line."""

OLD = 5.0
"""Seconds after which a report is worth saying that it is old: its process is busy, or dead."""

_Group = tuple[RunPath, str, int]  # the parent, the step and the visit of a fan-out


@final
@dataclass(slots=True)
class Row:
    """A fan-out of the root run, or all fan-outs of one nested step."""

    steps: tuple[str, ...]
    """The steps that lead to it, and its own."""
    title: str = ""
    total: int | None = None
    """How many children it has; None if that isn't known."""
    ended: int = 0
    failed: int = 0
    in_flight: int = 0
    waiting: int = 0
    at: dict[str, int] = field(default_factory=dict[str, int])
    """How many children stand at each step of theirs."""
    groups: int = 0
    """How many fan-outs under way it stands for."""
    pace: float | None = None
    """How many children end in a second; None if that isn't known yet."""

    @property
    def name(self) -> str:
        """Its title, or the name of its step."""
        return self.title or self.steps[-1]

    @property
    def seconds_left(self) -> float | None:
        """An estimate of the seconds until its end; None if there is none."""
        if not self.pace or self.total is None or self.total <= self.ended:
            return None
        return (self.total - self.ended) / self.pace

    @property
    def count(self) -> str:
        """``12,431/20,000``, or ``12,431`` if the total isn't known."""
        return f"{self.ended:,}" if self.total is None else f"{self.ended:,}/{self.total:,}"

    @property
    def details(self) -> list[str]:
        """What is worth saying besides the count, in the order of a headline."""
        found: list[str] = []
        if self.failed:
            found.append(f"{self.failed:,} failed")
        if self.in_flight:
            found.append(f"{self.in_flight:,} running")
        if self.waiting:
            found.append(f"{self.waiting:,} waiting")
        if self.pace:
            found.append(pace(self.pace))
        if self.seconds_left is not None:
            found.append(f"{about(self.seconds_left)} left")
        return found


@final
class _Chain:
    """What is remembered of the fan-outs of one row."""

    __slots__ = ("ended", "failed", "marks", "seen", "title")

    def __init__(self) -> None:
        self.seen: dict[_Group, LiveStep] = {}  # those under way in the last report
        self.ended = 0  # children of fan-outs that are gone
        self.failed = 0
        self.title = ""
        self.marks: deque[tuple[float, int]] = deque()  # seconds of the run, children ended

    def update(self, found: Mapping[_Group, LiveStep], seconds: float, *, is_whole: bool) -> None:
        """Take the fan-outs of another report.

        Args:
            found: Those under way.
            seconds: The seconds of the run.
            is_whole: Whether the report leaves out none.
        """
        for group, step in self.seen.items():
            # One that is gone has ended. Whether all of its children have is known by whether the
            # run goes on; see `Board.update`.
            if group not in found and is_whole:
                self.ended += step.ended if step.total is None else step.total - step.halted
                self.failed += step.failed
        self.seen = dict(found)
        self.title = next((step.title for step in found.values() if step.title), self.title)
        self.marks.append((seconds, self.count()))
        while len(self.marks) > 2 and self.marks[1][0] <= seconds - WINDOW:  # noqa: PLR2004 # a pair
            self.marks.popleft()

    def count(self) -> int:
        return self.ended + sum(step.ended for step in self.seen.values())

    def row(self, steps: tuple[str, ...]) -> Row:
        under_way = self.seen.values()
        totals = [step.total for step in under_way]
        total = None if None in totals else self.ended + sum(one or 0 for one in totals)
        at: dict[str, int] = {}
        for step in under_way:
            for name, doing in step.at.items():
                at[name] = at.get(name, 0) + sum(doing.values())
        (first, before), (last, after) = self.marks[0], self.marks[-1]
        return Row(
            steps=steps,
            title=self.title,
            total=total,
            ended=self.count(),
            failed=self.failed + sum(step.failed for step in under_way),
            in_flight=sum(step.in_flight for step in under_way),
            waiting=sum(step.waiting for step in under_way),
            at=at,
            groups=len(self.seen),
            pace=(after - before) / (last - first) if last - first > 0 else None,
        )


@final
class Board:
    """The progress of one root run, by its reports."""

    def __init__(self, name: str) -> None:
        """Show a run that has not reported yet.

        Args:
            name: What it is called: its application, and its id if that was chosen.
        """
        self.name = name
        self.report: Report | None = None
        self.age: float = 0.0
        """How many seconds old the report is, if another process has made it."""
        self._chains: dict[tuple[str, ...], _Chain] = {}
        self._has_failed = False  # set by the last report

    def update(self, report: Report, *, has_failed: bool = False) -> None:
        """Take another report.

        Args:
            report: The report.
            has_failed: Whether the run has ended without success. Then fan-outs that were under way
                stay as they were.
        """
        found: dict[tuple[str, ...], dict[_Group, LiveStep]] = {}
        for step in report.steps:
            group = step.path, step.step, step.visit
            found.setdefault(_steps_to(step), {})[group] = step
        before = self.report
        self.report = report
        self._has_failed = report.is_over and has_failed
        if self._has_failed:
            return
        is_whole = not report.omitted and (before is None or not before.omitted)
        for steps in (*self._chains, *(one for one in found if one not in self._chains)):
            chain = self._chains.setdefault(steps, _Chain())
            chain.update(found.get(steps, {}), report.seconds, is_whole=is_whole)

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self.report is not None and self.report.is_over

    def rows(self) -> list[Row]:
        """Return a row for each step with children, the outermost first."""
        rows = [chain.row(steps) for steps, chain in sorted(self._chains.items(), key=_depth)]
        if self._has_failed:  # the rest is as it was, but nothing runs any more
            return [replace(row, in_flight=0, waiting=0, pace=None) for row in rows]
        return rows

    @property
    def headline(self) -> str:
        """One line about the run."""
        report = self.report
        parts: list[str] = []
        rows = [row for row in self.rows() if len(row.steps) == 1]
        now = [row for row in rows if row.groups] or rows[-1:]
        for row in now:
            parts.append(f"{row.name} {row.count}")
            parts += row.details
        if report is None or not (rows or report.in_flight):
            parts.append("no children yet" if report is None else length(report.seconds))
        if report is not None:
            parts += [one.text for one in report.spending if one.spent or one.aside]
            parts += [one.text for one in report.hedges if one.copies]
        if report is not None and report.is_over:
            how = "ended without success" if self._has_failed else "over"
            parts.append(f"{how} after {length(report.seconds)}")
        elif self.why:
            parts.append(self.why)
        return " · ".join(parts)

    @property
    def why(self) -> str:
        """What holds the run up; empty if it waits little."""
        if self.age > OLD:
            return f"as of {length(self.age)} ago"
        stuck = None if self.report is None else held_up(self.report)
        return "" if stuck is None else stuck.sentence

    def long_running(self) -> list[str]:
        """Return a line for each of the runs that have been in flight longest, if that is long."""
        if self.report is None or self.report.is_over:
            return []
        longest = [run for run in self.report.longest if run.age >= LONG]
        return [_about(run) for run in longest[:LONGEST]]


def _steps_to(step: LiveStep) -> tuple[str, ...]:
    names = [step.step]
    path = step.path
    while path.parent is not None:
        names.append(path.step)
        path = path.parent
    return tuple(reversed(names))


def _depth(one: tuple[tuple[str, ...], _Chain]) -> int:
    return len(one[0])


def _about(run: LiveRun) -> str:
    name = run.title or named(run.path)
    parts = [f"{name}: {run.step or run.path.act} for {how_long(run)}"]
    if run.attempt > 1:
        of = "" if run.attempts is None else f"/{run.attempts}"
        parts.append(f"attempt {run.attempt}{of}")
    if run.next_in is not None:
        parts.append(f"again in {length(run.next_in)}")
    elif run.doing not in ("action", "other"):
        parts.append(f"waits for its {run.doing}")
    if run.copied is not None:
        parts.append(f"a second copy for {length(run.copied)}")
    if run.note:
        parts.append(run.note)
    return " · ".join(parts)


def how_long(run: LiveRun) -> str:
    """Return how long a run has been doing what it does now, and its age if that is longer.

    The age includes its waiting for limits, from the moment that its element was read.
    """
    if run.age - run.since < max(_SAME, run.age / 10):
        return length(run.age)
    return f"{length(run.since)}, {length(run.age)} in all"


_SAME = 0.5
"""Seconds: when a run began what it does now is known to a sample or two."""


def named(path: RunPath) -> str:
    """Return what to call a run: its act, and its key within its fan-out."""
    key: Key = path.key
    return path.act if path.parent is None or key == "" else f"{path.act}[{key_as_text(key)}]"
