"""The file of an ``SQLiteStore`` as its threads have it. Imports the layout, and writing.

Invariants:
- A transaction that writes has the file to itself from its beginning.
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
from typing import Any, final

from shoal._errors.exceptions import CommitInDoubt
from shoal._events.identity import Key
from shoal.stores._sql.dialect import Connection, Dialect
from shoal.stores._sql.holders import Holder, current_holder, now
from shoal.stores._sql.leases import Claim, Held
from shoal.stores._sql.rows import Child, History
from shoal.stores._sql.writer_thread import Job
from shoal.stores._sql.writing import COLUMNS, Config, Database

from .file import Synchronous, code_of, connect

_OWN = ("position", "element", "digest", "applied", "value", "elapsed")
_ALIKE = tuple(name for name in COLUMNS if name not in _OWN)
_own: Callable[[Child], tuple[Any, ...]] = itemgetter(*map(Child._fields.index, _OWN))
_alike: Callable[[Child], tuple[Any, ...]] = itemgetter(*map(Child._fields.index, _ALIKE))
_AT_ONCE = (32, 8, 1)  # rows that statements write; each is prepared once for a connection

_ENTRY = "INSERT INTO history (run, number, kind, step, data) VALUES (?, ?, ?, ?, ?)"


@final
class SQLiteDatabase(Database):
    """The file as the writer's thread has it."""

    def __init__(
        self,
        config: Config,
        path: Path,
        synchronous: Synchronous,
        take_readers: Callable[[], Iterable[Connection]],
    ) -> None:
        """Open nothing yet; ``take_readers`` gives connections to close with its own."""
        super().__init__(config)
        self._path = path
        self._take_readers = take_readers
        self._checked: set[str] = set()  # claims that were looked at in this transaction
        self._connection: sqlite3.Connection | None = None
        self._wanted: Synchronous = synchronous
        self._synchronous: Synchronous = synchronous  # as it is set now

    @property
    def _sql(self) -> sqlite3.Connection:
        assert self._connection is not None, "it is open"
        return self._connection

    def open(self) -> None:
        self._connection = connect(
            self._path, patience=self._config.patience, synchronous=self._synchronous
        )

    def close(self) -> None:
        if self._connection is not None:
            for connection in (*self._take_readers(), self._connection):
                with suppress(sqlite3.Error):  # all that was acknowledged is in the file
                    connection.close()

    # -- transactions ---------------------------------------------------------------------------

    def _begin(self, jobs: Sequence[Job[Any, Any]]) -> None:
        self._set_synchronous(lightly=all(job.is_light for job in jobs))
        self._sql.execute("BEGIN IMMEDIATE")
        self._checked.clear()

    def _commit(self, jobs: Sequence[Job[Any, Any]]) -> None:
        try:
            self._sql.execute("COMMIT")
        except sqlite3.Error as error:
            if code_of(error) != sqlite3.SQLITE_IOERR:
                raise
            msg = f"whether a save is kept is unknown: {self._path} could not be written ({error})"
            for job in jobs:
                job.error = CommitInDoubt(msg)
            self._roll_back()

    def _abort(self) -> None:
        if self._sql.in_transaction:
            with suppress(sqlite3.Error):  # what it failed with before is what is told
                self._sql.execute("ROLLBACK")

    def _set_synchronous(self, *, lightly: bool) -> None:
        """Have the next transaction wait for the disk, or not: claims needn't."""
        wanted: Synchronous = "normal" if lightly else self._wanted
        if wanted != self._synchronous:
            self._sql.execute(f"PRAGMA synchronous = {wanted}")
            self._synchronous = wanted

    # -- room -----------------------------------------------------------------------------------

    def give_back(self, limit: int) -> bool:
        sql = self._sql
        (can_shrink,) = sql.execute("PRAGMA auto_vacuum").fetchone()
        if not can_shrink:  # it was made before files could
            return False
        (free,) = sql.execute("PRAGMA freelist_count").fetchone()
        for _ in range(min(free, limit)):
            sql.execute("PRAGMA incremental_vacuum(1)")  # the module asks for one page at a time
        return free > limit

    # -- claims ---------------------------------------------------------------------------------

    def _check(self, claim: Claim) -> None:
        if claim.execution in self._checked:
            return
        found = self._sql.execute(
            "SELECT 1 FROM claims WHERE run_id = ? AND epoch = ? AND execution = ?",
            (column_of(claim.run_id), claim.epoch, claim.execution),
        ).fetchone()
        if found is None:
            claim.lost = True
            raise claim.refusal()
        self._checked.add(claim.execution)

    def _held(self, run_id: str) -> Held | None:
        found = self._sql.execute(
            f"SELECT {SQLITE.held} FROM claims WHERE run_id = ?", (column_of(run_id),)
        ).fetchone()
        return None if found is None else _held_of(found)

    def _take(self, claim: Claim) -> None:
        self._sql.execute(
            "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(column_of(claim.run_id), claim.epoch, claim.execution),
                *(*current_holder(), self._config.lease, *now()),
            ),
        )

    def _beat(self) -> list[Claim]:
        sql, at, lost = self._sql, now(), list[Claim]()
        self._set_synchronous(lightly=True)
        sql.execute("BEGIN IMMEDIATE")
        for claim in self._claims.values():
            done = sql.execute(
                "UPDATE claims SET seen_at = ?, seen_uptime = ? WHERE run_id = ? AND epoch = ? "
                "AND execution = ?",
                (*at, column_of(claim.run_id), claim.epoch, claim.execution),
            )
            if not done.rowcount:
                lost.append(claim)
        sql.execute("COMMIT")
        return lost

    # -- saves ----------------------------------------------------------------------------------

    def _append(self, entries: list[tuple[int, History]]) -> None:
        self._sql.executemany(_ENTRY, [(run, *entry) for run, entry in entries])

    def _insert(self, parent: int, children: list[tuple[int, Child]]) -> list[tuple[int, Child]]:
        """Write rows in statements of several, in which what they have in common is bound once.

        That takes less than row by row, and SQLite lets others run while it executes a statement.
        """
        sql, known = self._sql, list[tuple[int, Child]]()
        for (place, alike), group in groupby(children, _in_common):
            shared = (parent, place, *self._shared(alike))
            for some in _portions(list(group)):
                own = chain.from_iterable((column_of(one.key), *_own(one)) for _, one in some)
                try:
                    sql.execute(_insertion(len(some)), (*shared, *own))
                except sqlite3.IntegrityError:  # earlier executions or attempts have left some
                    known += some
        return known

    def _shared(self, alike: Sequence[Any]) -> Iterator[Any]:
        """Return what the columns of ``_ALIKE`` hold."""
        for name, value in zip(_ALIKE, alike, strict=True):
            if name == "form":
                yield self._form(value)
            else:
                yield column_of(value) if name == "winner_key" and value is not None else value


def _in_common(pair: tuple[int, Child]) -> tuple[int, tuple[Any, ...]]:
    place, child = pair
    return place, _alike(child)


def _portions(children: list[tuple[int, Child]]) -> Iterator[list[tuple[int, Child]]]:
    """Split them into as many as statements write."""
    at = 0
    for size in _AT_ONCE:
        while len(children) - at >= size:
            yield children[at : at + size]
            at += size


@cache
def _insertion(rows: int) -> str:
    """Return the statement that writes so many rows of children.

    What they have in common has numbers, for all rows name it. What is a row's own has none: SQLite
    counts on from the last number, and Python's module would look for the name of each parameter
    among all that have one.
    """
    common, own = ("parent", "place", *_ALIKE), ("key", *_OWN)
    shared = [f"?{number}" for number in range(1, 1 + len(common))]
    row = f"({', '.join((*shared, *'?' * len(own)))})"
    return f"INSERT INTO runs ({', '.join((*common, *own))}) VALUES {', '.join([row] * rows)}"


# -- keys and claims as columns --------------------------------------------------------------------

_LONGEST = 1 << 63


def column_of(key: Key) -> str | int | bytes:
    """Return what SQLite keeps of a key: the key itself, but for what SQLite doesn't have."""
    if isinstance(key, int):
        number = int(key)
        return number if -_LONGEST <= number < _LONGEST else b"i%x" % number
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


def _held_of(row: Sequence[Any]) -> Held:
    epoch, execution, host, boot, pid, started, lease, wall, uptime = row
    holder, at = Holder(host, boot, pid, started), now()
    left = lease - (at.uptime - uptime if holder.is_near else at.wall - wall)
    return Held(epoch, execution, holder, left)


SQLITE = Dialect(
    key="key",
    key_columns=("key",),
    columns_of=_columns_of,
    column_of=column_of,
    key_of=key_of,
    held="epoch, execution, host, boot, pid, started, lease, seen_at, seen_uptime",
    held_of=_held_of,
    skips="",
    now=_now,
)
