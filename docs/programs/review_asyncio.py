import asyncio

from world import call

models = asyncio.Semaphore(4)


async def answer(comment: str) -> str:
    async with models, asyncio.timeout(5):
        return await call(f"answer to {comment}")


async def review(file: str) -> dict[str, str]:
    async with models:
        await call(f"read {file}")
    comments = [f"{file}:{line}" for line in range(4)]
    answers = await asyncio.gather(*(answer(comment) for comment in comments))
    return dict(zip(comments, answers, strict=True))


async def main() -> dict[str, dict[str, str]]:
    files = [f"{name}.py" for name in "abcd"]
    reviews = await asyncio.gather(*(review(file) for file in files))
    return dict(zip(files, reviews, strict=True))
