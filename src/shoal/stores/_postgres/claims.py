"""Claim, renew and release runs in the tables of a ``PostgresStore``.

``database`` explains why transactions can't deadlock.

Invariants:
- Each claim and each release has a transaction of its own, which locks one row.
- Reading the state of a lease locks nothing.
- A lease is identified by its execution. So a claim may be repeated if it is unknown whether it was
  made.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from math import ceil
from typing import Any

from shoal._errors.exceptions import RunClaimed, StoreFailed
from shoal.stores._sql.holders import current_holder
from shoal.stores._sql.leases import Lease
from shoal.stores._sql.writer_thread import Job
from shoal.stores._sql.writing import IS_KEPT, OURS, Config, Database, refuse_held

from .keys import NOW, POSTGRES, index_of, lease_state_of
from .server import PostgresConnection, Server, Statement

# The rows are locked in the order of their ids, whichever plan the server chooses for the rest.
_LOCKED = (
    "WITH mine AS (SELECT claims.run_id FROM claims JOIN unnest({types}) AS ours ({names}) "
    "USING ({names}) ORDER BY claims.run_id FOR NO KEY UPDATE OF claims{how}) "
    "UPDATE claims SET {change} FROM mine WHERE claims.run_id = mine.run_id "
    "RETURNING claims.run_id, claims.execution"
)
COUNTED = _LOCKED.format(
    types="?::text[], ?::bigint[], ?::text[], ?::bigint[]",
    names="run_id, epoch, execution, saves",
    how="",
    change="saves = claims.saves + 1",
)
_SEEN = _LOCKED.format(
    types="?::text[], ?::bigint[], ?::text[]",
    names="run_id, epoch, execution",
    how=" SKIP LOCKED",
    change=f"seen_at = {NOW}",
)
_HELD_BY = "epoch, execution, saves, host, boot, pid, started, lease, seen_at"
_TAKEN = f"?, ?, ?, ?, ?, ?, ?, ?, {NOW}"
_NEW_CLAIM = (  # returns no row if another claim was made meanwhile, or if the condition is false
    f"INSERT INTO claims (run_id, {_HELD_BY}) SELECT ?, {_TAKEN} WHERE {{}} "
    "ON CONFLICT (run_id) DO NOTHING RETURNING execution"
)
_NEXT_CLAIM = (  # returns no row if the last lease has changed, or is locked by a transaction
    f"UPDATE claims SET ({_HELD_BY}) = ROW ({_TAKEN}) WHERE run_id = (SELECT run_id FROM claims "
    "WHERE run_id = ? AND epoch = ? AND execution IS NOT DISTINCT FROM ? FOR NO KEY UPDATE "
    "SKIP LOCKED) RETURNING execution"
)
_CLAIM_AGAIN = (
    f"UPDATE claims SET ({_HELD_BY}) = ROW ({_TAKEN}) WHERE run_id = (SELECT run_id FROM claims "
    "WHERE run_id = ? AND epoch < ? FOR NO KEY UPDATE SKIP LOCKED) RETURNING execution"
)
_LIGHTLY = {"synchronous_commit": "off"}
_AT_ONCE = 100
"""Claims, or releases, that are sent in one round trip: enough to make the round trip cheap, few
enough to keep a statement small."""
_ONCE_MORE = 0.05
"""Seconds before another attempt to claim a run that seems free but is locked by a transaction. The
server may need a moment to end the transaction of a killed process."""


_ClaimingJob = tuple[Job[Any, Any], Lease]


class Claimant(Database):
    """The part of ``PostgresDatabase`` that claims, renews and releases runs."""

    def __init__(self, config: Config, server: Server) -> None:
        super().__init__(config)
        self._server = server
        self._failures: dict[Lease, StoreFailed] = {}
        """Errors that the next save under a lease gets, because the server has lost older saves."""

    @abstractmethod
    def _connected(self) -> PostgresConnection:
        """Return the connection; connect first if there is none."""

    # -- transactions ---------------------------------------------------------------------------

    def _begin_on(
        self, connection: PostgresConnection, *more: Statement, lightly: bool
    ) -> list[list[tuple[Any, ...]]]:
        """Begin a transaction; return what the further statements find, in the same round trip.

        The server ends it if this process stops in the middle of it, or a statement takes too long.
        """
        return connection.begin(*more, settings=self._settings(lightly=lightly))

    def _settings(self, *, lightly: bool) -> dict[str, object]:
        return {
            "statement_timeout": ceil(self._server.timeout * 1000),
            "idle_in_transaction_session_timeout": ceil(self._config.lease * 1000),
            **(_LIGHTLY if lightly else {}),
        }

    def _each_alone(
        self, connection: PostgresConnection, *statements: Statement
    ) -> list[list[tuple[Any, ...]]]:
        """Execute each statement in a transaction of its own, all in one round trip.

        So none of them holds a lock while it waits for another one. They needn't survive a crash.
        """
        beginning = connection.beginning(settings=self._settings(lightly=True))
        every: list[Statement] = []
        for statement in statements:
            every += [*beginning, statement, ("COMMIT", ())]
        return connection.execute_all(*every)[2::4] if every else []

    # -- leases ---------------------------------------------------------------------------------

    def _named(self, leases: Iterable[Lease], *more: str) -> list[list[Any]]:
        """Return the names of leases, as one array for each column."""
        names = ("epoch", "execution", *more)
        return [
            [index_of(lease.run_id) for lease in leases],
            *([getattr(lease, name) for lease in leases] for name in names),
        ]

    def _forgotten(self, connection: PostgresConnection, leases: Sequence[Lease]) -> list[Lease]:
        """Return the leases that the server has lost, and that may be written again.

        A claim doesn't wait for the disk, so a server that crashes soon afterwards may have lost
        it; so may another server that takes over. As soon as a save under it was acknowledged, the
        lease is on the disk, too. If such a lease is missing, the saves are as well, and the
        execution can't continue: ``_failures`` gets an error for it.
        """
        ids = [index_of(lease.run_id) for lease in leases]
        sql = "SELECT run_id, epoch, execution, saves FROM claims WHERE run_id = ANY(?)"
        rows = {run: rest for run, *rest in connection.execute(sql, (ids,))}
        forgotten: list[Lease] = []
        for run, lease in zip(ids, leases, strict=True):
            epoch, execution, saves = rows.get(run, (None, None, 0))
            is_ours = epoch == lease.epoch and execution == lease.execution
            is_older = epoch is not None and epoch < lease.epoch
            if not lease.saves and not lease.lost and (epoch is None or is_older):
                forgotten.append(lease)
            elif is_older or is_ours:
                msg = (
                    f"{self._server.label} says that run {lease.run_id} was saved "
                    f"{saves if is_ours else 0} times, but it acknowledged {lease.saves}: another "
                    f"server that was not up to date may have taken over; the run stops, and "
                    f"resuming it continues from what the server has"
                )
                self._failures[lease] = StoreFailed(msg)
        return forgotten

    def _claim_again(self, connection: PostgresConnection, leases: Iterable[Lease]) -> None:
        """Write lost leases again, unless there are newer ones.

        If it is not the run's first lease, the row may be missing because the run was deleted
        meanwhile. Then the lease is not written.
        """
        statements: list[Statement] = []
        for lease in leases:
            key, taken = index_of(lease.run_id), self._taken(lease)
            statements.append((_CLAIM_AGAIN, (*taken, key, lease.epoch)))
            new = _NEW_CLAIM.format("TRUE" if lease.is_first else IS_KEPT)
            statements.append((new, (key, *taken, *(() if lease.is_first else (key,)))))
        self._each_alone(connection, *statements)

    def _taken(self, lease: Lease) -> tuple[Any, ...]:
        """Return the values for ``_TAKEN``."""
        return (lease.epoch, lease.execution, 0, *current_holder(), self._config.lease)

    def _claim_all(self, jobs: Sequence[_ClaimingJob]) -> None:
        """Claim runs, each in a transaction of its own.

        If the connection is lost meanwhile, the writer calls this again; it finds the claims that
        were made before.
        """
        if not jobs:
            return
        connection, left = (
            self._connected(),
            [(job, lease) for job, lease in jobs if not lease.given_back],
        )
        for number in range(3):
            left, steps = self._refused(connection, left), list[Statement]()
            for _, lease in left:
                key, taken = index_of(lease.run_id), self._taken(lease)
                if lease.before is None:
                    steps.append((_NEW_CLAIM.format("TRUE"), (key, *taken)))
                else:
                    steps.append((_NEXT_CLAIM, (*taken, key, *lease.before)))
            for at in range(0, len(left), _AT_ONCE):
                made = self._each_alone(connection, *steps[at : at + _AT_ONCE])
                for (_, lease), rows in zip(left[at:], made, strict=False):
                    if rows:
                        self._keep_up(lease)
            left = [(job, one) for job, one in left if self._claims.get(one.run_id) is not one]
            if not left:
                return
            if number == 1:
                time.sleep(_ONCE_MORE)
        for job, lease in left:
            msg = (
                f"run {lease.run_id} is in use: another transaction is changing its claim at this "
                f"moment; wait, and try again"
            )
            job.error = RunClaimed(msg)

    def _refused(
        self, connection: PostgresConnection, jobs: Sequence[_ClaimingJob]
    ) -> list[_ClaimingJob]:
        """Refuse claims of runs that other executions hold; return the claims that may be made."""
        ids = [index_of(lease.run_id) for _, lease in jobs]
        sql = f"SELECT run_id, {POSTGRES.lease_columns} FROM claims WHERE run_id = ANY(?)"
        (rows,) = self._each_alone(connection, (sql, (ids,)))
        held = {run: lease_state_of(rest) for run, *rest in rows}
        free: list[_ClaimingJob] = []
        for run, (job, lease) in zip(ids, jobs, strict=True):
            last, job.error = held.get(run), None
            if last is not None and (last.epoch, last.execution) == (lease.epoch, lease.execution):
                self._keep_up(lease)  # the claim was made before the connection was lost
                continue
            try:
                epoch, job.result = refuse_held(lease.run_id, last)
            except RunClaimed as error:
                job.error = error
                continue
            lease.epoch = epoch + 1
            lease.before = None if last is None else (last.epoch, last.execution)
            free.append((job, lease))
        return free

    def _release_all(self, leases: Sequence[Lease]) -> None:
        """Release runs, each in a transaction of its own. Repeating that is harmless."""
        connection = self._connected()
        for at in range(0, len(leases), _AT_ONCE):
            statements: list[Statement] = []
            for lease in leases[at : at + _AT_ONCE]:
                key = index_of(lease.run_id)
                ours = (key, lease.epoch, lease.execution)
                # If nothing was saved of the run, ``prune`` would never find it, and its claim
                # would stay.
                gone = (f"DELETE FROM claims WHERE {OURS} AND NOT {IS_KEPT}", (*ours, key))
                free = (f"UPDATE claims SET execution = NULL WHERE {OURS}", ours)
                statements += [free] if lease.rows.ids else [gone, free]
            self._each_alone(connection, *statements)
        for lease in leases:
            self._discard(lease)

    def _take(self, lease: Lease) -> None:
        raise AssertionError("_claim_all makes claims here")

    def _beat(self) -> list[Lease]:
        connection, leases = self._connected(), list(self._claims.values())
        seen, _ = self._begin_on(
            connection, (_SEEN, self._named(leases)), ("COMMIT", ()), lightly=True
        )
        alive = {(run, execution) for run, execution in seen}
        missing = [one for one in leases if (index_of(one.run_id), one.execution) not in alive]
        if not missing:
            return []
        self._begin_on(connection, lightly=True)
        forgotten = self._forgotten(connection, missing)
        connection.commit()
        self._claim_again(connection, forgotten)
        # A lease that was skipped because it was locked is still ours. Leases with an entry in
        # ``_failures`` end with the next save.
        return self._taken_over(connection, missing)

    def _taken_over(self, connection: PostgresConnection, leases: Sequence[Lease]) -> list[Lease]:
        """Return the leases that other executions have taken, or whose rows are gone."""
        ids = [index_of(lease.run_id) for lease in leases]
        sql = "SELECT run_id, epoch, execution FROM claims WHERE run_id = ANY(?)"
        (rows,) = self._each_alone(connection, (sql, (ids,)))
        by_run = {run: (epoch, execution) for run, epoch, execution in rows}
        return [
            lease
            for run, lease in zip(ids, leases, strict=True)
            if by_run.get(run) != (lease.epoch, lease.execution) and lease not in self._failures
        ]
