"""The race as a service: in process, with scripted models and under virtual time."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest
from anyio import create_task_group
from fastapi import FastAPI

from examples.llm_race import Chunk, ProviderError, Race, Report, Rules, budget_of
from examples.llm_race.client.config import ConfigError
from examples.llm_race.client.exchange import Answer, Prompt, Turn, Usage
from examples.llm_race.client.providers import PROTOCOLS, Endpoint, Provider
from examples.llm_race.command.options import parse
from examples.llm_race.gateway.offer import Offer
from examples.llm_race.gateway.openai_api import ChatRequest, Problem, finish_reason
from examples.llm_race.gateway.service import make_service
from examples.llm_race.gateway.streams import CompletionStream
from examples.llm_race.race.acceptance import acceptance
from shoal import RunPath, Runtime
from shoal.events import Item, LeaderChanged
from tests.examples.rivals import Rival

pytestmark = pytest.mark.anyio

ASK = {"model": "race", "messages": [{"role": "user", "content": "why?"}]}
STREAM = {**ASK, "stream": True}


def formed(schema: dict[str, Any], **given: Any) -> dict[str, Any]:
    """A request for an answer of a schema."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {**ASK, "response_format": form, **given}


class Service:
    """The service, and what a client may want of it."""

    def __init__(self, service: FastAPI, runtime: Runtime) -> None:
        self.service = service
        self.runtime = runtime
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self), base_url="http://x")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.service({**scope, "state": {"runtime": self.runtime}}, receive, send)

    async def ask(self, body: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json=body or ASK, headers=headers)


@asynccontextmanager
async def serving(*rivals: Rival | Provider, **given: Any) -> AsyncGenerator[Service]:
    providers = [one.provider() if isinstance(one, Rival) else one for one in rivals]
    service = make_service(Offer(providers=providers, **given))
    async with service.router.lifespan_context(service) as state:
        yield Service(service, dict(state or {})["runtime"])
    assert not service.state.races.board.races, "nothing of a race is kept"


def chunks(response: httpx.Response) -> list[Any]:
    """The data of the events of a stream."""
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line[:1] == "d"]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def events(response: httpx.Response) -> list[tuple[str, Any]]:
    names = [line[7:] for line in response.text.splitlines() if line.startswith("event: ")]
    return list(zip(names, chunks(response), strict=True))


def said(parts: Sequence[Any]) -> str:
    """The text of a streamed answer."""
    found = [part for part in parts if part != "[DONE]" and part.get("choices")]
    return "".join(part["choices"][0]["delta"].get("content", "") for part in found)


# -- answers ---------------------------------------------------------------------------------------


async def test_a_whole_answer() -> None:
    quick, slow = Rival("quick", "the quick one"), Rival("slow", ttft=5.0)
    async with serving(quick, slow) as service:
        response = await service.ask()
    found = response.json()
    assert response.status_code == 200
    assert found["object"] == "chat.completion"
    assert found["model"] == "race"
    [choice] = found["choices"]
    assert choice["message"]["content"] == "the quick one"
    assert choice["finish_reason"] == "stop"
    assert found["usage"] == {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
    assert [lane["status"] for lane in found["race"]["lanes"]] == ["won", "cancelled"]
    assert slow.closed == 1


async def test_an_answer_as_it_comes() -> None:
    quick, slow = Rival("quick", "one two three"), Rival("slow", ttft=1.1)
    async with serving(quick, slow) as service:
        asked = {**STREAM, "stream_options": {"include_usage": True}}
        response = await service.ask(asked)
        plain = chunks(await service.ask(STREAM))
    assert response.headers["content-type"].startswith("text/event-stream")
    found = chunks(response)
    deltas = [part["choices"][0]["delta"] for part in found[:4]]
    assert deltas == [
        {"role": "assistant", "content": "one "},
        {"content": "two "},
        {"content": "three"},
        {},
    ]
    assert found[3]["choices"][0]["finish_reason"] == "stop"
    assert found[4]["choices"] == []
    assert found[4]["usage"]["total_tokens"] == 30
    assert found[4]["race"]["winner"] == "quick"
    assert found[5:] == ["[DONE]"]
    assert not any("usage" in part for part in plain[:-1])
    assert plain[-1] == "[DONE]"


async def test_where_no_token_decides_an_answer_streams_once_it_is_there() -> None:
    one, two = Rival("one", "yes"), Rival("two", "Yes.", ttft=2.0)
    async with serving(one, two) as service:
        found = chunks(await service.ask({**STREAM, "model": "race:quorum"}))
        every = chunks(await service.ask({**STREAM, "model": "race:all"}))
        whole = (await service.ask({**ASK, "model": "race:all"})).json()
    assert said(found) in ("yes", "Yes.")
    assert [part["choices"][0]["index"] for part in every[:-1]] == [0, 0, 1, 1]
    assert [one["message"]["content"] for one in whole["choices"]] == ["yes", "Yes."]
    assert whole["usage"]["total_tokens"] == 60


async def test_an_answer_that_breaks_off_is_no_answer_and_never_mixed() -> None:
    leader, other = Rival("leader", "one two three", breaks=[2, 2]), Rival("other", ttft=1.05)
    async with serving(leader, other, rules=Rules(on_broken_stream="restart")) as service:
        found = chunks(await service.ask(STREAM))
    assert said([part for part in found if "choices" in part]) == "one two "
    assert found[-1]["error"]["code"] == "race_lost"
    assert "broke off after 8 characters" in found[-1]["error"]["message"]
    assert len(leader.asked_at) == 1, "what was sent can't be taken back, so nobody begins anew"


@pytest.mark.parametrize("has_answer", [False, True])
async def test_nothing_is_sent_of_a_contestant_that_takes_the_lead_after_another(
    has_answer: bool,
) -> None:
    answer = Answer(text="zwei drei", provider="other", finish="stop", usage=Usage())
    run = RunPath(run_id="race", act="race")
    leader, other = (RunPath(parent=run, step="race", act=name) for name in ("leader", "other"))
    happened = [
        Item(path=leader, step="s", item=Chunk(text="one "), attempt=1, index=0),
        LeaderChanged(path=run, step="race", leader=leader),
        LeaderChanged(path=run, step="race", leader=None, reason="lost"),
        LeaderChanged(path=run, step="race", leader=other),
        Item(path=other, step="s", item=Chunk(text="zwei "), attempt=1, index=0),
        Item(path=other, step="s", item=Chunk(text="drei "), attempt=1, index=1),
    ]

    async def hold(*given: Any) -> Report:
        for event in happened:
            await given[-1](event)
        if has_answer:
            return Report(strategy="first-token", answer=answer, seconds=1.0)
        return Report(strategy="first-token", error=OSError("lost"), seconds=1.0)

    race = Race([Rival("x").provider()], Rules(strategy="first-token"))
    races: Any = SimpleNamespace(hold=hold)
    runtime: Any = None
    stream = CompletionStream(races, race, "id", ChatRequest.model_validate(STREAM))
    sent: list[str] = []

    async def say(text: str) -> None:
        sent.append(text)

    with pytest.raises(Problem, match="broke off" if has_answer else "lost"):
        await stream.write(Prompt(text="?"), runtime, say)
    assert [json.loads(text[6:])["choices"][0]["delta"]["content"] for text in sent] == ["one "]


async def test_a_conversation_goes_to_the_providers() -> None:
    seen: list[Prompt] = []

    async def heard(prompt: Prompt, _: httpx.AsyncClient) -> AsyncIterator[str]:
        seen.append(prompt)
        yield '"fine"'

    async def ask(prompt: Prompt, client: httpx.AsyncClient) -> AsyncIterator[str]:
        return heard(prompt, client)

    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "developer", "content": "and kind"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "why"}, {"type": "text", "text": "?"}],
        },
    ]
    schema = {"type": "string"}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    defaults = Prompt(text="", system="the usual", max_tokens=7)
    async with serving(Provider(name="one", ask=ask), defaults=defaults) as service:
        asked = {"model": "race", "messages": messages, "response_format": form, "temperature": 0}
        assert (await service.ask(asked)).status_code == 200
        assert (await service.ask({**ASK, "max_completion_tokens": 9})).status_code == 200
    earlier = [Turn(role="user", text="hello"), Turn(role="assistant", text="hi")]
    assert seen == [
        Prompt(
            text="why\n?",
            system="be brief\n\nand kind",
            earlier=earlier,
            max_tokens=7,
            schema=schema,
        ),
        Prompt(text="why?", system="the usual", max_tokens=9, may_be_cut=True, earlier=[]),
    ]


A = {"type": "object", "required": ["a"]}
B = {"type": "object", "required": ["b"]}
OBJECT = {**ASK, "response_format": {"type": "json_object"}}
TEXT = {**ASK, "response_format": {"type": "text"}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("default", "asked", "expected"),
    [
        (A, formed(B), '{"b": 1}'),
        (A, ASK, '{"a": 1}'),
        (A, TEXT, '{"a": 1}'),
        (A, OBJECT, "{}"),
        (A, formed({}), "0"),
        (None, formed(B), '{"b": 1}'),
        (None, OBJECT, "{}"),
        (None, ASK, "no JSON"),
    ],
)
async def test_an_answer_has_the_schema_that_was_asked_for(
    default: dict[str, Any] | None, asked: dict[str, Any], expected: str, stream: bool
) -> None:
    texts = ["no JSON", "0", "{}", '{"a": 1}', '{"b": 1}']  # in this order
    rivals = [Rival(f"r{n}", text, ttft=1.0 + n) for n, text in enumerate(texts)]
    async with serving(*rivals, defaults=Prompt(text="", schema=default)) as service:
        response = await service.ask({**asked, "stream": stream})
        assert response.status_code == 200
        if stream:
            assert said(chunks(response)) == expected
            return
        assert response.json()["choices"][0]["message"]["content"] == expected
        lanes = {lane["provider"]: lane["status"] for lane in response.json()["race"]["lanes"]}
    winner = texts.index(expected)
    assert set(list(lanes.values())[:winner]) <= {"rejected"}
    assert lanes[f"r{winner}"] == "won"


async def test_an_answer_of_another_schema_is_none() -> None:
    rules = Rules(accept=acceptance(max_chars=8))
    async with serving(Rival("only", '{"a": 1}'), rules=rules) as service:
        wrong = await service.ask(formed(B))
        every = await service.ask(formed(A, model="race:all"))
    async with serving(Rival("only", '{"a": 123}'), rules=rules) as service:
        long = await service.ask(formed(A))
    assert wrong.status_code == long.status_code == 502
    assert '"b" is a required property' in wrong.json()["error"]["message"]
    assert "more than 8" in long.json()["error"]["message"], "the service's own rules hold too"
    assert every.status_code == 200


async def test_where_every_answer_has_a_schema_no_first_token_is_offered() -> None:
    async with serving(Rival("one"), defaults=Prompt(text="", schema=A)) as service:
        found = (await service.client.get("/v1/models")).json()["data"]
        none = await service.ask({**ASK, "model": "race:first-token"})
    assert "race:first-token" not in [model["id"] for model in found]
    assert none.status_code == 404


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_each_protocol_sends_the_whole_conversation(kind: str) -> None:
    earlier = [Turn(role="user", text="a"), Turn(role="assistant", text="b")]
    endpoint = Endpoint(protocol=PROTOCOLS[kind], model="m", base_url="http://x", key_env=None)
    body = endpoint.protocol.request(endpoint, Prompt(text="c", earlier=earlier)).body
    turns = [
        (t["role"], t.get("content") or t["parts"][0]["text"])
        for t in body.get("messages") or body["contents"]
    ]
    assert turns == [
        ("user", "a"),
        ("model" if kind == "gemini" else "assistant", "b"),
        ("user", "c"),
    ]


def test_reasons_in_the_words_of_openai() -> None:
    for word, expected in {
        "end_turn": "stop",
        "STOP": "stop",
        "max_tokens": "length",
        "MAX_TOKENS": "length",
        "length": "length",
        "SAFETY": "content_filter",
        "refusal": "content_filter",
    }.items():
        assert finish_reason(word) == expected


async def test_models_are_the_strategies_that_can_be_held() -> None:
    async with serving(Rival("one")) as service:
        found = (await service.client.get("/v1/models")).json()["data"]
        one = (await service.client.get("/v1/models/race:hedge")).json()
        none = await service.client.get("/v1/models/race:judge")
    names = [model["id"] for model in found]
    assert names == [
        "race",
        *(f"race:{n}" for n in ("first", "first-token", "hedge", "fallback", "cheapest", "all")),
    ]
    assert one["object"] == "model"
    assert none.status_code == 404


# -- what all requests share -----------------------------------------------------------------------


async def test_limits_count_for_all_strategies_together() -> None:
    only = Rival("only", "one", limits={"max_concurrency": 1})
    async with serving(only) as service, create_task_group() as tasks:
        for model in ("race", "race:first", "race:hedge", "race:fallback"):
            for stream in (False, True):
                tasks.start_soon(service.ask, {**ASK, "model": model, "stream": stream})
    gaps = [b - a for a, b in zip(only.asked_at, only.asked_at[1:], strict=False)]
    assert len(only.asked_at) == 8
    assert min(gaps) >= 1.0


async def test_a_provider_that_asks_for_a_pause_gets_it_from_every_strategy() -> None:
    busy = ProviderError("overload", "busy", status=429, retry_after=100.0, retryable=True)
    only = Rival("only", fails=[busy])
    async with serving(only) as service:
        first = await service.ask()
        second = await service.ask({**ASK, "model": "race:hedge"})
    assert len(only.asked_at) == 1
    for response in (first, second):
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "rate_limit_exceeded"
        assert 90 < int(response.headers["retry-after"]) <= 101


async def test_money_is_one_budget() -> None:
    async with serving(Rival("only"), budget=budget_of(0.0103)) as service:
        assert (await service.ask()).status_code == 200  # of it, 1024 tokens were set aside
        spent = await service.ask(STREAM)
    assert spent.status_code == 429
    assert spent.json()["error"]["code"] == "insufficient_quota"
    assert spent.headers["x-should-retry"] == "false"


# -- failures --------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "no-such-model": ({**ASK, "model": "gpt-9"}, 404, "race:hedge"),
    "no-messages": ({**ASK, "messages": []}, 400, "messages"),
    "no-model": ({"messages": ASK["messages"]}, 400, "model"),
    "no-user": ({**ASK, "messages": [{"role": "assistant", "content": "x"}]}, 400, "user"),
    "pictures": (
        {**ASK, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "text",
    ),
    "tools": ({**ASK, "tools": [{"type": "function"}]}, 400, "tools"),
    "several": ({**ASK, "n": 2}, 400, "n"),
    "no-tokens": ({**ASK, "max_tokens": 0}, 400, "max_tokens"),
    "no-schema": ({**ASK, "response_format": {"type": "json_schema"}}, 400, "json_schema"),
    "nonsense": (formed({"type": "nonsense"}), 400, "response_format.json_schema.schema: no JSON"),
    "a-file": (formed({"$ref": "file:///etc/hostname"}), 400, "outside of itself"),
    "no-form": ({**ASK, "response_format": {"type": "grammar"}}, 400, "response_format.type"),
    "too-early": (formed({}, model="race:first-token"), 400, "decides before there is an answer"),
}


@pytest.mark.parametrize("why", REFUSED)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_can_not_be_meant_is_refused_as_openai_does(why: str, stream: bool) -> None:
    body, status, named = REFUSED[why]
    rival = Rival("only")
    async with serving(rival) as service:
        response = await service.ask({**body, "stream": stream})
    assert response.status_code == status
    error = response.json()["error"]
    assert named in error["message"]
    assert error["type"] == "invalid_request_error"
    assert not rival.asked_at


async def test_paths_and_bodies_that_are_none() -> None:
    async with serving(Rival("only")) as service:
        lost = await service.client.get("/v1/nothing")
        wrong = await service.client.get("/v1/chat/completions")
        broken = await service.client.post(
            "/v1/chat/completions", content="{", headers={"content-type": "application/json"}
        )
    assert [r.status_code for r in (lost, wrong, broken)] == [404, 405, 400]
    assert all(r.json()["error"]["type"] == "invalid_request_error" for r in (lost, wrong, broken))


LOST: dict[str, tuple[Exception, int]] = {
    "overload": (ProviderError("overload", "busy", status=429), 429),
    "broken": (ProviderError("http", "500 oops", status=500), 502),
    "silent": (ProviderError("timeout", "no text"), 504),
}


@pytest.mark.parametrize("kind", LOST)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_lost_race_has_the_status_of_why(kind: str, stream: bool) -> None:
    error, status = LOST[kind]
    rivals = [Rival("one", fails=[error] * 2), Rival("two", fails=[error] * 2)]
    async with serving(*rivals) as service:
        response = await service.ask({**ASK, "stream": stream})
    assert response.status_code == status
    assert str(error) in response.json()["error"]["message"]


async def test_a_race_that_takes_too_long_is_a_timeout() -> None:
    rules = Rules(timeout=2.0)
    async with serving(Rival("only", ttft=9.0), rules=rules) as service:
        assert (await service.ask()).status_code == 504


async def test_a_refusal_says_when_every_provider_is_passed_over() -> None:
    error = ProviderError("http", "no", status=404)
    async with serving(Rival("only", fails=[error] * 9), rules=Rules(failures=1)) as service:
        assert (await service.ask()).status_code == 502
        passed = await service.ask()
    assert passed.status_code == 503
    assert int(passed.headers["retry-after"]) == 30


# -- who may ---------------------------------------------------------------------------------------


async def test_only_clients_with_the_key_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RACE_KEY", "canary-1")
    async with serving(Rival("only"), key_env="RACE_KEY") as service:
        for shown in ({}, {"authorization": "Bearer x"}, {"authorization": "canary-1"}):
            response = await service.ask(ASK, **shown)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert "canary" not in response.text
            assert (await service.client.get("/race?prompt=x", headers=shown)).status_code == 401
            assert (await service.client.get("/v1/models", headers=shown)).status_code == 401
        assert (await service.ask(ASK, authorization="Bearer canary-1")).status_code == 200
        assert (await service.client.get("/readyz")).status_code == 200  # probes have no key


def test_a_key_that_is_not_there_is_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RACE_KEY", raising=False)
    with pytest.raises(ConfigError, match="RACE_KEY must hold the key of this service"):
        make_service(Offer(providers=[Rival("x").provider()], key_env="RACE_KEY"))


async def test_without_a_key_pages_of_other_sites_may_not() -> None:
    rival = Rival("only")
    async with serving(rival) as service:
        headers = {"sec-fetch-site": "cross-site"}
        assert (await service.client.get("/race?prompt=x", headers=headers)).status_code == 403
        assert not rival.asked_at
        assert (await service.ask(ASK, **{"sec-fetch-site": "none"})).status_code == 200


def test_a_default_that_can_not_be_held_is_refused_at_the_start() -> None:
    providers = [Rival("x").provider()]
    with pytest.raises(ValueError, match="needs a provider that judges"):
        make_service(Offer(providers=providers, strategy="judge"))
    with pytest.raises(ValueError, match="no JSON Schema"):
        defaults = Prompt(text="", schema={"type": "nonsense"})
        make_service(Offer(providers=providers, defaults=defaults))
    with pytest.raises(ValueError, match="first-token decides before"):
        defaults = Prompt(text="", schema=A)
        make_service(Offer(providers=providers, defaults=defaults, strategy="first-token"))


# -- a race to look at -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_all_that_happens_in_a_race(method: str) -> None:
    asked: Any = {"prompt": "why?"}
    given: Any = {"params": asked} if method == "GET" else {"json": asked}
    broken = ProviderError("http", "500 oops", status=400)
    rivals = [Rival("quick", "a b"), Rival("slow", ttft=1.05), Rival("lost", fails=[broken])]
    async with serving(*rivals) as service:
        found = events(await service.client.request(method, "/race", **given))
        none = await service.client.request(method, "/race")
    names = [name for name, _ in found]
    assert names[0] == "race"
    assert found[0][1]["lanes"] == ["quick", "slow", "lost"]
    texts = [data for name, data in found if name == "text" and data["provider"] == "quick"]
    assert [text["text"] for text in texts] == ["a ", "b"]
    assert any(data["provider"] == "slow" for name, data in found if name == "text")
    lanes = [(data["provider"], data["status"]) for name, data in found if name == "lane"]
    for lane in (
        ("quick", "asked"),
        ("quick", "streaming"),
        ("quick", "answered"),
        ("lost", "failed"),
        ("slow", "cancelled"),
    ):
        assert lane in lanes
    assert names[-1] == "end"
    assert found[-1][1]["status"] == 200
    assert found[-1][1]["answer"] == "a b"
    assert found[-1][1]["winner"] == "quick"
    assert none.status_code == 400


async def test_a_judge_has_a_lane_and_texts_of_its_own() -> None:
    judge = Rival("judge-1", "2")
    rivals = [Rival("one", "a b"), Rival("two", "c d")]
    rules = Rules(judge=judge.provider())
    async with serving(*rivals, rules=rules, strategy="judge") as service:
        found = events(await service.client.get("/race?prompt=x"))
        whole = (await service.ask()).json()
    assert {data["provider"] for name, data in found if name == "text"} == {"one", "two", "judge"}
    assert ("judge", "answered") in [
        (data["provider"], data["status"]) for name, data in found if name == "lane"
    ]
    assert found[-1][1]["answer"] == "c d"
    assert whole["choices"][0]["message"]["content"] == "c d"


async def test_the_end_of_a_lost_race_says_so() -> None:
    error = ProviderError("timeout", "no text")
    async with serving(Rival("only", fails=[error])) as service:
        found = events(await service.client.get("/race?prompt=x"))
        unknown = await service.client.get("/race?prompt=x&model=gpt")
    assert found[-1][0] == "end"
    assert found[-1][1]["status"] == 504
    assert found[-1][1]["error"] == "no text"
    assert unknown.status_code == 404


# -- the end ---------------------------------------------------------------------------------------


async def test_a_service_that_stops_ends_its_streams_and_takes_no_more() -> None:
    rival = Rival("only", "word " * 1000, pace=1.0)
    async with serving(rival) as service:
        got: dict[str, httpx.Response] = {}
        began = anyio.current_time()

        async def look(kind: str) -> None:
            if kind == "race":
                got[kind] = await service.client.get("/race?prompt=x")
            else:
                got[kind] = await service.ask(STREAM if kind == "stream" else ASK)

        async with create_task_group() as tasks:
            for kind in ("race", "stream", "whole"):
                tasks.start_soon(look, kind)
            await anyio.sleep(5)
            await service.runtime.drain(within=2.0)
        assert anyio.current_time() - began < 8
        late = [
            await service.ask(),
            await service.ask(STREAM),
            await service.client.get("/race?prompt=x"),
        ]
        ready = await service.client.get("/readyz")
    assert got["whole"].status_code == 503
    assert chunks(got["stream"])[-1]["error"]["code"] == "draining"
    assert said([part for part in chunks(got["stream"]) if "choices" in part]).startswith("word ")
    assert events(got["race"])[-1][0] == "error"
    assert rival.closed == 3
    for response in late:
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "draining"
        assert response.headers["retry-after"] == "1"
    assert ready.status_code == 503


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/race", "stream"])
async def test_a_client_that_hangs_up_cancels_the_race(path: str) -> None:
    rivals = [Rival("one", "word " * 1000, pace=1.0), Rival("two", ttft=1000.0)]
    body = STREAM if path == "stream" else {**ASK, "prompt": "why?"}
    address = "/v1/chat/completions" if path == "stream" else path
    async with serving(*rivals) as service:
        has_gone, is_told = anyio.Event(), False
        began = anyio.current_time()
        sent: list[Any] = []

        async def receive() -> Any:
            nonlocal is_told
            if not is_told:
                is_told = True
                return {"type": "http.request", "body": json.dumps(body).encode()}
            await has_gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": address,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "http_version": "1.1",
        }
        async with create_task_group() as tasks:
            tasks.start_soon(service, scope, receive, send)
            await anyio.sleep(5)
            has_gone.set()
        assert anyio.current_time() == began + 5
        assert [rival.closed for rival in rivals] == [1, 1]
        assert not service.runtime.runs()


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    options = parse(["serve", "--demo", "--port", "0", "--key-env", "K", "--host", "::1"])
    assert (options.port, options.key_env, options.host) == (0, "K", "::1")
    with pytest.raises(SystemExit):
        parse(["serve", "--port", "99999"])
    assert "no port" in capsys.readouterr().err
