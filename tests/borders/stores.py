"""Stores that go wrong where a program says; and one in a file, without threads, for speed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

import anyio

from shoal import MemoryStore, RunPath, SQLiteStore
from shoal.stores._history import Entry
from shoal.stores._protocol import Batch, ChildRecord, RunRecord, SavedRun
from shoal.stores._sql.writer_thread import Job
from shoal.testing._faulty_store import kept_runs

from .world import World

T = TypeVar("T")


class WentWrong(ConnectionError):
    """What a store raises that goes wrong."""


class Mortal:
    """A store in front of another one, which goes wrong where its world says so."""

    def __init__(self, world: World, inner: Any) -> None:
        self.world = world
        self.inner = inner
        self.delay = 0.25 if world.program["saving"] == "slow" else 0.0
        self.begin(inner, has_died=False)

    def begin(self, inner: Any, *, has_died: bool) -> None:
        """Begin another life, with what is kept now."""
        self.inner = inner
        self.has_died = has_died
        self.holders: list[tuple[str, str]] = []

    def _check_alive(self) -> None:
        if self.world.dead:
            self.world.has_lost_store = True
            raise WentWrong("the process of this store is dead")

    async def _go_wrong(self, what: str) -> None:
        self.world.has_lost_store = True
        if what == "hangs":
            await anyio.sleep_forever()
        raise WentWrong(f"the store {what}")

    async def _ask(self, do: Callable[[], Awaitable[T]]) -> T:
        self._check_alive()
        what = self.world.at("store")
        if self.delay:
            await anyio.sleep(self.delay)
        if what in ("fails", "hangs", "dies"):
            await self._go_wrong(what)
        self._check_alive()
        return await do()

    def pack(self, child: SavedRun) -> object:
        return self.inner.pack(child)

    def save(self, batch: Batch) -> Awaitable[None] | None:
        self._check_alive()
        what = self.world.at("save")
        if what or self.delay:
            return self._save(batch, what)
        self._note(batch)
        pending = self.inner.save(batch)
        if pending is not None:
            return self._saved(pending)
        what = self.world.at("saved")
        return self._go_wrong(what) if what else None

    def _note(self, batch: Batch) -> None:
        if batch.afresh:
            self.world.forgotten.add(batch.path.id)
            self.world.voided.add(batch.path.id)

    async def _saved(self, pending: Awaitable[None]) -> None:
        await pending
        what = self.world.at("saved")
        if what:
            await self._go_wrong(what)

    async def _save(self, batch: Batch, what: str) -> None:
        if self.delay:
            await anyio.sleep(self.delay / 2)
        if what:
            await self._go_wrong(what)
        self._check_alive()
        self._note(batch)
        pending = self.inner.save(batch)
        if pending is not None:
            await pending
        what = self.world.at("saved")
        if what:
            await self._go_wrong(what)
        if self.delay:
            await anyio.sleep(self.delay / 2)

    async def claim(self, run_id: str, holder: str) -> bool | None:
        async def claim() -> bool | None:
            has_died = await self.inner.claim(run_id, holder)
            self.holders.append((run_id, holder))
            return has_died or self.has_died

        return await self._ask(claim)

    async def load(self, run_id: str) -> RunRecord | None:
        return await self._ask(lambda: self.inner.load(run_id))

    async def read(self, path: RunPath, from_number: int = 0) -> Sequence[Entry]:
        return await self._ask(lambda: self.inner.read(path, from_number))

    async def children(
        self, path: RunPath, step: str | None = None, visit: int | None = None
    ) -> Sequence[ChildRecord]:
        return await self._ask(lambda: self.inner.children(path, step, visit))

    async def release(self, run_id: str, holder: str) -> None:
        if not self.world.dead:
            await self._ask(lambda: self.inner.release(run_id, holder))

    async def recall(self, key: str) -> Any:
        return await self._ask(lambda: self.inner.recall(key))

    async def remember(self, key: str, operations: Any, seconds: float) -> None:
        await self._ask(lambda: self.inner.remember(key, operations, seconds))

    async def give_back(self) -> None:
        """Let go of what the execution has left claimed, as the end of its process would."""
        for run_id, holder in self.holders:
            await self.inner.release(run_id, holder)


class AtOnce:
    """In place of a store's writing thread: does what it is asked at once, in the event loop's."""

    def __init__(self, database: Any) -> None:
        self._database = database
        database.open()

    def ask(self, work: Callable[[Any], T], *, lightly: bool = False) -> Job[Any, T]:
        job: Job[Any, T] = Job(work)
        job.is_light = lightly
        for _ in self._database.do([job]):
            pass
        return job

    def leave(self, work: Callable[[Any], Any], within: float, on_failed: object) -> None:
        self.ask(work)

    def stop(self, within: float = 0.0) -> Job[Any, None]:
        self._database.close()
        return Job(lambda _: None)


class InOneThread(SQLiteStore):  # pyright: ignore[reportGeneralTypeIssues] # for tests alone
    """A ``SQLiteStore`` without threads: as quick as it can be, and the same each time.

    Its threads are what `test_sqlite_store` is about.
    """

    def _enter(self) -> Any:
        self._users += 1
        if self._writer is None:
            self._writer = cast("Any", AtOnce(self._database()))
        return self._writer

    def close(self) -> None:
        """Close it, though runs are claimed."""
        if self._writer is not None:
            self._writer.stop(0)
        self._writer = None
        for connection in self._take_readers():
            connection.close()

    async def _read(self, look: Callable[[Any], T], *, flushes: bool = True) -> T | None:
        return self._look(look)


@contextmanager
def stores_of(kind: str) -> Generator[Callable[[], Any]]:
    """Give what makes the stores of programs: in memory, or all in a few files."""
    if kind == "memory":
        yield MemoryStore
        return
    shm = Path("/dev/shm")  # in memory, where there is such a thing
    with TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        made = list[InOneThread]()
        uses, files = count(), count()

        def make() -> InOneThread:
            if next(uses) % RUNS_IN_A_FILE == 0:
                if made:
                    made.pop().close()
                path = Path(folder) / f"{next(files)}.db"
                made.append(InOneThread(path, synchronous="normal"))
                made[-1]._enter()  # and never closed between two programs
            return made[-1]

        try:
            yield make
        finally:
            for store in made:
                store.close()


RUNS_IN_A_FILE = 200


class Seen:
    """A run as a store has it."""

    __slots__ = ("history", "path", "record", "status")

    def __init__(
        self, path: RunPath, record: ChildRecord | None, history: Sequence[Entry], status: Any
    ) -> None:
        self.path = path
        self.record = record
        self.history = history
        self.status = status


async def look(store: Any, run_id: str, told: Iterable[RunPath] = ()) -> dict[str, Seen]:
    """Read all that a store has of a root run and its descendants, by id.

    One whose parent has saved nothing yet is no child of anybody there: that is looked for which
    somebody was ``told`` of.
    """
    if isinstance(store, MemoryStore):
        return {
            path.id: Seen(path, kept.record, tuple(kept.history), kept.status)
            for path, kept in kept_runs(store)
        }
    found: dict[str, Seen] = {}
    root = RunPath(run_id=run_id)
    known = await store.load(run_id)
    if known is None:
        return found

    async def below(path: RunPath, record: ChildRecord | None, status: Any) -> None:
        found[path.id] = Seen(path, record, tuple(await store.read(path)), status)
        for child in await store.children(path):
            at = RunPath(
                parent=path, step=child.step, visit=child.visit, act=child.act, key=child.key
            )
            await below(at, child, child.status)

    await below(root, None, known.status)
    for path in told:
        if path.id not in found and (await store.read(path) or await store.children(path)):
            await below(path, None, None)
    return found


def merge(seen: dict[str, Seen], others: dict[str, Seen]) -> None:
    """Take in what another store has: a run's history is in one, how it ended in its parent's."""
    for run_id, other in others.items():
        one = seen.setdefault(run_id, other)
        if one is other:
            continue
        record = one.record if one.record is not None and one.record.status else other.record
        seen[run_id] = Seen(
            one.path, record or one.record, one.history or other.history, one.status or other.status
        )
