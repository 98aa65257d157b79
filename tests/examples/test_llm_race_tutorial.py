"""The race in one file: the makers' own clients, against a server that breaks its answers."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from tests.examples.services import absent

if TYPE_CHECKING:
    from llmock.pytest_plugin import LLMock

ROOT = Path(__file__).parents[2]
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])

pytestmark = [
    pytest.mark.services,
    pytest.mark.realtime,
    pytest.mark.timeout(120),  # whole processes, on whatever machine
    # They leave generators of their own to the garbage collector; what those read is closed.
    pytest.mark.filterwarnings("ignore:Async generator '(http|openai|anthropic):ResourceWarning"),
]


@pytest.fixture(autouse=True)
def peers() -> None:
    for package in ("llmock", "openai", "anthropic"):
        if find_spec(package) is None:
            absent(package)


def told(llmock: LLMock, backend: str) -> str:
    from anthropic import AsyncAnthropic
    from openai import AsyncOpenAI

    from examples.llm_race import tutorial

    clients = (
        AsyncOpenAI(base_url=llmock.base_url("openai"), api_key="k", max_retries=0),
        AsyncAnthropic(base_url=llmock.base_url("anthropic"), api_key="k", max_retries=0),
    )
    return anyio.run(tutorial.tell, "Why is the sea salty?", *clients, backend=backend)


@BACKENDS
def test_the_first_to_speak_answers(
    llmock: LLMock, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    llmock.reply("Because of rivers.", provider="openai")
    llmock.delay(9, provider="anthropic")
    assert told(llmock, backend) == "Because of rivers."
    out, err = capsys.readouterr()
    assert out == "\ngpt: Because of rivers."
    assert err in ("\n", "\nclaude: Cancelled\n")  # claude starts if this machine is busy
    llmock.assert_resilient(strict=True)


@BACKENDS
def test_a_silent_model_loses(
    llmock: LLMock, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    llmock.delay(9, provider="openai")
    llmock.reply("Because of rain.", provider="anthropic")
    assert told(llmock, backend) == "Because of rain."
    out, err = capsys.readouterr()
    assert out == "\nclaude: Because of rain."
    assert err == "\ngpt: Cancelled\n"
    llmock.assert_resilient(strict=True)


@BACKENDS
def test_a_refused_model_leaves_the_race(
    llmock: LLMock, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    llmock.fail(401, provider="openai")
    llmock.reply("Because of rain.", provider="anthropic")
    assert told(llmock, backend) == "Because of rain."
    assert capsys.readouterr().err == "\ngpt: Failed\n"
    llmock.assert_resilient(strict=True)


@BACKENDS
def test_an_answer_that_breaks_off_begins_anew(
    llmock: LLMock, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    llmock.reply("a whole answer of several words", times=None)
    llmock.truncate(after_chunks=3, provider="openai")
    llmock.delay(9, provider="anthropic")
    assert told(llmock, backend) == "a whole answer of several words"
    out, _ = capsys.readouterr()
    assert out.endswith("\ngpt: a whole answer of several words")
    assert out.count("gpt: ") == 2


@BACKENDS
def test_a_server_that_says_later_is_obeyed(llmock: LLMock, backend: str) -> None:
    llmock.rate_limit(times=1, retry_after=1, provider="openai")
    llmock.fail(401, provider="anthropic")
    llmock.reply("Because of rivers.", provider="openai")
    assert told(llmock, backend) == "Because of rivers."
    llmock.assert_resilient(strict=True)


def run(llmock: LLMock) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.llm_race.tutorial", "Why is the sea salty?"],
        cwd=ROOT,
        env=os.environ | llmock.env(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_command_of_its_docstring(llmock: LLMock) -> None:
    llmock.reply("Because of rivers.", times=None)
    ended = run(llmock)
    # On a busy machine, gpt may be silent for half a second.
    assert ended.stdout in ("\ngpt: Because of rivers.", "\nclaude: Because of rivers.")
    assert ended.returncode == 0


def test_the_command_says_why_nobody_answered(llmock: LLMock) -> None:
    llmock.fail(401, times=None)
    ended = run(llmock)
    assert ended.returncode == 1
    assert ended.stderr.count("401") == 2
