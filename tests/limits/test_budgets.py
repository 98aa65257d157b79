"""Budgets: what is set aside, spent and left, and what becomes of attempts that don't fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Budget,
    Cancelled,
    Context,
    Each,
    Failed,
    Graph,
    Limits,
    MemoryStore,
    Retry,
    RetryLater,
    RunPath,
    Runtime,
    Skipped,
    State,
    action,
    fan_out,
    first,
    race,
)
from shoal.errors import BadAnswer, BadUse, BudgetExceeded, DefinitionError
from shoal.events import Spent
from shoal.stores import BudgetLevel
from shoal.testing import RecordingHook, assert_run_well_formed, no_leaks
from shoal.watch import Queries

pytestmark = pytest.mark.anyio


def asking(
    *,
    costs: Callable[[int], float | None] = lambda n: 0.02,
    seconds: Callable[[int], float] = lambda n: 1.0,
    limits: Limits | None = None,
    name: str = "ask",
    **options: Any,
) -> Any:
    """An action that takes a second and then says what it has cost, if anything."""

    @action(reads=["n"], writes=["answer"], limits=limits, name=name, **options)
    async def ask(n: int, context: Context) -> int:
        await anyio.sleep(seconds(n))
        cost = costs(n)
        if cost is not None:
            context.charge(cost, unit="USD")
        return n

    return ask


def answers(act: Any, limits: Limits | None = None, **options: Any) -> Any:
    options = {"name": "answers", "into": "got", "over": "ns", "item": "n", "take": None} | options
    if options["take"] is None:
        del options["take"]
    return fan_out(act, limits=limits, **options)


def failures(group: BaseException) -> list[BaseException]:
    """The leaves of a group of exceptions."""
    inner: tuple[BaseException, ...] = getattr(group, "exceptions", ())
    return [leaf for one in inner for leaf in failures(one)] if inner else [group]


# -- what is counted -------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["application", "fan-out", "action"])
async def test_what_attempts_cost_is_told_by_the_result_and_events(where: str):
    hook, budget = RecordingHook(), Budget(5, "USD", worst=0.1)
    act = asking(
        costs=lambda n: 0.02 if n % 2 else None, limits=budget if where == "action" else None
    )
    app = Application(
        answers(act, budget if where == "fan-out" else None),
        limits=budget if where == "application" else None,
        hooks=[hook],
    )
    async with no_leaks():
        result = await app.run({"ns": range(4)})
    assert result.spent == {"USD": 0.24}  # the others have said nothing
    events = hook.of(Spent)
    assert sorted((event.cost, event.charged) for event in events) == [
        (0.02, True),
        (0.02, True),
        (0.1, False),
        (0.1, False),
    ]
    assert events[-1].spent == pytest.approx(0.24)
    assert events[-1].left == pytest.approx(4.76)
    assert {(event.step, event.unit, event.budget, event.attempt) for event in events} == {
        ("ask", "USD", "USD", 1)
    }
    hook.assert_paired()


async def test_no_more_runs_than_its_worst_case_allows():
    app = Application(answers(asking(), Budget(0.3, "USD", worst=0.1)))
    async with no_leaks():
        result = await app.run({"ns": range(6)})
    # Three at once: the first round leaves 0.24, so two fit, then one by one.
    assert result.spent == {"USD": 0.12}
    assert anyio.current_time() == pytest.approx(3)


async def test_failures_and_retries_cost_what_they_say_or_the_worst_case():
    tries: list[int] = []

    @action(reads=["n"], writes=["answer"], retry=Retry(3, on=OSError, initial=1, jitter=0))
    async def ask(n: int, context: Context) -> int:
        tries.append(n)
        if len(tries) == 1:
            context.charge(0.03, unit="USD")
        if len(tries) < 3:
            raise OSError("no")
        context.charge(0.01, unit="USD")
        return n

    async with no_leaks():
        result = await Application(ask, limits=Budget(1, "USD", worst=0.1)).run({"n": 1})
    assert result.spent == {"USD": 0.14}


async def test_losers_of_a_race_cost_their_worst_case():
    fast = asking(name="fast", seconds=lambda n: 1.0)
    slow = asking(name="slow", seconds=lambda n: 9.0)
    contest = race(fast, slow, into="answer", until=first())
    async with no_leaks():
        result = await Application(contest, limits=Budget(1, "USD", worst=0.1)).run({"n": 1})
    assert result.spent == {"USD": 0.12}


async def test_an_attempt_that_never_began_costs_nothing():
    hook = RecordingHook()
    budget = Budget(1, "USD", worst=0.1) & Limits(1)
    contest = race(
        asking(name="one", limits=budget),
        asking(name="two", limits=budget),
        into="answer",
        until=first(),
    )
    async with no_leaks():
        result = await Application(contest, hooks=[hook]).run({"n": 1})
    assert result.spent == {"USD": 0.02}
    assert len(hook.of(Spent)) == 1


async def test_a_server_that_asks_to_come_later_costs_what_the_attempt_says():
    refused: list[int] = []

    @action(reads=["n"], writes=["answer"])
    async def ask(n: int, context: Context) -> int:
        if not refused:
            refused.append(n)
            context.charge(0, unit="USD")
            raise RetryLater(1)
        return n

    async with no_leaks():
        result = await Application(ask, limits=Budget(1, "USD", worst=0.1)).run({"n": 1})
    assert result.spent == {"USD": 0.1}


async def test_the_worst_case_may_depend_on_the_state():
    budget = Budget(1, "USD", worst=lambda state: 0.1 * state["n"])
    app = Application(answers(asking(costs=lambda n: None), budget))
    async with no_leaks():
        result = await app.run({"ns": [1, 2, 3]})
    assert result.spent == {"USD": 0.6}


async def test_each_key_has_the_amount_for_itself():
    budget = Budget(0.1, "USD", worst=0.1, by=lambda state: state["n"] % 2)
    app = Application(answers(asking(costs=lambda n: None), budget, on_error="collect"))
    async with no_leaks():
        result = await app.run({"ns": range(4)})
    assert result.spent == {"USD": 0.2}
    errors = [one.error for one in result.outcomes("answers") if isinstance(one, Failed)]
    assert [error.key for error in errors if isinstance(error, BudgetExceeded)] == ["0", "1"]


async def test_several_budgets_and_limits_are_joined():
    limits = Budget(1, "USD", worst=0.1) & Budget(100, "tokens", worst=40) & Limits(9)

    @action(reads=["n"], writes=["answer"], limits=limits)
    async def ask(n: int, context: Context) -> int:
        await anyio.sleep(1)
        context.charge(0.05, unit="USD")
        context.charge(30, unit="tokens")
        with pytest.raises(BadUse, match="several costs apply: 'USD', 'tokens'"):
            context.charge(1)
        return n

    async with no_leaks():
        result = await Application(answers(ask)).run({"ns": range(3)})
    assert result.spent == {"USD": 0.15, "tokens": 90}
    assert anyio.current_time() == pytest.approx(2)  # two at once, by their tokens


async def test_one_object_in_several_places_is_one_budget():
    budget = Budget(0.2, "USD", worst=0.1)
    one, two = (
        asking(name="one", limits=budget, costs=lambda n: None),
        asking(name="two", limits=budget, costs=lambda n: None),
    )

    @action(reads=["answer"], writes=["n"])
    async def again(answer: int) -> int:
        return answer

    app = Application(Graph.chain(one, again, two))
    async with no_leaks():
        result = await app.run({"n": 1})
    assert result.spent == {"USD": 0.2}


@pytest.mark.parametrize("where", ["application", "runtime", "actions"])
async def test_one_budget_has_a_worst_case_for_each_action(where: str):
    money = Budget(0.55, "USD", worst=0)
    cheap = asking(name="cheap", costs=lambda n: None, limits=money.with_worst(0.1))
    dear = asking(name="dear", costs=lambda n: None, limits=money.with_worst(lambda state: 0.5))

    @action(reads=["answer"], writes=["n"])
    async def free(answer: int) -> int:
        return answer

    app = Application(
        Graph.chain(cheap, free, dear), limits=money if where == "application" else None
    )
    async with no_leaks(), Runtime(limits=money if where == "runtime" else None) as runtime:
        with pytest.raises(BudgetExceeded) as raised:
            await runtime.run(app, {"n": 1})
        [use] = runtime.limiter(dear).statistics()
        assert (use.spent, use.refused) == (0.1, 1)
    assert (raised.value.spent, raised.value.cost) == (0.1, 0.5)
    assert repr(cheap.limits) == "Budget(0.55, 'USD', worst=0.1)"


async def test_what_is_free_is_not_refused_where_more_was_spent_than_there_is():
    money = Budget(0.3, "USD", worst=0)

    @action(reads=["answer"], writes=["n"])
    async def free(answer: int) -> int:
        return answer

    act = asking(costs=lambda n: 0.9, limits=money.with_worst(0.1))
    result = await Application(Graph.chain(act, free), limits=money).run({"n": 1})
    assert result.spent == {"USD": 0.9}


async def test_a_worst_case_is_kept_by_its_place_when_the_amount_changes():
    money = Budget(0.3, "USD", worst=0.05)
    act = asking(costs=lambda n: None, limits=money.with_worst(0.2))
    async with no_leaks(), Runtime() as runtime:
        limiter = runtime.limiter(act)
        limiter.change(limiter.limits.with_numbers(0, amount=0.4))
        result = await runtime.run(Application(answers(act)), {"ns": range(2)})
    assert result.spent == {"USD": 0.4}


async def test_each_run_has_the_budget_of_an_application_for_itself():
    app = Application(asking(costs=lambda n: None), limits=Budget(0.1, "USD", worst=0.1))
    async with no_leaks(), Runtime() as runtime:
        for _ in range(3):
            assert (await runtime.run(app, {"n": 1})).spent == {"USD": 0.1}


async def test_runs_share_the_budget_of_their_runtime():
    app = Application(asking(costs=lambda n: None), limits=Budget(9, "USD", worst=0.1))
    async with no_leaks(), Runtime(limits=Budget(0.25, "USD", worst=0.1)) as runtime:
        for _ in range(2):
            result = await runtime.run(app, {"n": 1})
            assert result.spent == {"USD": 0.1, "USD of the runtime": 0.1}
        with pytest.raises(BudgetExceeded, match=r"0\.2 is spent"):
            await runtime.run(app, {"n": 1})


async def test_a_window_gives_the_amount_anew():
    budget = Budget(0.2, "USD", worst=0.1, per=60)
    app = Application(asking(costs=lambda n: None), limits=budget)
    async with no_leaks(), Runtime() as runtime:
        for _ in range(2):
            await runtime.run(app, {"n": 1})
        with pytest.raises(BudgetExceeded):
            await runtime.run(app, {"n": 1})
        await anyio.sleep(58)
        assert (await runtime.run(app, {"n": 1})).spent == {"USD of the runtime": 0.1}


async def test_an_attempt_counts_in_the_window_in_which_it_began():
    budget = Budget(0.1, "USD", worst=0.1, per=10)
    act = asking(costs=lambda n: 0.1, seconds=lambda n: 15.0, limits=budget)
    async with no_leaks(), Runtime() as runtime:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.run, Application(act), {"n": 1})
            await anyio.sleep(11)
            tasks.start_soon(runtime.run, Application(act), {"n": 2})
        [use] = runtime.limiter(act).statistics()
        assert use.spent == pytest.approx(0.1)


async def test_more_than_the_worst_case_is_counted_all_the_same():
    app = Application(
        answers(asking(costs=lambda n: 0.5), Budget(0.6, "USD", worst=0.1), on_error="collect")
    )
    async with no_leaks():
        result = await app.run({"ns": range(8)})
    assert result.spent == {"USD": 3.0}
    assert result.outcomes("answers").failed == 2


async def test_a_charge_counts_at_once_and_the_last_one_counts():
    seen: list[float] = []

    @action(reads=["n"], writes=["answer"])
    async def ask(n: int, context: Context) -> int:
        if n:
            await anyio.sleep(0.5)
            seen.append(anyio.current_time())
            return n
        context.charge(0.05, unit="USD")
        await anyio.sleep(9)
        context.charge(0.04, unit="USD")
        return n

    app = Application(answers(ask, Budget(0.15, "USD", worst=0.1)))
    async with no_leaks():
        result = await app.run({"ns": range(2)})
    assert seen == pytest.approx([0.5])
    assert result.spent == {"USD": 0.14}


async def test_a_plain_function_in_a_thread_charges_too():
    @action(reads=["n"], writes=["answer"])
    def ask(n: int, context: Context) -> int:
        context.charge(0.03, unit="USD")
        return n

    result = await Application(ask, limits=Budget(1, "USD", worst=0.1)).run({"n": 1})
    assert result.spent == {"USD": 0.03}


# -- when it is empty ------------------------------------------------------------------------------


async def test_what_does_not_fit_fails_and_says_what_was_spent_by_whom():
    @action(reads=["answer"], writes=["n"])
    async def again(answer: int) -> int:
        return answer

    limits = Budget(0.1, "USD", worst=lambda state: 0.08 if "answer" in state else 0.05)
    before = asking(name="before", costs=lambda n: 0.05, limits=limits)
    with pytest.raises(BudgetExceeded) as raised:
        await Application(Graph.chain(before, again, asking(limits=limits))).run({"n": 1})
    error = raised.value
    assert (error.budget, error.unit, error.amount) == ("USD", "USD", 0.1)
    assert (error.spent, error.cost, error.by) == (0.05, 0.08, {"before": 0.05})
    assert "0.05 of 0.1 is left; 0.05 is spent (by before 0.05)" in str(error)


async def test_children_that_do_not_fit_fail_one_by_one_and_are_not_tried_again():
    starts: list[int] = []
    act = asking(costs=starts.append, retry=Retry(5, on=Exception))
    app = Application(answers(act, Budget(0.3, "USD", worst=0.1), on_error="collect"))
    async with no_leaks():
        result = await app.run({"ns": range(8)})
    assert sorted(starts) == [0, 1, 2]
    outcomes = result.outcomes("answers")
    assert (outcomes.done, outcomes.failed) == (3, 5)
    assert all(isinstance(one.error, BudgetExceeded) for one in outcomes if isinstance(one, Failed))
    assert anyio.current_time() == pytest.approx(1)


async def test_one_failure_ends_the_step_as_usual():
    app = Application(answers(asking(costs=lambda n: None), Budget(0.1, "USD", worst=0.1)))
    with pytest.raises(ExceptionGroup) as raised:
        await app.run({"ns": range(3)})
    assert isinstance(failures(raised.value)[0], BudgetExceeded)


async def test_what_alone_is_too_much_fails_at_once_and_what_fits_goes_on():
    budget = Budget(1, "USD", worst=lambda state: 2.0 if state["n"] == 1 else 0.1)
    app = Application(answers(asking(), budget, on_error="collect"))
    async with no_leaks():
        result = await app.run({"ns": range(4)})
    assert [one.key for one in result.outcomes("answers") if isinstance(one, Failed)] == [1]
    [failed] = [one for one in result.outcomes("answers") if isinstance(one, Failed)]
    assert "no attempt of that size fits at all" in str(failed.error)


async def test_stop_ends_the_fan_out_with_what_it_has():
    hook = RecordingHook()
    budget = Budget(0.3, "USD", worst=0.1, on_empty="stop")
    app = Application(answers(asking(costs=lambda n: 0.1), budget), hooks=[hook])
    async with no_leaks():
        result = await app.run({"ns": range(20)})
    assert list(result.state["got"]) == [0, 1, 2]
    outcomes = result.outcomes("answers")
    assert (outcomes.done, outcomes.skipped) == (3, 17)
    [one, *_] = [one for one in outcomes if isinstance(one, Skipped)]
    assert "budget 'USD': an attempt may cost 0.1 USD, and 0 of 0.3 is left" in one.reason
    hook.assert_paired()


async def test_stop_lets_what_runs_go_on_to_its_end():
    budget = Budget(0.3, "USD", worst=0.1, on_empty="stop")
    act = asking(costs=lambda n: 0.1, seconds=lambda n: 1.0 + n)
    app = Application(answers(act, budget))
    async with no_leaks():
        result = await app.run({"ns": range(20)})
    assert list(result.state["got"]) == [0, 1, 2]


async def test_stop_does_not_read_a_source_without_an_end():
    pulled: list[int] = []

    async def endless(state: State) -> Any:
        n = 0
        while True:
            pulled.append(n)
            yield n
            n += 1

    budget = Budget(0.3, "USD", worst=0.1, on_empty="stop")
    app = Application(
        answers(asking(costs=lambda n: 0.1), budget & Limits(4), over=endless, reads=[])
    )
    async with no_leaks():
        result = await app.run({})
    assert list(result.state["got"]) == [0, 1, 2]
    assert len(pulled) < 100


async def test_stop_cancels_a_child_that_has_begun_and_can_not_go_on():
    budget = Budget(0.3, "USD", worst=0.1, on_empty="stop")
    paid = asking(costs=lambda n: 0.1, seconds=lambda n: 1.0 + n)

    @action(reads=["answer"], writes=["more"])
    async def more(answer: int, context: Context) -> int:
        return answer

    app = Application(answers(Graph.chain(paid, more), budget, take="more"))
    async with no_leaks():
        result = await app.run({"ns": range(2)})
    outcomes = result.outcomes("answers")
    assert (outcomes.done, outcomes.cancelled) == (1, 1)
    [stopped] = [one for one in outcomes if isinstance(one, Cancelled)]
    assert "budget 'USD'" in stopped.reason


async def test_stop_outside_of_a_fan_out_fails():
    app = Application(asking(), limits=Budget(0.1, "USD", worst=lambda state: 1, on_empty="stop"))
    with pytest.raises(BudgetExceeded):
        await app.run({"n": 1})


# -- waiting for what others have set aside --------------------------------------------------------


async def test_what_waits_for_money_of_others_waits_and_holds_no_place():
    act = asking(costs=lambda n: 0.0)
    app = Application(answers(act, Budget(0.1, "USD", worst=0.1) & Limits(3)))
    async with no_leaks():
        result = await app.run({"ns": range(4)})
    assert result.spent == {"USD": 0}
    assert anyio.current_time() == pytest.approx(4)


def planner(worst: float, *, seconds: float = 1.0) -> Any:
    @action(reads=["n"], writes=["answer"])
    async def plan(n: int, context: Context) -> int:
        async with context.fan_out(name="tools") as group:
            for m in range(2):
                group.start(asking(name="tool", costs=lambda n: 0.1), {"n": m}, key=m)
        await anyio.sleep(seconds)
        context.charge(0.1, unit="USD")
        return n

    return plan


async def test_children_need_their_worst_case_besides_that_of_their_parent():
    app = Application(planner(0.1), limits=Budget(0.3, "USD", worst=0.1))
    async with no_leaks():
        result = await app.run({"n": 1})
    assert result.spent == {"USD": 0.3}


async def test_children_do_not_wait_for_their_parent_for_ever():
    app = Application(planner(0.1), limits=Budget(0.15, "USD", worst=0.1))
    with anyio.fail_after(60), pytest.raises(ExceptionGroup) as raised:
        await app.run({"n": 1})
    assert isinstance(failures(raised.value)[0], BudgetExceeded)
    assert "0.1 set aside for attempts under way" in str(failures(raised.value)[0])


async def test_parents_that_wait_for_each_others_children_do_not_wait_for_ever():
    app = Application(
        answers(planner(0.1), on_error="collect"), limits=Budget(0.25, "USD", worst=0.1)
    )
    with anyio.fail_after(60):
        async with no_leaks():
            result = await app.run({"ns": range(2)})
    outcomes = result.outcomes("answers")
    assert outcomes.failed >= 1
    assert result.spent["USD"] <= 0.25


async def test_a_parent_with_children_at_work_may_still_make_room():
    """One planner has free children, and settles for less than it set aside once they are done."""

    @action(reads=["m"], writes=["out"])
    async def free(m: int) -> int:
        await anyio.sleep(3)
        return m

    @action(reads=["n"], writes=["answer"])
    async def plan(n: int, context: Context) -> int:
        if n:
            await anyio.sleep(1)
            return await paid(n, context)
        async with context.fan_out(name="free") as group:
            group.start(free, {"m": 1}, key=1)
        context.charge(0, unit="USD")
        return n

    async def paid(n: int, context: Context) -> int:
        async with context.fan_out(name="paid") as group:
            group.start(asking(costs=lambda n: 0.05), {"n": n}, key=n)
        context.charge(0, unit="USD")
        return n

    budget = Budget(0.25, "USD", worst=lambda state: 0 if "m" in state else 0.1)
    app = Application(answers(plan), limits=budget)
    with anyio.fail_after(60):
        async with no_leaks():
            result = await app.run({"ns": range(2)})
    assert result.spent == {"USD": 0.05}
    assert 3 < anyio.current_time() < 5


# -- asking for more -------------------------------------------------------------------------------


async def test_it_asks_for_more_goes_on_and_asks_again():
    store, seen = MemoryStore(), list[int]()
    budget = Budget(0.2, "USD", worst=0.1, on_empty="ask")
    act = asking(costs=lambda n: seen.append(n) or 0.1)

    def app() -> Application[Any]:  # made anew, as after a restart
        return Application(answers(act, Budget(0.2, "USD", worst=0.1, on_empty="ask")), store=store)

    assert budget.parts
    async with no_leaks():
        result = await app().run({"ns": range(6)}, id="x")
        assert (result.status, result.spent) == ("halted", {"USD": 0.2})
        [question] = result.questions
        assert question.name == "budget USD"
        assert question.question == {
            "budget": "USD",
            "key": "",
            "unit": "USD",
            "amount": 0.2,
            "spent": 0.2,
            "needs": 0.1,
            "by": {"ask": 0.2},
        }
        result = await app().run(id="x", answers={"budget USD": 0.1})
        assert (result.status, result.spent) == ("halted", {"USD": 0.3})
        assert result.questions[0].question["amount"] == pytest.approx(0.3)
        result = await app().run(id="x", answers={result.questions[0].address: 0.3})
    assert (result.status, result.spent) == ("succeeded", {"USD": 0.6})
    assert sorted(seen) == list(range(6))


async def test_a_plain_step_asks_as_well():
    app = Application(
        asking(costs=lambda n: 0.1),
        limits=Budget(0.05, "USD", worst=lambda state: 0.1, on_empty="ask"),
        store=MemoryStore(),
    )
    result = await app.run({"n": 1}, id="x")
    assert (result.status, result.spent) == ("halted", {"USD": 0})
    result = await app.run(id="x")  # no answer: it asks the same question
    assert (result.status, len(result.questions)) == ("halted", 1)
    result = await app.run(id="x", answers={"budget USD": 0.1})
    assert (result.status, result.spent) == ("succeeded", {"USD": 0.1})


async def test_one_step_may_ask_twice():
    store = MemoryStore()
    app = Application(
        asking(costs=lambda n: 0.1),
        limits=Budget(0.05, "USD", worst=lambda state: 0.1, on_empty="ask"),
        store=store,
    )
    await app.run({"n": 1}, id="x")
    assert (await app.run(id="x", answers={"budget USD": 0.01})).status == "halted"
    assert (await app.run(id="x", answers={"budget USD": 0.1})).status == "succeeded"
    await assert_run_well_formed(store, "x")


@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("budget", [5.0, 0.3, None])
async def test_a_program_with_a_larger_budget_needs_no_answer(
    budget: float | None, is_nested: bool
):
    """It was halted again, with a question about an amount that it doesn't have any more."""
    store = MemoryStore()

    def app(amount: float | None) -> Application[Any]:
        step = answers(asking(costs=lambda n: 0.1))
        if is_nested:
            step = fan_out(step, over="all", item="ns", into="lists", take="got", name="outer")
        limits = None if amount is None else Budget(amount, "USD", worst=0.1, on_empty="ask")
        return Application(step, name="app", limits=limits, store=store)

    state = {"all": [range(4)]} if is_nested else {"ns": range(4)}
    async with no_leaks():
        result = await app(0.2).run(state, id="x")
        assert (result.status, result.spent) == ("halted", {"USD": 0.2})
        result = await app(budget).run(id="x")
        if budget == 0.3:  # enough for one more
            assert (result.status, result.spent) == ("halted", {"USD": 0.3})
            (question,) = result.questions
            assert question.question["amount"] == 0.3
            assert await app(budget).questions("x") == [question]
            result = await app(budget).run(id="x", answers={question.address: 1})
    assert result.status == "succeeded"
    assert result.spent == {"USD": pytest.approx(0.4 if budget else 0.2)}
    await assert_run_well_formed(store, "x")


async def test_no_more_lets_it_fail():
    app = Application(
        answers(asking(costs=lambda n: 0.1), on_error="collect"),
        limits=Budget(0.2, "USD", worst=0.1, on_empty="ask"),
        store=MemoryStore(),
    )
    await app.run({"ns": range(4)}, id="x")
    result = await app.run(id="x", answers={"budget USD": 0})
    assert (result.status, result.outcomes("answers").failed) == ("succeeded", 2)


@pytest.mark.parametrize("answer", ["much", None, -1, True, float("nan")])
async def test_an_answer_that_is_no_amount_is_refused(answer: object):
    app = Application(
        answers(asking(costs=lambda n: 0.1)),
        limits=Budget(0.2, "USD", worst=0.1, on_empty="ask"),
        store=MemoryStore(),
    )
    await app.run({"ns": range(4)}, id="x")
    with pytest.raises(BadAnswer):
        await app.run(id="x", answers={"budget USD": answer})


async def test_asking_needs_a_store():
    app = Application(asking(), limits=Budget(0.2, "USD", worst=0.1, on_empty="ask"))
    with pytest.raises(BadUse, match="that would keep the question: give it one"):
        await app.run({"n": 1})


# -- what is remembered ----------------------------------------------------------------------------


async def test_a_resumed_run_knows_what_was_spent():
    store, fails = MemoryStore(), [True]

    @action(reads=["n"], writes=["answer"])
    async def ask(n: int, context: Context) -> int:
        context.charge(0.03, unit="USD")
        if n == 2 and fails:
            raise OSError("no")
        return n

    def app() -> Application[Any]:
        step = answers(ask, Budget(0.3, "USD", worst=0.1) & Limits(1))
        return Application(step, store=store)

    with pytest.raises(ExceptionGroup):
        await app().run({"ns": range(4)}, id="x")
    fails.clear()
    result = await app().run(id="x")
    assert result.spent == {"USD": 0.15}  # three attempts, and two more
    assert (await app().run(id="x")).spent == {"USD": 0.15}


async def test_a_resumed_run_knows_who_has_spent_it():
    store, worst = MemoryStore(), [0.05]

    @action(reads=["answer"], writes=["end"])
    async def fail(answer: int, context: Context) -> int:
        context.charge(0.01)
        raise OSError("no")

    def app() -> Application[Any]:
        budget = Budget(0.1, "USD", worst=lambda state: worst[0])
        before = asking(name="before", costs=lambda n: 0.05)
        return Application(Graph.chain(before, fail), store=store, limits=budget)

    with pytest.raises(OSError, match="no"):
        await app().run({"n": 1}, id="x")
    worst[0] = 0.08
    with pytest.raises(BudgetExceeded) as raised:
        await app().run(id="x")
    assert raised.value.by == {"before": 0.05, "fail": 0.01}


async def test_a_record_says_by_whom_all_of_it_was_spent():
    """Also while attempts go on that have said something already."""
    store, said = MemoryStore(), anyio.Event()

    @action(reads=["n"], writes=["answer"])
    async def ask(n: int, context: Context) -> int:
        if n:
            await said.wait()
            return n
        context.charge(0.03, unit="USD")
        said.set()
        await anyio.sleep(9)
        return n

    app = Application(answers(ask, Budget(1, "USD", worst=0.1) & Limits(2)), store=store)
    async with no_leaks():
        await app.run({"ns": range(4)}, id="x")
    levels = [one for one in await store.read(RunPath(run_id="x")) if isinstance(one, BudgetLevel)]
    assert any(0 < level.spent < 0.3 and level.aside for level in levels)
    for level in levels:
        assert sum(level.by.values()) == pytest.approx(level.spent)


async def test_two_budgets_of_one_name_are_refused_before_anything_runs():
    """A child that met the second one would fail like others, and be collected."""
    one, two = Budget(1, "USD", worst=0.1), Budget(2, "USD", worst=0.1)
    ask = asking(limits=one)
    within = fan_out(ask, over="ns", item="n", into="answers", limits=two, on_error="collect")
    raced = race(ask, asking(limits=two).bind(name="other"), into="answer")
    for act, limits in ((ask, two), (answers(ask), two), (raced, None), (within, None)):
        with pytest.raises(DefinitionError, match=r"^application .*two budgets.*give each a name="):
            Application(act, limits=limits)
    for apart in (Budget(2, "USD", worst=0.1, per=60), Budget(2, "USD", worst=0.1, by=len)):
        Application(ask, limits=apart)
    Application(answers(ask), limits=one.with_worst(0.2))


async def test_two_budgets_of_one_name_that_were_not_known_before_are_refused_as_they_meet():
    one, two = Budget(1, "USD", worst=0.1), Budget(2, "USD", worst=0.1)
    ask = asking(limits=one)
    late = fan_out(lambda state: [ask], into="answers", take="answer", reads=["n"])
    with pytest.raises(ExceptionGroup) as info:
        await Application(late, limits=two).run({"n": 1})
    assert "give each a name=" in str(info.value.exceptions[0])


async def test_a_budget_with_a_name_of_its_own_stands_beside_another():
    two = Budget(2, "USD", worst=0.1)
    named = Budget(1, "USD", worst=0.1, name="of ask")
    result = await Application(asking(limits=named), limits=two).run({"n": 1})
    assert result.spent == {"USD": 0.02, "of ask": 0.02}


async def test_a_name_is_one_budget_also_where_it_is_made_anew():
    @action(reads=["n"], writes=["answer"])
    async def plan(n: int, context: Context) -> int:
        tools = Budget(0.3, "USD", worst=0.1, name="tools")
        async with context.fan_out(name="tools", limits=tools) as group:
            group.start(asking(costs=lambda n: 0.1), {"n": n}, key=n)
        return n

    result = await Application(answers(plan)).run({"ns": range(3)})
    assert result.spent == {"tools": 0.3}
    with pytest.raises(ExceptionGroup):
        await Application(answers(plan)).run({"ns": range(4)})


# -- statistics ------------------------------------------------------------------------------------


async def test_statistics_say_what_is_spent_and_set_aside():
    act = asking(limits=Budget(1, "USD", worst=0.1) & Limits(2))
    app = Application(answers(act))
    async with no_leaks(), Runtime() as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.run, app, {"ns": range(3)})
        await anyio.sleep(1.5)
        money, slots = runtime.limiter(act).statistics()
        assert (money.amount, money.unit) == (1, "USD")
        assert money.spent == pytest.approx(0.04)
        assert money.aside == pytest.approx(0.1)
        assert (slots.amount, slots.spent) == (None, None)
        assert money.limits == "Budget(1, 'USD', worst=0.1)"


async def test_an_amount_is_changed_while_it_is_in_use():
    act = asking(costs=lambda n: 0.1, limits=Budget(0.2, "USD", worst=0.1))
    app = Application(answers(act, on_error="collect"))
    async with no_leaks(), Runtime() as runtime, anyio.create_task_group() as tasks:

        async def run() -> None:
            result = await runtime.run(app, {"ns": range(6)})
            assert result.outcomes("answers").done == 4
            assert result.spent == {"USD": 0.4}

        tasks.start_soon(run)
        await anyio.sleep(0.5)
        limiter = runtime.limiter(act)
        limiter.change(limiter.limits.with_numbers(0, amount=0.4))
        assert limiter.statistics()[0].amount == 0.4
        # Written anew, it is the same budget.
        limiter.change(Budget(0.4, "USD", worst=0.1))
        for other in (Limits(3), Budget(1, "tokens", worst=0.1), Budget(1, "USD", worst=1, per=9)):
            with pytest.raises(BadUse, match="can't be changed into"):
                limiter.change(other)
        with pytest.raises(DefinitionError, match="it is no Budget"):
            Limits(3).with_numbers(0, amount=1)


async def test_reports_and_pages_tell_of_it():
    store = MemoryStore()
    budget = Budget(0.2, "USD", worst=0.1, on_empty="ask")
    app = Application(answers(asking(costs=lambda n: 0.1)), limits=budget, store=store)
    async with no_leaks(), Runtime(watch=True) as runtime:
        result = await runtime.run(app, {"ns": range(6)}, id="x")
        assert result.report is not None
        [spending] = result.report.spending
        assert (spending.spent, spending.amount, spending.aside) == (0.2, 0.2, 0)
        [use] = [one for one in result.report.limits if one.amount is not None]
        assert (use.cost, use.amount, use.unit, use.limits) == (0.2, 0.2, "USD", repr(budget))
        queries = Queries(store)
        overview = await queries.overview("x")
        assert overview.headline.text.endswith("0.2 of 0.2 USD spent")
        assert len((await queries.questions("x")).open) == 1
        texts = [entry.text for entry in (await queries.history("x")).entries if entry.text]
        assert texts[0] == "USD: 0 USD spent, 0.1 set aside"
        assert texts[-1] == "USD: 0.2 USD spent"


# -- misuse ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"amount": 0}, r"Budget\(amount\) takes a number above 0"),
        ({"amount": "5"}, r"Budget\(amount\) takes a number above 0"),
        ({"unit": ""}, "takes a name, such as 'USD'"),
        ({"unit": 3}, "takes a name, such as 'USD', not 3"),
        ({"name": ""}, "takes a name"),
        ({"worst": -1}, "the most that one attempt may cost"),
        ({"worst": True}, "the most that one attempt may cost"),
        ({"worst": 2}, "no attempt would ever fit"),
        ({"per": 0}, r"Budget\(per=...\) takes a number above 0"),
        ({"on_empty": "wait"}, "takes 'fail', 'stop' or 'ask', not 'wait'"),
        ({"on_empty": "ask", "per": 60}, "asks for more for one run"),
    ],
)
def test_budgets_that_are_refused(arguments: Mapping[str, Any], says: str):
    given: dict[str, Any] = {"amount": 1, "unit": "USD", "worst": 0.1, **arguments}
    with pytest.raises(DefinitionError, match=says):
        Budget(given.pop("amount"), given.pop("unit"), **given)


@pytest.mark.parametrize("worst", ["much", -1, True, 2, None, anyio.sleep])
def test_worst_cases_that_are_refused(worst: Any):
    with pytest.raises(DefinitionError):
        Budget(1, "USD", worst=0).with_worst(worst)


async def test_an_attempt_may_cost_nothing_at_worst():
    app = Application(asking(costs=lambda n: None), limits=Budget(0.1, "USD", worst=0))
    assert (await app.run({"n": 1})).spent == {"USD": 0}


def test_asking_for_a_runtime_is_refused():
    with pytest.raises(DefinitionError, match="asks for more for one run"):
        Runtime(limits=Budget(1, "USD", worst=0.1, on_empty="ask"))


@pytest.mark.parametrize("worst", ["much", -1.0, float("inf"), None])
async def test_a_worst_case_that_is_no_amount(worst: Any):
    app = Application(asking(), limits=Budget(1, "USD", worst=lambda state: worst))
    with pytest.raises(Exception, match="it returns a number of at least 0"):
        await app.run({"n": 1})


async def test_a_child_s_timeout_and_each_are_no_excuse():
    act = asking(costs=lambda n: None, seconds=lambda n: 9.0)
    app = Application(
        answers(act, Budget(1, "USD", worst=0.1), each=Each(timeout=1), on_error="collect")
    )
    async with no_leaks():
        result = await app.run({"ns": range(2)})
    assert result.spent == {"USD": 0.2}
