"""`cache=`: what an action has come to is remembered, by what it reads."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest

from shoal import (
    Action,
    Application,
    Context,
    Each,
    Graph,
    Limits,
    MemoryStore,
    Rate,
    Result,
    Retry,
    Runtime,
    SQLiteStore,
    State,
    StoreFailed,
    action,
    fan_out,
)
from shoal._engine.result_cache import result_key
from shoal.errors import DefinitionError, NotData, NotEncodable
from shoal.events import AttemptEnded, Operation, Set, StateUpdated, StepEnded, Waiting
from shoal.stores import CachesResults, Store
from shoal.stores._protocol import NullStore
from shoal.stores._results import Results
from shoal.testing import (
    Attempt,
    RecordingHook,
    Recovery,
    cancel_everywhere,
    crash_everywhere,
    no_leaks,
)

pytestmark = pytest.mark.anyio

Backend = Literal["asyncio", "trio"]


class Calls:
    """Knows what it was called with, and fails if it is to."""

    def __init__(self, *failures: Exception | None) -> None:
        self.of: list[Any] = []
        self.failures = list(failures)

    def __call__(self, what: Any) -> Any:
        self.of.append(what)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        return what * 10


def cached_action(calls: Calls, cache: float | None = 60, **options: Any) -> Any:
    given: dict[str, Any] = {"name": "work", **options}

    @action(reads=["n"], writes=["out"], cache=cache, **given)
    async def work(n: int, service: object = None) -> int:
        await anyio.sleep(1)  # so that several may be under way
        return calls(n)

    return work


def stores(path: Path) -> dict[str, Store | None]:
    return {
        "none": None,
        "memory": MemoryStore(),
        "sqlite": SQLiteStore(path / "runs.db", synchronous="normal"),
    }


every_store = pytest.mark.parametrize("kind", ["none", "memory", "sqlite"])


# -- hits ------------------------------------------------------------------------------------------


@every_store
async def test_what_would_read_the_same_is_not_executed(tmp_path: Path, kind: str):
    calls, hook = Calls(), RecordingHook()
    app = Application(cached_action(calls), hooks=[hook])
    async with no_leaks(), Runtime(store=stores(tmp_path)[kind]) as runtime:
        for n, more in ((1, "a"), (2, "b"), (1, "c")):
            result = await runtime.run(app, {"n": n, "unread": more}, inputs={"service": more})
            assert result.state["out"] == n * 10
    assert calls.of == [1, 2]
    assert [event.cached for event in hook.of(StepEnded)] == [False, False, True]
    assert [event.update.operations for event in hook.of(StateUpdated)] == [
        (Set("out", 10),),
        (Set("out", 20),),
        (Set("out", 10),),
    ]
    hook.assert_paired()


@pytest.mark.parametrize("other", [{"name": "other"}, {"version": "2"}], ids=["name", "version"])
async def test_another_name_or_version_counts_for_itself(other: dict[str, Any]):
    calls = Calls()
    store = MemoryStore()
    for options in ({}, other, {}, other):
        app = Application(cached_action(calls, **options), name="app", store=store)
        await app.run({"n": 1})
    assert calls.of == [1, 1]


async def test_what_writes_something_else_counts_for_itself():
    calls, store = Calls(), MemoryStore()

    @action(reads=["n"], writes=["more"], name="work", cache=60)
    async def more(n: int) -> int:
        return calls(n)

    await Application(cached_action(calls), store=store).run({"n": 1})
    assert (await Application(more, store=store).run({"n": 1})).state["more"] == 10
    assert calls.of == [1, 1]


async def test_bare_runs_without_a_store_share_nothing():
    calls = Calls()
    app = Application(cached_action(calls))
    await app.run({"n": 1})
    await app.run({"n": 1})
    assert calls.of == [1, 1]


async def test_processes_share_a_file(tmp_path: Path):
    calls = Calls()
    for _ in range(2):  # stores that share nothing else
        await Application(cached_action(calls), store=stores(tmp_path)["sqlite"]).run({"n": 1})
    assert calls.of == [1]


async def test_where_children_have_no_store_the_runtime_remembers():
    calls, store = Calls(), MemoryStore()
    work = cached_action(calls)
    app = Application(fan_out(work, over="ns", item="n", into="outs", store=None), store=store)
    assert (await app.run({"ns": [1, 1]})).state["outs"] == [10, 10]
    await app.run({"ns": [1]})
    assert calls.of == [1, 1, 1]
    assert await store.recall(result_key(work, {"n": 1})) is None


async def test_a_store_that_can_not_leaves_it_to_the_runtime():
    calls = Calls()
    app = Application(cached_action(calls), store=NullStore())
    async with Runtime() as runtime:
        await runtime.run(app, {"n": 1})
        await runtime.run(app, {"n": 1})
    assert calls.of == [1]


@every_store
async def test_operations_of_a_state_are_applied_again(tmp_path: Path, kind: str):
    called = 0

    @action(reads=["n"], writes=["log", "count", "by", "gone"], cache=math.inf)
    async def note(state: State) -> State:
        nonlocal called
        called += 1
        n = state["n"]
        state = state.append(log=n).extend(log=[n, n]).increment(count=n).put("by", n, "x")
        return state.drop("gone")

    app = Application(note)
    async with Runtime(store=stores(tmp_path)[kind]) as runtime:
        first = await runtime.run(app, {"n": 2, "gone": 0, "count": 0, "log": []})
        second = await runtime.run(app, {"n": 2, "gone": 1, "count": 5, "log": [7]})
    assert called == 1
    assert first.state.data == {"n": 2, "log": [2, 2, 2], "count": 2, "by": {2: "x"}}
    assert second.state.data == {"n": 2, "log": [7, 2, 2, 2], "count": 7, "by": {2: "x"}}


async def test_fields_that_are_not_there_count_as_such():
    seen: list[Any] = []

    @action(reads=["n"], writes=["out"], cache=60)
    async def work(state: State) -> State:
        seen.append(state.get("n"))
        return state.update(out=state.get("n"))

    app = Application(work, store=MemoryStore())
    for given in ({}, {"n": None}, {}, {"n": None}):
        await app.run(given)
    assert seen == [None, None]


async def test_a_class_has_it_as_an_attribute():
    calls = Calls()

    class Work(Action):
        reads = ("n",)
        writes = ("out",)
        cache = 60

        async def run(self, n: int) -> int:
            return calls(n)

    app = Application(Work(), store=MemoryStore())
    await app.run({"n": 1})
    await app.run({"n": 1})
    assert calls.of == [1]


async def test_steps_in_the_middle_are_published_and_those_after_them_are_not():
    calls, hook = Calls(), RecordingHook()

    @action(reads=["out"], writes=["end"])
    async def after(out: int) -> int:
        return out + 1

    app = Application(Graph.chain(cached_action(calls), after), store=MemoryStore(), hooks=[hook])
    for _ in range(2):
        assert (await app.run({"n": 1})).state["end"] == 11
    assert [(event.step, event.cached) for event in hook.of(StepEnded)] == [
        ("work", False),
        ("after", False),
        ("work", True),
        ("after", False),
    ]


async def test_of_children_too():
    calls, hook = Calls(), RecordingHook()
    work = cached_action(calls, retry=Retry(2, on=ValueError))
    app = Application(
        fan_out(work, over="ns", item="n", into="outs", limits=Limits(1)),
        store=MemoryStore(),
        hooks=[hook],
    )
    assert (await app.run({"ns": [1, 2, 1, 1]})).state["outs"] == [10, 20, 10, 10]
    assert calls.of == [1, 2]
    received = [event.cached for event in hook.of(StepEnded) if event.step == "work"]
    assert received == [False, False, True, True]
    assert len(hook.of(AttemptEnded)) == 2, "what was remembered is no attempt"
    hook.assert_paired()


async def test_those_that_begin_before_the_first_has_ended_are_all_executed():
    calls = Calls()
    app = Application(fan_out(cached_action(calls), over="ns", item="n", into="outs"))
    assert (await app.run({"ns": [1, 1, 1]})).state["outs"] == [10, 10, 10]
    assert calls.of == [1, 1, 1]


# -- time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "memory"])
async def test_what_has_run_out_is_not_taken(tmp_path: Path, kind: str):
    calls = Calls()
    app = Application(cached_action(calls, 60))
    async with Runtime(store=stores(tmp_path)[kind]) as runtime:
        for wait in (0, 59.9, 0.2, 1):
            await anyio.sleep(wait)
            await runtime.run(app, {"n": 1})
    assert calls.of == [1, 1], "it counts from its end, and isn't prolonged by being used"


async def test_a_memory_store_goes_on_in_another_event_loop():
    calls, store = Calls(), MemoryStore()
    app = Application(cached_action(calls, 60), store=store)
    await app.run({"n": 1})
    await anyio.to_thread.run_sync(lambda: app.run_sync({"n": 1}))
    assert calls.of == [1]


# -- in memory -------------------------------------------------------------------------------------


class Time:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_of_many_those_used_last_stay():
    results = Results(Time(), 3)
    for key in "abc":
        await results.remember(key, (), math.inf)
    await results.recall("a")
    await results.remember("d", (), math.inf)
    kept = [key for key in "abcd" if await results.recall(key) is not None]
    assert kept == ["a", "c", "d"]


async def test_what_has_run_out_goes_though_nobody_asks_for_it():
    clock = Time()
    results = Results(clock)
    await results.remember("ever", (Set("a", 1),), math.inf)
    for number in range(100):
        await results.remember(f"{number}", (), 10)
        clock.now += 1
    assert len(results) == 11
    assert repr(results) == "<Results, 11 of them>"
    assert await results.recall("ever") == (Set("a", 1),)


async def test_what_is_replaced_runs_out_when_the_last_does():
    clock = Time()
    results = Results(clock)
    for seconds in (10, 20):
        await results.remember("a", (Set("a", seconds),), seconds)
    clock.now += 15
    results.expire()
    assert await results.recall("a") == (Set("a", 20),)
    for _ in range(100):
        await results.remember("a", (), 1000)
    assert len(results._due) <= 3, "nor does what is due pile up"


# -- limits ----------------------------------------------------------------------------------------


async def test_what_is_remembered_waits_for_no_slot_no_rate_and_no_thread():
    hook, may_end, started = RecordingHook(), threading.Event(), anyio.Event()
    calls = 0

    @action(
        reads=["n"],
        writes=["out"],
        cache=math.inf,
        limits=Limits(1) & Limits(rate=Rate(1, per=1000.0)),
    )
    def work(n: int) -> int:
        nonlocal calls
        calls += 1
        if n == 2:
            anyio.from_thread.run_sync(started.set)
            assert may_end.wait(10)
        return n

    app = Application(
        fan_out(work, over="ns", item="n", into="outs"), hooks=[hook], store=MemoryStore()
    )
    async with Runtime(threads=1) as runtime:
        await runtime.run(app, {"ns": [1]})
        await anyio.sleep(1000)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.run, app, {"ns": [2]})
            await started.wait()
            assert (await runtime.run(app, {"ns": [1, 1]})).state["outs"] == [1, 1]
            may_end.set()
    assert calls == 2
    assert not hook.of(Waiting)


async def test_a_child_that_has_waited_for_a_slot_looks_again_and_pays_nothing():
    calls, hook = Calls(), RecordingHook()
    work = cached_action(calls, limits=Limits(1) & Limits(rate=Rate(2, per=1000.0, burst=2)))
    other = cached_action(calls, name="other")
    app = Application(
        fan_out([work, other], over="ns", item="n", into="outs", name="map"), hooks=[hook]
    )
    async with Runtime() as runtime:
        result = await runtime.run(app, {"ns": [1, 1, 1, 2]})
        assert runtime.limiter(work).statistics()[0].in_use == 0
        assert anyio.current_time() < 900, "three of one would have waited for the rate"
    assert sorted(calls.of) == [1, 1, 1, 1, 2, 2]  # of `other` all
    assert len(result.state["outs"]) == 4
    assert hook.of(Waiting), "they did wait"
    hook.assert_paired()


async def test_to_find_it_after_a_wait_is_not_to_remember_it_once_more():
    store = Slow()
    work = cached_action(Calls(), limits=Limits(1))
    app = Application(fan_out(work, over="ns", item="n", into="outs"), store=store)
    await app.run({"ns": [1, 1, 1]})
    assert store.remembered == [result_key(work, {"n": 1})]


async def test_a_child_that_is_tried_again_takes_its_place_though_it_needs_no_permit():
    calls = Calls(ValueError("1"))
    most = now = 0

    @action(reads=["out"], writes=["end"])
    async def after(out: int) -> int:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await anyio.sleep(5)
        now -= 1
        return out

    work = cached_action(calls, limits=Limits(1))
    app = Application(
        fan_out(
            Graph.chain(work, after),
            over="ns",
            item="n",
            into="outs",
            take="end",
            limits=Limits(1),
            each=Each(retry=Retry(3, on=ValueError, initial=1.5, jitter=0)),
        )
    )
    async with no_leaks():
        assert (await app.run({"ns": [1, 1, 1]})).state["outs"] == [10, 10, 10]
    assert calls.of == [1, 1]
    assert most == 1


# -- failures --------------------------------------------------------------------------------------


async def test_failures_are_not_remembered():
    calls = Calls(ValueError("no"), ValueError("no"))
    app = Application(cached_action(calls), store=MemoryStore())
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await app.run({"n": 1})
    await app.run({"n": 1})
    await app.run({"n": 1})
    assert calls.of == [1, 1, 1]


async def test_what_its_model_refuses_is_not_remembered():
    pydantic = pytest.importorskip("pydantic")

    class Model(pydantic.BaseModel):
        n: int
        out: int = 0

    answers = ["none", 7]

    @action(reads=["n"], writes=["out"], cache=60)
    async def work(n: int) -> Any:
        return answers.pop(0)

    app = Application(Graph.chain(work, name="app"), state=Model, store=MemoryStore())
    with pytest.raises(Exception, match="out"):
        await app.run({"n": 1})
    for _ in range(2):
        assert (await app.run({"n": 1})).state["out"] == 7


async def test_what_it_reads_has_to_be_data():
    app = Application(cached_action(Calls(), name="ask"))
    with pytest.raises(NotData, match=r"action 'ask' has cache=, so what it reads is hashed.*'n'"):
        await app.run({"n": threading.Lock()})


async def test_what_the_store_can_not_keep_fails_the_action(tmp_path: Path):
    @action(reads=["n"], writes=["out"], cache=60)
    async def work(n: int) -> Any:
        return threading.Lock()

    hook = RecordingHook()
    app = Application(
        fan_out(work, over="ns", item="n", into="outs", on_error="collect", errors_into="bad"),
        store=stores(tmp_path)["sqlite"],
        hooks=[hook],
    )
    result = await app.run({"ns": [1]})
    assert result.state["bad"][0].type == f"{NotEncodable.__module__}.NotEncodable"
    assert "state['out']" in result.state["bad"][0].message


class Broken(NullStore):
    """Can't say what it has, or can't take more."""

    def __init__(self, where: str) -> None:
        self.where = where

    async def recall(self, key: str) -> Sequence[Operation] | None:
        if self.where == "recall":
            raise OSError("gone")
        return None

    async def remember(self, key: str, operations: Sequence[Operation], seconds: float) -> None:
        raise OSError("gone")


@pytest.mark.parametrize("where", ["recall", "remember"])
async def test_a_store_that_fails_ends_the_run(where: str):
    calls, store = Calls(), Broken(where)
    assert isinstance(store, CachesResults)
    app = Application(
        fan_out(cached_action(calls), over="ns", item="n", into="outs", on_error="ignore"),
        store=store,
    )
    with pytest.raises(StoreFailed, match=r"result of 'work'.*gone"):
        await app.run({"ns": [1]})
    assert len(calls.of) == (where == "remember")


# -- what it can't be on ---------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [0, -1, True, "60", math.nan, -math.inf])
def test_it_takes_seconds(cache: Any):
    with pytest.raises(DefinitionError, match=r"action 'work': cache= takes a number of seconds"):
        cached_action(Calls(), cache)


def test_what_does_more_than_to_write_can_not_have_it():
    async def stream(n: int) -> AsyncIterator[int | Result[int]]:
        yield Result(n)

    async def received(n: int, context: Context) -> int:
        return n

    async def send(n: int) -> None: ...

    refused: list[tuple[Any, list[str], str]] = [
        (stream, ["out"], "partial items"),
        (received, ["out"], "its context"),
        (send, [], "it writes nothing"),
    ]
    for function, writes, why in refused:
        with pytest.raises(DefinitionError, match=f"can't have cache=.*{why}"):
            action(reads=["n"], writes=writes, cache=60)(function)


def test_a_class_is_refused_where_it_is_defined():
    with pytest.raises(DefinitionError, match="it writes nothing"):

        class Send(Action):  # pyright: ignore[reportUnusedClass] # nobody gets it
            reads = ("n",)
            cache = 60

            async def run(self, n: int) -> None: ...


# -- cancelled, and killed -------------------------------------------------------------------------


class Slow(NullStore):
    """A memory that one has to wait for."""

    def __init__(self) -> None:
        self.results = Results(anyio.current_time)
        self.remembered: list[str] = []

    async def recall(self, key: str) -> Sequence[Operation] | None:
        await anyio.sleep(1)
        return await self.results.recall(key)

    async def remember(self, key: str, operations: Sequence[Operation], seconds: float) -> None:
        await anyio.sleep(1)
        self.remembered.append(key)
        await self.results.remember(key, operations, seconds)


async def test_a_cancellation_that_is_left_on_the_task_is_nobody_s(anyio_backend_name: str):
    """Though it is remembered in between, and that waits."""
    if anyio_backend_name == "trio":
        pytest.skip("trio has no native cancellation")

    @action(reads=["n"], writes=["out"], cache=60)
    async def work(n: int) -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return n

    store = Slow()
    for act in (work, fan_out(work, over="ns", item="n", into="outs")):
        await Application(act, store=store).run({"n": 1, "ns": [2, 3]})
    assert len(store.remembered) == 3


@pytest.mark.sweep
@pytest.mark.parametrize(
    "how", [("asyncio", "scope"), ("asyncio", "native"), ("trio", "scope")], ids=" ".join
)
def test_cancelled_anywhere_nothing_is_left_and_what_was_remembered_is_right(
    how: tuple[Backend, Literal["scope", "native"]],
):
    async def scenario(attempt: Attempt) -> None:
        calls, store = Calls(), Slow()
        work = cached_action(calls, limits=Limits(2) & Limits(rate=Rate(5, per=10.0)))
        app = Application(
            fan_out(work, over="ns", item="n", into="outs", limits=Limits(3)), store=store
        )
        async with Runtime() as runtime:
            await attempt(runtime.run, app, {"ns": [1, 2, 1, 1, 3]})
            for part in runtime.limiter(work).statistics():
                assert part.in_use == 0
            for n in (1, 2, 3):
                found = await store.results.recall(result_key(work, {"n": n}))
                assert found in (None, (Set("out", n * 10),))
            again = await runtime.run(app, {"ns": [1, 2, 1, 1, 3]})
            assert again.state["outs"] == [10, 20, 10, 10, 30]

    backend, kind = how
    assert cancel_everywhere(scenario, backend=backend, how=kind) > 20


@pytest.mark.sweep
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_wherever_the_process_dies_each_result_is_applied_once(backend: Backend):
    async def scenario(store: Store) -> object:
        work = cached_action(Calls())
        app = Application(
            fan_out(work, over="ns", item="n", into="outs", limits=Limits(2)),
            name="app",
            store=store,
        )
        return (await app.run({"ns": [1, 2, 1, 2]}, id="r")).state.to_plain()["outs"]

    def check(recovery: Recovery[object]) -> None:
        assert recovery.result == [10, 20, 10, 20]

    assert crash_everywhere(scenario, check, backend=backend) > 5
