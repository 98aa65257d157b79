"""A durable map over many elements, 100 in flight, beside LangGraph with its SQLite savers.

In every program the body awaits one real checkpoint; what it has come to is in the file before the
map goes on; and the results end up in a dict by key. ``python -m benchmarks.durable`` prints what
an item takes, in time and in bytes. LangGraph is compared if it is installed
(``pip install langgraph langgraph-checkpoint-sqlite``), with the same ``synchronous``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import platform
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import anyio
from anyio.lowlevel import checkpoint

from benchmarks import _postgres
from benchmarks._measure import in_turn, print_table
from benchmarks.map import LIMIT, by_shoal, doubles
from shoal import Application, MemoryStore, SQLiteStore

HAS_LANGGRAPH = importlib.util.find_spec("langgraph") is not None

Synchronous = Literal["full", "normal"]


@contextmanager
def fresh_file() -> Generator[Path]:
    """Give the path of a file that isn't there yet, and goes with its directory."""
    with tempfile.TemporaryDirectory(dir=".") as directory:  # on a disk, as /tmp may not be
        yield Path(directory) / "runs.db"


# -- shoal --------------------------------------------------------------------------------------


def durable(items: int, **more: Any) -> Callable[[], object]:
    """Run the map of ``benchmarks.map`` with a store in a file."""

    def run() -> None:
        with fresh_file() as path:
            by_shoal(Application(doubles, store=SQLiteStore(path, **more)), items)()

    return run


def in_memory(items: int) -> Callable[[], object]:
    state = {"numbers": range(items)}
    return lambda: Application(doubles, store=MemoryStore()).run_sync(state)


def bytes_per_item(items: int) -> float:
    with fresh_file() as path:
        by_shoal(Application(doubles, store=SQLiteStore(path)), items)()
        return path.stat().st_size / items


# -- LangGraph ----------------------------------------------------------------------------------


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


def langgraph(items: int, synchronous: Synchronous) -> Callable[[], object]:
    """Map with ``Send``, kept by its asynchronous saver: the faster one for asynchronous nodes."""
    aiosqlite, savers, graphs, types = map(
        importlib.import_module,
        ("aiosqlite", "langgraph.checkpoint.sqlite.aio", "langgraph.graph", "langgraph.types"),
    )

    def spread(state: Numbers) -> list[Any]:
        return [types.Send("double", {"n": n}) for n in state["numbers"]]

    builder: Any = graphs.StateGraph(Numbers)
    builder.add_node("double", double)
    builder.add_conditional_edges(graphs.START, spread, ["double"])
    builder.add_edge("double", graphs.END)

    async def main(path: Path) -> None:
        async with aiosqlite.connect(path) as connection:
            await connection.execute("PRAGMA journal_mode = WAL")
            await connection.execute(f"PRAGMA synchronous = {synchronous}")
            graph = builder.compile(checkpointer=savers.AsyncSqliteSaver(connection))
            result = await graph.ainvoke(
                {"numbers": list(range(items)), "doubles": {}},
                {"configurable": {"thread_id": "x"}, "max_concurrency": LIMIT},
                durability="sync",
            )
            assert len(result["doubles"]) == items

    def run() -> None:
        with fresh_file() as path:
            anyio.run(main, path)

    return run


# -- what is measured ---------------------------------------------------------------------------


def measure(items: int, rounds: int) -> None:
    print(f"\ndurable map over {items:,} items, {LIMIT} in flight, saved before seen")
    contenders: dict[str, Callable[[], object]] = {
        "shoal, MemoryStore": in_memory(items),
        "shoal, SQLiteStore, synchronous=normal": durable(items, synchronous="normal"),
        "shoal, SQLiteStore, synchronous=full": durable(items),
        "shoal, SQLiteStore, durability=relaxed": durable(items, durability="relaxed"),
    }
    if HAS_LANGGRAPH and items <= 10_000:
        contenders["LangGraph, AsyncSqliteSaver, normal"] = langgraph(items, "normal")
        contenders["LangGraph, AsyncSqliteSaver, full"] = langgraph(items, "full")
    print_table(in_turn(contenders, rounds), items, "shoal, MemoryStore")
    print(f"{bytes_per_item(items):.0f} bytes per item in the file")


def measure_resume(items: int) -> None:
    """Time how long it takes to load a run that has succeeded."""
    with fresh_file() as path:
        app = Application(doubles, store=SQLiteStore(path))
        app.run_sync({"numbers": range(items)}, id="x")
        began = time.perf_counter()
        app.run_sync(id="x")
        took = time.perf_counter() - began
        print(f"loading a run of {items:,} items takes {took / items * 1e6:.1f} us per item")


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.durable", description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--postgres", metavar="URL", help="of a server; else one of its own")
    options = parser.parse_args()
    print(f"CPython {platform.python_version()}, medians of {options.rounds} rounds in turn")
    for items in options.items:
        measure(items, options.rounds)
    measure_resume(max(options.items))
    _postgres.measure(options.items, options.rounds, options.postgres)


if __name__ == "__main__":
    main()
