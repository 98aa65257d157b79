from typing import Any

from world import call

from shoal import END, Application, Graph, Limits, SQLiteStore, action, fan_out, when


@action(reads=["model", "epochs"], writes=["score"])
async def train(model: str, epochs: int) -> int:
    await call(f"{model} for {epochs} epochs")
    return sum(map(ord, model)) % 7


@action(reads=["scores", "models", "epochs"], writes=["models", "epochs"])
async def keep_the_best(scores: dict[str, int], models: list[str], epochs: int) -> dict[str, Any]:
    best = sorted(models, key=lambda model: (scores[model], model), reverse=True)
    return {"models": best[: len(best) // 2], "epochs": 2 * epochs}


training = fan_out(train, over="models", item="model", key=str, into="scores", limits=Limits(4))
found = when(lambda models: len(models) == 1)
search = Graph(
    (training, keep_the_best),
    (keep_the_best, END, found),
    (keep_the_best, training),
    entry=training,
)
app = Application(search, store=SQLiteStore("runs.db"))


async def main() -> dict[str, str]:
    models = [f"model {n}" for n in range(8)]
    result = await app.run({"models": models, "epochs": 1}, id="search")
    return {"best": result.state["models"][0]}
