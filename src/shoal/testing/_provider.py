"""`ScriptedProvider`: a model that streams, with the delays and faults that a test gives."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Literal, final

import anyio

Ended = Literal["open", "done", "failed", "closed"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One reply of a `ScriptedProvider`.

    Attributes:
        chunks: what is streamed; a string is streamed by its words.
        first_after: seconds until the first chunk.
        between: seconds from one chunk to the next.
        fails_after: after so many chunks it raises ``error``, or, without one, hangs; None: it
            streams all.
        error: what it raises.
    """

    chunks: str | tuple[str, ...] = ""
    first_after: float = 0.0
    between: float = 0.0
    fails_after: int | None = None
    error: Exception | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The chunks, one by one."""
        if not isinstance(self.chunks, str):
            return self.chunks
        words = self.chunks.split(" ")
        return tuple(f"{word} " for word in words[:-1]) + tuple(words[-1:])


@final
class ProviderRequest:
    """One request to a `ScriptedProvider`.

    Attributes:
        prompt: what was asked.
        began_at: when, by the loop's clock.
        chunks: how many chunks it was given so far.
        ended: "open", "done", "failed", or "closed": it was cancelled, or left early.
    """

    def __init__(self, prompt: Any, began_at: float) -> None:
        """Begin it."""
        self.prompt: Any = prompt
        self.began_at: float = began_at
        self.chunks: int = 0
        self.ended: Ended = "open"

    def __repr__(self) -> str:
        return f"<ProviderRequest {self.prompt!r}: {self.ended} after {self.chunks} chunks>"


@final
class ScriptedProvider:
    """A model that answers by a script: a fake to give to actions as an input.

    ``stream(prompt)`` is an async iterator of chunks; ``await provider(prompt)`` is the whole text.
    The n-th request gets the n-th reply, and the last one is repeated. A mapping gives each prompt
    its reply instead, so that the order of requests doesn't matter.

    >>> slow = ScriptedProvider(Reply(chunks="forty two", first_after=2))
    >>> fast = ScriptedProvider(Reply(chunks="fo rty", fails_after=1, error=ConnectionError("cut")))
    >>> async def main() -> str:
    ...     try:
    ...         return await fast("?")
    ...     except ConnectionError:
    ...         return await slow("?")
    >>> run_virtual(main)
    'forty two'
    >>> fast.requests
    [<ProviderRequest '?': failed after 1 chunks>]
    """

    def __init__(self, *replies: Reply, by: dict[Any, Reply] | None = None) -> None:
        """Write the script.

        Args:
            *replies: The replies, in the order of requests.
            by: Replies by prompt; the others are for prompts that it doesn't have.

        Raises:
            ValueError: There is no reply.
        """
        if not replies and not by:
            msg = "a provider has at least one reply: ScriptedProvider(Reply(chunks='yes'))"
            raise ValueError(msg)
        self._replies = replies
        self._by = by or {}
        self._count = 0
        self.requests: list[ProviderRequest] = []
        """All requests, in order."""

    @property
    def open(self) -> int:
        """How many requests have not ended: each is paid for until it does."""
        return sum(request.ended == "open" for request in self.requests)

    async def stream(self, prompt: Any) -> AsyncGenerator[str]:
        """Stream the reply to a prompt.

        Raises:
            Exception: The fault of the reply.
        """
        reply = self._reply(prompt)
        request = ProviderRequest(prompt, anyio.current_time())
        self.requests.append(request)
        try:
            for number, chunk in enumerate(reply.parts[: reply.fails_after]):
                await anyio.sleep(reply.between if number else reply.first_after)
                request.chunks += 1
                yield chunk
            if reply.fails_after is None:
                request.ended = "done"
                return
            if reply.error is None:
                await anyio.sleep_forever()
            else:
                request.ended = "failed"
                raise reply.error
        finally:
            if request.ended == "open":
                request.ended = "closed"

    async def __call__(self, prompt: Any) -> str:
        """Return the whole reply to a prompt.

        Raises:
            Exception: The fault of the reply.
        """
        return "".join([chunk async for chunk in self.stream(prompt)])

    def _reply(self, prompt: Any) -> Reply:
        found = self._by.get(prompt)
        if found is not None:
            return found
        if not self._replies:
            msg = f"the script has no reply to {prompt!r}: give one in by={{...}}, or one for all"
            raise LookupError(msg)
        self._count += 1
        return self._replies[min(self._count, len(self._replies)) - 1]
