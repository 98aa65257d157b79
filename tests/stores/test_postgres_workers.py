"""Several workers on one PostgreSQL server: locks, claims, round trips; and a silent server.

That many of them get along for a while is in ``test_postgres_soak``.
"""

# pyright: reportPrivateUsage=false
# The writer's connection is looked at, and held in the middle of what it does.

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import psycopg
import pytest

from shoal import (
    Application,
    Limits,
    PostgresStore,
    RunCancelled,
    RunClaimed,
    Runtime,
    StoreFailed,
    action,
    fan_out,
)
from shoal._engine import execution as _execution
from shoal._events.identity import RunPath
from shoal._state.state import Set
from shoal.errors import CommitInDoubt, LeaseLost
from shoal.stores import Batch
from shoal.stores._postgres import server as _postgres_server
from shoal.stores._sql import store as _durable
from shoal.testing import HandMadeRun, child_run
from shoal.testing._hand_made import BEGINNING, ROOT, claimed, save, update_of

from .durable import InSchema, stopped
from .postgres import PostgresServer
from .postgres_proxy import Proxy

anyio_test = pytest.mark.anyio
pytestmark = pytest.mark.services


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator[Proxy]:
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        proxy = Proxy(postgres, folder)
        try:
            yield proxy
        finally:
            proxy.close()


def root(run_id: str) -> HandMadeRun:
    return HandMadeRun(path=RunPath(run_id=run_id, act="app"))


async def kept(*pending: Any) -> None:
    """Wait until saves are kept."""
    for one in pending:
        assert one is not None
        await one


@contextmanager
def held_in_the_middle(store: PostgresStore) -> Generator[Any]:
    """Have a save of the root run stop, until the block is left, when it has locked its claim."""
    assert store._writer is not None
    data: Any = store._writer._database
    has_stopped, go, append = threading.Event(), threading.Event(), data._append

    def stop(*entries: Any) -> None:
        has_stopped.set()
        go.wait()
        append(*entries)

    data._append = stop
    pending = store.save(Batch(HandMadeRun(), (update_of(1),), holder="me"))
    has_stopped.wait()
    try:
        yield pending
    finally:
        data._append = append
        go.set()


# -- locks -----------------------------------------------------------------------------------------


@anyio_test
async def test_looking_waits_for_no_lock(place: InSchema):
    store, other = place.store(), place.store(patience=0.4)
    async with claimed(store), other:
        with psycopg.connect(place.server.address()) as third:
            third.execute(place.lock)
            for _ in range(3):
                with pytest.raises(RunClaimed, match="is already running in this process"):
                    await other.claim("root", "you")
            assert await other.load("root") is not None
            assert not await other.orphans()
            assert not await other.children(ROOT)
            assert [one.run_id for one in await other.runs()] == ["root"]


@anyio_test
async def test_a_claim_that_is_refused_holds_up_nothing_else(place: InSchema):
    """No other claim, and no save of either process: before, they waited for each other."""
    store, other = place.store(), place.store(patience=2)
    refusals = list[str]()

    async def claim(name: str) -> None:
        try:
            await other.claim(name, "you")
        except RunClaimed:
            refusals.append(name)

    async with store, other, claimed(store), claimed(other, root("theirs")):
        with held_in_the_middle(store) as pending:
            async with anyio.create_task_group() as tasks:
                with stopped(other):
                    for name in ("z", "root", "a"):
                        tasks.start_soon(claim, name)
                    saved = other.save(Batch(root("theirs"), (update_of(1),), holder="me"))
                    for _ in range(3):  # until they have asked
                        await anyio.lowlevel.checkpoint()
                tasks.start_soon(kept, saved)
            assert refusals == ["root"]
            assert place.kept() == [1]
        await kept(pending)
        assert place.kept() == [1, 1]
        for name in "az":
            await other.release(name, "you")


@anyio_test
async def test_claims_are_locked_in_one_order(place: InSchema):
    """Whatever the order in which the saves of a transaction come."""
    names = ["d", "b", "a", "c"]
    store = place.store()
    async with store:
        for name in names:
            await store.claim(name, "me")
            await save(store, root(name), begun=BEGINNING)
        with psycopg.connect(place.server.address()) as other:
            # The lock of "b" is waited for: what is locked meanwhile comes before it.
            other.execute(
                f"SELECT FROM {place.schema}.claims WHERE run_id = 'b' FOR UPDATE".encode()
            )
            with stopped(store):
                pending = [
                    store.save(Batch(root(name), (update_of(1),), holder="me")) for name in names
                ]
            locked = "SELECT run_id FROM claims WHERE run_id = ? FOR UPDATE NOWAIT"
            wait_for(lambda: place.rows("SELECT 1 FROM pg_locks WHERE NOT granted"))
            with pytest.raises(psycopg.errors.LockNotAvailable):
                place.rows(locked, "a")
            assert place.rows(locked, "c") == [("c",)]
            assert place.rows(locked, "d") == [("d",)]
        await kept(*pending)
        for name in names:
            await store.release(name, "me")


@anyio_test
async def test_what_is_deleted_or_remembered_waits_for_no_lock_of_others(place: InSchema):
    store = place.store(patience=0.4)
    async with store:
        for name in ("held", "free"):
            await store.claim(name, "me")
            await save(store, root(name), begun=BEGINNING, ended="succeeded")
            await store.release(name, "me")
            place.rows("INSERT INTO results VALUES (?, 0, '[]')", name)
        with psycopg.connect(place.server.address()) as other:
            for table, key in (("claims", "run_id"), ("results", "key")):
                what = f"SELECT FROM {place.schema}.{table} WHERE {key} = 'held' FOR UPDATE"
                other.execute(what.encode())
            assert await store.prune(0) == 1
            await store.remember("new", (Set("n", 1),), 1000)
            assert place.rows("SELECT key FROM results ORDER BY key") == [("held",), ("new",)]
        assert await store.prune(0) == 1
    assert place.rows("SELECT id FROM runs") == []


@anyio_test
async def test_one_process_at_a_time_deletes(place: InSchema):
    store, other = place.store(), place.store()
    async with claimed(store, begin=False), claimed(other, root("other"), begin=False):
        assert store._writer is not None
        assert other._writer is not None
        done, errors = list[bool](), list[Exception]()

        def sweep(database: Any) -> bool:
            more = database.sweep(10)
            assert other._writer is not None
            other._writer.leave(lambda theirs: done.append(theirs.sweep(10)), 0, errors.append)
            wait_for(lambda: done)
            return more

        assert await store._writer.ask(sweep) is False
        assert done == [True], "there may be more, for somebody else deletes"


def wait_for(what: Any) -> None:
    until = time.monotonic() + 20
    while not what():
        assert time.monotonic() < until
        time.sleep(0.005)


# -- round trips -----------------------------------------------------------------------------------


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Count how often the server is waited for."""
    counted = list[None]()
    wait = _postgres_server._PsycopgConnection.wait

    def count(self: Any, *args: Any, **more: Any) -> Any:
        counted.append(None)
        return wait(self, *args, **more)

    monkeypatch.setattr(_postgres_server._PsycopgConnection, "wait", count)
    return counted


async def trips_of(store: PostgresStore, waits: list[None], saves: list[Batch]) -> int:
    """Save in one transaction; return how often the server was waited for."""
    before = len(waits)
    with stopped(store):
        pending = [store.save(batch) for batch in saves]
    await kept(*pending)
    return len(waits) - before - 2  # the transaction in which it was stopped


def below(numbers: range, **more: Any) -> list[HandMadeRun]:
    return [child_run(number, **more) for number in numbers]


def begun(numbers: range, **more: Any) -> list[Batch]:
    """Say that children are under way: a save of each."""
    return [Batch(child, holder="me") for child in below(numbers, status=None, **more)]


def ended(numbers: range, **more: Any) -> list[Batch]:
    """Say that children have ended: one save of their parent's."""
    return [Batch(HandMadeRun(), unapplied=below(numbers, **more), holder="me")]


@anyio_test
@pytest.mark.parametrize("before", [None, begun, ended])
@pytest.mark.parametrize("after", [begun, ended])
@pytest.mark.parametrize("is_resumed", [False, True])
async def test_a_save_is_as_many_round_trips_whatever_it_saves(
    place: InSchema, waits: list[None], before: Any, after: Any, is_resumed: bool
):
    store, trips = place.store(lease=600), list[int]()  # no sign of life comes between
    async with store:
        await store.claim("root", "me")
        await save(store, begun=BEGINNING)
        await trips_of(
            store, waits, [*begun(range(1)), *ended(range(1))]
        )  # names of steps are known
        if before is not None:
            await trips_of(store, waits, before(range(1, 100), attempts=1, value="before"))
        if is_resumed:
            await store.release("root", "me")
            await store.claim("root", "me")
            await save(store, updates=(update_of(1),))
        for numbers in (range(1, 3), range(10, 21), range(30, 90)):
            trips.append(await trips_of(store, waits, after(numbers, value="after")))
        await store.release("root", "me")
        found = {one.key: one.value for one in await store.children(ROOT)}
    # A transaction may have failed and be made again, once, since children were there already.
    assert max(trips) <= 12
    assert trips[1] == trips[2]
    if after is ended:
        assert all(found[number] == "after" for number in range(30, 90))


@anyio_test
async def test_deep_trees_are_found_level_by_level(place: InSchema, waits: list[None]):
    store = place.store()
    async with claimed(store):
        above = [child_run(key, status=None).path for key in "ab"]
        below = [
            child_run(key, parent=path, status=None, value=f"{path.key}{key}")
            for path in above
            for key in range(20)
        ]
        few, many = (
            [Batch(child, holder="me") for child in children] for children in (below[:1], below[1:])
        )
        await trips_of(store, waits, few)
        first, again = await trips_of(store, waits, many), await trips_of(store, waits, many)
        assert first <= 6
        assert again <= 2, "all rows are known"
        for path in above:
            assert [one.key for one in await store.children(path)] == list(range(20))


# -- claims that the server forgets ----------------------------------------------------------------

FORGET = "DELETE FROM claims"
OLDER = "UPDATE claims SET epoch = epoch - 1, execution = NULL, saves = 7"


@anyio_test
@pytest.mark.parametrize("how", [FORGET, OLDER], ids=["gone", "older"])
@pytest.mark.parametrize("noticed_by", ["save", "beat"])
async def test_a_claim_that_a_crash_has_taken_away_is_made_again(
    place: InSchema, how: str, noticed_by: str
):
    store = place.store(heartbeat=0.02 if noticed_by == "beat" else 5)
    async with store:
        if how == OLDER:
            await store.claim("root", "before")
            await save(store, holder="before", begun=BEGINNING)
            await store.release("root", "before")
        await store.claim("root", "me")
        place.rows(how)
        if noticed_by == "beat":
            ours = "SELECT 1 FROM claims WHERE execution = 'me'"
            await anyio.to_thread.run_sync(wait_for, lambda: place.rows(ours))
        await save(store, begun=BEGINNING)
        await save(store, updates=(update_of(1),))
        with pytest.raises(RunClaimed):
            await place.store().claim("root", "you")
        await store.release("root", "me")
    assert place.kept() == [1]
    assert place.rows("SELECT epoch, execution FROM claims") == [(2 if how == OLDER else 1, None)]


@anyio_test
async def test_a_claim_that_was_forgotten_is_not_taken_back_from_another_execution(place: InSchema):
    store, other = place.store(), place.store()
    async with store, other:
        await store.claim("root", "me")
        place.rows(FORGET)
        await other.claim("root", "you")
        with pytest.raises(LeaseLost, match="taken over by another execution"):
            await save(store, begun=BEGINNING)
        await save(other, holder="you", begun=BEGINNING)
        await other.release("root", "you")
        await store.release("root", "me")


@anyio_test
async def test_a_run_that_was_deleted_meanwhile_is_not_brought_back(place: InSchema):
    store, other = place.store(), place.store()
    async with store:
        async with claimed(store):
            pass
        await store.claim("root", "me")
        place.rows("UPDATE claims SET pid = 1, started = '1'")
        await other.discard("root")
        with pytest.raises(LeaseLost):
            await save(store, updates=(update_of(1),))
        await store.release("root", "me")
    assert place.rows("SELECT epoch FROM claims") == place.rows("SELECT id FROM runs") == []


@anyio_test
async def test_a_server_that_lacks_the_claim_under_which_it_saved_is_found(place: InSchema):
    store = place.store()
    async with claimed(store):
        pass
    async with claimed(store):
        await save(store, updates=(update_of(1),))
        place.rows(OLDER)
        message = "says that run root was saved 0 times, but it acknowledged 2"
        with pytest.raises(StoreFailed, match=message):
            await save(store, updates=(update_of(2),))


# -- silence ---------------------------------------------------------------------------------------


@action(reads=["item"], writes=["out"])
async def wait_a_little(item: int) -> int:
    await anyio.to_thread.run_sync(time.sleep, 0.01)
    return item


@pytest.mark.realtime
@anyio_test
@pytest.mark.parametrize("worker", ["deadline", "patience", "timeout", "cancel"])
async def test_a_silent_server_holds_nobody_up(
    place: InSchema, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, worker: str
):
    """Neither the commit deadline nor the caller's own, however long the server is waited for."""
    monkeypatch.setattr(_durable, "CLOSING", 0.2, raising=False)
    monkeypatch.setattr(_execution, "GIVING_BACK", 0.2, raising=False)
    async with place.store():
        pass
    # A disk that is busy with other tests' saves may take over half a second for one of these.
    patience, deadline = {"patience": (1.5, 20.0)}.get(worker, (20.0, 1.5))
    store = place.store(proxy.address, patience=patience)
    act = fan_out(wait_a_little, over="items", key=int, into="outs", limits=Limits(4))
    app = Application(act, store=store)
    async with Runtime(commit_deadline=deadline) as runtime:
        run = await runtime.start(app, {"items": range(10_000)}, id="x")
        while run.number < 20:
            assert run.status is None, run.error
            await anyio.sleep(0.005)
        proxy.speaks.clear()
        silent_at = time.monotonic()
        if worker == "cancel":
            run.cancel("enough")
        with anyio.move_on_after(0.1 if worker == "timeout" else None) as scope:
            with pytest.raises((StoreFailed, CommitInDoubt, RunCancelled)):
                await run.result()
        assert scope.cancelled_caught == (worker == "timeout")
    # 20 s are what the server would be waited for, several times.
    assert time.monotonic() - silent_at < 8
    proxy.speaks.set()
    async with Runtime() as runtime:  # whether or not it was given back by now
        run = await runtime.start(app, id="x")
        run.cancel("it goes on")
    await anyio.to_thread.run_sync(wait_for, lambda: not is_written(place))
    if worker != "patience":  # within which it was given back after all
        assert place.rows("SELECT execution FROM claims") == [(None,)]


def is_written(place: InSchema) -> bool:
    """Tell whether there is a thread that writes."""
    return any(one.name == f"shoal writes {place.schema}" for one in threading.enumerate())


@pytest.mark.realtime
@anyio_test
async def test_a_reader_that_waits_for_a_silent_server_may_be_cancelled(
    place: InSchema, proxy: Proxy
):
    async with claimed(place.store()):
        pass
    async with place.store(proxy.address, patience=100) as store:
        assert await store.load("root") is not None
        proxy.speaks.clear()
        started_at = time.monotonic()
        with anyio.move_on_after(0.05) as scope:
            await store.load("root")
        assert scope.cancelled_caught
        assert time.monotonic() - started_at < 30  # not the 100 s of patience
        proxy.speaks.set()
        assert await store.load("root") is not None


@pytest.mark.realtime
@anyio_test
async def test_a_thread_that_connects_ends_when_its_caller_has_gone(
    place: InSchema, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
):
    store, ended = place.store(proxy.address, patience=100), threading.Event()
    look = store._look

    def note(asks: Any) -> Any:
        try:
            return look(asks)
        finally:
            ended.set()

    monkeypatch.setattr(store, "_look", note)
    proxy.speaks.clear()
    with anyio.move_on_after(0.05) as scope:
        await store.load("root")
    assert scope.cancelled_caught
    assert await anyio.to_thread.run_sync(ended.wait, 5)
