"""What watchers say of attempts that wait for a worker of an executor."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from shoal import Application, MemoryStore, Runtime, action, fan_out
from shoal.watch import Queries, explain
from shoal.watch._headline import held_up

from .fake import Fake

pytestmark = pytest.mark.anyio


@action(reads=["item"], writes=["done"])
async def second(item: int) -> int:
    await anyio.sleep(1)
    return item


def app_on(executor: Any) -> Application[Any]:
    return Application(fan_out(second, over="items", into="all", name="all"), executor=executor)


async def test_more_workers_are_advised_where_all_are_taken():
    app = app_on(Fake("cluster", slots=10))
    store = MemoryStore()
    async with Runtime(store=store, watch=True) as runtime:
        result = await runtime.run(app, {"items": list(range(100))}, id="a")
    found = explain(result)
    assert found.seconds == pytest.approx(10, abs=0.1)
    assert found.shares["slot"] > 0.5
    assert found.waited[0].limit == "cluster"
    assert found.advice.startswith(
        "more workers of cluster would help, where it is declared: all were"
    )
    assert (await Queries(store).explain("a")).advice == found.advice
    start = anyio.current_time()
    await app_on(Fake("cluster", slots=20)).run({"items": list(range(100))})
    assert anyio.current_time() - start == pytest.approx(5, abs=0.1), "it helps"


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("threads", "Runtime(threads=...)"),
        ("processes", "Processes(max_workers=...)"),
        ("ray", "Ray(actors=...)"),
    ],
)
async def test_the_advice_says_where_the_number_is_given(name: str, how: str):
    async with Runtime(watch=True) as runtime:
        app = app_on(Fake(name, slots=10))
        result = await runtime.run(app, {"items": list(range(100))})
    assert explain(result).advice.startswith(f"more workers of {name} would help, by {how}: all")


async def test_what_a_run_waits_for_is_named_while_it_runs():
    app = app_on(Fake("cluster", slots=2))
    async with Runtime(watch=True) as runtime:
        handle = await runtime.start(app, {"items": list(range(20))})
        await anyio.sleep(5.5)
        report = handle.report
        assert report is not None
        (use,) = [use for use in report.limits if use.owner == "executor"]
        assert (use.limits, use.in_use, use.slots, use.waiting) == ("cluster", 2, 2, 8)
        stuck = held_up(report)
        assert stuck is not None
        assert stuck.text == "workers of cluster"
        await handle.result()
    assert not [use for use in runtime_limits(handle) if use.waiting]


def runtime_limits(handle: Any) -> Any:
    return [use for use in handle.report.limits if use.owner == "executor"]


async def test_nothing_is_said_of_workers_that_are_free():
    async with Runtime(watch=True) as runtime:
        handle = await runtime.start(app_on(Fake("cluster")), {"items": [1, 2]})
        await anyio.sleep(0.5)
        assert not runtime_limits(handle)
        await handle.result()
