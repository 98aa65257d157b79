"""Google's Gemini: generateContent, streamed."""

from typing import Any

import msgspec

from examples.llm_race.client.exchange import Chunk, Prompt
from examples.llm_race.client.failures import ProviderError
from examples.llm_race.client.providers.wire import Endpoint, Event, Protocol, Request


def request(endpoint: Endpoint, prompt: Prompt) -> Request:
    config: dict[str, Any] = {"maxOutputTokens": prompt.max_tokens}
    if prompt.schema is not None:
        config |= {"responseMimeType": "application/json", "responseJsonSchema": prompt.schema}
    roles = {"user": "user", "assistant": "model"}
    body: dict[str, Any] = {
        "contents": [{"role": roles[t.role], "parts": [{"text": t.text}]} for t in prompt.turns],
        "generationConfig": config,
    }
    if prompt.system:
        body["systemInstruction"] = {"parts": [{"text": prompt.system}]}
    return Request(f"/v1beta/models/{endpoint.model}:streamGenerateContent?alt=sse", body)


class Part(msgspec.Struct):
    text: str = ""
    thought: bool = False


class Content(msgspec.Struct):
    parts: list[Part] | None = None


class Candidate(msgspec.Struct, rename="camel"):
    content: Content | None = None
    finish_reason: str | None = None


class Usage(msgspec.Struct, rename="camel"):
    prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None


class Feedback(msgspec.Struct, rename="camel"):
    block_reason: str | None = None


class Response(Event, rename="camel"):
    candidates: list[Candidate] | None = None
    usage_metadata: Usage | None = None
    prompt_feedback: Feedback | None = None


def read(event: Response) -> Chunk:
    if event.prompt_feedback is not None and event.prompt_feedback.block_reason:
        raise ProviderError(
            "refused", f"the prompt was blocked: {event.prompt_feedback.block_reason}"
        )
    candidate = event.candidates[0] if event.candidates else Candidate()
    parts = (candidate.content or Content()).parts or []
    usage = event.usage_metadata or Usage()
    written = [usage.candidates_token_count, usage.thoughts_token_count]
    return Chunk(
        text="".join(part.text for part in parts if not part.thought),
        finish=candidate.finish_reason,
        input_tokens=usage.prompt_token_count,
        output_tokens=None if written == [None, None] else sum(n or 0 for n in written),
    )


GEMINI = Protocol(
    base_url="https://generativelanguage.googleapis.com",
    key_env="GEMINI_API_KEY",
    key_header="x-goog-api-key",
    request=request,
    event=Response,
    read=read,
)
