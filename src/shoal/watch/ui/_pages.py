"""Ask the queries for what a page shows.

A page is a template for its live part, and the values that the template uses. The same function
makes the whole page, the fragment alone, and each update of a stream, so they can't differ.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from math import isfinite
from typing import Any, cast, final

from markupsafe import Markup
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException

from shoal._errors.exceptions import UnknownRun
from shoal._events.identity import RunPath
from shoal._events.paths import parse_path
from shoal._events.report import LimitUse, LiveStep
from shoal._runtime.application import Application
from shoal.stores._protocol import RunSummary
from shoal.stores._watching import Order, Row
from shoal.watch import draw
from shoal.watch._failures import FailureGroup
from shoal.watch._history import HistoryEntry
from shoal.watch._nested import Nested
from shoal.watch._overview import Overview
from shoal.watch._queries import Queries, RunsPage
from shoal.watch._questions import Questions
from shoal.watch._values import Value, What

from . import _charts as charts
from ._acts import act_of, is_one_action, way_down
from ._format import STATUSES, between, cut, first_line, key_text, number, percent, plain_json
from ._questions import MOST, Asked
from ._secrets import Secrets, why_not_here
from ._steps import Winners, drawn_counts, has_one_winner, steps_of, whole_bar
from ._titles import Titles
from ._urls import Urls

ROWS = 25
"""Rows of a page of children. With 10 elements for each, a page has room for everything else."""

RUNS = 30
"""Rows of a page of runs."""

GROUPS = 8
"""Groups of failures on the first view; the rest is counted."""

LONGEST = 6
"""Runs in flight on the first view."""

NESTED = 100
"""Descendants with children whose children are counted for a drawing: each takes two calls of the
store, a tenth of a second together."""

LIMITS = 25
BREAKERS = 8
"""Limits and breakers on their page: a limit takes about a dozen elements, a breaker twice as many.
"""

ENTRIES = 50
"""Entries of a page of a history; each may have several lines."""

CHANGES = 6
"""Changes of one entry that are shown; the rest is counted."""

ALL_CHANGES = 60
"""Changes on a page of a history, unless there is one for each entry. Each takes two elements."""

CHARACTERS = 4_000
"""Characters of a value on a page; the rest is behind a link."""

ERROR = 40_000
"""Characters of an error's JSON that are read: a shortened one can't be laid out."""

LOOKED_AT = 20
"""Pages of runs that one page of running or lost ones is made of; a store has them together."""

RUN_STATUSES = ("running", "lost", "failed", "halted", "cancelled", "succeeded")
ORDERS: tuple[Order, ...] = ("failed first", "position", "ended last", "slowest")
WHATS: tuple[tuple[What, str], ...] = (
    ("error", "Error"),
    ("element", "Element"),
    ("value", "Result"),
    ("first", "State at its start"),
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a template needs."""

    template: str
    title: str
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_live: bool = True
    """Whether it changes although nothing is saved: ages and rates do."""


@final
class Pages:
    """The pages over one store."""

    def __init__(
        self, queries: Queries, applications: Mapping[str, Application[Any]], secrets: Secrets
    ) -> None:
        """Make pages.

        Args:
            queries: What they ask.
            applications: Those that can be executed here, by name.
            secrets: Tells which runs can't be executed without their secrets.
        """
        self._secrets = secrets
        self._queries = queries
        self._applications = applications
        self._titles = Titles(queries, applications)

    async def runs(self, query: QueryParams, urls: Urls) -> Page:
        """Return the list of root runs."""
        status = query.get("status") or None
        status = status if status in RUN_STATUSES else None
        application = query.get("application") or None
        owner = query.get("owner") or None
        page = await self._found(status, application, query.get("after") or None, owner)
        names = sorted({run.application for run in page.runs} | {*self._applications})
        return Page(
            template="runs.html",
            title="Runs",
            is_live=any(run.holder for run in page.runs),
            values={
                "runs": page.runs,
                "next": page.after
                and urls.runs(
                    status=status, application=application, owner=owner, after=page.after
                ),
                "is_first": not query.get("after"),
                "status": status,
                "application": application,
                "owner": owner,
                "applications": names,
                "statuses": RUN_STATUSES,
            },
        )

    async def _found(
        self, status: str | None, application: str | None, after: Any, owner: str | None
    ) -> RunsPage:
        """Return a page of runs. A store takes lost runs for running: both have no end."""
        if status not in ("running", "lost"):
            return await self._queries.runs(
                status=cast("Any", status),
                application=application,
                after=after,
                limit=RUNS,
                owner=owner,
            )
        found: list[RunSummary] = []
        for _ in range(LOOKED_AT):
            page = await self._queries.runs(
                status="running", application=application, after=after, limit=RUNS, owner=owner
            )
            for run in page.runs:
                if len(found) == RUNS:
                    return RunsPage(found, after)
                after = run.run_id
                if bool(run.holder) == (status == "running"):
                    found.append(run)
            after = page.after
            if after is None:
                break
        return RunsPage(found, after)

    async def run(self, text: str, query: QueryParams, urls: Urls) -> Page:
        """Return one view of a run, root or child.

        Raises:
            UnknownRun: The store doesn't know it.
        """
        path = parse_path(text)
        overview = await self._queries.overview(path)
        views = self._views(overview)
        view = query.get("view", "")
        if view not in views:
            view = ""
        winner = overview.row.winner
        if winner is None and path.parent is not None and overview.row.status == "failed":
            winner = (await self._winners(path.parent)).get((path.step, path.visit))
        summary = overview.summary
        ways = (
            *(path, *overview.breadcrumbs),
            *(one.example.path for one in _groups(overview)),
            *(up for one in overview.longest[:LONGEST] for up in between(one.path, path)),
        )
        titles = await self._titles.of(summary.application, ways)
        called: Mapping[RunPath, str] = {**titles, **_called(overview)}
        missing: Collection[str] = ()
        if (not summary.holder and summary.status != "succeeded") or overview.failures.total:
            missing = await self._secrets.of(path.root.id, summary.application)
        shared: dict[str, Any] = {
            "why_not_here": why_not_here(missing) if missing and not summary.holder else "",
            "winner": winner,
            "o": overview,
            "path": path,
            "name": _name(overview, called),
            "called": called,
            "view": view,
            "views": views,
            "can_execute": summary.application in self._applications and not missing,
            "is_held": bool(overview.summary.holder),
            "bar": whole_bar(overview),
            "costs": _costs(overview),
        }
        match view:
            case "timeline":
                more = await self._timeline(path, overview, urls)
            case "history":
                more = await self._history(path, query, urls)
            case "values":
                more = {"values": await self._values(path)}
            case "time":
                more = await self._time(path)
            case "graph":
                more = await self._drawn(overview)
            case _:
                more = await self._first_view(path, overview, query, urls, called)
        label = cut(shared["name"], 40)
        done = overview.headline.done
        total = overview.headline.total
        part = f"{percent(done / total)} · " if total and overview.status == "running" else ""
        return Page(
            template=f"run-{view or 'overview'}.html",
            title=part + label,
            values={**shared, **more},
            is_live=bool(overview.summary.holder),
        )

    async def limits(self) -> Page:
        """Return the page of limits."""
        uses = await self._queries.limits()
        breakers, budgets = await self._queries.breakers(), await self._queries.budgets()
        return Page(
            template="limits.html",
            title="Limits",
            values={
                "limits": [_limit(each) for each in uses[:LIMITS]],
                "omitted": len(uses[LIMITS:]),
                "breakers": breakers[:BREAKERS],
                "omitted_breakers": len(breakers[BREAKERS:]),
                "budgets": budgets[:BREAKERS],
                "omitted_budgets": len(budgets[BREAKERS:]),
            },
        )

    async def value(self, text: str, what: str, *, characters: int | None) -> Value | None:
        """Return a value of a run; None if it has none.

        Raises:
            UnknownRun: The store doesn't know the run.
        """
        if what not in {name for name, _ in WHATS}:
            raise UnknownRun(f"a run has no {what!r}: ask for element, value, error or first")
        return await self._queries.value(
            parse_path(text), cast("What", what), characters=characters
        )

    def _views(self, overview: Overview) -> Mapping[str, str]:
        has_children = bool(overview.counts or overview.bars)
        views = {"": "Overview"}
        if has_children:
            views |= {"timeline": "Timeline"}
        views |= {"history": "History"}
        if has_children:  # a run without children shows its values on the first view
            views |= {"values": "Values"}
        if overview.report is not None:
            views |= {"time": "Where the time went"}
        known = self._applications.get(overview.summary.application)
        act = None if known is None else act_of(known.graph, overview.path)
        if act is not None and (overview.path.parent is None or not is_one_action(act)):
            views |= {"graph": "Graph"}
        return views

    async def _first_view(
        self,
        path: RunPath,
        overview: Overview,
        query: QueryParams,
        urls: Urls,
        called: Mapping[RunPath, str],
    ) -> dict[str, Any]:
        found = Questions()
        if overview.waits_for_answers:
            found = await self._queries.questions(path, limit=MOST)
        values: list[Any] = []
        table: dict[str, Any] = {}
        winners = await self._winners_of(overview)
        if overview.counts or overview.bars:
            table = await self._table(overview, winners, query, urls, called)
        else:
            values = await self._values(path)
        return {
            "questions": [Asked(one) for one in found.open],
            "more_questions": found.is_more,
            "answered": _resting(found.answered, overview),
            "groups": _groups(overview),
            "omitted_groups": len(overview.failures.groups[GROUPS:]) + overview.failures.omitted,
            "bars": steps_of(overview, overview.bars[-12:], winners),
            "omitted_bars": len(overview.bars[:-12]),
            "longest": overview.longest[:LONGEST],
            "omitted_longest": _omitted_longest(overview),
            "values": values,
            **table,
        }

    async def _table(
        self,
        overview: Overview,
        winners: Winners,
        query: QueryParams,
        urls: Urls,
        called: Mapping[RunPath, str],
    ) -> dict[str, Any]:
        steps = [*dict.fromkeys(bar.step for bar in overview.bars)]
        status = query.get("status") if query.get("status") in STATUSES else None
        step = query.get("step") if query.get("step") in steps else None
        order = query.get("order", "failed first")
        order = order if order in ORDERS else "failed first"
        key = query.get("key") or None
        try:
            page = await self._queries.children(
                overview.path,
                step=step,
                status=cast("Any", status),
                key=key,
                order=order,
                after=query.get("after") or None,
                limit=ROWS,
            )
        except ValueError as error:
            raise _no_page(query, error) from error
        application = overview.summary.application
        titles = await self._titles.of(application, [row.path for row in page.rows])
        kept = {"step": step, "key": key, "order": order if order != "failed first" else None}
        return {
            "rows": [_as_now(_with_winner(row, winners), overview) for row in page.rows],
            "called": {**called, **titles, **_called(overview)},
            "won": {
                winners.get((bar.step, bar.visit)) for bar in overview.bars if has_one_winner(bar)
            },
            "has_attempts": any(row.attempts > 1 for row in page.rows)
            or any(run.attempt > 1 for run in overview.longest),
            "live": {run.path: run for run in overview.longest},
            "fan_outs": _fan_outs(overview),
            "next": page.after and urls.run(overview.path, **kept, status=status, after=page.after),
            "is_first": not query.get("after"),
            "status": status,
            "kept": kept,
            "step": step,
            "key": key or "",
            "order": order,
            "orders": ORDERS,
            "steps": steps,
            "has_acts": len({row.path.act for row in page.rows}) > 1
            and any(row.path.key != "" for row in page.rows),
            "chips": charts.all_statuses(overview.counts),
            "all_children": sum(overview.counts.values()),
            "unsaved": _unsaved(overview),
        }

    async def _winners_of(self, overview: Overview) -> Winners:
        """Return the winners of a run's races."""
        if any(bar.lost for bar in overview.bars):
            return await self._winners(overview.path)
        return {}

    async def _winners(self, path: RunPath) -> Winners:
        """Return the winner of each race of a run, by step and visit.

        The record of a contestant that failed before its race was decided doesn't name the winner.
        """
        entries, _ = await self._queries.inspected.entries(path, kinds=("decision",), limit=1000)
        winners: dict[tuple[str, int], RunPath] = {}
        visits: dict[str, int] = {}
        for entry in entries:
            visit = visits[entry.step] = visits.get(entry.step, -1) + 1
            act, key = json.loads(entry.data)[0]
            winner = RunPath(parent=path, step=entry.step, visit=visit, act=act, key=key)
            winners[entry.step, visit] = winner
        return winners

    async def _timeline(self, path: RunPath, overview: Overview, urls: Urls) -> dict[str, Any]:
        timeline = await self._queries.timeline(path)
        winners = await self._winners_of(overview)
        chart, counts, highest, each = Markup(""), Counter[str](), 0, 0.0
        if timeline.bars and timeline.begins_at is not None and timeline.ends_at is not None:

            def href(row: Row) -> str:
                return urls.run(row.path)

            rows = [_with_winner(row, winners) for row in timeline.bars]
            begins, ends, is_lost = timeline.begins_at, timeline.ends_at, overview.is_lost
            chart = charts.gantt(rows, begins, ends, href, is_lost=is_lost)
            counts.update("lost" if charts.is_loser(row) else row.status for row in rows)
            if is_lost:
                counts["gone"] = counts.pop("running", 0)
        elif timeline.bins:
            chart = charts.histogram(timeline.bins)
            for one in timeline.bins:
                counts.update(one.counts)
                highest = max(highest, sum(one.counts.values()))
            each = timeline.bins[0].ends_at - timeline.bins[0].begins_at
        legend = charts.all_statuses(counts)
        if counts["lost"]:
            legend.append(("lost", counts["lost"]))
        if counts["gone"]:
            legend.append(("gone with their process", counts["gone"]))
        return {
            "timeline": timeline,
            "chart": chart,
            "legend": legend,
            "highest": highest,
            "each": each,
        }

    async def _history(self, path: RunPath, query: QueryParams, urls: Urls) -> dict[str, Any]:
        try:
            after = query.get("after") or None
            page = await self._queries.history(path, after=after, limit=ENTRIES, newest_first=True)
        except ValueError as error:
            raise _no_page(query, error) from error
        return {
            "entries": [_in_short(entry) for entry in page.entries],
            "changes": _shown_changes(page.entries),
            "next": page.after and urls.run(path, view="history", after=page.after),
            "is_first": not query.get("after"),
        }

    async def _values(self, path: RunPath) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for what, label in WHATS:
            most = ERROR if what == "error" else CHARACTERS
            value = await self._queries.value(path, what, characters=most)
            if value is not None:
                error = _as_error(value) if what == "error" else {}
                found.append({"what": what, "label": label, "value": value, **error})
        return found

    async def _time(self, path: RunPath) -> dict[str, Any]:
        return {"explanation": await self._queries.explain(path)}

    async def _drawn(self, overview: Overview) -> dict[str, Any]:
        """Return the drawing of what a run executes, and how many of its descendants it counts."""
        steps = _fan_outs(overview)
        nested = await self._queries.nested(overview.path, limit=NESTED, without=steps)
        return {
            "drawing": self._drawing(overview, nested),
            "looked_at": 0 if nested.is_whole else nested.looked_at,
        }

    def _drawing(self, overview: Overview, nested: Nested) -> Markup:
        """Return the drawing of what a run executes, with the counts of its fan-outs."""
        found: dict[tuple[str, ...], Counter[str]] = {}
        for way, bars in nested.bars.items():
            counts = found.setdefault(way, Counter())
            for bar in bars:
                counts.update({status: int(count) for status, count in drawn_counts(bar).items()})
        for bar in overview.bars:
            counts = found.setdefault((bar.step,), Counter())
            drawn = drawn_counts(bar)
            counts.update({status: int(count) for status, count in drawn.items()})
            if bar.total is not None:
                counts["left"] += max(int(bar.total - sum(drawn.values())), 0)
        report = overview.report
        is_live = report is not None and overview.status == "running" and not overview.is_lost
        for step in report.steps if report is not None and is_live else ():
            names = _names_below(step.path, overview.path)
            if names:  # its own fan-outs are counted above, by the store
                counts = found.setdefault((*names, step.step), Counter())
                counts["succeeded"] += step.ended - step.failed
                counts["failed"] += step.failed
                counts["running"] += step.in_flight
                if step.total is not None:
                    counts["left"] += max(step.total - step.ended - step.in_flight, 0)
        ordered = {
            names: {status: counts[status] for status in (*charts.ORDER, "left") if counts[status]}
            for names, counts in found.items()
        }
        act = act_of(self._applications[overview.summary.application].graph, overview.path)
        assert act is not None, "there is no view of it otherwise"
        svg = draw.svg(act, ordered, styled=False)
        return Markup(svg)  # noqa: S704 # a drawing escapes the names in it


def _unsaved(overview: Overview) -> int:
    """Return how many children are in flight, or were, of which the store has no row."""
    in_flight = sum(bar.gone if overview.is_lost else bar.in_flight for bar in overview.bars)
    return max(in_flight - overview.counts.get("running", 0), 0)


def _names_below(path: RunPath, ancestor: RunPath) -> tuple[str, ...]:
    """Return the names that lead down from one run to another; nothing if none do."""
    way, above = way_down(path), len(way_down(ancestor))
    if len(way) <= above or (way[above - 1] if above else path.root) != ancestor:
        return ()
    return tuple(name for one in way[above:] for name in (one.step, one.act))


def _shown_changes(entries: Sequence[HistoryEntry]) -> int:
    """Return how many changes of each entry the page has room for."""
    most = CHANGES
    while most > 1 and sum(min(len(entry.changes), most) for entry in entries) > ALL_CHANGES:
        most -= 1
    return most


def _in_short(entry: HistoryEntry) -> HistoryEntry:
    """Return an entry with the error of a failed child as a line: its JSON has the whole trace."""
    child = entry.child
    if child is None or not child.error:
        return entry
    line = first_line(child.error)
    changes = [
        change._replace(value=line) if _ERROR.match(change.value) else change
        for change in entry.changes
    ]
    return entry._replace(changes=changes)


_ERROR = re.compile(r'\[?\{"@": ?"(error"|dataclass", ?"@type": ?"shoal:ErrorInfo")')


def _no_page(query: QueryParams, error: ValueError) -> Exception:
    """Return what to raise for an address whose cursor was cut or made by hand."""
    if not query.get("after"):
        return error
    return HTTPException(400, "There is no such page of the list. Begin with its first page.")


def _name(overview: Overview, called: Mapping[RunPath, str]) -> str:
    path = overview.path
    return overview.summary.application if path.parent is None else called.get(path, key_text(path))


def _fan_outs(overview: Overview) -> Mapping[RunPath, LiveStep]:
    """Return the fan-outs under way in a run's children: these are in no list of what runs."""
    if overview.report is None or overview.status != "running" or overview.is_lost:
        return {}
    return {step.path: step for step in overview.report.steps}


def _called(overview: Overview) -> Mapping[RunPath, str]:
    """Return what runs are called by ``title=``, as far as the last report knows it."""
    report = overview.report
    if report is None:
        return {}
    common = {step.title for step in report.steps}  # one text for all children of a fan-out
    return {run.path: run.title for run in report.longest if run.title and run.title not in common}


def _with_winner(row: Row, winners: Winners) -> Row:
    won = winners.get((row.path.step, row.path.visit))
    return row._replace(winner=won) if row.status == "failed" and row.winner is None else row


def _costs(overview: Overview) -> Mapping[str, float]:
    """Return what was spent, unless the headline says it."""
    is_told = any(part == "cost" for part, _ in overview.headline.parts)
    return {} if is_told else overview.costs


def _as_now(row: Row, overview: Overview) -> Row:
    """Return a row; an answered child that goes on is halted to the store until its next save."""
    if row.status == "halted" and any(run.path == row.path for run in overview.longest):
        return row._replace(status="running")
    return row


def _groups(overview: Overview) -> Sequence[FailureGroup]:
    return overview.failures.groups[:GROUPS]


def _resting(answered: Sequence[RunPath], overview: Overview) -> Sequence[RunPath]:
    """Return the answered runs that don't go on: those in flight are halted to the store alone."""
    in_flight = {run.path for run in overview.longest}
    return [path for path in answered if path not in in_flight]


def _omitted_longest(overview: Overview) -> int:
    in_flight = overview.report.in_flight if overview.report is not None else 0
    if overview.path.parent is not None:
        in_flight = len(overview.longest)
    return max(max(in_flight, len(overview.longest)) - LONGEST, 0)


_RATE = re.compile(r"rate=Rate\(([\d.e+-]+)(?:, per=([\d.e+-]+))?")
"""The numbers of a rate in a limit as it is written; a shared rate's can't be changed."""


def _per(seconds: float) -> str:
    return "per second" if seconds == 1 else f"per {number(seconds)} s"


def _limit(use: LimitUse) -> dict[str, Any]:
    has_slots = use.slots is not None and isfinite(use.slots) and use.slots > 0
    share = use.in_use / use.capacity if has_slots and use.capacity else None
    rate = _RATE.search(use.limits)
    each = use.slots / use.keys if use.slots is not None and use.part < 0 else use.slots
    is_in_flight = use.part < 0
    is_held = bool(use.waiting) and (not is_in_flight or share is None or share >= 1)
    return {
        "is_in_flight": is_in_flight,
        "is_held": is_held,
        "slots": str(int(each)) if each is not None and float(each).is_integer() else "",
        "rate": rate[1] if rate is not None else "",
        "per": "" if rate is None else _per(float(rate[2] or 1)),
        "use": use,
        "id": blake2b(f"{use.owner} {use.part}".encode(), digest_size=8).hexdigest(),
        "has_slots": has_slots,
        "svg": None
        if share is None
        else charts.share_bar(share, "waiting" if is_held else "running"),
        "waits": [*use.waits.items()][:8],
        "omitted": max(len(use.waits) - 8, 0),
    }


def _as_error(value: Value) -> dict[str, Any]:
    """Return what an error's JSON says, outermost first; nothing if the value is no error."""
    data = plain_json(value.text)
    errors: list[dict[str, Any]] = []
    while isinstance(data, dict):
        error = cast("dict[str, Any]", data)
        if isinstance(error.get("traceback"), str):  # of a store that has the exception itself
            return {"errors": [{"text": error["traceback"].rstrip(), "notes": (), "trace": ()}]}
        if error.get("@") != "error":
            break
        kind = str(error.get("@type", "")).rpartition(":")[2]
        notes = error.get("notes")
        trace = error.get("trace")
        errors.append(
            {
                "text": f"{kind}: {error.get('text', '')}",
                "notes": notes if isinstance(notes, list) else (),
                "trace": trace if isinstance(trace, list) else (),
            }
        )
        data = error.get("cause")
    return {"errors": errors} if errors else {}
