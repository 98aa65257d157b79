"""The map with aiometer."""

# pyright: basic, reportMissingImports=false
# (Only `nox -s bench` installs it.)

from __future__ import annotations

from functools import partial
from typing import Any

import aiometer
import anyio

from benchmarks.compare.by_hand import body, looped
from benchmarks.compare.workloads import Job, Program


async def mapped(job: Job, **how: Any) -> dict[int, int]:
    async def one(n: int) -> tuple[int, int]:
        return n, await body(n)

    found = await aiometer.run_all(
        [partial(one, n) for n in range(job.items)], max_at_once=job.limit, **how
    )
    return dict(found)


async def slow(job: Job) -> dict[int, int]:
    async def one(n: int) -> tuple[int, int]:
        await anyio.sleep(0.001)
        return n, n + n

    return dict(
        await aiometer.run_all([partial(one, n) for n in range(job.items)], max_at_once=job.limit)
    )


async def raced(job: Job) -> int:
    async def quick() -> int:
        return (await body(1)) // 2

    async def never() -> int:
        await anyio.sleep(3600)
        return 0

    contestants = [quick if n == job.limit // 2 else never for n in range(job.limit)]
    won = 0
    for _ in range(job.items):
        won += await aiometer.run_any(contestants)
    return won


def contenders(backend: str) -> dict[str, dict[str, Program]]:
    if backend != "asyncio":
        return {}
    return {"aiometer": {"map": looped(mapped), "sleep": looped(slow), "race": looped(raced)}}
