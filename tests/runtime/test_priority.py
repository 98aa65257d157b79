"""How urgent a run is: saved with its start, and in the line for ``Runtime(max_runs=)``."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest

from shoal import Application, Limits, MemoryStore, Runtime, SQLiteStore, action
from shoal.errors import BadUse
from shoal.testing import no_leaks

pytestmark = pytest.mark.anyio
Priority = Literal["interactive", "normal", "batch"]
order: list[str] = []


@action(reads=["name"], writes=["out"])
async def work(name: str) -> str:
    order.append(name)
    await anyio.sleep(1)
    if name == "fails":
        raise ConnectionError
    return name


app = Application(work, name="work")


@pytest.fixture(autouse=True)
def fresh() -> None:
    order.clear()


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> MemoryStore | SQLiteStore:
    return MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "runs.db")


async def line_up(runtime: Runtime, names: Collection[str], **first: Any) -> None:
    """Start runs while one is at work: batch runs by their first letter, and interactive ones."""
    classes: dict[str, Priority] = {"b": "batch", "i": "interactive"}
    async with anyio.create_task_group() as tasks:

        async def come(name: str, given: dict[str, Any]) -> None:
            state = None if "id" in given else {"name": name}
            with suppress(ConnectionError):
                await runtime.run(app, state, **given)

        first_given: dict[str, Any] = {}
        tasks.start_soon(come, "first", first_given)
        await anyio.sleep(0.01)
        if first:
            tasks.start_soon(come, "again", first)
            await anyio.sleep(0.01)
        for name in names:
            tasks.start_soon(come, name, {"priority": classes.get(name[0])})
            await anyio.sleep(0.01)


async def test_a_resumed_run_is_as_urgent_as_it_began(store: MemoryStore | SQLiteStore):
    kept, fails = Application(work, name="work", store=store), {"name": "fails"}
    lazy = Application(work, name="work", priority="batch")
    async with no_leaks():
        async with Runtime(store=store) as runtime:
            with pytest.raises(ConnectionError):
                await runtime.run(app, fails, id="b", priority="batch")
            for one, run_id in ((lazy, "also"), (app, "n")):
                with pytest.raises(ConnectionError):
                    await runtime.run(one, fails, id=run_id)
            with pytest.raises(ConnectionError):
                await kept.fork("b", number=0, id="fork")
        found = {one.run_id: one.priority for one in await store.runs()}
        assert found == {"b": "batch", "also": "batch", "n": "normal", "fork": "batch"}
        if isinstance(store, SQLiteStore):
            return  # its threads take real time, so which run comes first is not certain
        for run_id, given, yields in (
            ("b", None, True),
            ("also", None, True),
            ("fork", None, True),
            ("b", "normal", False),  # for this one execution...
            ("b", None, True),  # ...and not for the next
            ("n", None, False),
        ):
            order.clear()
            async with Runtime(store=store, limits=Limits(1)) as runtime:
                await line_up(runtime, ["n1", "n2"], id=run_id, priority=given)
            # It came first of those that wait.
            assert (order.index("fails") > 1) is yields, (run_id, given)


async def test_a_run_that_is_taken_over_stands_in_line_as_urgent_as_it_began(
    store: MemoryStore | SQLiteStore,
):
    kept = Application(work, name="work", store=store)
    async with Runtime(apps=[kept]) as first:
        for name in ("b", "n", "i"):
            priority: dict[str, Priority] = {"b": "batch", "i": "interactive"}
            await first.start(kept, {"name": name}, priority=priority.get(name))
        await first.drain(within=0)
    order.clear()
    async with no_leaks(), Runtime(apps=[kept], max_runs=1) as runtime:
        recovered = await runtime.recover()
        assert [one.error for one in recovered] == [None] * 3
    assert order == ["i", "n", "b"]


async def test_runs_in_line_are_served_by_class_and_none_starves():
    async with no_leaks(), Runtime(max_runs=1) as runtime:
        names = [f"{kind}{n}" for kind in "bni" for n in range(20)]
        await line_up(runtime, names)
    order.remove("first")
    # In each class in the order in which they came...
    for kind in "bni":
        assert [name for name in order if name[0] == kind] == [f"{kind}{n}" for n in range(20)]
    # ...and eight turns of one class for one of the class below: the third normal run has its turn
    # before the last interactive one.
    assert order[0] == "i0"
    assert [order.index(f"n{n}") for n in range(3)] == [1, 11, 20]
    assert order.index("b0") <= 2
    assert order.index("b1") > order.index("n7")


async def test_a_run_within_a_run_is_as_urgent_unless_its_application_says(store: MemoryStore):
    later = Application(work, name="later", priority="interactive")

    @action(reads=["name"], writes=["out"])
    async def outer(name: str) -> str:
        await runtime.run(app, {"name": name}, id="inner")
        await runtime.run(later, {"name": name}, id="other")
        await runtime.run(app, {"name": name}, id="given", priority="normal")
        return name

    async with no_leaks(), Runtime(store=store) as runtime:
        await runtime.run(Application(outer), {"name": "a"}, id="outer", priority="batch")
        found = {one.run_id: one.priority for one in await store.runs()}
    assert found == {
        "outer": "batch", "inner": "batch", "other": "interactive", "given": "normal",
    }  # fmt: skip


def test_a_priority_that_is_none_is_refused_before_anything_is_looked_at():
    with pytest.raises(BadUse, match=r"run\(priority=\.\.\.\) takes one of 'interactive', "):
        app.run_sync({"name": "a"}, priority="urgent")  # type: ignore[arg-type] # the mistake
