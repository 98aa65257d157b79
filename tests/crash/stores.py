"""The stores that are put to it, by name. One more is an entry in `STORES`.

Each is read twice: through the port by whoever resumes, and here in its own tables, as they lie on
the disk, without any of its code.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from shoal import PostgresStore, SQLiteStore
from shoal._events.identity import Key, child_id
from shoal.stores import Store
from shoal.stores._sql.writing import Database
from tests.stores.postgres import QUICK, PostgresServer, private_server, programs

from .life import Life


@dataclass
class Row:
    """What tables say of a run."""

    status: str | None
    applied: int | None
    numbers: list[int] = field(default_factory=list[int])
    """The numbers of its updates, but for the last one of a child that succeeded."""


class Subject(NamedTuple):
    """A store that is put to it."""

    open: Callable[[Path], Store]
    """Makes it, of what is in a folder."""
    arm: Callable[[Life], None]
    """Has this process pass the places inside of it: in its transactions, and right behind them."""
    tables: Callable[[Path], dict[str, Row]]
    """Reads its tables, all runs by their ids. Raises where they are damaged."""
    serve: Callable[[], AbstractContextManager[object]] = nullcontext
    """Is around all rounds: has a server run, say."""


def _open_sqlite(folder: Path) -> Store:
    # A kill takes nothing from the system's own cache, so the disk needn't be waited for.
    return SQLiteStore(folder / "runs.db", synchronous="normal")


def _arm(life: Life) -> None:
    save, transact = Database.save, Database._transact
    passed = list[str]()  # in the transaction under way

    def saving(self: Database, rows: Any, lease: Any) -> None:
        save(self, rows, lease)
        decided = any(entry.kind == "decision" for entry in rows.history)
        ended = rows.status is not None
        passed.append("decision" if decided else "finish" if ended else "batch save")
        life.passes(passed[-1])

    def transacting(self: Database, jobs: Sequence[Any]) -> None:
        passed.clear()
        transact(self, jobs)
        for phase in passed:
            life.passes("after save" if phase == "batch save" else phase)

    Database.save = saving
    Database._transact = transacting


def _sqlite_tables(folder: Path) -> dict[str, Row]:
    with closing(sqlite3.connect(folder / "runs.db")) as sql:
        assert sql.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return _read(lambda query: sql.execute(query).fetchall(), lambda key: key)


def _read(
    ask: Callable[[str], list[tuple[Any, ...]]], key_of: Callable[[Any], Key]
) -> dict[str, Row]:
    assert ask("SELECT run_id FROM claims WHERE execution IS NOT NULL") == []
    runs = ask(
        "SELECT runs.id, parent, step, visit, act, key, status, applied FROM runs "
        "LEFT JOIN places ON places.id = place ORDER BY runs.id"
    )
    found = dict[str, Row]()
    by_id = {run[0]: run for run in runs}
    names = dict[int, str]()

    def name(run: int) -> str:
        if run not in names:
            _, parent, step, visit, act, key, *_ = by_id[run]
            if parent:
                names[run] = child_id(name(parent), step, visit, act, key_of(key))
            else:
                names[run] = key
        return names[run]

    for run, _, _, _, _, _, status, applied in runs:
        found[name(run)] = Row(status, applied)
    for run, parent, *_, applied in runs:
        if parent and applied is not None:
            assert parent in by_id, f"nobody has started {by_id[run]}"
            found[name(parent)].numbers.append(applied)
    for run, number in ask("SELECT run, number FROM history WHERE kind = 'update'"):
        found[name(run)].numbers.append(number)
    return found


def _open_hasty(folder: Path) -> Store:
    return SQLiteStore(folder / "runs.db", synchronous="normal", durability="end")


# -- Postgres: one server for all rounds, and a schema for each ------------------------------------

_servers: list[PostgresServer] = []


@contextmanager
def _serve_postgres() -> Generator[None]:
    found = programs()
    if found is None:
        raise SystemExit("PostgreSQL's own programs are missing: Debian's package postgresql")
    with private_server(found, QUICK) as server:
        _servers.append(server)
        try:
            yield
        finally:
            _servers.remove(server)


def running_server() -> PostgresServer:
    """Return the server of all rounds."""
    (server,) = _servers
    return server


def _open_postgres(folder: Path) -> Store:
    return PostgresStore(running_server().address(), schema=_schema(folder))


def _schema(folder: Path) -> str:
    # Of two levels, since a round of several processes has a folder in a folder.
    return f"{folder.parent.name}/{folder.name}"


def _postgres_tables(folder: Path) -> dict[str, Row]:
    with psycopg.connect(running_server().address(), autocommit=True) as sql:
        sql.execute("SELECT set_config('search_path', %s, false)", (f'"{_schema(folder)}"',))
        return _read(
            lambda query: sql.execute(query.encode()).fetchall(),
            lambda key: int(key[1:]) if key[:1] == "#" else key,
        )


STORES: dict[str, Subject] = {
    "sqlite": Subject(_open_sqlite, _arm, _sqlite_tables),
    "postgres": Subject(_open_postgres, _arm, _postgres_tables, _serve_postgres),
    # says of saves that they are kept before they are: to see that this is found
    "hasty": Subject(_open_hasty, _arm, _sqlite_tables),
}
