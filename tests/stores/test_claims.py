"""Claims on runs: what an execution that could not give its run back leaves behind."""

# pyright: reportPrivateUsage=false
# A release that fails is brought about in the writer's database.

from __future__ import annotations

import asyncio
import gc
import logging
import sqlite3
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from shoal import Application, MemoryStore, RunClaimed, StoreFailed, action, fan_out
from shoal.errors import LeaseLost
from shoal.stores import Store
from shoal.stores._sql import holders as _holders
from shoal.stores._sql.store import DurableStore
from shoal.stores._sql.writer_thread import Job, Writer
from shoal.stores._sql.writing import Claiming, Releasing
from shoal.testing._hand_made import BEGINNING, save, update_of

from .durable import InFile, InSchema, Kept

anyio_test = pytest.mark.anyio

POSTGRES = pytest.param("postgres", marks=pytest.mark.services)


@pytest.fixture(params=["sqlite", POSTGRES])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    if request.param == "sqlite":
        return InFile(tmp_path / "runs.db")
    return InSchema(request.getfixturevalue("postgres"))


@contextmanager
def failing(store: DurableStore, kind: type[object], *, is_done: bool) -> Generator[None]:
    """Have jobs of a kind fail, as when the database is away, or lost right behind its commit."""
    assert store._writer is not None
    database = store._writer._database
    do = database.do

    def do_others(jobs: Sequence[Job[Any, Any]]) -> Iterator[Sequence[Job[Any, Any]]]:
        failed = [job for job in jobs if isinstance(job.work, kind)]
        others = jobs if is_done else [job for job in jobs if job not in failed]
        done = [job for some in do(others) for job in some] if others else []
        for job in failed:
            job.error = StoreFailed("the database is away")
        yield done
        yield [job for job in failed if job not in done]

    database.do = do_others
    with pytest.raises(StoreFailed, match="away"):
        yield
    database.do = do


async def left_claimed(store: DurableStore, holder: str) -> None:
    """Release a run while the database is away, so that its claim stays there."""
    with failing(store, Releasing, is_done=False):
        await store.release("root", holder)


# -- an outage, seen from an application -----------------------------------------------------------


@contextmanager
def locked(path: Path) -> Generator[None]:
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@anyio_test
@pytest.mark.parametrize("durability", ["sync", "relaxed", "end"])
async def test_after_an_outage_the_same_process_resumes_the_run_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, durability: Any
):
    caplog.set_level(logging.CRITICAL)
    kept = InFile(tmp_path / "runs.db")
    outages = iter([locked(kept.path)])

    @action(reads=["item"], writes=["out"])
    def work(item: int) -> int:
        outage = next(outages, None) if item == 2 else None
        if outage is not None:
            stack.enter_context(outage)
        return item

    store = kept.store(lease=1000, patience=0.02, durability=durability)
    outs = fan_out(work, over="items", key=int, into="outs")
    application = Application(outs, name="app", store=store)
    with ExitStack() as stack, pytest.raises(StoreFailed, match="is locked"):
        await application.run({"items": [0, 1, 2, 3]}, id="x")
    result = await application.run({"items": [0, 1, 2, 3]}, id="x")
    assert dict(result.state["outs"]) == {0: 0, 1: 1, 2: 2, 3: 3}
    assert kept.rows("SELECT epoch, execution FROM claims") == [(2, None)]


# -- the same, seen from a store -------------------------------------------------------------------


@anyio_test
@pytest.mark.parametrize("by_another_object", [False, True])
async def test_a_claim_that_was_not_given_back_is_taken_over_by_the_same_process(
    kept: Kept, by_another_object: bool
):
    store = kept.store(lease=1000)
    await store.claim("root", "first")
    await save(store, begun=BEGINNING, holder="first")
    await left_claimed(store, "first")
    assert kept.rows("SELECT execution FROM claims") == [("first",)]
    other = kept.store(lease=1000) if by_another_object else store
    (orphan,) = await other.orphans()
    assert orphan.run_id == "root"
    summary = await other.summary("root")
    assert summary is not None
    assert not summary.holder, "nobody executes it"
    has_died = await other.claim("root", "second")
    assert has_died is False, "it has not crashed, so none of its children is suspected"
    with pytest.raises(LeaseLost):
        await save(store, holder="first")
    await save(other, updates=(update_of(1),), holder="second")
    await other.release("root", "second")


@anyio_test
async def test_it_is_not_taken_over_by_another_process(kept: Kept):
    store = kept.store(lease=1000)
    await store.claim("root", "first")
    await left_claimed(store, "first")
    for column in ("boot", "host"):
        ((before,),) = kept.rows(f"SELECT {column} FROM claims")
        kept.rows(f"UPDATE claims SET {column} = ?", "another")
        with pytest.raises(RunClaimed, match="already running in process"):
            await store.claim("root", "second")
        kept.rows(f"UPDATE claims SET {column} = ?", before)
    await store.claim("root", "second")
    await store.release("root", "second")


@anyio_test
async def test_what_goes_on_in_this_process_is_refused_whichever_object_asks(kept: Kept):
    store, other = kept.store(lease=1000), kept.store(lease=1000)
    await store.claim("root", "first")
    for asked in (store, other):
        with pytest.raises(RunClaimed, match="run root is already running in this process"):
            await asked.claim("root", "second")
    await store.release("root", "first")


@anyio_test
async def test_an_execution_goes_on_as_long_as_it_has_a_claim_in_any_store(
    kept: Kept, tmp_path: Path
):
    """Claims are given back in turn; one that can't be is the execution's until the last one is."""
    store, elsewhere = kept.store(lease=1000), InFile(tmp_path / "other.db").store(lease=1000)
    await store.claim("root", "first")
    await elsewhere.claim("root", "first")
    await left_claimed(elsewhere, "first")
    with pytest.raises(RunClaimed, match="is already running in this process"):
        await elsewhere.claim("root", "second")
    await store.release("root", "first")
    await elsewhere.claim("root", "second")
    await elsewhere.release("root", "second")


@anyio_test
@pytest.mark.parametrize("durability", ["relaxed", "end"])
async def test_what_was_left_for_later_is_saved_before_another_execution_takes_over(
    kept: Kept, durability: Any
):
    store, other = kept.store(lease=1000, durability=durability, window=1000), kept.store()
    await store.claim("root", "first")
    await save(store, begun=BEGINNING, updates=(update_of(1),), holder="first")
    await left_claimed(store, "first")
    await other.claim("root", "second")
    assert kept.rows("SELECT number FROM history") == [(1,)]
    await other.release("root", "second")


@anyio_test
async def test_a_claim_that_failed_and_was_made_all_the_same_is_nobodys(kept: Kept):
    """As when the connection is lost behind its commit."""
    store = kept.store(lease=1000)
    async with store:
        with failing(store, Claiming, is_done=True):
            await store.claim("root", "first")
        assert kept.rows("SELECT execution FROM claims") == [("first",)]
        await store.claim("root", "second")
        await store.release("root", "second")


# -- event loops that are closed under their runs --------------------------------------------------


def run_and_close(main: Callable[[], Coroutine[Any, Any, object]]) -> weakref.ref[Any]:
    """Close an event loop behind ``main`` without an end of its other tasks, which asyncio allows.

    ``asyncio.run`` cancels them first; so runs are given back there.
    """
    loop = asyncio.new_event_loop()
    with closing(loop):
        loop.run_until_complete(main())
    return weakref.ref(loop)


@pytest.mark.parametrize("by_another_object", [False, True])
def test_a_run_is_nobodys_once_its_event_loop_was_closed(kept: Kept, by_another_object: bool):
    store = kept.store(lease=1000)
    other = kept.store(lease=1000) if by_another_object else store

    async def begin() -> None:
        await store.claim("root", "first")
        await save(store, begun=BEGINNING, holder="first")
        with pytest.raises(RunClaimed, match="is already running in this process"):
            await other.claim("root", "second")

    async def go_on() -> None:
        (orphan,) = await other.orphans()
        assert orphan.run_id == "root"
        assert await other.claim("root", "second") is False, "it has not crashed"
        await save(other, updates=(update_of(1),), holder="second")
        await other.release("root", "second")

    run_and_close(begin)
    run_and_close(go_on)
    if by_another_object:  # else it was found when the run was claimed again
        assert store._claims
        run_and_close(lambda: claim_and_release(store, "another"))
    assert not store._claims
    assert store._writer is None, "so the last claim that is given back closes the store"


async def claim_and_release(store: DurableStore, run_id: str) -> None:
    await store.claim(run_id, "holder")
    await store.release(run_id, "holder")


def test_a_claim_is_not_kept_up_once_its_event_loop_was_closed(kept: Kept):
    """Other processes wait for its lease, which has to run out."""
    store = kept.store(lease=1000)

    async def look_twice() -> None:  # the writer looks after its claims in between
        for _ in range(2):
            assert store._writer is not None
            await store._writer.ask(lambda _: None)

    run_and_close(lambda: store.claim("root", "first"))
    assert store._writer is not None
    run_and_close(look_twice)
    assert not store._writer._database._claims
    run_and_close(lambda: claim_and_release(store, "root"))


def test_a_store_keeps_no_event_loop_that_has_ended(kept: Kept):
    store = kept.store()

    async def main() -> None:
        async with store:
            await claim_and_release(store, "root")

    loops = [run_and_close(main) for _ in range(3)]
    for thread in threading.enumerate():
        if isinstance(thread, Writer):
            thread.join()  # it has said that it is done, and may not have left its last frame
    gc.collect()
    assert [loop() for loop in loops] == [None, None, None]


# -- what else there is to a claim -----------------------------------------------------------------


def test_processes_differ_also_where_the_system_does_not_tell_its_starts_apart(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(_holders, "_boot", lambda: "")
    described = _holders._described.__wrapped__
    one, another = described(12), described(12)
    assert one != another
    assert not one.is_gone
    assert not another.is_gone


class Interrupted:
    """A store of which the release is interrupted, as a native cancellation does it."""

    def __init__(self) -> None:
        self.kept = MemoryStore()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kept, name)

    async def release(self, run_id: str, holder: str) -> None:
        raise KeyboardInterrupt


@anyio_test
async def test_each_store_is_given_its_run_back_though_a_release_is_interrupted():
    @action(reads=["item"], writes=["out"])
    async def same(item: int) -> int:
        return item

    store, elsewhere = MemoryStore(), Interrupted()
    outs = fan_out(same, over="items", into="outs", store=cast("Store", elsewhere))
    with pytest.raises(KeyboardInterrupt):
        await Application(outs, name="app", store=store).run({"items": [1]}, id="x")
    assert await store.claim("x", "another") is False
