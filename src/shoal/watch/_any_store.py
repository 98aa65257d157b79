"""``Inspection``: ``Inspects`` for stores that don't implement it, made of what each store can do.

It reads all children of a run for each answer, so it is for small stores and for tests. Times that
a store doesn't return are unknown.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

from shoal._events.events import ChildName, Decision, ErrorInfo, Update, in_short
from shoal._events.identity import Key, RunPath
from shoal._state.plain import to_plain
from shoal._state.state import Drop, Extend, Increment, Operation, Put, PutWithin, Set
from shoal.stores._history import (
    Completed,
    Entry,
    QuestionAnswered,
    QuestionAsked,
    Rewound,
    StepBegun,
)
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
_OPERATIONS: Mapping[type, str] = {
    Set: "set",
    Extend: "extend",
    Put: "put",
    PutWithin: "within",
    Increment: "add",
    Drop: "drop",
}


class Inspection:
    """Answers about the runs of a store that is a ``Store`` and ``Browses``."""

    def __init__(self, store: Browses) -> None:
        """Read from ``store``."""
        self._browsed: Browses = store
        self._read: Store = cast("Store", store)

    # -- ``Browses`` ----------------------------------------------------------------------------

    async def runs(
        self, *, status: RunStatus | None = None, limit: int = 50, after: str | None = None
    ) -> Sequence[RunSummary]:
        """See ``Browses``."""
        return await self._browsed.runs(status=status, limit=limit, after=after)

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
            return None if run is None else _json(run.beginning.first)
        for record in await self._read.children(path.parent, path.step, path.visit):
            if record.act == path.act and record.key == path.key:
                value = {"element": record.element, "value": record.value, "error": record.error}
                found = value.get(what)
                return None if found is None else _json(found)
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
        children = {
            record.applied: record
            for record in await self._read.children(path)
            if record.applied is not None
        }
        found = list[StoredEntry]()
        number = 0
        for entry in await self._read.read(path):
            number = entry.number if isinstance(entry, Update) else number
            if number < from_number:
                continue
            if found and len(found) >= limit and number > found[-1].number:
                return found, number
            child = children.get(number) if isinstance(entry, Update) else None
            row = None if child is None else await self._row(path, child)
            stored = _stored(entry, number, row)
            if kinds is None or stored.kind in kinds:
                found.append(stored)
        return found, None

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


# -- entries -----------------------------------------------------------------------------------


def _stored(entry: Entry, number: int, child: Row | None) -> StoredEntry:
    kind: EntryKind
    step, data = "", cast("object", None)
    match entry:
        case Update():
            kind, step = "update", entry.step
            operations = [*map(_operation, entry.operations)]
            data = {"number": entry.number, "do": operations, "step": step}
            data |= {"found": [*entry.discovered]} if entry.discovered else {}
        case Decision():
            kind, step = "decision", entry.step
            data = [[*entry.winner], [[*one] for one in entry.winners], entry.reason]
        case Completed():
            kind, step, data = "completed", entry.step, entry.number
        case Rewound():
            kind, step, data = "rewound", entry.step, entry.visit
        case StepBegun():
            kind, step, data = "begun", entry.step, entry.declared
        case QuestionAsked():
            kind, step, data = "asked", entry.step, [entry.name, entry.question, entry.id]
        case QuestionAnswered():
            kind, data = "answered", [entry.id, entry.value]
    return StoredEntry(number=number, kind=kind, step=step, data=_json(data), child=child)


def _operation(operation: Operation) -> list[object]:
    if isinstance(operation, Extend):
        return ["extend", operation.field, [*operation.values]]
    return [_OPERATIONS[type(operation)], *cast("Iterable[object]", operation)]


def _json(value: object) -> str:
    if isinstance(value, BaseException):
        value = ErrorInfo.of(value).to_plain()
    return json.dumps(to_plain(value, for_json=True), default=repr, skipkeys=True)
