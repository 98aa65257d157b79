"""Budgets that several processes share: two runtimes stand for two processes here."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal import Application, Budget, Context, Failed, Runtime, State, action, fan_out
from shoal.errors import BudgetExceeded, DefinitionError, NotApplied, RateUnavailable
from shoal.rates import (
    BudgetReply,
    BudgetRequest,
    BudgetState,
    MemoryRates,
    RateReply,
    RateRequest,
    reckon_budget,
)
from shoal.testing import Attempt, cancel_everywhere, no_leaks

pytestmark = pytest.mark.anyio


class Watched:
    """A backend that checks that no more is used than there is, and can be down or slow."""

    def __init__(self, amount: float) -> None:
        self.amount = amount
        self.kept = MemoryRates()
        self.used = 0.0
        self.calls = 0
        self.down: Exception | None = None
        self.latency = 0.0

    async def settle(self, requests: Sequence[RateRequest]) -> Sequence[RateReply]:
        return await self.kept.settle(requests)

    async def spend(self, requests: Sequence[BudgetRequest]) -> Sequence[BudgetReply]:
        self.calls += 1
        await anyio.sleep(self.latency)
        if self.down is not None:
            raise self.down
        replies = await self.kept.spend(requests)
        assert all(reply.used <= self.amount + 1e-6 for reply in replies)
        self.used = replies[-1].used
        return replies


def spending(cost: float | None = None, seconds: float = 1.0, seed: int | None = None) -> Any:
    chance = Random(seed)

    @action(reads=["n"], writes=["out"])
    async def spend(n: int, context: Context) -> int:
        await anyio.sleep(seconds if seed is None else chance.random())
        if seed is not None:
            context.charge(chance.random() * 0.1, unit="USD")
        elif cost is not None:
            context.charge(cost, unit="USD")
        return n

    return fan_out(spend, over="ns", item="n", into="outs", name="outs", on_error="collect")


def shared(backend: Any, amount: float = 1.0, **options: Any) -> Budget:
    options = {"name": "team", "worst": 0.1, **options}
    return Budget(amount, "USD", backend=backend, **options)


async def run_two(app: Any, budgets: Sequence[Budget], n: int) -> list[Any]:
    results: list[Any] = []

    async def process(budget: Budget) -> None:
        async with Runtime(limits=budget) as runtime:
            results.append(await runtime.run(app, {"ns": range(n)}))

    async with anyio.create_task_group() as tasks:
        for budget in budgets:
            tasks.start_soon(process, budget)
    return results


@given(
    st.lists(
        st.tuples(
            st.floats(0, 3), st.floats(-1, 3), st.booleans(), st.lists(st.floats(0, 4), max_size=4)
        ),
        max_size=20,
    ),
    st.sampled_from([None, 5.0]),
)
def test_no_more_is_granted_than_there_is(steps: list[Any], per: float | None):
    state: BudgetState | None = None
    now, held = 0.0, 0.0
    for passes, given_back, is_known, costs in steps:
        now += passes
        since = None if state is None or not is_known else state.since
        returned, before = min(given_back, held), state
        request = BudgetRequest(
            key="k", amount=10, per=per, returned=returned, since=since, costs=tuple(costs)
        )
        state, reply = reckon_budget(state, now, request)
        if before is None or before.since != state.since:
            held = 0.0
        elif since is not None:
            held -= returned
        held += sum(costs[: reply.granted])
        # What was used beyond a grant counts, and may exceed the amount.
        assert reply.used == pytest.approx(held, abs=1e-6)
        assert reply.granted == 0 or reply.used <= 10 + 1e-6


async def test_processes_share_the_amount():
    backend = Watched(1.0)
    app = Application(spending())
    async with no_leaks():
        one, two = await run_two(app, [shared(backend), shared(backend)], 8)
    done = [result.outcomes("outs").done for result in (one, two)]
    assert sum(done) == 10
    assert backend.used == pytest.approx(1.0)
    failed = [one for one in two.outcomes("outs") if isinstance(one, Failed)] or [
        one for one in one.outcomes("outs") if isinstance(one, Failed)
    ]
    assert isinstance(failed[0].error, BudgetExceeded)
    assert "is spent" in str(failed[0].error) or "in all processes" in str(failed[0].error)


async def test_what_is_not_needed_is_returned():
    backend = Watched(1.0)
    app = Application(spending(cost=0.01))
    async with no_leaks():
        one, two = await run_two(app, [shared(backend), shared(backend)], 8)
    assert one.spent == two.spent == {"team of the runtime": 0.08}
    assert backend.used == pytest.approx(0.16)


async def test_what_was_spent_is_remembered_by_the_next_process():
    backend = Watched(0.3)
    app = Application(spending())
    for _ in range(2):
        async with no_leaks(), Runtime() as runtime:
            await runtime.run(
                Application(spending(), limits=shared(backend, 0.3)), {"ns": range(1)}
            )
    async with no_leaks(), Runtime(limits=shared(backend, 0.3)) as runtime:
        result = await runtime.run(app, {"ns": range(3)})
    assert result.outcomes("outs").done == 1


async def test_windows_are_the_backend_s():
    backend = Watched(0.2)
    app = Application(spending(), limits=shared(backend, 0.2, per=60))
    async with no_leaks(), Runtime() as runtime:
        assert (await runtime.run(app, {"ns": range(3)})).outcomes("outs").done == 2
        assert (await runtime.run(app, {"ns": range(3)})).outcomes("outs").done == 0
        await anyio.sleep(60)
        assert (await runtime.run(app, {"ns": range(3)})).outcomes("outs").done == 2


def parity(state: State) -> int:
    return state["n"] % 2


async def test_keys_have_the_amount_each():
    backend = Watched(0.1)
    budget = shared(backend, 0.1, by=parity)
    async with no_leaks(), Runtime(limits=budget) as runtime:
        result = await runtime.run(Application(spending()), {"ns": range(4)})
    assert result.outcomes("outs").done == 2


async def test_many_requests_take_few_calls():
    backend = Watched(9.0)
    backend.latency = 0.01
    async with no_leaks(), Runtime(limits=shared(backend, 9.0)) as runtime:
        result = await runtime.run(Application(spending(seconds=0.1)), {"ns": range(80)})
    assert result.outcomes("outs").done == 80
    assert backend.calls < 30


async def test_random_costs_agree_with_what_the_backend_keeps():
    backend = Watched(2.0)
    backend.latency = 0.003
    async with no_leaks():
        results = await run_two(
            Application(spending(seed=3)), [shared(backend, 2.0), shared(backend, 2.0)], 60
        )
    total = sum(result.spent.get("team of the runtime", 0) for result in results)
    assert backend.used == pytest.approx(total)
    assert total <= 2.0


async def test_a_backend_that_is_down_for_a_while_is_called_again():
    backend = Watched(1.0)
    backend.down = ConnectionError("no route")

    async def comes_up() -> None:
        await anyio.sleep(3)
        backend.down = None

    async with (
        no_leaks(),
        Runtime(limits=shared(backend)) as runtime,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(comes_up)
        result = await runtime.run(Application(spending()), {"ns": range(2)})
        assert result.outcomes("outs").done == 2


async def test_a_backend_that_stays_down_is_named():
    backend = Watched(1.0)
    backend.down = ConnectionError("no route")
    async with no_leaks(), Runtime(limits=shared(backend)) as runtime:
        with pytest.raises(RateUnavailable, match="the budget 'team' is shared through"):
            await runtime.run(Application(spending()), {"ns": range(2)})


class Talkative(Watched):
    """Answers something else than what it was asked."""

    answers: object = "hello"

    async def spend(self, requests: Sequence[BudgetRequest]) -> Any:
        return [self.answers for _ in requests]


@pytest.mark.parametrize("answer", ["hello", BudgetReply(granted=7, used=0.0, since=0.0)])
async def test_a_backend_that_answers_something_else_has_failed(answer: object):
    backend = Talkative(1.0)
    backend.answers = answer
    async with no_leaks(), Runtime(limits=shared(backend)) as runtime:
        with pytest.raises(RateUnavailable, match=r"spend\(\) answered .* see shoal\.rates"):
            await runtime.run(Application(spending()), {"ns": range(2)})


async def test_what_all_processes_have_spent_is_said_by_the_refusal():
    backend = MemoryRates()
    async with Runtime(limits=shared(backend, 0.25)) as runtime:
        await runtime.run(Application(spending(cost=0.1)), {"ns": range(2)})
    async with Runtime(limits=shared(backend, 0.25)) as runtime:
        result = await runtime.run(Application(spending()), {"ns": range(1)})
    [failed] = result.outcomes("outs")
    assert isinstance(failed, Failed)
    assert "0.05 of 0.25 is left; 0.2 in all processes is spent" in str(failed.error)


@pytest.mark.parametrize(
    ("error", "used"), [(NotApplied("no route"), 0.03), (ConnectionError("no answer"), 0.1)]
)
async def test_what_is_returned_is_said_again_if_it_is_sure_not_to_have_been_heard(
    error: Exception, used: float
):
    backend = Watched(1.0)

    @action(reads=["n"], writes=["out"])
    async def spend(n: int, context: Context) -> int:
        context.charge(0.03, unit="USD")
        backend.down = error
        return n

    async with no_leaks(), Runtime(limits=shared(backend)) as runtime:
        await runtime.run(Application(spend), {"n": 1})
        await anyio.sleep(1)
        backend.down = None
        await anyio.sleep(20)
        [reply] = await backend.spend([BudgetRequest(key="team", amount=1.0)])
    assert reply.used == pytest.approx(used)


class OnlyRates:
    async def settle(self, requests: Sequence[RateRequest]) -> Sequence[RateReply]:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"backend": OnlyRates()}, "OnlyRates keeps rates and no budgets: give it an"),
        ({"backend": 3}, "keeps no budgets"),
        ({"backend": MemoryRates}, "takes a backend that keeps budgets"),
        ({"backend": MemoryRates(), "name": None}, r"needs name=\.\.\."),
        ({"backend": MemoryRates(), "on_empty": "ask"}, "all processes share it"),
    ],
)
def test_misuse(options: dict[str, Any], says: str):
    with pytest.raises(DefinitionError, match=says):
        shared(**options)


@pytest.mark.parametrize(
    ("backend", "how"), [("asyncio", "scope"), ("asyncio", "native"), ("trio", "scope")]
)
def test_cancelled_anywhere_the_backend_knows_what_was_spent(backend: Any, how: Any):
    async def scenario(attempt: Attempt) -> None:
        kept = Watched(1.0)
        async with Runtime(limits=shared(kept)) as runtime:

            async def run() -> None:
                await runtime.run(Application(spending(cost=0.02)), {"ns": range(3)})

            await attempt(run)
            [money] = runtime.limiter().statistics()
            assert money.aside == 0
            spent = money.spent
        assert kept.used == pytest.approx(spent)

    assert cancel_everywhere(scenario, backend=backend, how=how, limit=40) >= 15
