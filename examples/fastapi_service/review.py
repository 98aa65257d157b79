"""The application: a model reviews each file, then a person is asked for a verdict.

This module doesn't use HTTP.
"""

from __future__ import annotations

from typing import Literal, Protocol

import anyio
from pydantic import BaseModel, Field

from shoal import END, Application, Context, Each, Graph, Limits, Rate, Retry, action, fan_out, when
from shoal.stores import Store

VERDICTS = ("accepted", "rejected")


class File(BaseModel):
    path: str = Field(max_length=200)
    text: str = Field(max_length=100_000)


class Review(BaseModel):
    """The state of a run: a client sends the files, and the run writes the other fields."""

    files: list[File] = Field(min_length=1, max_length=100)
    findings: dict[str, str] = {}
    unread: dict[str, str] = {}
    verdict: Literal["", "accepted", "rejected"] = ""
    not_understood: str = ""
    """The last answer, if it was no verdict."""


class Reviewer(Protocol):
    """A model that reads files."""

    async def review(self, file: File) -> str: ...


class PretendReviewer:
    """Counts lines, slowly; needs no network."""

    async def review(self, file: File) -> str:
        await anyio.sleep(0.2)
        return f"{len(file.text.splitlines())} lines"


@action(reads=["file"], writes=["finding"], timeout=60)
async def read(file: File, reviewer: Reviewer) -> str:
    return await reviewer.review(file)


@action(reads=["findings", "not_understood"], writes=["verdict", "not_understood"])
async def decide(findings: dict[str, str], not_understood: str, context: Context) -> dict[str, str]:
    """Ask a person for a verdict; a mistyped answer is kept, and the question asked again."""
    question: dict[str, object] = {"question": "accepted or rejected?", "findings": dict(findings)}
    if not_understood:
        question["not_understood"] = not_understood
    answer: object = await context.ask("verdict", question)
    if answer not in VERDICTS:
        return {"verdict": "", "not_understood": repr(answer)}
    return {"verdict": str(answer), "not_understood": ""}


def path_of(file: File) -> str:
    return file.path


def reviews(store: Store | None) -> Application[Review]:
    """Make the application; each of its runs is a review."""
    read_all = fan_out(
        read,
        over="files",
        item="file",
        key=path_of,
        into="findings",
        take="finding",
        on_error="collect",
        each=Each(retry=Retry(3, on=OSError)),
        limits=Limits(8) & Limits(rate=Rate(50, per=1.0)),
    )
    return Application(
        Graph((read_all, decide), (decide, END, when("verdict")), (decide, decide)),
        name="reviews",
        state=Review,
        inputs=["reviewer"],
        store=store,
    )
