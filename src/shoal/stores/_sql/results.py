"""Results of actions in the tables of a store. Imports in what databases differ.

Invariants:
- What has run out is never returned, and goes with the next results: a few for each that comes.
"""

from __future__ import annotations

from math import inf

from .dialect import Connection, Dialect

_FEW = 10


def recall(sql: Connection, key: str, at: float) -> str | None:
    """Return what is kept under ``key`` at a time, as JSON."""
    found = sql.execute(
        "SELECT operations FROM results WHERE key = ? AND (ends_at IS NULL OR ends_at > ?)",
        (key, at),
    ).fetchone()
    return None if found is None else found[0]


def remember(sql: Connection, dialect: Dialect, key: str, text: str, seconds: float) -> None:
    """Keep ``text`` for some time, and delete a few that have run out."""
    at = dialect.now(sql)
    ends_at = None if seconds == inf else at + seconds
    sql.execute(
        "INSERT INTO results (key, ends_at, operations) VALUES (?, ?, ?) ON CONFLICT (key) "
        "DO UPDATE SET ends_at = excluded.ends_at, operations = excluded.operations",
        (key, ends_at, text),
    )
    expire(sql, dialect, at, _FEW)  # last: it waits for nobody, see the module of PostgreSQL's


def expire(sql: Connection, dialect: Dialect, at: float, limit: int) -> int:
    """Delete what has run out, and return how many those were."""
    return sql.execute(
        "DELETE FROM results WHERE key IN (SELECT key FROM results WHERE ends_at <= ? "
        f"ORDER BY ends_at LIMIT ? {dialect.skips})",
        (at, limit),
    ).rowcount
