"""Claims in the tables of a ``PostgresStore``: made, kept up, given back. Imports writing.

Why no two transactions wait for each other in a circle is said in ``_postgres_database``.

Invariants:
- Each claim, and each release, has a transaction of its own, which locks one row and no more.
- To look whose a run is locks nothing.
- A claim is known by its execution, so it is made again without harm where it is not known whether
  it was made.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from math import ceil
from typing import Any

from shoal._errors.exceptions import RunClaimed, StoreFailed
from shoal.stores._sql.holders import current_holder
from shoal.stores._sql.leases import Claim
from shoal.stores._sql.writer_thread import Job
from shoal.stores._sql.writing import IS_KEPT, OURS, Config, Database, refuse_held

from .keys import NOW, POSTGRES, held_of, index_of
from .server import Link, Server, Statement

# Locked in the order of their ids, whatever the plan of the rest is.
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
_NEW_CLAIM = (  # none if there is one meanwhile, or if something doesn't hold
    f"INSERT INTO claims (run_id, {_HELD_BY}) SELECT ?, {_TAKEN} WHERE {{}} "
    "ON CONFLICT (run_id) DO NOTHING RETURNING execution"
)
_NEXT_CLAIM = (  # none if the last one isn't any more what it was, or its transaction goes on
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
"""Claims, or releases, that are sent together."""
_ONCE_MORE = 0.05
"""Seconds after which a run is looked at again that should be free, but that a transaction has
locked. The server may not have ended yet what a killed process was doing."""


_ClaimingJob = tuple[Job[Any, Any], Claim]


class Claimant(Database):
    """The part of the tables, as the writer's thread has them, that claims runs."""

    def __init__(self, config: Config, server: Server) -> None:
        super().__init__(config)
        self._server = server
        self._failures: dict[Claim, StoreFailed] = {}
        """Why claims can't be saved under any more, until the next save is told."""

    @abstractmethod
    def _connected(self) -> Link:
        """Return the connection; connect, if there is none."""

    # -- transactions ---------------------------------------------------------------------------

    def _begin_on(self, link: Link, *more: Statement, lightly: bool) -> list[list[tuple[Any, ...]]]:
        """Begin a transaction that ends by itself where this process stops, or the server does."""
        return link.begin(*more, settings=self._settings(lightly=lightly))

    def _settings(self, *, lightly: bool) -> dict[str, object]:
        return {
            "statement_timeout": ceil(self._server.timeout * 1000),
            "idle_in_transaction_session_timeout": ceil(self._config.lease * 1000),
            **(_LIGHTLY if lightly else {}),
        }

    def _each_alone(self, link: Link, *statements: Statement) -> list[list[tuple[Any, ...]]]:
        """Execute each statement in a transaction of its own, all in one round trip.

        So none of them holds a lock while it waits for another one. None has to outlast a crash.
        """
        beginning = link.beginning(settings=self._settings(lightly=True))
        every: list[Statement] = []
        for statement in statements:
            every += [*beginning, statement, ("COMMIT", ())]
        return link.execute_all(*every)[2::4] if every else []

    # -- claims ---------------------------------------------------------------------------------

    def _named(self, claims: Iterable[Claim], *more: str) -> list[list[Any]]:
        """Name claims, as columns of arrays."""
        names = ("epoch", "execution", *more)
        return [
            [index_of(claim.run_id) for claim in claims],
            *([getattr(claim, name) for claim in claims] for name in names),
        ]

    def _forgotten(self, link: Link, claims: Sequence[Claim]) -> list[Claim]:
        """Return those of ``claims`` that the server has lost, so that they can be made again.

        A claim is not waited for until it is on the disk, so a server that crashes behind it may
        have lost it; so may another one that takes over. A claim that saves were acknowledged under
        is on the disk. If it is not there, neither are the saves, and the execution can't go on.
        """
        ids = [index_of(claim.run_id) for claim in claims]
        sql = "SELECT run_id, epoch, execution, saves FROM claims WHERE run_id = ANY(?)"
        rows = {run: rest for run, *rest in link.execute(sql, (ids,))}
        forgotten: list[Claim] = []
        for run, claim in zip(ids, claims, strict=True):
            epoch, execution, saves = rows.get(run, (None, None, 0))
            is_ours = epoch == claim.epoch and execution == claim.execution
            is_older = epoch is not None and epoch < claim.epoch
            if not claim.saves and not claim.lost and (epoch is None or is_older):
                forgotten.append(claim)
            elif is_older or is_ours:
                msg = (
                    f"{self._server.label} says that run {claim.run_id} was saved "
                    f"{saves if is_ours else 0} times, where it has acknowledged {claim.saves}: "
                    f"another server that was not up to date may have taken over; the run stops, "
                    f"and goes on from what is there when it is resumed"
                )
                self._failures[claim] = StoreFailed(msg)
        return forgotten

    def _claim_again(self, link: Link, claims: Iterable[Claim]) -> None:
        """Write claims down that the server has forgotten, unless there are newer ones.

        Where a run was claimed before, its row may be gone since the run was deleted meanwhile:
        that is left so.
        """
        statements: list[Statement] = []
        for claim in claims:
            key, taken = index_of(claim.run_id), self._taken(claim)
            statements.append((_CLAIM_AGAIN, (*taken, key, claim.epoch)))
            new = _NEW_CLAIM.format("TRUE" if claim.is_first else IS_KEPT)
            statements.append((new, (key, *taken, *(() if claim.is_first else (key,)))))
        self._each_alone(link, *statements)

    def _taken(self, claim: Claim) -> tuple[Any, ...]:
        """Return what ``_TAKEN`` has."""
        return (claim.epoch, claim.execution, 0, *current_holder(), self._config.lease)

    def _claim_all(self, jobs: Sequence[_ClaimingJob]) -> None:
        """Claim runs, each in a transaction of its own.

        Where the connection is lost in the middle of it, the same is done again: what was made
        before is found.
        """
        if not jobs:
            return
        link, left = (
            self._connected(),
            [(job, claim) for job, claim in jobs if not claim.given_back],
        )
        for number in range(3):
            left, steps = self._refused(link, left), list[Statement]()
            for _, claim in left:
                key, taken = index_of(claim.run_id), self._taken(claim)
                if claim.before is None:
                    steps.append((_NEW_CLAIM.format("TRUE"), (key, *taken)))
                else:
                    steps.append((_NEXT_CLAIM, (*taken, key, *claim.before)))
            for at in range(0, len(left), _AT_ONCE):
                made = self._each_alone(link, *steps[at : at + _AT_ONCE])
                for (_, claim), rows in zip(left[at:], made, strict=False):
                    if rows:
                        self._keep_up(claim)
            left = [(job, one) for job, one in left if self._claims.get(one.run_id) is not one]
            if not left:
                return
            if number == 1:
                time.sleep(_ONCE_MORE)
        for job, claim in left:
            msg = (
                f"run {claim.run_id} goes on: another transaction has its claim just now; wait, "
                f"and try again"
            )
            job.error = RunClaimed(msg)

    def _refused(self, link: Link, jobs: Sequence[_ClaimingJob]) -> list[_ClaimingJob]:
        """Look who has the runs that ``jobs`` claim; return those that may be had."""
        ids = [index_of(claim.run_id) for _, claim in jobs]
        sql = f"SELECT run_id, {POSTGRES.held} FROM claims WHERE run_id = ANY(?)"
        (rows,) = self._each_alone(link, (sql, (ids,)))
        held = {run: held_of(rest) for run, *rest in rows}
        free: list[_ClaimingJob] = []
        for run, (job, claim) in zip(ids, jobs, strict=True):
            last, job.error = held.get(run), None
            if last is not None and (last.epoch, last.execution) == (claim.epoch, claim.execution):
                self._keep_up(claim)  # it was made before the connection was lost
                continue
            try:
                epoch, job.result = refuse_held(claim.run_id, last)
            except RunClaimed as error:
                job.error = error
                continue
            claim.epoch = epoch + 1
            claim.before = None if last is None else (last.epoch, last.execution)
            free.append((job, claim))
        return free

    def _release_all(self, claims: Sequence[Claim]) -> None:
        """Give runs back, each in a transaction of its own. Again is no error."""
        link = self._connected()
        for at in range(0, len(claims), _AT_ONCE):
            statements: list[Statement] = []
            for claim in claims[at : at + _AT_ONCE]:
                key = index_of(claim.run_id)
                ours = (key, claim.epoch, claim.execution)
                # Where nothing was ever saved of it, nobody would prune the claim.
                gone = (f"DELETE FROM claims WHERE {OURS} AND NOT {IS_KEPT}", (*ours, key))
                free = (f"UPDATE claims SET execution = NULL WHERE {OURS}", ours)
                statements += [free] if claim.rows.ids else [gone, free]
            self._each_alone(link, *statements)
        for claim in claims:
            self._let_go(claim)

    def _take(self, claim: Claim) -> None:
        raise AssertionError("claims are made all at once")

    def _beat(self) -> list[Claim]:
        link, claims = self._connected(), list(self._claims.values())
        seen, _ = self._begin_on(link, (_SEEN, self._named(claims)), ("COMMIT", ()), lightly=True)
        alive = {(run, execution) for run, execution in seen}
        missing = [one for one in claims if (index_of(one.run_id), one.execution) not in alive]
        if not missing:
            return []
        self._begin_on(link, lightly=True)
        forgotten = self._forgotten(link, missing)
        link.commit()
        self._claim_again(link, forgotten)
        # Anything else is found out by the next save. A claim that only was locked is one's own.
        return self._taken_over(link, missing)

    def _taken_over(self, link: Link, claims: Sequence[Claim]) -> list[Claim]:
        """Return those of ``claims`` that others have by now, or nobody any more."""
        ids = [index_of(claim.run_id) for claim in claims]
        sql = "SELECT run_id, epoch, execution FROM claims WHERE run_id = ANY(?)"
        (rows,) = self._each_alone(link, (sql, (ids,)))
        by_run = {run: (epoch, execution) for run, epoch, execution in rows}
        return [
            claim
            for run, claim in zip(ids, claims, strict=True)
            if by_run.get(run) != (claim.epoch, claim.execution) and claim not in self._failures
        ]
