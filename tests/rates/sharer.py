"""One of several processes that share a rate: writes down when each of its bodies starts."""

import os
import sys
import time
from typing import Any

import anyio

from shoal import Application, Limits, Rate, Runtime, SharedRate, action, fan_out
from shoal.rates.postgres import PostgresRates
from shoal.rates.redis import RedisRates


async def main(*arguments: str) -> None:
    url, k, burst, n, slots, log = arguments
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @action(reads=["n"], writes=["out"])
    async def body(n: int) -> int:
        os.write(out, f"{time.monotonic():.7f}\n".encode())  # at once: it may be killed
        await anyio.sleep(0.02)
        return n

    async def watch_the_clock() -> None:
        late = 0.0
        try:
            while True:
                begun = time.monotonic()
                await anyio.sleep(0.005)
                late = max(late, time.monotonic() - begun - 0.005)
        finally:
            os.write(out, f"late {late}\n".encode())

    backend = RedisRates if url.startswith("redis:") else PostgresRates
    with backend(url) as rates:
        shared = SharedRate(Rate(float(k), burst=float(burst)), "shared", rates)
        bodies: Any = fan_out(body, over="ns", item="n", into="out", limits=Limits(rate=shared))
        async with Runtime(limits=Limits(int(slots))) as runtime:
            print("ready", flush=True)
            sys.stdin.readline()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch_the_clock)
                await runtime.run(Application(bodies), {"ns": range(int(n))})
                tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, *sys.argv[2:], backend=sys.argv[1])
