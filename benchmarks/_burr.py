"""The durable map with Burr and its two SQLite persisters: ``python -m benchmarks.durable``.

The program is that of ``benchmarks.compare.with_burr``, which says where it differs from the usual
one.

``SQLitePersister`` is measured twice. *As it comes*, it has a connection for each child, opened
before the first one begins, and a rollback journal. *Tuned*, as users could do with a custom class,
it has one connection for all children, in WAL mode.
"""

# pyright: basic, reportMissingImports=false
# (Only `nox -s bench` installs it, and much of it has no types.)

from __future__ import annotations

import resource
import sqlite3
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiosqlite
import anyio
from burr.core import ApplicationBuilder
from burr.core.persistence import SQLitePersister
from burr.integrations.persisters.b_aiosqlite import AsyncSQLitePersister

from benchmarks.compare.with_burr import Doubles
from benchmarks.map import LIMIT

Program = Callable[[Path, int], object]


def programs(synchronous: str) -> dict[str, Program]:
    """Return the maps over some items, each into a file, by their persister."""
    return {
        f"Burr, AsyncSQLitePersister, {synchronous}": _program(_asynchronous, synchronous),
        f"Burr, SQLitePersister, tuned, {synchronous}": _program(_tuned, synchronous),
        f"Burr, SQLitePersister as it comes, {synchronous}": _program(_as_it_comes, synchronous),
    }


@asynccontextmanager
async def _asynchronous(path: Path, synchronous: str) -> AsyncGenerator[Any]:
    async with aiosqlite.connect(path) as connection:
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute(f"PRAGMA synchronous = {synchronous}")
        persister = AsyncSQLitePersister(connection)
        await persister.initialize()
        yield persister


@asynccontextmanager
async def _tuned(path: Path, synchronous: str) -> AsyncGenerator[Any]:
    class Persister(SQLitePersister):
        def copy(self) -> Any:
            return self

    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        persister = Persister(str(path), connection=connection)
        persister.initialize()
        yield persister


@asynccontextmanager
async def _as_it_comes(path: Path, synchronous: str) -> AsyncGenerator[Any]:
    assert synchronous == "full", "which is what SQLite does by itself"
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # open files
    with SQLitePersister.from_values(str(path)) as persister:
        persister.initialize()
        yield persister


def _program(opened: Callable[[Path, str], Any], synchronous: str) -> Program:
    async def main(path: Path, items: int) -> None:
        async with opened(path, synchronous) as persister:
            builder = (
                ApplicationBuilder()
                .with_actions(doubles=Doubles(LIMIT))
                .initialize_from(
                    persister,
                    resume_at_next_action=True,
                    default_state={"numbers": list(range(items))},
                    default_entrypoint="doubles",
                )
                .with_state_persister(persister)
                .with_identifiers(app_id=f"map over {items}", partition_key="")
            )
            application = await builder.abuild() if persister.is_async() else builder.build()
            _, _, state = await application.arun(halt_after=["doubles"])
            assert len(state["doubles"]) == items

    return lambda path, items: anyio.run(main, path, items)
