"""``OWNER``: limits, shares and budgets by the owner of a run, which no state has."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from functools import partial
from typing import Any

import anyio
import pytest

from shoal import (
    OWNER,
    Application,
    Breaker,
    Budget,
    Context,
    Each,
    Hedge,
    Limits,
    MemoryStore,
    Rate,
    Runtime,
    action,
    fan_out,
)
from shoal._errors.inspection import leaves
from shoal.errors import BadUse, BudgetExceeded
from shoal.testing import no_leaks

pytestmark = pytest.mark.anyio
now: Counter[str] = Counter()
most: Counter[str] = Counter()
turns: list[str] = []
late: set[int] = set()


@pytest.fixture(autouse=True)
def fresh() -> None:
    for each in (now, most, turns, late):
        each.clear()


@action(reads=["item"], writes=["out"])
async def work(item: int, context: Context, who: str = "") -> int:
    now[who] += 1
    most[who] = max(most[who], now[who])
    turns.append(who)
    try:
        await anyio.sleep(30 if item in late and not late.discard(item) else 1)
    finally:
        now[who] -= 1
    return item


def nested(who: str) -> Application[dict[str, Any]]:
    inner = fan_out(work.bind(who=who), over="items", into="out", name="inner", reads=["items"])
    outer = fan_out(inner, over="groups", item="items", into="outs")
    return Application(outer, name=f"of {who}")


GROUPS = {"groups": [[1, 2, 3], [4, 5, 6]]}


async def test_a_limit_by_owner_counts_each_owner_in_all_of_its_runs_and_fan_outs():
    async with (
        no_leaks(),
        Runtime(limits=Limits(2, by=OWNER)) as runtime,
        anyio.create_task_group() as tasks,
    ):
        for who in ("eve", "eve", "bob", ""):
            tasks.start_soon(partial(runtime.run, nested(who), GROUPS, owner=who or None))
        await anyio.sleep(0.5)
        (statistics,) = runtime.limiter(runtime).statistics()
        assert (statistics.keys, statistics.in_use) == (3, 6)
    assert most == {"eve": 2, "bob": 2, "": 2}


async def test_a_resumed_run_counts_for_its_owner_and_so_do_runs_that_it_starts():
    store = MemoryStore()

    @action(reads=["item"], writes=["out"])
    async def outer(item: int, context: Context) -> int:
        await context.ask("go", "on?")
        async with anyio.create_task_group() as tasks:
            for each in range(3):
                tasks.start_soon(runtime.run, Application(work.bind(who="eve")), {"item": each})
        return item

    app = Application(outer, name="outer")
    async with Runtime(store=store) as runtime:
        await runtime.run(app, {"item": 1}, id="a", owner="eve")
    async with no_leaks(), Runtime(store=store, limits=Limits(2, by=OWNER)) as runtime:
        await runtime.run(app, id="a", answers={"go": True})
    assert most["eve"] == 1  # the outer action holds the other slot


async def test_a_rate_of_a_fan_out_by_owner_is_one_for_all_of_an_owners_runs():
    limits = Limits(rate=Rate(1), by=OWNER)
    of_all = fan_out(work, over="items", item="item", into="out", limits=limits)
    async with no_leaks(), Runtime() as runtime:
        at = anyio.current_time()
        took: dict[str, float] = {}

        async def run(who: str) -> None:
            await runtime.run(Application(of_all), {"items": [1, 2]}, owner=who)
            took[who] = anyio.current_time() - at

        async with anyio.create_task_group() as tasks:
            for who in ("eve", "eve", "bob"):
                tasks.start_soon(run, who)
        assert took["bob"] == pytest.approx(2, abs=0.1)
        assert took["eve"] == pytest.approx(4, abs=0.1)


async def test_shares_by_owner_have_turns_by_weight():
    weights = {"paying": 3}
    async with (
        no_leaks(),
        Runtime(limits=Limits(1, share=OWNER, weight=weights)) as runtime,
        anyio.create_task_group() as tasks,
    ):
        for who in ["free"] * 5 + ["paying"]:
            app = Application(fan_out(work.bind(who=who), over="items", into="out"))
            tasks.start_soon(partial(runtime.run, app, {"items": list(range(100))}, owner=who))
        await anyio.sleep(100)
        tasks.cancel_scope.cancel()
    assert Counter(turns)["paying"] == pytest.approx(75, abs=4)


async def test_a_budget_by_owner_and_a_second_copy_count_for_the_owner():
    limits = Limits(100, by=OWNER) & Budget(2, "calls", by=OWNER, per=100, worst=1)
    late.add(1)
    async with no_leaks(), Runtime(limits=limits) as runtime:
        each = Each(hedge=Hedge(percentile=50, budget=1, initial=3))
        hedged = Application(fan_out(work, over="items", item="item", into="out", each=each))
        result = await runtime.run(hedged, {"items": [1]}, owner="eve")
        assert result.state["out"] == [1]  # by the copy, which has cost the second call
        with pytest.raises(ExceptionGroup) as raised:
            await runtime.run(hedged, {"items": [2]}, owner="eve")
        assert any(isinstance(leaf, BudgetExceeded) for leaf in leaves(raised.value))
        assert (await runtime.run(hedged, {"items": [2]}, owner="bob")).state["out"] == [2]


def test_it_is_one_object_that_only_limits_understand():
    assert pickle.loads(pickle.dumps(OWNER)) is OWNER
    assert copy.deepcopy(OWNER) is OWNER
    assert repr(Limits(2, by=OWNER)) == "Limits(2, by=OWNER)"
    assert repr(Limits(2, share=OWNER)) == "Limits(2, share=OWNER)"
    broken = fan_out(
        work, over="items", item="item", into="out", each=Each(breaker=Breaker(by=OWNER))
    )
    with pytest.raises(BadUse, match="no key of a Breaker"):
        Application(broken).run_sync({"items": [1]})
