import asyncio

from world import call


async def ask(question: str, model: str) -> str:
    return await call(f"{model}: {question}", 1 if model == "large" else 0.02)


async def answer(question: str) -> str:
    tasks = [asyncio.create_task(ask(question, model)) for model in ("large", "small")]
    try:
        for done in asyncio.as_completed(tasks):
            try:
                return await done
            except ConnectionError:
                pass
        raise RuntimeError("no model answers")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def main() -> dict[str, str]:
    slots = asyncio.Semaphore(4)

    async def one(question: str) -> tuple[str, str]:
        async with slots:
            return question, await answer(question)

    questions = [f"question {n}" for n in range(8)]
    return dict(await asyncio.gather(*(one(question) for question in questions)))
