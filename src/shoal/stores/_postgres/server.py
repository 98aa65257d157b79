"""A connection to the server of a ``PostgresStore``, and what its errors mean. Needs psycopg.

Invariants:
- Nobody waits for a server that says nothing for longer than the timeout. A thread that waits looks
  ten times a second whether its caller still does.
- No password is shown.
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
except ImportError as _missing:  # of psycopg itself, or of the library that it needs
    _msg = (
        f"PostgresStore needs psycopg: pip install 'shoal[postgres]' 'psycopg[binary]' ({_missing})"
    )
    raise ImportError(_msg, name="psycopg") from None

T = TypeVar("T")

FEW = 10
"""Rows that are not worth a COPY, which takes one more round trip."""


@final
class Server(NamedTuple):
    """Where a store is."""

    conninfo: str
    label: str
    """What messages call it."""
    schema: str
    timeout: float
    """Seconds that a connection, or an answer, is waited for."""

    @property
    def quoted(self) -> str:
        """The schema, as SQL has it."""
        return '"' + self.schema.replace('"', '""') + '"'


def server_at(address: str, schema: str, timeout: float) -> Server:
    """Understand an address.

    Raises:
        DefinitionError: It is none. The message doesn't show it, for it may hold a password.
    """
    try:
        parts = conninfo_to_dict(address)
    except psycopg.Error:
        msg = (
            "PostgresStore takes an address, such as 'postgresql://user@host/database' or "
            "'host=... dbname=...', and can't understand what it was given (which isn't shown, for "
            "it may hold a password)"
        )
        raise DefinitionError(msg) from None
    host = parts.get("host") or parts.get("hostaddr") or ""
    port = f":{parts['port']}" if parts.get("port") else ""
    label = f"postgresql://{host}{port}/{parts.get('dbname') or ''}"
    given: dict[str, Any] = {"fallback_application_name": "shoal", "client_encoding": "utf8"}
    if not parts.get("tcp_user_timeout"):  # else a machine that is gone is noticed after minutes
        given["tcp_user_timeout"] = max(1, ceil(timeout * 1000))
    if not parts.get("connect_timeout"):
        given["connect_timeout"] = max(2, ceil(timeout))  # 2 is the least that libpq knows
    return Server(make_conninfo(address, **given), label, schema, timeout)


Statement = tuple[str, Sequence[Any]]
"""SQL, with ``?`` for values; and the values."""


class InDoubt(psycopg.OperationalError):
    """A connection was lost in the middle of a commit."""


class _Connection(psycopg.Connection[TupleRow]):
    """One that gives up where the server says nothing."""

    timeout: float = inf
    check: Callable[[], None] | None = None
    """Called while the server says nothing; raises where the answer isn't wanted any more."""

    @classmethod
    def _connect_gen(cls, *args: Any, **more: Any) -> Any:
        # A method of psycopg's own. Where psycopg has it no more, a thread that connects notices
        # only when the connection is made, or is given up, that its caller has gone.
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
            # Before psycopg hears of a cancellation: it would ask the server to cancel, and wait.
            self.close()
            raise


_caller = threading.local()
"""Has the ``check`` of the thread's caller while the thread connects."""


def _unless_unwanted(
    gen: Generator[Any, Any, T], check: Callable[[], None] | None
) -> Generator[Any, Any, T]:
    """Call ``check`` whenever nothing has come for a tenth of a second, which may raise."""
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
class Link:
    """A connection, as sqlite3 has it."""

    def __init__(self, server: Server, check: Callable[[], None] | None = None) -> None:
        """Connect.

        Args:
            server: To which server.
            check: Called, ten times a second, by a thread that waits for an answer. What it raises
                closes the connection, and is raised.

        Raises:
            psycopg.OperationalError: That is not possible, now or at all.
        """
        _caller.check = check
        try:
            self._connection = connection = _Connection.connect(server.conninfo, autocommit=True)
        finally:
            _caller.check = None
        connection.timeout, connection.check = server.timeout, check
        connection.adapters.register_loader("json", TextLoader)
        self._schema = server.quoted
        self._statements: list[Statement] = []  # to be executed before anything else is asked...
        self._later: dict[str, list[Sequence[Any]]] = {}  # ...and rows to be inserted behind them

    @property
    def is_closed(self) -> bool:
        return self._connection.closed

    @property
    def timeout(self) -> float:
        """Seconds for which an answer is waited for."""
        return self._connection.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._connection.timeout = seconds

    def execute(self, sql: str, values: Sequence[Any] = ()) -> psycopg.Cursor[TupleRow]:
        """Execute a statement, behind what was left for later."""
        self.flush()
        return self._cursor().execute(_translated(sql), values or None)

    def _cursor(self) -> psycopg.ClientCursor[TupleRow]:
        """Make a cursor that leaves nothing with the server, and takes several statements."""
        return psycopg.ClientCursor(self._connection)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute it for each row, all in one round trip."""
        self.flush()
        statements = [(sql, row) for row in rows]
        if statements:
            self.execute_all(*statements)

    def execute_all(self, *statements: Statement) -> list[list[TupleRow]]:
        """Execute statements in one round trip; return what each has found."""
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
        """Begin a transaction; return what further statements, in the same round trip, found."""
        return self.execute_all(*self.beginning(how, settings), *more)[2:]

    def beginning(
        self, how: str = "", settings: Mapping[str, object] | None = None
    ) -> tuple[Statement, Statement]:
        """Return the two statements that begin a transaction.

        Its settings are its own, and end with it: so poolers may be in between.
        """
        named = {"search_path": self._schema, **(settings or {})}
        calls = ", ".join(f"set_config('{name}', ?, true)" for name in named)
        return (f"BEGIN {how}", ()), (f"SELECT {calls}", [str(value) for value in named.values()])

    def execute_later(self, sql: str, values: Sequence[Any]) -> None:
        """Execute a statement, of which nothing is to be known: before anything else is asked."""
        self._statements.append((sql, values))

    def insert_later(self, columns: str, rows: Sequence[Sequence[Any]]) -> None:
        """Insert rows into ``table (column, ...)``: at the latest when anything else is asked."""
        if rows:
            self._later.setdefault(columns, []).extend(rows)

    def flush(self) -> None:
        """Insert what was left for later."""
        if self._later or self._statements:
            few = self._copy_many()
            if few:
                self.execute_all(*few)

    def commit(self) -> None:
        """Commit, with what was left for later.

        Raises:
            InDoubt: The connection was lost meanwhile, so whether it is committed is unknown.
            psycopg.Error: It is not.
        """
        few = self._copy_many()
        try:
            self.execute_all(*few, ("COMMIT", ()))
        except psycopg.OperationalError as error:
            if self.is_closed or (_state(error) or "").startswith(_ENDS):
                raise InDoubt(*error.args) from error
            raise

    def _copy_many(self) -> list[Statement]:
        """Copy many rows that were left for later; return statements for all else that was."""
        later, self._later = self._later, {}
        few, self._statements = self._statements, []
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
        """End a transaction that has failed, if there is one."""
        self._later.clear()
        self._statements.clear()
        if self._connection.info.transaction_status != TransactionStatus.IDLE:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """End; also what is left of a connection that was lost."""
        self._connection.close()
        self._connection.pgconn.finish()


@lru_cache(maxsize=1000)
def _translated(sql: str) -> Any:
    return sql.replace("%", "%%").replace("?", "%s")


def _as_sql(sql: str) -> Any:
    """Return what psycopg takes literals alone for: here all is made of names of ours."""
    return sql


# -- errors ----------------------------------------------------------------------------------------

_NEVER = (  # no more than a text is known of why a connection was refused
    "authentication failed", "no password supplied", "does not exist", "no pg_hba.conf entry",
    "not permitted to log in", "permission denied", "does not support SSL", "certificate",
    "invalid ",
)  # fmt: skip
_PASSES = (
    "08",  # the connection was lost
    "25006", "25P03", "25P04",  # a replica, or what was the primary; stopped in a transaction
    "40",  # two transactions wanted the same; also a deadlock
    "53",  # no connection, memory or disk left
    "55P03", "57",  # locked for too long; timeouts, and a server that shuts down or starts
    "58",  # a disk that fails
)  # fmt: skip
_ENDS = ("08", "25P", "57P")  # with it the connection ends
_OF_ONE = ("22", "23", "54")  # what one save may be to blame for: its data, its size


@final
class PostgresFaults(NamedTuple):
    """What errors of psycopg's and the server's mean."""

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
                f"has not done what it was asked {for_so_long}: it is overloaded, or another "
                f"transaction holds what is needed ({said})"
            )
        if state == "25006":
            return (
                f"lets itself be read only, {for_so_long}: it is a replica, or has become one; "
                f"among several hosts 'target_session_attrs=read-write' finds the right one"
            )
        if state == "53100":
            return f"can't grow: its disk is full, and has been {for_so_long}; free some space"
        if state == "53300" or _says(error, "too many", "connection slots"):
            return f"has no connection left, and has had none {for_so_long}: {said}"
        if state == "42501" or _says(error, "permission denied"):
            return f"does not permit it: {said}"
        if state.startswith(("08", "57", "58")):
            return f"was not there {for_so_long}: {said}"
        if state or not isinstance(error, psycopg.OperationalError):
            return f"could not be used: {said} ({state or type(error).__name__})"
        if _says(error, *_NEVER):
            return f"could not be connected to, and can't be like this: {said}"
        return f"could not be reached {for_so_long}: {said}"


def _state(error: Exception) -> str | None:
    return cast("str | None", getattr(error, "sqlstate", None))


def _says(error: Exception, *words: str) -> bool:
    return any(word in str(error) for word in words)


def _text(error: Exception) -> str:
    """Return what an error says, on one line."""
    return " ".join(str(error).split())
