"""Stores in a simulation: in memory, and some calls go wrong.

Invariants:
- The program's own store is never touched: a simulated run is kept in memory, whatever store the
  program names.
- From the moment in which its process is dead, a store keeps and answers nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar, final

import anyio

from shoal._events.identity import RunPath
from shoal._state.state import Operation
from shoal.stores._history import Entry
from shoal.stores._memory import MemoryStore, _Kept  # pyright: ignore[reportPrivateUsage]
from shoal.stores._protocol import Batch, ChildRecord, RunRecord, SavedRun
from shoal.testing._faults import READ, SAVE, Fault, Passes

T = TypeVar("T")


class StoreFault(ConnectionError):
    """The exception that a simulated store raises."""


def kept_runs(store: MemoryStore) -> Iterator[tuple[RunPath, _Kept]]:
    """Yield all runs in a store in memory, with what it keeps of each."""

    def below(path: RunPath, kept: _Kept) -> Iterator[tuple[RunPath, _Kept]]:
        yield path, kept
        for (step, visit), children in kept.visits.items():
            for (act, key), child in children.items():
                at = RunPath(parent=path, step=step, visit=visit, act=act, key=key)
                yield from below(at, child)

    for run_id, kept in store._roots.items():
        yield from below(RunPath(run_id=run_id), kept)


def like(given: object) -> MemoryStore:
    """Return an empty store in memory that knows the types which ``given`` knows."""
    packer = getattr(given, "_packer", None)
    made = MemoryStore(strict=packer is not None or not isinstance(given, MemoryStore))
    if packer is not None and isinstance(given, MemoryStore):
        made._packer = packer
    elif (codec := getattr(getattr(given, "_config", None), "codec", None)) is not None:
        made = MemoryStore(codec=codec)
    return made


@final
class FaultyStore:
    """A store in front of one in memory, in one life."""

    def __init__(self, kept: MemoryStore, passes: Passes) -> None:
        self.kept: MemoryStore = kept
        self._passes = passes
        self.afresh: set[str] = set()
        """Runs of which everything saved before was made void in this life, or was about to be.

        If that save fails, the child has begun again all the same, and nothing has announced it.
        """

    def pack(self, child: SavedRun) -> object:
        """Prepare the result of a child; see ``Store``."""
        return self.kept.pack(child)

    def save(self, batch: Batch) -> Awaitable[None] | None:
        """Save a batch, unless that goes wrong; see ``Store``."""
        if batch.afresh or batch.rewound is not None:
            self.afresh.add(batch.path.id)
        self._check_alive()
        fault = self._passes.at(SAVE)
        if fault is not None:
            return self._save_wrongly(batch, fault)
        return self.kept.save(batch)

    async def _save_wrongly(self, batch: Batch, fault: Fault) -> None:
        match fault.what:
            case "slow":
                await anyio.sleep(fault.seconds)
                self._check_alive()
                self.kept.save(batch)
                return
            case "unknown":
                await anyio.sleep_forever()
            case "in-doubt":
                self.kept.save(batch)
                await anyio.sleep_forever()
            case "dies-after":
                self.kept.save(batch)
                self._passes.has_died = True
            case _:
                pass
        msg = f"{fault} was injected"
        raise StoreFault(msg)

    def _check_alive(self) -> None:
        if self._passes.has_died:
            msg = "the process of this store is dead"
            raise StoreFault(msg)

    async def _ask(self, do: Callable[[], Awaitable[T]]) -> T:
        self._check_alive()
        fault = self._passes.at(READ)
        if fault is not None and fault.what == "slow":
            await anyio.sleep(fault.seconds)
            self._check_alive()
        elif fault is not None:
            msg = f"{fault} was injected"
            raise StoreFault(msg)
        return await do()

    async def claim(self, run_id: str, holder: str) -> bool | None:
        """Claim a run; see ``Store``."""
        return await self._ask(partial(self.kept.claim, run_id, holder))

    async def load(self, run_id: str) -> RunRecord | None:
        """Return a root run; see ``Store``."""
        return await self._ask(partial(self.kept.load, run_id))

    async def read(self, path: RunPath, from_number: int = 0) -> Sequence[Entry]:
        """Return the history of a run; see ``Store``."""
        return await self._ask(partial(self.kept.read, path, from_number))

    async def children(
        self, path: RunPath, step: str | None = None, visit: int | None = None
    ) -> Sequence[ChildRecord]:
        """Return the children of a run; see ``Store``."""
        return await self._ask(partial(self.kept.children, path, step, visit))

    async def release(self, run_id: str, holder: str) -> None:
        """Release a run; see ``Store``. A dead process calls nothing."""
        if not self._passes.has_died:
            await self._ask(partial(self.kept.release, run_id, holder))

    async def recall(self, key: str) -> Sequence[Operation] | None:
        """Return a stored result; see ``CachesResults``."""
        return await self._ask(partial(self.kept.recall, key))

    async def remember(self, key: str, operations: Sequence[Operation], seconds: float) -> None:
        """Store a result; see ``CachesResults``."""
        await self._ask(partial(self.kept.remember, key, operations, seconds))
