"""Who can be asked: a model behind one of four protocols, or any async function.

To add a protocol, write what to send and what an event says, as in `openai`, and enter it below.
"""

from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from examples.llm_race.exchange import Chunk, Prompt
from examples.llm_race.providers.anthropic import ANTHROPIC
from examples.llm_race.providers.gemini import GEMINI
from examples.llm_race.providers.ollama import OLLAMA
from examples.llm_race.providers.openai import OPENAI
from examples.llm_race.providers.wire import Endpoint, Protocol

PROTOCOLS: dict[str, Protocol[Any]] = {
    "openai": OPENAI,
    "anthropic": ANTHROPIC,
    "gemini": GEMINI,
    "ollama": OLLAMA,
}

Stream = AsyncIterable[str | Chunk] | AsyncIterable[str] | AsyncIterable[Chunk]
Ask = Callable[[Prompt, httpx.AsyncClient], Stream | Awaitable[Stream]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A contestant: how it is asked, how much it can take, and what it costs."""

    name: str
    ask: Ask
    model: str = ""
    kind: str = "function"
    endpoint: Endpoint | None = None
    rpm: float | None = None
    """Requests a minute; None: as many as we like."""
    tpm: float | None = None
    """Tokens a minute, read and written."""
    max_concurrency: int = 100
    """Requests at once."""
    weight: float = 1.0
    """Who is asked first where not all are asked at once: the heaviest."""
    price_in: float | None = None
    """USD for a million tokens read; None: look it up by the model's name."""
    price_out: float | None = None

    @classmethod
    def of(
        cls,
        function: Callable[[str], Stream | Awaitable[Stream]],
        *,
        name: str | None = None,
        model: str = "",
        **limits: Any,
    ) -> "Provider":
        """Make a contestant of any async function of a prompt's text that gives a stream.

        It is an async generator function, or a coroutine function that returns something to iterate
        over, as SDKs do. The stream is of text, or of `Chunk`s, one of which must have `finish`:
        where an answer can be told to be whole, one that just ends is a failure.
        """

        def ask(prompt: Prompt, _: httpx.AsyncClient) -> Stream | Awaitable[Stream]:
            return function(prompt.text)

        return cls(name=name or function.__name__, ask=ask, model=model, **limits)


__all__ = ["PROTOCOLS", "Ask", "Endpoint", "Protocol", "Provider", "Stream"]
