"""``shoal show``: a run, root or child: how far it is, its children, its failures."""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shoal._errors.exceptions import UnknownRun, brief
from shoal._events.paths import path_text
from shoal.watch._board import how_long
from shoal.watch._explain import told_copy
from shoal.watch._overview import ancestors_of, is_below, nested_in
from shoal.watch._words import DOING, length

from ._command import Subparsers, add_command, add_run, count, queries_of
from ._lines import (
    hint,
    is_terminal,
    local,
    shown,
    utc,
    write,
    write_fields,
    write_json,
    write_named,
    write_table,
)
from ._store import Refused
from .runs import LOST, as_json

if TYPE_CHECKING:
    from shoal._events.identity import RunPath
    from shoal.stores import FailedChild, Steered, Store
    from shoal.watch import (
        LiveRun,
        LiveStep,
        OpenQuestion,
        Overview,
        Queries,
        Row,
        RowPage,
        SecondCopy,
        StepBar,
    )

_MORE = {
    LOST: "it has no end, and no process executes it; run it again, or recover()",
    "halted": "it waits for answers",
}


_REPORTS = "none: the run isn't watched (watch=False), so pages can't steer it"


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
    table = parser.add_argument_group("children", "show a page of its children, too")
    table.add_argument("--limit", type=count, metavar="N", help="at most N (default: 25)")
    table.add_argument("--after", metavar="CURSOR", help="the page behind the one that ended so")
    table.add_argument("--status", choices=_STATUSES, help="only children with that status")
    table.add_argument("--step", help="only children of that step")
    table.add_argument("--key", metavar="TEXT", help="only children whose key contains TEXT")
    table.add_argument("--order", choices=_ORDERS, help=f"their order (default: {_ORDERS[0]!r})")


async def _show(store: Store, given: argparse.Namespace) -> int:
    queries = queries_of(store, "show its runs")
    path = given.path if given.child is None else await _found(queries, given.path, given.child)
    overview = await queries.overview(path)
    failed: Sequence[FailedChild] = ()
    if overview.counts.get("failed"):
        failed = await queries.store.failures(overview.path, limit=given.failures)
    questions: Sequence[OpenQuestion] = ()
    resting: Sequence[RunPath] = ()
    if overview.waits_for_answers:
        found = await queries.questions(overview.path, limit=_ASKED)
        questions = found.open
        resting = found.answered if overview.status == "halted" else ()
    page = await _page(queries, overview.path, given)
    rows = [_row(one, overview) for one in (() if page is None else page.rows)]
    if given.json:
        write_json(
            {
                **_as_json(overview, failed),
                "questions": [_question(one) for one in questions],
                **({} if page is None else {"rows": rows, "after": page.after}),
            }
        )
    elif is_terminal(sys.stdout):
        _describe(overview, given.failures, questions, resting)
        if page is not None:
            _describe_children(page, overview)
    else:
        _list(overview, failed)
        for question in questions:
            write_fields(("question", *_question(question).values()))
        for row in rows:
            write_fields(("child", *("" if one is None else one for one in row.values())))
        if page is not None and page.after is not None:
            write_fields(("after", page.after))
    if page is not None and page.after is not None:
        hint(f"there are more children: --after {shown(page.after)}, or a higher --limit")
    return 0


_ASKED = 50
"""The most questions that are shown."""
_STATUSES = ("failed", "running", "halted", "cancelled", "succeeded", "skipped")
_ORDERS = ("failed first", "position", "ended last", "slowest")
_ROWS = 25
"""Children on a page: as many as the page in a browser has."""


async def _page(queries: Queries, path: RunPath, given: argparse.Namespace) -> RowPage | None:
    """Return the page of children that was asked for; None if none was.

    Raises:
        Refused: The cursor is none.
    """
    asked = given.limit, given.after, given.status, given.step, given.key, given.order
    if asked == (None,) * len(asked):
        return None
    try:
        return await queries.children(
            path,
            step=given.step,
            status=given.status,
            key=given.key,
            order=given.order or _ORDERS[0],
            after=given.after,
            limit=given.limit or _ROWS,
        )
    except ValueError as error:
        msg = f"{given.after!r} is no --after of such a page: begin with its first page ({error})"
        raise Refused(msg) from error


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
    msg = f"there is no descendant {child_id!r} of {path_text(path)!r}{left_out}"
    raise UnknownRun(msg)


_LOOKED_AT = 100_000
"""The most descendants that are looked at for an id: some seconds."""


# -- for people ------------------------------------------------------------------------------------


def _describe(
    overview: Overview, most: int, questions: Sequence[OpenQuestion], resting: Sequence[RunPath]
) -> None:
    run, row = overview.summary, overview.row
    status = LOST if overview.is_lost else row.status
    more = _MORE.get(status)
    if status == "halted" and row.reason and not questions:
        more = "it was drained; run it again, and it goes on"
    is_root = not overview.breadcrumbs
    ended = ""
    if row.ended_at is not None:
        ended = f"{local(row.ended_at)}, after {length(row.elapsed)}"
    spawner = overview.spawned_by
    named = [
        ("run", path_text(overview.path)),
        ("application", f"{run.application}, version {run.version}" if is_root else ""),
        ("part of", "" if is_root else path_text(overview.breadcrumbs[-1])),
        ("status", status if more is None else f"{status}: {more}"),
        ("paused", "" if overview.paused is None else _paused(overview.paused, is_root=is_root)),
        ("owner", run.owner if is_root else ""),
        ("priority", run.priority or "" if is_root and run.priority != "normal" else ""),
        ("executed by", run.holder if row.status == "running" else ""),
        ("reports", _REPORTS if overview.is_silent and row.status == "running" else ""),
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
        rows = [_bar(bar) for bar in overview.bars]
        for place, bar in reversed([*enumerate(overview.bars)]):
            rows[place + 1 : place + 1] = map(_nested, nested_in(overview, bar).values())
        write_table((), rows)
    if overview.longest:
        write("\nrunning longest")
        rows = [
            (how_long(one), _name(one, overview.path), _live(one))
            for one in overview.longest[:most]
        ]
        write_table((), rows)
    copies = _copies(overview)
    if copies:
        write("\nsecond copies of late attempts")
        write_table((), [(length(one.seconds), told_copy(one)) for one in copies[-most:]])
    if questions:
        write("\nopen questions")
        write_table((), [(one.name, path_text(one.path), _asked(one)) for one in questions])
        first = questions[0]
        answers = f"{{({first.path.id!r}, {first.name!r}): ...}}"
        told = f"shoal answer {path_text(first.path)} {first.name}"
        write_named([("answer", f"`{told}`, in a browser (`shoal ui`), or by the application:")])
        write_named([("", f"run(id={overview.path.root.id!r}, answers={answers})")])
    elif resting:
        write("\nall questions are answered; the answers are taken up when the run is run again")
        write_named([("", f"run(id={overview.path.root.id!r})")])
    _describe_failures(overview, most)


def _describe_children(page: RowPage, overview: Overview) -> None:
    write(f"\nchildren{f' ({page.left_out})' if page.left_out else ''}")
    if not page.rows:
        write("no child is like that")
        return
    rows = [
        (
            brief(row.path.key) if row.path.key != "" else row.path.act,
            _status(row, overview),
            length(row.elapsed) if row.ended_at is not None else "",
            f"{row.path.step}/{row.path.act}",
            " ".join(_why(row).split()),
        )
        for row in page.rows
    ]
    write_table((), rows)


def _status(row: Row, overview: Overview) -> str:
    return LOST if overview.is_lost and row.status == "running" else row.status


def _paused(paused: Steered, *, is_root: bool) -> str:
    return f"{paused.sentence.removeprefix('paused ')}{'' if is_root else ', with its root run'}"


def _why(row: Row) -> str:
    """Return why a child ended as it did; empty if there is nothing to say."""
    if row.winner is not None:
        return f"lost to {brief(row.winner.key) if row.winner.key != '' else row.winner.act}"
    return row.error or row.reason


def _asked(question: OpenQuestion) -> str:
    return json.dumps(question.question, ensure_ascii=False)


def _name(run: LiveRun, ancestor: RunPath) -> str:
    """Name a run in flight: by its title, and by the keys that lead down to it."""
    if run.path.parent is None:
        return run.title or run.path.id
    way = [run.path, *(one for one in ancestors_of(run.path)[::-1] if one.depth > ancestor.depth)]
    keys = " / ".join(brief(one.key) if one.key != "" else one.act for one in way[::-1])
    return f"{run.title} ({keys})" if run.title else keys


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
    if run.copied is not None:
        parts.append(f"a second copy for {length(run.copied)}")
    return " · ".join([*parts, run.note] if run.note else parts)


def _children(overview: Overview) -> str:
    lost = sum(bar.lost for bar in overview.bars)
    counts = ", ".join(f"{many:,} {name}" for name, many in _counts(overview).items())
    return f"{counts} ({lost:,} lost a race)" if lost else counts


def _counts(overview: Overview) -> dict[str, int]:
    """Return the children by status; those of a lost run that were in flight are lost."""
    counts: dict[str, int] = {**overview.counts}
    if overview.is_lost:
        running = counts.pop("running", 0)
        # The last report knows of those that had saved nothing, too.
        lost = max(running, sum(bar.gone for bar in overview.bars))
        counts |= {LOST: lost} if lost else {}
    return counts


def _copies(overview: Overview) -> Sequence[SecondCopy]:
    """Return the last second copies of children of a run, at any depth."""
    found = () if overview.report is None else overview.report.copies
    return [one for one in found if is_below(one.path, overview.path)]


def _bar(bar: StepBar) -> tuple[str, str]:
    total = "" if bar.total is None else f" of {bar.total:,}"
    parts = [f"{bar.done:,}{total}"]
    parts += [f"{many:,} {name}" for name, many in bar.counts.items() if name != "running"]
    parts += [f"{bar.lost:,} of them lost a race"] if bar.lost else []
    parts += [f"{bar.in_flight:,} running"] if bar.in_flight else []
    parts += [f"{bar.waiting:,} waiting"] if bar.waiting else []
    parts += [f"{bar.gone:,} gone with their process"] if bar.gone else []
    visit = f" (visit {bar.visit})" if bar.visit else ""
    return f"{bar.title or bar.step}{visit}", " · ".join(parts)


def _nested(step: LiveStep) -> tuple[str, str]:
    """Say how far the fan-outs of children are, together."""
    parts = [f"{step.ended:,} done" if step.total is None else f"{step.ended:,} of {step.total:,}"]
    parts += [f"{step.failed:,} failed"] if step.failed else []
    parts += [f"{step.halted:,} halted"] if step.halted else []
    parts += [f"{step.in_flight:,} running"] if step.in_flight else []
    parts += [f"{step.waiting:,} waiting"] if step.waiting else []
    return f"  {step.step}", " · ".join(parts)


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
    paused = overview.paused
    if paused is not None:
        write_fields(("paused", utc(paused.at), paused.by, paused.reason))
    write_fields(("headline", overview.headline.text))
    for status, many in _counts(overview).items():
        write_fields(("children", status, many))
    for bar in overview.bars:
        total = "" if bar.total is None else bar.total
        fields = (bar.done, total, bar.failed, bar.lost, bar.in_flight, bar.waiting)
        write_fields(("step", bar.step, bar.visit, *fields))
    for run in overview.longest:
        write_fields(("running", *("" if one is None else one for one in _run_now(run).values())))
    for use in () if overview.report is None else overview.report.hedges:
        write_fields(("copies", use.owner, use.copies, use.used, use.running))
    for copy in _copies(overview):
        write_fields(("copy", *("" if one is None else one for one in _copy(copy).values())))
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


def _question(question: OpenQuestion) -> dict[str, str]:
    return {
        "name": question.name,
        "path": path_text(question.path),
        "run_id": question.path.id,
        "question": _asked(question),
        "id": question.id,
    }


def _row(row: Row, overview: Overview) -> dict[str, Any]:
    return {
        "path": path_text(row.path),
        "status": _status(row, overview),
        "position": row.position,
        "began_at": utc(row.began_at) or None,
        "ended_at": utc(row.ended_at) or None,
        "elapsed": row.elapsed,
        "attempts": row.attempts,
        "used": row.used,
        "winner": None if row.winner is None else path_text(row.winner),
        "reason": row.reason,
        "error": row.error,
    }


def _run_now(run: LiveRun) -> dict[str, Any]:
    return {
        "path": path_text(run.path),
        "step": run.step,
        "doing": run.doing,
        "since": run.since,
        "age": run.age,
        "attempt": run.attempt,
        "attempts": run.attempts,
        "next_in": run.next_in,
        "limit": run.limit,
        "key": run.limit_key,
        "title": run.title,
        "note": run.note,
        "copied": run.copied,
    }


def _copy(copy: SecondCopy) -> dict[str, Any]:
    return {
        "path": path_text(copy.path),
        "step": copy.step,
        "attempt": copy.attempt,
        "after": copy.after,
        "seconds": copy.seconds,
        "used": copy.used,
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
                "is_full": stuck.is_full,
            },
        },
        "paused": None
        if overview.paused is None
        else {
            "since": utc(overview.paused.at),
            "by": overview.paused.by,
            "reason": overview.paused.reason,
        },
        "report_age": overview.report_age,
        "is_silent": overview.is_silent,
        "costs": dict(overview.costs),
        "spending": [
            {
                "budget": one.budget,
                "unit": one.unit,
                "spent": one.spent,
                "aside": one.aside,
                "amount": one.amount,
            }
            for one in (() if overview.report is None else overview.report.spending)
        ],
        "hedges": [
            {"owner": one.owner, "copies": one.copies, "used": one.used, "running": one.running}
            for one in (() if overview.report is None else overview.report.hedges)
        ],
        "copies": [_copy(one) for one in _copies(overview)],
        "children": _counts(overview),
        "steps": [
            {
                "step": bar.step,
                "visit": bar.visit,
                "done": bar.done,
                "total": bar.total,
                "counts": dict(bar.counts),
                "failed": bar.failed,
                "lost": bar.lost,
                "cancelled": bar.cancelled,
                "halted": bar.halted,
                "gone": bar.gone,
                "in_flight": bar.in_flight,
                "waiting": bar.waiting,
            }
            for bar in overview.bars
        ],
        "longest": [_run_now(run) for run in overview.longest],
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
