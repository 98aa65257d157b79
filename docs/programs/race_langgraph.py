import asyncio

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.func import entrypoint, task
from world import call


async def ask(question: str, model: str) -> str:
    return await call(f"{model}: {question}", 1 if model == "large" else 0.02)


@task
async def answer(question: str) -> str:
    asked = [asyncio.create_task(ask(question, model)) for model in ("large", "small")]
    try:
        for done in asyncio.as_completed(asked):
            try:
                return await done
            except ConnectionError:
                pass
        raise RuntimeError("no model answers")
    finally:
        for one in asked:
            one.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def main() -> dict[str, str]:
    async with AsyncSqliteSaver.from_conn_string("runs.db") as saver:

        @entrypoint(checkpointer=saver)
        async def answers(questions: list[str]) -> dict[str, str]:
            asked = {question: answer(question) for question in questions}
            return {question: await one for question, one in asked.items()}

        config = {"configurable": {"thread_id": "race"}, "max_concurrency": 4}
        saved = await answers.aget_state(config)
        if saved.values and not saved.next:
            return saved.values
        questions = [f"question {n}" for n in range(8)]
        return await answers.ainvoke(None if saved.next else questions, config, durability="sync")
