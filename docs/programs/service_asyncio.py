import asyncio

from world import call

jobs: dict[str, asyncio.Task[list[str]]] = {}


async def work(name: str) -> list[str]:
    return [await call(f"{name}, step {step}") for step in range(5)]


def start(name: str) -> None:
    if name not in jobs:
        jobs[name] = asyncio.create_task(work(name))


async def main() -> dict[str, list[str]]:
    try:
        for name in ("job 1", "job 2", "job 3"):
            start(name)
        return {name: await job for name, job in jobs.items()}
    finally:
        for job in jobs.values():
            job.cancel()
        await asyncio.gather(*jobs.values(), return_exceptions=True)
