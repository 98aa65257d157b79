"""Whose run it is: ``run(owner=)``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal import Application, Context, MemoryStore, RunConflict, Runtime, SQLiteStore, action
from shoal.testing import no_leaks
from shoal.watch import Queries

pytestmark = pytest.mark.anyio


@action(reads=["n"], writes=["out"])
async def work(n: int, context: Context) -> int:
    return n or await context.ask("n", "which?")


app = Application(work, name="work")


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> MemoryStore | SQLiteStore:
    return MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "runs.db")


async def test_runs_are_listed_by_their_owner(store: MemoryStore | SQLiteStore):
    async with no_leaks(), Runtime(store=store) as runtime:
        for n in range(8):
            await runtime.run(app, {"n": n % 4}, id=f"{n}", owner="eve" if n % 2 else None)
        handle = await runtime.start(app, {"n": 1}, id="8", owner="bob")
        assert handle.owner == "bob"
        await handle.wait_ended()

        async def ids(**given: Any) -> str:
            return "".join([one.run_id for one in await store.runs(**given)])

        assert await ids(owner="eve") == "7531"
        assert await ids(owner="eve", limit=2) == "75"
        assert await ids(owner="eve", after="5", limit=2) == "31"
        assert await ids(owner="eve", status="halted") == ""
        assert await ids(status="halted") == "40"
        assert await ids(owner="eve", status="succeeded") == "7531"
        assert await ids(owner="bob") == "8"
        assert await ids(owner="mallory") == ""
        assert await ids() == "876543210"
        page = await Queries(store).runs(owner="eve", limit=3)
        assert [one.run_id for one in page.runs] == ["7", "5", "3"]
        assert {one.owner for one in page.runs} == {"eve"}
        summary = await store.summary("0")
        assert summary is not None
        assert summary.owner == ""
        record = await store.load("7")
        assert record is not None
        assert record.beginning.owner == "eve"


async def test_a_run_goes_on_for_its_owner_alone(store: MemoryStore | SQLiteStore):
    async with no_leaks(), Runtime(store=store) as runtime:
        await runtime.run(app, {"n": 0}, id="a", owner="eve")
        with pytest.raises(RunConflict, match="not of the given owner"):
            await runtime.run(app, id="a", owner="mallory", answers={"n": 1})
        result = await runtime.run(app, id="a", owner="eve", answers={"n": 1})
        assert result.state["out"] == 1
        await runtime.run(app, {"n": 0}, id="b")
        with pytest.raises(RunConflict, match="not of the given owner"):
            await runtime.run(app, {"n": 0}, id="b", owner="eve")
        stored = Application(work, name="work", store=store)
        await stored.fork("a", number=0, id="c", runtime=runtime)
        summary = await store.summary("c")
        assert summary is not None
        assert summary.owner == "eve"


async def test_a_run_within_a_run_has_its_owner(store: MemoryStore | SQLiteStore):
    @action(reads=["n"], writes=["out"])
    async def outer(n: int) -> int:
        await runtime.run(app, {"n": n}, id="inner")
        await runtime.run(app, {"n": n}, id="other", owner="bob")
        return n

    async with no_leaks(), Runtime(store=store) as runtime:
        await runtime.run(Application(outer), {"n": 1}, id="outer", owner="eve")
        await runtime.run(app, {"n": 1}, id="later")
        assert [(one.run_id, one.owner) for one in await store.runs()] == [
            ("later", ""), ("other", "bob"), ("inner", "eve"), ("outer", "eve"),
        ]  # fmt: skip


def test_an_owner_that_is_no_name_is_refused():
    with pytest.raises(ValueError, match="at least one character"):
        app.run_sync({"n": 1}, owner="")
    with pytest.raises(TypeError, match="takes a string, not an int"):
        app.run_sync({"n": 1}, owner=3)  # type: ignore[arg-type] # that is the mistake
