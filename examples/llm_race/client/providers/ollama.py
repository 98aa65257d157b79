"""Ollama's chat: models on this machine, or on another one that needs no key."""

from typing import Any

import msgspec

from examples.llm_race.client.exchange import Chunk, Prompt
from examples.llm_race.client.providers.wire import Endpoint, Event, Protocol, Request


def request(endpoint: Endpoint, prompt: Prompt) -> Request:
    messages = [{"role": turn.role, "content": turn.text} for turn in prompt.turns]
    if prompt.system:
        messages.insert(0, {"role": "system", "content": prompt.system})
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": messages,
        "stream": True,
        "options": {"num_predict": prompt.max_tokens},
    }
    if prompt.schema is not None:
        body["format"] = prompt.schema
    return Request("/api/chat", body)


class Message(msgspec.Struct):
    content: str = ""


class Line(Event):
    message: Message | None = None
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None


def read(event: Line) -> Chunk:
    return Chunk(
        text=(event.message or Message()).content,
        finish=(event.done_reason or "stop") if event.done else None,
        input_tokens=event.prompt_eval_count,
        output_tokens=event.eval_count,
    )


OLLAMA = Protocol(
    base_url="http://127.0.0.1:11434",
    key_env=None,
    key_header="Authorization",
    key_prefix="Bearer ",
    framing="lines",
    request=request,
    event=Line,
    read=read,
)
