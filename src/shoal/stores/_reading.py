"""Reading from the tables of a store. Imports rows, and in what databases differ."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, cast, final

from shoal._codec import Codec
from shoal._errors import NotDecodable
from shoal._events import Status
from shoal._history import Entry
from shoal._ids import RunPath
from shoal._state import Operation
from shoal._store import (
    ChildRecord,
    ChildStatus,
    FailedChild,
    Orphan,
    RunRecord,
    RunStatus,
    RunSummary,
)

from . import _browsing, _cached, _pruning
from ._dialect import Connection, Dialect
from ._rows import Begun, Child, History, Unpacker, chain, names_of, outlived

_CHILDREN = (
    "SELECT step, visit, act, {key}, position, element, digest, status, applied, "
    "coalesce(used, 1), value, forms.form, change, own, reason, winner_act, winner_key, error, "
    "coalesce(attempts, 1), coalesce(elapsed, 0.0), coalesce(abandoned, 0), coalesce(crashes, 0) "
    "FROM runs JOIN places ON places.id = place LEFT JOIN forms ON forms.id = runs.form WHERE "
)


_KEY, _WINNER = Child._fields.index("key"), Child._fields.index("winner_key")


def children_where(sql: Connection, dialect: Dialect, where: str, *values: Any) -> Iterator[Child]:
    """Return the children of which something holds."""
    key_of = dialect.key_of
    for row in sql.execute(f"{_CHILDREN.format(key=dialect.key)}{where}", values):
        child = list(row)
        child[_KEY] = key_of(child[_KEY])
        if child[_WINNER] is not None:
            child[_WINNER] = key_of(child[_WINNER])
        yield Child._make(child)


@final
class Reader:
    """What is asked of the tables, by one of the threads that read, at one moment of them."""

    def __init__(self, sql: Connection, dialect: Dialect, unpacker: Unpacker, codec: Codec) -> None:
        self._sql = sql
        self._dialect = dialect
        self._unpacker = unpacker
        self._codec = codec

    def load(self, run_id: str) -> RunRecord | None:
        found = self._sql.execute(
            "SELECT application, version, first, after, visits, forked_from, forked_at, secret, "
            "status, coalesce(reason, '') FROM runs JOIN roots ON roots.run = runs.id "
            "WHERE parent = 0 AND place = 0 AND key = ?",
            (self._dialect.index_of(run_id),),
        ).fetchone()
        if found is None:
            return None
        begun = Begun(*found[:8])
        if begun.forked_from is not None:
            begun = begun._replace(forked_from=self._dialect.run_id_of(begun.forked_from))
        return self._unpacker.run(begun, cast("Status | None", found[8]), found[9])

    def orphans(self) -> list[Orphan]:
        run_id_of, held_of = self._dialect.run_id_of, self._dialect.held_of
        found = self._sql.execute(
            f"SELECT {self._dialect.key}, application, version, secret, {self._dialect.held} "
            "FROM runs JOIN roots ON roots.run = runs.id JOIN claims ON claims.run_id = runs.key "
            "WHERE parent = 0 AND status IS NULL ORDER BY runs.id"
        )
        return [
            Orphan(run_id_of(key), application, version, names_of(secret))
            for key, application, version, secret, *held in found
            if not held_of(held).seconds_left
        ]

    def history(self, path: RunPath, from_number: int) -> Sequence[Entry]:
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
            (child,) = self._children("runs.id = ?", run)
            own = [entry for is_parents, entry in outlived(child, self._codec) if not is_parents]
            rows += [entry for entry in own if entry.number >= from_number]
            rows.sort(key=lambda entry: (entry.number, entry.kind != "update"))
        applied = self._children(
            "parent = ? AND applied >= ? ORDER BY applied", run, max(from_number, 0)
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
        found = self._children(f"{where} ORDER BY runs.id", *values)
        return [self._unpacker.child(child) for child in found]

    def recall(self, key: str) -> Sequence[Operation] | None:
        text = _cached.recall(self._sql, key, self._dialect.now(self._sql))
        try:
            return None if text is None else self._unpacker.result(text)
        except NotDecodable:  # it is as good as none, and will be replaced
            return None

    def old_runs(self, until: float, statuses: Collection[RunStatus]) -> list[str]:
        return _pruning.old_runs(self._sql, self._dialect, until, statuses)

    def runs(self, status: RunStatus | None, limit: int, after: str | None) -> list[RunSummary]:
        return _browsing.runs(self._sql, self._dialect, status, limit, after)

    def summary(self, run_id: str) -> RunSummary | None:
        return _browsing.summary(self._sql, self._dialect, run_id)

    def counts(self, path: RunPath) -> Mapping[ChildStatus, int]:
        run = self._find(path)
        return {} if run is None else _browsing.counts(self._sql, run)

    def failures(self, path: RunPath, limit: int, skip: int) -> list[FailedChild]:
        run = self._find(path)
        if run is None:
            return []
        failed = self._children(_browsing.FAILURES, run, limit, skip)
        return [self._unpacker.failure(child) for child in failed]

    def _children(self, where: str, *values: object) -> Iterator[Child]:
        return children_where(self._sql, self._dialect, where, *values)

    def _find(self, path: RunPath) -> int | None:
        found: tuple[int] | None = self._sql.execute(
            "SELECT id FROM runs WHERE parent = 0 AND place = 0 AND key = ?",
            (self._dialect.index_of(path.root.id),),
        ).fetchone()
        for place, key in chain(path):
            if found is None:
                return None
            found = self._sql.execute(
                "SELECT runs.id FROM runs JOIN places ON places.id = place "
                "WHERE parent = ? AND step = ? AND visit = ? AND act = ? AND key = ?",
                (*found, *place, self._dialect.index_of(key)),
            ).fetchone()
        return None if found is None else found[0]
