"""The programs of test_resume on a store in a file, which has to say what one in memory says.

A process that dies is played by a store that answers nothing any more; see test_sqlite_store for
processes that really do.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from shoal import MemoryStore, RunPath, SQLiteStore
from shoal._engine.parts import is_done
from shoal.stores import Batch, ChildRecord, Entry, RunRecord
from shoal.stores._protocol import DoneChild, ReadsInParts, SavedRun
from shoal.stores._sql import reading as _reading
from shoal.testing import run_virtual

from .test_resume import PROGRAMS, WATCH, Subject, kept_runs

Backend = Literal["asyncio", "trio"]


class Died(ConnectionError):
    pass


class Both:
    """A store in memory and one in a file. Both are told the same, and have to say the same.

    Dies at a save, after it was kept or before.
    """

    def __init__(
        self, kept: MemoryStore, file: SQLiteStore, dies_at: float, *, after: bool
    ) -> None:
        self._kept, self._file = kept, file
        self._left = dies_at
        self._after = after

    @property
    def is_dead(self) -> bool:
        return self._left < 0

    def check_alive(self) -> None:
        if self.is_dead:
            raise Died

    async def claim(self, run_id: str, holder: str) -> None:
        await self._kept.claim(run_id, holder)
        await self._file.claim(run_id, holder)

    async def release(self, run_id: str, holder: str) -> None:
        await self._kept.release(run_id, holder)
        await self._file.release(run_id, holder)

    def pack(self, child: SavedRun) -> object:
        return self._file.pack(child)

    async def save(self, batch: Batch) -> None:
        self.check_alive()
        self._left -= 1
        if not self.is_dead or self._after:
            pending = self._file.save(batch)
            self._kept.save(batch)
            if pending is not None:
                await pending
        self.check_alive()

    async def load(self, run_id: str) -> RunRecord | None:
        self.check_alive()
        found = await self._file.load(run_id)
        assert found == await self._kept.load(run_id)
        return found

    async def read(self, path: RunPath, from_number: int = 0) -> Sequence[Entry]:
        self.check_alive()
        found = list(await self._file.read(path, from_number))
        assert found == list(await self._kept.read(path, from_number))
        return found

    async def children(
        self, path: RunPath, step: str | None = None, visit: int | None = None
    ) -> Sequence[ChildRecord]:
        self.check_alive()
        found = await self._file.children(path, step, visit)
        assert comparable(found) == comparable(await self._kept.children(path, step, visit))
        return found

    # Read in parts, by the engine, which does so where a store can. Memory says what is in them.

    async def read_part(
        self, path: RunPath, from_number: int = 0
    ) -> tuple[Sequence[Entry], int | None]:
        self.check_alive()
        found, following = await self._file.read_part(path, from_number)
        whole = list(await self._kept.read(path, from_number))
        assert list(found) == whole[: len(found)]
        assert following is not None or len(found) == len(whole)
        return found, following

    async def done(self, path: RunPath) -> Mapping[tuple[str, int], int]:
        self.check_alive()
        found = await self._file.done(path)
        done = filter(is_done, await self._kept.children(path))
        assert found == Counter((one.step, one.visit) for one in done)
        return found

    async def done_part(
        self, path: RunPath, step: str, visit: int | None = None, after: int = 0
    ) -> tuple[Sequence[DoneChild], int | None]:
        self.check_alive()
        found, following = await self._file.done_part(path, step, visit, after)
        kept = [
            (one.applied, one.act, one.key, one.position, one.digest)
            for one in await self._kept.children(path, step, visit)
            if is_done(one) and (one.applied or 0) > after
        ]
        whole = sorted(kept)
        assert [(one.applied, *one[2:6]) for one in found] == whole[: len(found)]
        assert following is not None or len(found) == len(whole)
        return found, following

    async def not_done(
        self, path: RunPath, step: str | None = None, visit: int | None = None
    ) -> Sequence[ChildRecord]:
        self.check_alive()
        found = await self._file.not_done(path, step, visit)
        others = [one for one in await self._kept.children(path, step, visit) if not is_done(one)]
        assert comparable(found) == comparable(others)
        return found


def comparable(records: Iterable[ChildRecord]) -> list[ChildRecord]:
    """Put records in order; show what they failed with, for errors equal themselves alone."""
    shown: Any = [record._replace(error=repr(record.error)) for record in records]
    return sorted(shown, key=lambda one: repr((one.step, one.visit, one.act, one.key)))


async def compare(memory: MemoryStore, file: SQLiteStore) -> None:
    for path, kept in kept_runs(memory):
        assert list(await file.read(path)) == list(kept.history), path
        records = [one.record for one in kept.children() if one.record is not None]
        assert comparable(await file.children(path)) == comparable(records), path


async def one_life(subject: Subject, store: Both) -> Any:
    try:
        return await subject.run(store)
    except Exception:
        if not store.is_dead:
            raise
        return None


@pytest.fixture(autouse=True)
def new_watch() -> None:
    WATCH.bodies.clear()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reading, "PART", 3)
    monkeypatch.setattr(_reading, "CHARACTERS", 100)


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(
    ("backend", "places"), [("asyncio", (3, 5)), ("trio", (8, 2))], ids=["asyncio", "trio"]
)
def test_a_file_says_what_memory_says(
    name: str, backend: Backend, places: Sequence[int], tmp_path: Path
):
    subject, memory = Subject(name), MemoryStore()

    def file() -> SQLiteStore:
        return SQLiteStore(tmp_path / "runs.db", synchronous="normal")

    async def live() -> Any:
        nonlocal memory
        result: Any = None
        for number, place in enumerate((*places, float("inf"))):
            memory = memory.copy()
            both = Both(memory, file(), place, after=number % 2 == 0)
            assert isinstance(both, ReadsInParts)
            result = await one_life(subject, both)
            if not both.is_dead:
                break
        await compare(memory, file())
        again = await subject.run(Both(memory.copy(), file(), float("inf"), after=True))
        assert again == result
        return result

    result = run_virtual(live, backend=backend)
    WATCH.bodies.clear()
    memory = MemoryStore()
    assert run_virtual(subject.run, memory, backend=backend) == result
