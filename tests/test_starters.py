"""The engine works in every loop, however that was started: nothing in it needs a current task."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Budget,
    Context,
    Done,
    Each,
    Graph,
    Hedge,
    Hook,
    Limits,
    MemoryStore,
    Rate,
    Retry,
    RetryLater,
    RunCancelled,
    Runtime,
    SharedRate,
    SQLiteStore,
    State,
    action,
    fan_out,
    race,
)
from shoal.events import GraceExceeded
from shoal.rates import MemoryRates
from shoal.testing import VirtualTimeLoop
from tests.starters import ON_ASYNCIO, Main, start

starters = pytest.mark.parametrize("starter", ON_ASYNCIO)
"""All that run a loop of asyncio's under virtual time."""


def run_really(starter: str, main: Main[Any]) -> Any:
    """Run ``main`` in real time: for what threads tell the loop."""
    return start(starter, main)


def run(starter: str, main: Main[Any]) -> Any:
    return start(starter, main, "asyncio", {"loop_factory": VirtualTimeLoop})


@action(reads=["n"], writes=["square"])
async def square(n: int) -> int:
    await anyio.sleep(0.2)  # longer than the rate's interval: the next start needs another task
    return n * n


@action(reads=["n"], writes=["square"], limits=Limits(rate=Rate(20)))
async def rated(n: int) -> int:
    await anyio.sleep(0.2)
    return n * n


@action(reads=["g"], writes=["ns"])
async def numbers(g: int) -> list[int]:
    return list(range(6))


def attempts(refuse: Callable[[], Exception]) -> Any:
    """An action whose first attempt for each n fails."""
    tried = set[int]()

    @action(reads=["n"], writes=["square"])
    async def act(n: int) -> int:
        await anyio.sleep(0.2)
        if n not in tried:
            tried.add(n)
            raise refuse()
        return n * n

    return act


def parity(state: State) -> int:
    return state["n"] % 2


def waits(kind: str) -> Any:
    """A fan-out that waits for timers of one kind."""
    over: Any = partial(fan_out, over="ns", item="n", into="squares", take="square", name="waits")
    match kind:
        case "rate":
            return over(square, limits=Limits(6) & Limits(rate=Rate(20)))
        case "rate by key":
            return over(square, limits=Limits(6) & Limits(rate=Rate(20), by=parity))
        case "rate of the action":
            return over(rated, limits=Limits(6))
        case "shared rate":
            shared = SharedRate(Rate(20), "x", MemoryRates())
            return over(square, limits=Limits(6) & Limits(rate=shared))
        case "paused key":
            later = attempts(partial(RetryLater, 0.5))
            return over(later, limits=Limits(4) & Limits(2, by=parity))
        case "retries":
            retry = Retry(3, on=ConnectionError, initial=0.05)
            return over(attempts(ConnectionError), limits=Limits(2), each=Each(retry=retry))
        case "stagger":
            return over(
                race(square.bind(name="a"), square.bind(name="b"), into="square", stagger=1)
            )
        case _:
            one, two = square.bind(name="a"), square.bind(name="b")
            return over(race(one, two, into="square", stagger=Hedge(initial=0.001)))


KINDS = (
    *("rate", "rate by key", "rate of the action", "shared rate", "paused key", "retries"),
    *("stagger", "hedge"),
)


@pytest.mark.parametrize("kind", KINDS)
@starters
def test_a_rate_opens_however_the_loop_was_started(starter: str, kind: str):
    async def main() -> None:
        inner = Graph.chain(numbers, waits(kind))
        app = Application(fan_out(inner, over="gs", item="g", into="all", take="squares"))
        with anyio.fail_after(1000):
            result = await app.run({"gs": [1, 2, 3]})
        assert result.state["all"] == [[n * n for n in range(6)]] * 3

    run(starter, main)


@starters
def test_a_budget_is_judged_however_the_loop_was_started(starter: str):
    """What can't have money any more is refused in a callback, which lets children begin."""

    @action(reads=["n"], writes=["out"])
    async def spend(n: int, context: Context) -> int:
        await anyio.sleep(0.2)
        context.charge(0.1, unit="USD")
        return n

    async def main() -> None:
        for budget in (
            Budget(0.25, "USD", worst=0.1, name="x"),
            Budget(0.25, "USD", worst=0.1, name="x", on_empty="stop"),
            Budget(0.25, "USD", worst=0.1, name="x", backend=MemoryRates()),
        ):
            step = fan_out(spend, over="ns", item="n", into="outs", name="outs", on_error="collect")
            with anyio.fail_after(1000):
                result = await Application(step, limits=budget).run({"ns": range(6)})
            outcomes = result.outcomes("outs")
            assert (outcomes.done, outcomes.failed + outcomes.skipped) == (2, 4)

    run(starter, main)


@starters
def test_slow_cleanup_is_reported_however_the_loop_was_started(starter: str):
    received: list[GraceExceeded] = []

    class Told(Hook):
        async def on_grace_exceeded(self, event: GraceExceeded) -> None:
            received.append(event)

    @action(writes=["out"])
    async def slow() -> int:
        try:
            await anyio.sleep(100)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(20)
        return 1

    async def main() -> None:
        with anyio.move_on_after(1):
            await Application(slow, hooks=[Told()]).run()

    run(starter, main)
    assert [event.seconds for event in received] == [5.0]


@starters
def test_a_thread_that_was_left_behind_gives_its_place_back_however_the_loop_was_started(
    starter: str,
):
    """The thread's end is told in a callback, which lets the next child start."""
    has_begun, is_over = threading.Event(), threading.Event()

    @action(reads=["n"], writes=["out"], abandon=True, limits=Limits(1))
    def stuck(n: int) -> int:
        if n == 0:
            has_begun.set()
            is_over.wait(20)
        assert is_over.is_set() or not has_begun.is_set(), "the only place is taken until then"
        return n

    async def main() -> None:
        # Children of the second fan-out have no timeout: a busy machine may take a while for them.
        each = Each(timeout=0.01)
        leaving = fan_out(stuck, over="none", item="n", into="left", each=each, on_error="ignore")
        app = Application(Graph.chain(leaving, fan_out(stuck, over="ns", item="n", into="outs")))
        loop = asyncio.get_running_loop()
        loop.call_later(0.1, is_over.set)
        with anyio.fail_after(20):
            result = await app.run({"none": [0], "ns": [1, 2]})
        assert result.state["outs"] == [1, 2]

    run_really(starter, main)


@starters
def test_limits_are_changed_by_a_callback(starter: str):
    """As a signal handler may do it."""

    async def main() -> None:
        app = Application(fan_out(square, over="ns", item="n", into="outs", limits=Limits(20)))
        async with Runtime(limits=Limits(1)) as runtime:
            loop = asyncio.get_running_loop()
            loop.call_later(0.1, lambda: runtime.limiter().change(Limits(20)))
            await runtime.run(app, {"ns": list(range(10))})
        assert loop.time() == pytest.approx(0.3)

    run(starter, main)


@starters
@pytest.mark.parametrize("key", [None, 0])
def test_a_run_is_cancelled_by_a_callback(starter: str, key: int | None):
    """As a signal handler may do it."""

    async def main() -> None:
        over = fan_out(square, over="ns", item="n", into="outs", key=int, limits=Limits(2))
        async with Runtime() as runtime:
            handle = await runtime.start(Application(over), {"ns": [0, 1, 2, 3]})
            cancel = handle.cancel if key is None else partial(handle.cancel_child, key)
            asyncio.get_running_loop().call_later(0.1, cancel, "a signal")
            if key is None:
                with pytest.raises(RunCancelled, match="a signal"):
                    await handle.result()
            else:
                assert (await handle.result()).state["outs"] == {1: 1, 2: 4, 3: 9}

    run(starter, main)


# -- in real time, by every starter there is -----------------------------------------------------


@pytest.mark.anyio
@pytest.mark.every_starter
@pytest.mark.parametrize("kind", ["rate", "shared rate", "retries", "hedge"])
async def test_timers_in_real_time(kind: str):
    with anyio.fail_after(20):
        result = await Application(waits(kind)).run({"ns": [0, 1, 2, 3]})
    assert result.state["squares"] == [0, 1, 4, 9]


@pytest.mark.anyio
@pytest.mark.every_starter
async def test_threads_and_children_of_an_action_in_real_time():
    @action(reads=["n"], writes=["square"])
    def threaded(n: int) -> int:
        return n * n

    @action(writes=["squares"])
    async def own(context: Context) -> list[int]:
        async with context.fan_out(name="kids", limits=Limits(2)) as group:
            group.start_each(threaded, over=range(5), item="n")
            return sorted([one.value async for one in group if isinstance(one, Done)])

    result = await Application(own).run()
    assert result.state["squares"] == [0, 1, 4, 9, 16]


@pytest.mark.anyio
@pytest.mark.every_starter
async def test_budgets_in_real_time():
    """Charged in threads and on the loop, shared, waited for, refused, stopped, and asked for."""

    @action(reads=["n"], writes=["square"])
    def threaded(n: int, context: Context) -> int:
        context.charge(0.05, unit="USD")
        return n * n

    def budgeted(**more: Any) -> Application[Any]:
        money = Budget(0.2, "USD", worst=0.1, name="x", **more)
        step = fan_out(threaded, over="ns", item="n", into="squares", on_error="ignore")
        return Application(step, limits=money, store=MemoryStore())

    with anyio.fail_after(20):
        for more in ({}, {"on_empty": "stop"}, {"backend": MemoryRates()}):
            result = await budgeted(**more).run({"ns": [0, 1, 2, 3, 4]})
            assert len(result.state["squares"]) == 3
        app = budgeted(on_empty="ask")
        result = await app.run({"ns": [0, 1, 2, 3, 4]}, id="r")
        while result.status == "halted":
            result = await app.run(id="r", answers={"budget x": 0.05})
        assert result.state["squares"] == [0, 1, 4, 9, 16]
        assert result.spent == {"x": 0.25}


@pytest.mark.anyio
@pytest.mark.every_starter
async def test_a_caller_s_timeout_in_real_time():
    over = fan_out(square, over="ns", item="n", into="squares", take="square")
    with anyio.move_on_after(0.05) as scope:
        await Application(over).run({"ns": [0, 1, 2]})
    assert scope.cancelled_caught


@pytest.mark.anyio
@pytest.mark.every_starter
async def test_a_store_in_real_time(tmp_path: Path):
    over = fan_out(square, over="ns", item="n", into="squares", take="square", key=int)
    app = Application(over, store=SQLiteStore(tmp_path / "runs.db"), name="app")
    result = await app.run({"ns": [0, 1, 2]}, id="r")
    assert dict(result.state["squares"]) == {0: 0, 1: 1, 2: 4}
