"""The map with Burr: ``MapStates``, with and without its SQLite persisters.

It is used as Burr's documentation advises: each element is a sub-application of one action, and the
parent's persister loads its saved state and saves it again after the action. Three things differ
from the usual program, to Burr's advantage or because of its limits:

- A child's state is only its element. With ``state.update(n=n)``, as in Burr's examples, each
  child would save all elements again.
- Burr has no limit on concurrent children, so their tasks wait for a semaphore here.
- Results are applied all at once at the end, and not saved in between.
"""

# pyright: basic, reportMissingImports=false
# (Only `nox -s bench` installs it, and much of it has no types.)

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Any

import aiosqlite
from burr.core import ApplicationBuilder, State, action
from burr.core.parallelism import MapStates, SubGraphTask
from burr.core.persistence import SQLitePersister
from burr.integrations.persisters.b_aiosqlite import AsyncSQLitePersister

from benchmarks.compare.by_hand import body, looped
from benchmarks.compare.workloads import Job, Program

logging.getLogger("burr.core.parallelism").setLevel(logging.ERROR)
# It warns for each child that a persister isn't asynchronous.


@action(reads=["n"], writes=["double"])
async def double(state: State) -> State:
    return state.update(double=await body(state["n"]))


class Doubles(MapStates):
    """Maps ``double`` over numbers, some in flight at a time."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.semaphore = asyncio.Semaphore(limit)

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
async def tuned(job: Job) -> AsyncGenerator[Any]:
    async with aiosqlite.connect(job.folder / "runs.db") as connection:
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = full")
        persister = AsyncSQLitePersister(connection)
        await persister.initialize()
        yield persister


@asynccontextmanager
async def as_it_comes(job: Job) -> AsyncGenerator[Any]:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection for each child
    with SQLitePersister.from_values(str(job.folder / "runs.db")) as persister:
        persister.initialize()
        yield persister


def durable(opened: Any) -> Program:
    async def main(job: Job) -> Any:
        async with opened(job) as persister:
            builder = (
                ApplicationBuilder()
                .with_actions(doubles=Doubles(job.limit))
                .initialize_from(
                    persister,
                    resume_at_next_action=True,
                    default_state={"numbers": list(range(job.items))},
                    default_entrypoint="doubles",
                )
                .with_state_persister(persister)
                .with_identifiers(app_id="x", partition_key="")
            )
            application = await builder.abuild() if persister.is_async() else builder.build()
            _, _, state = await application.arun(halt_after=["doubles"])
            return state["doubles"]

    return looped(main)


def durable_runs(opened: Any) -> Program:
    """Applications of one action, each with an id of its own, saved by one persister."""

    async def main(job: Job) -> int:
        done = 0
        async with opened(job) as persister:
            for n in range(job.items):
                builder = (
                    ApplicationBuilder()
                    .with_actions(double=double)
                    .with_state(n=n)
                    .with_entrypoint("double")
                    .with_state_persister(persister)
                    .with_identifiers(app_id=str(n), partition_key="")
                )
                application = await builder.abuild() if persister.is_async() else builder.build()
                _, _, state = await application.arun(halt_after=["double"])
                done += state["double"] == 2 * n
        return done

    return looped(main)


async def mapped(job: Job) -> Any:
    application = (
        ApplicationBuilder()
        .with_actions(doubles=Doubles(job.limit))
        .with_state(numbers=list(range(job.items)))
        .with_entrypoint("doubles")
        .build()
    )
    _, _, state = await application.arun(halt_after=["doubles"])
    return state["doubles"]


def contenders(backend: str) -> dict[str, dict[str, Program]]:
    if backend != "asyncio":
        return {}
    return {
        "burr": {
            "map": looped(mapped),
            "durable": durable(tuned),
            "durable-run": durable_runs(tuned),
        },
        "plain": {"durable": durable(as_it_comes), "durable-run": durable_runs(as_it_comes)},
    }
