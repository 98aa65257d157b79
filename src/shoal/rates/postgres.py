"""A backend that keeps shared rates and budgets in PostgreSQL. Needs the extra ``postgres``.

Invariants:
- A call is one transaction. It locks the rows of its keys, in the order of their names, so that two
  calls can't deadlock; what is answered was reckoned while they were locked, by the server's clock.
- A call is applied once, or not at all, and its answer says so. If the connection is lost during
  the commit, the server is asked whether that was made.
- A call that is cancelled is rolled back, unless it commits already. Then it is awaited, and its
  answer is not lost.
- No call waits for ever: each answer of the server has ``timeout`` seconds, and a client that hangs
  in the middle of its transaction loses that after the same time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar, final

from anyio import CapacityLimiter, from_thread, to_thread
from anyio.lowlevel import checkpoint

from shoal._errors.arguments import is_positive
from shoal._errors.exceptions import DefinitionError, NotApplied
from shoal._limits.shared_budgets import BudgetReply, BudgetRequest, BudgetState, reckon_budget
from shoal._limits.shared_rates import RateReply, RateRequest, RateState, reckon
from shoal.stores._postgres.server import InDoubt, PostgresConnection, Server, Statement, server_at

# After the module above, which says what to install where psycopg is missing.
from psycopg import Error as ServerError  # isort: skip
from psycopg.errors import UndefinedTable  # isort: skip

__all__ = ["PostgresRates"]

SWEEP = 256
"""Calls between two searches for idle keys: those are small, and cost nothing but space."""
SWEPT = 1000
"""The most rows that one search deletes, so that none of them takes long."""
ASKED_AGAIN = 0.05
"""Seconds between two questions for a commit in doubt, while the server still works on it."""
_MAKING = 0x7261746573
"""The number of the lock that is held while tables are made: "rates"."""

_TABLES = """
    CREATE TABLE IF NOT EXISTS rates (
        key text COLLATE "C" PRIMARY KEY,
        tat double precision,
        last double precision
    );
    CREATE TABLE IF NOT EXISTS budgets (
        key text COLLATE "C" PRIMARY KEY,
        used double precision,
        since double precision,
        ends double precision
    )
"""
_LOCK = (
    "INSERT INTO {table} (key) SELECT * FROM unnest(?::text[]) "
    "ON CONFLICT (key) DO UPDATE SET key = excluded.key "
    "RETURNING {table}.key, {state}, extract(epoch FROM clock_timestamp())::float8"
)
"""Locks the rows of keys in the given order, and returns their states. The clock is read after
the wait for a row, so no call is reckoned by a time before that of the call before it."""
_SWEEP = (
    "DELETE FROM {table} WHERE key IN (SELECT key FROM {table} "
    "WHERE {idle} < extract(epoch FROM clock_timestamp()) - 1 LIMIT ? FOR UPDATE SKIP LOCKED)"
)

Request = TypeVar("Request", RateRequest, BudgetRequest)
Reply = TypeVar("Reply", RateReply, BudgetReply)


class _Kind(NamedTuple, Generic[Request, Reply]):
    """How requests of one kind are applied to the rows of their table."""

    lock: str
    write: str
    """Writes the new states, which are given as columns."""
    sweep: str
    apply: Callable[[Request, tuple[Any, ...]], tuple[tuple[float | None, ...], Reply]]
    """Returns the new columns of a row and the reply, given the old ones and the time."""
    settings: dict[str, object]


def _apply_rate(
    request: RateRequest, row: tuple[Any, ...]
) -> tuple[tuple[float | None, ...], RateReply]:
    tat, last, now = row
    state, reply = reckon(None if tat is None else RateState(tat, last), now, request)
    return (state.tat, state.last), reply


def _apply_budget(
    request: BudgetRequest, row: tuple[Any, ...]
) -> tuple[tuple[float | None, ...], BudgetReply]:
    used, since, now = row
    state, reply = reckon_budget(None if used is None else BudgetState(used, since), now, request)
    ends = None if request.per is None else state.since + request.per
    return (state.used, state.since, ends), reply


_RATES = _Kind[RateRequest, RateReply](
    _LOCK.format(table="rates", state="tat, last"),
    "UPDATE rates SET tat = new.tat, last = new.last "
    "FROM unnest(?::text[], ?::float8[], ?::float8[]) AS new (key, tat, last) "
    "WHERE rates.key = new.key",
    _SWEEP.format(table="rates", idle="greatest(tat, last)"),
    _apply_rate,
    # As with Redis: a server that has crashed may let one more burst through, and no call waits
    # for its disk.
    {"synchronous_commit": "off"},
)
_BUDGETS = _Kind[BudgetRequest, BudgetReply](
    _LOCK.format(table="budgets", state="used, since"),
    "UPDATE budgets SET used = new.used, since = new.since, ends = new.ends "
    "FROM unnest(?::text[], ?::float8[], ?::float8[], ?::float8[]) AS new (key, used, since, ends) "
    "WHERE budgets.key = new.key",
    _SWEEP.format(table="budgets", idle="ends"),
    _apply_budget,
    {},
)


class _UnwantedError(Exception):
    """The caller was cancelled, and nothing was applied."""


@final
class _Connection:
    """A connection, which a thread uses for one call at a time."""

    def __init__(self, server: Server) -> None:
        self.is_committing: bool = False
        self.sql: PostgresConnection = PostgresConnection(server, self._check)

    def _check(self) -> None:
        """Raise if the caller doesn't want the answer, and giving up would apply nothing."""
        if self.is_committing:
            return
        try:
            from_thread.check_cancelled()
        except RuntimeError:  # no thread of anyio's, so nothing can be cancelled
            return
        except BaseException as error:
            raise _UnwantedError from error

    def commit(self) -> None:
        self._check()
        self.is_committing = True
        try:
            self.sql.commit()
        finally:
            self.is_committing = False


@final
class PostgresRates:
    """Keeps shared rates and budgets in a PostgreSQL database, for all processes that reach it.

    Needs the extra ``postgres``. Where runs are kept in a ``PostgresStore``, no other server is
    needed for what they share. Each batch of starts costs one short transaction, of two round
    trips, in a worker thread of its own; processes that share a key take turns with it. A budget is
    as durable as the database; rates don't wait for its disk.

    If the connection is lost during a commit, the server is asked whether it was made, so nothing
    that was granted is lost. Close this object when it is no longer needed.

    Args:
        address: The database: ``"postgresql://user@host/database"`` or ``"host=..."``, as libpq
            understands them.
        schema: The schema of its two tables, which is made when it is first needed. It must not be
            that of a store.
        timeout: Seconds for connecting, and for each answer.

    Raises:
        DefinitionError: An argument has another type or value.
        ImportError: psycopg isn't installed.

    Examples:
        >>> from shoal import Budget
        >>> rates = PostgresRates("postgresql://localhost/runs")
        >>> team = Budget(500.0, "USD", worst=0.1, per=86_400, name="team", backend=rates)
        >>> rates.close()
    """

    def __init__(self, address: str, *, schema: str = "shoal_rates", timeout: float = 2.0) -> None:
        """Prepare the client; the first request connects."""
        if not isinstance(address, str):
            msg = (
                f"PostgresRates(address) takes an address, such as "
                f"'postgresql://user@host/database', not {type(address).__name__}"
            )
            raise DefinitionError(msg)
        if not isinstance(schema, str) or not schema or "\0" in schema or schema.startswith("pg_"):
            msg = f"PostgresRates(schema=...) takes the name of a schema, not {schema!r}"
            raise DefinitionError(msg)
        if not is_positive(timeout):
            msg = f"PostgresRates(timeout=...) takes a number of seconds above 0, not {timeout!r}"
            raise DefinitionError(msg)
        self._server: Server = server_at(address, schema, timeout, "PostgresRates")
        # Those that no thread uses. Several runtimes may make a call at once.
        self._idle: list[_Connection] = []
        self._calls: int = SWEEP
        """Since the last search for idle keys."""

    async def settle(self, requests: Sequence[RateRequest]) -> Sequence[RateReply]:
        """Apply requests of rates, in one transaction; see ``RateBackend``.

        A cancellation rolls the transaction back, or awaits the end of its commit.

        Raises:
            NotApplied: The server can't be reached, or refuses it; nothing was applied.
            psycopg.OperationalError: The connection was lost during the commit, and the server
                can't say whether that was made.
        """
        return await self._call(_RATES, requests)

    async def spend(self, requests: Sequence[BudgetRequest]) -> Sequence[BudgetReply]:
        """Apply requests of budgets, in one transaction; see ``BudgetBackend``.

        A cancellation rolls the transaction back, or awaits the end of its commit.

        Raises:
            NotApplied: The server can't be reached, or refuses it; nothing was applied.
            psycopg.OperationalError: The connection was lost during the commit, and the server
                can't say whether that was made.
        """
        return await self._call(_BUDGETS, requests)

    async def _call(
        self, kind: _Kind[Request, Reply], requests: Sequence[Request]
    ) -> Sequence[Reply]:
        try:
            # A limiter of its own: anyio's default one could be used up by threads that wait for
            # rates. Not abandoned when cancelled, because the answer says what was applied: what
            # is granted to nobody counts as spent.
            return await to_thread.run_sync(self._apply, kind, requests, limiter=CapacityLimiter(1))
        except _UnwantedError:
            await checkpoint()  # raises the cancellation
            raise

    def _apply(self, kind: _Kind[Request, Reply], requests: Sequence[Request]) -> list[Reply]:
        """Apply requests, in a worker thread."""
        try:
            while (connection := self._take_idle()) is not None:
                # The server may have closed it long ago, which is seen only when it is used.
                with suppress(NotApplied):
                    return self._apply_on(connection, kind, requests)
            return self._apply_on(_Connection(self._server), kind, requests)
        except InDoubt:
            raise
        except ServerError as error:  # while connecting
            raise NotApplied(_text(error)) from error

    def _take_idle(self) -> _Connection | None:
        with suppress(IndexError):  # other threads take them too
            return self._idle.pop()
        return None

    def _apply_on(
        self, connection: _Connection, kind: _Kind[Request, Reply], requests: Sequence[Request]
    ) -> list[Reply]:
        try:
            try:
                found = self._begin(connection, kind, requests)
            except UndefinedTable:
                connection.sql.abort()
                self._make_tables(connection)
                found = self._begin(connection, kind, requests)
            replies = self._transact(connection, kind, requests, found)
        except BaseException as error:
            # The server rolls back what wasn't committed.
            connection.sql.close()
            if isinstance(error, ServerError) and not isinstance(error, InDoubt):
                raise NotApplied(_text(error)) from error
            raise
        if not connection.sql.is_closed:
            self._idle.append(connection)
        return replies

    def _begin(
        self, connection: _Connection, kind: _Kind[Request, Reply], requests: Sequence[Request]
    ) -> tuple[dict[str, tuple[Any, ...]], int]:
        """Begin a transaction, and lock the rows; return them by their keys, and its number."""
        keys = sorted(request.key for request in requests)
        timeout = f"{max(1, round(1000 * self._server.timeout))}ms"
        rows, [(number,)] = connection.sql.begin(
            (kind.lock, (keys,)),
            ("SELECT txid_current()", ()),
            how="ISOLATION LEVEL READ COMMITTED READ WRITE",
            settings={
                "statement_timeout": timeout,
                # Else a process that was stopped in between would keep all others waiting.
                "idle_in_transaction_session_timeout": timeout,
                **kind.settings,
            },
        )
        return {key: tuple(row) for key, *row in rows}, number

    def _transact(
        self,
        connection: _Connection,
        kind: _Kind[Request, Reply],
        requests: Sequence[Request],
        found: tuple[dict[str, tuple[Any, ...]], int],
    ) -> list[Reply]:
        rows, number = found
        replies: dict[str, Reply] = {}
        columns: list[tuple[object, ...]] = []
        for request in requests:
            new, replies[request.key] = kind.apply(request, rows[request.key])
            columns.append((request.key, *new))
        connection.sql.execute_later(
            kind.write, [list(column) for column in zip(*columns, strict=True)]
        )
        self._calls += 1
        if self._calls > SWEEP:
            self._calls = 1
            connection.sql.execute_later(kind.sweep, (SWEPT,))
        try:
            connection.commit()
        except InDoubt as error:
            connection.sql.close()
            status = self._status_of(number)
            if status == "aborted":
                raise NotApplied(_text(error)) from error
            if status != "committed":
                raise
        return [replies[request.key] for request in requests]

    def _status_of(self, number: int) -> str:
        """Ask the server what has become of a transaction; "" if it can't say."""
        until = time.monotonic() + self._server.timeout
        with suppress(ServerError):
            sql = PostgresConnection(self._server)
            try:
                while True:
                    [(status,)] = sql.execute("SELECT txid_status(?)", (number,)).fetchall()
                    # None: another server has taken over, which knows nothing of it.
                    if status != "in progress" or time.monotonic() > until:
                        return status or ""
                    time.sleep(ASKED_AGAIN)
            finally:
                sql.close()
        return ""

    def _make_tables(self, connection: _Connection) -> None:
        statements: list[Statement] = [
            # "IF NOT EXISTS" fails if two processes do it at once.
            ("SELECT pg_advisory_xact_lock(?)", (_MAKING,)),
            (f"CREATE SCHEMA IF NOT EXISTS {self._server.quoted}", ()),
            *((table, ()) for table in _TABLES.split(";")),
        ]
        connection.sql.begin(*statements)
        connection.sql.commit()

    def close(self) -> None:
        """Close the connections. It may be used again."""
        while self._idle:
            with suppress(IndexError):
                self._idle.pop().sql.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PostgresRates({self._server.label!r})"


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
