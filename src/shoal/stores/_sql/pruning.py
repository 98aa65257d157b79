"""Delete runs from the tables of a store, little by little.

A run is *condemned* in one small transaction, however large it is: its row leaves the root runs, so
no query finds it any more. Its rows and those of its descendants are *swept* away in further
transactions of a bounded size, so that no save waits long. If that is interrupted, the next call
that prunes continues.

Invariants:
- A claimed run is never condemned; the same transaction checks that.
- Only rows of runs that are not claimed are deleted. SQLite may use ids of deleted rows again; no
  process remembers old ones, because ``KnownRows`` is dropped with the lease.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from shoal.stores._protocol import RunStatus

from .dialect import Connection, Dialect

CONDEMNED = -1
"""The ``parent`` of a condemned run. No run has this id, so nothing finds it as a child."""

_OLD = (
    "SELECT {key}, status, coalesce(roots.ended_at, seen_at, began_at), {held} "
    "FROM roots JOIN runs ON runs.id = roots.run LEFT JOIN claims ON claims.run_id = runs.key "
    "WHERE "
)
_ROOT = "parent = 0 AND place = 0 AND runs.key = ?"


def old_runs(
    sql: Connection, dialect: Dialect, until: float, statuses: Collection[RunStatus]
) -> list[str]:
    """Return the ids of unclaimed runs with one of the statuses that ended before a time.

    A run without an end counts from its last sign of life.
    """
    found = _old(sql, dialect, "coalesce(roots.ended_at, seen_at, began_at) <= ?", until)
    return [dialect.run_id_of(row[0]) for row in found if _is_free(dialect, row, statuses)]


def condemn_old(
    sql: Connection,
    dialect: Dialect,
    run_ids: Iterable[str],
    until: float,
    statuses: Collection[RunStatus],
) -> int:
    """Condemn those of some runs that are still old and unclaimed, and return their number."""
    count = 0
    for run_id in run_ids:
        for row in _old(sql, dialect, _ROOT, dialect.index_of(run_id)):
            if row[2] <= until and _is_free(dialect, row, statuses):
                condemn(sql, dialect, run_id)
                count += 1
    return count


def _old(sql: Connection, dialect: Dialect, where: str, value: object) -> list[Sequence[Any]]:
    query = _OLD.format(key=dialect.key, held=dialect.lease_columns)
    return sql.execute(f"{query}{where}", (value,)).fetchall()


def _is_free(dialect: Dialect, row: Sequence[Any], statuses: Collection[RunStatus]) -> bool:
    _, status, _, *held = row
    is_held = held[0] is not None and dialect.lease_state_of(held).seconds_left > 0
    return (status or "running") in statuses and not is_held


def condemn(sql: Connection, dialect: Dialect, run_id: str) -> None:
    """Condemn a root run, so that no query finds it any more; an unknown one is no error."""
    key = dialect.index_of(run_id)
    sql.execute("DELETE FROM claims WHERE run_id = ?", (key,))
    run = sql.execute(f"SELECT id FROM runs WHERE {_ROOT}", (key,)).fetchone()
    if run is None:
        return
    _condemn(sql, [run])
    for table in ("roots", "reports", "commands"):
        sql.execute(f"DELETE FROM {table} WHERE run = ?", run)


def _condemn(sql: Connection, runs: Iterable[tuple[int]]) -> None:
    sql.executemany(
        f"UPDATE runs SET parent = {CONDEMNED}, place = 0, key = CAST(id AS TEXT) WHERE id = ?",
        runs,
    )


def sweep(sql: Connection, limit: int) -> bool:
    """Delete about ``limit`` condemned rows. Return whether there may be more."""
    while limit > 0:
        run: tuple[int] | None = sql.execute(
            "SELECT id FROM runs WHERE parent = ? LIMIT 1", (CONDEMNED,)
        ).fetchone()
        if run is None:
            return False
        limit -= _sweep(sql, run, limit)
    return True


def _sweep(sql: Connection, run: tuple[int], limit: int) -> int:
    """Delete rows below a run, and the run itself if none are left. Return the number of rows.

    Children that have rows below themselves are condemned, and swept by a later call.
    """
    history = sql.execute(
        "DELETE FROM history WHERE id IN (SELECT id FROM history WHERE run = ? LIMIT ?)",
        (*run, limit),
    ).rowcount
    # A child that has rows in ``saves`` has children, too: it is swept later, like this run.
    saves = sql.execute(
        "DELETE FROM saves WHERE run = ? AND number IN "
        "(SELECT number FROM saves WHERE run = ? LIMIT ?)",
        (*run, *run, limit - history),
    ).rowcount
    above = history + saves
    children = sql.execute(
        "SELECT id, EXISTS (SELECT 1 FROM runs WHERE parent = child.id) "
        "OR EXISTS (SELECT 1 FROM history WHERE run = child.id) "
        "FROM runs AS child WHERE parent = ? LIMIT ?",
        (*run, limit - above),
    ).fetchall()
    _condemn(sql, [(child,) for child, has_more in children if has_more])
    bare = [(child,) for child, has_more in children if not has_more]
    if above + len(children) < limit:  # the limits were not reached, so nothing is left below
        bare.append(run)
    sql.executemany("DELETE FROM runs WHERE id = ?", bare)
    return above + len(children) + 1
