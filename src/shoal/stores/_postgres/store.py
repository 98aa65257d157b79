"""``PostgresStore``: runs in a PostgreSQL database. Imports what such stores have in common.

What the tables look like is in ``_postgres_schema``; how its threads have them, in
``_postgres_database``; the connection, and what goes wrong with it, in ``_postgres_server``.
"""

from __future__ import annotations

from typing import final

from anyio import from_thread

from shoal._errors.arguments import is_positive
from shoal._errors.exceptions import DefinitionError
from shoal.stores._codec.codec import Codec
from shoal.stores._sql.dialect import Connection
from shoal.stores._sql.sizes import MAX_UPDATE
from shoal.stores._sql.store import LEASE, WINDOW, Durability, DurableStore

from .database import PostgresDatabase, connect
from .keys import POSTGRES
from .server import Link, PostgresFaults, server_at

PATIENCE = 20.0
"""Seconds that a save waits for a server that isn't there."""


@final
class PostgresStore(DurableStore):
    """Keeps runs in a PostgreSQL database, for any number of processes on any number of machines.

    Needs the extra ``postgres``, and psycopg's own ``psycopg[binary]`` where the system has no
    libpq. All that ``SQLiteStore`` says of durability, claims and leases holds here too; a lease is
    measured by the server's clock.

    The tables are in a schema of their own, which is made when a run is first claimed. They are
    documented (docs/store-layout.md), and other programs may read them at any time.

    Where the connection is lost, the server is started anew, or another one takes over, saves wait
    and are then made, each once: after a connection that was lost in the middle of a commit, the
    server is asked whether it was made. After ``patience`` seconds the execution ends at its last
    saved state, with ``StoreFailed``; or with ``CommitInDoubt``, if that is not known. A server
    that takes over and lacks what was acknowledged is noticed: then the execution ends, too.

    One connection writes, for all runs of the process; each thread that reads has one. They are
    open while runs are claimed; a service keeps them open for as long as it lives: ``async with
    PostgresStore(...) as store``. Nothing of them is kept between transactions, so there may be a
    pooler in between. An update is on the server's disk when it is acknowledged, if the server is
    set up so: its ``synchronous_commit`` decides, which an address can set, too
    (``"... options='-c synchronous_commit=remote_apply'"``).

    Examples:
        >>> from shoal import Application, PostgresStore, action
        >>> @action(reads=["n"], writes=["square"])
        ... async def square(n: int) -> int:
        ...     return n * n
        >>> store = PostgresStore("postgresql://user:secret@localhost/runs")
        >>> app = Application(square, store=store)
        >>> store
        <PostgresStore 'postgresql://localhost/runs', schema 'shoal', 0 runs claimed>
        >>> app.run_sync({"n": 3}, id="three")  # doctest: +SKIP
    """

    _abandons_readers = True

    def __init__(
        self,
        address: str,
        *,
        schema: str = "shoal",
        codec: Codec | None = None,
        durability: Durability = "sync",
        window: float = WINDOW,
        lease: float = LEASE,
        heartbeat: float | None = None,
        patience: float = PATIENCE,
        max_update: int = MAX_UPDATE,
    ) -> None:
        """Describe it; nothing is connected yet, and no table made.

        Args:
            address: Of the database: ``"postgresql://user@host/database"`` or ``"host=..."``, as
                libpq understands them; what it doesn't say is taken from ``PGHOST`` and the others.
            schema: Where the tables are; nothing else may be there.
            codec: Knows the types of values; by default, those that any ``Codec`` knows.
            durability: How much a crash of this process may take away.
            window: Seconds of saves that it may, with ``durability="relaxed"``.
            lease: Seconds for which a run stays claimed without a sign of life.
            heartbeat: Seconds between signs of life; by default a third of the lease.
            patience: Seconds that a save or a question waits while the server isn't there. An
                answer is waited for half as long. Let it be less than the commit deadline of the
                runtime.
            max_update: Bytes that one update may have. Above 1 MB there is a warning, once.

        Raises:
            DefinitionError: An argument is none of these.
            ImportError: psycopg or msgspec isn't installed.
        """
        if not schema or "\0" in schema or schema.startswith("pg_"):
            msg = f"PostgresStore(schema=...) takes the name of a schema, not {schema!r}"
            raise DefinitionError(msg)
        timeout = patience / 2 if is_positive(patience) else 1.0
        self._server = server_at(address, schema, timeout)
        super().__init__(
            POSTGRES,
            PostgresFaults(self._server, patience),
            codec=codec,
            durability=durability,
            window=window,
            lease=lease,
            heartbeat=heartbeat,
            patience=patience,
            max_update=max_update,
        )

    def __repr__(self) -> str:
        where = f"{self._server.label!r}, schema {self._server.schema!r}"
        return f"<PostgresStore {where}, {len(self._claims)} runs claimed>"

    @property
    def _name(self) -> str:
        return self._server.schema

    def _database(self) -> PostgresDatabase:
        return PostgresDatabase(self._config, self._server, self._take_readers)

    def _connect(self) -> Link | None:
        return connect(self._server, makes=False, check=from_thread.check_cancelled)

    def _begin(self, connection: Connection) -> None:
        assert isinstance(connection, Link), "it is one of ours"
        connection.begin(how="ISOLATION LEVEL REPEATABLE READ READ ONLY")
