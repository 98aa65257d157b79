"""``shoal runs``: list the runs of a store, the newest first."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from shoal._errors.exceptions import UnknownRun
from shoal._events.paths import path_text
from shoal.stores._protocol import Browses, RunStatus, RunSummary, similar_run
from shoal.watch._words import length

from ._command import Subparsers, add_command, count, that_can
from ._lines import hint, is_terminal, shown, utc, write_fields, write_json, write_table
from ._store import Refused

if TYPE_CHECKING:
    from shoal.stores import Store
    from shoal.watch import Queries

STATUSES: tuple[RunStatus, ...] = ("running", "succeeded", "failed", "cancelled", "halted")
LOST = "lost"
"""The status, in all output, of a run that has no end and that no process executes."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
"""The seconds of each unit of time."""


def add_to(commands: Subparsers) -> None:
    """Add the command ``runs``."""
    parser = add_command(commands, "runs", _list, "list the runs of a store, the newest first")
    parser.add_argument("--status", choices=(*STATUSES, LOST), help="only runs with this status")
    parser.add_argument("--application", metavar="NAME", help="only runs of this application")
    parser.add_argument("--owner", metavar="NAME", help="only runs of this owner")
    parser.add_argument(
        "--limit", type=count, default=50, metavar="N", help="list at most N runs (default: 50)"
    )
    parser.add_argument("--after", metavar="ID", help="only runs after this one: the next page")
    parser.add_argument("former", nargs="*", help=argparse.SUPPRESS)


async def _list(store: Store, given: argparse.Namespace) -> int:
    if given.former:
        raise Refused(_former(given.former))
    browsed = that_can(store, Browses, "list its runs")
    if given.after is not None and await browsed.summary(given.after) is None:
        msg = f"there is no run {given.after!r}"
        raise UnknownRun(msg, await similar_run(store, given.after))
    from shoal.watch import Queries  # noqa: PLC0415 # most of shoal: not for `shoal --help`

    runs, after = await _page(Queries(browsed), given)
    if given.json:
        for run in runs:
            write_json(as_json(run))
    elif not is_terminal(sys.stdout):
        for run in runs:
            named = run.run_id, run.application, run.version, status_of(run)
            more = run.holder, _why(run), run.owner, run.priority or ""
            write_fields((*named, utc(run.began_at), utc(run.ended_at), *more))
    elif runs:
        # A column that no run has anything in would take room from the others.
        owned = any(run.owner for run in runs)
        titles = ("RUN", "APPLICATION", *(("OWNER",) * owned), "STATUS", "BEGAN", "TOOK", "")
        rows = [_row(run, with_owner=owned) for run in runs]
        write_table(titles, rows, shortens=titles.index("APPLICATION"))
    if after is not None:
        hint(f"there are more runs: --after {shown(after)}, or a higher --limit")
    elif not runs:
        hint("there are no runs")
    return 0


async def _page(
    queries: Queries, given: argparse.Namespace
) -> tuple[Sequence[RunSummary], str | None]:
    """Return a page of runs, and the cursor of the next one."""
    status, application, limit = given.status, given.application, given.limit
    if status not in ("running", LOST):
        return await queries.runs(
            status=status,
            application=application,
            limit=limit,
            after=given.after,
            owner=given.owner,
        )
    # A store takes lost runs for running: both are those without an end.
    found, after = list[RunSummary](), given.after
    while True:
        page = await queries.runs(
            status="running", application=application, limit=limit, after=after, owner=given.owner
        )
        for run in page.runs:
            if len(found) == limit:
                return found, after
            after = run.run_id
            if status_of(run) == status:
                found.append(run)
        after = page.after
        if after is None:
            return found, None


def _former(arguments: list[str]) -> str:
    """Return how to write a command line of a version before 18."""
    verb, *more = arguments
    new = {"list": "shoal runs", "show": "shoal show ID", "prune": "shoal prune"}.get(verb)
    if new is None:
        return f"`shoal runs` takes options alone, and {arguments[0]!r} is none"
    return f"`shoal runs {' '.join([verb, *more[:1]])}` is now `{new} --db FILE|--postgres URL`"


def _row(run: RunSummary, *, with_owner: bool) -> tuple[str, ...]:
    ended_at = run.ended_at if run.ended_at is not None or not run.holder else time.time()
    took = "" if ended_at is None else length(ended_at - run.began_at)
    why = " ".join((_why(run) or run.holder).split())
    if run.priority not in (None, "normal"):
        why = f"{run.priority}: {why}" if why else str(run.priority)
    owner = (run.owner,) if with_owner else ()
    return run.run_id, run.application, *owner, status_of(run), _day(run.began_at), took, why


def status_of(run: RunSummary) -> str:
    """Return the status of a run, also for programs: "lost" if no process executes it."""
    return LOST if run.status == "running" and not run.holder else run.status


def _why(run: RunSummary) -> str:
    return run.error or run.reason


def as_json(run: RunSummary) -> dict[str, Any]:
    """Return a run for a line of JSON."""
    spawner = run.spawned_by
    return {
        **run._asdict(),
        "status": status_of(run),
        "is_lost": status_of(run) == LOST,
        "began_at": utc(run.began_at),
        "ended_at": utc(run.ended_at) or None,
        "spawned_by": None if spawner is None else [path_text(spawner[0]), spawner[1]],
    }


def _day(at: float) -> str:
    """Show a time in little room: the minute if it is in this year, else the day."""
    then = datetime.fromtimestamp(at)  # noqa: DTZ006 # people's local time
    is_recent = then.year == datetime.fromtimestamp(time.time()).year  # noqa: DTZ006 # as above
    return f"{then:%m-%d %H:%M}" if is_recent else f"{then:%Y-%m-%d}"
