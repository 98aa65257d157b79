"""Anthropic's messages protocol."""

import json
from typing import Any

import msgspec

from examples.llm_race.client.exchange import Chunk, Prompt
from examples.llm_race.client.providers.wire import Endpoint, Event, Protocol, Request


def request(endpoint: Endpoint, prompt: Prompt) -> Request:
    system = prompt.system
    if prompt.schema is not None:  # as an instruction, because all its models understand it
        wanted = f"Answer with JSON of this schema, and nothing else: {json.dumps(prompt.schema)}"
        system = f"{system}\n\n{wanted}".strip()
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [{"role": turn.role, "content": turn.text} for turn in prompt.turns],
        "max_tokens": prompt.max_tokens,
        "stream": True,
    }
    if system:
        body["system"] = system
    return Request("/v1/messages", body, {"anthropic-version": "2023-06-01"})


class Usage(msgspec.Struct):
    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None

    @property
    def read(self) -> int | None:
        """All tokens read, including cached ones; None if the event doesn't report them.

        Servers that don't know the number yet report 0. If they report it, a later event has it.
        """
        cached = (self.cache_creation_input_tokens or 0) + (self.cache_read_input_tokens or 0)
        return (self.input_tokens or 0) + cached or None


class Message(msgspec.Struct):
    usage: Usage


class Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    stop_reason: str | None = None


class MessageEvent(Event):
    type: str = ""
    message: Message | None = None
    delta: Delta | None = None
    usage: Usage | None = None


def read(event: MessageEvent) -> Chunk:
    delta = event.delta or Delta()
    usage = event.usage or Usage()
    match event.type:
        case "message_start" if event.message is not None:
            return Chunk(input_tokens=event.message.usage.read)
        case "content_block_delta" if delta.type == "text_delta":
            return Chunk(text=delta.text)
        case "message_delta":
            # These counts are for the whole message. The input counts are optional here, and the
            # only ones if a server omits the first event.
            return Chunk(
                finish=delta.stop_reason, input_tokens=usage.read, output_tokens=usage.output_tokens
            )
        case _:  # pings, ends of blocks, thoughts, and unknown kinds of events
            return Chunk()


ANTHROPIC = Protocol(
    base_url="https://api.anthropic.com",
    key_env="ANTHROPIC_API_KEY",
    key_header="x-api-key",
    request=request,
    event=MessageEvent,
    read=read,
)
