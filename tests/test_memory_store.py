"""The store in memory: what every store has to do."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import pytest

from shoal import (
    Application,
    Batch,
    Beginning,
    ChildRecord,
    Completed,
    Graph,
    Key,
    LeaseLost,
    MemoryStore,
    NotData,
    Rewound,
    RunClaimed,
    RunPath,
    Set,
    Store,
    StoreFailed,
    Update,
    action,
    fan_out,
)
from shoal._events import ChildName, Outcome, Status
from shoal._ports import NullStore

pytestmark = pytest.mark.anyio

ROOT = RunPath(run_id="root", act="app")


@dataclass(kw_only=True)
class Saved:
    """A run, as stores see it; made by hand."""

    path: RunPath = ROOT
    position: int = 0
    element: object = None
    digest: str = "digest"
    status: Status | None = None
    reason: str = ""
    winner: ChildName | None = None
    error: BaseException | None = None
    used: bool = True
    value: object = None
    attempts: int = 1
    elapsed: float = 0.5
    abandoned: bool = False
    last_update: Update | None = None

    @property
    def outcome(self) -> Outcome:
        raise NotImplementedError


def child(key: Key, *, step: str = "map", visit: int = 0, act: str = "leaf", **more: Any) -> Saved:
    path = RunPath(parent=ROOT, step=step, visit=visit, act=act, key=key)
    given: dict[str, Any] = {"status": "succeeded", "element": key, **more}
    return Saved(path=path, **given)


def update(number: int, step: str = "map") -> Update:
    return Update(number, step, (Set(f"f{number}", number),))


BEGINNING = Beginning(application="app", version="1", first={"n": 1})


async def begun() -> MemoryStore:
    store = MemoryStore()
    await store.claim("root", "me")
    store.save(Batch(Saved(), begun=BEGINNING, holder="me"))
    return store


async def keys(store: MemoryStore, *where: Any) -> list[Key]:
    return [record.key for record in await store.children(ROOT, *where)]


# -- claims --------------------------------------------------------------------------------------


async def test_it_is_a_store():
    store: Store = MemoryStore()
    assert await store.load("root") is None
    assert list(await store.read(ROOT)) == []
    assert list(await store.children(ROOT)) == []


async def test_one_execution_at_a_time_has_a_run():
    store = MemoryStore()
    await store.claim("root", "me")
    await store.claim("other", "you")
    for holder in ("you", "me"):
        with pytest.raises(RunClaimed, match="run root goes on in this process already"):
            await store.claim("root", holder)
    await store.release("root", "you")  # is not yours to give back
    with pytest.raises(RunClaimed):
        await store.claim("root", "you")
    await store.release("root", "me")
    await store.claim("root", "you")
    await store.release("unknown", "you")


async def test_who_has_not_claimed_a_run_can_not_save():
    store = MemoryStore()
    with pytest.raises(LeaseLost, match="run root was taken over"):
        store.save(Batch(Saved(), begun=BEGINNING, holder="me"))
    await store.claim("root", "me")
    store.save(Batch(Saved(), begun=BEGINNING, holder="me"))
    await store.release("root", "me")
    await store.claim("root", "you")
    for run in (Saved(), child("a")):
        with pytest.raises(LeaseLost):
            store.save(Batch(run, (update(1),), holder="me"))
    assert list(await store.read(ROOT)) == []


# -- what is kept ----------------------------------------------------------------------------------


async def test_a_run_is_known_by_its_beginning_and_its_end():
    store = await begun()
    record = await store.load("root")
    assert record is not None
    assert (record.beginning, record.status, record.reason) == (BEGINNING, None, "")
    cancelled = Saved(status="cancelled", reason="closed")
    store.save(Batch(cancelled, ended="cancelled", holder="me"))
    record = await store.load("root")
    assert record is not None
    assert (record.status, record.reason) == ("cancelled", "closed")
    store.save(Batch(Saved(), (update(1),), holder="me"))  # it goes on
    record = await store.load("root")
    assert record is not None
    assert (record.status, record.reason) == (None, "")


async def test_a_history_is_in_the_order_of_its_saves():
    store = await begun()
    store.save(Batch(Saved(), (update(1), update(2)), holder="me"))
    store.save(Batch(Saved(), (update(3),), step_completed="map", before=2, holder="me"))
    store.save(Batch(Saved(), step_completed="next", before=3, holder="me"))
    store.save(Batch(Saved(), (update(4),), rewound=Rewound("map", 0), holder="me"))
    whole = [
        update(1), update(2), update(3), Completed("map", 2), Completed("next", 3),
        Rewound("map", 0), update(4),
    ]  # fmt: skip
    assert list(await store.read(ROOT)) == whole
    assert list(await store.read(ROOT, 3)) == whole[2:]
    assert list(await store.read(ROOT, 4)) == whole[6:]
    assert list(await store.read(ROOT, 5)) == []


async def test_a_child_s_end_its_last_update_and_the_parent_s_are_one_save():
    store = await begun()
    error = ValueError("no")
    done = child("a", value=7, last_update=update(1, "leaf"), position=1)
    failed = child(1, status="failed", error=error, position=2)
    skipped = child("1", status=None, reason="already in out", attempts=0)
    late = child("b", status="cancelled", reason="too late", position=3, used=False)
    batch = Batch(
        Saved(), (update(1), update(2), update(3)), (done, failed, skipped), (late,), holder="me"
    )
    assert store.save(batch) is None
    common: dict[str, Any] = {
        "step": "map", "visit": 0, "act": "leaf", "digest": "digest", "elapsed": 0.5
    }  # fmt: skip
    assert await store.children(ROOT) == [
        ChildRecord(**common, key="a", position=1, element="a", status="succeeded", value=7,
                    applied=1),
        ChildRecord(**common, key=1, position=2, element=1, status="failed", applied=2,
                    error=error),
        ChildRecord(**common, key="1", position=0, element="1", status="skipped", applied=3,
                    reason="already in out", attempts=0),
        ChildRecord(**common, key="b", position=3, element="b", status="cancelled",
                    reason="too late", used=False),
    ]  # fmt: skip
    assert list(await store.read(done.path)) == [update(1, "leaf")]
    assert list(await store.read(failed.path)) == []


async def test_a_child_that_saves_a_step_is_known_to_be_under_way():
    store = await begun()
    run = child("a", status=None)
    store.save(Batch(run, (update(1, "one"),), step_completed="one", holder="me"))
    (record,) = await store.children(ROOT)
    assert (record.key, record.status, record.digest) == ("a", None, "digest")
    grandchild = Saved(path=RunPath(parent=run.path, step="inner", act="leaf", key=3))
    store.save(Batch(grandchild, (update(1, "leaf"),), holder="me"))
    assert [one.key for one in await store.children(run.path)] == [3]
    assert await keys(store) == ["a"]


async def test_descendants_of_a_child_that_has_saved_nothing_are_kept_and_it_is_not_known():
    store = await begun()
    path = child("a").path
    grandchild = Saved(path=RunPath(parent=path, step="inner", act="leaf", key=3))
    store.save(Batch(grandchild, (update(1, "leaf"),), holder="me"))
    assert await keys(store) == []
    assert [one.key for one in await store.children(path)] == [3]


async def test_what_is_to_count_no_more_is_forgotten_with_all_below_it():
    store = await begun()
    run = child("a", status=None)
    store.save(Batch(run, (update(1, "one"),), step_completed="one", holder="me"))
    grandchild = Saved(path=RunPath(parent=run.path, step="inner", act="leaf", key=3))
    store.save(Batch(grandchild, (update(1, "leaf"),), holder="me"))
    store.save(Batch(Saved(), (update(1),), (child("a"),), holder="me"))
    changed = child("a", status=None, digest="another", element="A")
    store.save(Batch(changed, afresh=True, holder="me"))
    assert list(await store.read(run.path)) == []
    assert list(await store.children(run.path)) == []
    (record,) = await store.children(ROOT)
    assert (record.status, record.applied, record.digest, record.element) == (
        None, None, "another", "A"
    )  # fmt: skip


async def test_children_are_found_by_step_and_visit():
    store = await begun()
    ends = [
        child(key, step=step, visit=visit, act=act)
        for step, visit, act, key in [
            ("map", 0, "leaf", "a"), ("map", 0, "other", "a"), ("map", 1, "leaf", "a"),
            ("next", 0, "leaf", 1), ("next", 0, "leaf", "1"),
        ]
    ]  # fmt: skip
    store.save(Batch(Saved(), unapplied=ends, holder="me"))
    assert len(await store.children(ROOT)) == 5
    assert await keys(store, "map") == ["a", "a", "a"]
    assert [one.act for one in await store.children(ROOT, "map", 0)] == ["leaf", "other"]
    assert await keys(store, "next", 0) == [1, "1"]
    assert await keys(store, "next", 1) == []
    assert await keys(store, "nowhere") == []


async def test_a_save_that_fails_keeps_nothing():
    class Undigested(Saved):
        def __getattribute__(self, name: str) -> Any:
            if name == "digest":
                raise NotData("a lock is no data")
            return super().__getattribute__(name)

    store = await begun()
    bad = Undigested(path=child("b").path, status="succeeded")
    with pytest.raises(NotData):
        store.save(Batch(Saved(), (update(1), update(2)), (child("a"), bad), holder="me"))
    with pytest.raises(NotData):
        store.save(Batch(bad, (update(1),), holder="me"))
    assert list(await store.read(ROOT)) == []
    assert await keys(store) == []


# -- copies ----------------------------------------------------------------------------------------


async def test_a_copy_is_what_would_be_found_if_the_process_ended_now():
    store = await begun()
    store.save(Batch(Saved(), (update(1),), (child("a"),), holder="me"))
    other = store.copy()
    store.save(Batch(Saved(), (update(2),), (child("b"),), holder="me"))
    store.save(Batch(child("a"), afresh=True, holder="me"))
    await other.claim("root", "you")
    assert list(await other.read(ROOT)) == [update(1)]
    assert await keys(other) == ["a"]
    other.save(Batch(Saved(), (update(2),), (child("c"),), holder="you"))
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
