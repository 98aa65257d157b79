"""Second copies of late children, where they meet questions, children of their own, and crashes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Done,
    Each,
    Hedge,
    Limits,
    MemoryStore,
    Result,
    Retry,
    Runtime,
    action,
    fan_out,
)
from shoal.events import HedgeEnded, Item
from shoal.testing import (
    Attempt,
    RecordingHook,
    assert_run_well_formed,
    cancel_everywhere,
    no_leaks,
)

pytestmark = pytest.mark.anyio

calls = Counter[int]()


@pytest.fixture(autouse=True)
def count_anew() -> None:
    calls.clear()


@action(reads=["n"], writes=["square"])
async def square(n: int) -> int:
    await anyio.sleep(1)
    return n * n


async def asks(n: int, context: Context) -> object:
    return await context.ask("go on?", n)


async def asks_shielded(n: int, context: Context) -> object:
    with anyio.CancelScope(shield=True):
        return await context.ask("go on?", n)


async def asks_and_cleans_up_badly(n: int, context: Context) -> object:
    try:
        return await context.ask("go on?", n)
    except anyio.get_cancelled_exc_class():
        raise ValueError("the cleanup broke") from None


async def starts_children(n: int, context: Context) -> object:
    async with context.fan_out(name="squares") as group:
        group.start_each(square, over=range(3), item="n")
        return sum([one.value async for one in group if isinstance(one, Done)])


DOES = {
    "asks": asks,
    "asks shielded": asks_shielded,
    "cleans up badly": asks_and_cleans_up_badly,
    "starts": starts_children,
}


def hedged(does: str, **options: Any) -> Any:
    """Map an action whose first call is late, and which gives an item before it ``does``."""

    @action(reads=["n"], writes=["out"], name="tell")
    async def tell(n: int, context: Context) -> Any:
        calls[n] += 1
        if calls[n] == 1:
            await anyio.sleep(100)
        await anyio.sleep(2)
        yield f"call {calls[n]}"
        yield Result(await DOES[does](n, context))

    return fan_out(
        tell, over="ns", item="n", into="out", name="map", limits=Limits(5),
        each=Each(hedge=Hedge(initial=1, budget=1), **options),
    )  # fmt: skip


@pytest.mark.parametrize("retries", [False, True])
@pytest.mark.parametrize("does", DOES)
async def test_a_copy_that_has_given_items_and_asks_is_replaced_by_another_attempt(
    does: str, retries: bool
):
    """The attempt itself has given way to it, so none of the two could go on."""
    options = {"retry": Retry(2, on=Exception)} if retries else {}
    store, hook = MemoryStore(), RecordingHook()
    app = Application(hedged(does, **options), name="app", store=store, hooks=[hook])
    async with no_leaks(), Runtime() as runtime:
        result = await app.run({"ns": [7]}, id="r", runtime=runtime)
        assert anyio.current_time() < 10, "the late attempt is not waited for"
        assert calls[7] == 3
        if does != "starts":
            (asked,) = result.questions
            assert result.status == "halted"
            result = await app.run(id="r", answers={asked.address: 5}, runtime=runtime)
    assert result.state["out"] == [5]
    hook.assert_paired()
    items = [(one.item, one.attempt, one.index) for one in hook.of(Item)]
    assert items[:2] == [("call 2", 1, 0), ("call 3", 2, 0)], "each attempt has its own items"
    assert not any(one.used for one in hook.of(HedgeEnded))
    await assert_run_well_formed(store, "r")


async def test_one_that_is_drained_there_halts_and_goes_on_in_the_next_execution():
    store = MemoryStore()
    app = Application(hedged("starts"), name="app", store=store)
    async with no_leaks(), Runtime() as runtime:
        run = await app.start({"ns": [7]}, id="r", runtime=runtime)
        await anyio.sleep(2)  # the copy is at work
        run.drain("the process stops")
        result = await run.result()
        assert (result.status, calls[7]) == ("halted", 2), "no other attempt begins"
        assert (await app.run(id="r", runtime=runtime)).state["out"] == [5]


async def test_the_time_of_the_child_goes_on():
    store = MemoryStore()
    app = Application(hedged("starts", timeout=5.5), name="app", store=store)
    async with no_leaks():
        with pytest.raises(ExceptionGroup):
            await app.run({"ns": [7]}, id="r")
    assert anyio.current_time() == pytest.approx(5.5)
    assert calls[7] == 3


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("how", ["scope", "native"])
@pytest.mark.parametrize("does", ["asks", "starts"])
def test_cancelled_everywhere(backend: Any, how: Any, does: str):
    if (backend, how) == ("trio", "native"):
        return

    async def scenario(attempt: Attempt) -> None:
        calls.clear()
        store = MemoryStore()
        app = Application(hedged(does), name="app", store=store)
        await attempt(lambda: app.run({"ns": [7]}, id="r"))
        result = await app.run({"ns": [7]}, id="r")
        if result.status == "halted":
            result = await app.run(id="r", answers={result.questions[0].address: 5})
        assert result.state["out"] == [5]
        await assert_run_well_formed(store, "r")

    assert cancel_everywhere(scenario, backend=backend, how=how) > 10


async def test_children_that_were_at_work_in_two_crashes_are_learned_from():
    """They have no copy, and none was watched when the first of them ended."""

    @action(reads=["n"], writes=["out"])
    async def act(n: int) -> int:
        await anyio.sleep(1)
        return n

    step = fan_out(
        act, over="ns", item="n", into="out", name="map", limits=Limits(2),
        each=Each(hedge=Hedge(initial=5, budget=1)),
    )  # fmt: skip
    store = MemoryStore()
    for at in range(2):
        app = Application(step, name="app")
        async with Runtime(store=store) as runtime:
            run = await app.start(None if at else {"ns": [1, 2, 3]}, id="r", runtime=runtime)
            await anyio.sleep(0.5)
            later = store.copy()
            run.cancel("this call is not kept")
            await run.wait_ended()
        store = later
    async with no_leaks(), Runtime(store=store) as runtime:
        result = await Application(step, name="app").run(id="r", runtime=runtime)
    assert result.state["out"] == [1, 2, 3]
