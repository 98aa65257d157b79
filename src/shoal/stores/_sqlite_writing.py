"""Writing to the file of an ``SQLiteStore``, in its writer's thread. Imports reading and claims.

Invariants:
- Every save names its claim, which is looked at in the same transaction: what comes from an
  execution that the run was taken from is refused, however late it comes.
- Where a transaction failed, nothing of it is kept, and everybody whose save was in it is told.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, final

from shoal._codec import Codec
from shoal._errors import CommitInDoubt, RunClaimed, ShoalError
from shoal._ids import Key

from ._holders import Holder, current_holder, now
from ._rows import Child, Place, Rows, outlived
from ._sqlite_claims import Claim, refusal_of, seconds_left
from ._sqlite_file import Synchronous, column_of, connect, explained
from ._sqlite_reading import CHILDREN, child_of
from ._writer import Job

_RETRY_AFTER = 0.1  # seconds after which a full disk is tried again
_KNOWN = 10_000  # rows whose ids are remembered

_COLUMNS = (
    "position", "element", "digest", "status", "applied", "used", "value", "form", "change", "own",
    "reason", "winner_act", "winner_key", "error", "attempts", "elapsed", "abandoned",
    "crashes",
)  # fmt: skip
_INSERT = (
    f"INSERT INTO runs (parent, place, key, {', '.join(_COLUMNS)}) "  # noqa: S608 # names of ours
    f"VALUES ({', '.join('?' * (3 + len(_COLUMNS)))})"
)
_UPDATE = f"UPDATE runs SET {', '.join(f'{name} = ?' for name in _COLUMNS)} WHERE id = ?"  # noqa: S608
_ENTRY = "INSERT INTO history (run, number, kind, step, data) VALUES (?, ?, ?, ?, ?)"
_BELOW = (
    "WITH RECURSIVE below(id) AS (SELECT id FROM runs WHERE parent = ? UNION ALL "
    "SELECT runs.id FROM runs JOIN below ON runs.parent = below.id) "
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How a store was described."""

    path: Path
    codec: Codec
    synchronous: Synchronous
    lease: float
    heartbeat: float
    patience: float


@final
class Database:
    """The file as the writer's thread has it."""

    def __init__(
        self, config: Config, take_readers: Callable[[], Iterable[sqlite3.Connection]]
    ) -> None:
        """Open nothing yet; ``take_readers`` gives connections to close with its own."""
        self._config = config
        self._take_readers = take_readers
        self._claims: dict[str, Claim] = {}
        self._next_beat = inf
        self._checked: set[str] = set()  # claims that were looked at in this transaction
        self._known: dict[tuple[int, int, Key], int] = {}  # runs, by parent, place and key
        self._places: dict[Place, int] = {}
        self._forms: dict[str, int] = {}
        self._connection: sqlite3.Connection | None = None
        self._synchronous: Synchronous = config.synchronous  # as it is set now

    @property
    def _sql(self) -> sqlite3.Connection:
        assert self._connection is not None, "it is open"
        return self._connection

    def open(self) -> None:
        config = self._config
        self._connection = connect(
            config.path, patience=config.patience, synchronous=self._synchronous
        )

    def close(self) -> None:
        if self._connection is not None:
            for connection in (*self._take_readers(), self._connection):
                with suppress(sqlite3.Error):  # all that was acknowledged is in the file
                    connection.close()

    # -- transactions ---------------------------------------------------------------------------

    def do(self, jobs: Sequence[Job[Database, Any]]) -> None:
        until = time.monotonic() + self._config.patience
        error = self._attempt(jobs)
        while _code(error) == sqlite3.SQLITE_FULL and time.monotonic() < until:
            time.sleep(_RETRY_AFTER)
            error = self._attempt(jobs)
        if error is not None:
            self._fail(jobs, error)

    def _attempt(self, jobs: Sequence[Job[Database, Any]]) -> Exception | None:
        try:
            self._transact(jobs)
        except Exception as error:  # noqa: BLE001 # whoever waits hears of it
            self._roll_back()
            return error
        return None

    def _fail(self, jobs: Sequence[Job[Database, Any]], error: Exception) -> None:
        """Tell everybody of ``error``; where it may be one job's alone, find out whose."""
        in_general = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
        if len(jobs) > 1 and _code(error) not in in_general:
            for job in jobs:
                self.do((job,))
            return
        for job in jobs:
            failure = error
            if isinstance(error, sqlite3.Error):
                failure = explained(error, self._config.path, self._config.patience)
                failure.__cause__ = error
            job.error = failure

    def _transact(self, jobs: Sequence[Job[Database, Any]]) -> None:
        sql = self._sql
        self._set_synchronous(lightly=all(job.is_light for job in jobs))
        sql.execute("BEGIN IMMEDIATE")
        self._checked.clear()
        for job in jobs:
            try:
                job.error = None
                job.result = job.work(self)
            except ShoalError as error:  # raised before anything was written
                job.error = error
        try:
            sql.execute("COMMIT")
        except sqlite3.Error as error:
            if _code(error) != sqlite3.SQLITE_IOERR:
                raise
            path = self._config.path
            msg = f"whether a save is kept is unknown: {path} could not be written ({error})"
            for job in jobs:
                job.error = CommitInDoubt(msg)
            self._roll_back()

    def _set_synchronous(self, *, lightly: bool) -> None:
        """Have the next transaction wait for the disk, or not: claims needn't."""
        wanted: Synchronous = "normal" if lightly else self._config.synchronous
        if wanted != self._synchronous:
            self._sql.execute(f"PRAGMA synchronous = {wanted}")
            self._synchronous = wanted

    def _roll_back(self) -> None:
        for known in (self._known, self._places, self._forms):
            known.clear()
        if self._sql.in_transaction:
            with suppress(sqlite3.Error):  # what it failed with before is what is told
                self._sql.execute("ROLLBACK")

    # -- claims ---------------------------------------------------------------------------------

    def claim(self, claim: Claim) -> bool:
        """Claim a run; return whether its last execution never gave it back."""
        run_id, us, at = claim.run_id, current_holder(), now()
        epoch, has_died = self._refuse_claimed(run_id)
        claim.epoch = epoch + 1
        self._sql.execute(
            "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (run_id, claim.epoch, claim.execution, *us, self._config.lease, *at),
        )
        self._claims[run_id] = claim
        self._next_beat = min(self._next_beat, time.monotonic() + self._config.heartbeat)
        return has_died

    def _refuse_claimed(self, run_id: str) -> tuple[int, bool]:
        """Return the epoch of the last claim, and whether that was never given back."""
        found = self._sql.execute("SELECT * FROM claims WHERE run_id = ?", (run_id,)).fetchone()
        if found is None:
            return 0, False
        _, epoch, *claim = found
        left = seconds_left(claim)
        if left > 0:
            raise RunClaimed(refusal_of(run_id, Holder(*claim[1:5]), now().wall + left))
        return int(epoch), claim[0] is not None

    def release(self, claim: Claim) -> None:
        self._sql.execute(
            "UPDATE claims SET execution = NULL WHERE run_id = ? AND epoch = ?",
            (claim.run_id, claim.epoch),
        )
        if self._claims.get(claim.run_id) is claim:
            del self._claims[claim.run_id]

    def _check(self, claim: Claim) -> None:
        """Refuse the save of an execution that the run was taken from."""
        if claim.execution in self._checked:
            return
        found = self._sql.execute(
            "SELECT 1 FROM claims WHERE run_id = ? AND epoch = ? AND execution = ?",
            (claim.run_id, claim.epoch, claim.execution),
        ).fetchone()
        if found is None:
            claim.lost = True
            raise claim.refusal()
        self._checked.add(claim.execution)

    def keep_up(self) -> float:
        """Give a sign of life of all that is claimed, when it is time."""
        if not self._claims:
            return inf
        at = time.monotonic()
        if at >= self._next_beat:
            heartbeat = self._config.heartbeat
            try:
                self._beat()
                self._next_beat = at + heartbeat
            except sqlite3.Error:  # locked, or full: saves say so
                self._roll_back()
                self._next_beat = time.monotonic() + heartbeat / 4
        return self._next_beat

    def _beat(self) -> None:
        sql, at = self._sql, now()
        self._set_synchronous(lightly=True)
        sql.execute("BEGIN IMMEDIATE")
        for claim in list(self._claims.values()):
            done = sql.execute(
                "UPDATE claims SET seen_at = ?, seen_uptime = ? WHERE run_id = ? AND epoch = ? "
                "AND execution = ?",
                (*at, claim.run_id, claim.epoch, claim.execution),
            )
            if not done.rowcount:
                claim.lost = True
                del self._claims[claim.run_id]
        sql.execute("COMMIT")

    # -- saves ----------------------------------------------------------------------------------

    def save(self, rows: Rows, claim: Claim) -> None:
        """Write ``rows``, unless the run was taken over."""
        self._check(claim)
        sql, run = self._sql, self._root(rows.root)
        parent = 0
        for place, key in rows.path:
            parent, run = run, self._run(run, self._place(place), key)
        if rows.afresh:
            self._delete_below(run)
        if rows.run is not None:
            self._note_under_way(run, parent, rows.run, afresh=rows.afresh)
        else:
            self._note_root(run, rows)
        if rows.history:
            sql.executemany(_ENTRY, [(run, *entry) for entry in rows.history])
        if rows.children:
            self._keep_children(run, rows.children)

    def _root(self, run_id: str) -> int:
        return self._run(0, 0, run_id)

    def _run(self, parent: int, place: int, key: Key) -> int:
        """Find the row of a run; make it, if it is new."""
        name = (parent, place, key)
        run = self._known.get(name)
        if run is None:
            column = column_of(key)
            found = self._sql.execute(
                "SELECT id FROM runs WHERE parent = ? AND place = ? AND key = ?",
                (parent, place, column),
            ).fetchone()
            if found is None:
                found = self._sql.execute(
                    "INSERT INTO runs (parent, place, key) VALUES (?, ?, ?) RETURNING id",
                    (parent, place, column),
                ).fetchone()
            if len(self._known) >= _KNOWN:
                self._known.clear()
            run = self._known[name] = int(found[0])
        return run

    def _place(self, place: Place) -> int:
        found = self._places.get(place)
        if found is None:
            found = self._intern("places", "step, visit, act", tuple(place))
            self._places[place] = found
        return found

    def _form(self, form: str | None) -> int | None:
        if form is None:
            return None
        found = self._forms.get(form)
        if found is None:
            found = self._forms[form] = self._intern("forms", "form", (form,))
        return found

    def _intern(self, table: str, names: str, values: tuple[object, ...]) -> int:
        holes = ", ".join("?" * len(values))
        sql = self._sql
        sql.execute(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({holes})", values)  # noqa: S608
        where = " AND ".join(f"{name} = ?" for name in names.split(", "))
        found = sql.execute(f"SELECT id FROM {table} WHERE {where}", values).fetchone()  # noqa: S608
        return int(found[0])

    def _note_root(self, run: int, rows: Rows) -> None:
        sql = self._sql
        if rows.begun is not None:
            sql.execute(
                "INSERT OR REPLACE INTO roots (run, application, version, first, after, visits, "
                "forked_from, forked_at, secret, began_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (run, *rows.begun, time.time()),
            )
        known = sql.execute("SELECT status FROM runs WHERE id = ?", (run,)).fetchone()
        if rows.status is not None or known != (None,):
            sql.execute(
                "UPDATE runs SET status = ?, reason = ? WHERE id = ?",
                (rows.status, rows.reason or None, run),
            )
            ended = None if rows.status is None else time.time()
            sql.execute("UPDATE roots SET ended_at = ? WHERE run = ?", (ended, run))

    def _note_under_way(self, run: int, parent: int, child: Child, *, afresh: bool) -> None:
        """Have it known that a child has begun, or has to again."""
        if afresh:
            self._save_updates_of(run, parent)
            self._sql.execute("DELETE FROM history WHERE run = ?", (run,))
        where = "" if afresh else " AND position IS NULL"
        done = self._sql.execute(f"{_UPDATE}{where}", (*self._row(child), run))
        if not done.rowcount:
            self._sql.execute(
                "UPDATE runs SET crashes = ? WHERE id = ? AND crashes <> ?",
                (child.crashes, run, child.crashes),
            )

    def _row(self, child: Child) -> tuple[object, ...]:
        form, winner = self._form(child.form), child.winner_key
        return (
            *child[4:11],
            form,
            *child[12:16],
            None if winner is None else column_of(winner),
            *child[17:],
        )

    def _keep_children(self, parent: int, children: Iterable[Child]) -> None:
        """Write how children ended: new rows mostly, else those of children known already."""
        new: list[tuple[object, ...]] = []
        known: list[tuple[int, Child]] = []
        for child in children:
            place = self._place(Place(child.step, child.visit, child.act))
            if (parent, place, child.key) in self._known:
                known.append((place, child))
            else:
                new.append((parent, place, column_of(child.key), *self._row(child)))
        sql = self._sql
        sql.execute("SAVEPOINT children")
        try:
            sql.executemany(_INSERT, new)
        except sqlite3.IntegrityError:  # earlier executions or attempts have left some
            sql.execute("ROLLBACK TO children")
            known = [(self._place(Place(*child[:3])), child) for child in children]
        sql.execute("RELEASE children")
        for place, child in known:
            self._replace(self._run(parent, place, child.key), parent, child)

    def _replace(self, run: int, parent: int, child: Child) -> None:
        """Write how a child ended into its row."""
        self._save_updates_of(run, parent)
        self._sql.execute(_UPDATE, (*self._row(child), run))

    def _save_updates_of(self, run: int, parent: int) -> None:
        """Put what the row of a child says of histories there, before it is replaced."""
        before = self._sql.execute(
            f"SELECT {CHILDREN} WHERE runs.id = ? AND "
            "(applied IS NOT NULL OR own IS NOT NULL OR runs.form IS NOT NULL)",
            (run,),
        ).fetchone()
        if before is None:
            return
        for is_parents, entry in outlived(child_of(before), self._config.codec):
            self._sql.execute(_ENTRY, (parent if is_parents else run, *entry))

    def _delete_below(self, run: int) -> None:
        sql = self._sql
        for table, column in (("history", "run"), ("runs", "id")):
            sql.execute(
                f"{_BELOW}DELETE FROM {table} WHERE {column} IN (SELECT id FROM below)",  # noqa: S608
                (run,),
            )
        self._known = {name: known for name, known in self._known.items() if name[0] == 0}

    def discard(self, run_id: str) -> None:
        """Forget a root run and all below it."""
        self._refuse_claimed(run_id)
        run, sql = self._root(run_id), self._sql
        self._delete_below(run)
        sql.execute("DELETE FROM history WHERE run = ?", (run,))
        sql.execute("DELETE FROM roots WHERE run = ?", (run,))
        sql.execute("DELETE FROM runs WHERE id = ?", (run,))
        sql.execute("DELETE FROM claims WHERE run_id = ?", (run_id,))
        self._known.clear()


def _code(error: Exception | None) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
