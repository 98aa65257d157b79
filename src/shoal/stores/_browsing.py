"""Runs in the tables of a store, listed and counted. Imports reading, claims and keys.

Invariants:
- Each query is answered from an index, in the order of that: it takes as long as what it returns.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, cast

from shoal._store import ChildStatus, RunStatus, RunSummary

from ._holders import Holder
from ._sqlite_claims import CLAIM, seconds_left
from ._sqlite_file import column_of, key_of

_RUN = (
    "SELECT runs.key, application, version, coalesce(status, 'running'), began_at, ended_at, "
    f"coalesce(reason, ''), coalesce(roots.error, ''), forked_from, {CLAIM} "
)
_CLAIMS = "LEFT JOIN claims ON claims.run_id = runs.key"
_FROM_ROOTS = f"{_RUN} FROM roots JOIN runs ON runs.id = roots.run {_CLAIMS}"
_FROM_RUNS = f"{_RUN} FROM runs JOIN roots ON roots.run = runs.id {_CLAIMS}"
_ROOT = "parent = 0 AND place = 0 AND runs.key = ?"


def runs(
    sql: sqlite3.Connection, status: RunStatus | None, limit: int, after: str | None
) -> list[RunSummary]:
    """Return root runs, those that have begun last first."""
    conditions, values = ["TRUE"], list[Any]()
    if status is None:
        query, number = _FROM_ROOTS, "roots.run"
    else:
        query, number = _FROM_RUNS, "runs.id"
        conditions.append("parent = 0 AND applied IS NULL AND status IS ?")
        values.append(None if status == "running" else status)
    if after is not None:
        conditions.append(f"{number} < (SELECT id FROM runs WHERE {_ROOT})")  # noqa: S608
        values.append(column_of(after))
    query = f"{query} WHERE {' AND '.join(conditions)} ORDER BY {number} DESC LIMIT ?"
    return list(map(_summary, sql.execute(query, (*values, limit))))


def summary(sql: sqlite3.Connection, run_id: str) -> RunSummary | None:
    """Return one root run; None if it is not known."""
    found = sql.execute(f"{_FROM_RUNS} WHERE {_ROOT}", (column_of(run_id),)).fetchone()
    return None if found is None else _summary(found)


def _summary(row: Sequence[Any]) -> RunSummary:
    key, *said, forked_from = row[:9]
    claim = row[9:]
    is_held = claim[0] is not None and seconds_left(claim) > 0
    holder = str(Holder(*claim[1:5])) if is_held else ""
    return RunSummary(str(key_of(key)), *said, holder, forked_from)


def counts(sql: sqlite3.Connection, run: int) -> Mapping[ChildStatus, int]:
    """Count the children of a run by how they stand."""
    found = sql.execute(
        "SELECT coalesce(status, 'running'), count(*) FROM runs WHERE parent = ? GROUP BY status",
        (run,),
    )
    return {cast("ChildStatus", status): number for status, number in found}


FAILURES = "parent = ? AND status = 'failed' ORDER BY applied, runs.id LIMIT ? OFFSET ?"
"""Which children have failed, in the order in which they were applied; others first."""
