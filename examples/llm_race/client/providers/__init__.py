"""Providers: a model behind one of four protocols, or any async function.

To add a protocol, write its request and the meaning of its events, as in `openai`, and add it
below.
"""

from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from examples.llm_race.client.exchange import Chunk, Prompt
from examples.llm_race.client.providers.anthropic import ANTHROPIC
from examples.llm_race.client.providers.gemini import GEMINI
from examples.llm_race.client.providers.ollama import OLLAMA
from examples.llm_race.client.providers.openai import OPENAI
from examples.llm_race.client.providers.wire import Endpoint, Protocol

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
    """A contestant: its protocol, its limits and its prices."""

    name: str
    ask: Ask
    model: str = ""
    kind: str = "function"
    endpoint: Endpoint | None = None
    rpm: float | None = None
    """Requests per minute; None: no limit."""
    tpm: float | None = None
    """Tokens per minute, read and written."""
    max_concurrency: int = 100
    """Concurrent requests."""
    weight: float = 1.0
    """If providers are asked one after the other, the one with the highest weight is first."""
    price_in: float | None = None
    """USD per million tokens read; None: look it up by the model's name."""
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
        """Make a contestant of an async function that takes a prompt's text and returns a stream.

        The function is an async generator function, or a coroutine function that returns an
        iterable, like those of SDKs. The stream yields text, or `Chunk`s, one of which must have
        `finish`: chunks can show that an answer is complete, so a stream of chunks that ends
        without it is a failure.
        """

        def ask(prompt: Prompt, _: httpx.AsyncClient) -> Stream | Awaitable[Stream]:
            return function(prompt.text)

        return cls(name=name or function.__name__, ask=ask, model=model, **limits)


__all__ = ["PROTOCOLS", "Ask", "Endpoint", "Protocol", "Provider", "Stream"]
