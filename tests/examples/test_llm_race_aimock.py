"""The race against another server that others wrote, aimock: a second opinion on each protocol."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import pytest

from examples.llm_race import Endpoint, Prompt, Provider, Report, Rules, Terms, ask
from examples.llm_race.client.providers import PROTOCOLS
from tests.examples.rivals import lanes
from tests.examples.services import absent

pytestmark = [
    pytest.mark.services,
    # httpx leaves generators of its own to the garbage collector; what they read is closed.
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),
]

PATHS = {"openai": "/v1", "anthropic": "", "gemini": "", "ollama": ""}
TEXT = "a whole answer of several words, cut into chunks"
# What is done about the first request of a prompt; the second is answered.
FAULTS: dict[str, dict[str, Any]] = {
    "overload": {"response": {"error": {"message": "busy"}, "status": 429, "retryAfter": 1}},
    "broken": {"response": {"error": {"message": "oops"}, "status": 500}},
    "overloaded": {"response": {"error": {"message": "overloaded"}, "status": 529}},
    "truncated": {"response": {"content": TEXT}, "chunkSize": 5, "truncateAfterChunks": 3},
    "disconnected": {
        "response": {"content": TEXT},
        "chunkSize": 5,
        "latency": 100,
        "disconnectAfterMs": 250,
    },
    "slow": {"response": {"content": TEXT}, "streamingProfile": {"ttft": 1500, "tps": 1000}},
}
EACH = pytest.mark.parametrize(
    ("kind", "backend"),
    [("openai", "trio"), ("anthropic", "asyncio"), ("gemini", "trio"), ("ollama", "asyncio")],
)


def fixtures() -> list[dict[str, Any]]:
    good: dict[str, Any] = {"response": {"content": TEXT}, "chunkSize": 7}
    found: list[dict[str, Any]] = []
    for kind in PATHS:
        for name, fault in FAULTS.items():
            match = {"userMessage": f"{kind}: {name}."}
            found.append({"match": {**match, "sequenceIndex": 0}, **fault})
            found.append({"match": {**match, "sequenceIndex": 1}, **good})
        found.append({"match": {"userMessage": f"{kind}: answer."}, **good})
    found.append({"match": {"userMessage": "alive"}, **good, "openRouterProcessing": True})
    slow = {"streamingProfile": {"ttft": 9000, "tps": 10}}
    found.append({"match": {"userMessage": "race", "model": "slow"}, **good, **slow})
    found.append({"match": {"userMessage": "race"}, **good})
    refused = {"error": {"message": "no such model", "type": "not_found"}, "status": 404}
    found.append({"match": {"userMessage": "refused"}, "response": refused})
    return found


@pytest.fixture(scope="module")
def aimock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    command = shutil.which("aimock")
    if command is None:
        absent("aimock (npm install -g @copilotkit/aimock)")
    folder = tmp_path_factory.mktemp("aimock")
    (folder / "fixtures.json").write_text(json.dumps({"fixtures": fixtures()}))
    config = folder / "aimock.json"
    config.write_text(json.dumps({"port": 0, "llm": {"fixtures": str(folder / "fixtures.json")}}))
    with subprocess.Popen(
        [command, "--config", str(config)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                found = re.search(r"http://127\.0\.0\.1:\d+", line)
                if found is not None:
                    yield found[0]
                    break
            else:
                pytest.fail("aimock did not start")
        finally:
            process.terminate()


def provider(url: str, kind: str, model: str = "m-1") -> Provider:
    endpoint = Endpoint(
        protocol=PROTOCOLS[kind], model=model, base_url=url + PATHS[kind], key_env=None
    )
    return Provider(
        name=f"{kind}-{model}", kind=kind, model=model, endpoint=endpoint, ask=endpoint.stream
    )


def hold(backend: str, prompt: str, providers: list[Provider], **rules: Any) -> Report:
    async def race() -> Report:
        with anyio.fail_after(20):
            return await ask(Prompt(text=prompt, max_tokens=50), providers, Rules(**rules))

    return anyio.run(race, backend=backend)


@EACH
def test_an_answer(aimock: str, kind: str, backend: str) -> None:
    report = hold(backend, f"{kind}: answer.", [provider(aimock, kind)])
    assert report.answer is not None, report.totals()["error"]
    assert report.answer.text == TEXT
    assert report.answer.usage.output_tokens > 0
    assert not report.answer.usage.is_reported or kind == "openai", "0 tokens are no report"


@EACH
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_survived(aimock: str, kind: str, backend: str, fault: str) -> None:
    terms = Terms(ttft_timeout=0.7, stall_timeout=0.7)
    report = hold(backend, f"{kind}: {fault}.", [provider(aimock, kind)], terms=terms)
    assert report.answer is not None, report.totals()["error"]
    assert report.answer.text == TEXT
    assert report.lanes[0].attempts == 2
    if fault == "overload":
        assert report.seconds >= 1.0


@EACH
def test_what_cannot_go_well_is_asked_once(aimock: str, kind: str, backend: str) -> None:
    report = hold(backend, "refused", [provider(aimock, kind)])
    assert report.answer is None
    assert report.lanes[0].detail == "404 Not Found: no such model"
    assert report.lanes[0].attempts == 1


def test_keep_alives_are_no_text(aimock: str) -> None:
    report = hold("asyncio", "alive", [provider(aimock, "openai")], strategy="first-token")
    assert report.answer is not None
    assert report.answer.text == TEXT


@pytest.mark.parametrize("strategy", ["first", "first-token", "hedge"])
def test_four_protocols_race_and_the_losers_requests_end(aimock: str, strategy: str) -> None:
    rivals = [provider(aimock, kind, "slow") for kind in ("openai", "gemini", "ollama")]
    rivals.append(provider(aimock, "anthropic", "quick"))
    report = hold("asyncio", "race", rivals, strategy=strategy, hedge=0.1)
    assert list(lanes(report).values()) == ["cancelled"] * 3 + ["won"]
    assert report.seconds < 5
    health = httpx.get(f"{aimock}/health", trust_env=False)
    assert health.status_code == 200
