"""The durable map with DBOS in a SQLite file: one workflow, and a step for each element.

DBOS has no limit on the steps of one workflow, so a semaphore is one. Its settings are those that
it has by itself: each step's result is in the file before the workflow goes on.
"""

# pyright: basic, reportMissingImports=false
# (Only `nox -s bench` installs it.)

from __future__ import annotations

import asyncio
import logging
from typing import Any

from dbos import DBOS, DBOSConfig

from benchmarks.compare.workloads import Job, Program

logging.getLogger("dbos").setLevel(logging.ERROR)


@DBOS.step()
async def double(n: int) -> int:
    await asyncio.sleep(0)
    return n + n


@DBOS.workflow()
async def doubles(items: int, limit: int) -> dict[str, int]:
    semaphore = asyncio.Semaphore(limit)

    async def one(n: int) -> tuple[str, int]:
        async with semaphore:
            return str(n), await double(n)

    return dict(await asyncio.gather(*(one(n) for n in range(items))))


@DBOS.workflow()
async def single(n: int) -> int:
    return await double(n)


def opened(job: Job) -> None:
    """Open DBOS on a file of this job: it is global, and there is one at a time."""
    settings: Any = {
        "name": "bench",
        "system_database_url": f"sqlite:///{job.folder}/dbos.sqlite",
        "log_level": "ERROR",
        "run_admin_server": False,
    }
    config: DBOSConfig = settings
    DBOS.destroy()
    DBOS(config=config)
    DBOS.launch()


def durable(job: Job) -> object:
    opened(job)
    try:
        found = asyncio.run(doubles(job.items, job.limit))
    finally:
        DBOS.destroy()
    return {int(n): value for n, value in found.items()}


def runs(job: Job) -> object:
    opened(job)

    async def main() -> int:
        done = 0
        for n in range(job.items):
            done += await single(n) == 2 * n
        return done

    try:
        return asyncio.run(main())
    finally:
        DBOS.destroy()


def contenders(backend: str) -> dict[str, dict[str, Program]]:
    if backend != "asyncio":
        return {}
    return {"dbos": {"durable": durable, "durable-run": runs}}
