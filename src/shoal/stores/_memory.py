"""``MemoryStore``: keep runs in memory.

This is the shortest complete store, so read it before you write another one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import dropwhile, islice
from typing import final

from anyio import current_time
from anyio.lowlevel import RunVar

from shoal._errors.exceptions import LeaseLost, RunClaimed
from shoal._events.events import Decision, Status, Update, in_short
from shoal._events.identity import Key, RunPath
from shoal._state.state import Operation

from ._history import Entry
from ._protocol import (
    ENDED,
    Batch,
    Beginning,
    ChildRecord,
    ChildStatus,
    FailedChild,
    Orphan,
    RunRecord,
    RunStatus,
    RunSummary,
    SavedRun,
)
from ._results import Results

# Names in two levels: unlike an id they need no hashing, and the children of a visit are found
# without looking at those of other visits.
_Visit = tuple[str, int]  # of a step
_Child = tuple[str, Key]  # act and key

_wall: RunVar[float] = RunVar("shoal_memory_wall")


def _now() -> float:
    """Return seconds since 1970, by the event loop's clock, which may be a virtual one."""
    at, since = current_time(), _wall.get(None)
    if since is None:
        since = time.time() - at
        _wall.set(since)
    return at + since


@dataclass(slots=True)
class _Kept:
    """The saved data of one run. There is one for each child, so empty parts take no memory."""

    beginning: Beginning | None = None  # of a root run
    status: Status | None = None
    reason: str = ""
    record: ChildRecord | None = None  # of a child
    history: Sequence[Entry] = ()  # of most children one save, whose tuple is shared
    visits: dict[_Visit, dict[_Child, _Kept]] = field(default_factory=dict)

    def add(self, entries: Sequence[Entry]) -> None:
        """Append entries to the history."""
        if not self.history:
            self.history = entries
            return
        if not isinstance(self.history, list):
            self.history = list(self.history)
        self.history += entries

    def child(self, path: RunPath) -> _Kept:
        """Return the data of a child; create it, if the child is new."""
        visit = self.visits.setdefault((path.step, path.visit), {})
        name = path.act, path.key
        found = visit.get(name)
        if found is None:
            found = visit[name] = _Kept()
        return found

    def children(self, step: str | None = None, visit: int | None = None) -> Iterator[_Kept]:
        if step is not None and visit is not None:
            yield from self.visits.get((step, visit), {}).values()
            return
        for (of_step, of_visit), children in self.visits.items():
            if step in (None, of_step) and visit in (None, of_visit):
                yield from children.values()

    def copy(self) -> _Kept:
        visits = {
            visit: {child: kept.copy() for child, kept in children.items()}
            for visit, children in self.visits.items()
        }
        return replace(self, history=tuple(self.history), visits=visits)


@dataclass(slots=True)
class _Life:
    """The further data of a root run that ``Browses`` and ``Prunes`` need."""

    began_at: float
    saved_at: float = 0.0  # the time of the last save
    error: str = ""

    def note(self, batch: Batch) -> None:
        error = batch.run.error
        self.saved_at = _now()
        self.error = in_short(error) if error is not None and batch.ended == "failed" else ""


@final
class MemoryStore:
    """Keeps runs in memory: they survive failures and cancellation, but not the end of the process.

    For tests, and for services that want to retry and look up runs without a database. Values are
    kept as they are, not copied; treat them as immutable, like everything in a state. Runs are kept
    until ``discard`` or ``prune`` deletes them.

    Examples:
        >>> import anyio
        >>> @action(reads=["n"], writes=["square"])
        ... async def square(n: int) -> int:
        ...     return n * n
        >>> async def main() -> None:
        ...     app = Application(square, store=MemoryStore())
        ...     await app.run({"n": 3}, id="three")
        ...     again = await app.run(id="three")  # returns what is recorded, and runs nothing
        ...     print(again.state["square"])
        >>> anyio.run(main)
        9
    """

    def __init__(self) -> None:
        """Create an empty store."""
        self._roots: dict[str, _Kept] = {}  # by run id
        self._claims: dict[str, str] = {}  # the execution that holds each claimed root run
        # Runs that were claimed when this store was copied from another one: their executions count
        # as dead.
        self._died: set[str] = set()
        self._lives: dict[str, _Life] = {}  # by run id, in the order in which the runs began
        self._results = Results(_now)

    def copy(self) -> MemoryStore:
        """Return another store with the same runs, all of them unclaimed.

        It has the data that a durable store would have if the process died now.
        """
        other = MemoryStore()
        other._roots = {run_id: kept.copy() for run_id, kept in self._roots.items()}
        other._died = self._died | set(self._claims)
        other._lives = {run_id: replace(life) for run_id, life in self._lives.items()}
        other._results = self._results.copy()
        return other

    def discard(self, run_id: str) -> None:
        """Delete a root run and all its descendants. An unknown run is no error.

        Raises:
            RunClaimed: The run is being executed.
        """
        self._refuse_claimed(run_id)
        self._forget(run_id)

    def _forget(self, run_id: str) -> None:
        for kept in (self._roots, self._lives):
            kept.pop(run_id, None)

    def __len__(self) -> int:
        """Count the root runs."""
        return len(self._roots)

    def __repr__(self) -> str:
        return f"<MemoryStore of {len(self._roots)} runs, {len(self._claims)} of them claimed>"

    # -- ``Store`` and ``FindsOrphans``: called by the engine -----------------------------------

    async def claim(self, run_id: str, holder: str) -> bool:
        """Give ``holder`` the run; see ``Store``."""
        self._refuse_claimed(run_id)
        self._claims[run_id] = holder
        has_died = run_id in self._died
        self._died.discard(run_id)
        return has_died

    def _refuse_claimed(self, run_id: str) -> None:
        if run_id in self._claims:
            msg = (
                f"run {run_id} is already running in this process, and a run has one execution at "
                f"a time: wait for that execution to end, or cancel it"
            )
            raise RunClaimed(msg)

    async def load(self, run_id: str) -> RunRecord | None:
        """Return a root run; see ``Store``."""
        kept = self._roots.get(run_id)
        if kept is None or kept.beginning is None:
            return None
        return RunRecord(beginning=kept.beginning, status=kept.status, reason=kept.reason)

    def pack(self, child: SavedRun) -> None:
        """Prepare nothing, because values are kept as they are."""

    def save(self, batch: Batch) -> None:
        """Save ``batch``; see ``Store``."""
        root = batch.path.root.id
        if self._claims.get(root) != batch.holder:
            msg = f"run {root} was taken over by another execution; this one can't save any more"
            raise LeaseLost(msg)
        # First everything that may raise (a digest of a value that is not data raises ``NotData``),
        # so that a failed save has changed nothing.
        kept = self._find(batch.path, batch.run, afresh=batch.afresh)
        ends = [
            (child, _ended(child, update.number))
            for child, update in zip(batch.applied, batch.updates, strict=False)
        ]
        ends += [(child, _ended(child, None)) for child in batch.unapplied]
        if batch.afresh:
            kept.history, kept.visits = (), {}
        if batch.begun is not None:
            kept.beginning = batch.begun
            self._lives[root] = _Life(_now())
        if batch.path.parent is None and root in self._lives:
            self._lives[root].note(batch)
        kept.add(batch.entries)
        kept.status = batch.ended  # None while it runs
        kept.reason = batch.run.reason
        for child, record in ends:
            found = kept.child(child.path)
            found.record = record
            last = child.last_update
            if last is not None:
                found.add((last,))

    async def read(self, path: RunPath, from_number: int = 0) -> Sequence[Entry]:
        """Return the history of a run; see ``Store``."""
        kept = self._known(path)
        if kept is None:
            return ()
        at = 0
        while at < len(kept.history) and _number(kept.history[at]) < from_number:
            at += 1
        return kept.history[at:]

    async def children(
        self, path: RunPath, step: str | None = None, visit: int | None = None
    ) -> Sequence[ChildRecord]:
        """Return the records of a run's children; see ``Store``."""
        kept = self._known(path)
        if kept is None:
            return []
        found = kept.children(step, visit)
        return [child.record for child in found if child.record is not None]

    async def orphans(self) -> Sequence[Orphan]:
        """Return the runs without an end that are not claimed; see ``FindsOrphans``."""
        return [
            Orphan(run_id, begun.application, begun.version, begun.secret)
            for run_id, kept in self._roots.items()
            if (begun := kept.beginning) is not None
            and kept.status is None
            and run_id not in self._claims
        ]

    async def release(self, run_id: str, holder: str) -> None:
        """Release the run; see ``Store``."""
        if self._claims.get(run_id) == holder:
            del self._claims[run_id]

    # -- ``CachesResults``, ``Prunes`` and ``Browses`` -------------------------------------------

    async def recall(self, key: str) -> Sequence[Operation] | None:
        """Return a cached result; see ``CachesResults``."""
        return await self._results.recall(key)

    async def remember(self, key: str, operations: Sequence[Operation], seconds: float) -> None:
        """Cache a result; see ``CachesResults``."""
        await self._results.remember(key, operations, seconds)

    async def prune(
        self, older_than: float, statuses: Collection[RunStatus] = ENDED, *, dry_run: bool = False
    ) -> int:
        """Delete old runs; see ``Prunes``."""
        until = _now() - older_than
        old = [
            run.run_id
            for run in map(self._summary, self._lives)
            if run.status in statuses
            and not run.holder
            and self._lives[run.run_id].saved_at <= until
        ]
        if not dry_run:
            self._results.expire()
            for run_id in old:
                self._forget(run_id)
        return len(old)

    async def runs(
        self, *, status: RunStatus | None = None, limit: int = 50, after: str | None = None
    ) -> Sequence[RunSummary]:
        """Return root runs, the newest first; see ``Browses``."""
        newest: Iterator[str] = reversed(self._lives)
        if after is not None:
            newest = islice(dropwhile(lambda run_id: run_id != after, newest), 1, None)
        runs = map(self._summary, newest)
        return list(islice((run for run in runs if status in (None, run.status)), limit))

    async def summary(self, run_id: str) -> RunSummary | None:
        """Return one root run; see ``Browses``."""
        return self._summary(run_id) if run_id in self._lives else None

    async def counts(self, path: RunPath) -> Mapping[ChildStatus, int]:
        """Count the children of a run by status; see ``Browses``."""
        return Counter(record.status or "running" for record in await self.children(path))

    async def failures(
        self, path: RunPath, *, limit: int = 50, skip: int = 0
    ) -> Sequence[FailedChild]:
        """Return failed children; see ``Browses``."""
        failed = [record for record in await self.children(path) if record.status == "failed"]
        failed.sort(key=lambda record: (record.applied or 0, record.position))
        shown = [_failure(record) for record in failed[skip : skip + limit]]
        decided = await self._decided_visits(path) if shown else ()
        return [one._replace(lost=(one.step, one.visit) in decided) for one in shown]

    async def _decided_visits(self, path: RunPath) -> set[tuple[str, int]]:
        """Return the visits of a run's steps in which a race was decided: see ``SQLiteStore``."""
        visits, number = set[tuple[str, int]](), 0
        children = await self.children(path)
        for entry in await self.read(path):
            if isinstance(entry, Update):
                number = entry.number
            if isinstance(entry, Decision):
                later = [
                    (one.applied is None, one.visit)
                    for one in children
                    if (one.step, one.act, one.key) == (entry.step, *entry.winner)
                    and (one.applied is None or one.applied >= number)
                ]
                visits |= {(entry.step, visit) for _, visit in sorted(later)[:1]}
        return visits

    def _summary(self, run_id: str) -> RunSummary:
        kept, life = self._roots[run_id], self._lives[run_id]
        beginning = kept.beginning
        assert beginning is not None, "it has begun"
        return RunSummary(
            run_id=run_id,
            application=beginning.application,
            version=beginning.version,
            status=kept.status or "running",
            began_at=life.began_at,
            ended_at=None if kept.status is None else life.saved_at,
            reason=kept.reason,
            error=life.error,
            holder="this process" if run_id in self._claims else "",
            forked_from=None if beginning.forked_from is None else beginning.forked_from[0],
        )

    # -- finding --------------------------------------------------------------------------------

    def _known(self, path: RunPath) -> _Kept | None:
        if path.parent is None:
            return self._roots.get(path.id)
        parent = self._known(path.parent)
        visit = None if parent is None else parent.visits.get((path.step, path.visit))
        return None if visit is None else visit.get((path.act, path.key))

    def _find(self, path: RunPath, run: SavedRun | None = None, *, afresh: bool = False) -> _Kept:
        """Return the data of a run; create it, and that of its ancestors, if it is new."""
        if path.parent is None:
            return self._roots.setdefault(path.id, _Kept())
        kept = self._find(path.parent).child(path)
        if run is not None and (kept.record is None or afresh):
            kept.record = _under_way(run)
        elif run is not None and kept.record is not None and kept.record.crashes != run.crashes:
            kept.record = kept.record._replace(crashes=run.crashes)
        return kept


def _failure(record: ChildRecord) -> FailedChild:
    return FailedChild(
        step=record.step,
        visit=record.visit,
        act=record.act,
        key=record.key,
        position=record.position,
        error="" if record.error is None else in_short(record.error),
        attempts=record.attempts,
        elapsed=record.elapsed,
        applied=record.applied,
    )


def _number(entry: Entry) -> int:
    return getattr(entry, "number", 0)


def _under_way(run: SavedRun) -> ChildRecord:
    path = run.path
    return ChildRecord(
        step=path.step,
        visit=path.visit,
        act=path.act,
        key=path.key,
        position=run.position,
        element=run.element,
        digest=run.digest,
        status=None,
        crashes=run.crashes,
    )


def _ended(run: SavedRun, applied: int | None) -> ChildRecord:
    """Return the record of a child that has ended; ``applied`` is the update's number, if any."""
    path = run.path
    return ChildRecord(
        step=path.step,
        visit=path.visit,
        act=path.act,
        key=path.key,
        position=run.position,
        element=run.element,
        digest=run.digest,
        status="skipped" if run.status is None else run.status,
        value=run.value,
        applied=applied,
        used=run.used,
        reason=run.reason,
        winner=run.winner,
        error=run.error if isinstance(run.error, Exception) else None,
        attempts=run.attempts,
        elapsed=run.elapsed,
        abandoned=run.abandoned,
        crashes=run.crashes,
    )
