"""``DurableStore``: open and close a store in a database, and pass calls to its threads.

Event loops call the methods; one writer thread (``writer_thread``) executes everything that
writes, and worker threads of anyio execute reads, each with a connection of its own.

Invariants:
- One thread writes.
- The database is open only while a run is claimed or a caller is inside of the store's ``async
  with`` block.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf
from threading import Lock
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from weakref import WeakSet

from anyio import from_thread, move_on_after, sleep, to_thread

from shoal._errors.arguments import is_positive
from shoal._errors.exceptions import DefinitionError, RunClaimed, brief
from shoal._events.identity import Key, RunPath
from shoal._state.state import Operation
from shoal.stores._codec.codec import Codec
from shoal.stores._history import Entry, QuestionAnswered, Steered
from shoal.stores._protocol import (
    ENDED,
    Batch,
    ChildRecord,
    ChildStatus,
    DoneChild,
    FailedChild,
    Orphan,
    RunRecord,
    RunStatus,
    RunSummary,
    SavedRun,
)
from shoal.stores._watching import (
    Bin,
    Command,
    EntryKind,
    Order,
    Row,
    RowPage,
    StepTally,
    StoredEntry,
    StoredReport,
)

from .dialect import Connection, Dialect, ErrorPolicy
from .leases import Lease, lost
from .reading import Reader
from .rows import Packer
from .sizes import UpdateSizes
from .unpacking import Unpacker
from .writer_thread import Job, Writer
from .writing import Claiming, Config, Database, Releasing, Save, delays, log_waiting

T = TypeVar("T")

Durability = Literal["sync", "relaxed", "end"]

LEASE = 15.0
"""Seconds for which a claim holds without a sign of life: three heartbeats of 5 s, so that one that
is late by a few seconds loses nothing."""
WINDOW = 0.05
"""Seconds of saves that may be lost with ``durability="relaxed"``."""
SOME = 500
"""Rows, runs or pages that one transaction deletes: few enough that saves don't wait long."""
PAUSE = 0.005
"""The shortest pause between two such transactions, in seconds, in which other processes write."""

CLOSING = 2.0
"""Seconds that a caller waits for the writer thread to end when it closes the store. A database
that answers takes milliseconds; the caller of a run that has ended must not wait for one that
doesn't."""

MOST_READERS = 4
"""Idle connections that are kept for later reads."""


class DurableStore(ABC):
    """Keeps runs in tables."""

    is_shared: bool = True
    """Whether other processes can read it; see ``KeepsReports``."""

    _abandons_readers: bool = False
    """Whether a cancelled caller abandons its reading thread, because a server may not answer."""

    def __init__(
        self,
        dialect: Dialect,
        error_policy: ErrorPolicy,
        *,
        codec: Codec | None,
        durability: Durability,
        window: float,
        lease: float,
        heartbeat: float | None,
        patience: float,
        max_update: int,
    ) -> None:
        """Check the arguments; open nothing."""
        kind = type(self).__name__
        heartbeat = lease / 3 if heartbeat is None and is_positive(lease) else heartbeat
        for name, seconds in (
            ("window", window),
            ("lease", lease),
            ("heartbeat", heartbeat),
            ("patience", patience),
        ):
            if not is_positive(seconds):
                msg = f"{kind}({name}=...) takes a number of seconds, not {seconds!r}"
                raise DefinitionError(msg)
        assert heartbeat is not None, "it is positive"
        if heartbeat >= lease:
            msg = f"a heartbeat every {heartbeat:g} s can't keep up a lease of {lease:g} s"
            raise DefinitionError(msg)
        if durability not in ("sync", "relaxed", "end"):
            msg = f"durability= is 'sync', 'relaxed' or 'end', not {durability!r}"
            raise DefinitionError(msg)
        if codec is not None and not isinstance(codec, Codec):
            msg = f"{kind}(codec=...) takes a Codec, not {brief(codec)}"
            raise DefinitionError(msg)
        if type(max_update) is not int or max_update < 1:
            msg = f"{kind}(max_update=...) takes a number of bytes, not {brief(max_update)}"
            raise DefinitionError(msg)
        codec = Codec() if codec is None else codec
        self._config = Config(
            dialect=dialect,
            error_policy=error_policy,
            codec=codec,
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
        """Reset to a store that has nothing open and nothing claimed."""
        # The leases of this process, by run id and execution.
        self._claims: dict[tuple[str, str], Lease] = {}
        # Claimed runs that nothing was ever saved of, so that ``load`` needn't ask the database.
        self._new = set[str]()
        # Claims and ``async with`` blocks. The store is open while there are any; ``_lock`` guards
        # this count together with ``_writer``.
        self._users = 0
        self._writer: Writer[Database] | None = None
        self._readers: list[Connection] = []  # the idle ones, guarded by ``_lock``
        # The connection of ``SQLiteStore.mark`` and its number; guarded by ``_lock``.
        self._marking: tuple[int, Connection] | None = None

    # -- implemented by each database -----------------------------------------------------------

    @property
    @abstractmethod
    def _name(self) -> str:
        """The store's name in the name of the writer thread."""

    @abstractmethod
    def _database(self) -> Database:
        """Return a new database for the writer; open nothing."""

    @abstractmethod
    def _connect(self) -> Connection | None:
        """Open a connection for reading; None if the database has no tables yet."""

    @abstractmethod
    async def mark(self) -> object:
        """Return a value that differs if anything was saved in between; see ``Inspects``."""

    def _begin(self, connection: Connection) -> None:
        """Begin a transaction that sees the tables at one moment."""
        connection.execute("BEGIN")

    # -- being open -----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open the store, and keep it open until the block is left.

        Raises:
            StoreFailed: The database can't be opened, is damaged, is not a shoal store, or was
                written by a newer version.
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
        """Close the store, unless runs are claimed."""
        await self._leave()

    def _end_abandoned(self) -> None:
        """End the leases of executions whose event loop was closed.

        Called while the store has another user, so ``_users`` stays above 0.
        """
        for key, lease in list(self._claims.items()):
            if lease.is_abandoned() and self._claims.pop(key, None) is lease:
                lease.end()
                self._new.discard(lease.run_id)
                with self._lock:
                    self._users -= 1

    def _enter(self) -> Writer[Database]:
        with self._lock:
            self._users += 1
            if self._writer is None:
                self._writer = Writer(self._database(), f"shoal writes {self._name}")
            return self._writer

    async def _leave(self) -> None:
        """Count one user less, and close the store if that was the last one.

        The caller waits up to ``CLOSING`` seconds for the writer thread to end, even if it is
        cancelled. A thread that waits longer for a silent server ends by itself.
        """
        with self._lock:
            self._users -= 1
            if self._users:
                return
            # In one step with the count: a new user must find no writer that is about to end.
            writer, self._writer = self._writer, None
        if writer is not None:
            with move_on_after(CLOSING, shield=True):
                await writer.stop(within=self._config.patience)

    # -- ``Store``, ``ReadsInParts`` and ``FindsOrphans``: called by the engine -----------------

    async def claim(self, run_id: str, holder: str) -> bool:
        """Give ``holder`` the run; see ``Store``.

        Raises:
            RunClaimed: Another execution holds it. The message names its process, and the time when
                its lease expires.
            StoreFailed: The database can't be used; the message says why.
        """
        if (run_id, holder) in self._claims:
            msg = f"run {run_id} is already running in this process, in this very execution"
            raise RunClaimed(msg)
        writer = self._enter()
        self._end_abandoned()
        lease = self._claims[run_id, holder] = Lease(run_id, holder)
        try:
            has_died = await writer.ask(Claiming(lease), lightly=True)
        except Exception:
            # The claim may have been made all the same, before the connection was lost. As its
            # execution has ended, this process may claim the run again at once.
            lease.end()
            del self._claims[run_id, holder]
            await self._leave()
            raise
        if lease.is_first:
            self._new.add(run_id)
        return has_died

    async def release(self, run_id: str, holder: str) -> None:
        """Release the run; see ``Store``.

        If the database can't be reached, the execution is over all the same: the next one of this
        process takes the run at once, those of other processes when the lease has expired. If the
        caller is cancelled, the run is released as soon as the database answers.

        Raises:
            StoreFailed: The database can't be used; the message says why.
        """
        lease = self._claims.pop((run_id, holder), None)
        if lease is None:
            return
        self._new.discard(run_id)
        assert self._writer is not None, "a store is open as long as a run is claimed"
        lease.given_back = True
        released = self._writer.ask(Releasing(lease), lightly=True)
        try:
            # Before waiting for the release: the last user's release and the thread's end are then
            # done in one go.
            await self._leave()
        finally:
            try:
                await released
            finally:
                # Not earlier: saves that were left for later, and that no caller waits for, are
                # written before the release, and from here on another execution of this process may
                # take the run (see
                # test_what_was_left_for_later_is_saved_before_another_execution_takes_over).
                lease.end()

    def pack(self, child: SavedRun) -> object:
        """Encode the result of a child; see ``Store``."""
        return self._packer.pack(child)

    def save(self, batch: Batch) -> Job[Any, None] | None:
        """Save ``batch``; see ``Store``."""
        run_id = batch.path.root.id
        lease = self._claims.get((run_id, batch.holder))
        if lease is None or lease.lost or self._writer is None:
            raise lost(run_id)
        if lease.failure is not None:
            raise lease.failure
        work = Save(self._packer.save(batch), lease)
        self._new.discard(run_id)
        if not self._within or batch.ended is not None:
            return self._writer.ask(work)
        return self._writer.leave(work, self._within, lease.fail)

    async def load(self, run_id: str) -> RunRecord | None:
        """Return a root run; see ``Store``."""
        if run_id in self._new:
            return None
        return await self._read(lambda reader: reader.load(run_id))

    async def read(self, path: RunPath, from_number: int = 0) -> Sequence[Entry]:
        """Return the history of a run; see ``Store``."""
        return await self._read(lambda reader: reader.history(path, from_number)) or ()

    async def children(
        self, path: RunPath, step: str | None = None, visit: int | None = None
    ) -> Sequence[ChildRecord]:
        """Return the records of a run's children; see ``Store``."""
        return await self._read(lambda reader: reader.children(path, step, visit)) or ()

    async def read_part(
        self, path: RunPath, from_number: int = 0
    ) -> tuple[Sequence[Entry], int | None]:
        """Return a part of the history of a run; see ``ReadsInParts``."""
        found = await self._read(
            lambda reader: reader.history_part(path, from_number), flushes=not from_number
        )
        return found or ((), None)

    async def done(self, path: RunPath) -> Mapping[tuple[str, int], int]:
        """Count the children of a run that are done; see ``ReadsInParts``."""
        return await self._read(lambda reader: reader.done(path)) or {}

    async def done_part(
        self, path: RunPath, step: str, visit: int | None = None, after: int = 0
    ) -> tuple[Sequence[DoneChild], int | None]:
        """Return some children of a step that are done; see ``ReadsInParts``."""
        found = await self._read(
            lambda reader: reader.done_part(path, step, visit, after), flushes=not after
        )
        return found or ((), None)

    async def not_done(
        self, path: RunPath, step: str | None = None, visit: int | None = None
    ) -> Sequence[ChildRecord]:
        """Return the records of children that are not done; see ``ReadsInParts``."""
        return await self._read(lambda reader: reader.not_done(path, step, visit)) or ()

    async def orphans(self) -> Sequence[Orphan]:
        """Return the runs without an end that are not claimed; see ``FindsOrphans``."""
        return await self._read(lambda reader: reader.orphans()) or ()

    # -- ``CachesResults``, ``Browses`` and ``Prunes`` -------------------------------------------

    async def recall(self, key: str) -> Sequence[Operation] | None:
        """Return a cached result; see ``CachesResults``."""
        return await self._read(lambda reader: reader.recall(key), flushes=False)

    async def remember(self, key: str, operations: Sequence[Operation], seconds: float) -> None:
        """Cache a result; see ``CachesResults``. A loss of power may remove it."""
        text = self._packer.result(operations)
        await self._ask(lambda database: database.remember(key, text, seconds))

    async def runs(
        self,
        *,
        status: RunStatus | None = None,
        limit: int = 50,
        after: str | None = None,
        owner: str | None = None,
    ) -> Sequence[RunSummary]:
        """Return root runs, the newest first; see ``Browses``."""
        return await self._read(lambda reader: reader.runs(status, limit, after, owner)) or ()

    async def summary(self, run_id: str) -> RunSummary | None:
        """Return one root run; see ``Browses``."""
        return await self._read(lambda reader: reader.summary(run_id))

    async def counts(self, path: RunPath) -> Mapping[ChildStatus, int]:
        """Count the children of a run by status; see ``Browses``."""
        return await self._read(lambda reader: reader.counts(path)) or {}

    async def failures(
        self, path: RunPath, *, limit: int = 50, skip: int = 0
    ) -> Sequence[FailedChild]:
        """Return failed children; see ``Browses``."""
        return await self._read(lambda reader: reader.failures(path, limit, skip)) or ()

    async def discard(self, run_id: str) -> None:
        """Delete a root run and all its descendants. An unknown run is no error.

        The run disappears at once. Its rows are deleted little by little, so that no save waits
        long; if the caller is cancelled, the next call deletes the rest.

        Raises:
            RunClaimed: The run is being executed.
            StoreFailed: The database can't be used.
        """
        async with self:
            await self._ask(lambda database: database.discard(run_id))
            await self._sweep()

    async def prune(
        self, older_than: float, statuses: Collection[RunStatus] = ENDED, *, dry_run: bool = False
    ) -> int:
        """Delete old runs; see ``Prunes``.

        Raises:
            StoreFailed: The database can't be used.
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

    # -- ``KeepsReports`` -----------------------------------------------------------------------

    async def report(self, reports: Mapping[str, str]) -> Sequence[Command]:
        """Replace reports and take commands; see ``KeepsReports``.

        It shares a transaction with saves that are pending; alone, it doesn't wait for the disk.

        Raises:
            StoreFailed: The database can't be used.
        """
        if not reports:
            return ()
        # Copied first: loops in other threads may claim runs meanwhile.
        executions = {
            run_id: execution for run_id, execution in [*self._claims] if run_id in reports
        }
        return await self._ask(lambda database: database.report(reports, executions))

    async def reported(self, run_id: str) -> StoredReport | None:
        """Return the last report about a root run; see ``KeepsReports``."""
        return await self._read(lambda reader: reader.reported(run_id), flushes=False)

    async def command(self, command: Command) -> None:
        """Leave a command for the process that executes a run; see ``KeepsReports``.

        Raises:
            StoreFailed: The database can't be used.
        """
        await self._ask(lambda database: database.command(command))

    async def steer(self, run_id: str, entries: Sequence[Steered | QuestionAnswered]) -> bool:
        """Append to the history of a root run that no process executes; see ``Steers``.

        Raises:
            StoreFailed: The database can't be used.
        """
        rows = self._packer.steered(run_id, entries)
        return await self._ask(lambda database: database.steer(run_id, rows))

    # -- ``Inspects`` ---------------------------------------------------------------------------

    async def row(self, path: RunPath) -> Row | None:
        """Return one run, root or child; see ``Inspects``."""
        return await self._read(lambda reader: reader.inspector.row(path))

    async def rows(
        self,
        path: RunPath,
        *,
        step: str | None = None,
        status: ChildStatus | None = None,
        key: str | None = None,
        order: Order = "failed first",
        after: str | None = None,
        limit: int = 50,
    ) -> RowPage:
        """Return a page of a run's children; see ``Inspects``.

        Raises:
            StoreFailed: The database can't be used.
            ValueError: ``after`` is not the cursor of a page.
        """
        found = await self._read(
            lambda reader: reader.inspector.rows(
                path, step=step, status=status, key=key, order=order, after=after, limit=limit
            )
        )
        return RowPage((), None) if found is None else found

    async def tallies(self, path: RunPath) -> Sequence[StepTally]:
        """Count a run's children by step, visit, act and status; see ``Inspects``."""
        return await self._read(lambda reader: reader.inspector.tallies(path)) or ()

    async def failed_rows(self, path: RunPath, *, limit: int = 10_000) -> Sequence[Row]:
        """Return the failed children of a run; see ``Inspects``."""
        return await self._read(lambda reader: reader.inspector.failed_rows(path, limit)) or ()

    async def times(
        self, path: RunPath, *, after: int = 0, limit: int = 1000
    ) -> Sequence[tuple[int, float]]:
        """Return when a run's updates were saved; see ``Inspects``."""
        return await self._read(lambda reader: reader.inspector.times(path, after, limit)) or ()

    async def timeline(self, path: RunPath, *, bins: int = 60) -> Sequence[Bin]:
        """Return when the ends of a run's children were saved; see ``Inspects``."""
        return await self._read(lambda reader: reader.inspector.timeline(path, bins)) or ()

    async def text(
        self, path: RunPath, what: Literal["element", "value", "error", "first"]
    ) -> str | None:
        """Return a value of a run as its stored JSON; see ``Inspects``."""
        return await self._read(lambda reader: reader.inspector.text(path, what))

    async def children_of_key(self, path: RunPath, step: str, key: Key) -> Sequence[Row]:
        """Return the children of one key in all visits and acts of a step; see ``Inspects``."""
        found = await self._read(lambda reader: reader.inspector.children_of_key(path, step, key))
        return found or ()

    async def entries(
        self,
        path: RunPath,
        *,
        kinds: Collection[EntryKind] | None = None,
        from_number: int = 0,
        limit: int = 100,
    ) -> tuple[Sequence[StoredEntry], int | None]:
        """Return a part of a run's history; see ``Inspects``."""
        found = await self._read(
            lambda reader: reader.inspector.entries(path, kinds, from_number, limit)
        )
        return found or ((), None)

    async def spawned(self, path: RunPath) -> Sequence[RunSummary]:
        """Return the root runs that an action of this run has started; see ``Inspects``."""
        return await self._read(lambda reader: reader.inspector.spawned(path)) or ()

    # -- reading and deleting ----------------------------------------------------------------------

    async def _sweep(self) -> None:
        """Delete the rows of condemned runs, and return their space to the disk."""
        steps: tuple[Callable[[Database], bool], ...] = (
            lambda database: database.sweep(SOME),
            lambda database: database.give_back(SOME),
        )
        for step in steps:
            has_more = True
            while has_more:
                started_at = time.monotonic()
                has_more = await self._ask(step)
                # Other processes poll for the lock of the file. A pause as long as the transaction
                # leaves them half of the time.
                await sleep(max(time.monotonic() - started_at, PAUSE))

    async def _ask(self, work: Callable[[Database], T]) -> T:
        """Execute ``work`` in a transaction that needn't survive a loss of power."""
        writer = self._enter()
        try:
            return await writer.ask(work, lightly=True)
        finally:
            await self._leave()

    async def _read(self, look: Callable[[Reader], T], *, flushes: bool = True) -> T | None:
        """Call ``look`` in a worker thread; return None if the database has no tables yet."""
        if flushes:
            await self._flush()
        return await to_thread.run_sync(self._look, look, abandon_on_cancel=self._abandons_readers)

    async def _flush(self) -> None:
        """Wait until the saves are written that were left for later, so that readers see them."""
        writer = self._writer
        if self._within and writer is not None:
            await writer.ask(_nothing, lightly=True)

    def _look(self, look: Callable[[Reader], T]) -> T | None:
        """Call ``look``; retry errors that may pass for ``patience`` seconds. Runs in a thread."""
        config, until = self._config, time.monotonic() + self._config.patience
        for number, delay in enumerate(delays()):
            connection: Connection | None = None
            try:
                connection = self._take_reader() or self._connect()
                if connection is None:
                    return None
                self._begin(connection)
                found = look(Reader(connection, config.dialect, self._unpacker, config.codec))
                connection.execute("COMMIT")
            except BaseException as error:
                if connection is not None:
                    connection.close()
                if not isinstance(error, config.error_policy.errors):
                    raise
                if not config.error_policy.may_pass(error) or time.monotonic() > until:
                    raise config.error_policy.explained(error) from error
                if number == 1:  # not at the first: a kept connection may have been lost long ago
                    log_waiting("readers", config.patience, error)
            else:
                self._give_back(connection)
                return found
            from_thread.check_cancelled()
            time.sleep(delay)
        raise AssertionError("delays() never ends")

    def _take_reader(self) -> Connection | None:
        with self._lock:
            return self._readers.pop() if self._readers else None

    def _give_back(self, connection: Connection) -> None:
        with self._lock:
            if self._writer is not None and len(self._readers) < MOST_READERS:
                self._readers.append(connection)
                return
        connection.close()

    def _take_readers(self) -> Sequence[Connection]:
        """Remove and return the idle connections, for the caller to close."""
        with self._lock:
            readers, self._readers = self._readers, []
            if self._marking is not None:
                readers.append(self._marking[1])
                self._marking = None
        return readers


def _nothing(_: object) -> None:
    """Do nothing: a job whose end says that all earlier jobs are done."""


# -- forks -----------------------------------------------------------------------------------------

_stores: WeakSet[DurableStore] = WeakSet()
# Connections and threads that belong to the parent process. Keeping them here forever stops Python
# from closing them: that would end the parent's connection, or drop its locks on a file.
_inherited: list[object] = []


def _start_anew() -> None:
    """Reset all stores in a forked process, without touching connections of its parent."""
    for store in list(_stores):
        _inherited.append((store._writer, store._readers, store._marking))
        store._lock = Lock()
        store._forget_all()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
