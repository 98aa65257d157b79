"""Google's Gemini: generateContent, streamed."""

from typing import Any

from examples.llm_race.exchange import Chunk, Prompt
from examples.llm_race.failures import ProviderError
from examples.llm_race.providers.wire import Endpoint, Protocol, Request


def request(endpoint: Endpoint, prompt: Prompt) -> Request:
    config: dict[str, Any] = {"maxOutputTokens": prompt.max_tokens}
    if prompt.schema is not None:
        config |= {"responseMimeType": "application/json", "responseJsonSchema": prompt.schema}
    body: dict[str, Any] = {
        "contents": [{"role": "user", "parts": [{"text": prompt.text}]}],
        "generationConfig": config,
    }
    if prompt.system:
        body["systemInstruction"] = {"parts": [{"text": prompt.system}]}
    return Request(f"/v1beta/models/{endpoint.model}:streamGenerateContent?alt=sse", body)


def read(event: dict[str, Any]) -> Chunk:
    blocked = (event.get("promptFeedback") or {}).get("blockReason")
    if blocked:
        raise ProviderError("empty", f"the prompt was blocked: {blocked}")
    candidate: dict[str, Any] = next(iter(event.get("candidates") or ()), {})
    parts: list[dict[str, Any]] = (candidate.get("content") or {}).get("parts") or []
    usage: dict[str, Any] = event.get("usageMetadata") or {}
    written = [usage.get("candidatesTokenCount"), usage.get("thoughtsTokenCount")]
    return Chunk(
        text="".join(part.get("text") or "" for part in parts if not part.get("thought")),
        finish=candidate.get("finishReason"),
        input_tokens=usage.get("promptTokenCount"),
        output_tokens=None if written == [None, None] else sum(n or 0 for n in written),
    )


GEMINI = Protocol(
    base_url="https://generativelanguage.googleapis.com",
    key_env="GEMINI_API_KEY",
    key_header="x-goog-api-key",
    request=request,
    read=read,
)
