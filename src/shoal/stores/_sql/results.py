"""Cache results of actions in a table.

Invariants:
- Expired results are never returned. Each new result deletes a few of them.
"""

from __future__ import annotations

from math import inf

from .dialect import Connection, Dialect

_FEW = 10
"""Expired results that a new one deletes: more than one, so that the table shrinks after a burst;
few, so that no save waits for it."""


def recall(sql: Connection, key: str, at: float) -> str | None:
    """Return the JSON text that is cached under ``key`` at that time; None if there is none."""
    found = sql.execute(
        "SELECT operations FROM results WHERE key = ? AND (ends_at IS NULL OR ends_at > ?)",
        (key, at),
    ).fetchone()
    return None if found is None else found[0]


def remember(sql: Connection, dialect: Dialect, key: str, text: str, seconds: float) -> None:
    """Cache ``text`` for some time, and delete a few expired results."""
    at = dialect.now(sql)
    ends_at = None if seconds == inf else at + seconds
    sql.execute(
        "INSERT INTO results (key, ends_at, operations) VALUES (?, ?, ?) ON CONFLICT (key) "
        "DO UPDATE SET ends_at = excluded.ends_at, operations = excluded.operations",
        (key, ends_at, text),
    )
    # Last: the row above may wait for a lock, and a transaction must hold no lock while it waits
    # for another one (see ``_postgres.database``). This statement skips locked rows.
    expire(sql, dialect, at, _FEW)


def expire(sql: Connection, dialect: Dialect, at: float, limit: int) -> int:
    """Delete expired results, and return their number."""
    return sql.execute(
        "DELETE FROM results WHERE key IN (SELECT key FROM results WHERE ends_at <= ? "
        f"ORDER BY ends_at LIMIT ? {dialect.skips})",
        (at, limit),
    ).rowcount
