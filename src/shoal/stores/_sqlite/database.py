"""Write to the file of an ``SQLiteStore``: transactions, leases, and keys as columns.

Invariants:
- A transaction that writes locks the file from its beginning (``BEGIN IMMEDIATE``), so it can't
  fail halfway because of another writer.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, final

from shoal._errors.exceptions import CommitInDoubt
from shoal._events.identity import Key
from shoal.stores._sql.dialect import Connection, Dialect
from shoal.stores._sql.holders import LeaseHolder, current_holder, now
from shoal.stores._sql.leases import Lease, LeaseState
from shoal.stores._sql.rows import Child, History
from shoal.stores._sql.writer_thread import Job
from shoal.stores._sql.writing import COLUMNS, Config, Database

from .file import Synchronous, code_of, connect, log_of

_OWN = ("position", "element", "digest", "applied", "value", "elapsed")
_ALIKE = tuple(name for name in COLUMNS if name not in _OWN)
_FORM, _WINNER_KEY = map(_ALIKE.index, ("form", "winner_key"))
_own: Callable[[Child], tuple[Any, ...]] = itemgetter(*map(Child._fields.index, _OWN))
_alike: Callable[[Child], tuple[Any, ...]] = itemgetter(*map(Child._fields.index, _ALIKE))
# Numbers of rows that one statement inserts. Each size is another statement, which is prepared once
# for each connection; so these are few, and as many rows as a commit has need one or two of them.
_AT_ONCE = (32, 16, 8, 4, 2, 1)

_ENTRY = "INSERT INTO history (run, number, kind, step, data, at) VALUES (?, ?, ?, ?, ?, ?)"


@final
class SQLiteDatabase(Database):
    """The tables in the file, as the writer thread uses them."""

    def __init__(
        self,
        config: Config,
        path: Path,
        synchronous: Synchronous,
        take_readers: Callable[[], Iterable[Connection]],
    ) -> None:
        """Open nothing yet. ``close`` also closes the connections of ``take_readers``."""
        super().__init__(config)
        self._path = path
        self._take_readers = take_readers
        self._checked: set[str] = set()  # executions whose lease this transaction has checked
        self._connection: sqlite3.Connection | None = None
        self._wanted: Synchronous = synchronous  # the user's setting
        # The present setting of the connection.
        self._synchronous: Synchronous | Literal["off"] = synchronous
        # Whether the log beside the file was new at the opening, and no transaction has begun yet.
        self._has_new_log = False

    @property
    def _sql(self) -> sqlite3.Connection:
        assert self._connection is not None, "it is open"
        return self._connection

    def open(self) -> None:
        self._has_new_log = self._wanted == "full" and not log_of(self._path).exists()
        self._connection = connect(
            self._path, patience=self._config.patience, synchronous=self._wanted
        )

    def close(self) -> None:
        if self._connection is not None:
            for connection in (*self._take_readers(), self._connection):
                with suppress(sqlite3.Error):  # every acknowledged save is in the file already
                    connection.close()

    # -- transactions ---------------------------------------------------------------------------

    def _begin(self, jobs: Sequence[Job[Any, Any]]) -> None:
        lightly = all(job.is_light for job in jobs)
        is_first, self._has_new_log = self._has_new_log, False
        if not (is_first and lightly and self._begin_log()):
            self._set_synchronous("normal" if lightly else self._wanted)
            self._sql.execute("BEGIN IMMEDIATE")
        self._checked.clear()

    def _begin_log(self) -> bool:
        """Begin a transaction that waits for no disk, if the log is empty; return whether it is.

        SQLite waits for the disk as soon as it has written the head of a log, unless it is told
        never to wait: in a log that was used before, the old head must not be found with new pages
        after it. An empty log has no old pages, so its head can wait for the first save.
        """
        self._set_synchronous("off")
        self._sql.execute("BEGIN IMMEDIATE")  # from here on no other process writes to the log
        with suppress(OSError):
            if not log_of(self._path).stat().st_size:
                return True
        self._sql.execute("ROLLBACK")
        return False

    def _commit(self, jobs: Sequence[Job[Any, Any]]) -> None:
        try:
            self._sql.execute("COMMIT")
        except sqlite3.Error as error:
            if code_of(error) != sqlite3.SQLITE_IOERR:
                raise
            msg = (
                f"it is unknown whether a save was kept: {self._path} could not be written "
                f"({error})"
            )
            # After an I/O error at the commit the file may have the transaction or not.
            for job in jobs:
                job.error = CommitInDoubt(msg)
            self._roll_back()

    def _abort(self) -> None:
        if self._sql.in_transaction:
            with suppress(sqlite3.Error):  # the error that caused the rollback is the one to raise
                self._sql.execute("ROLLBACK")

    def _set_synchronous(self, wanted: Synchronous | Literal["off"]) -> None:
        """Set whether the next transaction waits for the disk. Claims needn't."""
        if wanted != self._synchronous:
            self._sql.execute(f"PRAGMA synchronous = {wanted}")
            self._synchronous = wanted

    # -- space on the disk ----------------------------------------------------------------------

    def give_back(self, limit: int) -> bool:
        sql = self._sql
        (can_shrink,) = sql.execute("PRAGMA auto_vacuum").fetchone()
        if not can_shrink:  # the file was made by a version that didn't set auto_vacuum
            return False
        (free,) = sql.execute("PRAGMA freelist_count").fetchone()
        for _ in range(min(free, limit)):
            # One page for each call: Python's module steps a statement once, and that frees one.
            sql.execute("PRAGMA incremental_vacuum(1)")
        return free > limit

    # -- leases ---------------------------------------------------------------------------------

    def _check(self, lease: Lease) -> None:
        if lease.execution in self._checked:
            return
        found = self._sql.execute(
            "SELECT 1 FROM claims WHERE run_id = ? AND epoch = ? AND execution = ?",
            (column_of(lease.run_id), lease.epoch, lease.execution),
        ).fetchone()
        if found is None:
            lease.lost = True
            raise lease.refusal()
        self._checked.add(lease.execution)

    def _lease_state(self, run_id: str) -> LeaseState | None:
        found = self._sql.execute(
            f"SELECT {SQLITE.lease_columns} FROM claims WHERE run_id = ?", (column_of(run_id),)
        ).fetchone()
        return None if found is None else _lease_state_of(found)

    def _take(self, lease: Lease) -> None:
        self._sql.execute(
            "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(column_of(lease.run_id), lease.epoch, lease.execution),
                *(*current_holder(), self._config.lease, *now()),
            ),
        )

    def _beat(self) -> list[Lease]:
        sql, at, lost = self._sql, now(), list[Lease]()
        self._set_synchronous("normal")
        sql.execute("BEGIN IMMEDIATE")
        for lease in self._claims.values():
            done = sql.execute(
                "UPDATE claims SET seen_at = ?, seen_uptime = ? WHERE run_id = ? AND epoch = ? "
                "AND execution = ?",
                (*at, column_of(lease.run_id), lease.epoch, lease.execution),
            )
            if not done.rowcount:
                lost.append(lease)
        sql.execute("COMMIT")
        return lost

    # -- saves ----------------------------------------------------------------------------------

    def _append(self, entries: list[tuple[int, History]], at: float | None = None) -> None:
        self._sql.executemany(_ENTRY, [(run, *entry, at) for run, entry in entries])

    def _note_save(self, run: int, number: int, at: float) -> None:
        self._sql.execute("INSERT OR REPLACE INTO saves VALUES (?, ?, ?)", (run, number, at))

    def _insert(self, parent: int, children: list[tuple[int, Child]]) -> list[tuple[int, Child]]:
        """Insert several rows with one statement, which binds the values they share only once.

        That is cheaper than row by row, and Python's other threads run while SQLite executes.
        """
        sql, known = self._sql, list[tuple[int, Child]]()
        for (place, alike), group in groupby(children, _in_common):
            shared = (parent, place, *self._shared(alike))
            for some in _portions(list(group)):
                own = chain.from_iterable((column_of(one.key), *_own(one)) for _, one in some)
                try:
                    sql.execute(_insertion(len(some)), (*shared, *own))
                except sqlite3.IntegrityError:  # an earlier execution or attempt has made some
                    known += some
        return known

    def _shared(self, alike: Sequence[Any]) -> list[Any]:
        """Return the values of the columns ``_ALIKE``."""
        values = list(alike)
        values[_FORM] = self._form(values[_FORM])
        if values[_WINNER_KEY] is not None:
            values[_WINNER_KEY] = column_of(values[_WINNER_KEY])
        return values


def _in_common(pair: tuple[int, Child]) -> tuple[int, tuple[Any, ...]]:
    place, child = pair
    return place, _alike(child)


def _portions(children: list[tuple[int, Child]]) -> Iterator[list[tuple[int, Child]]]:
    """Split children into portions of the sizes ``_AT_ONCE``."""
    at = 0
    for size in _AT_ONCE:
        while len(children) - at >= size:
            yield children[at : at + size]
            at += size


@cache
def _insertion(rows: int) -> str:
    """Return the statement that inserts that many rows of children.

    Shared values are numbered parameters, because all rows refer to them. A row's own values are
    plain ``?``, which SQLite numbers on from the last one. Numbering those as well would be slow:
    Python's module looks the name of each such parameter up among all others.
    """
    common, own = ("parent", "place", *_ALIKE), ("key", *_OWN)
    shared = [f"?{number}" for number in range(1, 1 + len(common))]
    row = f"({', '.join((*shared, *'?' * len(own)))})"
    return f"INSERT INTO runs ({', '.join((*common, *own))}) VALUES {', '.join([row] * rows)}"


# -- keys and leases as columns --------------------------------------------------------------------

_LONGEST = 1 << 63


def column_of(key: Key) -> str | int | bytes:
    """Return the column of a key: the key itself, or bytes if SQLite has no such value."""
    if isinstance(key, int):
        number = int(key)
        return number if -_LONGEST <= number < _LONGEST else b"i%x" % number
    if type(key) is str and key.isascii():  # as most are: two calls less
        return key
    text = str.__str__(key)
    return text if _is_clean(text) else b"s" + text.encode("utf-8", "surrogatepass")


def _is_clean(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def key_of(column: str | int | bytes) -> Key:
    if not isinstance(column, bytes):
        return column
    if column[:1] == b"i":
        return int(column[1:], 16)
    return column[1:].decode("utf-8", "surrogatepass")


def _columns_of(key: Key) -> tuple[str | int | bytes]:
    return (column_of(key),)


def _now(_: Connection) -> float:
    return time.time()


def _lease_state_of(row: Sequence[Any]) -> LeaseState:
    epoch, execution, host, boot, pid, started, lease, wall, uptime = row
    holder, at = LeaseHolder(host, boot, pid, started), now()
    left = lease - (at.uptime - uptime if holder.is_near else at.wall - wall)
    return LeaseState(epoch, execution, holder, left)


SQLITE = Dialect(
    key="key",
    key_columns=("key",),
    columns_of=_columns_of,
    column_of=column_of,
    key_of=key_of,
    lease_columns="epoch, execution, host, boot, pid, started, lease, seen_at, seen_uptime",
    lease_state_of=_lease_state_of,
    skips="",
    contains="instr(key, ?) > 0",
    whole="CAST({} AS INTEGER)",
    unindexed=" NOT INDEXED",
    now=_now,
)
