"""Rates, keys, costs and pauses: judged where the body of an action starts, by what is promised."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any, Literal, cast

import aiolimiter
import anyio
import pytest

from shoal import (
    AIMD,
    Application,
    Context,
    Each,
    Failed,
    Graph,
    Hook,
    Limits,
    Rate,
    Retry,
    RetryLater,
    Runtime,
    SharedRate,
    State,
    action,
    fan_out,
)
from shoal.errors import BadResult, BadUse, DefinitionError, Overloaded
from shoal.events import AttemptEnded, Waiting
from shoal.rates import MemoryRates
from shoal.testing import Attempt, RecordingHook, cancel_everywhere, no_leaks, run_virtual
from shoal.types import Ended

pytestmark = pytest.mark.anyio

Backend = Literal["asyncio", "trio"]
backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])
EPSILON = 1e-6


# -- watching --------------------------------------------------------------------------------------


class Starts:
    """When bodies started, by key, and what each of them cost."""

    def __init__(self) -> None:
        self.of: dict[object, list[tuple[float, float]]] = defaultdict(list)
        self.order: list[Any] = []
        self.now: Counter[object] = Counter()
        self.peak: Counter[object] = Counter()

    def note(self, key: object = None, cost: float = 1, what: object = None) -> None:
        self.of[key].append((anyio.current_time(), cost))
        self.order.append(what)

    def enter(self, key: object) -> None:
        self.now[key] += 1
        self.peak[key] = max(self.peak[key], self.now[key])

    def leave(self, key: object) -> None:
        self.now[key] -= 1

    def times(self, key: object = None) -> list[float]:
        first = min(at for starts in self.of.values() for at, _ in starts)
        return [round(at - first, 6) for at, _ in self.of[key]]


def check_windows(starts: list[tuple[float, float]], rate: Rate, burst: float) -> None:
    """In any window of t seconds at most k * t / per + burst units start: look at all of them."""
    for first in range(len(starts)):
        units = 0.0
        for at, cost in starts[first:]:
            units += cost
            allowed = rate.k * (at - starts[first][0]) / rate.per + burst
            assert units <= allowed + EPSILON, f"{units} in {at - starts[first][0]} s"


def noting(starts: Starts, *, seconds: float = 0, limits: Limits | None = None) -> Any:
    """An action that notes its start, by the key that its element has, and sleeps."""

    @action(reads=["n"], writes=["out"], limits=limits, name="noting")
    async def noting(n: Any) -> Any:
        starts.note(key_of_element(n), what=n)
        await anyio.sleep(seconds)
        return n

    return noting


def key_of_element(n: Any) -> object:
    return cast("Any", n)[0] if isinstance(n, tuple) else None


def by_key(state: State) -> object:
    return key_of_element(state["n"])


def many(act: Any, limits: Limits | None = None, **options: Any) -> Any:
    return fan_out(act, over="ns", item="n", into="out", name="many", limits=limits, **options)


class Policy:
    """A user's policy that calls ``after``."""

    def __init__(self, after: Callable[..., Any]) -> None:
        self.after = after


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [0, -1, float("inf"), float("nan"), 10**400, 10**5000, "5", True, None], ids=range(9)
)
def test_a_rate_takes_numbers_above_0(wrong: Any):
    with pytest.raises(DefinitionError, match="takes a number above 0"):
        Rate(wrong)
    with pytest.raises(DefinitionError, match="per="):
        Rate(1, per=wrong)
    if wrong is not None:
        with pytest.raises(DefinitionError, match="burst="):
            Rate(1, burst=wrong)


def test_limits_that_make_no_sense_are_refused():
    for make, says in (
        (Limits, "limits nothing"),
        (lambda: Limits(5, cost=len), "what a rate is charged"),
        (lambda: Limits(rate=Rate(5), adapt=AIMD()), "give the n"),
        (lambda: Limits(rate=5), r"takes a Rate.*Rate\(5\)"),  # pyright: ignore[reportArgumentType]
        (lambda: Limits(5, by="host"), "takes a function"),  # pyright: ignore[reportArgumentType]
        (lambda: AIMD(least=3, most=2), "must not be below"),
        (lambda: AIMD(most=2.5), "most=.* a whole number"),  # pyright: ignore[reportArgumentType]
        (lambda: Limits(5, adapt=3), r"takes AIMD\(\), or an object"),  # pyright: ignore[reportArgumentType]
        (lambda: Limits(5, adapt=AIMD), r"make one: AIMD\(\)"),  # pyright: ignore[reportArgumentType]
        (lambda: Limits(5, adapt=Policy(anyio.sleep)), "coroutine function"),
        (lambda: AIMD(decrease=1), "decrease between 0 and 1"),
        (lambda: AIMD(decrease="x"), "decrease between 0 and 1"),  # pyright: ignore[reportArgumentType]
        (lambda: AIMD(increase=0), "increase=.* a number above 0"),
        (lambda: AIMD(increase="1"), "increase=.* a number above 0"),  # pyright: ignore[reportArgumentType]
        (lambda: AIMD(slow=-1), "slow=.* a number above 0"),
        (lambda: AIMD(overload=3), "overload=.* takes a function"),  # pyright: ignore[reportArgumentType]
        (lambda: AIMD(overload=anyio.sleep), "overload=.* coroutine function"),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(DefinitionError, match=says):
            make()


# -- exact -----------------------------------------------------------------------------------------


PLACES = ["fan-out", "action", "application", "runtime"]


async def run_limited(
    where: str,
    limits: Limits,
    act: Callable[[Limits | None], Any],
    elements: Any,
    runs: int = 1,
    **options: Any,
) -> None:
    """Run a map whose limits stand there, so many times at once."""
    step = many(
        act(limits if where == "action" else None),
        limits if where == "fan-out" else None,
        **options,
    )
    app = Application(step, limits=limits if where == "application" else None)
    async with (
        no_leaks(),
        Runtime(limits=limits if where == "runtime" else None) as runtime,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(runs):
            tasks.start_soon(runtime.run, app, {"ns": elements})


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("burst", [None, 3])
async def test_starts_are_spaced_evenly_after_a_burst(where: str, burst: float | None):
    starts = Starts()
    limits = Limits(rate=Rate(4, per=2, burst=burst))
    await run_limited(where, limits, lambda limits: noting(starts, limits=limits), range(9))
    at_once = int(burst or 1)
    assert starts.times() == [0.0] * at_once + [0.5 * n for n in range(1, 10 - at_once)]
    assert starts.order == list(range(9))


@pytest.mark.parametrize("where", PLACES)
async def test_a_rate_is_kept_to_by_bodies_though_slots_are_scarce(where: str):
    """A child that waits for a slot has taken no unit of a rate meanwhile."""
    starts = Starts()
    rate = Rate(2, per=1)
    limits = Limits(rate=rate)

    @action(reads=["n"], writes=["out"], limits=limits if where == "action" else None)
    async def leaf(n: int) -> int:
        starts.note()
        await anyio.sleep(10 if n < 2 else 0)
        return n

    app = Application(
        many(leaf, limits if where == "fan-out" else None),
        limits=limits if where == "application" else Limits(2),
    )
    both = limits & Limits(2) if where == "runtime" else Limits(2)
    async with Runtime(limits=both) as runtime:
        await runtime.run(app, {"ns": range(20)})
    check_windows(starts.of[None], rate, 1)
    assert starts.times()[:4] == ([0, 0.5, 10, 10.5])


async def test_throughput_is_the_rate_under_load():
    starts = Starts()
    await run_limited(
        "fan-out", Limits(rate=Rate(50)), lambda _: noting(starts, seconds=0.3), range(500), runs=2
    )
    assert starts.times()[-1] == pytest.approx(999 / 50, rel=0.01)


def run_random(seed: int, backend: Backend) -> None:
    """Run programs with random limits in random places, and cancel some of them."""
    random = Random(seed)
    starts = Starts()
    rate = Rate(random.choice([1, 3, 10]), per=random.choice([1, 2.5]), burst=random.choice([1, 4]))
    slots = random.choice([None, 1, 2])
    costs = random.random() < 0.5
    keys = random.choice([1, 3])
    limits = Limits(
        slots,
        rate=rate,
        by=by_key if keys > 1 else None,
        cost=(lambda state: state["n"][1]) if costs else None,
    )
    if random.random() < 0.5:
        limits &= Limits(random.choice([1, 3, 20]))
    where = random.choice(PLACES)
    others = Limits(random.choice([1, 2, 50]))
    fails = random.random() < 0.3

    @action(reads=["n"], writes=["out"], limits=limits if where == "action" else None)
    async def leaf(n: tuple[int, float], run: int) -> object:
        key = n[0] if keys > 1 else None
        starts.note(key, n[1] if costs else 1, what=(run, n))
        starts.enter(key)
        try:
            await anyio.sleep(random.choice([0, 0.2, 1, 3]))
            if fails and random.random() < 0.2:
                raise ValueError(n)
        finally:
            starts.leave(key)
        return n

    step = fan_out(
        leaf,
        over="ns",
        item="n",
        reduce=lambda state, outcome: state,
        writes=["x"],
        name="random",
        on_error="ignore",
        limits=limits if where == "fan-out" else Limits(random.choice([1, 5, 100])),
    )
    app = Application(
        step, limits=limits if where == "application" else random.choice([None, others])
    )

    async def main() -> None:
        async with (
            no_leaks(),
            Runtime(
                limits=limits if where == "runtime" else random.choice([None, others])
            ) as runtime,
            anyio.create_task_group() as tasks,
        ):

            async def run(number: int, patience: float) -> None:
                ns = [
                    (random.randrange(keys), random.choice([0.5, 1.0])) for _ in range(number * 10)
                ]
                with anyio.move_on_after(patience):
                    await runtime.run(app, {"ns": ns}, inputs={"run": number})

            for number in range(1, 4):
                tasks.start_soon(run, number, random.choice([0.7, 5, 10**9]))

    run_virtual(main, backend=backend, seed=seed)
    for key, found in starts.of.items():
        check_windows(found, rate, rate.burst or 1)
        if slots is not None and where != "fan-out":
            assert starts.peak[key] <= slots
        if slots is not None and keys > 1:
            assert starts.peak[key] <= slots


@pytest.mark.sweep
@backends
@pytest.mark.parametrize(
    "seeds",
    [range(12), pytest.param(range(12, 400), marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_no_window_holds_more_than_was_promised(seeds: range, backend: Backend):
    for seed in seeds:
        run_random(seed, backend)


@pytest.mark.parametrize("where", PLACES)
async def test_first_come_first_served_for_each_key(where: str):
    starts = Starts()
    random = Random(1)
    elements = [(random.randrange(5), n) for n in range(100)]
    limits = Limits(2, rate=Rate(5), by=by_key) & Limits(7)
    await run_limited(
        where, limits, lambda limits: noting(starts, seconds=0.3, limits=limits), elements
    )
    for key in range(5):
        found = [n for k, n in starts.order if k == key]
        assert found == sorted(found)


@pytest.mark.parametrize("where", PLACES)
async def test_runs_that_share_a_rate_take_turns(where: str):
    starts = Starts()
    limits = Limits(rate=Rate(10))
    step = many(
        noting(starts, limits=limits if where == "action" else None),
        limits if where == "fan-out" else None,
    )
    app = Application(step, limits=limits if where == "application" else None)
    took: list[float] = []
    async with (
        Runtime(limits=limits if where == "runtime" else None) as runtime,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(runtime.run, app, {"ns": range(1000)})
        await anyio.sleep(5)
        began = anyio.current_time()
        await runtime.run(app, {"ns": range(20)})
        took.append(anyio.current_time() - began)
    assert took[0] == pytest.approx(4, abs=0.5)  # alone it would take 2


async def test_what_is_cancelled_while_it_waits_has_taken_nothing():
    """As if it had never been there."""
    random = Random(3)
    starts = Starts()
    limits = Limits(rate=Rate(1), by=by_key)
    app = Application(noting(starts, limits=limits))
    async with no_leaks(), Runtime() as runtime, anyio.create_task_group() as tasks:

        async def run(n: int, patience: float) -> None:
            # Refused at once if even the first turn comes too late for it.
            with suppress(Overloaded), anyio.move_on_after(patience):
                await runtime.run(app, {"n": (0, n)})

        for n in range(200):
            tasks.start_soon(run, n, random.choice([0.5, 1, 1.5, 3, 10**9]))
    times = starts.times(0)
    assert times == [float(n) for n in range(len(times))]
    admission: Any = runtime._admission  # pyright: ignore[reportPrivateUsage]
    statistics = admission.limiter(app.graph.entry, limits).statistics()
    assert not any(one.waiting or one.in_use for one in statistics)


# -- joined, with costs ----------------------------------------------------------------------------


@pytest.mark.parametrize("where", PLACES)
async def test_requests_and_tokens_a_minute(where: str):
    requests, tokens = Rate(60, per=60), Rate(1000, per=60, burst=500)
    limits = Limits(rate=requests) & Limits(rate=tokens, cost=lambda state: state["n"][1])
    starts = Starts()
    random = Random(2)
    elements = [(0, random.choice([1, 10, 100, 500])) for _ in range(60)]

    def act(limits: Limits | None) -> Any:
        @action(reads=["n"], writes=["out"], limits=limits)
        async def ask(n: tuple[int, int]) -> int:
            starts.note(None, n[1])
            return n[1]

        return ask

    await run_limited(where, limits, act, elements)
    check_windows(starts.of[None], tokens, 500)
    check_windows([(at, 1) for at, _ in starts.of[None]], requests, 1)
    total = sum(n for _, n in elements)
    assert starts.times()[-1] <= (total - 500) * 0.06 + len(elements) + EPSILON


@pytest.mark.parametrize("where", PLACES)
async def test_charging_what_it_was(where: str):
    starts = Starts()
    limits = Limits(rate=Rate(10, per=1, burst=10), cost=lambda state: 5)

    def act(limits: Limits | None) -> Any:
        @action(reads=["n"], writes=["out"], limits=limits)
        async def ask(n: int, context: Context) -> int:
            starts.note()
            if n == 0:
                context.charge(25)
                context.charge(15)  # the last one counts
            if n == 2:
                context.charge(0)
            return n

        return ask

    await run_limited(where, limits, act, range(5))
    # 15 are gone, 5 more fit when 10 have come back; the third costs nothing after all
    assert starts.times() == [0, 1.0, 1.5, 1.5, 2.0]


async def test_charging_nonsense():
    @action(reads=["n"], writes=["out"])
    async def ask(n: Any, context: Context) -> None:
        context.charge(n)

    for wrong in (-1, "5", None, float("nan")):
        with pytest.raises(BadUse, match="number of units"):
            await Application(ask).run({"n": wrong})
    await Application(ask).run({"n": 1})  # where nothing has a cost, it has no effect


async def test_what_could_never_start_is_refused():
    limits = Limits(rate=Rate(10, burst=5), cost=lambda state: 6)
    with pytest.raises(Exception, match=r"no more than 5.*never start"):
        await Application(noting(Starts(), limits=limits)).run({"n": 1})


# -- keys that don't hold up others ----------------------------------------------------------------


@pytest.mark.sweep
@pytest.mark.parametrize("where", PLACES)
async def test_one_stalled_key_of_1000_delays_no_other(where: str):
    async def ends(stalled: bool) -> dict[int, float]:
        ended: dict[int, float] = {}

        def act(limits: Limits | None) -> Any:
            @action(reads=["n"], writes=["out"], limits=limits)
            async def visit(n: tuple[int, int]) -> None:
                await anyio.sleep(10_000 if stalled and n[0] == 7 else 1)
                ended[n[0]] = anyio.current_time()

            return visit

        began = anyio.current_time()
        elements = [(n % 1000, n) for n in range(3000)]
        await run_limited(where, Limits(1, by=by_key), act, elements)
        return {key: round(at - began, 6) for key, at in ended.items() if key != 7}

    without = await ends(stalled=False)
    # the stalled one has a place in flight, which is one of a hundred
    assert max((await ends(stalled=True)).values()) <= max(without.values()) + 1


async def test_a_waiting_child_holds_no_place_in_flight():
    starts = Starts()
    gauge: Counter[str] = Counter()
    limits = Limits(1, by=by_key)

    @action(reads=["n"], writes=["first"])
    async def first(n: tuple[int, int]) -> int:
        gauge["first"] += 1
        await anyio.sleep(0.1)
        return 0

    @action(reads=["n"], writes=["out"], limits=limits)
    async def second(n: tuple[int, int]) -> int:
        starts.enter("second")
        await anyio.sleep(100 if n[0] == 0 else 1)
        ended.append(anyio.current_time())
        starts.leave("second")
        return 0

    elements = [*((0, n) for n in range(10)), *((n, n) for n in range(1, 20))]
    step = many(Graph.chain(first, second), Limits(4))
    began = anyio.current_time()
    ended: list[float] = []

    await Application(step).run({"ns": elements})
    others = sorted(at - began for at in ended)[:19]
    assert others[-1] < 20  # and not 1,000
    assert starts.peak["second"] <= 4


# -- trying later ----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", PLACES)
async def test_trying_later_pauses_the_key_and_holds_nothing(where: str):
    starts = Starts()
    asked: Counter[object] = Counter()
    limits = Limits(1, by=by_key) & Limits(3)

    def act(limits: Limits | None) -> Any:
        @action(reads=["n"], writes=["out"], limits=limits)
        async def visit(n: tuple[str, int], context: Context) -> int:
            starts.note(n[0])
            asked[n] += 1
            assert context.attempt == 1
            await anyio.sleep(1)
            if n == ("busy", 0) and asked[n] < 3:
                raise RetryLater(10)
            return n[1]

        return visit

    elements = [*(("busy", n) for n in range(5)), *((f"key {n}", n) for n in range(30))]
    await run_limited(where, limits, act, elements)
    assert starts.times("busy") == [0, 11, 12, 13, 14, 15, 26]  # it stands in line again
    assert max(starts.times(f"key {n}")[0] for n in range(30)) <= 11  # three at once


@pytest.mark.parametrize("limits", [None, Limits(1), Limits(rate=Rate(1000))])
async def test_without_keys_only_the_child_waits(limits: Limits | None):
    starts = Starts()
    asked: Counter[int] = Counter()

    @action(reads=["n"], writes=["out"])
    async def visit(n: int) -> int:
        starts.note(n)
        asked[n] += 1
        if n == 0 and asked[n] < 3:
            raise RetryLater(10)
        await anyio.sleep(1)
        return n

    async with Runtime(limits=limits) as runtime:
        result = await runtime.run(Application(many(visit, Limits(1))), {"ns": range(5)})
    assert result.state["out"] == [0, 1, 2, 3, 4]
    assert starts.times(0) == pytest.approx([0, 10, 20], abs=0.1)
    assert starts.times(4)[0] < 5


async def test_after_ten_in_a_row_it_fails():
    count = 0

    @action(reads=["n"], writes=["out"], limits=Limits(1), retry=Retry(3, on=ValueError))
    async def never(n: int) -> int:
        nonlocal count
        count += 1
        raise RetryLater(1)

    with pytest.raises(RetryLater) as caught:
        await Application(never).run({"n": 1})
    assert count == 10
    assert "10 times in a row" in "".join(caught.value.__notes__)


async def test_trying_later_in_a_root_run_and_a_nested_graph():
    asked = 0

    @action(reads=["n"], writes=["out"], limits=Limits(1, by=lambda state: "all"))
    async def visit(n: int) -> int:
        nonlocal asked
        asked += 1
        if asked % 2:
            raise RetryLater(5)
        return n

    began = anyio.current_time()
    await Application(visit).run({"n": 1})
    assert anyio.current_time() - began == pytest.approx(5)
    inner = Graph.chain(visit, name="inner")
    result = await Application(many(Graph.chain(inner, name="outer"), Limits(1))).run(
        {"ns": [1, 2]}
    )
    assert result.state["out"] == [1, 2]


async def test_trying_later_takes_seconds():
    for wrong in (-1, "1", float("inf"), float("nan")):
        with pytest.raises(ValueError, match="seconds"):
            RetryLater(wrong)  # pyright: ignore[reportArgumentType]


async def test_waiting_is_published():
    hook = RecordingHook()
    limits = Limits(rate=Rate(1), by=by_key)
    app = Application(many(noting(Starts()), limits), hooks=[hook])
    await app.run({"ns": [("a", 1), ("a", 2), ("b", 1)]})
    (received,) = hook.of(Waiting)
    assert received.key == "a"
    assert received.limit == "Limits(rate=Rate(1, per=1.0), by=by_key)"
    assert received.step == ""
    hook.events.clear()
    both = Application(many(noting(Starts(), seconds=1, limits=Limits(1, by=by_key))), hooks=[hook])
    await both.run({"ns": [("a", 1), ("a", 2)]})
    assert [event.key for event in hook.of(Waiting)] == ["a"]
    hook.assert_paired()


# -- changed while running -------------------------------------------------------------------------


async def test_limits_are_changed_while_running():
    starts = Starts()
    leaf = noting(starts, limits=Limits(rate=Rate(1)))
    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.run, Application(many(leaf)), {"ns": range(100)})
        await anyio.sleep(5.5)
        assert runtime.limiter(leaf).statistics()[0].waiting > 0
        runtime.limiter(leaf).change(Limits(rate=Rate(10)))
    times = starts.times()
    assert times[:6] == [0, 1, 2, 3, 4, 5]
    assert times[-1] == pytest.approx(6 + 9.4, abs=0.6)


async def test_slots_are_changed_while_running():
    starts = Starts()
    leaf = noting(starts, seconds=1, limits=Limits(4))
    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        limiter = runtime.limiter(leaf)
        tasks.start_soon(runtime.run, Application(many(leaf)), {"ns": range(12)})
        await anyio.sleep(0.5)
        limiter.change(Limits(1))
        await anyio.sleep(2)
        limiter.change(Limits(6))
        with pytest.raises(BadUse, match="can't be changed into"):
            limiter.change(Limits(1, by=by_key))
    assert starts.times() == [0] * 4 + [1, 2] + [2.5] * 5 + [3]


async def test_limits_that_are_refused_change_nothing():
    starts = Starts()
    key = object()
    limits = Limits(2, by=lambda state: key) & Limits(3, rate=Rate(1000), by=lambda state: key)
    leaf = noting(starts, seconds=1, limits=limits)
    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        limiter = runtime.limiter(leaf)
        tasks.start_soon(runtime.run, Application(many(leaf)), {"ns": range(5)})
        await anyio.sleep(0.5)
        shared = SharedRate(Rate(1000), "x", MemoryRates())
        with pytest.raises(BadResult, match="all processes must compute the same key"):
            limiter.change(
                Limits(1, by=lambda state: key) & Limits(3, rate=shared, by=lambda state: key)
            )
        assert limiter.limits == limits
        assert [one.slots for one in limiter.statistics()] == [2, 3]
        assert [one.limits for one in limiter.statistics()] == list(map(repr, limits.parts))
    assert starts.times() == pytest.approx([0, 0, 1, 1, 2], abs=0.1)


async def test_a_waiting_request_keeps_its_cost_and_its_key():
    starts = Starts()
    leaf = noting(starts, limits=Limits(rate=Rate(1, burst=4), by=by_key, cost=lambda state: 4))
    app = Application(many(leaf))
    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        limiter = runtime.limiter(leaf)
        tasks.start_soon(runtime.run, app, {"ns": [("a", n) for n in range(3)]})
        await anyio.sleep(1)
        changed = Limits(rate=Rate(2, burst=4), by=lambda state: "b", cost=lambda state: 1)
        limiter.change(changed)
        await runtime.run(app, {"ns": [("c", n) for n in range(5)]})
    assert starts.times("a") == [0, 4, 6], "what is gone is; then the new rate, at the old cost"
    assert starts.times("c") == [1] * 4 + [1.5], "by another key, and cheaper"


@pytest.mark.sweep
async def test_keys_that_are_not_used_are_forgotten():
    starts = Counter[int]()

    @action(reads=["n"], writes=["out"])
    async def visit(n: int) -> None:
        starts[n % 10] += 1

    step = fan_out(
        visit,
        over=lambda state: range(100_000),
        reads=[],
        item="n",
        reduce=lambda state, outcome: state,
        writes=["x"],
        name="many",
        limits=Limits(1, by=lambda state: state["n"]) & Limits(100),
    )
    async with Runtime() as runtime:
        await runtime.run(Application(step), {})
        assert runtime.limiter(step).statistics()[0].keys <= 1000
    assert sum(starts.values()) == 100_000


# -- adapting --------------------------------------------------------------------------------------


def test_aimd_by_its_numbers():
    policy = AIMD(least=2, most=10, increase=1, decrease=0.5, slow=3)

    def ended(error: BaseException | None = None, **changes: Any) -> Ended:
        given: dict[str, Any] = {
            "error": error,
            "seconds": 1.0,
            "started_at": 10.0,
            "now": 11.0,
            "in_use": 4,
        }
        return Ended(**{**given, **changes})

    assert policy.after(4, 0, ended()) == 4.25
    assert policy.after(4, 0, ended(in_use=2)) == 4
    assert policy.after(4, 0, ended(TimeoutError())) == 2
    assert policy.after(4, 0, ended(seconds=4)) == 2
    assert policy.after(4, 10.5, ended(TimeoutError())) == 4  # it began before that was lowered
    assert policy.after(2, 0, ended(TimeoutError())) == 2
    assert policy.after(10, 0, ended(in_use=10)) == 10
    assert policy.after(4, 0, ended(ValueError())) == 4


async def test_a_policy_is_given_the_time_when_the_number_was_last_lowered():
    """Attempts that leave it as it is, or raise it, don't count as a change."""
    seen = list[float]()

    def after(n: float, changed_at: float, ended: Ended) -> float:
        seen.append(changed_at - began)
        return n + {2: 1, 3: -1}.get(len(seen), 0)

    @action(reads=["n"], writes=["out"])
    async def work(n: int) -> None:
        await anyio.sleep(1)

    began = anyio.current_time()
    limits = Limits(1, adapt=Policy(after))
    await Application(many(work, limits)).run({"ns": range(6)})
    assert seen[:3] == [seen[0]] * 3
    assert seen[3:] == [3] * 3, "the third attempt ended then"


@pytest.mark.parametrize("where", PLACES)
async def test_capacity_adapts_to_what_a_server_bears(where: str):
    running = 0
    peaks: list[int] = []

    class Busy(Exception):
        status_code = 503

    def act(limits: Limits | None) -> Any:
        @action(reads=["n"], writes=["out"], limits=limits)
        async def ask(n: int) -> None:
            nonlocal running
            running += 1
            peaks.append(running)
            try:
                await anyio.sleep(1)
                if running > 8:
                    raise Busy
            finally:
                running -= 1

        return ask

    limits = Limits(2, adapt=AIMD(most=50))
    step = fan_out(
        act(limits if where == "action" else None),
        over="ns",
        item="n",
        name="many",
        on_error="ignore",
        limits=limits if where == "fan-out" else None,
    )
    app = Application(step, limits=limits if where == "application" else None)
    async with Runtime(limits=limits if where == "runtime" else None) as runtime:
        await runtime.run(app, {"ns": range(1000)})
    assert max(peaks) <= 20
    late = peaks[500:]
    assert 3 <= sum(late) / len(late) <= 10


# -- cancelled everywhere --------------------------------------------------------------------------


def everywhere(limits: Limits, later: bool = False) -> Any:
    asked: Counter[int] = Counter()

    @action(reads=["n"], writes=["out"])
    async def leaf(n: int) -> int:
        asked[n] += 1
        if later and asked[n] == 1 and n % 2:
            raise RetryLater(1.5)
        await anyio.sleep(0.5)
        return n

    return many(leaf, limits)


MAPS: dict[str, Callable[[], Any]] = {
    "rate": lambda: everywhere(Limits(3, rate=Rate(2, burst=2))),
    "keys": lambda: everywhere(Limits(2) & Limits(1, rate=Rate(1), by=lambda s: s["n"] % 2)),
    "paused": lambda: everywhere(Limits(2) & Limits(1, by=lambda s: s["n"] % 3), later=True),
    "later": lambda: everywhere(Limits(1), later=True),
    "adaptive": lambda: everywhere(Limits(1, adapt=AIMD())),
}


@pytest.mark.parametrize(
    ("backend", "how"), [("asyncio", "scope"), ("asyncio", "native"), ("trio", "scope")]
)
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("where", ["fan-out", "runtime"])
@pytest.mark.parametrize("places", [20, pytest.param(None, marks=pytest.mark.slow)])
def test_cancelled_anywhere_it_gives_everything_back(
    backend: Backend, how: Any, name: str, where: str, places: int | None
):
    async def scenario(attempt: Attempt) -> None:
        hook = RecordingHook()
        step = MAPS[name]()
        limits = step.limits if where == "runtime" else None
        if limits is not None:
            step = many(step.acts[0], Limits(100))
        app = Application(step, hooks=[hook])
        async with Runtime(limits=limits) as runtime:

            async def run() -> None:
                await runtime.run(app, {"ns": range(6)})

            await attempt(run)
            admission: Any = runtime._admission  # pyright: ignore[reportPrivateUsage]
            assert not admission.scheduler.wait_queues
            for named in admission.limiters.by_owner.values():
                for limiter in named.values():
                    for one in limiter.statistics():
                        assert (one.in_use, one.waiting) == (0, 0)
        hook.assert_paired()

    assert cancel_everywhere(scenario, backend=backend, how=how, limit=places) >= 15


# -- others' limiters ------------------------------------------------------------------------------


def test_an_aiolimiter_on_asyncio():
    limiter = aiolimiter.AsyncLimiter(2, 1)
    starts = Starts()

    async def main() -> None:
        step = many(noting(starts), Limits(rate=limiter) & Limits(10))
        await Application(step).run({"ns": range(6)})

    run_virtual(main, backend="asyncio")
    assert len(starts.order) == 6
    times = starts.times()
    check_windows(starts.of[None], Rate(2), 2.1)
    assert 1.9 <= times[-1] <= 2.6


def test_what_is_charged_afterwards_counts_at_an_aiolimiter_if_it_has_room():
    """It takes nothing back, and nothing waits for it there."""

    async def main() -> None:
        limiter = aiolimiter.AsyncLimiter(10, 100)

        @action(reads=["n"], writes=["out"], limits=Limits(rate=limiter, cost=lambda _: 2))
        async def work(n: int, context: Context) -> None:
            context.charge(n)

        for charged, left in ((6, 4), (1, 2), (7, 0)):
            await Application(work).run({"n": charged})
            assert limiter.has_capacity(left)
            assert not limiter.has_capacity(left + 1)

    run_virtual(main, backend="asyncio")


def test_an_aiolimiter_on_trio():
    async def main() -> None:
        step = many(noting(Starts()), Limits(rate=aiolimiter.AsyncLimiter(2, 1)))
        with pytest.raises(DefinitionError, match=r"asyncio.*Rate\(2, per=1\)"):
            await Application(step).run({"ns": range(6)})
        leaf = noting(Starts(), limits=Limits(rate=Rate(2)))
        async with Runtime() as runtime:
            limiter = runtime.limiter(leaf)
            with pytest.raises(DefinitionError, match=r"asyncio.*Rate\(2, per=1\)"):
                limiter.change(Limits(rate=aiolimiter.AsyncLimiter(2, 1)))
            await runtime.run(Application(many(leaf)), {"ns": range(2)})

    run_virtual(main, backend="trio")


# -- in real time ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_rate_in_real_time(backend: str):
    at: list[float] = []

    @action(reads=["n"], writes=["out"])
    async def note(n: int) -> None:
        at.append(time.perf_counter())

    app = Application(many(note, Limits(rate=Rate(200))))
    anyio.run(app.run, {"ns": range(600)}, backend=backend)
    assert 599 / (at[-1] - at[0]) == pytest.approx(200, rel=0.03)


# -- back-pressure ---------------------------------------------------------------------------------


class Source:
    """Elements that are counted as they are pulled, each of some size."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.pulled = 0

    def __iter__(self) -> Any:
        for n in range(self.n):
            self.pulled += 1
            yield bytes(10_000) + bytes([n % 256])


@action(reads=["n"], writes=["out"])
async def size(n: bytes) -> int:
    return len(n)


@pytest.mark.parametrize("slow", ["reducer", "events", "store"])
async def test_whatever_is_slow_slows_the_source_down(slow: str):
    from shoal import MemoryStore
    from shoal.stores import Batch

    source, ahead, done = Source(2000), 0, 0

    class SlowStore(MemoryStore):  # pyright: ignore[reportGeneralTypeIssues] # a test's own
        async def _slowly(self, saved: Any) -> None:
            if saved is not None:
                await saved
            await anyio.sleep(0.01)

        def save(self, batch: Batch) -> Any:
            watch(len(batch.applied))
            saved = super().save(batch)
            return self._slowly(saved) if slow == "store" else saved

    def watch(by: int) -> None:
        nonlocal ahead, done
        done += by
        ahead = max(ahead, source.pulled - done)

    def reduce(state: State, outcome: Any) -> State:
        if slow == "reducer":
            watch(0)
        return state.increment(total=1)

    step = fan_out(
        size,
        over=lambda state: source,
        reads=[],
        item="n",
        reduce=reduce,
        writes=["total"],
        name="sizes",
        limits=Limits(20),
    )
    app = Application(step, store=SlowStore() if slow != "events" else None)
    async with app.open({"total": 0}, buffer=50) as run:
        if slow == "events":
            async for event in run:
                if type(event).__name__ == "ChildEnded":
                    watch(1)
                await anyio.sleep(0.001)
        else:
            await run.result()
    assert source.pulled == 2000
    assert ahead <= 20 + 100


@pytest.mark.sweep
async def test_memory_is_bounded_where_children_wait_for_a_rate():
    async def peak(n: int) -> int:
        source = Source(n)
        step = fan_out(
            size,
            over=lambda state: source,
            reads=[],
            item="n",
            reduce=lambda state, outcome: state,
            writes=["x"],
            name="sizes",
            limits=Limits(20) & Limits(rate=Rate(1000), by=lambda state: len(state["n"]) % 3),
        )
        tracemalloc.start()
        try:
            await Application(step).run({})
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    await peak(100)
    assert await peak(3000) < await peak(500) + 400_000


# -- cancelled between the grant and the body ------------------------------------------------------


async def test_a_child_that_is_cancelled_before_its_body_starts_has_paid_nothing():
    """It was granted while a hook still heard that it waits."""

    class Slow(Hook):
        async def on_waiting(self, event: Waiting) -> None:
            await anyio.sleep(5)

    starts = Starts()
    leaf = noting(starts, limits=Limits(rate=Rate(1, per=10)))
    async with no_leaks(), Runtime() as runtime, anyio.create_task_group() as tasks:
        await runtime.run(Application(leaf), {"n": 0})
        await anyio.sleep(7)
        with anyio.move_on_after(
            4
        ):  # at 10 it is granted, at 11 it would be cancelled, at 12 start
            await runtime.run(Application(leaf, hooks=[Slow()]), {"n": 1})
        tasks.start_soon(runtime.run, Application(leaf), {"n": 2})
    assert starts.order == [0, 2]
    assert starts.times() == [0, 12]


# -- pauses further up -----------------------------------------------------------------------------


async def test_trying_later_pauses_the_keys_of_all_fan_outs_around_it():
    """No other child of the key is started, and who asked for it waits by itself."""
    starts = Starts()
    asked: Counter[object] = Counter()

    @action(reads=["page"], writes=["out"])
    async def fetch(page: tuple[str, int]) -> None:
        starts.note(page[0], what=page)
        asked[page] += 1
        if page == ("busy", 0) and asked[page] == 1:
            raise RetryLater(10)
        await anyio.sleep(1)

    @action(reads=["n"], writes=["pages"])
    async def pages(n: tuple[str, int]) -> list[tuple[str, int]]:
        await anyio.sleep(1)
        return [(n[0], n[1] * 2), (n[0], n[1] * 2 + 1)]

    inner = fan_out(fetch, over="pages", item="page", name="inner", limits=Limits(1))
    step = fan_out(
        Graph.chain(pages, inner, name="site"),
        over="ns",
        item="n",
        name="outer",
        limits=Limits(2, by=by_key),
    )
    # two of the key are let in together; the second has not asked for a pause, and goes on
    async with no_leaks(), Runtime() as runtime:
        await runtime.run(
            Application(step), {"ns": [*(("busy", n) for n in range(4)), ("free", 0)]}
        )
    assert starts.times("free") == [0, 1]
    times = dict(zip(_pages(starts, "busy"), starts.times("busy"), strict=True))
    assert times[2] == 0
    assert times[3] == 1
    assert times[0] == 10
    assert min(times[n] for n in (4, 5, 6, 7)) == 11


def _pages(starts: Starts, key: str) -> list[int]:
    return [n for name, n in starts.order if name == key]


async def test_trying_later_in_a_fan_out_of_an_action_pauses_the_key_around_it():
    starts = Starts()

    @action(reads=["page"], writes=["out"])
    async def fetch(page: int) -> None:
        starts.note("busy", what=page)
        if page == 0 and len(starts.order) == 1:
            raise RetryLater(10)

    @action(reads=["n"], writes=["out"])
    async def site(n: tuple[str, int], context: Context) -> None:
        async with context.fan_out(name="inner") as group:
            group.start(fetch, {"page": n[1]})

    step = many(site, Limits(1, by=by_key) & Limits(3))
    async with no_leaks(), Runtime() as runtime:
        await runtime.run(Application(step), {"ns": [("busy", 0), ("busy", 1)]})
    assert starts.order == [0, 0, 1]
    assert starts.times("busy") == [0, 10, 10]


# -- a stalled key, exactly ------------------------------------------------------------------------


STALLS: dict[str, Any] = {
    "its body hangs": anyio.sleep_forever,
    "it is paused": lambda: _later(10_000),
}


async def _later(seconds: float) -> None:
    raise RetryLater(seconds)


@pytest.mark.sweep
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("stall", STALLS)
async def test_999_keys_take_exactly_the_time_they_take_without_the_stalled_one(
    where: str, stall: str
):
    """A body that hangs has one of the places in flight, so there is one more of these."""

    async def ends(*, stalled: bool) -> dict[object, float]:
        ended: dict[object, float] = {}
        began = anyio.current_time()

        def act(limits: Limits | None) -> Any:
            @action(reads=["n"], writes=["out"], limits=limits)
            async def visit(n: tuple[int, int]) -> None:
                if n[0] == 0:
                    await STALLS[stall]()
                await anyio.sleep(1 + n[0] % 7 / 10)
                ended[n] = round(anyio.current_time() - began, 6)
                if len(ended) == 3 * 999:
                    tasks.cancel_scope.cancel()

            return visit

        # those of the stalled key come first
        elements = [(n, k) for n in range(not stalled, 1000) for k in range(3)]
        limits = Limits(1, by=by_key)
        places = Limits(40 + (stalled and stall == "its body hangs"))
        step = many(
            act(limits if where == "action" else None),
            limits & places if where == "fan-out" else places,
        )
        app = Application(step, limits=limits if where == "application" else None)
        async with (
            no_leaks(),
            Runtime(limits=limits if where == "runtime" else None) as runtime,
            anyio.create_task_group() as tasks,
        ):
            await runtime.run(app, {"ns": elements})
        return ended

    assert await ends(stalled=True) == await ends(stalled=False)


async def test_only_when_the_look_ahead_is_full_can_a_key_delay_another():
    """And no more than that is pulled."""
    pulled = 0
    started: list[int] = []

    def elements(state: State) -> Any:
        nonlocal pulled
        for n in range(1000):
            pulled += 1
            yield (0 if n < state["stalled"] else n, n)

    @action(reads=["n"], writes=["out"])
    async def visit(n: tuple[int, int]) -> None:
        started.append(n[0])
        if n[0] == 0:
            await anyio.sleep(50)

    step = fan_out(
        visit,
        over=elements,
        item="n",
        reads=["stalled"],
        name="many",
        limits=Limits(20) & Limits(1, by=by_key),
    )
    for stalled in (80, 81, 82):  # one has the key, and four times 20 may wait
        started.clear()
        pulled = 0
        with anyio.move_on_after(10):
            await Application(step).run({"stalled": stalled})
        if stalled <= 80:
            assert len(started) == 1 + 1000 - stalled
        else:
            assert started == [0]
            assert pulled == 81


# -- adapting, as users do it ----------------------------------------------------------------------


@pytest.mark.sweep
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("sign", ["429", "503", "latency", "timeout", "failure of theirs"])
async def test_capacity_adapts_to_each_sign_of_overload(where: str, sign: str):
    running, peaks = 0, list[int]()

    class Response:
        status_code = int(sign) if sign.isdigit() else 200

    class HTTPError(Exception):
        response = Response()

    async def answer() -> None:
        if running <= 4:
            await anyio.sleep(1)
        elif sign == "latency":
            await anyio.sleep(4)
        elif sign == "timeout":
            await anyio.sleep(1)
            raise TimeoutError
        else:
            await anyio.sleep(1)
            raise HTTPError if sign.isdigit() else LookupError

    def act(limits: Limits | None) -> Any:
        @action(reads=["n"], writes=["out"], limits=limits)
        async def ask(n: int) -> None:
            nonlocal running
            running += 1
            peaks.append(running)
            try:
                await answer()
            finally:
                running -= 1

        return ask

    policy = AIMD(
        least=2,
        most=12,
        slow=2 if sign == "latency" else None,
        overload=(lambda error: isinstance(error, LookupError)) if "theirs" in sign else None,
    )
    limits = Limits(10, adapt=policy)
    await run_limited(where, limits, act, range(600), on_error="ignore")
    assert max(peaks[:10]) == 10
    late = peaks[300:]
    assert max(late) <= 6
    assert sum(late) / len(late) >= 2


@pytest.mark.parametrize("where", PLACES)
async def test_the_policy_is_an_object_of_the_users(where: str):
    heard: list[Ended] = []

    class Steps:
        """Two slots at first; after five good ends, four."""

        def after(self, n: float, changed_at: float, ended: Ended) -> float:
            heard.append(ended)
            return 4 if len(heard) >= 5 else n

    starts = Starts()
    limits = Limits(2, adapt=Steps())
    await run_limited(
        where, limits, lambda limits: noting(starts, seconds=1, limits=limits), range(14)
    )
    # the fifth ends at 3 and makes room for three, beside its own; the sixth for one more
    assert starts.times() == [0, 0, 1, 1, 2, 2] + [3] * 4 + [4] * 4
    assert len(heard) == 14
    assert {(ended.error, ended.seconds) for ended in heard} == {(None, 1.0)}


# -- adapting, by what fails itself ----------------------------------------------------------------


class Broken(Exception):
    """The action's own."""


class Buggy(Exception):
    """The policy's."""


def raises(*_: object) -> Any:
    raise Buggy("of the policy")


async def awaited(*_: object) -> int:
    return 1


POLICIES: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "raises": (lambda: Policy(raises), Buggy),
    "none": (lambda: Policy(lambda *_: None), BadResult),
    "nan": (lambda: Policy(lambda *_: float("nan")), BadResult),
    "inf": (lambda: Policy(lambda *_: float("inf")), BadResult),
    "flag": (lambda: Policy(lambda *_: True), BadResult),
    "awaitable": (lambda: Policy(lambda *_: awaited()), BadResult),
    "overload raises": (lambda: AIMD(overload=raises), Buggy),
    "overload awaitable": (lambda: AIMD(overload=lambda _: awaited()), BadResult),  # pyright: ignore[reportArgumentType, reportReturnType]
}
SHARED = [place for place in PLACES if place != "fan-out"]


def one_slot(where: str, function: Any, policy: Any, **options: Any) -> tuple[Any, Limits]:
    """An action of ``function``, that reads n, and the limits it runs under in a place."""
    limits = Limits(1, adapt=policy)
    given = limits if where == "action" else None
    return action(reads=["n"], writes=["out"], limits=given, name="ask", **options)(
        function
    ), limits


def runtime_and_app(where: str, step: Any, limits: Limits, **options: Any) -> tuple[Runtime, Any]:
    runtime = Runtime(limits=limits if where == "runtime" else None)
    return runtime, Application(step, limits=limits if where == "application" else None, **options)


@pytest.mark.parametrize(
    ("where", "policy"),
    [("action", policy) for policy in POLICIES] + [(where, "raises") for where in SHARED[1:]],
)
@pytest.mark.parametrize("fails", [True, False])
async def test_a_policy_that_raises_fails_the_attempt(where: str, policy: str, fails: bool):
    make, kind = POLICIES[policy]
    hook = RecordingHook()

    async def ask(n: int) -> int:
        await anyio.sleep(1)
        if fails:
            raise Broken
        return n

    step, limits = one_slot(where, ask, make())
    runtime, app = runtime_and_app(where, many(step, on_error="collect"), limits, hooks=[hook])
    began = anyio.current_time()
    async with no_leaks(), runtime:
        result = await runtime.run(app, {"ns": range(3)})
    hook.assert_paired()
    if "overload" in policy and not fails:  # then it isn't asked
        assert result.outcomes("many").done == 3
        return
    assert anyio.current_time() - began == 3, "one after the other, and nobody waits for ever"
    assert result.outcomes("many").failed == 3
    for n, outcome in enumerate(result.outcomes("many")):
        assert isinstance(outcome, Failed)
        error = outcome.error
        assert type(error) is kind
        assert type(error.__context__) is (Broken if fails else type(None))
        where_it_was = f"shoal: in action 'ask' of 'many', key {n}, run {outcome.path.id}"
        assert where_it_was in error.__notes__


@pytest.mark.parametrize("where", SHARED)
async def test_an_attempt_that_the_policy_has_failed_is_tried_again_like_others(where: str):
    calls = 0

    def once(n: float, changed_at: float, ended: Ended) -> float:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise Buggy
        return n

    async def ask(n: int) -> int:
        await anyio.sleep(1)
        return n

    step, limits = one_slot(where, ask, Policy(once), retry=Retry(3, on=Buggy))
    runtime, app = runtime_and_app(where, step, limits)
    async with runtime:
        assert (await runtime.run(app, {"n": 5})).state["out"] == 5
        assert calls == 2
        assert (await runtime.run(app, {"n": 6})).state["out"] == 6


@pytest.mark.parametrize("where", SHARED)
async def test_a_cancellation_stays_one_whatever_the_policy_raises(
    where: str, caplog: pytest.LogCaptureFixture
):
    hook = RecordingHook()

    async def ask(n: int) -> int:
        await anyio.sleep(n)
        return n

    step, limits = one_slot(where, ask, AIMD(overload=raises))
    runtime, app = runtime_and_app(where, step, limits, hooks=[hook])
    async with no_leaks(), runtime:
        with anyio.move_on_after(1) as scope:
            await runtime.run(app, {"n": 9})
        assert scope.cancelled_caught
        assert (await runtime.run(app, {"n": 1})).state["out"] == 1
    hook.assert_paired()
    assert "adapt=" in caplog.text
    assert "of the policy" in caplog.text


async def test_a_policy_that_raises_gives_a_thread_back_too():
    @action(reads=["n"], writes=["out"], limits=Limits(1, adapt=Policy(raises)))
    def ask(n: int) -> int:
        return n

    async with Runtime(threads=1) as runtime:
        for n in range(3):
            with pytest.raises(Buggy):
                await runtime.run(Application(ask), {"n": n})
        assert runtime.limiter(ask).statistics()[0].in_use == 0


# -- looked at -------------------------------------------------------------------------------------


async def test_limits_show_what_they_are_and_how_they_are_used():
    limits = Limits(2) & Limits(rate=Rate(1, per=60, burst=3), by=by_key, cost=len)
    assert repr(limits) == (
        "Limits(2) & Limits(rate=Rate(1, per=60, burst=3), by=by_key, cost=len)"
    )
    assert repr(AIMD(most=5)).startswith("AIMD(least=1, most=5")
    asked: Counter[object] = Counter()

    @action(reads=["n"], writes=["out"], limits=Limits(2) & Limits(1, by=by_key))
    async def visit(n: tuple[str, int]) -> None:
        asked[n] += 1
        if n == ("paused", 0) and asked[n] == 1:
            raise RetryLater(50)
        await anyio.sleep(10)

    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        app = Application(many(visit))
        keys = ["a", "a", "a", "b", "b", "c"]
        tasks.start_soon(
            runtime.run, app, {"ns": [("paused", 0), *((key, n) for n, key in enumerate(keys))]}
        )
        await anyio.sleep(5)
        limiter = runtime.limiter(visit)
        slots, keyed = limiter.statistics()
        assert (slots.limits, slots.keys, slots.in_use, slots.slots) == ("Limits(2)", 1, 2, 2)
        assert (keyed.limits, keyed.keys, keyed.in_use) == ("Limits(1, by=by_key)", 4, 2)
        assert keyed.paused == 1
        assert slots.waiting + keyed.waiting == 5
        assert repr(limiter) == (
            "<Limiter of Limits(2) & Limits(1, by=by_key): 2 in use, "
            f"{slots.waiting} waiting, 2 in use, {keyed.waiting} waiting>"
        )
        admission = runtime._admission  # pyright: ignore[reportPrivateUsage]
        assert repr(admission) == "<AdmissionController, <FairScheduler, 5 waiting>>"
        for part in limiter.parts:
            for gate in part.gates.values():
                assert repr(gate).startswith("<Gate ")


# -- when a rate is charged ------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
async def test_a_fan_outs_rate_is_charged_for_starts_done_anew_and_not_for_further_steps(
    nested: bool,
):
    """A child that is retried goes before the other one; only its first step pays the rate."""
    starts: list[tuple[str, int, float]] = []

    def step(name: str, field: str) -> Any:
        @action(reads=["n"], writes=[field], name=name)
        async def step(n: int) -> None:
            starts.append((name, n, anyio.current_time()))
            tries = sum(one[:2] == (name, n) for one in starts)
            if n == 0 and tries < {"first": 2, "second": 3}[name]:
                raise ConnectionError

        return step

    again = Retry(9, on=ConnectionError, initial=0.125, factor=1, jitter=0)
    child = Graph.chain(step("first", "x"), step("second", "out"), name="child")
    # Nested, both are in the first step of the child.
    child = Graph.chain(child, name="outer") if nested else child
    fan = many(child, Limits(rate=Rate(1)), take="out", each=Each(retry=again))
    await Application(fan).run({"ns": [0, 1]})
    assert starts == [
        ("first", 0, 0),
        ("first", 0, 1),
        ("second", 0, 1),
        ("second", 0, 1.125),
        ("second", 0, 1.25),
        ("first", 1, 2),
        ("second", 1, 2),
    ]


@pytest.mark.parametrize("nested", [False, True])
async def test_a_retry_of_a_further_step_does_not_pay_the_rate_of_the_fan_out(nested: bool):
    """The rate counts starts of children; only its first step starts a child."""
    starts: list[tuple[str, int, float]] = []

    def step(name: str, field: str) -> Any:
        @action(reads=["n"], writes=[field], name=name, retry=again)
        async def step(n: int) -> None:
            starts.append((name, n, anyio.current_time()))
            if n == 0 and sum(one[:2] == (name, n) for one in starts) < 2:
                raise ConnectionError

        return step

    again = Retry(3, on=ConnectionError, initial=0.25, jitter=0)
    first, second = step("first", "x"), step("second", "out")
    inner = Graph.chain(second, name="inner") if nested else second
    outer = Graph.chain(first, name="outer") if nested else first
    child = Graph.chain(outer, inner, name="child")
    await Application(many(child, Limits(rate=Rate(1)), take="out")).run({"ns": [0, 1]})
    assert starts == [
        ("first", 0, 0),
        ("first", 0, 1),
        ("second", 0, 1),
        ("second", 0, 1.25),
        ("first", 1, 2),
        ("second", 1, 2),
    ]


# -- turns of those that come back -----------------------------------------------------------------


RATED: dict[str, Callable[[int], Limits]] = {
    "fan-out": lambda rate: Limits(rate=Rate(rate)),
    "fan-out, few": lambda rate: Limits(2) & Limits(rate=Rate(rate)),
    "fan-out, by key": lambda rate: Limits(rate=Rate(rate), by=lambda state: 0),
    "action": lambda rate: Limits(rate=Rate(rate)),
    "application": lambda rate: Limits(rate=Rate(rate)),
}


@pytest.mark.parametrize("retries", ["action", "child"])
@pytest.mark.parametrize("where", RATED)
async def test_a_retry_waits_for_one_turn_and_not_for_what_was_read_ahead(where: str, retries: str):
    begun: dict[int, list[float]] = defaultdict(list)
    limits = RATED[where](10)
    again = Retry(2, on=ConnectionError, initial=0.01, jitter=0)
    waits = RecordingHook()

    @action(
        reads=["n"], writes=["out"],
        limits=limits if where == "action" else None,
        retry=again if retries == "action" else None,
    )  # fmt: skip
    async def work(n: int) -> None:
        begun[n].append(anyio.current_time())
        if n % 10 == 0 and len(begun[n]) < 2:
            raise ConnectionError

    step = many(
        work,
        limits if where.startswith("fan-out") else None,
        each=Each(retry=again if retries == "child" else None, timeout=60),
    )
    app = Application(step, limits=limits if where == "application" else None, hooks=[waits])
    await app.run({"ns": range(100)})
    late = {n: times[1] - times[0] for n, times in begun.items() if len(times) > 1}
    assert len(late) == 10
    assert max(late.values()) <= 0.1 + EPSILON
    assert max(times[-1] for times in begun.values()) == pytest.approx(10.9), "no turn is lost"
    received = [one for one in waits.events if isinstance(one, Waiting) and one.path.key == 50]
    assert len(received) == 2, (
        "that the child waits to start, and that it waits for its next attempt"
    )


async def test_a_run_whose_children_are_retried_takes_no_more_than_its_share():
    """Retries go before new children of their own run, and cost that run its later turns."""
    calls: list[str] = []
    again = Retry(5, on=ConnectionError, initial=0.01, jitter=0)

    @action(reads=["n", "kind"], writes=["out"], retry=again)
    async def work(n: int, kind: str, context: Context) -> None:
        calls.append(kind)
        if kind == "failing" and context.attempt < 5:
            raise ConnectionError

    app = Application(many(work, Limits(8)))  # so 64 are read ahead
    async with Runtime(limits=Limits(rate=Rate(100))) as runtime, anyio.create_task_group() as both:
        for kind in ("failing", "plain"):
            both.start_soon(runtime.run, app, {"ns": range(300), "kind": kind})
    plain = [at for at, kind in enumerate(calls) if kind == "plain"]
    assert len(plain) == 300
    ahead = 64 * 4  # the retries of children that had their turns when the first one failed
    # As many again may come back before what is new, and are counted against later turns.
    assert plain[-1] <= 2 * 300 + ahead + 64, "of 1,800 calls"


@pytest.mark.parametrize("retries", ["action", "child"])
@pytest.mark.parametrize("where", ["action", "fan-out", "key", "application"])
@pytest.mark.parametrize("delay", [0.25, 1.5, 2.5])
async def test_next_in_is_when_the_next_attempt_begins(where: str, retries: str, delay: float):
    """Also if the rate has its next turn later, and others use up its turns until then."""
    starts: list[tuple[int, float]] = []
    hook = RecordingHook()
    limits = Limits(rate=Rate(1), by=(lambda state: 0) if where == "key" else None)
    again = Retry(2, on=ConnectionError, initial=delay, jitter=0)

    @action(
        reads=["n"], writes=["out"],
        limits=limits if where in ("action", "key") else None,
        retry=again if retries == "action" else None,
    )  # fmt: skip
    async def work(n: int) -> None:
        starts.append((n, anyio.current_time()))
        if n == 1 and [one[0] for one in starts].count(1) == 1:
            raise ConnectionError

    step = many(
        work,
        limits if where == "fan-out" else None,
        each=Each(retry=again if retries == "child" else None, timeout=60),
    )
    app = Application(step, limits=limits if where == "application" else None, hooks=[hook])
    await app.run({"ns": range(6)})
    (failed,) = [one for one in hook.of(AttemptEnded) if one.error is not None]
    first, second = (at for n, at in starts if n == 1)
    assert failed.next_in == pytest.approx(second - first)
    assert second - first == {0.25: 1, 1.5: 2, 2.5: 3}[delay]


async def test_next_in_knows_of_a_pause():
    starts: list[tuple[int, float]] = []
    hook = RecordingHook()
    again = Retry(2, on=ConnectionError, initial=1, jitter=0)

    @action(reads=["n"], writes=["out"], retry=again, limits=Limits(9, by=lambda state: 0))
    async def work(n: int) -> None:
        starts.append((n, anyio.current_time()))
        if len(starts) < 3:
            await anyio.sleep(n + 0.5)  # so that both have started, in whatever order
            raise RetryLater(5) if n == 0 else ConnectionError

    await Application(many(work), hooks=[hook]).run({"ns": [0, 1]})
    assert sorted(starts[:2]) == [(0, 0), (1, 0)]
    assert sorted(starts[2:]) == [(0, 5.5), (1, 5.5)]
    assert [one.next_in for one in hook.of(AttemptEnded) if one.error is not None] == [4]


async def test_an_attempt_that_a_rate_lets_begin_too_late_is_not_waited_for():
    again = Retry(3, on=ConnectionError, initial=1, jitter=0, total=5)
    hook = RecordingHook()

    @action(reads=["n"], writes=["out"], retry=again, limits=Limits(rate=Rate(1, per=10)))
    async def fail(n: int) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError) as caught:
        await Application(fail, hooks=[hook]).run({"n": 0})
    assert anyio.current_time() == 0
    assert "shoal: not tried again after attempt 1: 5 s are over" in caught.value.__notes__
    assert [one.next_in for one in hook.of(AttemptEnded)] == [None]


@pytest.mark.parametrize("where", ["action", "runtime"])
async def test_the_retry_of_a_root_run_goes_before_first_attempts(where: str):
    """A root run has no place in flight, and comes back ahead of others all the same."""
    calls: list[int] = []
    limits = Limits(rate=Rate(1))
    again = Retry(3, on=ConnectionError, initial=0.5, factor=1, jitter=0)

    @action(reads=["n"], writes=["out"], retry=again, limits=limits if where == "action" else None)
    async def flaky(n: int) -> None:
        calls.append(n)
        if n == 0 and calls.count(0) < 3:
            raise ConnectionError

    app = Application(flaky)
    runtime_limits = limits if where == "runtime" else None
    async with Runtime(limits=runtime_limits) as runtime, anyio.create_task_group() as tasks:
        for n in range(6):
            tasks.start_soon(runtime.run, app, {"n": n})
            await anyio.sleep(0.01)
    assert calls == [0, 0, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("where", ["action", "application", "runtime"])
async def test_the_rate_of_actions_is_charged_at_each_attempt(where: str):
    starts = Starts()
    limits = Limits(rate=Rate(1))
    again = Retry(3, on=ConnectionError, initial=0.25, jitter=0)

    @action(reads=["n"], writes=["out"], retry=again, limits=limits if where == "action" else None)
    async def flaky(n: int) -> None:
        starts.note()
        if len(starts.order) < 3:
            raise ConnectionError

    app = Application(flaky, limits=limits if where == "application" else None)
    async with Runtime(limits=limits if where == "runtime" else None) as runtime:
        await runtime.run(app, {"n": 1})
    assert starts.times() == [0, 1, 2]


def test_limits_by_a_local_function_are_shown_by_its_own_name():
    def kind(item: object) -> object:
        return item

    assert repr(Limits(3, by=kind)) == "Limits(3, by=kind)"
