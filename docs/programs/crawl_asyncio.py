import asyncio

from world import call


def links(url: str) -> list[str]:
    n = int(url.removeprefix("page "))
    return [f"page {m}" for m in (2 * n, 2 * n + 1) if m < 24]


async def main() -> dict[str, str]:
    slots = asyncio.Semaphore(4)
    pages: dict[str, str] = {}
    seen = {"page 1"}

    async def visit(url: str, group: asyncio.TaskGroup) -> None:
        async with slots:
            pages[url] = await call(url)
        for link in links(url):
            if link not in seen:
                seen.add(link)
                group.create_task(visit(link, group))

    async with asyncio.TaskGroup() as group:
        group.create_task(visit("page 1", group))
    return pages
