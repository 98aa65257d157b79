"""Several language models race for an answer: a program and its parts.

Run it with `python -m examples.llm_race ask --demo "Why is the sea salty?"`. To read it, begin with
`strategies`, which uses the runtime, and `contestant`, the action of a race. Then read `exchange`
and `failures` (prompts, answers and errors), `providers` (four protocols), `scoreboard` (a hook
that records what each provider did), `acceptance`, `prices` and `config`. `racing`, `batch` and
`bench` put them together; `command`, `commands` and `display` are the command line. `service`
serves races to OpenAI's clients: `offer` has the races, `streams` the events, `openai_api` the
messages, and `serve` listens on a socket.

Any async function that streams can race, so SDKs can, too:

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
