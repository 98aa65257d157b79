"""``SQLiteStore``: runs in a file. Imports the ports, the codec, and its neighbours.

What is here: being open, and who asks whom. What a save is as rows is in ``_rows``; what the file
looks like, and how it is written and read, in ``_sqlite_file``, ``_sqlite_writing`` and
``_sqlite_reading``; who may write, in ``_sqlite_claims``; the thread that does, in ``_writer``.

Invariants:
- One thread writes.
- Nothing is open while nobody has claimed a run or entered the store's block.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, final
from weakref import WeakSet

from anyio import CancelScope, sleep, to_thread

from shoal._codec import Codec
from shoal._errors import DefinitionError, RunClaimed
from shoal._history import Entry
from shoal._ids import RunPath
from shoal._retry import is_positive
from shoal._state import Operation
from shoal._store import (
    ENDED,
    Batch,
    ChildRecord,
    ChildStatus,
    Orphan,
    RunRecord,
    RunStatus,
    RunSummary,
    SavedRun,
)

from ._rows import Packer, Unpacker
from ._sizes import MAX_UPDATE, UpdateSizes
from ._sqlite_claims import Claim, lost
from ._sqlite_file import Synchronous, connect, explained
from ._sqlite_reading import Reader
from ._sqlite_writing import Config, Database
from ._writer import Job, Writer

T = TypeVar("T")

Durability = Literal["sync", "relaxed", "end"]

LEASE = 15.0
"""Seconds for which a claim holds without a sign of life."""
PATIENCE = 5.0
"""Seconds that a save waits for a locked file or a full disk."""
WINDOW = 0.05
"""Seconds of saves that may be lost where durability is relaxed."""
SOME = 500
"""Rows, runs or pages that one transaction deletes."""
PAUSE = 0.005
"""Seconds, at least, between two of these."""


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
        self._config = Config(
            path=self.path,
            codec=codec,
            synchronous=synchronous,
            lease=lease,
            heartbeat=heartbeat,
            patience=patience,
        )
        self._packer = Packer(codec, UpdateSizes(max_update))
        self._unpacker = Unpacker(codec)
        self._within = {"sync": 0.0, "relaxed": window, "end": inf}[durability]
        self._lock = Lock()  # event loops may live in several threads
        self._forget_all()
        _stores.add(self)

    def _forget_all(self) -> None:
        """Have nothing open, and nothing claimed."""
        self._claims: dict[tuple[str, str], Claim] = {}
        self._users = 0  # claims and blocks
        self._writer: Writer[Database] | None = None
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

    def _enter(self) -> Writer[Database]:
        with self._lock:
            self._users += 1
            if self._writer is None:
                database = Database(self._config, self._take_readers)
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
        claim = self._claims[run_id, holder] = Claim(run_id, holder)
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
            raise lost(run_id)
        if claim.failure is not None:
            raise claim.failure
        rows = self._packer.save(batch)

        def work(database: Database) -> None:
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

    # -- what it may be asked besides -----------------------------------------------------------

    async def recall(self, key: str) -> Sequence[Operation] | None:
        """Return a result that is remembered; see ``CachesResults``."""
        return await self._read(lambda reader: reader.recall(key, time.time()), flushes=False)

    async def remember(self, key: str, operations: Sequence[Operation], seconds: float) -> None:
        """Remember a result; see ``CachesResults``. A loss of power may take it away."""
        text = self._packer.result(operations)
        await self._ask(lambda database: database.remember(key, text, seconds))

    async def runs(
        self, *, status: RunStatus | None = None, limit: int = 50, after: str | None = None
    ) -> Sequence[RunSummary]:
        """Return root runs, the newest first; see ``Browses``."""
        return await self._read(lambda reader: reader.runs(status, limit, after)) or ()

    async def summary(self, run_id: str) -> RunSummary | None:
        """Return one root run; see ``Browses``."""
        return await self._read(lambda reader: reader.summary(run_id))

    async def counts(self, path: RunPath) -> Mapping[ChildStatus, int]:
        """Count the children of a run by how they stand; see ``Browses``."""
        return await self._read(lambda reader: reader.counts(path)) or {}

    async def failures(
        self, path: RunPath, *, limit: int = 50, skip: int = 0
    ) -> Sequence[ChildRecord]:
        """Return children that have failed; see ``Browses``."""
        return await self._read(lambda reader: reader.failures(path, limit, skip)) or ()

    async def discard(self, run_id: str) -> None:
        """Forget a root run and all its descendants; one that is not known is no error.

        From then on nobody finds it. What it takes up in the file is deleted little by little, so
        that no save waits long; cancelled meanwhile, that is left to the next call.

        Raises:
            RunClaimed: An execution of it goes on.
            StoreFailed: The file can't be used.
        """
        async with self:
            await self._ask(lambda database: database.discard(run_id))
            await self._sweep()

    async def prune(
        self, older_than: float, statuses: Collection[RunStatus] = ENDED, *, dry_run: bool = False
    ) -> int:
        """Delete old runs; see ``Prunes``.

        The file shrinks by what they took up, unless it was made before files could: then what
        comes next takes their room.
        """
        until = time.time() - older_than
        old = await self._read(lambda reader: reader.old_runs(until, statuses))
        if old is None or dry_run:
            return len(old or ())
        count = 0
        async with self:
            for at in range(0, len(old), SOME):
                some = old[at : at + SOME]
                count += await self._ask(
                    lambda database, some=some: database.discard_old(some, until, statuses)
                )
                await sleep(PAUSE)
            await self._sweep()
        return count

    async def _sweep(self) -> None:
        """Delete what nobody knows any more, and give its room back."""
        for some in (Database.sweep, Database.give_back):
            has_more = True
            while has_more:
                started_at = time.monotonic()
                has_more = await self._ask(lambda database, some=some: some(database, SOME))
                # Other processes look from time to time whether they may write: let them.
                await sleep(max(time.monotonic() - started_at, PAUSE))

    async def _ask(self, work: Callable[[Database], T]) -> T:
        """Have ``work`` done in a transaction that may go with the machine's power."""
        writer = self._enter()
        try:
            return await writer.ask(work, lightly=True)
        finally:
            await self._leave()

    async def _read(self, look: Callable[[Reader], T], *, flushes: bool = True) -> T | None:
        """Call ``look`` in a worker thread; without it where there is no file."""
        writer = self._writer
        if flushes and self._within and writer is not None:
            await writer.ask(_nothing, lightly=True)  # what was saved, and left for later, is there

        def work() -> T | None:
            connection = self._reader()
            if connection is None:
                return None
            try:
                found = look(Reader(connection, self._unpacker, self._config.codec))
            except sqlite3.Error as error:
                connection.close()
                raise explained(error, self.path, self._config.patience) from error
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
        config = self._config
        return connect(
            self.path, patience=config.patience, synchronous=config.synchronous, reads_only=True
        )

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if self._writer is not None:
                self._readers.append(connection)
                return
        connection.close()

    def _take_readers(self) -> Sequence[sqlite3.Connection]:
        """Return the connections that nobody uses now, for the caller to close."""
        with self._lock:
            readers, self._readers = self._readers, []
        return readers


def _nothing(_: object) -> None:
    """Ask for nothing but to be told when it is one's turn."""


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
