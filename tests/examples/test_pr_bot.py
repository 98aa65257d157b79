"""The bot that answers reviews: a real repository, a shared model, a person, and kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Literal

import anyio
import pytest

from examples.pr_bot import bot
from examples.pr_bot.bot import pr_bot
from examples.pr_bot.models import PARTS, Model, local_model
from shoal import Graph, MemoryStore, RunResult, SQLiteStore
from shoal.stores import Store
from shoal.testing import ReplayDiffers, crash_everywhere, replay
from tests.examples.services import absent

ROOT = Path(__file__).parents[2]
FILES = ["io.py", "net/réseau 1.py", "setup.cfg"]
COMMENTS = ["Please close the file, use a with statement", "Is the timeout in seconds?", "Typo"]
Backend = Literal["asyncio", "trio"]
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])

pytestmark = [pytest.mark.timeout(120), pytest.mark.realtime]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose branch `topic` changes three files, and deletes one."""
    folder = tmp_path / "repository"
    (folder / "net").mkdir(parents=True)
    git = ("git", "-C", str(folder), "-c", "user.name=ann", "-c", "user.email=ann@example.org")

    def commit(**texts: str | None) -> None:
        for name, text in texts.items():
            path = folder / {"io": FILES[0], "net": FILES[1], "setup": FILES[2]}.get(name, name)
            path.write_text(text, "utf-8") if text is not None else path.unlink()
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-q", "-m", "a change"], check=True)

    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    commit(io="def read(path):\n    return open(path).read()\n", old="x\n")
    subprocess.run([*git, "checkout", "-q", "-b", "topic"], check=True)
    commit(
        io="def read(path):\n    with open(path) as file:\n        return file.read()\n",
        net="timeout = 5\nretries = 3\n",
        setup="[tool]\n",
        old=None,
    )
    return folder


def state_of(repository: Path) -> dict[str, Any]:
    where = {"repository": str(repository), "base": "main", "head": "topic"}
    return {**where, "comments": COMMENTS}


def run(
    repository: Path, backend: Backend, model: Model, *, seconds: float = 60.0, **given: Any
) -> RunResult:
    async def main() -> RunResult:
        app = pr_bot(SQLiteStore(repository.parent / "bot.db"), seconds_per_comment=seconds)
        return await app.run(state_of(repository), id="r", inputs={"model": model}, **given)

    return anyio.run(main, backend=backend)


def note_of(repository: Path) -> str:
    command = ["git", "-C", str(repository), "notes", "--ref=review", "show", "topic"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


class Counting:
    """The local model, which says how many questions it had at once, and with which keys."""

    def __init__(self) -> None:
        self.at_once = self.most = 0
        self.keys = defaultdict[str, list[str]](list)
        self.hangs: Callable[[str], bool] = lambda _: False

    async def __call__(self, prompt: str, key: str) -> str:
        self.keys[prompt].append(key)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await anyio.sleep(60 if self.hangs(prompt) else 0.01)
            return await local_model(prompt, key)
        finally:
            self.at_once -= 1

    @property
    def tasks(self) -> Counter[str]:
        return Counter(prompt.split()[0] for prompt in self.keys)


@BACKENDS
def test_every_file_and_comment_then_a_judge_and_a_person(
    repository: Path, backend: Backend
) -> None:
    model = Counting()
    result = run(repository, backend, model)
    assert list(result.state["files"]) == FILES
    assert [one.name for one in result.questions] == ["publish"]
    assert result.state.to_plain()["replies"] == [
        {"file": "io.py", "comment": COMMENTS[0], "text": "see the line: with open(path) as file:"},
        {"file": FILES[1], "comment": COMMENTS[1], "text": "see the line: timeout = 5"},
    ]
    assert model.tasks == {"DRAFT": 9, "CHECK": 2, "JUDGE": 1}
    assert 2 < model.most <= 8, "all share one limit"
    assert note_of(repository) == ""

    result = run(repository, backend, model, answers={"publish": True})
    assert result.status == "succeeded"
    assert result.state["is_published"]
    assert note_of(repository).splitlines() == [
        f"io.py: {COMMENTS[0]}",
        "  see the line: with open(path) as file:",
        f"{FILES[1]}: {COMMENTS[1]}",
        "  see the line: timeout = 5",
    ]
    assert all(len(keys) == 1 for keys in model.keys.values()), "nothing was asked twice"


@pytest.mark.parametrize(("backend", "answer"), [("asyncio", False), ("trio", "yes")])
def test_only_true_is_a_yes(repository: Path, backend: Backend, answer: object) -> None:
    run(repository, backend, local_model)
    result = run(repository, backend, local_model, answers={"publish": answer})
    assert result.status == "succeeded"
    assert note_of(repository) == ""


@pytest.mark.anyio
async def test_no_line_of_a_diff_ends_a_part_of_a_prompt() -> None:
    diff = "--- a/x.md\n+++ b/x.md\n@@ -1,2 +1 @@\n---\n-=====\n+the timeout\n"
    prompt = PARTS.join([bot.DRAFT, "Which timeout?", diff])
    assert await local_model(prompt, "") == "see the line: the timeout"


@BACKENDS
def test_a_comment_that_takes_too_long_disturbs_no_other(
    repository: Path, backend: Backend
) -> None:
    model = Counting()
    model.hangs = lambda prompt: COMMENTS[1] in prompt and "retries" in prompt
    result = run(repository, backend, model, seconds=1.5)
    reviews = result.state["reviews"]
    assert {file: list(review["unanswered"]) for file, review in reviews.items()} == {
        "io.py": [],
        FILES[1]: [COMMENTS[1]],
        "setup.cfg": [],
    }
    assert reviews[FILES[1]]["unanswered"][COMMENTS[1]].type.endswith("StepTimeout")
    assert [reply["file"] for reply in result.state["replies"]] == ["io.py"]
    assert model.at_once == 0


@BACKENDS
def test_it_may_die_at_any_save(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[str] = []

    async def git(_: str, *arguments: str) -> str:
        await anyio.lowlevel.checkpoint()
        if "notes" in arguments:
            published.append(arguments[-2])
        return "a\0b\0" if "--name-only" in arguments else f"+the timeout of {arguments[-1]}\n"

    monkeypatch.setattr(bot, "git", git)
    model = Counting()

    async def scenario(store: Store) -> dict[str, Any]:
        app, inputs = pr_bot(store), {"model": model}
        result = await app.run(state_of(Path("r")), id="r", inputs=inputs)
        if result.questions:
            result = await app.run(id="r", inputs=inputs, answers={"publish": True})
        assert result.state["is_published"]
        return result.state.to_plain()

    places = crash_everywhere(scenario, backend=backend, limit=24)
    assert places >= 20
    assert len(set(published)) == 1
    assert all(len(set(keys)) == 1 for keys in model.keys.values()), "another life, another key"
    assert len({keys[0] for keys in model.keys.values()}) == len(model.keys)


def test_a_stored_run_is_replayed_without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    async def git(_: str, *arguments: str) -> str:
        await anyio.lowlevel.checkpoint()
        return "a\0b\0" if "--name-only" in arguments else f"+the timeout of {arguments[-1]}\n"

    monkeypatch.setattr(bot, "git", git)
    store = MemoryStore()
    app, inputs = pr_bot(store), {"model": local_model}
    app.run_sync(state_of(Path("r")), id="r", inputs=inputs)
    app.run_sync(id="r", inputs=inputs, answers={"publish": True})
    assert replay(app, store, "r").called == frozenset()
    draft, check = bot.ask_for_draft, bot.ask_for_check
    always_checked = Graph.chain(
        draft, bot.draft, check, bot.check, bot.settle, name="answer_comment"
    )
    monkeypatch.setattr(bot, "answer_comment", always_checked)
    with pytest.raises(ReplayDiffers, match="after 'draft' comes 'ask_for_check'"):
        replay(pr_bot(None), store, "r")


# -- the command, with a model behind a socket ----------------------------------------------------


class ModelServer(ThreadingHTTPServer):
    """Answers chat completions as the local model does, and keeps the keys; 0 is a free port."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = Lock()
        self.asked: list[tuple[str, str]] = []  # prompts with their keys
        self.before: Callable[[int], int] = lambda _: 200

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client was killed."""


class Handler(BaseHTTPRequestHandler):
    server: ModelServer  # pyright: ignore[reportIncompatibleVariableOverride] - as in raw_site

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt, key = body["messages"][0]["content"], self.headers["idempotency-key"]
        with self.server.lock:
            self.server.asked.append((prompt, key))
            status = self.server.before(len(self.server.asked))
        message = {"role": "assistant", "content": anyio.run(local_model, prompt, key)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 1}
        content = json.dumps(answer | {"model": "m", "choices": [choice]}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("retry-after", "0")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass


@pytest.mark.services
@pytest.mark.crash
def test_a_killed_command_continues_and_asks_again_with_the_same_keys(
    repository: Path, tmp_path: Path
) -> None:
    if find_spec("openai") is None:
        absent("openai")
    comments = tmp_path / "comments.txt"
    comments.write_text("\n".join([*COMMENTS, ""]), "utf-8")
    started: list[subprocess.Popen[str]] = []

    def before(number: int) -> int:
        if number == 1:
            return 500
        if number == 2:
            return 429
        if number == 8:
            started[0].kill()
        return 200

    def command(*more: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "examples.pr_bot", str(repository), str(comments)]
        words += ["--model", "m", "--database", str(tmp_path / "bot.db"), *more]
        url = f"http://127.0.0.1:{server.server_port}/v1"
        environment = os.environ | {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "k", "NO_PROXY": "*"}
        started.append(
            subprocess.Popen(
                words,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    with ModelServer() as server:
        server.before = before
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            with command() as killed:
                killed.communicate(timeout=60)
            assert killed.returncode == -9
            with command() as resumed:
                out, err = resumed.communicate(timeout=60)
            assert (resumed.returncode, "--answer yes" in err) == (0, True), err
            assert out.count("see the line") == 2
            asked = len(server.asked)
            with command("--answer", "yes") as answered:
                out, err = answered.communicate(timeout=60)
            assert answered.returncode == 0, err
            assert note_of(repository).count("see the line") == 2
            assert len(server.asked) == asked, "only the person was still to be asked"
            with command("--answer", "yes") as late:
                _, err = late.communicate(timeout=60)
            assert (late.returncode, "no open question" in err) == (1, True)
        finally:
            server.shutdown()
            thread.join()
    keys = defaultdict[str, list[str]](list)
    for prompt, key in server.asked:
        keys[prompt].append(key)
    assert {prompt.split(PARTS)[0].split()[0] for prompt in keys} == {"DRAFT", "CHECK", "JUDGE"}
    assert len(keys) == 12
    assert all(len(set(one)) == 1 for one in keys.values())
    assert len({one[0] for one in keys.values()}) == 12
    # What a process has had under way when it died, and the two answers that said: again.
    assert 14 <= len(server.asked) <= 12 + 2 + 8
