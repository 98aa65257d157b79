"""In what databases differ that are asked in the same words. Imports claims and ids.

All SQL that is not one database's own is in ``_writing`` and ``_reading``, with ``?`` for values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, final

from shoal._errors.exceptions import StoreFailed
from shoal._events.identity import Key

from .leases import Held


class Found(Protocol):
    """What a statement has found."""

    @property
    def rowcount(self) -> int:
        """How many rows it has changed."""
        ...

    def fetchone(self) -> Any:
        """Return the first row, or None."""
        ...

    def fetchall(self) -> list[Any]:
        """Return all rows."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """A connection, as sqlite3 has it."""

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Found:
        """Execute a statement."""
        ...

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> object:
        """Execute it for each row."""
        ...

    def close(self) -> None:
        """End."""
        ...


@final
class Dialect(NamedTuple):
    """Keys and claims, as columns."""

    key: str
    """SQL: the key of a row of ``runs``, in full."""
    key_columns: tuple[str, ...]
    """What a new row has of its key; the first is what it is found by."""
    columns_of: Callable[[Key], tuple[Any, ...]]
    """Gives these of a key."""
    column_of: Callable[[Key], Any]
    """Gives it in full."""
    key_of: Callable[[Any], Key]
    """Gives the key of that."""
    held: str
    """SQL: what a row of ``claims`` says of who has a run."""
    held_of: Callable[[Sequence[Any]], Held]
    """Reads these columns."""
    skips: str
    """SQL, at the end of a query: locks the rows that it finds, without those that are locked."""
    now: Callable[[Connection], float]
    """Seconds since 1970, by the clock that all share who use the database."""

    def run_id_of(self, column: Any) -> str:
        """Return the id of a root run, given its key's column in full."""
        return str(self.key_of(column))

    def index_of(self, key: Key) -> Any:
        """Return what a key is found by."""
        return self.columns_of(key)[0]


class Faults(Protocol):
    """What the errors of a database mean."""

    @property
    def errors(self) -> type[Exception]:
        """What all of them are."""
        ...

    def may_pass(self, error: Exception) -> bool:
        """Tell whether the same may succeed a little later."""
        ...

    def is_general(self, error: Exception) -> bool:
        """Tell whether all who write now would meet it, whatever they write."""
        ...

    def explained(self, error: Exception) -> StoreFailed:
        """Say what it means, and what to do."""
        ...
