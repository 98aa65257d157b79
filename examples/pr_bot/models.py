"""The models that the bot may ask: a plain function, or any server that speaks OpenAI's API."""

import re
from collections.abc import Awaitable, Callable

from shoal import RetryLater

Model = Callable[[str, str], Awaitable[str]]
"""Takes a prompt and an idempotency key, and returns the answer."""
PARTS = "\n=====\n"  # between the parts of a prompt; no line of a diff begins like this


class Unreachable(Exception):
    """A model gave no answer, and may give one when it is asked again."""


async def local_model(prompt: str, _key: str) -> str:
    """Answer by comparing words, so that the same prompt always has the same answer."""
    task, *parts = prompt.split(PARTS)
    if task.startswith("JUDGE"):  # all answers that quote something
        return " ".join(line.partition(".")[0] for line in parts[0].splitlines() if ": " in line)
    comment, diff, *drafts = parts
    if drafts:  # CHECK: does the answer quote the change?
        return "YES" if drafts[0].partition(": ")[2] in diff else "NO"
    wanted = set(re.findall(r"\w{4,}", comment.lower()))
    added = [line[1:].strip() for line in diff.splitlines() if re.match(r"\+(?!\+\+)", line)]
    hits = [line for line in added if wanted & set(re.findall(r"\w{4,}", line.lower()))]
    return f"see the line: {hits[0]}" if hits else "NOTHING"


def provider(model: str) -> Model:
    """Make a model of its name; OPENAI_BASE_URL and OPENAI_API_KEY say where it is."""
    import openai  # noqa: PLC0415 - only for such models

    client = openai.AsyncOpenAI(max_retries=0)  # because the bot tries again

    async def ask(prompt: str, key: str) -> str:
        try:
            answer = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                # A server that knows this key gives its first answer again, and charges once.
                extra_headers={"Idempotency-Key": key},
            )
        except openai.APIConnectionError as error:
            raise Unreachable(str(error)) from error
        except openai.APIStatusError as error:
            if error.status_code in (429, 503, 529):
                seconds = error.response.headers.get("retry-after", "")
                raise RetryLater(float(seconds) if seconds.isdecimal() else 1.0) from error
            if error.status_code < 500:
                raise
            raise Unreachable(str(error)) from error
        return answer.choices[0].message.content or ""

    return ask
