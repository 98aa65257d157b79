"""A program whose runs the browser tests look at: ``python -m tests.watch.ui.program DB ACTION``.

``prepare`` leaves runs of all kinds in the store. ``crawl N SECONDS [ID]`` executes one of N
children.
"""

from __future__ import annotations

import sys
from typing import Any

import anyio

from shoal import Application, Context, Graph, Limits, SQLiteStore, action, fan_out, race

KINDS = (ValueError, TimeoutError, ConnectionError, KeyError, RuntimeError)
"""The five ways in which pages fail."""

VERDICT = {
    "type": "object",
    "properties": {
        "verdict": {"enum": ["merge", "change"], "title": "Verdict"},
        "comment": {"type": "string", "maxLength": 60},
        "severity": {"type": "integer", "minimum": 1, "maximum": 5, "default": 2},
    },
    "required": ["verdict", "severity"],
}


@action(reads=["n", "pause"], writes=["page"])
async def fetch(n: int, pause: float) -> str:
    if pause:
        await anyio.sleep(pause)
    if n % 20 == 3:
        raise KINDS[n // 20 % 5](f"page {n} of https://docs.example/{n}: status {500 + n % 7}")
    return f"<h1>page {n}</h1>"


@action(reads=["page"], writes=["title"])
async def parse(page: str) -> str:
    return page[4:-5]


crawl = Application(
    fan_out(
        Graph.chain(fetch, parse),
        over="pages",
        item="n",
        key=lambda n: f"https://docs.example/{n}",
        into="titles",
        take="title",
        on_error="collect",
        errors_into="failed",
        limits=Limits(20),
        name="pages",
    ),
    name="crawl docs",
)


@action(reads=["question"], writes=["answer"])
async def ask(question: str, model: str, seconds: float) -> str:
    await anyio.sleep(seconds)
    if seconds == 0:
        raise ConnectionError("overloaded")
    return f"{model}: {question}!"


contest = Application(
    race(
        ask.bind(name="tiny", model="tiny-1", seconds=0.0),
        ask.bind(name="huge", model="huge-9", seconds=30.0),
        ask.bind(name="local", model="local-2", seconds=0.05),
        into="answer",
    ),
    name="ask models",
)


@action(reads=["file"], writes=["comments"])
async def read_comments(file: str) -> list[str]:
    return [f"{file}:{line}" for line in (1, 2)]


@action(reads=["comment"], writes=["reply"])
async def answer(comment: str, context: Context) -> str:
    if comment != "b.py:2":
        return f"{comment} is fine"
    question = {"question": f"Merge {comment}?", "schema": VERDICT}
    said: dict[str, Any] = await context.ask("verdict", question)
    return f"{said['verdict']}: {said['comment']} ({said['severity']})"


review = Application(
    fan_out(
        Graph.chain(
            read_comments,
            fan_out(answer, over="comments", item="comment", key=str, into="replies", take="reply"),
            name="review_file",
        ),
        over="files",
        item="file",
        key=str,
        into="reviews",
        take="replies",
    ),
    name="review",
)

APPLICATIONS = [crawl, contest, review]


async def prepare(store: SQLiteStore) -> None:
    for app in APPLICATIONS:
        app.store = store
    await crawl.run({"pages": [*range(300)], "pause": 0.0}, id="crawl")
    await crawl.run({"pages": [*range(60)], "pause": 0.0}, id="small <b>crawl</b>")
    await contest.run({"question": "why"}, id="race")
    await review.run({"files": ["a.py", "b.py"]}, id="review")


async def main() -> None:
    store = SQLiteStore(sys.argv[1])
    match sys.argv[2:]:
        case ["crawl", count, seconds, *names]:
            crawl.store = store
            pause = float(seconds) * 20 / int(count)
            name = names[0] if names else "live"
            await crawl.run({"pages": [*range(int(count))], "pause": pause}, id=name)
        case _:
            await prepare(store)


if __name__ == "__main__":
    anyio.run(main)
