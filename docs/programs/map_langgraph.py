from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.func import entrypoint, task
from world import call


@task
async def fetch(url: str) -> str:
    return await call(url)


async def main() -> dict[str, str]:
    async with AsyncSqliteSaver.from_conn_string("runs.db") as saver:

        @entrypoint(checkpointer=saver)
        async def pages(urls: list[str]) -> dict[str, str]:
            fetching = {url: fetch(url) for url in urls}
            return {url: await one for url, one in fetching.items()}

        config = {"configurable": {"thread_id": "map"}, "max_concurrency": 4}
        saved = await pages.aget_state(config)
        if saved.values and not saved.next:
            return saved.values
        urls = [f"page {n}" for n in range(20)]
        return await pages.ainvoke(None if saved.next else urls, config, durability="sync")
