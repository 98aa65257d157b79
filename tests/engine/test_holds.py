"""A held execution starts nothing, and goes on where it stood."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Literal

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Done,
    Each,
    Graph,
    Limits,
    Rate,
    Retry,
    RetryLater,
    Runtime,
    StepTimeout,
    action,
    fan_out,
    race,
)
from shoal._runtime.handle import RunHandle
from shoal.testing import Attempt, cancel_everywhere, no_leaks

pytestmark = pytest.mark.anyio

began = Counter[str]()
ended = Counter[str]()


@pytest.fixture(autouse=True)
def count_anew() -> None:
    began.clear()
    ended.clear()


@action(reads=["item"], writes=["first"])
async def one(item: int) -> int:
    began["one"] += 1
    await anyio.sleep(1)
    ended["one"] += 1
    return item


@action(reads=["item", "first"], writes=["second"])
async def two(item: int, first: int) -> int:
    began["two"] += 1
    await anyio.sleep(1)
    ended["two"] += 1
    return item + first


both = Graph.chain(one, two, name="both")


def hold(run: RunHandle[Any], reason: str = "test") -> None:
    run._run.config.execution.hold_up(reason)  # pyright: ignore[reportPrivateUsage]


def release(run: RunHandle[Any], reason: str = "test") -> None:
    run._run.config.execution.let_go(reason)  # pyright: ignore[reportPrivateUsage]


LIMITS = [
    Limits(4),
    Limits(4) & Limits(rate=Rate(100)),
    Limits(2, by=lambda state: state["item"] % 2),
]


@pytest.mark.parametrize("limits", LIMITS, ids=["plain", "rate", "keys"])
@pytest.mark.parametrize("scope", [None, Limits(3)], ids=["free", "runtime"])
async def test_what_runs_ends_and_nothing_begins(limits: Limits, scope: Limits | None):
    step = fan_out(both, over="items", item="item", take="second", into="found", limits=limits)
    async with no_leaks(), Runtime(limits=scope) as runtime:
        run = await Application(step).start({"items": range(20)}, runtime=runtime)
        await anyio.sleep(2.5)
        hold(run)
        hold(run)  # again: nothing changes
        before = began.total()
        assert before > ended.total()
        await anyio.sleep(2)
        assert began.total() == before == ended.total()
        await anyio.sleep(1000)
        assert began.total() == before
        release(run, "another reason")
        await anyio.sleep(10)
        assert began.total() == before
        release(run)
        result = await run.result()
        assert sorted(result.state["found"]) == [2 * n for n in range(20)]
        assert began == ended == Counter(one=20, two=20)


async def test_a_held_run_holds_no_slot_that_another_could_use():
    step = fan_out(both, over="items", item="item", take="second", into="found")
    limits = Limits(1) & Limits(rate=Rate(2), by=lambda _: "all")
    app = Application(step, name="app", limits=limits)
    async with no_leaks(), Runtime() as runtime:
        slow = await app.start({"items": range(4)}, runtime=runtime)
        await anyio.sleep(1.5)
        hold(slow)
        quick = await app.start({"items": range(3)}, runtime=runtime)
        await anyio.sleep(1)
        since = anyio.current_time()
        await quick.result()
        assert anyio.current_time() - since < 7
        assert slow.status is None
        release(slow)
        assert len((await slow.result()).state["found"]) == 4


async def test_keys_of_a_fan_out_are_free_for_other_runs():
    step = fan_out(
        both, over="items", item="item", take="second", into="found",
        limits=Limits(8) & Limits(1, by=lambda state: state["item"]),
    )  # fmt: skip
    app = Application(step, name="app")
    async with no_leaks(), Runtime() as runtime:
        slow = await app.start({"items": [7]}, runtime=runtime)
        await anyio.sleep(0.5)
        hold(slow)
        await anyio.sleep(1)
        assert began == Counter(one=1)  # it stands before its second step
        quick = await app.start({"items": [7]}, runtime=runtime)
        with anyio.fail_after(3):
            await quick.result()
        release(slow)
        await slow.result()


async def test_an_action_whose_children_have_ended_goes_on_in_a_held_run():
    @action(reads=["item"], writes=["second"], limits=Limits(1))
    async def own(item: int, context: Context) -> int:
        async with context.fan_out(name="own") as group:
            group.start(one, {"item": item})
            async for _ in group:
                pass
        ended["own"] += 1
        return item

    @action(limits=Limits(1))
    async def other() -> None:
        await anyio.sleep(5)

    async with no_leaks(), Runtime() as runtime:
        # One of them waits, so that turns are compared.
        others = [await Application(other).start(runtime=runtime) for _ in range(2)]
        run = await Application(Graph.chain(own, one)).start({"item": 1}, runtime=runtime)
        await anyio.sleep(0.5)
        hold(run)
        await anyio.sleep(2)
        assert ended == Counter(one=1, own=1), "it takes its slot again though the run is held"
        release(run)
        for each in (run, *others):
            await each.result()


async def test_the_time_of_all_holds_together_is_known():
    step = fan_out(both, over="items", item="item", take="second", into="found")
    async with no_leaks(), Runtime() as runtime:
        run = await Application(step).start({"items": [1]}, runtime=runtime)
        await anyio.sleep(0.5)
        held = run._run.config.execution.hold  # pyright: ignore[reportPrivateUsage]
        assert held.seconds() == 0
        for before in (0, 3):
            hold(run)
            await anyio.sleep(2)
            assert held.seconds() == before + 2
            await anyio.sleep(1)
            release(run)
            await anyio.sleep(0.1)
            assert held.seconds() == before + 3
        await run.result()


async def test_timeouts_of_children_and_fan_outs_stand_still():
    step = fan_out(
        both, over="items", item="item", take="second", into="found", timeout=5,
        each=Each(timeout=4),
    )  # fmt: skip
    inner = fan_out(step, over="groups", item="items", take="found", into="all", timeout=8)
    async with no_leaks(), Runtime() as runtime:
        run = await Application(inner).start({"groups": [[1, 2], [3]]}, runtime=runtime)
        await anyio.sleep(0.5)
        hold(run)
        await anyio.sleep(100)
        release(run)
        since = anyio.current_time()
        assert sorted(map(sorted, (await run.result()).state["all"])) == [[2, 4], [6]]
        assert anyio.current_time() - since == pytest.approx(1)


async def test_what_is_left_of_a_timeout_counts_on():
    @action(reads=["item"], writes=["first"])
    async def endless(item: int) -> int:
        await anyio.sleep(1)
        await anyio.sleep_forever()
        return item

    for slow, each in ((2.0, None), (None, Each(timeout=2))):
        chain = Graph.chain(one, endless, name="chain")
        step = fan_out(
            chain, over="items", item="item", into="found", timeout=slow, each=each, take="first"
        )
        async with no_leaks(), Runtime() as runtime:
            run = await Application(step).start({"items": [1]}, runtime=runtime)
            await anyio.sleep(0.5)
            hold(run)
            await anyio.sleep(50)
            release(run)
            since = anyio.current_time()
            with pytest.raises((StepTimeout, ExceptionGroup)):
                await run.result()
            assert anyio.current_time() - since == pytest.approx(1.5)


async def test_an_attempt_times_out_in_a_held_run():
    @action(reads=["item"], writes=["first"], timeout=2)
    async def endless(item: int) -> int:
        await anyio.sleep_forever()
        return item

    async with no_leaks(), Runtime() as runtime:
        run = await Application(endless).start({"item": 1}, runtime=runtime)
        await anyio.sleep(1)
        hold(run)
        since = anyio.current_time()
        with pytest.raises(StepTimeout):
            await run.result()
        assert anyio.current_time() - since == pytest.approx(1)


async def test_retries_wait_and_their_total_does_not_count():
    tried: list[float] = []

    @action(
        reads=["item"],
        writes=["first"],
        retry=Retry(on=OSError, attempts=5, initial=1, jitter=0, total=5),
    )
    async def flaky(item: int) -> int:
        tried.append(anyio.current_time())
        if len(tried) < 3:
            raise ConnectionError
        return item

    async with no_leaks(), Runtime() as runtime:
        run = await Application(flaky).start({"item": 1}, runtime=runtime)
        await anyio.sleep(0.5)
        hold(run)
        await anyio.sleep(100)
        assert len(tried) == 1
        release(run)
        assert (await run.result()).state["first"] == 1


async def test_what_asks_for_later_waits_too():
    tried: list[int] = []

    @action(reads=["item"], writes=["first"], limits=Limits(1, by=lambda _: "key"))
    async def later(item: int) -> int:
        tried.append(item)
        if len(tried) == 1:
            raise RetryLater(2)
        return item

    step = fan_out(later, over="items", item="item", into="found")
    async with no_leaks(), Runtime() as runtime:
        run = await Application(step).start({"items": [1, 2]}, runtime=runtime)
        await anyio.sleep(1)
        hold(run)
        await anyio.sleep(10)
        assert len(tried) == 1
        release(run)
        assert sorted((await run.result()).state["found"]) == [1, 2]


async def test_an_action_with_children_of_its_own_waits_for_them():
    @action(reads=["items"], writes=["found"])
    async def own(items: list[int], context: Context) -> list[int]:
        async with context.fan_out(name="own", limits=Limits(2)) as group:
            group.start_each(both, over=items, item="item")
            return sorted([one.state["second"] async for one in group if isinstance(one, Done)])

    async with no_leaks(), Runtime(limits=Limits(2)) as runtime:
        run = await Application(own).start({"items": [1, 2, 3, 4]}, runtime=runtime)
        await anyio.sleep(0.5)
        hold(run)
        await anyio.sleep(50)
        assert began == Counter(one=2)
        release(run)
        assert (await run.result()).state["found"] == [2, 4, 6, 8]


async def test_no_contestant_starts_in_a_held_race():
    said: list[str] = []

    def contestant(name: str, seconds: float):
        @action(reads=["item"], writes=["answer"], name=name)
        async def answer(item: int) -> str:
            said.append(name)
            await anyio.sleep(seconds)
            return name

        return answer

    step = race(contestant("a", 9), contestant("b", 1), into="answer", stagger=1)
    async with no_leaks(), Runtime() as runtime:
        run = await Application(step).start({"item": 1}, runtime=runtime)
        await anyio.sleep(0.5)
        hold(run)
        await anyio.sleep(5)
        assert said == ["a"]
        release(run)
        assert (await run.result()).state["answer"] == "b"


async def test_an_async_source_is_not_read_on():
    read: list[int] = []

    async def numbers() -> AsyncIterator[int]:
        for n in range(50):
            read.append(n)
            yield n

    step = fan_out(
        one, over=lambda _: numbers(), reads=[], item="item", into="found", limits=Limits(2),
    )  # fmt: skip
    async with no_leaks(), Runtime() as runtime:
        run = await Application(step).start({}, runtime=runtime)
        await anyio.sleep(1.5)
        hold(run)
        await anyio.sleep(1)
        before = len(read)
        await anyio.sleep(50)
        assert len(read) == before
        release(run)
        assert len((await run.result()).state["found"]) == 50


@pytest.mark.sweep
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_held_run_is_cancelled_everywhere(backend: Literal["asyncio", "trio"]):
    step = fan_out(
        both, over="items", item="item", take="second", into="found",
        limits=Limits(2) & Limits(3, by=lambda state: state["item"] % 2), each=Each(timeout=9),
    )  # fmt: skip

    async def scenario(attempt: Attempt) -> None:
        async def steer() -> None:
            await anyio.sleep(0.5)
            for run in runtime.runs():
                hold(run)
            await anyio.sleep(2)
            for run in runtime.runs():
                release(run)

        async with Runtime(limits=Limits(2)) as runtime, anyio.create_task_group() as tasks:
            tasks.start_soon(steer)
            ending = await attempt(runtime.run, Application(step), {"items": [1, 2, 3]})
            if not ending.cancelled:
                assert ending.result is not None
                assert sorted(ending.result.state["found"]) == [2, 4, 6]
            limiters = runtime._admission.limiters.by_owner.values()  # pyright: ignore[reportPrivateUsage]
            found = [one for named in limiters for it in named.values() for one in it.statistics()]
            assert not any(one.in_use or one.waiting for one in found)

    assert cancel_everywhere(scenario, backend=backend) > 10
