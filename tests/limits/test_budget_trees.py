"""Budgets in trees of runs: whatever becomes of their attempts, no more is spent than allowed."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Any, Literal

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import (
    Application,
    Budget,
    Context,
    Graph,
    Limits,
    MemoryStore,
    Retry,
    RetryLater,
    Runtime,
    action,
    fan_out,
    first,
    race,
)
from shoal._limits.accounts import Account
from shoal.errors import BudgetExceeded
from shoal.events import Spent
from shoal.stores import Store
from shoal.testing import (
    Attempt,
    RecordingHook,
    Recovery,
    cancel_everywhere,
    crash_everywhere,
    no_leaks,
    run_virtual,
)

Backend = Literal["asyncio", "trio"]
backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])
EPSILON = 1e-6


@pytest.fixture(autouse=True)
def never_more_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check every account at each of its changes."""
    changed = Account._changed  # pyright: ignore[reportPrivateUsage]

    def check(account: Account) -> None:
        assert account.spent + account.aside <= account.amount + EPSILON, account
        assert account.aside >= 0
        assert sum(account.resting.values()) <= account.aside + EPSILON
        changed(account)

    monkeypatch.setattr(Account, "_changed", check)


class Model:
    """What attempts do, by chance, and what they have cost."""

    def __init__(self, seed: int, *, worst: float = 1.0, kinds: int = 6) -> None:
        self.chance = Random(seed)
        self.worst = worst
        self.kinds = kinds
        self.cost = 0.0
        self.attempts = 0

    async def attempt(
        self, context: Context, before: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Take a while, and say what it has cost, fail, or be told to come later."""
        self.attempts += 1
        cost, kind = self.worst, self.chance.randrange(self.kinds)
        try:
            if before is not None:
                await before()
            await anyio.sleep(self.chance.choice((0.0, 0.1, 0.1, 0.5, 2.0)))
            if kind != 0:  # else it says nothing
                said = round(self.worst * self.chance.random(), 3)
                context.charge(said, unit="USD")
                cost = said
            if kind == 1:
                await anyio.sleep(0.1)
                cost = round(cost / 2, 3)
                context.charge(cost, unit="USD")
            if kind == 2:
                raise OSError("the model has failed")
            if kind == 3 and self.chance.random() < 0.3:
                context.charge(0, unit="USD")
                cost = 0
                raise RetryLater(0.2)
        finally:
            self.cost += cost

    def graph(self, limits: Limits | None = None, **options: Any) -> Graph:
        """A map of chains, which contain a map, an action's own fan-out, and a race."""

        @action(reads=["n"], writes=["plan"], retry=Retry(2, on=OSError, initial=0.1))
        async def plan(n: int, context: Context) -> list[int]:
            await self.attempt(context)
            return list(range(n % 4))

        @action(reads=["p"], writes=["paid"])
        async def pay(p: int, context: Context) -> int:
            await self.attempt(context)
            return p

        @action(reads=["n"], writes=["own"])
        async def own(n: int, context: Context) -> int:
            async def children() -> None:
                async with context.fan_out(name="own", limits=Limits(3)) as group:
                    for p in range(n % 3):
                        group.start(pay, {"p": p}, key=p)
                    async for _ in group:
                        pass

            await self.attempt(context, children)
            return n

        @action(reads=["n"], writes=["first"], name="one")
        async def one(n: int, context: Context) -> int:
            await self.attempt(context)
            return n

        @action(reads=["n"], writes=["first"], name="two")
        async def two(n: int, context: Context) -> int:
            await self.attempt(context)
            return n

        inner = fan_out(pay, over="plan", item="p", into="inner", name="inner", on_error="ignore")
        contest = race(one, two, into="first", until=first(), name="contest")
        outer = fan_out(
            Graph.chain(plan, inner, own, contest),
            over="ns",
            item="n",
            into="outer",
            take="own",
            name="outer",
            on_error="ignore",
            limits=limits,
            **options,
        )
        return Graph.chain(outer)


def play(
    model: Model, n: int, amount: float, *, on_empty: Any, where: str, backend: Backend
) -> None:
    """Run a tree, and compare what result, events and store say with what attempts have cost."""
    hook, store = RecordingHook(), MemoryStore()
    budget = Budget(amount, "USD", worst=model.worst, on_empty=on_empty)
    graph = model.graph(budget if where == "fan-out" else None)
    app = Application(
        graph, limits=budget if where == "application" else None, hooks=[hook], store=store
    )

    async def main() -> None:
        async with no_leaks(), Runtime() as runtime:
            result = await runtime.run(app, {"ns": list(range(n))}, id="x")
            rounds = 0
            while result.status == "halted":
                rounds += 1
                more = amount if rounds < 3 else 0
                result = await runtime.run(app, id="x", answers={"budget USD": more})
            assert result.spent.get("USD", 0) == pytest.approx(model.cost)
            events = hook.of(Spent)
            assert math.fsum(event.cost for event in events) == pytest.approx(model.cost)
            assert len(events) == model.attempts
            again = await runtime.run(app, id="x")
            assert again.spent.get("USD", 0) == pytest.approx(model.cost)
            for limiter in runtime.limiters().values():
                for one in limiter.statistics():
                    assert (one.in_use, one.waiting, one.aside or 0) == (0, 0, 0)
        hook.assert_paired()

    run_virtual(main, backend=backend)


@backends
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(0, 12),
    amount=st.floats(1, 40),
    how=st.tuples(
        st.sampled_from(["fail", "stop", "ask"]), st.sampled_from(["application", "fan-out"])
    ),
)
def test_the_sums_agree(backend: Backend, seed: int, n: int, amount: float, how: tuple[Any, str]):
    on_empty, where = how
    play(Model(seed), n, amount, on_empty=on_empty, where=where, backend=backend)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "on_empty"), [("asyncio", "fail"), ("trio", "stop")])
def test_ten_thousand_children(backend: Backend, on_empty: str):
    model = Model(7)
    play(model, 1_500, 6_000.0, on_empty=on_empty, where="application", backend=backend)
    assert model.attempts > 5_000


# -- killed, and cancelled -------------------------------------------------------------------------


@backends
@pytest.mark.parametrize("on_empty", ["fail", "stop"])
@pytest.mark.parametrize("limit", [25, pytest.param(None, marks=pytest.mark.slow)])
def test_killed_at_any_save(backend: Backend, on_empty: Any, limit: int | None):
    """Attempts under way count their worst case, and nothing that was spent is forgotten."""
    model = Model(0)

    async def scenario(store: Store) -> float:
        model.chance.seed(3)
        budget = Budget(12, "USD", worst=1.0, on_empty=on_empty)
        app = Application(model.graph(), limits=budget, store=store)
        return (await app.run({"ns": [1, 2, 3]}, id="x")).spent["USD"]

    def check(recovery: Recovery[float]) -> None:
        assert model.cost - EPSILON <= recovery.result <= 12 + EPSILON
        model.cost = 0.0

    places = crash_everywhere(scenario, check, backend=backend, limit=limit, times=2)
    assert places >= 10


@pytest.mark.parametrize(
    ("backend", "how"), [("asyncio", "scope"), ("asyncio", "native"), ("trio", "scope")]
)
@pytest.mark.parametrize("places", [30, pytest.param(None, marks=pytest.mark.slow)])
def test_cancelled_anywhere_each_attempt_is_counted_once(
    backend: Backend, how: Any, places: int | None
):
    async def scenario(attempt: Attempt) -> None:
        hook, model = RecordingHook(), Model(1)
        app = Application(model.graph(), hooks=[hook])
        async with Runtime(limits=Budget(4, "USD", worst=1.0)) as runtime:

            async def run() -> None:
                with suppress(BudgetExceeded):
                    await runtime.run(app, {"ns": [1, 2]})

            await attempt(run)
            [money] = runtime.limiter().statistics()
            assert (money.waiting, money.aside) == (0, 0)
            assert money.spent == pytest.approx(model.cost)
            events = hook.of(Spent)
            assert math.fsum(event.cost for event in events) == pytest.approx(model.cost)
        hook.assert_paired()

    assert cancel_everywhere(scenario, backend=backend, how=how, limit=places) >= 15
