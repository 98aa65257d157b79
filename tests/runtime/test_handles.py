"""Runs that outlive who has started them: handles, followers, draining, and what is left behind."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from shoal import (
    Application,
    Context,
    Draining,
    Graph,
    Hook,
    Limits,
    MemoryStore,
    Rate,
    Result,
    RunCancelled,
    RunClaimed,
    RunConflict,
    RunHandle,
    Runtime,
    StoreFailed,
    action,
    fan_out,
)
from shoal._runtime import recovery as _recovery
from shoal.errors import BadUse, DefinitionError
from shoal.events import ChildEnded, Event, Item, Missed, RunEnded, StateUpdated, StepStarted
from shoal.stores import Batch
from shoal.testing import RecordingHook, no_leaks
from shoal.types import RunEvents

pytestmark = pytest.mark.anyio

ran = list[str]()


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@action(reads=["item"], writes=["out"])
async def leaf(item: float) -> float:
    ran.append(f"{item}")
    await anyio.sleep(item)
    return 2 * item


@action(reads=["item"], writes=["out"])
async def fails(item: float) -> float:
    await anyio.sleep(item)
    raise LookupError(item)


@action(reads=["item"], writes=["out"])
async def leaves(item: float) -> float:
    await anyio.sleep(item)
    raise SystemExit(int(item))


@action(writes=["name"])
async def greet(context: Context) -> str:
    return await context.ask("name", "who are you?")


app = Application(leaf, name="app")
failing = Application(fails, name="failing")
leaving = Application(leaves, name="leaving")
many = Application(fan_out(leaf, over="items", item="item", key=str, into="outs"), name="many")


async def read_all(events: RunEvents, into: list[Event]) -> None:
    into += [event async for event in events]


async def all_of(run: RunHandle[Any], into: list[Event], **options: Any) -> None:
    with run.events(**options) as events:
        await read_all(events, into)


# -- starting --------------------------------------------------------------------------------------


async def test_a_started_run_goes_on_when_its_starter_is_cancelled():
    run: Any = None
    async with no_leaks(), Runtime() as runtime:
        with anyio.move_on_after(0.5) as scope:
            run = await runtime.start(app, {"item": 1}, id="x")
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert (run.run_id, run.application, run.status) == ("x", "app", None)
        assert repr(run) == "<RunHandle x: running>"
        result = await run.result()
        assert anyio.current_time() == pytest.approx(scope.deadline + 0.5)
        assert result.state["out"] == run.state["out"] == 2
        assert (run.status, run.number, run.error, run.reason) == ("succeeded", 1, None, "")


async def test_the_block_awaits_what_was_started_in_it():
    async with no_leaks():
        began = anyio.current_time()
        async with Runtime() as runtime:
            run = await runtime.start(app, {"item": 3})
        assert anyio.current_time() - began == pytest.approx(3)
        assert run.status == "succeeded"


async def test_no_deadline_of_its_starter_is_its_own():
    deadlines: list[float] = []

    @action(writes=["out"])
    async def look(context: Context) -> int:
        deadlines.append(context.deadline)
        return 1

    async with Runtime() as runtime:
        with anyio.move_on_after(5):
            await (await runtime.start(Application(look))).result()
    assert deadlines == [float("inf")]


async def test_one_that_fails_does_nothing_to_the_others():
    async with no_leaks(), Runtime() as runtime:
        well = await runtime.start(app, {"item": 2})
        bad = await runtime.start(failing, {"item": 1})
        assert await bad.wait_ended() == "failed"
        for _ in range(2):
            with pytest.raises(LookupError) as raised:
                await bad.result()
            assert raised.value is bad.error
        assert runtime.healthy
        assert (await runtime.run(app, {"item": 0})).state["out"] == 0
        assert await well.wait_ended() == "succeeded"


async def test_it_is_cancelled_for_a_reason():
    async with no_leaks(), Runtime() as runtime:
        run = await runtime.start(app, {"item": 5})
        await anyio.sleep(1)
        run.cancel("enough")
        run.cancel("more than enough")
        assert await run.wait_ended() == "cancelled"
        assert run.reason == "enough"
        with pytest.raises(RunCancelled, match="enough"):
            await run.result()
        with pytest.raises(TypeError, match="takes a string"):
            run.cancel(1)  # pyright: ignore[reportArgumentType]


async def test_one_of_its_children_is_cancelled():
    async with Runtime() as runtime:
        run = await runtime.start(many, {"items": [1, 2]})
        await anyio.sleep(0.5)
        assert run.cancel_child("1", "not that one")
        assert not run.cancel_child("3", "nor that")
        assert (await run.result()).state["outs"] == {"2": 4}


async def test_waiting_is_cancelled_and_the_run_goes_on():
    async with Runtime() as runtime:
        run = await runtime.start(app, {"item": 2})
        for wait in (run.wait_ended, run.result):
            with anyio.move_on_after(0.5) as scope:
                await wait()
            assert scope.cancelled_caught
        assert await run.wait_ended() == "succeeded"


def slow_store() -> MemoryStore:
    """Return one that takes a second to say what it has."""
    store = MemoryStore()
    load = store.load

    async def load_slowly(run_id: str) -> Any:
        await anyio.sleep(1)
        return await load(run_id)

    store.load = load_slowly
    return store


async def test_its_beginning_is_saved_when_it_is_started():
    store = slow_store()
    async with Runtime(store=store) as runtime:
        began = anyio.current_time()
        run = await runtime.start(app, {"item": 3}, id="x")
        assert anyio.current_time() - began == pytest.approx(1)
        assert [one.run_id for one in await store.runs()] == ["x"]
        assert run.status is None


async def test_cancelled_before_it_has_begun_it_is_cancelled():
    store = slow_store()
    async with no_leaks(), Runtime(store=store) as runtime:
        with anyio.move_on_after(0.5):
            await runtime.start(app, {"item": 3}, id="x")
        assert runtime.runs() == []
        assert ran == []
        assert await store.runs() == []
        assert (await runtime.run(app, {"item": 0}, id="x")).state["out"] == 0, "it is free again"


async def test_what_can_not_begin_is_raised_where_it_is_started():
    async with no_leaks(), Runtime(store=MemoryStore()) as runtime:
        first = await runtime.start(app, {"item": 1}, id="x")
        with pytest.raises(RunClaimed):
            await runtime.start(app, {"item": 1}, id="x")
        await first.wait_ended()
        with pytest.raises(RunConflict):
            await runtime.start(app, {"item": 2}, id="x")
        again = await runtime.start(app, id="x")
        assert (await again.result()).state["out"] == 2
        assert ran == ["1"]


async def test_runs_are_found_while_they_go_on():
    async with Runtime() as runtime:
        started = await runtime.start(app, {"item": 2}, id="started")
        async with app.open({"item": 5}, id="opened", runtime=runtime):
            assert [run.run_id for run in runtime.runs()] == ["started", "opened"]
            found = runtime.find("started")
            assert found is not None
            assert found.cancel("found") is None
            assert await started.wait_ended() == "cancelled"
            assert runtime.find("started") is None
            assert runtime.find("never") is None
        assert runtime.runs() == []


def same_run(found: RunHandle[Any] | None, run: RunHandle[Any]) -> bool:
    return found is not None and found._root is run._root


@pytest.mark.parametrize("ends_first", ["earlier", "later"])
async def test_of_two_with_one_id_the_earlier_is_found_and_then_the_other(ends_first: str):
    seconds = {"earlier": 1, "later": 3} if ends_first == "earlier" else {"earlier": 3, "later": 1}
    async with Runtime() as runtime:
        earlier = await runtime.start(app, {"item": seconds["earlier"]}, id="x")
        later = await runtime.start(app, {"item": seconds["later"]}, id="x")
        assert same_run(runtime.find("x"), earlier)
        assert all(map(same_run, runtime.runs(), (earlier, later)))
        await anyio.sleep(2)
        remains = later if ends_first == "earlier" else earlier
        (only,) = runtime.runs()
        assert same_run(only, remains)
        assert same_run(runtime.find("x"), remains)


async def test_a_start_that_is_refused_hides_nobody():
    async with no_leaks(), Runtime(store=MemoryStore()) as runtime:
        run = await runtime.start(app, {"item": 5}, id="x")
        with pytest.raises(RunClaimed):
            await runtime.start(app, {"item": 5}, id="x")
        (found,) = runtime.runs()
        assert same_run(found, run)
        assert same_run(runtime.find("x"), run)
        found.cancel("found")
        assert await run.wait_ended() == "cancelled"


async def test_a_halted_run_is_answered():
    greeting = Application(greet)
    async with Runtime(store=MemoryStore()) as runtime:
        run = await runtime.start(greeting, id="x")
        assert await run.wait_ended() == "halted"
        assert [one.question for one in run.questions] == ["who are you?"]
        assert (await run.result()).status == "halted"
        run = await runtime.start(greeting, id="x", answers={"name": "shoal"})
        assert (await run.result()).state["name"] == "shoal"
        assert run.questions == ()
        halting = Application(Graph.chain(leaf, fails))
        run = await runtime.start(halting, {"item": 0}, halt_after=["leaf"])
        assert await run.wait_ended() == "halted"


# -- following -------------------------------------------------------------------------------------


async def test_any_number_of_followers_read_all_of_it():
    early, early_too, late = list[Event](), list[Event](), list[Event]()
    async with no_leaks(), Runtime() as runtime:
        run = await runtime.start(many, {"items": [1, 2]})
        with run.events() as some, run.events() as others:  # both from the same moment on
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read_all, some, early)
                tasks.start_soon(read_all, others, early_too)
                await anyio.sleep(1.5)
                tasks.start_soon(all_of, run, late)
    assert early == early_too
    assert late == early[-len(late) :]
    assert [event.outcome.key for event in early if isinstance(event, ChildEnded)] == ["1", "2"]
    assert [event.outcome.key for event in late if isinstance(event, ChildEnded)] == ["2"]
    assert isinstance(early[-1], RunEnded)


@action(reads=["item"], writes=["out"])
async def streams(item: int) -> AsyncGenerator[int | Result[int]]:
    for n in range(item):
        await anyio.sleep(1)
        yield n
    yield Result(item)


@action(reads=["item"], writes=["out"])
async def emits(item: int, context: Context) -> int:
    for n in range(item):
        await anyio.sleep(1)
        await context.emit(n)
    return item


@pytest.mark.parametrize("act", [streams, emits])
async def test_a_reader_that_comes_while_an_action_is_at_work_receives_its_items(act: Any):
    early, late = list[Event](), list[Event]()
    async with no_leaks(), Runtime() as runtime, anyio.create_task_group() as tasks:
        run = await runtime.start(Application(act), {"item": 4})
        await anyio.sleep(0.5)
        tasks.start_soon(all_of, run, early)
        await anyio.sleep(2)
        tasks.start_soon(all_of, run, late)
    assert [event.item for event in early if isinstance(event, Item)] == [0, 1, 2, 3]
    assert [(event.item, event.index) for event in late if isinstance(event, Item)] == [
        (2, 2),
        (3, 3),
    ]


async def test_followers_receive_events_of_children_with_hooks_of_their_own():
    own, followed = RecordingHook(), list[Event]()
    act = fan_out(leaf, over="items", item="item", key=str, into="outs", hooks=[own])
    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        run = await runtime.start(Application(act), {"items": [1, 2]})
        await anyio.sleep(0.5)  # the fan-out has begun
        tasks.start_soon(all_of, run, followed)
    depths = {event.depth for event in followed if isinstance(event, RunEnded)}
    assert depths == {0, 1}


async def test_a_slow_follower_loses_the_oldest_and_holds_nobody_back():
    began = anyio.current_time()
    async with no_leaks(), Runtime() as runtime:
        run = await runtime.start(many, {"items": [0.1 * n for n in range(20)]})
        with run.events(buffer=3) as events:
            await run.wait_ended()
            read = [event async for event in events]
        again = await runtime.start(many, {"items": [0.1 * n for n in range(20)]})
        with again.events(buffer=1) as events:
            async for _ in events:
                await anyio.sleep(1)
                if again.status is not None:
                    break
        assert anyio.current_time() - began == pytest.approx(4, abs=0.5)
    assert isinstance(read[0], Missed)
    assert read[0].count > 20
    assert len(read) == 4
    assert isinstance(read[-1], RunEnded)


async def test_a_follower_that_has_left_receives_nothing_and_costs_nothing():
    async with Runtime() as runtime:
        run = await runtime.start(many, {"items": [1]})
        hooks = run._root._execution.hooks
        assert not hooks.listening
        with run.events() as events:
            assert hooks.listening
            assert isinstance(await anext(events), Event)
        assert not hooks.listening
        with pytest.raises(BadUse, match="block was left"):
            await anext(events)
        assert await run.wait_ended() == "succeeded"


async def test_events_end_however_the_run_does():
    cancelled, failed, after = list[Event](), list[Event](), list[Event]()
    async with Runtime() as runtime:
        first = await runtime.start(app, {"item": 5})
        second = await runtime.start(failing, {"item": 1})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(all_of, first, cancelled)
            tasks.start_soon(all_of, second, failed)
            await second.wait_ended()
            first.cancel("enough")
        await all_of(first, after)
    ends = [event for event in (*cancelled, *failed) if isinstance(event, RunEnded)]
    assert [(end.status, end.reason) for end in ends] == [("cancelled", "enough"), ("failed", "")]
    assert [cancelled[-1], failed[-1]] == ends
    assert after == []


async def test_events_are_ended_from_outside():
    async with Runtime() as runtime:
        run = await runtime.start(many, {"items": [1, 2]})
        with run.events() as events:
            await anyio.sleep(1.5)
            events.end()
            read = [event async for event in events]
        assert any(isinstance(event, StateUpdated) for event in read)
        assert not any(isinstance(event, RunEnded) for event in read if event.depth == 0)
        assert run.status is None


# -- draining --------------------------------------------------------------------------------------


async def test_a_drained_runtime_takes_no_more_runs_and_awaits_those_it_has():
    async with no_leaks(), Runtime() as runtime:
        run = await runtime.start(app, {"item": 2})
        assert (runtime.draining, runtime.healthy) == (False, True)
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.drain)
            await runtime.wait_draining()
            assert (runtime.draining, runtime.healthy) == (True, True)
            for start in (runtime.start, runtime.run):
                with pytest.raises(Draining, match=r"being drained.*another process"):
                    await start(app, {"item": 0})
            with pytest.raises(Draining):
                async with app.open({"item": 0}, runtime=runtime):
                    pass
            assert run.status is None
        assert anyio.current_time() - began == pytest.approx(2)
        assert run.status == "succeeded"


async def test_what_takes_too_long_is_left_to_the_next_process():
    store, hook = MemoryStore(), RecordingHook()
    durable = Application(
        fan_out(leaf, over="items", item="item", key=str, into="outs"), name="durable", hooks=[hook]
    )
    async with no_leaks(), Runtime(store=store) as runtime:
        run = await runtime.start(durable, {"items": [1, 10]}, id="x")
        quick = await runtime.start(durable, {"items": [2]}, id="quick")
        await runtime.drain(within=3)
        assert quick.status == "succeeded"
        assert (run.status, run.reason) == ("cancelled", "the runtime is being drained")
        assert run.is_interrupted
        assert not quick.is_interrupted
    hook.assert_paired()
    assert [one.run_id for one in await store.orphans()] == ["x"]
    ran.clear()
    async with no_leaks(), Runtime(apps=[durable], store=store) as runtime:
        (found,) = await runtime.recover()
        assert found.result.state["outs"] == {"1": 2, "10": 20}
    assert ran == ["10"]


async def test_a_run_that_was_cancelled_by_hand_stays_so():
    store = MemoryStore()

    @action(writes=["out"])
    async def tidy() -> int:
        try:
            await anyio.sleep(9)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)
        return 1

    async with Runtime(store=store) as runtime:
        run = await runtime.start(Application(tidy), id="x")
        await anyio.sleep(1)
        run.cancel("by hand")
        await runtime.drain(within=0)
        assert not run.is_interrupted
    record = await store.load("x")
    assert record is not None
    assert (record.status, record.reason) == ("cancelled", "by hand")


async def test_a_run_that_breaks_as_it_is_interrupted_is_left_to_the_next_process_too():
    store = MemoryStore()

    @action(writes=["out"])
    async def breaks() -> int:
        try:
            await anyio.sleep(9)
        except BaseException as error:
            raise ConnectionError("lost") from error
        return 1

    async with Runtime(store=store) as runtime:
        run = await runtime.start(Application(breaks), id="x")
        await runtime.drain(within=1)
        assert run.status == "failed"
    assert [one.run_id for one in await store.orphans()] == ["x"]


async def test_a_runtime_that_is_closed_leaves_its_runs_to_the_next_process():
    store = MemoryStore()
    with pytest.raises(LookupError):
        async with no_leaks(), Runtime(store=store) as runtime:
            await runtime.start(app, {"item": 9}, id="x")
            raise LookupError
    assert [one.run_id for one in await store.orphans()] == ["x"]


async def test_the_earliest_deadline_counts():
    async with Runtime() as runtime:
        run = await runtime.start(app, {"item": 9})
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.drain, 8)
            await checkpoint()
            await runtime.drain(within=2)
            assert anyio.current_time() - began == pytest.approx(2)
        assert run.status == "cancelled"


async def test_draining_that_is_cancelled_cancels_no_run():
    async with Runtime() as runtime:
        run = await runtime.start(app, {"item": 2})
        with anyio.move_on_after(1):
            await runtime.drain(within=5)
        assert runtime.draining
        assert await run.wait_ended() == "succeeded"


async def test_a_callback_learns_of_draining_unless_it_has_left():
    received = list[str]()
    async with Runtime() as runtime:
        with runtime.on_draining(lambda: received.append("left")):
            pass
        with runtime.on_draining(lambda: received.append("stayed")):
            await runtime.drain()
            await runtime.drain()
        with runtime.on_draining(lambda: received.append("late")):
            pass
    assert received == ["stayed", "late"]


async def test_a_runtime_can_be_opened_again_after_it_was_drained():
    runtime = Runtime()
    for _ in range(2):
        async with runtime:
            assert not runtime.draining
            assert (await runtime.run(app, {"item": 0})).state["out"] == 0
            await runtime.drain()


async def test_a_system_exit_in_a_started_run_is_the_blocks():
    runs, began = list[RunHandle[Any]](), anyio.current_time()
    async with no_leaks():
        with pytest.raises(SystemExit) as raised:
            async with Runtime() as runtime:
                runs.append(await runtime.start(app, {"item": 9}))
                runs.append(await runtime.start(leaving, {"item": 1}))
                await anyio.sleep(5)
    assert anyio.current_time() - began == pytest.approx(1), "the block is cancelled"
    assert raised.value.code == 1
    assert isinstance(runs[1].error, SystemExit)
    assert [run.status for run in runs] == ["cancelled", "cancelled"]


async def test_what_an_extension_module_raises_is_the_runs_alone(caplog: pytest.LogCaptureFixture):
    """It is no Exception, but doesn't end the program either."""

    class Panic(BaseException):
        pass

    @action(writes=["out"])
    async def panics() -> None:
        await anyio.sleep(1)
        raise Panic("at the disco")

    async with no_leaks(), Runtime() as runtime:
        other = await runtime.start(app, {"item": 9})
        run = await runtime.start(Application(panics), id="x")
        with pytest.raises(Panic):
            await run.result()
        assert isinstance(run.error, Panic)
        assert (run.status, run.reason) == ("cancelled", "Panic")
        assert await other.wait_ended() == "succeeded"
    (record,) = caplog.records
    assert "run x was ended by " in record.message
    assert "Panic, no Exception: its result() raises that" in record.message


async def test_it_is_healthy_until_something_of_its_own_fails():
    async def breaks() -> None:
        raise LookupError("of its own")

    runtime = Runtime()
    assert not runtime.healthy
    health = list[bool]()
    with pytest.raises(BaseExceptionGroup):
        async with runtime:
            health.append(runtime.healthy)
            assert runtime._tasks is not None
            runtime._tasks.start_own(breaks)
            try:
                await anyio.sleep(1)
            finally:
                health.append(runtime.healthy)
    assert [*health, runtime.healthy] == [True, False, False]


# -- what dead processes leave ---------------------------------------------------------------------


async def left_behind(*ids: str, item: float = 1) -> MemoryStore:
    """Return what is found after a process has died that ran these."""
    store = found = MemoryStore()
    async with Runtime(store=store) as runtime:
        for run_id in ids:
            await runtime.start(app, {"item": item}, id=run_id)
        found = store.copy()
        await runtime.drain(within=0)
    ran.clear()
    return found


async def kept_recovering(
    runtime: Runtime, body: Callable[[], Awaitable[object]], every: float = 10
) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.keep_recovering, every)
        await body()
        await runtime.drain()


async def test_what_dead_processes_leave_goes_on_again_and_again():
    store = await left_behind("a", "b")
    async with no_leaks(), Runtime(apps=[app], store=store) as runtime:

        async def body() -> None:
            await anyio.sleep(0.5)
            assert sorted(run.run_id for run in runtime.runs()) == ["a", "b"]
            store._roots.update((await left_behind("c"))._roots)
            await anyio.sleep(10)
            assert [run.run_id for run in runtime.runs()] == ["c"]

        await kept_recovering(runtime, body)
    records = [await store.load(run_id) for run_id in "abc"]
    assert [record and record.status for record in records] == ["succeeded"] * 3


async def test_looking_again_starts_nothing_twice(caplog: pytest.LogCaptureFixture):
    store = await left_behind("a", item=30)
    async with Runtime(apps=[app], store=store) as runtime:
        await kept_recovering(runtime, lambda: anyio.sleep(35), every=1)
    assert ran == ["30"]
    assert caplog.records == []


async def test_some_go_on_at_once_and_the_others_after_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_recovery, "AT_ONCE", 2)
    store = await left_behind(*"abcde")
    async with Runtime(apps=[app], store=store) as runtime:

        async def body() -> None:
            for _ in range(3):
                await anyio.sleep(0.9)
                assert 1 <= len(runtime.runs()) <= 2
                await anyio.sleep(0.1)
            await anyio.sleep(0.5)
            assert len(ran) == 5

        await kept_recovering(runtime, body, every=100)


async def test_a_recovery_that_ends_has_cancelled_nothing():
    store = await left_behind("a")
    async with no_leaks(), Runtime(apps=[app], store=store) as runtime:
        with anyio.move_on_after(0.5):
            await runtime.keep_recovering()
        (run,) = runtime.runs()
        assert await run.wait_ended() == "succeeded"


async def test_what_can_not_go_on_is_said_once(caplog: pytest.LogCaptureFixture):
    store = await left_behind("a")
    other = Application(leaf, name="other")
    needy = Application(leaf.bind(), name="app", version="2")
    async with Runtime(apps=[other, needy], store=store) as runtime:
        await kept_recovering(runtime, lambda: anyio.sleep(5), every=1)
    (record,) = caplog.records
    assert "version '1' of application 'app'" in record.getMessage()


async def test_all_runs_of_other_applications_are_reported_once(caplog: pytest.LogCaptureFixture):
    store = await left_behind(*(f"run-{n}" for n in range(150)))  # more than go on at once
    own = Application(leaf, name="own")
    async with no_leaks(), Runtime(store=store) as stopped:
        await stopped.start(own, {"item": 1}, id="mine")
        await stopped.drain(within=0)
    ran.clear()
    newer = Application(leaf, name="app", version="2")
    async with no_leaks(), Runtime(apps=[own, newer], store=store) as runtime:

        async def body() -> None:
            await anyio.sleep(2.5)
            assert ran == ["1"]  # they keep none of its own from going on
            store._roots.update((await left_behind("later"))._roots)
            await anyio.sleep(5)

        await kept_recovering(runtime, body, every=1)
    (record,) = caplog.records
    said = record.getMessage()
    assert "150 of version '1' of application 'app'" in said
    assert "run-0" in said
    assert len(said) < 1000


async def test_a_store_that_does_not_answer_is_asked_again(caplog: pytest.LogCaptureFixture):
    store = await left_behind("a")
    asked = store.orphans
    answers = iter([StoreFailed("gone"), None])

    async def orphans() -> Any:
        if (error := next(answers, None)) is not None:
            raise error
        return await asked()

    store.orphans = orphans
    async with Runtime(apps=[app], store=store) as runtime:
        with caplog.at_level(logging.WARNING):
            await kept_recovering(runtime, lambda: anyio.sleep(5), every=1)
    assert ran == ["1"]
    assert ["gone" in record.getMessage() for record in caplog.records] == [True]


async def drained(runtime: Runtime) -> None:
    await anyio.sleep(1)
    await runtime.drain(within=1)


async def test_draining_ends_the_looking_and_leaves_what_can_not_end():
    store = await left_behind("a", item=100)
    async with no_leaks(), Runtime(apps=[app], store=store) as runtime:
        await kept_recovering(runtime, lambda: drained(runtime))
    assert [one.run_id for one in await store.orphans()] == ["a"]


# -- what it says of itself ------------------------------------------------------------------------


async def test_limits_are_named_after_their_owners():
    limited = leaf.bind()
    shared = fan_out(leaf, over="items", into="outs", item="item", limits=Limits(rate=Rate(9)))
    one = Application(limited, name="one", limits=Limits(2))
    two = Application(shared, name="one", limits=Limits(3))
    async with Runtime(limits=Limits(8)) as runtime:
        assert list(runtime.limiters()) == [""]
        await runtime.run(one, {"item": 0})
        await runtime.run(two, {"items": [0]})
        slots = {name: one.statistics()[0].slots for name, one in runtime.limiters().items()}
        assert slots == {"": 8, "one": 2, "one 2": 3, "outs": None}


async def test_what_is_said_where_it_is_misused():
    runtime = Runtime()
    for use in (runtime.drain, runtime.wait_draining, runtime.keep_recovering):
        with pytest.raises(BadUse, match="not open yet"):
            await use()
    with pytest.raises(BadUse, match="not open yet"):
        await runtime.start(app, {"item": 1})
    async with runtime:
        for within in (-1, float("nan"), "soon"):
            with pytest.raises(BadUse, match="number of seconds"):
                await runtime.drain(within)  # pyright: ignore[reportArgumentType]
        with pytest.raises(BadUse, match="number of seconds above 0"):
            await runtime.keep_recovering(0)
        with pytest.raises(BadUse, match="no applications"):
            await runtime.keep_recovering()
        assert not runtime.can_recover
        run = await runtime.start(app, {"item": 1})
        with pytest.raises(DefinitionError, match="at least 1"), run.events(buffer=0):
            pass


async def test_a_run_whose_end_can_not_be_saved_has_failed_for_the_tasks_that_wait():
    store = MemoryStore()
    save = store.save

    def lose_ends(batch: Batch) -> None:
        if batch.ended is not None:
            raise OSError("full")
        save(batch)

    store.save = lose_ends
    async with no_leaks(), Runtime(store=store) as runtime:
        run = await runtime.start(app, {"item": 0}, id="x")
        with pytest.raises(StoreFailed, match="full"):
            await run.result()
        assert runtime.healthy


class Guard(Hook):
    def on_step_started(self, event: StepStarted) -> None:
        raise ValueError("no")


async def test_a_guard_ends_its_run_and_no_other():
    guarded = Application(leaf, hooks=[Guard()])
    async with no_leaks(), Runtime() as runtime:
        other = await runtime.start(app, {"item": 1})
        run = await runtime.start(guarded, {"item": 1})
        assert await run.wait_ended() == "failed"
        assert await other.wait_ended() == "succeeded"
