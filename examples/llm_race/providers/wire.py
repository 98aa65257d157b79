"""One streaming request over httpx: sent, its refusal understood, its stream cut into events.

What is particular to a protocol is what to send, the shape of an event, and what one says: values
and two pure functions. All else is here, once. A key is read from the environment when a request is
sent, and held by nothing: so no object, event or error has it. What a server says is searched for
it all the same.
"""

import json
import os
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

import httpx
import msgspec
from httpx_sse import EventSource, SSEError

from examples.llm_race.exchange import Chunk, Prompt
from examples.llm_race.failures import (
    RETRYABLE,
    ProviderError,
    kind_of_refusal,
    message_of,
    parse_retry_after,
    stream_error,
)

LONGEST_REFUSAL = 16 * 1024  # bytes that are read of the body of an error


class Request(NamedTuple):
    """What is sent: the path below the base URL, and the rest."""

    path: str
    body: Mapping[str, Any]
    headers: Mapping[str, str] = {}
    """Besides the one with the key."""


class Event(msgspec.Struct):
    """What all protocols' events may have: an error, where the answer breaks off."""

    error: Any = None


E = TypeVar("E", bound=Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol(Generic[E]):
    """How a kind of provider is spoken to."""

    base_url: str
    """Where it lives unless a configuration says otherwise."""
    key_env: str | None
    """The environment variable that usually holds its key; None: it needs none."""
    key_header: str
    key_prefix: str = ""
    framing: Literal["sse", "lines"] = "sse"
    """How its stream is cut: server-sent events, or one JSON object a line."""
    request: Callable[["Endpoint", Prompt], Request]
    event: type[E]
    """The shape of an event: of what else it has, nothing is read."""
    read: Callable[[E], Chunk]
    """What an event says."""

    def decode(self, text: str) -> Chunk:
        """Read one event.

        Raises:
            ProviderError: It is not what the protocol says, or tells of an error.
        """
        try:
            event = msgspec.json.decode(text, type=self.event)
        except msgspec.DecodeError as error:
            what = f"an event of the stream is not what the protocol says: {error}"
            raise ProviderError("stream", what, retryable=True) from None
        if event.error:
            raise stream_error(event.error)
        return self.read(event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A model behind a protocol, at an address."""

    protocol: Protocol[Any]
    model: str
    base_url: str
    key_env: str | None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    async def stream(self, prompt: Prompt, client: httpx.AsyncClient) -> AsyncGenerator[Chunk]:
        """Ask, and give the answer part by part.

        Raises:
            ProviderError: The request was refused, or the stream is not what the protocol says.
            httpx.TransportError: There was no connection, or it broke.
        """
        key = self.key()
        request = self.protocol.request(self, prompt)
        headers = {**request.headers, **self.headers}
        if key is not None:
            headers[self.protocol.key_header] = self.protocol.key_prefix + key
        url = self.base_url.rstrip("/") + request.path
        try:
            async with client.stream("POST", url, json=request.body, headers=headers) as response:
                if response.is_error:
                    raise refusal(response, await read_some(response), key)
                events = sse_events if self.protocol.framing == "sse" else line_events
                async with aclosing(events(response)) as found:
                    async for event in found:
                        yield self.protocol.decode(event)
        except SSEError as error:
            raise ProviderError("stream", str(error)) from None

    def key(self) -> str | None:
        """The key, as the environment has it now.

        Raises:
            ProviderError: It is not there, or can't be what a header holds.
        """
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise ProviderError("key", f"{self.key_env} is not set in the environment")
        if not re.fullmatch(r"[!-~]+", key):  # the client's own error would show it
            raise ProviderError("key", f"{self.key_env} holds characters that no key has")
        return key


async def sse_events(response: httpx.Response) -> AsyncGenerator[str]:
    """Cut a stream into server-sent events; comments, which keep connections alive, are none."""
    async with aclosing(EventSource(response).aiter_sse()) as events:
        async for event in events:
            if event.data.strip() == "[DONE]":
                return
            if event.data:
                yield event.data


async def line_events(response: httpx.Response) -> AsyncGenerator[str]:
    """Cut a stream into lines."""
    async with aclosing(cast("AsyncGenerator[str]", response.aiter_lines())) as lines:
        async for line in lines:
            if line.strip():
                yield line


async def read_some(response: httpx.Response) -> bytes:
    """Read the beginning of a body: enough for what an error says."""
    body = bytearray()
    async with aclosing(cast("AsyncGenerator[bytes]", response.aiter_bytes())) as parts:
        async for part in parts:
            body += part
            if len(body) >= LONGEST_REFUSAL:
                break
    return bytes(body[:LONGEST_REFUSAL])


def refusal(response: httpx.Response, body: bytes, key: str | None) -> ProviderError:
    """The failure that a status of 400 or more means."""
    text = body.decode("utf-8", "replace")
    try:
        said = message_of(json.loads(text))
    except ValueError:
        said = message_of(text)
    status = response.status_code
    retry_after = parse_retry_after(response.headers)
    if retry_after is None and (found := re.search(r'"retryDelay":\s*"(\d+(?:\.\d+)?)s"', text)):
        retry_after = float(found[1])  # Gemini says it in the body
    message = f"{status} {response.reason_phrase}: {said}"
    return ProviderError(
        kind_of_refusal(status, text),
        message.replace(key, "***") if key else message,  # some servers repeat it
        status=status,
        retry_after=retry_after,
        retryable=status in RETRYABLE,
    )
