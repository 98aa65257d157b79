"""Children that are answered, and whose run is drained before they have started again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from shoal import Application, Context, Limits, MemoryStore, Rate, Runtime, action, fan_out, first
from shoal.testing import RecordingHook, assert_run_well_formed, no_leaks
from shoal.watch import Control, Queries

pytestmark = pytest.mark.anyio

# Made anew for each test: an object that stands in several places counts otherwise.
LIMITS: dict[str, Callable[[], Limits]] = {
    "a place": lambda: Limits(1),
    "its key": lambda: Limits(5) & Limits(1, by=lambda state: "all"),
    "a rate": lambda: Limits(5, rate=Rate(1, per=30, burst=3)),
}


@action(reads=["item"], writes=["text"])
async def tell(item: str, context: Context) -> str:
    if item.isupper():
        return f"{item}={await context.ask('word', item)}"
    await anyio.sleep(10)
    return item


def step(limits: Limits, **options: Any) -> Any:
    return fan_out(
        tell, over="items", item="item", key=str, into="out", take="text", name="step",
        limits=limits, ahead=9, **options,
    )  # fmt: skip


async def answer(store: MemoryStore, item: str) -> None:
    for one in (await Queries(store).questions("r")).open:
        if one.question == item:
            await Control(store).answer(one, "yes")
    await anyio.sleep(1)


@pytest.mark.parametrize("waits_for", LIMITS)
async def test_one_that_is_drained_before_it_starts_is_still_halted(waits_for: str):
    """It was counted as never started, though its store has it as halted."""
    store, hook = MemoryStore(), RecordingHook()
    app = Application(step(LIMITS[waits_for]()), name="app", store=store, watch=True, hooks=[hook])
    async with no_leaks(), Runtime() as runtime:
        run = await app.start({"items": ["A", "B", "c", "d"]}, id="r", runtime=runtime)
        await anyio.sleep(1)
        await answer(store, "A")
        run.drain("the process stops")
        result = await run.result()
        assert (result.status, result.reason) == ("halted", "the process stops")
        assert [one.question for one in result.questions] == ["B"]
        ledger = result.outcomes("step")
        known = waits_for != "a place"  # else d was not pulled
        assert (ledger.done, ledger.halted, ledger.left) == (1, 2, known)
        assert [one.question for one in (await Queries(store).questions("r")).open] == ["B"]
        result = await app.run(id="r", runtime=runtime)
        assert [one.question for one in result.questions] == ["B"]
        assert result.outcomes("step").halted == 1
        result = await app.run(id="r", answers={"word": "no"}, runtime=runtime)
    assert result.state["out"] == {"A": "A=yes", "B": "B=no", "c": "c", "d": "d"}
    hook.assert_paired()
    await assert_run_well_formed(store, "r")


async def test_the_open_questions_below_it_are_told():
    """One answer is enough for a child that an earlier execution has left; two were asked below."""
    store = MemoryStore()
    outer = fan_out(
        step(Limits(5)), over="groups", item="items", take="out", into="all", name="outer",
        limits=LIMITS["its key"](), ahead=9,
    )  # fmt: skip
    app = Application(outer, name="app", store=store, watch=True)
    groups = {"groups": [["A", "B"], ["c"]]}
    async with no_leaks(), Runtime() as runtime:
        run = await app.start(groups, id="r", runtime=runtime)
        await anyio.sleep(1)
        run.cancel("its process dies")
        await run.wait_ended()
        run = await app.start(id="r", runtime=runtime)
        await anyio.sleep(1)
        await answer(store, "A")
        run.drain("the process stops")
        result = await run.result()
        assert [one.question for one in result.questions] == ["B"]
        assert result.outcomes("outer").halted == 1
        result = await app.run(id="r", answers={"word": "no"}, runtime=runtime)
    assert result.state["all"] == [{"A": "A=yes", "B": "B=no"}, {"c": "c"}]


async def test_one_that_loses_is_not_counted_as_never_started():
    store = MemoryStore()
    app = Application(step(Limits(1), until=first()), name="app", store=store, watch=True)
    async with no_leaks(), Runtime() as runtime:
        run = await app.start({"items": ["A", "b"]}, id="r", runtime=runtime)
        await anyio.sleep(1)
        await answer(store, "A")
        result = await run.result()
    ledger = result.outcomes("step")
    assert (ledger.done, ledger.cancelled, ledger.halted, ledger.left) == (1, 1, 0, 0)
