"""Anthropic's messages."""

import json
from typing import Any

from examples.llm_race.exchange import Chunk, Prompt
from examples.llm_race.providers.wire import Endpoint, Protocol, Request

READ = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


def request(endpoint: Endpoint, prompt: Prompt) -> Request:
    system = prompt.system
    if prompt.schema is not None:  # said in words, which all its models understand
        wanted = f"Answer with JSON of this schema, and nothing else: {json.dumps(prompt.schema)}"
        system = f"{system}\n\n{wanted}".strip()
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": prompt.text}],
        "max_tokens": prompt.max_tokens,
        "stream": True,
    }
    if system:
        body["system"] = system
    return Request("/v1/messages", body, {"anthropic-version": "2023-06-01"})


def read(event: dict[str, Any]) -> Chunk:
    match event.get("type"):
        case "message_start":
            usage = event["message"]["usage"]
            return Chunk(input_tokens=sum(usage.get(name) or 0 for name in READ))
        case "content_block_delta" if event["delta"]["type"] == "text_delta":
            return Chunk(text=event["delta"]["text"])
        case "message_delta":
            usage = event.get("usage") or {}
            return Chunk(
                finish=event["delta"].get("stop_reason"), output_tokens=usage.get("output_tokens")
            )
        case _:  # pings, ends of blocks, thoughts, and kinds that are yet to be invented
            return Chunk()


ANTHROPIC = Protocol(
    base_url="https://api.anthropic.com",
    key_env="ANTHROPIC_API_KEY",
    key_header="x-api-key",
    request=request,
    read=read,
)
