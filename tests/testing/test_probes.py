"""Fakes and probes: each finds what it is for, and is silent otherwise."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import Any, Literal

import anyio
import pytest

from shoal import (
    Application,
    Each,
    Graph,
    MemoryStore,
    Result,
    Retry,
    RunPath,
    action,
    fan_out,
    first_item,
    race,
)
from shoal.errors import UnknownRun
from shoal.events import ChildName, Decision, Update
from shoal.stores import Completed, QuestionAnswered, QuestionAsked, Rewound, StepBegun
from shoal.testing import (
    HANGS,
    After,
    BlockingError,
    LeakError,
    MemoryGrows,
    Reply,
    Script,
    ScriptedProvider,
    Sequencer,
    SequencerBroken,
    assert_run_well_formed,
    assert_well_formed,
    flaky,
    flat_memory,
    no_blocking,
    no_leaks,
    run_virtual,
    simulate,
)

from .blocking import hold_up

BACKENDS: tuple[Literal["asyncio", "trio"], ...] = ("asyncio", "trio")


# -- fakes -----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_sequencer_orders_tasks_and_breaks_if_one_is_cancelled():
    order, seen = Sequencer(), list[int]()

    async def pass_(number: int) -> None:
        async with order(number):
            seen.append(number)

    async with anyio.create_task_group() as tasks:
        for number in (2, 0, 3, 1):
            tasks.start_soon(pass_, number)
    assert seen == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match="block 3 of the sequencer is entered twice"):
        await pass_(3)
    broken: list[str] = []

    async def fail(number: int) -> None:
        try:
            await pass_(number)
        except SequencerBroken as error:
            broken.append(str(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fail, 6)
        with anyio.move_on_after(1):
            await pass_(5)
        tasks.start_soon(fail, 7)
    assert len(broken) == 2
    assert "no later one can have its turn" in broken[0]


@pytest.mark.anyio
async def test_a_script_gives_outcomes_and_tells_how_calls_ended():
    model = Script(ConnectionError("busy"), After(2, "yes"), by=lambda fields: fields["q"])
    ask = model.action(
        "ask", reads=["q"], writes=["a"], retry=Retry(3, on=OSError, initial=1, jitter=0)
    )
    result = await Application(fan_out(ask, over="qs", item="q", into="as_")).run({"qs": [1, 2]})
    assert list(result.state["as_"]) == ["yes", "yes"]
    assert [call.end for call in model.calls] == ["raised", "raised", "returned", "returned"]
    assert [call.began_at for call in model.calls[2:]] == [model.calls[0].began_at + 1] * 2
    hangs = Script(HANGS)

    def twice(fields: Mapping[str, int]) -> int:
        return fields["q"] * 2

    quick = Script(twice)
    contest = race(
        hangs.action("slow", reads=["q"], writes=["a"], timeout=60),
        quick.action("quick", reads=["q"], writes=["a"]),
        into="a",
    )
    assert (await Application(contest).run({"q": 4})).state["a"] == 8
    assert [call.end for call in hangs.calls] == ["cancelled"]
    assert hangs.running == 0
    with pytest.raises(ValueError, match="at least one outcome"):
        Script()


@pytest.mark.anyio
async def test_a_flaky_action_fails_before_or_after_its_call():
    sold: list[int] = []

    @action(reads=["order"], writes=["receipt"], retry=Retry(3, on=OSError, initial=0.1))
    async def sell(order: int, shop: str) -> str:
        sold.append(order)
        return f"{shop} {order}"

    bound = sell.bind(shop="ours")
    for act, calls in ((flaky(bound, fails=2), 1), (flaky(bound, fails=2, when="after"), 3)):
        sold.clear()
        assert (await Application(act).run({"order": 7})).state["receipt"] == "ours 7"
        assert len(sold) == calls
    with pytest.raises(TypeError, match="async def, and 'plain' is not"):
        flaky(action(writes=["x"], name="plain")(lambda: 1))


@pytest.mark.anyio
async def test_a_provider_streams_with_delays_and_faults():
    slow = Reply(chunks=("a", "b", "c"), first_after=3, between=1)
    cut = Reply(chunks="one two three", fails_after=2, error=ConnectionError("cut"))
    provider = ScriptedProvider(cut, by={"slow": slow, "hangs": Reply(chunks="x y", fails_after=1)})

    def asking(prompt: str) -> Any:
        @action(writes=["a"], name=prompt)
        async def ask() -> AsyncGenerator[str | Result[str]]:
            parts: list[str] = []
            async for part in provider.stream(prompt):
                parts.append(part)
                yield part
            yield Result("".join(parts))

        return ask

    contest = race(asking("slow"), asking("hangs"), into="a", until=first_item(on_break="restart"))
    async with no_leaks():
        with anyio.move_on_after(100) as scope:
            await Application(contest).run({})
        assert scope.cancelled_caught  # "hangs" was first, and hangs
        with pytest.raises(ConnectionError, match="cut"):
            await provider("another")
        assert await provider("slow") == "abc"
    ends = [(one.prompt, one.chunks, one.ended) for one in provider.requests]
    assert sorted(ends[:2]) == [("hangs", 1, "closed"), ("slow", 0, "closed")]
    assert ends[2:] == [("another", 2, "failed"), ("slow", 3, "done")]
    assert provider.open == 0
    with pytest.raises(LookupError, match="no reply to 'new'"):
        await ScriptedProvider(by={"old": slow})("new")
    with pytest.raises(ValueError, match="at least one reply"):
        ScriptedProvider()


# -- probes ----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_async_generators_and_processes_are_leaks():
    async def items() -> AsyncGenerator[int]:
        yield 1
        yield 2

    left = items()
    process: Any = None
    with pytest.raises(LeakError) as raised:
        async with no_leaks():
            await anext(left)
            process = subprocess.Popen(["sleep", "60"])
    process.kill()
    process.wait()
    await left.aclose()
    told = "\n".join(raised.value.leaks)
    assert "async generator 'test_async_generators" in told
    assert "yield 1" in told
    assert f"child process {process.pid}: sleep 60" in told


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_blocking_call_is_named(backend: Literal["asyncio", "trio"]):
    async def wait_badly() -> None:
        hold_up(0.2)

    async def main() -> None:
        async with no_blocking(0.02), anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 3600)  # a virtual hour holds nothing up
            tasks.start_soon(wait_badly, name="it")

    with pytest.raises(BlockingError) as raised:
        run_virtual(main, backend=backend)
    blocked = {one.task: one for one in raised.value.blocked}["it"]  # a busy machine adds others
    assert 0.02 <= blocked.seconds < 5
    assert "hold_up(0.2)" in blocked.stack
    assert "in wait_badly" in str(raised.value)


def test_memory_that_grows_is_found_with_the_line_that_takes_it():
    async def pipe(count: int, bound: float) -> None:
        send, receive = anyio.create_memory_object_stream[str](bound)

        async def produce() -> None:
            async with send:
                for number in range(count):
                    await send.send(f"item {number}" * 10)

        async with anyio.create_task_group() as tasks, receive:
            tasks.start_soon(produce)
            async for _ in receive:
                await anyio.sleep(1)

    few, many = flat_memory(lambda count: pipe(count, 5), sizes=(20, 100))
    assert many - few < 64 * 80
    with pytest.raises(MemoryGrows, match="for each further item") as raised:
        flat_memory(lambda count: pipe(count, float("inf")), sizes=(20, 100))
    assert "test_probes.py" in str(raised.value)


def test_memory_that_another_thread_takes_once_is_no_growth():
    taken: list[list[int]] = []
    runs: list[int] = []

    async def scenario(count: int) -> None:
        runs.append(count)
        if len(runs) == 3:  # the first one with many items: stands for a thread that is not its own
            taken.append(list(range(10_000)))
        await anyio.sleep(1)

    few, many = flat_memory(scenario, sizes=(20, 100))
    assert runs == [20, 20, 100, 20, 100]
    assert many - few < 64 * 80


# -- histories -------------------------------------------------------------------------------------

A, B = ChildName("a", ""), ChildName("b", "")
FIRST, SECOND = Decision("s", A, (A,), ""), Decision("s", B, (B,), "")
BY_ITEM = StepBegun("s", {"until": "first_item"})
WRONG = {
    "is update 3, and comes after update 1": [Update(1, "s", ()), Update(3, "s", ())],
    "update 2 is of step 't', in step 's'": [Update(1, "s", ()), Update(2, "t", ())],
    "'t' is completed in step 's'": [Update(1, "s", ()), Completed("t", 1)],
    "'s' is completed at 2, after 1": [Update(1, "s", ()), Completed("s", 2)],
    "'s' is decided twice in visit 0": [FIRST, FIRST],
    "entry 4: 's' is decided twice in visit 0": [BY_ITEM, FIRST, Update(1, "s", ()), SECOND, FIRST],
    "entry 3: 's' is decided twice in visit 0": [BY_ITEM, Update(1, "s", ()), FIRST, SECOND],
    "entry 5: 's' is decided twice in visit 1": [
        *(BY_ITEM, FIRST, Completed("s", 0), StepBegun("s", {"until": "first"}), FIRST, SECOND)
    ],
    "is not among": [Decision("s", A, (B,), "")],
    "goes back into visit 0 of 's', which is new": [Rewound("s", 0)],
    "nothing restores its state": [Completed("s", 0), Rewound("s", 0)],
    "has another id": [QuestionAsked("s", "q", "?", "1"), QuestionAsked("s", "q", "?", "2")],
    "has another answer": [QuestionAnswered("1", "yes"), QuestionAnswered("1", "no")],
}


@pytest.mark.parametrize("why", WRONG)
def test_a_history_that_no_run_has_is_refused(why: str):
    with pytest.raises(AssertionError, match=why):
        assert_well_formed(WRONG[why])


@action(writes=["story"])
async def speak(breaks: bool, seconds: float) -> AsyncGenerator[str | Result[str]]:
    await anyio.sleep(seconds)
    yield "an item"
    await anyio.sleep(0.5)
    if breaks:
        raise ConnectionError
    yield Result("a story")


BREAKS = speak.bind(name="breaks", breaks=True, seconds=0)
TELLS = speak.bind(name="tells", breaks=False, seconds=1)


@pytest.mark.parametrize("again", ["restart", "retry"])
def test_a_race_is_decided_again_where_its_winner_has_broken_off(again: str):
    """Of a race that is decided by a result that can't be: see `WRONG`."""
    until = first_item(on_break="restart" if again == "restart" else "fail")
    speech = race(BREAKS, TELLS, into="story", until=until, name="speech")
    retry = Retry(2, on=Exception, jitter=0)
    around = fan_out(speech, over="ns", item="n", into="all", each=Each(retry=retry))
    seen = dict[str, int]()

    async def main() -> None:
        store = MemoryStore()
        with suppress(ExceptionGroup):
            await Application(around, store=store).run({"ns": [1]}, id="r")
        await assert_run_well_formed(store, "r")
        (child,) = await store.children(RunPath(run_id="r"))
        path = RunPath(parent=RunPath(run_id="r"), step=child.step, act=child.act, key=child.key)
        history = await store.read(path)
        assert_well_formed(history)
        seen["decisions"] = sum(isinstance(one, Decision) for one in history)

    run_virtual(main)
    assert seen["decisions"] == 2


def test_a_simulated_race_may_be_decided_again():
    until = first_item(on_break="restart")
    app = Application(race(BREAKS, TELLS, into="story", until=until), store=MemoryStore())
    simulate(app, {}, seeds=2, faults=())


@pytest.mark.anyio
async def test_a_whole_run_is_well_formed_or_what_is_wrong_is_told():
    store = MemoryStore()

    @action(reads=["n"], writes=["out"])
    async def one(n: int) -> int:
        return n

    inner = fan_out(one, over="ns", item="n", key=str, into="outs", name="inner")
    outer = fan_out(
        Graph.chain(inner, name="g"), over="groups", item="ns", into="all", name="outer"
    )
    await Application(outer, store=store).run({"groups": [[1, 2], [3]]}, id="r")
    await assert_run_well_formed(store, "r")
    with pytest.raises(UnknownRun):
        await assert_run_well_formed(store, "q")
    root = store._roots["r"]
    (child, *_) = root.children("outer", 0)
    assert child.record is not None
    child.record = child.record._replace(applied=99, status=None)
    with pytest.raises(AssertionError) as raised:
        await assert_run_well_formed(store, "r")
    assert "is under way in a run that has ended" in str(raised.value)
    assert "was applied by update 99, which does not exist" in str(raised.value)
