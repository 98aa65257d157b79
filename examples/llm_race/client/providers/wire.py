"""One streaming request over httpx: sends it, interprets a refusal, cuts the stream into events.

A protocol consists of values and two pure functions: its request, the shape of its events, and
their meaning. All other code is here, once. A key is read from the environment when a request is
sent, and no object keeps it, so no object, event or error contains it. The server's texts are still
searched for it, because a server may repeat it.
"""

import json
import os
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

import httpx
import msgspec
from httpx_sse import EventSource, SSEError

from examples.llm_race.client.exchange import Chunk, Prompt
from examples.llm_race.client.failures import (
    RETRYABLE,
    ProviderError,
    kind_of_refusal,
    message_of,
    parse_retry_after,
    stream_error,
)

LONGEST_REFUSAL = 16 * 1024  # bytes of an error's body that are read


class Request(NamedTuple):
    """A request: the path below the base URL, headers and body."""

    path: str
    body: Mapping[str, Any]
    headers: Mapping[str, str] = {}
    """Headers besides the one with the key."""


class Event(msgspec.Struct):
    """The field that all protocols' events may have: an error that ends the answer."""

    error: Any = None


E = TypeVar("E", bound=Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol(Generic[E]):
    """A kind of provider: its protocol."""

    base_url: str
    """The default address."""
    key_env: str | None
    """The environment variable that usually holds the key; None: no key is needed."""
    key_header: str
    key_prefix: str = ""
    framing: Literal["sse", "lines"] = "sse"
    """How the stream is cut: server-sent events, or one JSON object per line."""
    request: Callable[["Endpoint", Prompt], Request]
    event: type[E]
    """The shape of an event; its other fields are ignored."""
    read: Callable[[E], Chunk]
    """Converts an event to a chunk."""

    def decode(self, text: str) -> Chunk:
        """Read one event.

        Raises:
            ProviderError: The event doesn't follow the protocol, or reports an error.
        """
        try:
            event = msgspec.json.decode(text, type=self.event)
        except msgspec.DecodeError as error:
            what = f"an event of the stream doesn't follow the protocol: {error}"
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
        """Send the prompt, and yield the answer part by part.

        Raises:
            ProviderError: The request was refused, or the stream doesn't follow the protocol.
            httpx.TransportError: The connection failed or broke.
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
                told: Mapping[str, str] | None = dict(response.headers)
                async with aclosing(events(response)) as found:
                    async for event in found:
                        yield replace(self.protocol.decode(event), headers=told)
                        told = None  # once is enough
        except SSEError as error:
            raise ProviderError("stream", str(error)) from None

    def key(self) -> str | None:
        """The key, read from the environment now.

        Raises:
            ProviderError: It is not set, or has characters that a header can't contain.
        """
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise ProviderError("key", f"{self.key_env} is not set in the environment")
        if not re.fullmatch(r"[!-~]+", key):  # httpx's own error would show the key
            raise ProviderError("key", f"{self.key_env} has characters that a key can't have")
        return key


async def sse_events(response: httpx.Response) -> AsyncGenerator[str]:
    """Cut a stream into server-sent events; comments, which keep connections alive, are skipped."""
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
    """Read the beginning of a body, which is enough for an error message."""
    body = bytearray()
    async with aclosing(cast("AsyncGenerator[bytes]", response.aiter_bytes())) as parts:
        async for part in parts:
            body += part
            if len(body) >= LONGEST_REFUSAL:
                break
    return bytes(body[:LONGEST_REFUSAL])


def refusal(response: httpx.Response, body: bytes, key: str | None) -> ProviderError:
    """Make the failure for a status of 400 or more."""
    text = body.decode("utf-8", "replace")
    try:
        said = message_of(json.loads(text))
    except ValueError:
        said = message_of(text)
    status = response.status_code
    retry_after = parse_retry_after(response.headers)
    if retry_after is None and (found := re.search(r'"retryDelay":\s*"(\d+(?:\.\d+)?)s"', text)):
        retry_after = float(found[1])  # Gemini sends it in the body
    message = f"{status} {response.reason_phrase}: {said}"
    return ProviderError(
        kind_of_refusal(status, text),
        message.replace(key, "***") if key else message,  # some servers repeat the key
        status=status,
        retry_after=retry_after,
        retryable=status in RETRYABLE,
    )
