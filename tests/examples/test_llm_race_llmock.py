"""The race against servers that others wrote: llmock, which breaks its answers and judges us."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import pytest
from anyio import to_thread

import examples.llm_race
from examples.llm_race import (
    Chunk,
    Endpoint,
    Prompt,
    Provider,
    Report,
    Rules,
    Terms,
    acceptance,
    ask,
)
from examples.llm_race.client.providers import PROTOCOLS
from examples.llm_race.race.racing import Race, new_client
from shoal import Runtime
from tests.examples.rivals import lanes
from tests.examples.services import absent

if TYPE_CHECKING:
    from llmock.pytest_plugin import LLMock

pytestmark = [
    pytest.mark.services,
    # They leave generators of their own to the garbage collector; what those read is closed.
    pytest.mark.filterwarnings("ignore:Async generator '(http|openai|anthropic):ResourceWarning"),
]
T = TypeVar("T")
Run = Callable[..., Any]

# Each protocol by one of the backends: they are the same bytes for both.
EACH = pytest.mark.parametrize(
    ("kind", "backend"), [("openai", "asyncio"), ("anthropic", "trio"), ("gemini", "asyncio")]
)
IMPATIENT = Terms(ttft_timeout=0.7, stall_timeout=0.7)


@pytest.fixture(autouse=True)
def peers() -> None:
    for package in ("llmock", "openai", "anthropic"):
        if find_spec(package) is None:
            absent(package)


def provider(llmock: LLMock, kind: str, **given: Any) -> Provider:
    """One of ours, pointed at llmock."""
    key_env = PROTOCOLS[kind].key_env
    if kind == "gemini":
        key_env = "GOOGLE_API_KEY"
    endpoint = Endpoint(
        protocol=PROTOCOLS[kind], model="m-1", base_url=llmock.base_url(kind), key_env=key_env
    )
    return Provider(
        name=kind, kind=kind, model="m-1", endpoint=endpoint, ask=endpoint.stream, **given
    )


def hold(backend: str, providers: list[Provider], rules: Rules | None = None) -> Report:
    async def race() -> Report:
        with anyio.fail_after(20):
            return await ask(Prompt(text="Say a few words.", max_tokens=50), providers, rules)

    return anyio.run(race, backend=backend)


@EACH
def test_an_answer(llmock: LLMock, kind: str, backend: str) -> None:
    llmock.reply("It is salty because of rivers.")
    report = hold(backend, [provider(llmock, kind)])
    assert report.answer is not None
    assert report.answer.text == "It is salty because of rivers."
    assert report.answer.usage.is_reported
    assert report.answer.usage.input_tokens > 0
    assert report.answer.usage.output_tokens > 0
    assert llmock.last_request.stream
    llmock.assert_resilient(strict=True)


FAULTS: dict[str, Callable[[LLMock], object]] = {
    "429, and when to come back, twice": lambda m: m.rate_limit(times=2, retry_after=0.4),
    "500": lambda m: m.fail(500),
    "502": lambda m: m.fail(502),
    "503, and when to come back": lambda m: m.fail(503, retry_after=0.4),
    "529": lambda m: m.fail(529),
    "truncated": lambda m: m.truncate(after_chunks=3),
    "disconnected": lambda m: m.disconnect(after_chunks=3),
    "malformed": lambda m: m.pace(30).corrupt(after_chunks=4),
    "stalled": lambda m: m.stall(after_chunks=4, seconds=1.5),
    "slow first token": lambda m: m.slow_first_token(1.5),
    "slow": lambda m: m.delay(1.5),
}


@EACH
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_survived_and_the_verdict_is_clean(
    llmock: LLMock, kind: str, backend: str, fault: str
) -> None:
    llmock.reply("a whole answer of several words", times=None)
    FAULTS[fault](llmock)
    rules = Rules(terms=IMPATIENT)
    report = hold(backend, [provider(llmock, kind)], rules)
    assert report.answer is not None, report.totals()["error"]
    assert report.answer.text == "a whole answer of several words"
    assert len(llmock.requests) == (3 if "twice" in fault else 2)
    llmock.assert_resilient(strict=True)


@EACH
@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_cannot_go_well_is_asked_once(
    llmock: LLMock, kind: str, backend: str, status: int
) -> None:
    llmock.fail(status, times=None, message="that won't do")
    report = hold(backend, [provider(llmock, kind)])
    assert report.answer is None
    assert report.lanes[0].detail.startswith(f"{status} ")
    assert report.lanes[0].detail.endswith(": that won't do")
    assert len(llmock.requests) == 1
    llmock.assert_resilient(strict=True)


@EACH
def test_a_provider_that_is_down_is_given_up(llmock: LLMock, kind: str, backend: str) -> None:
    llmock.outage()
    rules = Rules(terms=Terms(patience=1.5))  # it asks for a second each time
    report = hold(backend, [provider(llmock, kind)], rules)
    assert report.answer is None
    assert len(llmock.requests) == 2
    llmock.assert_resilient(strict=True)


def test_a_race_among_protocols_with_one_of_them_quick(llmock: LLMock) -> None:
    llmock.pace(10)
    llmock.delay(5, provider="openai")
    llmock.delay(5, provider="gemini")
    report = hold("asyncio", [provider(llmock, kind) for kind in ("openai", "anthropic", "gemini")])
    assert lanes(report) == {"openai": "cancelled", "anthropic": "won", "gemini": "cancelled"}
    assert report.seconds < 4
    llmock.assert_resilient(strict=True)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_winner_by_its_first_token_that_breaks_off(llmock: LLMock, backend: str) -> None:
    llmock.pace(20)
    llmock.delay(0.5, provider="anthropic", times=None)
    llmock.truncate(after_chunks=4, provider="openai", times=None)
    rivals = [provider(llmock, "openai"), provider(llmock, "anthropic")]
    report = hold(backend, rivals, Rules(strategy="first-token"))
    assert report.answer is None
    assert lanes(report) == {"openai": "failed", "anthropic": "cancelled"}
    rules = Rules(strategy="first-token", on_broken_stream="restart")
    report = hold(backend, rivals, rules)
    assert lanes(report) == {"openai": "failed", "anthropic": "won"}


def test_a_quota_of_theirs_is_kept_to_by_ours(llmock: LLMock) -> None:
    llmock.limits(rpm=600)
    ours = provider(llmock, "openai", rpm=600)

    async def several() -> list[Report]:
        race, reports = Race([ours], Rules()), list[Report]()

        async def one(n: int) -> None:
            prompt = Prompt(text=f"number {n}", max_tokens=10)
            reports.append(await race.hold(prompt, runtime, client))

        async with new_client() as client, Runtime() as runtime, anyio.create_task_group() as tasks:
            for n in range(15):
                tasks.start_soon(one, n)
        return reports

    assert all(report.answer is not None for report in anyio.run(several))
    assert {request.status for request in llmock.requests} == {200}, "nobody had to say stop"
    llmock.assert_resilient(strict=True)


@EACH
def test_an_answer_of_a_schema(llmock: LLMock, kind: str, backend: str) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    if kind == "anthropic":  # is told in words, which llmock doesn't read
        llmock.reply('{"n": 4}')
    prompt = Prompt(text="How many?", max_tokens=50, schema=schema)

    async def race() -> Report:
        rules = Rules(accept=acceptance(schema=schema))
        return await ask(prompt, [provider(llmock, kind)], rules)

    report = anyio.run(race, backend=backend)
    assert report.answer is not None, report.totals()["error"]
    llmock.assert_resilient(strict=True)


# -- the official clients, as any async function ------------------------------------------------


async def made(client: Callable[..., T], base_url: str) -> T:
    """Make a client; in a thread, for that reads certificates from the disk."""
    return await to_thread.run_sync(partial(client, base_url=base_url, api_key="k", max_retries=0))


def sdk_gpt(llmock: LLMock) -> Provider:
    from openai import AsyncOpenAI

    async def gpt(prompt: str) -> AsyncIterator[Chunk]:
        messages: Any = [{"role": "user", "content": prompt}]
        async with await made(AsyncOpenAI, llmock.base_url("openai")) as client:
            events = await client.chat.completions.create(
                model="gpt-sdk",
                messages=messages,
                stream=True,
                stream_options={"include_usage": True},
            )
            async with events:
                async for event in events:
                    choice = event.choices[0] if event.choices else None
                    yield Chunk(
                        text=(choice.delta.content or "") if choice else "",
                        finish=choice.finish_reason if choice else None,
                        input_tokens=event.usage.prompt_tokens if event.usage else None,
                        output_tokens=event.usage.completion_tokens if event.usage else None,
                    )

    return Provider.of(gpt)


def sdk_claude(llmock: LLMock) -> Provider:
    from anthropic import AsyncAnthropic

    async def claude(prompt: str) -> AsyncIterator[Chunk]:
        messages: Any = [{"role": "user", "content": prompt}]
        async with await made(AsyncAnthropic, llmock.base_url("anthropic")) as client:
            asked = client.messages.stream(model="claude-sdk", messages=messages, max_tokens=50)
            async with asked as events:
                async for event in events:
                    if event.type == "text":
                        yield Chunk(text=event.text)
                    elif event.type == "message_delta":
                        used = event.usage.output_tokens
                        yield Chunk(finish=event.delta.stop_reason, output_tokens=used)

    return Provider.of(claude)


SDKS = {"openai": sdk_gpt, "anthropic": sdk_claude}
# What they raise, or don't, is different each time; see failures.py.
SDK_FAULTS = ["429, and when to come back, twice", "truncated", "disconnected", "malformed"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("sdk", SDKS)
def test_an_official_client_races_as_a_plain_function(
    llmock: LLMock, sdk: str, backend: str
) -> None:
    llmock.reply("from the official client", provider=sdk)
    other = "anthropic" if sdk == "openai" else "openai"
    llmock.delay(9, provider=other)
    report = hold(backend, [SDKS[sdk](llmock), provider(llmock, other)])
    assert report.answer is not None, report.totals()["error"]
    assert report.answer.text == "from the official client"
    assert sorted(lanes(report).values()) == ["cancelled", "won"]
    llmock.assert_resilient(strict=True)


@pytest.mark.parametrize(("sdk", "backend"), [("openai", "asyncio"), ("anthropic", "asyncio")])
@pytest.mark.parametrize("fault", SDK_FAULTS)
def test_an_official_client_s_faults_are_survived_too(
    llmock: LLMock, sdk: str, backend: str, fault: str
) -> None:
    llmock.reply("a whole answer of several words", times=None)
    FAULTS[fault](llmock)
    rules = Rules(terms=IMPATIENT)
    report = hold(backend, [SDKS[sdk](llmock)], rules)
    assert report.answer is not None, report.totals()["error"]
    assert report.answer.text == "a whole answer of several words"
    llmock.assert_resilient(strict=True)


def test_the_program_in_the_readme_does_what_it_says(
    llmock: LLMock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    readme = Path(examples.llm_race.__file__).with_name("README.md").read_text("utf-8")
    [_, program] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    [config] = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("race.toml").write_text(config.replace("https://models.example", "http://127.0.0.1:1"))
    monkeypatch.setenv("OPENAI_BASE_URL", llmock.base_url("openai"))  # which the SDK heeds
    llmock.reply("because of rivers")
    exec(compile(program, "README.md", "exec"), {"__name__": "readme"})
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "because of rivers"
    gpt, mine = out[1:]
    assert gpt.startswith("gpt won Usage(")
    assert mine.startswith("mine ")
