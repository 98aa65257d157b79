"""The map with LangGraph: ``Send`` for each element, and for the durable map its SQLite savers."""

# pyright: basic, reportMissingImports=false
# (Only `nox -s bench` installs it.)

from __future__ import annotations

import asyncio
import operator
import sqlite3
import time
from contextlib import closing
from typing import Annotated, Any, TypedDict

import aiosqlite
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from benchmarks.compare.by_hand import body, looped
from benchmarks.compare.workloads import Job, Program


class Numbers(TypedDict):
    numbers: list[int]
    doubles: Annotated[dict[int, int], operator.or_]


class One(TypedDict):
    n: int


async def double(state: One) -> dict[str, dict[int, int]]:
    return {"doubles": {state["n"]: await body(state["n"])}}


def double_in_thread(state: One) -> dict[str, dict[int, int]]:
    time.sleep(0)
    return {"doubles": {state["n"]: 2 * state["n"]}}


def graph(node: Any) -> Any:
    def spread(state: Numbers) -> list[Send]:
        return [Send("double", {"n": n}) for n in state["numbers"]]

    builder: Any = StateGraph(Numbers)
    builder.add_node("double", node)
    builder.add_conditional_edges(START, spread, ["double"])
    builder.add_edge("double", END)
    return builder


def given(job: Job) -> tuple[Any, Any]:
    config = {"configurable": {"thread_id": "x"}, "max_concurrency": job.limit}
    return {"numbers": list(range(job.items)), "doubles": {}}, config


async def mapped(job: Job) -> Any:
    state, config = given(job)
    return (await graph(double).compile().ainvoke(state, config))["doubles"]


async def durable(job: Job) -> Any:
    async with aiosqlite.connect(job.folder / "runs.db") as connection:
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = full")
        made = graph(double).compile(checkpointer=AsyncSqliteSaver(connection))
        return (await made.ainvoke(*given(job), durability="sync"))["doubles"]


def blocking(job: Job) -> Any:
    with closing(sqlite3.connect(job.folder / "runs.db", check_same_thread=False)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = full")
        made = graph(double_in_thread).compile(checkpointer=SqliteSaver(connection))
        return made.invoke(*given(job), durability="sync")["doubles"]


async def durable_runs(job: Job) -> int:
    async with aiosqlite.connect(job.folder / "runs.db") as connection:
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = full")
        return await runs(job, AsyncSqliteSaver(connection))


async def runs(job: Job, saver: Any = None) -> int:
    class Single(TypedDict):
        n: int
        double: int

    async def one(state: Single) -> dict[str, int]:
        return {"double": await body(state["n"])}

    builder: Any = StateGraph(Single)
    builder.add_node("one", one)
    builder.add_edge(START, "one")
    builder.add_edge("one", END)
    made = builder.compile(checkpointer=saver)
    how: Any = {} if saver is None else {"durability": "sync"}
    done = 0
    for n in range(job.items):
        config: Any = {"configurable": {"thread_id": str(n)}}
        done += (await made.ainvoke({"n": n}, config, **how))["double"] == 2 * n
        await asyncio.sleep(0)
    return done


def contenders(backend: str) -> dict[str, dict[str, Program]]:
    if backend != "asyncio":
        return {}
    return {
        "asynchronous": {
            "map": looped(mapped),
            "durable": looped(durable),
            "run": looped(runs),
            "durable-run": looped(durable_runs),
        },
        "blocking": {"durable": blocking},
    }
