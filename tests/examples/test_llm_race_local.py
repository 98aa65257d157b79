"""The race with what runs on this machine: a real model, the demo's models, and a real terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from examples.llm_race import Prompt, Provider, Report, Rules, Terms, ask
from examples.llm_race.__main__ import main
from examples.llm_race.client.config import providers_of
from examples.llm_race.demo import local_models
from examples.llm_race.demo import server as demo_server
from examples.llm_race.race.racing import scoreboard
from tests.examples.rivals import lanes
from tests.examples.services import absent

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.services,
    pytest.mark.timeout(120),  # whole processes, on whatever machine
    # httpx leaves generators of its own to the garbage collector; what they read is closed.
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),
]


SLOW = Terms(ttft_timeout=60, stall_timeout=60)


# -- a real model ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    try:
        local_models.weights()
    except local_models.NoModel:
        absent(f"a model ({local_models.INSTALL})")
    with local_models.serving() as url:
        yield url


def slots(url: str) -> list[dict[str, Any]]:
    """What the model's server is at work on, one entry for each request that it can take."""
    return httpx.get(f"{url}/slots", trust_env=False, timeout=30).json()


def is_idle(url: str, within: float) -> bool:
    deadline = time.monotonic() + within
    while any(slot["is_processing"] for slot in slots(url)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def real(url: str) -> list[Provider]:
    return providers_of(tomllib.loads(local_models.race_toml(url)))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_real_model_that_has_lost_really_stops(model: str, backend: str) -> None:
    assert is_idle(model, within=30)
    busy: list[int] = []  # how many requests the server was at work on, each time it was asked

    async def watch() -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            while True:
                said = (await client.get(f"{model}/slots")).json()
                busy.append(sum(slot["is_processing"] for slot in said))
                await anyio.sleep(0.05)

    providers, rules = real(model), Rules(strategy="first-token", terms=SLOW, timeout=100)
    board = scoreboard(providers, rules)

    async def race() -> None:
        # Who isn't stopped goes on for 1,900 tokens: a quarter of a minute at the very best.
        story = Prompt(text="Tell me a very long story about the sea.", max_tokens=1900)
        await ask(story, providers, rules, board=board)

    def is_decided() -> bool:
        lanes = [lane for run in board.races for lane in board.lanes(run)]
        return any(lane.status == "cancelled" for lane in lanes)

    async def until_decided() -> list[int]:
        asked = 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            tasks.start_soon(race)
            with anyio.fail_after(90):
                while not is_decided():
                    await anyio.sleep(0.01)
            asked = len(busy)
            with anyio.fail_after(5):
                while busy[asked:][-3:] != [1, 1, 1]:
                    await anyio.sleep(0.01)
            asked = len(busy)
            await anyio.sleep(0.5)
            tasks.cancel_scope.cancel()
        return busy[asked:]

    after = anyio.run(until_decided, backend=backend)
    # It went on alone, and does until it comes to an end of the story, which may be any moment.
    assert max(after) <= 1, "one goes on, the other has stopped"
    assert is_idle(model, within=5), "and so does the winner, when nobody wants its answer"


def test_a_real_race_has_an_answer(model: str) -> None:
    async def race() -> Report:
        return await ask(Prompt(text="Say hello.", max_tokens=12), real(model), Rules(terms=SLOW))

    report = anyio.run(race)
    assert report.answer is not None, report.totals()["error"]
    other, won = sorted(lanes(report).values())
    assert won == "won"
    # An answer that came a moment too late counts as answered, and as rejected if it is blank.
    assert other in {"cancelled", "answered", "rejected"}
    # Under the protocol of messages, llama.cpp reports what it has read in an event that it leaves
    # out where the first token is a part of a character, as of an emoji.
    may_say_less = report.answer.provider == "messages" and not report.answer.text[0].isascii()
    assert report.answer.usage.is_reported or may_say_less
    assert 1 <= report.answer.usage.output_tokens <= 12
    assert report.cost == 0
    assert is_idle(model, within=5)


# -- the demo ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with demo_server.serving() as url:
        file = tmp_path_factory.mktemp("demo") / "race.toml"
        file.write_text(demo_server.race_toml(url))
        yield str(file)


def test_the_demo_needs_no_keys(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert main(["ask", "--demo", "--backend", "trio", "Why?"]) == 0
    out, err = capfd.readouterr()
    assert len(out.split()) > 10
    *rows, totals = map(json.loads, err.splitlines())
    assert [row["status"] for row in rows].count("won") == 1
    assert {row["provider"] for row in rows} == set(demo_server.MODELS)
    assert totals["winner"] in demo_server.MODELS


def test_the_providers_of_the_demo_all_answer(
    config: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["providers", "--config", config, "--check"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert all(row["check"].startswith("ok in ") for row in rows)


def test_a_bench_of_the_demo(
    config: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if find_spec("matplotlib") is None:
        absent("matplotlib")
    plot = tmp_path / "bench.svg"
    args = ["-n", "4", "-c", "4", "--strategies", "first,fallback", "--config", config]
    assert main(["bench", *args, "--json", "--plot", str(plot)]) == 0
    first, fallback = json.loads(capfd.readouterr().out)
    assert first["answered"] == fallback["answered"] == 4
    assert first["extra_load"] == 3.0
    assert fallback["extra_load"] == 0.0
    assert fallback["wins"] == {"swift": 1.0}
    assert first["cost_usd"] > fallback["cost_usd"] > 0
    assert first["ttft"][0] < first["total"][0]
    assert "<svg" in plot.read_text()


def test_a_batch_that_is_killed_goes_on(config: str, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(f'"question {n}"\n' for n in range(16)))
    args = [sys.executable, "-m", "examples.llm_race", "batch", str(prompts), "-o", str(out)]
    args += ["--config", config, "-c", "4"]
    with subprocess.Popen(args, cwd=ROOT, stderr=subprocess.PIPE) as process:
        while not out.exists() or out.read_bytes().count(b"\n") < 6:
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.01)
        process.kill()
    before = out.read_text().splitlines()
    assert len(before) < 16
    assert subprocess.run([*args, "--resume"], cwd=ROOT, check=False).returncode == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(int(row["id"]) for row in rows) == list(range(1, 17))
    kept = [line for line in before if line.endswith("}")]
    assert out.read_text().splitlines()[: len(kept)] == kept, "what was done was not done again"


# -- a terminal --------------------------------------------------------------------------------


def on_terminal(*args: str, interrupt_after: str | None = None) -> tuple[int, str]:
    """Run the command on a terminal of its own; give its exit code and all that was shown."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "examples.llm_race", *args]
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environ, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
            if interrupt_after is not None and interrupt_after.encode() in shown:
                process.send_signal(signal.SIGINT)
                interrupt_after = None
        os.close(ours)
        code = process.wait(timeout=30)
    return code, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def test_a_terminal_shows_the_race_while_it_lasts_and_the_answer(config: str) -> None:
    code, shown = on_terminal("ask", "--config", config, "Why is the sea salty?")
    assert code == 0
    assert "streaming" in shown, "while it lasted"
    assert all(word in shown for word in ("provider", "first token", "won", "cancelled"))
    assert "{" not in shown, "no JSON for people"


def test_ctrl_c_ends_a_race_in_good_order(config: str) -> None:
    code, shown = on_terminal(
        "ask", "--config", config, "--strategy", "all", "Why?", interrupt_after="streaming"
    )
    assert code == 130
    assert "Traceback" not in shown
    assert "cancelled" in shown
