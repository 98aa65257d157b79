"""Runs are written as logs that Burr's own UI reads; its server answers with them."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import anyio
import pytest

import shoal
from shoal import Application, Graph, MemoryStore, action, fan_out, race
from shoal.watch import Queries

on_both = pytest.mark.anyio


@action(reads=["n"], writes=["square"])
async def square(n: int) -> int:
    await anyio.sleep(n / 100)
    if n % 4 == 3:
        raise LookupError(f"no square of {n}")
    return n * n


@action(reads=["squares"], writes=["total"])
async def add(squares: dict[str, int]) -> int:
    return sum(squares.values())


@action(reads=["total"])
async def check(total: int) -> None:
    if total == 17:
        raise ValueError("it is 17")


numbers = fan_out(
    square, over="numbers", item="n", key=str, into="squares", on_error="ignore", name="numbers"
)
squares = Application(Graph.chain(numbers, add, check), name="squares of numbers")


async def kept(app: Application[Any], state: Any, run_id: str = "a") -> Queries:
    store = MemoryStore()
    async with shoal.Runtime(store=store) as runtime:
        with suppress(ValueError):
            await runtime.run(app, state, id=run_id)
    return Queries(store)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def entries(directory: Path) -> list[tuple[Any, ...]]:
    """Return the steps of a log: name, sequence id, exception, and the state after it."""
    log = lines(directory / "log.jsonl")
    begun = {one["sequence_id"]: one for one in log if one["type"] == "begin_entry"}
    ended = {one["sequence_id"]: one for one in log if one["type"] == "end_entry"}
    found = list[tuple[Any, ...]]()
    for number, one in begun.items():
        end = ended.get(number)
        if end is not None:
            assert end["action"] == one["action"]
            assert one["start_time"] <= end["end_time"]
        what = (None, None) if end is None else (end["exception"], end["state"])
        found.append((one["action"], number, *what))
    return found


@on_both
async def test_a_run_is_written_with_its_steps_and_children(tmp_path: Path):
    queries = await kept(squares, {"numbers": [1, 2, 3]})
    done = await queries.to_burr("a", tmp_path)
    assert done[1:] == ("shoal-squares-of-numbers", "a", 4, 0)
    root = tmp_path / done.project / "a"
    given = {"numbers": [1, 2, 3]}
    one_more = {**given, "squares": {"1": 1, "2": 4}}
    assert entries(root) == [
        ("numbers", 0, None, one_more),
        ("add", 1, None, {**one_more, "total": 5}),
        ("check", 2, None, {**one_more, "total": 5}),
    ]
    graph = json.loads((root / "graph.json").read_text())
    assert graph["entrypoint"] == "numbers"
    assert [(one["name"], one["writes"]) for one in graph["actions"]] == [
        ("numbers", ["squares"]),
        ("add", ["total"]),
        ("check", []),
    ]
    assert [(one["from_"], one["to"]) for one in graph["transitions"]] == [
        ("numbers", "add"),
        ("add", "check"),
    ]
    children = lines(root / "children.jsonl")
    assert [one["sequence_id"] for one in children] == [0, 0, 0]
    names = {one["child"]["app_id"].rsplit("-", 1)[0]: one["child"]["app_id"] for one in children}
    assert set(names) == {"square-1", "square-2", "square-3"}
    failed = tmp_path / done.project / names["square-3"]
    assert entries(failed) == [("square", 0, "failed: LookupError: no square of 3", {"element": 3})]
    metadata = json.loads((failed / "metadata.json").read_text())
    assert metadata["spawning_parent_pointer"] == {
        "type": "pointer_data",
        "app_id": "a",
        "sequence_id": 0,
        "partition_key": None,
    }
    log = lines(root / "log.jsonl")
    facts = {one["key"]: one["value"] for one in log if one["type"] == "attribute"}
    assert facts["shoal.children.square.failed"] == 1
    assert facts["shoal.status"] == "succeeded"


@on_both
async def test_a_failed_run_has_its_error_where_it_failed(tmp_path: Path):
    queries = await kept(squares, {"numbers": [1, 4]})
    await queries.to_burr("a", tmp_path)
    steps = entries(tmp_path / "shoal-squares-of-numbers" / "a")
    assert [step[0] for step in steps] == ["numbers", "add", "after add"]
    assert [step[2] for step in steps] == [None, None, "failed: ValueError: it is 17"]


@on_both
async def test_children_that_matter_are_written_first(tmp_path: Path):
    queries = await kept(squares, {"numbers": list(range(20))})
    done = await queries.to_burr("a", tmp_path, max_children=4)
    assert (done.written, done.omitted) == (5, 16)
    names = {path.name.rsplit("-", 1)[0] for path in (tmp_path / done.project).iterdir()}
    assert names == {"a", "square-3", "square-7", "square-19", "square-18"}
    log = lines(tmp_path / done.project / "a" / "log.jsonl")
    facts = {one["key"]: one["value"] for one in log if one["type"] == "attribute"}
    assert facts["shoal.children left out"] == 16


@on_both
async def test_the_winner_of_a_race_is_written(tmp_path: Path):
    @action(writes=["a"])
    async def answer(n: float) -> float:
        await anyio.sleep(n)
        return n

    acts = [answer.bind(name=f"act{n}", n=n) for n in (0.3, 0.1, 0.2)]
    queries = await kept(Application(race(*acts, into="a", name="ask"), name="ask"), {})
    done = await queries.to_burr("a", tmp_path, max_children=1)
    names = [path.name for path in (tmp_path / done.project).iterdir()]
    assert any(name.startswith("act0-1-") for name in names)
    done = await queries.to_burr("a", tmp_path)
    loser = next(path for path in (tmp_path / done.project).iterdir() if "act0-3" in path.name)
    ((_, _, exception, _),) = entries(loser)
    assert exception.startswith("cancelled: ")
    log = lines(loser / "log.jsonl")
    facts = {one["key"]: one["value"] for one in log if one["type"] == "attribute"}
    assert facts["shoal.winner"].startswith("a/ask:0:act0.1:")


@on_both
async def test_children_of_children_are_written_below_them(tmp_path: Path):
    outer = fan_out(
        Graph.chain(numbers, name="inner"),
        over="groups",
        item="numbers",
        key=lambda group: str(group[0]),  # pyright: ignore[reportUnknownLambdaType]
        take="squares",
        into="all",
        name="outer",
    )
    queries = await kept(Application(outer, name="outer"), {"groups": [[0, 1], [2, 3]]}, "x/y")
    done = await queries.to_burr("x%2Fy", tmp_path)
    assert done.written == 7
    assert done.app_id.startswith("x-y-")
    place = tmp_path / done.project
    (child,) = [path for path in place.iterdir() if path.name.startswith("inner-2-")]
    below = lines(child / "children.jsonl")
    assert len(below) == 2
    for one in below:
        metadata = json.loads((place / one["child"]["app_id"] / "metadata.json").read_text())
        assert metadata["spawning_parent_pointer"]["app_id"] == child.name


@on_both
async def test_large_fields_are_shortened(tmp_path: Path):
    queries = await kept(squares, {"numbers": [1], "text": "x" * 100_000})
    await queries.to_burr("a", tmp_path)
    path = tmp_path / "shoal-squares-of-numbers" / "a" / "log.jsonl"
    assert path.stat().st_size < 10_000
    assert "(100,002 characters)" in path.read_text()


# -- Burr's own server -----------------------------------------------------------------------------


@contextmanager
def served(directory: Path) -> Generator[str]:
    """Start Burr's own server, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "burr.tracking.server.run:app", "--port", str(port)]
    environment = {**os.environ, "burr_path": str(directory), "HAMILTON_TELEMETRY_ENABLED": "false"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        address = f"http://127.0.0.1:{port}"
        try:
            until = time.monotonic() + 90
            while True:
                assert process.poll() is None, "the server has ended"
                try:
                    urlopen(f"{address}/ready", timeout=5).close()
                    break
                except URLError:
                    assert time.monotonic() < until, "the server doesn't answer"
                    time.sleep(0.2)
            yield address
        finally:
            process.kill()


@pytest.mark.services
@pytest.mark.timeout(120)  # its server imports a dozen frameworks before it answers
@pytest.mark.skipif(
    importlib.util.find_spec("burr") is None, reason="needs Burr: pip install 'apache-burr[start]'"
)
def test_burrs_own_server_shows_the_run(tmp_path: Path):
    async def export() -> None:
        queries = await kept(squares, {"numbers": list(range(10))})
        await queries.to_burr("a", tmp_path, project="numbers", max_children=5)
        failing = await kept(squares, {"numbers": [1, 4]}, "b")
        await failing.to_burr("b", tmp_path, project="numbers")

    anyio.run(export)

    with served(tmp_path) as address:

        def ask(path: str) -> Any:
            with urlopen(f"{address}/api/v0/{path}", timeout=20) as answer:
                return json.load(answer)

        (project,) = ask("projects")
        assert project["name"] == "numbers"
        listed = ask("numbers/__none__/apps")["applications"]
        assert listed[0]["app_id"] == "b", "it was written last"
        by_id = {app["app_id"]: app for app in listed}
        assert by_id["a"]["num_steps"] == 3
        assert by_id["a"]["spawning_parent_pointer"] is None
        children = [app for app in listed if app["spawning_parent_pointer"]]
        assert {app["spawning_parent_pointer"]["app_id"] for app in children} == {"a", "b"}
        shown = ask("numbers/a/__none__/apps")
        assert [step["step_start_log"]["action"] for step in shown["steps"]] == [
            *("numbers", "add", "check")
        ]
        assert shown["steps"][1]["step_end_log"]["state"]["total"] > 0
        assert len(shown["children"]) == 5
        child = shown["children"][0]["child"]["app_id"]
        below = ask(f"numbers/{child}/__none__/apps")
        assert below["spawning_parent_pointer"]["app_id"] == "a"
        assert below["steps"][0]["step_end_log"]["exception"].startswith("failed: LookupError")
        failed = ask("numbers/b/__none__/apps")["steps"][-1]["step_end_log"]
        assert failed["exception"] == "failed: ValueError: it is 17"
        with urlopen(address, timeout=20) as page:
            assert b'<div id="root">' in page.read()
