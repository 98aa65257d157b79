from world import call

from shoal import Application, Limits, SQLiteStore, action, fan_out, race


@action(reads=["question"], writes=["answer"])
async def ask(question: str, model: str) -> str:
    return await call(f"{model}: {question}", 1 if model == "large" else 0.02)


models = [ask.bind(name=model, model=model) for model in ("large", "small")]
answers = fan_out(
    race(*models, into="answer"),
    over="questions",
    item="question",
    key=str,
    into="answers",
    take="answer",
    limits=Limits(4),
)
app = Application(answers, store=SQLiteStore("runs.db"))


async def main() -> dict[str, str]:
    questions = [f"question {n}" for n in range(8)]
    return dict((await app.run({"questions": questions}, id="race")).state["answers"])
