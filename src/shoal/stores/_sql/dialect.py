"""Name the differences between SQL databases.

The SQL that databases share is in ``writing``, ``reading``, ``browsing``, ``pruning`` and
``results``, with ``?`` for values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, final

from shoal._errors.exceptions import StoreFailed
from shoal._events.identity import Key

from .leases import LeaseState


class Found(Protocol):
    """The result of a statement, as a cursor of sqlite3 or psycopg has it."""

    @property
    def rowcount(self) -> int:
        """The number of rows that the statement changed."""
        ...

    def fetchone(self) -> Any:
        """Return the first row, or None."""
        ...

    def fetchall(self) -> list[Any]:
        """Return all rows."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """A connection with the methods of ``sqlite3.Connection`` that stores use."""

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Found:
        """Execute a statement."""
        ...

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> object:
        """Execute a statement once for each row."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


@final
class Dialect(NamedTuple):
    """How a database writes keys and leases as columns."""

    key: str
    """SQL: the full key of a row of ``runs``."""
    key_columns: tuple[str, ...]
    """The columns that a new row has for its key; rows are looked up by the first one."""
    columns_of: Callable[[Key], tuple[Any, ...]]
    """Returns the values of ``key_columns`` for a key."""
    column_of: Callable[[Key], Any]
    """Returns the full key as one column."""
    key_of: Callable[[Any], Key]
    """Returns the key that ``column_of`` made a column of."""
    lease_columns: str
    """SQL: the columns of ``claims`` that ``lease_state_of`` reads."""
    lease_state_of: Callable[[Sequence[Any]], LeaseState]
    """Reads those columns."""
    skips: str
    """SQL for the end of a query: locks the rows found, and skips rows that are locked."""
    contains: str
    """SQL: whether the column ``key`` contains a value."""
    whole: str
    """SQL: a number rounded down, as a format of the expression."""
    unindexed: str
    """SQL behind a table: read the table, or a range of its ids, and no other index."""
    now: Callable[[Connection], float]
    """Returns seconds since 1970, by the clock that all users of the database share."""

    def run_id_of(self, column: Any) -> str:
        """Return the id of a root run from the column of its full key."""
        return str(self.key_of(column))

    def index_of(self, key: Key) -> Any:
        """Return the column by which rows with that key are looked up."""
        return self.columns_of(key)[0]


class ErrorPolicy(Protocol):
    """Judges the errors of a database: retry, whose fault, and what to tell the user."""

    @property
    def errors(self) -> type[Exception]:
        """The base class of the database's errors."""
        ...

    def may_pass(self, error: Exception) -> bool:
        """Return whether the same operation may succeed a little later."""
        ...

    def is_general(self, error: Exception) -> bool:
        """Return whether every write would fail with it now, whatever its content."""
        ...

    def explained(self, error: Exception) -> StoreFailed:
        """Return an error that says what happened and what to do."""
        ...
