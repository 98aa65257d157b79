"""PostgresStore and its connections: lost at any moment, silent, and held up by others."""

# pyright: reportPrivateUsage=false
# Connections are looked at and cut in the middle of what they do.

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio
import psycopg
import pytest

from shoal import Application, Limits, PostgresStore, RunClaimed, StoreFailed, action, fan_out
from shoal.errors import CommitInDoubt, LeaseLost
from shoal.stores import Batch
from shoal.testing import HandMadeRun, RecordingHook, child_run
from shoal.testing._hand_made import ROOT, claimed, save, update_of

from .durable import InSchema, wait_for
from .postgres import PostgresServer
from .postgres_proxy import Proxy

anyio_test = pytest.mark.anyio
services = pytest.mark.services


def batch(number: int) -> Batch:
    return Batch(HandMadeRun(), (update_of(number),), holder="me")


# -- connections that are lost ---------------------------------------------------------------------


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator[Proxy]:
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        proxy = Proxy(postgres, folder)
        try:
            yield proxy
        finally:
            proxy.close()


@anyio_test
@services
@pytest.mark.parametrize("when", ["before", "after", "silent"])
async def test_what_a_lost_connection_was_about_to_commit_is_kept_once(
    place: InSchema, proxy: Proxy, when: str
):
    store = place.store(proxy.address, patience=30, answers=0.15 if when == "silent" else 15)
    async with claimed(store):
        # so that the name of the step is known, which has a transaction of its own
        await save(store, updates=(update_of(1),), unapplied=[child_run("first")])
        proxy.cut(when)
        await save(store, updates=(update_of(2),), unapplied=[child_run(n) for n in range(20)])
        assert proxy.cuts == 1
        await save(store, updates=(update_of(3),))
        assert place.kept() == [1, 2, 3]
        assert len(await store.children(ROOT)) == 21


@anyio_test
@services
@pytest.mark.parametrize("what", ["claims", "set_config", "INSERT INTO history", "COPY runs"])
async def test_a_connection_may_be_lost_before_anything_is_committed(
    place: InSchema, proxy: Proxy, what: str
):
    store = place.store(proxy.address, patience=30)
    async with claimed(store):
        await save(store, unapplied=[child_run(n) for n in range(20)])
        proxy.cut("after", what)
        many = [child_run(n, step="next") for n in range(20)]
        await save(store, updates=(update_of(1),), unapplied=many)
        assert proxy.cuts == 1
        assert place.kept() == [1]
        assert len(await store.children(ROOT)) == 40


@anyio_test
@services
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_claim_and_its_return_survive_a_lost_connection(
    place: InSchema, proxy: Proxy, when: str
):
    store = place.store(proxy.address, patience=30)
    async with store:
        proxy.cut(when)
        assert await store.claim("root", "me") is False
        await save(store, updates=(update_of(1),))
        proxy.cut(when)
        await store.release("root", "me")
        assert proxy.cuts == 2
    assert place.rows("SELECT epoch, execution FROM claims") == [(1, None)]


@anyio_test
@services
@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_can_not_be_found_out_is_in_doubt(place: InSchema, proxy: Proxy, when: str):
    async with place.store():  # makes the schema, however long that takes
        store = place.store(proxy.address, patience=0.1, answers=15)
    async with store, claimed(store):
        await save(store, updates=(update_of(1),))
        proxy.cut(when, for_good=True)
        with pytest.raises(
            CommitInDoubt, match="it is unknown whether a save was kept: the connect"
        ):
            await save(store, updates=(update_of(2),))
        proxy.is_down = False
        with pytest.raises(CommitInDoubt):
            await save(store, updates=(update_of(3),))
        assert place.kept() == ([1] if when == "before" else [1, 2])


@anyio_test
@services
async def test_what_was_surely_not_kept_is_not_in_doubt(place: InSchema, proxy: Proxy):
    async with place.store():  # makes the schema, however long that takes
        store = place.store(proxy.address, patience=0.1, answers=15)
    async with store, claimed(store):
        proxy.cut("before", "COPY runs", for_good=True)
        with pytest.raises(StoreFailed, match="could not be reached for"):
            await save(store, updates=(update_of(1),), unapplied=[child_run(n) for n in range(20)])
        proxy.is_down = False
        assert place.kept() == []


@anyio_test
@services
async def test_an_execution_that_was_taken_over_while_the_connection_was_lost_is_refused(
    place: InSchema, proxy: Proxy
):
    store = place.store(proxy.address, patience=30)
    other = place.store()
    await store.claim("root", "me")
    await save(store, updates=(update_of(1),))
    proxy.is_down = True
    proxy.cut("after")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(save_and_lose, store)
        await anyio.to_thread.run_sync(wait_for, lambda: proxy.cuts)
        place.rows("UPDATE claims SET pid = 1, started = '1'")
        assert await other.claim("root", "you") is True
        proxy.is_down = False
    assert place.kept() == [1, 2]
    await other.release("root", "you")
    await store.release("root", "me")


async def save_and_lose(store: PostgresStore) -> None:
    with pytest.raises(LeaseLost):
        await save(store, updates=(update_of(2),))


@anyio_test
@services
async def test_a_server_that_has_forgotten_what_it_acknowledged_is_found(place: InSchema):
    """As one may that takes over and was not quite up to date."""
    store = place.store()
    async with claimed(store):
        await save(store, updates=(update_of(1),))
        place.rows("DELETE FROM history")
        place.rows("UPDATE claims SET saves = saves - 1")
        message = r"says that run root was saved 1 times, but it acknowledged 2"
        with pytest.raises(StoreFailed, match=message):
            await save(store, updates=(update_of(2),))
        with pytest.raises(StoreFailed, match=message):
            await save(store, updates=(update_of(3),))
    assert place.kept() == []


@anyio_test
@services
async def test_a_backend_that_is_terminated_at_its_commit_loses_nothing(place: InSchema):
    """By the server itself, in the middle of what it does there."""
    store = place.store(patience=30)
    async with claimed(store):
        place.rows(
            "CREATE SEQUENCE passes; CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ "
            "BEGIN IF nextval('passes') % 3 = 1 THEN "
            "PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN NULL; END $$; "
            "CREATE CONSTRAINT TRIGGER dies AFTER INSERT ON history DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION die()"
        )
        for number in range(1, 7):
            await save(store, updates=(update_of(number),))
        assert place.kept() == [1, 2, 3, 4, 5, 6]
        assert place.rows("SELECT last_value FROM passes") == [(9,)], "three of nine were killed"


@anyio_test
@services
async def test_a_run_goes_on_though_its_connections_are_cut_all_the_time(
    place: InSchema, proxy: Proxy
):
    begun = list[int]()

    @action(reads=["item"], writes=["out"])
    async def cut(item: int) -> int:
        begun.append(item)
        proxy.cut(("before", "after")[item % 2], ("COMMIT", "runs", "claims")[item % 3])
        return item

    act = fan_out(cut, over="items", key=int, into="outs", limits=Limits(2))
    hook = RecordingHook()
    app = Application(act, store=place.store(proxy.address, patience=30), hooks=[hook])
    result = await app.run({"items": range(20)}, id="x")
    hook.assert_paired()
    assert begun == list(result.state["outs"]) == list(range(20))
    assert proxy.cuts > 5
    found = place.rows("SELECT applied FROM runs WHERE parent <> 0 ORDER BY applied")
    assert [number for (number,) in found] == list(range(2, 22))
    await anyio.to_thread.run_sync(wait_for, lambda: not place.backends())


@anyio_test
@services
@pytest.mark.parametrize("how", ["fast", "immediate"])
async def test_a_run_goes_on_when_the_server_was_restarted(place: InSchema, how: str):
    begun = list[int]()

    @action(reads=["item"], writes=["out"])
    async def restart(item: int) -> int:
        begun.append(item)
        if item == 4:
            await anyio.to_thread.run_sync(place.server.stop, how)
            start = threading.Thread(target=place.server.start)
            start.start()
        return item

    act = fan_out(restart, over="items", key=int, into="outs", limits=Limits(2))
    app = Application(act, store=place.store(patience=30))
    result = await app.run({"items": range(10)}, id="x")
    assert begun == list(result.state["outs"]) == list(range(10))
    again = await app.run(id="x")
    assert dict(again.state["outs"]) == dict(result.state["outs"])


@anyio_test
@services
async def test_a_read_is_answered_by_another_connection(place: InSchema):
    async with place.store(patience=30) as store, claimed(store):
        await save(store, updates=(update_of(1),))
        assert list(await store.read(ROOT)) == [update_of(1)]
        assert len(place.backends()) == 2
        for pid in place.backends():
            place.rows("SELECT pg_terminate_backend(?)", pid)
        assert list(await store.read(ROOT)) == [update_of(1)]
        await save(store, updates=(update_of(2),))
        assert place.kept() == [1, 2]


@anyio_test
@services
async def test_a_wait_for_a_server_that_is_not_there_may_be_cancelled(
    place: InSchema, proxy: Proxy
):
    store = place.store(proxy.address, patience=1000)
    proxy.is_down = True
    with anyio.move_on_after(0.05) as scope:
        await store.load("root")
    assert scope.cancelled_caught


@anyio_test
@services
async def test_a_server_that_says_nothing_is_waited_for(place: InSchema):
    store = place.store(patience=30)
    async with claimed(store):
        place.server.signal_all(signal.SIGSTOP)
        pending = store.save(batch(1))
        assert pending is not None
        await anyio.to_thread.run_sync(time.sleep, 0.05)
        place.server.signal_all(signal.SIGCONT)
        await pending
        assert place.kept() == [1]


@anyio_test
@services
@pytest.mark.slow
async def test_a_server_that_goes_on_saying_nothing_ends_the_execution(place: InSchema):
    store = place.store(patience=0.3, lease=0.5)
    async with store, claimed(store):
        place.server.signal_all(signal.SIGSTOP)
        try:
            with pytest.raises(
                StoreFailed, match=r"the server has said nothing for 0.15 s|timeout"
            ):
                await save(store, updates=(update_of(1),))
        finally:
            place.server.signal_all(signal.SIGCONT)
        assert place.kept() == []


@anyio_test
@services
async def test_a_server_that_may_only_be_read_is_waited_for(place: InSchema):
    """Until the address leads to one that may be written to."""
    async with place.store():
        pass
    role = f"fickle_{place.schema}"
    place.rows(f"CREATE ROLE {role} LOGIN SUPERUSER")
    place.rows(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    address = place.server.address(user=role)
    with pytest.raises(StoreFailed, match=r"has been read-only for 0.02 s"):
        await place.store(address, patience=0.02, answers=15).claim("root", "me")
    store = place.store(address, patience=30)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.claim, "root", "me")
        await anyio.to_thread.run_sync(time.sleep, 0.05)
        place.rows(f"ALTER ROLE {role} RESET default_transaction_read_only")
    await store.release("root", "me")


@anyio_test
@services
async def test_tables_that_are_gone_fail_saves_and_nothing_else(place: InSchema):
    store = place.store(patience=30, heartbeat=0.01)
    await store.claim("root", "me")
    place.rows(f"DROP SCHEMA {place.schema} CASCADE")
    place.rows(f"CREATE SCHEMA {place.schema}")
    place.rows("CREATE TABLE albums (title text)")
    for pid in place.backends():
        place.rows("SELECT pg_terminate_backend(?)", pid)
    await anyio.to_thread.run_sync(time.sleep, 0.05)  # signs of life are in vain
    with pytest.raises(StoreFailed, match="is not a shoal store"):
        await save(store, updates=(update_of(1),))
    with pytest.raises(StoreFailed, match="is not a shoal store"):
        await store.release("root", "me")


# -- what others hold ------------------------------------------------------------------------------


@anyio_test
@services
async def test_what_another_transaction_holds_is_waited_for(place: InSchema):
    store = place.store(patience=30, answers=0.05)
    async with claimed(store):
        with psycopg.connect(place.server.address()) as other:
            other.execute(place.lock)
            pending = store.save(batch(1))
            assert pending is not None
            await anyio.to_thread.run_sync(time.sleep, 0.1)  # several tries are given up
        await pending
        assert place.kept() == [1]


@anyio_test
@services
async def test_what_another_transaction_goes_on_holding_ends_the_execution(place: InSchema):
    store = place.store(patience=0.1)
    store._server = store._server._replace(timeout=15)
    async with claimed(store):
        store._server = store._server._replace(timeout=0.05)
        assert store._writer is not None
        store._writer._database._server = store._server
        with psycopg.connect(place.server.address()) as other:
            other.execute(place.lock)
            with pytest.raises(StoreFailed, match="has not completed a statement for"):
                await save(store, updates=(update_of(1),))
        assert place.kept() == []


@anyio_test
@services
async def test_a_process_that_stops_in_a_transaction_holds_others_up_for_a_lease_at_most(
    place: InSchema,
):
    store, other = place.store(lease=0.3, patience=30), place.store(patience=30)
    await store.claim("root", "me")
    assert store._writer is not None
    data: Any = store._writer._database
    stopped, go, append = threading.Event(), threading.Event(), data._append

    def stop(*entries: Any) -> None:
        stopped.set()
        go.wait()
        append(*entries)

    data._append = stop
    pending = store.save(batch(1))
    await anyio.to_thread.run_sync(stopped.wait)
    place.rows("UPDATE claims SET host = 'far', boot = 'far'")  # which waits, too
    assert await other.claim("root", "you") is True
    go.set()
    assert pending is not None
    with pytest.raises(LeaseLost):
        await pending
    assert place.kept() == []
    await store.release("root", "me")
    await other.release("root", "you")


@anyio_test
@services
async def test_a_server_that_was_started_anew_gives_all_a_lease_to_come_back(place: InSchema):
    store, other = place.store(lease=1e6), place.store()
    await store.claim("root", "me")
    place.rows("UPDATE claims SET seen_at = 0, host = 'far', boot = 'far'")
    with pytest.raises(RunClaimed):
        await other.claim("root", "you")
    place.rows("UPDATE claims SET lease = 0")
    await other.claim("root", "you")
    await other.release("root", "you")
    await store.release("root", "me")
