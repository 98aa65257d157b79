"""Runs deleted from the tables of a store, little by little. Imports in what databases differ.

A run is *condemned* in one small transaction, whatever has become of it: its row leaves the root
runs, so nobody finds it any more. Its rows and those of its descendants are *swept* away in further
ones, of a bounded size each, so that no save waits long. Where that is interrupted, whoever prunes
next goes on.

Invariants:
- What somebody has claimed is not condemned: that is looked at in the same transaction.
- Only rows of runs that nobody has claimed are deleted, and what is remembered of rows goes with a
  claim: their numbers come up again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from shoal.stores._protocol import RunStatus

from .dialect import Connection, Dialect

CONDEMNED = -1
"""What stands instead of a parent."""

_OLD = (
    "SELECT {key}, status, coalesce(ended_at, seen_at, began_at), {held} "
    "FROM roots JOIN runs ON runs.id = roots.run LEFT JOIN claims ON claims.run_id = runs.key "
    "WHERE "
)
_ROOT = "parent = 0 AND place = 0 AND runs.key = ?"


def old_runs(
    sql: Connection, dialect: Dialect, until: float, statuses: Collection[RunStatus]
) -> list[str]:
    """Return the ids of runs that rest since a time, and stand so; those that nobody has claimed.

    One that has no end rests since its last sign of life.
    """
    found = _old(sql, dialect, "coalesce(ended_at, seen_at, began_at) <= ?", until)
    return [dialect.run_id_of(row[0]) for row in found if _is_free(dialect, row, statuses)]


def condemn_old(
    sql: Connection,
    dialect: Dialect,
    run_ids: Iterable[str],
    until: float,
    statuses: Collection[RunStatus],
) -> int:
    """Condemn those of some runs that still rest, and return how many those are."""
    count = 0
    for run_id in run_ids:
        for row in _old(sql, dialect, _ROOT, dialect.index_of(run_id)):
            if row[2] <= until and _is_free(dialect, row, statuses):
                condemn(sql, dialect, run_id)
                count += 1
    return count


def _old(sql: Connection, dialect: Dialect, where: str, value: object) -> list[Sequence[Any]]:
    query = _OLD.format(key=dialect.key, held=dialect.held)
    return sql.execute(f"{query}{where}", (value,)).fetchall()


def _is_free(dialect: Dialect, row: Sequence[Any], statuses: Collection[RunStatus]) -> bool:
    _, status, _, *held = row
    is_held = held[0] is not None and dialect.held_of(held).seconds_left > 0
    return (status or "running") in statuses and not is_held


def condemn(sql: Connection, dialect: Dialect, run_id: str) -> None:
    """Have a root run found by nobody any more; one that isn't known is no error."""
    key = dialect.index_of(run_id)
    sql.execute("DELETE FROM claims WHERE run_id = ?", (key,))
    run = sql.execute(f"SELECT id FROM runs WHERE {_ROOT}", (key,)).fetchone()
    if run is None:
        return
    _condemn(sql, [run])
    sql.execute("DELETE FROM roots WHERE run = ?", run)


def _condemn(sql: Connection, runs: Iterable[tuple[int]]) -> None:
    sql.executemany(
        f"UPDATE runs SET parent = {CONDEMNED}, place = 0, key = CAST(id AS TEXT) WHERE id = ?",
        runs,
    )


def sweep(sql: Connection, limit: int) -> bool:
    """Delete some of what is condemned: about so many rows. Return whether there may be more."""
    while limit > 0:
        run: tuple[int] | None = sql.execute(
            "SELECT id FROM runs WHERE parent = ? LIMIT 1", (CONDEMNED,)
        ).fetchone()
        if run is None:
            return False
        limit -= _sweep(sql, run, limit)
    return True


def _sweep(sql: Connection, run: tuple[int], limit: int) -> int:
    """Delete some of what is below a run; the run itself, if nothing was left. Count the rows."""
    history = sql.execute(
        "DELETE FROM history WHERE id IN (SELECT id FROM history WHERE run = ? LIMIT ?)",
        (*run, limit),
    ).rowcount
    children = sql.execute(
        "SELECT id, EXISTS (SELECT 1 FROM runs WHERE parent = child.id) "
        "OR EXISTS (SELECT 1 FROM history WHERE run = child.id) "
        "FROM runs AS child WHERE parent = ? LIMIT ?",
        (*run, limit - history),
    ).fetchall()
    _condemn(sql, [(child,) for child, has_more in children if has_more])
    bare = [(child,) for child, has_more in children if not has_more]
    if history + len(children) < limit:  # there was room for more, so there is none
        bare.append(run)
    sql.executemany("DELETE FROM runs WHERE id = ?", bare)
    return history + len(children) + 1
