"""Write keys and leases of a ``PostgresStore`` as columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any

from shoal._events.identity import Key
from shoal.stores._sql.dialect import Connection, Dialect
from shoal.stores._sql.holders import LeaseHolder
from shoal.stores._sql.leases import LeaseState

NOW = "extract(epoch FROM clock_timestamp())::float8"
"""SQL: seconds since 1970, by the server's clock."""

_LONGEST = 1 << 63
_LONG = 1000
"""Longer keys, in bytes, are looked up by their hash: an entry of an index has room for some 2,700
bytes in all."""


def column_of(key: Key) -> str:
    """Return a key as text. Integers, and texts that Postgres can't store, are ``#`` and JSON."""
    if isinstance(key, int):
        number = int(key)
        return f"#{number}" if -_LONGEST <= number < _LONGEST else f"#{number:#x}"
    text = str.__str__(key)
    return text if _is_clean(text) else f"#{json.dumps(text)}"


def _is_clean(text: str) -> bool:
    if text[:1] == "#" or "\0" in text:
        return False
    with suppress(UnicodeEncodeError):  # half a surrogate pair
        return text.isascii() or bool(text.encode())
    return False


def key_of(column: str) -> Key:
    if column[:1] != "#":
        return column
    return json.loads(column[1:]) if column[1] == '"' else int(column[1:], 0)


def columns_of(key: Key) -> tuple[str, str | None]:
    """Return the text by which a key is looked up, and the full key if it is too long for that."""
    text = column_of(key)
    if 4 * len(text) <= _LONG or len(text.encode()) <= _LONG:
        return text, None
    return f"#sha256:{sha256(text.encode()).hexdigest()}", text


def index_of(key: Key) -> str:
    return columns_of(key)[0]


def _now(sql: Connection) -> float:
    return sql.execute(f"SELECT {NOW}").fetchone()[0]


def lease_state_of(row: Sequence[Any]) -> LeaseState:
    epoch, execution, host, boot, pid, started, left = row
    return LeaseState(epoch, execution, LeaseHolder(host, boot, pid, started), left)


POSTGRES = Dialect(
    key="coalesce(long_key, runs.key)",
    key_columns=("key", "long_key"),
    columns_of=columns_of,
    column_of=column_of,
    key_of=key_of,
    # While the server is down no process can renew its lease. So a lease counts from the start of
    # the server at the earliest, which gives all processes the time to reconnect.
    lease_columns=f"epoch, execution, claims.host, boot, pid, started, lease - {NOW} + "
    "greatest(seen_at, extract(epoch FROM pg_postmaster_start_time())::float8)",
    lease_state_of=lease_state_of,
    skips="FOR UPDATE SKIP LOCKED",
    contains="strpos(key, ?) > 0",
    whole="floor({})::bigint",
    unindexed="",
    now=_now,
)
