"""What stores in databases have in common: one thread, one transaction, leases, processes."""

# pyright: reportPrivateUsage=false
# The thread's database is held back, and claims changed, to bring about what takes long.

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from pathlib import Path
from textwrap import dedent
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from shoal import (
    Application,
    Context,
    Done,
    Graph,
    RunClaimed,
    RunConflict,
    RunPath,
    Runtime,
    StoreFailed,
    UnknownRun,
    action,
    fan_out,
)
from shoal._state.state import Drop, Extend, Increment, Operation, Put, PutWithin, Set
from shoal.errors import LeaseLost, NotEncodable, UpdateTooLarge
from shoal.events import ChildEnded, StateUpdated, Update
from shoal.stores import Batch
from shoal.stores._sql import holders as _holders
from shoal.stores._sql import writer_thread as _writer
from shoal.stores._sql.store import DurableStore
from shoal.testing import HandMadeRun, RecordingHook, child_run, no_leaks
from shoal.testing._hand_made import BEGINNING, ROOT, claimed, save, update_of

from .durable import InFile, InSchema, Kept, stopped

anyio_test = pytest.mark.anyio


POSTGRES = pytest.param("postgres", marks=pytest.mark.services)

SLOWLY = pytest.param("postgres", marks=[pytest.mark.services, pytest.mark.slow])


@pytest.fixture(params=["sqlite", POSTGRES])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    if request.param == "sqlite":
        return InFile(tmp_path / "runs.db")
    return InSchema(request.getfixturevalue("postgres"))


ROOT_X = type(ROOT)(run_id="x", act="app")


@action(reads=["item"], writes=["out"])
async def same(item: Any) -> Any:
    return item


outs = fan_out(same, over="items", key=str, into="outs")


# -- what is nested, and what is large --


def nested(depth: int) -> Any:
    return reduce(lambda inner, _: [inner], range(depth), 1)


def all_operations(value: object) -> tuple[Operation, ...]:
    return (
        Set("set", value),
        Extend("extend", (1, value)),
        Put("put", "key", value, 1.5),
        PutWithin("within", "key", 2, value, math.inf, 0.0),
        Increment("increment", 3),
        Drop("drop"),
    )


@anyio_test
async def test_a_value_is_nested_no_deeper_because_of_what_is_around_it(kept: Kept):
    whole = Update(1, "step", all_operations(nested(100)), (nested(100), 2), 7)
    each = [
        Update(number, "step", (operation,))
        for number, operation in enumerate(all_operations(nested(98)), 2)
    ]
    store = kept.store()
    async with claimed(store):
        await save(store, updates=(whole, *each))
        for too_deep, place in zip(all_operations(nested(101)), PLACES, strict=False):
            with pytest.raises(NotEncodable, match="nested more than 100 levels deep") as refused:
                await save(store, updates=(Update(8, "step", (too_deep,)),))
            assert refused.value.path.startswith(place)
        with pytest.raises(NotEncodable) as refused:
            await save(store, updates=(whole._replace(number=8, discovered=(nested(101),)),))
        assert refused.value.path.startswith("what grow returned[0][0]")
    assert await kept.store().read(ROOT) == [whole, *each]


PLACES = (
    "state['set'][0]",
    "state['extend'][1][0]",
    "state['put']['key'][0]",
    "state['within']['key'][2][0]",
)


@action(writes=["out"])
async def asking(context: Context) -> Any:
    return await context.ask("name", "?")


@anyio_test
async def test_an_answer_that_is_too_large_is_refused_as_one(kept: Kept):
    assert (await Application(asking, store=kept.store()).run(id="x")).status == "halted"
    app = Application(asking, store=kept.store(max_update=300))
    with pytest.raises(UpdateTooLarge, match=r"^an answer to a question of run x has \d+ bytes"):
        await app.run(id="x", answers={"name": "y" * 400})
    answered = await app.run(id="x", answers={"name": "y"})
    assert answered.state["out"] == "y"


# -- what is not there --


@anyio_test
async def test_of_a_run_that_is_not_there_nothing_is_left(kept: Kept):
    store = kept.store()
    app = Application(outs, store=store)
    async with store:
        for call in (app.fork, app.retry_failed):
            with pytest.raises(UnknownRun):
                await call("nowhere")
        assert kept.rows("SELECT run_id FROM claims") == []
        for _ in range(2):  # what was saved stays, and so does the count of its claims
            await app.run({"items": [1]}, id="x")
            with pytest.raises(RunConflict):
                await app.run({"items": [2]}, id="x")
    assert kept.rows("SELECT run_id, epoch, execution FROM claims") == [("x", 4, None)]
    assert [run.run_id for run in await store.runs()] == ["x"]


# -- runs of any id --


@anyio_test
@pytest.mark.parametrize("run_id", ["#1", "a\0b", "caf\udce9", "é" * 700], ids=ascii)
async def test_a_run_of_any_id_can_be_forked(kept: Kept, run_id: str):
    store = kept.store()
    app = Application(outs, store=store)
    async with store:
        await app.run({"items": [1, 2]}, id=run_id)
        for _ in range(2):  # the second one is read
            forked = await app.fork(run_id, id="fork")
            assert forked.state["outs"] == {"1": 1, "2": 2}
        assert [(run.run_id, run.forked_from) for run in await store.runs()] == [
            ("fork", run_id),
            (run_id, None),
        ]
    (kept_ids,) = kept.rows("SELECT run_id FROM root_runs WHERE forked_from IS NULL")
    assert kept.rows("SELECT forked_from FROM root_runs WHERE run_id = 'fork'") == [kept_ids]


# -- being open ------------------------------------------------------------------------------------


@anyio_test
async def test_several_runtimes_use_one(kept: Kept):
    store = kept.store()
    app = Application(outs, store=store)

    async def run(number: int) -> None:
        async with Runtime() as runtime:
            result = await runtime.run(app, {"items": [number]}, id=f"run{number}")
            assert result.state["outs"] == {str(number): number}

    async with no_leaks(), anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(run, number)


def test_several_event_loops_use_one(kept: Kept):
    store = kept.store()
    app = Application(outs, store=store)
    failures: list[BaseException] = []

    def live(number: int, backend: Any) -> None:
        try:
            for again in range(3):
                run_id = f"{backend}{number}.{again}"
                result = app.run_sync({"items": [number, "a"]}, id=run_id, backend=backend)
                assert set(result.state["outs"]) == {str(number), "a"}
        except BaseException as error:  # shown below
            failures.append(error)

    threads = [
        threading.Thread(target=live, args=(number, backend))
        for number in range(2)
        for backend in ("asyncio", "trio")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    assert kept.rows("SELECT count(*) FROM root_runs WHERE status = 'succeeded'") == [(12,)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_starts_anew(kept: Kept):
    store = kept.store()
    app = Application(outs, store=store)

    async def main() -> None:
        async with claimed(store):
            await save(store, updates=(update_of(1),))
            child = os.fork()
            if not child:  # here no thread writes, and nothing is claimed
                os._exit(in_the_fork())
            with anyio.fail_after(30):
                ended, status = await anyio.to_thread.run_sync(os.waitpid, child, 0)
            assert (ended, os.waitstatus_to_exitcode(status)) == (child, 0)
            await save(store, updates=(update_of(2),))
            assert list(await store.read(ROOT)) == [update_of(1), update_of(2)]

    def in_the_fork() -> int:
        def work() -> None:  # in a thread without an event loop
            with pytest.raises(
                RunClaimed, match=f"is already running in process {os.getppid()} on"
            ):
                anyio.run(store.claim, "root", "you")
            app.run_sync({"items": [1]}, id="forked")

        try:
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            return 0 if repr(store).endswith("0 runs claimed>") else 1
        except BaseException:
            return 2

    anyio.run(main)
    assert kept.rows("SELECT run_id, status FROM root_runs ORDER BY run_id") == [
        ("forked", "succeeded"),
        ("root", "running"),
    ]


# -- one transaction for many ----------------------------------------------------------------------


@anyio_test
async def test_a_child_that_is_to_blame_fails_alone(kept: Kept):
    """Saves of others that stood in the same transaction are kept."""
    store = kept.store()
    other = HandMadeRun(path=type(ROOT)(run_id="other"))
    async with claimed(store), claimed(store, other):
        with stopped(store):
            bad = child_run("a", elapsed="\ud800")  # which SQLite can't take
            pending = [
                store.save(Batch(HandMadeRun(), (update_of(1),), holder="me")),
                store.save(Batch(HandMadeRun(), unapplied=(bad,), holder="me")),
                store.save(Batch(other, (update_of(1),), holder="me")),
            ]
        for one, fails in zip(pending, (False, True, False), strict=True):
            assert one is not None
            if fails:
                with pytest.raises(UnicodeEncodeError):
                    await one
            else:
                await one
        assert list(await store.read(ROOT)) == [update_of(1)]
        assert list(await store.children(ROOT)) == []
        assert list(await store.read(other.path)) == [update_of(1)]


@anyio_test
async def test_what_is_saved_meanwhile_stands_in_one_transaction(kept: Kept):
    store = kept.store()
    async with claimed(store):
        with stopped(store) as sizes:
            pending = [
                store.save(Batch(HandMadeRun(), (update_of(n),), holder="me")) for n in range(1, 9)
            ]
        for one in pending:
            assert one is not None
            await one
        assert sizes == [1, 8], "one held up the thread; eight have waited"
        assert list(await store.read(ROOT)) == [update_of(n) for n in range(1, 9)]


# -- durability ------------------------------------------------------------------------------------


@anyio_test
@pytest.mark.parametrize("durability", ["relaxed", "end"])
async def test_nobody_waits_for_saves_but_at_the_end(kept: Kept, durability: Any):
    store = kept.store(durability=durability, window=1000)
    async with claimed(store):
        assert store.save(Batch(HandMadeRun(), (update_of(1),), holder="me")) is None
        assert kept.rows("SELECT count(*) FROM history") == [(0,)]
        assert list(await store.read(ROOT)) == [update_of(1)], "who asks the store knows it"
        assert store.save(Batch(HandMadeRun(), (update_of(2),), holder="me")) is None
        assert kept.rows("SELECT count(*) FROM history") == [(1,)]
        await save(store, HandMadeRun(status="succeeded"), ended="succeeded")
        assert kept.rows("SELECT status FROM root_runs") == [("succeeded",)]
        assert kept.rows("SELECT count(*) FROM history") == [(2,)]


@anyio_test
async def test_relaxed_saves_are_written_within_the_window(kept: Kept):
    store = kept.store(durability="relaxed", window=0.02)
    async with claimed(store):
        assert store.save(Batch(HandMadeRun(), (update_of(1),), holder="me")) is None
        until = time.monotonic() + 20
        while kept.rows("SELECT count(*) FROM history") != [(1,)]:
            assert time.monotonic() < until
            await anyio.to_thread.run_sync(time.sleep, 0.005)


@anyio_test
async def test_too_many_saves_left_for_later_are_waited_for(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_writer, "MOST_JOBS", 3)
    store = kept.store(durability="end")
    async with claimed(store):
        pending = [
            store.save(Batch(HandMadeRun(), (update_of(n),), holder="me")) for n in range(1, 9)
        ]
        assert [one for one in pending if one is not None]
        for one in pending:
            if one is not None:
                await one


@anyio_test
async def test_what_changes_after_the_save_is_kept_as_it_was(kept: Kept):
    store = kept.store()
    value = [1, 2]
    async with claimed(store):
        with stopped(store):
            run = child_run("a", value=value)
            pending = store.save(Batch(HandMadeRun(), unapplied=(run,), holder="me"))
            value.append(3)
        assert pending is not None
        await pending
        (record,) = await store.children(ROOT)
        assert record.value == [1, 2]


# -- leases ----------------------------------------------------------------------------------------


def sleeping_process() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


async def left_behind(kept: Kept, store: DurableStore, **holder: object) -> None:
    """Claim a run, and have it that another process has done so, of which nothing is heard."""
    await store.claim("root", "them")
    kept.rows(f"UPDATE claims SET {', '.join(f'{name} = ?' for name in holder)}", *holder.values())


@anyio_test
async def test_a_run_of_a_process_that_is_gone_is_taken_over_at_once(kept: Kept):
    process = await anyio.to_thread.run_sync(sleeping_process)
    with process:
        started = await anyio.to_thread.run_sync(_holders._started, process.pid)
        store = kept.store()
        await left_behind(kept, store, pid=process.pid, started=started)
        with pytest.raises(
            RunClaimed, match=f"is already running in process {process.pid} on .* expires at"
        ):
            await kept.store().claim("root", "me")
        process.kill()
        await anyio.to_thread.run_sync(process.wait)
    other = kept.store()
    await other.claim("root", "me")
    with pytest.raises(LeaseLost, match="run root was taken over by another execution"):
        await save(store, holder="them")
    await save(other, begun=BEGINNING)
    await store.release("root", "them")
    await save(other, updates=(update_of(1),))
    await other.release("root", "me")


@anyio_test
async def test_a_process_that_has_the_number_of_another_one_is_not_that(kept: Kept):
    store = kept.store()
    await left_behind(kept, store, started="12")
    other = kept.store()
    await other.claim("root", "me")
    await other.release("root", "me")
    await store.release("root", "them")


@anyio_test
@pytest.mark.parametrize("by_us", [False, True])
async def test_elsewhere_its_lease_has_to_run_out(kept: Kept, by_us: bool):
    """A process that can't be looked at: on another machine, or in another container."""
    store, other = kept.store(heartbeat=14), kept.store()
    boot = _holders.current_holder().boot if by_us else "another boot/pid:[1]"
    await left_behind(kept, store, pid=os.getpid() if by_us else 1, boot=boot, host="far")
    with pytest.raises(RunClaimed, match=r"is already running in process .* on far"):
        await other.claim("root", "me")
    kept.shorten_leases(10)
    with pytest.raises(RunClaimed):
        await other.claim("root", "me")
    kept.shorten_leases(5.1)
    await other.claim("root", "me")
    with pytest.raises(LeaseLost):
        await save(store, holder="them")
    await other.release("root", "me")
    await store.release("root", "them")


@anyio_test
async def test_the_thread_gives_signs_of_life_though_the_loop_is_blocked(kept: Kept):
    store, other = kept.store(lease=0.6, heartbeat=0.02), kept.store()
    await store.claim("root", "them")
    seen = {kept.rows("SELECT seen_at FROM claims")[0][0]}
    until = time.monotonic() + 20
    while len(seen) < 4:  # all the time this very loop does nothing else
        assert time.monotonic() < until
        seen.add(kept.rows("SELECT seen_at FROM claims")[0][0])
    with pytest.raises(RunClaimed):
        await other.claim("root", "me")
    await store.release("root", "them")


@anyio_test
async def test_a_claim_that_was_lost_is_noticed_by_its_sign_of_life(kept: Kept):
    store = kept.store(lease=1, heartbeat=0.01)
    await store.claim("root", "them")
    kept.rows("UPDATE claims SET epoch = ?", 7)
    claim = store._claims["root", "them"]
    until = time.monotonic() + 20
    while not claim.lost:
        assert time.monotonic() < until
        await anyio.to_thread.run_sync(time.sleep, 0.005)
    with pytest.raises(LeaseLost):
        store.save(Batch(HandMadeRun(), (update_of(1),), holder="them"))
    await store.release("root", "them")
    assert kept.rows("SELECT epoch, execution FROM claims") == [(7, "them")]


@anyio_test
async def test_leases_that_are_not_renewed_are_logged_once(
    kept: Kept, caplog: pytest.LogCaptureFixture
):
    store = kept.store(lease=60, heartbeat=0.01)
    await store.claim("root", "them")
    missed: list[int] = []

    def fails() -> list[Any]:
        missed.append(1)
        raise StoreFailed("the disk is full")

    assert store._writer is not None
    store._writer._database._beat = fails
    until = time.monotonic() + 20
    while len(missed) < 3:
        assert time.monotonic() < until
        await anyio.to_thread.run_sync(time.sleep, 0.005)
    (record,) = [one for one in caplog.records if "leases" in one.message]
    assert "could not renew the leases on 1 runs under way: the disk is full" in record.message
    assert "if that fails for 60 s" in record.message
    await store.release("root", "them")


@anyio_test
async def test_a_save_of_an_older_claim_is_refused_in_its_own_transaction(kept: Kept):
    """However the execution has come to think that it still has the run."""
    store, other = kept.store(), kept.store()
    async with claimed(store):
        await save(store, updates=(update_of(1),))
        with stopped(store):
            late = [store.save(Batch(HandMadeRun(), (update_of(n),), holder="me")) for n in (2, 3)]
            kept.rows("UPDATE claims SET started = ?", "12")
            await other.claim("root", "you")
            for number in (2, 3):  # as often as the first one has
                await save(other, updates=(update_of(number, "other"),), holder="you")
        for one in late:
            assert one is not None
            with pytest.raises(LeaseLost):
                await one
        await other.release("root", "you")
    assert list(await store.read(ROOT)) == [
        update_of(1),
        update_of(2, "other"),
        update_of(3, "other"),
    ]


@anyio_test
async def test_an_execution_that_has_lost_its_run_publishes_nothing_more(kept: Kept):
    store = kept.store()
    hook = RecordingHook()

    @action(reads=["item"], writes=["out"])
    async def lose(item: int) -> int:
        if item == 1:
            await anyio.to_thread.run_sync(kept.rows, "UPDATE claims SET epoch = 7")
        return item

    app = Application(
        Graph.chain(fan_out(lose, over="items", key=int, into="outs"), same.bind(name="after")),
        store=store,
        hooks=[hook],
    )
    async with no_leaks():
        with pytest.raises(LeaseLost):
            await app.run({"items": range(5), "item": 1}, id="x")
    hook.assert_paired()
    updates = [one for one in hook.events if isinstance(one, StateUpdated) and not one.depth]
    saved = [one for one in await store.read(ROOT_X) if isinstance(one, Update)]
    assert [one.update for one in updates] == saved
    ended = [one.outcome for one in hook.events if isinstance(one, ChildEnded)]
    assert sum(isinstance(one, Done) for one in ended) == len(saved) - 1
    assert len(ended) == len(saved) - 1 + sum("could not be saved" in str(one) for one in ended)
    assert kept.rows("SELECT status FROM root_runs") == [("running",)]


# -- processes -------------------------------------------------------------------------------------


PROGRAM = """
    import sys, time, signal, os, threading
    import anyio
    from shoal import Application, PostgresStore, SQLiteStore, action, fan_out, Limits

    role = sys.argv[1]

    @action(reads=["item"], writes=["out"], executor="loop")
    async def work(item: int) -> str:
        if role == "stops" and item == 3:
            with between_saves:
                print("stopping", flush=True)
                os.kill(os.getpid(), signal.SIGSTOP)
                time.sleep(0.1)  # it need not stop in this very thread
        if role == "dies" and item == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return f"{role} {item}"

    store = {class_}({arguments}, lease=60, heartbeat=0.2)
    between_saves = threading.Lock()
    opened = store._database

    def database():
        # It is not stopped within a transaction, which would keep all others from writing.
        database = opened()
        do = database.do

        def whole(jobs):
            with between_saves:
                yield from do(jobs)

        database.do = whole
        return database

    store._database = database
    act = fan_out(work, over="items", key=int, into="outs", limits=Limits(1))
    app = Application(act, store=store, name="app")
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        result = app.run_sync({"items": list(range(6))}, id="x")
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    else:
        print(dict(result.state["outs"]), flush=True)
"""


@contextmanager
def process(kept: Kept, role: str) -> Generator[subprocess.Popen[str]]:
    class_, arguments = kept.code
    program = dedent(PROGRAM).replace("{class_}", class_).replace("{arguments}", arguments)
    command = [sys.executable, "-c", program, role]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as started:
        assert started.stdout is not None
        try:
            assert started.stdout.readline() == "ready\n"
            yield started
        finally:
            if started.poll() is None:
                started.kill()


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("kept", ["sqlite", SLOWLY], indirect=True)
def test_what_a_killed_process_has_done_is_not_done_again(kept: Kept):
    with process(kept, "dies") as first, process(kept, "second") as second:
        begin(first)
        assert first.wait(30) == -signal.SIGKILL
        begin(second)
        before = [f"{item}: 'dies {item}'" for item in range(3)]
        after = [f"{item}: 'second {item}'" for item in range(3, 6)]
        assert said(second) == "{" + ", ".join(before + after) + "}", "and at once"


def test_a_process_that_was_stopped_past_its_lease_saves_nothing_more(kept: Kept):
    with process(kept, "stops") as first, process(kept, "second") as second:
        with process(kept, "early") as early:
            begin(first)
            assert said(first) == "stopping"
            begin(early)
            answer = said(early)
            assert answer.startswith(
                f"RunClaimed run x is already running in process {first.pid} on"
            ), answer
        kept.shorten_leases(100)  # so it has run out
        begin(second)
        outs = said(second)
        assert "'stops 2'" in outs
        assert "'second 3'" in outs
        before = kept.rows("SELECT * FROM runs"), kept.rows("SELECT * FROM history")
        first.send_signal(signal.SIGCONT)
        assert said(first).startswith("LeaseLost run x was taken over")
        first.wait(30)
        after = kept.rows("SELECT * FROM runs"), kept.rows("SELECT * FROM history")
        assert after == before


@pytest.mark.parametrize("kept", ["sqlite", SLOWLY], indirect=True)
def test_of_two_processes_that_resume_one_run_one_wins(kept: Kept):
    with process(kept, "dies") as first:
        begin(first)
        first.wait(30)
    with process(kept, "a") as a, process(kept, "b") as b:
        begin(a)
        begin(b)
        answers = sorted((said(a), said(b)))
    claimed_ = [one for one in answers if one.startswith("RunClaimed")]
    finished = [one for one in answers if one.startswith("{0: 'dies 0'")]
    assert len(finished) + len(claimed_) == 2
    assert finished, "one wins; the other is refused, or finds it done"


# -- children that have begun ----------------------------------------------------------------------


def numbers_of(entries: Sequence[object]) -> list[int]:
    return [one.number for one in entries if isinstance(one, Update)]


@anyio_test
async def test_what_another_process_made_of_a_child_outlives_its_next_row(kept: Kept):
    one, other = kept.store(), kept.store()
    async with one:
        async with claimed(one):
            await save(one, child_run("a", status=None))
        async with claimed(other, begin=False):
            await save(other, updates=(update_of(1),), applied=(child_run("a"),))
        async with claimed(one, begin=False):
            await save(one, updates=(update_of(2),), applied=(child_run("a"),))
            assert numbers_of(await one.read(ROOT)) == [1, 2]


@anyio_test
async def test_a_row_with_the_number_of_one_that_was_deleted_is_another(kept: Kept):
    store = kept.store()
    async with claimed(store):
        child = child_run("a", status=None)
        await save(store, child)
        await save(store, child_run("b", parent=child.path, status=None))
        await save(store, child, afresh=True)
        for number in (1, 2):
            ended = child_run("c", parent=child.path)
            await save(store, child, updates=(update_of(number),), applied=(ended,))
        assert numbers_of(await store.read(child.path)) == [1, 2]


@anyio_test
async def test_of_a_child_that_has_begun_crashes_are_counted(kept: Kept):
    store = kept.store()
    async with claimed(store):
        for crashes in (0, 1, 1, 2, 0):
            await save(store, child_run("a", status=None, crashes=crashes))
            (record,) = await store.children(ROOT)
            assert record.crashes == crashes


# -- what is remembered of rows --------------------------------------------------------------------


async def keep_child(store: DurableStore, run_id: str, key: str, *below: str) -> None:
    """Save a child that is under way, and children of it."""
    child = child_run(key, parent=RunPath(run_id=run_id, act="app"), status=None)
    await save(store, child)
    for one in below:
        await save(store, child_run(one, parent=child.path, status=None))


async def end_grandchildren(store: DurableStore, path: RunPath, *keys: str) -> None:
    """Save how some children of a child ended; each has come to its key."""
    ended = [child_run(key, parent=path, value=f"of {key}") for key in keys]
    updates = [update_of(number) for number in range(1, 1 + len(keys))]
    child = HandMadeRun(path=path, element="x")
    await save(store, child, updates=updates, applied=ended)


async def values_of(store: DurableStore, path: RunPath) -> dict[object, object]:
    return {record.key: record.value for record in await store.children(path)}


@anyio_test
async def test_what_another_process_made_anew_is_not_taken_for_what_it_was(kept: Kept):
    """Numbers of rows that it has deleted come up again, as those of siblings."""
    one, other = kept.store(), kept.store()
    child = child_run("x", status=None)
    async with one:
        async with claimed(one):
            await keep_child(one, "root", "x", "a", "b")
        async with claimed(other, begin=False):
            await save(other, child, afresh=True)
            await keep_child(other, "root", "x", "b", "a")
        async with claimed(one, begin=False):
            await end_grandchildren(one, child.path, "a", "b")
        assert await values_of(other, child.path) == {"a": "of a", "b": "of b"}


@anyio_test
async def test_rows_of_a_run_that_was_deleted_are_not_taken_for_those_of_one_under_way(kept: Kept):
    """Another process deletes it, and the numbers of its rows come up again as the other run's."""
    store, other = kept.store(), kept.store()
    async with store, claimed(store):
        async with claimed(store, HandMadeRun(path=ROOT_X)):
            await keep_child(store, "x", "old", "a", "b")
            await save(store, HandMadeRun(path=ROOT_X), ended="succeeded")
        assert await other.prune(0) == 1
        for key in ("p", "q"):
            await keep_child(store, "root", key)
        for key in ("p", "q"):
            path = child_run(key).path
            for grandchild in "ba":
                await save(store, child_run(grandchild, parent=path, status=None))
            await end_grandchildren(store, path, "a", "b")
        for key in ("p", "q"):
            assert await values_of(store, child_run(key).path) == {"a": "of a", "b": "of b"}


@anyio_test
async def test_what_a_failed_transaction_has_written_is_not_remembered(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
):
    """Not even where the run was given back in it, or right behind it."""
    store = kept.store()
    await store.claim("root", "me")
    async with store:
        await save(store, begun=BEGINNING)
        assert store._writer is not None
        data = store._writer._database
        fails = [True]
        commit = data._commit

        def failing(jobs: Sequence[Any]) -> None:
            if fails and len(jobs) > 1:
                fails.clear()
                raise RuntimeError("once")
            commit(jobs)

        monkeypatch.setattr(data, "_commit", failing)
        children = [child_run(key, status=None) for key in "xy"]
        async with anyio.create_task_group() as tasks:
            with stopped(store):
                saved = [store.save(Batch(child, holder="me")) for child in children]
                tasks.start_soon(store.release, "root", "me")
                for _ in range(3):  # until it has asked for that
                    await checkpoint()
            for pending in saved:
                assert pending is not None
                await pending
        assert not fails
        assert [record.key for record in await store.children(ROOT)] == ["x", "y"]


@anyio_test
async def test_a_run_that_could_not_be_given_back_is_free_when_its_lease_has_run_out(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
):
    """Nobody executes it, so there is nothing to give signs of life of."""
    store, other = kept.store(lease=0.4, heartbeat=0.02), kept.store()
    async with store:
        await store.claim("root", "me")
        await save(store, begun=BEGINNING)

        def refuse(*_: object) -> None:
            raise RuntimeError("it can't be written to")

        assert store._writer is not None
        with monkeypatch.context() as patch:
            for name in ("release", "_discard"):
                patch.setattr(store._writer._database, name, refuse)
            with pytest.raises(RuntimeError):
                await store.release("root", "me")
        until = time.monotonic() + 20
        while True:
            try:
                await other.claim("root", "you")
            except RunClaimed:
                assert time.monotonic() < until
                await anyio.to_thread.run_sync(time.sleep, 0.02)
            else:
                break
        await other.release("root", "you")


ODD = ("half \ud800", "nul \0")


@anyio_test
@pytest.mark.parametrize("odd", ODD, ids=["half", "nul"])
async def test_an_odd_name_fails_the_save_that_holds_it_and_no_other_one(kept: Kept, odd: str):
    """Before it reaches the writer, where it would fail what others save in the same moment."""
    store = kept.store()
    beginning = replace(BEGINNING, application=odd), replace(BEGINNING, version=odd)
    child = child_run("x", step=odd), child_run("x", act=odd)
    batches = [
        *(Batch(HandMadeRun(), begun=one, holder="me") for one in beginning),
        *(Batch(HandMadeRun(), unapplied=[one], holder="me") for one in child),
        Batch(HandMadeRun(), (update_of(1, odd),), holder="me"),
        Batch(HandMadeRun(), step_completed=odd, holder="me"),
        Batch(child_run("y", status=None, step=odd), holder="me"),
    ]
    async with store, claimed(store):
        for batch in batches:
            with pytest.raises(NotEncodable, match=r"the name .* databases can't store in names"):
                store.save(batch)
        await save(store, updates=(update_of(1),), unapplied=[child_run(odd, value=odd)])
        (record,) = await store.children(ROOT)
        assert (record.key, record.value) == (odd, odd)


@anyio_test
@pytest.mark.parametrize("odd", ODD, ids=["half", "nul"])
async def test_what_clients_send_may_hold_any_letters(kept: Kept, odd: str):
    @action(reads=["item"], writes=["out"])
    async def same(item: str) -> str:
        if item == odd:
            raise ValueError(odd)
        return item + odd

    act = fan_out(same, over="items", key=str, into="outs", on_error="collect", errors_into="bad")
    app = Application(act, store=kept.store())
    items = [odd, f"{odd} and more"]
    result = await app.run({"items": items, odd: odd}, id=odd)
    again = await app.run(id=odd)
    for one in (result, again):
        assert dict(one.state["outs"]) == {items[1]: items[1] + odd}
        assert [*one.state["bad"]] == [odd]
        assert one.state[odd] == odd
