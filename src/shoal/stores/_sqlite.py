"""``SQLiteStore``: runs in a file. Imports the ports, the codec, and its neighbours.

What is one store's own is here: claims, transactions, reading. What a save is as rows is in
``_rows``, the file's layout in ``_sqlite_file``, the thread that writes in ``_writer``.

Invariants:
- Every save names its claim, which is looked at in the same transaction: what comes from an
  execution that the run was taken from is refused, however late it comes.
- One thread writes. Where it could not, nothing of that transaction is kept, and everybody whose
  save was in it is told.
- Nothing is open while nobody has claimed a run or entered the store's block.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast, final
from weakref import WeakSet

from anyio import CancelScope, to_thread

from shoal._codec import Codec
from shoal._errors import CommitInDoubt, DefinitionError, LeaseLost, RunClaimed, ShoalError
from shoal._events import Status
from shoal._history import Entry
from shoal._ids import Key, RunPath
from shoal._ports import Batch, ChildRecord, Orphan, RunRecord, SavedRun
from shoal._retry import is_positive

from ._holders import Holder, current_holder, now
from ._rows import Begun, Child, History, Packer, Place, Rows, Unpacker, chain, outlived
from ._sizes import MAX_UPDATE, UpdateSizes
from ._sqlite_file import Synchronous, connect, explained
from ._writer import Job, Writer

T = TypeVar("T")

Durability = Literal["sync", "relaxed", "end"]

LEASE = 15.0
"""Seconds for which a claim holds without a sign of life."""
PATIENCE = 5.0
"""Seconds that a save waits for a locked file or a full disk."""
WINDOW = 0.05
"""Seconds of saves that may be lost where durability is relaxed."""

_RETRY_AFTER = 0.1  # seconds after which a full disk is tried again
_KNOWN = 10_000  # rows whose ids are remembered

_CHILD = (
    "step, visit, act, key, position, element, digest, status, applied, coalesce(used, 1), value, "
    "forms.form, change, own, reason, winner_act, winner_key, error, coalesce(attempts, 1), "
    "coalesce(elapsed, 0.0), coalesce(abandoned, 0), coalesce(crashes, 0)"
)
_CHILDREN = (
    f"{_CHILD} FROM runs JOIN places ON places.id = place LEFT JOIN forms ON forms.id = runs.form"
)
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
class _Claim:
    """What this process has of a root run."""

    __slots__ = ("epoch", "execution", "failure", "lost", "run_id")

    def __init__(self, run_id: str, execution: str) -> None:
        self.run_id: str = run_id
        self.execution: str = execution
        self.epoch: int = 0
        """Which claim of the run this is, counted from 1; set when it is made."""
        self.lost: bool = False
        """Whether the run was taken over."""
        self.failure: Exception | None = None
        """What went wrong with a save that nobody waited for."""

    def fail(self, error: Exception) -> None:
        self.failure = error

    def refusal(self) -> LeaseLost:
        return _lost(self.run_id)


@final
class SQLiteStore:
    """Keeps runs in a file, with SQLite: they survive the end of the process, whatever ends it.

    Any number of processes of one machine may use a file; each run is executed by one of them at a
    time. An execution that ends without a word, killed say, leaves its run claimed: another process
    on the machine that finds its process gone takes the run over at once; else it can when the
    lease has run out. The execution that was taken over, if it still lives, can't save any more and
    ends with ``LeaseLost``.

    How much a crash may take away is said by ``durability``:

    - ``"sync"``: nothing. What hooks, callers and parents have seen is in the file.
    - ``"relaxed"``: what was saved in the last ``window`` seconds; nobody waits for the disk.
    - ``"end"``: what the execution has done so far, or the last part of that. How a root run ended
      is waited for all the same, here as with ``"relaxed"``.

    What was done and is lost is done again on resume. The file itself is whole after any crash.
    With ``synchronous="full"``, what was waited for survives also that the machine loses its power;
    ``"normal"`` saves that wait for the disk: then a kill of the process, by whatever signal, takes
    nothing away, while a loss of power may take the last saves.

    The file is opened when a run is claimed and closed when the last one is given back. A service
    opens it for as long as it lives: ``async with SQLiteStore("runs.db") as store``. One object may
    be used by several runtimes and event loops, in one process; in a forked one it starts anew.

    Its layout is documented (docs/store-layout.md), and other programs may read it at any time.

    Examples:
        >>> import anyio, tempfile
        >>> @action(reads=["n"], writes=["square"])
        ... async def square(n: int) -> int:
        ...     return n * n
        >>> async def main(file: str) -> None:
        ...     app = Application(square, store=SQLiteStore(file))
        ...     await app.run({"n": 3}, id="three")
        ...     again = await app.run(id="three")  # returns what is recorded, and runs nothing
        ...     print(again.state["square"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     anyio.run(main, f"{folder}/runs.db")
        9
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        codec: Codec | None = None,
        durability: Durability = "sync",
        window: float = WINDOW,
        synchronous: Synchronous = "full",
        lease: float = LEASE,
        heartbeat: float | None = None,
        patience: float = PATIENCE,
        max_update: int = MAX_UPDATE,
    ) -> None:
        """Describe it; nothing is opened yet, and no file made.

        Args:
            path: The file. Its directory has to exist, on a disk of this machine.
            codec: Knows the types of values; by default, those that any ``Codec`` knows.
            durability: How much a crash may take away.
            window: Seconds of saves that it may, with ``durability="relaxed"``.
            synchronous: Whether the disk is waited for: SQLite's setting of that name.
            lease: Seconds for which a run stays claimed without a sign of life.
            heartbeat: Seconds between signs of life; by default a third of the lease.
            patience: Seconds that a save waits while the file is locked or the disk full. Let it be
                less than the commit deadline of the runtime.
            max_update: Bytes that one update may have. Above 1 MB there is a warning, once.

        Raises:
            DefinitionError: An argument is none of these.
            ImportError: msgspec isn't installed.
        """
        if str(path) == ":memory:" or not Path(path).name:
            msg = f"SQLiteStore takes the path of a file, not {str(path)!r}; see MemoryStore"
            raise DefinitionError(msg)
        self.path: Path = Path(path).absolute()  # wherever the process goes
        heartbeat = lease / 3 if heartbeat is None else heartbeat
        for name, seconds in (
            ("window", window),
            ("lease", lease),
            ("heartbeat", heartbeat),
            ("patience", patience),
        ):
            if not is_positive(seconds):
                msg = f"SQLiteStore({name}=...) takes a number of seconds, not {seconds!r}"
                raise DefinitionError(msg)
        if heartbeat >= lease:
            msg = f"a heartbeat every {heartbeat:g} s can't keep up a lease of {lease:g} s"
            raise DefinitionError(msg)
        if durability not in ("sync", "relaxed", "end"):
            msg = f"durability= is 'sync', 'relaxed' or 'end', not {durability!r}"
            raise DefinitionError(msg)
        if synchronous not in ("full", "normal"):
            msg = f"synchronous= is 'full' or 'normal', not {synchronous!r}"
            raise DefinitionError(msg)
        codec = Codec() if codec is None else codec
        self._codec = codec
        self._packer = Packer(codec, UpdateSizes(max_update))
        self._unpacker = Unpacker(codec)
        self._within = {"sync": 0.0, "relaxed": window, "end": inf}[durability]
        self._durability: Durability = durability
        self._synchronous: Synchronous = synchronous
        self._lease, self._heartbeat = lease, heartbeat
        self._patience = patience
        self._lock = Lock()  # event loops may live in several threads
        self._forget_all()
        _stores.add(self)

    def _forget_all(self) -> None:
        """Have nothing open, and nothing claimed."""
        self._claims: dict[tuple[str, str], _Claim] = {}
        self._users = 0  # claims and blocks
        self._writer: Writer[_Database] | None = None
        self._readers: list[sqlite3.Connection] = []  # which nobody uses now

    def __repr__(self) -> str:
        return f"<SQLiteStore {str(self.path)!r}, {len(self._claims)} runs claimed>"

    # -- being open -----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Keep it open until the block is left.

        Raises:
            StoreFailed: The file can't be opened, is damaged, no store, or of a newer version.
        """
        writer = self._enter()
        try:
            await writer.ask(_nothing)
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        """Close it, unless runs are claimed."""
        await self._leave()

    def _enter(self) -> Writer[_Database]:
        with self._lock:
            self._users += 1
            if self._writer is None:
                database = _Database(self)
                self._writer = Writer(database, f"shoal writes {self.path.name}")
            return self._writer

    async def _leave(self) -> None:
        """Have one user less; close what nobody uses. Can't be cancelled."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            writer, self._writer = self._writer, None
        if writer is not None:
            with CancelScope(shield=True):
                await writer.stop()

    # -- what the engine asks of a store --------------------------------------------------------

    async def claim(self, run_id: str, holder: str) -> bool:
        """Let ``holder`` have the run; see ``Store``.

        Raises:
            RunClaimed: Another execution has it. The message says which process, and until when.
            StoreFailed: The file can't be used; the message says why.
        """
        if (run_id, holder) in self._claims:
            msg = f"run {run_id} goes on in this process already, in this very execution"
            raise RunClaimed(msg)
        claim = self._claims[run_id, holder] = _Claim(run_id, holder)
        writer = self._enter()
        try:
            return await writer.ask(lambda database: database.claim(claim), lightly=True)
        except Exception:
            del self._claims[run_id, holder]
            await self._leave()
            raise

    async def release(self, run_id: str, holder: str) -> None:
        """Give the run back; see ``Store``."""
        claim = self._claims.pop((run_id, holder), None)
        if claim is None:
            return
        assert self._writer is not None, "it is open as long as a run is claimed"
        try:
            await self._writer.ask(lambda database: database.release(claim), lightly=True)
        finally:
            await self._leave()

    def pack(self, child: SavedRun) -> object:
        """Encode what a child has come to; see ``Store``."""
        return self._packer.pack(child)

    def save(self, batch: Batch) -> Job[Any, None] | None:
        """Keep ``batch``; see ``Store``."""
        run_id = batch.path.root.id
        claim = self._claims.get((run_id, batch.holder))
        if claim is None or claim.lost or self._writer is None:
            raise _lost(run_id)
        if claim.failure is not None:
            raise claim.failure
        rows = self._packer.save(batch)

        def work(database: _Database) -> None:
            database.save(rows, claim)

        if not self._within or batch.ended is not None:
            return self._writer.ask(work)
        return self._writer.leave(work, self._within, claim.fail)

    async def load(self, run_id: str) -> RunRecord | None:
        """Say what is known of a root run; see ``Store``."""
        return await self._read(lambda reader: reader.load(run_id))

    async def read(self, path: RunPath, from_number: int = 0) -> Sequence[Entry]:
        """Return the history of a run; see ``Store``."""
        return await self._read(lambda reader: reader.history(path, from_number)) or ()

    async def children(
        self, path: RunPath, step: str | None = None, visit: int | None = None
    ) -> Sequence[ChildRecord]:
        """Return what is known of the children of a run; see ``Store``."""
        return await self._read(lambda reader: reader.children(path, step, visit)) or ()

    async def orphans(self) -> Sequence[Orphan]:
        """Return the runs that have no end and that nobody executes; see ``FindsOrphans``."""
        return await self._read(lambda reader: reader.orphans()) or ()

    async def discard(self, run_id: str) -> None:
        """Forget a root run and all its descendants; one that is not known is no error.

        Raises:
            RunClaimed: An execution of it goes on.
            StoreFailed: The file can't be used.
        """
        async with self:
            assert self._writer is not None, "it is open"
            await self._writer.ask(lambda database: database.discard(run_id))

    async def _read(self, look: Callable[[_Reader], T]) -> T | None:
        """Call ``look`` in a worker thread; without it where there is no file."""
        writer = self._writer
        if self._within and writer is not None:
            await writer.ask(
                _nothing, lightly=True
            )  # so that what was saved, and left for later, is there

        def work() -> T | None:
            connection = self._reader()
            if connection is None:
                return None
            try:
                found = look(_Reader(connection, self._unpacker, self._codec))
            except sqlite3.Error as error:
                connection.close()
                raise explained(error, self.path, self._patience) from error
            except BaseException:
                connection.close()
                raise
            self._give_back(connection)
            return found

        return await to_thread.run_sync(work)

    def _reader(self) -> sqlite3.Connection | None:
        with self._lock:
            if self._readers:
                return self._readers.pop()
        if not self.path.exists():
            return None
        return connect(
            self.path, patience=self._patience, synchronous=self._synchronous, reads_only=True
        )

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if self._writer is not None:
                self._readers.append(connection)
                return
        connection.close()

    def take_readers(self) -> Sequence[sqlite3.Connection]:
        """Return the connections that nobody uses now, for the caller to close."""
        with self._lock:
            readers, self._readers = self._readers, []
        return readers


def _nothing(_: object) -> None:
    """Ask for nothing but to be told when it is one's turn."""


def _lost(run_id: str) -> LeaseLost:
    return LeaseLost(
        f"run {run_id} was taken over by another execution; this one can't save any more"
    )


# -- writing ---------------------------------------------------------------------------------------


@final
class _Database:
    """The file as the writer's thread has it."""

    def __init__(self, store: SQLiteStore) -> None:
        self._store = store
        self._path, self._patience = store.path, store._patience
        self._claims: dict[str, _Claim] = {}
        self._next_beat = inf
        self._checked: set[str] = set()  # claims that were looked at in this transaction
        self._known: dict[tuple[int, int, Key], int] = {}  # runs, by parent, place and key
        self._places: dict[Place, int] = {}
        self._forms: dict[str, int] = {}
        self._connection: sqlite3.Connection | None = None
        self._synchronous: Synchronous = store._synchronous  # as it is set now

    @property
    def _sql(self) -> sqlite3.Connection:
        assert self._connection is not None, "it is open"
        return self._connection

    def open(self) -> None:
        self._connection = connect(
            self._path, patience=self._patience, synchronous=self._synchronous
        )

    def close(self) -> None:
        if self._connection is not None:
            for connection in (*self._store.take_readers(), self._connection):
                with suppress(sqlite3.Error):
                    connection.close()

    # -- transactions ---------------------------------------------------------------------------

    def do(self, jobs: Sequence[Job[_Database, Any]]) -> None:
        until = time.monotonic() + self._patience
        error = self._attempt(jobs)
        while _code(error) == sqlite3.SQLITE_FULL and time.monotonic() < until:
            time.sleep(_RETRY_AFTER)
            error = self._attempt(jobs)
        if error is not None:
            self._fail(jobs, error)

    def _attempt(self, jobs: Sequence[Job[_Database, Any]]) -> Exception | None:
        try:
            self._transact(jobs)
        except Exception as error:  # noqa: BLE001 # whoever waits hears of it
            self._roll_back()
            return error
        return None

    def _fail(self, jobs: Sequence[Job[_Database, Any]], error: Exception) -> None:
        """Tell everybody of ``error``; where it may be one job's alone, find out whose."""
        in_general = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
        if len(jobs) > 1 and _code(error) not in in_general:
            for job in jobs:
                self.do((job,))
            return
        for job in jobs:
            failure = error
            if isinstance(error, sqlite3.Error):
                failure = explained(error, self._path, self._patience)
                failure.__cause__ = error
            job.error = failure

    def _transact(self, jobs: Sequence[Job[_Database, Any]]) -> None:
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
            msg = f"whether a save is kept is unknown: {self._path} could not be written ({error})"
            for job in jobs:
                job.error = CommitInDoubt(msg)
            self._roll_back()

    def _set_synchronous(self, *, lightly: bool) -> None:
        """Have the next transaction wait for the disk, or not: claims needn't."""
        wanted: Synchronous = "normal" if lightly else self._store._synchronous
        if wanted != self._synchronous:
            self._sql.execute(f"PRAGMA synchronous = {wanted}")
            self._synchronous = wanted

    def _roll_back(self) -> None:
        for known in (self._known, self._places, self._forms):
            known.clear()
        if self._sql.in_transaction:
            with suppress(sqlite3.Error):
                self._sql.execute("ROLLBACK")

    # -- claims ---------------------------------------------------------------------------------

    def claim(self, claim: _Claim) -> bool:
        """Claim a run; return whether its last execution never gave it back."""
        run_id, us, at = claim.run_id, current_holder(), now()
        epoch, has_died = self._refuse_claimed(run_id)
        claim.epoch = epoch + 1
        self._sql.execute(
            "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (run_id, claim.epoch, claim.execution, *us, self._store._lease, *at),
        )
        self._claims[run_id] = claim
        self._next_beat = min(self._next_beat, time.monotonic() + self._store._heartbeat)
        return has_died

    def _refuse_claimed(self, run_id: str) -> tuple[int, bool]:
        """Return the epoch of the last claim, and whether that was never given back."""
        found = self._sql.execute("SELECT * FROM claims WHERE run_id = ?", (run_id,)).fetchone()
        if found is None:
            return 0, False
        _, epoch, *claim = found
        left = _seconds_left(claim)
        if left > 0:
            raise RunClaimed(_claimed(run_id, Holder(*claim[1:5]), now().wall + left))
        return int(epoch), claim[0] is not None

    def release(self, claim: _Claim) -> None:
        self._sql.execute(
            "UPDATE claims SET execution = NULL WHERE run_id = ? AND epoch = ?",
            (claim.run_id, claim.epoch),
        )
        if self._claims.get(claim.run_id) is claim:
            del self._claims[claim.run_id]

    def _check(self, claim: _Claim) -> None:
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
            heartbeat = self._store._heartbeat
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

    def save(self, rows: Rows, claim: _Claim) -> None:
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
            column = _column_of(key)
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
                "forked_from, forked_at, began_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
            None if winner is None else _column_of(winner),
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
                new.append((parent, place, _column_of(child.key), *self._row(child)))
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
            f"SELECT {_CHILDREN} WHERE runs.id = ? AND "
            "(applied IS NOT NULL OR own IS NOT NULL OR runs.form IS NOT NULL)",
            (run,),
        ).fetchone()
        if before is None:
            return
        for is_parents, entry in outlived(_child_of(before), self._store._codec):
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


def _seconds_left(claim: Sequence[Any]) -> float:
    """Return for how long a claim holds, by its row; 0 if nobody has the run any more."""
    execution, host, boot, pid, started, lease, wall, uptime = claim
    holder, at = Holder(host, boot, pid, started), now()
    if execution is None or holder.is_gone:
        return 0.0
    return max(0.0, lease - (at.uptime - uptime if holder.is_near else at.wall - wall))


def _code(error: Exception | None) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _claimed(run_id: str, holder: Holder, until: float) -> str:
    us = current_holder()
    where = "this process" if holder == us else str(holder)
    when = time.strftime("%H:%M:%S", time.localtime(until))
    return (
        f"run {run_id} goes on in {where} already, and each run is executed once at a time: wait "
        f"for that execution to end, or cancel it; unless it gives a sign of life, its lease runs "
        f"out at {when}"
    )


# -- keys ------------------------------------------------------------------------------------------

_LONGEST = 1 << 63


def _column_of(key: Key) -> str | int | bytes:
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


def _key_of(column: str | int | bytes) -> Key:
    if not isinstance(column, bytes):
        return column
    if column[:1] == b"i":
        return int(column[1:], 16)
    return column[1:].decode("utf-8", "surrogatepass")


# -- reading ---------------------------------------------------------------------------------------


@final
class _Reader:
    """A connection, in one of the threads that read."""

    def __init__(self, sql: sqlite3.Connection, unpacker: Unpacker, codec: Codec) -> None:
        self._sql = sql
        self._unpacker = unpacker
        self._codec = codec

    def load(self, run_id: str) -> RunRecord | None:
        found = self._sql.execute(
            "SELECT application, version, first, after, visits, forked_from, forked_at, status, "
            "coalesce(reason, '') FROM runs JOIN roots ON roots.run = runs.id "
            "WHERE parent = 0 AND place = 0 AND key = ?",
            (_column_of(run_id),),
        ).fetchone()
        if found is None:
            return None
        return self._unpacker.run(Begun(*found[:7]), cast("Status | None", found[7]), found[8])

    def orphans(self) -> list[Orphan]:
        found = self._sql.execute(
            "SELECT key, application, version, execution, host, boot, pid, started, lease, "
            "seen_at, seen_uptime FROM runs JOIN roots ON roots.run = runs.id "
            "JOIN claims ON claims.run_id = runs.key "
            "WHERE parent = 0 AND status IS NULL ORDER BY runs.id"
        )
        return [Orphan(*row[:3]) for row in found if not _seconds_left(row[3:])]

    def history(self, path: RunPath, from_number: int) -> Sequence[Entry]:
        self._sql.execute("BEGIN")  # one moment for all that is looked at
        try:
            return self._history(path, from_number)
        finally:
            self._sql.execute("COMMIT")

    def _history(self, path: RunPath, from_number: int) -> Sequence[Entry]:
        run = self._find(path)
        if run is None:
            return ()
        rows = [
            History(*found)
            for found in self._sql.execute(
                "SELECT number, kind, step, data FROM history WHERE run = ? AND number >= ? "
                "ORDER BY number, kind <> 'update', id",
                (run, from_number),
            )
        ]
        if path.parent is not None:
            (child,) = self._children("runs.id = ?", (run,))
            own = [entry for is_parents, entry in outlived(child, self._codec) if not is_parents]
            rows += [entry for entry in own if entry.number >= from_number]
            rows.sort(key=lambda entry: (entry.number, entry.kind != "update"))
        applied = self._children(
            "parent = ? AND applied >= ? ORDER BY applied", (run, max(from_number, 0))
        )
        return self._unpacker.history(rows, applied)

    def children(self, path: RunPath, step: str | None, visit: int | None) -> list[ChildRecord]:
        run = self._find(path)
        if run is None:
            return []
        where = "parent = ? AND position IS NOT NULL"
        values: list[object] = [run]
        if step is not None:
            where += " AND place IN (SELECT id FROM places WHERE step = ?)"
            values.append(step)
        if visit is not None:
            where += " AND place IN (SELECT id FROM places WHERE visit = ?)"
            values.append(visit)
        found = self._children(f"{where} ORDER BY runs.id", values)
        return [self._unpacker.child(child) for child in found]

    def _children(self, where: str, values: Sequence[object]) -> Iterator[Child]:
        found = self._sql.execute(f"SELECT {_CHILDREN} WHERE {where}", values)
        return map(_child_of, found)

    def _find(self, path: RunPath) -> int | None:
        found: tuple[int] | None = self._sql.execute(
            "SELECT id FROM runs WHERE parent = 0 AND place = 0 AND key = ?",
            (_column_of(path.root.id),),
        ).fetchone()
        for place, key in chain(path):
            if found is None:
                return None
            found = self._sql.execute(
                "SELECT runs.id FROM runs JOIN places ON places.id = place "
                "WHERE parent = ? AND step = ? AND visit = ? AND act = ? AND key = ?",
                (*found, *place, _column_of(key)),
            ).fetchone()
        return None if found is None else found[0]


def _child_of(row: Sequence[Any]) -> Child:
    step, visit, act, key, *rest = row
    winner = rest[12]
    if winner is not None:
        rest[12] = _key_of(winner)
    return Child(step, visit, act, _key_of(key), *rest)


# -- forks -----------------------------------------------------------------------------------------

_stores: WeakSet[SQLiteStore] = WeakSet()
_inherited: list[object] = []  # never closed: they are the parent process's


def _start_anew() -> None:
    """Let go of what a forked process has inherited, without touching any of it."""
    for store in list(_stores):
        _inherited.append((store._writer, store._readers))
        store._lock = Lock()
        store._forget_all()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
