"""A bot that handles the comments on a pull request: every file at once, every comment at once.

It reads the comments on each changed file and has a model classify each of them. A question is
answered, a change request becomes a patch, and praise is left alone::

    files ──► read_comments ──► comments ──► classify ─┬─ question ─► answer ─┐
                                                       ├─ change ───► patch ──┼─► reply
                                                       └─ praise ───► skip ───┘

A file whose comments can't be read costs only itself. However many comments there are, at most
``CALLS`` calls are under way: the limit stands on the application, so all levels share it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pydantic import BaseModel

from shoal import Application, ErrorInfo, Graph, Hook, Limits, action, fan_out, when

CALLS = 4


class Kind(StrEnum):
    QUESTION = "question"
    CHANGE = "change"
    PRAISE = "praise"


@dataclass(frozen=True)
class Comment:
    id: int
    file: str
    text: str


class Platform(Protocol):
    """Where the pull request lives."""

    async def comments_on(self, file: str) -> Sequence[Comment]: ...


class Model(Protocol):
    """What reads and writes."""

    async def ask(self, task: str, text: str) -> str: ...


class Review(BaseModel):
    """The whole pull request."""

    files: list[str]
    guide: str
    replies: dict[str, dict[int, str]] = {}
    unread: dict[str, ErrorInfo] = {}


@dataclass
class Thread:
    """One comment, and what becomes of it."""

    comment: Comment
    guide: str
    kind: Kind | None = None
    reply: str = ""


@action(reads=["file"], writes=["comments"])
async def read_comments(file: str, platform: Platform) -> Sequence[Comment]:
    return await platform.comments_on(file)


@action(reads=["comment"], writes=["kind"])
async def classify(comment: Comment, model: Model) -> Kind:
    return Kind(await model.ask("classify", comment.text))


@action(reads=["comment", "guide"], writes=["reply"])
async def answer(comment: Comment, guide: str, model: Model) -> str:
    return await model.ask(f"answer by {guide}", comment.text)


@action(reads=["comment", "guide"], writes=["reply"])
async def patch(comment: Comment, guide: str, model: Model) -> str:
    diff = await model.ask(f"patch by {guide}", comment.text)
    return f"{comment.file}: {diff}"


@action(writes=["reply"], executor="loop")
def skip() -> str:
    return ""


thread = Graph(
    (classify, answer, when(kind=Kind.QUESTION)),
    (classify, patch, when(kind=Kind.CHANGE)),
    (classify, skip),
    name="thread",
    state=Thread,
)
threads = fan_out(thread, over="comments", item="comment", key="id", into="replies", take="reply")
review = fan_out(
    Graph.chain(read_comments, threads, name="review_file"),
    over="files",
    item="file",
    key=str,
    into="replies",
    errors_into="unread",
    on_error="collect",
)


async def main(
    files: list[str], platform: Platform, model: Model, *, hooks: Sequence[Hook] = ()
) -> Review:
    app = Application(review, name="pr_bot", state=Review, limits=Limits(CALLS), hooks=hooks)
    result = await app.run(
        Review(files=files, guide="PEP 8"), inputs={"platform": platform, "model": model}
    )
    return result.state.data
