"""`shoal pause | resume | cancel | limit | answer`: on runs that real processes execute."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode

import anyio
import pytest

from shoal import Application, Context, SQLiteStore, action, fan_out
from shoal.__main__ import main
from shoal.watch import Queries
from tests.stores.durable import InFile, InSchema, Kept
from tests.stores.postgres import PostgresServer

WORKER = """
import sys
import anyio
from shoal import *

@action(reads=["item"], writes=["done"], limits=Limits(20, by=lambda state: state["item"] % 2))
async def work(item: int, context: Context) -> int:
    if item == 199:
        return await context.ask("last", "how many?", answer=int)
    await anyio.sleep(0.05 if item < 1000 else 60)
    return item

async def main(store):
    step = fan_out(work, over="items", item="item", key=str, into="all", name="all",
                   limits=Limits(2), on_error="ignore")
    app = Application(step, name="app")
    async with store, Runtime(store=store, apps=[app]) as runtime:
        async with anyio.create_task_group() as tasks:
            handle = await app.start({"items": [1000, *range(200)]}, id="r", runtime=runtime)
            print("begun", flush=True)
            await handle.wait_ended()
            print(handle.status, flush=True)

anyio.run(main, eval(sys.argv[1]))
"""


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    if request.param == "sqlite":
        return InFile(tmp_path / "runs.db")
    server: PostgresServer = request.getfixturevalue("postgres")
    return InSchema(server)


@contextmanager
def worker(place: Kept, program: Path) -> Generator[subprocess.Popen[str]]:
    code = "{}({})".format(*place.code)
    process = subprocess.Popen(
        [sys.executable, str(program), code], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def shoal(place: Kept, *arguments: str) -> int:
    if isinstance(place, InSchema):
        told = {"host": place.server.folder, "port": place.server.port, "user": "postgres"}
        url = f"postgresql:///postgres?{urlencode(told)}"
        found = ["--postgres", url, "--schema", place.schema]
    else:
        assert isinstance(place, InFile)
        found = ["--db", str(place.path)]
    return main([arguments[0], *found, *arguments[1:]])


def looked_at(place: Kept, what: Callable[[Queries], Any]) -> Any:
    async def look() -> Any:
        async with place.store() as store:
            return await what(Queries(store))

    return anyio.run(look)


def done(place: Kept) -> int:
    return looked_at(place, lambda queries: queries.overview("r")).counts.get("succeeded", 0)


@pytest.mark.slow
@pytest.mark.realtime
def test_a_run_of_another_process_is_steered_and_its_pause_outlasts_a_kill(
    place: Kept, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    program = tmp_path / "worker.py"
    program.write_text(WORKER)
    with worker(place, program) as process:
        time.sleep(0.5)
        began = time.monotonic()
        assert shoal(place, "pause", "r", "--reason", "lunch", "--by", "ops") == 0
        assert time.monotonic() - began < 5
        time.sleep(0.3)
        before = done(place)
        assert before < 190
        time.sleep(0.5)
        assert done(place) == before
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert "pause\tops\tlunch" in capfd.readouterr().out
    assert shoal(place, "show", "r") == 0
    assert "paused since" in capfd.readouterr().out
    assert shoal(place, "cancel", "r") == 1
    assert "no process executes run r now" in capfd.readouterr().err
    with worker(place, program):
        time.sleep(0.5)
        assert done(place) == before, "it is paused in the next process, too"
        assert shoal(place, "limit", "r", "all", "--part", "-1", "-n", "30") == 0
        assert shoal(place, "pause", "r", "--limit", "work", "--key", "1") == 1
        assert "there is no limit of 'work' here (there are: none)" in capfd.readouterr().err
        assert shoal(place, "resume", "r", "--by", "ops") == 0
        assert shoal(place, "pause", "r", "--limit", "work", "--key", "1") == 0
        time.sleep(2)
        assert done(place) < 199, "odd ones wait for their key"
        assert shoal(place, "limit", "r") == 0
        limits = capfd.readouterr().out
        assert "all\t-1\tin flight" in limits
        assert shoal(place, "resume", "r", "--limit", "work") == 0
        assert shoal(place, "limit", "r", "nobody", "-n", "3") == 1
        assert "there is no limit of 'nobody' here" in capfd.readouterr().err
        until(lambda: done(place) == 199)
        assert shoal(place, "answer", "r", "last", "many") == 1
        assert "must be a whole number" in capfd.readouterr().err
        assert shoal(place, "answer", "r") == 0
        assert "last\thow many?\t" in capfd.readouterr().out
        assert shoal(place, "answer", "r", "last", "77") == 0
        until(lambda: done(place) == 200)
        assert shoal(place, "cancel", "r/all:0:work:1000", "--reason", "too slow") == 0
        until(lambda: looked_at(place, lambda one: one.overview("r")).status == "succeeded")
        assert shoal(place, "pause", "r") == 1
        assert "run r has succeeded" in capfd.readouterr().err
    said = [(one.what, one.reason) for one in looked_at(place, lambda one: one.steered("r"))]
    assert said == [
        ("pause", "lunch"), ("change limits", ""), ("refused", ""), ("resume", ""),
        ("pause limit", ""), ("resume limit", ""), ("refused", ""), ("answer", ""),
        ("cancel child", "too slow"),
    ]  # fmt: skip


def until(is_so: Callable[[], bool]) -> None:
    for _ in range(200):
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError("it never came to that")


@action(writes=["said"])
async def consult(context: Context) -> object:
    approved = await context.ask("sure", {"really": True}, answer=bool)
    return approved, await context.ask("why")


def test_questions_of_a_halted_run_are_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "runs.db"
    app = Application(consult, name="app", store=SQLiteStore(file))
    app.run_sync({}, id="r")

    def answer(*arguments: str) -> int:
        return main(["answer", "--db", str(file), *arguments])

    assert answer("r", "--json") == 0
    (asked,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (asked["name"], asked["answer_schema"]) == ("sure", {"type": "boolean"})
    assert answer("r", "sure", "yes") == 1
    assert "'yes' is no answer to 'sure': must be true or false" in capsys.readouterr().err
    assert answer("r", "sur", "true") == 1
    assert "the open questions are 'sure' of r" in capsys.readouterr().err
    assert answer("r", "sure", "true", "--by", "ann", "--json") == 0
    assert json.loads(capsys.readouterr().out)["by"] == "ann"
    assert answer("r", "sure", "false") == 1
    again = capsys.readouterr().err
    assert "'sure': it is answered; the run goes on when its program runs it again" in again
    assert app.run_sync(id="r").questions[0].name == "why"
    assert answer("r", "why", "3", "--as-json") == 0
    assert app.run_sync(id="r").state["said"] == (True, 3)


@action(reads=["n"], writes=["said"])
async def consult_about(n: int, context: Context) -> object:
    return await context.ask("sure", n)


def is_one(_: object) -> bool:
    return True


def test_an_answer_says_what_lets_a_halted_run_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    kind = cast("Any", type(sys.stdout))
    monkeypatch.setattr(kind, "isatty", is_one, raising=False)
    file = tmp_path / "runs.db"
    each = fan_out(consult_about, over="ns", item="n", key=str, into="all")
    Application(each, name="app", store=SQLiteStore(file)).run_sync({"ns": [1, 2]}, id="r")
    again = "the run goes on when its program runs it again: run(id='r')"
    for key, end in (("1", f"{again}, and has 1 more to answer\n"), ("2", f"{again}\n")):
        path = f"r/all:0:consult_about:{key}"
        assert main(["answer", "--db", str(file), path, "sure", "yes"]) == 0
        assert capsys.readouterr().out.endswith(end)


@action(reads=["n"], writes=["m"])
async def end_as_told(n: int, context: Context) -> int:
    if n == 1:
        raise ValueError(n)
    return await context.ask("n") if n else 0


@pytest.mark.parametrize(
    ("n", "says"),
    [
        (0, "it has succeeded"),
        (1, "it has failed, and goes on when its program runs it again: run(id='r')"),
        (2, "it is halted, and goes on when its program runs it again: run(id='r')"),
    ],
)
def test_what_is_not_paused_is_told_how_it_goes_on(
    n: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "runs.db"
    with suppress(ValueError):
        Application(end_as_told, name="app", store=SQLiteStore(file)).run_sync({"n": n}, id="r")
    assert main(["resume", "--db", str(file), "r"]) == 1
    assert f"run r isn't paused: {says}\n" in capsys.readouterr().err


def test_commands_for_runs_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "runs.db"
    Application(consult, name="app", store=SQLiteStore(file)).run_sync({}, id="r")
    for command in ("pause", "resume", "cancel", "drain"):
        assert main([command, "--db", str(file), "q"]) == 1
        assert "there is no run 'q'" in capsys.readouterr().err
    assert main(["resume", "--db", str(file), "r"]) == 1
    assert "run r isn't paused" in capsys.readouterr().err
    assert main(["limit", "--db", str(file), "r"]) == 1
    assert main(["pause", "--db", str(file), "r"]) == 0
    assert main(["resume", "--db", str(file), "r", "--reason", "x"]) == 0
    by = {one.split("\t")[1] for one in capsys.readouterr().out.splitlines()}
    assert all("@" in one or os.uname().nodename in one for one in by)
