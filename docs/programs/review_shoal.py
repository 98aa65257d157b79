from typing import Any

from world import call

from shoal import Application, Graph, Limits, SQLiteStore, action, fan_out


@action(reads=["file"], writes=["comments"])
async def read(file: str) -> list[str]:
    await call(f"read {file}")
    return [f"{file}:{line}" for line in range(4)]


@action(reads=["comment"], writes=["answer"], timeout=5)
async def answer(comment: str) -> str:
    return await call(f"answer to {comment}")


answers = fan_out(answer, over="comments", item="comment", key=str, into="answers")
review = Graph.chain(read, answers, name="review")
reviews = fan_out(review, over="files", item="file", key=str, into="reviews", take="answers")
app = Application(reviews, limits=Limits(4), store=SQLiteStore("runs.db"))


async def main() -> dict[str, Any]:
    files = [f"{name}.py" for name in "abcd"]
    return (await app.run({"files": files}, id="pr-1")).state.to_plain()["reviews"]
