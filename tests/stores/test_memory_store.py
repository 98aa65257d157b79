"""What is the own of the store in memory; what every store has to do is in test_conformance."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from shoal import Application, Graph, MemoryStore, RunClaimed, StoreFailed, action, fan_out
from shoal.errors import LeaseLost, NotData
from shoal.stores import Batch
from shoal.stores._protocol import NullStore
from shoal.testing import HandMadeRun, child_run
from shoal.testing._hand_made import BEGINNING, ROOT, update_of
from shoal.types import Key

pytestmark = pytest.mark.anyio


async def begun() -> MemoryStore:
    store = MemoryStore()
    await store.claim("root", "me")
    store.save(Batch(HandMadeRun(), begun=BEGINNING, holder="me"))
    return store


async def keys(store: MemoryStore, *where: Any) -> list[Key]:
    return [record.key for record in await store.children(ROOT, *where)]


# -- claims ----------------------------------------------------------------------------------------


async def test_the_holder_of_a_run_is_named():
    store = await begun()
    with pytest.raises(RunClaimed, match="run root is already running in this process"):
        await store.claim("root", "you")
    with pytest.raises(LeaseLost, match="run root was taken over"):
        store.save(Batch(HandMadeRun(), begun=BEGINNING, holder="you"))


# -- copies ----------------------------------------------------------------------------------------


async def test_a_copy_is_what_would_be_found_if_the_process_ended_now():
    store = await begun()
    store.save(Batch(HandMadeRun(), (update_of(1),), (child_run("a"),), holder="me"))
    other = store.copy()
    store.save(Batch(HandMadeRun(), (update_of(2),), (child_run("b"),), holder="me"))
    store.save(Batch(child_run("a"), afresh=True, holder="me"))
    await other.claim("root", "you")
    assert list(await other.read(ROOT)) == [update_of(1)]
    assert await keys(other) == ["a"]
    other.save(Batch(HandMadeRun(), (update_of(2),), (child_run("c"),), holder="you"))
    assert await keys(store) == ["a", "b"]


async def test_runs_can_be_counted_and_discarded():
    store = await begun()
    assert len(store) == 1
    assert repr(store) == "<MemoryStore of 1 runs, 1 of them claimed>"
    with pytest.raises(RunClaimed):
        store.discard("root")
    await store.release("root", "me")
    store.discard("root")
    store.discard("root")
    assert len(store) == 0
    assert await store.load("root") is None


# -- in use ----------------------------------------------------------------------------------------


@action(reads=["item"], writes=["out"])
async def same(item: object) -> object:
    ran.append(item)
    return item


ran = list[object]()


async def test_what_is_no_data_is_refused_before_it_runs():
    """And not when its result is to be saved: then it had run for nothing."""
    ran.clear()
    app = Application(fan_out(same, over="items", into="outs"), store=MemoryStore())
    with pytest.raises(
        NotData, match="'same' in step 'outs', key 1, would start with field 'item'"
    ):
        await app.run({"items": [1, threading.Lock(), 3]}, id="x")
    assert threading.Lock not in map(type, ran)
    result = await Application(fan_out(same, over="items", into="outs")).run(
        {"items": [threading.Lock()]}
    )
    assert len(result.state["outs"]) == 1, "without a store nobody asks"


async def test_nested_graphs_and_own_fan_outs_refuse_it_too():
    ran.clear()
    node = Application(Graph.chain(Graph.chain(same, name="node")), store=MemoryStore())
    with pytest.raises(NotData, match=r"'node' in step 'node', key '', .*field 'item'"):
        await node.run({"item": threading.Lock()}, id="x")
    assert not ran


async def test_values_may_be_anything_a_store_in_memory_can_hold():
    @action(writes=["lock"])
    async def lock() -> object:
        return threading.Lock()

    store = MemoryStore()
    result = await Application(lock, store=store).run(id="x")
    again = await Application(lock, store=store).run(id="x")
    assert again.state["lock"] is result.state["lock"]


async def test_a_state_that_can_not_be_compared_is_the_same_only_if_it_is_the_very_one():
    store, lock = MemoryStore(), threading.Lock()
    app = Application(lambda_free, store=store)
    await app.run({"lock": lock}, id="x")
    await app.run({"lock": lock}, id="x")
    with pytest.raises(NotData, match=r"run x.*'lock'"):
        await app.run({"lock": threading.Lock()}, id="x")


@action(reads=["lock"], writes=["out"])
async def lambda_free(lock: object) -> int:
    return 1


async def test_stores_that_fail_to_save_are_named():
    class Full(NullStore):
        def save(self, batch: Batch) -> None:
            raise OSError("no space left on device")

    with pytest.raises(StoreFailed, match="no space left on device"):
        await Application(same, store=Full()).run({"item": 1}, id="x")
