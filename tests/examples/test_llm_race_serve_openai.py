"""The race as a service, on a socket: for OpenAI's client, and until it is told to stop."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from examples.llm_race.__main__ import main
from tests.examples.services import absent

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

pytestmark = pytest.mark.services

HERE = Path(__file__).parents[2]
KEYS = {"RACE_KEY": "canary-service-5e2a", "MODEL_KEY": "canary-model-5e2a"}
PATIENCE = 10.0


def word(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


@dataclass
class Models(ThreadingHTTPServer):
    """Providers that count the requests they are answering; to "endless", one never ends."""

    daemon_threads = True
    open: int = 0
    keys: set[str | None] = field(default_factory=set[str | None])

    def __post_init__(self) -> None:
        self.counting = threading.Lock()
        super().__init__(("127.0.0.1", 0), Answer)

    def count(self, by: int) -> None:
        with self.counting:
            self.open += by


class Answer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        models = self.server
        assert isinstance(models, Models)
        models.keys.add(self.headers.get("Authorization"))
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = body["messages"][-1]["content"]
        if asked == "refuse":
            self.send_error(401, f"the key is not {self.headers.get('Authorization')}")
            return
        models.count(+1)
        try:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            while asked == "silent":
                self.wfile.write(b": still there\n\n")
                time.sleep(0.01)
            for text in ("be", "cau", "se"):
                self.wfile.write(word(text))
            while asked == "endless":
                self.wfile.write(word(" on"))
                time.sleep(0.01)
            self.wfile.write(word("", "stop") + b"data: [DONE]\n\n")
        except ConnectionError:  # it is cancelled: that is what is counted
            pass
        finally:
            models.count(-1)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass


@dataclass
class Served:
    models: Models
    process: subprocess.Popen[str]
    url: str
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.split(":")[2].split("/")[0])

    def stop(self) -> float:
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        return time.monotonic() - began


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it does not come to hold"
        time.sleep(0.01)


@contextmanager
def serving(folder: Path) -> Generator[Served]:
    """The command, in a process of its own, with two providers."""
    for package in ("openai", "uvicorn"):
        if find_spec(package) is None:
            absent(package)
    models = Models()
    threading.Thread(target=models.serve_forever, args=[0.05], daemon=True).start()
    config, log = folder / "race.toml", folder / "log"
    config.write_text(
        "".join(
            f'[[provider]]\nname = "{name}"\nkind = "openai"\nmodel = "m"\n'
            f'base_url = "http://127.0.0.1:{models.server_port}/v1"\napi_key_env = "MODEL_KEY"\n'
            for name in ("one", "two")
        )
    )
    command = [sys.executable, "-m", "examples.llm_race", "serve", "--config", str(config)]
    with log.open("w") as err:
        process = subprocess.Popen(
            [*command, "--port", "0", "--key-env", "RACE_KEY"],
            cwd=HERE,
            env={**os.environ, **KEYS, "PYTHONPATH": os.pathsep.join(["src", "."])},
            stdout=err,
            stderr=err,
            text=True,
        )
    try:
        until(lambda: "/v1\n" in log.read_text() or process.poll() is not None)
        yield Served(models, process, log.read_text().split()[0], log)
    finally:
        process.kill()
        process.wait()
        models.shutdown()
        models.server_close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("serve")) as found:
        yield found


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    import openai

    with openai.OpenAI(api_key=KEYS["RACE_KEY"], base_url=served.url, max_retries=0) as found:
        yield found


def test_the_client_of_openai(client: OpenAI) -> None:
    assert "race:hedge" in [model.id for model in client.models.list()]
    assert client.models.retrieve("race").owned_by == "llm_race"
    whole = client.chat.completions.create(
        model="race:first", messages=[{"role": "user", "content": "why?"}]
    )
    assert whole.choices[0].message.content == "because"
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.total_tokens > 0
    with client.chat.completions.create(
        model="race",
        messages=[{"role": "user", "content": "why?"}],
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        found = list(stream)
    assert [c.delta.content for chunk in found for c in chunk.choices] == ["be", "cau", "se", None]
    assert found[-1].usage is not None


def test_the_async_client_of_openai(served: Served) -> None:
    import openai

    async def once(client: AsyncOpenAI, n: int) -> str:
        model = ("race", "race:hedge", "race:fallback")[n % 3]
        stream = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "why?"}], stream=True
        )
        async with stream:
            parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return "".join(parts)

    async def main() -> list[str]:
        found: list[str] = []

        async def one(n: int) -> None:
            found.append(await once(client, n))

        async with (
            openai.AsyncOpenAI(
                api_key=KEYS["RACE_KEY"], base_url=served.url, max_retries=0
            ) as client,
            anyio.create_task_group() as tasks,
        ):
            for n in range(9):
                tasks.start_soon(one, n)
        return found

    assert anyio.run(main) == ["because"] * 9


def test_failures_are_the_clients_own(client: OpenAI) -> None:
    import openai

    def ask(content: str, model: str = "race", client: OpenAI = client) -> None:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}])

    with pytest.raises(openai.NotFoundError, match="no model 'gpt-9'"):
        ask("why?", "gpt-9")
    with pytest.raises(openai.BadRequestError, match="with text"):
        ask(" ")
    with pytest.raises(openai.AuthenticationError, match="wrong or missing key"):
        ask("why?", client=client.with_options(api_key="wrong"))
    with pytest.raises(openai.InternalServerError, match="no acceptable answer") as caught:
        ask("refuse")
    assert caught.value.status_code == 502
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("stream", "asked"), [(False, "endless"), (True, "endless"), (True, "silent")]
)
def test_every_way_to_hang_up_cancels_the_race(
    client: OpenAI, served: Served, stream: bool, asked: str
) -> None:
    body = {"model": "race", "messages": [{"role": "user", "content": asked}], "stream": stream}
    connection = connect(served, "/v1/chat/completions", body)
    until(lambda: served.models.open > 0)
    if (stream, asked) == (True, "endless"):
        assert connection.recv(15).startswith(b"HTTP/1.1 200")
    connection.close()
    until(lambda: served.models.open == 0)
    assert client.models.list().data  # and it goes on for others


def test_the_program_in_the_readme(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (HERE / "examples" / "llm_race" / "README.md").read_text("utf-8")
    [program, _] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    monkeypatch.setenv("RACE_KEY", KEYS["RACE_KEY"])
    program = program.replace("http://127.0.0.1:8000/v1", served.url)
    exec(compile(program, "README.md", "exec"), names := {"__name__": "readme"})
    names["client"].close()
    assert capsys.readouterr().out == "because"


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--backend", "trio"], 2, "uvicorn runs on asyncio alone"),
        (["--key-env", "NO_SUCH_KEY"], 2, "NO_SUCH_KEY must hold the key of this service"),
        (["--strategy", "judge"], 2, "needs a provider that judges"),
        (["--port", "{port}"], 1, "in use"),
    ],
    ids=["trio", "no-key", "no-judge", "taken"],
)
def test_what_can_not_be_served_is_said_at_once(
    served: Served, capsys: pytest.CaptureFixture[str], options: list[str], code: int, said: str
) -> None:
    config = ["--config", str(served.log.with_name("race.toml"))]
    given = [option.format(port=served.port) for option in options]
    assert main(["serve", *config, *given]) == code
    assert said in capsys.readouterr().err


def test_keys_stay_where_they_are(served: Served, client: OpenAI) -> None:
    client.chat.completions.create(model="race", messages=[{"role": "user", "content": "why?"}])
    assert served.models.keys == {f"Bearer {KEYS['MODEL_KEY']}"}, "theirs, and never the service's"
    assert "canary" not in served.log.read_text()


def test_sigterm_ends_what_streams(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        body = {"prompt": "endless", "model": "race"}
        connection = connect(served, "/race", body)
        messages = [{"role": "user", "content": "endless"}]
        whole = connect(served, "/v1/chat/completions", {"model": "race", "messages": messages})
        until(lambda: served.models.open == 4)
        took = served.stop()
        until(lambda: served.models.open == 0)
        assert took < 4.0
        with connection, connection.makefile("rb") as lines:
            assert b"event: error" in lines.read()
        with whole, whole.makefile("rb") as lines:
            assert lines.read().startswith(b"HTTP/1.1 503")
        with pytest.raises(ConnectionRefusedError):
            connect(served, "/race", body)
        assert "Traceback" not in served.log.read_text()


def connect(served: Served, path: str, body: object) -> socket.socket:
    """Send a request, and return the socket before there is an answer."""
    data = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {KEYS['RACE_KEY']}",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
        "",
        "",
    ]
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE)
    connection.sendall("\r\n".join(lines).encode() + data)
    return connection
