"""What queries, exports and commands return contains no secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import anyio
import pytest

from shoal import Application, Graph, SQLiteStore, State, action, fan_out
from shoal.__main__ import main
from shoal.watch import Queries
from shoal.watch._values import What

CANARY = "sk-canary-7f3a9b"


@action(reads=["n", "token"], writes=["answer"])
async def ask(n: int, token: str) -> str:
    if n % 2:
        raise ConnectionError(f"https://api.example/?key={token} answers {n} with 401 for {token}")
    return f"answer {n}"


@action(reads=["token"])
async def close(token: str) -> None:
    raise ValueError(f"{token} has expired")


asking = fan_out(
    Graph.chain(ask, name="asking"),
    over="ns",
    item="n",
    key=lambda n: f"key {n}",  # pyright: ignore[reportUnknownLambdaType]
    take="answer",
    into="answers",
    on_error="ignore",
    name="all",
)
app = Application(Graph.chain(asking, close), name="asker")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "runs.db"
    kept = Application(app.graph, name="asker", store=SQLiteStore(path, synchronous="normal"))
    for run_id in ("a", "b"):
        with pytest.raises(ValueError, match=r"\*\*\* has expired"):
            kept.run_sync(State({"token": CANARY, "ns": [0, 1, 2, 3]}, secret={"token"}), id=run_id)
    return path


def test_queries_return_no_secret(file: Path, tmp_path: Path):
    async def ask_everything() -> list[Any]:
        async with SQLiteStore(file) as store:
            queries = Queries(store)
            found: list[Any] = [await queries.runs(), await queries.limits()]
            rows = (await queries.children("a")).rows
            for path in ("a", *(row.path for row in rows)):
                explained = await queries.explain(path)
                found += [
                    await queries.overview(path),
                    await queries.children(path),
                    await queries.timeline(path),
                    await queries.history(path),
                    await queries.diff(path, "b"),
                    (explained, explained.text),
                    [line async for line in queries.lines(path, values=True)],
                ]
                found += [await queries.value(path, what) for what in get_args(What)]
            await queries.to_burr("a", tmp_path)
            return found

    found = anyio.run(ask_everything)
    text = "\n".join(map(repr, found))
    assert "*** has expired" in text
    assert "with 401 for ***" in text, "it was looked at where it would be"
    assert CANARY not in text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    written = "\n".join(path.read_text() for path in files)
    assert "*** has expired" in written
    assert CANARY not in written


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_commands_write_no_secret(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
):
    for command in (
        ("runs",),
        ("show", "a"),
        ("show", "a/all:0:asking:key%201"),
        ("events", "a"),
        ("explain", "a"),
        ("diff", "a", "b"),
        ("export", "a", "--values"),
        ("export", "a", "--format", "burr", "--to", str(tmp_path)),
    ):
        assert main([*command, "--db", str(file), *more]) == 0
    out, err = capsys.readouterr()
    assert "*** has expired" in out
    assert CANARY not in out + err
