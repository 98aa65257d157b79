"""What each backend of shared rates and budgets does: as reckoned, for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest

from shoal import Application, Budget, Context, action, fan_out
from shoal.rates import (
    BudgetRequest,
    BudgetState,
    MemoryRates,
    RateRequest,
    RateState,
    reckon,
    reckon_budget,
)
from shoal.testing import no_leaks

from .redis_server import SERVERS, Server, find

pytestmark = [pytest.mark.anyio, pytest.mark.realtime]

real = pytest.mark.services, pytest.mark.sweep


@pytest.fixture(
    params=["memory", *(pytest.param(name, marks=real) for name in (*SERVERS, "postgres"))]
)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A function that makes clients of one server; in memory there is one client."""
    match request.param:
        case "memory":
            rates = MemoryRates()
            yield lambda: rates
        case "postgres":
            from shoal.rates.postgres import PostgresRates

            server = request.getfixturevalue("postgres")
            schema = server.new_schema()
            clients = [PostgresRates(server.address(), schema=schema) for _ in range(2)]
            yield iter(clients).__next__
            for client in clients:
                client.close()
        case program:
            from shoal.rates.redis import RedisRates

            served = Server(find(program), tmp_path)
            served.start()
            links = [RedisRates(served.url) for _ in range(2)]
            yield iter(links).__next__
            for link in links:
                link.close()
            served.kill()


@pytest.mark.parametrize("seed", range(2))
async def test_rates_are_reckoned(backend: Any, seed: int):
    random, rates = Random(seed), backend()
    states: dict[str, RateState] = {}
    held: dict[str, list[tuple[float, float]]] = {"a": [], "b": [], "c": []}
    for _ in range(60):
        requests: list[RateRequest] = []
        for key in random.sample("abc", random.randint(1, 3)):
            back = [unit for unit in held[key] if random.random() < 0.5]
            requests.append(
                RateRequest(
                    key=key,
                    interval={"a": 0.003, "b": 0.1, "c": 7.7}[key],
                    burst={"a": 1.0, "b": 20.0, "c": 2.5}[key],
                    extra=random.choice([0.0, 0.0, 0.0, 2.5, -1.5]),
                    returns=tuple(back),
                    costs=tuple(random.choices([1.0, 0.75, 0.25], k=random.randint(0, 4))),
                )
            )
        replies = await rates.settle(requests)
        for request, reply in zip(requests, replies, strict=True):
            state = states.get(request.key)
            if state is not None and max(state.tat, state.last) < reply.now:  # it may vanish
                state = None
            states[request.key], expected = reckon(state, reply.now, request)
            assert reply.turns == pytest.approx(expected.turns, abs=1e-5)
            assert reply.again_in == pytest.approx(expected.again_in, abs=1e-5)
            held[request.key] = list(zip(reply.turns, request.costs, strict=False))
        await anyio.sleep(random.choice([0, 0, 0.004]))


@pytest.mark.parametrize("per", [None, 0.05])
async def test_budgets_are_reckoned(backend: Any, per: float | None):
    random, rates = Random(1), backend()
    states: dict[str, BudgetState] = {}
    held: dict[str, float] = {"a": 0.0, "b": 0.0}
    for _ in range(60):
        requests: list[BudgetRequest] = []
        for key in random.sample("ab", random.randint(1, 2)):
            state = states.get(key)
            back = round(held[key] * random.random(), 3)
            costs = tuple(random.choices([1.0, 0.75, 0.3], k=random.randint(0, 4)))
            requests.append(
                BudgetRequest(
                    key=key,
                    amount=5.0,
                    per=per,
                    returned=back,
                    since=None if state is None else state.since,
                    costs=costs,
                )
            )
        for request, reply in zip(requests, await rates.spend(requests), strict=True):
            state = states.get(request.key)
            is_same = state is not None and state.since == reply.since
            assert is_same or per is not None or state is None
            kept = state if is_same else None
            states[request.key], expected = reckon_budget(kept, reply.since, request)
            assert reply.used == pytest.approx(expected.used)
            assert reply.granted == expected.granted
            granted = sum(request.costs[: reply.granted])
            before = held[request.key] - request.returned if is_same else 0.0
            held[request.key] = before + granted
        await anyio.sleep(random.choice([0, 0, 0.01]))


async def test_two_processes_spend_no_more_than_there_is(backend: Any):
    """What one of them doesn't need, the other one has."""
    done: list[int] = []

    @action(reads=["n"], writes=["out"])
    async def spend(n: int, context: Context) -> int:
        await anyio.sleep(0.002)
        context.charge(0.05, unit="USD")
        done.append(n)
        return n

    step = fan_out(spend, over="ns", item="n", into="out", on_error="ignore")

    async def process(rates: Any) -> None:
        budget = Budget(1.0, "USD", worst=0.1, name="team", per=600, backend=rates)
        await Application(step, limits=budget).run({"ns": range(15)})

    one, two = backend(), backend()
    async with no_leaks(descriptors=False), anyio.create_task_group() as tasks:
        tasks.start_soon(process, one)
        tasks.start_soon(process, two)
    request = BudgetRequest(key="team", amount=1.0, per=600)
    [reply] = await one.spend([request])
    assert reply.used == pytest.approx(0.05 * len(done))
    assert 10 < len(done) <= 20
