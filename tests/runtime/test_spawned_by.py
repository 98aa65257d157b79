"""A root run that an action starts by hand knows which run and step have started it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Done,
    Each,
    Graph,
    MemoryStore,
    Retry,
    Runtime,
    action,
    fan_out,
)
from shoal._events.identity import RunPath
from shoal.events import RunStarted
from shoal.testing import RecordingHook

pytestmark = pytest.mark.anyio


@action(reads=["n"], writes=["square"])
async def square(n: int) -> int:
    await anyio.sleep(0)
    return n * n


def inner() -> tuple[Application[Any], RecordingHook, MemoryStore]:
    hook, store = RecordingHook(), MemoryStore()
    return Application(square, hooks=[hook], store=store, name="inner"), hook, store


async def spawners(hook: RecordingHook, store: MemoryStore) -> list[tuple[RunPath, str] | None]:
    """Return what events say, after checking that the store says the same."""
    found: list[tuple[RunPath, str] | None] = []
    for event in hook.of(RunStarted):
        record = await store.load(event.path.id)
        assert record is not None
        assert record.beginning.spawned_by == event.spawned_by
        found.append(event.spawned_by)
    return found


async def test_a_run_that_no_action_has_started_has_no_spawner():
    app, hook, store = inner()
    await app.run({"n": 2})
    assert await spawners(hook, store) == [None]


async def test_each_child_is_the_spawner_of_its_own_runs():
    app, hook, store = inner()

    @action(reads=["item"], writes=["done"])
    async def outer(item: int) -> int:
        await anyio.sleep(item % 3)
        result = await app.run({"n": item}, id=f"inner-{item}")
        await anyio.sleep(item % 2)
        return result.state["square"]

    outermost = Application(fan_out(outer, over="items", into="all", key=str))
    await outermost.run({"items": list(range(30))}, id="root")
    found = await spawners(hook, store)
    assert len(found) == 30
    for event, spawner in zip(hook.of(RunStarted), found, strict=True):
        assert spawner is not None
        path, step = spawner
        assert (step, path.step, path.act, path.parent_id) == ("outer", "all", "outer", "root")
        assert event.path.id == f"inner-{path.key}"


async def test_in_a_plain_root_run_and_in_a_graph_as_a_node():
    app, hook, store = inner()

    @action(reads=["n"], writes=["done"])
    async def outer(n: int) -> int:
        return (await app.run({"n": n})).state["square"]

    await Application(outer).run({"n": 1}, id="plain")
    node = Graph((outer, square), name="node")
    await Application(Graph((node, square.bind(name="after")))).run({"n": 1}, id="nested")
    (first, second) = await spawners(hook, store)
    assert first is not None
    assert second is not None
    assert (first[0].id, first[1]) == ("plain", "outer")
    assert (second[0].act, second[0].parent_id, second[1]) == ("node", "nested", "outer")


async def test_in_a_task_and_in_a_thread_of_an_action():
    app, hook, store = inner()

    @action(reads=["n"], writes=["done"])
    async def with_tasks(n: int) -> int:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(app.run, {"n": n})
        return n

    await Application(with_tasks).run({"n": 1}, id="a")

    def in_thread(n: int) -> int:
        return app.run_sync({"n": n}).state["square"]

    threaded = action(reads=["n"], writes=["done"])(in_thread)
    await Application(threaded).run({"n": 1}, id="b")
    (first, second) = await spawners(hook, store)
    assert first is not None
    assert second is not None
    assert (first[0].id, second[0].id) == ("a", "b")


async def test_runs_in_the_same_runtime_and_in_an_actions_own_fan_out():
    app, hook, store = inner()

    @action(reads=["n"], writes=["done"])
    async def start(n: int, runtime: Runtime) -> int:
        handle = await runtime.start(app, {"n": n})
        return (await handle.result()).state["square"]

    @action(writes=["sum"])
    async def many(context: Context, runtime: Runtime) -> int:
        assert runtime.healthy
        async with context.fan_out(name="own") as group:
            for n in range(3):
                group.start(start, {"n": n})
            return sum([one.value async for one in group if isinstance(one, Done)])

    async with Runtime() as runtime:
        outer = Application(many, inputs={"runtime": runtime})
        await runtime.run(outer, id="root")
    found = await spawners(hook, store)
    assert sorted(str(path.key) for path, _ in filter(None, found)) == ["0", "1", "2"]
    assert {(path.step, step) for path, step in filter(None, found)} == {("many/own", "start")}


async def test_a_resumed_run_keeps_its_spawner_and_a_retried_child_is_one():
    app, _, store = inner()
    tries: list[int] = []

    @action(reads=["item"], writes=["done"])
    async def outer(item: int) -> int:
        tries.append(item)
        if len(tries) == 1:
            raise OSError
        return (await app.run({"n": item}, id="inner")).state["square"]

    each = Each(retry=Retry(2, on=OSError, initial=0.01))
    await Application(fan_out(outer, over="items", into="all", each=each)).run({"items": [1]})
    record = await store.load("inner")
    assert record is not None
    spawner = record.beginning.spawned_by
    assert spawner is not None
    assert spawner[1] == "outer"
    await app.run(id="inner")
    record = await store.load("inner")
    assert record is not None
    assert record.beginning.spawned_by == spawner


async def test_a_task_that_outlives_its_action_keeps_no_run_alive():
    kept: list[Any] = []

    class Big:
        pass

    @action(reads=["item"], writes=["done"])
    async def outer(item: int, big: object) -> int:
        from contextvars import copy_context

        kept.append(copy_context())
        return item

    big = Big()
    gone = weakref.ref(big)
    app = Application(fan_out(outer, over="items", into="all"))
    await app.run({"items": [1, 2]}, inputs={"big": big})
    del big
    gc.collect()
    assert gone() is None
    found, hook, store = inner()
    async with Runtime() as runtime:
        await kept[0].run(lambda: runtime.run(found, {"n": 1}))
    assert await spawners(hook, store) == [None]
