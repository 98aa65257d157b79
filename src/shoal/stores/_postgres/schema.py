"""Create and migrate the tables of a ``PostgresStore``.

docs/store-layout.md describes the layout for those that query it.

Invariants:
- A schema that has other tables in it, or that was made by a newer version, is refused, and nothing
  is written to it.
- A schema of an older version is migrated by one step for each version, all in one transaction and
  by one process at a time. Steps are never changed, only added.
"""

from __future__ import annotations

from math import ceil

from shoal._errors.exceptions import StoreFailed

from .server import PostgresConnection, Server

MIGRATIONS = (
    """
    CREATE TABLE layout (version integer NOT NULL);
    INSERT INTO layout VALUES (0);
    CREATE TABLE runs (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        parent bigint NOT NULL,
        position bigint,
        applied bigint,
        elapsed double precision,
        place integer NOT NULL,
        form integer,
        attempts integer,
        crashes integer,
        used smallint,
        abandoned smallint,
        key text COLLATE "C" NOT NULL,
        status text COLLATE "C",
        digest text COLLATE "C",
        element json,
        value json,
        change json,
        own json,
        error json,
        reason text,
        winner_act text,
        winner_key text,
        long_key text
    );
    CREATE UNIQUE INDEX runs_by_key ON runs (parent, place, key);
    CREATE INDEX runs_by_status ON runs (parent, status, applied NULLS FIRST);
    CREATE TABLE places (
        id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        step text COLLATE "C" NOT NULL, visit bigint NOT NULL, act text COLLATE "C" NOT NULL,
        UNIQUE (step, visit, act)
    );
    CREATE TABLE forms (
        id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, form text COLLATE "C" NOT NULL UNIQUE
    );
    CREATE TABLE roots (
        run bigint PRIMARY KEY,
        application text NOT NULL,
        version text NOT NULL,
        began_at double precision NOT NULL,
        ended_at double precision,
        first json NOT NULL,
        after text,
        visits json NOT NULL,
        forked_from text,
        forked_at bigint,
        error text
    );
    CREATE TABLE history (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        run bigint NOT NULL,
        number bigint NOT NULL,
        kind text COLLATE "C" NOT NULL,
        step text NOT NULL,
        data json NOT NULL
    );
    CREATE INDEX history_by_number ON history (run, number);
    CREATE TABLE claims (
        run_id text COLLATE "C" PRIMARY KEY,
        epoch bigint NOT NULL,
        saves bigint NOT NULL,
        execution text,
        host text NOT NULL,
        boot text NOT NULL,
        pid bigint NOT NULL,
        started text NOT NULL,
        lease double precision NOT NULL,
        seen_at double precision NOT NULL
    ) WITH (fillfactor = 50);
    CREATE TABLE results (
        key text COLLATE "C" PRIMARY KEY, ends_at double precision, operations json NOT NULL
    );
    CREATE INDEX results_by_end ON results (ends_at) WHERE ends_at IS NOT NULL;
    CREATE TABLE deletions (count bigint NOT NULL);
    INSERT INTO deletions VALUES (0);
    CREATE VIEW root_runs AS
        SELECT runs.id, coalesce(long_key, key) AS run_id, application, version,
            coalesce(status, 'running') AS status, reason,
            to_timestamp(began_at) AS began_at, to_timestamp(ended_at) AS ended_at,
            first, forked_from, forked_at, roots.error
        FROM runs JOIN roots ON roots.run = runs.id;
    CREATE VIEW child_runs AS
        SELECT runs.id, parent, step, visit, act, coalesce(long_key, key) AS key, position,
            coalesce(status, 'running') AS status, element, value,
            error ->> '@type' AS error_type, error ->> 'text' AS error_text, error, reason,
            applied, used, attempts, elapsed, abandoned
        FROM runs JOIN places ON places.id = place WHERE position IS NOT NULL;
    """,
    "ALTER TABLE roots ADD COLUMN secret text NOT NULL DEFAULT '[]'",
    "DROP TABLE deletions",
    # No table changes, but histories have entries of the kind "begun" from here on. A version of
    # shoal that doesn't know them must refuse the file, and not fail in the middle of a run.
    "SELECT 1",
    # Children that ended in an earlier layout have no time. The row of ``saves`` without a time
    # keeps them from getting that of a later save.
    """
    CREATE TABLE saves (run bigint NOT NULL, number bigint NOT NULL, at double precision);
    INSERT INTO saves SELECT parent, max(applied), NULL FROM runs
        WHERE parent > 0 AND applied IS NOT NULL GROUP BY parent;
    CREATE INDEX saves_by_number ON saves (run, number);
    CREATE TABLE reports (run bigint PRIMARY KEY, at double precision NOT NULL, text text NOT NULL)
        WITH (fillfactor = 50);
    CREATE TABLE commands (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, run bigint NOT NULL,
        epoch bigint NOT NULL, kind text COLLATE "C" NOT NULL, arguments json NOT NULL
    );
    CREATE INDEX commands_by_run ON commands (run);
    ALTER TABLE roots ADD COLUMN spawned_by json, ADD COLUMN spawner text COLLATE "C";
    CREATE INDEX roots_by_spawner ON roots (spawner) WHERE spawner IS NOT NULL;
    ALTER TABLE history ADD COLUMN at double precision;
    CREATE INDEX history_questions ON history (run, number) WHERE kind IN ('asked', 'answered');
    ALTER TABLE runs ADD COLUMN ended_at double precision, ADD COLUMN failed_step text;
    CREATE INDEX runs_by_end ON runs (parent, status, ended_at) WHERE ended_at IS NOT NULL;
    DROP VIEW root_runs;
    CREATE VIEW root_runs AS
        SELECT runs.id, coalesce(long_key, key) AS run_id, application, version,
            coalesce(status, 'running') AS status, reason,
            to_timestamp(began_at) AS began_at, to_timestamp(roots.ended_at) AS ended_at,
            first, forked_from, forked_at, roots.error, spawned_by
        FROM runs JOIN roots ON roots.run = runs.id;
    DROP VIEW child_runs;
    CREATE VIEW child_runs AS
        SELECT ended.*, ended_at - elapsed * interval '1 second' AS began_at FROM (
            SELECT runs.id, parent, step, visit, act, coalesce(long_key, key) AS key, position,
                coalesce(status, 'running') AS status, element, value,
                error ->> '@type' AS error_type, error ->> 'text' AS error_text, error, reason,
                applied, used, attempts, elapsed, abandoned, failed_step,
                to_timestamp(coalesce(ended_at, (
                    SELECT at FROM saves WHERE run = parent AND number >= applied
                    ORDER BY number LIMIT 1
                ))) AS ended_at
            FROM runs JOIN places ON places.id = place WHERE position IS NOT NULL
        ) AS ended;
    """,
    # Histories have entries of the kind "steered" from here on, and questions the schema of their
    # answers, which earlier versions can't read.
    """
    CREATE INDEX history_steered ON history (run, number) WHERE kind = 'steered';
    ALTER TABLE roots ADD COLUMN owner text COLLATE "C";
    ALTER TABLE roots ADD COLUMN priority text;
    CREATE INDEX roots_by_owner ON roots (owner, run) WHERE owner IS NOT NULL;
    DROP VIEW root_runs;
    CREATE VIEW root_runs AS
        SELECT runs.id, coalesce(long_key, key) AS run_id, application, version,
            coalesce(status, 'running') AS status, reason,
            to_timestamp(began_at) AS began_at, to_timestamp(roots.ended_at) AS ended_at,
            first, forked_from, forked_at, roots.error, spawned_by, owner, priority
        FROM runs JOIN roots ON roots.run = runs.id;
    """,
)
"""The steps from each version of the layout to the next; the first one creates it."""

VERSION = len(MIGRATIONS)

MAKING = 60.0
"""Seconds that the server may take for each step of that. It creates a hundred files, and another
process may be doing the same: that takes longer than a save, and happens once."""

_MAKING = 0x73686F61
"""The number of the lock for which all processes wait that create or migrate a schema: "shoa"."""


def has_tables(connection: PostgresConnection, server: Server) -> bool:
    """Return whether the tables exist in this version.

    Raises:
        StoreFailed: The schema was made by a newer version, or has other tables.
    """
    found = _version(connection, server)
    if found is None:
        tables = _tables(connection, server.schema)
        if not tables:
            return False
        found = _version(connection, server)  # again: another process may just have created them
        if found is None:
            msg = (
                f"the schema {server.schema!r} of {server.label} is not a shoal store (tables: "
                f"{', '.join(tables)}); it was left unchanged: give PostgresStore one of its own"
            )
            raise StoreFailed(msg)
    if found > VERSION:
        msg = (
            f"the schema {server.schema!r} of {server.label} was made by a newer shoal (its layout "
            f"is {found}, and this one knows {VERSION}); it was left unchanged: upgrade shoal, or "
            f"use another schema"
        )
        raise StoreFailed(msg)
    return found == VERSION


def has_older_tables(connection: PostgresConnection, server: Server) -> bool:
    """Return whether the tables exist, although not in this version."""
    return _version(connection, server) is not None


def make_tables(connection: PostgresConnection, server: Server) -> None:
    """Create or migrate the tables, unless another process has done so meanwhile.

    Raises:
        StoreFailed: The database has another encoding than UTF-8.
    """
    connection.timeout = max(MAKING, server.timeout)
    # With a timeout, so that a process that stops halfway doesn't block all others forever.
    connection.begin(
        settings={"idle_in_transaction_session_timeout": ceil(connection.timeout * 1000)}
    )
    connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended(?, ?))", (server.schema, _MAKING)
    )
    if not has_tables(connection, server):
        version = _version(connection, server) or 0
        (encoding,) = connection.execute("SHOW server_encoding").fetchone() or ("",)
        if encoding != "UTF8":
            msg = (
                f"{server.label} has the encoding {encoding}, which lacks some characters: create "
                f"a database with ENCODING 'UTF8'"
            )
            raise StoreFailed(msg)
        known = connection.execute("SELECT FROM pg_namespace WHERE nspname = ?", (server.schema,))
        if not known.rowcount:  # only then, because the user may lack the permission to create one
            connection.execute(f"CREATE SCHEMA {server.quoted}")
        for migration in MIGRATIONS[version:]:
            connection.execute(migration)
        connection.execute("UPDATE layout SET version = ?", (VERSION,))
    connection.commit()
    connection.timeout = server.timeout


def _version(connection: PostgresConnection, server: Server) -> int | None:
    """Return the version of the layout; None if there are no tables of a store."""
    found = connection.execute(
        "SELECT FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid "
        "JOIN pg_namespace ON pg_namespace.oid = relnamespace "
        "WHERE nspname = ? AND relname = 'layout' AND attname = 'version'",
        (server.schema,),
    )
    if not found.rowcount:
        return None
    (version,) = connection.execute(f"SELECT version FROM {server.quoted}.layout").fetchone() or (
        0,
    )
    return int(version)


def _tables(connection: PostgresConnection, schema: str) -> list[str]:
    found = connection.execute(
        "SELECT relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace "
        "WHERE nspname = ? AND relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY relname LIMIT 5",
        (schema,),
    )
    return [name for (name,) in found]
