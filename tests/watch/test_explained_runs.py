"""Explanations of runs that were sampled: of programs built so that the answer is known."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from shoal import Application, Graph, Limits, MemoryStore, Rate, Retry, Runtime, action, fan_out
from shoal.watch import Explanation, Queries, explain

pytestmark = pytest.mark.anyio

CLOSE = 0.05


async def explained(app: Application[Any], items: int) -> Explanation:
    """Run an application that is watched; explain its result, and the same by its store."""
    store = MemoryStore()
    async with Runtime(store=store, watch=True) as runtime:
        result = await runtime.run(app, {"items": list(range(items))}, id="a")
    found = explain(result)
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert found.is_over
    again = await Queries(store).explain("a")
    assert again.shares == found.shares
    assert again.advice == found.advice
    return again


@action(reads=["item"], writes=["done"])
async def second(item: int) -> int:
    await anyio.sleep(1)
    return item


async def test_a_fan_out_with_few_children_in_flight_wants_more_of_them():
    app = Application(fan_out(second, over="items", into="all", limits=Limits(10), name="all"))
    found = await explained(app, 100)
    assert found.seconds == pytest.approx(10, abs=0.1)
    assert found.shares["action"] == pytest.approx(1, abs=CLOSE)
    assert found.advice.startswith("raising Limits(10) of all to 20 would help: all its slots were")
    faster = Application(fan_out(second, over="items", into="all", limits=Limits(20), name="all"))
    assert (await explained(faster, 100)).seconds == pytest.approx(5, abs=0.1), "it helps"


async def test_an_action_with_few_slots_wants_more_of_them():
    @action(reads=["item"], writes=["done"], limits=Limits(10))
    async def limited(item: int) -> int:
        await anyio.sleep(1)
        return item

    app = Application(fan_out(limited, over="items", into="all"))
    found = await explained(app, 40)
    assert found.shares["slot"] == pytest.approx((4 - 10 / 40 - 10 / 30 - 10 / 20 - 1) / 4, abs=0.1)
    assert found.advice.startswith("raising Limits(10) to 20 would help")
    assert found.waited[0].doing == "slot"


async def test_a_used_up_rate_is_named_and_slots_are_not():
    @action(reads=["item"], writes=["done"], limits=Limits(rate=Rate(5), by=lambda _: "openai"))
    async def ask(item: int) -> int:
        return item

    app = Application(fan_out(ask, over="items", into="all", limits=Limits(20)))
    found = await explained(app, 60)
    assert found.shares["rate"] == pytest.approx(1, abs=CLOSE)
    assert found.advice.startswith("the rate of openai is used up")
    assert "more slots would not" in found.advice


async def test_slots_come_before_the_rate_that_would_be_next():
    @action(reads=["item"], writes=["said"], limits=Limits(rate=Rate(20, burst=1), by=to_openai))
    async def ask(item: int) -> int:
        return item

    chain = Graph.chain(
        fan_out(second, over="items", into="all", limits=Limits(10), name="all"),
        fan_out(ask, over="items", into="said", name="asked"),
    )
    found = await explained(Application(chain), 200)  # 20 s in the first, 10 s in the second
    assert found.shares["action"] == pytest.approx(2 / 3, abs=CLOSE)
    assert found.shares["rate"] == pytest.approx(1 / 3, abs=CLOSE)
    assert found.advice.startswith("raising Limits(10) of all to 20 would help: all its slots were")
    assert "; the rate of openai would then be the next limit (4" in found.advice


def to_openai(_: Any) -> str:
    return "openai"


async def test_the_wait_between_attempts_is_named():
    @action(
        reads=["item"],
        writes=["done"],
        retry=Retry(attempts=4, on=ConnectionError, initial=3, factor=1, jitter=0),
    )
    async def flaky(item: int) -> int:
        flaky_calls.append(item)
        await anyio.sleep(0.1)
        if flaky_calls.count(item) < 3:
            raise ConnectionError("not yet")
        return item

    flaky_calls = list[int]()
    found = await explained(Application(fan_out(flaky, over="items", into="all")), 5)
    assert found.shares["backoff"] > 0.8
    assert "a shorter wait in Retry" in found.advice


async def test_a_chain_of_actions_has_nothing_to_wait_for():
    @action(reads=["items"], writes=["first"])
    async def first(items: list[int]) -> int:
        await anyio.sleep(2)
        return len(items)

    @action(reads=["first"], writes=["last"])
    async def last(first: int) -> int:
        await anyio.sleep(3)
        return first

    found = await explained(Application(Graph.chain(first, last)), 1)
    assert found.shares["action"] == pytest.approx(1, abs=CLOSE)
    assert "one at a time" in found.advice


async def test_the_critical_path_goes_down_to_the_child_that_ended_last():
    inner = fan_out(second_of, over="parts", item="n", key=str, into="done", name="inner")
    outer = fan_out(
        Graph.chain(inner, name="graph"),
        over="items",
        item="parts",
        key=lambda parts: str(len(parts)),
        take="done",
        into="all",
        name="outer",
    )
    store = MemoryStore()
    async with Runtime(store=store, watch=True) as runtime:
        await runtime.run(Application(outer), {"items": [[1, 2], [3, 1, 5], [4]]}, id="a")
    found = await Queries(store).explain("a")
    assert [link.row.path.key for link in found.critical_path] == ["", "3", "5"]
    assert [link.step for link in found.critical_path] == ["outer", "inner", ""]
    assert [link.seconds for link in found.critical_path] == pytest.approx([5, 5, 5], abs=0.01)
    assert [row.path.key for row in found.slowest] == ["3", "1", "2"]


@action(reads=["n"], writes=["done"])
async def second_of(n: int) -> int:
    await anyio.sleep(n)
    return n


async def test_a_run_is_explained_while_it_runs():
    app = Application(fan_out(second, over="items", into="all", limits=Limits(10), name="all"))
    async with Runtime(store=MemoryStore(), watch=True) as runtime:
        handle = await runtime.start(app, {"items": list(range(100))}, id="a")
        await anyio.sleep(5)
        found = explain(handle)
        assert not found.is_over
        assert found.seconds == pytest.approx(5, abs=0.3)
        assert found.advice.startswith("raising Limits(10) of all to 20 would help")
        handle.cancel("enough")


async def test_a_run_that_is_not_watched_says_so():
    app = Application(fan_out(second, over="items", into="all"))
    result = await app.run({"items": [1]})
    assert "there is no report" in explain(result).notes[0]


@action(reads=["n"], writes=["m"])
async def short(n: int) -> int:
    await anyio.sleep(0.2)
    return n


@pytest.mark.parametrize("is_read", [True, False])
@pytest.mark.parametrize(
    ("limits", "items", "words"),
    [
        (Limits(3), 60, "raising Limits(3) of ms to 6 would help"),
        (Limits(1), 20, "raising Limits(1) of ms to 2 would help"),
        (Limits(3) & Limits(1000), 60, "raising Limits(3) of ms to 6 would help"),
        (None, 1000, "raising Limits(100) of ms to 200 would help"),
    ],
)
async def test_the_advice_is_the_same_if_nobody_reads_the_reports(
    limits: Limits | None, items: int, words: str, *, is_read: bool
):
    given: dict[str, Any] = {} if limits is None else {"limits": limits}
    each = fan_out(short, over="ns", item="n", into="ms", name="ms", **given)
    async with Runtime(watch=True) as runtime:
        if is_read:  # as if a store kept the reports
            runtime.watch_reports(lambda root, report: None)
        result = await runtime.run(Application(each), {"ns": list(range(items))})
    assert explain(result).advice.startswith(words)
    assert result.report is not None
    (use,) = [one for one in result.report.limits if one.part < 0]
    assert use.full == pytest.approx(result.report.seconds, abs=0.5)


async def test_a_live_handle_knows_how_long_a_limit_was_full():
    each = fan_out(short, over="ns", item="n", into="ms", limits=Limits(3), name="ms")
    async with Runtime(watch=True) as runtime:
        handle = await runtime.start(Application(each), {"ns": list(range(100))})
        await anyio.sleep(2)
        report = handle.report
        handle.cancel("enough")
    assert report is not None
    assert report.limits[0].full == pytest.approx(2, abs=0.3)
