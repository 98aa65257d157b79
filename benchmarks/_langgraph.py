"""The durable map with LangGraph and its two SQLite savers: ``python -m benchmarks.durable``.

It uses ``Send`` for each element, a reducer of the state to merge the results, and
``durability="sync"``, which saves the result of each node before the graph continues. The blocking
saver only works with ``invoke``, whose nodes are plain functions in threads; there, the body yields
its thread instead of passing a checkpoint.
"""

# pyright: basic, reportMissingImports=false
# (Only `nox -s bench` installs it.)

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, TypedDict

import aiosqlite
import anyio
from anyio.lowlevel import checkpoint
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from benchmarks.map import LIMIT

Program = Callable[[Path, int], object]


def programs(synchronous: str) -> dict[str, Program]:
    """Return the maps over some items, each into a file, by their saver."""
    return {
        f"LangGraph, AsyncSqliteSaver, {synchronous}": _asynchronous(synchronous),
        f"LangGraph, SqliteSaver, {synchronous}": _blocking(synchronous),
    }


def merged(some: dict[int, int], more: dict[int, int]) -> dict[int, int]:
    return {**some, **more}


class Numbers(TypedDict):
    numbers: list[int]
    doubles: Annotated[dict[int, int], merged]


class One(TypedDict):
    n: int


async def double(state: One) -> dict[str, dict[int, int]]:
    await checkpoint()
    return {"doubles": {state["n"]: 2 * state["n"]}}


def double_in_thread(state: One) -> dict[str, dict[int, int]]:
    time.sleep(0)
    return {"doubles": {state["n"]: 2 * state["n"]}}


def _graph(body: Any) -> Any:
    def spread(state: Numbers) -> list[Send]:
        return [Send("double", {"n": n}) for n in state["numbers"]]

    builder = StateGraph(Numbers)
    builder.add_node("double", body)
    builder.add_conditional_edges(START, spread, ["double"])
    builder.add_edge("double", END)
    return builder


def _given(items: int) -> tuple[Any, Any]:
    thread = {"thread_id": f"map over {items}"}
    config = {"configurable": thread, "max_concurrency": LIMIT}
    return {"numbers": list(range(items)), "doubles": {}}, config


def _asynchronous(synchronous: str) -> Program:
    builder = _graph(double)

    async def main(path: Path, items: int) -> None:
        async with aiosqlite.connect(path) as connection:
            await connection.execute("PRAGMA journal_mode = WAL")
            await connection.execute(f"PRAGMA synchronous = {synchronous}")
            graph = builder.compile(checkpointer=AsyncSqliteSaver(connection))
            result = await graph.ainvoke(*_given(items), durability="sync")
            assert len(result["doubles"]) == items

    return lambda path, items: anyio.run(main, path, items)


def _blocking(synchronous: str) -> Program:
    builder = _graph(double_in_thread)

    def run(path: Path, items: int) -> None:
        with closing(sqlite3.connect(path, check_same_thread=False)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            graph = builder.compile(checkpointer=SqliteSaver(connection))
            result = graph.invoke(*_given(items), durability="sync")
            assert len(result["doubles"]) == items

    return run
