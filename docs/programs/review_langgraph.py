import asyncio

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.func import entrypoint, task
from world import call


@task
async def read(file: str) -> list[str]:
    await call(f"read {file}")
    return [f"{file}:{line}" for line in range(4)]


@task
async def answer(comment: str) -> str:
    async with asyncio.timeout(5):
        return await call(f"answer to {comment}")


async def main() -> dict[str, dict[str, str]]:
    async with AsyncSqliteSaver.from_conn_string("runs.db") as saver:

        @entrypoint(checkpointer=saver)
        async def reviews(files: list[str]) -> dict[str, dict[str, str]]:
            reading = [read(file) for file in files]
            comments = [await one for one in reading]
            answering = [{comment: answer(comment) for comment in some} for some in comments]
            answers = [{comment: await one for comment, one in some.items()} for some in answering]
            return dict(zip(files, answers, strict=True))

        config = {"configurable": {"thread_id": "pr-1"}, "max_concurrency": 4}
        saved = await reviews.aget_state(config)
        if saved.values and not saved.next:
            return saved.values
        files = [f"{name}.py" for name in "abcd"]
        return await reviews.ainvoke(None if saved.next else files, config, durability="sync")
