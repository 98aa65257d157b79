"""``shoal runs``: list the runs of a store, show one, delete old ones.

On a terminal the output is for people. Otherwise it is for programs: lines of fields with tabs
between them, times in UTC, nothing shortened; with ``--json``, lines of JSON. Control characters in
saved texts are escaped, as Python does.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import anyio

from shoal._errors.exceptions import brief
from shoal._events.identity import RunPath
from shoal._events.paths import path_text
from shoal.stores._protocol import ENDED, Browses, FailedChild, Prunes, RunStatus, RunSummary

from ._lines import shown, write, write_fields, write_json, write_table
from ._store import STORE, Refused, open_store

if TYPE_CHECKING:
    from shoal.stores import Store

P = TypeVar("P")

STATUSES: tuple[RunStatus, ...] = ("running", "succeeded", "failed", "cancelled", "halted")
LEFT = "left"
"""The status that people see for a run that has no end and that no process executes."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
"""The seconds of each unit of time."""

Subparsers = Any  # argparse's own class is private
Do = Callable[["Store", argparse.Namespace], Coroutine[Any, Any, int]]


def add_to(commands: Subparsers) -> None:
    """Add the command ``runs``."""
    what = "list runs, show one, delete old ones"
    parser = commands.add_parser("runs", help=what, description=f"{what.capitalize()}.")
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    listing = _add(actions, "list", _list, "list the runs of a store, the newest first")
    listing.add_argument("--status", choices=STATUSES, help="only runs with this status")
    listing.add_argument(
        "--limit", type=_count, default=50, metavar="N", help="list at most N runs (default: 50)"
    )
    listing.add_argument("--after", metavar="ID", help="only runs after this one: the next page")

    showing = _add(actions, "show", _show, "show a run: its status, its children, its failures")
    showing.add_argument("run_id", metavar="ID", help="the run's id")
    showing.add_argument(
        "--failures", type=_count, default=10, metavar="N", help="show at most N (default: 10)"
    )

    pruning = _add(actions, "prune", _prune, "delete old runs, with all their data")
    pruning.add_argument(
        "--older-than",
        type=_seconds,
        required=True,
        metavar="TIME",
        help="the age since the run's end, or its last sign of life: 12h, 30d, '1w 12h'; units: "
        "s, m, h, d, w",
    )
    pruning.add_argument(
        "--status",
        choices=STATUSES,
        action="append",
        help=f"only runs with this status; may be repeated (default: {', '.join(ENDED)})",
    )
    pruning.add_argument("--dry-run", action="store_true", help="count the runs, delete nothing")


def _add(actions: Subparsers, name: str, do: Do, what: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}."
    )
    parser.add_argument("store", metavar="STORE", help=STORE)
    parser.add_argument(
        "--schema", metavar="NAME", help="the schema of a PostgresStore, if it isn't the default"
    )
    parser.add_argument(
        "--json", action="store_true", help="write one line of JSON for each result"
    )
    parser.set_defaults(do=partial(_run, do))
    return parser


def _run(do: Do, given: argparse.Namespace) -> int:
    return anyio.run(do, open_store(given.store, given.schema), given)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        msg = f"{text!r} is not a whole number above 0"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _seconds(text: str) -> float:
    """Parse a length of time."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhdw])", text)
    if not parts or re.sub(r"(\d+(?:\.\d+)?)\s*[smhdw]|\s", "", text):
        msg = f"{text!r} is not a length of time: write 90s, 15m, 12h, 30d or 1w"
        raise argparse.ArgumentTypeError(msg)
    return sum(float(number) * UNITS[unit] for number, unit in parts)


def _that(store: Store, protocol: type[P], what: str) -> P:
    if not isinstance(store, protocol):
        name = protocol.__name__
        msg = f"{type(store).__name__} can't {what} (it doesn't implement shoal.stores.{name})"
        raise Refused(msg)
    return store


# -- list ------------------------------------------------------------------------------------------


async def _list(store: Store, given: argparse.Namespace) -> int:
    browsed = _that(store, Browses, "list its runs")
    if given.after is not None and await browsed.summary(given.after) is None:
        return _unknown(given.after, given.store)
    found = await browsed.runs(status=given.status, limit=given.limit + 1, after=given.after)
    runs = found[: given.limit]
    if given.json:
        for run in runs:
            write_json(_as_json(run))
    elif not _is_terminal(sys.stdout):
        for run in runs:
            write_fields(run[:4], _utc(run.began_at), _utc(run.ended_at), run.holder, _why(run))
    elif runs:
        titles = ("RUN", "APPLICATION", "STATUS", "BEGAN", "TOOK", "")
        write_table(titles, map(_row, runs), shortens=titles.index("APPLICATION"))
    if len(found) > given.limit:
        _hint(f"there are more runs: --after {shown(runs[-1].run_id)}, or a higher --limit")
    elif not runs:
        _hint("there are no runs")
    return 0


def _row(run: RunSummary) -> tuple[str, ...]:
    ended_at = run.ended_at if run.ended_at is not None or not run.holder else time.time()
    took = "" if ended_at is None else _length(ended_at - run.began_at)
    why = " ".join((_why(run) or run.holder).split())
    return run.run_id, run.application, _status(run), _day(run.began_at), took, why


def _status(run: RunSummary) -> str:
    return LEFT if run.status == "running" and not run.holder else run.status


def _why(run: RunSummary) -> str:
    return run.error or run.reason


# -- show ------------------------------------------------------------------------------------------


async def _show(store: Store, given: argparse.Namespace) -> int:
    browsed = _that(store, Browses, "show its runs")
    run = await browsed.summary(given.run_id)
    if run is None:
        return _unknown(given.run_id, given.store)
    path = RunPath(run_id=run.run_id)
    counts = await browsed.counts(path)
    failures: Sequence[FailedChild] = ()
    if counts.get("failed"):
        failures = await browsed.failures(path, limit=given.failures)
    if given.json:
        failed = [_written(child)._asdict() for child in failures]
        more = {"children": dict(counts), "failures": failed}
        write_json({**_as_json(run), **more})
    elif _is_terminal(sys.stdout):
        _describe(run, counts, failures)
    else:
        for name, value in _as_json(run).items():
            write_fields((name, "" if value is None else value))
        for status, count in counts.items():
            write_fields(("children", status, count))
        for child in failures:
            write_fields(("failure", *_written(child)))
    return 0


def _describe(run: RunSummary, counts: Mapping[Any, int], failures: Sequence[FailedChild]) -> None:
    """Write the description of a run, for people."""
    status = _status(run)
    more = {
        LEFT: "it has no end, and no process executes it; run it again, or recover()",
        "halted": "it waits for answers; its application lists the questions: questions()",
    }
    if status in more:
        status = f"{status}: {more[status]}"
    ended = "" if run.ended_at is None else _local(run.ended_at)
    lines = {
        "run": run.run_id,
        "application": f"{run.application}, version {run.version}",
        "status": status,
        "executed by": run.holder,
        "began": _local(run.began_at),
        "ended": ended and f"{ended}, after {_length((run.ended_at or 0.0) - run.began_at)}",
        "forked from": run.forked_from or "",
        "reason": run.reason,
        "error": run.error,
        "children": ", ".join(f"{count:,} {status}" for status, count in counts.items()),
    }
    for name, text in lines.items():
        if text:
            first, *others = map(shown, text.split("\n") if name == "error" else [text])
            write(f"{name:11}  {first}")
            for line in others:
                write(f"{'':11}  {line}")
    if failures:
        others = counts["failed"] - len(failures)
        write(f"\nfailures{f' (and {others:,} more: --failures N)' if others > 0 else ''}")
        rows = [
            (
                f"{child.step}/{child.act}",
                brief(child.key),
                f"{'(lost a race) ' if child.lost else ''}{' '.join(child.error.split())}",
            )
            for child in failures
        ]
        write_table((), rows)


# -- prune -----------------------------------------------------------------------------------------


async def _prune(store: Store, given: argparse.Namespace) -> int:
    pruned = _that(store, Prunes, "delete old runs")
    statuses: Sequence[RunStatus] = given.status or ENDED
    try:
        count = await pruned.prune(given.older_than, statuses, dry_run=given.dry_run)
    except anyio.get_cancelled_exc_class():
        _hint("some runs are deleted, each as a whole; the next prune frees their remaining space")
        raise
    if given.json:
        write_json({"runs": count, "deleted": not given.dry_run})
    elif _is_terminal(sys.stdout):
        runs = f"{count:,} run{'' if count == 1 else 's'}"
        write(f"{runs} would be deleted" if given.dry_run else f"deleted {runs}")
    else:
        write(str(count))
    return 0


# -- output ----------------------------------------------------------------------------------------


def _unknown(run_id: str, store: str) -> int:
    sys.stderr.write(f"shoal: there is no run {shown(run_id)} in {shown(_nameable(store))}\n")
    return 1


def _nameable(store: str) -> str:
    """Return the name of a store without the password that may be in it."""
    return re.sub(r"://[^@/]*@", "://", store)


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty()


def _hint(text: str) -> None:
    """Write a hint to stderr, but only if that is a terminal."""
    if _is_terminal(sys.stderr):
        sys.stderr.write(f"{text}\n")


def _written(child: FailedChild) -> FailedChild:
    """Return a child whose key can be written: a vast number as text, in hexadecimal digits."""
    try:
        str(child.key)
    except ValueError:  # more decimal digits than Python converts
        return child._replace(key=f"{child.key:#x}")
    return child


def _as_json(run: RunSummary) -> dict[str, Any]:
    times = {"began_at": _utc(run.began_at), "ended_at": _utc(run.ended_at) or None}
    spawner = run.spawned_by
    by = None if spawner is None else f"{path_text(spawner[0])} {spawner[1]}"
    return {**run._asdict(), **times, "spawned_by": by}


def _utc(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def _local(at: float) -> str:
    return f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S}"  # noqa: DTZ006 # people's local time


def _day(at: float) -> str:
    """Show a time in little room: the minute if it is in this year, else the day."""
    then = datetime.fromtimestamp(at)  # noqa: DTZ006 # people's local time
    is_recent = then.year == datetime.fromtimestamp(time.time()).year  # noqa: DTZ006 # as above
    return f"{then:%m-%d %H:%M}" if is_recent else f"{then:%Y-%m-%d}"


def _length(seconds: float) -> str:
    """Show a length of time, in its two largest units."""
    if seconds < UNITS["m"]:
        return f"{seconds:.1f}s"
    for larger, smaller in (("d", "h"), ("h", "m"), ("m", "s")):
        if seconds >= UNITS[larger]:
            whole, rest = divmod(int(seconds), UNITS[larger])
            return f"{whole}{larger} {rest // UNITS[smaller]}{smaller}"
    raise AssertionError("shorter times have returned before")
