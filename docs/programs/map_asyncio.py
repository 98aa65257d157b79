import asyncio

from world import call


async def main() -> dict[str, str]:
    slots = asyncio.Semaphore(4)

    async def fetch(url: str) -> tuple[str, str]:
        async with slots:
            return url, await call(url)

    urls = [f"page {n}" for n in range(20)]
    return dict(await asyncio.gather(*(fetch(url) for url in urls)))
