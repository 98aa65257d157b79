"""What tests have of a store in a database: its tables, as other programs see them."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from shoal import PostgresStore, SQLiteStore
from shoal.stores._sql.store import DurableStore

from .postgres import PostgresServer, programs


class Kept(Protocol):
    """Where stores keep what they do."""

    def store(self, **more: Any) -> SQLiteStore | PostgresStore:
        """Describe a store there."""
        ...

    @property
    def code(self) -> tuple[str, str]:
        """The class, and its arguments, as a program says them."""
        ...

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Execute a statement as another program would."""
        ...

    def shorten_leases(self, seconds: float) -> None:
        """Have it that all who claimed runs asked for less."""
        self.rows("UPDATE claims SET lease = lease - ?", seconds)


class InFile(Kept):
    """A file of SQLite's."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def store(self, **more: Any) -> SQLiteStore:
        given: dict[str, Any] = {"synchronous": "normal", **more}
        return SQLiteStore(self.path, **given)

    @property
    def code(self) -> tuple[str, str]:
        return "SQLiteStore", repr(str(self.path))

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.path, isolation_level=None, timeout=20)) as connection:
            return connection.execute(sql, values).fetchall()


class InSchema(Kept):
    """A schema of a PostgreSQL server."""

    def __init__(self, server: PostgresServer) -> None:
        self.server, self.schema = server, server.new_schema()

    def store(self, address: str = "", *, answers: float = 0, **more: Any) -> PostgresStore:
        """Describe a store; ``answers`` are seconds, instead of half of its patience."""
        # by which its connections are told from those of other tests
        address = f"{address or self.server.address()} application_name='{self.schema}'"
        store = PostgresStore(address, schema=self.schema, **more)
        if answers:
            store._server = store._server._replace(timeout=answers)
        return store

    @property
    def code(self) -> tuple[str, str]:
        return "PostgresStore", f"{self.server.address()!r}, schema={self.schema!r}"

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        address = self.server.address(options=f"-c search_path={self.schema}")
        values = values or ()
        return self.server.execute(sql.replace("?", "%s"), *values, address=address)

    def backends(self) -> list[int]:
        """Return the numbers of the connections that stores have."""
        of_ours = "SELECT pid FROM pg_stat_activity WHERE application_name = ?"
        return [pid for (pid,) in self.rows(of_ours, self.schema)]

    @property
    def lock(self) -> bytes:
        """Return a statement that holds all claims until its transaction has ended."""
        return f"SELECT FROM {self.schema}.claims FOR UPDATE".encode()

    def kept(self) -> list[int]:
        """Return the numbers of the root run's updates."""
        return [number for (number,) in self.rows("SELECT number FROM history ORDER BY id")]


def find_programs() -> Path:
    """Find where the server's programs are; skip what needs one where there is none."""
    found = programs()
    if found is None:
        message = "needs PostgreSQL's own programs, as Debian's package postgresql has them"
        if os.environ.get("CI") == "true":  # else skipped for ever
            pytest.fail(message)
        pytest.skip(message)
    return found


@contextmanager
def stopped(store: DurableStore) -> Generator[list[int]]:
    """Hold the writing thread back meanwhile, so that what is saved stands in one transaction.

    Tells how many jobs each transaction had.
    """
    assert store._writer is not None
    data, sizes = store._writer._database, list[int]()
    held, go, do = threading.Event(), threading.Event(), data.do

    def wait(jobs: Any) -> Any:
        held.set()
        go.wait()
        sizes.append(len(jobs))
        return do(jobs)

    data.do = wait
    store._writer.leave(lambda _: None, 0, lambda _: None)
    held.wait()
    try:
        yield sizes
    finally:
        go.set()


def wait_for(what: Callable[[], object]) -> None:
    """Wait in this thread until ``what`` returns something true, but for 20 s at most."""
    until = time.monotonic() + 20
    while not what():
        assert time.monotonic() < until
        time.sleep(0.005)
