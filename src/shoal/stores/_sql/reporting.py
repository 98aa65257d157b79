"""Carry reports about runs, and commands for them, between processes.

Invariants:
- Only the process that executes a run replaces its report and takes its commands. One that has
  lost its claim doesn't, although the execution that took the run over has ended, too.
- A command names the claim that its sender saw. So it is never taken under a later claim, and
  nothing has to be deleted when a run is claimed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

from shoal.stores._watching import Command, StoredReport

from .dialect import Connection, Dialect

_REPORT = (
    "INSERT INTO reports (run, at, text) SELECT runs.id, ?, ? FROM runs "
    "WHERE parent = 0 AND place = 0 AND key = ? AND EXISTS (SELECT 1 FROM claims "
    "WHERE claims.run_id = runs.key AND execution = ?) "
    "ON CONFLICT (run) DO UPDATE SET at = excluded.at, text = excluded.text"
)
_ROOT = "parent = 0 AND place = 0 AND runs.key = ?"


def report(
    sql: Connection, dialect: Dialect, reports: Mapping[str, str], executions: Mapping[str, str]
) -> list[Command]:
    """Replace the reports of some runs, and take the commands that were left for them.

    Args:
        sql: The connection of the writer.
        dialect: How the database writes keys.
        reports: Texts by run id; an empty one leaves the report as it is.
        executions: The executions of this process that have claimed the runs, by run id.
    """
    at = dialect.now(sql)
    sql.executemany(
        _REPORT,
        [
            (at, _clean(text), dialect.index_of(run_id), executions.get(run_id, ""))
            for run_id, text in sorted(reports.items())  # all lock the rows in one order
            if text
        ],
    )
    # There are hardly ever any, so all are read, whichever run they are for.
    found = sql.execute(
        f"SELECT commands.id, run, {dialect.key}, commands.epoch = claims.epoch, execution, kind, "
        "arguments FROM commands JOIN runs ON runs.id = run "
        "JOIN claims ON claims.run_id = runs.key ORDER BY commands.id"
    ).fetchall()
    taken: list[Command] = []
    done: list[tuple[int]] = []
    for number, _, key, is_present, execution, kind, arguments in found:
        run_id = dialect.run_id_of(key)
        if run_id not in reports or execution != executions.get(run_id):
            continue
        done.append((number,))
        if is_present:
            taken.append(Command(run_id=run_id, kind=kind, arguments=json.loads(arguments)))
    sql.executemany("DELETE FROM commands WHERE id = ?", done)
    return taken


def command(sql: Connection, dialect: Dialect, command: Command) -> None:
    """Leave a command for the execution that has claimed a run; if none has, drop it."""
    sql.execute(
        "INSERT INTO commands (run, epoch, kind, arguments) SELECT runs.id, epoch, ?, ? FROM runs "
        f"JOIN claims ON claims.run_id = runs.key WHERE {_ROOT} AND execution IS NOT NULL",
        (command.kind, json.dumps(dict(command.arguments)), dialect.index_of(command.run_id)),
    )


@final
class Root(NamedTuple):
    """A root run that has begun."""

    row: int
    number: int
    """The number of its last update."""


def root_of(sql: Connection, dialect: Dialect, run_id: str) -> Root | None:
    """Return a root run; None if there is none that has begun."""
    found: Sequence[int] | None = sql.execute(
        "SELECT runs.id, "
        "coalesce((SELECT max(number) FROM history WHERE history.run = runs.id), 0), "
        "coalesce((SELECT max(number) FROM saves WHERE saves.run = runs.id), 0) "
        f"FROM runs JOIN roots ON roots.run = runs.id WHERE {_ROOT}",
        (dialect.index_of(run_id),),
    ).fetchone()
    return None if found is None else Root(int(found[0]), max(int(found[1]), int(found[2])))


def reported(sql: Connection, dialect: Dialect, run_id: str) -> StoredReport | None:
    """Return the last report about a root run."""
    found: Sequence[float | str] | None = sql.execute(
        f"SELECT at, text FROM reports JOIN runs ON runs.id = run WHERE {_ROOT}",
        (dialect.index_of(run_id),),
    ).fetchone()
    return None if found is None else StoredReport(run_id, float(found[0]), str(found[1]))


def _clean(text: str) -> str:
    """Escape halves of surrogate pairs, as JSON writes them: databases refuse them."""
    return text.encode("utf-8", "backslashreplace").decode()
