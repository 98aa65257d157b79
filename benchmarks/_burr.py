"""The durable map with Burr and its two SQLite persisters: ``python -m benchmarks.durable``.

It uses ``MapStates``, as Burr's documentation advises: each element is a sub-application of one
action, and the parent's persister loads its saved state and saves it again after the action. Three
things differ from the usual program, to Burr's advantage or because of its limits:

- A child's state is only its element. With ``state.update(n=n)``, as in Burr's examples, each
  child would save all elements again.
- Burr has no limit on concurrent children, so their tasks wait for a semaphore here.
- Results are applied all at once at the end, and not saved in between.

``SQLitePersister`` is measured twice. *As it comes*, it has a connection for each child, opened
before the first one begins, and a rollback journal. *Tuned*, as users could do with a custom class,
it has one connection for all children, in WAL mode.
"""

# pyright: basic, reportMissingImports=false
# (Only `nox -s bench` installs it, and much of it has no types.)

from __future__ import annotations

import asyncio
import logging
import resource
import sqlite3
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiosqlite
import anyio
from anyio.lowlevel import checkpoint
from burr.core import ApplicationBuilder, State, action
from burr.core.parallelism import MapStates, SubGraphTask
from burr.core.persistence import SQLitePersister
from burr.integrations.persisters.b_aiosqlite import AsyncSQLitePersister

from benchmarks.map import LIMIT

logging.getLogger("burr.core.parallelism").setLevel(logging.ERROR)
# It warns for each child that a persister isn't asynchronous.

Program = Callable[[Path, int], object]


def programs(synchronous: str) -> dict[str, Program]:
    """Return the maps over some items, each into a file, by their persister."""
    return {
        f"Burr, AsyncSQLitePersister, {synchronous}": _program(_asynchronous, synchronous),
        f"Burr, SQLitePersister, tuned, {synchronous}": _program(_tuned, synchronous),
        f"Burr, SQLitePersister as it comes, {synchronous}": _program(_as_it_comes, synchronous),
    }


@action(reads=["n"], writes=["double"])
async def double(state: State) -> State:
    await checkpoint()
    return state.update(double=2 * state["n"])


class Doubles(MapStates):
    """Maps ``double`` over numbers, some in flight at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.semaphore = asyncio.Semaphore(LIMIT)

    def is_async(self) -> bool:
        return True

    def action(self, state: State, inputs: dict[str, Any]) -> Any:
        return double

    async def tasks(self, *given: Any) -> AsyncGenerator[SubGraphTask]:
        tasks: Any = super().tasks(*given)  # Burr declares it as synchronous
        async for task in tasks:
            limited = Limited(**vars(task))
            limited.semaphore = self.semaphore
            yield limited

    @property
    def reads(self) -> list[str]:
        return ["numbers"]

    @property
    def writes(self) -> list[str]:
        return ["doubles"]

    def states(self, state: State, context: Any, inputs: Any) -> Generator[State]:
        for n in state["numbers"]:
            yield State({"n": n})

    async def reduce(self, state: State, states: AsyncGenerator[State]) -> State:
        return state.update(doubles={one["n"]: one["double"] async for one in states})


class Limited(SubGraphTask):
    """A child, which counts as in flight from its start until it is saved."""

    semaphore: asyncio.Semaphore

    async def arun(self, parent_context: Any) -> State:
        async with self.semaphore:
            return await super().arun(parent_context)


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
                .with_actions(doubles=Doubles())
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
