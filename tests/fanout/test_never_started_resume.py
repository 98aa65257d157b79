"""Children that waited to start and were cancelled, in executions that go on from others."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from shoal import Application, Cancelled, Context, Done, Graph, Limits, MemoryStore, action, fan_out
from shoal.events import ChildEnded, ChildRerun
from shoal.testing import RecordingHook

pytestmark = pytest.mark.anyio


def steps(version: str, calls: list[str], *, fails: bool) -> Graph:
    @action(reads=["item"], writes=["one"], version=version, limits=Limits(1))
    async def one(item: int) -> str:
        await anyio.sleep(1)
        calls.append(f"{item} by {version}")
        return version

    @action(reads=["one"], writes=["two"], version=version)
    async def two(one: str) -> str:
        if fails:
            raise ValueError
        return one

    return Graph.chain(one, two, name="steps")


async def test_a_child_that_was_to_run_anew_and_never_started_runs_anew_the_next_time():
    """What is kept of it is of another version, and must not be gone on from."""
    store, calls = MemoryStore(), list[str]()

    def app(version: str, *, fails: bool) -> Application:
        act = steps(version, calls, fails=fails)
        step = fan_out(act, over="n", key=str, into="out", take="two", on_error="collect")
        return Application(step, store=store, name="app")

    with_n = {"n": [1, 2, 3]}
    async with app("1", fails=True).open(with_n, id="x") as run:
        await anyio.sleep(2.5)
        run.cancel("to go on later")
    async with app("2", fails=True).open(id="x") as run:
        await anyio.sleep(0.5)
        assert run.cancel_child("2", "not now")
        await anyio.sleep(0.1)
        run.cancel("to go on later")
    calls.clear()
    result = await app("2", fails=False).run(id="x")
    assert result.state["out"] == {"1": "2", "2": "2", "3": "2"}
    assert calls == ["1 by 2", "2 by 2", "3 by 2"]


async def test_a_void_history_is_published_though_the_child_never_starts():
    """It waits for its action's turn when the first one fails. Its old history is gone by then."""
    store, calls, hook = MemoryStore(), list[str](), RecordingHook()

    def app(version: str, **given: Any) -> Application:
        act = steps(version, calls, fails=True)
        step = fan_out(act, over="n", key=str, into="out", take="two", **given)
        return Application(step, store=store, name="app", hooks=[hook])

    async with app("1", on_error="collect").open({"n": [1, 2, 3]}, id="x") as run:
        await anyio.sleep(2.5)
        run.cancel("to go on later")
    hook.events.clear()
    with pytest.raises(ExceptionGroup):
        await app("2").run(id="x")
    assert calls == ["1 by 1", "2 by 1", "1 by 2"]
    reruns, ends = hook.of(ChildRerun), hook.of(ChildEnded)
    assert [event.child.key for event in reruns] == ["1", "2", "3"]
    assert await store.read(reruns[1].child) == ()
    (end,) = [one for one in ends if one.outcome.key == "2"]
    assert isinstance(end.outcome, Cancelled)
    assert hook.events.index(reruns[1]) < hook.events.index(end)


async def test_what_an_action_has_started_and_is_done_is_not_cancelled():
    store, calls = MemoryStore(), list[str]()
    crash = [True]
    act = steps("1", calls, fails=False)

    @action(writes=["out"])
    async def start(context: Context) -> dict[Any, str]:
        async with context.fan_out(name="own") as group:
            for item in (1, 2):
                group.start(act, {"item": item}, key=item)
            if not crash[0]:
                assert not group.cancel_child(1, "it has ended long ago")
            ends = {one.key: type(one).__name__ async for one in group}
        if crash.pop():
            msg = "stopped"
            raise OSError(msg)
        return ends

    app = Application(start, store=store)
    with pytest.raises(OSError, match="stopped"):
        await app.run(id="x")
    crash.append(False)
    result = await app.run(id="x")
    assert result.state["out"] == {1: "Done", 2: "Done"}
    assert calls == ["1 by 1", "2 by 1"]


async def test_a_child_that_has_run_anew_goes_on_from_that_the_next_time():
    store, calls = MemoryStore(), list[str]()

    def app(version: str, *, fails: bool) -> Application:
        act = steps(version, calls, fails=fails)
        step = fan_out(act, over="n", key=str, into="out", take="two", on_error="ignore")
        return Application(step, store=store, name="app")

    for version in ("1", "2"):
        async with app(version, fails=True).open({"n": [1, 2, 3]}, id="x") as run:
            await anyio.sleep(2.5)
            run.cancel("to go on later")
    calls.clear()
    result = await app("2", fails=False).run(id="x")
    assert result.state["out"] == {"1": "2", "2": "2", "3": "2"}
    assert calls == ["3 by 2"]


async def test_what_is_there_already_is_not_cancelled():
    @action(reads=["item"], writes=["slept"])
    async def one(item: float) -> float:
        await anyio.sleep(item)
        return item

    two = one.bind(name="two")
    step = fan_out([one, two], over="n", key=str, into="out", limits=Limits(1), take="slept")
    async with Application(step).open({"n": [1.0], "out": {"1.0": {"two": 5.0}}}) as run:
        await anyio.sleep(0.5)
        assert not run.cancel_child("1.0", "it needs no child", act="two")
        result = await run.result()
    assert result.state["out"] == {"1.0": {"one": 1.0, "two": 5.0}}
    assert result.outcomes("out").skipped == 1


@action(reads=["n"], writes=["twice"])
async def double(n: int) -> int:
    return 2 * n


async def test_what_is_done_and_was_started_again_and_not_begun_stays_done():
    class Fails(Exception):
        pass

    fails, store = True, MemoryStore()

    @action(writes=["out"])
    async def starts(context: Context) -> int:
        async with context.fan_out(name="f", limits=Limits(1)) as group:
            for n in range(2):
                group.start(double, {"n": n}, key=n)
            if not fails:
                group.cancel()
            async for _ in group:
                pass
        if fails:
            raise Fails
        return 1

    app = Application(starts, store=store)
    with pytest.raises(Fails):
        await app.run(id="x")
    fails = False
    await app.run(id="x")
    kept = [child.record for child in store._roots["x"].children()]
    assert [record and record.status for record in kept] == ["succeeded"] * 2


async def test_what_was_started_again_in_another_version_and_not_begun_runs_anew_the_next_time():
    store, calls = MemoryStore(), list[str]()

    def app(version: str, *, fails: bool = False, cancels: bool = False) -> Application[Any]:
        act = steps(version, calls, fails=fails)

        @action(writes=["out"])
        async def starts(context: Context) -> list[str]:
            async with context.fan_out(name="f", limits=Limits(1)) as group:
                for n in range(2):
                    group.start(act, {"item": n}, key=n)
                if cancels:
                    group.cancel()
                found = [one.state["two"] async for one in group if isinstance(one, Done)]
            if len(found) < 2:
                raise ConnectionError
            return found

        return Application(starts, store=store)

    for one in (app("1", fails=True), app("2", cancels=True)):
        with pytest.raises(ConnectionError):
            await one.run(id="x")
    assert calls == ["0 by 1", "1 by 1"]
    assert (await app("2").run(id="x")).state["out"] == ["2", "2"]
    assert calls[2:] == ["0 by 2", "1 by 2"]
