"""Writing to the tables of a store, in its writer's thread. Imports reading and claims.

Invariants:
- Every save names its claim, which is looked at in the same transaction: what comes from an
  execution that the run was taken from is refused, however late it comes.
- Where a transaction failed, nothing of it is kept, and everybody whose save was in it is told.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, repeat
from math import inf
from typing import Any, NamedTuple, final

from shoal._errors.exceptions import RunClaimed, ShoalError, StoreFailed
from shoal._events.identity import Key
from shoal.stores._codec.codec import Codec
from shoal.stores._protocol import RunStatus

from . import pruning as _pruning
from . import results as _cached
from .dialect import Connection, Dialect, Faults
from .leases import Claim, Held, KnownRows
from .reading import children_where
from .rows import Begun, Child, History, Place, Rows
from .unpacking import outlived
from .writer_thread import Job

KNOWN = 10_000  # rows of a run whose ids are remembered

logger = logging.getLogger("shoal")

COLUMNS = (
    "position", "element", "digest", "status", "applied", "used", "value", "form", "change", "own",
    "reason", "winner_act", "winner_key", "error", "attempts", "elapsed", "abandoned",
    "crashes",
)  # fmt: skip
"""Of ``runs``, what is said of children, but for their names."""
UPDATE = f"UPDATE runs SET {', '.join(f'{name} = ?' for name in COLUMNS)} WHERE id = ?"
_ROOT = (
    "application",
    "version",
    "first",
    "after",
    "visits",
    "forked_from",
    "forked_at",
    "secret",
    "began_at",
)
_BEGUN = (
    f"INSERT INTO roots (run, {', '.join(_ROOT)}) VALUES ({', '.join('?' * (1 + len(_ROOT)))}) "
    f"ON CONFLICT (run) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _ROOT)}"
)
OURS = "run_id = ? AND epoch = ? AND execution = ?"
IS_KEPT = "EXISTS (SELECT 1 FROM runs WHERE parent = 0 AND place = 0 AND key = ?)"
SAYS_MORE = "(applied IS NOT NULL OR own IS NOT NULL OR runs.form IS NOT NULL)"
"""Holds of rows of children that say something of histories."""
_BELOW = (
    "WITH RECURSIVE below(id) AS (SELECT id FROM runs WHERE parent = ? UNION ALL "
    "SELECT runs.id FROM runs JOIN below ON runs.parent = below.id) "
)


@cache
def _new_row(columns: tuple[str, ...]) -> str:
    names = ("parent", "place", *columns)
    holes = ", ".join("?" * len(names))
    return (
        f"INSERT INTO runs ({', '.join(names)}) VALUES ({holes}) "
        "ON CONFLICT (parent, place, key) DO NOTHING RETURNING id"
    )


def delays() -> Iterator[float]:
    """Return after how many seconds what may pass is tried again, each time."""
    return chain((0.0,), repeat(0.1))  # at once: a connection may have been lost long ago


def tell_waiting(who: str, patience: float, error: Exception) -> None:
    """Say, to whoever looks at logs, what is waited for."""
    logger.warning("%s wait %g s at most: %s", who, patience, " ".join(str(error).split()))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How a store was described, and what its database is like."""

    dialect: Dialect
    faults: Faults
    codec: Codec
    lease: float
    heartbeat: float
    patience: float


@final
class Claiming(NamedTuple):
    """Work for the writer: to claim a run. Returns whether its last execution gave it back."""

    claim: Claim

    def __call__(self, database: Database) -> bool:
        """Do it."""
        return database.claim(self.claim)


@final
class Releasing(NamedTuple):
    """Work for the writer: to give a run back."""

    claim: Claim

    def __call__(self, database: Database) -> None:
        """Do it."""
        database.release(self.claim)


@final
class Save(NamedTuple):
    """Work for the writer: to keep what a save writes, unless the run was taken over."""

    rows: Rows
    claim: Claim

    def __call__(self, database: Database) -> None:
        """Do it."""
        database.save(self.rows, self.claim)


def refuse_held(run_id: str, held: Held | None) -> tuple[int, bool]:
    """Return the epoch of the last claim, and whether its execution has died.

    Raises:
        RunClaimed: Another execution has the run.
    """
    if held is None:
        return 0, False
    if held.seconds_left:
        raise RunClaimed(held.refusal(run_id))
    return held.epoch, held.has_died


class Database(ABC):
    """The tables, as the writer's thread has them."""

    def __init__(self, config: Config) -> None:
        """Open nothing yet."""
        self._config = config
        self._dialect = config.dialect
        self._claims: dict[str, Claim] = {}
        self._next_beat = inf
        # When nothing is tried again any more, by the monotonic clock. Event loops set it.
        self._ends_at = inf
        self._rows = KnownRows()  # those of the claim under which is saved now
        self._touched = list[KnownRows]()  # in this transaction
        self._places: dict[Place, int] = {}
        self._forms: dict[str, int] = {}

    # -- what each database does by itself ------------------------------------------------------

    @property
    @abstractmethod
    def _sql(self) -> Connection:
        """The connection, which is open."""

    @abstractmethod
    def open(self) -> None:
        """Begin; see the writer's ``Database``."""

    @abstractmethod
    def close(self) -> None:
        """End."""

    @abstractmethod
    def _begin(self, jobs: Sequence[Job[Any, Any]]) -> None:
        """Begin the transaction that does ``jobs``."""

    @abstractmethod
    def _commit(self, jobs: Sequence[Job[Any, Any]]) -> None:
        """Commit it; where nobody can know whether it is, leave in ``jobs`` that it is in doubt."""

    @abstractmethod
    def _abort(self) -> None:
        """End a transaction that has failed, if there is one. Raises nothing."""

    @abstractmethod
    def _check(self, claim: Claim) -> None:
        """Refuse the save of an execution that the run was taken from."""

    @abstractmethod
    def _held(self, run_id: str) -> Held | None:
        """Look who has a run, and let nobody take it until the transaction has ended."""

    @abstractmethod
    def _take(self, claim: Claim) -> None:
        """Write a claim down, with its epoch, instead of the last one."""

    @abstractmethod
    def _beat(self) -> list[Claim]:
        """Give a sign of life of all that is claimed; return what others have taken."""

    def _write(self, sql: str, values: Sequence[Any]) -> None:
        """Execute a statement that is not asked what it has found or changed."""
        self._sql.execute(sql, values)

    @abstractmethod
    def _append(self, entries: list[tuple[int, History]]) -> None:
        """Write entries of histories, each with its run."""

    @abstractmethod
    def _insert(self, parent: int, children: list[tuple[int, Child]]) -> list[tuple[int, Child]]:
        """Write new rows of children, each with its place; return those that have one already."""

    # -- transactions ---------------------------------------------------------------------------

    def do(self, jobs: Sequence[Job[Any, Any]]) -> Iterator[Sequence[Job[Any, Any]]]:
        until = time.monotonic() + self._config.patience
        outage: Exception | None = None
        for group in self._grouped(jobs):
            # An outage is waited for once, and not by each group: the rest fails for that reason.
            if outage is None:
                outage = self._do(group, until)
            else:
                self._fail(group, outage)
            yield group

    def end_by(self, at: float) -> None:
        self._ends_at = at

    def _grouped(
        self, jobs: Sequence[Job[Any, Any]]
    ) -> Iterator[Sequence[Job[Any, Any]]] | Sequence[Sequence[Job[Any, Any]]]:
        """Return which jobs are done in one transaction each; all in one, by default."""
        return (jobs,)

    def _do(self, jobs: Sequence[Job[Any, Any]], until: float) -> Exception | None:
        """Do ``jobs`` in one transaction; return what all that come after them would meet."""
        error = self._attempt(jobs)
        for number, delay in enumerate(delays()):
            if error is None or not self._may_pass(error):
                break
            if time.monotonic() > min(until, self._ends_at):
                break
            if number == 1:  # the first one may be a connection that was lost long ago
                tell_waiting("saves", self._config.patience, error)
            time.sleep(delay)
            self.keep_up()
            error = self._attempt(jobs)
        if error is None:
            return None
        is_outage = self._may_pass(error) and self._config.faults.is_general(error)
        self._fail(jobs, error)
        return error if is_outage else None

    def _attempt(self, jobs: Sequence[Job[Any, Any]]) -> Exception | None:
        try:
            self._transact(jobs)
        except Exception as error:  # noqa: BLE001 # whoever waits hears of it
            self._roll_back()
            return error
        return None

    def _may_pass(self, error: Exception) -> bool:
        faults = self._config.faults
        return isinstance(error, faults.errors) and faults.may_pass(error)

    def _fail(self, jobs: Sequence[Job[Any, Any]], error: Exception) -> None:
        """Tell everybody of ``error``; where it may be one job's alone, find out whose."""
        faults = self._config.faults
        is_its_own = isinstance(error, faults.errors)
        if len(jobs) > 1 and not (is_its_own and faults.is_general(error)):
            for job in jobs:
                self._do((job,), time.monotonic() + self._config.patience)
            return
        for job in jobs:
            failure = error
            if is_its_own:
                failure = faults.explained(error)
                failure.__cause__ = error
            job.error = failure
            if job.on_failed is not None:  # at once: the next job may build on it
                job.on_failed(failure)

    def _transact(self, jobs: Sequence[Job[Any, Any]]) -> None:
        self._touched.clear()
        self._begin(jobs)
        for job in jobs:
            try:
                job.error = None
                job.result = job.work(self)
            except ShoalError as error:  # raised before anything was written
                job.error = error
        self._commit(jobs)

    def _roll_back(self) -> None:
        for rows in self._touched:
            rows.forget()
        self._places.clear()
        self._forms.clear()
        self._abort()

    # -- claims ---------------------------------------------------------------------------------

    def claim(self, claim: Claim) -> bool:
        """Claim a run; return whether its last execution has died before it gave it back."""
        epoch, has_died = self._refuse_claimed(claim.run_id)
        claim.epoch = epoch + 1
        self._take(claim)
        self._keep_up(claim)
        return has_died

    def _keep_up(self, claim: Claim) -> None:
        """Give signs of life of a claim that was made."""
        self._claims[claim.run_id] = claim
        self._next_beat = min(self._next_beat, time.monotonic() + self._config.heartbeat)

    def _refuse_claimed(self, run_id: str) -> tuple[int, bool]:
        """Return the epoch of the last claim, and whether its execution has died."""
        return refuse_held(run_id, self._held(run_id))

    def release(self, claim: Claim) -> None:
        """Give a run back."""
        key = self._dialect.index_of(claim.run_id)
        ours = (key, claim.epoch, claim.execution)
        if not claim.rows.ids:  # maybe nothing was ever saved of it, and nobody would prune that
            self._sql.execute(f"DELETE FROM claims WHERE {OURS} AND NOT {IS_KEPT}", (*ours, key))
        self._sql.execute(f"UPDATE claims SET execution = NULL WHERE {OURS}", ours)
        self._let_go(claim)

    def _let_go(self, claim: Claim) -> None:
        """Give no signs of life any more."""
        if self._claims.get(claim.run_id) is claim:
            del self._claims[claim.run_id]

    def keep_up(self) -> float:
        """Give a sign of life of all that is claimed, when it is time."""
        for claim in [one for one in self._claims.values() if one.lost or one.is_abandoned()]:
            del self._claims[claim.run_id]
        if not self._claims:
            return inf
        at = time.monotonic()
        if at >= self._next_beat:
            heartbeat = self._config.heartbeat
            try:
                for claim in self._beat():
                    claim.lost = True
                self._next_beat = at + heartbeat
            except (self._config.faults.errors, StoreFailed):  # saves meet the same, and say so
                self._roll_back()
                self._next_beat = time.monotonic() + heartbeat / 4
        return self._next_beat

    # -- saves ----------------------------------------------------------------------------------

    def save(self, rows: Rows, claim: Claim) -> None:
        """Write ``rows``, unless the run was taken over, or what they build on was not kept."""
        if claim.failure is not None:
            msg = f"an earlier save of run {claim.run_id} failed, and nobody waited for it"
            raise StoreFailed(msg) from claim.failure
        self._check(claim)
        self._rows = claim.rows
        self._touched.append(claim.rows)
        run, parent = self._root(rows.root), 0
        for above, (place, key) in enumerate(rows.path, 1):
            child = rows.run if above == len(rows.path) else None
            parent, run = run, self._run(run, self._place(place), key, child)
        if rows.afresh:
            self._delete_below(run)
        if rows.run is not None:
            self._note_under_way(run, parent, rows.run, afresh=rows.afresh)
        else:
            self._note_root(run, rows)
        if rows.history:
            self._append([(run, entry) for entry in rows.history])
        if rows.children:
            self._keep_children(run, rows.children)

    def _root(self, run_id: str) -> int:
        return self._run(0, 0, run_id)

    def _run(self, parent: int, place: int, key: Key, child: Child | None = None) -> int:
        """Find the row of a run; make it, if it is new: that of a ``child`` under way in full."""
        name = (parent, place, key)
        known = self._rows
        run = known.ids.get(name)
        if run is not None:
            return run
        if len(known.ids) >= KNOWN:
            known.forget()
        names = (parent, place, *self._dialect.columns_of(key))
        if child is not None:  # it is new, mostly
            run = self._new_row(COLUMNS, (*names, *self._row(child)))
            if run is not None:
                known.begun[run] = child.crashes
        if run is None:
            (run,) = self._sql.execute(
                "SELECT id FROM runs WHERE parent = ? AND place = ? AND key = ?", names[:3]
            ).fetchone() or (None,)
        if run is None:
            run = self._new_row((), names)
            assert run is not None, "it was not there"
        known.ids[name] = run
        return run

    def _new_row(self, columns: tuple[str, ...], values: Sequence[Any]) -> int | None:
        """Make the row of a run, of its names and more columns; None: there is one."""
        sql = _new_row((*self._dialect.key_columns, *columns))
        found = self._sql.execute(sql, values).fetchone()
        return None if found is None else int(found[0])

    def _place(self, place: Place) -> int:
        found = self._places.get(place)
        if found is None:
            found = self._intern("places", "step, visit, act", tuple(place))
            self._places[place] = found
        return found

    def _form(self, form: str | None) -> int | None:
        if form is None:
            return None
        found = self._forms.get(form)
        if found is None:
            found = self._forms[form] = self._intern("forms", "form", (form,))
        return found

    def _intern(self, table: str, names: str, values: tuple[object, ...]) -> int:
        holes = ", ".join("?" * len(values))
        sql = self._sql
        sql.execute(
            f"INSERT INTO {table} ({names}) VALUES ({holes}) ON CONFLICT DO NOTHING", values
        )
        where = " AND ".join(f"{name} = ?" for name in names.split(", "))
        found = sql.execute(f"SELECT id FROM {table} WHERE {where}", values).fetchone()
        return int(found[0])

    def _note_root(self, run: int, rows: Rows) -> None:
        if rows.begun is not None:
            self._write(_BEGUN, (run, *self._begun(rows.begun), time.time()))
        if rows.status is not None or not self._rows.is_running:
            self._write(
                "UPDATE runs SET status = ?, reason = ? WHERE id = ?",
                (rows.status, rows.reason or None, run),
            )
            ended = None if rows.status is None else time.time()
            self._write(
                "UPDATE roots SET ended_at = ?, error = ? WHERE run = ?", (ended, rows.error, run)
            )
            self._rows.is_running = rows.status is None

    def _begun(self, begun: Begun) -> Begun:
        """Return what ``_ROOT`` has of it."""
        if begun.forked_from is None:
            return begun
        return begun._replace(forked_from=self._dialect.column_of(begun.forked_from))

    def _note_under_way(self, run: int, parent: int, child: Child, *, afresh: bool) -> None:
        """Have it known that a child has begun, or has to again."""
        begun = self._rows.begun
        if begun.get(run) == child.crashes:
            return
        if afresh:
            name = self._place(Place(child.step, child.visit, child.act)), child.key
            self._save_updates_of({name: run}, parent)
            self._sql.execute("DELETE FROM history WHERE run = ?", (run,))
        where = "" if afresh else " AND position IS NULL"
        done = self._sql.execute(f"{UPDATE}{where}", (*self._row(child), run))
        if not done.rowcount:
            self._sql.execute(
                "UPDATE runs SET crashes = ? WHERE id = ? AND crashes <> ?",
                (child.crashes, run, child.crashes),
            )
        if run in begun:
            begun[run] = child.crashes

    def _row(self, child: Child) -> tuple[object, ...]:
        """Return the values of ``COLUMNS``."""
        form, winner = self._form(child.form), child.winner_key
        return (
            *child[4:11],
            form,
            *child[12:16],
            None if winner is None else self._dialect.column_of(winner),
            *child[17:],
        )

    def _keep_children(self, parent: int, children: Iterable[Child]) -> None:
        """Write how children ended: new rows mostly, else those of children known already."""
        new: list[tuple[int, Child]] = []
        known: list[tuple[int, Child]] = []
        for child in children:
            place = self._places.get(child[:3])  # pyright: ignore[reportArgumentType] # equal to it
            if place is None:
                place = self._place(Place(*child[:3]))
            is_known = (parent, place, child.key) in self._rows.ids
            (known if is_known else new).append((place, child))
        if new:
            known += self._insert(parent, new)
        if not known:
            return
        runs = [self._run(parent, place, child.key) for place, child in known]
        begun, before = self._rows.begun, dict[tuple[int, Key], int]()
        for run, (place, child) in zip(runs, known, strict=True):
            if begun.pop(run, None) is None:
                before[place, child.key] = run
        self._save_updates_of(before, parent)
        for run, (_, child) in zip(runs, known, strict=True):
            self._write(UPDATE, (*self._row(child), run))

    def _save_updates_of(self, runs: Mapping[tuple[int, Key], int], parent: int) -> None:
        """Put what rows of children say of histories there, before they are replaced.

        Args:
            runs: The rows, by place and key.
            parent: Of all of them.
        """
        for run in runs.values():
            for child in list(self._children_where(f"runs.id = ? AND {SAYS_MORE}", run)):
                self._append(self._outlived(child, run, parent))

    def _children_where(self, where: str, *values: object) -> Iterator[Child]:
        return children_where(self._sql, self._dialect, where, *values)

    def _outlived(self, child: Child, run: int, parent: int) -> list[tuple[int, History]]:
        """Return what a child's row says of its own history, and of its parent's."""
        entries = outlived(child, self._config.codec)
        return [(parent if of_parent else run, entry) for of_parent, entry in entries]

    def _delete_below(self, run: int) -> None:
        sql = self._sql
        for table, column in (("history", "run"), ("runs", "id")):
            sql.execute(
                f"{_BELOW}DELETE FROM {table} WHERE {column} IN (SELECT id FROM below)", (run,)
            )
        self._rows.forget()  # numbers come up again

    # -- besides --------------------------------------------------------------------------------

    def remember(self, key: str, text: str, seconds: float) -> None:
        """Keep a result of an action."""
        _cached.remember(self._sql, self._dialect, key, text, seconds)

    def discard(self, run_id: str) -> None:
        """Have a root run, and all below it, known to nobody."""
        self._refuse_claimed(run_id)
        _pruning.condemn(self._sql, self._dialect, run_id)

    def discard_old(
        self, run_ids: Sequence[str], until: float, statuses: Collection[RunStatus]
    ) -> int:
        """The same, of runs that rest since a time; return how many those are."""
        return _pruning.condemn_old(self._sql, self._dialect, run_ids, until, statuses)

    def sweep(self, limit: int) -> bool:
        """Delete some of what is known to nobody; return whether there may be more."""
        expired = _cached.expire(self._sql, self._dialect, self._dialect.now(self._sql), limit)
        return _pruning.sweep(self._sql, limit) or expired == limit

    def give_back(self, limit: int) -> bool:
        """Give some free room back to the disk, so many pages; return whether there may be more.

        A database that does so by itself needs nothing here.
        """
        return False
