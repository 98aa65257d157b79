from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.func import entrypoint, task
from world import call


@task
async def train(model: str, epochs: int) -> int:
    await call(f"{model} for {epochs} epochs")
    return sum(map(ord, model)) % 7


async def main() -> dict[str, str]:
    async with AsyncSqliteSaver.from_conn_string("runs.db") as saver:

        @entrypoint(checkpointer=saver)
        async def search(models: list[str]) -> dict[str, str]:
            for epochs in (1, 2, 4):
                training = [(train(model, epochs), model) for model in models]
                scores = [(await score, model) for score, model in training]
                models = [model for _, model in sorted(scores, reverse=True)[: len(models) // 2]]
            return {"best": models[0]}

        config = {"configurable": {"thread_id": "search"}, "max_concurrency": 4}
        saved = await search.aget_state(config)
        if saved.values and not saved.next:
            return saved.values
        models = [f"model {n}" for n in range(8)]
        return await search.ainvoke(None if saved.next else models, config, durability="sync")
