"""Several language models race for an answer: a program, and what it is made of.

Run it with `python -m examples.llm_race ask --demo "Why is the sea salty?"`. To read it, begin with
`strategies`, where the runtime is at work, and `contestant`, the action that races; then `exchange`
and `failures` (what goes to and fro, and how that fails), `providers` (four protocols),
`scoreboard` (a hook that knows who did what), `acceptance`, `prices`, `config`. `racing`, `batch`
and `bench` put them together; `command`, `commands` and `display` are the command line. `service`
is the same for clients of OpenAI's: `offer` is what it holds, `streams` what it tells meanwhile,
`openai_api` what both sides say; `serve` puts it on a socket.

Any async function that streams can race, so SDKs can:

    async def gpt(prompt: str):
        async for event in await openai.chat.completions.create(..., stream=True):
            choice = event.choices[0]
            yield Chunk(text=choice.delta.content or "", finish=choice.finish_reason)

    report = await ask("Why?", [Provider.of(gpt), Provider.of(claude)], Rules(strategy="hedge"))
"""

from examples.llm_race.acceptance import acceptance
from examples.llm_race.config import load
from examples.llm_race.contestant import Terms, contestant
from examples.llm_race.exchange import Answer, Chunk, Prompt, Usage
from examples.llm_race.failures import ProviderError, Unacceptable
from examples.llm_race.prices import Purse
from examples.llm_race.providers import Endpoint, Provider
from examples.llm_race.racing import Race, Report, ask
from examples.llm_race.scoreboard import Lane, Scoreboard
from examples.llm_race.strategies import Rules, strategy

__all__ = [
    "Answer",
    "Chunk",
    "Endpoint",
    "Lane",
    "Prompt",
    "Provider",
    "ProviderError",
    "Purse",
    "Race",
    "Report",
    "Rules",
    "Scoreboard",
    "Terms",
    "Unacceptable",
    "Usage",
    "acceptance",
    "ask",
    "contestant",
    "load",
    "strategy",
]
