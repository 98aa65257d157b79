"""What stores in databases have in common: being open, and who asks whom.

Imports the ports, the codec, and its neighbours. What a save is as rows is in ``_rows``; how tables
are written and read, in ``_writing`` and ``_reading``; in what databases differ, in ``_dialect``;
who may write, in ``_claims``; the thread that does, in ``_writer``.

Invariants:
- One thread writes.
- Nothing is open while nobody has claimed a run or entered the store's block.
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
from shoal._events.identity import RunPath
from shoal._state.state import Operation
from shoal.stores._codec.codec import Codec
from shoal.stores._history import Entry
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

from .dialect import Connection, Dialect, Faults
from .leases import Claim, lost
from .reading import Reader
from .rows import Packer
from .sizes import UpdateSizes
from .unpacking import Unpacker
from .writer_thread import Job, Writer
from .writing import Claiming, Config, Database, Releasing, Save, delays, tell_waiting

T = TypeVar("T")

Durability = Literal["sync", "relaxed", "end"]

LEASE = 15.0
"""Seconds for which a claim holds without a sign of life."""
WINDOW = 0.05
"""Seconds of saves that may be lost where durability is relaxed."""
SOME = 500
"""Rows, runs or pages that one transaction deletes."""
PAUSE = 0.005
"""Seconds, at least, between two of these."""

CLOSING = 2.0
"""Seconds for which a caller waits until a thread that nobody needs any more has ended. A database
that answers takes milliseconds; the caller of a run that has ended must not wait for one that
doesn't."""

MOST_READERS = 4
"""Connections that are kept for whoever reads next."""


class DurableStore(ABC):
    """Keeps runs in tables."""

    _abandons_readers: bool = False
    """Whether a cancelled caller leaves the thread that reads to itself: a server may be silent."""

    def __init__(
        self,
        dialect: Dialect,
        faults: Faults,
        *,
        codec: Codec | None,
        durability: Durability,
        window: float,
        lease: float,
        heartbeat: float | None,
        patience: float,
        max_update: int,
    ) -> None:
        """Check what was asked for; open nothing."""
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
            faults=faults,
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
        """Have nothing open, and nothing claimed."""
        self._claims: dict[tuple[str, str], Claim] = {}
        self._new = set[str]()  # runs that are claimed, and that nothing was ever saved of
        self._users = 0  # claims and blocks
        self._writer: Writer[Database] | None = None
        self._readers: list[Connection] = []  # which nobody uses now

    # -- what each database does by itself ------------------------------------------------------

    @property
    @abstractmethod
    def _name(self) -> str:
        """What the writer's thread is called by."""

    @abstractmethod
    def _database(self) -> Database:
        """Make what the writer works on; open nothing."""

    @abstractmethod
    def _connect(self) -> Connection | None:
        """Open a connection that reads; None: there is nothing yet that could be read."""

    def _begin(self, connection: Connection) -> None:
        """Begin to look at one moment of the tables."""
        connection.execute("BEGIN")

    # -- being open -----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Keep it open until the block is left.

        Raises:
            StoreFailed: It can't be opened, is damaged, no store, or of a newer version.
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

    def _end_abandoned(self) -> None:
        """End claims of executions whose event loop was closed. There is another user now."""
        for key, claim in list(self._claims.items()):
            if claim.is_abandoned() and self._claims.pop(key, None) is claim:
                claim.end()
                self._new.discard(claim.run_id)
                with self._lock:
                    self._users -= 1

    def _enter(self) -> Writer[Database]:
        with self._lock:
            self._users += 1
            if self._writer is None:
                self._writer = Writer(self._database(), f"shoal writes {self._name}")
            return self._writer

    async def _leave(self) -> None:
        """Have one user less; close what nobody uses.

        The end of the thread is waited for, also by a caller that is cancelled, for ``CLOSING``
        seconds. A thread that a silent server holds up for longer ends by itself.
        """
        with self._lock:
            self._users -= 1
            if self._users:
                return
            writer, self._writer = self._writer, None
        if writer is not None:
            with move_on_after(CLOSING, shield=True):
                await writer.stop(within=self._config.patience)

    # -- what the engine asks of a store --------------------------------------------------------

    async def claim(self, run_id: str, holder: str) -> bool:
        """Let ``holder`` have the run; see ``Store``.

        Raises:
            RunClaimed: Another execution has it. The message says which process, and until when.
            StoreFailed: The database can't be used; the message says why.
        """
        if (run_id, holder) in self._claims:
            msg = f"run {run_id} goes on in this process already, in this very execution"
            raise RunClaimed(msg)
        writer = self._enter()
        self._end_abandoned()
        claim = self._claims[run_id, holder] = Claim(run_id, holder)
        try:
            has_died = await writer.ask(Claiming(claim), lightly=True)
        except Exception:
            claim.end()  # it may have been made all the same, before the connection was lost
            del self._claims[run_id, holder]
            await self._leave()
            raise
        if claim.is_first:
            self._new.add(run_id)
        return has_died

    async def release(self, run_id: str, holder: str) -> None:
        """Give the run back; see ``Store``.

        If the database can't be reached, the execution is over all the same: the next one of this
        process takes the run over at once, those of other processes when the lease has run out.

        Cancelled meanwhile, it is given back all the same, as soon as the database answers.

        Raises:
            StoreFailed: The database can't be used; the message says why.
        """
        claim = self._claims.pop((run_id, holder), None)
        if claim is None:
            return
        self._new.discard(run_id)
        assert self._writer is not None, "it is open as long as a run is claimed"
        claim.given_back = True
        released = self._writer.ask(Releasing(claim), lightly=True)
        try:
            await self._leave()  # in one go, where it is the last
        finally:
            try:
                await released
            finally:
                # Not earlier: what was saved for later, and not waited for, is written before the
                # release, and another execution of this process may take over from here on (see
                # test_what_was_left_for_later_is_saved_before_another_execution_takes_over).
                claim.end()

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
        work = Save(self._packer.save(batch), claim)
        self._new.discard(run_id)
        if not self._within or batch.ended is not None:
            return self._writer.ask(work)
        return self._writer.leave(work, self._within, claim.fail)

    async def load(self, run_id: str) -> RunRecord | None:
        """Say what is known of a root run; see ``Store``."""
        if run_id in self._new:
            return None
        return await self._read(lambda reader: reader.load(run_id))

    async def read(self, path: RunPath, from_number: int = 0) -> Sequence[Entry]:
        """Return the history of a run; see ``Store``."""
        return await self._read(lambda reader: reader.history(path, from_number)) or ()

    async def children(
        self, path: RunPath, step: str | None = None, visit: int | None = None
    ) -> Sequence[ChildRecord]:
        """Return what is known of the children of a run; see ``Store``."""
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
        """Return what is known of the other children of a run; see ``ReadsInParts``."""
        return await self._read(lambda reader: reader.not_done(path, step, visit)) or ()

    async def orphans(self) -> Sequence[Orphan]:
        """Return the runs that have no end and that nobody executes; see ``FindsOrphans``."""
        return await self._read(lambda reader: reader.orphans()) or ()

    # -- what it may be asked besides -----------------------------------------------------------

    async def recall(self, key: str) -> Sequence[Operation] | None:
        """Return a result that is remembered; see ``CachesResults``."""
        return await self._read(lambda reader: reader.recall(key), flushes=False)

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
    ) -> Sequence[FailedChild]:
        """Return children that have failed; see ``Browses``."""
        return await self._read(lambda reader: reader.failures(path, limit, skip)) or ()

    async def discard(self, run_id: str) -> None:
        """Forget a root run and all its descendants; one that is not known is no error.

        From then on nobody finds it. What it takes up is deleted little by little, so that no save
        waits long; cancelled meanwhile, that is left to the next call.

        Raises:
            RunClaimed: An execution of it goes on.
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

    async def _sweep(self) -> None:
        """Delete what nobody knows any more, and give its room back."""
        steps: tuple[Callable[[Database], bool], ...] = (
            lambda database: database.sweep(SOME),
            lambda database: database.give_back(SOME),
        )
        for step in steps:
            has_more = True
            while has_more:
                started_at = time.monotonic()
                has_more = await self._ask(step)
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
        """Call ``look`` in a worker thread; without it where there is nothing."""
        writer = self._writer
        if flushes and self._within and writer is not None:
            await writer.ask(_nothing, lightly=True)  # what was saved, and left for later, is there
        return await to_thread.run_sync(self._look, look, abandon_on_cancel=self._abandons_readers)

    def _look(self, look: Callable[[Reader], T]) -> T | None:
        """Call ``look``, again where the database had no answer; as long as that is waited for."""
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
                if not isinstance(error, config.faults.errors):
                    raise
                if not config.faults.may_pass(error) or time.monotonic() > until:
                    raise config.faults.explained(error) from error
                if number == 1:
                    tell_waiting("readers", config.patience, error)
            else:
                self._give_back(connection)
                return found
            from_thread.check_cancelled()
            time.sleep(delay)
        raise AssertionError("it is tried again and again")

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
        """Return the connections that nobody uses now, for the caller to close."""
        with self._lock:
            readers, self._readers = self._readers, []
        return readers


def _nothing(_: object) -> None:
    """Ask for nothing but to be told when it is one's turn."""


# -- forks -----------------------------------------------------------------------------------------

_stores: WeakSet[DurableStore] = WeakSet()
_inherited: list[object] = []  # never closed: they are the parent process's


def _start_anew() -> None:
    """Let go of what a forked process has inherited, without touching any of it."""
    for store in list(_stores):
        _inherited.append((store._writer, store._readers))
        store._lock = Lock()
        store._forget_all()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
