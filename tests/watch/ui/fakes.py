"""Queries with answers made by hand, for pages in every state that a run can have."""

# ruff: noqa: E501 # long texts are what pages have to cope with
from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from shoal._errors.exceptions import UnknownRun
from shoal._events.identity import RunPath
from shoal._events.paths import parse_path
from shoal._events.report import (
    BreakerUse,
    BudgetUse,
    CircuitUse,
    HedgeUse,
    LimitUse,
    LiveRun,
    Report,
    SecondCopy,
    Waited,
)
from shoal.stores._history import Steered
from shoal.stores._protocol import RunSummary
from shoal.stores._watching import Bin, Row, RowPage, StoredEntry
from shoal.watch._explain import Explanation, Link
from shoal.watch._failures import FailureGroup, Failures
from shoal.watch._headline import Headline, HeldUp
from shoal.watch._history import FieldChange, HistoryEntry, HistoryPage
from shoal.watch._nested import Nested
from shoal.watch._overview import Overview, StepBar
from shoal.watch._queries import Queries, RunsPage
from shoal.watch._questions import Questions, questions_of
from shoal.watch._timeline import Timeline
from shoal.watch._values import Value

NOW = time.time()
CRAWL = RunPath(run_id="crawl-2026-11-30")
RACE = RunPath(run_id="ask-1")
LOST = RunPath(run_id="nightly")
HALTED = RunPath(run_id="review")
HOSTILE = "<script>alert(1)</script>"


def child(parent: RunPath, step: str, key: str | int, act: str = "fetch", visit: int = 0):
    return RunPath(parent=parent, step=step, act=act, key=key, visit=visit)


def page_of(n: int) -> RunPath:
    return child(CRAWL, "pages", f"https://docs.example/en/stable/library/module-{n:05d}.html")


MESSAGES = (
    ("ReadTimeout", "GET https://docs.example/<path>: no answer within <n> s", 187),
    ("HTTPStatusError", "GET https://docs.example/<path>: 503 Service Unavailable", 96),
    ("ParserError", "unexpected end of the document at byte <n>", 21),
    ("KeyError", "'title'", 7),
    ("Poisoned", "3 processes died while they executed it", 1),
)


def failed_row(n: int) -> Row:
    kind, message, _ = MESSAGES[n % len(MESSAGES)]
    return Row(
        path=page_of(n),
        status="failed",
        position=n,
        began_at=NOW - 200 + n / 100,
        ended_at=NOW - 190 + n / 100,
        elapsed=10.0 + n % 7,
        attempts=3,
        error_type=kind,
        error=f"{kind}: {message}",
        failed_step="fetch",
        applied=n,
    )


def done_row(n: int) -> Row:
    return Row(
        path=page_of(n),
        status="succeeded",
        position=n,
        began_at=NOW - 200 + n / 100,
        ended_at=NOW - 199 + n / 100,
        elapsed=0.4 + (n % 13) / 10,
        applied=n,
    )


def live(n: int, doing: Any, **more: Any) -> LiveRun:
    return LiveRun(path=page_of(n), step="fetch", doing=doing, since=1.0, **more)


LIMITS = (
    LimitUse(
        owner="runtime",
        limits="Limits(20)",
        in_use=20,
        slots=20,
        waiting=41,
        keys=1,
        holders=("crawl-2026-11-30",),
    ),
    LimitUse(
        owner="fetch",
        limits='Limits(rate=Rate(5), by=host, name="docs")',
        in_use=4,
        slots=None,
        waiting=112,
        paused=3,
        keys=38,
        waits={"docs.example": 61, "blog.example": 30, "cdn.example": 21},
        holders=("crawl-2026-11-30",),
    ),
    LimitUse(owner="ask", limits="Limits(budget=2.5)", in_use=1, slots=None, waiting=0, cost=1.84),
)

BREAKERS = [
    BreakerUse(
        owner="pages",
        breaker="Breaker(by=host, failures=3, cool_down=30.0)",
        failing=14,
        open=2,
        skipped=61,
        circuits=(
            CircuitUse(key="old.example", state="open", failures=4, next_in=12.0),
            CircuitUse(key="slow.example", state="half open", failures=3),
            CircuitUse(key="odd.example", state="closed", failures=1),
        ),
        holders=("crawl-2026-11-30",),
    ),
    BreakerUse(owner="ask", breaker="Breaker(failures=5, cool_down=30.0)"),
]

BUDGETS = [
    BudgetUse(
        part=0, budget="RetryBudget(share=0.1)", left=0.4, refused=38, holders=("crawl-2026-11-30",)
    ),
    BudgetUse(part=1, budget="RetryBudget(share=0.5, floor=2)", left=20.7),
]

REPORT = Report(
    run_id=CRAWL.id,
    seconds=312.0,
    samples=1250,
    every=0.25,
    in_flight=20,
    spent={"action": 120.0, "rate": 150.0, "loop": 12.0, "store": 30.0},
    limits=LIMITS,
)


def summary(path: RunPath, application: str, status: Any, **more: Any) -> RunSummary:
    given: dict[str, Any] = {"began_at": NOW - 312} | more
    return RunSummary(run_id=path.id, application=application, version="1", status=status, **given)


SUMMARIES = {
    CRAWL.id: summary(
        CRAWL,
        "crawl docs",
        "running",
        holder="pid 4127 on builder",
        owner="docs team",
        priority="batch",
    ),
    RACE.id: summary(RACE, "ask", "succeeded", ended_at=NOW - 300),
    LOST.id: summary(LOST, "nightly digest", "running"),
    HALTED.id: summary(HALTED, "review", "halted", ended_at=NOW - 250),
    "import-7": summary(
        RunPath(run_id="import-7"),
        "import",
        "failed",
        ended_at=NOW - 20,
        error="ConnectError: all connection attempts failed",
    ),
    "old": summary(
        RunPath(run_id="old"), "ask", "cancelled", ended_at=NOW - 9, reason="not needed any more"
    ),
    HOSTILE: summary(RunPath(run_id=HOSTILE), HOSTILE, "succeeded", ended_at=NOW),
}

WINNER = child(RACE, "race", "", act="model small")
RACERS = [
    Row(
        path=WINNER,
        status="succeeded",
        position=0,
        began_at=NOW - 310,
        ended_at=NOW - 306,
        elapsed=4.0,
    ),
    Row(
        path=child(RACE, "race", "", act="model large"),
        status="cancelled",
        position=1,
        elapsed=4.1,
        began_at=NOW - 310,
        ended_at=NOW - 306,
        reason="lost the race",
        winner=WINNER,
        used=False,
    ),
    Row(
        path=child(RACE, "race", "", act="model odd"),
        status="failed",
        position=2,
        elapsed=1.2,
        began_at=NOW - 310,
        ended_at=NOW - 309,
        winner=WINNER,
        used=False,
        error_type="RateLimited",
        error="RateLimited: 429",
    ),
]

ASKED = child(HALTED, "comments", "new parser", act="publish")
SCHEMA = {
    "type": "object",
    "title": "Decision",
    "properties": {
        "verdict": {"enum": ["approve", "reject", "later"], "title": "Verdict"},
        "comment": {
            "type": "string",
            "description": "Shown to the author",
            "default": "Please add a test.",
        },
        "severity": {"type": "integer", "minimum": 1, "maximum": 5, "default": 2},
        "labels": {"type": "array", "items": {"type": "string"}},
        "notify": {"type": "boolean", "default": True},
    },
    "required": ["verdict", "severity"],
}
QUESTION = [
    "approve",
    {
        "question": "Publish this comment?",
        "draft": "new parser: please add a test",
        "schema": SCHEMA,
    },
    "q-1",
]

ERROR = {
    "@": "error",
    "@type": "httpx:ReadTimeout",
    "text": "GET https://docs.example/a: no answer within 10 s",
    "notes": ["in step 'fetch' of child 'https://docs.example/a' (attempt 3)"],
    "trace": ["  crawl.py:41 in fetch", "  httpx/_client.py:1768 in get"],
    "cause": {"@": "error", "@type": "builtins:TimeoutError", "text": "timed out"},
}


def change(field: str, how: Any, **more: Any) -> FieldChange:
    return FieldChange(field, how, **more)


class FakeQueries:
    """Answers as ``Queries`` does. ``done`` moves the counts of the crawl."""

    def __init__(self) -> None:
        self.done = 12_119
        self.marks = 0
        self.commands: list[Any] = []
        self.carried_out: list[Steered] = []
        self.bars = 20_000  # children of the timeline

    @property
    def inspected(self) -> Any:
        return self

    async def mark(self) -> object:
        return self.marks, self.done

    async def breakers(self) -> list[BreakerUse]:
        return BREAKERS

    async def budgets(self) -> list[BudgetUse]:
        return BUDGETS

    async def nested(self, path: RunPath, *, limit: int, without: Any) -> Nested:
        return Nested({}, 0, True)

    async def questions(self, path: RunPath, *, limit: int = 50) -> Questions:
        return await questions_of(cast("Any", self), path, limit=limit)

    async def row(self, path: RunPath) -> Row:
        return (await self.overview(path)).row

    async def rows(self, path: RunPath, **filters: Any) -> Any:
        return await self.children(path, **filters)

    async def runs(
        self, *, status: Any = None, application: Any = None, after: Any = None, limit: int = 50,
        owner: Any = None,
    ):  # fmt: skip
        found = [
            each
            for each in SUMMARIES.values()
            if status in (None, each.status)
            and application in (None, each.application)
            and owner in (None, each.owner)
        ]
        at = 0 if after is None else int(after)
        page = found[at : at + limit]
        return RunsPage(page, str(at + limit) if len(found) > at + limit else None)

    async def overview(self, path: RunPath | str) -> Overview:
        path = parse_path(path) if isinstance(path, str) else path
        found = SUMMARIES.get(path.root.id)
        if found is None:
            raise UnknownRun(f"the store doesn't know the run {path.root.id!r}")
        crumbs: list[RunPath] = []
        at = path.parent
        while at is not None:
            crumbs.insert(0, at)
            at = at.parent
        row = (
            next((each for each in self._rows(path.parent) if each.path == path), None)
            if path.parent
            else None
        )
        row = row or Row(path=path, status=found.status)
        view = Overview(
            path=path,
            row=row,
            summary=found,
            status=cast("Any", row.status),
            headline=Headline(text=""),
            breadcrumbs=crumbs,
            is_lost=found.status == "running" and not found.holder,
        )
        if path == CRAWL:
            return self._crawl(view)
        if path == RACE:
            return replace(
                view,
                headline=Headline(
                    text="1 of 3 · 1 won",
                    parts=[("done", "3 of 3"), ("status", "won by model small")],
                    done=3,
                    total=3,
                ),
                counts={"succeeded": 1, "cancelled": 1, "failed": 1},
                bars=[
                    StepBar(
                        step="race",
                        visit=0,
                        counts={"succeeded": 1, "cancelled": 1, "failed": 1},
                        lost=2,
                        total=3,
                    )
                ],
                costs={"budget": 0.42},
            )
        if path == HALTED:
            return replace(
                view,
                headline=Headline(
                    text="2 of 3 · waits for an answer",
                    parts=[("done", "2 of 3"), ("status", "waits for an answer")],
                    done=2,
                    total=3,
                ),
                counts={"succeeded": 2, "halted": 1},
                questions=[ASKED],
                bars=[
                    StepBar(step="comments", visit=0, counts={"succeeded": 2, "halted": 1}, total=3)
                ],
            )
        if path == LOST:
            return replace(
                view,
                headline=Headline(text="lost", parts=[("status", "lost after 40 of 90")]),
                report_age=840.0,
                counts={"succeeded": 40, "running": 3},
                spawned_by=(CRAWL, "pages"),
                bars=[
                    StepBar(
                        step="digest", visit=0, counts={"succeeded": 40, "running": 3}, total=90
                    )
                ],
            )
        return view

    def _crawl(self, view: Overview) -> Overview:
        failed = 312
        counts: Any = {"succeeded": self.done, "failed": failed, "cancelled": 18, "skipped": 140}
        done = sum(counts.values())
        parts: Any = [
            ("done", f"{done:,} of 20,000"),
            ("failed", f"{failed} failed"),
            ("running", "20 running"),
            ("pace", "41/s"),
            ("left", "about 3 min left"),
            ("held up", 'held up by rate "docs" (83 % of waiting)'),
            ("cost", "$ 1.84 spent"),
        ]
        return replace(
            view,
            headline=Headline(
                text=" · ".join(text for _, text in parts),
                parts=parts,
                done=done,
                total=20_000,
                failed=failed,
                running=20,
                pace=41.0,
                seconds_left=180.0,
                held_up_by=HeldUp(
                    doing="rate", limit="docs", share=0.83, text='rate "docs" (83 % of waiting)'
                ),
            ),
            counts=counts,
            bars=[
                StepBar(step="sitemaps", visit=0, counts={"succeeded": 12}, total=12),
                StepBar(
                    step="pages",
                    visit=0,
                    title="pages of docs.example",
                    counts=counts,
                    failed=failed,
                    lost=0,
                    total=20_000,
                    in_flight=20,
                    waiting=41,
                    is_under_way=True,
                    at={"fetch": {"rate": 14, "action": 2}, "parse": {"action": 4}},
                ),
            ],
            failures=Failures(
                groups=tuple(
                    FailureGroup(
                        step="pages/fetch",
                        error_type=kind,
                        message=message,
                        count=count,
                        example=failed_row(n),
                    )
                    for n, (kind, message, count) in enumerate(MESSAGES)
                ),
                counted=failed,
                total=failed,
            ),
            longest=[
                live(
                    17_003,
                    "backoff",
                    age=48.2,
                    attempt=2,
                    attempts=3,
                    next_in=6.5,
                    note="page 3 of 9",
                ),
                live(17_100, "rate", age=31.0, limit='Rate(5) "docs"', limit_key="docs.example"),
                live(17_180, "action", age=12.4, note="downloading 48 MB"),
                live(17_181, "action", age=11.9),
                live(17_190, "breaker", age=8.0, limit="fetch", limit_key="old.example"),
                live(17_191, "slot", age=4.0, limit="Limits(20)"),
            ],
            report=REPORT,
            report_age=0.3,
            limits=LIMITS,
            costs={"openai": 1.84},
            spawned=[SUMMARIES[LOST.id]],
        )

    def _rows(self, path: RunPath | None) -> list[Row]:
        if path == RACE:
            return RACERS
        if path == HALTED:
            return [
                Row(path=ASKED, status="halted", position=2, elapsed=0.3),
                *(
                    Row(
                        path=child(HALTED, "comments", key, act="publish"),
                        status="succeeded",
                        elapsed=0.3,
                    )
                    for key in ("fix typo", "bump deps")
                ),
            ]
        if path == CRAWL:
            return [*(failed_row(n) for n in range(60)), *(done_row(n) for n in range(60, 200))]
        return []

    async def children(
        self,
        path: Any,
        *,
        step: Any = None,
        status: Any = None,
        key: Any = None,
        order: Any = "",
        after: Any = None,
        limit: int = 50,
    ):
        path = parse_path(path) if isinstance(path, str) else path
        found = [
            row
            for row in self._rows(path)
            if status in (None, row.status)
            and (key is None or key in str(row.path.key))
            and step in (None, row.path.step)
        ]
        at = 0 if after is None else int(after)
        return RowPage(found[at : at + limit], str(at + limit) if len(found) > at + limit else None)

    async def timeline(self, path: Any, *, bins: int = 60) -> Timeline:
        path = parse_path(path) if isinstance(path, str) else path
        rows = self._rows(path)[: self.bars]
        if path != CRAWL or self.bars <= 200:
            return Timeline(
                begins_at=min((r.began_at for r in rows if r.began_at), default=None),
                ends_at=max((r.ended_at for r in rows if r.ended_at), default=None),
                bars=[r for r in rows if r.began_at],
                total=len(rows),
            )
        made = [
            Bin(
                NOW - 312 + n * 5.2,
                NOW - 312 + n * 5.2 + 5.2,
                {"succeeded": 150 + (n * 37) % 90, "failed": (n * 7) % 19, "cancelled": n % 3},
            )
            for n in range(bins)
        ]
        return Timeline(begins_at=NOW - 312, ends_at=NOW, bins=made, total=20_000)

    async def history(
        self, path: Any, *, after: Any = None, limit: int = 100, newest_first: bool = False
    ) -> HistoryPage:
        assert newest_first
        at = int(after or 0)
        entries = (
            [
                HistoryEntry(
                    number=1,
                    kind="update",
                    step="start",
                    at=NOW - 312,
                    changes=[change("urls", "set", value='["https://docs.example/"]', size=24)],
                )
            ]
            if not at
            else []
        )
        entries += [
            HistoryEntry(
                number=n + 2,
                kind="update",
                step="pages",
                at=NOW - 300 + n,
                child=done_row(n),
                changes=[
                    change(
                        "titles",
                        "added",
                        key=f'"module-{n:05d}"',
                        value=f'"Module {n}: a title of some length"',
                        size=40,
                    )
                ],
            )
            for n in range(at, at + limit - 1)
        ]
        return HistoryPage(entries, str(at + limit))

    async def entries(
        self, path: RunPath, *, kinds: Any = None, from_number: int = 0, limit: int = 100
    ) -> Any:
        if path == ASKED and "asked" in kinds:
            return [StoredEntry(1, "asked", "publish", json.dumps(QUESTION))], None
        return [], None

    async def value(self, path: Any, what: str, *, characters: int | None = 10_000) -> Value | None:
        path = parse_path(path) if isinstance(path, str) else path
        if what == "error":
            return (
                Value(json.dumps(ERROR), 300, is_complete=True)
                if path in {page_of(n) for n in range(60)}
                else None
            )
        if what == "first":
            return (
                Value('{\n  "urls": ["https://docs.example/"]\n}', 40, is_complete=True)
                if path.parent is None
                else None
            )
        if path.parent is None and what == "element":
            return None
        text = json.dumps(
            {"title": HOSTILE, "links": [f"https://docs.example/{n}" for n in range(9)]}, indent=2
        )
        big = text * 3000
        return Value(big[:characters], len(big), is_complete=characters is None)

    async def limits(self, run_id: str | None = None) -> Sequence[LimitUse]:
        return LIMITS

    async def explain(self, path: Any) -> Explanation:
        return Explanation(
            run_id=CRAWL.id,
            seconds=312.0,
            is_over=False,
            samples=1250,
            shares={"rate": 0.48, "action": 0.385, "store": 0.096, "loop": 0.039},
            waited=[
                Waited(limit='Rate(5) "docs"', key="docs.example", seconds=91.0),
                Waited(limit="Limits(20)", key="", seconds=12.0),
            ],
            critical_path=[
                Link(row=Row(path=CRAWL, status="running"), step="pages", seconds=312.0),
                Link(row=failed_row(3), step="fetch", seconds=48.0),
            ],
            slowest=[failed_row(n) for n in range(5)],
            advice='Raising the rate "docs" to 10/s would help; Limits(20) would then be the next limit.',
            hedges=[HedgeUse(owner="pages", copies=2, used=1, running=1)],
            copies=[
                SecondCopy(path=page_of(3), step="fetch", after=1.5, seconds=0.4, used=True),
                SecondCopy(path=page_of(4), step="fetch", after=1.5, seconds=2.0),
            ],
            notes=["The store has no times of 140 children that were skipped."],
        )

    is_shared = True

    async def report(self, reports: Any) -> Any:
        return []

    async def reported(self, run_id: str) -> None:
        return None

    async def command(self, command: Any) -> None:
        self.carried_out.append(Steered(command.kind, "", NOW, {"id": command.arguments["id"]}))
        told = {name: one for name, one in command.arguments.items() if name != "id"}
        self.commands.append(replace(command, arguments=told))

    async def steered(self, path: RunPath) -> list[Steered]:
        return self.carried_out


def fake_queries() -> Queries:
    return cast("Queries", FakeQueries())
