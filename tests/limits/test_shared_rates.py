"""Rates that several processes share, with runtimes in the place of processes, by virtual time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Literal

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Each,
    Graph,
    Limits,
    Rate,
    Retry,
    Runtime,
    SharedRate,
    State,
    action,
    fan_out,
)
from shoal._limits.shared_rates import AHEAD, GUARD, HOLD, SLACK, SharedMeter
from shoal.errors import BadResult, DefinitionError, NotApplied, RateUnavailable
from shoal.events import Waiting
from shoal.rates import MemoryRates, RateReply, RateRequest, RateState, reckon
from shoal.testing import Attempt, RecordingHook, cancel_everywhere, no_leaks, run_virtual

pytestmark = pytest.mark.anyio

Backend = Literal["asyncio", "trio"]
backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])
EPSILON = 1e-6


# -- fakes and watching ----------------------------------------------------------------------------


class FarRates:
    """Rates kept a way off: each call takes its time, and may fail or hang."""

    def __init__(
        self,
        latency: Callable[[], float] = lambda: 0.0,
        trouble: Callable[[int], Literal["fails", "fails later", "hangs", "fine"]] = lambda n: (
            "fine"
        ),
    ) -> None:
        self._rates = MemoryRates()
        self._latency = latency
        self.trouble = trouble
        self.calls: list[Sequence[RateRequest]] = []
        self.granted = 0
        self.at_once = 0

    async def settle(self, requests: Sequence[RateRequest]) -> Sequence[RateReply]:
        self.calls.append(requests)
        trouble = self.trouble(len(self.calls))
        await anyio.sleep(self._latency())
        if trouble == "fails":
            raise ConnectionError("gone away")
        if trouble == "hangs":
            await anyio.sleep_forever()
        replies = await self._rates.settle(requests)
        if trouble == "fails later":
            raise ConnectionError("gone away after it was done")
        self.granted += sum(len(reply.turns) for reply in replies)
        await anyio.sleep(self._latency())
        return replies

    def __repr__(self) -> str:
        return "FarRates()"


class Starts(list[tuple[float, float]]):
    """When bodies started, and what each cost."""

    def note(self, cost: float = 1) -> None:
        self.append((anyio.current_time(), cost))

    def times(self) -> list[float]:
        first = min(at for at, _ in self)
        return sorted(round(at - first, 6) for at, _ in self)


def check_windows(
    starts: list[tuple[float, float]], rate: Rate, burst: float = 1, late: float = 0
) -> None:
    """In any window of t seconds at most k * t / per + burst units start: look at all of them.

    Some may have started ``late``, by so many seconds more than is made allowance for.
    """
    starts = sorted(starts)
    for first in range(len(starts)):
        units = 0.0
        for at, cost in starts[first:]:
            units += cost
            allowed = rate.k * (at - starts[first][0] + late) / rate.per + burst
            assert units <= allowed + EPSILON, f"{units} in {at - starts[first][0]} s"


def noting(starts: Starts, *, seconds: float = 0, limits: Limits | None = None, **more: Any) -> Any:
    @action(reads=["n"], writes=["out"], limits=limits, name="noting", **more)
    async def noting(n: Any) -> Any:
        starts.note()
        await anyio.sleep(seconds)
        return n

    return noting


def many(act: Any, limits: Limits | None = None, **options: Any) -> Any:
    return fan_out(act, over="ns", item="n", into="out", name="many", limits=limits, **options)


async def everywhere(app: Application[Any], elements: Any, processes: int = 2) -> None:
    """Run an application in several runtimes at once."""

    async def run() -> None:
        async with Runtime() as runtime:
            await runtime.run(app, {"ns": elements})

    async with no_leaks(), anyio.create_task_group() as tasks:
        for _ in range(processes):
            tasks.start_soon(run)


# -- values ----------------------------------------------------------------------------------------


def test_a_shared_rate_that_makes_no_sense_is_refused():
    rate, rates = Rate(5), MemoryRates()
    for make, says in (
        (lambda: SharedRate(5, "x", rates), "rate=...\\) takes a Rate, not an int"),  # pyright: ignore[reportArgumentType]
        (lambda: SharedRate(rate, "", rates), "names the rate"),
        (lambda: SharedRate(rate, "x", None), "RedisRates\\(url\\), not None"),  # pyright: ignore[reportArgumentType]
        (lambda: SharedRate(rate, "x", MemoryRates), "RedisRates"),  # pyright: ignore[reportArgumentType]
        (lambda: SharedRate(rate, "x", rates, alone=3), "alone=...\\) takes a Rate"),  # pyright: ignore[reportArgumentType]
        (lambda: SharedRate(rate, "x", rates, patience=0), "patience=...\\) takes a number above"),
    ):
        with pytest.raises(DefinitionError, match=says):
            make()
    assert repr(SharedRate(rate, "x", rates)) == "SharedRate(Rate(5, per=1.0), 'x', MemoryRates())"


@pytest.mark.parametrize("seed", range(40))
def test_what_is_given_back_late_is_never_granted_again_in_excess(seed: int):
    """Requests at random; of what is granted, some is given back late and the rest goes late."""
    random = Random(seed)
    k, burst = random.choice([2, 20, 200]), random.choice([1, 2, 5, 20])
    interval = 1 / k
    state: RateState | None = None
    now = 1000.0
    used: list[tuple[float, float]] = []
    held: list[tuple[float, float]] = []
    slack = RateRequest(key="x", interval=interval, burst=burst).slack
    for _ in range(300):
        now += random.choice([0, 0.001, interval / 3, interval, 5 * interval])
        costs = [random.choice([1, 1, min(burst, 3)]) for _ in range(random.choice([0, 1, 4]))]
        back = [unit for unit in held if random.random() < 0.4]
        used += [
            (turn + random.uniform(0, slack), cost)
            for turn, cost in held
            if (turn, cost) not in back
        ]
        request = RateRequest(
            key="x", interval=interval, burst=burst, returns=tuple(back), costs=tuple(costs)
        )
        state, reply = reckon(state, now, request)
        held = list(zip(reply.turns, costs, strict=False))
        assert all(now <= turn <= now + AHEAD for turn in reply.turns)
    check_windows(used, Rate(k), burst)


def test_what_is_given_back_while_nothing_else_was_granted_is_as_good_as_new():
    ask = RateRequest(key="x", interval=1, burst=1, costs=(1,))
    state, reply = reckon(None, 10.0, ask)
    assert reply.turns == (10.0,)
    back = RateRequest(key="x", interval=1, burst=1, returns=((10.0, 1),), costs=(1,))
    _, reply = reckon(state, 10.5, back)
    assert reply.turns == (10.5,)


def test_what_a_start_has_cost_besides_counts_from_now():
    state, _ = reckon(None, 10.0, RateRequest(key="x", interval=1, burst=5, extra=7))
    assert state.tat == 17
    state, _ = reckon(state, 10.0, RateRequest(key="x", interval=1, burst=5, extra=-3))
    assert state.tat == 14
    state, _ = reckon(None, 10.0, RateRequest(key="x", interval=1, burst=5, extra=-3))
    assert state.tat == -math.inf


# -- exact -----------------------------------------------------------------------------------------

PLACES = ["fan-out", "action", "application", "runtime"]


@pytest.mark.parametrize("where", PLACES)
async def test_runtimes_share_a_rate_wherever_it_stands(where: str):
    starts = Starts()
    limits = Limits(rate=SharedRate(Rate(4, per=2), "x", MemoryRates()))
    act = noting(starts, limits=limits if where == "action" else None)
    step = many(act, limits if where == "fan-out" else None)
    app = Application(step, limits=limits if where == "application" else None)
    async with no_leaks(), anyio.create_task_group() as tasks:
        for _ in range(3):

            async def run() -> None:
                async with Runtime(limits=limits if where == "runtime" else None) as runtime:
                    await runtime.run(app, {"ns": range(4)})

            tasks.start_soon(run)
    assert starts.times() == pytest.approx([0.51 * n for n in range(12)])


async def test_a_burst_is_shared_too():
    starts = Starts()
    rate = Rate(2, burst=5)
    limits = Limits(rate=SharedRate(rate, "x", MemoryRates()))
    await everywhere(Application(many(noting(starts), limits)), range(8))
    check_windows(starts, rate, 5)
    assert starts.times()[3] < SLACK + EPSILON
    assert starts.times()[-1] == pytest.approx((16 - 5) / 2, abs=2 * SLACK)


@pytest.mark.parametrize("k", [5, 100, 2000])
@pytest.mark.parametrize("processes", [1, 4])
async def test_throughput_is_the_rate_however_far_the_backend_is(k: int, processes: int):
    starts = Starts()
    random = Random(1)
    rates = FarRates(latency=lambda: random.uniform(0.0001, 0.002))
    rate = Rate(k, burst=1 + 0.04 * k)
    limits = Limits(1000, rate=SharedRate(rate, "x", rates))
    n = max(20, k // 4)
    await everywhere(Application(many(noting(starts, seconds=0.1), limits)), range(n), processes)
    check_windows(starts, rate, 1 + 0.04 * k)
    assert starts.times()[-1] <= (n * processes) / k * 1.03 + 0.01


async def test_an_answer_that_takes_its_time_delays_nothing_that_was_granted_ahead():
    """Clocks are compared by the quickest answers: a slow one tells the turns all the same."""
    starts = Starts()
    random = Random(3)
    rates = FarRates(latency=lambda: random.choice([0.0, 0.0, 0.005]))
    limits = Limits(rate=SharedRate(Rate(8), "x", rates))
    await everywhere(Application(many(noting(starts), limits)), range(30), 1)
    times = starts.times()
    assert times[5:] == pytest.approx([times[5] + 0.1275 * n for n in range(25)], abs=1e-3)


async def test_each_key_is_shared_by_itself_and_all_are_asked_for_in_one_call():
    starts: dict[str, Starts] = {key: Starts() for key in "abc"}
    rates = FarRates(latency=lambda: 0.01)

    @action(reads=["n"], writes=["out"])
    async def leaf(n: Any) -> Any:
        starts[n[0]].note()

    def key(state: State) -> Any:
        return state["n"][0]

    limits = Limits(rate=SharedRate(Rate(1), "x", rates), by=key)
    elements = [(key, n) for n in range(3) for key in "abc"]
    await everywhere(Application(many(leaf, limits)), elements)
    for of_key in starts.values():
        check_windows(of_key, Rate(1))
        assert of_key.times()[-1] == pytest.approx(5.1, abs=0.1)
    assert {request.key for call in rates.calls for request in call} == {
        f"x:{key!r}" for key in "abc"
    }
    assert len(rates.calls[0]) == 3


async def test_a_key_that_other_processes_could_not_name_is_refused():
    limits = Limits(rate=SharedRate(Rate(1), "x", MemoryRates()), by=lambda state: object())
    with pytest.raises(BadResult, match="same key; return a str"):
        await Application(many(noting(Starts()), limits)).run({"ns": range(3)})


async def test_keys_of_different_kinds_are_kept_apart():
    starts = Starts()
    kinds: Any = (1, "1", b"1", (1, "1"), None)

    def of_a_kind(state: State) -> Any:
        return kinds[state["n"]]

    limits = Limits(rate=SharedRate(Rate(1), "x", MemoryRates()), by=of_a_kind)
    await everywhere(Application(many(noting(starts), limits)), range(5), 1)
    assert starts.times() == [0] * 5


# -- together with other limits --------------------------------------------------------------------


async def test_nothing_is_asked_for_that_slots_could_not_use():
    """A process whose slots are taken leaves the rate to the others."""
    slow, quick = Starts(), Starts()
    rates = FarRates(latency=lambda: 0.001)
    rate = Rate(10)
    shared = Limits(rate=SharedRate(rate, "x", rates))

    async def run(starts: Starts, slots: int, seconds: float, n: int) -> None:
        async with Runtime(limits=Limits(slots)) as runtime:
            app = Application(many(noting(starts, seconds=seconds), shared))
            await runtime.run(app, {"ns": range(n)})

    async with no_leaks(), anyio.create_task_group() as tasks:
        tasks.start_soon(run, slow, 1, 2, 5)
        tasks.start_soon(run, quick, 100, 0, 90)
    check_windows([*slow, *quick], rate)
    assert slow.times()[-1] < 12  # it comes to its turn
    assert quick.times()[-1] < 95 / 10 * 1.05  # with what the slow one leaves
    assert rates.granted <= 95 + 2


async def test_a_process_far_from_the_backend_has_its_share():
    rates = MemoryRates()
    limits: list[Limits] = []
    starts = [Starts(), Starts()]
    near, far = 0, 0
    for latency in (0.0001, 0.005):
        away = FarRates(latency=lambda latency=latency: latency)
        away._rates = rates
        limits.append(Limits(rate=SharedRate(Rate(20), "x", away)))

    async with no_leaks(), anyio.create_task_group() as tasks:
        for own, limit in zip(starts, limits, strict=True):
            tasks.start_soon(Application(many(noting(own), limit)).run, {"ns": range(1000)})
        await anyio.sleep(20)
        near, far = map(len, starts)
        tasks.cancel_scope.cancel()
    assert near + far == pytest.approx(400, rel=0.03)
    assert near / 3 < far < near * 3


@pytest.mark.parametrize("where", ["runtime", "action"])
async def test_what_is_asked_for_is_used_though_slots_are_scarce(where: str):
    starts = Starts()
    rates = FarRates(latency=lambda: 0.001)
    rate = SharedRate(Rate(500, burst=50), "x", rates)
    act = noting(
        starts, seconds=0.1, limits=Limits(2, rate=rate) if where == "action" else Limits(rate=rate)
    )
    async with Runtime(limits=Limits(2) if where == "runtime" else None) as runtime:
        await runtime.run(Application(many(act)), {"ns": range(40)})
    assert starts.times()[-1] == pytest.approx(19 * 0.1, abs=0.1)
    assert rates.granted <= 40 + 4


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_is_asked_for_is_used_though_another_rate_is_slower(backend: Backend):
    async def main() -> None:
        starts = Starts()
        rates = FarRates(latency=lambda: 0.001)
        both = Limits(rate=SharedRate(Rate(500, burst=50), "x", rates)) & Limits(rate=Rate(10))
        await Application(many(noting(starts), both)).run({"ns": range(40)})
        assert starts.times()[-1] == pytest.approx(3.9, abs=0.2)
        assert rates.granted <= 40 + 4

    run_virtual(main, backend=backend)


async def test_nothing_is_asked_for_while_slots_are_taken():
    rates = FarRates()
    starts = Starts()
    shared = Application(many(noting(starts), Limits(rate=SharedRate(Rate(5), "x", rates))))

    @action(writes=["slept"])
    async def sleep() -> bool:
        await anyio.sleep(5)
        return True

    async with Runtime(limits=Limits(1)) as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.run, Application(sleep))
        await anyio.sleep(1)
        tasks.start_soon(runtime.run, shared, {"ns": range(3)})
        await anyio.sleep(1)
        assert not rates.calls
    assert len(starts) == 3


async def test_two_shared_rates_are_kept_to_at_once():
    starts = Starts()
    rates = FarRates(latency=lambda: 0.002)
    requests, tokens = Rate(10, burst=1), Rate(100, burst=30)
    limits = Limits(rate=SharedRate(requests, "requests", rates)) & Limits(
        rate=SharedRate(tokens, "tokens", rates), cost=lambda state: 20
    )
    await everywhere(Application(many(noting(starts), limits)), range(20))
    check_windows(starts, requests)
    check_windows([(at, 20) for at, _ in starts], tokens, 30)
    assert starts.times()[-1] <= 20 * 40 / 100 * 1.05


async def test_a_cost_is_corrected_for_all():
    starts = Starts()
    rates = MemoryRates()
    limits = Limits(rate=SharedRate(Rate(10), "x", rates), cost=lambda state: 10)

    @action(reads=["n"], writes=["out"], limits=limits)
    async def leaf(n: int, context: Context) -> int:
        starts.note()
        context.charge(5 if n == 0 else 20)
        return n

    async with Runtime() as one, Runtime() as other:
        begun = anyio.current_time()
        await one.run(Application(leaf), {"n": 0})
        await anyio.sleep(0.1)
        await other.run(Application(leaf), {"n": 1})
        assert anyio.current_time() - begun == pytest.approx(0.5 + SLACK, abs=0.06)
        await anyio.sleep(0.1)
        await one.run(Application(leaf), {"n": 2})
        assert anyio.current_time() - begun == pytest.approx(2.5 + SLACK, abs=0.06)


async def test_limits_are_changed_while_a_rate_is_shared():
    starts = Starts()
    rates = MemoryRates()
    limits = Limits(rate=SharedRate(Rate(1), "x", rates))
    app = Application(many(noting(starts), limits))
    step: Any = app.graph.entry
    async with no_leaks(), Runtime() as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.run, app, {"ns": range(6)})
        await anyio.sleep(1.5)
        runtime.limiter(step).change(Limits(rate=SharedRate(Rate(10), "x", rates)))
        assert "SharedRate" in repr(runtime.limiter(step))
        await anyio.sleep(0.5)
        runtime.limiter(step).change(Limits(rate=Rate(100)))
    assert starts.times()[1] == pytest.approx(1.02)
    assert starts.times()[-1] < 2.1


async def test_a_hook_receives_what_a_run_waits_for():
    hook = RecordingHook()
    limits = Limits(rate=SharedRate(Rate(1), "x", MemoryRates()))
    app = Application(many(noting(Starts()), limits), hooks=[hook])
    await app.run({"ns": range(2)})
    waiting = [event for event in hook.events if isinstance(event, Waiting)]
    assert waiting
    assert all("SharedRate(Rate(1, per=1.0), 'x'" in event.limit for event in waiting)


# -- cancelled -------------------------------------------------------------------------------------


@backends
def test_a_waiter_that_is_cancelled_takes_nothing_and_delays_no_one(backend: Backend):
    """At whatever place: whoever comes next has what the cancelled one would have had."""
    rate = Rate(1)

    async def scenario(attempt: Attempt) -> None:
        rates = FarRates(latency=lambda: 0.004)
        starts = Starts()
        limits = Limits(rate=SharedRate(rate, "x", rates))
        app = Application(many(noting(starts), limits))
        ending = await attempt(app.run, {"ns": range(3)})
        started = len(starts)
        assert ending.cancelled or started == 3
        last = starts[-1][0] if starts else -math.inf
        asked = anyio.current_time()
        await app.run({"ns": [0]})
        check_windows(starts, rate)
        assert starts[-1][0] <= max(asked, last + 1) + 2 * GUARD + 0.016

    cancel_everywhere(scenario, backend=backend)


@backends
@pytest.mark.parametrize("where", ["action", "runtime"])
def test_an_attempt_is_cancelled_everywhere(backend: Backend, where: str):
    async def scenario(attempt: Attempt) -> None:
        starts = Starts()
        limits = Limits(2, rate=SharedRate(Rate(2), "x", FarRates(latency=lambda: 0.002)))
        app = Application(many(noting(starts, limits=limits if where == "action" else None)))

        async def run() -> None:
            async with Runtime(limits=limits if where == "runtime" else None) as runtime:
                await runtime.run(app, {"ns": range(3)})

        await attempt(run)
        check_windows(starts, Rate(2))

    cancel_everywhere(scenario, backend=backend)


@backends
@pytest.mark.parametrize("seed", range(12))
def test_rates_hold_while_some_are_cancelled(backend: Backend, seed: int):
    """Random rates, latencies and slots; some runs are cancelled, some calls fail."""
    random = Random(seed)
    starts = Starts()
    burst = random.choice([1, 3, 10])
    rate = Rate(random.choice([2, 20, 200]), burst=burst)
    rates = FarRates(
        latency=lambda: random.uniform(0, 0.002),
        trouble=lambda n: random.choice(["fails", "fails later"]) if n % 17 == 0 else "fine",
    )
    limits = Limits(rate=SharedRate(rate, "x", rates)) & Limits(random.choice([2, 100]))
    seconds = random.choice([0, 0.01, 1.0])

    async def one(runtime: Runtime) -> None:
        with anyio.move_on_after(random.choice([0.0, 0.03, 0.3, 3, math.inf])):
            app = Application(many(noting(starts, seconds=seconds), limits))
            await runtime.run(app, {"ns": range(random.randint(1, 30))})

    async def main() -> None:
        async with no_leaks(), Runtime() as a, Runtime() as b, anyio.create_task_group() as tasks:
            for _ in range(6):
                await anyio.sleep(random.uniform(0, 0.5))
                tasks.start_soon(one, random.choice([a, b]))

    run_virtual(main, backend=backend)
    slack = RateRequest(key="x", interval=1 / rate.k, burst=burst).slack
    check_windows(starts, rate, burst, late=max(0.0, 0.004 - slack))


async def test_what_is_held_is_given_back_when_a_runtime_closes():
    rates = FarRates()
    limits = Limits(rate=SharedRate(Rate(1), "x", rates))
    app = Application(many(noting(Starts()), limits))
    begun = anyio.current_time()
    async with no_leaks(), Runtime() as runtime:
        with anyio.move_on_after(1.015):  # the next is granted by now
            await runtime.run(app, {"ns": range(3)})
    assert anyio.current_time() - begun == pytest.approx(1.015)
    assert rates.granted == 2
    ((request,),) = rates.calls[-1:]
    assert [units for _, units in request.returns] == [1]


def test_what_may_have_been_done_is_not_said_again_if_it_frees_units():
    meter = SharedMeter(MemoryRates(), "x", 1.0, 5.0)
    for extra, again in ((3.0, 3.0), (-3.0, 0.0)):
        meter.correct(extra, 0.0)
        ask = meter.request((1.0, 1.0))
        meter.receive(ask, RateReply(now=0.0, turns=(0.0, 0.1)), 0.0, 0.0)
        meter.return_held()
        received = meter.request(())
        assert received.returns == ((0.0, 1.0), (0.1, 1.0))
        meter.fail(ask, OSError())
        meter.fail(received, OSError())
        assert meter.request(()) == RateRequest(key="x", interval=1.0, burst=5.0, extra=again)


def test_what_is_sure_not_to_have_been_done_is_said_again():
    meter = SharedMeter(MemoryRates(), "x", 1.0, 5.0)
    meter.correct(-3.0, 0.0)
    meter.receive(meter.request((1.0,)), RateReply(now=0.0, turns=(0.0,)), 0.0, 0.0)
    meter.return_held()
    meter.correct(-2.0, 0.0)
    received = meter.request(())
    meter.fail(received, NotApplied("no route"))
    assert meter.request(()) == received
    assert received.returns == ((0.0, 1.0),)


def test_a_process_that_was_granted_units_asks_again_after_those_that_were_granted_none():
    """Whatever chance adds; and all before the next unit is due, which is ``AHEAD`` later."""

    def again_at(*turns: float, chance: float) -> float:
        meter = SharedMeter(MemoryRates(), "x", 1.0, 5.0)
        ask = meter.request((1.0, 1.0))
        meter.receive(ask, RateReply(now=0.0, turns=turns, again_in=1.0), 100.0, chance)
        return meter.again_at

    assert 101 < again_at(chance=0.0) < again_at(chance=0.999) < again_at(0.0, chance=0.0)
    assert again_at(0.0, chance=0.999) < 101 + AHEAD


def test_what_is_held_is_given_back_when_limits_change():
    rates = MemoryRates()
    meter = SharedMeter(rates, "x", 1.0, 5.0)
    meter.receive(meter.request((2.0,)), RateReply(now=0.0, turns=(0.5,)), 0.0, 0.0)
    changed = SharedMeter(rates, "x", 0.1, 5.0)
    changed.continue_from(meter)
    assert changed.request(()).returns == ((0.5, 2.0),)


def test_units_are_used_in_other_portions_than_they_were_granted():
    meter = SharedMeter(MemoryRates(), "x", 1.0, 5.0)
    meter.receive(meter.request((2.0, 0.1)), RateReply(now=0.0, turns=(1.0, 2.0)), 100.0, 0.0)
    assert (meter.opens_at(2.0), meter.opens_at(2.1), meter.opens_at(2.2)) == (101, 102, math.inf)
    meter.take(101.0, 0.5)
    assert meter.opens_at(1.5) == 101
    meter.take(102.0, 1.6)
    assert not meter.held
    meter.give_back(1.6, 102.0)
    assert [one.turn for one in meter.held] == [1.0, 2.0]
    assert [one.units for one in meter.held] == pytest.approx([1.5, 0.1])
    meter.give_back(0.5, 101.0)
    meter.lapse(102.01)
    assert sum(units for _, units in meter.request(()).returns) == pytest.approx(2.1)


# -- trouble ---------------------------------------------------------------------------------------


async def test_a_backend_that_fails_for_a_while_delays_only():
    starts = Starts()
    rates = FarRates(trouble=lambda n: "fails" if 2 <= n <= 5 else "fine")
    limits = Limits(rate=SharedRate(Rate(1), "x", rates))
    await everywhere(Application(many(noting(starts), limits)), range(3), 1)
    assert len(starts) == 3
    assert starts.times()[-1] < 4


@pytest.mark.parametrize("trouble", ["fails", "hangs"])
async def test_a_fan_out_whose_rate_can_not_be_had_fails(trouble: Any):
    starts = Starts()
    rates = FarRates(trouble=lambda n: trouble if n > 3 else "fine")
    limits = Limits(rate=SharedRate(Rate(1), "openai", rates, patience=3))
    app = Application(many(noting(starts), limits, on_error="collect"))
    with pytest.raises(RateUnavailable) as caught:
        async with no_leaks():
            await app.run({"ns": range(100)})
    assert 0 < len(starts) < 5
    assert anyio.current_time() < 12
    message = str(caught.value)
    assert "the rate 'openai' is shared through FarRates()" in message
    assert "SharedRate(..., alone=Rate(...))" in message
    assert isinstance(
        caught.value.__cause__, ConnectionError if trouble == "fails" else TimeoutError
    )


async def test_an_attempt_whose_rate_can_not_be_had_fails_and_its_child_may_be_tried_again():
    starts = Starts()
    down = True
    rates = FarRates(trouble=lambda n: "fails" if down else "fine")
    limits = Limits(rate=SharedRate(Rate(5), "x", rates, patience=2))
    act = noting(starts, limits=limits, retry=Retry(3, on=RateUnavailable))
    with pytest.raises(RateUnavailable):  # it has never begun
        await Application(act).run({"n": 1})

    @action(writes=["begun"])
    async def begin() -> int:
        return 1

    each = Each(retry=Retry(3, on=RateUnavailable, initial=5))
    app = Application(many(Graph.chain(begin, act), each=each))
    async with no_leaks(), anyio.create_task_group() as tasks:
        tasks.start_soon(app.run, {"ns": range(3)})
        await anyio.sleep(4)
        assert not starts
        down = False
    assert len(starts) == 3


async def test_a_process_may_go_on_alone_until_the_backend_answers():
    starts = Starts()
    down = True
    rates = FarRates(trouble=lambda n: "fails" if down else "fine")
    rate = SharedRate(Rate(100, burst=5), "x", rates, alone=Rate(2), patience=1)
    app = Application(many(noting(starts), Limits(rate=rate)))
    alone: Any = []
    begun = anyio.current_time()
    async with no_leaks(), anyio.create_task_group() as tasks:
        tasks.start_soon(app.run, {"ns": range(400)})
        await anyio.sleep(9)
        alone = list(starts)
        down = False
    assert alone[0][0] - begun == pytest.approx(1, abs=1)
    check_windows(alone, Rate(2))
    assert 15 <= len(alone) <= 18
    assert len(starts) == 400
    check_windows(starts[len(alone) :], Rate(100, burst=5), 6)
    assert starts[-1][0] - begun < 9 + 1 + 4.2


async def test_a_client_of_its_own_is_shared_again_though_no_request_waits():
    starts = Starts()
    rates = FarRates(trouble=lambda n: "fails" if n < 5 else "fine")
    rate = SharedRate(Rate(1), "x", rates, alone=Rate(1), patience=0.1)
    act = noting(starts, limits=Limits(rate=rate))
    async with Runtime() as runtime:
        await runtime.run(Application(act), {"n": 1})
        calls = len(rates.calls)
        await anyio.sleep(10)
        assert calls < len(rates.calls) < 10
        await runtime.run(Application(act), {"n": 1})
        assert rates.granted == 1


@pytest.mark.sweep
@pytest.mark.parametrize("call", range(1, 8))
@pytest.mark.parametrize("trouble", ["fails", "fails later", "hangs"])
async def test_nothing_is_granted_in_excess_where_a_call_comes_to_grief(call: int, trouble: Any):
    starts = Starts()
    rates = FarRates(latency=lambda: 0.001, trouble=lambda n: trouble if n == call else "fine")
    rate = Rate(20, burst=3)
    limits = Limits(rate=SharedRate(rate, "x", rates))
    app = Application(many(noting(starts), limits))
    async with no_leaks():
        with anyio.move_on_after(0.12):
            await app.run({"ns": range(6)})
        await everywhere(app, range(6))
    assert len(starts) >= 12
    check_windows(starts, rate, 3)


async def test_closing_does_not_wait_long_for_a_backend_that_hangs():
    rates = FarRates(trouble=lambda n: "hangs" if n > 1 else "fine")
    app = Application(many(noting(Starts()), Limits(rate=SharedRate(Rate(1), "x", rates))))
    async with no_leaks():
        begun = anyio.current_time()
        with anyio.move_on_after(1):
            await app.run({"ns": range(3)})
        assert anyio.current_time() - begun <= 1 + 5


async def test_a_backend_that_answers_nonsense_is_named():
    class Nonsense:
        async def settle(self, requests: Sequence[RateRequest]) -> Any:
            return ["yes"] * len(requests)

    limits = Limits(rate=SharedRate(Rate(1), "x", Nonsense(), patience=1))
    with pytest.raises(RateUnavailable, match="settle\\(\\) answered 'yes'"):
        await Application(many(noting(Starts()), limits)).run({"ns": range(3)})


async def test_memory_follows_the_keys_in_use():
    rates = MemoryRates()
    limits = Limits(rate=SharedRate(Rate(100, burst=2), "x", rates), by=lambda state: state["n"])
    app = Application(many(noting(Starts()), limits))
    step: Any = app.graph.entry
    async with Runtime() as runtime:
        for number in range(10):
            await runtime.run(app, {"ns": range(100 * number, 100 * number + 100)})
            await anyio.sleep(1)
        (statistics,) = runtime.limiter(step).statistics()
        assert statistics.keys <= 300
        assert len(rates._states) <= 300


assert HOLD < SLACK < AHEAD
