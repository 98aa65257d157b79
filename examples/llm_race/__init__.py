"""Several language models race for an answer: a program and its parts.

Run it with `python -m examples.llm_race ask --demo "Why is the sea salty?"`. To read it, begin with
`tutorial`, which does without the others, and then `race`.

- `client` asks providers in four protocols, and knows nothing of races, nor of shoal.
- `race` is the race: its strategies, its action, its scoreboard, and which answers count.
- `gateway` serves races to OpenAI's clients.
- `batch` holds a race for each of many prompts, and `bench` compares the strategies.
- `command` is the command line, and `demo` has the models for `--demo`.

Any async function that streams can race, so SDKs can, too:

    async def gpt(prompt: str):
        async for event in await openai.chat.completions.create(..., stream=True):
            choice = event.choices[0]
            yield Chunk(text=choice.delta.content or "", finish=choice.finish_reason)

    report = await ask("Why?", [Provider.of(gpt), Provider.of(claude)], Rules(strategy="hedge"))
"""

from examples.llm_race.client.config import load
from examples.llm_race.client.exchange import Answer, Chunk, Prompt, Usage
from examples.llm_race.client.failures import ProviderError, Unacceptable
from examples.llm_race.client.providers import Endpoint, Provider
from examples.llm_race.race.acceptance import acceptance
from examples.llm_race.race.contestant import Terms, contestant
from examples.llm_race.race.racing import Race, Report, ask
from examples.llm_race.race.scoreboard import Lane, Scoreboard
from examples.llm_race.race.spending import budget_of
from examples.llm_race.race.strategies import Rules, strategy

__all__ = [
    "Answer",
    "Chunk",
    "Endpoint",
    "Lane",
    "Prompt",
    "Provider",
    "ProviderError",
    "Race",
    "Report",
    "Rules",
    "Scoreboard",
    "Terms",
    "Unacceptable",
    "Usage",
    "acceptance",
    "ask",
    "budget_of",
    "contestant",
    "load",
    "strategy",
]
