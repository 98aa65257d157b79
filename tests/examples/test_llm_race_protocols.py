"""Four protocols, as bytes that need no network: what is sent, and what is understood."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import anyio
import httpx
import pytest

from examples.llm_race import Answer, Endpoint, Prompt, Provider, ProviderError, Terms, Usage
from examples.llm_race.client.failures import (
    is_retryable,
    kind_of,
    parse_retry_after,
    retry_after_of,
    status_of,
)
from examples.llm_race.client.providers import PROTOCOLS
from tests.examples.rivals import hold, lanes

pytestmark = [
    pytest.mark.anyio,
    # httpx leaves generators of its own to the garbage collector; what they read is closed.
    pytest.mark.filterwarnings("ignore:Async generator 'httpx[.]:ResourceWarning"),
]

KINDS = tuple(PROTOCOLS)
KEY = "sk-test-0123456789"


def sse(*events: Any) -> list[bytes]:
    return [f"data: {e if isinstance(e, str) else json.dumps(e)}\n\n".encode() for e in events]


def openai_delta(text: str | None, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


def gemini_part(text: str, **more: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": [{"text": text}]}, **more}]}


GOOD: dict[str, list[bytes]] = {
    "openai": [
        b": OPENROUTER PROCESSING\n\n",
        *sse(
            {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
            openai_delta("Hel"),
            openai_delta("lo"),
            openai_delta(None, "stop"),
            {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 7}},
            "[DONE]",
        ),
    ],
    "anthropic": [
        b'event: ping\ndata: {"type": "ping"}\n\n',
        *sse(
            {
                "type": "message_start",
                "message": {
                    "usage": {
                        "input_tokens": 6,
                        "cache_read_input_tokens": 5,
                        "cache_creation_input_tokens": None,
                        "output_tokens": 1,
                    }
                },
            },
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text"}},
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "thinking_delta", "thinking": "hm"},
            },
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hel"}},
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "lo"}},
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "stop"},
                "usage": {"output_tokens": 7},
            },
            {"type": "message_stop"},
        ),
    ],
    "gemini": sse(
        {"candidates": [{"content": {"parts": [{"text": "hm", "thought": True}]}}]},
        {**gemini_part("Hel"), "usageMetadata": {"promptTokenCount": 11}},
        {
            **gemini_part("lo", finishReason="stop"),
            "usageMetadata": {
                "promptTokenCount": 11,
                "candidatesTokenCount": 4,
                "thoughtsTokenCount": 3,
            },
        },
    ),
    "ollama": [
        json.dumps(line).encode() + b"\n"
        for line in (
            {"message": {"role": "assistant", "content": "Hel"}, "done": False},
            {"message": {"role": "assistant", "content": "lo"}, "done": False},
            {
                "message": {"role": "assistant", "content": ""},
                "done": True,
                "done_reason": "stop",
                "prompt_eval_count": 11,
                "eval_count": 7,
            },
        )
    ],
}


class Script(httpx.AsyncByteStream):
    """A body that comes in parts, with pauses in between; cut at odd places if `size` is given."""

    def __init__(self, parts: Iterable[bytes | float], size: int | None = None) -> None:
        self.parts: list[bytes | float] = []
        for part in parts:
            if isinstance(part, bytes) and size is not None:
                self.parts += [part[n : n + size] for n in range(0, len(part), size)]
            else:
                self.parts.append(part)
        self.is_closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while self.parts:
            part = self.parts.pop(0)
            if isinstance(part, bytes):
                await anyio.sleep(0)
                return part
            await anyio.sleep(part)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.is_closed = True


class Wire(httpx.AsyncBaseTransport):
    """A server that answers each request with what comes next."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def answer(
    kind: str, parts: Iterable[bytes | float] | Script, size: int | None = None
) -> httpx.Response:
    media = "application/x-ndjson" if kind == "ollama" else "text/event-stream; charset=utf-8"
    body = parts if isinstance(parts, Script) else Script(parts, size)
    return httpx.Response(200, headers={"content-type": media}, stream=body)


def endpoint(kind: str, base_url: str = "http://model.test/base/") -> Endpoint:
    return Endpoint(protocol=PROTOCOLS[kind], model="m-1", base_url=base_url, key_env="TEST_KEY")


async def ask(
    kind: str, wire: Wire, prompt: Prompt | None = None, **terms: Any
) -> tuple[Answer | None, Any]:
    """Ask through the action and all around it; give the answer and the lane."""
    async with httpx.AsyncClient(transport=wire) as client:
        target = endpoint(kind)

        def through(given: Prompt, _: httpx.AsyncClient) -> Any:
            return target.stream(prompt or given, client)

        provider = Provider(name=kind, ask=through, model="m-1", price_in=1, price_out=1)
        report = await hold([provider], terms=Terms(**terms))
        return report.answer, report.lanes[0]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", f" {KEY}\n")  # as files of secrets are: with an end of line


@pytest.mark.parametrize("size", [None, 1, 7])
@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_comes_as_it_is_however_it_is_cut(kind: str, size: int | None):
    body = b"".join(GOOD[kind])
    found, lane = await ask(kind, Wire(answer(kind, [body], size)))
    assert found is not None
    assert (found.text, found.finish) == ("Hello", "stop")
    assert found.usage == Usage(input_tokens=11, output_tokens=7)
    assert lane.attempts == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_sent(kind: str):
    wire = Wire(answer(kind, GOOD[kind]))
    schema = {"type": "object"}
    prompt = Prompt(text="why?", system="be brief", max_tokens=99, schema=schema)
    await ask(kind, wire, prompt)
    [request] = wire.requests
    body = json.loads(request.content)
    path = {
        "openai": "/base/chat/completions",
        "anthropic": "/base/v1/messages",
        "gemini": "/base/v1beta/models/m-1:streamGenerateContent",
        "ollama": "/base/api/chat",
    }
    header = {
        "openai": ("authorization", f"Bearer {KEY}"),
        "anthropic": ("x-api-key", KEY),
        "gemini": ("x-goog-api-key", KEY),
        "ollama": ("authorization", f"Bearer {KEY}"),
    }
    assert (request.method, request.url.path) == ("POST", path[kind])
    assert request.headers[header[kind][0]] == header[kind][1]
    assert KEY not in str(request.url)
    assert KEY not in request.content.decode()
    text = json.dumps(body)
    assert all(word in text for word in ("why?", "be brief", "99"))
    asks_for_schema = {
        "openai": lambda: body["response_format"]["json_schema"]["schema"] == schema,
        "anthropic": lambda: '{"type": "object"}' in body["system"],
        "gemini": lambda: body["generationConfig"]["responseJsonSchema"] == schema,
        "ollama": lambda: body["format"] == schema,
    }
    assert asks_for_schema[kind]()
    if kind != "gemini":
        assert body["model"] == "m-1"
        assert body["stream"] is True


async def test_only_openai_itself_receives_its_new_name_for_a_limit():
    made = endpoint("openai", "https://api.openai.com/v1")
    assert "max_completion_tokens" in made.protocol.request(made, Prompt(text="x")).body
    other = endpoint("openai")
    assert "max_tokens" in other.protocol.request(other, Prompt(text="x")).body


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_that_ends_early_is_a_failure_and_asked_again(kind: str):
    torn = GOOD[kind][: {"openai": 4, "anthropic": 6, "gemini": 2, "ollama": 2}[kind]]
    found, lane = await ask(kind, Wire(answer(kind, torn), answer(kind, GOOD[kind])))
    assert found is not None
    assert found.text == "Hello"
    assert lane.attempts == 2
    _, lane = await ask(kind, Wire(answer(kind, torn)), attempts=1)
    assert (lane.status, lane.detail) == (
        "failed",
        "the stream ended before the answer was complete",
    )
    assert not lane.usage.is_reported


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "bad", ["{not json", "[]", "17", '{"choices": 3, "candidates": 3, "delta": 3, "message": 3}']
)
async def test_an_event_that_is_none_is_a_failure_and_asked_again(kind: str, bad: str):
    torn = [f"{bad}\n".encode()] if kind == "ollama" else sse(bad)
    found, lane = await ask(kind, Wire(answer(kind, torn), answer(kind, GOOD[kind])))
    assert found is not None
    assert lane.attempts == 2


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_in_the_stream_is_one(kind: str):
    said = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    torn = [json.dumps(said).encode() + b"\n"] if kind == "ollama" else sse(said)
    _, lane = await ask(kind, Wire(answer(kind, [*GOOD[kind][:3], *torn])), attempts=1)
    assert lane.detail == "an error in the stream: Overloaded"
    found, _ = await ask(kind, Wire(answer(kind, torn), answer(kind, GOOD[kind])))
    assert found is not None, "so it is worth another try"


async def test_a_blocked_prompt_is_not_asked_again():
    wire = Wire(answer("gemini", sse({"promptFeedback": {"blockReason": "SAFETY"}})))
    found, lane = await ask("gemini", wire)
    assert found is None
    assert lane.detail == "the prompt was blocked: SAFETY"
    assert len(wire.requests) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_only_text_is_a_sign_of_life(kind: str):
    alive = {
        "openai": b": keep-alive\n\n",
        "anthropic": b'event: ping\ndata: {"type": "ping"}\n\n',
        "gemini": b": keep-alive\n\n",
        "ollama": b'{"message": {"content": ""}, "done": false}\n',
    }
    body = Script([part for _ in range(100) for part in (alive[kind], 0.5)])
    _, lane = await ask(kind, Wire(answer(kind, body)), ttft_timeout=3.0, attempts=1)
    assert lane.detail == "no text within 3 s"
    assert body.is_closed
    assert anyio.current_time() == pytest.approx(3.0, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_that_is_whole_is_not_waited_on_for_long(kind: str):
    parts = [*GOOD[kind], *([b": still here\n\n", 0.4] * 100 if kind != "ollama" else [99.0])]
    if kind == "openai":
        del parts[-len(parts) + len(GOOD[kind]) - 1]  # no [DONE] either
    found, lane = await ask(kind, Wire(answer(kind, parts)))
    assert found is not None
    assert found.usage == Usage(input_tokens=11, output_tokens=7)
    assert lane.ended == pytest.approx(1.0, abs=0.1)


def message_start(**usage: int) -> dict[str, Any]:
    return {"type": "message_start", "message": {"usage": usage}}


@pytest.mark.parametrize(
    ("begins", "ends", "read"),
    [
        ([], {"input_tokens": 6, "cache_read_input_tokens": 5}, 11),
        ([message_start(input_tokens=0)], {"input_tokens": 11}, 11),
        ([message_start(input_tokens=11)], {"input_tokens": 0}, 11),
        ([message_start(input_tokens=6, cache_read_input_tokens=5)], {"input_tokens": 6}, 11),
        ([message_start(input_tokens=11)], {"input_tokens": 40}, 40),  # a tool has been called
        ([], {}, None),
    ],
)
async def test_messages_report_their_input_when_they_begin_or_when_they_end(
    begins: list[dict[str, Any]], ends: dict[str, int], read: int | None
):
    """llama.cpp leaves ``message_start`` out where the first token is a part of a character."""
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    text = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hi"}}
    body = sse(*begins, text, {**delta, "usage": {**ends, "output_tokens": 7}})
    found, _ = await ask("anthropic", Wire(answer("anthropic", body)))
    assert found is not None
    if read is not None:
        assert found.usage == Usage(input_tokens=read, output_tokens=7)
    else:
        assert not found.usage.is_reported, "what was read is an estimate"
        assert found.usage.output_tokens == 7, "what was written is not"


def refused(status: int, body: Any = None, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers=headers, content=json.dumps(body).encode())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_what_can_only_fail_again_is_not_asked_again(kind: str, status: int):
    wire = Wire(refused(status, {"error": {"message": "no such  model"}}))
    found, lane = await ask(kind, wire)
    assert found is None
    assert len(wire.requests) == 1
    assert lane.detail.startswith(f"{status} ")
    assert lane.detail.endswith(": no such model")
    assert lane.usage.tokens == 0


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
async def test_what_may_go_well_is_asked_again_and_not_at_once(status: int):
    wire = Wire(refused(status, [{"error": {"message": "busy"}}]), answer("openai", GOOD["openai"]))
    found, lane = await ask("openai", wire)
    assert found is not None
    assert lane.attempts == 2
    assert 0.1 < anyio.current_time() < 0.3


@pytest.mark.parametrize("status", [429, 500, 503, 529])
@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"retry-after": "7"}, None, 7.0),
        ({"retry-after": "0.5"}, None, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, None, 1.5),
        ({}, {"error": {"details": [{"retryDelay": "3.5s"}]}}, 3.5),
    ],
)
async def test_a_provider_that_names_a_time_is_asked_then(
    status: int, headers: dict[str, str], body: Any, seconds: float
):
    wire = Wire(refused(status, body, **headers), answer("openai", GOOD["openai"]))
    found, _ = await ask("openai", wire)
    assert found is not None
    assert anyio.current_time() == pytest.approx(seconds, abs=0.05)


async def test_a_lost_connection_is_asked_for_again():
    wire = Wire(httpx.ConnectError("refused"), answer("openai", GOOD["openai"]))
    found, lane = await ask("openai", wire)
    assert found is not None
    assert lane.attempts == 2
    _, lane = await ask("openai", Wire(httpx.ReadError("reset")))
    assert (lane.status, lane.detail) == ("failed", "reset")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_page_of_a_portal_is_no_answer(kind: str):
    headers = {"content-type": "text/html"}
    page = httpx.Response(200, headers=headers, content=b"<html>log in</html>")
    found, lane = await ask(kind, Wire(page), attempts=1)
    assert found is None
    assert lane.status == "failed"


async def test_the_beginning_of_a_long_error_is_enough():
    body = Script([b"x" * 5000] * 1000)
    _, lane = await ask("openai", Wire(httpx.Response(418, stream=body)))
    assert len(lane.detail) < 400
    assert len(body.parts) > 900
    assert body.is_closed


async def test_a_key_that_a_server_repeats_is_not_shown():
    wire = Wire(refused(401, {"error": {"message": f"Incorrect API key provided: {KEY}."}}))
    _, lane = await ask("openai", wire)
    assert lane.detail == "401 Unauthorized: Incorrect API key provided: ***."


@pytest.mark.parametrize(
    ("value", "why"), [("", "is not set"), ("sk \u2026", "has characters that a key can't have")]
)
async def test_without_a_key_nothing_is_sent(value: str, why: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TEST_KEY", value)
    wire = Wire(answer("openai", GOOD["openai"]))
    _, lane = await ask("openai", wire)
    assert wire.requests == []
    assert lane.detail == f"TEST_KEY {why}" + (" in the environment" if not value else "")


async def test_a_race_between_protocols():
    slow = Script([part for piece in GOOD["anthropic"] for part in (0.3, piece)])
    wires = {"openai": answer("openai", [0.5, *GOOD["openai"]]), "anthropic": answer("x", slow)}

    class Both(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return wires["openai" if request.url.path.endswith("completions") else "anthropic"]

    async with httpx.AsyncClient(transport=Both()) as client:

        def rival(kind: str) -> Provider:
            return Provider(
                name=kind, ask=lambda prompt, _: endpoint(kind).stream(prompt, client), model="m"
            )

        report = await hold([rival("anthropic"), rival("openai")], strategy="first-token")
    assert lanes(report) == {"anthropic": "cancelled", "openai": "won"}
    assert slow.is_closed


# -- errors of others --------------------------------------------------------------------------


def test_retry_after_is_read_in_all_its_forms():
    soon = datetime.now(UTC) + timedelta(seconds=30)
    assert parse_retry_after({"retry-after": "12"}) == 12
    date = parse_retry_after({"retry-after": format_datetime(soon, usegmt=True)})
    assert date == pytest.approx(30, abs=2)
    past = parse_retry_after({"retry-after": "Mon, 01 Jan 2001 00:00:00 GMT"})
    assert past == 0
    for nonsense in ("soon", "-3", "", "1e9", "Mon, 99 Foo"):
        assert parse_retry_after({"retry-after": nonsense}) is None
    assert parse_retry_after({}) is None


class TransportError(Exception):
    """As in httpx, and in its successor."""


class RemoteProtocolError(TransportError):
    pass


class RateLimited(Exception):
    """As SDKs raise."""

    status_code = 429
    response = httpx.Response(429, headers={"retry-after": "3"})


@pytest.mark.parametrize(
    ("error", "retryable", "kind"),
    [
        (RemoteProtocolError("peer closed"), True, "network"),
        (httpx.ReadTimeout("slow"), True, "timeout"),
        (RateLimited("429"), True, "overload"),
        (json.JSONDecodeError("bad", "x", 0), True, "stream"),
        (TimeoutError(), True, "timeout"),
        (ConnectionResetError(), True, "network"),
        (KeyError("x"), False, "KeyError"),
        (ProviderError("key", "none"), False, "key"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_errors_of_others_are_judged_by_what_they_say(error: Exception, retryable: bool, kind: str):
    assert (is_retryable(error), kind_of(error)) == (retryable, kind)


def test_the_facts_of_an_sdk_s_error():
    error = RateLimited("429")
    assert (status_of(error), retry_after_of(error)) == (429, 3.0)
