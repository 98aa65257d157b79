"""What a store answers to watchers, and how quickly.

``python -m benchmarks.queries make FILE --children 100000`` writes a finished run into a file of
SQLite, or the database of a URL: a fan-out of so many children, of which 1,000 fail in 5 ways;
1,000 children of two steps; and a value of 1 MB in its state. ``python -m benchmarks.queries read
FILE`` prints the median of 20 of each call of ``Inspects``, the longest, and the median of the
processor time. ``python -m benchmarks.queries pages FILE`` does that for each page of ``shoal ui``,
without a server, and prints how many elements and bytes a page has.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

import anyio
from anyio.lowlevel import checkpoint

from shoal import Application, Graph, Limits, PostgresStore, RunPath, SQLiteStore, action, fan_out
from shoal.watch import path_text

RUN_ID = "watched"
RUN = RunPath(run_id=RUN_ID)
FAILURES = 1_000
CHAINED = 1_000
ROUNDS = 20

# -- the run that is watched -----------------------------------------------------------------------


@action(reads=["children"], writes=["large", "numbers", "urls"])
async def prepare(children: int) -> dict[str, object]:
    """Put 1 MB into the state."""
    urls = [f"https://example.org/{n}" for n in range(CHAINED)]
    return {"large": "x" * 1_000_000, "numbers": range(children), "urls": urls}


@action(reads=["n", "every"], writes=["page"])
async def work(n: int, every: int) -> dict[str, object]:
    """Fail now and then, in five ways."""
    await checkpoint()
    if n % every == every - 1:
        which = n // every % 5
        if which == 0:
            raise ConnectionError(f"connection to host-{n}.example.org refused")
        if which == 1:
            raise TimeoutError(f"no answer within {n / 1000:.1f} s")
        if which == 2:
            raise KeyError(f"field-{n}")
        if which == 3:
            raise ValueError(f"page {n} has no title")
        raise RuntimeError(f"status {500 + n % 4}")
    return {"title": f"page {n}", "size": n}


@action(reads=["url"], writes=["body"])
async def fetch(url: str) -> str:
    """First step of a chain."""
    await checkpoint()
    return f"<p>{url}</p>"


@action(reads=["body"], writes=["length"])
async def parse(body: str) -> int:
    """Second step of a chain."""
    if body.endswith("00</p>"):
        raise ValueError(f"no end in {body}")
    return len(body)


def store_at(place: str, **how: Any) -> SQLiteStore | PostgresStore:
    """Return a store for a file or a URL."""
    if place.startswith("postgresql:"):
        return PostgresStore(place, max_update=1 << 30, **how)
    return SQLiteStore(place, max_update=1 << 30, synchronous="normal", **how)


def program(place: str) -> Application:
    """Return the application whose run is watched."""
    limits = Limits(100)
    pages = fan_out(
        work,
        over="numbers",
        item="n",
        into="pages",
        on_error="collect",
        errors_into="failed",
        limits=limits,
    )
    lengths = fan_out(
        Graph.chain(fetch, parse, name="read"),
        over="urls",
        item="url",
        key=str,
        take="length",
        into="lengths",
        on_error="collect",
        errors_into="unread",
        limits=limits,
    )
    store = store_at(place, durability="relaxed")
    return Application(Graph.chain(prepare, pages, lengths), store=store, name="watched")


def make(place: str, children: int) -> None:
    """Write the run."""
    began = time.perf_counter()
    state = {"children": children, "every": max(1, children // FAILURES)}
    program(place).run_sync(state, id=RUN_ID)
    print(f"{children:,} children in {time.perf_counter() - began:.1f} s")


# -- the calls of a watcher ------------------------------------------------------------------------


async def calls(
    store: SQLiteStore | PostgresStore,
) -> Mapping[str, Callable[[], Awaitable[object]]]:
    """Return the calls that are measured, by what they ask for."""
    failed = (await store.rows(RUN, limit=1)).rows[0].path
    middle = await store.rows(RUN, order="failed first", status="succeeded", limit=1000)
    every = {
        "mark": store.mark,
        "counts": partial(store.counts, RUN),
        "tallies": partial(store.tallies, RUN),
        "failed_rows": partial(store.failed_rows, RUN),
        "timeline": partial(store.timeline, RUN),
        "times": partial(store.times, RUN),
        "row": partial(store.row, RUN),
        "row of a child": partial(store.row, failed),
        "text": partial(store.text, failed, "error"),
        "children_of_key": partial(store.children_of_key, RUN, "pages", 7),
        "entries": partial(store.entries, RUN),
        "entries, questions": partial(store.entries, RUN, kinds=("asked", "answered")),
        "spawned": partial(store.spawned, RUN),
        "rows, next page": partial(store.rows, RUN, status="succeeded", after=middle.after),
        "rows, of a large step": partial(store.rows, RUN, step="pages"),
        "rows, of a small step": partial(store.rows, RUN, step="lengths"),
        "rows, by key": partial(store.rows, RUN, key="77"),
        "rows, by a key of few": partial(store.rows, RUN, key="example.org/77"),
    }
    for order in ("failed first", "position", "ended last", "slowest"):
        every[f"rows, {order}"] = partial(store.rows, RUN, order=order)
        every[f"rows, {order}, failed"] = partial(store.rows, RUN, order=order, status="failed")
    return every


async def read(place: str) -> None:
    """Print how long the calls take."""
    async with store_at(place) as store:
        print(f"{sum((await store.counts(RUN)).values()):,} children, milliseconds")
        print(f"{'':<32}{'median':>9}{'max':>9}{'cpu':>9}")
        for name, call in (await calls(store)).items():
            took: list[float] = []
            cpu: list[float] = []
            for _ in range(ROUNDS):
                began, began_cpu = time.perf_counter(), time.process_time()
                await call()
                took.append((time.perf_counter() - began) * 1000)
                cpu.append((time.process_time() - began_cpu) * 1000)
            print(
                f"{name:<32}{statistics.median(took):>9.2f}{max(took):>9.2f}"
                f"{statistics.median(cpu):>9.2f}"
            )


async def pages(place: str) -> None:
    """Print how long the pages take, and how large they are."""
    import httpx  # noqa: PLC0415 # the other commands don't need it

    from shoal.watch.ui import create_app  # noqa: PLC0415 # as above

    async with store_at(place) as store:
        total = sum((await store.counts(RUN)).values())
        failed = (await store.rows(RUN, limit=1)).rows[0].path
        middle = await store.rows(RUN, status="succeeded", limit=1000)
        page = f"/runs/{RUN_ID}"
        further = urlencode({"status": "succeeded", "after": middle.after})
        child = quote(path_text(failed), safe="/:")
        addresses = {
            "runs": "/",
            "limits": "/limits",
            "run": page,
            "run, only failed": f"{page}?status=failed",
            "run, slowest": f"{page}?order=slowest",
            "run, by key": f"{page}?key=77",
            "run, further page": f"{page}?{further}",
            "run, timeline": f"{page}?view=timeline",
            "run, history": f"{page}?view=history",
            "run, values": f"{page}?view=values",
            "a failed child": f"/runs/{child}",
            "a value": f"/values/first/{RUN_ID}",
            "an update of a stream": f"{page}?as=fragment",
        }
        print(f"{total:,} children, milliseconds")
        print(f"{'':<32}{'median':>9}{'max':>9}{'cpu':>9}{'elements':>10}{'bytes':>10}")
        transport = httpx.ASGITransport(app=create_app(store, hosts=["*"]))
        async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
            for name, address in addresses.items():
                took: list[float] = []
                cpu: list[float] = []
                text = ""
                for _ in range(ROUNDS):
                    began, began_cpu = time.perf_counter(), time.process_time()
                    response = await client.get(address)
                    took.append((time.perf_counter() - began) * 1000)
                    cpu.append((time.process_time() - began_cpu) * 1000)
                    text = response.raise_for_status().text
                elements = len(re.findall(r"<[a-z]", text))
                print(
                    f"{name:<32}{statistics.median(took):>9.2f}{max(took):>9.2f}"
                    f"{statistics.median(cpu):>9.2f}{elements:>10,}{len(text.encode()):>10,}"
                )


def main() -> None:
    """Write a file, or read one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queries", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="write a file with a run in it")
    making.add_argument("file", help="or the URL of a PostgreSQL database")
    making.add_argument("--children", type=int, default=100_000)
    reading = commands.add_parser("read", help="measure each call on that file")
    reading.add_argument("file", help="or the URL of a PostgreSQL database")
    paging = commands.add_parser("pages", help="measure each page of `shoal ui` on that file")
    paging.add_argument("file", help="or the URL of a PostgreSQL database")
    options = parser.parse_args()
    if options.command == "make":
        make(options.file, options.children)
    else:
        anyio.run(pages if options.command == "pages" else read, options.file)


if __name__ == "__main__":
    main()
