"""Write to the tables of a ``PostgresStore``: the writer's transactions.

Invariants:
- A transaction that saves first changes, and so locks, the rows of its leases in ``claims``. A
  process that takes a run over either waits until that transaction has ended, or has changed the
  row before it, and then the save is refused.
- Each row of ``claims`` counts the transactions that saved under that lease. If the connection is
  lost during a commit, the count tells whether the commit was made. It also reveals a server that
  took over without all acknowledged saves.
- Reading takes no locks: loading or listing runs, finding orphans, refusing a claim.
- Transactions can't deadlock, because they wait for locks in one order. A transaction that saves or
  renews leases locks rows of ``claims`` in one statement, sorted by ``run_id``; all further rows
  that it locks belong to runs that it holds. Each claim, release and cached result has a
  transaction of its own, which locks one row. Names that all processes share are written in a
  transaction of their own, sorted. Transactions that delete never wait: they skip locked rows.
- The number of round trips of a transaction doesn't depend on how much it saves.
- A lease needn't survive a crash of the server: the process writes it again, unless there is a
  newer one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, final

from psycopg.errors import ReadOnlySqlTransaction, UniqueViolation

from shoal._errors.exceptions import CommitInDoubt
from shoal._events.identity import Key
from shoal.stores._protocol import RunStatus
from shoal.stores._sql.dialect import Connection
from shoal.stores._sql.leases import KnownRows, Lease, LeaseState
from shoal.stores._sql.rows import Child, History, Place
from shoal.stores._sql.writer_thread import Job
from shoal.stores._sql.writing import (
    COLUMNS,
    KNOWN,
    SAYS_MORE,
    UPDATE,
    Claiming,
    Config,
    Releasing,
    Save,
)

from .claims import COUNTED, Claimant
from .keys import POSTGRES, columns_of, index_of, lease_state_of
from .schema import has_older_tables, has_tables, make_tables
from .server import InDoubt, PostgresConnection, Server, Statement

# Locks the row of a claim; if there is none, inserts one that no execution holds.
_MADE_UP = (
    "INSERT INTO claims (run_id, epoch, saves, host, boot, pid, started, lease, seen_at) "
    "VALUES (?, 0, 0, '', '', 0, '', 0, 0) "
    "ON CONFLICT (run_id) DO UPDATE SET run_id = excluded.run_id RETURNING "
)
_SWEEPING = 0x73776565
"""The number of the lock that the one process holds that deletes rows: "swee"."""


_BY_NAME = (
    "SELECT named.*, found.id FROM unnest(?::bigint[], ?::integer[], ?::text[]) "
    "AS named (parent, place, key) CROSS JOIN LATERAL (SELECT id FROM runs WHERE runs.parent = "
    "named.parent AND runs.place = named.place AND runs.key = named.key OFFSET 0) AS found"
)


def connect(
    server: Server, *, makes: bool, check: Callable[[], None] | None = None
) -> PostgresConnection | None:
    """Connect. If there are no tables, create them, or return None unless ``makes``.

    Tables of an older version are migrated.

    Raises:
        psycopg.Error: Connecting is not possible, at the moment or at all.
        StoreFailed: The schema was made by a newer version, or has other tables.
    """
    connection = PostgresConnection(server, check)
    try:
        if not has_tables(connection, server):
            # Tables of an older version are migrated by readers, too: the runs in them are there.
            if not makes and not has_older_tables(connection, server):
                connection.close()
                return None
            make_tables(connection, server)
    except BaseException:
        connection.close()
        raise
    return connection


@final
class Wanted:
    """Rows of runs to look up, by name; each with the known rows of its lease."""

    __slots__ = ("names",)

    def __init__(self) -> None:
        self.names: dict[tuple[int, int, Key], tuple[KnownRows, Child | None]] = {}

    def add(self, name: tuple[int, int, Key], known: KnownRows, child: Child | None) -> None:
        """Add a row, unless its id is known. If it doesn't exist, it is created as ``child``."""
        if name not in known.ids:
            self.names.setdefault(name, (known, child))


def _indexed(name: tuple[int, int, Key]) -> tuple[int, int, str]:
    parent, place, key = name
    return parent, place, index_of(key)


@final
class PostgresDatabase(Claimant):
    """The tables of a ``PostgresStore``, as the writer thread uses them."""

    def __init__(
        self, config: Config, server: Server, take_readers: Callable[[], Iterable[Connection]]
    ) -> None:
        """Open nothing yet. ``close`` also closes the connections of ``take_readers``."""
        super().__init__(config, server)
        self._take_readers = take_readers
        self._connection: PostgresConnection | None = None
        # The leases whose rows this transaction has locked and counted: it may save under these.
        self._counted = set[Lease]()
        # The jobs whose transaction was being committed when the connection was lost. The retry
        # first asks the server whether the commit was made.
        self._in_doubt: Sequence[Job[Any, Any]] | None = None
        # Whether new children may have rows already. Set only for the second attempt of a
        # transaction, because looking for rows costs a round trip.
        self._is_careful = False

    @property
    def _sql(self) -> PostgresConnection:
        assert self._connection is not None, "a transaction has begun"
        return self._connection

    def open(self) -> None:
        """Do nothing: the first transaction connects, and waits for an unreachable server."""

    def close(self) -> None:
        own = () if self._connection is None else (self._connection,)
        for connection in (*self._take_readers(), *own):
            connection.close()

    # -- transactions ---------------------------------------------------------------------------

    def _connected(self) -> PostgresConnection:
        if self._connection is None or self._connection.is_closed:
            self._connection = connect(self._server, makes=True)
        return self._sql

    def _grouped(self, jobs: Sequence[Job[Any, Any]]) -> Iterator[Sequence[Job[Any, Any]]]:
        """Yield all saves, which share a transaction, then releases, claims, and single jobs.

        Releases and claims have a transaction each, but are sent together. Saves may come first,
        because none depends on another job that is pending: a run is saved after its claim was
        made, and before its release is asked for.
        """
        saves, leases, releases, others = (list[Job[Any, Any]]() for _ in range(4))
        for job in jobs:
            kind = type(job.work)
            known = saves if kind is Save else leases if kind is Claiming else releases
            (known if kind in (Save, Claiming, Releasing) else others).append(job)
        for group in (saves, releases, leases):
            if group:
                yield group
        for job in others:
            yield (job,)

    def _transact(self, jobs: Sequence[Job[Any, Any]]) -> None:
        leases = [(job, job.work.lease) for job in jobs if isinstance(job.work, Claiming)]
        releases = [job.work.lease for job in jobs if isinstance(job.work, Releasing)]
        try:
            if leases or releases:
                self._claim_all(leases)
                self._release_all(releases)
            elif self._in_doubt is not jobs or not self._was_kept():
                self._transact_carefully(jobs)
        except ReadOnlySqlTransaction:  # another server may be the primary by now: connect again
            self._sql.close()
            raise

    def _transact_carefully(self, jobs: Sequence[Job[Any, Any]]) -> None:
        try:
            super()._transact(jobs)
        except UniqueViolation:  # an earlier attempt of the same execution has left some rows
            if self._is_careful:
                raise
            self._roll_back()
            self._is_careful = True
            try:
                super()._transact(jobs)
            finally:
                self._is_careful = False

    def _begin(self, jobs: Sequence[Job[Any, Any]]) -> None:
        connection = self._connected()
        saves = [job.work for job in jobs if isinstance(job.work, Save)]
        saves = [one for one in saves if one.lease.failure is None]
        leases = {save.lease for save in saves}
        lightly = all(job.is_light for job in jobs)
        self._intern_all(saves)
        self._counted = self._count(connection, leases, lightly=lightly)
        missing = [*(leases - self._counted)]
        if missing:
            forgotten = self._forgotten(connection, missing)
            if forgotten:
                connection.abort()  # a transaction that has locked leases must not wait for others
                self._claim_again(connection, forgotten)
                self._counted = self._count(connection, leases, lightly=lightly)
        self._find_rows([save for save in saves if save.lease in self._counted])

    def _count(
        self, connection: PostgresConnection, leases: Iterable[Lease], *, lightly: bool
    ) -> set[Lease]:
        """Begin a transaction, lock the leases that still hold, and count it; return those."""
        by_name = {(index_of(lease.run_id), lease.execution): lease for lease in leases}
        count = [(COUNTED, self._named(by_name.values(), "saves"))] if by_name else []
        found = self._begin_on(connection, *count, lightly=lightly)
        return {by_name[run, execution] for rows in found for run, execution in rows}

    def _commit(self, jobs: Sequence[Job[Any, Any]]) -> None:
        try:
            self._sql.commit()
        except InDoubt:
            self._in_doubt = jobs
            raise
        for lease in self._counted:
            lease.saves += 1

    def _was_kept(self) -> bool:
        """Return whether the transaction in doubt was committed.

        The counts of its leases say so; ``FOR UPDATE`` waits until that transaction has ended. A
        transaction without leases may be repeated.
        """
        connection, counted = self._connected(), self._counted
        self._begin_on(connection, lightly=True)
        kept = False
        for lease in counted:
            found = connection.execute(
                "SELECT saves FROM claims WHERE run_id = ? AND epoch = ? AND execution = ? "
                "FOR UPDATE",
                (index_of(lease.run_id), lease.epoch, lease.execution),
            ).fetchone()
            if found is not None:  # None: the run was taken over, or the lease was never written
                kept = found[0] == lease.saves + 1
                break
        connection.commit()
        self._in_doubt = None
        if kept:
            for lease in counted:
                lease.saves += 1
        return kept

    def _fail(self, jobs: Sequence[Job[Any, Any]], error: Exception) -> None:
        if self._in_doubt is not jobs:
            super()._fail(jobs, error)
            return
        self._in_doubt = None
        msg = (
            f"it is unknown whether a save was kept: the connection to {self._server.label} was "
            f"lost during its commit, and could not be made again: "
            f"{self._config.error_policy.explained(error)}"
        )
        for job in jobs:
            job.error = CommitInDoubt(msg)
            job.error.__cause__ = error
            if isinstance(job.work, Save):  # later saves of the run could contradict this one
                job.work.lease.failure = job.error

    def _abort(self) -> None:
        connection = self._connection
        if connection is None:
            return
        if not connection.is_closed:
            # The error that caused the rollback is the one to raise.
            with suppress(self._config.error_policy.errors):
                connection.abort()
                return
        connection.close()
        self._connection = None

    # -- leases ----------------------------------------------------------------------------------

    def _check(self, lease: Lease) -> None:
        if lease in self._counted:
            return
        failure = self._failures.pop(lease, None)
        if failure is not None:
            lease.failure = failure
            raise failure
        lease.lost = True
        raise lease.refusal()

    def _lease_state(self, run_id: str) -> LeaseState:
        found = self._sql.execute(
            f"{_MADE_UP}{POSTGRES.lease_columns}", (index_of(run_id),)
        ).fetchone()
        assert found is not None, "the statement returns the row it has made or found"
        return lease_state_of(found)

    # -- deleting -------------------------------------------------------------------------------

    def discard_old(
        self, run_ids: Sequence[str], until: float, statuses: Collection[RunStatus]
    ) -> int:
        ids = {index_of(run_id): run_id for run_id in run_ids}
        known, locked = (
            {run for (run,) in self._sql.execute(f"{sql} ANY(?){how}", (list(ids),))}
            for sql, how in (
                ("SELECT run_id FROM claims WHERE run_id =", ""),
                ("SELECT run_id FROM claims WHERE run_id =", f" {POSTGRES.skips}"),
            )
        )
        # A run whose claim this transaction has locked can't be claimed before the transaction
        # ends. A claim that another transaction has locked belongs to a run in use.
        free = [run_id for run, run_id in ids.items() if run in locked or run not in known]
        return super().discard_old(free, until, statuses)

    def sweep(self, limit: int) -> bool:
        """Delete some condemned rows, unless another process is deleting some just now."""
        sql = "SELECT pg_try_advisory_xact_lock(hashtextextended(?, ?))"
        (is_ours,) = self._sql.execute(sql, (self._server.schema, _SWEEPING)).fetchone() or (False,)
        return super().sweep(limit) if is_ours else True

    # -- saves ----------------------------------------------------------------------------------

    def _intern_all(self, saves: Sequence[Save]) -> None:
        """Write new places and forms in a transaction of their own.

        Other processes may need the same rows. They wait only for this short transaction, and not
        for the saves.
        """
        places, forms = set[Place](), set[str]()
        for rows, _ in saves:
            places.update(place for place, _ in rows.path)
            for child in rows.children:
                places.add(Place(child.step, child.visit, child.act))
                if child.form is not None:
                    forms.add(child.form)
        places -= self._places.keys()
        forms -= self._forms.keys()
        if not places and not forms:
            return
        # Sorted, so that two processes lock the rows in the same order and can't deadlock.
        by_place, by_form = list(zip(*sorted(places), strict=True)), sorted(forms)
        statements: list[Statement] = []
        if places:
            columns = [list(column) for column in by_place]
            named = "unnest(?::text[], ?::bigint[], ?::text[]) AS named (step, visit, act)"
            new = f"INSERT INTO places (step, visit, act) SELECT * FROM {named}"
            statements.append((f"{new} ON CONFLICT DO NOTHING", columns))
            known = f"SELECT step, visit, act, id FROM places JOIN {named} USING (step, visit, act)"
            statements.append((known, columns))
        if forms:
            new = "INSERT INTO forms (form) SELECT * FROM unnest(?::text[]) ON CONFLICT DO NOTHING"
            statements.append((new, (by_form,)))
            statements.append(("SELECT form, id FROM forms WHERE form = ANY(?)", (by_form,)))
        *found, _ = self._begin_on(self._sql, *statements, ("COMMIT", ()), lightly=True)
        for *name, number in (row for rows in found for row in rows):
            if len(name) == 1:
                self._forms[name[0]] = number
            else:
                self._places[Place(*name)] = number

    def _write(self, sql: str, values: Sequence[Any]) -> None:
        self._sql.execute_later(sql, values)

    def _find_rows(self, saves: Sequence[Save]) -> None:
        """Find or create the rows of all runs that ``saves`` name, with one query for each level.

        Children that have ended are looked up only if an earlier execution may have left them; else
        they count as new.
        """
        above: list[int | None] = [0] * len(saves)
        for level in range(1 + max((len(rows.path) for rows, _ in saves), default=-1)):
            wanted = Wanted()
            names: list[tuple[int, int, Key] | None] = []
            for save, parent in zip(saves, above, strict=True):
                rows, lease = save
                name: tuple[int, int, Key] | None = None
                if level <= len(rows.path) and parent is not None:
                    place, key = rows.path[level - 1] if level else (None, rows.root)
                    name = (parent, 0 if place is None else self._places[place], key)
                    child = rows.run if level and level == len(rows.path) else None
                    wanted.add(name, lease.rows, child)
                names.append(name)
            self._find(wanted)
            above = [  # None if ``KNOWN`` was exceeded, and the id forgotten
                parent if name is None else save.lease.rows.ids.get(name)
                for save, name, parent in zip(saves, names, above, strict=True)
            ]
        ended = Wanted()
        for (rows, lease), parent in zip(saves, above, strict=True):
            if parent is not None and not lease.is_first and not rows.afresh:
                for child in rows.children:
                    place = self._places[Place(*child[:3])]
                    ended.add((parent, place, child.key), lease.rows, None)
        self._find(ended, makes=False)

    def _find(self, wanted: Wanted, *, makes: bool = True) -> None:
        """Look up rows by their names in one round trip; create the missing ones if ``makes``."""
        if not wanted.names:
            return
        keys = ("parent", "place", *POSTGRES.key_columns)
        statements: list[Statement] = []
        for columns in ((), COLUMNS) if makes else ():
            rows: list[Any] = []
            for (parent, place, key), (_, child) in wanted.names.items():
                if (child is None) == (not columns):
                    row = () if child is None else self._row(child)
                    rows += (parent, place, *columns_of(key), *row)
            if rows:
                width = len(keys) + len(columns)
                holes = ", ".join([f"({', '.join('?' * width)})"] * (len(rows) // width))
                sql = f"INSERT INTO runs ({', '.join((*keys, *columns))}) VALUES {holes} "
                statements.append((f"{sql}ON CONFLICT DO NOTHING RETURNING id", rows))
        # ``_BY_NAME`` looks each name up in the index. A join would leave the choice to the
        # planner, which has no statistics of a new table and may scan all of it.
        named = [list(column) for column in zip(*map(_indexed, wanted.names), strict=True)]
        statements.append((_BY_NAME, named))
        *made, found = self._sql.execute_all(*statements)
        new = {run for rows in made for (run,) in rows}
        ids = {tuple(name): run for *name, run in found}
        for name, (known, child) in wanted.names.items():
            run = ids.get(_indexed(name))
            if run is None:
                continue
            if len(known.ids) >= KNOWN:
                known.forget()
            known.ids[name] = run
            self._touched.append(known)
            if child is not None and run in new:
                known.begun[run] = child.crashes

    def _note_under_way(self, run: int, parent: int, child: Child, *, afresh: bool) -> None:
        begun = self._rows.begun
        if begun.get(run) == child.crashes:
            return
        if afresh:
            name = self._place(Place(child.step, child.visit, child.act)), child.key
            self._save_updates_of({name: run}, parent)
            self._sql.execute("DELETE FROM history WHERE run = ?", (run,))
        where = "" if afresh else " AND position IS NULL"
        self._write(f"{UPDATE}{where}", (*self._row(child), run))
        count = child.crashes
        self._write(
            "UPDATE runs SET crashes = ? WHERE id = ? AND crashes <> ?", (count, run, count)
        )
        if run in begun:
            begun[run] = count

    def _save_updates_of(self, runs: Mapping[tuple[int, Key], int], parent: int) -> None:
        if not runs:
            return
        where = f"runs.id = ANY(?) AND {SAYS_MORE}"
        for child in list(self._children_where(where, list(runs.values()))):
            place = self._place(Place(child.step, child.visit, child.act))
            self._append(self._outlived(child, runs[place, child.key], parent))

    def _append(self, entries: list[tuple[int, History]], at: float | None = None) -> None:
        rows = [(run, *entry, at) for run, entry in entries]
        self._sql.insert_later("history (run, number, kind, step, data, at)", rows)

    def _note_save(self, run: int, number: int, at: float) -> None:
        self._sql.insert_later("saves (run, number, at)", [(run, number, at)])

    def _insert(self, parent: int, children: list[tuple[int, Child]]) -> list[tuple[int, Child]]:
        known: list[tuple[int, Child]] = []
        if self._is_careful:
            known, children = self._split_known(parent, children)
        self._sql.insert_later(
            f"runs (parent, place, {', '.join(POSTGRES.key_columns)}, {', '.join(COLUMNS)})",
            [
                (parent, place, *columns_of(child.key), *self._row(child))
                for place, child in children
            ],
        )
        return known

    def _split_known(
        self, parent: int, children: list[tuple[int, Child]]
    ) -> tuple[list[tuple[int, Child]], list[tuple[int, Child]]]:
        """Split children into those that have a row already, and those that don't."""
        found = self._sql.execute(
            "SELECT place, key, id FROM runs WHERE parent = ? AND (place, key) IN "
            "(SELECT * FROM unnest(?::integer[], ?::text[]))",
            (parent, [place for place, _ in children], [index_of(one.key) for _, one in children]),
        )
        ids = {(place, key): run for place, key, run in found}
        known: list[tuple[int, Child]] = []
        new: list[tuple[int, Child]] = []
        for place, child in children:
            run = ids.get((place, index_of(child.key)))
            if run is None:
                new.append((place, child))
            else:
                known.append((place, child))
                self._rows.ids[parent, place, child.key] = run
        return known, new
