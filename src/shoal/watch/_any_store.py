"""``Inspection``: ``Inspects`` for stores that don't implement it, made of what each store can do.

It reads all children of a run for each answer, so it is for small stores and for tests. Times that
a store doesn't return are unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, cast

from shoal._events.events import ChildName, in_short
from shoal._events.identity import Key, RunPath
from shoal.stores._inspecting import entries as stored_parts
from shoal.stores._inspecting import text
from shoal.stores._protocol import (
    Browses,
    ChildRecord,
    ChildStatus,
    FailedChild,
    RunStatus,
    RunSummary,
    Store,
)
from shoal.stores._watching import Bin, EntryKind, Order, Row, RowPage, StepTally, StoredEntry

_RANK: Mapping[str, int] = {
    status: rank
    for rank, status in enumerate(
        ("failed", "running", "halted", "cancelled", "succeeded", "skipped")
    )
}


class Inspection:
    """Answers about the runs of a store that is a ``Store`` and ``Browses``."""

    def __init__(self, store: Browses) -> None:
        """Read from ``store``."""
        self._browsed: Browses = store
        self._read: Store = cast("Store", store)

    # -- ``Browses`` ----------------------------------------------------------------------------

    async def runs(
        self,
        *,
        status: RunStatus | None = None,
        limit: int = 50,
        after: str | None = None,
        owner: str | None = None,
    ) -> Sequence[RunSummary]:
        """See ``Browses``."""
        whose = {} if owner is None else {"owner": owner}
        return await self._browsed.runs(status=status, limit=limit, after=after, **whose)

    async def summary(self, run_id: str) -> RunSummary | None:
        """See ``Browses``."""
        return await self._browsed.summary(run_id)

    async def counts(self, path: RunPath) -> Mapping[ChildStatus, int]:
        """See ``Browses``."""
        return await self._browsed.counts(path)

    async def failures(
        self, path: RunPath, *, limit: int = 50, skip: int = 0
    ) -> Sequence[FailedChild]:
        """See ``Browses``."""
        return await self._browsed.failures(path, limit=limit, skip=skip)

    # -- ``Inspects`` ---------------------------------------------------------------------------

    async def mark(self) -> object:
        """Return a new object each time, since a store can't tell whether it has changed."""
        return object()

    async def row(self, path: RunPath) -> Row | None:
        """See ``Inspects``."""
        if path.parent is None:
            run = await self._browsed.summary(path.id)
            return None if run is None else await self._root(path, run)
        for record in await self._read.children(path.parent, path.step, path.visit):
            if record.act == path.act and record.key == path.key:
                return await self._row(path.parent, record)
        return None

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
        """See ``Inspects``."""
        found = [
            record
            for record in await self._read.children(path, step)
            if status in (None, record.status or "running")
            and (key is None or key in _shown(record.key))
        ]
        found.sort(key=_ORDERS[order])
        begin = 0 if after is None else int(after)
        rows = [await self._row(path, record) for record in found[begin : begin + limit]]
        end = begin + limit
        return RowPage(rows, str(end) if end < len(found) else None)

    async def tallies(self, path: RunPath) -> Sequence[StepTally]:
        """See ``Inspects``."""
        counts = dict[tuple[str, int, str], Counter[ChildStatus]]()
        lost = Counter[tuple[str, int, str]]()
        losers = await self._losers(path)
        for record in await self._read.children(path):
            name = record.step, record.visit, record.act
            counts.setdefault(name, Counter())[record.status or "running"] += 1
            lost[name] += record.winner is not None or _name_of(record) in losers
        return [StepTally(*name, counts=count, lost=lost[name]) for name, count in counts.items()]

    async def failed_rows(self, path: RunPath, *, limit: int = 10_000) -> Sequence[Row]:
        """See ``Inspects``."""
        losers = await self._losers(path)
        failed = [
            record
            for record in await self._read.children(path)
            if record.status == "failed" and _name_of(record) not in losers
        ]
        failed.sort(key=lambda record: (record.applied or 0, record.position))
        return [await self._row(path, record) for record in failed[:limit]]

    async def _losers(self, path: RunPath) -> set[tuple[str, int, str, Key]]:
        failed = await self._browsed.failures(path, limit=1_000_000)
        return {(one.step, one.visit, one.act, one.key) for one in failed if one.lost}

    async def timeline(self, path: RunPath, *, bins: int = 60) -> Sequence[Bin]:
        """Return nothing, since the times of ends aren't known."""
        return ()

    async def text(
        self, path: RunPath, what: Literal["element", "value", "error", "first"]
    ) -> str | None:
        """See ``Inspects``."""
        if path.parent is None:
            run = await self._read.load(path.id) if what == "first" else None
            return None if run is None else text(dict(run.beginning.first))
        for record in await self._read.children(path.parent, path.step, path.visit):
            if record.act == path.act and record.key == path.key and what != "first":
                value = getattr(record, what)
                return None if value is None and what != "element" else text(value)
        return None

    async def children_of_key(self, path: RunPath, step: str, key: Key) -> Sequence[Row]:
        """See ``Inspects``."""
        records = await self._read.children(path, step)
        return [
            await self._row(path, record)
            for record in records
            if record.key == key and type(record.key) is type(key)
        ]

    async def entries(
        self,
        path: RunPath,
        *,
        kinds: Collection[EntryKind] | None = None,
        from_number: int = 0,
        limit: int = 100,
    ) -> tuple[Sequence[StoredEntry], int | None]:
        """See ``Inspects``."""
        rows: dict[int | None, Row] = {
            record.applied: await self._row(path, record)
            for record in await self._read.children(path)
            if record.applied is not None
        }
        history = await self._read.read(path)
        return stored_parts(history, (), rows, kinds=kinds, from_number=from_number, limit=limit)

    async def times(
        self, path: RunPath, *, after: int = 0, limit: int = 1000
    ) -> Sequence[tuple[int, float]]:
        """Return nothing, since the store doesn't say."""
        return ()

    async def spawned(self, path: RunPath) -> Sequence[RunSummary]:
        """Return nothing, since the store doesn't say."""
        return ()

    # -- rows -----------------------------------------------------------------------------------

    async def _root(self, path: RunPath, run: RunSummary) -> Row:
        end = run.ended_at
        return Row(
            path=path,
            status=run.status,
            began_at=run.began_at,
            ended_at=end,
            elapsed=0.0 if end is None else end - run.began_at,
            reason=run.reason,
            error_type=run.error.partition(":")[0],
            error=run.error,
            has_children=bool(await self._browsed.counts(path)),
        )

    async def _row(self, parent: RunPath, record: ChildRecord) -> Row:
        path = _child(parent, record, (record.act, record.key))
        error = record.error
        return Row(
            path=path,
            status=record.status or "running",
            position=record.position,
            elapsed=record.elapsed,
            attempts=record.attempts,
            used=record.used,
            reason=record.reason,
            winner=None if record.winner is None else _child(parent, record, record.winner),
            error_type="" if error is None else type(error).__name__,
            error="" if error is None else in_short(error),
            has_children=bool(await self._browsed.counts(path)),
            applied=record.applied,
        )


def _child(parent: RunPath, record: ChildRecord, name: ChildName | tuple[str, Key]) -> RunPath:
    act, key = name
    return RunPath(parent=parent, step=record.step, visit=record.visit, act=act, key=key)


def _name_of(record: ChildRecord) -> tuple[str, int, str, Key]:
    return record.step, record.visit, record.act, record.key


def _shown(key: Key) -> str:
    return key if isinstance(key, str) else f"{key:#x}" if abs(key) > 1 << 64 else str(key)


_ORDERS: Mapping[Order, Callable[[ChildRecord], Any]] = {
    "failed first": lambda record: (
        _RANK[record.status or "running"],
        record.applied or 0,
        record.position,
    ),
    "position": lambda record: record.position,
    "ended last": lambda record: -(record.applied or 0),
    "slowest": lambda record: -record.elapsed,
}
