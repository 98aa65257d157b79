"""What the server of `shoal ui` costs while pages follow a run, and whether its counts are true.

A process executes a run of 20,000 children, `shoal ui` serves its store from another one, and this
one keeps pages open as browsers do: streams of server-sent events. It prints which share of a core
the server takes, how late updates come, and, of many looks at the page, how many showed a count
that the store didn't have at some moment between the request and the answer. None should.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import anyio
import httpx

from shoal import Application, Graph, Limits, RunPath, SQLiteStore, action, fan_out

RUN_ID = "live"
RUN = RunPath(run_id=RUN_ID)
PAGE = f"/runs/{RUN_ID}"
PAGES = (PAGE, f"{PAGE}?view=timeline", f"{PAGE}?order=slowest", "/", "/limits")
"""What the open pages show, in turn."""

COUNT = re.compile(r"([\d,]+) in the store")
LATE = 30.0


@action(reads=["n", "pause"], writes=["page"])
async def fetch(n: int, pause: float) -> str:
    """Wait, and fail now and then."""
    await anyio.sleep(pause)
    if n % 64 == 11:
        raise ConnectionError(f"page {n} has closed the connection")
    return f"page {n}"


@action(reads=["page"], writes=["title"])
async def parse(page: str) -> str:
    """Second step of a chain."""
    return page.title()


async def execute(place: str, children: int, seconds: float) -> None:
    """Execute the run, in about so many seconds."""
    pages = fan_out(
        Graph.chain(fetch, parse),
        over="numbers",
        item="n",
        into="titles",
        take="title",
        on_error="collect",
        errors_into="failed",
        limits=Limits(50),
    )
    app = Application(pages, store=SQLiteStore(place), name="live")
    await app.run({"numbers": range(children), "pause": 50 * seconds / children}, id=RUN_ID)


def cpu_of(pid: int) -> float:
    """Return the seconds of the processor that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def follow(client: httpx.AsyncClient, page: str, arrived: list[float]) -> None:
    """Keep a page open, and note when updates arrive."""
    address = f"{page}{'&' if '?' in page else '?'}as=stream"
    last = ""
    while True:  # a stream ends after some time, and the page connects again
        async with client.stream("GET", address, headers={"last-event-id": last}) as response:
            async for line in response.aiter_lines():
                if line.startswith("id: "):
                    last = line[4:]
                    arrived.append(time.perf_counter())
        await anyio.sleep(0.5)


async def look(client: httpx.AsyncClient, place: str, seconds: float) -> tuple[int, int]:
    """Compare the counts of the page with those of the store; return looks, and wrong ones."""
    looks = wrong = 0
    ends = time.perf_counter() + seconds
    async with SQLiteStore(place) as store:
        while time.perf_counter() < ends:
            least = sum((await store.counts(RUN)).values())
            text = (await client.get(f"{PAGE}?as=fragment")).raise_for_status().text
            most = sum((await store.counts(RUN)).values())
            found = COUNT.search(text)
            shown = 0 if found is None else int(found[1].replace(",", ""))
            looks += 1
            wrong += not least <= shown <= most
            await anyio.sleep(0.3)
    return looks, wrong


async def measure(address: str, pid: int, pages: int, seconds: float) -> None:
    """Follow the run with so many pages, and print what it cost."""
    arrived: list[list[float]] = [[] for _ in range(pages)]
    async with httpx.AsyncClient(base_url=address, timeout=LATE) as client:
        with anyio.fail_after(LATE):
            while (await client.get(PAGE)).status_code != 200:  # noqa: ASYNC110 # another process begins it
                await anyio.sleep(0.1)
        async with anyio.create_task_group() as group:
            for n in range(pages):
                group.start_soon(follow, client, PAGES[n % len(PAGES)], arrived[n])
            await anyio.sleep(2)
            for each in arrived:
                each.clear()
            began, cpu = time.perf_counter(), cpu_of(pid)
            await anyio.sleep(seconds)
            share = (cpu_of(pid) - cpu) / (time.perf_counter() - began)
            gaps = [later - one for each in arrived for one, later in pairwise(each)]
            print(
                f"{pages:>6}{share * 100:>11.1f} %{sum(map(len, arrived)) / seconds:>12.1f}"
                f"{statistics.median(gaps):>14.2f}{max(gaps):>10.2f}"
            )
            group.cancel_scope.cancel()


async def watch(address: str, pid: int, place: str, pages: Sequence[int], seconds: float) -> None:
    """Measure with each number of pages, then compare counts."""
    print(f"{'pages':>6}{'of a core':>13}{'updates/s':>12}{'s between':>14}{'longest':>10}")
    for each in pages:
        await measure(address, pid, each, seconds)
    async with httpx.AsyncClient(base_url=address, timeout=LATE) as client:
        looks, wrong = await look(client, place, seconds)
    print(f"{looks} looks at the page: {wrong} counts that the store did not have")


def main() -> None:
    """Measure, as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=__doc__)
    parser.add_argument("--children", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--pages", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--execute", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    whole = (len(options.pages) + 1) * (options.seconds + 4)
    if options.execute:
        anyio.run(execute, options.execute, options.children, whole)
        return
    with tempfile.TemporaryDirectory() as folder:
        place = f"{folder}/runs.db"
        begin = [sys.executable, "-m"]
        given = ["--children", str(options.children), "--seconds", str(options.seconds)]
        given += ["--pages", *map(str, options.pages)]
        with subprocess.Popen([*begin, "benchmarks.live", "--execute", place, *given]) as writer:
            while not Path(place).exists():
                time.sleep(0.1)
            page = [*begin, "shoal", "ui", "--db", place, "--port", "0", "--read-only"]
            with subprocess.Popen(page, stdout=subprocess.PIPE, text=True) as server:
                assert server.stdout is not None
                address = server.stdout.readline().split()[-1].rstrip("/")
                try:
                    arguments = (address, server.pid, place, options.pages, options.seconds)
                    anyio.run(watch, *arguments)
                finally:
                    server.terminate()
                    writer.terminate()


if __name__ == "__main__":
    main()
