"""The stores that are put to it, by name. One more is an entry in `STORES`.

Each is read twice: through the port by whoever resumes, and here in its own tables, as they lie on
the disk, without any of its code.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from shoal import SQLiteStore, Store
from shoal._ids import child_id
from shoal.stores._writing import Database

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


def _open_sqlite(folder: Path) -> Store:
    # A kill takes nothing from the system's own cache, so the disk needn't be waited for.
    return SQLiteStore(folder / "runs.db", synchronous="normal")


def _arm_sqlite(life: Life) -> None:
    save, transact = Database.save, Database._transact
    passed = list[str]()  # in the transaction under way

    def saving(self: Database, rows: Any, claim: Any) -> None:
        save(self, rows, claim)
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
    found = dict[str, Row]()
    with closing(sqlite3.connect(folder / "runs.db")) as sql:
        assert sql.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert sql.execute("SELECT run_id FROM claims WHERE execution NOTNULL").fetchall() == []
        runs = sql.execute(
            "SELECT runs.id, parent, step, visit, act, key, status, applied FROM runs "
            "LEFT JOIN places ON places.id = place ORDER BY runs.id"
        ).fetchall()
        by_id = {run[0]: run for run in runs}
        names = dict[int, str]()

        def name(run: int) -> str:
            if run not in names:
                _, parent, step, visit, act, key, *_ = by_id[run]
                names[run] = child_id(name(parent), step, visit, act, key) if parent else key
            return names[run]

        for run, _, _, _, _, _, status, applied in runs:
            found[name(run)] = Row(status, applied)
        for run, parent, *_, applied in runs:
            if parent and applied is not None:
                assert parent in by_id, f"nobody has started {by_id[run]}"
                found[name(parent)].numbers.append(applied)
        for run, number in sql.execute("SELECT run, number FROM history WHERE kind = 'update'"):
            found[name(run)].numbers.append(number)
    return found


def _open_hasty(folder: Path) -> Store:
    return SQLiteStore(folder / "runs.db", synchronous="normal", durability="end")


STORES: dict[str, Subject] = {
    "sqlite": Subject(_open_sqlite, _arm_sqlite, _sqlite_tables),
    # says of saves that they are kept before they are: to see that this is found
    "hasty": Subject(_open_hasty, _arm_sqlite, _sqlite_tables),
}
