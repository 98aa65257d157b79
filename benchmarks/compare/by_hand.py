"""Loops written by hand: asyncio's tasks and a semaphore, anyio's and trio's task groups."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio

from benchmarks.compare.served import served
from benchmarks.compare.workloads import Job, Part, Program

Body = Callable[[int], Awaitable[int]]
Each = Callable[[int], Awaitable[None]]
Spread = Callable[[Each, int, int], Awaitable[None]]
"""Awaits a function for each number below one, so many at a time."""


def looped(function: Callable[[Job], Awaitable[object]]) -> Program:
    return lambda job: anyio.run(function, job, backend=job.backend)


async def turn() -> None:
    """Pass one turn of the loop: the work of every measured body."""
    if "trio" in sys.modules and sys.modules["sniffio"].current_async_library() == "trio":
        await sys.modules["trio"].sleep(0)
    else:
        await asyncio.sleep(0)


async def body(n: int) -> int:
    await asyncio.sleep(0)
    return n + n


async def trio_body(n: int) -> int:
    await sys.modules["trio"].sleep(0)
    return n + n


# -- four ways to await many -----------------------------------------------------------------------


async def gather(each: Each, items: int, limit: int) -> None:
    semaphore = asyncio.Semaphore(limit)

    async def one(n: int) -> None:
        async with semaphore:
            await each(n)

    await asyncio.gather(*(one(n) for n in range(items)))


async def task_group(each: Each, items: int, limit: int) -> None:
    semaphore = asyncio.Semaphore(limit)

    async def one(n: int) -> None:
        async with semaphore:
            await each(n)

    async with asyncio.TaskGroup() as tasks:
        for n in range(items):
            tasks.create_task(one(n))


async def anyio_group(each: Each, items: int, limit: int) -> None:
    limiter = anyio.CapacityLimiter(limit)

    async def one(n: int) -> None:
        async with limiter:
            await each(n)

    async with anyio.create_task_group() as tasks:
        for n in range(items):
            tasks.start_soon(one, n)


async def nursery(each: Each, items: int, limit: int) -> None:
    trio: Any = sys.modules["trio"]  # loaded by anyio.run; programs on asyncio don't load it
    limiter = trio.CapacityLimiter(limit)

    async def one(n: int) -> None:
        async with limiter:
            await each(n)

    async with trio.open_nursery() as tasks:
        for n in range(items):
            tasks.start_soon(one, n)


# -- the workloads ---------------------------------------------------------------------------------


def programs(spread: Spread, call: Body = body) -> dict[str, Program]:
    async def mapped(job: Job, steps: int = 1, seconds: float = 0) -> dict[int, int]:
        results: dict[int, int] = {}

        async def each(n: int) -> None:
            if seconds:
                await anyio.sleep(seconds)
                value = n + n
            else:
                value = await call(n)
            for _ in range(steps - 1):
                value = await call(value)
            results[n] = value

        await spread(each, job.items, job.limit)
        return results

    async def eleven(job: Job) -> dict[int, int]:
        async def further(value: int) -> int:
            return value

        results: dict[int, int] = {}

        async def each(n: int) -> None:
            value = await call(n)
            for _ in range(10):
                value = await further(value)
            results[n] = value

        await spread(each, job.items, job.limit)
        return results

    async def nested(job: Job) -> dict[int, int]:
        sums: dict[int, int] = {}

        async def group(number: int) -> None:
            found: list[int] = []

            async def each(n: int) -> None:
                found.append(await call(10 * number + n))

            await spread(each, 10, 10)
            sums[number] = sum(found)

        await spread(group, job.items // 10, job.limit)
        return sums

    async def counted(job: Job) -> int:
        count = 0

        async def each(n: int) -> None:
            nonlocal count
            await call(n)
            count += 1

        await spread(each, job.items, job.limit)
        return count

    async def listed(job: Job) -> list[int]:
        return list((await mapped(job)).values())

    async def race(job: Job) -> int:
        won = 0
        for _ in range(job.items):
            won += await _race(job.limit)
        return won

    async def race_of_many(job: Job) -> int:
        return sum([await _race(job.limit) for _ in range(job.items // job.limit)]) * job.limit

    async def run(job: Job) -> int:
        done = 0
        for n in range(job.items):
            done += await call(n) == 2 * n
        return done

    async def in_flight(job: Job) -> int:
        done, started = 0, 0
        all_started = anyio.Event()

        async def each(_: int) -> None:
            nonlocal done, started
            started += 1
            if started == job.items:
                all_started.set()
            await all_started.wait()
            done += 1

        await spread(each, job.items, job.limit)
        return done

    async def threads(job: Job) -> dict[int, int]:
        results: dict[int, int] = {}
        limiter = anyio.CapacityLimiter(job.limit)

        async def each(n: int) -> None:
            results[n] = await anyio.to_thread.run_sync(lambda: n + n, limiter=limiter)

        await spread(each, job.items, job.limit)
        return results

    found: dict[str, Callable[[Job], Awaitable[object]]] = {
        "map": mapped,
        "state": mapped,
        "two": partial(mapped, steps=2),
        "eleven": eleven,
        "sleep": partial(mapped, seconds=0.001),
        "nested": nested,
        "list": listed,
        "count": counted,
        "hook": mapped,
        "hooks": mapped,
        "stream": mapped,
        "capacity": mapped,
        "rate": mapped,
        "race": race,
        "race1000": race_of_many,
        "run": run,
        "memory": in_flight,
        "threads": threads,
    }
    return {name: looped(program) for name, program in found.items()}


async def _sleep_for_ever() -> None:
    await anyio.sleep(3600)


async def cancelled(job: Job) -> Part:
    """Cancel many tasks of a bare task group, all of which wait."""
    wall = cpu = 0.0
    async with anyio.create_task_group() as tasks:
        for _ in range(job.items):
            tasks.start_soon(_sleep_for_ever)
        await anyio.wait_all_tasks_blocked()
        gc.collect()  # one that is due must not be measured
        wall, cpu = time.perf_counter(), time.process_time()
        tasks.cancel_scope.cancel()
    return Part(job.items, time.perf_counter() - wall, time.process_time() - cpu)


async def races_back(job: Job) -> Part:
    """Measure from each winner's return to the end of its group."""
    taken = [await _race_back(job.limit) for _ in range(job.items)]
    return Part(len(taken), sum(wall for wall, _ in taken), sum(cpu for _, cpu in taken))


async def _race_back(contestants: int) -> tuple[float, float]:
    wall = cpu = 0.0

    async with anyio.create_task_group() as tasks:

        async def contestant(n: int) -> None:
            nonlocal wall, cpu
            if n == contestants // 2:
                await anyio.sleep(0.001)
                wall, cpu = time.perf_counter(), time.process_time()
                tasks.cancel_scope.cancel()
            else:
                await anyio.sleep(3600)

        for n in range(contestants):
            tasks.start_soon(contestant, n)
    return time.perf_counter() - wall, time.process_time() - cpu


async def _race(contestants: int) -> int:
    """The first to return wins, and the others are cancelled and awaited."""
    won: list[int] = []

    async with anyio.create_task_group() as tasks:

        async def contestant(n: int) -> None:
            if n == contestants // 2:
                await turn()
                won.append(n)
                tasks.cancel_scope.cancel()
            else:
                await anyio.sleep(3600)

        for n in range(contestants):
            tasks.start_soon(contestant, n)
    return len(won)


def contenders(backend: str) -> dict[str, Any]:
    # The bare task group alone can be cancelled as a whole, and ends after all its tasks.
    more = {"cancel": looped(cancelled), "race-back": looped(races_back)}
    if backend == "trio":
        return {
            "nursery": programs(nursery, trio_body),
            "anyio": programs(anyio_group, trio_body) | more,
        }
    return {
        "gather": programs(gather) | {"service": served("/by-hand")},
        "taskgroup": programs(task_group),
        "anyio": programs(anyio_group) | more,
    }
