"""Budgets beside what else a run does: second copies, pauses, drains, restarts, other amounts."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest

from shoal import (
    Application,
    Budget,
    Context,
    Each,
    Failed,
    Hedge,
    Limits,
    MemoryStore,
    Rate,
    RunCancelled,
    Runtime,
    State,
    action,
    fan_out,
)
from shoal.errors import BadUse, BudgetExceeded
from shoal.events import HedgeStarted, Spent
from shoal.testing import RecordingHook, no_leaks

pytestmark = pytest.mark.anyio


def asking(cost: float | None = 0.1, seconds: float = 1.0, **options: Any) -> Any:
    @action(reads=["n"], writes=["answer"], **options)
    async def ask(n: int, context: Context) -> int:
        await anyio.sleep(seconds)
        if cost is not None:
            context.charge(cost, unit="USD")
        return n

    return ask


def mapped(act: Any, limits: Limits | None = None, **options: Any) -> Any:
    options = {"name": "answers", "into": "got", "over": "ns", "item": "n"} | options
    return fan_out(act, limits=limits, **options)


# -- second copies ---------------------------------------------------------------------------------


def straggling(hook: RecordingHook, budget: Budget, *, wins: bool) -> Application[Any]:
    """A map whose last child is late, and whose copy is quick, or as late."""
    started: dict[int, int] = {}

    @action(reads=["n"], writes=["answer"])
    async def ask(n: int, context: Context) -> int:
        started[n] = started.get(n, 0) + 1
        is_late = n == 9 and (started[n] == 1 or not wins)
        await anyio.sleep(30 if is_late else 1)
        context.charge(0.02, unit="USD")
        return n

    hedge = Hedge(percentile=50, budget=1.0, initial=2.0)
    step = mapped(ask, budget & Limits(4), each=Each(hedge=hedge))
    return Application(step, hooks=[hook])


@pytest.mark.parametrize("wins", [True, False])
async def test_a_second_copy_pays_by_itself_and_the_one_that_loses_settles(wins: bool):
    hook, budget = RecordingHook(), Budget(5, "USD", worst=0.1)
    async with no_leaks(), Runtime() as runtime:
        app = straggling(hook, budget, wins=wins)
        result = await runtime.run(app, {"ns": range(10)})
        uses = [use for one in runtime.limiters().values() for use in one.statistics()]
    assert len(hook.of(HedgeStarted)) == 1
    # Ten that have said 0.02, and the one that lost, which was cut off and said nothing.
    assert result.spent == {"USD": pytest.approx(0.3)}
    assert sum(event.cost for event in hook.of(Spent)) == pytest.approx(0.3)
    assert all((use.aside or 0, use.in_use, use.waiting) == (0, 0, 0) for use in uses)
    hook.assert_paired()


async def test_there_is_no_copy_that_the_budget_would_not_pay():
    hook, budget = RecordingHook(), Budget(0.28, "USD", worst=0.1)
    async with no_leaks():
        result = await straggling(hook, budget, wins=True).run({"ns": range(10)})
    assert result.outcomes("answers").done == 10, "the late one goes on alone"
    assert result.spent["USD"] <= 0.28


# -- pauses and drains -----------------------------------------------------------------------------


async def test_what_waits_for_money_is_paused_and_goes_on():
    app = Application(mapped(asking(0.0), Budget(0.1, "USD", worst=0.1)), store=MemoryStore())
    async with no_leaks(), Runtime() as runtime:
        run = await runtime.start(app, {"ns": range(4)}, id="x")
        await anyio.sleep(0.5)
        await run.pause()
        await anyio.sleep(60)
        await run.resume()
        result = await run.result()
    assert result.spent == {"USD": 0}
    assert 63 < anyio.current_time() < 66, "one by one, and none meanwhile but the first"


async def test_what_is_refused_while_it_is_paused_is_no_surprise():
    """A budget that is spent while the run is paused refuses when it goes on."""
    app = Application(
        mapped(asking(0.1), Budget(0.1, "USD", worst=0.1), on_error="collect"), store=MemoryStore()
    )
    async with no_leaks(), Runtime() as runtime:
        run = await runtime.start(app, {"ns": range(3)}, id="x")
        await anyio.sleep(0.5)
        await run.pause()
        await anyio.sleep(10)
        await run.resume()
        result = await run.result()
    assert (result.outcomes("answers").done, result.outcomes("answers").failed) == (1, 2)


async def test_a_run_that_is_drained_while_it_asks_asks_again_later():
    store = MemoryStore()

    def app() -> Application[Any]:
        budget = Budget(0.2, "USD", worst=0.1, on_empty="ask")
        return Application(mapped(asking(0.1, seconds=5), budget & Limits(3)), store=store)

    async with no_leaks(), Runtime() as runtime:
        run = await runtime.start(app(), {"ns": range(5)}, id="x")
        await anyio.sleep(1)  # two are at work, and the third one waits for what they may not need
        run.drain("deploy")
        drained = await run.result()
    assert (drained.status, drained.reason, drained.questions) == ("halted", "deploy", ())
    async with no_leaks(), Runtime() as runtime:
        result = await runtime.run(app(), id="x")
        assert (result.status, result.spent) == ("halted", {"USD": 0.2})
        result = await runtime.run(app(), id="x", answers={"budget USD": 0.3})
    assert (result.status, result.spent) == ("succeeded", {"USD": 0.5})


async def test_a_run_that_is_cancelled_while_it_asks_asks_again_later():
    store = MemoryStore()

    def app() -> Application[Any]:
        budget = Budget(0.2, "USD", worst=0.1, on_empty="ask")
        step = mapped(asking(0.1, seconds=5), budget & Limits(3), on_error="collect")
        return Application(step, store=store)

    async with no_leaks(), Runtime() as runtime:
        run = await runtime.start(app(), {"ns": range(5)}, id="x")
        await anyio.sleep(1)
        run.cancel("enough")
        with pytest.raises(RunCancelled):
            await run.result()
        result = await runtime.run(app(), id="x")
        assert result.status == "halted"
        assert result.spent == {"USD": 0.2}, "the two have cost their worst case"


# -- restarts --------------------------------------------------------------------------------------


async def test_an_answer_of_less_than_is_needed_is_asked_for_more():
    store = MemoryStore()
    app = Application(
        asking(0.1),
        limits=Budget(0.05, "USD", worst=lambda state: 0.1, on_empty="ask"),
        store=store,
    )
    result = await app.run({"n": 1}, id="x")
    for more, amount in ((0.02, 0.07), (0.01, 0.08)):
        assert (result.status, len(result.questions)) == ("halted", 1)
        result = await app.run(id="x", answers={"budget USD": more})
        assert (result.status, result.spent) == ("halted", {"USD": 0})
        assert result.questions[0].question["amount"] == pytest.approx(amount)
    result = await app.run(id="x", answers={"budget USD": 0.02})
    assert (result.status, result.spent) == ("succeeded", {"USD": 0.1})


async def test_answers_one_after_the_other_after_restarts_and_the_same_one_again():
    store = MemoryStore()

    def app() -> Application[Any]:
        budget = Budget(0.1, "USD", worst=0.1, on_empty="ask")
        return Application(mapped(asking(0.1), budget & Limits(1)), store=store)

    result = await app().run({"ns": range(4)}, id="x")
    asked: set[str] = set()
    for turn in range(3):
        assert result.status == "halted"
        [question] = result.questions
        assert question.id not in asked, "another question each time"
        asked.add(question.id)
        again = await app().run(id="x")
        assert [one.id for one in again.questions] == [question.id], "not answered yet"
        result = await app().run(id="x", answers={question.address: 0.1})
        assert result.spent == {"USD": pytest.approx(0.2 + 0.1 * turn)}
    assert result.status == "succeeded"


@pytest.mark.parametrize(("amount", "done"), [(0.5, 5), (0.2, 3)])
async def test_another_amount_under_a_stored_run(amount: float, done: int):
    """The amount is the program's; what was spent is the run's."""
    store = MemoryStore()

    def app(amount: float) -> Application[Any]:
        step = mapped(asking(0.1), Budget(amount, "USD", worst=0.1) & Limits(1), on_error="collect")
        return Application(step, store=store)

    first = await app(0.3).run({"ns": range(5)}, id="x")
    assert (first.outcomes("answers").done, first.spent) == (3, {"USD": pytest.approx(0.3)})
    result = await app(amount).retry_failed("x")
    assert result.outcomes("answers").done == done
    assert result.spent == {"USD": pytest.approx(max(0.3, amount))}
    if done < 5:
        [error, _] = [one.error for one in result.outcomes("answers") if isinstance(one, Failed)]
        assert isinstance(error, BudgetExceeded)
        assert "0 of 0.2 is left; 0.3 is spent" in str(error)


async def test_a_window_is_the_clock_s_and_not_the_run_s():
    """A run that is resumed in another window has the amount anew, and knows what it has spent."""
    store = MemoryStore()
    budget = Budget(0.2, "USD", worst=0.1, per=3600)
    step = mapped(asking(0.1), budget & Limits(1), on_error="collect")
    app = Application(step, store=store)
    async with no_leaks(), Runtime() as runtime:
        first = await runtime.run(app, {"ns": range(4)}, id="x")
        assert (first.outcomes("answers").done, first.outcomes("answers").failed) == (2, 2)
        again = await app.retry_failed("x", runtime=runtime)
        assert again.outcomes("answers").done == 2, "the same window"
        await anyio.sleep(3600)
        last = await app.retry_failed("x", runtime=runtime)
    assert last.outcomes("answers").done == 4
    assert last.spent == {"USD of the runtime": pytest.approx(0.4)}


# -- keys ------------------------------------------------------------------------------------------


def model_of(state: State) -> str:
    return "small" if state["n"] % 2 else "large"


@action(reads=["n"], writes=["answer"])
async def on_the_loop(n: int, context: Context) -> int:
    context.charge(0.1, unit="USD")
    return n


@action(reads=["n"], writes=["answer"])
async def in_a_thread_of_its_own(n: int, context: Context) -> int:
    await anyio.to_thread.run_sync(lambda: context.charge(0.1, unit="USD"))
    return n


def work(n: int, context: Context) -> int:
    context.charge(0.1, unit="USD")
    return n


in_a_thread = action(reads=["n"], writes=["answer"])(work)
in_a_process = action(reads=["n"], writes=["answer"], executor="processes")(work)


@pytest.mark.realtime
@pytest.mark.parametrize(
    "act",
    [
        on_the_loop,
        in_a_thread,
        in_a_thread_of_its_own,
        pytest.param(in_a_process, marks=pytest.mark.slow),
    ],
)
async def test_keys_are_counted_through_nested_fan_outs_and_executors(act: Any):
    """What waits for money is let in by the loop, in whatever thread the money is freed."""
    budget = Budget(0.4, "USD", worst=0.2, by=model_of)
    inner = fan_out(act, over="parts", item="n", into="inner", name="inner", on_error="ignore")
    outer = fan_out(inner, over="groups", item="parts", into="outer", take="inner", name="outer")
    app = Application(outer, limits=budget)
    with anyio.fail_after(20):
        result = await app.run({"groups": [[1, 2, 3, 4]] * 3})
    # With less than 0.2 left of a key nothing more of it starts.
    assert result.spent == {"USD": pytest.approx(0.6)}
    assert sum(len(found) for found in result.state["outer"]) == 6


@pytest.mark.realtime
async def test_a_plain_function_s_rates_are_charged_on_the_loop():
    """Else a thread would let other attempts start, and the loop might sleep on."""
    rate = Limits(rate=Rate(50, burst=50), cost=lambda state: 50, unit="tokens")

    @action(reads=["n"], writes=["answer"], limits=rate)
    def ask(n: int, context: Context) -> int:
        context.charge(0, unit="tokens")
        context.learn({"x-ratelimit-remaining-tokens": "50"})
        with pytest.raises(BadUse, match="takes a number"):
            context.charge(-1)
        return n

    began = anyio.current_time()
    await Application(mapped(ask)).run({"ns": range(6)})
    assert anyio.current_time() - began < 0.9


async def test_a_thread_that_nobody_knows_is_refused():
    @action(reads=["n"], writes=["answer"])
    async def ask(n: int, context: Context) -> int:
        def charge() -> None:
            with pytest.raises(BadUse, match="in a thread that anyio doesn't know"):
                context.charge(0.1, unit="USD")

        thread = threading.Thread(target=charge)
        thread.start()
        thread.join()
        return n

    await Application(ask, limits=Budget(1, "USD", worst=0.1)).run({"n": 1})
