"""Two language models race in one file: the first to speak answers, the other request is closed.

    export OPENAI_API_KEY=... ANTHROPIC_API_KEY=...
    python -m examples.llm_race.tutorial "Why is the sea salty?"

prints the answer while it arrives. It needs `pip install openai anthropic`. OPENAI_BASE_URL and
OPENAI_MODEL name another server and another model; ANTHROPIC_BASE_URL and ANTHROPIC_MODEL, too.
"""

import os
import sys
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager

import anthropic
import anyio
import openai
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from shoal import Application, Each, Limits, Result, Retry, RetryLater, action, first_item, race
from shoal.events import Item

GPT = os.environ.get("OPENAI_MODEL", "gpt-5-mini")
CLAUDE = os.environ.get("ANTHROPIC_MODEL", "claude-haiku-4-5")


class BrokeOff(Exception):
    """The answer ended before its model said that it was complete."""


@contextmanager
def obeying_servers() -> Generator[None]:
    """Pause as long as a server asks for. Other failures are left to the `Retry` below."""
    try:
        yield
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        if error.status_code not in (429, 503, 529):
            raise
        seconds = error.response.headers.get("retry-after", "")
        raise RetryLater(float(seconds) if seconds.isdecimal() else 1.0) from error


# Each contestant is an action that streams: it yields items, and the last one is its result.
@action(reads=["prompt"], writes=["answer"], limits=Limits(8))
async def gpt(prompt: str, gpt_client: AsyncOpenAI) -> AsyncIterator[str | Result[str]]:
    text, finish = "", None
    with obeying_servers():
        events = await gpt_client.chat.completions.create(
            model=GPT, messages=[{"role": "user", "content": prompt}], stream=True
        )
        async with events:  # a cancelled loser closes its request here
            async for event in events:
                for choice in event.choices:
                    finish = choice.finish_reason or finish
                    if token := choice.delta.content:
                        text += token
                        yield token
    if finish is None:
        raise BrokeOff(f"after {len(text)} characters")
    yield Result(text)


@action(reads=["prompt"], writes=["answer"], limits=Limits(8))
async def claude(prompt: str, claude_client: AsyncAnthropic) -> AsyncIterator[str | Result[str]]:
    text, finish = "", None
    with obeying_servers():
        asked = claude_client.messages.stream(
            model=CLAUDE, max_tokens=2000, messages=[{"role": "user", "content": prompt}]
        )
        async with asked as events:
            async for event in events:
                if event.type == "text":
                    text += event.text
                    yield event.text
                elif event.type == "message_delta":
                    finish = event.delta.stop_reason
    if finish is None:
        raise BrokeOff(f"after {len(text)} characters")
    yield Result(text)


PASSING = (openai.APIConnectionError, anthropic.APIConnectionError, BrokeOff)
answer = race(
    gpt,
    claude,
    into="answer",
    until=first_item(on_break="restart"),  # if the winner breaks off, the other one may answer
    stagger=0.5,  # claude starts if gpt is silent for half a second, or at once if gpt fails
    each=Each(timeout=60, retry=Retry(2, on=PASSING)),
    timeout=90,
)
app = Application(answer, name="tutorial")


async def tell(prompt: str, gpt_client: AsyncOpenAI, claude_client: AsyncAnthropic) -> str:
    """Print the answer while it arrives, and return it."""
    inputs = {"gpt_client": gpt_client, "claude_client": claude_client}
    async with gpt_client, claude_client, app.open({"prompt": prompt}, inputs=inputs) as run:
        async for event in run:
            if isinstance(event, Item):  # an answer that begins anew has the index 0 again
                begins = f"\n{event.path.act}: " if event.index == 0 else ""
                print(begins + event.item, end="", flush=True)
        result = await run.result()
    lost = [f"{one.act}: {type(one).__name__}" for one in result.outcomes("answer")]
    print("", *lost, sep="\n", file=sys.stderr)
    return result.state["answer"]


if __name__ == "__main__":
    clients = AsyncOpenAI(max_retries=0), AsyncAnthropic(max_retries=0)
    try:
        anyio.run(tell, sys.argv[1], *clients)
    except ExceptionGroup as nobody:
        sys.exit("\n".join(str(why) for why in nobody.exceptions))
