"""The bot. Read the end first: `pr_bot` puts together what stands above it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import anyio

from examples.pr_bot.models import PARTS, Model, Unreachable
from shoal import (
    END,
    Application,
    Budget,
    Context,
    Each,
    Graph,
    Limits,
    Retry,
    action,
    fan_out,
    when,
)  # fmt: skip
from shoal.stores import Store

DRAFT = "DRAFT an answer to a reviewer in one line, or NOTHING if the change isn't concerned."
CHECK = "CHECK an answer to a reviewer: is it true of this change? Write YES or NO."
JUDGE = "JUDGE answers to reviewers: write the numbers of those that are worth publishing."


async def git(repository: str, *arguments: str) -> str:
    """Run a git command, and return what it prints."""
    ended = await anyio.run_process(["git", "-C", repository, *arguments], stderr=None)
    return ended.stdout.decode(errors="replace")


# A review with more questions than this halts, and a person says how many more there may be.
QUESTIONS = Budget(400, "questions", worst=1, on_empty="ask")


# Every question to the model is this one action, under several names, so all of them share its
# limits. The first has one key, so a server that says "later" pauses all. The idempotency key is
# the same in each attempt and after each resume of a child's step.
@action(reads=["prompt"], writes=["answer"], limits=Limits(8, by=lambda _: "model") & QUESTIONS)
async def ask(prompt: str, model: Model, context: Context) -> str:
    return (await model(prompt, context.idempotency_key)).strip()


# -- one comment on one file: draft an answer, and check it ------------------------------------


@action(reads=["comment", "diff"], writes=["prompt", "draft"], executor="loop")
def ask_for_draft(comment: str, diff: str) -> dict[str, str]:
    return {"prompt": PARTS.join([DRAFT, comment, diff]), "draft": ""}


@action(reads=["comment", "diff", "answer"], writes=["prompt", "draft"], executor="loop")
def ask_for_check(comment: str, diff: str, answer: str) -> dict[str, str]:
    return {"prompt": PARTS.join([CHECK, comment, diff, answer]), "draft": answer}


@action(reads=["draft", "answer"], writes=["reply"], executor="loop")
def settle(draft: str, answer: str) -> str:
    return draft if answer.upper().startswith("YES") else ""


draft, check, judge = (ask.bind(name=name) for name in ("draft", "check", "judge"))
answer_comment = Graph(
    (ask_for_draft, draft), (draft, settle, when(answer="NOTHING")), (draft, ask_for_check),
    (ask_for_check, check), (check, settle), name="answer_comment",
)  # fmt: skip


# -- the pull request: its files, then all replies, then a person ------------------------------


@action(reads=["repository", "base", "head"], writes=["files"])
async def find_files(repository: str, base: str, head: str) -> list[str]:
    what = ("diff", "--name-only", "-z", "--diff-filter=d", f"{base}...{head}", "--")
    return [name for name in (await git(repository, *what)).split("\0") if name]


@action(reads=["repository", "base", "head", "file"], writes=["diff"])
async def read_diff(repository: str, base: str, head: str, file: str) -> str:
    return await git(repository, "diff", f"{base}...{head}", "--", f":(top,literal){file}")


@action(reads=["reviews"], writes=["replies", "prompt"], executor="loop")
def ask_for_judgement(reviews: Mapping[str, Any]) -> dict[str, Any]:
    replies: list[dict[str, str]] = [
        {"file": file, "comment": comment, "text": text}
        for file, review in reviews.items()
        for comment, text in review["answers"].items()
        if text
    ]
    lines = (f"{n}. {one['comment']!r}: {one['text']}" for n, one in enumerate(replies, 1))
    return {"replies": replies, "prompt": PARTS.join([JUDGE, "\n".join(lines)])}


@action(reads=["replies", "answer"], writes=["replies"], executor="loop")
def choose(replies: Sequence[dict[str, str]], answer: str) -> list[dict[str, str]]:
    numbers = set(map(int, re.findall(r"\d+", answer)))
    return [reply for number, reply in enumerate(replies, 1) if number in numbers]


@action(reads=["replies"], writes=["is_approved"])
async def approve(replies: Sequence[Mapping[str, str]], context: Context) -> bool:
    """Ask a person. The run halts here, in its store, until there is an answer."""
    return await context.ask("publish", {"replies": [dict(one) for one in replies]}) is True


@action(reads=["repository", "head", "replies"], writes=["is_published"])
async def publish(repository: str, head: str, replies: Sequence[Mapping[str, str]]) -> bool:
    """Attach the replies to the commit as a note; doing that twice has the effect of once."""
    text = "\n".join(f"{one['file']}: {one['comment']}\n  {one['text']}" for one in replies)
    who = ("-c", "user.name=pr_bot", "-c", "user.email=pr_bot@localhost")
    await git(repository, *who, "notes", "--ref=review", "add", "-f", "-m", text, head)
    return True


def pr_bot(store: Store | None, *, seconds_per_comment: float = 60.0) -> Application:
    """Make the application. A run needs `repository`, `base`, `head` and `comments`."""
    answer_comments = fan_out(
        answer_comment, over="comments", item="comment", key=str, into="answers", take="reply",
        errors_into="unanswered", on_error="collect",
        # The time counts from a child's start to its end, with its waits for the model. So no more
        # children are in flight than may start their requests in much less time.
        each=Each(timeout=seconds_per_comment, retry=Retry(3, on=Unreachable)),
        limits=Limits(8),
    )  # fmt: skip
    review_file = Graph.chain(read_diff, answer_comments, name="review_file")
    review_files = fan_out(
        review_file, over="files", item="file", key=str, into="reviews",
        take=["answers", "unanswered"], limits=Limits(8),
    )  # fmt: skip
    whole = Graph(
        (find_files, review_files), (review_files, ask_for_judgement),
        (ask_for_judgement, judge, when("replies")), (ask_for_judgement, END),
        (judge, choose), (choose, approve, when("replies")), (choose, END),
        (approve, publish, when("is_approved")), (approve, END),
    )  # fmt: skip
    return Application(whole, name="pr_bot", inputs=["model"], store=store)
