"""Read the history of a run as it is stored, for watchers.

Invariants:
- No value of a user is decoded. An update that follows from the value of the child that it applies
  is put together as text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from typing import cast

from shoal._events.identity import RunPath
from shoal.stores._watching import EntryKind, Row, StoredEntry

from .reading import CHARACTERS, Reader, children_where
from .unpacking import outlived

_STATUSES = ("succeeded", "failed", "cancelled", "skipped", "halted", None)
_AT_ONCE = 500
"""The most rows that one query names."""


def entries(
    reader: Reader, path: RunPath, kinds: Collection[EntryKind] | None, from_number: int, limit: int
) -> tuple[Sequence[StoredEntry], int | None]:
    """Return a part of a run's history; see ``Inspects.entries``."""
    run = reader.find(path)
    if run is None:
        return (), None
    wants_updates = kinds is None or "update" in kinds
    found = _noted(reader, run, kinds, from_number, limit)
    if wants_updates:
        found += _applying(reader, path, run, from_number, limit)
        if path.parent is not None:
            (child,) = children_where(reader.sql, reader.dialect, "runs.id = ?", run)
            own = outlived(child, reader.codec)
            found += [
                StoredEntry(row.number, "update", row.step, row.data, child.ended_at)
                for of_parent, row in own
                if not of_parent and row.number >= from_number
            ]
    # Sorting is stable: entries of one number that are no updates stay in the order of their saves.
    found.sort(key=lambda entry: (entry.number, entry.kind != "update"))
    part, further = _cut(found, limit)
    return _timed(reader, path, part), further


def _noted(
    reader: Reader, run: int, kinds: Collection[EntryKind] | None, from_number: int, limit: int
) -> list[StoredEntry]:
    """Return entries that ``history`` has."""
    where, values = "", [*(kinds or ())]
    if kinds is not None:
        where = f"AND kind IN ({', '.join('?' * len(values))}) "
    query = "SELECT number, kind, step, data, at FROM history WHERE run = ? AND number"
    order = "ORDER BY number, kind <> 'update', id"
    rows = reader.sql.execute(
        f"{query} >= ? {where}{order} LIMIT ?", (run, from_number, *values, limit + 1)
    ).fetchall()
    if len(rows) > limit and rows[0][0] == rows[-1][0]:  # all of one number are in one part
        number = rows[0][0]
        rows = reader.sql.execute(f"{query} = ? {where}{order}", (run, number, *values)).fetchall()
        rows += reader.sql.execute(
            f"{query} > ? {where}{order} LIMIT 1", (run, number, *values)
        ).fetchall()
    return [
        StoredEntry(number, cast("EntryKind", kind), step, data, at)
        for number, kind, step, data, at in rows
    ]


def _applying(
    reader: Reader, path: RunPath, run: int, from_number: int, limit: int
) -> list[StoredEntry]:
    """Return the updates that applied children: they are in the rows of these."""
    numbered = list[tuple[int, int]]()
    for status in _STATUSES:  # the index has children by status and then by update
        where = "status IS NULL" if status is None else "status = ?"
        values = (run, *(() if status is None else (status,)), from_number, limit + 1)
        numbered += reader.sql.execute(
            f"SELECT applied, id FROM runs WHERE parent = ? AND {where} AND applied >= ? "
            "ORDER BY applied LIMIT ?",
            values,
        ).fetchall()
    numbered = sorted(numbered)[: limit + 1]
    ids = [child for _, child in numbered]
    rows: dict[int | None, Row] = {row.applied: row for row in reader.inspector.children(path, ids)}
    found = list[StoredEntry]()
    for at in range(0, len(ids), _AT_ONCE):
        some = ids[at : at + _AT_ONCE]
        where = f"runs.id IN ({', '.join('?' * len(some))})"
        for child in children_where(reader.sql, reader.dialect, where, *some):
            found += [
                StoredEntry(row.number, "update", row.step, row.data, None, rows.get(row.number))
                for of_parent, row in outlived(child, reader.codec)
                if of_parent
            ]
    return found


def _cut(found: Sequence[StoredEntry], limit: int) -> tuple[Sequence[StoredEntry], int | None]:
    """Return the first entries, all of each number, and the number of the first one left out."""
    size, last = 0, -1
    for at, entry in enumerate(found):
        if entry.number > last and at and (at >= limit or size > CHARACTERS):
            return found[:at], entry.number
        size += len(entry.data)
        last = entry.number
    return found, None


def _timed(reader: Reader, path: RunPath, found: Sequence[StoredEntry]) -> Sequence[StoredEntry]:
    """Add the times of updates that applied children: those of their saves."""
    untimed = [entry.number for entry in found if entry.at is None and entry.kind == "update"]
    if not untimed:
        return found
    span = untimed[-1] - untimed[0] + 2  # there is a save for each update, or fewer
    times = reader.inspector.times(path, untimed[0] - 1, span)
    numbers = [number for number, _ in times]
    timed = list[StoredEntry]()
    for entry in found:
        at = entry.at
        if at is None and entry.kind == "update":
            index = bisect_left(numbers, entry.number)
            at = times[index][1] if index < len(times) else None
        timed.append(entry._replace(at=at))
    return timed
