"""What is the own of the store in memory; what every store has to do is in test_conformance."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal import (
    Application,
    Codec,
    Graph,
    MemoryStore,
    RunClaimed,
    SQLiteStore,
    StoreFailed,
    action,
    fan_out,
)
from shoal._errors.inspection import leaves
from shoal.errors import DefinitionError, LeaseLost, NotData, NotEncodable
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
    app = Application(fan_out(same, over="items", into="outs"), store=MemoryStore(strict=False))
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
    node = Application(Graph.chain(Graph.chain(same, name="node")), store=MemoryStore(strict=False))
    with pytest.raises(NotData, match=r"'node' in step 'node', key '', .*field 'item'"):
        await node.run({"item": threading.Lock()}, id="x")
    assert not ran


async def test_values_may_be_anything_a_store_in_memory_can_hold():
    @action(writes=["lock"])
    async def lock() -> object:
        return threading.Lock()

    store = MemoryStore(strict=False)
    result = await Application(lock, store=store).run(id="x")
    again = await Application(lock, store=store).run(id="x")
    assert again.state["lock"] is result.state["lock"]


async def test_a_state_that_can_not_be_compared_is_the_same_only_if_it_is_the_very_one():
    store, lock = MemoryStore(strict=False), threading.Lock()
    app = Application(lambda_free, store=store)
    await app.run({"lock": lock}, id="x")
    await app.run({"lock": lock}, id="x")
    with pytest.raises(NotData, match=r"run x.*'lock'"):
        await app.run({"lock": threading.Lock()}, id="x")


@action(reads=["lock"], writes=["out"])
async def lambda_free(lock: object) -> int:
    return 1


class Local:
    """A class that any program may register."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Local) and other.n == self.n

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def looped() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


REFUSED: dict[str, Callable[[], object]] = {
    "lock": threading.Lock,
    "function": lambda: lambda_free,
    "lambda": lambda: lambda: 0,
    "unregistered": lambda: Local(1),
    "nested": lambda: {"a": [1, Local(1)]},
    "loop": looped,
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("where", ["start", "step", "child"])
async def test_a_strict_one_refuses_what_sqlite_refuses(kind: str, where: str, tmp_path: Path):
    """In the initial state, in the result of a step, and in that of a child; in the same words."""

    @action(reads=["n"], writes=["value"])
    async def make(n: int) -> object:
        return REFUSED[kind]()

    act = fan_out(make, over="ns", item="n", into="values") if where == "child" else make
    state = {"n": 1, "ns": [1]} | ({"other": REFUSED[kind]()} if where == "start" else {})
    said: list[str] = []
    for store in (SQLiteStore(tmp_path / "runs.db"), MemoryStore()):
        try:
            await Application(act, name="app", store=store).run(state, id="x")
            said.append("kept")
        except Exception as error:
            said.append("\n".join(f"{type(leaf).__name__}: {leaf}" for leaf in leaves(error)))
    assert said[0] == said[1]
    assert said[0] != "kept"


async def test_a_failed_save_has_changed_nothing():
    store = MemoryStore()
    with pytest.raises(NotEncodable):
        await Application(lambda_free, store=store).run({"lock": threading.Lock()}, id="x")
    assert not store


async def test_a_codec_knows_further_types(tmp_path: Path):
    codec = Codec()
    codec.register(Local, tag="local", encode=lambda one: one.n, decode=lambda n, _: Local(n))
    for store in (MemoryStore(codec=codec), MemoryStore(codec=codec).copy()):
        result = await Application(lambda_free, store=store).run({"lock": Local(1)}, id="x")
        assert result.state["out"] == 1
    with pytest.raises(DefinitionError, match=r"codec=...\) is for a strict store"):
        MemoryStore(strict=False, codec=codec)
    with pytest.raises(DefinitionError, match="takes a Codec, not 3"):
        MemoryStore(codec=3)  # pyright: ignore[reportArgumentType]


async def test_a_copy_is_as_strict(tmp_path: Path):
    for store in (MemoryStore(), MemoryStore().copy().copy()):
        with pytest.raises(NotEncodable):
            await Application(lambda_free, store=store).run({"lock": threading.Lock()}, id="x")
    lax = MemoryStore(strict=False).copy()
    await Application(lambda_free, store=lax).run({"lock": threading.Lock()}, id="x")


def test_without_the_package_that_encodes_nothing_is_refused():
    program = (
        "import sys\n"
        "sys.modules['msgspec'] = None\n"
        "from shoal import Application, MemoryStore, action\n"
        "make = action(writes=['value'], name='make', executor='loop')(lambda: object())\n"
        "Application(make, store=MemoryStore()).run_sync()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


async def test_stores_that_fail_to_save_are_named():
    class Full(NullStore):
        def save(self, batch: Batch) -> None:
            raise OSError("no space left on device")

    with pytest.raises(StoreFailed, match="no space left on device"):
        await Application(same, store=Full()).run({"item": 1}, id="x")
