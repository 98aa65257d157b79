import asyncio

from world import call


async def main() -> dict[str, str]:
    slots = asyncio.Semaphore(4)

    async def train(model: str, epochs: int) -> tuple[int, str]:
        async with slots:
            await call(f"{model} for {epochs} epochs")
        return sum(map(ord, model)) % 7, model

    models = [f"model {n}" for n in range(8)]
    for epochs in (1, 2, 4):
        scores = await asyncio.gather(*(train(model, epochs) for model in models))
        models = [model for _, model in sorted(scores, reverse=True)[: len(models) // 2]]
    return {"best": models[0]}
