"""``shoal show``: a run, root or child: how far it is, its children, its failures."""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, final

from shoal._errors.exceptions import UnknownRun, brief
from shoal._events.paths import path_text
from shoal.watch._words import DOING, length

from ._command import Subparsers, add_command, add_run, count, queries_of
from ._lines import (
    is_terminal,
    local,
    utc,
    write,
    write_fields,
    write_json,
    write_named,
    write_table,
)
from .runs import LOST, as_json

if TYPE_CHECKING:
    from shoal._events.identity import RunPath
    from shoal.stores import FailedChild, Inspects, Store
    from shoal.stores._watching import EntryKind, StoredEntry
    from shoal.watch import LiveRun, Overview, Queries, StepBar

_MORE = {
    LOST: "it has no end, and no process executes it; run it again, or recover()",
    "halted": "it waits for answers",
}


def add_to(commands: Subparsers) -> None:
    """Add the command ``show``."""
    what = "show a run or a child: how far it is, its children, its failures"
    parser = add_command(commands, "show", _show, what)
    add_run(parser)
    parser.add_argument(
        "--child", metavar="ID", help="show the descendant of the run that has this id"
    )
    parser.add_argument(
        "--failures", type=count, default=10, metavar="N", help="show at most N (default: 10)"
    )


async def _show(store: Store, given: argparse.Namespace) -> int:
    queries = queries_of(store, "show its runs")
    path = given.path if given.child is None else await _found(queries, given.path, given.child)
    overview = await queries.overview(path)
    failed: Sequence[FailedChild] = ()
    if overview.counts.get("failed"):
        failed = await queries.store.failures(overview.path, limit=given.failures)
    questions: Sequence[_Question] = ()
    if overview.status == "halted" or overview.questions:
        questions = await _open_questions(queries.inspected, overview.path)
    if given.json:
        asked = [question.as_json() for question in questions]
        write_json({**_as_json(overview, failed), "questions": asked})
    elif is_terminal(sys.stdout):
        _describe(overview, given.failures, questions)
    else:
        _list(overview, failed)
        for question in questions:
            write_fields(("question", *question.as_json().values()))
    return 0


async def _found(queries: Queries, path: RunPath, child_id: str) -> RunPath:
    """Return the path of a descendant, given its id: all children first, then theirs.

    Raises:
        UnknownRun: The store has no such run, or no such descendant of it.
    """
    await queries.row(path)  # raises if there is none
    parents, looked_at = deque([path]), 0
    while parents and looked_at < _LOOKED_AT:
        parent, after = parents.popleft(), None
        while True:
            page = await queries.children(parent, order="position", after=after, limit=1_000)
            for row in page.rows:
                if row.path.id == child_id:
                    return row.path
            looked_at += len(page.rows)
            parents += [row.path for row in page.rows]
            after = page.after
            if after is None or looked_at >= _LOOKED_AT:
                break
    left_out = f" among the first {looked_at:,}" if parents else ""
    msg = f"there is no descendant {child_id} of {path_text(path)}{left_out}"
    raise UnknownRun(msg)


_LOOKED_AT = 100_000
"""The most descendants that are looked at for an id: some seconds."""


@final
class _Question(NamedTuple):
    """A question without an answer."""

    name: str
    path: RunPath
    """The run that waits for the answer."""
    question: str
    """JSON."""
    id: str

    def as_json(self) -> dict[str, str]:
        return {
            "name": self.name,
            "path": path_text(self.path),
            "run_id": self.path.id,
            "question": self.question,
            "id": self.id,
        }


async def _open_questions(store: Inspects, path: RunPath) -> Sequence[_Question]:
    """Return the first open questions of a run and its descendants."""
    answered = {
        json.loads(entry.data)[0] for entry in await _entries(store, path.root, ("answered",))
    }
    found, waiting = list[_Question](), deque([path])
    for _ in range(_ASKED):
        if not waiting or len(found) >= _ASKED:
            break
        at = waiting.popleft()
        asked = dict[str, _Question]()
        for entry in await _entries(store, at, ("asked", "completed")):
            if entry.kind == "completed":
                asked.clear()  # the step that asked has ended, so its questions are answered
                continue
            name, question, id_ = json.loads(entry.data)
            asked[id_] = _Question(name, at, json.dumps(question, ensure_ascii=False), id_)
        found += [question for id_, question in asked.items() if id_ not in answered]
        page = await store.rows(at, status="halted", order="position", limit=_ASKED)
        waiting += [row.path for row in page.rows]
    return found[:_ASKED]


_ASKED = 50
"""The most questions that are shown, and the most runs that are looked at for them."""


async def _entries(
    store: Inspects, path: RunPath, kinds: Collection[EntryKind]
) -> Sequence[StoredEntry]:
    found: list[StoredEntry] = []
    number: int | None = 0
    while number is not None:
        part, number = await store.entries(path, kinds=kinds, from_number=number, limit=1_000)
        found += part
    return found


# -- for people ------------------------------------------------------------------------------------


def _describe(overview: Overview, most: int, questions: Sequence[_Question]) -> None:
    run, row = overview.summary, overview.row
    status = LOST if overview.is_lost else row.status
    is_root = not overview.breadcrumbs
    ended = ""
    if row.ended_at is not None:
        ended = f"{local(row.ended_at)}, after {length(row.elapsed)}"
    spawner = overview.spawned_by
    named = [
        ("run", path_text(overview.path)),
        ("application", f"{run.application}, version {run.version}" if is_root else ""),
        ("part of", "" if is_root else path_text(overview.breadcrumbs[-1])),
        ("status", f"{status}: {_MORE[status]}" if status in _MORE else status),
        ("executed by", run.holder if row.status == "running" else ""),
        ("began", "" if row.began_at is None else local(row.began_at)),
        ("ended", ended),
        ("forked from", (run.forked_from or "") if is_root else ""),
        ("spawned by", "" if spawner is None else f"{path_text(spawner[0])}, step {spawner[1]}"),
        ("attempts", str(row.attempts) if row.attempts > 1 else ""),
        ("reason", row.reason),
        ("lost to", "" if row.winner is None else path_text(row.winner)),
        ("error", row.error),
        ("children", _children(overview)),
        ("headline", overview.headline.text),
        ("spawned", ", ".join(one.run_id for one in overview.spawned)),
    ]
    write_named([(name, text) for name, text in named if text])
    if len(overview.bars) > 1 or any(bar.is_under_way for bar in overview.bars):
        write("\nsteps")
        write_table((), [_bar(bar) for bar in overview.bars])
    if overview.longest:
        write("\nrunning longest")
        rows = [(length(one.age), _name(one), _live(one)) for one in overview.longest[:most]]
        write_table((), rows)
    if questions:
        write("\nopen questions")
        write_table((), [(one.name, path_text(one.path), one.question) for one in questions])
        first = questions[0]
        answers = f"{{({first.path.id!r}, {first.name!r}): ...}}"
        write_named([("answer", "in a browser, by `shoal ui`, or by the application:")])
        write_named([("", f"run(id={overview.path.root.id!r}, answers={answers})")])
    _describe_failures(overview, most)


def _name(run: LiveRun) -> str:
    """Name a run in flight: by its title, and by the key that its path has."""
    if run.path.parent is None:
        return run.title or run.path.id
    key = brief(run.path.key)
    return f"{run.title} ({key})" if run.title else key


def _live(run: LiveRun) -> str:
    """Say what a run in flight does, in the words of the page.

    ``fetch: waiting for its next attempt · attempt 2 of 3 · next in 1.5 s · page 3 of 9``.
    """
    limit = run.limit_key or run.limit
    what = f"{DOING[run.doing]}, {limit}" if limit else DOING[run.doing]
    parts = [f"{run.step}: {what}" if run.step else what]
    if run.attempt > 1:
        of = "" if run.attempts is None else f" of {run.attempts}"
        parts.append(f"attempt {run.attempt}{of}")
    if run.next_in is not None:
        parts.append(f"next in {length(run.next_in)}")
    return " · ".join([*parts, run.note] if run.note else parts)


def _children(overview: Overview) -> str:
    lost = sum(bar.lost for bar in overview.bars)
    counts = ", ".join(f"{many:,} {name}" for name, many in overview.counts.items())
    return f"{counts} ({lost:,} lost a race)" if lost else counts


def _bar(bar: StepBar) -> tuple[str, str]:
    total = "" if bar.total is None else f" of {bar.total:,}"
    parts = [f"{bar.done:,}{total}"]
    parts += [f"{many:,} {name}" for name, many in bar.counts.items() if name != "running"]
    parts += [f"{bar.lost:,} of them lost a race"] if bar.lost else []
    parts += [f"{bar.in_flight:,} running"] if bar.in_flight else []
    parts += [f"{bar.waiting:,} waiting"] if bar.waiting else []
    visit = f" (visit {bar.visit})" if bar.visit else ""
    return f"{bar.title or bar.step}{visit}", " · ".join(parts)


def _describe_failures(overview: Overview, most: int) -> None:
    found = overview.failures
    if not found.groups:
        return
    shown = found.groups[:most]
    others = len(found.groups) + found.omitted - len(shown)
    left_out = f" (and {others:,} more groups: --failures N)" if others else ""
    if found.counted < found.total:
        left_out += f" (of the first {found.counted:,} of {found.total:,})"
    write(f"\nfailures{left_out}")
    rows = [
        (
            f"{group.count:,}",
            group.step,
            f"{group.error_type}: {group.message}, as {brief(group.example.path.key)}",
        )
        for group in shown
    ]
    write_table((), rows)


# -- for programs ----------------------------------------------------------------------------------


def _list(overview: Overview, failed: Sequence[FailedChild]) -> None:
    about = _about(overview)
    for name, value in about.items():
        write_fields((name, "" if value is None else value))
    write_fields(("headline", overview.headline.text))
    for status, many in overview.counts.items():
        write_fields(("children", status, many))
    for bar in overview.bars:
        total = "" if bar.total is None else bar.total
        fields = (bar.done, total, bar.failed, bar.lost, bar.in_flight, bar.waiting)
        write_fields(("step", bar.step, bar.visit, *fields))
    for group in overview.failures.groups:
        example = path_text(group.example.path)
        write_fields(
            ("failures", group.count, group.step, group.error_type, group.message, example)
        )
    for child in failed:
        write_fields(("failure", *_written(child)))


def _about(overview: Overview) -> dict[str, Any]:
    if not overview.breadcrumbs:
        return as_json(overview.summary)
    row = overview.row
    return {
        "path": path_text(overview.path),
        "run_id": overview.summary.run_id,
        "application": overview.summary.application,
        "status": LOST if overview.is_lost else row.status,
        "began_at": utc(row.began_at) or None,
        "ended_at": utc(row.ended_at) or None,
        "elapsed": row.elapsed,
        "attempts": row.attempts,
        "used": row.used,
        "reason": row.reason,
        "winner": None if row.winner is None else path_text(row.winner),
        "error": row.error,
        "is_lost": overview.is_lost,
    }


def _written(child: FailedChild) -> FailedChild:
    """Return a child whose key can be written: a vast number as text, in hexadecimal digits."""
    try:
        str(child.key)
    except ValueError:  # more decimal digits than Python converts
        return child._replace(key=f"{child.key:#x}")
    return child


def _as_json(overview: Overview, failed: Sequence[FailedChild]) -> dict[str, Any]:
    line = overview.headline
    stuck = line.held_up_by
    return {
        **_about(overview),
        "headline": {
            "text": line.text,
            "step": line.step,
            "done": line.done,
            "total": line.total,
            "failed": line.failed,
            "running": line.running,
            "pace": line.pace,
            "seconds_left": line.seconds_left,
            "held_up_by": None
            if stuck is None
            else {
                "doing": stuck.doing,
                "limit": stuck.limit,
                "key": stuck.key,
                "share": stuck.share,
            },
        },
        "report_age": overview.report_age,
        "costs": dict(overview.costs),
        "children": dict(overview.counts),
        "steps": [
            {
                "step": bar.step,
                "visit": bar.visit,
                "done": bar.done,
                "total": bar.total,
                "counts": dict(bar.counts),
                "failed": bar.failed,
                "lost": bar.lost,
                "in_flight": bar.in_flight,
                "waiting": bar.waiting,
            }
            for bar in overview.bars
        ],
        "failure_groups": [
            {
                "count": group.count,
                "step": group.step,
                "error_type": group.error_type,
                "message": group.message,
                "example": path_text(group.example.path),
            }
            for group in overview.failures.groups
        ],
        "failures": [_written(child)._asdict() for child in failed],
    }
