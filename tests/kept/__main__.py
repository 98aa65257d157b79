"""Write the runs of ``programs`` as they are when each has failed or halted once.

Run by hand, with the version whose files are to be kept: ``python -m tests.kept FOLDER``. It writes
a file of SQLite's and a schema of PostgreSQL's as SQL, and what a resume by the same version
executes, which is what later versions must execute; and the digests and pickles of ``data``.
Tracebacks are part of what is stored, and of digests, so run it from a copy whose path may be told:
a folder with ``shoal`` and ``tests`` in it.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing, suppress
from pathlib import Path

import anyio

from shoal import PostgresStore, SQLiteStore
from tests.kept.data import kept
from tests.kept.programs import ANSWERS, ENDS, World, programs, resumed
from tests.stores.postgres import private_server
from tests.stores.postgres import programs as postgres_programs

NOBODY = "UPDATE claims SET host = 'host', boot = 'boot', pid = 1, started = '1'"
"""Takes what says which machine has written the runs."""


async def interrupt(store: SQLiteStore | PostgresStore) -> None:
    for name, (app, state) in programs(World(fails=True), store).items():
        with suppress(*ENDS):
            await app.run(state, id=name)


async def resume(store: SQLiteStore) -> dict[str, dict[str, int]]:
    return {
        name: (await resumed(name, store, ANSWERS.get(name)))[0]
        for name in programs(World(), store)
    }


def write_sqlite(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        file, copy = Path(temporary) / "runs.db", Path(temporary) / "copy.db"
        anyio.run(interrupt, SQLiteStore(file))
        shutil.copy(file, copy)
        with closing(sqlite3.connect(file)) as connection:
            connection.execute(NOBODY)
            (layout,) = connection.execute("PRAGMA user_version").fetchone()
            dump = "\n".join(connection.iterdump())
        head = f"PRAGMA application_id = 0x73686f61;\nPRAGMA user_version = {layout};\n"
        (folder / f"sqlite-{layout}.sql").write_text(f"{head}{dump}\n")
        executed = anyio.run(resume, SQLiteStore(copy))
    (folder / f"sqlite-{layout}.json").write_text(json.dumps(executed, indent=2) + "\n")


def write_postgres(folder: Path) -> None:
    bin_ = postgres_programs()
    assert bin_ is not None
    with private_server(bin_, {}) as server:
        anyio.run(interrupt, PostgresStore(server.address(), schema="kept"))
        server.execute(NOBODY.replace("claims", "kept.claims"))
        ((layout,),) = server.execute("SELECT version FROM kept.layout")
        dump = subprocess.run(
            [str(bin_ / "pg_dump"), "--inserts", "--no-owner", "-n", "kept", server.address()],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    # Lines that begin with a backslash are psql's own; the comments are of one version of pg_dump.
    lines = [line for line in dump.splitlines() if line and not line.startswith(("\\", "--"))]
    (folder / f"postgres-{layout}.sql").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    (Path(sys.argv[1]) / "data.json").write_text(json.dumps(kept(), indent=2) + "\n")
    write_sqlite(Path(sys.argv[1]))
    write_postgres(Path(sys.argv[1]))
