"""Lay out and open the file of an ``SQLiteStore``.

docs/store-layout.md describes the layout for those that query it.

Invariants:
- A file that is not a shoal store, is damaged, or was written by a newer version is refused, and
  nothing is written to it.
- A file of an older version is migrated by one step for each version, all in one transaction. Steps
  are never changed, only added.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, final

from shoal._errors.exceptions import StoreFailed

Synchronous = Literal["full", "normal"]

APPLICATION_ID = 0x73686F61
"""Marks a file as a shoal store: "shoa"."""

MIGRATIONS = (
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        parent INTEGER NOT NULL,
        place INTEGER NOT NULL,
        key NOT NULL,
        position INTEGER,
        status TEXT,
        applied INTEGER,
        used INTEGER,
        attempts INTEGER,
        elapsed REAL,
        abandoned INTEGER,
        crashes INTEGER,
        digest TEXT,
        form INTEGER,
        element TEXT,
        value TEXT,
        change TEXT,
        own TEXT,
        error TEXT,
        reason TEXT,
        winner_act TEXT,
        winner_key
    );
    CREATE UNIQUE INDEX runs_by_key ON runs (parent, place, key);
    CREATE INDEX runs_by_status ON runs (parent, status, applied);
    CREATE TABLE places (
        id INTEGER PRIMARY KEY, step TEXT NOT NULL, visit INTEGER NOT NULL, act TEXT NOT NULL,
        UNIQUE (step, visit, act)
    );
    CREATE TABLE forms (id INTEGER PRIMARY KEY, form TEXT NOT NULL UNIQUE);
    CREATE TABLE roots (
        run INTEGER PRIMARY KEY,
        application TEXT NOT NULL,
        version TEXT NOT NULL,
        began_at REAL NOT NULL,
        ended_at REAL,
        first TEXT NOT NULL,
        after TEXT,
        visits TEXT NOT NULL,
        forked_from TEXT,
        forked_at INTEGER
    );
    CREATE TABLE history (
        id INTEGER PRIMARY KEY,
        run INTEGER NOT NULL,
        number INTEGER NOT NULL,
        kind TEXT NOT NULL,
        step TEXT NOT NULL,
        data TEXT NOT NULL
    );
    CREATE INDEX history_by_number ON history (run, number);
    CREATE TABLE claims (
        run_id TEXT PRIMARY KEY,
        epoch INTEGER NOT NULL,
        execution TEXT,
        host TEXT NOT NULL,
        boot TEXT NOT NULL,
        pid INTEGER NOT NULL,
        started TEXT NOT NULL,
        lease REAL NOT NULL,
        seen_at REAL NOT NULL,
        seen_uptime REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE VIEW root_runs AS
        SELECT runs.id, runs.key AS run_id, application, version,
            coalesce(status, 'running') AS status, reason, began_at, ended_at, first,
            forked_from, forked_at
        FROM runs JOIN roots ON roots.run = runs.id;
    CREATE VIEW child_runs AS
        SELECT runs.id, parent, step, visit, act, key, position,
            coalesce(status, 'running') AS status, element, value,
            error ->> '@type' AS error_type, error ->> 'text' AS error_text, error, reason,
            applied, used, attempts, elapsed, abandoned
        FROM runs JOIN places ON places.id = place WHERE position IS NOT NULL;
    """,
    """
    CREATE TABLE results (key TEXT PRIMARY KEY, ends_at REAL, operations TEXT NOT NULL);
    CREATE INDEX results_by_end ON results (ends_at) WHERE ends_at IS NOT NULL;
    CREATE TABLE deletions (count INTEGER NOT NULL);
    INSERT INTO deletions VALUES (0);
    ALTER TABLE roots ADD COLUMN error TEXT;
    DROP VIEW root_runs;
    CREATE VIEW root_runs AS
        SELECT runs.id, runs.key AS run_id, application, version,
            coalesce(status, 'running') AS status, reason, began_at, ended_at, first,
            forked_from, forked_at, roots.error
        FROM runs JOIN roots ON roots.run = runs.id;
    """,
    "ALTER TABLE roots ADD COLUMN secret TEXT NOT NULL DEFAULT '[]'",
    "DROP TABLE deletions",
    # No table changes, but histories have entries of the kind "begun" from here on. A version of
    # shoal that doesn't know them must refuse the file, and not fail in the middle of a run.
    "SELECT 1",
    # Children that ended in an earlier layout have no time. The row of ``saves`` without a time
    # keeps them from getting that of a later save.
    """
    CREATE TABLE saves (
        run INTEGER NOT NULL, number INTEGER NOT NULL, at REAL, PRIMARY KEY (run, number)
    ) WITHOUT ROWID;
    INSERT INTO saves SELECT parent, max(applied), NULL FROM runs
        WHERE parent > 0 AND applied IS NOT NULL GROUP BY parent;
    CREATE TABLE reports (run INTEGER PRIMARY KEY, at REAL NOT NULL, text TEXT NOT NULL);
    CREATE TABLE commands (
        id INTEGER PRIMARY KEY, run INTEGER NOT NULL, epoch INTEGER NOT NULL, kind TEXT NOT NULL,
        arguments TEXT NOT NULL
    );
    CREATE INDEX commands_by_run ON commands (run);
    ALTER TABLE roots ADD COLUMN spawned_by TEXT;
    ALTER TABLE roots ADD COLUMN spawner TEXT;
    CREATE INDEX roots_by_spawner ON roots (spawner) WHERE spawner IS NOT NULL;
    ALTER TABLE history ADD COLUMN at REAL;
    CREATE INDEX history_questions ON history (run, number) WHERE kind IN ('asked', 'answered');
    ALTER TABLE runs ADD COLUMN ended_at REAL;
    ALTER TABLE runs ADD COLUMN failed_step TEXT;
    CREATE INDEX runs_by_end ON runs (parent, status, ended_at) WHERE ended_at IS NOT NULL;
    DROP VIEW root_runs;
    CREATE VIEW root_runs AS
        SELECT runs.id, runs.key AS run_id, application, version,
            coalesce(status, 'running') AS status, reason, began_at, roots.ended_at, first,
            forked_from, forked_at, roots.error, spawned_by
        FROM runs JOIN roots ON roots.run = runs.id;
    DROP VIEW child_runs;
    CREATE VIEW child_runs AS
        SELECT *, ended_at - elapsed AS began_at FROM (
            SELECT runs.id, parent, step, visit, act, key, position,
                coalesce(status, 'running') AS status, element, value,
                error ->> '@type' AS error_type, error ->> 'text' AS error_text, error, reason,
                applied, used, attempts, elapsed, abandoned, failed_step,
                coalesce(ended_at, (
                    SELECT at FROM saves WHERE run = parent AND number >= applied
                    ORDER BY number LIMIT 1
                )) AS ended_at
            FROM runs JOIN places ON places.id = place WHERE position IS NOT NULL
        );
    """,
    # Histories have entries of the kind "steered" from here on, and questions the schema of their
    # answers, which earlier versions can't read.
    """
    CREATE INDEX history_steered ON history (run, number) WHERE kind = 'steered';
    ALTER TABLE roots ADD COLUMN owner TEXT;
    ALTER TABLE roots ADD COLUMN priority TEXT;
    CREATE INDEX roots_by_owner ON roots (owner, run) WHERE owner IS NOT NULL;
    DROP VIEW root_runs;
    CREATE VIEW root_runs AS
        SELECT runs.id, runs.key AS run_id, application, version,
            coalesce(status, 'running') AS status, reason, began_at, roots.ended_at, first,
            forked_from, forked_at, roots.error, spawned_by, owner, priority
        FROM runs JOIN roots ON roots.run = runs.id;
    """,
)
"""The steps from each version of the layout to the next; the first one creates it."""

VERSION = len(MIGRATIONS)


def log_of(path: Path) -> Path:
    """Return the path of SQLite's log beside a file."""
    return path.with_name(f"{path.name}-wal")


def connect(
    path: Path, *, patience: float, synchronous: Synchronous, reads_only: bool = False
) -> sqlite3.Connection:
    """Open the file; create it if there is none.

    A file that this process may only read is opened, too, if it needs no migration.

    Raises:
        StoreFailed: The file can't be opened, is damaged, is not a shoal store, or was written by a
            newer version.
    """
    if not path.exists():
        _make_aside(path, synchronous)
    try:
        return _opened(path, patience, synchronous, reads_only=reads_only)
    except sqlite3.Error as error:
        if code_of(error) in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            unlocked = _unlocked(path)
            if unlocked is not None:
                return unlocked
        raise SQLiteErrorPolicy(path, patience).explained(error) from error


def _opened(
    path: Path, patience: float, synchronous: Synchronous, *, reads_only: bool
) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=patience, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        if _is_new(connection, path):
            _make(connection)
        _check(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        # 16 MB (a negative number counts KiB) in place of SQLite's 2 MB.
        connection.execute("PRAGMA cache_size = -16000")
        if reads_only:
            connection.execute("PRAGMA query_only = 1")
    except BaseException:
        connection.close()
        raise
    return connection


@final
class Unlocked(sqlite3.Connection):
    """A connection to a file that this process may only read, and that no process has open.

    It takes no locks, because these would be in a file beside it that can't be created. So it is
    used for one transaction, and not kept: another process may begin to write meanwhile.
    """


def _unlocked(path: Path) -> Unlocked | None:
    """Open the file without locks; return None if that fails, or if a process has it open."""
    if log_of(path).exists():
        return None
    try:
        connection = sqlite3.connect(
            f"{path.as_uri()}?immutable=1",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            factory=Unlocked,
        )
    except sqlite3.Error:
        return None
    try:
        _check(connection, path)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):  # a worse one than that of opening it as usual
            return None
        raise
    return connection


def _make_aside(path: Path, synchronous: Synchronous) -> None:
    """Create the file without a name, and link it to its name when it is complete.

    That waits for the disk once or twice; creating the file in its place does so six times. A file
    without a name disappears if the process is killed (see
    test_a_kill_while_a_file_is_made_leaves_nothing_behind). If the system can't do that, or another
    process was faster, the function changes nothing.
    """
    try:
        with ExitStack() as opened:
            folder = os.open(path.parent, os.O_RDONLY)
            opened.callback(os.close, folder)
            unnamed = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)  # less the umask
            with os.fdopen(unnamed, "wb") as file:
                file.write(_image(MIGRATIONS))
                file.flush()
                os.fsync(unnamed)
                # Only with src_dir_fd does Python call linkat(), which follows the symbolic link
                # in /proc to the file.
                os.link(f"/proc/self/fd/{unnamed}", path, src_dir_fd=folder)
            # With "full", SQLite syncs the directory itself when it creates the log beside the
            # file, which is at the first save.
            if synchronous != "full":
                os.fsync(folder)
    except (OSError, sqlite3.Error, AttributeError):
        return  # SQLite then creates the file in its place, and reports what is wrong


@cache
def _image(_: Sequence[str]) -> bytes:
    """Return the content of a new file of this layout. It is made in memory, once per process.

    Raises:
        AttributeError: This SQLite is built without ``serialize``.
    """
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        _make(connection)
        image = bytearray(connection.serialize())
    # Mark it as a file in WAL mode, which databases in memory can't have: see
    # sqlite.org/fileformat.html.
    image[18:20] = b"\2\2"
    return bytes(image)


def _is_new(connection: sqlite3.Connection, path: Path) -> bool:
    """Return whether the file has no content yet."""
    with suppress(FileNotFoundError):  # then the file is new
        if os.stat(path).st_size:  # noqa: PTH116 # blockbuster recognizes os.stat, not Path.stat
            return not _tables(connection) and not _pragma(connection, "application_id")
    return True


def _tables(connection: sqlite3.Connection) -> list[str]:
    found = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
    return [name for (name,) in found]


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    with closing(connection.execute(f"PRAGMA {name}")) as found:
        (value,) = found.fetchone()
    return int(value)


def _make(connection: sqlite3.Connection) -> None:
    # First, because it only works in an empty file; ``give_back`` needs it.
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        if not _tables(connection):  # another process may have been faster
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            _migrate(connection, 0)


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    for migration in MIGRATIONS[version:]:
        for statement in migration.split(";"):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that is not a shoal store; migrate an old one to this version."""
    if _pragma(connection, "application_id") != APPLICATION_ID:
        tables = ", ".join(_tables(connection)[:5]) or "none"
        msg = (
            f"{path} is a database, but not a shoal store (tables: {tables}); it was left "
            f"unchanged: give SQLiteStore a file of its own"
        )
        raise StoreFailed(msg)
    version = _pragma(connection, "user_version")
    if version > VERSION:
        msg = (
            f"{path} was written by a newer shoal (its layout is {version}, and this one knows "
            f"{VERSION}); it was left unchanged: upgrade shoal, or use another file"
        )
        raise StoreFailed(msg)
    if version < VERSION:
        connection.execute("BEGIN IMMEDIATE")
        try:
            with connection:
                # The version again: another process may have migrated the file before this lock.
                _migrate(connection, _pragma(connection, "user_version"))
        except sqlite3.OperationalError as error:
            if code_of(error) != sqlite3.SQLITE_READONLY:
                raise
            msg = (
                f"{path} has the layout {version} of an older shoal, and this process may only "
                f"read it: open it once as a user that may write to it, or read a copy of it"
            )
            raise StoreFailed(msg) from error


@final
class SQLiteErrorPolicy(NamedTuple):
    """Judges the errors of SQLite."""

    path: Path
    patience: float

    @property
    def errors(self) -> type[Exception]:
        return sqlite3.Error

    def may_pass(self, error: Exception) -> bool:
        # A lock is no reason to retry: SQLite itself has waited for it as long as ``patience``.
        return code_of(error) == sqlite3.SQLITE_FULL

    def is_general(self, error: Exception) -> bool:
        return code_of(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)

    def explained(self, error: Exception) -> StoreFailed:
        match code_of(error):
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                why = (
                    f"is locked: another program has been writing to it for {self.patience:g} s "
                    f"(SQLiteStore(patience=...) waits longer)"
                )
            case sqlite3.SQLITE_FULL:
                why = (
                    f"can't grow: the disk is full, and has been for {self.patience:g} s; free "
                    f"some space"
                )
            case sqlite3.SQLITE_NOTADB:
                why = (
                    "is not an SQLite database; it was left unchanged: give SQLiteStore a file of "
                    "its own"
                )
            case sqlite3.SQLITE_CORRUPT:
                why = (
                    f"is damaged ({error}); it was left unchanged: restore a backup, or save the "
                    f"readable part with `sqlite3 FILE .recover`"
                )
            case sqlite3.SQLITE_CANTOPEN:
                why = "can't be opened: does its directory exist, and may this process write there?"
            case sqlite3.SQLITE_READONLY:
                why = "can't be written to: this process may only read it"
            case _:
                name = getattr(error, "sqlite_errorname", type(error).__name__)
                why = f"could not be used: {error} ({name})"
        return StoreFailed(f"{self.path} {why}")


def code_of(error: Exception) -> int:
    """Return the primary code of an SQLite error, without the bits of its extended code."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF
