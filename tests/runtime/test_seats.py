"""So many root runs at once: ``Runtime(max_runs=, waiting=)``."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import anyio
import pytest

from shoal import Application, Draining, Graph, MemoryStore, RunCancelled, Runtime, action
from shoal.errors import DefinitionError, Overloaded
from shoal.testing import Attempt, RecordingHook, cancel_everywhere, no_leaks

pytestmark = pytest.mark.anyio
began: list[tuple[float, int]] = []


@action(reads=["n"], writes=["out"])
async def work(n: int) -> int:
    began.append((anyio.current_time(), n))
    await anyio.sleep(1)
    return n


app = Application(work, name="app")


@pytest.fixture(autouse=True)
def fresh() -> None:
    began.clear()


@pytest.fixture(params=["no store", "store"])
def store(request: pytest.FixtureRequest) -> MemoryStore | None:
    return MemoryStore() if request.param == "store" else None


async def test_runs_are_served_in_the_order_in_which_they_came(store: MemoryStore | None):
    async with no_leaks(), Runtime(max_runs=2, store=store) as runtime:
        at = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for n in range(6):
                tasks.start_soon(partial(runtime.run, app, {"n": n}))
                await anyio.sleep(0.1)
            load = runtime.load
            assert (load.running, load.waiting, load.max_runs, load.max_waiting) == (2, 4, 2, None)
            assert len(runtime.runs()) == 2
        assert [n for _, n in began] == [0, 1, 2, 3, 4, 5]
        assert [round(time - at, 1) for time, _ in began] == [0, 0.1, 1, 1.1, 2, 2.1]
        assert (runtime.load.running, runtime.load.waiting) == (0, 0)


async def test_more_than_may_wait_are_refused_at_once(store: MemoryStore | None):
    refused: list[Overloaded] = []

    async def come(n: int) -> None:
        try:
            await runtime.run(app, {"n": n})
        except Overloaded as error:
            assert anyio.current_time() == at
            refused.append(error)

    async with no_leaks(), Runtime(max_runs=1, waiting=2, store=store) as runtime:
        at = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for n in range(5):
                tasks.start_soon(come, n)
        assert len(refused) == 2
        assert "1 at once, and 2 wait already" in str(refused[0])
        assert refused[0].retry_after == 1.0  # nothing is known yet
        assert len(began) == 3
        async with anyio.create_task_group() as tasks:
            at = anyio.current_time()
            for n in range(4):
                tasks.start_soon(come, n)
        assert 1.0 < refused[-1].retry_after < 3.0  # two are ahead of it, one a second
        assert runtime.load.refused == 3


async def test_none_may_wait():
    async with no_leaks(), Runtime(max_runs=1, waiting=0) as runtime:
        run = await runtime.start(app, {"n": 1})
        assert runtime.load.is_busy(0.5)
        with pytest.raises(Overloaded, match="none may wait"):
            await runtime.start(app, {"n": 2})
        await run.wait_ended()
        assert not runtime.load.is_busy(0.5)
        await runtime.run(app, {"n": 3})


async def test_cancelled_while_it_waits_nothing_is_left(store: MemoryStore | None):
    hook = RecordingHook()
    seen = Application(work, name="seen", hooks=[hook])
    async with no_leaks(), Runtime(max_runs=1, waiting=1, store=store) as runtime:
        first = await runtime.start(app, {"n": 1})
        with anyio.move_on_after(0.5) as scope:
            await runtime.run(seen, {"n": 2}, id="two")
        assert scope.cancelled_caught
        with anyio.move_on_after(0.2) as scope:
            await runtime.start(seen, {"n": 2}, id="two")
        assert scope.cancelled_caught
        with anyio.move_on_after(0.1) as scope:
            async with seen.open({"n": 2}, id="two", runtime=runtime):
                pass
        assert scope.cancelled_caught
        assert runtime.load.waiting == 0
        await first.wait_ended()
        assert not hook.events
        assert store is None or [one.run_id for one in await store.runs()] == [first.run_id]
        assert (await runtime.run(seen, {"n": 3}, id="two")).state["out"] == 3


async def test_a_run_within_a_run_waits_for_no_turn(store: MemoryStore | None):
    left: list[Any] = []

    @action(reads=["n"], writes=["out"])
    async def outer(n: int) -> int:
        async with app.open({"n": n}, runtime=runtime) as opened:
            inner = await runtime.run(app, {"n": n + 1})
            left.append(await runtime.start(app, {"n": n + 2}))
            return inner.state["out"] + (await opened.result()).state["out"]

    async with no_leaks(), Runtime(max_runs=1, waiting=0, store=store) as runtime:
        result = await runtime.run(Application(outer, name="outer"), {"n": 10})
        assert result.state["out"] == 21
        # What it started and left alone counts by itself.
        assert runtime.load.running == 1
        with pytest.raises(Overloaded):
            await runtime.run(app, {"n": 1})
        await left[0].wait_ended()
        await runtime.run(app, {"n": 1})


async def test_a_run_within_a_run_of_another_runtime_waits_for_no_turn():
    @action(reads=["n"], writes=["out"])
    async def back(n: int) -> int:
        return (await one.run(app, {"n": n})).state["out"]

    @action(reads=["n"], writes=["out"])
    async def there(n: int) -> int:
        return (await other.run(Application(back), {"n": n})).state["out"]

    async with no_leaks(), Runtime(max_runs=1) as one, Runtime(max_runs=1) as other:
        assert (await one.run(Application(there), {"n": 10})).state["out"] == 10


async def test_a_block_of_open_lets_its_own_runs_pass():
    async with no_leaks(), Runtime(max_runs=1) as runtime:
        async with app.open({"n": 1}, runtime=runtime, stepwise=True) as run:
            assert (await runtime.run(app, {"n": 2})).state["out"] == 2
            assert await run.step() == "work"
            assert await run.step() is None
        assert runtime.load.running == 0


async def test_a_task_that_outlives_its_run_is_no_part_of_it():
    async with no_leaks(), Runtime(max_runs=1, waiting=0) as runtime:
        ended = anyio.Event()
        async with anyio.create_task_group() as tasks:

            async def later() -> None:
                await ended.wait()
                with pytest.raises(Overloaded):
                    await runtime.run(app, {"n": 1})

            @action(reads=["n"], writes=["out"])
            async def leaves(n: int) -> int:
                tasks.start_soon(later)
                return n

            await runtime.run(Application(leaves), {"n": 1})
            run = await runtime.start(app, {"n": 2})
            ended.set()
            await anyio.sleep(0.1)
            await run.wait_ended()


async def test_draining_refuses_those_that_wait(store: MemoryStore | None):
    refused: list[int] = []

    async def come(n: int) -> None:
        try:
            await runtime.run(app, {"n": n})
        except Draining:
            refused.append(n)

    async with no_leaks(), Runtime(max_runs=1, store=store) as runtime:
        async with anyio.create_task_group() as tasks:
            for n in range(3):
                tasks.start_soon(come, n)
            await anyio.sleep(0.5)
            await runtime.drain()
        assert len(refused) == 2
        assert len(began) == 1


@pytest.mark.parametrize("within", [0, 0.2])
async def test_cancelled_by_the_end_of_the_runtime(store: MemoryStore | None, within: float):
    ends: list[type[Exception]] = []

    async def come(n: int) -> None:
        try:
            await runtime.run(app, {"n": n})
        except Exception as error:
            ends.append(type(error))

    async with (
        no_leaks(),
        anyio.create_task_group() as tasks,
        Runtime(max_runs=1, store=store) as runtime,
    ):
        for n in range(3):
            tasks.start_soon(come, n)
        await anyio.sleep(0.5)
        await runtime.drain(within)
    assert sorted(one.__name__ for one in ends) == ["Draining", "Draining", "RunCancelled"]


async def test_a_paused_run_lends_its_seat():
    store = MemoryStore()

    @action(reads=["out"], writes=["end"])
    async def end(out: int) -> int:
        return out

    two = Application(Graph.chain(work, end), name="two")
    async with no_leaks(), Runtime(max_runs=1, store=store) as runtime:
        paused = await runtime.start(two, {"n": 1}, id="paused")
        await paused.pause()
        assert runtime.load.running == 0
        await runtime.run(app, {"n": 2})
        other = await runtime.start(app, {"n": 3})
        await paused.resume()
        assert runtime.load.running == 2
        assert await paused.wait_ended() == "succeeded"
        await other.wait_ended()
        assert runtime.load.running == 0


async def test_recovered_runs_wait_in_any_number():
    store = MemoryStore()
    kept = Application(work, name="kept", store=store)
    with pytest.raises(RunCancelled):
        async with Runtime(apps=[kept]) as first:
            runs = [await first.start(kept, {"n": n}) for n in range(4)]
            await first.drain(within=0)
            await runs[0].result()
    began.clear()
    async with no_leaks(), Runtime(apps=[kept], max_runs=1, waiting=0) as runtime:
        recovered = await runtime.recover()
        assert [one.error for one in recovered] == [None] * 4
        assert len(began) == 4


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_cancelled_anywhere_no_seat_is_lost(backend: Literal["asyncio", "trio"]):
    async def scenario(attempt: Attempt) -> None:
        async with Runtime(max_runs=1, waiting=1, store=MemoryStore()) as runtime:
            first = await runtime.start(app, {"n": 1})
            await attempt(partial(runtime.run, app, {"n": 2}, priority="batch"))
            await first.wait_ended()
            assert (runtime.load.running, runtime.load.waiting) == (0, 0)
            await runtime.run(app, {"n": 3})

    assert cancel_everywhere(scenario, backend=backend) >= 8


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_runs": 0}, "at least 1"),
        ({"max_runs": True}, "at least 1"),
        ({"max_runs": 1, "waiting": -1}, "at least 0"),
        ({"waiting": 1}, "without max_runs="),
    ],
)
def test_numbers_that_mean_nothing_are_refused(options: dict[str, Any], why: str):
    with pytest.raises(DefinitionError, match=why):
        Runtime(**options)
