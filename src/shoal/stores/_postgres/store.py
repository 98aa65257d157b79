"""``PostgresStore``: keep runs in a PostgreSQL database."""

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
from .server import PostgresConnection, PostgresErrorPolicy, server_at

PATIENCE = 20.0
"""Seconds that a save waits for an unreachable server: enough for a restart."""


@final
class PostgresStore(DurableStore):
    """Keeps runs in a PostgreSQL database, for any number of processes on any number of machines.

    Needs the extra ``postgres``, and psycopg's own ``psycopg[binary]`` where the system has no
    libpq. The documentation of durability, claims and leases at ``SQLiteStore`` holds here, too; a
    lease is measured by the server's clock.

    The tables are in a schema of their own, which is created when a run is first claimed. They are
    documented (docs/store-layout.md), and other programs may read them at any time.

    If the connection is lost, the server restarts or another one takes over, saves wait and are
    then made exactly once: if the connection was lost during a commit, the store asks the server
    whether it was made. After ``patience`` seconds the execution ends at its last saved state with
    ``StoreFailed``, or with ``CommitInDoubt`` if that state is not known. The execution ends, too,
    if another server has taken over and lacks acknowledged saves.

    One connection writes for all runs of the process, and each reading thread has one. They are
    open while runs are claimed; a service keeps them open for as long as it lives: ``async with
    PostgresStore(...) as store``. A connection keeps nothing between transactions, so poolers may
    be in between. An acknowledged save is on the server's disk if the server's setting
    ``synchronous_commit`` says so. An address can change that setting:
    ``"... options='-c synchronous_commit=remote_apply'"``.

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
        """Create a store for a database. No connection is opened and no table created yet.

        Args:
            address: The database: ``"postgresql://user@host/database"`` or ``"host=..."``, as libpq
                understands them. Missing parts come from ``PGHOST`` and libpq's other variables.
            schema: The schema of the tables, which must contain nothing else.
            codec: Encodes the values; by default a ``Codec`` without registered types.
            durability: How much a crash of this process may lose.
            window: The seconds of saves that a crash may lose with ``durability="relaxed"``.
            lease: Seconds for which a run stays claimed without a sign of life.
            heartbeat: Seconds between signs of life; by default a third of the lease.
            patience: Seconds that a save or a query waits while the server is unreachable. A single
                answer may take half of that. Choose less than the commit deadline of the runtime.
            max_update: The most bytes of one update. The first one above 1 MB causes a warning.

        Raises:
            DefinitionError: An argument has another type or value.
            ImportError: psycopg or msgspec isn't installed.
        """
        if not schema or "\0" in schema or schema.startswith("pg_"):
            msg = f"PostgresStore(schema=...) takes the name of a schema, not {schema!r}"
            raise DefinitionError(msg)
        timeout = patience / 2 if is_positive(patience) else 1.0
        self._server = server_at(address, schema, timeout)
        super().__init__(
            POSTGRES,
            PostgresErrorPolicy(self._server, patience),
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

    def _connect(self) -> PostgresConnection | None:
        return connect(self._server, makes=False, check=from_thread.check_cancelled)

    async def mark(self) -> object:
        """Return a value that differs if anything was saved in between; see ``Inspects``.

        It is the set of transactions whose changes are visible, in the whole server.
        """
        sql = "SELECT pg_current_snapshot()::text"
        return await self._read(lambda reader: reader.sql.execute(sql).fetchone())

    def _begin(self, connection: Connection) -> None:
        assert isinstance(connection, PostgresConnection), "_connect has made it"
        connection.begin(how="ISOLATION LEVEL REPEATABLE READ READ ONLY")
