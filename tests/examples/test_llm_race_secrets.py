"""Keys are in the header of a request alone: searched for in all that a race leaves behind."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from examples.llm_race import ask, load
from examples.llm_race.__main__ import main
from examples.llm_race.client.exchange import Prompt
from examples.llm_race.client.failures import ProviderError
from shoal.testing import RecordingHook

CANARIES = {
    "OPENAI_API_KEY": "sk-canary-openai-7d1f",
    "ANTHROPIC_API_KEY": "sk-canary-anthropic-7d1f",
    "GEMINI_API_KEY": "canary-gemini-7d1f",
    "LEAKY_KEY": "sk-canary-leaky-7d1f",
}
CONFIG = """
[[provider]]
name = "good"
kind = "openai"
model = "m"
base_url = "http://good.test/v1"

[[provider]]
name = "claude"
kind = "anthropic"
model = "m"
base_url = "http://refuses.test"

[[provider]]
name = "gemini"
kind = "gemini"
model = "m"
base_url = "http://lost.test"

[[provider]]
name = "leaky"
kind = "openai"
model = "m"
base_url = "http://breaks.test/v1"
api_key_env = "LEAKY_KEY"
"""
GOOD = (
    'data: {"choices": [{"delta": {"content": "because"}}]}\n\n'
    'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'
)


class Unkind(httpx.AsyncBaseTransport):
    """Servers that say what they were sent, as some do, and connections that break."""

    seen: ClassVar[set[str]] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        sent = json.dumps(dict(request.headers))
        self.seen.update(name for name, key in CANARIES.items() if key in sent)
        match request.url.host:
            case "good.test":
                return httpx.Response(200, headers={"content-type": "text/event-stream"}, text=GOOD)
            case "refuses.test":
                return httpx.Response(401, json={"error": {"message": f"bad key in {sent}"}})
            case "lost.test":
                raise httpx.ConnectError("connection refused", request=request)
            case _:
                raise RuntimeError("a client that is broken")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, key in CANARIES.items():
        monkeypatch.setenv(name, key)

    def new_client() -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=Unkind())

    for module in ("batch", "command.commands"):
        monkeypatch.setattr(f"examples.llm_race.{module}.new_client", new_client)
    Unkind.seen = set()
    file = tmp_path / "race.toml"
    file.write_text(CONFIG)
    return file


Say = Callable[[], str]


@pytest.fixture
def said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Say:
    """All that was printed, and all that is in files, as one text."""

    def everything() -> str:
        out, err = capfd.readouterr()
        files = [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]
        return "\n".join([out, err, *files])

    return everything


def check(text: str) -> None:
    assert "canary" not in text
    assert Unkind.seen == set(CANARIES), "all of them were sent, so all could have been seen"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("shown", ["--trace", "--json"])
def test_what_a_race_prints_and_keeps(config: Path, said: Say, backend: str, shown: str) -> None:
    save = config.with_name("runs.db")
    args = ["--config", str(config), "--backend", backend, "--save", str(save), shown]
    assert main(["ask", *args, "--strategy", "all", "why?"]) == 0
    text = said()
    check(text)
    assert "because" in text
    assert "401" in text


def test_what_nobody_s_answer_says(config: Path, said: Say) -> None:
    args = ["--config", str(config), "--regex", "never", "--trace"]
    assert main(["ask", *args, "why?"]) == 5
    check(said())


def test_what_a_batch_prints_and_keeps(config: Path, said: Say) -> None:
    prompts = config.with_name("prompts.jsonl")
    prompts.write_text('"why?"\n"how?"\n')
    out = config.with_name("out.jsonl")
    args = [str(prompts), "-o", str(out), "--config", str(config)]
    assert main(["batch", *args, "--strategy", "all", "--regex", "never"]) == 5
    check(said())


def test_what_is_said_of_providers(config: Path, said: Say) -> None:
    assert main(["providers", "--config", str(config), "--check"]) == 5
    text = said()
    check(text)
    assert "in LEAKY_KEY" in text


@pytest.mark.anyio
async def test_what_objects_and_events_and_errors_show(config: Path) -> None:
    providers = load(config)
    hook = RecordingHook()
    async with httpx.AsyncClient(transport=Unkind()) as client:
        report = await ask(Prompt(text="why?"), providers[1:], client=client, hooks=[hook])
        for provider in providers[1:]:
            assert provider.endpoint is not None
            with pytest.raises((ProviderError, httpx.ConnectError, RuntimeError)) as raised:
                async for _ in provider.endpoint.stream(Prompt(text="why?"), client):
                    raise AssertionError("they say nothing")
            assert "canary" not in "".join(traceback.format_exception(raised.value))
    text = "\n".join([repr(report), str(report.totals()), *map(repr, hook.events), repr(providers)])
    assert "canary" not in text
