"""``Queries``: the questions that pages, commands and programs ask about runs."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import NamedTuple, final

import anyio

from shoal._errors.exceptions import brief
from shoal._events.identity import RunPath
from shoal._events.paths import parse_path
from shoal._events.report import BreakerUse, BudgetUse, LimitUse, Report
from shoal._events.report_text import parse_report
from shoal._runtime.steering import pause_of, steered_of
from shoal.stores._history import Steered
from shoal.stores._protocol import Browses, ChildStatus, RunStatus, RunSummary
from shoal.stores._watching import (
    Bin,
    Inspects,
    KeepsReports,
    Order,
    Row,
    RowPage,
    StepTally,
    StoredEntry,
    StoredReport,
)

from ._any_store import Inspection
from ._burr import MOST_CHILDREN, BurrExport, export_burr
from ._diff import Difference, difference
from ._explain import Explanation, Link, explained, unexplained
from ._export import export_lines, unknown_run
from ._failures import Failures, grouped
from ._headline import StepBar, headline
from ._history import HistoryPage, entry_of
from ._nested import Nested, nested_of
from ._overview import Overview, ancestors_of, asking_in, bars_of, is_below, is_silent, step_of
from ._questions import Questions, questions_of
from ._timeline import MOST_BARS, Timeline, in_bars, in_flight
from ._values import Value, What, value_of

_WINDOW = 10.0
"""Seconds over which a pace is measured, at least."""
_FINE = 1_000
"""Bins of the time of a resumed run, most of which may be the time between two executions."""
_RESUMED = 0.1
"""If more than this part of a run's time is not in its report, it had executions before."""
_SOON = 1.0
"""Seconds in which too little happens to tell a pace."""
_REMEMBERED = 1_000
"""The runs of which a ``Queries`` remembers what it has seen: more than there are open pages."""
_SCANNED = 5_000
"""The most root runs that are read for a page of one application's."""
_DEEPEST = 100
"""The most runs on a critical path; recursion may be deeper, and nobody reads that."""
_SLOWEST = 5
_DIGITS = 18
"""Digits of a number of an update, at most; databases take no more."""
_ORDER: Sequence[ChildStatus] = ("failed", "running", "halted", "cancelled", "succeeded", "skipped")
"""The statuses of children, those first that people look for."""


@final
class RunsPage(NamedTuple):
    """A page of root runs, the newest first."""

    runs: Sequence[RunSummary]
    after: str | None
    """The cursor of the next page; None after the last one."""


@final
@dataclass(slots=True)
class _Seen:
    """What was seen of one run: numbers that would be read again otherwise."""

    state: object = None
    """What the groups of failures depend on, as it was when they were made."""
    failures: Failures = field(default_factory=Failures)
    ends: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])
    """When it was looked at, by the clock of the event loop, and how many children had ended."""


@final
class Queries:
    """Answers questions about the runs in a store, while they run and afterwards.

    Counts are those of the store at the moment of the call. What runs at that moment is known from
    the last report, which the executing process writes a few times per second; without one, an
    answer has only what the store knows. No method changes anything, and with shoal's own stores
    none decodes a value, so the types of the program needn't be imported. All may be cancelled.

    An object remembers what it has seen of the runs last asked for, which makes further answers
    about them cheaper, and the pace exact. Share one among all pages.

    Examples:
        >>> import anyio
        >>> from shoal import Application, MemoryStore, action, fan_out
        >>> from shoal.watch import Queries
        >>> @action(reads=["n"], writes=["square"])
        ... async def square(n: int) -> int:
        ...     return n * n
        >>> async def main() -> None:
        ...     store = MemoryStore()
        ...     squares = fan_out(square, over="numbers", item="n", into="squares")
        ...     await Application(squares, store=store).run({"numbers": [1, 2, 3]}, id="three")
        ...     overview = await Queries(store).overview("three")
        ...     print(overview.status, dict(overview.counts))
        >>> anyio.run(main)
        succeeded {'succeeded': 3}
    """

    def __init__(self, store: Browses) -> None:
        """Ask ``store``.

        Args:
            store: A store that implements ``shoal.stores.Browses``. If it implements ``Inspects``
                too, as the stores of shoal do, answers take time in proportion to what they show;
                for another store all children of a run are read for each answer.
        """
        self._store: Browses = store
        self._inspected: Inspects = store if isinstance(store, Inspects) else Inspection(store)
        self._seen: OrderedDict[str, _Seen] = OrderedDict()  # the last asked for is last

    @property
    def store(self) -> Browses:
        """The store that is asked."""
        return self._store

    @property
    def inspected(self) -> Inspects:
        """The store, or what stands in for it if it doesn't implement ``Inspects``."""
        return self._inspected

    async def mark(self) -> object:
        """Return a value that differs from the one before if anything was saved in between."""
        return await self._inspected.mark()

    async def runs(
        self,
        *,
        status: RunStatus | None = None,
        application: str | None = None,
        after: str | None = None,
        limit: int = 50,
        owner: str | None = None,
    ) -> RunsPage:
        """Return a page of root runs, the newest first.

        Args:
            status: Only runs with that status.
            application: Only runs of the application of that name. Then a page may have fewer runs,
                and still be followed by another one.
            after: The cursor of the page before.
            limit: At most so many.
            owner: Only runs of that owner.
        """
        whose = {} if owner is None else {"owner": owner}
        found, read = list[RunSummary](), 0
        while True:
            part = await self._store.runs(status=status, limit=limit + 1, after=after, **whose)
            for run in part[:limit]:
                if len(found) == limit:
                    return RunsPage(found, after)
                after = run.run_id
                if application in (None, run.application):
                    found.append(run)
            if len(part) <= limit:
                return RunsPage(found, None)
            read += limit
            if len(found) == limit or read >= _SCANNED:
                return RunsPage(found, after)

    async def overview(self, path: RunPath | str) -> Overview:
        """Return the first view of a run.

        Args:
            path: The run, as a path or as text (see ``path_text``). So in all methods.

        Raises:
            UnknownRun: The store doesn't know the run, or the text is no path. So in all methods.
        """
        path = self._path(path)
        summary, row, report, age = await self._find(path)
        inspected = self._inspected
        tallies = await inspected.tallies(path)
        is_lost = _is_lost(summary, row)
        # The report of its root run may be one from before its end.
        is_live = summary.status == row.status == "running" and not is_lost
        known = report if is_live or is_lost else None
        since = _execution(summary, report, age)
        is_resumed = since is not None
        bars = bars_of(path, tallies, known, is_lost=is_lost, is_resumed=is_resumed, last=report)
        counts = _counts(tallies)
        seen = self._remember(path)
        done = sum(bar.done for bar in bars)
        failures = await self._failures(path, bars, summary, seen)
        speed = None
        if done and not is_lost:
            speed = await self._pace(path, row, done, seen, since)
        halted: Sequence[Row] = ()
        if counts.get("halted"):
            halted = (await inspected.rows(path, status="halted", limit=50)).rows
        paused = await pause_of(inspected, path) if row.status in ("running", "halted") else None
        is_root = path.parent is None
        costs: Mapping[str, float] = {} if report is None else report.costs
        return Overview(
            path=path,
            row=row,
            summary=summary,
            status=row.status,
            headline=headline(
                status=row.status,
                is_lost=is_lost,
                why=row.error or row.reason,
                elapsed=row.elapsed if row.status != "running" else 0.0,
                at=step_of(path, report) if is_live else "",
                bars=bars,
                report=report if is_live else None,
                age=age,
                speed=speed,
                costs=costs if is_root else {},
                spending=report.spending if is_root and report is not None else (),
                hedges=report.hedges if is_root and report is not None else (),
                child=None if is_root else path,
                paused="" if paused is None else paused.sentence,
            ),
            paused=paused,
            is_lost=is_lost,
            breadcrumbs=ancestors_of(path),
            spawned_by=summary.spawned_by if is_root else None,
            spawned=await inspected.spawned(path),
            counts=counts,
            bars=bars,
            failures=failures,
            longest=[
                one
                for one in (() if report is None or not is_live else report.longest)
                if is_root or is_below(one.path, path)
            ],
            report=report,
            report_age=age,
            is_silent=is_silent(summary, report),
            limits=() if report is None or not is_live else report.limits,
            costs=costs,
            questions=[one.path for one in halted],
            asking=asking_in(path, report) if is_live else (),
        )

    async def steered(self, path: RunPath | str) -> Sequence[Steered]:
        """Return how a root run was steered from outside: its pauses, by which name, and so on."""
        path = self._path(path).root
        await self._find(path)
        return await steered_of(self._inspected, path)

    async def row(self, path: RunPath | str) -> Row:
        """Return one run, as the list of its parent's children shows it."""
        return (await self._find(self._path(path)))[1]

    async def _failures(
        self, path: RunPath, bars: Sequence[StepBar], summary: RunSummary, seen: _Seen
    ) -> Failures:
        failed = sum(bar.failed for bar in bars)
        # A later execution may have tried failed children again, and as many have failed again.
        state = failed, summary.began_at, summary.ended_at
        if state != seen.state:
            rows = await self._inspected.failed_rows(path) if failed else ()
            seen.state, seen.failures = state, grouped(rows, failed)
        return seen.failures

    async def _pace(
        self, path: RunPath, row: Row, done: int, seen: _Seen, since: float | None
    ) -> float | None:
        """Return how many children of a run end in a second.

        Args:
            path: The run.
            row: The same.
            done: How many have ended.
            seen: What was seen of it.
            since: When the last execution began, if the run was resumed; else None. Between two
                executions nothing ends.
        """
        if row.status != "running":
            if since is None or row.ended_at is None or path.parent is not None:
                return done / row.elapsed if row.elapsed else None
            bins = await self._inspected.timeline(path, bins=_FINE)
            ended = sum(sum(one.counts.values()) for one in bins if one.ends_at > since)
            return ended / (row.ended_at - since) if row.ended_at > since else None
        now = anyio.current_time()
        ends = seen.ends
        if ends and (ends[-1][1] > done or now - ends[-1][0] > 6 * _WINDOW):
            ends.clear()  # the run began anew, or nobody has looked for long
        if not ends or now - ends[-1][0] >= 1.0:  # one a second: few, however often pages ask
            ends.append((now, done))
        while len(ends) > 1 and now - ends[1][0] >= _WINDOW:
            ends.popleft()
        at, then = ends[0]
        if now - at >= _WINDOW / 4:
            return (done - then) / (now - at)
        began_at = row.began_at if since is None else max(since, row.began_at or since)
        bins = await self._inspected.timeline(path, bins=60 if since is None else _FINE)
        return _recent(bins, began_at, time.time())

    async def children(
        self,
        path: RunPath | str,
        *,
        step: str | None = None,
        status: ChildStatus | None = None,
        key: str | None = None,
        order: Order = "failed first",
        after: str | None = None,
        limit: int = 50,
    ) -> RowPage:
        """Return a page of a run's children; see ``Inspects.rows``.

        A child that runs is known to the store once it has completed a step. Those that run now are
        in ``Overview.longest``.
        """
        return await self._inspected.rows(
            self._path(path),
            step=step,
            status=status,
            key=key,
            order=order,
            after=after,
            limit=limit,
        )

    async def timeline(self, path: RunPath | str, *, bins: int = 60) -> Timeline:
        """Return a run's children in time: bars for at most 200, else so many bins."""
        path = self._path(path)
        counts = await self._store.counts(path)
        total = sum(counts.values())
        if total > MOST_BARS:
            found = await self._inspected.timeline(path, bins=bins)
            return Timeline(
                begins_at=found[0].begins_at if found else None,
                ends_at=found[-1].ends_at if found else None,
                bins=found,
                total=total,
            )
        summary, row, report, age = await self._find(path)
        # After the report: a child that has ended since then is in the store.
        page = await self._inspected.rows(path, order="position", limit=MOST_BARS)
        if row.status != "running" or report is None or age is None:
            return in_bars(page.rows, total, {}, None)
        now = time.time()
        until = now - age if _is_lost(summary, row) else now
        return in_bars(page.rows, total, in_flight(path, report, now - age), until)

    async def history(
        self,
        path: RunPath | str,
        *,
        after: str | None = None,
        limit: int = 100,
        newest_first: bool = False,
    ) -> HistoryPage:
        """Return a page of a run's history, from its first entry on or back from its last.

        Args:
            path: The run.
            after: The cursor of the page before.
            limit: About so many entries: those of one save are not divided.
            newest_first: Whether to begin with the last entry.

        Raises:
            ValueError: ``after`` is not the cursor of a page.
        """
        if after is not None and not (after.isdecimal() and len(after) <= _DIGITS):
            msg = f"{brief(after)} is not the cursor of a page: pass HistoryPage.after"
            raise ValueError(msg)
        path = self._path(path)
        if newest_first:
            return await self._newest(path, None if after is None else int(after), limit)
        number = 0 if after is None else int(after)
        entries, further = await self._inspected.entries(path, from_number=number, limit=limit)
        return HistoryPage(
            [entry_of(entry) for entry in entries], None if further is None else str(further)
        )

    async def _newest(self, path: RunPath, highest: int | None, limit: int) -> HistoryPage:
        """Return the entries up to a number, or to the last, the newest first."""
        if highest is None:
            highest = await self._last_number(path)
        lowest = max(0, highest - limit + 1)
        found = list[StoredEntry]()
        number: int | None = lowest
        while number is not None and number <= highest:
            part, number = await self._inspected.entries(path, from_number=number, limit=limit)
            found += part
        entries = [entry_of(one) for one in found if one.number <= highest]
        return HistoryPage(entries[::-1], str(lowest - 1) if lowest else None)

    async def _last_number(self, path: RunPath) -> int:
        """Return the number of a run's last update. Takes a few tens of reads of one entry."""

        async def reaches(number: int) -> bool:
            return bool((await self._inspected.entries(path, from_number=number, limit=1))[0])

        low, high = 0, 64
        while await reaches(high):
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if await reaches(middle) else (low, middle)
        return low

    async def value(
        self, path: RunPath | str, what: What, *, characters: int | None = 10_000
    ) -> Value | None:
        """Return a value of a run as JSON text; None if it has none.

        Args:
            path: The run.
            what: Which value.
            characters: Shorten it to so many characters; None for all of it.
        """
        text = await self._inspected.text(self._path(path), what)
        return None if text is None else value_of(text, characters)

    async def questions(self, path: RunPath | str, *, limit: int = 50) -> Questions:
        """Return the first open questions of a run and its descendants, at most ``limit``.

        They are in ``Questions.open``; give one to ``Control.answer``.
        """
        path = self._path(path)
        summary, _, report, _ = await self._find(path)
        asking = asking_in(path, report) if summary.holder else ()
        return await questions_of(self._inspected, path, asking=asking, limit=limit)

    async def nested(self, path: RunPath, *, limit: int, without: Collection[RunPath]) -> Nested:
        """Count the children of nested fan-outs; see ``nested_of``."""
        return await nested_of(self._inspected, path, limit=limit, without=without)

    async def limits(self, run_id: str | None = None) -> Sequence[LimitUse]:
        """Return the limits in use, by the last reports.

        Args:
            run_id: Only those that this root run uses; by default those of the running runs that
                began last, each limit of a process once. Then ``holders`` has the runs that report
                it, unless a report itself says which hold its slots.
        """
        if run_id is not None:
            report, _ = await self._report(run_id)
            return () if report is None else _in_flight_as_one(report.limits)
        newest = dict[tuple[str, str, str, str], tuple[float, LimitUse]]()
        users = dict[tuple[str, str, str, str], list[str]]()
        for run in await self._store.runs(status="running", limit=50):
            report, age = await self._report(run.run_id)
            if report is None or not run.holder:
                continue
            for use in _in_flight_as_one(report.limits):
                # Slots of a fan-out are those of its executions in one run, others of the process.
                whose = run.run_id if use.part < 0 else ""
                name = run.holder, use.owner, use.limits, whose
                users.setdefault(name, []).append(run.run_id)
                if name not in newest or (age or 0.0) < newest[name][0]:
                    newest[name] = age or 0.0, use
        return [
            use if use.holders else replace(use, holders=tuple(users[name]))
            for name, (_, use) in newest.items()
        ]

    async def breakers(self) -> Sequence[BreakerUse]:
        """Return the breakers of the running runs that began last, by their last reports.

        Each breaker of a process once; ``holders`` has the runs whose reports have it.
        """
        newest = dict[tuple[str, str, str], tuple[float, BreakerUse]]()
        users = dict[tuple[str, str, str], list[str]]()
        for run in await self._store.runs(status="running", limit=50):
            report, age = await self._report(run.run_id)
            for use in () if report is None or not run.holder else report.breakers:
                name = run.holder, use.owner, use.breaker
                users.setdefault(name, []).append(run.run_id)
                if name not in newest or (age or 0.0) < newest[name][0]:
                    newest[name] = age or 0.0, use
        return [replace(use, holders=tuple(users[name])) for name, (_, use) in newest.items()]

    async def budgets(self) -> Sequence[BudgetUse]:
        """Return the budgets of retries of the running runs that began last, by their last reports.

        Each budget of a process once; ``holders`` has the runs whose reports have it.
        """
        newest = dict[tuple[str, int], tuple[float, BudgetUse]]()
        users = dict[tuple[str, int], list[str]]()
        for run in await self._store.runs(status="running", limit=50):
            report, age = await self._report(run.run_id)
            for use in () if report is None or not run.holder else report.budgets:
                name = run.holder, use.part
                users.setdefault(name, []).append(run.run_id)
                if name not in newest or (age or 0.0) < newest[name][0]:
                    newest[name] = age or 0.0, use
        return [replace(use, holders=tuple(users[name])) for name, (_, use) in newest.items()]

    async def explain(self, path: RunPath | str) -> Explanation:
        """Explain where the time of a run went, and what would make it faster.

        The shares of a child are those of its whole root run, because there is one report for each
        root run.
        """
        path = self._path(path)
        summary, row, report, age = await self._find(path)
        is_resumed = _execution(summary, report, age) is not None
        elapsed = row.elapsed
        if is_resumed and report is not None and path.parent is None:
            elapsed = report.seconds  # like all else here, it is about the last execution
        links = [Link(row=row, seconds=elapsed)]
        at = row
        while at.has_children and len(links) < _DEEPEST:
            page = await self._inspected.rows(at.path, order="ended last", limit=1)
            if not page.rows:  # deleted meanwhile
                break
            last = page.rows[0]
            if last.winner is not None:  # a loser ends when the winner has: the race took that long
                last = await self._inspected.row(last.winner) or last
            links[-1] = links[-1]._replace(step=last.path.step)
            links.append(Link(row=last, seconds=last.elapsed))
            at = last
        slowest = await self._inspected.rows(path, order="slowest", limit=_SLOWEST)
        rows = [one for one in slowest.rows if one.elapsed]
        if report is None:
            return unexplained(path, row, summary, links, rows)
        return explained(report, path, links, rows, is_resumed=is_resumed)

    async def diff(self, first: RunPath | str, second: RunPath | str) -> Difference:
        """Compare two runs: where they took different ways, and in what they differ.

        Compared are the order of their steps, the values in their last states, and how the children
        of the same name have ended. Takes time in proportion to both histories.
        """
        found = [await self._find(self._path(path)) for path in (first, second)]
        one, other = [(row, _is_lost(summary, row)) for summary, row, _, _ in found]
        return await difference(self._inspected, one[0], other[0], lost=(one[1], other[1]))

    def lines(self, path: RunPath | str, *, values: bool = False) -> AsyncGenerator[str]:
        """Return a run, its history and its children as lines of JSON; see ``export_lines``."""
        return export_lines(self._store, self._inspected, self._path(path), values=values)

    async def to_burr(
        self,
        path: RunPath | str,
        directory: str | PurePath,
        *,
        max_children: int = MOST_CHILDREN,
        project: str | None = None,
    ) -> BurrExport:
        """Write a run as the logs that Burr's own UI reads; see ``export_burr``."""
        path = self._path(path)
        summary, row, _, _ = await self._find(path)
        return await export_burr(
            self._inspected, row, summary, directory, max_children=max_children, project=project
        )

    # -- finding --------------------------------------------------------------------------------

    def _path(self, path: RunPath | str) -> RunPath:
        return parse_path(path) if isinstance(path, str) else path

    async def _find(self, path: RunPath) -> tuple[RunSummary, Row, Report | None, float | None]:
        """Return the root run, the run's row, and the last report with its age in seconds."""
        summary = await self._store.summary(path.root.id)
        if summary is None:
            raise await unknown_run(self._store, path.root)
        report, age = await self._report(summary.run_id)
        row = await self._inspected.row(path)
        if row is None and report is not None:
            row = _row_of(path, report)
        if row is None:
            raise await unknown_run(self._store, path)
        return summary, row, report, age

    async def _report(self, run_id: str) -> tuple[Report | None, float | None]:
        store = self._store
        if not isinstance(store, KeepsReports):
            return None, None
        stored: StoredReport | None = await store.reported(run_id)
        if stored is None:
            return None, None
        try:
            report = parse_report(stored.text)
        except ValueError:  # a later version of shoal has written it
            return None, None
        return report, max(0.0, time.time() - stored.at)

    def _remember(self, path: RunPath) -> _Seen:
        seen = self._seen.setdefault(path.id, _Seen())
        self._seen.move_to_end(path.id)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return seen


def _in_flight_as_one(uses: Sequence[LimitUse]) -> Sequence[LimitUse]:
    """Add up the children in flight of the executions of a fan-out; ``keys`` counts these."""
    found = list[LimitUse]()
    places = dict[str, int]()
    for use in uses:
        if use.part >= 0 or use.owner not in places:
            if use.part < 0:
                places[use.owner] = len(found)
            found.append(use)
            continue
        place = places[use.owner]
        one = found[place]
        is_bounded = one.slots is not None and use.slots is not None
        found[place] = replace(
            one,
            in_use=one.in_use + use.in_use,
            slots=(one.slots or 0) + (use.slots or 0) if is_bounded else None,
            waiting=one.waiting + use.waiting,
            full=max(one.full, use.full),
            keys=one.keys + use.keys,
        )
    return found


def _row_of(path: RunPath, report: Report) -> Row | None:
    """Return a run in flight that the store doesn't know yet."""
    for run in report.longest:
        if run.path == path:
            return Row(path=path, status="running", began_at=time.time() - run.age)
    return None


def _counts(tallies: Sequence[StepTally]) -> dict[ChildStatus, int]:
    """Add up the counts of a run's steps, those first that people look for."""
    found = Counter[ChildStatus]()
    for tally in tallies:
        found.update(tally.counts)
    return {status: found[status] for status in _ORDER if status in found}


def _is_lost(summary: RunSummary, row: Row) -> bool:
    """Return whether a run has no end, and no process executes it."""
    return summary.status == "running" and not summary.holder and row.status == "running"


def _execution(summary: RunSummary, report: Report | None, age: float | None) -> float | None:
    """Return when the last execution of a run began, if there were others before; else None."""
    if report is None or age is None:
        return None
    # Its last report is made just before its end is saved.
    end = summary.ended_at if report.is_over and summary.ended_at is not None else None
    since = (time.time() - age if end is None else end) - report.seconds
    before = since - summary.began_at
    return since if before > max(_SOON, _RESUMED * report.seconds) else None


def _recent(bins: Sequence[Bin], began_at: float | None, now: float) -> float | None:
    """Return how many children end in a second, by the last bins of a timeline."""
    if not bins:
        return None
    first = bins[0].begins_at if began_at is None else began_at
    end = max(now, bins[-1].ends_at)
    begin = max(first, end - max(_WINDOW, (end - first) / 10))
    found = [one for one in bins if one.ends_at > begin]
    if found:
        begin = min(begin, max(first, found[0].begins_at))
    if end - begin < _SOON:
        return None
    return sum(sum(one.counts.values()) for one in found) / (end - begin)
