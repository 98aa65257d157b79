"""The tables of a ``PostgresStore`` as its threads have them. Imports the schema, and writing.

Invariants:
- A transaction that saves changes the rows of its claims first. So it has them to itself, and
  whoever takes a run over waits until the transaction has ended, or is seen by it.
- A row of ``claims`` counts the transactions that saved under that claim. So where the connection
  was lost while one was committed, it is found out whether it was; and a server that has forgotten
  what it had acknowledged, as one that was not quite up to date may when it takes over, is found.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from math import ceil
from typing import Any, final

from psycopg.errors import ReadOnlySqlTransaction, UniqueViolation

from shoal._errors import CommitInDoubt, StoreFailed
from shoal._ids import Key
from shoal._store import RunStatus

from ._claims import Claim, Held
from ._dialect import Connection, Dialect
from ._holders import Holder, current_holder
from ._postgres_schema import has_tables, make_tables
from ._postgres_server import InDoubt, Link, Server, Statement
from ._rows import Child, History, Place
from ._writer import Job
from ._writing import COLUMNS, Claiming, Config, Database, Save

_NOW = "extract(epoch FROM clock_timestamp())::float8"
_COUNTED = (
    "UPDATE claims SET saves = claims.saves + 1 FROM "
    "unnest(?::text[], ?::bigint[], ?::text[], ?::bigint[]) "
    "AS ours (run_id, epoch, execution, saves) "
    "WHERE claims.run_id = ours.run_id AND claims.epoch = ours.epoch "
    "AND claims.execution = ours.execution AND claims.saves = ours.saves "
    "RETURNING claims.execution"
)
_SEEN = (
    f"UPDATE claims SET seen_at = {_NOW} FROM "
    "unnest(?::text[], ?::bigint[], ?::text[]) AS ours (run_id, epoch, execution) "
    "WHERE claims.run_id = ours.run_id AND claims.epoch = ours.epoch "
    "AND claims.execution = ours.execution RETURNING claims.execution"
)
_MADE_UP = (  # a claim that nobody has, if there is none; in any case its row is ours meanwhile
    "INSERT INTO claims (run_id, epoch, saves, host, boot, pid, started, lease, seen_at) "
    "VALUES (?, 0, 0, '', '', 0, '', 0, 0) "
    "ON CONFLICT (run_id) DO UPDATE SET run_id = excluded.run_id RETURNING "
)


def connect(server: Server, *, makes: bool) -> Link | None:
    """Connect; make the tables if there are none, or return None.

    Raises:
        psycopg.Error: That is not possible, now or at all.
        StoreFailed: The schema was made by a newer version, or holds something else.
    """
    link = Link(server)
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
class PostgresDatabase(Database):
    """The tables as the writer's thread has them."""

    def __init__(
        self, config: Config, server: Server, take_readers: Callable[[], Iterable[Connection]]
    ) -> None:
        """Connect to nothing yet; ``take_readers`` gives connections to close with its own."""
        super().__init__(config)
        self._server = server
        self._take_readers = take_readers
        self._link: Link | None = None
        self._counted: dict[str, Claim] = {}  # claims that were found in this transaction
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

    def _transact(self, jobs: Sequence[Job[Any, Any]]) -> None:
        if self._in_doubt is jobs and self._was_kept(jobs):
            return
        try:
            super()._transact(jobs)
        except ReadOnlySqlTransaction:  # another server may be the one to write to by now
            self._sql.close()
            raise
        except UniqueViolation:  # earlier executions or attempts have left some
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
        saves = [job.work for job in jobs if isinstance(job.work, Save) and not job.work.claim.lost]
        self._intern_all(saves)
        claims = {save.claim.execution: save.claim for save in saves}
        self._counted = {}
        count = [(_COUNTED, self._named(claims.values(), "saves"))] if claims else []
        found = self._begin_on(link, *count, lightly=all(job.is_light for job in jobs))
        self._counted = {name: claims[name] for rows in found for (name,) in rows}

    def _begin_on(self, link: Link, *more: Statement, lightly: bool) -> list[list[tuple[Any, ...]]]:
        """Begin a transaction that ends by itself where this process stops, or the server does."""
        settings: dict[str, object] = {
            "statement_timeout": ceil(self._server.timeout * 1000),
            "idle_in_transaction_session_timeout": ceil(self._config.lease * 1000),
        }
        if lightly:
            settings["synchronous_commit"] = "off"
        return link.begin(*more, settings=settings)

    def _commit(self, jobs: Sequence[Job[Any, Any]]) -> None:
        try:
            self._sql.commit()
        except InDoubt:
            self._in_doubt = jobs
            raise
        for claim in self._counted.values():
            claim.saves += 1

    def _was_kept(self, jobs: Sequence[Job[Any, Any]]) -> bool:
        """Find out whether the transaction was committed that was about to be.

        Its claims say so; for these the server waits until that transaction has ended. Without any,
        it may be done again.
        """
        link, counted = self._connected(), self._counted.values()
        made = [job.work.claim for job in jobs if isinstance(job.work, Claiming)]
        would_say = [(claim, claim.saves + 1) for claim in counted]
        would_say += [(claim, 0) for claim in made if claim.epoch]
        self._begin_on(link, lightly=True)
        kept = False
        for claim, saves in would_say:
            found = link.execute(
                "SELECT saves FROM claims WHERE run_id = ? AND epoch = ? AND execution = ? "
                "FOR UPDATE",
                (index_of(claim.run_id), claim.epoch, claim.execution),
            ).fetchone()
            if found is not None:  # else it was taken over, or was never made
                kept = found[0] == saves
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

    # -- claims ---------------------------------------------------------------------------------

    def _named(self, claims: Iterable[Claim], *more: str) -> list[list[Any]]:
        """Name claims, as columns of arrays."""
        names = ("epoch", "execution", *more)
        return [
            [index_of(claim.run_id) for claim in claims],
            *([getattr(claim, name) for claim in claims] for name in names),
        ]

    def _check(self, claim: Claim) -> None:
        if claim.execution in self._counted:
            return
        found = self._sql.execute(
            "SELECT saves FROM claims WHERE run_id = ? AND epoch = ? AND execution = ?",
            (index_of(claim.run_id), claim.epoch, claim.execution),
        ).fetchone()
        if found is None:
            claim.lost = True
            raise claim.refusal()
        msg = (
            f"{self._server.label} says that run {claim.run_id} was saved {found[0]} times, where "
            f"it has acknowledged {claim.saves}: another server that was not up to date may have "
            f"taken over; the run stops, and goes on from what is there when it is resumed"
        )
        claim.failure = StoreFailed(msg)
        raise claim.failure

    def _held(self, run_id: str) -> Held:
        found = self._sql.execute(f"{_MADE_UP}{POSTGRES.held}", (index_of(run_id),)).fetchone()
        assert found is not None, "a row was made or found"
        return _held_of(found)

    def _take(self, claim: Claim) -> None:
        self._sql.execute(
            f"UPDATE claims SET epoch = ?, execution = ?, saves = 0, host = ?, boot = ?, pid = ?, "
            f"started = ?, lease = ?, seen_at = {_NOW} WHERE run_id = ?",
            (
                *(claim.epoch, claim.execution, *current_holder(), self._config.lease),
                index_of(claim.run_id),
            ),
        )

    def _beat(self) -> list[Claim]:
        link, claims = self._connected(), list(self._claims.values())
        seen, _ = self._begin_on(link, (_SEEN, self._named(claims)), ("COMMIT", ()), lightly=True)
        alive = {execution for (execution,) in seen}
        return [claim for claim in claims if claim.execution not in alive]

    def discard_old(
        self, run_ids: Sequence[str], until: float, statuses: Collection[RunStatus]
    ) -> int:
        ids = [index_of(run_id) for run_id in run_ids]  # which nobody claims meanwhile
        self._sql.execute(
            "SELECT FROM claims WHERE run_id = ANY(?) ORDER BY run_id FOR UPDATE", (ids,)
        )
        return super().discard_old(run_ids, until, statuses)

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
        if places or forms:
            self._begin_on(self._sql, lightly=True)
            for place in sorted(places):  # in one order, so that nobody waits for each other
                self._place(place)
            for form in sorted(forms):
                self._form(form)
            self._sql.commit()

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


# -- keys and claims as columns --------------------------------------------------------------------

_LONGEST = 1 << 63
_LONG = 1000  # bytes of a key that are too many for an index


def column_of(key: Key) -> str:
    """Return a key as text: what Postgres has no text for, and integers, are ``#`` and JSON."""
    if isinstance(key, int):
        number = int(key)
        return f"#{number}" if -_LONGEST <= number < _LONGEST else f"#{number:#x}"
    text = str.__str__(key)
    return text if _is_clean(text) else f"#{json.dumps(text)}"


def _is_clean(text: str) -> bool:
    if text[:1] == "#" or "\0" in text:
        return False
    with suppress(UnicodeEncodeError):  # half a surrogate pair
        return text.isascii() or bool(text.encode())
    return False


def key_of(column: str) -> Key:
    if column[:1] != "#":
        return column
    return json.loads(column[1:]) if column[1] == '"' else int(column[1:], 0)


def columns_of(key: Key) -> tuple[str, str | None]:
    """Return what a key is found by, and the whole of it where that is too long for an index."""
    text = column_of(key)
    if 4 * len(text) <= _LONG or len(text.encode()) <= _LONG:
        return text, None
    return f"#sha256:{sha256(text.encode()).hexdigest()}", text


def index_of(key: Key) -> str:
    return columns_of(key)[0]


def _now(sql: Connection) -> float:
    return sql.execute(f"SELECT {_NOW}").fetchone()[0]


def _held_of(row: Sequence[Any]) -> Held:
    epoch, execution, host, boot, pid, started, left = row
    return Held(epoch, execution, Holder(host, boot, pid, started), left)


POSTGRES = Dialect(
    key="coalesce(long_key, runs.key)",
    key_columns=("key", "long_key"),
    columns_of=columns_of,
    column_of=column_of,
    key_of=key_of,
    # a server that was away, and everybody with it, gives all a lease to come back
    held=f"epoch, execution, claims.host, boot, pid, started, lease - {_NOW} + "
    "greatest(seen_at, extract(epoch FROM pg_postmaster_start_time())::float8)",
    held_of=_held_of,
    now=_now,
)
