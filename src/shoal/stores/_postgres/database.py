"""The tables of a ``PostgresStore`` as its threads have them. Imports the schema, and writing.

Invariants:
- A transaction that saves changes the rows of its claims first. So it has them to itself, and
  another process that takes a run over waits until the transaction has ended, or is seen by it.
- A row of ``claims`` counts the transactions that saved under that claim. So where the connection
  was lost while one was committed, it is found out whether it was; and a server that has forgotten
  what it had acknowledged, as one that was not quite up to date may when it takes over, is found.
- To look takes no locks: to load a run, to list, to find orphans, to be refused a claim.
- Transactions can't wait for each other in a circle, because a transaction waits for a lock only
  while it holds none that comes later in one order. Those that save, and those that give signs of
  life, lock rows of ``claims`` in one statement, by ``run_id``; what they lock then belongs to runs
  that they have claimed. Each claim, each release and each remembered result has a transaction of
  its own, which locks one row; names that all processes share are written in a transaction of
  their own, sorted. All else (what deletes) never waits: it skips what is locked.
- A transaction waits for the server a number of times that doesn't depend on how much it saves.
- A claim needn't outlast a crash of the server: it is made again, unless there is a newer one.
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
from shoal.stores._sql.leases import Claim, Held, KnownRows
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
from .keys import POSTGRES, columns_of, held_of, index_of
from .schema import has_tables, make_tables
from .server import InDoubt, Link, Server, Statement

_MADE_UP = (  # a claim that nobody has, if there is none; in any case its row is ours meanwhile
    "INSERT INTO claims (run_id, epoch, saves, host, boot, pid, started, lease, seen_at) "
    "VALUES (?, 0, 0, '', '', 0, '', 0, 0) "
    "ON CONFLICT (run_id) DO UPDATE SET run_id = excluded.run_id RETURNING "
)
_SWEEPING = 0x73776565  # what is locked by the one process that deletes: "swee"


_BY_NAME = (
    "SELECT named.*, found.id FROM unnest(?::bigint[], ?::integer[], ?::text[]) "
    "AS named (parent, place, key) CROSS JOIN LATERAL (SELECT id FROM runs WHERE runs.parent = "
    "named.parent AND runs.place = named.place AND runs.key = named.key OFFSET 0) AS found"
)


def connect(server: Server, *, makes: bool, check: Callable[[], None] | None = None) -> Link | None:
    """Connect; make the tables if there are none, or return None.

    Raises:
        psycopg.Error: That is not possible, now or at all.
        StoreFailed: The schema was made by a newer version, or holds something else.
    """
    link = Link(server, check)
    try:
        if not has_tables(link, server):
            if not makes:
                link.close()
                return None
            make_tables(link, server)
    except BaseException:
        link.close()
        raise
    return link


@final
class Wanted:
    """Rows of runs that are looked for, by name: what is known under the claim, and what is new."""

    __slots__ = ("names",)

    def __init__(self) -> None:
        self.names: dict[tuple[int, int, Key], tuple[KnownRows, Child | None]] = {}

    def add(self, name: tuple[int, int, Key], known: KnownRows, child: Child | None) -> None:
        """Look for a row, unless it is known; where it is new, it is that of ``child``."""
        if name not in known.ids:
            self.names.setdefault(name, (known, child))


def _indexed(name: tuple[int, int, Key]) -> tuple[int, int, str]:
    parent, place, key = name
    return parent, place, index_of(key)


@final
class PostgresDatabase(Claimant):
    """The tables as the writer's thread has them."""

    def __init__(
        self, config: Config, server: Server, take_readers: Callable[[], Iterable[Connection]]
    ) -> None:
        """Connect to nothing yet; ``take_readers`` gives connections to close with its own."""
        super().__init__(config, server)
        self._take_readers = take_readers
        self._link: Link | None = None
        self._counted = set[Claim]()  # under which this transaction saves
        self._in_doubt: Sequence[Job[Any, Any]] | None = None  # what a lost connection committed
        self._is_careful = False  # whether children may be there already

    @property
    def _sql(self) -> Link:
        assert self._link is not None, "a transaction has begun"
        return self._link

    def open(self) -> None:
        """Leave it to the first transaction, which waits for a server that isn't there."""

    def close(self) -> None:
        own = () if self._link is None else (self._link,)
        for connection in (*self._take_readers(), *own):
            connection.close()

    # -- transactions ---------------------------------------------------------------------------

    def _connected(self) -> Link:
        if self._link is None or self._link.is_closed:
            self._link = connect(self._server, makes=True)
        return self._sql

    def _grouped(self, jobs: Sequence[Job[Any, Any]]) -> Iterator[Sequence[Job[Any, Any]]]:
        """Yield jobs that may share a transaction, and those that share none but are sent together.

        Saves come first. All other jobs may wait for them: no save depends on what was asked in the
        same moment, since a run is saved after it was claimed and before it is released.
        """
        saves, claims, releases, others = (list[Job[Any, Any]]() for _ in range(4))
        for job in jobs:
            kind = type(job.work)
            known = saves if kind is Save else claims if kind is Claiming else releases
            (known if kind in (Save, Claiming, Releasing) else others).append(job)
        for group in (saves, releases, claims):
            if group:
                yield group
        for job in others:
            yield (job,)

    def _transact(self, jobs: Sequence[Job[Any, Any]]) -> None:
        claims = [(job, job.work.claim) for job in jobs if isinstance(job.work, Claiming)]
        releases = [job.work.claim for job in jobs if isinstance(job.work, Releasing)]
        try:
            if claims or releases:
                self._claim_all(claims)
                self._release_all(releases)
            elif self._in_doubt is not jobs or not self._was_kept():
                self._transact_carefully(jobs)
        except ReadOnlySqlTransaction:  # another server may be the one to write to by now
            self._sql.close()
            raise

    def _transact_carefully(self, jobs: Sequence[Job[Any, Any]]) -> None:
        try:
            super()._transact(jobs)
        except UniqueViolation:  # an earlier attempt of the same execution has left some
            if self._is_careful:
                raise
            self._roll_back()
            self._is_careful = True
            try:
                super()._transact(jobs)
            finally:
                self._is_careful = False

    def _begin(self, jobs: Sequence[Job[Any, Any]]) -> None:
        link = self._connected()
        saves = [job.work for job in jobs if isinstance(job.work, Save)]
        saves = [one for one in saves if one.claim.failure is None]
        claims = {save.claim for save in saves}
        lightly = all(job.is_light for job in jobs)
        self._intern_all(saves)
        self._counted = self._count(link, claims, lightly=lightly)
        missing = [*(claims - self._counted)]
        if missing:
            forgotten = self._forgotten(link, missing)
            if forgotten:
                link.abort()  # nothing is waited for while claims are locked
                self._claim_again(link, forgotten)
                self._counted = self._count(link, claims, lightly=lightly)
        self._find_rows([save for save in saves if save.claim in self._counted])

    def _count(self, link: Link, claims: Iterable[Claim], *, lightly: bool) -> set[Claim]:
        """Begin a transaction, and count it for those of ``claims`` that hold; return these."""
        by_name = {(index_of(claim.run_id), claim.execution): claim for claim in claims}
        count = [(COUNTED, self._named(by_name.values(), "saves"))] if by_name else []
        found = self._begin_on(link, *count, lightly=lightly)
        return {by_name[run, execution] for rows in found for run, execution in rows}

    def _commit(self, jobs: Sequence[Job[Any, Any]]) -> None:
        try:
            self._sql.commit()
        except InDoubt:
            self._in_doubt = jobs
            raise
        for claim in self._counted:
            claim.saves += 1

    def _was_kept(self) -> bool:
        """Find out whether the transaction was committed that was about to be.

        Its claims say so; for these the server waits until that transaction has ended. Without any,
        it may be done again.
        """
        link, counted = self._connected(), self._counted
        self._begin_on(link, lightly=True)
        kept = False
        for claim in counted:
            found = link.execute(
                "SELECT saves FROM claims WHERE run_id = ? AND epoch = ? AND execution = ? "
                "FOR UPDATE",
                (index_of(claim.run_id), claim.epoch, claim.execution),
            ).fetchone()
            if found is not None:  # else it was taken over, or was never made
                kept = found[0] == claim.saves + 1
                break
        link.commit()
        self._in_doubt = None
        if kept:
            for claim in counted:
                claim.saves += 1
        return kept

    def _fail(self, jobs: Sequence[Job[Any, Any]], error: Exception) -> None:
        if self._in_doubt is not jobs:
            super()._fail(jobs, error)
            return
        self._in_doubt = None
        msg = (
            f"whether a save is kept is unknown: the connection to {self._server.label} was lost "
            f"when it was about to be, and could not be made again: "
            f"{self._config.faults.explained(error)}"
        )
        for job in jobs:
            job.error = CommitInDoubt(msg)
            job.error.__cause__ = error
            if isinstance(job.work, Save):  # what comes after it could contradict it
                job.work.claim.failure = job.error

    def _abort(self) -> None:
        link = self._link
        if link is None:
            return
        if not link.is_closed:
            with suppress(self._config.faults.errors):  # what it failed with before is what is told
                link.abort()
                return
        link.close()
        self._link = None

    # -- claims ----------------------------------------------------------------------------------

    def _check(self, claim: Claim) -> None:
        if claim in self._counted:
            return
        failure = self._failures.pop(claim, None)
        if failure is not None:
            claim.failure = failure
            raise failure
        claim.lost = True
        raise claim.refusal()

    def _held(self, run_id: str) -> Held:
        found = self._sql.execute(f"{_MADE_UP}{POSTGRES.held}", (index_of(run_id),)).fetchone()
        assert found is not None, "a row was made or found"
        return held_of(found)

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
        # Nobody claims meanwhile those that are locked; those that others have locked are at work.
        free = [run_id for run, run_id in ids.items() if run in locked or run not in known]
        return super().discard_old(free, until, statuses)

    def sweep(self, limit: int) -> bool:
        """Delete some of what is known to nobody, unless another process does just now."""
        sql = "SELECT pg_try_advisory_xact_lock(hashtextextended(?, ?))"
        (is_ours,) = self._sql.execute(sql, (self._server.schema, _SWEEPING)).fetchone() or (False,)
        return super().sweep(limit) if is_ours else True

    # -- saves ----------------------------------------------------------------------------------

    def _intern_all(self, saves: Sequence[Save]) -> None:
        """Make places and forms known that are new, in a transaction of their own.

        Other processes need the same ones: so none of them waits for what else is written.
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
        # In one order, so that no two processes wait for each other.
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
        """Find or make the rows of all runs that ``saves`` name, level by level of their trees.

        So that they aren't looked up one by one. Children that have ended are looked for only where
        an earlier execution may have left them; else they are taken to be new.
        """
        above: list[int | None] = [0] * len(saves)
        for level in range(1 + max((len(rows.path) for rows, _ in saves), default=-1)):
            wanted = Wanted()
            names: list[tuple[int, int, Key] | None] = []
            for save, parent in zip(saves, above, strict=True):
                rows, claim = save
                name: tuple[int, int, Key] | None = None
                if level <= len(rows.path) and parent is not None:
                    place, key = rows.path[level - 1] if level else (None, rows.root)
                    name = (parent, 0 if place is None else self._places[place], key)
                    child = rows.run if level and level == len(rows.path) else None
                    wanted.add(name, claim.rows, child)
                names.append(name)
            self._find(wanted)
            above = [  # None: too many were found for one to be remembered
                parent if name is None else save.claim.rows.ids.get(name)
                for save, name, parent in zip(saves, names, above, strict=True)
            ]
        ended = Wanted()
        for (rows, claim), parent in zip(saves, above, strict=True):
            if parent is not None and not claim.is_first and not rows.afresh:
                for child in rows.children:
                    place = self._places[Place(*child[:3])]
                    ended.add((parent, place, child.key), claim.rows, None)
        self._find(ended, makes=False)

    def _find(self, wanted: Wanted, *, makes: bool = True) -> None:
        """Find rows by their names, in one round trip; make those that aren't there."""
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
        # One by one, by the index: nobody knows how many rows the table has, least of all the
        # planner when it is new.
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

    def _append(self, entries: list[tuple[int, History]]) -> None:
        rows = [(run, *entry) for run, entry in entries]
        self._sql.insert_later("history (run, number, kind, step, data)", rows)

    def _insert(self, parent: int, children: list[tuple[int, Child]]) -> list[tuple[int, Child]]:
        known: list[tuple[int, Child]] = []
        if self._is_careful:
            known, children = self._told_apart(parent, children)
        self._sql.insert_later(
            f"runs (parent, place, {', '.join(POSTGRES.key_columns)}, {', '.join(COLUMNS)})",
            [
                (parent, place, *columns_of(child.key), *self._row(child))
                for place, child in children
            ],
        )
        return known

    def _told_apart(
        self, parent: int, children: list[tuple[int, Child]]
    ) -> tuple[list[tuple[int, Child]], list[tuple[int, Child]]]:
        """Return those that have a row already, and those that don't."""
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
