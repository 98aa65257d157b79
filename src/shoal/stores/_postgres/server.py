"""Connect to the server of a ``PostgresStore``, and judge its errors. Needs psycopg.

Invariants:
- No thread waits longer than the timeout for a server that sends nothing. A waiting thread checks
  ten times a second whether its caller was cancelled.
- Messages never show a password.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import lru_cache
from math import ceil, inf
from typing import Any, NamedTuple, TypeVar, cast, final

from shoal._errors.exceptions import DefinitionError, StoreFailed

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg.pq import TransactionStatus
    from psycopg.rows import TupleRow
    from psycopg.types.string import TextLoader
except ImportError as _missing:  # psycopg itself is missing, or libpq, which it needs
    _msg = f"PostgreSQL needs psycopg: pip install 'shoal[postgres]' 'psycopg[binary]' ({_missing})"
    raise ImportError(_msg, name="psycopg") from None

T = TypeVar("T")

FEW = 10
"""Up to so many rows are inserted with INSERT; COPY is faster for more, but takes one more round
trip."""


@final
class Server(NamedTuple):
    """The location of a store: a database, and a schema in it."""

    conninfo: str
    label: str
    """The server's name in messages, without a password."""
    schema: str
    timeout: float
    """Seconds to wait for a connection, or for an answer."""

    @property
    def quoted(self) -> str:
        """The schema as a quoted name of SQL."""
        return '"' + self.schema.replace('"', '""') + '"'


def server_at(address: str, schema: str, timeout: float, owner: str = "PostgresStore") -> Server:
    """Parse an address, which was given to ``owner``.

    Raises:
        DefinitionError: The address is invalid. The message doesn't show it, because it may hold a
            password.
    """
    try:
        parts = conninfo_to_dict(address)
    except psycopg.Error:
        msg = (
            f"{owner} takes an address, such as 'postgresql://user@host/database' or "
            f"'host=... dbname=...', and can't parse the given one (which isn't shown, because it "
            f"may hold a password)"
        )
        raise DefinitionError(msg) from None
    host = parts.get("host") or parts.get("hostaddr") or ""
    port = f":{parts['port']}" if parts.get("port") else ""
    label = f"postgresql://{host}{port}/{parts.get('dbname') or ''}"
    given: dict[str, Any] = {"fallback_application_name": "shoal", "client_encoding": "utf8"}
    # Without it the system notices only after minutes that the server's machine is gone.
    if not parts.get("tcp_user_timeout"):
        given["tcp_user_timeout"] = max(1, ceil(timeout * 1000))
    if not parts.get("connect_timeout"):
        given["connect_timeout"] = max(2, ceil(timeout))  # libpq's minimum is 2
    return Server(make_conninfo(address, **given), label, schema, timeout)


Statement = tuple[str, Sequence[Any]]
"""SQL, with ``?`` for values; and the values."""


class InDoubt(psycopg.OperationalError):
    """The connection was lost during a commit."""


class _PsycopgConnection(psycopg.Connection[TupleRow]):
    """A connection of psycopg that gives up if the server sends nothing."""

    timeout: float = inf
    check: Callable[[], None] | None = None
    """Called while the server sends nothing; raises if the caller doesn't want the answer."""

    @classmethod
    def _connect_gen(cls, *args: Any, **more: Any) -> Any:
        # A private method of psycopg. If a later version lacks it, a connecting thread notices only
        # at the end, when it is connected or has given up, that its caller was cancelled.
        return _unless_unwanted(
            super()._connect_gen(*args, **more), getattr(_caller, "check", None)
        )

    def wait(self, gen: Any, *args: Any, **more: Any) -> Any:
        return super().wait(self._unless_silent(gen), *args, **more)

    def _unless_silent(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        heard = time.monotonic()
        try:
            waits = next(gen)
            while True:
                ready = yield waits
                if ready:
                    heard = time.monotonic()
                elif time.monotonic() - heard > self.timeout:
                    self.close()
                    msg = f"the server has said nothing for {self.timeout:g} s"
                    raise psycopg.OperationalError(msg)
                elif self.check is not None:
                    self.check()
                waits = gen.send(ready)
        except StopIteration as end:
            return end.value
        except psycopg.Error:
            raise
        except BaseException:
            # Closing comes first: psycopg would react to a cancellation by asking the server to
            # cancel the query, and wait for that.
            self.close()
            raise


_caller = threading.local()
"""Holds the ``check`` of the thread's caller while the thread connects, because psycopg has no
parameter for it."""


def _unless_unwanted(
    gen: Generator[Any, Any, T], check: Callable[[], None] | None
) -> Generator[Any, Any, T]:
    """Call ``check``, which may raise, whenever the server has sent nothing for 0.1 seconds."""
    try:
        waits = next(gen)
        while True:
            ready = yield waits
            if not ready and check is not None:
                check()
            waits = gen.send(ready)
    except StopIteration as end:
        return end.value


@final
class PostgresConnection:
    """A connection with the methods of ``sqlite3.Connection`` that stores use."""

    def __init__(self, server: Server, check: Callable[[], None] | None = None) -> None:
        """Connect.

        Args:
            server: The server.
            check: Called ten times a second by a thread that waits for an answer. An exception from
                it closes the connection and is raised.

        Raises:
            psycopg.OperationalError: Connecting is not possible, at the moment or at all.
        """
        _caller.check = check
        try:
            self._connection = connection = _PsycopgConnection.connect(
                server.conninfo, autocommit=True
            )
        finally:
            _caller.check = None
        connection.timeout, connection.check = server.timeout, check
        connection.adapters.register_loader("json", TextLoader)  # the codec decodes it
        self._schema = server.quoted
        # Statements and then rows (by table and columns) that ``flush`` sends: before the next
        # query, or with the commit. Collecting them saves round trips.
        self._statements: list[Statement] = []
        self._later: dict[str, list[Sequence[Any]]] = {}

    @property
    def is_closed(self) -> bool:
        return self._connection.closed

    @property
    def timeout(self) -> float:
        """Seconds to wait for an answer."""
        return self._connection.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._connection.timeout = seconds

    def execute(self, sql: str, values: Sequence[Any] = ()) -> psycopg.Cursor[TupleRow]:
        """Execute a statement, after those that were left for later."""
        self.flush()
        return self._cursor().execute(_translated(sql), values or None)

    def _cursor(self) -> psycopg.ClientCursor[TupleRow]:
        """Return a cursor that prepares nothing on the server, and takes several statements."""
        return psycopg.ClientCursor(self._connection)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement once for each row, all in one round trip."""
        self.flush()
        statements = [(sql, row) for row in rows]
        if statements:
            self.execute_all(*statements)

    def execute_all(self, *statements: Statement) -> list[list[TupleRow]]:
        """Execute statements in one round trip; return the rows that each has found."""
        cursor = self._cursor()
        texts = [cursor.mogrify(_translated(sql), values) for sql, values in statements]
        cursor.execute(_as_sql("; ".join(texts)))
        found = [cursor.fetchall() if cursor.description else []]
        while cursor.nextset():
            found.append(cursor.fetchall() if cursor.description else [])
        return found

    def begin(
        self, *more: Statement, how: str = "", settings: Mapping[str, object] | None = None
    ) -> list[list[TupleRow]]:
        """Begin a transaction; return what further statements find, in the same round trip."""
        return self.execute_all(*self.beginning(how, settings), *more)[2:]

    def beginning(
        self, how: str = "", settings: Mapping[str, object] | None = None
    ) -> tuple[Statement, Statement]:
        """Return the two statements that begin a transaction.

        The settings end with the transaction, so poolers may be in between.
        """
        named = {"search_path": self._schema, **(settings or {})}
        calls = ", ".join(f"set_config('{name}', ?, true)" for name in named)
        return (f"BEGIN {how}", ()), (f"SELECT {calls}", [str(value) for value in named.values()])

    def execute_later(self, sql: str, values: Sequence[Any]) -> None:
        """Execute a statement, whose result is not needed, before the next query or the commit."""
        self._statements.append((sql, values))

    def insert_later(self, columns: str, rows: Sequence[Sequence[Any]]) -> None:
        """Insert rows into ``table (column, ...)`` before the next query or the commit."""
        if rows:
            self._later.setdefault(columns, []).extend(rows)

    def flush(self) -> None:
        """Send the statements and rows that were left for later."""
        if self._later or self._statements:
            few = self._copy_many()
            if few:
                self.execute_all(*few)

    def commit(self) -> None:
        """Send the statements and rows that were left for later, and commit.

        Raises:
            InDoubt: The connection was lost meanwhile; the transaction may be committed or not.
            psycopg.Error: The transaction is not committed.
        """
        few = self._copy_many()
        try:
            self.execute_all(*few, ("COMMIT", ()))
        except psycopg.OperationalError as error:
            if self.is_closed or (_state(error) or "").startswith(_ENDS):
                raise InDoubt(*error.args) from error
            raise

    def _copy_many(self) -> list[Statement]:
        """Send many rows with COPY; return statements for the rest that was left for later."""
        later, self._later = self._later, {}
        few, self._statements = self._statements, []
        # The statements come before the rows, so they can't be returned if a COPY follows.
        if any(len(rows) > FEW for rows in later.values()) and few:
            self.execute_all(*few)
            few = []
        for columns, rows in later.items():
            if len(rows) <= FEW:
                holes = f"({', '.join('?' * len(rows[0]))})"
                values = [value for row in rows for value in row]
                several = ", ".join([holes] * len(rows))
                few.append((f"INSERT INTO {columns} VALUES {several}", values))
                continue
            with self._cursor().copy(_as_sql(f"COPY {columns} FROM STDIN")) as copy:
                for row in rows:
                    copy.write_row(row)
        return few

    def abort(self) -> None:
        """Roll a failed transaction back, if there is one."""
        self._later.clear()
        self._statements.clear()
        if self._connection.info.transaction_status != TransactionStatus.IDLE:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the connection, and free what is left of it if it was lost."""
        self._connection.close()
        self._connection.pgconn.finish()


@lru_cache(maxsize=1000)
def _translated(sql: str) -> Any:
    return sql.replace("%", "%%").replace("?", "%s")


def _as_sql(sql: str) -> Any:
    """Return ``sql`` as psycopg's type for literal SQL: all our texts are made of fixed names."""
    return sql


# -- errors ----------------------------------------------------------------------------------------

# Texts of errors that don't pass: a refused connection has no code, only a text.
_NEVER = (
    "authentication failed", "no password supplied", "does not exist", "no pg_hba.conf entry",
    "not permitted to log in", "permission denied", "does not support SSL", "certificate",
    "invalid ",
)  # fmt: skip
# The beginnings of codes (SQLSTATE) of errors that may pass.
_PASSES = (
    "08",  # the connection was lost
    "25006", "25P03", "25P04",  # a replica, or a former primary; a timeout within a transaction
    "40",  # a conflict of two transactions, or a deadlock
    "53",  # no connection, memory or disk space left
    "55P03", "57",  # a lock or a statement timed out; the server shuts down or starts
    "58",  # an error of the server's disk
)  # fmt: skip
_ENDS = ("08", "25P", "57P")  # errors that end the connection
_OF_ONE = ("22", "23", "54")  # errors that one save may cause: its data, or its size


@final
class PostgresErrorPolicy(NamedTuple):
    """Judges the errors of psycopg and of the server."""

    server: Server
    patience: float

    @property
    def errors(self) -> type[Exception]:
        return psycopg.Error

    def may_pass(self, error: Exception) -> bool:
        state = _state(error)
        if state is not None:
            return state.startswith(_PASSES)
        return isinstance(error, psycopg.OperationalError) and not _says(error, *_NEVER)

    def is_general(self, error: Exception) -> bool:
        state = _state(error)
        if state is None:
            return isinstance(error, psycopg.OperationalError)
        return not state.startswith(_OF_ONE)

    def explained(self, error: Exception) -> StoreFailed:
        return StoreFailed(f"{self.server.label} {self._why(error)}")

    def _why(self, error: Exception) -> str:
        state, said = _state(error) or "", _text(error)
        for_so_long = f"for {self.patience:g} s (PostgresStore(patience=...) waits longer)"
        if state in ("57014", "55P03"):
            return (
                f"has not completed a statement {for_so_long}: it is overloaded, or another "
                f"transaction holds a lock ({said})"
            )
        if state == "25006":
            return (
                f"has been read-only {for_so_long}: it is a replica, or has become one; with "
                f"several hosts in the address, 'target_session_attrs=read-write' finds the primary"
            )
        if state == "53100":
            return f"can't grow: its disk is full, and has been {for_so_long}; free some space"
        if state == "53300" or _says(error, "too many", "connection slots"):
            return f"has no connection left, and has had none {for_so_long}: {said}"
        if state == "42501" or _says(error, "permission denied"):
            return f"does not permit it: {said}"
        if state.startswith(("08", "57", "58")):
            return f"was not available {for_so_long}: {said}"
        if state or not isinstance(error, psycopg.OperationalError):
            return f"could not be used: {said} ({state or type(error).__name__})"
        if _says(error, *_NEVER):
            return f"refuses the connection, and retrying won't help: {said}"
        return f"could not be reached {for_so_long}: {said}"


def _state(error: Exception) -> str | None:
    return cast("str | None", getattr(error, "sqlstate", None))


def _says(error: Exception, *words: str) -> bool:
    return any(word in str(error) for word in words)


def _text(error: Exception) -> str:
    """Return the message of an error on one line."""
    return " ".join(str(error).split())
