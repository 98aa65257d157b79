"""List and count the runs of a store.

Invariants:
- Each query reads an index in its order, so it takes time in proportion to the rows it returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from shoal._events.identity import RunPath
from shoal.stores._protocol import ChildStatus, RunStatus, RunSummary

from .dialect import Connection, Dialect
from .rows import chain, spawner_of

_RUN = (
    "SELECT {key}, application, version, coalesce(status, 'running'), began_at, roots.ended_at, "
    "coalesce(reason, ''), coalesce(roots.error, ''), forked_from, spawned_by, "
    "coalesce(roots.owner, ''), priority, "
    "{held} "
)
_CLAIMS = "LEFT JOIN claims ON claims.run_id = runs.key"
_FROM_ROOTS = f"{_RUN}FROM roots JOIN runs ON runs.id = roots.run {_CLAIMS}"
_FROM_RUNS = f"{_RUN}FROM runs JOIN roots ON roots.run = runs.id {_CLAIMS}"
_ROOT = "parent = 0 AND place = 0 AND runs.key = ?"


def runs(
    sql: Connection,
    dialect: Dialect,
    status: RunStatus | None,
    limit: int,
    after: str | None,
    *,
    owner: str | None = None,
) -> list[RunSummary]:
    """Return root runs, the ones that began last first."""
    # The order is that of ``runs.id``. Without a status, the index of ``roots`` has it; with one,
    # ``runs_by_status`` has.
    query, number = (_FROM_ROOTS, "roots.run") if status is None else (_FROM_RUNS, "runs.id")
    if owner is not None:  # ``roots_by_owner`` has the order, and a status is looked up for each
        query, number = _FROM_ROOTS, "roots.run"
    conditions, values = ["TRUE"], list[Any]()
    if status == "running":
        conditions.append("parent = 0 AND status IS NULL AND applied IS NULL")
    elif status is not None:
        conditions.append("parent = 0 AND status = ? AND applied IS NULL")
        values.append(status)
    if owner is not None:
        conditions.append("roots.owner = ?")
        values.append(owner)
    if after is not None:
        conditions.append(f"{number} < (SELECT id FROM runs WHERE {_ROOT})")
        values.append(dialect.index_of(after))
    where = f"{' AND '.join(conditions)} ORDER BY {number} DESC LIMIT ?"
    return _summaries(sql, dialect, query, where, *values, limit)


def summary(sql: Connection, dialect: Dialect, run_id: str) -> RunSummary | None:
    """Return one root run; None if it is not known."""
    found = _summaries(sql, dialect, _FROM_RUNS, _ROOT, dialect.index_of(run_id))
    return found[0] if found else None


def spawned(sql: Connection, dialect: Dialect, spawner: object, limit: int) -> list[RunSummary]:
    """Return root runs that were started by the run with that id, the newest first."""
    where = "roots.spawner = ? ORDER BY roots.run DESC LIMIT ?"
    return _summaries(sql, dialect, _FROM_ROOTS, where, spawner, limit)


def find(sql: Connection, dialect: Dialect, path: RunPath) -> int | None:
    """Return the id of a run's row; None if it has none."""
    found: tuple[int] | None = sql.execute(
        "SELECT id FROM runs WHERE parent = 0 AND place = 0 AND key = ?",
        (dialect.index_of(path.root.id),),
    ).fetchone()
    for place, key in chain(path):
        if found is None:
            return None
        found = sql.execute(
            "SELECT runs.id FROM runs JOIN places ON places.id = place "
            "WHERE parent = ? AND step = ? AND visit = ? AND act = ? AND key = ?",
            (*found, *place, dialect.index_of(key)),
        ).fetchone()
    return None if found is None else found[0]


def _summaries(
    sql: Connection, dialect: Dialect, query: str, where: str, *values: object
) -> list[RunSummary]:
    query = query.format(key=dialect.key, held=dialect.lease_columns)
    summaries: list[RunSummary] = []
    for row in sql.execute(f"{query} WHERE {where}", values):
        key, application, version, status, began_at, ended_at, reason, error, *more = row
        forked, spawned_by, owner, priority, *held = more
        lease = None if held[0] is None else dialect.lease_state_of(held)
        summaries.append(
            RunSummary(
                run_id=dialect.run_id_of(key),
                application=application,
                version=version,
                status=status,
                began_at=began_at,
                ended_at=ended_at,
                reason=reason,
                error=error,
                holder=str(lease.holder) if lease is not None and lease.seconds_left else "",
                forked_from=None if forked is None else dialect.run_id_of(forked),
                spawned_by=None if spawned_by is None else spawner_of(spawned_by),
                owner=owner,
                priority=priority,
            )
        )
    return summaries


def counts(sql: Connection, run: int) -> Mapping[ChildStatus, int]:
    """Count the children of a run by status."""
    found = sql.execute(
        "SELECT coalesce(status, 'running'), count(*) FROM runs WHERE parent = ? GROUP BY status",
        (run,),
    )
    return {cast("ChildStatus", status): number for status, number in found}


FAILURES = "parent = ? AND status = 'failed' ORDER BY applied NULLS FIRST, runs.id LIMIT ? OFFSET ?"
"""SQL: the failed children in the order in which they were applied; those never applied first."""
