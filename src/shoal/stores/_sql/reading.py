"""Read from the tables of a store."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import TypeVar, cast, final

from shoal._errors.exceptions import NotDecodable
from shoal._events.events import Decision, Status
from shoal._events.identity import RunPath
from shoal._state.state import Operation
from shoal.stores._codec.codec import Codec
from shoal.stores._history import Entry, Steered, is_resting
from shoal.stores._protocol import (
    ChildRecord,
    ChildStatus,
    DoneChild,
    FailedChild,
    Orphan,
    RunRecord,
    RunStatus,
    RunSummary,
)
from shoal.stores._watching import StoredReport

from . import browsing as _browsing
from . import pruning as _pruning
from . import reporting as _reporting
from . import results as _cached
from .children import children_where
from .dialect import Connection, Dialect
from .inspecting import Inspector
from .rows import Applied, Begun, Child, History, names_of
from .unpacking import Unpacker, outlived

T = TypeVar("T")

_APPLIED = (
    "SELECT step, act, {key}, position, applied, value, forms.form, change "
    "FROM runs JOIN places ON places.id = place LEFT JOIN forms ON forms.id = runs.form WHERE "
)
_DONE = "position IS NOT NULL AND status = 'succeeded' AND coalesce(used, 1) = 1"
_NOT_DONE = (
    "position IS NOT NULL "
    "AND (status IS NULL OR status <> 'succeeded' OR applied IS NULL OR used = 0)"
)
_STATUSES = ("succeeded", "failed", "cancelled", "skipped", "halted", None)
_IN_ORDER = "ORDER BY applied NULLS FIRST"  # the order of ``runs_by_status`` in both databases

PART = 2_000
"""The most rows of a part. Asking for a part takes some 200 µs; reading and decoding one of this
size takes some 10 ms and 2 MB."""
CHARACTERS = 4_000_000
"""The characters of a part, approximately: a part of large rows has fewer of them."""


@final
class Reader:
    """Answers the queries of one reading thread within a transaction, so as of one moment."""

    def __init__(self, sql: Connection, dialect: Dialect, unpacker: Unpacker, codec: Codec) -> None:
        self._sql = sql
        self._dialect = dialect
        self._unpacker = unpacker
        self._codec = codec

    def load(self, run_id: str) -> RunRecord | None:
        found = self._sql.execute(
            "SELECT application, version, first, after, visits, forked_from, forked_at, secret, "
            "spawned_by, spawner, owner, priority, status, coalesce(reason, '') "
            "FROM runs JOIN roots ON roots.run = runs.id "
            "WHERE parent = 0 AND place = 0 AND key = ?",
            (self._dialect.index_of(run_id),),
        ).fetchone()
        if found is None:
            return None
        begun = Begun(*found[:12])
        if begun.forked_from is not None:
            begun = begun._replace(forked_from=self._dialect.run_id_of(begun.forked_from))
        return self._unpacker.run(begun, cast("Status | None", found[12]), found[13])

    def orphans(self) -> list[Orphan]:
        run_id_of, lease_state_of = self._dialect.run_id_of, self._dialect.lease_state_of
        found = self._sql.execute(
            f"SELECT {self._dialect.key}, application, version, secret, priority, runs.id, "
            f"{self._dialect.lease_columns} FROM runs "
            "JOIN roots ON roots.run = runs.id JOIN claims ON claims.run_id = runs.key "
            "WHERE parent = 0 AND status IS NULL ORDER BY runs.id"
        ).fetchall()
        return [
            Orphan(
                run_id_of(key),
                application,
                version,
                names_of(secret),
                is_paused=self._rests(run),
                priority=priority,
            )
            for key, application, version, secret, priority, run, *held in found
            if not lease_state_of(held).seconds_left
        ]

    def _rests(self, run: int) -> bool:
        """Return whether a root run is paused, and only waits to be resumed."""
        found = self._sql.execute(
            "SELECT data FROM history WHERE run = ? AND kind = 'steered' ORDER BY number, id",
            (run,),
        )
        return is_resting(Steered(*json.loads(data)) for (data,) in found)

    def history(self, path: RunPath, from_number: int) -> Sequence[Entry]:
        entries: list[Entry] = []
        number: int | None = from_number
        while number is not None:
            part, number = self.history_part(path, number)
            entries += part
        return entries

    def history_part(self, path: RunPath, from_number: int) -> tuple[Sequence[Entry], int | None]:
        run = self._find(path)
        if run is None:
            return (), None
        # A part ends with the lowest number up to which both sources, the entries of ``history``
        # and the rows of applied children, are complete.
        rows, last = self._entries(run, from_number)
        applied: list[Applied] = []
        for status in _STATUSES:
            found, is_cut_off = self._applied(run, status, from_number, last)
            if is_cut_off:
                last = min(last, cast("int", found[-1].applied))
            applied += found
        if path.parent is not None:
            (child,) = self._children("runs.id = ?", run)
            rows += [entry for of_parent, entry in outlived(child, self._codec) if not of_parent]
            rows.sort(key=lambda entry: (entry.number, entry.kind != "update"))
        rows = [row for row in rows if from_number <= row.number <= last]
        applied = [child for child in applied if cast("int", child.applied) <= last]
        applied.sort(key=lambda child: cast("int", child.applied))
        entries = self._unpacker.history(rows, applied)
        return entries, None if last == inf else int(last) + 1

    def _entries(self, run: int, from_number: int) -> tuple[list[History], float]:
        """Return entries from a number on, and the last number whose entries are complete."""
        select = "SELECT number, kind, step, data FROM history WHERE run = ? AND number"
        order = "ORDER BY number, kind <> 'update', id"

        def found(where: str, *values: int) -> Iterator[History]:
            for row in self._sql.execute(f"{select} {where}", (run, *values)):
                yield History(*row)

        rows, is_cut_off = _some(
            found(f">= ? {order} LIMIT ?", from_number, PART), lambda row: len(row.data)
        )
        if not is_cut_off:
            return rows, inf
        first, cut_off = rows[0].number, rows[-1].number
        if first == cut_off:  # more entries of one number than a part has: read all of that number
            return list(found(f"= ? {order}", first)), first
        return rows, cut_off - 1

    def _applied(
        self, run: int, status: str | None, from_number: int, last: float
    ) -> tuple[list[Applied], bool]:
        """Return children with that status, applied by updates from a number on.

        Also returns whether there may be more of them.
        """
        upto = "" if last == inf else f"AND applied <= {int(last)} "
        where = f"parent = ? AND status {'IS NULL' if status is None else '= ?'} AND applied >= ? "
        values = (run, *(() if status is None else (status,)), max(from_number, 0), PART)
        query = f"{_APPLIED.format(key=self._dialect.key)}{where}{upto}{_IN_ORDER} LIMIT ?"
        key_of = self._dialect.key_of
        found = (
            Applied(step, act, key_of(key), position, applied, value, form, change)
            for step, act, key, position, applied, value, form, change in self._sql.execute(
                query, values
            )
        )
        return _some(found, lambda row: len(row.value or "") + len(row.change or ""))

    def children(self, path: RunPath, step: str | None, visit: int | None) -> list[ChildRecord]:
        return self._records(path, step, visit, "position IS NOT NULL")

    def not_done(self, path: RunPath, step: str | None, visit: int | None) -> list[ChildRecord]:
        return self._records(path, step, visit, _NOT_DONE)

    def _records(
        self, path: RunPath, step: str | None, visit: int | None, which: str
    ) -> list[ChildRecord]:
        run = self._find(path)
        if run is None:
            return []
        where, values = _of_step(step, visit)
        found = self._children(f"parent = ? AND {which}{where} ORDER BY runs.id", run, *values)
        return [self._unpacker.child(child) for child in found]

    def done(self, path: RunPath) -> dict[tuple[str, int], int]:
        run = self._find(path)
        found = self._sql.execute(
            "SELECT step, visit, sum(many) FROM places JOIN (SELECT place, count(*) AS many "
            f"FROM runs WHERE parent = ? AND applied IS NOT NULL AND {_DONE} GROUP BY place) "
            "AS counted ON places.id = place GROUP BY step, visit",
            (-1 if run is None else run,),
        )
        return {(step, visit): int(count) for step, visit, count in found}

    def done_part(
        self, path: RunPath, step: str, visit: int | None, after: int
    ) -> tuple[Sequence[DoneChild], int | None]:
        run = self._find(path)
        if run is None:
            return (), None
        where, values = _of_step(step, visit)
        key_of = self._dialect.key_of
        found = self._sql.execute(
            f"SELECT step, visit, act, {self._dialect.key}, position, digest, applied, "
            "coalesce(elapsed, 0.0) FROM runs JOIN places ON places.id = place "
            f"WHERE parent = ? AND {_DONE} AND applied > ?{where} {_IN_ORDER} LIMIT ?",
            (run, after, *values, PART),
        )
        children = [
            DoneChild(step, visit, act, key_of(key), position, digest, applied, elapsed)
            for step, visit, act, key, position, digest, applied, elapsed in found
        ]
        return children, children[-1].applied if len(children) == PART else None

    def recall(self, key: str) -> Sequence[Operation] | None:
        text = _cached.recall(self._sql, key, self._dialect.now(self._sql))
        try:
            return None if text is None else self._unpacker.result(text)
        except NotDecodable:  # the types are gone: treat it as missing; the action replaces it
            return None

    def old_runs(self, until: float, statuses: Collection[RunStatus]) -> list[str]:
        return _pruning.old_runs(self._sql, self._dialect, until, statuses)

    def runs(
        self, status: RunStatus | None, limit: int, after: str | None, owner: str | None
    ) -> list[RunSummary]:
        return _browsing.runs(self._sql, self._dialect, status, limit, after, owner=owner)

    def summary(self, run_id: str) -> RunSummary | None:
        return _browsing.summary(self._sql, self._dialect, run_id)

    def counts(self, path: RunPath) -> Mapping[ChildStatus, int]:
        run = self._find(path)
        return {} if run is None else _browsing.counts(self._sql, run)

    def failures(self, path: RunPath, limit: int, skip: int) -> list[FailedChild]:
        run = self._find(path)
        if run is None:
            return []
        found = self._children(_browsing.FAILURES, run, limit, skip)
        failed = [self._unpacker.failure(child) for child in found]
        decided = self._decided_visits(run) if failed else ()
        return [one._replace(lost=(one.step, one.visit) in decided) for one in failed]

    def _decided_visits(self, run: int) -> set[tuple[str, int]]:
        """Return the visits of a run's steps in which a race was decided.

        A decision is saved without its visit. The winner is applied together with the decision, or
        later if its first item decided the race. So the visit is that of the winner's row that was
        applied next. A winner by its first item that has failed since has decided nothing.
        """
        rows = self._sql.execute(
            "SELECT number, kind, step, data FROM history WHERE run = ? AND kind = 'decision'",
            (run,),
        ).fetchall()
        visits = set[tuple[str, int]]()
        for row in rows:
            (entry,) = self._unpacker.history([History._make(row)], ())
            assert isinstance(entry, Decision), "the query asks for decisions"
            act, key = entry.winner
            found = self._sql.execute(
                "SELECT visit, applied IS NULL, status FROM runs JOIN places ON places.id = place "
                "WHERE parent = ? AND step = ? AND act = ? AND key = ? "
                "AND (applied >= ? OR applied IS NULL) ORDER BY applied IS NULL, visit LIMIT 1",
                (run, entry.step, act, self._dialect.index_of(key), row[0]),
            ).fetchone()
            if found is not None and not (found[1] and found[2] == "failed"):
                visits.add((entry.step, found[0]))
        return visits

    def _children(self, where: str, *values: object) -> Iterator[Child]:
        return children_where(self._sql, self._dialect, where, *values)

    def _find(self, path: RunPath) -> int | None:
        return _browsing.find(self._sql, self._dialect, path)

    @property
    def sql(self) -> Connection:
        """The connection, for what only one database has."""
        return self._sql

    @property
    def inspector(self) -> Inspector:
        """Answers the questions of watchers, as of the same moment."""
        return Inspector(self._sql, self._dialect, self._codec, self._decided_visits)

    def reported(self, run_id: str) -> StoredReport | None:
        return _reporting.reported(self._sql, self._dialect, run_id)


def _of_step(step: str | None, visit: int | None) -> tuple[str, list[object]]:
    """Return an SQL condition for the children of a step or visit, and its values."""
    conditions = {"step": step, "visit": visit}
    wanted = {name: value for name, value in conditions.items() if value is not None}
    where = "".join(f" AND place IN (SELECT id FROM places WHERE {name} = ?)" for name in wanted)
    return where, list(wanted.values())


def _some(rows: Iterable[T], size_of: Callable[[T], int]) -> tuple[list[T], bool]:
    """Take as many rows as a part may have; also return whether there may be more."""
    some: list[T] = []
    left = CHARACTERS
    for row in rows:
        some.append(row)
        left -= size_of(row)
        if left < 0:
            return some, True
    return some, len(some) >= PART
