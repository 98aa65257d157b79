"""One limit, many places: the identity of a ``Limits`` object says what is counted together."""

from __future__ import annotations

import copy
import gc
import pickle
from collections import Counter
from typing import Any
from weakref import ref

import anyio
import pytest

from shoal import Application, Context, Graph, Limits, Rate, Runtime, action, fan_out
from shoal.testing import Attempt, RecordingHook, cancel_everywhere, no_leaks
from shoal.types import Act

pytestmark = pytest.mark.anyio


class Gauge:
    """Counts what is at work, by name and in all, and the most there ever was."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()

    async def work(self, name: str, seconds: float = 1.0) -> None:
        for one in (name, "all"):
            self.now[one] += 1
            self.peak[one] = max(self.peak[one], self.now[one])
        try:
            await anyio.sleep(seconds)
        finally:
            self.now.subtract((name, "all"))


def worker(gauge: Gauge, name: str, limits: Limits | None = None, **options: Any) -> Any:
    """An action that works for a second."""

    @action(reads=["n"], writes=["out"], name=name, limits=limits, **options)
    async def work(n: int) -> int:
        await gauge.work(name)
        return n

    return work


def spread(act: Act, name: str, limits: Limits | None = None) -> Any:
    return fan_out(act, over="ns", item="n", into=f"of_{name}", name=name, limits=limits)


async def run_all(runtime: Runtime, *apps: Application[Any], each: int = 6) -> None:
    async with anyio.create_task_group() as tasks:
        for app in apps:
            tasks.start_soon(runtime.run, app, {"ns": range(each)})


async def test_one_object_on_two_actions_counts_both_together():
    gauge, model = Gauge(), Limits(2)
    one = Application(spread(worker(gauge, "one", model), "first"))
    two = Application(spread(worker(gauge, "two", model), "second"))
    async with no_leaks(), Runtime() as runtime:
        await run_all(runtime, one, two)
    assert gauge.peak["all"] == 2
    assert anyio.current_time() == pytest.approx(6)


async def test_equal_objects_are_two_limits():
    assert Limits(2) == Limits(2)
    gauge = Gauge()
    one = Application(spread(worker(gauge, "one", Limits(2)), "first"))
    two = Application(spread(worker(gauge, "two", Limits(2)), "second"))
    async with no_leaks(), Runtime() as runtime:
        await run_all(runtime, one, two)
    assert gauge.peak == {"one": 2, "two": 2, "all": 4}


async def test_an_object_that_several_limits_join_is_one_limit():
    gauge, model = Gauge(), Limits(3)
    one = Application(spread(worker(gauge, "one", model & Limits(2)), "first"))
    two = Application(spread(worker(gauge, "two", Limits(2) & model), "second"))
    async with no_leaks(), Runtime() as runtime:
        await run_all(runtime, one, two)
    assert gauge.peak["all"] == 3
    assert gauge.peak["one"] == gauge.peak["two"] == 2


async def test_an_object_joined_with_itself_is_taken_once():
    gauge, model = Gauge(), Limits(1)
    app = Application(spread(worker(gauge, "one", model & model), "first"), limits=model)
    async with no_leaks(), Runtime(limits=model) as runtime:
        await run_all(runtime, app, each=2)
    assert gauge.peak["all"] == 1


async def test_one_object_on_two_fan_outs_counts_their_children_at_work():
    gauge, model = Gauge(), Limits(3)
    one = Application(spread(worker(gauge, "one"), "first", model))
    two = Application(spread(worker(gauge, "two"), "second", model))
    async with no_leaks(), Runtime() as runtime:
        await run_all(runtime, one, two)
    assert gauge.peak["all"] == 3
    assert anyio.current_time() == pytest.approx(4)


async def test_a_fan_out_alone_has_its_places_for_each_execution():
    gauge = Gauge()
    app = Application(spread(worker(gauge, "one"), "first", Limits(3)))
    async with no_leaks(), Runtime() as runtime:
        await run_all(runtime, app, app)
    assert gauge.peak["all"] == 6  # as ever: three for each of the two


async def test_copies_of_an_act_are_one_place():
    gauge, model = Gauge(), Limits(3)
    fan = spread(worker(gauge, "one"), "first", model)
    one, two = Application(fan), Application(fan.bind())
    async with no_leaks(), Runtime() as runtime:
        await run_all(runtime, one, two)
    assert gauge.peak["all"] == 6


async def test_fan_outs_inside_each_other_share_a_limit_of_one():
    gauge, model = Gauge(), Limits(1)
    inner = fan_out(
        worker(gauge, "leaf", model), over="ns", item="n", into="got", name="inner", limits=model
    )

    @action(reads=["ns"], writes=["size"])
    async def look(ns: list[int]) -> int:
        await gauge.work("before")
        return len(ns)

    outer = fan_out(
        Graph.chain(look, inner),
        over="lists",
        item="ns",
        into="all",
        take="got",
        name="outer",
        limits=model,
    )
    app = Application(outer, limits=model)
    with anyio.fail_after(60):
        async with no_leaks():
            result = await app.run({"lists": [[1, 2], [3]]})
    assert result.status == "succeeded"
    assert gauge.peak["all"] == 1


async def test_keys_are_shared_as_well():
    gauge, model = Gauge(), Limits(1, by=lambda state: state["n"] % 2)
    leaf = worker(gauge, "leaf", model)
    one = Application(spread(leaf, "first", model))
    two = Application(spread(worker(gauge, "other", model), "second"))
    async with no_leaks(), Runtime() as runtime:
        await run_all(runtime, one, two)
    assert gauge.peak["all"] == 2
    assert anyio.current_time() == pytest.approx(6)


async def test_a_rate_in_several_places_is_charged_once_for_each_attempt():
    starts: list[float] = []
    model = Limits(rate=Rate(1))

    @action(reads=["n"], writes=["m"], limits=model)
    async def begin(n: int) -> int:
        starts.append(anyio.current_time())
        return n

    @action(reads=["m"], writes=["out"])
    async def end(m: int) -> int:
        starts.append(anyio.current_time())
        return m

    fan = fan_out(
        Graph.chain(begin, end), over="ns", item="n", into="outs", take="out", limits=model
    )
    app = Application(fan, limits=model)
    async with no_leaks():
        await app.run({"ns": range(3)})
    assert sorted(starts) == pytest.approx([0, 1, 2, 3, 4, 5])


async def test_a_limit_outlives_the_actions_that_are_made_for_each_request():
    gauge, model = Gauge(), Limits(2, rate=Rate(1, per=10))
    async with no_leaks(), Runtime() as runtime:
        for _ in range(3):
            await runtime.run(Application(worker(gauge, "one", model)), {"n": 1})
            gc.collect()
    assert anyio.current_time() == pytest.approx(21)


async def test_own_fan_outs_of_several_actions_share_a_limit():
    gauge, model = Gauge(), Limits(2)

    def asking(name: str) -> Any:
        @action(reads=["ns"], writes=["sum"], name=name)
        async def ask(ns: range, context: Context) -> int:
            async with context.fan_out(name="tools", limits=model) as group:
                for n in ns:
                    group.start(worker(gauge, f"tool of {name}"), {"n": n}, key=n)
            return len(ns)

        return ask

    async with no_leaks(), Runtime() as runtime:
        await run_all(runtime, Application(asking("one")), Application(asking("two")))
    # The first of them has run before the second has said that it has the same limit.
    gauge.peak.clear()
    async with no_leaks(), Runtime() as runtime:
        await run_all(runtime, Application(asking("one")), Application(asking("two")))
    assert gauge.peak["all"] == 2


async def test_what_is_changed_in_one_place_is_changed_in_all():
    gauge, model = Gauge(), Limits(1)
    first, second = worker(gauge, "one", model), worker(gauge, "two", model)
    app = Application(Graph.chain(spread(first, "first"), spread(second, "second")))
    async with no_leaks(), Runtime(limits=Limits(50)) as runtime:
        await runtime.run(app, {"ns": range(2)})
        runtime.limiter(first).change(Limits(4))
        assert runtime.limiter(second).limits == Limits(4)
        gauge.peak.clear()
        await runtime.run(app, {"ns": range(6)})
        assert gauge.peak["all"] == 4
        assert {*runtime.limiters()} == {"", "one", "two"}
        # Pages tell of it once.
        uses = runtime._limits_in_use().uses  # pyright: ignore[reportPrivateUsage]
        assert [(use.owner, use.limits) for use in uses] == [
            ("runtime", "Limits(50)"),
            ("one", "Limits(4)"),
        ]


async def test_the_limiter_of_a_fan_out_has_what_it_shares_with_others():
    gauge, model = Gauge(), Limits(3)
    own = Limits(rate=Rate(100, burst=100))
    fan = spread(worker(gauge, "one"), "first", model & own)
    app = Application(fan, limits=model)
    async with no_leaks(), Runtime() as runtime:
        await runtime.run(app, {"ns": range(4)})
        shown = [one.limits for one in runtime.limiter(fan).statistics()]
        assert sorted(shown) == ["Limits(3)", "Limits(rate=Rate(100, per=1.0, burst=100))"]
        runtime.limiter(app).change(Limits(2))
        assert [one.slots for one in runtime.limiter(fan).statistics() if one.slots] == [2]


async def test_a_copy_is_another_limit():
    gauge, model = Gauge(), Limits(1)
    one = Application(worker(gauge, "one", model))
    two = Application(worker(gauge, "two", pickle.loads(pickle.dumps(model))))
    three = Application(worker(gauge, "three", copy.deepcopy(model)))
    async with no_leaks(), Runtime() as runtime, anyio.create_task_group() as tasks:
        for app in (one, two, three):
            tasks.start_soon(runtime.run, app, {"n": 1})
    assert gauge.peak["all"] == 3


async def test_a_limit_that_nothing_has_any_more_is_forgotten():
    gauge = Gauge()
    async with no_leaks(), Runtime() as runtime:
        model = Limits(1)
        origin = ref(model.parts[0].origin)
        await runtime.run(Application(worker(gauge, "one", model)), {"n": 1})
        del model
        gc.collect()
        assert origin() is None


async def test_waiting_for_a_shared_limit_is_published():
    gauge, model, hook = Gauge(), Limits(1), RecordingHook()
    app = Application(spread(worker(gauge, "one", model), "first", model), hooks=[hook])
    async with no_leaks():
        await app.run({"ns": range(2)})
    hook.assert_paired()


@pytest.mark.parametrize(
    ("backend", "how"), [("asyncio", "scope"), ("asyncio", "native"), ("trio", "scope")]
)
def test_cancelled_anywhere_nothing_of_a_shared_limit_is_lost(backend: Any, how: Any):
    async def scenario(attempt: Attempt) -> None:
        gauge = Gauge()
        model = Limits(1) & Limits(1, by=lambda state: state["n"] % 2)
        app = Application(spread(worker(gauge, "one", model), "first", model), limits=Limits(9))
        async with Runtime() as runtime:
            await attempt(runtime.run, app, {"ns": range(3)})
            for limiter in runtime.limiters().values():
                for one in limiter.statistics():
                    assert (one.in_use, one.waiting) == (0, 0)

    assert cancel_everywhere(scenario, backend=backend, how=how, limit=40) >= 15
