"""``MemoryStore``: keep runs in memory.

This is the shortest complete store, so read it before you write another one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import dropwhile, islice
from typing import Literal, final

from anyio import current_time
from anyio.lowlevel import RunVar

from shoal._errors.exceptions import DefinitionError, LeaseLost, RunClaimed, brief
from shoal._events.events import Decision, Status, Update, in_short
from shoal._events.identity import Key, RunPath
from shoal._state.state import Operation

from . import _inspecting
from ._codec.codec import Codec
from ._history import Entry, QuestionAnswered, Steered, is_resting
from ._inspecting import Inspected
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
from ._row_order import row_of
from ._sql.rows import Packer
from ._sql.sizes import UpdateSizes
from ._watching import (
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


def _new_packer(codec: Codec | None) -> Packer | None:
    """Return what encodes saves as SQLiteStore does; None if its package isn't installed."""
    if codec is None:
        try:
            codec = Codec()
        except ImportError:  # without msgspec nothing is refused
            return None
    if not isinstance(codec, Codec):
        msg = f"MemoryStore(codec=...) takes a Codec, not {brief(codec)}"
        raise DefinitionError(msg)
    return Packer(codec, UpdateSizes(warns=False))


@dataclass(slots=True)
class _Kept:
    """The saved data of one run. There is one for each child, so empty parts take no memory."""

    beginning: Beginning | None = None  # of a root run
    status: Status | None = None
    reason: str = ""
    record: ChildRecord | None = None  # of a child
    ended_at: float | None = None  # of a child, as far as no later one replaces it
    failed_step: str = ""
    history: Sequence[Entry] = ()  # of most children one save, whose tuple is shared
    # The numbers of updates with the times of their saves; few children have several saves.
    times: Sequence[tuple[int, float]] = ()
    visits: dict[_Visit, dict[_Child, _Kept]] = field(default_factory=dict)

    def add(self, entries: Sequence[Entry]) -> None:
        """Append entries to the history."""
        if not self.history:
            self.history = entries
            return
        if not isinstance(self.history, list):
            self.history = list(self.history)
        self.history += entries

    def note_time(self, number: int, at: float) -> None:
        """Note when the updates up to a number were saved."""
        if not isinstance(self.times, list):
            self.times = list(self.times)
        self.times.append((number, at))

    def inspected(self) -> Inspected | None:
        """Return the child for a watcher; None if nothing of its own was saved."""
        if self.record is None:
            return None
        return Inspected(self.record, self.ended_at, self.failed_step, bool(self.visits))

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
        times, history = tuple(self.times), tuple(self.history)
        return replace(self, history=history, times=times, visits=visits)


@dataclass(slots=True)
class _Life:
    """The further data of a root run that ``Browses`` and ``Prunes`` need."""

    began_at: float
    saved_at: float = 0.0  # the time of the last save
    error: str = ""
    report: StoredReport | None = None

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

    It refuses what a durable store would refuse, so that a program that works with it works with a
    ``SQLiteStore``, too. For that, each save is encoded as that one does (which takes a few
    microseconds per child), and the text is dropped. Without ``shoal[sqlite]``, which has the
    encoder, nothing is refused.

    Args:
        strict: Whether it refuses values that a ``SQLiteStore`` can't keep, with its errors.
        codec: Knows further types, as for the ``SQLiteStore``; only for a strict store.

    Raises:
        DefinitionError: ``codec`` is given to a store that isn't strict, or is no ``Codec``.

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

    is_shared: bool = False
    """Whether other processes can read it; see ``KeepsReports``."""

    def __init__(self, *, strict: bool = True, codec: Codec | None = None) -> None:
        """Create an empty store; see the class."""
        if codec is not None and not strict:
            msg = "MemoryStore(codec=...) is for a strict store: others keep any value as it is"
            raise DefinitionError(msg)
        # Encodes what is saved, to refuse what can't be; None: anything is kept.
        self._packer = _new_packer(codec) if strict else None
        self._roots: dict[str, _Kept] = {}  # by run id
        self._claims: dict[str, str] = {}  # the execution that holds each claimed root run
        # Runs that were claimed when this store was copied from another one: their executions count
        # as dead.
        self._died: set[str] = set()
        self._lives: dict[str, _Life] = {}  # by run id, in the order in which the runs began
        self._results = Results(_now)
        self._commands: dict[str, list[Command]] = {}  # by run id
        self._changes = 0  # how often anything was changed

    def copy(self) -> MemoryStore:
        """Return another store with the same runs, all of them unclaimed.

        It has the data that a durable store would have if the process died now.
        """
        other = MemoryStore(strict=False)
        other._packer = self._packer
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
        self._changes += 1
        for kept in (self._roots, self._lives, self._commands):
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
        self._commands.pop(run_id, None)
        self._changes += 1
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

    def pack(self, child: SavedRun) -> object:
        """Refuse what can't be encoded of the result of a child; see ``Store``."""
        return None if self._packer is None else self._packer.pack(child)

    def save(self, batch: Batch) -> None:
        """Save ``batch``; see ``Store``."""
        root = batch.path.root.id
        if self._claims.get(root) != batch.holder:
            msg = f"run {root} was taken over by another execution; this one can't save any more"
            raise LeaseLost(msg)
        if self._packer is not None:
            self._packer.save(batch)
        # First everything that may raise (a digest of a value that is not data raises ``NotData``),
        # so that a failed save has changed nothing.
        kept = self._find(batch.path, batch.run, afresh=batch.afresh)
        ends = [
            (child, _ended(child, update.number))
            for child, update in zip(batch.applied, batch.updates, strict=False)
        ]
        ends += [(child, _ended(child, None)) for child in batch.unapplied]
        self._changes += 1
        at = _now()
        if batch.afresh:
            kept.history, kept.times, kept.visits = (), (), {}
        if batch.begun is not None:
            kept.beginning = batch.begun
            self._lives[root] = _Life(at)
        if batch.path.parent is None and root in self._lives:
            self._lives[root].note(batch)
        kept.add(batch.entries)
        if batch.updates:
            kept.note_time(batch.updates[-1].number, at)
        kept.status = batch.ended  # None while it runs
        kept.reason = batch.run.reason
        for child, record in ends:
            found = kept.child(child.path)
            found.record, found.ended_at = record, at
            is_far = child.status == "failed" and child.step not in (None, child.path.act)
            found.failed_step = (child.step or "") if is_far else ""
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
            Orphan(
                run_id,
                begun.application,
                begun.version,
                begun.secret,
                is_paused=is_resting(kept.history),
                priority=begun.priority,
            )
            for run_id, kept in self._roots.items()
            if (begun := kept.beginning) is not None
            and kept.status is None
            and run_id not in self._claims
        ]

    async def release(self, run_id: str, holder: str) -> None:
        """Release the run; see ``Store``."""
        if self._claims.get(run_id) == holder:
            del self._claims[run_id]
            self._changes += 1

    # -- ``CachesResults``, ``Prunes`` and ``Browses`` -------------------------------------------

    async def recall(self, key: str) -> Sequence[Operation] | None:
        """Return a cached result; see ``CachesResults``."""
        return await self._results.recall(key)

    async def remember(self, key: str, operations: Sequence[Operation], seconds: float) -> None:
        """Cache a result; see ``CachesResults``."""
        if self._packer is not None:
            self._packer.result(operations)
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
        self,
        *,
        status: RunStatus | None = None,
        limit: int = 50,
        after: str | None = None,
        owner: str | None = None,
    ) -> Sequence[RunSummary]:
        """Return root runs, the newest first; see ``Browses``."""
        newest: Iterator[str] = reversed(self._lives)
        if after is not None:
            newest = islice(dropwhile(lambda run_id: run_id != after, newest), 1, None)
        runs = map(self._summary, newest)
        found = (run for run in runs if status in (None, run.status) and owner in (None, run.owner))
        return list(islice(found, limit))

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
                    (one.applied is None, one.visit, one.status)
                    for one in children
                    if (one.step, one.act, one.key) == (entry.step, *entry.winner)
                    and (one.applied is None or one.applied >= number)
                ]
                unapplied, visit, status = min(later, default=(True, 0, "failed"))
                if not (unapplied and status == "failed"):
                    visits.add((entry.step, visit))
        return visits

    # -- ``KeepsReports`` and ``Inspects`` ---------------------------------------------------------

    async def report(self, reports: Mapping[str, str]) -> Sequence[Command]:
        """Replace reports and take commands; see ``KeepsReports``."""
        for run_id, text in reports.items():
            if text and run_id in self._lives:
                self._lives[run_id].report = StoredReport(run_id, _now(), text)
                self._changes += 1
        return [one for run_id in reports for one in self._commands.pop(run_id, ())]

    async def reported(self, run_id: str) -> StoredReport | None:
        """Return the last report about a root run; see ``KeepsReports``."""
        return self._lives[run_id].report if run_id in self._lives else None

    async def command(self, command: Command) -> None:
        """Leave a command for the process that executes a run; see ``KeepsReports``."""
        if command.run_id in self._claims and command.run_id in self._lives:
            self._commands.setdefault(command.run_id, []).append(command)
            self._changes += 1

    async def steer(self, run_id: str, entries: Sequence[Steered | QuestionAnswered]) -> bool:
        """Append to the history of a root run that no process executes; see ``Steers``."""
        if self._packer is not None:
            self._packer.steered(run_id, entries)
        kept = self._roots.get(run_id)
        if kept is None or kept.beginning is None or run_id in self._claims:
            return False
        kept.add(tuple(entries))
        self._changes += 1
        return True

    async def mark(self) -> int:
        """Return a value that differs if anything was saved in between; see ``Inspects``."""
        return self._changes

    async def row(self, path: RunPath) -> Row | None:
        """Return one run, root or child; see ``Inspects``."""
        kept = self._known(path)
        if kept is None:
            return None
        if path.parent is None:
            summary = await self.summary(path.id)
            return summary and row_of(path, summary, has_children=bool(kept.visits))
        child = kept.inspected()
        return None if child is None else child.row(path.parent)

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
            ValueError: ``after`` is not the cursor of a page.
        """
        children = [
            one
            for one in self._inspected(path, step)
            if status in (None, one.record.status or "running")
            and (key is None or key in str(one.record.key))
        ]
        return _inspecting.rows(path, children, order, after, limit)

    def _inspected(self, path: RunPath, step: str | None = None) -> list[Inspected]:
        kept = self._known(path)
        children = () if kept is None else kept.children(step)
        return [found for one in children if (found := one.inspected()) is not None]

    async def tallies(self, path: RunPath) -> Sequence[StepTally]:
        """Count a run's children by step, visit, act and status; see ``Inspects``."""
        return _inspecting.tallies(self._inspected(path), await self._decided_visits(path))

    async def failed_rows(self, path: RunPath, *, limit: int = 10_000) -> Sequence[Row]:
        """Return the failed children of a run; see ``Inspects``."""
        decided = await self._decided_visits(path)
        failed = [
            one
            for one in self._inspected(path)
            if one.record.status == "failed" and not _inspecting.is_lost(one.record, decided)
        ]
        return _inspecting.rows(path, failed, "failed first", None, limit).rows

    async def times(
        self, path: RunPath, *, after: int = 0, limit: int = 1000
    ) -> Sequence[tuple[int, float]]:
        """Return when a run's updates were saved; see ``Inspects``."""
        kept = self._known(path)
        times = () if kept is None else kept.times
        return [(number, at) for number, at in times if number > after][:limit]

    async def timeline(self, path: RunPath, *, bins: int = 60) -> Sequence[Bin]:
        """Return when the ends of a run's children were saved; see ``Inspects``."""
        return _inspecting.timeline(self._inspected(path), bins)

    async def text(
        self, path: RunPath, what: Literal["element", "value", "error", "first"]
    ) -> str | None:
        """Return a value of a run as JSON; see ``Inspects``."""
        kept = self._known(path)
        if kept is None:
            return None
        if what == "first":
            begun = kept.beginning
            return None if begun is None else _inspecting.text(dict(begun.first))
        value = None if kept.record is None else getattr(kept.record, what)
        is_there = kept.record is not None and (what == "element" or value is not None)
        return _inspecting.text(value) if is_there else None

    async def children_of_key(self, path: RunPath, step: str, key: Key) -> Sequence[Row]:
        """Return the children of one key in all visits and acts of a step; see ``Inspects``."""
        of_step = self._inspected(path, step)
        found = [one.row(path) for one in of_step if one.record.key == key]
        return sorted(found, key=lambda row: row.path.visit)

    async def entries(
        self,
        path: RunPath,
        *,
        kinds: Collection[EntryKind] | None = None,
        from_number: int = 0,
        limit: int = 100,
    ) -> tuple[Sequence[StoredEntry], int | None]:
        """Return a part of a run's history; see ``Inspects``."""
        kept = self._known(path)
        if kept is None:
            return (), None
        rows = {one.record.applied: one.row(path) for one in self._inspected(path)}
        return _inspecting.entries(
            kept.history, kept.times, rows, kinds=kinds, from_number=from_number, limit=limit
        )

    async def spawned(self, path: RunPath) -> Sequence[RunSummary]:
        """Return the root runs that an action of this run has started; see ``Inspects``."""
        return [
            self._summary(run_id)
            for run_id in reversed(self._lives)
            if (begun := self._roots[run_id].beginning) is not None
            and begun.spawned_by is not None
            and begun.spawned_by[0] == path
        ][:1000]

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
            spawned_by=beginning.spawned_by,
            owner=beginning.owner,
            priority=beginning.priority,
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
            kept.record, kept.ended_at, kept.failed_step = _under_way(run), None, ""
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
