"""The map with Prefect: a flow, a task for each element, and the server that it starts by itself.

Its results are in the SQLite file of that server. A concurrency limit needs a server that knows it,
so a semaphore in the process is the limit here.
"""

# pyright: basic, reportMissingImports=false
# (Only `nox -s bench` installs it, in an environment of its own.)

from __future__ import annotations

import asyncio
import os
import tempfile

os.environ.setdefault("PREFECT_HOME", tempfile.mkdtemp(prefix="prefect-"))
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "300")

from prefect import flow, task

from benchmarks.compare.workloads import Job, Program


@task
async def double(n: int) -> int:
    await asyncio.sleep(0)
    return n + n


@flow
async def doubles(items: int, limit: int) -> dict[int, int]:
    semaphore = asyncio.Semaphore(limit)

    async def one(n: int) -> tuple[int, int]:
        async with semaphore:
            return n, await double(n)

    return dict(await asyncio.gather(*(one(n) for n in range(items))))


def mapped(job: Job) -> object:
    return asyncio.run(doubles(job.items, job.limit))


def contenders(backend: str) -> dict[str, dict[str, Program]]:
    if backend != "asyncio":
        return {}
    return {"prefect": {"durable": mapped}}
