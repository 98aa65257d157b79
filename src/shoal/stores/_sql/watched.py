"""``WatchedStore``: the part of ``DurableStore`` that answers watchers, and carries reports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, TypeVar

from shoal._events.identity import Key, RunPath
from shoal.stores._protocol import ChildStatus, RunSummary
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

from .leases import Lease
from .reading import Reader
from .writing import Database

T = TypeVar("T")


class WatchedStore(ABC):
    """A store that can be watched by other processes."""

    is_shared: bool = True
    """Whether other processes can read it; see ``KeepsReports``."""

    _claims: dict[tuple[str, str], Lease]

    @abstractmethod
    async def _read(self, look: Callable[[Reader], T], *, flushes: bool = True) -> T | None:
        """Call ``look`` in a worker thread; return None if the database has no tables yet."""

    @abstractmethod
    async def _ask(self, work: Callable[[Database], T]) -> T:
        """Execute ``work`` in a transaction that needn't survive a loss of power."""

    # -- ``KeepsReports`` -----------------------------------------------------------------------

    async def report(self, reports: Mapping[str, str]) -> Sequence[Command]:
        """Replace reports and take commands; see ``KeepsReports``.

        It shares a transaction with saves that are pending; alone, it doesn't wait for the disk.

        Raises:
            StoreFailed: The database can't be used.
        """
        if not reports:
            return ()
        executions = {run_id: execution for run_id, execution in self._claims if run_id in reports}
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

    # -- ``Inspects`` ---------------------------------------------------------------------------

    @abstractmethod
    async def mark(self) -> object:
        """Return a value that differs if anything was saved in between; see ``Inspects``."""

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
