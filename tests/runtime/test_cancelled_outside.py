"""Runs that are cancelled from outside, and whose process dies before their end is saved."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Each,
    Graph,
    Limits,
    MemoryStore,
    Retry,
    RunCancelled,
    Runtime,
    SQLiteStore,
    action,
    fan_out,
)
from shoal.errors import NotSteered
from shoal.testing import RecordingHook, assert_run_well_formed, no_leaks
from shoal.watch import Control, Queries

pytestmark = pytest.mark.anyio

began = Counter[int]()
ITEMS = {"items": [1, 2, 3, 4]}


@pytest.fixture(autouse=True)
def count_anew() -> None:
    began.clear()


@action(reads=["item"], writes=["done"])
async def work(item: int) -> int:
    return await worked(item)


async def worked(item: int) -> int:
    began[item] += 1
    try:
        await anyio.sleep(1)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(3)
    return item


@action(reads=["found"], writes=["total"])
async def add(found: list[int]) -> int:
    began[0] += 1
    return sum(found)


@action(reads=["items"], writes=["total"])
async def alone(items: list[int]) -> int:
    return await worked(9)


STEP = fan_out(work, over="items", item="item", into="found", limits=Limits(2), name="step")
NESTED = fan_out(
    STEP, over="all", item="items", take="found", into="lists", name="outer",
    each=Each(retry=Retry(3, on=ValueError)),
)  # fmt: skip
ACTS: dict[str, Any] = {
    "flat": Graph.chain(STEP, add),
    "nested": NESTED,
    "node": Graph.chain(Graph.chain(STEP, add, name="node"), add.bind(name="again")),
    "plain": alone,
}


def application(act: Any = STEP, **options: Any) -> Application[Any]:
    return Application(act, name="app", watch=True, **options)


async def killed(
    app: Application[Any], state: Any, store: MemoryStore, steer: Callable[[], Any]
) -> MemoryStore:
    """Begin a run; return what the store has when its process dies right after ``steer``."""
    async with Runtime(store=store) as runtime:
        run = await app.start(state, id="r", runtime=runtime)
        await anyio.sleep(0.5)
        await steer()
        later = store.copy()
        run.cancel("this call is not kept")
        await run.wait_ended()
    return later


@pytest.mark.parametrize("is_paused", [False, True])
@pytest.mark.parametrize("shape", ["flat", "nested", "node", "plain"])
async def test_it_is_recovered_to_be_ended_and_for_nothing_else(shape: str, is_paused: bool):
    """Its process has said that it is cancelled, so nothing of it may begin any more."""
    store, hook = MemoryStore(), RecordingHook()
    control = Control(store, by="ann")
    state = {"all": [[1, 2, 3], [4]]} if shape == "nested" else ITEMS
    app = application(ACTS[shape])

    async def steer() -> None:
        if is_paused:
            await control.pause("r")
        assert (await control.cancel("r", "not wanted")).what == "cancel"

    later = await killed(app, state, store, steer)
    before = began.copy()
    (orphan,) = await later.orphans()
    assert not orphan.is_paused
    app = application(ACTS[shape], hooks=[hook])
    async with no_leaks(), Runtime(apps=[app], store=later) as runtime:
        (recovered,) = await runtime.recover()
        assert isinstance(recovered.error, RunCancelled)
        assert "not wanted" in str(recovered.error)
        assert await later.orphans() == []
        assert await runtime.recover() == []
    assert began == before
    hook.assert_paired()
    await assert_run_well_formed(later, "r")
    summary = await later.summary("r")
    assert summary is not None
    assert (summary.status, summary.reason) == ("cancelled", "not wanted")
    assert [one.what for one in await Queries(later).steered("r")][-1] == "cancel"


async def test_the_first_reason_counts_and_none_needs_to_be_told():
    store = MemoryStore()

    async def steer() -> None:
        async with anyio.create_task_group() as tasks:
            for reason in ("", "the second"):
                tasks.start_soon(Control(store).cancel, "r", reason)

    later = await killed(application(), ITEMS, store, steer)
    async with Runtime(apps=[application()], store=later) as runtime:
        (recovered,) = await runtime.recover()
    summary = await later.summary("r")
    assert summary is not None
    reasons = {one.reason for one in await Queries(later).steered("r")}
    assert reasons == {"", "the second"}
    assert summary.reason in ("a watcher cancelled it", "the second")
    assert isinstance(recovered.error, RunCancelled)


async def test_processes_that_keep_recovering_end_it():
    store = MemoryStore()
    later = await killed(application(), ITEMS, store, lambda: Control(store).cancel("r"))
    async with no_leaks(), Runtime(apps=[application()], store=later) as runtime:
        with anyio.move_on_after(30):
            await runtime.keep_recovering()
    summary = await later.summary("r")
    assert summary is not None
    assert summary.status == "cancelled"
    assert began == {1: 1, 2: 1}


@pytest.mark.parametrize("has_ended", [False, True])
async def test_a_program_that_asks_for_it_again_has_it_go_on_also_after_a_crash(has_ended: bool):
    store = MemoryStore()
    app = application()
    if has_ended:
        async with Runtime(store=store) as runtime:
            run = await app.start(ITEMS, id="r", runtime=runtime)
            await anyio.sleep(0.5)
            await Control(store, by="ann").cancel("r")
            assert await run.wait_ended() == "cancelled"
        later = store
    else:
        later = await killed(app, ITEMS, store, lambda: Control(store, by="ann").cancel("r"))
    async with Runtime(store=later) as runtime:
        run = await app.start(id="r", runtime=runtime)
        await anyio.sleep(0.5)
        last = later.copy()
        run.cancel("this call is not kept")
        await run.wait_ended()
    async with no_leaks(), Runtime(apps=[app], store=last) as runtime:
        (recovered,) = await runtime.recover()
    assert recovered.error is None
    assert recovered.result.state["found"] == [1, 2, 3, 4]
    told = [(one.what, one.by) for one in await Queries(last).steered("r")]
    assert told == [("cancel", "ann"), ("run again", "")]


async def test_one_that_is_cancelled_again_is_ended_again():
    store = MemoryStore()
    app = application()
    for at in range(3):
        state = None if at else ITEMS
        control = Control(store)
        store = await killed(app, state, store, lambda control=control: control.cancel("r"))
    async with Runtime(apps=[app], store=store) as runtime:
        (recovered,) = await runtime.recover()
    assert isinstance(recovered.error, RunCancelled)
    told = [one.what for one in await Queries(store).steered("r")]
    assert told == ["cancel", "run again", "cancel", "run again", "cancel"]


PROGRAM = """
import os, sys, anyio
from shoal import Application, Hook, Runtime, SQLiteStore, action, fan_out
from shoal.events import RunSteered

@action(reads=["item"], writes=["done"])
async def work(item: int) -> int:
    await anyio.sleep(60)
    return item

class Dies(Hook):
    def on_run_steered(self, event: RunSteered) -> None:
        if event.what == "cancel":  # on record, and nothing is cancelled yet
            os._exit(9)

async def main() -> None:
    step = fan_out(work, over="items", item="item", into="found", name="step")
    async with SQLiteStore(sys.argv[1]) as store, Runtime(store=store) as runtime:
        app = Application(step, name="app", hooks=[Dies()])
        run = await app.start({"items": [1]}, id="r", runtime=runtime)
        print("begun", flush=True)
        await run.wait_ended()

anyio.run(main, backend=sys.argv[2])
"""


@pytest.mark.realtime
async def test_a_process_is_killed_right_after_it_is_on_record(
    tmp_path: Path, anyio_backend_name: str
):
    file = tmp_path / "runs.db"
    command = [sys.executable, "-c", PROGRAM, str(file), anyio_backend_name]
    process = await anyio.open_process(command, stderr=None)
    assert process.stdout is not None
    assert (await process.stdout.receive()).startswith(b"begun")
    async with process, SQLiteStore(file) as store:
        control = Control(store, by="ann")
        await control.pause("r")
        with suppress(NotSteered):  # it may find the process gone before it finds the record
            await control.cancel("r", "not wanted")
        assert await process.wait() == 9
    app = application()
    async with SQLiteStore(file) as store, Runtime(apps=[app], store=store) as runtime:
        (orphan,) = await store.orphans()
        assert not orphan.is_paused
        (recovered,) = await runtime.recover()
        assert isinstance(recovered.error, RunCancelled)
        record = await store.load("r")
        assert record is not None
        assert (record.status, record.reason) == ("cancelled", "not wanted")
    assert began == {}
