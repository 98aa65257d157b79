"""Write to the tables of a store, in its writer thread.

Invariants:
- Every save names its lease, and the same transaction checks it. So saves of an execution that has
  lost the run are refused, however late they come.
- If a transaction fails, nothing of it is kept, and each job in it gets the error.
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
from shoal.stores._watching import Command

from . import pruning as _pruning
from . import reporting as _reporting
from . import results as _cached
from .children import children_where
from .dialect import Connection, Dialect, ErrorPolicy
from .leases import KnownRows, Lease, LeaseState
from .rows import Begun, Child, History, Place, Rows
from .unpacking import outlived
from .writer_thread import Job

KNOWN = 10_000
"""Ids of rows that are remembered for each run: some 2 MB at most."""

logger = logging.getLogger("shoal")

COLUMNS = (
    "position", "element", "digest", "status", "applied", "used", "value", "form", "change", "own",
    "reason", "winner_act", "winner_key", "error", "attempts", "elapsed", "abandoned",
    "crashes", "ended_at", "failed_step",
)  # fmt: skip
"""The columns of ``runs`` that describe children, without those of their names. The order is that
of ``Child`` from ``position`` on."""
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
    "spawned_by",
    "spawner",
    "owner",
    "priority",
    "began_at",
)
_BEGUN = (
    f"INSERT INTO roots (run, {', '.join(_ROOT)}) VALUES ({', '.join('?' * (1 + len(_ROOT)))}) "
    f"ON CONFLICT (run) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _ROOT)}"
)
OURS = "run_id = ? AND epoch = ? AND execution = ?"
IS_KEPT = "EXISTS (SELECT 1 FROM runs WHERE parent = 0 AND place = 0 AND key = ?)"
SAYS_MORE = "(applied IS NOT NULL OR own IS NOT NULL OR runs.form IS NOT NULL)"
"""SQL: true for rows of children that hold updates, so entries of histories."""
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
    """Return the seconds to wait before each retry of an error that may pass; endless."""
    # The first retry comes at once: the connection may have been lost long ago, while idle.
    return chain((0.0,), repeat(0.1))


def log_missed(runs: int, lease: float, error: Exception) -> None:
    """Log that leases could not be renewed, and what that may lead to."""
    logger.warning(
        "the store could not renew the leases on %d runs under way: %s; it tries again, and if "
        "that fails for %g s, other processes may take these runs over",
        runs,
        " ".join(str(error).split()),
        lease,
    )


def log_waiting(subject: str, patience: float, error: Exception) -> None:
    """Log which calls wait, for how long, and for the end of which error."""
    logger.warning("%s wait %g s at most: %s", subject, patience, " ".join(str(error).split()))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of a store, and the properties of its database."""

    dialect: Dialect
    error_policy: ErrorPolicy
    codec: Codec
    lease: float
    heartbeat: float
    patience: float


@final
class Claiming(NamedTuple):
    """Work for the writer: claim a run. Returns whether its last execution died."""

    lease: Lease

    def __call__(self, database: Database) -> bool:
        return database.claim(self.lease)


@final
class Releasing(NamedTuple):
    """Work for the writer: release a run."""

    lease: Lease

    def __call__(self, database: Database) -> None:
        database.release(self.lease)


@final
class Save(NamedTuple):
    """Work for the writer: write the rows of a save, unless the run was taken over."""

    rows: Rows
    lease: Lease

    def __call__(self, database: Database) -> None:
        database.save(self.rows, self.lease)


def refuse_held(run_id: str, held: LeaseState | None) -> tuple[int, bool]:
    """Return the epoch of the last lease, and whether its execution died.

    Raises:
        RunClaimed: Another execution holds the run.
    """
    if held is None:
        return 0, False
    if held.seconds_left:
        raise RunClaimed(held.refusal(run_id))
    return held.epoch, held.has_died


class Database(ABC):
    """The tables of a store, as the writer thread uses them."""

    def __init__(self, config: Config) -> None:
        """Create the object; open nothing yet."""
        self._config = config
        self._dialect = config.dialect
        # The leases that ``keep_up`` renews, by run id: those that the table has.
        self._claims: dict[str, Lease] = {}
        self._next_beat = inf  # when they are renewed next, by the monotonic clock
        self._has_missed = False  # whether the last renewal failed, which is logged once
        # No retry begins after this moment, by the monotonic clock. Event loops set it in
        # ``end_by``, all else belongs to the writer thread.
        self._ends_at = inf
        self._rows = KnownRows()  # of the lease whose save is being written
        # The known rows that this transaction may have added to; cleared when it is rolled back.
        self._touched = list[KnownRows]()
        # Ids of rows of ``places`` and ``forms``. Also cleared by a rollback.
        self._places: dict[Place, int] = {}
        self._forms: dict[str, int] = {}

    # -- implemented by each database -----------------------------------------------------------

    @property
    @abstractmethod
    def _sql(self) -> Connection:
        """The open connection."""

    @abstractmethod
    def open(self) -> None:
        """Open the database; see ``writer_thread.Database``."""

    @abstractmethod
    def close(self) -> None:
        """Close the database."""

    @abstractmethod
    def _begin(self, jobs: Sequence[Job[Any, Any]]) -> None:
        """Begin the transaction of ``jobs``."""

    @abstractmethod
    def _commit(self, jobs: Sequence[Job[Any, Any]]) -> None:
        """Commit the transaction; if its fate can't be known, set ``CommitInDoubt`` in ``jobs``."""

    @abstractmethod
    def _abort(self) -> None:
        """Roll a failed transaction back, if there is one. Raises nothing."""

    @abstractmethod
    def _check(self, lease: Lease) -> None:
        """Refuse the save of an execution that has lost the run."""

    @abstractmethod
    def _lease_state(self, run_id: str) -> LeaseState | None:
        """Return the last lease on a run, and lock it until the end of the transaction."""

    @abstractmethod
    def _take(self, lease: Lease) -> None:
        """Write a lease in the place of the last one."""

    @abstractmethod
    def _beat(self) -> list[Lease]:
        """Renew all leases; return those that other executions have taken."""

    def _write(self, sql: str, values: Sequence[Any]) -> None:
        """Execute a statement whose result is not needed; it may be delayed until the commit."""
        self._sql.execute(sql, values)

    @abstractmethod
    def _append(self, entries: list[tuple[int, History]], at: float | None = None) -> None:
        """Write entries of histories, each with the id of its run; ``at`` is their time."""

    @abstractmethod
    def _note_save(self, run: int, number: int, at: float) -> None:
        """Write when the children were saved that updates up to that number have applied."""

    @abstractmethod
    def _insert(self, parent: int, children: list[tuple[int, Child]]) -> list[tuple[int, Child]]:
        """Write new rows of children, each with its place; return those that have a row already."""

    # -- transactions ---------------------------------------------------------------------------

    def do(self, jobs: Sequence[Job[Any, Any]]) -> Iterator[Sequence[Job[Any, Any]]]:
        until = time.monotonic() + self._config.patience
        outage: Exception | None = None
        for group in self._grouped(jobs):
            # Only the first group waits for the end of an outage; the others fail with its error.
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
        """Split ``jobs`` into groups with a transaction each; one group by default."""
        return (jobs,)

    def _do(self, jobs: Sequence[Job[Any, Any]], until: float) -> Exception | None:
        """Do ``jobs`` in one transaction; return its error if all later jobs would fail with it."""
        error = self._attempt(jobs)
        for number, delay in enumerate(delays()):
            if error is None or not self._may_pass(error):
                break
            if time.monotonic() > min(until, self._ends_at):
                break
            if number == 1:  # not at the first: the connection may have been lost long ago
                log_waiting("saves", self._config.patience, error)
            time.sleep(delay)
            self.keep_up()  # leases must not expire while saves wait
            error = self._attempt(jobs)
        if error is None:
            return None
        is_outage = self._may_pass(error) and self._config.error_policy.is_general(error)
        self._fail(jobs, error)
        return error if is_outage else None

    def _attempt(self, jobs: Sequence[Job[Any, Any]]) -> Exception | None:
        try:
            self._transact(jobs)
        except Exception as error:  # noqa: BLE001 # each job raises it where it is awaited
            self._roll_back()
            return error
        return None

    def _may_pass(self, error: Exception) -> bool:
        error_policy = self._config.error_policy
        return isinstance(error, error_policy.errors) and error_policy.may_pass(error)

    def _fail(self, jobs: Sequence[Job[Any, Any]], error: Exception) -> None:
        """Give ``jobs`` the error; if one job may be the cause, repeat each job by itself."""
        error_policy = self._config.error_policy
        is_its_own = isinstance(error, error_policy.errors)
        if len(jobs) > 1 and not (is_its_own and error_policy.is_general(error)):
            for job in jobs:
                self._do((job,), time.monotonic() + self._config.patience)
            return
        for job in jobs:
            failure = error
            if is_its_own:
                failure = error_policy.explained(error)
                failure.__cause__ = error
            job.error = failure
            if job.on_failed is not None:  # at once: the next job may be a save of the same run
                job.on_failed(failure)

    def _transact(self, jobs: Sequence[Job[Any, Any]]) -> None:
        self._touched.clear()
        self._begin(jobs)
        for job in jobs:
            try:
                job.error = None
                job.result = job.work(self)
            except ShoalError as error:  # raised before the job has written anything
                job.error = error
        self._commit(jobs)

    def _roll_back(self) -> None:
        for rows in self._touched:
            rows.forget()
        self._places.clear()
        self._forms.clear()
        self._abort()

    # -- leases ---------------------------------------------------------------------------------

    def claim(self, lease: Lease) -> bool:
        """Claim a run; return whether its last execution died before it released the run."""
        epoch, has_died = self._refuse_claimed(lease.run_id)
        lease.epoch = epoch + 1
        self._take(lease)
        self._keep_up(lease)
        return has_died

    def _keep_up(self, lease: Lease) -> None:
        """Renew a new lease from now on."""
        self._claims[lease.run_id] = lease
        self._next_beat = min(self._next_beat, time.monotonic() + self._config.heartbeat)

    def _refuse_claimed(self, run_id: str) -> tuple[int, bool]:
        """Return the epoch of the last lease, and whether its execution died."""
        return refuse_held(run_id, self._lease_state(run_id))

    def release(self, lease: Lease) -> None:
        """Release a run."""
        key = self._dialect.index_of(lease.run_id)
        ours = (key, lease.epoch, lease.execution)
        # If nothing was saved of the run, ``prune`` would never find it, and its claim would stay.
        if not lease.rows.ids:
            self._sql.execute(f"DELETE FROM claims WHERE {OURS} AND NOT {IS_KEPT}", (*ours, key))
        self._sql.execute(f"UPDATE claims SET execution = NULL WHERE {OURS}", ours)
        self._discard(lease)

    def _discard(self, lease: Lease) -> None:
        """Renew a lease no longer."""
        if self._claims.get(lease.run_id) is lease:
            del self._claims[lease.run_id]

    def keep_up(self) -> float:
        """Renew the leases if it is time; return when they are due next, by the monotonic clock."""
        for lease in [one for one in self._claims.values() if one.lost or one.is_abandoned()]:
            del self._claims[lease.run_id]
        if not self._claims:
            return inf
        at = time.monotonic()
        if at >= self._next_beat:
            heartbeat = self._config.heartbeat
            try:
                for lease in self._beat():
                    lease.lost = True
                self._next_beat = at + heartbeat
                self._has_missed = False
            except (self._config.error_policy.errors, StoreFailed) as error:
                self._roll_back()
                self._next_beat = time.monotonic() + heartbeat / 4
                # Saves meet the same, and say so. But a run may save nothing for hours, and then be
                # executed twice.
                if not self._has_missed:
                    self._has_missed = True
                    log_missed(len(self._claims), self._config.lease, error)
        return self._next_beat

    # -- saves ----------------------------------------------------------------------------------

    def save(self, rows: Rows, lease: Lease) -> None:
        """Write ``rows``, unless the run was taken over or an earlier save of it failed."""
        if lease.failure is not None:
            msg = (
                f"an earlier save of run {lease.run_id}, which no caller waited for, failed; saves "
                f"that build on it are refused"
            )
            raise StoreFailed(msg) from lease.failure
        self._check(lease)
        self._rows = lease.rows
        self._touched.append(lease.rows)
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
            self._append([(run, entry) for entry in rows.history], rows.at)
        if rows.applied is not None:
            self._note_save(run, rows.applied, rows.at)
        if rows.children:
            self._keep_children(run, rows.children)

    def _root(self, run_id: str) -> int:
        return self._run(0, 0, run_id)

    def _run(self, parent: int, place: int, key: Key, child: Child | None = None) -> int:
        """Return the id of a run's row; create it if it is new (for a ``child``, in full)."""
        name = (parent, place, key)
        known = self._rows
        run = known.ids.get(name)
        if run is not None:
            return run
        if len(known.ids) >= KNOWN:
            known.forget()
        names = (parent, place, *self._dialect.columns_of(key))
        if child is not None:  # mostly new, so insert first
            run = self._new_row(COLUMNS, (*names, *self._row(child)))
            if run is not None:
                known.begun[run] = child.crashes
        if run is None:
            (run,) = self._sql.execute(
                "SELECT id FROM runs WHERE parent = ? AND place = ? AND key = ?", names[:3]
            ).fetchone() or (None,)
        if run is None:
            run = self._new_row((), names)
            assert run is not None, "the select before has found no row"
        known.ids[name] = run
        return run

    def _new_row(self, columns: tuple[str, ...], values: Sequence[Any]) -> int | None:
        """Insert the row of a run, with its names and more columns; None if there is one."""
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
        """Return the values of the columns ``_ROOT``, except ``began_at``."""
        if begun.forked_from is not None:
            begun = begun._replace(forked_from=self._dialect.column_of(begun.forked_from))
        if begun.spawner is not None:
            begun = begun._replace(spawner=self._dialect.index_of(begun.spawner))
        return begun

    def _note_under_way(self, run: int, parent: int, child: Child, *, afresh: bool) -> None:
        """Write the row of a child that has begun, or begins again ``afresh``."""
        begun = self._rows.begun
        if begun.get(run) == child.crashes:  # the row says so already
            return
        if afresh:
            # First the updates that the old row holds: they belong to the parent's history, too.
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
        """Return the values of the columns ``COLUMNS``."""
        form, winner = self._form(child.form), child.winner_key
        return (
            *child[4:11],
            form,
            *child[12:16],
            None if winner is None else self._dialect.column_of(winner),
            *child[17:],
        )

    def _keep_children(self, parent: int, children: Iterable[Child]) -> None:
        """Write children that have ended: mostly as new rows, else into the rows that exist."""
        new: list[tuple[int, Child]] = []
        known: list[tuple[int, Child]] = []
        for child in children:
            place = self._places.get(child[:3])  # pyright: ignore[reportArgumentType] # equals Place
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
        """Copy the updates that rows of children hold into ``history``, before overwriting them.

        Args:
            runs: The rows, by place and key.
            parent: The row of the parent of all of them.
        """
        for run in runs.values():
            for child in list(self._children_where(f"runs.id = ? AND {SAYS_MORE}", run)):
                self._append(self._outlived(child, run, parent))

    def _children_where(self, where: str, *values: object) -> Iterator[Child]:
        return children_where(self._sql, self._dialect, where, *values)

    def _outlived(self, child: Child, run: int, parent: int) -> list[tuple[int, History]]:
        """Return the entries of histories that a child's row holds, each with the id of its run."""
        entries = outlived(child, self._config.codec)
        return [(parent if of_parent else run, entry) for of_parent, entry in entries]

    def _delete_below(self, run: int) -> None:
        sql = self._sql
        sql.execute("DELETE FROM saves WHERE run = ?", (run,))
        for table, column in (("saves", "run"), ("history", "run"), ("runs", "id")):
            sql.execute(
                f"{_BELOW}DELETE FROM {table} WHERE {column} IN (SELECT id FROM below)", (run,)
            )
        self._rows.forget()  # SQLite may use the ids of the deleted rows again

    # -- cached results, and deletion -----------------------------------------------------------

    def remember(self, key: str, text: str, seconds: float) -> None:
        """Cache the result of an action."""
        _cached.remember(self._sql, self._dialect, key, text, seconds)

    def report(self, reports: Mapping[str, str], executions: Mapping[str, str]) -> list[Command]:
        """Replace the reports of some runs, and take the commands that were left for them."""
        return _reporting.report(self._sql, self._dialect, reports, executions)

    def command(self, command: Command) -> None:
        """Leave a command for the execution that has claimed a run."""
        _reporting.command(self._sql, self._dialect, command)

    def steer(self, run_id: str, entries: Sequence[History]) -> bool:
        """Append to the history of a root run; return whether that was possible."""
        found = _reporting.root_of(self._sql, self._dialect, run_id)
        if found is None:
            return False
        # Locked until the end of the transaction, so no process claims the run meanwhile.
        held = self._lease_state(run_id)
        if held is not None and held.seconds_left:
            return False
        rows = [(found.row, one._replace(number=found.number)) for one in entries]
        self._append(rows, time.time())
        return True

    def discard(self, run_id: str) -> None:
        """Condemn a root run; see ``pruning``."""
        self._refuse_claimed(run_id)
        _pruning.condemn(self._sql, self._dialect, run_id)

    def discard_old(
        self, run_ids: Sequence[str], until: float, statuses: Collection[RunStatus]
    ) -> int:
        """Condemn those of some runs that ended before a time; return their number."""
        return _pruning.condemn_old(self._sql, self._dialect, run_ids, until, statuses)

    def sweep(self, limit: int) -> bool:
        """Delete some condemned rows and expired results; return whether there may be more."""
        expired = _cached.expire(self._sql, self._dialect, self._dialect.now(self._sql), limit)
        return _pruning.sweep(self._sql, limit) or expired == limit

    def give_back(self, limit: int) -> bool:
        """Return up to ``limit`` free pages to the disk; return whether there may be more.

        A database that does so by itself does nothing here.
        """
        return False
