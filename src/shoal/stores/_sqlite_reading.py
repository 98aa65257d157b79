"""Reading from the file of an ``SQLiteStore``. Imports rows, claims and the layout."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, cast, final

from shoal._codec import Codec
from shoal._events import Status
from shoal._history import Entry
from shoal._ids import RunPath
from shoal._store import ChildRecord, Orphan, RunRecord

from ._rows import Begun, Child, History, Unpacker, chain, names_of, outlived
from ._sqlite_claims import seconds_left
from ._sqlite_file import column_of, key_of

_CHILD = (
    "step, visit, act, key, position, element, digest, status, applied, coalesce(used, 1), value, "
    "forms.form, change, own, reason, winner_act, winner_key, error, coalesce(attempts, 1), "
    "coalesce(elapsed, 0.0), coalesce(abandoned, 0), coalesce(crashes, 0)"
)
CHILDREN = (
    f"{_CHILD} FROM runs JOIN places ON places.id = place LEFT JOIN forms ON forms.id = runs.form"
)


@final
class Reader:
    """A connection, in one of the threads that read."""

    def __init__(self, sql: sqlite3.Connection, unpacker: Unpacker, codec: Codec) -> None:
        self._sql = sql
        self._unpacker = unpacker
        self._codec = codec

    def load(self, run_id: str) -> RunRecord | None:
        found = self._sql.execute(
            "SELECT application, version, first, after, visits, forked_from, forked_at, secret, "
            "status, coalesce(reason, '') FROM runs JOIN roots ON roots.run = runs.id "
            "WHERE parent = 0 AND place = 0 AND key = ?",
            (column_of(run_id),),
        ).fetchone()
        if found is None:
            return None
        return self._unpacker.run(Begun(*found[:8]), cast("Status | None", found[8]), found[9])

    def orphans(self) -> list[Orphan]:
        found = self._sql.execute(
            "SELECT key, application, version, secret, execution, host, boot, pid, started, lease, "
            "seen_at, seen_uptime FROM runs JOIN roots ON roots.run = runs.id "
            "JOIN claims ON claims.run_id = runs.key "
            "WHERE parent = 0 AND status IS NULL ORDER BY runs.id"
        )
        return [
            Orphan(run_id, name, version, names_of(secret))
            for run_id, name, version, secret, *claim in found
            if not seconds_left(claim)
        ]

    def history(self, path: RunPath, from_number: int) -> Sequence[Entry]:
        self._sql.execute("BEGIN")  # one moment for all that is looked at
        try:
            return self._history(path, from_number)
        finally:
            self._sql.execute("COMMIT")

    def _history(self, path: RunPath, from_number: int) -> Sequence[Entry]:
        run = self._find(path)
        if run is None:
            return ()
        rows = [
            History(*found)
            for found in self._sql.execute(
                "SELECT number, kind, step, data FROM history WHERE run = ? AND number >= ? "
                "ORDER BY number, kind <> 'update', id",
                (run, from_number),
            )
        ]
        if path.parent is not None:
            (child,) = self._children("runs.id = ?", (run,))
            own = [entry for is_parents, entry in outlived(child, self._codec) if not is_parents]
            rows += [entry for entry in own if entry.number >= from_number]
            rows.sort(key=lambda entry: (entry.number, entry.kind != "update"))
        applied = self._children(
            "parent = ? AND applied >= ? ORDER BY applied", (run, max(from_number, 0))
        )
        return self._unpacker.history(rows, applied)

    def children(self, path: RunPath, step: str | None, visit: int | None) -> list[ChildRecord]:
        run = self._find(path)
        if run is None:
            return []
        where = "parent = ? AND position IS NOT NULL"
        values: list[object] = [run]
        if step is not None:
            where += " AND place IN (SELECT id FROM places WHERE step = ?)"
            values.append(step)
        if visit is not None:
            where += " AND place IN (SELECT id FROM places WHERE visit = ?)"
            values.append(visit)
        found = self._children(f"{where} ORDER BY runs.id", values)
        return [self._unpacker.child(child) for child in found]

    def _children(self, where: str, values: Sequence[object]) -> Iterator[Child]:
        found = self._sql.execute(f"SELECT {CHILDREN} WHERE {where}", values)
        return map(child_of, found)

    def _find(self, path: RunPath) -> int | None:
        found: tuple[int] | None = self._sql.execute(
            "SELECT id FROM runs WHERE parent = 0 AND place = 0 AND key = ?",
            (column_of(path.root.id),),
        ).fetchone()
        for place, key in chain(path):
            if found is None:
                return None
            found = self._sql.execute(
                "SELECT runs.id FROM runs JOIN places ON places.id = place "
                "WHERE parent = ? AND step = ? AND visit = ? AND act = ? AND key = ?",
                (*found, *place, column_of(key)),
            ).fetchone()
        return None if found is None else found[0]


def child_of(row: Sequence[Any]) -> Child:
    step, visit, act, key, *rest = row
    winner = rest[12]
    if winner is not None:
        rest[12] = key_of(winner)
    return Child(step, visit, act, key_of(key), *rest)
