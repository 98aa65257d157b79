"""OpenAI's chat completions, which most other servers support, too."""

from typing import Any

import msgspec

from examples.llm_race.client.exchange import Chunk, Prompt
from examples.llm_race.client.failures import ProviderError
from examples.llm_race.client.providers.wire import Endpoint, Event, Protocol, Request


def request(endpoint: Endpoint, prompt: Prompt) -> Request:
    messages = [{"role": turn.role, "content": turn.text} for turn in prompt.turns]
    if prompt.system:
        messages.insert(0, {"role": "system", "content": prompt.system})
    # OpenAI's newer models refuse the old name, and other servers don't know the new one.
    limit = "max_completion_tokens" if "api.openai.com" in endpoint.base_url else "max_tokens"
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": messages,
        limit: prompt.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if prompt.schema is not None:
        schema = {"name": "answer", "schema": prompt.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return Request("/chat/completions", body)


class Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class Choice(msgspec.Struct):
    delta: Delta | None = None
    finish_reason: str | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class ChatChunk(Event):
    choices: list[Choice] | None = None
    usage: Usage | None = None


def read(event: ChatChunk) -> Chunk:
    choice = event.choices[0] if event.choices else Choice()
    usage = event.usage or Usage()
    delta = choice.delta or Delta()
    if delta.refusal:
        raise ProviderError("refused", f"the model refuses: {delta.refusal[:200]}")
    return Chunk(
        text=delta.content or "",
        finish=choice.finish_reason,
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
    )


OPENAI = Protocol(
    base_url="https://api.openai.com/v1",
    key_env="OPENAI_API_KEY",
    key_header="Authorization",
    key_prefix="Bearer ",
    request=request,
    event=ChatChunk,
    read=read,
)
