"""Answers that come from outside while a run is about to end a step, or fails to save them."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Done,
    Graph,
    MemoryStore,
    Runtime,
    StoreFailed,
    action,
    fan_out,
)
from shoal.errors import NotSteered
from shoal.stores import Batch
from shoal.testing import RecordingHook, no_leaks
from shoal.types import Act
from shoal.watch import Control, Queries

pytestmark = pytest.mark.anyio


async def to_the_end(seconds: float) -> None:
    """Sleep, and then for another twenty seconds, also if that is cancelled."""
    try:
        await anyio.sleep(seconds)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(20)


@action(reads=["n"], writes=["out"])
async def slow(n: int) -> int:
    await to_the_end(100)
    return n


@action(reads=["n"], writes=["out"])
async def asks(n: int, context: Context) -> object:
    return await context.ask("go on?", n)


@action(reads=["n"], writes=["out"])
async def fails(n: int) -> int:
    await anyio.sleep(1)
    if at_fault[0]:
        raise ValueError(n)
    return n


at_fault = [True]
step = fan_out([asks, slow, fails], over="ns", item="n", into="outs", take="out", name="step")


@action(writes=["outs"])
async def has_two(context: Context) -> list[object]:
    """One fan-out waits for the cleanup of its child, and the other one is where it is asked."""
    outs = list[object]()

    async def closes() -> None:
        async with context.fan_out(name="closes") as group:
            group.start(slow, {"n": 1})
            await anyio.sleep(1)
            group.cancel()

    async def waits() -> None:
        async with context.fan_out(name="waits") as group:
            group.start(asks, {"n": 2})
            group.start(fails, {"n": 3})
            outs.extend([one.value async for one in group if isinstance(one, Done)])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(closes)
        tasks.start_soon(waits)
    return outs


@action(writes=["outs"])
async def has_halted(context: Context) -> list[object]:
    async with context.fan_out(name="waits") as group:
        group.start(asks, {"n": 2})
        try:
            return [one.value async for one in group if isinstance(one, Done)]
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(20)


ACTS: dict[str, tuple[Act, Any]] = {
    "a step that fails": (step, {"ns": [1]}),
    "in a node": (Graph.chain(step, name="node"), {"ns": [1]}),
    "one of two": (has_two, {}),
    "a halted action": (has_halted, {}),
}


@pytest.mark.parametrize("act", ACTS)
async def test_an_answer_counts_that_comes_while_cancelled_children_clean_up(act: str):
    """It was taken, and lost: its caller waited in vain, and the question stayed open."""
    store, hook = MemoryStore(), RecordingHook()
    of_act, state = ACTS[act]
    at_fault[0] = act != "one of two"
    app = Application(of_act, name="app", store=store, watch=True, hooks=[hook])
    async with no_leaks(), Runtime() as runtime:
        run = await app.start(state, id="r", runtime=runtime)
        await anyio.sleep(3)
        (asked,) = (await Queries(store).questions("r")).open
        since = anyio.current_time()
        assert (await Control(store, by="ann").answer(asked, 5)).what == "answer"
        assert anyio.current_time() - since < 1
        with pytest.raises(NotSteered, match="answered before"):
            await Control(store).answer(asked, 6)
        await run.wait_ended()
        assert not (await Queries(store).questions("r")).open
        at_fault[0] = False
        result = await app.run(id="r", runtime=runtime)
    hook.assert_paired()
    assert result.status == "succeeded"
    assert "5" in str(result.state["outs"])
    told = [(one.what, one.by) for one in await Queries(store).steered("r")]
    assert told == [("answer", "ann"), ("refused", "")]


@pytest.mark.parametrize("what", ["answer", "pause"])
async def test_what_can_not_be_recorded_ends_the_execution_at_once(
    what: str, monkeypatch: pytest.MonkeyPatch
):
    """And not only when the run saves something the next time, which may take long."""
    store = MemoryStore()
    save = store.save

    def refuse(batch: Batch) -> None:
        if batch.steered:
            msg = "the disk is full"
            raise OSError(msg)
        save(batch)

    act = fan_out([asks, slow], over="ns", item="n", into="outs", take="out", name="step")
    app = Application(act, name="app", watch=True)
    async with no_leaks(), Runtime(store=store) as runtime:
        run = await app.start({"ns": [1]}, id="r", runtime=runtime)
        await anyio.sleep(1)
        (asked,) = (await Queries(store).questions("r")).open
        monkeypatch.setattr(store, "save", refuse)
        control = Control(store, patience=1)
        steer = control.answer(asked, 5) if what == "answer" else control.pause("r")
        with pytest.raises(NotSteered):
            await steer
        with pytest.raises(StoreFailed, match="disk is full"):
            await run.result()
        assert anyio.current_time() < 30, "the slow one is cancelled, and has cleaned up"
        monkeypatch.undo()
        result = await app.run(id="r", answers={"go on?": 5}, runtime=runtime)
    assert result.state["outs"] == [{"asks": 5, "slow": 1}]
