"""Policies that meet in one run: copies, limits that refuse, pauses, priorities, questions."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from shoal import (
    OWNER,
    Application,
    Context,
    Each,
    Graph,
    Hedge,
    Limits,
    MemoryStore,
    RunPath,
    Runtime,
    SQLiteStore,
    State,
    action,
    fan_out,
    first,
    race,
)
from shoal.__main__ import main
from shoal.errors import Overloaded
from shoal.events import HedgeEnded
from shoal.testing import RecordingHook, no_leaks
from shoal.watch import Queries

calls = Counter[int]()
order: list[str] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    calls.clear()
    order.clear()


@action(reads=["n"], writes=["out"])
async def late(n: int) -> str:
    calls[n] += 1
    mine = calls[n]
    await anyio.sleep(10 if mine == 1 else 1)
    return f"call {mine}"


@pytest.mark.anyio
async def test_copies_are_not_refused_where_no_run_may_wait():
    each = Each(hedge=Hedge(initial=1, budget=1))
    step = fan_out(late, over="ns", item="n", into="out", each=each)
    app = Application(step, limits=Limits(3, waiting=0))
    async with no_leaks(), Runtime() as runtime:
        handle = await runtime.start(app, {"ns": [1, 2, 3, 4, 5]})
        await anyio.sleep(3)  # three run, and their copies wait for slots
        with pytest.raises(Overloaded):
            await runtime.run(app, {"ns": [9]})
        result = await handle.result()
    assert result.state["out"] == ["call 1"] * 3 + ["call 2"] * 2
    assert 9 not in calls


@pytest.mark.anyio
async def test_a_child_that_is_cancelled_ends_with_its_copy_and_is_counted_so():
    hook = RecordingHook()
    each = Each(hedge=Hedge(initial=1, budget=1))
    step = fan_out(
        late, over="ns", item="n", key=str, into="out", each=each, name="m", on_error="collect"
    )
    app = Application(step, hooks=[hook], store=MemoryStore())
    async with no_leaks(), Runtime(watch=True) as runtime:
        handle = await runtime.start(app, {"ns": [1, 2]}, id="r")
        await anyio.sleep(1.5)
        child = RunPath(
            act="late", parent=RunPath(run_id="r", act=app.name), step="m", visit=0, key="1"
        )
        assert handle.cancel_child(child, "not needed")
        assert (await handle.result()).state["out"] == {"2": "call 2"}
        report = handle.report
        assert report is not None
        assert report.hedges[0].text == "2 second copies, 1 used"
    hook.assert_paired()
    assert {event.path.key: event.used for event in hook.of(HedgeEnded)} == {"1": False, "2": True}


@pytest.mark.anyio
@pytest.mark.parametrize("has_two_steps", [False, True])
async def test_the_time_of_work_stands_still_in_a_pause(has_two_steps: bool):
    @action(reads=["n"], writes=["mid"], limits=Limits(1))
    async def one(n: int) -> int:
        await anyio.sleep(3)
        return n

    @action(reads=["mid"], writes=["out"])
    async def two(mid: int) -> int:
        await anyio.sleep(0.5)
        return mid

    graph = Graph.chain(one, two) if has_two_steps else Graph.chain(one)
    take = "out" if has_two_steps else "mid"
    step = fan_out(graph, over="ns", item="n", into="outs", take=take, each=Each(work_timeout=4))
    app = Application(step, store=MemoryStore())
    async with no_leaks(), Runtime() as runtime:
        handle = await runtime.start(app, {"ns": [1, 2]})
        await anyio.sleep(1)
        await handle.pause("lunch")
        await anyio.sleep(50)
        await handle.resume()
        assert (await handle.result()).state["outs"] == [1, 2]


@pytest.mark.anyio
async def test_a_paused_run_of_a_full_runtime_lends_its_seat_by_priority():
    @action(reads=["name"], writes=["out"])
    async def work(name: str) -> str:
        order.append(name)
        await anyio.sleep(2)
        return name

    app = Application(work, store=MemoryStore())
    limits = Limits(1, by=OWNER)
    async with (
        no_leaks(),
        Runtime(max_runs=1, waiting=3, limits=limits) as runtime,
        anyio.create_task_group() as tasks,
    ):
        paused = await runtime.start(app, {"name": "paused"}, owner="eve")
        run = partial(runtime.run, app)
        for name, given in (
            ("batch", {"priority": "batch", "owner": "bob"}),
            ("normal", {"owner": "bob"}),
            ("urgent", {"priority": "interactive", "owner": "bob"}),
        ):
            tasks.start_soon(partial(run, {"name": name}, **given))
            await anyio.sleep(0.1)
        with pytest.raises(Overloaded):  # however urgent it is
            await run({"name": "refused"}, priority="interactive")
        await paused.pause("lunch")
        await anyio.sleep(10)
        await paused.resume()
    assert order == ["paused", "urgent", "normal", "batch"]


@pytest.mark.anyio
async def test_a_race_over_a_source_reads_nothing_ahead_when_told_so():
    pulled: list[int] = []

    def endless(_state: State) -> Any:
        for n in range(10):
            pulled.append(n)
            yield n

    step = fan_out(
        late, over=endless, reads=["x"], item="n", into="out", name="race",
        until=first(), ahead=0, limits=Limits(3),
    )  # fmt: skip
    assert (await Application(step).run({"x": 1})).state["out"] == "call 1"
    assert pulled == [0, 1, 2]


def test_an_answer_to_the_question_of_a_loser_is_refused_by_the_command_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    @action(writes=["out"])
    async def one(context: Context) -> int:
        return await context.ask("one", "how many?", answer=int)

    @action(writes=["out"])
    async def other(context: Context) -> int:
        return await context.ask("other", "how many?", answer=int)

    store = SQLiteStore(tmp_path / "runs.db", synchronous="normal")
    app = Application(race(one, other, into="out", name="r"), name="app", store=store)
    assert app.run_sync(id="x").status == "halted"
    monkeypatch.setenv("SHOAL_STORE", str(tmp_path / "runs.db"))
    assert main(["answer", "x"]) == 0
    assert capsys.readouterr().out.count("how many?") == 2
    assert app.run_sync(id="x", answers={"one": 3}).state["out"] == 3
    for command in (["answer", "x"], ["answer", "x", "other", "4"]):
        assert main(command) == 1
        assert "open" in capsys.readouterr().err

    async def open_questions() -> Any:
        async with store:
            return (await Queries(store).questions("x")).open

    assert anyio.run(open_questions) == []
