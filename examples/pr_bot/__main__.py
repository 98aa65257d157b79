"""Answer the comments of a review. Started again, the command continues where it was."""

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

import anyio

from examples.pr_bot.bot import git, pr_bot
from examples.pr_bot.models import Model, local_model, provider
from shoal import SQLiteStore, UnknownQuestion


async def review(options: argparse.Namespace, model: Model) -> None:
    lines = (await anyio.Path(options.comments).read_text("utf-8")).splitlines()
    comments = [line.strip() for line in lines if line.strip()]
    names = [f"{name}^{{commit}}" for name in (options.base, options.head)]
    base, head = (await git(options.repository, "rev-parse", *names)).split()
    state = {"repository": options.repository, "base": base, "head": head, "comments": comments}
    # The same commits and comments are the same run, in whichever process.
    run_id = hashlib.sha256("\n".join([base, head, *comments]).encode()).hexdigest()[:16]
    answers = None if options.answer is None else {"publish": options.answer == "yes"}
    app = pr_bot(SQLiteStore(options.database), seconds_per_comment=options.timeout)
    result = await app.run(state, id=run_id, inputs={"model": model}, answers=answers)
    for file, found in result.state["reviews"].items():
        for comment, error in found["unanswered"].items():
            print(f"{file}: {comment}\n  no answer: {error}", file=sys.stderr)
    for reply in result.state["replies"]:
        print(f"{reply['file']}: {reply['comment']}\n  {reply['text']}")
    if result.questions:
        print("publish? Give the same command with --answer yes, or no.", file=sys.stderr)


parser = argparse.ArgumentParser(prog="python -m examples.pr_bot", description=__doc__)
parser.add_argument("repository", type=lambda path: str(Path(path).resolve()))
parser.add_argument("comments", help="a file with one comment in each line")
parser.add_argument("--base", default="main")
parser.add_argument("--head", default="HEAD")
parser.add_argument("--model", help="a model at OPENAI_BASE_URL; default: a local function")
parser.add_argument("--answer", choices=["yes", "no"], help="to the question before")
parser.add_argument("--database", default="pr_bot.db")
parser.add_argument("--timeout", type=float, default=60.0, help="seconds for each comment")

if __name__ == "__main__":
    options = parser.parse_args()
    model = provider(options.model) if options.model else local_model
    try:
        anyio.run(review, options, model)
    except (OSError, UnknownQuestion, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
